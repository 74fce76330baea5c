//! A store whose process can die in the middle of a commit, which tells when it is gone, and which can be
//! made to lie.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use pacenote::job::name::{JobId, JobKey, Lane, Name};
use pacenote::job::time::Timestamp;
use pacenote::job::{Job, JobSnapshot, JobState};
use pacenote::store::{
    AttemptTimer, BlockedLine, Committed, Due, Group, JobStore, ListQuery, LogPart, LogRange,
    Purge, Purged, QueueRange, ReadError, Scan, ScanQuery, Setting, StoreError, TenantLog,
    TenantRange, Timer, View,
};
use tokio::sync::oneshot;

use super::steps::Dies;

/// What a store says in place of what is so: by default, what is so.
pub(super) trait Lie: Send + Sync {
    /// In place of a group.
    fn group(&self, _: &mut Group) {}

    /// In place of what a group did. `asked` is what was asked for.
    fn committed(&self, _asked: &Group, _: &mut Committed) {}

    /// In place of a job that is looked at alone.
    fn job(&self, _: &mut Option<JobSnapshot>) {}

    /// In place of a question for a list.
    fn query(&self, _: &mut ListQuery) {}

    /// In place of a list.
    fn list(&self, _: &mut Vec<Arc<Job>>) {}

    /// In place of part of a log.
    fn log(&self, _: &mut Option<LogPart>) {}

    /// In place of what is due.
    fn due(&self, _: &mut Due) {}

    /// In place of the counters.
    fn depths(&self, _: &mut Vec<(Lane, JobState, i64)>) {}
}

/// A store that says what is so.
pub(super) struct Honest;

impl Lie for Honest {}

/// A store that dies when it is told to.
pub(super) struct Mortal {
    store: Arc<dyn JobStore>,
    lie: Arc<dyn Lie>,
    dies: Mutex<Option<Dies>>,
    /// Dropped last, when the store is: then the next one may be opened.
    _gone: oneshot::Sender<()>,
}

impl Mortal {
    /// With what waits until the store is gone.
    pub(super) fn new(
        store: Arc<dyn JobStore>,
        lie: Arc<dyn Lie>,
    ) -> (Self, oneshot::Receiver<()>) {
        let (gone, is_gone) = oneshot::channel();
        let mortal = Self {
            store,
            lie,
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
        let asked = group.clone();
        let mut group = group;
        self.lie.group(&mut group);
        let mut committed = self.survive(self.store.commit(group)).await?;
        self.lie.committed(&asked, &mut committed);
        Ok(committed)
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError> {
        let mut found = self.store.job(key, view).await?;
        self.lie.job(&mut found);
        Ok(found)
    }

    async fn ahead_of(&self, job: &Job) -> Result<Option<u64>, ReadError> {
        self.store.ahead_of(job).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Job>>, ReadError> {
        let mut query = query.clone();
        self.lie.query(&mut query);
        let mut found = self.store.list(&query).await?;
        self.lie.list(&mut found);
        Ok(found)
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        let mut part = self.store.log(key, range).await?;
        self.lie.log(&mut part);
        Ok(part)
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

    async fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Result<Due, ReadError> {
        let mut due = self.store.due(timer, now, limit).await?;
        self.lie.due(&mut due);
        Ok(due)
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
        let mut depths = self.store.depths().await?;
        self.lie.depths(&mut depths);
        Ok(depths)
    }

    async fn next_blocked(
        &self,
        queue: &Name,
        after: Option<&BlockedLine>,
        limit: usize,
    ) -> Result<Option<(BlockedLine, Vec<JobKey>)>, ReadError> {
        self.store.next_blocked(queue, after, limit).await
    }

    async fn depths_of(
        &self,
        tenant: &Name,
        queues: &QueueRange,
    ) -> Result<Vec<(Lane, JobState, i64)>, ReadError> {
        self.store.depths_of(tenant, queues).await
    }

    async fn due_longest(&self, lane: &Lane) -> Result<Option<Timestamp>, ReadError> {
        self.store.due_longest(lane).await
    }

    async fn waiting(
        &self,
        lane: &Lane,
        state: JobState,
        before: JobId,
        limit: usize,
    ) -> Result<Vec<JobKey>, ReadError> {
        self.store.waiting(lane, state, before, limit).await
    }

    async fn settings(&self) -> Result<Vec<Setting>, ReadError> {
        self.store.settings().await
    }

    async fn put_setting(&self, setting: Setting) -> Result<(), StoreError> {
        self.store.put_setting(setting).await
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
