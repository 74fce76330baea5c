//! The one write connection: a group of changes in one durable transaction, sent to SQLite's thread as
//! one query of several statements, because every trip there costs more than a row.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteConnection;

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

/// A whole group. `$1`, `$2`: new jobs; `$3` to `$5`: changed jobs and how many; `$6`, `$7`: payloads;
/// `$8`, `$9`: segments; `$10`: counters; `$11`: next position.
pub(super) const WRITE_GROUP: &str = "
begin immediate;

-- Each row: 0 tenant, 1 id, 2 type, 3 queue, 4 priority, 5 key, 6 its length, 7 spec, 8 its length,
-- 9 created, 10: [0 state, 1 run at, 2 attempt, 3 charged, 4 lost, 5 lease, 6 first, 7 last, 8 updated,
-- 9 ended, 10 version, 11 detail, 12 its length].
insert into jobs (
    tenant, id, job_type, queue, priority, idempotency_key, spec, created_at_us, state, run_at_us,
    attempt, attempts_charged, attempts_lost, lease_expires_at_us, first_sequence, last_sequence,
    updated_at_us, ended_at_us, version, detail)
select
    value->>0, substr($2, value->>1, 16), value->>2, value->>3, value->>4,
    substr($2, value->>5, value->>6), substr($2, value->>7, value->>8), value->>9,
    value->>'$[10][0]', value->>'$[10][1]', value->>'$[10][2]', value->>'$[10][3]',
    value->>'$[10][4]', value->>'$[10][5]', value->>'$[10][6]', value->>'$[10][7]',
    value->>'$[10][8]', value->>'$[10][9]', value->>'$[10][10]',
    substr($2, value->>'$[10][11]', value->>'$[10][12]')
from json_each($1);

-- Each row: 0 tenant, 1 id, 2 the version that was read, 3: as 10 above.
update jobs set
    state = n.state, run_at_us = n.run_at_us, attempt = n.attempt,
    attempts_charged = n.attempts_charged, attempts_lost = n.attempts_lost,
    lease_expires_at_us = n.lease_expires_at_us, first_sequence = n.first_sequence,
    last_sequence = n.last_sequence, updated_at_us = n.updated_at_us, ended_at_us = n.ended_at_us,
    version = n.version, detail = n.detail
from (
    select
        value->>0 as tenant, substr($4, value->>1, 16) as id, value->>2 as read_version,
        value->>'$[3][0]' as state, value->>'$[3][1]' as run_at_us, value->>'$[3][2]' as attempt,
        value->>'$[3][3]' as attempts_charged, value->>'$[3][4]' as attempts_lost,
        value->>'$[3][5]' as lease_expires_at_us, value->>'$[3][6]' as first_sequence,
        value->>'$[3][7]' as last_sequence, value->>'$[3][8]' as updated_at_us,
        value->>'$[3][9]' as ended_at_us, value->>'$[3][10]' as version,
        substr($4, value->>'$[3][11]', value->>'$[3][12]') as detail
    from json_each($3)) as n
where jobs.tenant = n.tenant and jobs.id = n.id and jobs.version = n.read_version;

-- Ends the whole group where a row was not as it was read: its check lets only 1 in.
update temp.guard set ok = (changes() = $5) where $5 > 0;

-- Each row: 0 job, 1 role, 2 kind, 3 media type, 4 body, 5 its length.
insert into payloads (job_id, role, kind, media_type, body)
select substr($7, value->>0, 16), value->>1, value->>2, value->>3, substr($7, value->>4, value->>5)
from json_each($6) where true
on conflict (job_id, role) do update set
    kind = excluded.kind, media_type = excluded.media_type, body = excluded.body;

-- Each row: 0 position, 1 job, 2 first sequence, 3 last, 4 tags, 5 their length, 6 body, 7 its length.
insert into segments (first_position, job_id, first_sequence, last_sequence, tags, body)
select value->>0, substr($9, value->>1, 16), value->>2, value->>3,
    substr($9, value->>4, value->>5), substr($9, value->>6, value->>7)
from json_each($8);

-- Each row: 0 tenant, 1 queue, 2 type, 3 state, 4 by how much.
insert into depths (tenant, queue, job_type, state, jobs)
select value->>0, value->>1, value->>2, value->>3, value->>4 from json_each($10) where true
on conflict (tenant, queue, job_type, state) do update set jobs = jobs + excluded.jobs;

update meta set value = $11 where name = 'next_position';

commit";

/// Each row of `$1`: 0 tenant, 1 id in `$2`.
pub(super) const JOBS_BY_ID: &str = concat!(
    "select ",
    job_columns!(),
    " from json_each($1) n cross join jobs j
      on j.tenant = n.value->>0 and j.id = substr($2, n.value->>1, 16)"
);

/// Each row of `$1`: 0 tenant, 1 key in `$2`, 2 its length.
pub(super) const JOBS_BY_KEY: &str = concat!(
    "select ",
    job_columns!(),
    " from json_each($1) n cross join jobs j on j.tenant = n.value->>0
      and j.idempotency_key = substr($2, n.value->>1, n.value->>2)"
);

/// The first `$2` jobs of each lane, each lane in the order of its claims, with what an attempt needs.
/// Each row of `$1`: 0 queue, 1 type, 2 tenant.
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
          order by priority desc, run_at_us, id limit $2)
      left join payloads i on i.job_id = j.id and i.role = 'input'
      left join payloads c on c.job_id = j.id and c.role = 'checkpoint'
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
        rows.iter()
            .map(|row| {
                Ok(Claimed {
                    job: Arc::new(rows::job(row)?),
                    payloads: Payloads {
                        input: rows::payload(row, JOB_COLUMNS)?,
                        result: None,
                        checkpoint: rows::payload(row, JOB_COLUMNS + 3)?,
                    },
                })
            })
            .collect()
    }

    async fn write(&mut self, plan: &Plan) -> Result<(), StoreError> {
        let inserts = RowSet::of_new_jobs(&plan.inserts);
        let updates = RowSet::of_changed_jobs(&plan.updates);
        let payloads = RowSet::of_payloads(&plan.payloads);
        let segments = RowSet::of_segments(&plan.committed.published, &plan.positions);
        let depths = RowSet::of_depths(&plan.committed.depth_changes);
        let written = sqlx::query(WRITE_GROUP)
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
            .bind(plan.next_position)
            .execute(&mut self.connection)
            .await;
        match written {
            Ok(_) => Ok(()),
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
