//! What may be said of a job beside its type and input, as it is typed.

use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};

use crate::client::to_proto_duration;
use crate::pb;
use crate::pb::submit_request::Start;
use crate::pb::unique_policy::OnConflict;

/// Options of a job. What is not given is its type's.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "When and how it runs")]
pub struct JobOptions {
    /// First run it so long after it is stored, as 10s or 1h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "at")]
    pub delay: Option<Duration>,
    /// First run it at this time, as 2030-01-31T08:00:00Z; in the past: at once
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub at: Option<SystemTime>,
    /// Jobs of one queue with the same key run one after another, or as many at once as the queue allows
    #[arg(long, value_name = "NAME")]
    pub concurrency_key: Option<String>,
    /// Let it be the only job of its type with this key until it is over
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub unique: Option<String>,
    /// Where another job has the unique key [default: return]
    #[arg(long, value_enum, requires = "unique")]
    pub on_conflict: Option<ConflictArg>,
    /// Keep others with the unique key away for so long after it was stored, over or not
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "unique")]
    pub unique_window: Option<Duration>,
    /// 1 to 100; the first attempt counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub max_attempts: Option<i32>,
    /// Longest wait before the first retry
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub initial_backoff: Option<Duration>,
    /// Longest wait before any retry
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub max_backoff: Option<Duration>,
    /// 1 to 10; how much the longest wait grows from retry to retry
    #[arg(long, value_name = "NUMBER")]
    pub backoff_multiplier: Option<f64>,
    /// A reason of errors that no other attempt heals; may be given again
    #[arg(long = "non-retryable", value_name = "REASON")]
    pub non_retryable_reasons: Vec<String>,
    /// From being due to the first start; past it the job has expired
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub queue_timeout: Option<Duration>,
    /// One attempt; past it the attempt is stopped and has failed
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub run_timeout: Option<Duration>,
    /// From being due to the end, over all attempts; past it the job has expired
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub total_timeout: Option<Duration>,
    /// An attempt that tells nothing for so long is stopped and has failed
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub heartbeat_timeout: Option<Duration>,
    /// An attempt that tells nothing for so long is said to be stalled
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub stall_time: Option<Duration>,
    /// From asking an attempt to stop until it is forced to
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub cancel_grace: Option<Duration>,
    /// How long the job is kept once it is over
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub retention: Option<Duration>,
}

/// What becomes of a new job where another one has its unique key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ConflictArg {
    /// Answer with the one that has it
    Return,
    /// Refuse the new one
    Reject,
    /// Take the place of one that waits
    Replace,
    /// Take the place; stop one that runs
    Cancel,
}

impl From<ConflictArg> for OnConflict {
    fn from(on_conflict: ConflictArg) -> Self {
        match on_conflict {
            ConflictArg::Return => Self::ReturnExisting,
            ConflictArg::Reject => Self::Reject,
            ConflictArg::Replace => Self::ReplaceWaiting,
            ConflictArg::Cancel => Self::CancelRunning,
        }
    }
}

impl JobOptions {
    /// Adds them to a request.
    pub(super) fn add_to(&self, request: &mut pb::SubmitRequest) {
        let delay = self.delay.map(to_proto_duration).map(Start::Delay);
        let at = self.at.map(|at| Start::ScheduleTime(at.into()));
        request.start = delay.or(at);
        request.concurrency_key = self.concurrency_key.clone().unwrap_or_default();
        request.unique = self.unique_policy();
        request.retry_policy = self.retry_policy();
        request.timeouts = self.timeouts();
        request.retention = self.retention.map(to_proto_duration);
    }

    fn unique_policy(&self) -> Option<pb::UniquePolicy> {
        let on_conflict = self.on_conflict.map(OnConflict::from);
        Some(pb::UniquePolicy {
            key: self.unique.clone()?,
            on_conflict: on_conflict.unwrap_or_default().into(),
            window: self.unique_window.map(to_proto_duration),
        })
    }

    fn retry_policy(&self) -> Option<pb::RetryPolicy> {
        let policy = pb::RetryPolicy {
            max_attempts: self.max_attempts.unwrap_or_default(),
            initial_backoff: self.initial_backoff.map(to_proto_duration),
            max_backoff: self.max_backoff.map(to_proto_duration),
            backoff_multiplier: self.backoff_multiplier.unwrap_or_default(),
            non_retryable_reasons: self.non_retryable_reasons.clone(),
        };
        (policy != pb::RetryPolicy::default()).then_some(policy)
    }

    fn timeouts(&self) -> Option<pb::Timeouts> {
        let timeouts = pb::Timeouts {
            queue_timeout: self.queue_timeout.map(to_proto_duration),
            run_timeout: self.run_timeout.map(to_proto_duration),
            total_timeout: self.total_timeout.map(to_proto_duration),
            heartbeat_timeout: self.heartbeat_timeout.map(to_proto_duration),
            cancel_grace: self.cancel_grace.map(to_proto_duration),
            stall_time: self.stall_time.map(to_proto_duration),
        };
        (timeouts != pb::Timeouts::default()).then_some(timeouts)
    }
}
