//! Removing what is over, a short transaction at a time.

use std::cell::Cell;

use rusqlite::{OptionalExtension, Row};

use crate::job::JobState;
use crate::job::name::{JobKey, Lane, Name};
use crate::store::sqlite::errors::write_error;
use crate::store::sqlite::rows;
use crate::store::sqlite::write::{Writer, id};
use crate::store::{Purge, Purged, StoreError};

/// Rows that one transaction removes, about. Chosen: with those of the indexes a millisecond or two, which
/// is what everybody else's changes wait for it.
const ROWS_MAX: usize = 256;
/// Bytes that one transaction removes, about: what is removed is read first, page by page. Chosen: as
/// above; one large payload or segment goes alone.
const BYTES_MAX: usize = 1024 * 1024;

/// `?1` tenant, `?2` id. The lane and state that a job was counted in; nothing where it is not there, or not
/// finished.
pub(super) const COUNTED_IN: &str = "
select queue, job_type, state from jobs
where tenant = ?1 and id = ?2 and ended_at_us is not null";

pub(super) const DELETE_JOB: &str = "delete from jobs where tenant = ?1 and id = ?2";

pub(super) const DELETE_PAYLOADS: &str = "
delete from payloads where tenant = ?1 and job_id = ?2 returning length(body)";

/// Position of a job's last event.
pub(super) const LAST_POSITION: &str = "
select first_position + last_sequence - first_sequence from segments
where tenant = ?1 and job_id = ?2 order by first_sequence desc limit 1";

/// The segments of a job in order, each with its last sequence, its size and the position of its last event:
/// whoever steps through them stops when there are enough.
pub(super) const SEGMENT_SIZES: &str = "
select last_sequence, length(body), first_position + last_sequence - first_sequence from segments
where tenant = ?1 and job_id = ?2 order by first_sequence";

/// `?1` tenant, `?2` id, `?3` through which sequence.
pub(super) const DELETE_SEGMENTS: &str = "
delete from segments where tenant = ?1 and job_id = ?2 and first_sequence <= ?3";

/// How far into a tenant's log holes reach. Not an upsert: SQLite opens a table of its own for each.
pub(super) const MOVE_PURGED: &str = "
update purged set position = max(position, ?2), purges = purges + 1 where tenant = ?1";

pub(super) const INSERT_PURGED: &str =
    "insert into purged (tenant, position, purges) values (?1, ?2, 1)";

/// What the newest segments were may not be seen in the table any more: their positions are never given
/// again all the same.
const KEEP_POSITION: &str = "update meta set value = ?1 where name = 'next_position'";

/// The last event of a job that is over.
pub(super) const LAST_SEQUENCE: &str = "
select last_sequence from jobs
where tenant = ?1 and id = ?2 and ended_at_us is not null";

/// `?3`: nothing is left that could go before the last event.
pub(super) const SET_FIRST_SEQUENCE: &str = "
update jobs set version = version + 1,
    first_sequence = (
        select min(first_sequence) from segments where tenant = ?1 and job_id = ?2),
    events_purge_at_us = case when ?3 then null else events_purge_at_us end
where tenant = ?1 and id = ?2 returning first_sequence";

/// A job whose front is due and has nothing that could go.
pub(super) const SET_NO_EVENTS_DUE: &str = "
update jobs set version = version + 1, events_purge_at_us = null
where tenant = ?1 and id = ?2 and events_purge_at_us is not null";

const INSERT_REST: &str = "insert into log_rests (tenant, job_id) values (?1, ?2)";

const FIRST_REST: &str = "select tenant, job_id from log_rests limit 1";

const DELETE_REST: &str = "delete from log_rests where tenant = ?1 and job_id = ?2";

/// What of a log was removed.
#[derive(PartialEq, Eq)]
enum Cut {
    /// All that was to be.
    Whole,
    /// The front; there is more.
    Part,
    /// There was nothing to remove.
    Nothing,
}

/// How much more a transaction may remove.
struct Room {
    rows: Cell<usize>,
    bytes: Cell<usize>,
}

impl Room {
    fn new() -> Self {
        Self {
            rows: Cell::new(ROWS_MAX),
            bytes: Cell::new(BYTES_MAX),
        }
    }

    fn is_full(&self) -> bool {
        self.rows.get() == 0 || self.bytes.get() == 0
    }

    /// Takes room for a row; what is larger than all that is left fills it.
    fn take(&self, bytes: i64) {
        let bytes = usize::try_from(bytes).unwrap_or(0);
        self.rows.set(self.rows.get().saturating_sub(1));
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
    }
}

impl Writer {
    pub(super) fn purge(&self, purges: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        self.transaction(|| {
            let room = Room::new();
            let mut purged = Vec::with_capacity(purges.len());
            for purge in purges {
                purged.push(match purge {
                    _ if room.is_full() => Purged::Later,
                    Purge::Job(key) => self.purge_job(key, &room)?,
                    Purge::Events(key, through) => self.purge_events(key, through, &room)?,
                    Purge::Rest => self.purge_rests(&room)?,
                });
            }
            if purged.iter().any(|purged| *purged != Purged::Nothing) {
                self.execute(KEEP_POSITION, [self.next_position])?;
            }
            Ok(purged)
        })
    }

    /// The row goes first, and whole: nobody ever sees a job with half a log, whenever the power goes. What
    /// has no room of the log is noted in the same transaction.
    fn purge_job(&self, key: JobKey, room: &Room) -> Result<Purged, StoreError> {
        let which = (key.tenant.as_str(), id(&key));
        let counted = self
            .prepare(COUNTED_IN)?
            .query_row(which, |row| Ok(counted_in(row)))
            .optional()
            .map_err(write_error)?;
        let (queue, job_type, state) = match counted {
            Some(Ok(counted)) => counted,
            // Gone without being counted out, it would be counted for ever; and the others in the
            // transaction are none of its business.
            Some(Err(error)) => {
                tracing::error!(job = %key.id, %error, "a finished job cannot be removed");
                return Ok(Purged::Nothing);
            }
            None => return Ok(Purged::Nothing),
        };
        self.execute(DELETE_JOB, which)?;
        room.take(0);
        let mut delete = self.prepare(DELETE_PAYLOADS)?;
        let mut payloads = delete.query(which).map_err(write_error)?;
        while let Some(row) = payloads.next().map_err(write_error)? {
            room.take(rows::number(row, 0)?);
        }
        // All of it is gone for whoever reads, whatever is left of it for the next transaction.
        let last: Option<i64> = self
            .prepare(LAST_POSITION)?
            .query_row(which, |row| row.get(0))
            .optional()
            .map_err(write_error)?;
        if let Some(last) = last {
            self.move_purged(which.0, last)?;
        }
        if self.cut(which, i64::MAX, room)?.0 == Cut::Part {
            self.execute(INSERT_REST, which)?;
        }
        let lane = Lane {
            queue,
            job_type,
            tenant: key.tenant.clone(),
        };
        self.move_depth(&lane, state, -1)?;
        Ok(Purged::Job(key))
    }

    fn purge_events(&self, key: JobKey, through: i64, room: &Room) -> Result<Purged, StoreError> {
        let which = (key.tenant.as_str(), id(&key));
        let last = self
            .prepare(LAST_SEQUENCE)?
            .query_row(which, |row| row.get::<_, i64>(0))
            .optional()
            .map_err(write_error)?;
        // The last event always stays.
        let Some(last) = last else {
            return Ok(Purged::Nothing);
        };
        let (cut, position) = self.cut(which, through.min(last - 1), room)?;
        let done = through >= last - 1 && cut != Cut::Part;
        if let Some(position) = position {
            self.move_purged(which.0, position)?;
        }
        if cut == Cut::Nothing {
            if done {
                self.execute(SET_NO_EVENTS_DUE, which)?;
            }
            return Ok(Purged::Nothing);
        }
        let first = self
            .prepare(SET_FIRST_SEQUENCE)?
            .query_row((which.0, which.1, done), |row| row.get(0))
            .map_err(write_error)?;
        Ok(Purged::Events(key, first))
    }

    fn move_purged(&self, tenant: &str, position: i64) -> Result<(), StoreError> {
        let values = (tenant, position);
        if self.execute(MOVE_PURGED, values)? == 0 {
            self.execute(INSERT_PURGED, values)?;
        }
        Ok(())
    }

    /// What is left of jobs that are gone, one after the other.
    fn purge_rests(&self, room: &Room) -> Result<Purged, StoreError> {
        let mut purged = Purged::Nothing;
        while !room.is_full() {
            let rest = self
                .prepare(FIRST_REST)?
                .query_row([], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))
                })
                .optional()
                .map_err(write_error)?;
            let Some((tenant, job)) = rest else { break };
            let which = (tenant.as_str(), job.as_slice());
            if self.cut(which, i64::MAX, room)?.0 != Cut::Part {
                self.execute(DELETE_REST, which)?;
            }
            purged = Purged::Rest;
        }
        Ok(purged)
    }

    /// Removes whole segments from the front of a log, up to a sequence, as far as there is room. Answers
    /// the position of the last event that went, too.
    fn cut(
        &self,
        which: (&str, &[u8]),
        through: i64,
        room: &Room,
    ) -> Result<(Cut, Option<i64>), StoreError> {
        let mut cut = Cut::Whole;
        let mut last = None;
        {
            let mut select = self.prepare(SEGMENT_SIZES)?;
            let mut segments = select.query(which).map_err(write_error)?;
            while let Some(row) = segments.next().map_err(write_error)? {
                let last_of_segment = rows::number(row, 0)?;
                if last_of_segment > through {
                    break;
                }
                if room.is_full() {
                    cut = Cut::Part;
                    break;
                }
                room.take(rows::number(row, 1)?);
                last = Some((last_of_segment, rows::number(row, 2)?));
            }
        }
        match last {
            None if cut == Cut::Whole => Ok((Cut::Nothing, None)),
            None => Ok((cut, None)),
            Some((last, position)) => {
                self.execute(DELETE_SEGMENTS, (which.0, which.1, last))?;
                Ok((cut, Some(position)))
            }
        }
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
