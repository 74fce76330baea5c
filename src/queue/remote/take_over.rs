//! What the process before this one left: its own attempts are ended, for they died with it, and those of other
//! programs get a fresh full term, for nobody could hear them meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Limit};
use crate::job::time::Timestamp;
use crate::job::{Change, Job};
use crate::queue::{JobQueue, Lease};
use crate::store::{AttemptTimer, Entry, ReadError, StoreError, View};

/// Leases that are changed in one go.
const GROUP: usize = 256;

/// Changes of a start that found no room: they are made once there is some.
#[derive(Debug, Default)]
pub(in crate::queue) struct LeftOver(Mutex<Vec<Entry>>);

impl LeftOver {
    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Nothing in here can be left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobQueue {
    /// At the start: looks at all attempts that are alive in the store. What finds no room on a full disk is left
    /// for [`JobQueue::take_over_rest`]: until then no lease is ended.
    pub(in crate::queue) async fn take_over_leases(&self) -> Result<(), Error> {
        let before = Timestamp::from_micros(i64::MAX);
        let store = &self.shared.store;
        let all = store.attempts_due(AttemptTimer::Lease, before, usize::MAX);
        let all = all.await?;
        let mut all_stored = Ok(());
        for group in all.chunks(GROUP) {
            let mut entries = Vec::with_capacity(group.len());
            for (key, attempt) in group {
                let lease = Lease {
                    key: key.clone(),
                    attempt: *attempt,
                };
                entries.push(self.take_over(lease, before).await?);
            }
            match self.change(entries.clone(), 0).await {
                Ok(_) => {}
                Err(Error::Exhausted {
                    limit: Limit::DiskFull,
                    ..
                }) => self.shared.left_over.lock().extend(entries),
                Err(error) => all_stored = all_stored.and(Err(error)),
            }
        }
        let left = self.shared.left_over.lock().len();
        if left > 0 {
            self.shared.attempts.refuse();
            tracing::warn!(
                left,
                "the disk is full: attempts of before are not taken over yet"
            );
        }
        all_stored
    }

    /// What becomes of an attempt of before. A worker's own goes on here, whether or not that can be stored.
    async fn take_over(&self, lease: Lease, before: Timestamp) -> Result<Entry, Error> {
        let job = match self.shared.store.job(&lease.key, View::Basic).await {
            Ok(found) => found.map(|found| found.job),
            // Its row is damaged: whoever asks for it is told so, and nobody else.
            Err(ReadError::Store(StoreError::Internal(cause))) => {
                tracing::error!(job = %lease.key.id, cause, "an attempt cannot be read");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let term = job.as_ref().and_then(|job| job.detail.remote_lease);
        let change = match (job, term) {
            (Some(job), Some(remote_lease)) => {
                self.go_on_with(job);
                self.report_change(&lease, 0, Vec::new(), remote_lease.term)
            }
            _ => Change::Lose {
                attempt: lease.attempt,
                before,
            },
        };
        let key = lease.key;
        Ok(Entry::Change { key, change })
    }

    fn go_on_with(&self, job: Arc<Job>) {
        let now = self.shared.clock.steady();
        let attempts = &self.shared.attempts;
        let stop = attempts.begin(&job, now);
        attempts.committed(&job, now);
        self.watch_over(job, stop);
    }

    /// Makes the changes of the start that found no room.
    ///
    /// # Errors
    /// Where there is still none; they are left for the next time.
    pub(in crate::queue) async fn take_over_rest(&self) -> Result<(), Error> {
        let left_over = &self.shared.left_over;
        loop {
            let entries = {
                let mut left = left_over.lock();
                let others = left.len().saturating_sub(GROUP);
                left.split_off(others)
            };
            if entries.is_empty() {
                return Ok(());
            }
            match self.change(entries.clone(), 0).await {
                Err(error) if error.retry_after().is_some() => {
                    left_over.lock().extend(entries);
                    return Err(error);
                }
                // What failed by our own fault is in the log, and swept when its lease ends.
                Ok(_) | Err(_) => {}
            }
        }
    }
}
