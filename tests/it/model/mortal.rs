//! A store whose process can die in the middle of a commit, and which tells when it is gone.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use pacenote::job::name::{JobKey, Lane, Name};
use pacenote::job::time::Timestamp;
use pacenote::job::{Job, JobSnapshot, JobState};
use pacenote::store::{
    AttemptTimer, BlockedLine, Committed, Due, Group, JobStore, ListQuery, LogPart, LogRange,
    Purge, Purged, ReadError, Scan, ScanQuery, StoreError, TenantLog, TenantRange, Timer, View,
};
use tokio::sync::oneshot;

use super::steps::Dies;

/// A store that dies when it is told to.
pub(super) struct Mortal {
    store: Arc<dyn JobStore>,
    dies: Mutex<Option<Dies>>,
    /// Dropped last, when the store is: then the next one may be opened.
    _gone: oneshot::Sender<()>,
}

impl Mortal {
    /// With what waits until the store is gone.
    pub(super) fn new(store: Arc<dyn JobStore>) -> (Self, oneshot::Receiver<()>) {
        let (gone, is_gone) = oneshot::channel();
        let mortal = Self {
            store,
            dies: Mutex::default(),
            _gone: gone,
        };
        (mortal, is_gone)
    }

    /// Lets the process die in the next commit or purge.
    pub(super) fn die_in_next(&self, dies: Dies) {
        *self.dies.lock().expect("no panic") = Some(dies);
    }

    async fn survive<T>(
        &self,
        what: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let dies = *self.dies.lock().expect("no panic");
        let died = || StoreError::Failed("the process has died".to_owned());
        match dies {
            None => what.await,
            Some(Dies::BeforeTheCommit) => Err(died()),
            Some(Dies::AfterTheCommit) => {
                what.await?;
                Err(died())
            }
        }
    }
}

#[async_trait]
impl JobStore for Mortal {
    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        self.survive(self.store.commit(group)).await
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError> {
        self.store.job(key, view).await
    }

    async fn ahead_of(&self, job: &Job) -> Result<Option<u64>, ReadError> {
        self.store.ahead_of(job).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Job>>, ReadError> {
        self.store.list(query).await
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        self.store.log(key, range).await
    }

    async fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Result<Due, ReadError> {
        self.store.due(timer, now, limit).await
    }

    async fn attempts_due(
        &self,
        timer: AttemptTimer,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<(JobKey, u32)>, ReadError> {
        self.store.attempts_due(timer, before, limit).await
    }

    async fn depths(&self) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        self.store.depths().await
    }

    async fn log_after(&self, range: &TenantRange) -> Result<TenantLog, ReadError> {
        self.store.log_after(range).await
    }

    async fn head(&self) -> Result<i64, ReadError> {
        self.store.head().await
    }

    async fn scan(&self, query: &ScanQuery) -> Result<Scan, ReadError> {
        self.store.scan(query).await
    }

    async fn next_blocked(
        &self,
        queue: &Name,
        after: Option<&BlockedLine>,
        limit: usize,
    ) -> Result<Option<(BlockedLine, Vec<JobKey>)>, ReadError> {
        self.store.next_blocked(queue, after, limit).await
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        self.survive(self.store.purge(purge)).await
    }

    fn secret(&self) -> [u8; 32] {
        self.store.secret()
    }

    async fn tidy(&self) -> Result<u64, StoreError> {
        self.store.tidy().await
    }

    async fn close(&self) {
        self.store.close().await;
    }
}
