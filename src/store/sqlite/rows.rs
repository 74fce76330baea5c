//! Between rows and the words of `job`, whichever library read them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::job::limits::{LOG_BYTES_DEFAULT, PROGRESS_INTERVAL_DEFAULT};
use crate::job::name::{BatchId, JobId, JobKey, Name};
use crate::job::payload::{Content, Payload};
use crate::job::policy::{Retention, RetryPolicy, Timeouts};
use crate::job::segment::Segment;
use crate::job::time::Timestamp;
use crate::job::{Job, JobFields, JobSnapshot, JobSpec, JobState, Payloads, Unique};
use crate::store::StoreError;

/// The columns of a job, in the order that [`job`] reads them. For `concat!`.
macro_rules! job_columns {
    () => {
        "j.tenant, j.id, j.state, j.run_at_us, j.attempt, j.attempts_charged, j.attempts_lost, \
         j.lease_expires_at_us, j.first_sequence, j.last_sequence, j.created_at_us, \
         j.updated_at_us, j.ended_at_us, j.version, j.detail, \
         j.job_type, j.queue, j.priority, j.idempotency_key, j.spec, \
         j.stall_at_us, j.stalled_since_us, j.deadline_at_us, j.purge_at_us, \
         j.batch_id, j.concurrency_key, j.unique_key, j.events_purge_at_us"
    };
}
pub(super) use job_columns;

/// How many columns [`job_columns`] names.
pub(super) const JOB_COLUMNS: usize = 28;

/// A row of the readers' library or of the writer's. Columns are counted from 0; one that holds
/// something else than it is read as is damaged.
pub(super) trait Columns {
    /// Text, or null.
    fn text(&self, column: usize) -> Result<Option<&str>, StoreError>;

    /// A number, or null.
    fn number(&self, column: usize) -> Result<Option<i64>, StoreError>;

    /// Bytes, or null.
    fn blob(&self, column: usize) -> Result<Option<&[u8]>, StoreError>;
}

impl Columns for SqliteRow {
    fn text(&self, column: usize) -> Result<Option<&str>, StoreError> {
        self.try_get(column).map_err(damaged_column)
    }

    fn number(&self, column: usize) -> Result<Option<i64>, StoreError> {
        self.try_get(column).map_err(damaged_column)
    }

    fn blob(&self, column: usize) -> Result<Option<&[u8]>, StoreError> {
        self.try_get(column).map_err(damaged_column)
    }
}

impl Columns for rusqlite::Row<'_> {
    fn text(&self, column: usize) -> Result<Option<&str>, StoreError> {
        let value = self.get_ref(column).map_err(damaged_column)?;
        value.as_str_or_null().map_err(damaged_column)
    }

    fn number(&self, column: usize) -> Result<Option<i64>, StoreError> {
        let value = self.get_ref(column).map_err(damaged_column)?;
        value.as_i64_or_null().map_err(damaged_column)
    }

    fn blob(&self, column: usize) -> Result<Option<&[u8]>, StoreError> {
        let value = self.get_ref(column).map_err(damaged_column)?;
        value.as_blob_or_null().map_err(damaged_column)
    }
}

/// Reads a job from a row that begins with [`job_columns`].
pub(super) fn job(row: &impl Columns) -> Result<Job, StoreError> {
    Ok(Job::from_fields(JobFields {
        key: JobKey {
            tenant: name(text(row, 0)?)?,
            id: job_id(blob(row, 1)?)?,
        },
        state: state(row, 2)?,
        run_at: Timestamp::from_micros(number(row, 3)?),
        attempt: count(row, 4)?,
        attempts_charged: count(row, 5)?,
        attempts_lost: count(row, 6)?,
        lease_expires_at: time(row, 7)?,
        stall_at: time(row, 20)?,
        stalled_since: time(row, 21)?,
        deadline_at: time(row, 22)?,
        first_sequence: number(row, 8)?,
        last_sequence: number(row, 9)?,
        created_at: Timestamp::from_micros(number(row, 10)?),
        updated_at: Timestamp::from_micros(number(row, 11)?),
        ended_at: time(row, 12)?,
        purge_at: time(row, 23)?,
        events_purge_at: time(row, 27)?,
        version: number(row, 13)?,
        detail: from_json(blob(row, 14)?)?,
        spec: Arc::new(spec(row)?),
    }))
}

/// Reads a job and its payloads from a row of [`read::JOB_WITH_PAYLOADS`](super::read::JOB_WITH_PAYLOADS).
pub(super) fn snapshot(row: &impl Columns) -> Result<JobSnapshot, StoreError> {
    Ok(JobSnapshot {
        job: Arc::new(job(row)?),
        payloads: Payloads {
            input: payload(row, JOB_COLUMNS)?,
            result: payload(row, JOB_COLUMNS + 3)?,
            checkpoint: payload(row, JOB_COLUMNS + 6)?,
        },
    })
}

fn spec(row: &impl Columns) -> Result<JobSpec, StoreError> {
    let bytes = |column| {
        let bytes = row.blob(column)?.map(|key| String::from_utf8(key.to_vec()));
        bytes.transpose().map_err(damaged_column)
    };
    let rest: Rest<'static> = from_json(blob(row, 19)?)?;
    let window = rest.unique_window.unwrap_or_default();
    Ok(JobSpec {
        job_type: name(text(row, 15)?)?,
        queue: name(text(row, 16)?)?,
        priority: i32::try_from(number(row, 17)?).map_err(damaged_column)?,
        idempotency_key: bytes(18)?,
        batch_id: row.blob(24)?.map(batch_id).transpose()?,
        concurrency_key: row.text(25)?.map(name).transpose()?,
        unique: bytes(26)?.map(|key| Unique { key, window }),
        retry_of: rest.retry_of,
        labels: owned(rest.labels),
        fingerprint: rest.fingerprint,
        retry_policy: owned(rest.retry_policy),
        timeouts: owned(rest.timeouts),
        retention: owned(rest.retention),
        event_retention: rest.event_retention,
        log_bytes_max: rest.log_bytes_max.unwrap_or(LOG_BYTES_DEFAULT),
        progress_interval: rest.progress_interval.unwrap_or(PROGRESS_INTERVAL_DEFAULT),
    })
}

/// What of a spec has no column of its own. What has its default is left out, because rows should be
/// narrow: whoever changes a default says in a migration what the rows before it had.
#[derive(Serialize, Deserialize)]
struct Rest<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<Cow<'a, BTreeMap<String, String>>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_policy: Option<Cow<'a, RetryPolicy>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeouts: Option<Cow<'a, Timeouts>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retention: Option<Cow<'a, Retention>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_retention: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unique_window: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_of: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_bytes_max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress_interval: Option<Duration>,
}

/// The column `spec`: JSON of what has no column of its own.
pub(super) fn rest_of(spec: &JobSpec) -> Vec<u8> {
    to_json(&Rest {
        labels: unless_default(&spec.labels),
        fingerprint: spec.fingerprint.clone(),
        retry_policy: unless_default(&spec.retry_policy),
        timeouts: unless_default(&spec.timeouts),
        retention: unless_default(&spec.retention),
        event_retention: spec.event_retention,
        unique_window: spec.unique.as_ref().map(|unique| unique.window),
        retry_of: spec.retry_of,
        log_bytes_max: (spec.log_bytes_max != LOG_BYTES_DEFAULT).then_some(spec.log_bytes_max),
        progress_interval: (spec.progress_interval != PROGRESS_INTERVAL_DEFAULT)
            .then_some(spec.progress_interval),
    })
}

fn unless_default<T: Clone + Default + PartialEq>(value: &T) -> Option<Cow<'_, T>> {
    (*value != T::default()).then_some(Cow::Borrowed(value))
}

fn owned<T: Clone + Default>(value: Option<Cow<'_, T>>) -> T {
    value.map(Cow::into_owned).unwrap_or_default()
}

/// The text of one of our own words as JSON.
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own words are JSON")
}

/// Reads a payload from three columns: kind, media type and body. `None` where they are null.
pub(super) fn payload(row: &impl Columns, first: usize) -> Result<Option<Payload>, StoreError> {
    let Some(kind) = row.text(first)? else {
        return Ok(None);
    };
    let media_type = row.text(first + 1)?.map(str::to_owned);
    let body = blob(row, first + 2)?.to_vec();
    let text = |body| String::from_utf8(body).map_err(|error| damaged("a payload", &error));
    let content = match kind {
        "json" => Content::Json(text(body)?),
        "text" => Content::Text(text(body)?),
        "data" => Content::Data(Bytes::from(body)),
        other => return Err(damaged("a payload's kind", &other)),
    };
    Ok(Some(Payload::from_parts(content, media_type)))
}

/// Reads a segment from three columns: first sequence, tags and body. `None` where they are null.
pub(super) fn segment(
    row: &impl Columns,
    first: usize,
) -> Result<Option<Arc<Segment>>, StoreError> {
    let Some(first_sequence) = row.number(first)? else {
        return Ok(None);
    };
    let tags = blob(row, first + 1)?.to_vec();
    let body = blob(row, first + 2)?.to_vec();
    Segment::from_stored(first_sequence, tags, Bytes::from(body))
        .map(|segment| Some(Arc::new(segment)))
        .map_err(|error| damaged("a segment", &error))
}

pub(super) fn name(text: &str) -> Result<Name, StoreError> {
    Name::new(text).map_err(|problem| damaged("a name", &problem))
}

fn batch_id(bytes: &[u8]) -> Result<BatchId, StoreError> {
    Ok(BatchId::new(*job_id(bytes)?.as_uuid()))
}

/// A point in time, or null.
pub(super) fn time(row: &impl Columns, column: usize) -> Result<Option<Timestamp>, StoreError> {
    Ok(row.number(column)?.map(Timestamp::from_micros))
}

pub(super) fn job_id(bytes: &[u8]) -> Result<JobId, StoreError> {
    Uuid::from_slice(bytes)
        .map(JobId::new)
        .map_err(|error| damaged("an id", &error))
}

/// Text that is never null.
pub(super) fn text(row: &impl Columns, column: usize) -> Result<&str, StoreError> {
    row.text(column)?.ok_or_else(null)
}

/// Where a job is in its life.
pub(super) fn state(row: &impl Columns, column: usize) -> Result<JobState, StoreError> {
    let state = text(row, column)?;
    JobState::parse(state).ok_or_else(|| damaged("a state", &state))
}

/// A number that is never null.
pub(super) fn number(row: &impl Columns, column: usize) -> Result<i64, StoreError> {
    row.number(column)?.ok_or_else(null)
}

/// How many attempts.
pub(super) fn count(row: &impl Columns, column: usize) -> Result<u32, StoreError> {
    u32::try_from(number(row, column)?).map_err(damaged_column)
}

/// Bytes that are never null.
pub(super) fn blob(row: &impl Columns, column: usize) -> Result<&[u8], StoreError> {
    row.blob(column)?.ok_or_else(null)
}

fn null() -> StoreError {
    damaged_column("null")
}

fn damaged_column(error: impl std::fmt::Display) -> StoreError {
    damaged("a column", &error)
}

fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| damaged("a job's details", &error))
}

fn damaged(what: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Internal(format!(
        "the store holds {what} that cannot be read: {error}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stored rows leave out what has its default: a default that changes would change them, unless a
    /// migration says what they had.
    #[test]
    fn the_defaults_that_stored_rows_leave_out_are_what_they_always_were() {
        let written = serde_json::json!({
            "retry_policy": RetryPolicy::default(),
            "timeouts": Timeouts::default(),
            "retention": Retention::default(),
            "log_bytes_max": LOG_BYTES_DEFAULT,
            "progress_interval": PROGRESS_INTERVAL_DEFAULT,
        });
        let always = serde_json::json!({
            "retry_policy": {
                "max_attempts": 3,
                "initial_backoff": {"secs": 1, "nanos": 0},
                "max_backoff": {"secs": 600, "nanos": 0},
                "backoff_multiplier": 2.0,
            },
            "timeouts": {"run_timeout": null, "cancel_grace": {"secs": 5, "nanos": 0}},
            "retention": {
                "finished": {"secs": 604_800, "nanos": 0},
                "failed": {"secs": 2_592_000, "nanos": 0},
            },
            "log_bytes_max": 16_777_216,
            "progress_interval": {"secs": 0, "nanos": 50_000_000},
        });
        assert_eq!(written, always);
    }
}
