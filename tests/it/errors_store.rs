//! A server on a store that fails on demand: real gRPC, a real store, and one lie in between.

use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::future::poll_immediate;
use pacenote::config::TypeSettings;
use pacenote::grpc;
use pacenote::job::JobState;
use pacenote::job::limits::{LOG_BYTES_DEFAULT, WAITING_DEFAULT, WATCHERS_DEFAULT};
use pacenote::job::name::{JobId, JobKey, Lane, Name};
use pacenote::job::time::{SystemClock, Timestamp};
use pacenote::job::{Job, JobSnapshot};
use pacenote::queue::{JobQueue, KnownType, QueueSettings};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{
    AttemptTimer, BlockedLine, Committed, Due, Group, JobStore, ListQuery, LogPart, LogRange,
    Purge, Purged, QueueRange, ReadError, Scan, ScanQuery, Setting, StoreError, TenantLog,
    TenantRange, Timer, View,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, OwnedRwLockWriteGuard, RwLock};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{Client, connect};

/// The failure after which a store is not trusted any more.
pub(crate) fn fault() -> StoreError {
    StoreError::Failed("this test's fault".to_owned())
}

/// A real store that fails where the test says so.
#[derive(Clone)]
pub(crate) struct Faulty {
    store: Arc<SqliteStore>,
    next: Arc<Mutex<Option<StoreError>>>,
    always: Arc<Mutex<Option<StoreError>>>,
    next_list: Arc<Mutex<Option<ReadError>>>,
    gate: Arc<RwLock<()>>,
    arrived: Arc<Notify>,
}

impl Faulty {
    pub(crate) async fn open(dir: &Path) -> Self {
        let store = SqliteStore::open(&dir.join("faulty.db")).await;
        Self {
            store: Arc::new(store.expect("a new store")),
            next: Arc::default(),
            always: Arc::default(),
            next_list: Arc::default(),
            gate: Arc::default(),
            arrived: Arc::default(),
        }
    }

    /// Holds every commit back until the guard is dropped.
    pub(crate) async fn hold_commits(&self) -> OwnedRwLockWriteGuard<()> {
        let held = Arc::clone(&self.gate).write_owned().await;
        poll_immediate(self.arrived.notified()).await;
        held
    }

    /// Waits for a commit to be held back: what is sent from here on is in a later group.
    pub(crate) async fn commit_held(&self) {
        self.arrived.notified().await;
    }

    /// Lets the next commit fail.
    pub(crate) fn fail_next_commit(&self, error: StoreError) {
        *self.next.lock().expect("not poisoned") = Some(error);
    }

    /// Lets every commit fail from here on.
    pub(crate) fn fail_every_commit(&self, error: StoreError) {
        *self.always.lock().expect("not poisoned") = Some(error);
    }

    /// Lets the next list fail.
    pub(crate) fn fail_next_list(&self, error: ReadError) {
        *self.next_list.lock().expect("not poisoned") = Some(error);
    }
}

#[async_trait]
impl JobStore for Faulty {
    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        self.arrived.notify_one();
        let _open = self.gate.read().await;
        let always = self.always.lock().expect("not poisoned").clone();
        let fails = self.next.lock().expect("not poisoned").take().or(always);
        match fails {
            Some(error) => Err(error),
            None => self.store.commit(group).await,
        }
    }

    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError> {
        self.store.job(key, view).await
    }

    async fn ahead_of(&self, job: &Job) -> Result<Option<u64>, ReadError> {
        self.store.ahead_of(job).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Arc<Job>>, ReadError> {
        let fails = self.next_list.lock().expect("not poisoned").take();
        match fails {
            Some(error) => Err(error),
            None => self.store.list(query).await,
        }
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        self.store.log(key, range).await
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
        self.store.purge(purge).await
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

/// A server without a pool, whose store fails when it is told to. Serves the job type `any`.
pub(crate) struct FaultyServer {
    pub(crate) client: Client,
    store: Faulty,
    _serving: AbortOnDropHandle<Result<(), tonic::transport::Error>>,
}

impl FaultyServer {
    pub(crate) async fn start(dir: &Path) -> Self {
        let store = Faulty::open(dir).await;
        let any = KnownType {
            settings: TypeSettings::default(),
            check: Arc::new(|_| Ok(())),
        };
        let settings = QueueSettings {
            types: [(Name::of("any"), any)].into(),
            log_bytes_max: LOG_BYTES_DEFAULT,
            watchers_max: WATCHERS_DEFAULT,
            waiting_max: WAITING_DEFAULT,
            ..QueueSettings::default()
        };
        let clock = Arc::new(SystemClock::new());
        let queue = JobQueue::open(Arc::new(store.clone()), clock, settings).await;
        let (_, health) = tonic_health::server::health_reporter();
        let routes = grpc::routes(queue.expect("it opens"), health).expect("it builds");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder().add_routes(routes);
        let serving = tokio::spawn(serving.serve_with_incoming(incoming));
        Self {
            client: connect(&address).await,
            store,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    pub(crate) fn fail_next_commit(&self, error: StoreError) {
        self.store.fail_next_commit(error);
    }

    pub(crate) fn fail_next_list(&self, error: ReadError) {
        self.store.fail_next_list(error);
    }
}
