//! What is over and goes: because somebody asked, or because its time has come.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::error::{Error, Precondition};
use crate::job::name::JobKey;
use crate::job::time::Timestamp;
use crate::queue::JobQueue;
use crate::queue::alarm::Alarm;
use crate::queue::purges::REMOVALS_MAX;
use crate::queue::writer::Request;
use crate::store::{Purge, Purged, Timer, View};

/// Jobs that are looked past because they cannot be removed, and as many fronts of logs. Chosen: a few
/// damaged rows; where there are more, that is an error of every round.
const PASSED_OVER_MAX: usize = 1024;

/// Jobs of one round of [`JobQueue::purge_due`], and fronts of logs. Chosen: a full one, with what is left of
/// logs, is one transaction.
pub const ROUND_EACH_MAX: usize = (REMOVALS_MAX - 1) / 2;

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
    /// Jobs that were to be removed and were not, and those of which the front of the log was: the rounds
    /// after it look past them, until the server is started anew. Whether each was said to be there still:
    /// it may also have been deleted in between.
    passed_over: Mutex<[BTreeMap<JobKey, bool>; 2]>,
}

impl Retention {
    fn passed_over(&self) -> MutexGuard<'_, [BTreeMap<JobKey, bool>; 2]> {
        // Nothing in here can be left half done by a panic.
        let passed_over = self.passed_over.lock();
        passed_over.unwrap_or_else(PoisonError::into_inner)
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
        let [mut jobs_passed, mut logs_passed] = retention.passed_over().clone();
        let each = |passed: &BTreeMap<_, _>| each_max + passed.len();
        let jobs_due = store.due(Timer::Purge, now, each(&jobs_passed)).await?;
        let logs_due = store.due(Timer::PurgeEvents, now, each(&logs_passed));
        let logs_due = logs_due.await?;
        let next = jobs_due.next.into_iter().chain(logs_due.next).min();
        retention.alarm.set(next);
        let jobs_due = look_past(jobs_due.keys, &mut jobs_passed);
        let logs_due = look_past(logs_due.keys, &mut logs_passed);
        let mut purge: Vec<Purge> = jobs_due.iter().cloned().map(Purge::Job).collect();
        let front = |key| Purge::Events(key, i64::MAX);
        purge.extend(logs_due.iter().cloned().map(front));
        purge.push(Purge::Rest);
        let (reply, answer) = oneshot::channel();
        self.send(Request::Purge { purge, reply }).await?;
        let purged = answer.await.map_err(|_| Error::outcome_unknown())??;
        let count = |is: fn(&Purged) -> bool| purged.iter().filter(|one| is(one)).count();
        let jobs = count(|one| matches!(one, Purged::Job(_)));
        let logs = count(|one| matches!(one, Purged::Events(..)));
        let mut outcomes = purged.iter();
        for (asked, passed) in [(jobs_due, &mut jobs_passed), (logs_due, &mut logs_passed)] {
            for (key, purged) in asked.into_iter().zip(&mut outcomes) {
                if *purged == Purged::Nothing {
                    passed.insert(key, false);
                }
            }
        }
        let too_many = jobs_passed.len().max(logs_passed.len()) > PASSED_OVER_MAX;
        if !too_many {
            *retention.passed_over() = [jobs_passed, logs_passed];
        } else if jobs == 0 && logs == 0 {
            let problem = format!("more than {PASSED_OVER_MAX} that are due cannot be removed");
            return Err(Error::internal(&problem));
        }
        Ok(Retired {
            jobs,
            logs,
            // A long log goes in parts.
            more: logs > 0
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

/// What is due, but for what was passed over before. Says of each that is there still that it is, once, and
/// forgets those that are not.
fn look_past(due: Vec<JobKey>, passed: &mut BTreeMap<JobKey, bool>) -> Vec<JobKey> {
    let (there, new): (Vec<_>, Vec<_>) = due.into_iter().partition(|key| passed.contains_key(key));
    let known = std::mem::take(passed);
    for key in there {
        if known.get(&key) == Some(&false) {
            tracing::error!(job = %key.id, "it is due to go, and cannot be removed");
        }
        passed.insert(key, true);
    }
    new
}
