//! Looking at queues, and what was set for them.

use crate::job::JobState;
use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::time::Timestamp;
use crate::store::sqlite::read::counted;
use crate::store::sqlite::readers::Readers;
use crate::store::sqlite::rows;
use crate::store::sqlite::write::Writer;
use crate::store::{QueueRange, ReadError, Setting, SettingKind, StoreError};

/// `$2` is the last queue of the page before, `$3` how many queues.
pub(super) const DEPTHS_OF: &str = "
select queue, job_type, tenant, state, jobs from depths
where tenant = $1 and queue in (
    select distinct queue from depths
    where tenant = $1 and queue > coalesce($2, '') order by queue limit $3 + 0)
order by queue";

pub(super) const DEPTHS_IN: &str = "
select queue, job_type, tenant, state, jobs from depths where tenant = $1 and queue = $2";

/// Goes from priority to priority, however many jobs have each: the head of each comes out of the index.
pub(super) const DUE_LONGEST: &str = "
with recursive level (priority) as (
    select max(priority) from jobs
    where queue = $1 and job_type = $2 and tenant = $3 and state = 'queued'
    union all
    select (
        select max(priority) from jobs
        where queue = $1 and job_type = $2 and tenant = $3 and state = 'queued'
            and priority < level.priority)
    from level where level.priority is not null)
select min((
    select min(run_at_us) from jobs
    where queue = $1 and job_type = $2 and tenant = $3 and state = 'queued'
        and priority = level.priority))
from level where level.priority is not null";

/// Named, because the order of the primary key would suit a limit, too.
pub(super) const READY: &str = "
select tenant, id from jobs indexed by jobs_ready
where queue = $1 and job_type = $2 and tenant = $3 and state = 'queued' and id < $5
limit $6 + 0";

/// `$4` is the state.
pub(super) const SET_ASIDE: &str = "
select tenant, id from jobs indexed by jobs_set_aside
where queue = $1 and job_type = $2 and tenant = $3 and state = $4
    and state in ('scheduled', 'blocked') and id < $5
limit $6 + 0";

const SETTINGS: &str = "select kind, name, value from settings";

pub(super) const UPDATE_SETTING: &str =
    "update settings set value = ?3 where kind = ?1 and name = ?2";

const INSERT_SETTING: &str = "insert into settings (kind, name, value) values (?1, ?2, ?3)";

pub(super) const DELETE_SETTING: &str = "delete from settings where kind = ?1 and name = ?2";

pub(super) async fn depths_of(
    readers: &Readers,
    tenant: &Name,
    queues: &QueueRange,
) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
    let select = match queues {
        QueueRange::Behind(after, limit) => sqlx::query(DEPTHS_OF)
            .bind(tenant.as_str())
            .bind(after.as_ref().map(Name::as_str))
            .bind(i64::try_from(*limit).unwrap_or(i64::MAX)),
        QueueRange::One(queue) => sqlx::query(DEPTHS_IN)
            .bind(tenant.as_str())
            .bind(queue.as_str()),
    };
    let rows = readers.all(select).await?;
    rows.iter().map(|row| Ok(counted(row)?)).collect()
}

pub(super) async fn due_longest(
    readers: &Readers,
    lane: &Lane,
) -> Result<Option<Timestamp>, ReadError> {
    let select = sqlx::query(DUE_LONGEST)
        .bind(lane.queue.as_str())
        .bind(lane.job_type.as_str())
        .bind(lane.tenant.as_str());
    let rows = readers.all(select).await?;
    let first = rows.first().map(|row| rows::time(row, 0)).transpose()?;
    Ok(first.flatten())
}

pub(super) async fn waiting(
    readers: &Readers,
    lane: &Lane,
    state: JobState,
    before: JobId,
    limit: usize,
) -> Result<Vec<JobKey>, ReadError> {
    let sql = match state {
        JobState::Queued => READY,
        JobState::Scheduled | JobState::Blocked => SET_ASIDE,
        JobState::Running
        | JobState::Cancelling
        | JobState::Succeeded
        | JobState::Failed
        | JobState::Cancelled
        | JobState::Expired => return Ok(Vec::new()),
    };
    let select = sqlx::query(sql)
        .bind(lane.queue.as_str())
        .bind(lane.job_type.as_str())
        .bind(lane.tenant.as_str())
        .bind(state.as_str())
        .bind(before.as_uuid().as_bytes().as_slice())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX));
    let rows = readers.all(select).await?;
    rows.iter()
        .map(|row| {
            Ok(JobKey {
                tenant: rows::name(rows::text(row, 0)?)?,
                id: rows::job_id(rows::blob(row, 1)?)?,
            })
        })
        .collect()
}

pub(super) async fn settings(readers: &Readers) -> Result<Vec<Setting>, ReadError> {
    let rows = readers.all(sqlx::query(SETTINGS)).await?;
    let damaged = |what: &str| StoreError::Internal(format!("a setting has {what}"));
    rows.iter()
        .map(|row| {
            let kind = rows::text(row, 0)?;
            let value = std::str::from_utf8(rows::blob(row, 2)?);
            Ok(Setting {
                kind: SettingKind::ALL
                    .into_iter()
                    .find(|known| known.as_str() == kind)
                    .ok_or_else(|| damaged("an unknown kind"))?,
                name: rows::name(rows::text(row, 1)?)?,
                value: Some(
                    value
                        .map_err(|_| damaged("a value that is no text"))?
                        .to_owned(),
                ),
            })
        })
        .collect()
}

impl Writer {
    /// Keeps a setting in place of the one before, or forgets it.
    pub(super) fn put_setting(&self, setting: &Setting) -> Result<(), StoreError> {
        let (kind, name) = (setting.kind.as_str(), setting.name.as_str());
        self.transaction(|| {
            let Some(value) = &setting.value else {
                return self.execute(DELETE_SETTING, (kind, name)).map(drop);
            };
            let values = (kind, name, value.as_bytes());
            // Not an upsert: SQLite opens a table of its own for each.
            if self.execute(UPDATE_SETTING, values)? == 0 {
                self.execute(INSERT_SETTING, values)?;
            }
            Ok(())
        })
    }
}
