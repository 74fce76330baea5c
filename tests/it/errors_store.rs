//! A server on a store that fails on demand: real gRPC, a real store, and one lie in between.

use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::future::poll_immediate;
use pacenote::config::TypeSettings;
use pacenote::grpc;
use pacenote::job::Change;
use pacenote::job::limits::{LOG_BYTES_DEFAULT, WAITING_DEFAULT, WATCHERS_DEFAULT};
use pacenote::job::name::Name;
use pacenote::job::time::SystemClock;
use pacenote::queue::{JobQueue, KnownType, QueueSettings};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{
    Committed, Entry, Group, JobStore, ListQuery, Listed, Purge, Purged, ReadError, StoreError,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, OwnedRwLockWriteGuard, RwLock};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::fronted::{Front, Fronted};
use crate::harness::{Client, connect, soon};

/// The failure after which a store is not trusted any more.
pub(crate) fn fault() -> StoreError {
    StoreError::Failed("this test's fault".to_owned())
}

/// A real store that fails where the test says so.
#[derive(Clone)]
pub(crate) struct Faulty {
    store: Arc<Open>,
    /// Once the store is closed and its file let go.
    gone: CancellationToken,
    next: Arc<Mutex<Option<StoreError>>>,
    /// After how many more commits all fail.
    always: Arc<Mutex<Option<(usize, StoreError)>>>,
    next_list: Arc<Mutex<Option<ReadError>>>,
    /// After how many more purges one fails.
    a_purge: Arc<Mutex<Option<(usize, StoreError)>>>,
    every_end: Arc<Mutex<Option<StoreError>>>,
    gate: Arc<RwLock<()>>,
    arrived: Arc<Notify>,
}

/// The real store, and behind it who says that it is gone: they are dropped in this order.
struct Open(
    SqliteStore,
    #[expect(dead_code, reason = "it is dropped")] DropGuard,
);

impl Faulty {
    pub(crate) async fn open(dir: &Path) -> Self {
        let store = SqliteStore::open(&dir.join("faulty.db")).await;
        let gone = CancellationToken::new();
        let open = Open(
            store.expect("nobody else has it"),
            gone.clone().drop_guard(),
        );
        Self {
            store: Arc::new(open),
            gone,
            next: Arc::default(),
            always: Arc::default(),
            next_list: Arc::default(),
            a_purge: Arc::default(),
            every_end: Arc::default(),
            gate: Arc::default(),
            arrived: Arc::default(),
        }
    }

    /// Lets go of it and waits until everybody else has: a queue's writer, a server's calls. Then the same
    /// file may be opened again.
    pub(crate) async fn let_go(self) {
        let gone = self.gone.clone();
        drop(self);
        soon(gone.cancelled()).await;
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
        self.fail_every_commit_after(0, error);
    }

    /// Lets so many commits be, and every one behind them fail.
    pub(crate) fn fail_every_commit_after(&self, commits: usize, error: StoreError) {
        *self.always.lock().expect("not poisoned") = Some((commits, error));
    }

    /// Lets commits be again.
    pub(crate) fn spare_commits(&self) {
        *self.always.lock().expect("not poisoned") = None;
    }

    /// Lets every commit fail from here on in which an attempt ends.
    pub(crate) fn fail_every_end(&self, error: StoreError) {
        *self.every_end.lock().expect("not poisoned") = Some(error);
    }

    /// Lets ends be stored again.
    pub(crate) fn spare_ends(&self) {
        *self.every_end.lock().expect("not poisoned") = None;
    }

    /// Lets the next purge fail.
    pub(crate) fn fail_next_purge(&self, error: StoreError) {
        self.fail_purge_after(0, error);
    }

    /// Lets so many purges be, each one transaction, and the one behind them fail.
    pub(crate) fn fail_purge_after(&self, purges: usize, error: StoreError) {
        *self.a_purge.lock().expect("not poisoned") = Some((purges, error));
    }

    /// Whether a purge is yet to fail. From here on none will.
    pub(crate) fn spare_purges(&self) -> bool {
        self.a_purge.lock().expect("not poisoned").take().is_some()
    }

    /// Lets the next list fail.
    pub(crate) fn fail_next_list(&self, error: ReadError) {
        *self.next_list.lock().expect("not poisoned") = Some(error);
    }
}

#[async_trait]
impl Front for Faulty {
    fn store(&self) -> &dyn JobStore {
        &self.store.0
    }

    async fn commit(&self, group: Group) -> Result<Committed, StoreError> {
        self.arrived.notify_one();
        let _open = self.gate.read().await;
        let always = match &mut *self.always.lock().expect("not poisoned") {
            Some((commits, _)) if *commits > 0 => {
                *commits -= 1;
                None
            }
            always => always.clone(),
        };
        let always = always.map(|(_, error)| error);
        let fails = self.next.lock().expect("not poisoned").take().or(always);
        let every_end = self.every_end.lock().expect("not poisoned").clone();
        let fails = fails.or(every_end.filter(|_| group.entries.iter().any(is_end)));
        match fails {
            Some(error) => Err(error),
            None => self.store.0.commit(group).await,
        }
    }

    async fn list(&self, query: &ListQuery) -> Result<Listed, ReadError> {
        let fails = self.next_list.lock().expect("not poisoned").take();
        match fails {
            Some(error) => Err(error),
            None => self.store.0.list(query).await,
        }
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        let fails = {
            let mut a_purge = self.a_purge.lock().expect("not poisoned");
            match &mut *a_purge {
                Some((purges, _)) if *purges > 0 => {
                    *purges -= 1;
                    None
                }
                due => due.take(),
            }
        };
        match fails {
            Some((_, error)) => Err(error),
            None => self.store.0.purge(purge).await,
        }
    }
}

fn is_end(entry: &Entry) -> bool {
    let Entry::Change { change, .. } = entry else {
        return false;
    };
    matches!(change, Change::Finish { .. })
}

/// A server without a pool, whose store fails when it is told to. Serves the job type `any`.
pub(crate) struct FaultyServer {
    pub(crate) client: Client,
    pub(crate) queue: JobQueue,
    store: Faulty,
    _serving: AbortOnDropHandle<Result<(), tonic::transport::Error>>,
}

impl FaultyServer {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::on(Faulty::open(dir).await, WAITING_DEFAULT).await
    }

    /// On a store of the test's, and with a bound of its own for what waits.
    pub(crate) async fn on(store: Faulty, waiting_max: usize) -> Self {
        let any = KnownType {
            settings: TypeSettings::default(),
            check: Arc::new(|_| Ok(())),
        };
        let settings = QueueSettings {
            types: [(Name::of("any"), any)].into(),
            log_bytes_max: LOG_BYTES_DEFAULT,
            watchers_max: WATCHERS_DEFAULT,
            waiting_max,
            ..QueueSettings::default()
        };
        let clock = Arc::new(SystemClock::new());
        let queue = JobQueue::open(Arc::new(Fronted(store.clone())), clock, settings).await;
        let queue = queue.expect("it opens");
        let (_, health) = tonic_health::server::health_reporter();
        let routes = grpc::routes(queue.clone(), health).expect("it builds");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder().add_routes(routes);
        let serving = tokio::spawn(serving.serve_with_incoming(incoming));
        Self {
            client: connect(&address).await,
            queue,
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
