//! What is over and goes: because somebody asked, or because its time has come.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::error::{Error, Precondition};
use crate::job::name::JobKey;
use crate::job::time::Timestamp;
use crate::queue::JobQueue;
use crate::queue::alarm::Alarm;
use crate::queue::writer::Request;
use crate::store::{Purge, Purged, Timer, View};

/// What [`JobQueue::purge_due`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retired {
    /// Jobs that were removed.
    pub jobs: usize,
    /// Logs of other jobs whose front, or a part of it, was removed.
    pub logs: usize,
    /// There may be more to remove at once.
    pub more: bool,
    /// When the next job after them, or the front of the next log, may be removed.
    pub next: Option<Timestamp>,
}

/// What whoever removes what is over knows between its rounds.
#[derive(Debug, Default)]
pub(super) struct Retention {
    /// When it has to look again.
    pub(super) alarm: Alarm,
    /// The first job of a round in which none could be removed, and the first one of a round in which no
    /// front of a log could.
    stuck: Mutex<[Option<JobKey>; 2]>,
}

impl Retention {
    fn stuck(&self) -> MutexGuard<'_, [Option<JobKey>; 2]> {
        // Nothing in here can be left half done by a panic.
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobQueue {
    /// Removes a finished job with all that belongs to it, and tells whoever watches it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Precondition::NotFinished`], [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn delete(&self, key: &JobKey) -> Result<(), Error> {
        let state = self.get(key, View::Basic).await?.job.state;
        // What is over stays over: nothing can come in between.
        if !state.is_terminal() {
            return Err(Error::Precondition(Precondition::NotFinished { state }));
        }
        let purged = self.purge(vec![Purge::Job(key.clone())]).await?;
        if purged != [Purged::Job(key.clone())] {
            // Somebody else was first.
            return Err(Error::NotFound { id: key.id });
        }
        Ok(())
    }

    /// Removes finished jobs, or the front of their logs, and says so to whoever watches them. However many
    /// they are, other changes come in between.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Unavailable`]: some of it may have happened.
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, Error> {
        let jobs = purge.iter().any(|purge| matches!(purge, Purge::Job(_)));
        let (reply, answer) = oneshot::channel();
        self.send(Request::Purge { purge, reply }).await?;
        let purged = answer.await.map_err(|_| Error::outcome_unknown())??;
        if jobs {
            // A long log is not removed in one go: the rest of it is for whoever does that.
            self.shared.retention.alarm.ring();
        }
        Ok(purged)
    }

    /// Removes a few of the jobs whose time has come, the front of a few logs whose time has come, at most
    /// `each_max` of either, and what is left of the logs of some that are gone.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn purge_due(&self, each_max: usize) -> Result<Retired, Error> {
        let retention = &self.shared.retention;
        // Until the store was read, whatever ends has to be seen.
        retention.alarm.clear();
        let now = self.shared.clock.now();
        let store = &self.shared.store;
        let jobs_due = store.due(Timer::Purge, now, each_max).await?;
        let logs_due = store.due(Timer::PurgeEvents, now, each_max).await?;
        let next = jobs_due.next.into_iter().chain(logs_due.next).min();
        retention.alarm.set(next);
        let first = [&jobs_due, &logs_due].map(|due| due.keys.first().cloned());
        let mut purge: Vec<Purge> = jobs_due.keys.into_iter().map(Purge::Job).collect();
        let front = |key| Purge::Events(key, i64::MAX);
        purge.extend(logs_due.keys.into_iter().map(front));
        purge.push(Purge::Rest);
        let (reply, answer) = oneshot::channel();
        self.send(Request::Purge { purge, reply }).await?;
        let purged = answer.await.map_err(|_| Error::outcome_unknown())??;
        let count = |is: fn(&Purged) -> bool| purged.iter().filter(|one| is(one)).count();
        let jobs = count(|one| matches!(one, Purged::Job(_)));
        let logs = count(|one| matches!(one, Purged::Events(..)));
        // All of them may have been deleted in between; or they stay, and then nothing behind them is reached.
        let [first_job, first_log] = first;
        let stuck = [
            first_job.filter(|_| jobs == 0),
            first_log.filter(|_| logs == 0),
        ];
        let is_stuck = stuck.iter().any(Option::is_some);
        let stuck_before = std::mem::replace(&mut *retention.stuck(), stuck.clone());
        for (now, before) in stuck.iter().zip(&stuck_before) {
            if let Some(key) = now
                && now == before
            {
                let id = key.id;
                let problem =
                    format!("of what is due to go nothing could be removed, job {id} the first");
                return Err(Error::internal(&problem));
            }
        }
        Ok(Retired {
            jobs,
            logs,
            more: is_stuck
                // A long log goes in parts.
                || logs > 0
                || next.is_some_and(|next| next <= now)
                || purged.contains(&Purged::Rest),
            next,
        })
    }

    /// Waits until [`JobQueue::purge_due`] may have something to do sooner than it said.
    pub async fn purge_changed(&self) {
        self.shared.retention.alarm.rings().await;
    }
}
