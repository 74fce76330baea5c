//! The one write connection: a group of changes in one durable transaction, sent to SQLite's thread as
//! one query of several statements, because every trip there costs more than a row.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use sqlx::Executor;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use crate::job::name::{JobKey, Name};
use crate::job::{Change, Job, Payloads};
use crate::store::plan::{Known, Plan, plan};
use crate::store::sqlite::errors::store_error;
use crate::store::sqlite::rows::{self, JOB_COLUMNS, RowSet, job_columns};
use crate::store::{Claimed, Committed, Demand, Entry, Group, StoreError};

/// The write connection and what its only user may remember.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) next_position: i64,
    /// Jobs with a live attempt, as last committed: nearly every change is for one of them, and nobody
    /// else writes, so they need not be read again.
    leased: HashMap<JobKey, Arc<Job>>,
    last_commit: Instant,
}

/// Lets a whole group be one statement: what is inserted into this view is written by its trigger. One
/// statement is one transaction without `begin` and `commit`, and one trip to SQLite's thread: a query
/// of nine statements wakes the writer nine times. Temporary: it belongs to the connection, not to the
/// database.
///
/// `jsonb_each` and not `json_each`: that one prints a row anew for every column that is taken from it.
pub(super) const MAKE_GROUP: &str = "
create temp view write_group as select
    null as new_jobs, null as new_jobs_arena, null as jobs, null as jobs_arena, null as jobs_changed,
    null as payloads, null as payloads_arena, null as segments, null as segments_arena,
    null as depths, null as next_position;

create temp trigger write_group_now instead of insert on write_group begin

-- Each row: 0 tenant, 1 id, 2 type, 3 queue, 4 priority, 5 key, 6 its length, 7 spec, 8 its length,
-- 9 created, 10 state, 11 run at, 12 attempt, 13 charged, 14 lost, 15 lease, 16 first, 17 last,
-- 18 updated, 19 ended, 20 version, 21 detail, 22 its length.
insert into jobs (
    tenant, id, job_type, queue, priority, idempotency_key, spec, created_at_us, state, run_at_us,
    attempt, attempts_charged, attempts_lost, lease_expires_at_us, first_sequence, last_sequence,
    updated_at_us, ended_at_us, version, detail)
select
    value->>0, substr(new.new_jobs_arena, value->>1, 16), value->>2, value->>3, value->>4,
    substr(new.new_jobs_arena, value->>5, value->>6),
    substr(new.new_jobs_arena, value->>7, value->>8), value->>9,
    value->>10, value->>11, value->>12, value->>13, value->>14, value->>15, value->>16, value->>17,
    value->>18, value->>19, value->>20, substr(new.new_jobs_arena, value->>21, value->>22)
from jsonb_each(new.new_jobs);

-- Each row: 0 tenant, 1 id, 2 the version that was read, 3 to 15: as 10 to 22 above.
update jobs set
    state = n.state, run_at_us = n.run_at_us, attempt = n.attempt,
    attempts_charged = n.attempts_charged, attempts_lost = n.attempts_lost,
    lease_expires_at_us = n.lease_expires_at_us, first_sequence = n.first_sequence,
    last_sequence = n.last_sequence, updated_at_us = n.updated_at_us, ended_at_us = n.ended_at_us,
    version = n.version, detail = n.detail
from (
    select
        value->>0 as tenant, substr(new.jobs_arena, value->>1, 16) as id, value->>2 as read_version,
        value->>3 as state, value->>4 as run_at_us, value->>5 as attempt,
        value->>6 as attempts_charged, value->>7 as attempts_lost,
        value->>8 as lease_expires_at_us, value->>9 as first_sequence,
        value->>10 as last_sequence, value->>11 as updated_at_us,
        value->>12 as ended_at_us, value->>13 as version,
        substr(new.jobs_arena, value->>14, value->>15) as detail
    from jsonb_each(new.jobs)) as n
where jobs.tenant = n.tenant and jobs.id = n.id and jobs.version = n.read_version;

-- Ends the whole group where a row was not as it was read.
select raise(abort, 'a row was not as it was read')
where new.jobs_changed > 0 and changes() <> new.jobs_changed;

-- Each row: 0 tenant, 1 job, 2 role, 3 kind, 4 media type, 5 body, 6 its length.
insert into payloads (tenant, job_id, role, kind, media_type, body)
select value->>0, substr(new.payloads_arena, value->>1, 16), value->>2, value->>3, value->>4,
    substr(new.payloads_arena, value->>5, value->>6)
from jsonb_each(new.payloads) where true
on conflict (tenant, job_id, role) do update set
    kind = excluded.kind, media_type = excluded.media_type, body = excluded.body;

-- Each row: 0 position, 1 tenant, 2 job, 3 first sequence, 4 last, 5 tags, 6 their length, 7 body,
-- 8 its length.
insert into segments (first_position, tenant, job_id, first_sequence, last_sequence, tags, body)
select value->>0, value->>1, substr(new.segments_arena, value->>2, 16), value->>3, value->>4,
    substr(new.segments_arena, value->>5, value->>6), substr(new.segments_arena, value->>7, value->>8)
from jsonb_each(new.segments);

-- Each row: 0 tenant, 1 queue, 2 type, 3 state, 4 by how much.
insert into depths (tenant, queue, job_type, state, jobs)
select value->>0, value->>1, value->>2, value->>3, value->>4 from jsonb_each(new.depths) where true
on conflict (tenant, queue, job_type, state) do update set jobs = jobs + excluded.jobs;

-- What came to zero goes: see the table.
delete from depths where jobs = 0 and (tenant, queue, job_type, state) in (
    select value->>0, value->>1, value->>2, value->>3 from jsonb_each(new.depths));

update meta set value = new.next_position where name = 'next_position';

end";

/// A whole group.
pub(super) const WRITE_GROUP: &str =
    "insert into write_group values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

/// Each row of `$1`: 0 tenant, 1 id in `$2`.
pub(super) const JOBS_BY_ID: &str = concat!(
    "select ",
    job_columns!(),
    " from jsonb_each($1) n cross join jobs j
      on j.tenant = n.value->>0 and j.id = substr($2, n.value->>1, 16)"
);

/// Each row of `$1`: 0 tenant, 1 key in `$2`, 2 its length.
pub(super) const JOBS_BY_KEY: &str = concat!(
    "select ",
    job_columns!(),
    " from jsonb_each($1) n cross join jobs j on j.tenant = n.value->>0
      and j.idempotency_key = substr($2, n.value->>1, n.value->>2)"
);

/// The first `$2` jobs of each lane, each lane in the order of its claims, with what an attempt needs.
/// Each row of `$1`: 0 queue, 1 type, 2 tenant.
/// `+ 0`: a limit that is a bare parameter has SQLite prepare the statement anew for every value of it.
/// SQLite: one writer, so no skip-locked; a PostgreSQL twin takes row locks.
pub(super) const LANE_HEADS: &str = concat!(
    "select ",
    job_columns!(),
    ", i.kind, i.media_type, i.body, c.kind, c.media_type, c.body
      from json_each($1) n
      cross join jobs j on j.tenant = n.value->>2 and j.id in (
          select id from jobs
          where queue = n.value->>0 and job_type = n.value->>1 and tenant = n.value->>2
              and state = 'queued'
          order by priority desc, run_at_us, id limit $2 + 0)
      left join payloads i
          on i.tenant = j.tenant and i.job_id = j.id and i.role = 'input'
      left join payloads c
          on c.tenant = j.tenant and c.job_id = j.id and c.role = 'checkpoint'
      order by n.key, j.priority desc, j.run_at_us, j.id"
);

impl Writer {
    pub(super) fn new(connection: SqliteConnection, next_position: i64) -> Self {
        Self {
            connection,
            next_position,
            leased: HashMap::new(),
            last_commit: Instant::now(),
        }
    }

    /// How long nothing was written.
    pub(super) fn quiet_for(&self) -> Duration {
        self.last_commit.elapsed()
    }

    pub(super) async fn commit(&mut self, group: Group) -> Result<Committed, StoreError> {
        let known = self.read(&group).await?;
        let plan = plan(group, known, self.next_position);
        let nothing = plan.inserts.is_empty() && plan.updates.is_empty();
        if !nothing && let Err(error) = self.write(&plan).await {
            // What is remembered of them may be what the guard refused: the next group reads the rows.
            for (job, _) in &plan.updates {
                self.leased.remove(&job.key);
            }
            return Err(error);
        }
        self.last_commit = Instant::now();
        self.next_position = plan.next_position;
        let changed = plan.updates.iter().map(|(job, _)| job);
        for job in plan.inserts.iter().chain(changed) {
            if job.state.is_leased() {
                self.leased.insert(job.key.clone(), Arc::clone(job));
            } else {
                self.leased.remove(&job.key);
            }
        }
        Ok(plan.committed)
    }

    async fn read(&mut self, group: &Group) -> Result<Known, StoreError> {
        let mut known = Known::default();
        let mut unknown: HashSet<&JobKey> = HashSet::new();
        let mut keys: HashSet<(&Name, &str)> = HashSet::new();
        for entry in &group.entries {
            match entry {
                Entry::Change { key, change } => match self.leased.get(key) {
                    Some(job) => {
                        known.jobs.insert(key.clone(), Arc::clone(job));
                    }
                    // An attempt that is not remembered does not hold a lease: the row says so too.
                    None => {
                        debug_assert!(!matches!(change, Change::Claim { .. }));
                        unknown.insert(key);
                    }
                },
                Entry::Submit { new, .. } => {
                    if let Some(key) = &new.spec.idempotency_key {
                        keys.insert((&new.key.tenant, key));
                    }
                }
            }
        }
        let unknown: Vec<&JobKey> = unknown.into_iter().collect();
        if !unknown.is_empty() {
            let rows = self.select(JOBS_BY_ID, RowSet::of_keys(&unknown)).await?;
            known.jobs.extend(rows);
        }
        let keys: Vec<(&Name, &str)> = keys.into_iter().collect();
        if !keys.is_empty() {
            let rows = RowSet::of_idempotency_keys(&keys);
            for (key, job) in self.select(JOBS_BY_KEY, rows).await? {
                if let Some(text) = &job.spec.idempotency_key {
                    let by_key = (key.tenant.clone(), text.clone());
                    known.keys.insert(by_key, key.clone());
                }
                known.jobs.insert(key, job);
            }
        }
        if !group.demand.is_empty() {
            known.candidates = self.lane_heads(&group.demand).await?;
        }
        Ok(known)
    }

    async fn select(
        &mut self,
        sql: &'static str,
        keys: RowSet,
    ) -> Result<Vec<(JobKey, Arc<Job>)>, StoreError> {
        let rows = sqlx::query(sql)
            .bind(keys.rows)
            .bind(keys.arena)
            .fetch_all(&mut self.connection)
            .await
            .map_err(store_error)?;
        rows.iter()
            .map(|row| rows::job(row).map(|job| (job.key.clone(), Arc::new(job))))
            .collect()
    }

    async fn lane_heads(&mut self, demand: &[Demand]) -> Result<Vec<Claimed>, StoreError> {
        let most = demand.iter().map(|demand| demand.places).max().unwrap_or(0);
        let lanes = RowSet::of_lanes(demand);
        let rows = sqlx::query(LANE_HEADS)
            .bind(lanes.rows)
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(&mut self.connection)
            .await
            .map_err(store_error)?;
        // A job that cannot be read stays where it is: it must not hold up everybody else's changes.
        let readable = rows.iter().filter_map(|row| {
            claimable(row)
                .inspect_err(|error| tracing::error!(%error, "a waiting job cannot be claimed"))
                .ok()
        });
        Ok(readable.collect())
    }

    async fn write(&mut self, plan: &Plan) -> Result<(), StoreError> {
        let inserts = RowSet::of_new_jobs(&plan.inserts);
        let updates = RowSet::of_changed_jobs(&plan.updates);
        let payloads = RowSet::of_payloads(&plan.payloads);
        let segments = RowSet::of_segments(&plan.committed.published, &plan.positions);
        let depths = RowSet::of_depths(&plan.committed.depth_changes);
        let group = sqlx::query(WRITE_GROUP)
            .bind(inserts.rows)
            .bind(inserts.arena)
            .bind(updates.rows)
            .bind(updates.arena)
            .bind(i64::try_from(plan.updates.len()).unwrap_or(i64::MAX))
            .bind(payloads.rows)
            .bind(payloads.arena)
            .bind(segments.rows)
            .bind(segments.arena)
            .bind(depths.rows)
            .bind(plan.next_position);
        // Its first word is its last: the statement is done, and committed. To wait for the end of the
        // stream as well, as `execute` does, is another trip to SQLite's thread.
        let written = self.connection.fetch_many(group).try_next().await;
        match written {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(store_error(sqlx::Error::WorkerCrashed)),
            Err(error) => Err(self.roll_back(error).await),
        }
    }

    /// Ends a transaction that has failed, so that the next one can begin.
    pub(super) async fn roll_back(&mut self, error: sqlx::Error) -> StoreError {
        // SQLite has often done it by itself, and then says that there is nothing to roll back.
        let _ = sqlx::query("rollback").execute(&mut self.connection).await;
        store_error(error)
    }
}

/// A waiting job with what an attempt needs.
fn claimable(row: &SqliteRow) -> Result<Claimed, StoreError> {
    Ok(Claimed {
        job: Arc::new(rows::job(row)?),
        payloads: Payloads {
            input: rows::payload(row, JOB_COLUMNS)?,
            result: None,
            checkpoint: rows::payload(row, JOB_COLUMNS + 3)?,
        },
    })
}
