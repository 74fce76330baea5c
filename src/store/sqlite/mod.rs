//! The embedded store: one SQLite file, one writer, a few readers.
//!
//! What it answers is on disk: write-ahead log, `synchronous=FULL`. One process has it open at a time;
//! a lock file beside it sees to that.

mod errors;
mod open;
#[cfg(test)]
mod plan_tests;
mod purge;
mod read;
mod rows;
mod write;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection, Row, SqlitePool};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::job::name::{JobKey, Lane};
use crate::job::time::Timestamp;
use crate::job::{Job, JobSnapshot, JobState};
use crate::store::sqlite::errors::store_error;
use crate::store::sqlite::write::Writer;
use crate::store::{
    Committed, Due, Group, JobStore, ListQuery, LogPart, LogRange, OpenError, Purge, Purged,
    StoreError, View,
};

/// The write-ahead log is cut back when it is larger than this and nothing else is to do. Bytes.
/// Chosen: a log that is used again is written in place, which is faster than growing a new one.
const WAL_BYTES_KEPT: u64 = 64 * 1024 * 1024;
/// Nothing was written for so long: a quiet moment. Chosen: whoever writes steadily writes more often.
const QUIET: Duration = Duration::from_secs(1);

/// A store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    writer: Mutex<Option<Writer>>,
    readers: SqlitePool,
    secret: [u8; 32],
    store_id: Uuid,
    /// Held for as long as the store is open: dropping it lets the next server in.
    lock: std::sync::Mutex<Option<File>>,
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
            writer: Mutex::new(Some(Writer::new(opened.writer, opened.next_position))),
            readers: opened.readers,
            secret: opened.secret,
            store_id: opened.store_id,
            lock: std::sync::Mutex::new(Some(opened.lock)),
        })
    }

    /// Which store this is: random, made at its first start.
    pub fn id(&self) -> Uuid {
        self.store_id
    }

    fn wal_bytes(&self) -> u64 {
        std::fs::metadata(format!("{}-wal", self.path.display())).map_or(0, |wal| wal.len())
    }
}

fn closed() -> StoreError {
    StoreError::Failed("the store is closed".to_owned())
}

#[async_trait]
impl JobStore for SqliteStore {
    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        let mut writer = self.writer.lock().await;
        writer.as_mut().ok_or_else(closed)?.commit(group).await
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, StoreError> {
        read::job(&self.readers, key, view).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Job>>, StoreError> {
        read::list(&self.readers, query).await
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, StoreError> {
        read::log(&self.readers, key, range).await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Due, StoreError> {
        read::due(&self.readers, now, limit).await
    }

    async fn leases_ended(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<(JobKey, u32)>, StoreError> {
        read::leases_ended(&self.readers, before, limit).await
    }

    async fn depths(&self) -> Result<Vec<(Lane, JobState, i64)>, StoreError> {
        read::depths(&self.readers).await
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        let mut writer = self.writer.lock().await;
        writer.as_mut().ok_or_else(closed)?.purge(purge).await
    }

    fn secret(&self) -> [u8; 32] {
        self.secret
    }

    async fn tidy(&self) -> Result<u64, StoreError> {
        // A writer that is at work is not asked: the log is used again as it is.
        if self.wal_bytes() > WAL_BYTES_KEPT
            && let Ok(mut writer) = self.writer.try_lock()
            && let Some(writer) = writer.as_mut()
            && writer.quiet_for() >= QUIET
        {
            sqlx::query("pragma wal_checkpoint(truncate)")
                .fetch_one(&mut writer.connection)
                .await
                .and_then(|row| row.try_get::<i64, _>(0))
                .map_err(store_error)?;
        }
        Ok(self.wal_bytes())
    }

    async fn close(&self) {
        let writer = self.writer.lock().await.take();
        // The readers first: only the last connection moves the write-ahead log into the database, and
        // theirs cannot. So a store that was closed is one whole file.
        self.readers.close().await;
        if let Some(writer) = writer {
            // What was answered is on disk; a failure to say good-bye changes nothing.
            let _ = writer.connection.close().await;
        }
        // Whoever still holds a queue must not keep the next server out.
        let lock = self.lock.lock();
        drop(lock.unwrap_or_else(PoisonError::into_inner).take());
    }
}
