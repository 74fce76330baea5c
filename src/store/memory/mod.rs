//! A store in the memory of this process: for tests, and for programs that embed us and may forget.
//!
//! It keeps every promise of [`JobStore`] but one: what it answers is gone with the process. The rules
//! that plan a group are those of every other store, and everything that is looked for has an index here
//! too, so that its figures grow as theirs do. It writes no file and knows no other process.

mod known;
mod questions;
mod queues;
mod tables;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::time::Timestamp;
use crate::job::{Job, JobSnapshot, JobState};
use crate::store::memory::tables::Tables;
use crate::store::{
    AttemptTimer, BlockedLine, Committed, Due, Group, JobStore, ListQuery, LogPart, LogRange,
    OpenError, Purge, Purged, QueueRange, ReadError, Scan, ScanQuery, Setting, StoreError,
    TenantLog, TenantRange, Timer, View,
};

/// What a [`MemoryStore`] is opened on, as an SQLite store is on a file: it outlives the store, and another
/// one that is opened on it finds everything that was committed. Cheap to clone; empty at first.
#[derive(Clone, Default)]
pub struct Memory {
    tables: Arc<Mutex<Tables>>,
    /// A store is open on it.
    in_use: Arc<AtomicBool>,
}

impl Memory {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        // A group is planned and checked before anything is changed, so that a panic leaves it whole.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

/// A store in the memory of this process.
///
/// ```
/// use pacenote::store::JobStore;
/// use pacenote::store::memory::{Memory, MemoryStore};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = Memory::new();
/// let store = MemoryStore::open(&memory)?;
/// assert!(MemoryStore::open(&memory).is_err(), "one at a time");
/// store.close().await;
/// MemoryStore::open(&memory)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    memory: Memory,
    closed: AtomicBool,
}

impl MemoryStore {
    /// Opens a store on what was committed there before. Dropping it, or closing it, lets the next one in.
    ///
    /// # Errors
    /// [`OpenError::Locked`]: another store is open there.
    pub fn open(memory: &Memory) -> Result<Self, OpenError> {
        if memory.in_use.swap(true, Ordering::AcqRel) {
            return Err(OpenError::Locked {
                path: "this memory".to_owned(),
                pid: Some(std::process::id()),
            });
        }
        Ok(Self {
            memory: memory.clone(),
            closed: AtomicBool::new(false),
        })
    }

    /// What is stored, unless this store is closed: then it may be another one's.
    fn tables(&self) -> Result<MutexGuard<'_, Tables>, StoreError> {
        let tables = self.memory.lock();
        // Looked at behind the lock, which a close takes.
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Failed("the store is closed".to_owned()));
        }
        Ok(tables)
    }

    fn let_go(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.memory.in_use.store(false, Ordering::Release);
        }
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[async_trait]
impl JobStore for MemoryStore {
    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        self.tables()?.commit(group)
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError> {
        Ok(self.tables()?.job(key, view))
    }

    async fn ahead_of(&self, job: &Job) -> Result<Option<u64>, ReadError> {
        Ok(self.tables()?.ahead_of(job))
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Job>>, ReadError> {
        Ok(self.tables()?.list(query))
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        Ok(self.tables()?.log(key, range))
    }

    async fn log_after(&self, range: &TenantRange) -> Result<TenantLog, ReadError> {
        Ok(self.tables()?.log_after(range))
    }

    async fn head(&self) -> Result<i64, ReadError> {
        Ok(self.tables()?.head())
    }

    async fn scan(&self, query: &ScanQuery) -> Result<Scan, ReadError> {
        Ok(self.tables()?.scan(query))
    }

    async fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Result<Due, ReadError> {
        Ok(self.tables()?.due(timer, now, limit))
    }

    async fn attempts_due(
        &self,
        timer: AttemptTimer,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<(JobKey, u32)>, ReadError> {
        Ok(self.tables()?.attempts_due(timer, before, limit))
    }

    async fn depths(&self) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        Ok(self.tables()?.depths())
    }

    async fn next_blocked(
        &self,
        queue: &Name,
        after: Option<&BlockedLine>,
        limit: usize,
    ) -> Result<Option<(BlockedLine, Vec<JobKey>)>, ReadError> {
        Ok(self.tables()?.next_blocked(queue, after, limit))
    }

    async fn depths_of(
        &self,
        tenant: &Name,
        queues: &QueueRange,
    ) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        Ok(self.tables()?.depths_of(tenant, queues))
    }

    async fn due_longest(&self, lane: &Lane) -> Result<Option<Timestamp>, ReadError> {
        Ok(self.tables()?.due_longest(lane))
    }

    async fn waiting(
        &self,
        lane: &Lane,
        state: JobState,
        before: JobId,
        limit: usize,
    ) -> Result<Vec<JobKey>, ReadError> {
        Ok(self.tables()?.waiting(lane, state, before, limit))
    }

    async fn settings(&self) -> Result<Vec<Setting>, ReadError> {
        Ok(self.tables()?.settings())
    }

    async fn put_setting(&self, setting: Setting) -> Result<(), StoreError> {
        self.tables()?.put_setting(setting);
        Ok(())
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        Ok(self.tables()?.purge(purge))
    }

    fn secret(&self) -> [u8; 32] {
        self.memory.lock().secret()
    }

    /// There is no write-ahead log: always 0.
    async fn tidy(&self) -> Result<u64, StoreError> {
        self.tables().map(|_| 0)
    }

    async fn close(&self) {
        // Waits for the group that is being committed: the next store finds all of it.
        let _tables = self.memory.lock();
        self.let_go();
    }
}
