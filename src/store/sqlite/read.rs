//! Reads, on connections of their own that cannot write: short, whole, and never held across a send.

use std::sync::Arc;

use crate::job::name::{JobKey, Lane};
use crate::job::time::Timestamp;
use crate::job::{JobSnapshot, JobState, Payloads};
use crate::store::sqlite::readers::Readers;
use crate::store::sqlite::rows::{self, JOB_COLUMNS, job_columns};
use crate::store::{AttemptTimer, Due, LogPart, LogRange, ReadError, StoreError, Timer, View};

pub(super) const JOB: &str = concat!(
    "select ",
    job_columns!(),
    " from jobs j where j.tenant = $1 and j.id = $2"
);

/// In the order that [`rows::snapshot`] reads it.
pub(super) const JOB_WITH_PAYLOADS: &str = concat!(
    "select ",
    job_columns!(),
    ", i.kind, i.media_type, i.body, r.kind, r.media_type, r.body, c.kind, c.media_type, c.body
      from jobs j
      left join payloads i
          on i.tenant = j.tenant and i.job_id = j.id and i.role = 'input'
      left join payloads r
          on r.tenant = j.tenant and r.job_id = j.id and r.role = 'result'
      left join payloads c
          on c.tenant = j.tenant and c.job_id = j.id and c.role = 'checkpoint'
      where j.tenant = $1 and j.id = $2"
);

/// One job by its key, `$2`, or none.
pub(super) const JOB_OF_KEY: &str = concat!(
    "select ",
    job_columns!(),
    " from jobs j where j.tenant = $1 and j.idempotency_key = $2"
);

/// The newest job of a unique place, or none.
pub(super) const JOB_OF_PLACE: &str = concat!(
    "select ",
    job_columns!(),
    // Named, because the primary key has the order too, and every job of the tenant.
    " from jobs j indexed by jobs_unique
      where j.tenant = $1 and j.job_type = $2 and j.unique_key = $3
      order by j.id desc limit 1"
);

/// The first `$4` jobs that wait for others with a concurrency key, in the order of claims.
pub(super) const BLOCKED_HEADS: &str = concat!(
    "select ",
    job_columns!(),
    " from jobs j
      where j.tenant = $1 and j.queue = $2 and j.concurrency_key = $3 and j.state = 'blocked'
      order by j.priority desc, j.run_at_us, j.id limit $4 + 0"
);

/// How many jobs run with each concurrency key.
pub(super) const KEYS_RUNNING: &str = "
select tenant, queue, concurrency_key, count(*) from jobs
where state in ('running', 'cancelling') and concurrency_key is not null
group by tenant, queue, concurrency_key";

/// A job beside its segments from the one that holds sequence `$3` + 1 on, until `$4` events or `$5`
/// bytes are together. One statement, so that job and log are of one moment.
///
/// A log is dense, so that sequences bound what is looked at to about `$4` events however long the log
/// is; and bodies are read only of what is answered.
pub(super) const LOG: &str = concat!(
    "select ",
    job_columns!(),
    ", s.first_sequence, s.tags, s.body
      from jobs j left join (
          select first_position from (
              select first_position, sum(length(body)) over earlier as bytes_before
              from segments
              where tenant = $1 and job_id = $2 and first_sequence >= coalesce((
                  select max(first_sequence) from segments
                  where tenant = $1 and job_id = $2 and first_sequence <= $3 + 1), 0)
                  and first_sequence < $4 + max($3 + 1, (
                      select first_sequence from jobs where tenant = $1 and id = $2))
              window earlier as (
                  order by first_sequence rows between unbounded preceding and 1 preceding))
          where coalesce(bytes_before, 0) < $5
      ) w left join segments s on s.first_position = w.first_position
      where j.tenant = $1 and j.id = $2
      order by s.first_sequence"
);

// Of each of these, one more than asked for is read, to know when the next one is due.

pub(super) const DUE_TO_START: &str = "
select tenant, id, run_at_us from jobs where state = 'scheduled' order by run_at_us limit $1 + 0";

pub(super) const DUE_TO_EXPIRE: &str = "
select tenant, id, deadline_at_us from jobs where deadline_at_us is not null
order by deadline_at_us limit $1 + 0";

pub(super) const DUE_TO_PURGE: &str = "
select tenant, id, purge_at_us from jobs where purge_at_us is not null
order by purge_at_us limit $1 + 0";

pub(super) const LEASES_ENDED: &str = "
select tenant, id, attempt from jobs
where state in ('running', 'cancelling') and lease_expires_at_us < $1
order by lease_expires_at_us limit $2 + 0";

/// Looks at every job that runs.
pub(super) const SILENT: &str = "
select tenant, id, attempt from jobs
where state in ('running', 'cancelling') and stall_at_us <= $1 limit $2 + 0";

const DEPTHS: &str = "select queue, job_type, tenant, state, jobs from depths";

pub(super) async fn job(
    readers: &Readers,
    key: &JobKey,
    view: View,
) -> Result<Option<JobSnapshot>, ReadError> {
    let sql = match view {
        View::Basic => JOB,
        View::Full => JOB_WITH_PAYLOADS,
    };
    let select = sqlx::query(sql)
        .bind(key.tenant.as_str())
        .bind(key.id.as_uuid().as_bytes().as_slice());
    let rows = readers.all(select).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let snapshot = match view {
        View::Basic => JobSnapshot {
            job: Arc::new(rows::job(row)?),
            payloads: Payloads::default(),
        },
        View::Full => rows::snapshot(row)?,
    };
    Ok(Some(snapshot))
}

pub(super) async fn log(
    readers: &Readers,
    key: &JobKey,
    range: LogRange,
) -> Result<Option<LogPart>, ReadError> {
    let select = sqlx::query(LOG)
        .bind(key.tenant.as_str())
        .bind(key.id.as_uuid().as_bytes().as_slice())
        .bind(range.after)
        .bind(i64::try_from(range.events.max(1)).unwrap_or(i64::MAX))
        .bind(i64::try_from(range.bytes.max(1)).unwrap_or(i64::MAX));
    let rows = readers.all(select).await?;
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let job = Arc::new(rows::job(first)?);
    let segments = rows
        .iter()
        .filter_map(|row| rows::segment(row, JOB_COLUMNS).transpose())
        .filter(|segment| !matches!(segment, Ok(segment) if segment.last_sequence() <= range.after))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Some(LogPart { job, segments }))
}

pub(super) async fn due(
    readers: &Readers,
    timer: Timer,
    now: Timestamp,
    limit: usize,
) -> Result<Due, ReadError> {
    let sql = match timer {
        Timer::Start => DUE_TO_START,
        Timer::Deadline => DUE_TO_EXPIRE,
        Timer::Purge => DUE_TO_PURGE,
    };
    let select = sqlx::query(sql).bind(i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX));
    let rows = readers.all(select).await?;
    let mut due = Due {
        keys: Vec::new(),
        next: None,
    };
    for row in &rows {
        let at = Timestamp::from_micros(rows::number(row, 2)?);
        if at > now || due.keys.len() == limit {
            due.next = Some(at);
            break;
        }
        due.keys.push(key_of(row)?);
    }
    Ok(due)
}

pub(super) async fn attempts_due(
    readers: &Readers,
    timer: AttemptTimer,
    before: Timestamp,
    limit: usize,
) -> Result<Vec<(JobKey, u32)>, ReadError> {
    let sql = match timer {
        AttemptTimer::Lease => LEASES_ENDED,
        AttemptTimer::Stall => SILENT,
    };
    let select = sqlx::query(sql)
        .bind(before.as_micros())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX));
    let rows = readers.all(select).await?;
    rows.iter()
        .map(|row| Ok((key_of(row)?, rows::count(row, 2)?)))
        .collect()
}

pub(super) async fn depths(readers: &Readers) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
    let rows = readers.all(sqlx::query(DEPTHS)).await?;
    rows.iter()
        .map(|row| {
            let lane = Lane {
                queue: rows::name(rows::text(row, 0)?)?,
                job_type: rows::name(rows::text(row, 1)?)?,
                tenant: rows::name(rows::text(row, 2)?)?,
            };
            Ok((lane, rows::state(row, 3)?, rows::number(row, 4)?))
        })
        .collect()
}

fn key_of(row: &sqlx::sqlite::SqliteRow) -> Result<JobKey, StoreError> {
    Ok(JobKey {
        tenant: rows::name(rows::text(row, 0)?)?,
        id: rows::job_id(rows::blob(row, 1)?)?,
    })
}
