//! What the rules stand on: a store that can be dropped and opened again, jobs made to order, and the
//! checks that hold after every verb.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use pacenote::job::name::{BatchId, JobId, JobKey, Lane, Name};
use pacenote::job::payload::Payload;
use pacenote::job::policy::{OnConflict, Timeouts};
use pacenote::job::time::Timestamp;
use pacenote::job::{
    CancelCause, Change, Job, JobSnapshot, JobSpec, JobState, NewJob, Outcome, Report, Unique,
};
use pacenote::pb;
use pacenote::store::memory::{Memory, MemoryStore};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{
    ClaimTerms, Committed, Demand, Entry, Group, JobStore, ListQuery, LogRange, OpenError, Purge,
    Purged, Reply, StoreError, View, WaitingRoom,
};
use prost::Message;
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

/// A place where one store is kept.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Opens it, or makes it.
    fn try_open(&self) -> BoxFuture<'_, Result<Arc<dyn JobStore>, OpenError>>;

    /// Opens it, or makes it, where nobody else has it open.
    fn open(&self) -> BoxFuture<'_, Arc<dyn JobStore>> {
        Box::pin(async { self.try_open().await.expect("a store") })
    }
}

/// Everything in the memory of this process.
impl Backend for Memory {
    fn try_open(&self) -> BoxFuture<'_, Result<Arc<dyn JobStore>, OpenError>> {
        Box::pin(async {
            let store = MemoryStore::open(self)?;
            Ok(Arc::new(store) as Arc<dyn JobStore>)
        })
    }
}

/// A store in an SQLite file.
pub(crate) struct Sqlite {
    dir: TempDir,
}

impl Sqlite {
    pub(crate) fn new() -> Self {
        Self {
            dir: crate::harness::folder(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("jobs.db")
    }

    /// A connection of our own, beside the store's.
    pub(crate) async fn connect(&self) -> SqliteConnection {
        connect(self.path()).await
    }
}

/// A connection to a store's file that is not the store's.
pub(crate) async fn connect(path: PathBuf) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path);
    let options = options.busy_timeout(Duration::from_secs(5));
    options.connect().await.expect("a second connection")
}

impl Backend for Sqlite {
    fn try_open(&self) -> BoxFuture<'_, Result<Arc<dyn JobStore>, OpenError>> {
        Box::pin(async {
            let store = SqliteStore::open(&self.path()).await?;
            Ok(Arc::new(store) as Arc<dyn JobStore>)
        })
    }
}

/// A store under test, a clock that the test moves, and ids that ascend.
pub(crate) struct Bench {
    store: Option<Arc<dyn JobStore>>,
    backend: Box<dyn Backend>,
    ids: AtomicU64,
    now: AtomicI64,
    tenants: std::sync::Mutex<BTreeSet<Name>>,
    /// Most jobs of a tenant that may wait; 0 for no bound.
    waiting_max: AtomicUsize,
    key_limits: std::sync::Mutex<Arc<BTreeMap<Name, usize>>>,
}

impl Bench {
    pub(crate) async fn new(backend: impl Backend) -> Self {
        let store = backend.open().await;
        Self {
            store: Some(store),
            backend: Box::new(backend),
            ids: AtomicU64::new(1),
            now: AtomicI64::new(1_700_000_000_000_000),
            tenants: std::sync::Mutex::default(),
            waiting_max: AtomicUsize::new(0),
            key_limits: std::sync::Mutex::default(),
        }
    }

    /// As after a crash: nothing is closed, and another one is opened.
    pub(crate) async fn crash(&mut self) {
        self.store = None;
        self.store = Some(self.backend.open().await);
    }

    /// As another server does that is started beside this one.
    pub(crate) async fn open_second(&self) -> Result<Arc<dyn JobStore>, OpenError> {
        self.backend.try_open().await
    }

    pub(crate) fn store(&self) -> &dyn JobStore {
        self.store.as_deref().expect("it is open")
    }

    pub(crate) async fn close_and_open(&mut self) {
        self.store().close().await;
        self.crash().await;
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now.load(Ordering::Relaxed))
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).expect("a short time");
        self.now.fetch_add(micros, Ordering::Relaxed);
    }

    /// How many jobs of the queue `default` run at once with one concurrency key.
    pub(crate) fn limit_keys(&self, limit: usize) {
        let limits = BTreeMap::from([(Name::of("default"), limit)]);
        *self.key_limits.lock().expect("no panic") = Arc::new(limits);
    }

    /// A job to be, of type `work`.
    pub(crate) fn new_job(&self) -> NewJobBuilder {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        NewJobBuilder {
            new: NewJob::new(
                JobKey {
                    tenant: Name::of("default"),
                    id: JobId::new(uuid::Uuid::from_u128(u128::from(number) << 64)),
                },
                JobSpec {
                    log_bytes_max: 64 << 20,
                    progress_interval: Duration::ZERO,
                    ..JobSpec::of(Name::of("work"))
                },
                None,
            ),
        }
    }

    /// From here on so many jobs of a tenant may wait.
    pub(crate) fn bound(&self, waiting_max: usize) {
        self.waiting_max.store(waiting_max, Ordering::Relaxed);
    }

    fn room(&self, depths: &BTreeMap<(Lane, JobState), i64>) -> HashMap<Name, WaitingRoom> {
        let max = self.waiting_max.load(Ordering::Relaxed);
        let mut room = HashMap::new();
        if max == 0 {
            return room;
        }
        for tenant in &*self.tenants.lock().expect("no panic") {
            room.insert(tenant.clone(), WaitingRoom { waiting: 0, max });
        }
        for ((lane, state), jobs) in depths {
            if let Some(room) = room.get_mut(&lane.tenant).filter(|_| state.is_waiting()) {
                room.waiting += usize::try_from(*jobs).expect("never below zero");
            }
        }
        room
    }

    /// A group at the time that it is now.
    pub(crate) fn group(&self, entries: Vec<Entry>, demand: Vec<Demand>) -> Group {
        Group {
            entries,
            demand,
            claimants: [(
                0,
                ClaimTerms {
                    worker_id: "worker".to_owned(),
                    heard_at: self.now(),
                    lease_until: self.now().after(Duration::from_secs(15)),
                    term: None,
                },
            )]
            .into(),
            room: HashMap::new(),
            key_limits: self.key_limits.lock().expect("no panic").clone(),
            now: self.now(),
        }
    }

    /// Commits, and checks what has to hold whatever was committed.
    pub(crate) async fn commit(&self, entries: Vec<Entry>, demand: Vec<Demand>) -> Committed {
        let committed = self.try_commit(entries, demand).await;
        committed.expect("the group is stored")
    }

    pub(crate) async fn try_commit(
        &self,
        entries: Vec<Entry>,
        demand: Vec<Demand>,
    ) -> Result<Committed, StoreError> {
        self.try_commit_group(self.group(entries, demand)).await
    }

    /// Commits a group that is made to order.
    pub(crate) async fn commit_group(&self, group: Group) -> Committed {
        let committed = self.try_commit_group(group).await;
        committed.expect("the group is stored")
    }

    async fn try_commit_group(&self, mut group: Group) -> Result<Committed, StoreError> {
        let count = group.entries.len();
        for entry in &group.entries {
            let tenant = match entry {
                Entry::Submit { new, .. } => &new.key.tenant,
                Entry::Check(new) => &new.key.tenant,
                Entry::Batch(jobs) => &jobs.first().expect("a job at least").key.tenant,
                Entry::Change { key, .. } | Entry::Retry { key, .. } => &key.tenant,
            };
            let mut tenants = self.tenants.lock().expect("no panic");
            tenants.insert(tenant.clone());
        }
        let before = self.depths().await;
        for (tenant, room) in self.room(&before) {
            group.room.entry(tenant).or_insert(room);
        }
        let committed = self.store().commit(group).await?;
        assert_eq!(committed.replies.len(), count);
        let mut expected = before;
        for (lane, state, moved) in &committed.depth_changes {
            *expected.entry((lane.clone(), *state)).or_default() += moved;
        }
        expected.retain(|_, jobs| *jobs != 0);
        assert_eq!(self.depths().await, expected, "the counters moved as said");
        self.check_depths().await;
        let mut seen = BTreeSet::new();
        for published in &committed.published {
            if seen.insert(published.job.key.clone()) {
                assert_eq!(self.get(&published.job.key).await.job, published.job);
                self.log(&published.job.key).await;
            }
        }
        Ok(committed)
    }

    pub(crate) async fn purge(&self, purge: Vec<Purge>) -> Vec<Purged> {
        let purged = self.store().purge(purge).await.expect("it is done");
        self.check_depths().await;
        purged
    }

    /// Submits one, which has to be new.
    pub(crate) async fn submit(&self, new: NewJobBuilder) -> Arc<Job> {
        let committed = self.commit(vec![new.entry()], vec![]).await;
        let (job, deduplicated) = done(&committed.replies[0]);
        assert!(!deduplicated);
        job
    }

    /// Makes one change, which has to be accepted.
    pub(crate) async fn change(&self, key: &JobKey, change: Change) -> Arc<Job> {
        let committed = self.commit(vec![changed(key, change)], vec![]).await;
        done(&committed.replies[0]).0
    }

    /// Claims in the lane of `work` and the tenant `default`.
    pub(crate) async fn claim(&self, places: usize) -> Vec<Arc<Job>> {
        let committed = self.commit(vec![], vec![demand("work", places)]).await;
        let claimed = committed.claimed.into_iter();
        claimed.map(|claimed| claimed.job).collect()
    }

    /// Reports for the job's newest attempt.
    pub(crate) async fn report(&self, job: &Job, reports: Vec<Report>) -> Arc<Job> {
        let change = report(job.attempt, reports, self.now());
        self.change(&job.key, change).await
    }

    /// Ends the job's newest attempt.
    pub(crate) async fn finish(&self, job: &Job, outcome: Outcome) -> Arc<Job> {
        self.change(&job.key, finish(job.attempt, outcome)).await
    }

    /// A job that has succeeded.
    pub(crate) async fn finished(&self, new: NewJobBuilder) -> Arc<Job> {
        let committed = self.commit(vec![new.hand_over()], vec![]).await;
        let job = Arc::clone(&committed.claimed[0].job);
        self.finish(&job, Outcome::Succeeded(None)).await
    }

    pub(crate) async fn find(&self, key: &JobKey) -> Option<JobSnapshot> {
        let basic = self.store().job(key, View::Basic).await.expect("a read");
        let full = self.store().job(key, View::Full).await.expect("a read");
        assert_eq!(
            basic.map(|found| found.job),
            full.as_ref().map(|found| Arc::clone(&found.job))
        );
        full
    }

    pub(crate) async fn get(&self, key: &JobKey) -> JobSnapshot {
        self.find(key).await.expect("the job is there")
    }

    /// The whole log, which has to be dense and to reach to the job's last sequence.
    pub(crate) async fn log(&self, key: &JobKey) -> Vec<pb::JobEvent> {
        let range = LogRange {
            after: 0,
            events: usize::MAX,
            bytes: usize::MAX,
        };
        let part = self.store().log(key, range).await.expect("a read");
        let part = part.expect("the job is there");
        let mut next = part.job.first_sequence;
        let mut events = Vec::new();
        for segment in &part.segments {
            assert_eq!(segment.first_sequence(), next, "dense across segments");
            let batch = pb::EventBatch::decode(segment.body().clone()).expect("a batch");
            assert_eq!(batch.events.len(), segment.len());
            for event in segment.events_after(0) {
                assert_eq!(event.sequence, next);
                let event = pb::JobEvent::decode(event.bytes).expect("an event");
                assert_eq!(event.sequence, next);
                assert_eq!(event.job_id, key.id.to_string());
                events.push(event);
                next += 1;
            }
        }
        assert_eq!(next, part.job.last_sequence + 1, "to the end");
        events
    }

    pub(crate) async fn list(&self, query: ListQuery) -> Vec<JobId> {
        let part = self.store().list(&query).await.expect("a read");
        assert!(part.jobs.len() <= query.limit);
        part.jobs.iter().map(|job| job.key.id).collect()
    }

    /// Every job of every tenant that was ever named.
    pub(crate) async fn all(&self) -> Vec<Arc<Job>> {
        let tenants = self.tenants.lock().expect("no panic").clone();
        let mut all = Vec::new();
        for tenant in tenants {
            let query = query(tenant.as_str());
            all.extend(self.store().list(&query).await.expect("a read").jobs);
        }
        all
    }

    pub(crate) async fn depths(&self) -> BTreeMap<(Lane, JobState), i64> {
        let depths = self.store().depths().await.expect("a read").into_iter();
        depths
            .map(|(lane, state, jobs)| {
                assert_ne!(jobs, 0, "a counter is kept for nothing in {lane:?}");
                ((lane, state), jobs)
            })
            .collect()
    }

    async fn check_depths(&self) {
        let mut counted = BTreeMap::new();
        for job in self.all().await {
            *counted.entry((job.lane(), job.state)).or_default() += 1;
        }
        assert_eq!(self.depths().await, counted, "counters equal rows");
    }
}

/// A job to be, made to order.
#[derive(Clone)]
pub(crate) struct NewJobBuilder {
    pub(crate) new: NewJob,
}

impl NewJobBuilder {
    pub(crate) fn tenant(mut self, tenant: &str) -> Self {
        self.new.key.tenant = Name::new(tenant).expect("a name");
        self
    }

    pub(crate) fn spec(mut self, change: impl FnOnce(&mut JobSpec)) -> Self {
        change(Arc::make_mut(&mut self.new.spec));
        self
    }

    pub(crate) fn job_type(self, job_type: &str) -> Self {
        self.spec(|spec| spec.job_type = Name::new(job_type).expect("a name"))
    }

    pub(crate) fn queue(self, queue: &str) -> Self {
        self.spec(|spec| spec.queue = Name::new(queue).expect("a name"))
    }

    pub(crate) fn priority(self, priority: i32) -> Self {
        self.spec(|spec| spec.priority = priority)
    }

    pub(crate) fn concurrency_key(self, key: &str) -> Self {
        self.spec(|spec| spec.concurrency_key = Some(Name::new(key).expect("a name")))
    }

    /// With an idempotency key, and the fingerprint of its request.
    pub(crate) fn idempotent(self, key: &str, fingerprint: &str) -> Self {
        self.spec(|spec| {
            spec.idempotency_key = Some(key.to_owned());
            spec.fingerprint = fingerprint.to_owned();
        })
    }

    /// The only one of its tenant and type with this key, until it is over and for `window`.
    pub(crate) fn unique(mut self, key: &str, window: Duration, on_conflict: OnConflict) -> Self {
        self.new.on_conflict = on_conflict;
        self.spec(|spec| {
            spec.unique = Some(Unique {
                key: key.to_owned(),
                window,
            });
        })
    }

    pub(crate) fn batch(self, number: u128) -> Self {
        self.spec(|spec| spec.batch_id = Some(batch_id(number)))
    }

    pub(crate) fn start_at(mut self, at: Timestamp) -> Self {
        self.new.start_at = Some(at);
        self
    }

    pub(crate) fn timeouts(self, change: impl FnOnce(&mut Timeouts)) -> Self {
        self.spec(|spec| change(&mut spec.timeouts))
    }

    pub(crate) fn input(mut self, input: Payload) -> Self {
        self.new.input = Some(input);
        self
    }

    /// Not before so long after it is stored.
    pub(crate) fn delayed(mut self, delay: Duration) -> Self {
        self.new.delay = delay;
        self
    }

    pub(crate) fn entry(self) -> Entry {
        Entry::Submit {
            new: Box::new(self.new),
            hand_over: None,
        }
    }

    pub(crate) fn hand_over(self) -> Entry {
        self.entry_for(0)
    }

    /// Handed over to a claimant of its group.
    pub(crate) fn entry_for(self, claimant: usize) -> Entry {
        Entry::Submit {
            new: Box::new(self.new),
            hand_over: Some(claimant),
        }
    }
}

pub(crate) fn batch_id(number: u128) -> BatchId {
    BatchId::new(uuid::Uuid::from_u128(number))
}

/// All of them, or none.
pub(crate) fn batch_of(jobs: &[NewJobBuilder]) -> Entry {
    Entry::Batch(jobs.iter().map(|job| job.new.clone()).collect())
}

pub(crate) fn changed(key: &JobKey, change: Change) -> Entry {
    Entry::Change {
        key: key.clone(),
        change,
    }
}

pub(crate) fn cancel() -> Change {
    Change::Cancel {
        cause: CancelCause::Requested,
        reason: "enough".to_owned(),
        requested_by: "tester".to_owned(),
    }
}

pub(crate) fn report(attempt: u32, reports: Vec<Report>, now: Timestamp) -> Change {
    Change::Report {
        attempt,
        reports,
        heard_at: now,
        lease_until: now.after(Duration::from_secs(15)),
        number: 0,
    }
}

pub(crate) fn finish(attempt: u32, outcome: Outcome) -> Change {
    Change::Finish {
        attempt,
        outcome,
        chance: 0.5,
        fingerprint: None,
    }
}

/// The attempt's process is known to be dead.
pub(crate) fn lose(attempt: u32) -> Change {
    let before = Timestamp::from_micros(i64::MAX);
    Change::Lose { attempt, before }
}

pub(crate) fn output(chunk: Payload) -> Report {
    Report::Output {
        stream: "stdout".to_owned(),
        chunk,
    }
}

/// Places in the lane of a type, of the tenant and queue `default`.
pub(crate) fn demand(job_type: &str, places: usize) -> Demand {
    Demand {
        claimant: 0,
        lane: Lane {
            queue: Name::of("default"),
            job_type: Name::new(job_type).expect("a name"),
            tenant: Name::of("default"),
        },
        places,
    }
}

/// The job that a reply is about, and whether it was there before.
pub(crate) fn done(reply: &Reply) -> (Arc<Job>, bool) {
    match reply {
        Reply::Done { job, deduplicated } => (Arc::clone(job), *deduplicated),
        other => panic!("not done: {other:?}"),
    }
}

/// Every job of a tenant.
pub(crate) fn query(tenant: &str) -> ListQuery {
    ListQuery::all(Name::new(tenant).expect("a name"))
}
