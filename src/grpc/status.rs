//! Our errors as gRPC statuses: a canonical code, and the details that clients act on. The one place
//! that makes a `Status`.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::error::{Error, Limit, Precondition, Unavailable, Violation};
use crate::job::JobState;
use crate::wire;

/// Stands in every `ErrorInfo`.
pub const DOMAIN: &str = "pacenote.dev";

/// The status of an error. The table in docs/errors.md says the same in words.
pub(super) fn status(error: Error) -> Status {
    let message = error.to_string();
    let mut details = ErrorDetails::new();
    let mut metadata = HashMap::new();
    let (code, reason) = match error {
        Error::Invalid { violations } => {
            let reason = violations
                .first()
                .map_or("INVALID_FIELD", |first| first.reason);
            let same = violations
                .iter()
                .all(|violation| violation.reason == reason);
            details.set_bad_request(to_field_violations(violations));
            (
                Code::InvalidArgument,
                if same { reason } else { "INVALID_FIELD" },
            )
        }
        Error::Malformed { .. } => (Code::InvalidArgument, "MALFORMED_REQUEST"),
        Error::NotFound { id } => {
            metadata.insert("job_id".to_owned(), id.to_string());
            (Code::NotFound, "JOB_NOT_FOUND")
        }
        Error::Purged { id } => {
            metadata.insert("job_id".to_owned(), id.to_string());
            (Code::NotFound, "JOB_PURGED")
        }
        Error::KeyReused { id } => {
            metadata.insert("job_id".to_owned(), id.to_string());
            (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED")
        }
        Error::UniqueTaken { id } => {
            metadata.insert("job_id".to_owned(), id.to_string());
            (Code::AlreadyExists, "UNIQUE_CONFLICT")
        }
        Error::BatchTaken { violations, id } => {
            metadata.insert("job_id".to_owned(), id.to_string());
            let reason = violations.first().map_or("INTERNAL", |first| first.reason);
            details.set_bad_request(to_field_violations(violations));
            (Code::AlreadyExists, reason)
        }
        Error::Precondition(precondition) => {
            metadata = precondition_metadata(&precondition);
            (Code::FailedPrecondition, precondition_reason(&precondition))
        }
        Error::Exhausted { limit, retry_after } => {
            details.set_retry_info(Some(retry_after));
            match &limit {
                Limit::Watchers { .. } | Limit::Workers { .. } => {
                    details.add_quota_failure_violation("tenant", limit.to_string());
                }
                Limit::Waiting {
                    tenant,
                    waiting,
                    max,
                    ..
                } => {
                    let subject = format!("tenant:{tenant}");
                    details.add_quota_failure_violation(subject, limit.to_string());
                    metadata.insert("waiting".to_owned(), waiting.to_string());
                    metadata.insert("limit".to_owned(), max.to_string());
                }
                Limit::DiskFull | Limit::ReadTime => {}
            }
            (Code::ResourceExhausted, limit_reason(&limit))
        }
        Error::Unavailable {
            reason,
            retry_after,
        } => {
            details.set_retry_info(Some(retry_after));
            (Code::Unavailable, unavailable_reason(&reason))
        }
        Error::Internal { incident } => {
            metadata.insert("incident".to_owned(), incident.to_string());
            (Code::Internal, "INTERNAL")
        }
    };
    details.set_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

fn to_field_violations(violations: Vec<Violation>) -> Vec<FieldViolation> {
    let violations = violations.into_iter().map(|violation| FieldViolation {
        field: violation.field,
        description: violation.description,
        reason: violation.reason.to_owned(),
        localized_message: None,
    });
    violations.collect()
}

/// What a program needs to go on.
fn precondition_metadata(precondition: &Precondition) -> HashMap<String, String> {
    let entry = |name: &str, value: String| (name.to_owned(), value);
    let state = |state: JobState| entry("state", wire::to_state(state).as_str_name().to_owned());
    match precondition {
        Precondition::StaleLease | Precondition::NotCancelling => HashMap::new(),
        Precondition::NotRetryable {
            state: now,
            retried_by,
        } => {
            let retried_by = retried_by.map(|id| entry("retried_by_job_id", id.to_string()));
            [state(*now)].into_iter().chain(retried_by).collect()
        }
        Precondition::NotFinished { state: now } => [state(*now)].into(),
        Precondition::SequenceAhead { last_sequence, .. } => {
            [entry("last_sequence", last_sequence.to_string())].into()
        }
    }
}

fn precondition_reason(precondition: &Precondition) -> &'static str {
    match precondition {
        Precondition::StaleLease => "STALE_LEASE",
        Precondition::NotCancelling => "NOT_CANCELLING",
        Precondition::NotRetryable { .. } => "NOT_RETRYABLE",
        Precondition::NotFinished { .. } => "NOT_FINISHED",
        Precondition::SequenceAhead { .. } => "SEQUENCE_AHEAD",
    }
}

fn limit_reason(limit: &Limit) -> &'static str {
    match limit {
        Limit::DiskFull => "DISK_FULL",
        Limit::ReadTime => "READ_TOO_LONG",
        Limit::Waiting { .. } => "WAITING_LIMIT",
        Limit::Watchers { .. } => "WATCHER_LIMIT",
        Limit::Workers { .. } => "WORKER_LIMIT",
    }
}

fn unavailable_reason(reason: &Unavailable) -> &'static str {
    match reason {
        Unavailable::Draining => "SERVER_DRAINING",
        Unavailable::StoreBusy => "STORE_BUSY",
        Unavailable::OutcomeUnknown => "OUTCOME_UNKNOWN",
    }
}
