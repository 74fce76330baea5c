//! What can go wrong between a program and a server, a variant for each thing the program can do about
//! it. Built from gRPC statuses and their `google.rpc` details; none of tonic's types show.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why a call or a watch failed.
///
/// ```no_run
/// # async fn example(client: pacenote::client::Client) {
/// use pacenote::client::ClientError;
///
/// match client.get("0198c0de-0000-7000-8000-000000000000").await {
///     Ok(job) => println!("{}", job.r#type),
///     Err(ClientError::Refused(refusal)) if refusal.reason == "JOB_NOT_FOUND" => println!("gone"),
///     Err(error) => eprintln!("{error}"),
/// }
/// # }
/// ```
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address cannot be used: correct it.
    #[error("{endpoint:?} is not an address of a server: {message}")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        message: String,
    },
    /// Nobody answers at the address: start the server, or correct the address.
    #[error("could not connect to {endpoint}: {message}")]
    Connect {
        /// As given.
        endpoint: String,
        /// What the system said.
        message: String,
    },
    /// The server said no: trying the same again does not help, unless `retry_after` says when it may.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The server, or the way to it, is not there at the moment, and tries are used up. Whether a
    /// submit without idempotency key was stored is not known.
    #[error("{}{message}", reason_prefix(.reason))]
    Unavailable {
        /// `SERVER_DRAINING`, `OUTCOME_UNKNOWN`, …; empty where the network failed.
        reason: String,
        /// For people.
        message: String,
        /// When the server asked us to come back.
        retry_after: Option<Duration>,
    },
    /// No answer in time. Whether a submit without idempotency key was stored is not known.
    #[error("no answer within {}", humantime::format_duration(*.after))]
    Deadline {
        /// How long was waited.
        after: Duration,
    },
    /// The system of this program refused something: threads.
    #[error("the system refused: {message}")]
    System {
        /// What it said.
        message: String,
    },
    /// The server broke the watch contract: what was shown so far is right, what follows is not
    /// trusted.
    #[error("the server broke the watch contract: {message}")]
    Contract {
        /// Which line of it, and how.
        message: String,
    },
}

/// A refusal in the server's own words.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    /// The canonical code's name: `NOT_FOUND`, `INVALID_ARGUMENT`, … See the `google.rpc.Code` proto.
    pub code: &'static str,
    /// Stable and in upper snake case: `JOB_NOT_FOUND`, `UNKNOWN_TYPE`, …; empty where the server gave
    /// none.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Every bad field of an `INVALID_ARGUMENT`.
    pub violations: Vec<Violation>,
    /// What the reason comes with, by name: `last_sequence` of `SEQUENCE_AHEAD`, …
    pub metadata: BTreeMap<String, String>,
    /// When the server asked us to come back (`RESOURCE_EXHAUSTED`).
    pub retry_after: Option<Duration>,
}

/// One bad field of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its path: `input.width`, `labels[team]`, …
    pub field: String,
    /// What is wrong with it, and the bound.
    pub description: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.code)?;
        f.write_str(&reason_prefix(&self.reason))?;
        f.write_str(&self.message)?;
        for violation in &self.violations {
            write!(f, "; {}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

fn reason_prefix(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!("{reason}: ")
    }
}

impl ClientError {
    /// When the server asked us to come back.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            Self::Unavailable { retry_after, .. } => *retry_after,
            Self::Endpoint { .. }
            | Self::Connect { .. }
            | Self::Deadline { .. }
            | Self::System { .. }
            | Self::Contract { .. } => None,
        }
    }

    /// The server's stable reason, or nothing where it gave none.
    pub fn reason(&self) -> &str {
        match self {
            Self::Refused(refusal) => &refusal.reason,
            Self::Unavailable { reason, .. } => reason,
            Self::Endpoint { .. }
            | Self::Connect { .. }
            | Self::Deadline { .. }
            | Self::System { .. }
            | Self::Contract { .. } => "",
        }
    }

    /// The network failed, not the server.
    pub(super) fn cut(message: impl Into<String>) -> Self {
        Self::Unavailable {
            reason: String::new(),
            message: message.into(),
            retry_after: None,
        }
    }
}

/// What a failed try says about the next one.
pub(super) struct Failure {
    /// For the caller.
    pub(super) error: ClientError,
    /// Whether the same call may be sent again, where sending it twice does no harm.
    pub(super) call_again: bool,
    /// Whether a watch resumes after it (line 8 of the watch contract).
    pub(super) resume: bool,
}

impl Failure {
    /// A stream that ended or fell silent although the job goes on.
    pub(super) fn cut(message: impl Into<String>) -> Self {
        Self {
            error: ClientError::cut(message),
            call_again: true,
            resume: true,
        }
    }

    /// No answer in time.
    pub(super) fn deadline(after: Duration) -> Self {
        Self {
            error: ClientError::Deadline { after },
            call_again: false,
            resume: true,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let reason = info.map_or_else(String::new, |info| info.reason.clone());
        let retry_after = details.retry_info().and_then(|info| info.retry_delay);
        // The server gives every error an ErrorInfo. What comes without one under these codes was said
        // by a connection that broke or by a proxy.
        let from_the_network = info.is_none()
            && matches!(
                status.code(),
                Code::Unknown | Code::Internal | Code::Cancelled
            );
        if status.code() == Code::Unavailable || from_the_network {
            return Self {
                error: ClientError::Unavailable {
                    reason,
                    message: with_causes(&status),
                    retry_after,
                },
                call_again: true,
                resume: true,
            };
        }
        let violations = details.bad_request().map_or_else(Vec::new, |request| {
            let violation = |v: &tonic_types::FieldViolation| Violation {
                field: v.field.clone(),
                description: v.description.clone(),
            };
            request.field_violations.iter().map(violation).collect()
        });
        Self {
            call_again: status.code() == Code::ResourceExhausted && retry_after.is_some(),
            resume: matches!(
                status.code(),
                Code::ResourceExhausted
                    | Code::DeadlineExceeded
                    | Code::Cancelled
                    | Code::Internal
                    | Code::Unknown
            ),
            error: ClientError::Refused(Box::new(Refusal {
                code: code_name(status.code()),
                reason,
                message: status.message().to_owned(),
                violations,
                metadata: info.map_or_else(BTreeMap::new, |info| {
                    info.metadata.clone().into_iter().collect()
                }),
                retry_after,
            })),
        }
    }
}

/// A status' message with what is below it: "transport error" alone helps nobody.
fn with_causes(status: &Status) -> String {
    status.source().map_or_else(
        || status.message().to_owned(),
        |source| chain(status.message(), source),
    )
}

/// `text`, then each cause that does not repeat what was said.
pub(super) fn chain(text: &str, source: &dyn std::error::Error) -> String {
    let mut said = text.to_owned();
    let mut next = Some(source);
    while let Some(error) = next {
        let cause = error.to_string();
        if !said.contains(&cause) {
            if !said.is_empty() {
                said.push_str(": ");
            }
            said.push_str(&cause);
        }
        next = error.source();
    }
    said
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_refusal_carries_reason_metadata_and_every_bad_field() {
        let mut details = ErrorDetails::with_error_info(
            "INVALID_FIELD",
            "pacenote.dev",
            [("fields".to_owned(), "2".to_owned())],
        );
        details.add_bad_request_violation("queue", "has two dots in a row");
        details.add_bad_request_violation("priority", "is 1001; at most 1000 is accepted");
        let status = Status::with_error_details(Code::InvalidArgument, "bad fields", details);

        let failure = Failure::from(status);
        assert!(!failure.call_again && !failure.resume);
        let ClientError::Refused(refusal) = &failure.error else {
            panic!("{:?} is no refusal", failure.error);
        };
        assert_eq!(refusal.code, "INVALID_ARGUMENT");
        assert_eq!(refusal.reason, "INVALID_FIELD");
        assert_eq!(refusal.metadata["fields"], "2");
        assert_eq!(refusal.violations.len(), 2);
        assert_eq!(
            failure.error.to_string(),
            "INVALID_ARGUMENT: INVALID_FIELD: bad fields; queue: has two dots in a row; priority: is \
             1001; at most 1000 is accepted"
        );
    }

    #[test]
    fn a_full_server_may_be_asked_again_only_when_it_said_when() {
        let bare = Failure::from(Status::resource_exhausted("full"));
        assert!(!bare.call_again && bare.resume);
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        let said = Failure::from(Status::with_error_details(
            Code::ResourceExhausted,
            "full",
            details,
        ));
        assert!(said.call_again && said.resume);
        assert_eq!(said.error.retry_after(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn an_internal_error_of_the_server_is_told_from_a_broken_connection() {
        let broken = Failure::from(Status::unknown("transport error"));
        assert!(broken.call_again);
        assert!(matches!(broken.error, ClientError::Unavailable { .. }));
        let details = ErrorDetails::with_error_info("INTERNAL", "pacenote.dev", []);
        let said = Failure::from(Status::with_error_details(
            Code::Internal,
            "incident 7",
            details,
        ));
        assert!(!said.call_again && said.resume);
        assert!(matches!(said.error, ClientError::Refused(_)));
    }
}
