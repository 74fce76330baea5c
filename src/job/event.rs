//! The entries of a job's log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::job::JobState;
use crate::job::limits::{
    DETAIL_BYTES_MAX, DURATION_MAX, ERROR_METADATA_MAX, JSON_DEPTH_MAX, STRING_BYTES_MAX,
};
use crate::job::payload::{Payload, depth};
use crate::job::progress::Progress;
use crate::job::time::Timestamp;

/// One entry of a job's append-only log.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Dense within the job: 1, 2, 3, …
    pub sequence: i64,
    /// When it was taken in.
    pub at: Timestamp,
    /// The attempt it belongs to; 0 before the first.
    pub attempt: u32,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum EventKind {
    /// The job moved on.
    StateChange {
        /// Where it was; `None` for the first event.
        from: Option<JobState>,
        /// Where it is.
        to: JobState,
        /// UPPER_SNAKE_CASE where there is something to say, empty otherwise.
        reason: String,
    },
    /// The attempt has come further.
    Progress(Progress),
    /// Partial output.
    Output {
        /// Which stream.
        stream: String,
        /// Bytes before this chunk in this stream and attempt.
        offset: u64,
        /// What was written.
        chunk: Payload,
    },
    /// A line for people.
    Log(LogLine),
    /// An attempt ended and the job goes on.
    AttemptEnd {
        /// Why, unless it was handed back.
        error: Option<JobError>,
        /// Whether it counts against the budget.
        charged: bool,
        /// When the next attempt may start.
        next_attempt_at: Timestamp,
    },
    /// Somebody asked a running job to stop.
    CancelRequested {
        /// As given.
        reason: String,
        /// Who asked.
        requested_by: String,
    },
    /// The attempt has told nothing for the job's stall time.
    Stalled {
        /// When it last told something.
        silent_since: Timestamp,
    },
}

/// The kinds alone, for filters. The numbers are stored beside every event: never change one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum EventTag {
    /// [`EventKind::StateChange`].
    StateChange = 1,
    /// [`EventKind::Progress`].
    Progress = 2,
    /// [`EventKind::Output`].
    Output = 3,
    /// [`EventKind::Log`].
    Log = 4,
    /// [`EventKind::AttemptEnd`].
    AttemptEnd = 5,
    /// [`EventKind::CancelRequested`].
    CancelRequested = 6,
    /// [`EventKind::Stalled`].
    Stalled = 7,
}

impl EventTag {
    /// From its stored number.
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Self::StateChange,
            Self::Progress,
            Self::Output,
            Self::Log,
            Self::AttemptEnd,
            Self::CancelRequested,
            Self::Stalled,
        ]
        .into_iter()
        .find(|tag| *tag as u8 == number)
    }
}

impl EventKind {
    /// The kind alone.
    pub fn tag(&self) -> EventTag {
        match self {
            Self::StateChange { .. } => EventTag::StateChange,
            Self::Progress(_) => EventTag::Progress,
            Self::Output { .. } => EventTag::Output,
            Self::Log(_) => EventTag::Log,
            Self::AttemptEnd { .. } => EventTag::AttemptEnd,
            Self::CancelRequested { .. } => EventTag::CancelRequested,
            Self::Stalled { .. } => EventTag::Stalled,
        }
    }
}

/// A line for people.
#[derive(Clone, PartialEq, Debug)]
pub struct LogLine {
    /// How bad it is.
    pub level: LogLevel,
    /// At most 16 KiB; longer ones are cut.
    pub message: String,
    /// More, by name. At most 16 KiB as JSON, each nested at most 30 deep.
    pub fields: serde_json::Map<String, serde_json::Value>,
}

impl LogLine {
    /// A line without fields.
    pub fn new(level: LogLevel, message: impl Into<String>) -> Self {
        Self {
            level,
            message: message.into(),
            fields: serde_json::Map::new(),
        }
    }

    /// How many bytes it has: its message, and its fields as JSON.
    pub fn bytes(&self) -> usize {
        let fields = if self.fields.is_empty() {
            0
        } else {
            serde_json::to_string(&self.fields).map_or(0, |text| text.len())
        };
        self.message.len() + fields
    }

    /// How many bytes its fields are as JSON.
    ///
    /// # Errors
    /// A sentence that names the bound, of their size or their nesting.
    pub fn check_fields(&self) -> Result<usize, String> {
        if self.fields.is_empty() {
            return Ok(0);
        }
        let text = serde_json::to_string(&self.fields).unwrap_or_default();
        let bytes = text.len();
        if bytes > DETAIL_BYTES_MAX {
            return Err(format!(
                "are {bytes} bytes as JSON; at most {DETAIL_BYTES_MAX} are accepted"
            ));
        }
        // Deeper ones could be stored, and never be sent.
        let depth = self.fields.values().map(depth).max().unwrap_or(0);
        if depth > JSON_DEPTH_MAX {
            return Err(format!(
                "nest {depth} deep; at most {JSON_DEPTH_MAX} are accepted"
            ));
        }
        Ok(bytes)
    }
}

/// Cuts a text at a character boundary.
pub(crate) fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
    }
}

/// How bad a log line is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For whoever develops the job.
    Debug,
    /// Worth knowing.
    Info,
    /// Worth a look.
    #[serde(alias = "warning")]
    Warn,
    /// Something failed.
    Error,
}

/// Why a job, or one attempt of it, failed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct JobError {
    /// The `google.rpc.Code` that says it best.
    pub code: ErrorCode,
    /// UPPER_SNAKE_CASE and stable.
    pub reason: String,
    /// For people. At most 1 KiB.
    pub message: String,
    /// Whether another attempt could help.
    pub retryable: bool,
    /// How long to wait before that, in place of the policy's backoff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<std::time::Duration>,
    /// At most 32 entries.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// A stack trace, or the last lines of stderr. At most 16 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl JobError {
    /// Cuts every part to its bound, texts at character boundaries.
    #[must_use]
    pub fn cut(mut self) -> Self {
        truncate(&mut self.reason, STRING_BYTES_MAX);
        truncate(&mut self.message, STRING_BYTES_MAX);
        truncate(&mut self.detail, DETAIL_BYTES_MAX);
        self.retry_after = self.retry_after.map(|wait| wait.min(DURATION_MAX));
        let short = |mut text: String| {
            truncate(&mut text, STRING_BYTES_MAX);
            text
        };
        let metadata = std::mem::take(&mut self.metadata).into_iter();
        self.metadata = metadata
            .take(ERROR_METADATA_MAX)
            .map(|(key, value)| (short(key), short(value)))
            .collect();
        self
    }

    /// An error that another attempt may heal.
    pub fn retryable(reason: &str, message: impl Into<String>) -> Self {
        Self {
            code: ErrorCode::Unknown,
            reason: reason.to_owned(),
            message: message.into(),
            retryable: true,
            retry_after: None,
            metadata: BTreeMap::new(),
            detail: String::new(),
        }
    }

    /// An error that no other attempt heals.
    pub fn permanent(reason: &str, message: impl Into<String>) -> Self {
        Self {
            retryable: false,
            ..Self::retryable(reason, message)
        }
    }

    /// With another code than UNKNOWN.
    pub fn with_code(mut self, code: ErrorCode) -> Self {
        self.code = code;
        self
    }

    /// With a wait before the next attempt, in place of the policy's backoff. At most a year.
    pub fn with_retry_after(mut self, wait: std::time::Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// With one more entry of metadata.
    pub fn with_metadata(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// With a detail.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

/// The codes of `google.rpc.Code` that a job's error may carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(i32)]
#[expect(
    missing_docs,
    reason = "named and numbered as in google/rpc/code.proto"
)]
pub enum ErrorCode {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl ErrorCode {
    /// The code of a number; `None` for OK and for numbers that nobody knows.
    pub fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Cancelled,
            2 => Self::Unknown,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_error_is_cut_to_its_bound() {
        let mut error = JobError::retryable("R", "é".repeat(STRING_BYTES_MAX))
            .with_detail("d".repeat(DETAIL_BYTES_MAX + 1));
        for i in 0..=ERROR_METADATA_MAX {
            error = error.with_metadata(&format!("k{i:02}"), "v".repeat(STRING_BYTES_MAX + 1));
        }
        let error = error
            .with_retry_after(DURATION_MAX + std::time::Duration::from_secs(1))
            .cut();
        assert_eq!(error.retry_after, Some(DURATION_MAX));
        assert_eq!(error.message.len(), STRING_BYTES_MAX);
        assert_eq!(error.detail.len(), DETAIL_BYTES_MAX);
        assert_eq!(error.metadata.len(), ERROR_METADATA_MAX);
        assert!(error.metadata.values().all(|v| v.len() == STRING_BYTES_MAX));
    }
}
