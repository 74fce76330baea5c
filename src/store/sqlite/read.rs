//! Reads, on connections of their own that cannot write: short, whole, and never held across a send.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::time::Timestamp;
use crate::job::{Job, JobSnapshot, JobState, Payloads};
use crate::store::sqlite::readers::Readers;
use crate::store::sqlite::rows::{self, Columns, JOB_COLUMNS, job_columns};
use crate::store::{
    AHEAD_MAX, AttemptTimer, BlockedLine, Due, LogPart, LogRange, PlacedSegment, ReadError, Scan,
    ScanQuery, Scanned, StoreError, TenantLog, TenantRange, Timer, View,
};

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

/// The jobs of a unique place that are not over, the newest first.
pub(super) const JOBS_IN_PLACE: &str = concat!(
    "select ",
    job_columns!(),
    " from jobs j indexed by jobs_in_place
      where j.tenant = $1 and j.job_type = $2 and j.unique_key = $3 and j.ended_at_us is null
      order by j.id desc"
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

/// The jobs of a type that wait for others with a concurrency key, in the order of claims: whoever steps
/// through them stops when there are enough.
pub(super) const BLOCKED_HEADS: &str = concat!(
    "select ",
    job_columns!(),
    " from jobs j
      where j.queue = $1 and j.tenant = $2 and j.concurrency_key = $3 and j.job_type = $4
          and j.state = 'blocked'
      order by j.priority desc, j.run_at_us, j.id"
);

/// The next type behind `$4` of which jobs wait for others with a concurrency key.
pub(super) const NEXT_BLOCKED_TYPE: &str = "
select job_type from jobs
where queue = $1 and tenant = $2 and concurrency_key = $3 and job_type > $4 and state = 'blocked'
order by job_type limit 1";

/// The next line of a queue's jobs that wait for others with a concurrency key.
pub(super) const NEXT_BLOCKED_LINE: &str = "
select tenant, concurrency_key, job_type from jobs
where queue = $1 and (tenant, concurrency_key, job_type) > ($2, $3, $4) and state = 'blocked'
order by tenant, concurrency_key, job_type limit 1";

/// The first `$5` of such a line, in the order of claims.
pub(super) const BLOCKED_LINE: &str = "
select tenant, id from jobs
where queue = $1 and tenant = $2 and concurrency_key = $3 and job_type = $4 and state = 'blocked'
order by priority desc, run_at_us, id limit $5 + 0";

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

/// The part of the log of all jobs from the segment on that holds position `$2` + 1: at most `$3` segments,
/// of which tenant `$1`'s have together about `$4` events and `$5` bytes. One statement, so that segments,
/// jobs and what was purged are of one moment, and one row at least, which says how far it goes.
///
/// Bodies are read only of what is answered, and of others' segments only their places.
pub(super) const LOG_AFTER: &str = concat!(
    "with looked_at as materialized (
         select first_position, last_sequence - first_sequence + 1 as events, tenant,
             length(body) as bytes
         from segments
         where first_position >= coalesce((
             select first_position from segments
             where first_position <= $2 + 1 order by first_position desc limit 1), 0)
             and first_position + last_sequence - first_sequence > $2
         order by first_position limit $3 + 0),
     summed as materialized (
         select first_position, first_position + events - 1 as last_position, tenant,
             sum(iif(tenant = $1, events, 0)) over earlier as events_before,
             sum(iif(tenant = $1, bytes, 0)) over earlier as bytes_before
         from looked_at
         window earlier as (
             order by first_position rows between unbounded preceding and 1 preceding)),
     part as materialized (
         select first_position, last_position, tenant from summed
         where coalesce(events_before, 0) < $4 and coalesce(bytes_before, 0) < $5)
     select ",
    job_columns!(),
    ", s.first_sequence, s.tags, s.body, s.first_position,
         (select max(last_position) from part),
         (select count(*) from part) = $3 or (select count(*) from part) < (
             select count(*) from looked_at),
         (select value from meta where name = 'next_position') - 1,
         (select position from purged where tenant = $1),
         (select purges from purged where tenant = $1)
     from (select 1)
         left join part p on p.tenant = $1
         left join segments s on s.first_position = p.first_position
         left join jobs j on j.tenant = s.tenant and j.id = s.job_id
     order by s.first_position"
);

/// The newest event may have been purged: then what was noted at that purge counts.
pub(super) const HEAD: &str = "
select max(
    coalesce((
        select first_position + last_sequence - first_sequence from segments
        where first_position = (select max(first_position) from segments)), 0),
    (select value from meta where name = 'next_position') - 1)";

/// A scan: which jobs it looks at, and its condition on the jobs themselves. In the order of the ids it goes
/// by alone, it ends at its limit; the few rows of the part are put in order by whoever reads them.
macro_rules! scan {
    ($jobs:literal, $looked_at:literal, $condition:literal) => {
        concat!(
            "with bounds as materialized (
                 select max(id) as last from (
                     select id from jobs where ",
            $looked_at,
            " and id > $2 order by id limit $3 + 0)),
             part as materialized (
                 select j.id from ",
            $jobs,
            " where ",
            $condition,
            " and j.id > $2 and j.id <= (select last from bounds)
                 and ($4 = 0 or j.state not in ('succeeded', 'failed', 'cancelled', 'expired'))
                 and ($5 = '[]' or j.job_type in (select value from json_each($5)))
                 and ($6 = '[]' or j.queue in (select value from json_each($6)))
                 order by j.id limit $7 + 0)
             select ",
            job_columns!(),
            ", (select first_position from segments s where s.tenant = j.tenant and s.job_id = j.id
                  order by s.first_sequence desc limit 1),
                 bounds.last
             from bounds left join part left join jobs j on j.tenant = $1 and j.id = part.id"
        )
    };
}

/// Of the `$3` jobs behind id `$2`, or behind the first, those that the filter's columns let through, at
/// most `$7`. One row at least, which says how far it goes.
pub(super) const SCAN: &str = scan!("jobs j", "tenant = $1", "j.tenant = $1");

/// The same in batch `$8`. By its index: ids bound it on both sides, but there may be any number of other
/// jobs between them.
pub(super) const SCAN_BATCH: &str = scan!(
    "jobs j indexed by jobs_batch",
    "tenant = $1 and batch_id = $8",
    "j.tenant = $1 and j.batch_id = $8"
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

pub(super) const DUE_TO_PURGE_EVENTS: &str = "
select tenant, id, events_purge_at_us from jobs where events_purge_at_us is not null
order by events_purge_at_us limit $1 + 0";

pub(super) const LEASES_ENDED: &str = "
select tenant, id, attempt from jobs
where state in ('running', 'cancelling') and lease_expires_at_us < $1
order by lease_expires_at_us limit $2 + 0";

/// Looks at every job that runs.
pub(super) const SILENT: &str = "
select tenant, id, attempt from jobs
where state in ('running', 'cancelling') and stall_at_us <= $1 limit $2 + 0";

/// How many stand before the job with priority `$4`, due time `$5` and id `$6` in the order of its lane's
/// claims: those of higher priority, and those of the same that came before it; to `$7` of each at most.
pub(super) const AHEAD: &str = "
select (select count(*) from (
        select 1 from jobs
        where queue = $1 and job_type = $2 and tenant = $3 and state = 'queued' and priority > $4
        limit $7 + 0))
    + (select count(*) from (
        select 1 from jobs
        where queue = $1 and job_type = $2 and tenant = $3 and state = 'queued' and priority = $4
            and (run_at_us, id) < ($5, $6)
        limit $7 + 0))";

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

pub(super) async fn ahead_of(readers: &Readers, job: &Job) -> Result<Option<u64>, ReadError> {
    let lane = job.lane();
    let select = sqlx::query(AHEAD)
        .bind(lane.queue.as_str().to_owned())
        .bind(lane.job_type.as_str().to_owned())
        .bind(lane.tenant.as_str().to_owned())
        .bind(job.spec.priority)
        .bind(job.run_at.as_micros())
        .bind(job.key.id.as_uuid().as_bytes().as_slice())
        .bind(AHEAD_MAX as i64 + 1);
    let rows = readers.all(select).await?;
    let ahead = rows.first().map_or(Ok(0), |row| rows::number(row, 0))?;
    let ahead = u64::try_from(ahead).unwrap_or(0);
    Ok((ahead <= AHEAD_MAX).then_some(ahead))
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

pub(super) async fn log_after(
    readers: &Readers,
    range: &TenantRange,
) -> Result<TenantLog, ReadError> {
    let bound = |bound: usize| i64::try_from(bound.max(1)).unwrap_or(i64::MAX);
    let select = sqlx::query(LOG_AFTER)
        .bind(range.tenant.as_str())
        .bind(range.after.min(i64::MAX - 1))
        .bind(bound(range.segments))
        .bind(bound(range.events))
        .bind(bound(range.bytes));
    let rows = readers.all(select).await?;
    let mut log = TenantLog {
        segments: Vec::with_capacity(rows.len()),
        through: range.after,
        more: false,
        purged_through: 0,
        purges: 0,
    };
    let mut jobs: HashMap<JobId, Arc<Job>> = HashMap::new();
    for row in &rows {
        const PLACE: usize = JOB_COLUMNS + 3;
        let looked_at = row.number(PLACE + 1)?.unwrap_or(0);
        log.more = rows::number(row, PLACE + 2)? != 0;
        let noted = if log.more {
            0
        } else {
            rows::number(row, PLACE + 3)?
        };
        log.through = log.through.max(looked_at).max(noted);
        log.purged_through = row.number(PLACE + 4)?.unwrap_or(0);
        log.purges = row.number(PLACE + 5)?.unwrap_or(0);
        let Some(segment) = rows::segment(row, JOB_COLUMNS)? else {
            continue;
        };
        let position = rows::number(row, PLACE)?;
        let Some(id) = row.blob(1)? else {
            // Its job is gone, and so is it, but for the disk.
            continue;
        };
        // A job with many segments is read once.
        let job = match jobs.entry(rows::job_id(id)?) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => Arc::clone(new.insert(Arc::new(rows::job(row)?))),
        };
        log.segments.push(PlacedSegment {
            position,
            job,
            segment,
        });
    }
    Ok(log)
}

pub(super) async fn head(readers: &Readers) -> Result<i64, ReadError> {
    let rows = readers.all(sqlx::query(HEAD)).await?;
    let row = rows.first().ok_or(StoreError::Internal(
        "the store does not know its newest event".to_owned(),
    ))?;
    Ok(rows::number(row, 0)?)
}

pub(super) async fn scan(readers: &Readers, query: &ScanQuery) -> Result<Scan, ReadError> {
    let bound = |bound: usize| i64::try_from(bound.max(1)).unwrap_or(i64::MAX);
    let filter = &query.filter;
    let after = query.after.map(|id| id.as_uuid().as_bytes().to_vec());
    let select = sqlx::query(if filter.batch_id.is_some() {
        SCAN_BATCH
    } else {
        SCAN
    })
    .bind(filter.tenant.as_str())
    .bind(after.unwrap_or_default())
    .bind(bound(query.look_at))
    .bind(query.unfinished)
    .bind(serde_json::to_string(&filter.types).expect("texts are JSON"))
    .bind(serde_json::to_string(&filter.queues).expect("texts are JSON"))
    .bind(bound(query.limit));
    let select = match filter.batch_id {
        Some(batch) => select.bind(batch.as_uuid().as_bytes().to_vec()),
        None => select,
    };
    let rows = readers.all(select).await?;
    let mut scan = Scan {
        jobs: Vec::with_capacity(rows.len()),
        through: None,
    };
    let mut last_read = None;
    for row in &rows {
        let last = row.blob(JOB_COLUMNS + 1)?;
        scan.through = last.map(rows::job_id).transpose()?;
        let Some(position) = row.number(JOB_COLUMNS)? else {
            continue;
        };
        let job = Arc::new(rows::job(row)?);
        last_read = last_read.max(Some(job.key.id));
        if filter.admits(&job) {
            scan.jobs.push(Scanned { job, position });
        }
    }
    if last_read.is_some() && rows.len() == query.limit.max(1) {
        // There may be more of them before the last one looked at.
        scan.through = last_read;
    }
    scan.jobs.sort_unstable_by_key(|found| found.job.key.id);
    Ok(scan)
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
        Timer::PurgeEvents => DUE_TO_PURGE_EVENTS,
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
    rows.iter().map(|row| Ok(counted(row)?)).collect()
}

/// A counter: queue, type, tenant, state and jobs.
pub(super) fn counted(row: &sqlx::sqlite::SqliteRow) -> Result<(Lane, JobState, i64), StoreError> {
    let lane = Lane {
        queue: rows::name(rows::text(row, 0)?)?,
        job_type: rows::name(rows::text(row, 1)?)?,
        tenant: rows::name(rows::text(row, 2)?)?,
    };
    Ok((lane, rows::state(row, 3)?, rows::number(row, 4)?))
}

pub(super) async fn next_blocked(
    readers: &Readers,
    queue: &Name,
    after: Option<&BlockedLine>,
    limit: usize,
) -> Result<Option<(BlockedLine, Vec<JobKey>)>, ReadError> {
    let (tenant, key, job_type) = after.map_or(("", "", ""), |line| {
        let (tenant, key) = (line.tenant.as_str(), line.key.as_str());
        (tenant, key, line.job_type.as_str())
    });
    let select = sqlx::query(NEXT_BLOCKED_LINE).bind(queue.as_str());
    let select = select.bind(tenant).bind(key).bind(job_type);
    let rows = readers.all(select).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let line = BlockedLine {
        tenant: rows::name(rows::text(row, 0)?)?,
        key: rows::name(rows::text(row, 1)?)?,
        job_type: rows::name(rows::text(row, 2)?)?,
    };
    let select = sqlx::query(BLOCKED_LINE)
        .bind(queue.as_str())
        .bind(line.tenant.as_str())
        .bind(line.key.as_str())
        .bind(line.job_type.as_str())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX));
    let rows = readers.all(select).await?;
    let keys = rows.iter().map(key_of).collect::<Result<_, _>>()?;
    Ok(Some((line, keys)))
}

fn key_of(row: &sqlx::sqlite::SqliteRow) -> Result<JobKey, StoreError> {
    Ok(JobKey {
        tenant: rows::name(rows::text(row, 0)?)?,
        id: rows::job_id(rows::blob(row, 1)?)?,
    })
}
