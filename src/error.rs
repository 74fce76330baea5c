//! One error, with a variant per thing that a caller can do about it.
//!
//! Messages name the value and the bound. Causes are logged and never sent: an [`Error::Internal`]
//! carries an id by which the log line is found.

use std::time::Duration;

use crate::job::JobState;
use crate::job::limits::{READ_TIME_MAX, READ_WAIT_MAX};
use crate::job::name::{JobId, Name};

/// Why a call was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request is out of bounds: mend it. Every bad field is named.
    #[error("{}", describe(violations))]
    Invalid {
        /// What is wrong, field by field. Never empty.
        violations: Vec<Violation>,
    },
    /// The request cannot be read at all: mend the client.
    #[error("the request is malformed: {problem}")]
    Malformed {
        /// What the decoder says.
        problem: String,
    },
    /// There is no such job: look elsewhere.
    #[error("there is no job {id}")]
    NotFound {
        /// Which one was asked for.
        id: JobId,
    },
    /// The job was there and has been purged.
    #[error("job {id} has been purged")]
    Purged {
        /// Which one.
        id: JobId,
    },
    /// The idempotency key belongs to another request: use another key.
    #[error("the idempotency key was used for another request, which made job {id}")]
    KeyReused {
        /// The job that the key made.
        id: JobId,
    },
    /// Another job has the unique place: wait for its end, or ask for something else.
    #[error("job {id} has the unique place")]
    UniqueTaken {
        /// The job that has it.
        id: JobId,
    },
    /// Jobs of a batch have keys of other requests, or unique places that are taken: mend these, or leave
    /// them out. Nothing of the batch was stored.
    #[error("{}", describe(violations))]
    BatchTaken {
        /// The items, each with the reason of a job that is submitted alone. Never empty.
        violations: Vec<Violation>,
        /// The job that has the key, or the place, of the first of them.
        id: JobId,
    },
    /// The job is not in a state for this: look at it first.
    #[error("{0}")]
    Precondition(Precondition),
    /// Something is full: come back later.
    #[error("{limit}")]
    Exhausted {
        /// What is full.
        limit: Limit,
        /// When to come back.
        retry_after: Duration,
    },
    /// Not now: try again, with the same idempotency key.
    #[error("{reason}")]
    Unavailable {
        /// Why not.
        reason: Unavailable,
        /// When to come back.
        retry_after: Duration,
    },
    /// Our fault. The cause is in the log, under this id.
    #[error("internal error {incident}")]
    Internal {
        /// Where to find it in the log.
        incident: uuid::Uuid,
    },
}

/// One thing that is wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The path of the field, as in the proto: `submit.labels["a b"]`.
    pub field: String,
    /// What is wrong with it, with the value and the bound.
    pub description: String,
    /// UPPER_SNAKE_CASE and stable.
    pub reason: &'static str,
}

/// What a job is not in a state for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Precondition {
    /// The attempt does not, or no longer, hold the lease.
    #[error("the attempt does not hold the job's lease any more")]
    StaleLease,
    /// Nobody asked the job to stop.
    #[error("nobody asked the job to stop")]
    NotCancelling,
    /// The job can not, or not again, be retried.
    #[error("{}", not_retryable(*state, *retried_by))]
    NotRetryable {
        /// Where it is in its life.
        state: JobState,
        /// The job that was made of it, and has been removed since.
        retried_by: Option<JobId>,
    },
    /// Only a job that is over can be removed.
    #[error("the job is {}; only a job that is over can be removed", state.as_str())]
    NotFinished {
        /// Where it is in its life.
        state: JobState,
    },
    /// The cursor is ahead of the log.
    #[error("after_sequence is {after_sequence}; the job's last sequence is {last_sequence}")]
    SequenceAhead {
        /// What was asked for.
        after_sequence: i64,
        /// What there is.
        last_sequence: i64,
    },
}

/// What is full.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Limit {
    /// The store's disk.
    #[error("the disk of the store is full")]
    DiskFull,
    /// The time of a read, or of waiting for other reads.
    #[error(
        "the read took longer than {READ_TIME_MAX:?}, or waited {READ_WAIT_MAX:?} for others: \
         ask for less, or come back later"
    )]
    ReadTime,
    /// Jobs of a tenant that wait.
    #[error("{waiting} jobs of tenant {tenant} wait, and {asked} more would; at most {max} may")]
    Waiting {
        /// Whose.
        tenant: Name,
        /// Waiting now.
        waiting: usize,
        /// How many more were asked for.
        asked: usize,
        /// The bound.
        max: usize,
    },
    /// Calls of a tenant's workers that wait for work.
    #[error("{waiting} calls for work wait; at most {max} may")]
    Workers {
        /// Waiting now.
        waiting: usize,
        /// The bound.
        max: usize,
    },
    /// Open watches of a tenant.
    #[error("{open} watches are open; at most {max} are accepted")]
    Watchers {
        /// Open now.
        open: usize,
        /// The bound.
        max: usize,
    },
}

/// Why not now.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unavailable {
    /// The server is about to stop.
    #[error("the server is draining")]
    Draining,
    /// Another program holds the store's database: nothing was stored.
    #[error("the store is in use by another program")]
    StoreBusy,
    /// The store failed while this was being written: it may or may not have happened.
    #[error("the store failed: whether this was stored is not known")]
    OutcomeUnknown,
}

impl Error {
    /// One bad field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        let mut violations = Violations::default();
        violations.add(field, description);
        Self::Invalid {
            violations: violations.told,
        }
    }

    /// A request that cannot be read.
    pub fn malformed(problem: impl Into<String>) -> Self {
        Self::Malformed {
            problem: problem.into(),
        }
    }

    /// When the caller may come back, where that helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Exhausted { retry_after, .. } | Self::Unavailable { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::Invalid { .. }
            | Self::Malformed { .. }
            | Self::NotFound { .. }
            | Self::Purged { .. }
            | Self::KeyReused { .. }
            | Self::UniqueTaken { .. }
            | Self::BatchTaken { .. }
            | Self::Precondition(_)
            | Self::Internal { .. } => None,
        }
    }

    /// Our fault: logs the cause and keeps it from the caller.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        let incident = uuid::Uuid::new_v4();
        tracing::error!(%incident, %cause, "internal error");
        Self::Internal { incident }
    }

    /// The server is about to stop: another one, or the next, may serve.
    pub fn draining() -> Self {
        Self::Unavailable {
            reason: Unavailable::Draining,
            retry_after: Duration::from_secs(1),
        }
    }

    /// Another program holds the store's database.
    pub fn store_busy() -> Self {
        Self::Unavailable {
            reason: Unavailable::StoreBusy,
            retry_after: Duration::from_secs(1),
        }
    }

    /// The store failed in the middle.
    pub fn outcome_unknown() -> Self {
        Self::Unavailable {
            reason: Unavailable::OutcomeUnknown,
            retry_after: Duration::from_secs(1),
        }
    }

    /// As many jobs of the tenant wait as may.
    pub fn waiting_full(tenant: Name, waiting: usize, asked: usize, max: usize) -> Self {
        Self::Exhausted {
            limit: Limit::Waiting {
                tenant,
                waiting,
                asked,
                max,
            },
            retry_after: Duration::from_secs(1),
        }
    }

    /// The disk is full.
    pub fn disk_full() -> Self {
        Self::Exhausted {
            limit: Limit::DiskFull,
            retry_after: Duration::from_secs(5),
        }
    }

    /// A read took too long.
    pub fn read_too_long() -> Self {
        Self::Exhausted {
            limit: Limit::ReadTime,
            retry_after: Duration::from_secs(1),
        }
    }
}

/// Collects everything that is wrong with a request, so that all of it comes back at once.
///
/// It comes back in a header, of which clients take 8 KiB as a rule (grpc-java, C core): names and
/// sentences are cut, and what finds no room is counted.
#[derive(Clone, Debug, Default)]
pub struct Violations {
    told: Vec<Violation>,
    bytes: usize,
    untold: usize,
}

impl Violations {
    /// All violations together. Bytes; half of what clients take, because the text goes in base64.
    const BYTES_MAX: usize = 3 * 1024;
    /// A field's path or a sentence: the longest name, and what we say about it.
    const TEXT_BYTES_MAX: usize = 400;

    /// Adds one that has no reason of its own.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.add_with_reason(field, description, "INVALID_FIELD");
    }

    /// Adds one.
    pub fn add_with_reason(
        &mut self,
        field: impl Into<String>,
        description: impl Into<String>,
        reason: &'static str,
    ) {
        let violation = Violation {
            field: cut(field.into(), Self::TEXT_BYTES_MAX),
            description: cut(description.into(), Self::TEXT_BYTES_MAX),
            reason,
        };
        self.push(violation);
    }

    /// Adds what was found elsewhere.
    pub fn extend(&mut self, violations: impl IntoIterator<Item = Violation>) {
        for violation in violations {
            self.push(violation);
        }
    }

    /// Nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    fn push(&mut self, violation: Violation) {
        // What each costs beside its texts: the reason, tags and lengths.
        let bytes = violation.field.len() + violation.description.len() + 24;
        if self.untold > 0 || self.bytes + bytes > Self::BYTES_MAX {
            self.untold += 1;
            return;
        }
        self.bytes += bytes;
        self.told.push(violation);
    }

    /// The value, or `None` with its violation added.
    pub fn check<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result
            .map_err(|description| self.add(field, description))
            .ok()
    }

    /// What there was room to tell, the rest counted.
    pub fn into_told(self) -> Vec<Violation> {
        let mut told = self.told;
        if self.untold > 0 {
            let reason = told.first().map_or("INVALID_FIELD", |first| first.reason);
            let same = told.iter().all(|violation| violation.reason == reason);
            told.push(Violation {
                field: "request".to_owned(),
                description: format!("has {} more faults than there is room to tell", self.untold),
                reason: if same { reason } else { "INVALID_FIELD" },
            });
        }
        told
    }

    /// Nothing, where nothing is wrong.
    ///
    /// # Errors
    /// [`Error::Invalid`] with everything that is.
    pub fn into_result(self) -> Result<(), Error> {
        if self.told.is_empty() {
            return Ok(());
        }
        Err(Error::Invalid {
            violations: self.into_told(),
        })
    }
}

/// Cuts a text at a character boundary, and shows it.
fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push('…');
    }
    text
}

fn not_retryable(state: JobState, retried_by: Option<JobId>) -> String {
    match retried_by {
        Some(id) => format!("the job was retried once, by job {id}, which has been removed since"),
        None => format!(
            "the job is {}; only one that failed, was cancelled or has expired can be retried",
            state.as_str()
        ),
    }
}

/// The message of a refusal: it stands in a header of its own, beside the same in full.
fn describe(violations: &[Violation]) -> String {
    /// As much as there is room for beside the details.
    const BYTES_MAX: usize = 1024;
    let all: Vec<String> = violations
        .iter()
        .map(|violation| format!("{} {}", violation.field, violation.description))
        .collect();
    cut(all.join("; "), BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(violations: Violations) -> Vec<Violation> {
        match violations.into_result() {
            Err(Error::Invalid { violations }) => violations,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_fits_into_a_header_and_what_does_not_is_counted() {
        let mut violations = Violations::default();
        for index in 0..1_000 {
            violations.add(format!("labels[{index}]"), "é".repeat(10_000));
        }
        let told = told(violations);
        let bytes: usize = told
            .iter()
            .map(|v| v.field.len() + v.description.len())
            .sum();
        assert!(bytes < 4 * 1024, "{bytes}");
        let last = told.last().expect("one at least");
        let untold = 1_000 - (told.len() - 1);
        assert_eq!(last.field, "request");
        assert!(last.description.contains(&untold.to_string()), "{last:?}");
        let message = Error::Invalid { violations: told }.to_string();
        assert!(message.len() <= 1024 + '…'.len_utf8(), "{}", message.len());
    }

    #[test]
    fn nothing_wrong_is_no_error() {
        assert!(Violations::default().into_result().is_ok());
    }
}
