//! The rules of a job's life once more, as small as they can be written: what every job should be after
//! every step. It has no log, no store and no group, so that it cannot be wrong in the same way.

mod made;
mod over;
mod rules;
mod runs;

use std::collections::BTreeMap;
use std::time::Duration;

use pacenote::job::limits::IDEMPOTENCY_KEY_KEPT;
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::policy::{Retention, RetryPolicy};
use pacenote::job::time::Timestamp;
use pacenote::job::{JobSpec, JobState};
use pacenote::queue::Skipped;

use self::rules::Rules;
use super::steps::{Queue, Submit, Type, Which};

/// Jobs of one tenant that may wait. Chosen: a run reaches it, and most of what it does has room.
pub(super) const WAITING_MAX: usize = 5;

/// Every job as it should be, and what was set for queues and types.
#[derive(Clone, Default, Debug)]
pub(super) struct Reference {
    pub(super) jobs: BTreeMap<JobKey, Expected>,
    keys: BTreeMap<(Name, String), JobKey>,
    rules: Rules,
}

/// A job as it should be.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Expected {
    pub(super) state: JobState,
    pub(super) run_at: Timestamp,
    pub(super) attempt: u32,
    pub(super) charged: u32,
    pub(super) lost: u32,
    /// By the steady clock; of a job that is leased.
    lease_until: Timestamp,
    /// Of a job that waits: when it expires.
    deadline_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    created_at: Timestamp,
    /// Of a job that is over: when it may be removed.
    pub(super) purge_at: Option<Timestamp>,
    idempotency_key: Option<String>,
    pub(super) retry_of: Option<JobId>,
    pub(super) retried_by: Option<JobId>,
    /// What was asked for.
    pub(super) request: Submit,
}

/// What a call should be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// With the job in this state.
    Job(JobKey, JobState),
    /// With the job that the key, or the retry, made before.
    Deduplicated(JobKey, JobState),
    /// With all of them.
    Batch(Vec<Reply>),
    /// With each job that was retried and what was made of it, and with those that were not; and with why
    /// it did not go on, where it did not.
    Retried {
        retried: Vec<(JobId, JobId)>,
        skipped: Vec<(JobId, Skipped)>,
        refused: Option<Refused>,
    },
    /// With how many jobs were removed.
    Removed(usize),
    /// With nothing but that it is done.
    Done,
    Refused(Refused),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    NotFound,
    KeyReused(JobId),
    UniqueTaken(JobId),
    BatchTaken,
    /// So many wait, and so many more would.
    NoRoom(usize, usize),
    StaleLease,
    NotCancelling,
    /// In this state; and what was made of it is gone.
    NotRetryable(JobState, Option<JobId>),
    /// The process died: nobody knows.
    Unknown,
    /// As it never should be.
    Otherwise(String),
}

pub(super) const POLICY_OF_WORK: RetryPolicy = RetryPolicy {
    max_attempts: 3,
    initial_backoff: Duration::from_secs(1),
    max_backoff: Duration::from_secs(600),
    backoff_multiplier: 2.0,
    non_retryable_reasons: Vec::new(),
};

impl Type {
    pub(super) fn name(self) -> Name {
        match self {
            Self::Work => Name::of("work"),
            Self::Once => Name::of("once"),
        }
    }

    pub(super) fn policy(self) -> RetryPolicy {
        match self {
            Self::Work => POLICY_OF_WORK,
            Self::Once => RetryPolicy {
                max_attempts: 1,
                ..POLICY_OF_WORK
            },
        }
    }

    /// Shorter than the time that a step may take.
    pub(super) fn retention(self) -> Retention {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        match self {
            Self::Work => Retention {
                finished: minutes(30),
                failed: minutes(90),
            },
            Self::Once => Retention {
                finished: minutes(90),
                failed: minutes(30),
            },
        }
    }
}

impl Queue {
    pub(super) fn name(self) -> Name {
        match self {
            // Where a job waits whose type says nothing else.
            Self::First => JobSpec::of(Type::Work.name()).queue,
            Self::Second => Name::of("second"),
        }
    }
}

impl Which {
    fn finds(&self, key: &JobKey, job: &Expected, tenant: &Name) -> bool {
        key.tenant == *tenant && (self.states.is_empty() || self.states.contains(&job.state))
    }
}

impl Expected {
    fn end(&mut self, state: JobState, now: Timestamp) {
        let kept = match (self.request.retention, state) {
            (Some(asked), _) => Duration::from_secs(u64::from(asked)),
            (None, JobState::Failed) => self.request.job_type.retention().failed,
            (None, _) => self.request.job_type.retention().finished,
        };
        let by_key = self.created_at.after(IDEMPOTENCY_KEY_KEPT);
        let has_key = self.idempotency_key.is_some();
        let kept_until = now.after(kept);
        self.purge_at = Some(if has_key {
            kept_until.max(by_key)
        } else {
            kept_until
        });
        self.state = state;
    }
}

/// An idempotency key as it is sent.
pub(super) fn text_of(key: u8) -> String {
    format!("key {key}")
}

pub(super) fn seconds(given: Option<u8>) -> Option<Duration> {
    given.map(|seconds| Duration::from_secs(u64::from(seconds)))
}
