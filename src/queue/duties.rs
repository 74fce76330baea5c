//! What the server itself asks of a queue: a pool that takes part, jobs that become due, leases that ended.

use std::sync::Arc;

use crate::error::Error;
use crate::job::Change;
use crate::job::name::JobKey;
use crate::job::time::Timestamp;
use crate::queue::writer::{Begin, Pool, Request};
use crate::queue::{JobQueue, Places};
use crate::store::{AttemptTimer, Entry, StoreError, Timer};

/// Jobs that are made due, or whose leases are swept, in one go.
const SWEEP_MAX: usize = 256;

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
        loop {
            let now = self.shared.clock.now();
            let due = self.shared.store.due(Timer::Start, now, SWEEP_MAX).await?;
            if due.keys.is_empty() {
                return Ok(due.next);
            }
            let become_due = |key| Entry::Change {
                key,
                change: Change::BecomeDue,
            };
            // A job that was cancelled in between refuses: fine.
            let entries = due.keys.into_iter().map(become_due).collect();
            self.change(entries, 0).await?;
        }
    }

    /// Waits until [`JobQueue::make_due`] may have something to do sooner than it said.
    pub async fn due_changed(&self) {
        self.shared.due_changed.notified().await;
    }

    /// Ends attempts whose lease ended before `before`, by the steady clock, whoever holds it. Answers
    /// how many.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn sweep_leases(&self, before: Timestamp) -> Result<usize, Error> {
        self.sweep(before, |_, _| true).await
    }

    /// The same, but for attempts that live in this process: they are not lost, whatever kept their
    /// heartbeats from being stored, and must not run beside a next one.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn sweep_lost_leases(&self, before: Timestamp) -> Result<usize, Error> {
        let attempts = &self.shared.attempts;
        self.sweep(before, |key, attempt| !attempts.is_alive(key, attempt))
            .await
    }

    async fn sweep(
        &self,
        before: Timestamp,
        is_lost: impl Fn(&JobKey, u32) -> bool,
    ) -> Result<usize, Error> {
        let ended = self
            .shared
            .store
            .attempts_due(AttemptTimer::Lease, before, SWEEP_MAX)
            .await?;
        let entries: Vec<Entry> = ended
            .into_iter()
            .filter(|(key, attempt)| is_lost(key, *attempt))
            .map(|(key, attempt)| Entry::Change {
                key,
                change: Change::Lose { attempt },
            })
            .collect();
        let swept = entries.len();
        if swept > 0 {
            // An attempt that ended in between refuses: fine.
            self.change(entries, 0).await?;
        }
        Ok(swept)
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
