//! A store behind which a real one stands, and in front of it a test: for faults, lies and counts.

use async_trait::async_trait;
use pacenote::job::name::{JobId, JobKey, Lane, Name};
use pacenote::job::time::Timestamp;
use pacenote::job::{Job, JobSnapshot, JobState};
use pacenote::store::{
    AttemptTimer, BlockedLine, Committed, Due, Group, JobStore, ListQuery, Listed, LogPart,
    LogRange, Purge, Purged, QueueRange, ReadError, Scan, ScanQuery, Setting, StoreError,
    TenantLog, TenantRange, Timer, View,
};

/// Who stands in front of a store. What it leaves alone, the store answers; a verb that a test wants to
/// meet and that is not here yet belongs here.
#[async_trait]
pub(crate) trait Front: Send + Sync + 'static {
    /// The store behind it.
    fn store(&self) -> &dyn JobStore;

    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        self.store().commit(group).await
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError> {
        self.store().job(key, view).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Listed, ReadError> {
        self.store().list(query).await
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        self.store().log(key, range).await
    }

    async fn log_after(&self, range: &TenantRange) -> Result<TenantLog, ReadError> {
        self.store().log_after(range).await
    }

    async fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Result<Due, ReadError> {
        self.store().due(timer, now, limit).await
    }

    async fn depths(&self) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        self.store().depths().await
    }

    async fn put_setting(&self, setting: Setting) -> Result<(), StoreError> {
        self.store().put_setting(setting).await
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        self.store().purge(purge).await
    }
}

/// A store, with somebody in front of it.
pub(crate) struct Fronted<T>(pub(crate) T);

#[async_trait]
impl<T: Front> JobStore for Fronted<T> {
    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        self.0.commit(group).await
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError> {
        self.0.job(key, view).await
    }

    async fn ahead_of(&self, job: &Job) -> Result<Option<u64>, ReadError> {
        self.0.store().ahead_of(job).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Listed, ReadError> {
        self.0.list(query).await
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        self.0.log(key, range).await
    }

    async fn log_after(&self, range: &TenantRange) -> Result<TenantLog, ReadError> {
        self.0.log_after(range).await
    }

    async fn head(&self) -> Result<i64, ReadError> {
        self.0.store().head().await
    }

    async fn scan(&self, query: &ScanQuery) -> Result<Scan, ReadError> {
        self.0.store().scan(query).await
    }

    async fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Result<Due, ReadError> {
        self.0.due(timer, now, limit).await
    }

    async fn attempts_due(
        &self,
        timer: AttemptTimer,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<(JobKey, u32)>, ReadError> {
        self.0.store().attempts_due(timer, before, limit).await
    }

    async fn depths(&self) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        self.0.depths().await
    }

    async fn next_blocked(
        &self,
        queue: &Name,
        after: Option<&BlockedLine>,
        limit: usize,
    ) -> Result<Option<(BlockedLine, Vec<JobKey>)>, ReadError> {
        self.0.store().next_blocked(queue, after, limit).await
    }

    async fn depths_of(
        &self,
        tenant: &Name,
        queues: &QueueRange,
    ) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        self.0.store().depths_of(tenant, queues).await
    }

    async fn due_longest(&self, lane: &Lane) -> Result<Option<Timestamp>, ReadError> {
        self.0.store().due_longest(lane).await
    }

    async fn waiting(
        &self,
        lane: &Lane,
        state: JobState,
        before: JobId,
        limit: usize,
    ) -> Result<Vec<JobKey>, ReadError> {
        self.0.store().waiting(lane, state, before, limit).await
    }

    async fn settings(&self) -> Result<Vec<Setting>, ReadError> {
        self.0.store().settings().await
    }

    async fn put_setting(&self, setting: Setting) -> Result<(), StoreError> {
        self.0.put_setting(setting).await
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        self.0.purge(purge).await
    }

    fn secret(&self) -> [u8; 32] {
        self.0.store().secret()
    }

    async fn tidy(&self) -> Result<u64, StoreError> {
        self.0.store().tidy().await
    }

    async fn close(&self) {
        self.0.store().close().await;
    }
}
