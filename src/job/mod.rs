//! The words and rules of a job's life.
//!
//! Everything that can happen to a job is a [`Change`], and [`Job::apply`] is the only place where one
//! takes effect: pure, without a clock or a store of its own, so that every legal and illegal change
//! can be tried in a table. Whatever is late (an old attempt, a finished job) is refused here.
//! It knows no wire, no SQL and no runtime.

pub mod apply;
pub mod event;
pub mod limits;
pub mod name;
pub mod payload;
pub mod policy;
pub mod progress;
pub mod queue;
pub mod segment;
pub mod time;

#[cfg(test)]
mod apply_tests;
#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod life_tests;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::event::{EventKind, JobError, LogLine};
use crate::job::name::{BatchId, ConcurrencyKey, JobId, JobKey, Lane, Name};
use crate::job::payload::Payload;
use crate::job::policy::{OnConflict, Retention, RetryPolicy, Timeouts};
use crate::job::progress::{Progress, ProgressOrigin};
use crate::job::time::Timestamp;

/// A unit of work as it stands, without its payloads. Readable by everyone, changed by
/// [`Job::apply`] alone.
#[derive(Clone, PartialEq, Debug)]
pub struct Job(JobFields);

/// What a [`Job`] consists of: what a store writes and reads back.
#[derive(Clone, PartialEq, Debug)]
pub struct JobFields {
    /// Whose, and which one.
    pub key: JobKey,
    /// What never changes after the submit.
    pub spec: Arc<JobSpec>,
    /// Where it is in its life.
    pub state: JobState,
    /// When it may next be claimed; waiting jobs of one priority run in this order.
    pub run_at: Timestamp,
    /// Claims so far, and the fence: whatever comes with another number is refused.
    pub attempt: u32,
    /// Attempts that count against `max_attempts`.
    pub attempts_charged: u32,
    /// Attempts lost in a row.
    pub attempts_lost: u32,
    /// While an attempt lives: when its lease ends, by the steady clock.
    pub lease_expires_at: Option<Timestamp>,
    /// While an attempt lives: when it will have been silent for its stall time, by the steady clock;
    /// `None` once that was said.
    pub stall_at: Option<Timestamp>,
    /// The attempt that lives has been silent since, and that was said.
    pub stalled_since: Option<Timestamp>,
    /// While it waits: when it expires.
    pub deadline_at: Option<Timestamp>,
    /// The oldest event still kept.
    pub first_sequence: i64,
    /// The newest event.
    pub last_sequence: i64,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When its newest event was stored.
    pub updated_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Once it has ended: when it may be removed.
    pub purge_at: Option<Timestamp>,
    /// Once it has ended: when the front of its log may be removed, where that is sooner; `None` once it is.
    pub events_purge_at: Option<Timestamp>,
    /// Changes so far: a store writes a row only if it still has the version that was read.
    pub version: i64,
    /// What is shown but never searched.
    pub detail: JobDetail,
}

/// What never changes after the submit.
#[derive(Clone, PartialEq, Debug)]
pub struct JobSpec {
    /// What runs it.
    pub job_type: Name,
    /// Where it waits.
    pub queue: Name,
    /// Higher runs sooner.
    pub priority: i32,
    /// For finding it again.
    pub labels: BTreeMap<String, String>,
    /// The caller's key, if any.
    pub idempotency_key: Option<String>,
    /// SHA-256 over the normalised request, in hex; only where there is a key.
    pub fingerprint: String,
    /// The batch that it came in, if any.
    pub batch_id: Option<BatchId>,
    /// Jobs of one queue with the same key share a limit on how many run at once.
    pub concurrency_key: Option<Name>,
    /// What it is the only one of, if anything.
    pub unique: Option<Unique>,
    /// The job that this one is a retry of.
    pub retry_of: Option<JobId>,
    /// How often, and after what wait, failed attempts are repeated.
    pub retry_policy: RetryPolicy,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How long it is kept once it is over.
    pub retention: Retention,
    /// How long the front of its log is kept once it is over. 0 to a year; `None`: as long as the job.
    pub event_retention: Option<std::time::Duration>,
    /// Output and log lines kept. Bytes.
    pub log_bytes_max: u64,
    /// At most one progress event is stored in this time; zero for one a commit.
    pub progress_interval: Duration,
}

impl JobSpec {
    fn concurrency_key_of(&self, job: &JobKey) -> Option<ConcurrencyKey> {
        Some(ConcurrencyKey {
            tenant: job.tenant.clone(),
            queue: self.queue.clone(),
            key: self.concurrency_key.clone()?,
        })
    }

    /// A job of a type, with everything else as it is by default.
    pub fn of(job_type: Name) -> Self {
        Self {
            job_type,
            queue: Name::of("default"),
            priority: 0,
            labels: BTreeMap::new(),
            idempotency_key: None,
            fingerprint: String::new(),
            batch_id: None,
            concurrency_key: None,
            unique: None,
            retry_of: None,
            retry_policy: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            retention: Retention::default(),
            event_retention: None,
            log_bytes_max: limits::LOG_BYTES_DEFAULT,
            progress_interval: limits::PROGRESS_INTERVAL_DEFAULT,
        }
    }
}

/// What a job is the only one of, within its tenant and type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unique {
    /// What it is called.
    pub key: String,
    /// Another job stands in the way while it is not finished, and for this long after it was stored.
    pub window: Duration,
}

/// What changes, is shown, and is never searched.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobDetail {
    /// Newest progress of the newest attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Where that attempt's progress began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_origin: Option<ProgressOrigin>,
    /// Why it failed, or how its newest attempt failed while another one is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// Who holds, or held last, its lease.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub worker_id: String,
    /// While another program holds its lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_lease: Option<RemoteLease>,
    /// How its newest attempt ended, where its worker may ask again whether it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told_end: Option<ToldEnd>,
    /// What the caller of a cancel gave.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cancel_reason: String,
    /// When the first attempt was claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When its total timeout ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The job that is a retry of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retried_by: Option<JobId>,
    /// Bytes so far on each output stream of the newest attempt.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<String, u64>,
    /// Bytes of output and log lines kept, each counted with [`limits::EVENT_BYTES_MIN`] at least.
    #[serde(skip_serializing_if = "is_zero")]
    pub log_bytes: u64,
    /// Bytes of output and log lines dropped because the bound was reached.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped_log_bytes: u64,
    /// Bytes of progress events stored: each quarter of the log's bound doubles their interval.
    #[serde(skip_serializing_if = "is_zero")]
    pub progress_bytes: u64,
}

/// The lease of a worker that is another program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RemoteLease {
    /// How long each renewal holds.
    pub term: Duration,
    /// The newest report that was stored; 0 before the first.
    #[serde(default)]
    pub last_report: i64,
    /// No attempt had begun before: should nobody hear of this one, none has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_first: bool,
}

/// An end that a worker told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ToldEnd {
    /// Of which attempt.
    pub attempt: u32,
    /// What tells it from another one.
    pub fingerprint: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where a job is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for its time: its start time, the next attempt after a failed one, the end of a snooze.
    Scheduled,
    /// Waits for other jobs: those that run have all there is of its concurrency key.
    Blocked,
    /// Waits for a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Asked to stop while running; ends only in `Cancelled`.
    Cancelling,
    /// Over, with a result.
    Succeeded,
    /// Over, with an error: the dead letter.
    Failed,
    /// Over, because somebody asked.
    Cancelled,
    /// Over, because it was not started or not finished in time.
    Expired,
}

impl JobState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::Scheduled,
        Self::Blocked,
        Self::Queued,
        Self::Running,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Waits to run: what the waiting quota counts.
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Scheduled | Self::Blocked | Self::Queued)
    }

    /// Nothing changes any more.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired => true,
            Self::Scheduled | Self::Blocked | Self::Queued | Self::Running | Self::Cancelling => {
                false
            }
        }
    }

    /// Over without a result: a new job can be made of it.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Failed | Self::Cancelled | Self::Expired)
    }

    /// An attempt lives.
    pub fn is_leased(self) -> bool {
        matches!(self, Self::Running | Self::Cancelling)
    }

    /// Lower case, as stored and shown in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Blocked => "blocked",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// From its stored form.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A job beside its payloads, as far as they were read.
#[derive(Clone, PartialEq, Debug)]
pub struct JobSnapshot {
    /// The job.
    pub job: Arc<Job>,
    /// Input, result and checkpoint; empty in the BASIC view.
    pub payloads: Payloads,
}

/// What stands beside a job.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Payloads {
    /// As submitted.
    pub input: Option<Payload>,
    /// Once it has succeeded.
    pub result: Option<Payload>,
    /// The newest one saved.
    pub checkpoint: Option<Payload>,
}

impl Payloads {
    /// Takes what is newer.
    pub fn put(&mut self, newer: Payloads) {
        self.input = newer.input.or_else(|| self.input.take());
        self.result = newer.result.or_else(|| self.result.take());
        self.checkpoint = newer.checkpoint.or_else(|| self.checkpoint.take());
    }

    /// A copy that keeps nothing else in memory.
    pub fn detached(&self) -> Self {
        let copy = |payload: &Option<Payload>| payload.as_ref().map(Payload::detached);
        Self {
            input: copy(&self.input),
            result: copy(&self.result),
            checkpoint: copy(&self.checkpoint),
        }
    }

    /// How large their contents are together. Bytes.
    pub fn bytes(&self) -> usize {
        let all = [&self.input, &self.result, &self.checkpoint];
        let bytes = all.map(|payload| payload.as_ref().map_or(0, |p| p.as_bytes().len()));
        bytes.iter().sum()
    }

    /// How large they are together in a message: of JSON several times its text. Bytes.
    pub fn encoded_len(&self) -> usize {
        let all = [&self.input, &self.result, &self.checkpoint];
        let bytes = all.map(|payload| payload.as_ref().map_or(0, Payload::encoded_len));
        bytes.iter().sum()
    }
}

/// A job to be: checked, with every default filled in.
#[derive(Clone, PartialEq, Debug)]
pub struct NewJob {
    /// Whose, and which one.
    pub key: JobKey,
    /// What never changes.
    pub spec: Arc<JobSpec>,
    /// What it works on.
    pub input: Option<Payload>,
    /// When it may first run; in the past for at once, `None` for `delay` after it is stored.
    pub start_at: Option<Timestamp>,
    /// How long after it is stored it may first run. Default: at once.
    pub delay: Duration,
    /// What becomes of it where another job stands in its way.
    pub on_conflict: OnConflict,
}

impl NewJob {
    /// What it shares a limit with, if anything.
    pub fn concurrency_key(&self) -> Option<ConcurrencyKey> {
        self.spec.concurrency_key_of(&self.key)
    }

    /// A job that may run at once and stands in nobody's way.
    pub fn new(key: JobKey, spec: JobSpec, input: Option<Payload>) -> Self {
        Self {
            key,
            spec: Arc::new(spec),
            input,
            start_at: None,
            delay: Duration::ZERO,
            on_conflict: OnConflict::default(),
        }
    }

    /// When it may first run, stored now: now at the earliest.
    pub fn run_at(&self, now: Timestamp) -> Timestamp {
        match self.start_at {
            Some(at) => at.max(now),
            None => now.after(self.delay),
        }
    }
}

/// What may happen to a job once it is stored.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// A worker takes it.
    Claim {
        /// Who.
        worker_id: String,
        /// Now, by the steady clock.
        heard_at: Timestamp,
        /// How long the claim holds without a heartbeat, by the steady clock.
        lease_until: Timestamp,
        /// Where the worker is another program: how long each renewal holds.
        term: Option<Duration>,
    },
    /// The attempt tells what it has done, which renews its lease.
    Report {
        /// Which attempt.
        attempt: u32,
        /// What it has done, in order. Empty: a heartbeat.
        reports: Vec<Report>,
        /// Now, by the steady clock.
        heard_at: Timestamp,
        /// How long the claim holds from here.
        lease_until: Timestamp,
        /// Which report of the attempt, from 1: what comes with a number that is stored already came before.
        /// 0 where its worker does not count them.
        number: i64,
    },
    /// The attempt is over.
    Finish {
        /// Which attempt.
        attempt: u32,
        /// How it went.
        outcome: Outcome,
        /// Jitter of a retry, uniform in 0 to 1.
        chance: f64,
        /// What tells this end from another one. The same end of the same attempt again changes nothing.
        fingerprint: Option<String>,
    },
    /// Nobody heard of the claim: the caller that it was for had gone. The job waits on as if it had not been, but
    /// that it counts as an attempt.
    Undelivered {
        /// Which attempt.
        attempt: u32,
    },
    /// The attempt's worker is gone: its lease ran out, or its process is known to be dead.
    Lose {
        /// Which attempt.
        attempt: u32,
        /// Its lease has to have ended before this, by the steady clock: what was true when somebody
        /// looked may not be any more. The far end of the range where its process is known to be dead.
        before: Timestamp,
    },
    /// The attempt has told nothing for the job's stall time.
    Stall {
        /// Which attempt.
        attempt: u32,
        /// Now, by the steady clock.
        steady_now: Timestamp,
    },
    /// Somebody asks it to stop.
    Cancel {
        /// What made somebody ask.
        cause: CancelCause,
        /// Why.
        reason: String,
        /// Who.
        requested_by: String,
    },
    /// Its time has come.
    BecomeDue,
    /// Its deadline has passed while it waits.
    Expire,
    /// It is next, but those that run have all there is of its concurrency key.
    Hold,
    /// Others have made room for it.
    Unblock,
    /// A new job was made of it.
    Retried {
        /// Which one.
        by: JobId,
    },
}

/// What made somebody ask a job to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CancelCause {
    /// The call.
    Requested,
    /// Another job takes its unique place.
    Replaced,
    /// Its queue was purged.
    QueuePurged,
}

impl CancelCause {
    /// UPPER_SNAKE_CASE, as it stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "CANCEL_REQUESTED",
            Self::Replaced => "REPLACED",
            Self::QueuePurged => "QUEUE_PURGED",
        }
    }
}

/// One thing that an attempt tells.
#[derive(Clone, PartialEq, Debug)]
pub enum Report {
    /// How far it has come.
    Progress(Progress),
    /// Partial output.
    Output {
        /// Which stream. A name.
        stream: String,
        /// What was written.
        chunk: Payload,
    },
    /// A line for people.
    Log(LogLine),
    /// Where the next attempt could go on.
    Checkpoint(Payload),
}

/// How an attempt went.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// Done, with or without a result.
    Succeeded(Option<Payload>),
    /// Not done.
    Failed(JobError),
    /// Stopped because it was asked to.
    Cancelled,
    /// Not finished through no fault of its own: the worker drains. Charges nothing.
    HandedBack,
    /// Wants to go on later. Charges nothing.
    Snoozed(Duration),
    /// Stopped because the job's total timeout has ended.
    Expired,
}

/// What a change did.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Applied {
    /// New entries of the log, numbered.
    pub events: Vec<event::Event>,
    /// The job's result, to be stored beside it.
    pub result: Option<Payload>,
    /// The newest checkpoint, to be stored beside it.
    pub checkpoint: Option<Payload>,
}

/// Why a change was refused. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Only a waiting job can be claimed.
    NotQueued,
    /// The attempt is not, or no longer, the one that holds the lease.
    StaleLease,
    /// Nobody asked it to stop.
    NotCancelling,
    /// It is not waiting for its time, or the time has not come: not yet, or not any more.
    NotDue,
    /// It is not waiting for others.
    NotBlocked,
    /// Only a waiting job goes with what waits in its queue.
    NotWaiting,
    /// Only a job that failed, was cancelled or has expired can be retried, and only once.
    NotRetryable {
        /// Where it is in its life.
        state: JobState,
        /// The job that was made of it.
        retried_by: Option<JobId>,
    },
}

impl Deref for Job {
    type Target = JobFields;

    fn deref(&self) -> &JobFields {
        &self.0
    }
}

impl Job {
    /// The job that a store kept.
    pub fn from_fields(fields: JobFields) -> Self {
        Self(fields)
    }

    /// A job that is new, and the first event of its log.
    pub fn submit(new: &NewJob, now: Timestamp) -> (Self, Applied) {
        let run_at = new.run_at(now);
        let state = if run_at > now {
            JobState::Scheduled
        } else {
            JobState::Queued
        };
        let timeouts = &new.spec.timeouts;
        let expires_at = timeouts.total_timeout.map(|timeout| run_at.after(timeout));
        let mut job = Self(JobFields {
            key: new.key.clone(),
            spec: Arc::clone(&new.spec),
            state,
            run_at,
            attempt: 0,
            attempts_charged: 0,
            attempts_lost: 0,
            lease_expires_at: None,
            stall_at: None,
            stalled_since: None,
            deadline_at: timeouts.to_be_started_by(run_at, expires_at),
            first_sequence: 1,
            last_sequence: 0,
            created_at: now,
            updated_at: now,
            ended_at: None,
            purge_at: None,
            events_purge_at: None,
            version: 0,
            detail: JobDetail {
                expires_at,
                ..JobDetail::default()
            },
        });
        let mut applied = Applied::default();
        job.record(
            &mut applied,
            now,
            EventKind::StateChange {
                from: None,
                to: state,
                reason: String::new(),
            },
        );
        (job, applied)
    }

    /// Where it waits.
    pub fn lane(&self) -> Lane {
        Lane {
            queue: self.spec.queue.clone(),
            job_type: self.spec.job_type.clone(),
            tenant: self.key.tenant.clone(),
        }
    }

    /// What it shares a limit with, if anything.
    pub fn concurrency_key(&self) -> Option<ConcurrencyKey> {
        self.spec.concurrency_key_of(&self.key)
    }

    /// Whether it stands in the way of another one with its unique key.
    pub fn is_in_the_way(&self, now: Timestamp) -> bool {
        let window = self.spec.unique.as_ref().map(|unique| unique.window);
        // Without one it holds nothing, even where the clock was set back behind its creation.
        let window = window.filter(|window| !window.is_zero());
        !self.state.is_terminal() || window.is_some_and(|for_| self.created_at.after(for_) > now)
    }

    /// Whether a new job can be made of it.
    ///
    /// # Errors
    /// [`Refusal::NotRetryable`].
    pub fn check_retry(&self) -> Result<(), Refusal> {
        if self.state.is_retryable() && self.detail.retried_by.is_none() {
            return Ok(());
        }
        Err(Refusal::NotRetryable {
            state: self.state,
            retried_by: self.detail.retried_by,
        })
    }
}
