//! The one write connection: a group of changes in one durable transaction.
//!
//! It is rusqlite's and not sqlx's, and works on the thread of whoever calls: a statement a row costs a
//! few microseconds there, where sqlx pays for a trip to a thread of its own and back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{CachedStatement, Connection, Params, params};

use crate::job::name::{JobKey, Lane, Name};
use crate::job::payload::{Content, Payload};
use crate::job::time::Timestamp;
use crate::job::{Job, JobState, Payloads};
use crate::store::plan::{KeysRunning, Plan, Role, plan};
use crate::store::sqlite::errors::write_error;
use crate::store::sqlite::rows;
use crate::store::{Committed, Group, Published, StoreError};

/// The write connection and what its only user may remember.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) next_position: i64,
    /// Jobs as last committed: those with a live attempt, and the first of those that wait. Nearly every
    /// change is for one of them, and nobody else writes, so they need not be read again.
    pub(super) remembered: HashMap<JobKey, Remembered>,
    /// Those that wait, in the order in which they were remembered; some are forgotten already.
    waiting: VecDeque<JobKey>,
    pub(super) keys_running: KeysRunning,
    last_commit: Instant,
}

/// A job and, where they are small, its payloads.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) job: Arc<Job>,
    pub(super) beside: Option<Arc<Payloads>>,
}

/// Jobs that wait and are remembered; the oldest are forgotten first, so that what waits for ever stands in
/// nobody's way. Chosen: a few MiB.
const WAITING_MAX: usize = 2_048;
/// Labels of a job that waits and is remembered. Bytes. Chosen: with them it takes a few KiB at most.
const LABELS_BYTES_MAX: usize = 1_024;

const INSERT_JOB: &str = "
insert into jobs (
    tenant, id, job_type, queue, priority, idempotency_key, spec, created_at_us, state, run_at_us,
    attempt, attempts_charged, attempts_lost, lease_expires_at_us, first_sequence, last_sequence,
    updated_at_us, ended_at_us, version, detail, stall_at_us, stalled_since_us, deadline_at_us,
    purge_at_us, batch_id, concurrency_key, unique_key, events_purge_at_us)
values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20,
    ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28)";

/// `?3` is the version that was read.
pub(super) const UPDATE_JOB: &str = "
update jobs set
    state = ?4, run_at_us = ?5, attempt = ?6, attempts_charged = ?7, attempts_lost = ?8,
    lease_expires_at_us = ?9, first_sequence = ?10, last_sequence = ?11, updated_at_us = ?12,
    ended_at_us = ?13, version = ?14, detail = ?15, stall_at_us = ?16, stalled_since_us = ?17,
    deadline_at_us = ?18, purge_at_us = ?19, events_purge_at_us = ?20
where tenant = ?1 and id = ?2 and version = ?3";

const INSERT_PAYLOAD: &str = "
insert into payloads (tenant, job_id, role, kind, media_type, body) values (?1, ?2, ?3, ?4, ?5, ?6)";

/// Not an upsert: SQLite opens a table of its own for each.
pub(super) const UPDATE_PAYLOAD: &str = "
update payloads set kind = ?4, media_type = ?5, body = ?6
where tenant = ?1 and job_id = ?2 and role = ?3";

const INSERT_SEGMENT: &str = "
insert into segments (first_position, tenant, job_id, first_sequence, last_sequence, tags, body)
values (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

pub(super) const MOVE_DEPTH: &str = "
update depths set jobs = jobs + ?5
where tenant = ?1 and queue = ?2 and job_type = ?3 and state = ?4";

const INSERT_DEPTH: &str = "
insert into depths (tenant, queue, job_type, state, jobs) values (?1, ?2, ?3, ?4, ?5)";

/// What came to zero goes: see the table.
pub(super) const DROP_DEPTH: &str = "
delete from depths
where tenant = ?1 and queue = ?2 and job_type = ?3 and state = ?4 and jobs = 0";

/// What is run once for each row that a group writes.
#[cfg(test)]
pub(super) const ROW_BY_ROW: [&str; 8] = [
    INSERT_JOB,
    UPDATE_JOB,
    INSERT_PAYLOAD,
    UPDATE_PAYLOAD,
    INSERT_SEGMENT,
    MOVE_DEPTH,
    INSERT_DEPTH,
    DROP_DEPTH,
];

impl Writer {
    /// # Errors
    /// What runs with concurrency keys cannot be counted.
    pub(super) fn open(connection: Connection, next_position: i64) -> Result<Self, StoreError> {
        let mut writer = Self {
            connection,
            next_position,
            remembered: HashMap::new(),
            waiting: VecDeque::new(),
            keys_running: KeysRunning::default(),
            last_commit: Instant::now(),
        };
        writer.count_keys()?;
        Ok(writer)
    }

    /// How long nothing was written.
    pub(super) fn quiet_for(&self) -> Duration {
        self.last_commit.elapsed()
    }

    pub(super) fn commit(&mut self, group: Group) -> Result<Committed, StoreError> {
        let known = self.read(&group)?;
        let mut plan = plan(group, known, self.next_position, &self.keys_running);
        let nothing = plan.inserts.is_empty() && plan.updates.is_empty();
        if !nothing && let Err(error) = self.transaction(|| self.write(&plan)) {
            // What is remembered of them may be what the guard refused: the next group reads the rows.
            for (job, _) in &plan.updates {
                self.remembered.remove(&job.key);
            }
            return Err(error);
        }
        self.last_commit = Instant::now();
        self.next_position = plan.next_position;
        self.keys_running.moved(std::mem::take(&mut plan.key_moves));
        let changed = plan.updates.iter().map(|(job, _)| job);
        for job in plan.inserts.iter().chain(changed) {
            self.remember(job, plan.beside.remove(&job.key));
        }
        Ok(plan.committed)
    }

    fn remember(&mut self, job: &Arc<Job>, beside: Option<Arc<Payloads>>) {
        let waits = job.state == JobState::Queued && beside.is_some() && is_small(job);
        if !job.state.is_leased() && !waits {
            self.remembered.remove(&job.key);
            return;
        }
        if waits {
            if self.waiting.len() == WAITING_MAX {
                self.forget_oldest();
            }
            self.waiting.push_back(job.key.clone());
        }
        let job = Arc::clone(job);
        self.remembered
            .insert(job.key.clone(), Remembered { job, beside });
    }

    /// Forgets the job that has waited longest, unless it runs by now.
    fn forget_oldest(&mut self) {
        if let Some(key) = self.waiting.pop_front()
            && let Some(found) = self.remembered.get(&key)
            && found.job.state == JobState::Queued
        {
            self.remembered.remove(&key);
        }
    }

    pub(super) fn prepare(&self, sql: &'static str) -> Result<CachedStatement<'_>, StoreError> {
        self.connection.prepare_cached(sql).map_err(write_error)
    }

    /// Runs a statement that answers no rows. Answers how many it changed.
    pub(super) fn execute(
        &self,
        sql: &'static str,
        values: impl Params,
    ) -> Result<usize, StoreError> {
        self.prepare(sql)?.execute(values).map_err(write_error)
    }

    /// Makes one transaction of some work: afterwards all of it is on disk, or nothing.
    pub(super) fn transaction<T>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = self.execute("begin immediate", []).and_then(|_| {
            let done = work()?;
            self.execute("commit", [])?;
            Ok(done)
        });
        if done.is_err() && !self.connection.is_autocommit() {
            // Where that fails as well, the next `begin` does, and says why.
            let _ = self.execute("rollback", []);
        }
        done
    }

    fn write(&self, plan: &Plan) -> Result<(), StoreError> {
        for job in &plan.inserts {
            self.insert(job)?;
        }
        for (job, version) in &plan.updates {
            self.update(job, *version)?;
        }
        for (key, role, payload) in &plan.payloads {
            self.put_payload(key, *role, payload)?;
        }
        for published in &plan.committed.published {
            self.insert_segment(published)?;
        }
        for (lane, state, moved) in &plan.committed.depth_changes {
            self.move_depth(lane, *state, *moved)?;
        }
        Ok(())
    }

    fn insert(&self, job: &Job) -> Result<(), StoreError> {
        let spec = &*job.spec;
        let values = params![
            job.key.tenant.as_str(),
            id(&job.key),
            spec.job_type.as_str(),
            spec.queue.as_str(),
            spec.priority,
            spec.idempotency_key.as_ref().map(String::as_bytes),
            rows::rest_of(spec),
            job.created_at.as_micros(),
            job.state.as_str(),
            job.run_at.as_micros(),
            job.attempt,
            job.attempts_charged,
            job.attempts_lost,
            job.lease_expires_at.map(Timestamp::as_micros),
            job.first_sequence,
            job.last_sequence,
            job.updated_at.as_micros(),
            job.ended_at.map(Timestamp::as_micros),
            job.version,
            rows::to_json(&job.detail),
            job.stall_at.map(Timestamp::as_micros),
            job.stalled_since.map(Timestamp::as_micros),
            job.deadline_at.map(Timestamp::as_micros),
            job.purge_at.map(Timestamp::as_micros),
            spec.batch_id.map(|id| id.as_uuid().as_bytes().to_vec()),
            spec.concurrency_key.as_ref().map(Name::as_str),
            spec.unique.as_ref().map(|unique| unique.key.as_bytes()),
            job.events_purge_at.map(Timestamp::as_micros),
        ];
        self.execute(INSERT_JOB, values).map(drop)
    }

    /// Ends the whole group where the row is not as it was read.
    fn update(&self, job: &Job, version: i64) -> Result<(), StoreError> {
        let values = params![
            job.key.tenant.as_str(),
            id(&job.key),
            version,
            job.state.as_str(),
            job.run_at.as_micros(),
            job.attempt,
            job.attempts_charged,
            job.attempts_lost,
            job.lease_expires_at.map(Timestamp::as_micros),
            job.first_sequence,
            job.last_sequence,
            job.updated_at.as_micros(),
            job.ended_at.map(Timestamp::as_micros),
            job.version,
            rows::to_json(&job.detail),
            job.stall_at.map(Timestamp::as_micros),
            job.stalled_since.map(Timestamp::as_micros),
            job.deadline_at.map(Timestamp::as_micros),
            job.purge_at.map(Timestamp::as_micros),
            job.events_purge_at.map(Timestamp::as_micros),
        ];
        match self.execute(UPDATE_JOB, values)? {
            1 => Ok(()),
            _ => Err(StoreError::Internal(format!(
                "the row of job {} is not as it was read",
                job.key.id
            ))),
        }
    }

    fn put_payload(&self, key: &JobKey, role: Role, payload: &Payload) -> Result<(), StoreError> {
        let kind = match payload.content() {
            Content::Json(_) => "json",
            Content::Text(_) => "text",
            Content::Data(_) => "data",
        };
        let values = params![
            key.tenant.as_str(),
            id(key),
            role.as_str(),
            kind,
            payload.given_media_type(),
            payload.as_bytes(),
        ];
        // Only a checkpoint is ever replaced.
        if role == Role::Checkpoint && self.execute(UPDATE_PAYLOAD, values)? > 0 {
            return Ok(());
        }
        self.execute(INSERT_PAYLOAD, values).map(drop)
    }

    fn insert_segment(&self, published: &Published) -> Result<(), StoreError> {
        let (key, segment) = (&published.job.key, &published.segment);
        let values = params![
            published.position,
            key.tenant.as_str(),
            id(key),
            segment.first_sequence(),
            segment.last_sequence(),
            segment.tags(),
            &segment.body()[..],
        ];
        self.execute(INSERT_SEGMENT, values).map(drop)
    }

    pub(super) fn move_depth(
        &self,
        lane: &Lane,
        state: JobState,
        moved: i64,
    ) -> Result<(), StoreError> {
        let (tenant, queue) = (lane.tenant.as_str(), lane.queue.as_str());
        let (job_type, state) = (lane.job_type.as_str(), state.as_str());
        let values = (tenant, queue, job_type, state, moved);
        if self.execute(MOVE_DEPTH, values)? == 0 {
            self.execute(INSERT_DEPTH, values)?;
        }
        if moved < 0 {
            self.execute(DROP_DEPTH, (tenant, queue, job_type, state))?;
        }
        Ok(())
    }
}

/// Whether a job takes little memory beside its payloads.
fn is_small(job: &Job) -> bool {
    let labels = job.spec.labels.iter();
    let labels: usize = labels.map(|(name, value)| name.len() + value.len()).sum();
    labels <= LABELS_BYTES_MAX && job.detail.error.is_none()
}

/// A job's id as its column has it.
pub(super) fn id(key: &JobKey) -> &[u8] {
    key.id.as_uuid().as_bytes()
}
