//! What a job type allows: attempts, waits between them, and how long things may take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::Outcome;
use crate::job::event::{ErrorCode, JobError};
use crate::job::limits::{self, REASON_BYTES_MAX};
use crate::job::time::Timestamp;

/// How often, and after what wait, failed attempts are repeated.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// The first attempt counts. 1 to 100, default 3.
    pub max_attempts: u32,
    /// Longest wait before the first retry. Default 1 s.
    pub initial_backoff: Duration,
    /// Longest wait before any retry. Default 10 min.
    pub max_backoff: Duration,
    /// Growth of the longest wait from retry to retry. Default 2.
    pub backoff_multiplier: f64,
    /// Reasons of errors that no other attempt heals, whatever the error says. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub non_retryable_reasons: Vec<String>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: limits::ATTEMPTS_DEFAULT,
            initial_backoff: limits::INITIAL_BACKOFF_DEFAULT,
            max_backoff: limits::MAX_BACKOFF_DEFAULT,
            backoff_multiplier: limits::BACKOFF_MULTIPLIER_DEFAULT,
            non_retryable_reasons: Vec::new(),
        }
    }
}

impl RetryPolicy {
    /// The wait before retry `retry` (1 is the first): uniform in 0 to
    /// `min(max_backoff, initial_backoff * multiplier^(retry-1))`, full jitter, so that jobs that
    /// failed together do not come back together. `chance` is uniform in 0 to 1.
    pub fn backoff(&self, retry: u32, chance: f64) -> Duration {
        let growth = self
            .backoff_multiplier
            .powi(i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX));
        let longest =
            (self.initial_backoff.as_secs_f64() * growth).min(self.max_backoff.as_secs_f64());
        Duration::try_from_secs_f64(longest * chance).unwrap_or(self.max_backoff)
    }
}

/// How long things may take.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Timeouts {
    /// From being due until the first attempt begins; past it the job has expired. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout: Option<Duration>,
    /// One attempt; past it the attempt is stopped and has failed. `None`: no limit.
    pub run_timeout: Option<Duration>,
    /// From being due until the end, over all attempts; past it the job has expired. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_timeout: Option<Duration>,
    /// Silence of one attempt; past it the attempt is stopped and has failed. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_timeout: Option<Duration>,
    /// Silence of one attempt after which the job is said to be stalled, and nothing else happens to
    /// it. Default 15 min.
    #[serde(
        default = "stall_time_default",
        skip_serializing_if = "is_stall_time_default"
    )]
    pub stall_time: Duration,
    /// From asking an attempt to stop until it is forced to. Default 5 s.
    pub cancel_grace: Duration,
}

impl Timeouts {
    /// When a job expires that is due then and has not been started; `expires_at` is when it does in any case.
    pub(super) fn to_be_started_by(
        &self,
        run_at: Timestamp,
        expires_at: Option<Timestamp>,
    ) -> Option<Timestamp> {
        let by_queue = self.queue_timeout.map(|timeout| run_at.after(timeout));
        expires_at.into_iter().chain(by_queue).min()
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            queue_timeout: None,
            run_timeout: None,
            total_timeout: None,
            heartbeat_timeout: None,
            stall_time: limits::STALL_TIME_DEFAULT,
            cancel_grace: limits::CANCEL_GRACE_DEFAULT,
        }
    }
}

fn stall_time_default() -> Duration {
    limits::STALL_TIME_DEFAULT
}

fn is_stall_time_default(time: &Duration) -> bool {
    *time == limits::STALL_TIME_DEFAULT
}

/// How long a job is kept once it is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Retention {
    /// One that has succeeded, was cancelled or has expired. Default 7 days.
    pub finished: Duration,
    /// One that has failed: a dead letter. Default 30 days.
    pub failed: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            finished: limits::RETENTION_DEFAULT,
            failed: limits::DEAD_LETTER_RETENTION_DEFAULT,
        }
    }
}

/// What one source (a job type, a tenant) says about how long jobs are kept once they are over; `None`
/// where it says nothing. The default says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GivenRetention {
    /// One that has succeeded, was cancelled or has expired. 0 to a year.
    pub finished: Option<Duration>,
    /// One that has failed: a dead letter. 0 to a year.
    pub failed: Option<Duration>,
}

impl GivenRetention {
    /// What holds: what this source says, and where it says nothing what `other` says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            finished: self.finished.or(other.finished),
            failed: self.failed.or(other.failed),
        }
    }

    /// The same with the defaults filled in.
    pub fn retention(self) -> Retention {
        let default = Retention::default();
        Retention {
            finished: self.finished.unwrap_or(default.finished),
            failed: self.failed.unwrap_or(default.failed),
        }
    }

    /// The shorter one that is said: the most that a submit may ask for, which has one time for both.
    pub fn shortest(self) -> Option<Duration> {
        self.finished.into_iter().chain(self.failed).min()
    }
}

/// What becomes of a new job whose unique place is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnConflict {
    /// The one that has it is answered in its place.
    #[default]
    ReturnExisting,
    /// It is refused.
    Reject,
    /// It takes the place of one that waits; one that runs goes on, and the new one waits beside it.
    ReplaceWaiting,
    /// It takes the place; one that waits is cancelled, one that runs is asked to stop.
    CancelRunning,
}

/// Checks the form of an error's reason: 1 to 64 of `[A-Z0-9_]`, beginning with a letter.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_reason(reason: &str) -> Result<(), String> {
    let len = reason.len();
    if !(1..=REASON_BYTES_MAX).contains(&len) {
        return Err(format!(
            "is {len} bytes; 1 to {REASON_BYTES_MAX} are accepted"
        ));
    }
    let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if !reason.starts_with(|c: char| c.is_ascii_uppercase()) || !reason.chars().all(allowed) {
        return Err(format!(
            "is {reason:?}; a reason is of A-Z 0-9 _ and begins with a letter"
        ));
    }
    Ok(())
}

/// What ends an attempt although nobody asks it to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// It ran longer than it may.
    Run,
    /// Its job took longer than it may, over all its attempts.
    Total,
    /// It told nothing for longer than it may.
    Heartbeat,
}

impl Limit {
    /// How an attempt has ended that has reached it.
    pub fn outcome(self) -> Outcome {
        let (reason, message) = match self {
            Self::Run => ("RUN_TIMEOUT", "the attempt ran longer than its run timeout"),
            Self::Heartbeat => (
                "HEARTBEAT_TIMEOUT",
                "the attempt told nothing for longer than its heartbeat timeout",
            ),
            Self::Total => return Outcome::Expired,
        };
        let error = JobError::retryable(reason, message);
        Outcome::Failed(error.with_code(ErrorCode::DeadlineExceeded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_full_jitter_that_grows_to_the_cap() {
        let policy = RetryPolicy {
            max_backoff: Duration::from_secs(5),
            ..RetryPolicy::default()
        };
        assert_eq!(policy.backoff(1, 0.0), Duration::ZERO);
        assert_eq!(policy.backoff(1, 0.5), Duration::from_millis(500));
        assert_eq!(policy.backoff(2, 0.5), Duration::from_secs(1));
        assert_eq!(policy.backoff(4, 0.5), Duration::from_millis(2_500));
        assert_eq!(policy.backoff(u32::MAX, 0.5), Duration::from_millis(2_500));
    }

    #[test]
    fn a_reason_is_upper_snake() {
        let longest = "R".repeat(REASON_BYTES_MAX);
        for good in ["A", "EXIT_CODE", "E2_", &longest] {
            assert_eq!(check_reason(good), Ok(()), "{good}");
        }
        let too_long = "R".repeat(REASON_BYTES_MAX + 1);
        for bad in ["", "a", "1A", "_A", "A B", "Ä", &too_long] {
            assert!(check_reason(bad).is_err(), "{bad}");
        }
    }
}
