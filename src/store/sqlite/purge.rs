//! Removing what is over.

use rusqlite::{OptionalExtension, Row};

use crate::job::JobState;
use crate::job::name::{JobKey, Lane, Name};
use crate::store::sqlite::errors::write_error;
use crate::store::sqlite::rows;
use crate::store::sqlite::write::{Writer, id};
use crate::store::{Purge, Purged, StoreError};

/// `?1` tenant, `?2` id. Answers the lane and state that it was counted in; nothing where the job is
/// not there, or not finished.
pub(super) const DELETE_JOB: &str = "
delete from jobs
where tenant = ?1 and id = ?2 and state in ('succeeded', 'failed', 'cancelled', 'expired')
returning queue, job_type, state";

const DELETE_PAYLOADS: &str = "delete from payloads where tenant = ?1 and job_id = ?2";

/// Position of a job's last event.
pub(super) const LAST_POSITION: &str = "
select first_position + last_sequence - first_sequence from segments
where tenant = ?1 and job_id = ?2 order by first_sequence desc limit 1";

const DELETE_LOG: &str = "delete from segments where tenant = ?1 and job_id = ?2";

/// How far into a tenant's log holes reach. Not an upsert: SQLite opens a table of its own for each.
pub(super) const MOVE_PURGED: &str = "
update purged set position = max(position, ?2) where tenant = ?1";

pub(super) const INSERT_PURGED: &str = "insert into purged (tenant, position) values (?1, ?2)";

/// What the newest segments were may not be seen in the table any more: their positions are never given
/// again all the same.
const KEEP_POSITION: &str = "update meta set value = ?1 where name = 'next_position'";

/// `?1` tenant, `?2` id, `?3` through which sequence. The last segment always stays. Answers the position
/// of the last event of each segment that went.
pub(super) const DELETE_SEGMENTS: &str = "
delete from segments where tenant = ?1 and job_id = ?2 and last_sequence <= ?3 and exists (
    select 1 from jobs j
    where j.tenant = ?1 and j.id = ?2 and j.state in ('succeeded', 'failed', 'cancelled', 'expired')
        and segments.last_sequence < j.last_sequence)
returning first_position + last_sequence - first_sequence";

const SET_FIRST_SEQUENCE: &str = "
update jobs set version = version + 1,
    first_sequence = (
        select min(first_sequence) from segments where tenant = ?1 and job_id = ?2)
where tenant = ?1 and id = ?2 returning first_sequence";

impl Writer {
    pub(super) fn purge(&self, purges: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        self.transaction(|| {
            let mut purged = Vec::with_capacity(purges.len());
            for purge in purges {
                purged.push(match purge {
                    Purge::Job(key) => self.purge_job(key)?,
                    Purge::Events(key, through) => self.purge_events(key, through)?,
                });
            }
            if purged.iter().any(|purged| *purged != Purged::Nothing) {
                self.execute(KEEP_POSITION, [self.next_position])?;
            }
            Ok(purged)
        })
    }

    fn purge_job(&self, key: JobKey) -> Result<Purged, StoreError> {
        let which = (key.tenant.as_str(), id(&key));
        let deleted = self
            .prepare(DELETE_JOB)?
            .query_row(which, |row| Ok(counted_in(row)))
            .optional()
            .map_err(write_error)?
            .transpose()?;
        let Some((queue, job_type, state)) = deleted else {
            return Ok(Purged::Nothing);
        };
        self.execute(DELETE_PAYLOADS, which)?;
        let last: Option<i64> = self
            .prepare(LAST_POSITION)?
            .query_row(which, |row| row.get(0))
            .optional()
            .map_err(write_error)?;
        self.execute(DELETE_LOG, which)?;
        if let Some(last) = last {
            self.move_purged(&key, last)?;
        }
        let lane = Lane {
            queue,
            job_type,
            tenant: key.tenant.clone(),
        };
        self.move_depth(&lane, state, -1)?;
        Ok(Purged::Job(key))
    }

    fn purge_events(&self, key: JobKey, through: i64) -> Result<Purged, StoreError> {
        let (tenant, job) = (key.tenant.as_str(), id(&key));
        let Some(last) = self.delete_segments(&key, through)? else {
            return Ok(Purged::Nothing);
        };
        self.move_purged(&key, last)?;
        let first = self
            .prepare(SET_FIRST_SEQUENCE)?
            .query_row((tenant, job), |row| row.get(0))
            .map_err(write_error)?;
        Ok(Purged::Events(key, first))
    }

    /// Answers the position of the last event that went, if any did.
    fn delete_segments(&self, key: &JobKey, through: i64) -> Result<Option<i64>, StoreError> {
        let mut delete = self.prepare(DELETE_SEGMENTS)?;
        let which = (key.tenant.as_str(), id(key), through);
        let mut gone = delete.query(which).map_err(write_error)?;
        let mut last = None;
        while let Some(row) = gone.next().map_err(write_error)? {
            last = last.max(Some(rows::number(row, 0)?));
        }
        Ok(last)
    }

    fn move_purged(&self, key: &JobKey, position: i64) -> Result<(), StoreError> {
        let values = (key.tenant.as_str(), position);
        if self.execute(MOVE_PURGED, values)? == 0 {
            self.execute(INSERT_PURGED, values)?;
        }
        Ok(())
    }
}

/// Queue, type and state from a row.
fn counted_in(row: &Row) -> Result<(Name, Name, JobState), StoreError> {
    Ok((
        rows::name(rows::text(row, 0)?)?,
        rows::name(rows::text(row, 1)?)?,
        rows::state(row, 2)?,
    ))
}
