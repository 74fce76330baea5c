//! One error, with a variant per thing that a caller can do about it.
//!
//! Messages name the value and the bound. Causes are logged and never sent: an [`Error::Internal`]
//! carries an id by which the log line is found.

use std::time::Duration;

use crate::job::name::JobId;

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
            violations: violations.0,
        }
    }

    /// A request that cannot be read.
    pub fn malformed(problem: impl Into<String>) -> Self {
        Self::Malformed {
            problem: problem.into(),
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

    /// The store failed in the middle.
    pub fn outcome_unknown() -> Self {
        Self::Unavailable {
            reason: Unavailable::OutcomeUnknown,
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
}

/// Collects everything that is wrong with a request, so that all of it comes back at once.
#[derive(Clone, Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Most violations told of one request. Chosen: more help nobody, and the answer stays small.
    const MAX: usize = 100;

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
        if self.0.len() < Self::MAX {
            self.0.push(Violation {
                field: field.into(),
                description: description.into(),
                reason,
            });
        }
    }

    /// The value, or `None` with its violation added.
    pub fn check<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result
            .map_err(|description| self.add(field, description))
            .ok()
    }

    /// Nothing, where nothing is wrong.
    ///
    /// # Errors
    /// [`Error::Invalid`] with everything that is.
    pub fn into_result(self) -> Result<(), Error> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid { violations: self.0 })
        }
    }
}

fn describe(violations: &[Violation]) -> String {
    let all: Vec<String> = violations
        .iter()
        .map(|violation| format!("{} {}", violation.field, violation.description))
        .collect();
    all.join("; ")
}
