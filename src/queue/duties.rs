//! What the server itself asks of a queue: a pool that takes part, jobs that become due or expire, leases
//! that ended, attempts that are silent.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::job::Change;
use crate::job::name::{JobKey, Name};
use crate::job::time::Timestamp;
use crate::queue::writer::{Answer, Begin, Pool, Request};
use crate::queue::{JobQueue, Places};
use crate::store::{AttemptTimer, Entry, StoreError, Timer};

/// Jobs that are changed in one go because their time has come. Chosen: a commit with them is short.
const SWEEP_MAX: usize = 256;
/// When jobs are asked again that have all refused. Chosen: soon enough for people.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

impl JobQueue {
    /// Makes the pool of this process known: its places are filled from here on, and each job that is
    /// claimed is given to `begin`, on the writer's own thread. Once only.
    ///
    /// # Panics
    /// Where a pool is known already.
    pub async fn attach_pool(&self, worker_id: String, places: Places, begin: Begin) {
        let pool = Pool {
            worker_id,
            places,
            begin,
        };
        {
            let mut place = self.shared.lock_pool();
            assert!(place.is_none(), "a queue has one pool");
            *place = Some(Arc::new(pool));
        }
        self.wake().await;
    }

    /// Forgets the pool: nothing more is claimed for it.
    pub fn detach_pool(&self) {
        self.shared.take_pool();
    }

    /// Looks again for work to hand out: a place has become free.
    pub async fn wake(&self) {
        // The writer is gone: there is nothing to hand out any more.
        let _ = self.requests.send(Request::Wake).await;
    }

    /// Waits until everything that the writer was asked for so far is done, claims handed out included.
    pub async fn settle(&self) {
        // The writer is gone: nothing is under way any more.
        let _ = self.change(Vec::new(), 0).await;
    }

    /// Makes scheduled jobs due whose time has come. Answers when the next one is.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn make_due(&self) -> Result<Option<Timestamp>, Error> {
        self.fire(Timer::Start, || Change::BecomeDue).await
    }

    /// Waits until [`JobQueue::make_due`] may have something to do sooner than it said.
    pub async fn due_changed(&self) {
        self.shared.due_changed.notified().await;
    }

    /// Ends waiting jobs whose queue timeout or total timeout has passed. Answers when the next one has.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn expire_waiting(&self) -> Result<Option<Timestamp>, Error> {
        self.shared.deadlines.clear();
        let next = self.fire(Timer::Deadline, || Change::Expire).await?;
        self.shared.deadlines.set(next);
        Ok(next)
    }

    /// Waits until [`JobQueue::expire_waiting`] may have something to do sooner than it said.
    pub async fn deadlines_changed(&self) {
        self.shared.deadlines.rings().await;
    }

    /// Changes all jobs whose time of some kind has come, in batches. Answers when the next one is.
    async fn fire(&self, timer: Timer, change: fn() -> Change) -> Result<Option<Timestamp>, Error> {
        loop {
            let now = self.shared.clock.now();
            let due = self.shared.store.due(timer, now, SWEEP_MAX).await?;
            if due.keys.is_empty() {
                return Ok(due.next);
            }
            let entry = |key| Entry::Change {
                key,
                change: change(),
            };
            let entries = due.keys.into_iter().map(entry).collect();
            let answers = self.change(entries, 0).await?;
            // A job that was cancelled in between refuses: fine. Where all refuse, the clock was set
            // back, and asking again at once would change nothing.
            if !answers.iter().any(Answer::is_done) {
                return Ok(Some(now.after(REFUSED_PAUSE)));
            }
        }
    }

    /// Says of attempts that have told nothing for their job's stall time, by the steady clock, that they
    /// are stalled; each once, until it tells something. Nothing else happens to them. Answers how many.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn report_stalled(&self, steady_now: Timestamp) -> Result<usize, Error> {
        let store = &self.shared.store;
        let silent = store
            .attempts_due(AttemptTimer::Stall, steady_now, SWEEP_MAX)
            .await?;
        if silent.is_empty() {
            return Ok(0);
        }
        let (keys, entries): (Vec<_>, Vec<_>) = silent
            .into_iter()
            .map(|(key, attempt)| {
                let change = Change::Stall {
                    attempt,
                    steady_now,
                };
                (key.id, Entry::Change { key, change })
            })
            .unzip();
        // An attempt that has ended, or told something, in between refuses: fine.
        let answers = self.change(entries, 0).await?;
        let stalled = keys.iter().zip(&answers);
        let stalled = stalled.filter(|(_, answer)| answer.is_done());
        let stalled = stalled.inspect(|(job, _)| {
            tracing::warn!(%job, "stalled: its attempt has told nothing for its stall time");
        });
        Ok(stalled.count())
    }

    /// Lets jobs of a queue go on that wait for others with their concurrency key, because more of them
    /// may run now: of each key and type the first `room`. Call it once the new limit holds. One too many
    /// does no harm: it waits again. Answers how many.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    ///
    /// # Cancel safety
    /// Once it has begun, some of it may happen although nobody hears of it.
    pub async fn unblock(&self, queue: &Name, room: usize) -> Result<usize, Error> {
        let store = &self.shared.store;
        let (mut last, mut unblocked) = (None, 0);
        let mut entries = Vec::new();
        loop {
            let next = store.next_blocked(queue, last.as_ref(), room).await?;
            let is_last = next.is_none();
            if let Some((line, keys)) = next {
                entries.extend(keys.into_iter().map(|key| Entry::Change {
                    key,
                    change: Change::Unblock,
                }));
                last = Some(line);
            }
            // Many short lines go in one commit, and a long one in several.
            while entries.len() >= SWEEP_MAX || (is_last && !entries.is_empty()) {
                let rest = entries.split_off(SWEEP_MAX.min(entries.len()));
                // One that went on, or was cancelled, in between refuses: fine.
                let answers = self.change(entries, 0).await?;
                unblocked += answers.iter().filter(|answer| answer.is_done()).count();
                entries = rest;
            }
            if is_last {
                return Ok(unblocked);
            }
        }
    }

    /// Ends all attempts whose lease ended before `before`, by the steady clock, whoever holds it. Answers
    /// how many.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn sweep_leases(&self, before: Timestamp) -> Result<usize, Error> {
        self.sweep(before, |_, _| true).await
    }

    /// The same, but for attempts that live in this process: they are not lost, whatever kept their
    /// heartbeats from being stored, and must not run beside a next one; and but for leases that
    /// [began anew](JobQueue::begin_leases_anew) and have not ended since. As long as the store has no room
    /// for renewals none is ended, and once it has, each begins anew, after what a start on a full disk had to leave.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn sweep_lost_leases(&self, before: Timestamp) -> Result<usize, Error> {
        let attempts = &self.shared.attempts;
        if attempts.has_refused() {
            self.take_over_rest().await?;
            self.try_renewal().await?;
            tracing::info!("the store takes renewals again: each lease begins anew");
            self.begin_leases_anew();
        }
        self.sweep(before, |key, attempt| {
            attempts.is_lost(key, attempt, before)
        })
        .await
    }

    /// Renews one lease, no matter which, to see whether the store has room for it.
    async fn try_renewal(&self) -> Result<(), Error> {
        let Some((lease, term)) = self.shared.attempts.any_remote() else {
            return Ok(());
        };
        let change = self.report_change(&lease, 0, Vec::new(), term);
        let key = lease.key;
        match self.change_one(Entry::Change { key, change }, 0).await {
            Err(error) if error.retry_after().is_some() => Err(error),
            // What else is wrong with this one is not for want of room.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Nobody could be heard until now: each lease holds for its full term from here.
    pub fn begin_leases_anew(&self) {
        let now = self.shared.clock.steady();
        self.shared.attempts.begin_anew(now);
    }

    /// In batches, so that others have their turn between them. What cannot be ended does not stand before what can,
    /// and no job is ended twice.
    async fn sweep(
        &self,
        before: Timestamp,
        is_lost: impl Fn(&JobKey, u32) -> bool,
    ) -> Result<usize, Error> {
        let store = &self.shared.store;
        let mut seen: HashSet<JobKey> = HashSet::new();
        let mut swept = 0;
        loop {
            // Those of before that are still there come first again.
            let limit = seen.len() - swept + SWEEP_MAX;
            let ended = store.attempts_due(AttemptTimer::Lease, before, limit);
            let mut ended = ended.await?;
            let is_last = ended.len() < limit;
            ended.retain(|(key, _)| seen.insert(key.clone()));
            if ended.is_empty() {
                return Ok(swept);
            }
            let entries: Vec<Entry> = ended
                .into_iter()
                .filter(|(key, attempt)| is_lost(key, *attempt))
                .map(|(key, attempt)| Entry::Change {
                    key,
                    change: Change::Lose { attempt, before },
                })
                .collect();
            if !entries.is_empty() {
                // An attempt that ended in between refuses, and one that renewed its lease: fine. One that cannot
                // be read stays: whoever goes on until there are none must not wait for it.
                let answers = self.change(entries, 0).await?;
                swept += answers.iter().filter(|answer| answer.is_done()).count();
            }
            if is_last {
                return Ok(swept);
            }
        }
    }

    /// Housekeeping for a quiet moment.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn tidy(&self) -> Result<u64, Error> {
        let tidied = self.shared.store.tidy().await;
        if let Err(error @ StoreError::Failed(_)) = &tidied {
            self.shared.fail(error);
        }
        Ok(tidied?)
    }
}
