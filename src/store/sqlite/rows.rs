//! Between rows and the words of `job`.
//!
//! Sets of rows go in as one JSON array, and every blob in them as a place in one big blob beside it
//! (an [`Arena`]): `json_each` cuts text at U+0000 and knows no blobs, and one long bind is cheaper than
//! many short ones.

use std::sync::Arc;

use bytes::Bytes;
use serde::ser::{Serialize, SerializeSeq, Serializer};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::payload::{Content, Payload};
use crate::job::segment::Segment;
use crate::job::time::Timestamp;
use crate::job::{Job, JobFields, JobState};
use crate::store::plan::Role;
use crate::store::{Demand, Published, StoreError};

/// The columns of a job, in the order that [`job`] reads them. For `concat!`.
macro_rules! job_columns {
    () => {
        "j.tenant, j.id, j.state, j.run_at_us, j.attempt, j.attempts_charged, j.attempts_lost, \
         j.lease_expires_at_us, j.first_sequence, j.last_sequence, j.created_at_us, \
         j.updated_at_us, j.ended_at_us, j.version, j.spec, j.detail"
    };
}
pub(super) use job_columns;

/// How many columns [`job_columns`] names.
pub(super) const JOB_COLUMNS: usize = 16;

/// Reads a job from a row that begins with [`job_columns`].
pub(super) fn job(row: &SqliteRow) -> Result<Job, StoreError> {
    let state: &str = get(row, 2)?;
    Ok(Job::from_fields(JobFields {
        key: JobKey {
            tenant: name(get(row, 0)?)?,
            id: job_id(get(row, 1)?)?,
        },
        state: JobState::parse(state).ok_or_else(|| damaged("a state", &state))?,
        run_at: Timestamp::from_micros(get(row, 3)?),
        attempt: get(row, 4)?,
        attempts_charged: get(row, 5)?,
        attempts_lost: get(row, 6)?,
        lease_expires_at: get::<Option<i64>>(row, 7)?.map(Timestamp::from_micros),
        first_sequence: get(row, 8)?,
        last_sequence: get(row, 9)?,
        created_at: Timestamp::from_micros(get(row, 10)?),
        updated_at: Timestamp::from_micros(get(row, 11)?),
        ended_at: get::<Option<i64>>(row, 12)?.map(Timestamp::from_micros),
        version: get(row, 13)?,
        spec: Arc::new(from_json(get(row, 14)?)?),
        detail: from_json(get(row, 15)?)?,
    }))
}

/// Reads a payload from three columns: kind, media type and body. `None` where they are null.
pub(super) fn payload(row: &SqliteRow, first: usize) -> Result<Option<Payload>, StoreError> {
    let Some(kind) = get::<Option<&str>>(row, first)? else {
        return Ok(None);
    };
    let media_type: Option<String> = get(row, first + 1)?;
    let body: Vec<u8> = get(row, first + 2)?;
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
pub(super) fn segment(row: &SqliteRow, first: usize) -> Result<Option<Arc<Segment>>, StoreError> {
    let Some(first_sequence) = get::<Option<i64>>(row, first)? else {
        return Ok(None);
    };
    let tags: Vec<u8> = get(row, first + 1)?;
    let body: Vec<u8> = get(row, first + 2)?;
    Segment::from_stored(first_sequence, tags, Bytes::from(body))
        .map(|segment| Some(Arc::new(segment)))
        .map_err(|error| damaged("a segment", &error))
}

pub(super) fn name(text: &str) -> Result<Name, StoreError> {
    Name::new(text).map_err(|problem| damaged("a name", &problem))
}

pub(super) fn job_id(bytes: &[u8]) -> Result<JobId, StoreError> {
    Uuid::from_slice(bytes)
        .map(JobId::new)
        .map_err(|error| damaged("an id", &error))
}

/// Reads one column.
pub(super) fn get<'r, T>(row: &'r SqliteRow, column: usize) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(column)
        .map_err(|error| damaged("a column", &error))
}

fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| damaged("a job's details", &error))
}

fn damaged(what: &str, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Internal(format!(
        "the store holds {what} that cannot be read: {error}"
    ))
}

/// Many blobs in one, each found by where it begins (counted from 1, as SQL does) and its length.
#[derive(Debug, Default)]
pub(super) struct Arena(Vec<u8>);

impl Arena {
    fn put(&mut self, bytes: &[u8]) -> (usize, usize) {
        let at = self.0.len() + 1;
        self.0.extend_from_slice(bytes);
        (at, bytes.len())
    }

    fn put_json(&mut self, value: &impl Serialize) -> (usize, usize) {
        let at = self.0.len() + 1;
        serde_json::to_writer(&mut self.0, value).expect("our own words are JSON");
        (at, self.0.len() + 1 - at)
    }
}

/// Rows as one JSON array, and the blobs in them.
#[derive(Debug)]
pub(super) struct RowSet {
    pub(super) rows: String,
    pub(super) arena: Vec<u8>,
}

impl RowSet {
    fn of<'a, T, R: Serialize>(
        items: &'a [T],
        mut to_row: impl FnMut(&'a T, &mut Arena) -> R,
    ) -> Self {
        let mut arena = Arena::default();
        let rows: Vec<R> = items.iter().map(|item| to_row(item, &mut arena)).collect();
        Self {
            rows: serde_json::to_string(&rows).expect("our own rows are JSON"),
            arena: arena.0,
        }
    }

    /// New jobs: see `MAKE_GROUP` for what each place is.
    pub(super) fn of_new_jobs(jobs: &[Arc<Job>]) -> Self {
        Self::of(jobs, |job, arena| {
            let id = arena.put(job.key.id.as_uuid().as_bytes());
            let key = job.spec.idempotency_key.as_ref();
            let key = key.map(|key| arena.put(key.as_bytes()));
            let spec = arena.put_json(&*job.spec);
            let detail = arena.put_json(&job.detail);
            NewJobRow(
                job.key.tenant.as_str(),
                id.0,
                job.spec.job_type.as_str(),
                job.spec.queue.as_str(),
                job.spec.priority,
                key.map(|key| key.0),
                key.map(|key| key.1),
                spec.0,
                spec.1,
                job.created_at.as_micros(),
                JobRow::of(job, detail),
            )
        })
    }

    /// Changed jobs, each with the version that was read: see `MAKE_GROUP`.
    pub(super) fn of_changed_jobs(jobs: &[(Arc<Job>, i64)]) -> Self {
        Self::of(jobs, |(job, version), arena| {
            let id = arena.put(job.key.id.as_uuid().as_bytes());
            let detail = arena.put_json(&job.detail);
            ChangedJobRow(
                job.key.tenant.as_str(),
                id.0,
                *version,
                JobRow::of(job, detail),
            )
        })
    }

    /// Payloads: see `MAKE_GROUP`.
    pub(super) fn of_payloads(payloads: &[(JobKey, Role, Payload)]) -> Self {
        Self::of(payloads, |(key, role, payload), arena| {
            let id = arena.put(key.id.as_uuid().as_bytes());
            let body = arena.put(payload.as_bytes());
            let kind = match payload.content() {
                Content::Json(_) => "json",
                Content::Text(_) => "text",
                Content::Data(_) => "data",
            };
            (
                key.tenant.as_str(),
                id.0,
                role.as_str(),
                kind,
                payload.given_media_type(),
                body.0,
                body.1,
            )
        })
    }

    /// Segments, each with its position: see `MAKE_GROUP`.
    pub(super) fn of_segments(segments: &[Published], positions: &[i64]) -> Self {
        let numbered: Vec<_> = segments.iter().zip(positions).collect();
        Self::of(&numbered, |(published, position), arena| {
            let segment = &published.segment;
            let key = &published.job.key;
            let id = arena.put(key.id.as_uuid().as_bytes());
            let tags = arena.put(segment.tags());
            let body = arena.put(segment.body());
            let first = segment.first_sequence();
            (
                **position,
                key.tenant.as_str(),
                id.0,
                first,
                segment.last_sequence(),
                tags.0,
                tags.1,
                body.0,
                body.1,
            )
        })
    }

    /// Movements of the counters: see `MAKE_GROUP`.
    pub(super) fn of_depths(depths: &[(Lane, JobState, i64)]) -> Self {
        Self::of(depths, |(lane, state, moved), _| {
            let (tenant, queue) = (lane.tenant.as_str(), lane.queue.as_str());
            (
                tenant,
                queue,
                lane.job_type.as_str(),
                state.as_str(),
                *moved,
            )
        })
    }

    /// Jobs to look up: see `JOBS_BY_ID`.
    pub(super) fn of_keys(keys: &[&JobKey]) -> Self {
        Self::of(keys, |key, arena| {
            (
                key.tenant.as_str(),
                arena.put(key.id.as_uuid().as_bytes()).0,
            )
        })
    }

    /// Idempotency keys to look up: see `JOBS_BY_KEY`.
    pub(super) fn of_idempotency_keys(keys: &[(&Name, &str)]) -> Self {
        Self::of(keys, |(tenant, key), arena| {
            let key = arena.put(key.as_bytes());
            (tenant.as_str(), key.0, key.1)
        })
    }

    /// Lanes to claim from: see `LANE_HEADS`.
    pub(super) fn of_lanes(demand: &[Demand]) -> Self {
        Self::of(demand, |demand, _| {
            let lane = &demand.lane;
            (
                lane.queue.as_str(),
                lane.job_type.as_str(),
                lane.tenant.as_str(),
            )
        })
    }
}

/// A new job: what it keeps for ever, then what an update has too.
struct NewJobRow<'a>(
    &'a str,
    usize,
    &'a str,
    &'a str,
    i32,
    Option<usize>,
    Option<usize>,
    usize,
    usize,
    i64,
    JobRow,
);

impl Serialize for NewJobRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_seq(None)?;
        row.serialize_element(self.0)?;
        row.serialize_element(&self.1)?;
        row.serialize_element(self.2)?;
        row.serialize_element(self.3)?;
        row.serialize_element(&self.4)?;
        row.serialize_element(&self.5)?;
        row.serialize_element(&self.6)?;
        row.serialize_element(&self.7)?;
        row.serialize_element(&self.8)?;
        row.serialize_element(&self.9)?;
        self.10.add_to(&mut row)?;
        row.end()
    }
}

/// A changed job: which one, then what has changed.
struct ChangedJobRow<'a>(&'a str, usize, i64, JobRow);

impl Serialize for ChangedJobRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_seq(None)?;
        row.serialize_element(self.0)?;
        row.serialize_element(&self.1)?;
        row.serialize_element(&self.2)?;
        self.3.add_to(&mut row)?;
        row.end()
    }
}

/// What an insert and an update have in common. Not a row within the row: a path into a nested array
/// costs SQLite more than a number.
struct JobRow {
    state: &'static str,
    run_at: i64,
    attempts: [u32; 3],
    lease_expires_at: Option<i64>,
    sequences: [i64; 2],
    updated_at: i64,
    ended_at: Option<i64>,
    version: i64,
    detail: (usize, usize),
}

impl JobRow {
    fn of(job: &Job, detail: (usize, usize)) -> Self {
        Self {
            state: job.state.as_str(),
            run_at: job.run_at.as_micros(),
            attempts: [job.attempt, job.attempts_charged, job.attempts_lost],
            lease_expires_at: job.lease_expires_at.map(Timestamp::as_micros),
            sequences: [job.first_sequence, job.last_sequence],
            updated_at: job.updated_at.as_micros(),
            ended_at: job.ended_at.map(Timestamp::as_micros),
            version: job.version,
            detail,
        }
    }

    fn add_to<R: SerializeSeq>(&self, row: &mut R) -> Result<(), R::Error> {
        row.serialize_element(self.state)?;
        row.serialize_element(&self.run_at)?;
        for attempts in &self.attempts {
            row.serialize_element(attempts)?;
        }
        row.serialize_element(&self.lease_expires_at)?;
        for sequence in &self.sequences {
            row.serialize_element(sequence)?;
        }
        row.serialize_element(&self.updated_at)?;
        row.serialize_element(&self.ended_at)?;
        row.serialize_element(&self.version)?;
        row.serialize_element(&self.detail.0)?;
        row.serialize_element(&self.detail.1)
    }
}
