//! The embedded store: one SQLite file, one writer, a few readers.
//!
//! What it answers is on disk: write-ahead log, `synchronous=FULL`. One process has it open at a time;
//! a lock file beside it sees to that.

mod errors;
mod know;
mod list;
mod open;
#[cfg(test)]
mod plan_tests;
mod purge;
mod queues;
mod read;
mod readers;
mod rows;
#[cfg(test)]
mod wal_tests;
mod write;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::time::Timestamp;
use crate::job::{Job, JobSnapshot, JobState};
use crate::store::sqlite::errors::write_error;
use crate::store::sqlite::open::BUSY_TIMEOUT;
use crate::store::sqlite::readers::Readers;
use crate::store::sqlite::write::Writer;
use crate::store::{
    AttemptTimer, BlockedLine, Committed, Due, Group, JobStore, ListQuery, Listed, LogPart,
    LogRange, OpenError, Purge, Purged, QueueRange, ReadError, Scan, ScanQuery, Setting,
    StoreError, TenantLog, TenantRange, Timer, View,
};

/// The write-ahead log is cut back when it is larger than this and nothing else is to do. Bytes.
/// Chosen: a log that is used again is written in place, which is faster than growing a new one.
const WAL_BYTES_KEPT: u64 = 64 * 1024 * 1024;
/// The write-ahead log is cut back when it is larger than this, whatever else is to do. Bytes. Chosen: reads
/// that never leave a pause got it here, and each of them looks through all of it.
const WAL_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Nothing was written for so long: a quiet moment. Chosen: whoever writes steadily writes more often.
const QUIET: Duration = Duration::from_secs(1);

/// A store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    /// Changes block the thread that makes them: the queue has one for them. See [`JobStore`].
    writer: Arc<Mutex<Option<Writer>>>,
    readers: Readers,
    secret: [u8; 32],
    store_id: Uuid,
    /// Whether the log was told to be large, and still is.
    told_large: AtomicBool,
    /// Held for as long as the store is open: dropping it lets the next server in.
    lock: Mutex<Option<File>>,
}

impl SqliteStore {
    /// Opens a store, or makes one, readable by its owner alone.
    ///
    /// # Errors
    /// [`OpenError`]: the path cannot be used, another server has it open, or it is damaged, of another
    /// program or of a newer version, and was left as it is.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let opened = open::open(path).await?;
        Ok(Self {
            path: opened.path,
            writer: Arc::new(Mutex::new(Some(
                Writer::open(opened.writer, opened.next_position)
                    .map_err(|error| OpenError::Unusable(error.to_string()))?,
            ))),
            readers: opened.readers,
            secret: opened.secret,
            store_id: opened.store_id,
            told_large: AtomicBool::new(false),
            lock: Mutex::new(Some(opened.lock)),
        })
    }

    /// Which store this is: random, made at its first start.
    pub fn id(&self) -> Uuid {
        self.store_id
    }

    fn wal_bytes(&self) -> u64 {
        std::fs::metadata(format!("{}-wal", self.path.display())).map_or(0, |wal| wal.len())
    }

    /// Cuts the write-ahead log back: in a quiet moment where it is larger than `kept`, at once where it is
    /// larger than `max`. Answers its size afterwards.
    async fn keep_log_small(&self, kept: u64, max: u64) -> Result<u64, StoreError> {
        let bytes = self.wal_bytes();
        if bytes > max {
            // Reads that overlap, each begun before the one before it ends, leave the writer no moment in
            // which nobody needs the log. This is one: it waits for those at work, and others wait for it.
            let pause = self.readers.pause().await?;
            self.on_writer(truncate_now).await?;
            drop(pause);
        } else if bytes > kept {
            self.on_writer(truncate_if_quiet).await?;
        }
        let bytes = self.wal_bytes();
        let large = bytes > kept;
        let told = self.told_large.swap(large, Ordering::Relaxed);
        if large && !told {
            tracing::warn!(wal_bytes = bytes, "the write-ahead log is large");
        }
        Ok(bytes)
    }

    /// Does what may move up to the whole log, so not on a thread that others wait for.
    async fn on_writer(
        &self,
        what: fn(&Mutex<Option<Writer>>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let writer = Arc::clone(&self.writer);
        let done = tokio::task::spawn_blocking(move || what(&writer));
        done.await
            .map_err(|error| StoreError::Internal(error.to_string()))?
    }
}

const TRUNCATE: &str = "pragma wal_checkpoint(truncate)";

/// Cuts the write-ahead log back, unless the writer is at work: then the log is used again as it is.
fn truncate_if_quiet(writer: &Mutex<Option<Writer>>) -> Result<(), StoreError> {
    let Ok(mut writer) = writer.try_lock() else {
        return Ok(());
    };
    match writer.as_mut() {
        Some(writer) if writer.quiet_for() >= QUIET => {
            let done = writer.connection.query_row(TRUNCATE, [], |_| Ok(()));
            done.map_err(write_error)
        }
        Some(_) | None => Ok(()),
    }
}

/// Cuts the write-ahead log back between two commits. Where another program reads in it, that is not waited
/// for: the next round tries again.
fn truncate_now(writer: &Mutex<Option<Writer>>) -> Result<(), StoreError> {
    let writer = locked(writer);
    let connection = &writer.as_ref().ok_or_else(closed)?.connection;
    let waits_for = |time| connection.busy_timeout(time).map_err(write_error);
    waits_for(Duration::ZERO)?;
    let done = connection.query_row(TRUNCATE, [], |_| Ok(()));
    waits_for(BUSY_TIMEOUT)?;
    done.map_err(write_error)
}

/// What a panic left behind is whole: a group that was not committed is not remembered either.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> StoreError {
    StoreError::Failed("the store is closed".to_owned())
}

#[async_trait]
impl JobStore for SqliteStore {
    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        locked(&self.writer)
            .as_mut()
            .ok_or_else(closed)?
            .commit(group)
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError> {
        read::job(&self.readers, key, view).await
    }

    async fn ahead_of(&self, job: &Job) -> Result<Option<u64>, ReadError> {
        read::ahead_of(&self.readers, job).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Listed, ReadError> {
        list::list(&self.readers, query).await
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        read::log(&self.readers, key, range).await
    }

    async fn log_after(&self, range: &TenantRange) -> Result<TenantLog, ReadError> {
        read::log_after(&self.readers, range).await
    }

    async fn head(&self) -> Result<i64, ReadError> {
        read::head(&self.readers).await
    }

    async fn scan(&self, query: &ScanQuery) -> Result<Scan, ReadError> {
        read::scan(&self.readers, query).await
    }

    async fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Result<Due, ReadError> {
        read::due(&self.readers, timer, now, limit).await
    }

    async fn attempts_due(
        &self,
        timer: AttemptTimer,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<(JobKey, u32)>, ReadError> {
        read::attempts_due(&self.readers, timer, before, limit).await
    }

    async fn depths(&self) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        read::depths(&self.readers).await
    }

    async fn next_blocked(
        &self,
        queue: &Name,
        after: Option<&BlockedLine>,
        limit: usize,
    ) -> Result<Option<(BlockedLine, Vec<JobKey>)>, ReadError> {
        read::next_blocked(&self.readers, queue, after, limit).await
    }

    async fn depths_of(
        &self,
        tenant: &Name,
        queues: &QueueRange,
    ) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        queues::depths_of(&self.readers, tenant, queues).await
    }

    async fn due_longest(&self, lane: &Lane) -> Result<Option<Timestamp>, ReadError> {
        queues::due_longest(&self.readers, lane).await
    }

    async fn waiting(
        &self,
        lane: &Lane,
        state: JobState,
        before: JobId,
        limit: usize,
    ) -> Result<Vec<JobKey>, ReadError> {
        queues::waiting(&self.readers, lane, state, before, limit).await
    }

    async fn settings(&self) -> Result<Vec<Setting>, ReadError> {
        queues::settings(&self.readers).await
    }

    async fn put_setting(&self, setting: Setting) -> Result<(), StoreError> {
        locked(&self.writer)
            .as_mut()
            .ok_or_else(closed)?
            .put_setting(&setting)
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        locked(&self.writer)
            .as_mut()
            .ok_or_else(closed)?
            .purge(purge)
    }

    fn secret(&self) -> [u8; 32] {
        self.secret
    }

    async fn tidy(&self) -> Result<u64, StoreError> {
        self.keep_log_small(WAL_BYTES_KEPT, WAL_BYTES_MAX).await
    }

    async fn close(&self) {
        // Where it is being tidied, that is waited for elsewhere than on this thread.
        let writer = Arc::clone(&self.writer);
        let taken = tokio::task::spawn_blocking(move || locked(&writer).take());
        let writer = taken.await.ok().flatten();
        // The readers first: only the last connection moves the write-ahead log into the database, and
        // theirs cannot. So a store that was closed is one whole file.
        self.readers.close().await;
        // What was answered is on disk; a failure to say good-bye changes nothing.
        let _ = tokio::task::spawn_blocking(move || drop(writer)).await;
        // Whoever still holds a queue must not keep the next server out. Said aloud, because a program that
        // is being started has a copy of the descriptor until it runs, and the lock would live on in it.
        if let Some(lock) = locked(&self.lock).take() {
            let _ = lock.unlock();
        }
    }
}
