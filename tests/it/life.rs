//! What the tests of a job's life share: looking at logs, waiting for a state, leases by hand.

use pacenote::config::TypeSettings;
use pacenote::job::event::JobError;
use pacenote::job::name::{JobId, JobKey};
use pacenote::job::{Outcome, policy::RetryPolicy};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;
use pacenote::queue::{Lease, default_tenant};
use std::time::Duration;

use crate::harness::{TestServer, soon};

/// Settings of a type, but for a few.
pub(crate) fn settings(change: impl FnOnce(&mut TypeSettings)) -> TypeSettings {
    let mut settings = TypeSettings::default();
    change(&mut settings);
    settings
}

/// Retries that wait so long that nothing of a test happens after them.
pub(crate) fn long_waits() -> RetryPolicy {
    RetryPolicy {
        initial_backoff: Duration::from_secs(1_000_000),
        max_backoff: Duration::from_secs(1_000_000),
        ..RetryPolicy::default()
    }
}

pub(crate) fn broken() -> Outcome {
    Outcome::Failed(JobError::retryable("BROKEN", "again"))
}

/// The changes of state in a log, each with its reason.
pub(crate) fn states(log: &[pb::JobEvent]) -> Vec<(State, &str)> {
    log.iter()
        .filter_map(|event| match &event.event {
            Some(Event::StateChange(change)) => Some((change.to_state(), change.reason.as_str())),
            _ => None,
        })
        .collect()
}

pub(crate) fn is_terminal(state: State) -> bool {
    matches!(
        state,
        State::Succeeded | State::Failed | State::Cancelled | State::Expired
    )
}

/// Checks what holds for every log of a finished job: dense, one terminal event, and that the last.
pub(crate) fn check_finished(log: &[pb::JobEvent]) {
    let sequences: Vec<i64> = log.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=log.len() as i64).collect::<Vec<_>>());
    let states = states(log);
    let ends = states.iter().filter(|(state, _)| is_terminal(*state));
    assert_eq!(ends.count(), 1, "{states:?}");
    assert_eq!(states_of_last(log), states.last().map(|(state, _)| *state));
}

fn states_of_last(log: &[pb::JobEvent]) -> Option<State> {
    match &log.last()?.event {
        Some(Event::StateChange(change)) => Some(change.to_state()),
        other => panic!("the last event is {other:?}"),
    }
}

/// The lease of a job's attempt.
pub(crate) fn lease(job_id: &str, attempt: u32) -> Lease {
    Lease {
        key: key(job_id),
        attempt,
    }
}

pub(crate) fn key(job_id: &str) -> JobKey {
    JobKey {
        tenant: default_tenant(),
        id: JobId::parse(job_id).expect("an id"),
    }
}

impl TestServer {
    /// Waits until a job is in a state, from event to event.
    pub(crate) async fn until_state(&self, job_id: &str, state: State) -> pb::Job {
        let mut job = self.get(job_id).await;
        while job.state() != state {
            assert!(!is_terminal(job.state()), "{state:?} never came: {job:?}");
            let request = pb::WaitRequest {
                job_id: job_id.to_owned(),
                timeout: None,
                after_sequence: Some(job.last_sequence),
                view: 0,
            };
            let waited = soon(self.client.clone().wait(request)).await;
            let waited = waited.expect("the job is there").into_inner();
            job = waited.job.expect("a job");
        }
        job
    }

    /// Waits until a job is in an attempt, or beyond it, from event to event.
    pub(crate) async fn until_attempt(&self, job_id: &str, attempt: i32) -> pb::Job {
        let mut job = self.get(job_id).await;
        while job.attempt < attempt {
            let request = pb::WaitRequest {
                job_id: job_id.to_owned(),
                timeout: None,
                after_sequence: Some(job.last_sequence),
                view: 0,
            };
            let waited = soon(self.client.clone().wait(request)).await;
            let waited = waited.expect("the job is there").into_inner();
            job = waited.job.expect("a job");
        }
        job
    }

    /// Every job there is, newest first.
    pub(crate) async fn all_jobs(&self, request: pb::ListRequest) -> Vec<pb::Job> {
        let (mut jobs, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = pb::ListRequest {
                page_token,
                ..request.clone()
            };
            let page = self.client.clone().list(request).await;
            let page = page.expect("a good request").into_inner();
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return jobs;
            }
        }
    }
}
