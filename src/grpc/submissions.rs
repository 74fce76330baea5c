//! What a request says of a job to be, turned into a [`Submission`]. What it says is checked by the queue;
//! here is only told what has no word there: times before the beginning of all, unknown enums.

use std::ops::RangeInclusive;
use std::time::Duration;

use prost_types::{Duration as ProtoDuration, Timestamp};

use crate::job::limits::{DURATIONS, TIMEOUTS};
use crate::job::policy::OnConflict;
use crate::pb;
use crate::pb::submit_request::Start as ProtoStart;
use crate::queue::{
    RetryOverrides, Start, Submission, TimeoutOverrides, UniqueRequest, default_tenant,
};
use crate::wire;

/// The submission of a request.
pub(super) fn submission(request: pb::SubmitRequest) -> Submission {
    let mut reading = Reading::default();
    let start = reading.start(request.start);
    let retry_policy = reading.retry_policy(request.retry_policy);
    let timeouts = reading.timeouts(request.timeouts);
    let retention = reading.span("retention", request.retention, DURATIONS);
    let unique = request.unique.map(|unique| reading.unique(unique));
    Submission {
        tenant: default_tenant(),
        job_type: request.r#type,
        input: request.input.map_or(Ok(None), wire::from_payload),
        queue: request.queue,
        idempotency_key: request.idempotency_key,
        priority: request.priority,
        labels: request.labels.into_iter().collect(),
        start,
        retry_policy,
        timeouts,
        retention,
        concurrency_key: request.concurrency_key,
        unique,
        unreadable: reading.unreadable,
    }
}

/// The submission of an item of a batch.
pub(super) fn of_batch(request: pb::SubmitRequest) -> Submission {
    let validate_only = request.validate_only;
    let mut submission = submission(request);
    if validate_only {
        let problem = "is not for a batch; Submit checks a request".to_owned();
        submission
            .unreadable
            .push(("validate_only".to_owned(), problem));
    }
    submission
}

/// Collects what cannot be read.
#[derive(Default)]
struct Reading {
    unreadable: Vec<(String, String)>,
}

impl Reading {
    fn start(&mut self, start: Option<ProtoStart>) -> Start {
        match start {
            None => Start::AtOnce,
            Some(ProtoStart::ScheduleTime(at)) => self.time("schedule_time", at),
            Some(ProtoStart::Delay(delay)) => {
                let delay = self.span("delay", Some(delay), DURATIONS);
                delay.map_or(Start::AtOnce, Start::After)
            }
        }
    }

    fn retry_policy(&mut self, policy: Option<pb::RetryPolicy>) -> RetryOverrides {
        let policy = policy.unwrap_or_default();
        let (initial, longest) = (policy.initial_backoff, policy.max_backoff);
        RetryOverrides {
            max_attempts: Some(policy.max_attempts).filter(|attempts| *attempts != 0),
            initial_backoff: self.span("retry_policy.initial_backoff", initial, DURATIONS),
            max_backoff: self.span("retry_policy.max_backoff", longest, DURATIONS),
            backoff_multiplier: Some(policy.backoff_multiplier).filter(|growth| *growth != 0.0),
            non_retryable_reasons: policy.non_retryable_reasons,
        }
    }

    fn timeouts(&mut self, timeouts: Option<pb::Timeouts>) -> TimeoutOverrides {
        let given = timeouts.unwrap_or_default();
        let mut span =
            |name: &str, given, range| self.span(&format!("timeouts.{name}"), given, range);
        TimeoutOverrides {
            queue_timeout: span("queue_timeout", given.queue_timeout, TIMEOUTS),
            run_timeout: span("run_timeout", given.run_timeout, TIMEOUTS),
            total_timeout: span("total_timeout", given.total_timeout, TIMEOUTS),
            heartbeat_timeout: span("heartbeat_timeout", given.heartbeat_timeout, TIMEOUTS),
            cancel_grace: span("cancel_grace", given.cancel_grace, DURATIONS),
            stall_time: span("stall_time", given.stall_time, TIMEOUTS),
        }
    }

    fn unique(&mut self, unique: pb::UniquePolicy) -> UniqueRequest {
        use pb::unique_policy::OnConflict as Wire;
        let on_conflict = match Wire::try_from(unique.on_conflict) {
            Ok(Wire::Unspecified) => None,
            Ok(Wire::ReturnExisting) => Some(OnConflict::ReturnExisting),
            Ok(Wire::Reject) => Some(OnConflict::Reject),
            Ok(Wire::ReplaceWaiting) => Some(OnConflict::ReplaceWaiting),
            Ok(Wire::CancelRunning) => Some(OnConflict::CancelRunning),
            Err(_) => {
                let problem = format!("is {}, which is no OnConflict", unique.on_conflict);
                self.refuse("unique.on_conflict", problem);
                None
            }
        };
        UniqueRequest {
            key: unique.key,
            on_conflict,
            window: self.span("unique.window", unique.window, DURATIONS),
        }
    }

    fn time(&mut self, field: &str, at: Timestamp) -> Start {
        match wire::from_timestamp(at) {
            Ok(at) => Start::At(at),
            Err(problem) => {
                self.refuse(field, problem);
                Start::AtOnce
            }
        }
    }

    /// A duration, where it is one of ours; `range` is what is accepted in its place.
    fn span(
        &mut self,
        field: &str,
        given: Option<ProtoDuration>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        match wire::from_duration(given?, range) {
            Ok(span) => Some(span),
            Err(problem) => {
                self.refuse(field, problem);
                None
            }
        }
    }

    fn refuse(&mut self, field: &str, problem: String) {
        self.unreadable.push((field.to_owned(), problem));
    }
}
