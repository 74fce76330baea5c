//! A queue in this process on a real store, with a clock and free places in the test's hands.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use pacenote::config::TypeSettings;
use pacenote::job::limits::{LOG_BYTES_DEFAULT, WATCHERS_DEFAULT};
use pacenote::job::name::{JobKey, Name};
use pacenote::job::policy::OnConflict;
use pacenote::job::time::{Clock, SystemClock, Timestamp};
use pacenote::job::{Job, JobState};
use pacenote::queue::{
    Handed, JobQueue, KnownType, Lease, QueueSettings, Submission, UniqueRequest,
};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobStore, View};
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use crate::harness::{eventually, one_place, soon};

/// The job type that the bench serves.
pub(crate) const TYPE: &str = "work";

/// A wall clock that only the test moves.
pub(crate) struct OwnedClock {
    now: AtomicI64,
    system: SystemClock,
}

impl OwnedClock {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            now: AtomicI64::new(1_800_000_000_000_000),
            system: SystemClock::new(),
        })
    }

    pub(crate) fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).expect("a short time");
        self.now.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Clock for OwnedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now.load(Ordering::Relaxed))
    }

    fn steady(&self) -> Timestamp {
        self.system.steady()
    }

    fn new_id(&self) -> Uuid {
        self.system.new_id()
    }

    fn chance(&self) -> f64 {
        0.5
    }
}

pub(crate) struct Bench {
    pub(crate) queue: JobQueue,
    pub(crate) clock: Arc<OwnedClock>,
    pub(crate) store: Arc<dyn JobStore>,
    waiting_max: usize,
}

impl Bench {
    /// Without anybody who runs jobs: all of them wait.
    pub(crate) async fn new(dir: &Path, waiting_max: usize) -> Self {
        let store = SqliteStore::open(&dir.join("pacenote.db")).await;
        Self::on(store.expect("a store"), waiting_max).await
    }

    /// The same, on a store of the test.
    pub(crate) async fn on(store: impl JobStore, waiting_max: usize) -> Self {
        let store: Arc<dyn JobStore> = Arc::new(store);
        let known = KnownType {
            settings: TypeSettings::default(),
            check: Arc::new(|_| Ok(())),
        };
        let settings = QueueSettings {
            types: [(Name::of(TYPE), known)].into(),
            log_bytes_max: LOG_BYTES_DEFAULT,
            watchers_max: WATCHERS_DEFAULT,
            waiting_max,
            ..QueueSettings::default()
        };
        let clock = OwnedClock::new();
        let queue = JobQueue::open(
            Arc::clone(&store),
            Arc::clone(&clock) as Arc<dyn Clock>,
            settings,
        );
        Self {
            queue: queue.await.expect("it opens"),
            clock,
            store,
            waiting_max,
        }
    }

    /// As after a crash: nothing is drained or closed, and the store is opened again once it is let go.
    pub(crate) async fn crash(self, dir: &Path) -> Self {
        let waiting_max = self.waiting_max;
        let store = Arc::downgrade(&self.store);
        drop(self);
        eventually("the store is let go", || store.strong_count() == 0).await;
        Self::new(dir, waiting_max).await
    }

    /// A place for one job, in the test's hands.
    pub(crate) async fn place(&self) -> UnboundedReceiver<Handed> {
        one_place(&self.queue, TYPE).await.1
    }

    pub(crate) async fn submit(&self, submission: Submission) -> Arc<Job> {
        self.queue.submit(submission).await.expect("it is good").0
    }

    pub(crate) async fn get(&self, key: &JobKey) -> Arc<Job> {
        self.queue
            .get(key, View::Basic)
            .await
            .expect("it is there")
            .job
    }

    /// How many jobs of each tenant wait, by the counters.
    pub(crate) async fn waiting(&self, tenant: &str) -> i64 {
        let depths = self.store.depths().await.expect("a read");
        let waiting = depths
            .into_iter()
            .filter(|(lane, state, _)| lane.tenant.as_str() == tenant && state.is_waiting());
        waiting.map(|(_, _, jobs)| jobs).sum()
    }
}

/// The job that was handed to a place, and the right to speak for it.
pub(crate) async fn handed(places: &mut UnboundedReceiver<Handed>) -> (Arc<Job>, Lease) {
    let handed = soon(places.recv()).await.expect("a job").claimed.job;
    assert_eq!(handed.state, JobState::Running);
    let lease = Lease {
        key: handed.key.clone(),
        attempt: handed.attempt,
    };
    (handed, lease)
}

pub(crate) fn work() -> Submission {
    Submission::new(TYPE, None)
}

pub(crate) fn of_tenant(tenant: &'static str) -> Submission {
    Submission {
        tenant: Name::of(tenant),
        ..work()
    }
}

pub(crate) fn keyed(key: &str) -> Submission {
    Submission {
        idempotency_key: key.to_owned(),
        ..work()
    }
}

pub(crate) fn unique(key: &str, on_conflict: OnConflict) -> Submission {
    Submission {
        unique: Some(UniqueRequest {
            key: key.to_owned(),
            on_conflict: Some(on_conflict),
            window: None,
        }),
        ..work()
    }
}
