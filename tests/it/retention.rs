//! What is over and goes when its time has come: at that time and not before, whatever fails meanwhile, and
//! without a trace.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pacenote::config::{TenantSettings, TypeSettings};
use pacenote::error::Error;
use pacenote::job::limits::{
    IDEMPOTENCY_KEY_KEPT, LEASE, LOG_BYTES_DEFAULT, RETENTION_DEFAULT, WAITING_DEFAULT,
};
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::policy::GivenRetention;
use pacenote::job::time::{Clock, Timestamp};
use pacenote::job::{Change, Job, JobSpec, NewJob, Outcome, Report};
use pacenote::maintenance;
use pacenote::pb;
use pacenote::queue::{JobQueue, KnownType, QueueSettings, Submission, default_tenant};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{
    ClaimTerms, Entry, Group, JobStore, ListQuery, Purge, Purged, StoreError, View,
};
use sqlx::Row;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;
use uuid::Uuid;

use crate::errors_store::{Faulty, FaultyServer};
use crate::fronted::{Front, Fronted};
use crate::harness::{folder, reason_of, soon};
use crate::store::connect;
use crate::store::meddled::{NO_QUEUE, meddle};

const INSTANT: Duration = Duration::from_micros(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Clocks that stand still until the test moves them, both alike.
#[derive(Default)]
struct Clocks(AtomicI64);

impl Clocks {
    fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).expect("a short time");
        self.0.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Clock for Clocks {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000 + self.0.load(Ordering::Relaxed))
    }

    fn steady(&self) -> Timestamp {
        self.now()
    }

    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn chance(&self) -> f64 {
        0.5
    }
}

/// A queue without a pool: a job waits until it is cancelled.
async fn open(store: impl JobStore) -> (JobQueue, Arc<Clocks>) {
    let settings = QueueSettings {
        types: [served("work", GivenRetention::default(), None)].into(),
        log_bytes_max: LOG_BYTES_DEFAULT,
        watchers_max: 10,
        waiting_max: WAITING_DEFAULT,
        ..QueueSettings::default()
    };
    open_with(store, settings).await
}

fn served(
    job_type: &'static str,
    retention: GivenRetention,
    event_retention: Option<Duration>,
) -> (Name, KnownType) {
    let settings = TypeSettings {
        retention,
        event_retention,
        ..TypeSettings::default()
    };
    let check = Arc::new(|_: Option<&Payload>| Ok(()));
    (Name::of(job_type), KnownType { settings, check })
}

async fn open_with(store: impl JobStore, settings: QueueSettings) -> (JobQueue, Arc<Clocks>) {
    let clocks = Arc::new(Clocks::default());
    let queue = JobQueue::open(Arc::new(store), clocks.clone(), settings).await;
    (queue.expect("it opens"), clocks)
}

async fn sqlite(dir: &Path) -> SqliteStore {
    let store = SqliteStore::open(&dir.join("jobs.db")).await;
    store.expect("a store")
}

/// The duties of a server, for as long as it is kept.
struct Duties(CancellationToken, TaskTracker);

impl Duties {
    fn start(queue: &JobQueue) -> Self {
        let duties = Self(CancellationToken::new(), TaskTracker::new());
        maintenance::start(queue, &duties.1, &duties.0);
        duties
    }

    async fn end(self) {
        self.0.cancel();
        self.1.close();
        soon(self.1.wait()).await;
    }
}

async fn submitted(queue: &JobQueue, key: &str) -> Arc<Job> {
    let mut submission = Submission::new("work", None);
    submission.idempotency_key = key.to_owned();
    queue.submit(submission).await.expect("stored").0
}

async fn over(queue: &JobQueue, key: &str) -> JobKey {
    let job = submitted(queue, key).await;
    let over = queue.cancel(&job.key, String::new()).await;
    over.expect("it waits").key.clone()
}

async fn is_there(queue: &JobQueue, key: &JobKey) -> bool {
    match queue.get(key, View::Basic).await {
        Ok(_) => true,
        Err(Error::NotFound { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

async fn gone(queue: &JobQueue, key: &JobKey) {
    soon(async {
        while is_there(queue, key).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn count(dir: &Path, sql: &'static str) -> i64 {
    let mut connection = connect(dir.join("jobs.db")).await;
    let row = sqlx::query(sql).fetch_one(&mut connection).await;
    row.expect("a row").get(0)
}

/// A group of lives from submit to end, each with a retention of its own.
fn lives(keys: &[JobKey], retention: Duration, clocks: &Clocks) -> Group {
    lives_with(5_000, keys, retention, clocks)
}

/// The same, with a result of so many bytes.
fn lives_with(result_bytes: usize, keys: &[JobKey], retention: Duration, clocks: &Clocks) -> Group {
    let entries = keys.iter().flat_map(|key| {
        let mut spec = JobSpec::of(Name::of("work"));
        spec.retention.finished = retention;
        let new = NewJob::new(key.clone(), spec, Some(Payload::data(vec![7; 1_000])));
        let submit = Entry::Submit {
            new: Box::new(new),
            hand_over: Some(0),
        };
        let change = Change::Finish {
            attempt: 1,
            outcome: Outcome::Succeeded(Some(Payload::data(vec![8; result_bytes]))),
            chance: 0.5,
            fingerprint: None,
        };
        let key = key.clone();
        [submit, Entry::Change { key, change }]
    });
    group(entries.collect(), clocks)
}

fn group(entries: Vec<Entry>, clocks: &Clocks) -> Group {
    Group {
        entries,
        demand: vec![],
        claimants: [(
            0,
            ClaimTerms {
                worker_id: "w".to_owned(),
                heard_at: clocks.steady(),
                lease_until: clocks.steady().after(LEASE),
                term: None,
            },
        )]
        .into(),
        room: Default::default(),
        key_limits: Arc::default(),
        now: clocks.now(),
    }
}

fn keys(count: usize) -> Vec<JobKey> {
    let key = |_| JobKey {
        tenant: default_tenant(),
        id: JobId::new(Uuid::now_v7()),
    };
    (0..count).map(key).collect()
}

#[tokio::test]
async fn a_job_goes_at_the_end_of_its_retention_and_not_before() {
    let dir = folder();
    let (queue, clocks) = open(sqlite(dir.path()).await).await;
    let key = over(&queue, "").await;
    clocks.pass(RETENTION_DEFAULT - INSTANT);
    let done = queue.purge_due(10).await.expect("it is done");
    assert_eq!((done.jobs, done.more), (0, false));
    assert_eq!(done.next, Some(clocks.now().after(INSTANT)));
    assert!(is_there(&queue, &key).await);
    clocks.pass(INSTANT);
    let done = queue.purge_due(10).await.expect("it is done");
    assert_eq!((done.jobs, done.more, done.next), (1, false, None));
    assert!(!is_there(&queue, &key).await);
    queue.close().await;
}

/// Goal: a job is kept as it says itself, else as its type, else as its tenant, else by default; its retry is
/// kept as long. Method: each is cancelled where it waits, and says until when it is kept.
#[tokio::test]
async fn a_job_is_kept_as_its_tenant_says_where_nobody_nearer_does() {
    let dir = folder();
    let said = |finished, failed| GivenRetention { finished, failed };
    let acme = TenantSettings {
        retention: said(Some(HOUR), Some(2 * HOUR)),
        ..TenantSettings::default()
    };
    let settings = QueueSettings {
        types: [
            served("work", GivenRetention::default(), None),
            served("brief", said(Some(3 * HOUR), None), None),
        ]
        .into(),
        tenants: [(Name::of("acme"), acme)].into(),
        ..QueueSettings::default()
    };
    let (queue, clocks) = open_with(sqlite(dir.path()).await, settings).await;
    let ask = |tenant, job_type, retention| Submission {
        tenant: Name::of(tenant),
        retention,
        ..Submission::new(job_type, None)
    };
    let kept = async |key: &JobKey| {
        let over = queue.cancel(key, String::new()).await.expect("it waits");
        over.purge_at.map(|at| at.since(clocks.now()))
    };
    for (tenant, job_type, own, finished) in [
        ("other", "work", None, RETENTION_DEFAULT),
        ("acme", "work", None, HOUR),
        ("acme", "brief", None, 3 * HOUR),
        ("acme", "work", Some(HOUR), HOUR),
        ("acme", "brief", Some(HOUR / 2), HOUR / 2),
        ("other", "work", Some(2 * HOUR), 2 * HOUR),
    ] {
        let submitted = queue.submit(ask(tenant, job_type, own)).await;
        let (job, _) = submitted.expect("it is taken");
        assert_eq!(kept(&job.key).await, Some(finished), "{tenant} {job_type}");
        let (again, _) = queue.retry(&job.key).await.expect("it was cancelled");
        assert_eq!(again.spec.retention, job.spec.retention);
        assert_eq!(kept(&again.key).await, Some(finished));
    }
    let (job, _) = queue
        .submit(ask("acme", "brief", None))
        .await
        .expect("taken");
    assert_eq!(
        job.spec.retention.failed,
        2 * HOUR,
        "the tenant's dead letters"
    );
    for job_type in ["work", "brief"] {
        let refused = queue.submit(ask("acme", job_type, Some(HOUR + INSTANT)));
        let refused = refused.await.expect_err("more than its tenant allows");
        let bound = "tenant acme sets 1h, and no more is accepted";
        assert!(refused.to_string().contains(bound), "{refused}");
    }
    queue.close().await;
}

/// A queue of jobs that lose the front of their logs so long after their end.
async fn open_with_fronts(store: impl JobStore, kept: Duration) -> (JobQueue, Arc<Clocks>) {
    let settings = QueueSettings {
        types: [served("work", GivenRetention::default(), Some(kept))].into(),
        ..QueueSettings::default()
    };
    open_with(store, settings).await
}

async fn first_sequence(queue: &JobQueue, key: &JobKey) -> i64 {
    let found = queue.get(key, View::Basic).await.expect("it is kept");
    found.job.first_sequence
}

/// Goal: the front of a log goes at the end of its time and not before, although the server was started anew
/// meanwhile; the job itself at the end of its own.
#[tokio::test]
async fn the_front_of_a_log_goes_at_its_time_and_the_job_at_its_own() {
    let dir = folder();
    let (queue, clocks) = open_with_fronts(sqlite(dir.path()).await, HOUR).await;
    let key = over(&queue, "").await;
    clocks.pass(HOUR - INSTANT);
    let done = queue.purge_due(10).await.expect("it is done");
    assert_eq!((done.jobs, done.logs, done.more), (0, 0, false));
    assert_eq!(done.next, Some(clocks.now().after(INSTANT)));
    assert_eq!(first_sequence(&queue, &key).await, 1);
    queue.close().await;

    let (queue, clocks) = open(sqlite(dir.path()).await).await;
    clocks.pass(HOUR);
    let done = queue.purge_due(10).await.expect("it is done");
    assert_eq!((done.jobs, done.logs), (0, 1));
    assert_eq!(
        done.next,
        Some(clocks.now().after(RETENTION_DEFAULT - HOUR))
    );
    assert_eq!(first_sequence(&queue, &key).await, 2, "all but its end");
    let done = queue.purge_due(10).await.expect("it is done");
    assert_eq!((done.jobs, done.logs, done.more), (0, 0, false));
    clocks.pass(RETENTION_DEFAULT - HOUR);
    let done = queue.purge_due(10).await.expect("it is done");
    assert_eq!((done.jobs, done.logs, done.next), (1, 0, None));
    assert!(!is_there(&queue, &key).await);
    queue.close().await;
}

/// Goal: the duty wakes for a front that may go sooner than anything else, and goes on after a failure.
#[tokio::test]
async fn fronts_go_although_a_purge_fails() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let (queue, _) = open_with_fronts(Fronted(store.clone()), Duration::ZERO).await;
    let duties = Duties::start(&queue);
    for error in [None, Some(StoreError::DiskFull)] {
        let waits = submitted(&queue, "").await.key.clone();
        if let Some(error) = error {
            store.fail_next_purge(error);
        }
        queue.cancel(&waits, String::new()).await.expect("it waits");
        soon(async {
            while first_sequence(&queue, &waits).await == 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    duties.end().await;
    queue.close().await;
}

/// Goal: very many fronts leave room for others, and nothing else goes with them. Method: submits one after
/// the other while they go; then payloads and ends are counted.
#[tokio::test]
async fn others_come_in_between_while_many_fronts_go() {
    const JOBS: usize = 1_000;
    let dir = folder();
    let store = sqlite(dir.path()).await;
    let clocks = Clocks::default();
    for keys in keys(JOBS).chunks(250) {
        let mut group = lives(keys, HOUR, &clocks);
        // A commit for each step, so that each log has two segments.
        let (submits, ends): (Vec<_>, Vec<_>) = std::mem::take(&mut group.entries)
            .into_iter()
            .partition(|entry| matches!(entry, Entry::Submit { .. }));
        let submits = submits.into_iter().map(|mut entry| {
            if let Entry::Submit { new, .. } = &mut entry {
                Arc::make_mut(&mut new.spec).event_retention = Some(Duration::ZERO);
            }
            entry
        });
        group.entries = submits.collect();
        store.commit(group.clone()).await.expect("stored");
        group.entries = ends;
        store.commit(group).await.expect("stored");
    }
    let (queue, _) = open(store).await;
    let duties = Duties::start(&queue);
    let due = "select count(*) from jobs where events_purge_at_us is not null";
    assert!(count(dir.path(), "select count(*) from segments").await > JOBS as i64);
    let mut meanwhile = 0;
    soon(async {
        while count(dir.path(), due).await > 0 {
            submitted(&queue, "").await;
            meanwhile += 1;
        }
    })
    .await;
    assert!(meanwhile > 1, "{meanwhile}");
    duties.end().await;
    let jobs = JOBS as i64;
    for (sql, expected) in [
        ("select count(*) from jobs", jobs + meanwhile),
        ("select count(*) from segments", jobs + meanwhile),
        ("select count(*) from payloads", 2 * jobs),
        ("select count(*) from jobs where first_sequence > 1", jobs),
    ] {
        assert_eq!(count(dir.path(), sql).await, expected, "{sql}");
    }
    queue.close().await;
}

#[tokio::test]
async fn a_key_holds_for_a_day_whatever_the_retention_and_is_free_afterwards() {
    let dir = folder();
    let store = sqlite(dir.path()).await;
    let clocks = Clocks::default();
    let mut new = keys(1);
    let mut spec = JobSpec::of(Name::of("work"));
    spec.retention.finished = Duration::ZERO;
    spec.idempotency_key = Some("k".to_owned());
    let key = new.remove(0);
    let submit = Entry::Submit {
        new: Box::new(NewJob::new(key.clone(), spec, None)),
        hand_over: None,
    };
    store
        .commit(group(vec![submit], &clocks))
        .await
        .expect("stored");
    let (queue, clocks) = open(store).await;
    queue.cancel(&key, String::new()).await.expect("it waits");
    clocks.pass(IDEMPOTENCY_KEY_KEPT - INSTANT);
    assert_eq!(queue.purge_due(10).await.expect("it is done").jobs, 0);
    clocks.pass(INSTANT);
    assert_eq!(queue.purge_due(10).await.expect("it is done").jobs, 1);
    let again = submitted(&queue, "k").await;
    assert_ne!(again.key, key);
    queue.close().await;
}

/// A store that notes what each transaction is asked to remove.
struct Noting {
    store: SqliteStore,
    asked: Arc<Mutex<Vec<Vec<Purge>>>>,
}

#[async_trait]
impl Front for Noting {
    fn store(&self) -> &dyn JobStore {
        &self.store
    }

    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError> {
        let asked = || self.asked.lock().expect("not poisoned");
        asked().push(purge.clone());
        self.store.purge(purge).await
    }
}

#[tokio::test]
async fn a_full_round_of_retention_is_one_transaction() {
    let dir = folder();
    let asked = Arc::default();
    let store = Noting {
        store: sqlite(dir.path()).await,
        asked: Arc::clone(&asked),
    };
    let (queue, clocks) = open_with_fronts(Fronted(store), HOUR).await;
    let mut last = over(&queue, "").await;
    for _ in 1..40 {
        last = over(&queue, "").await;
    }
    clocks.pass(RETENTION_DEFAULT);
    let duties = Duties::start(&queue);
    gone(&queue, &last).await;
    duties.end().await;
    queue.close().await;
    let asked = asked.lock().expect("not poisoned");
    let first: &Vec<Purge> = asked.first().expect("a transaction");
    assert!(first.len() > 60, "{}", first.len());
    assert_eq!(
        first.last(),
        Some(&Purge::Rest),
        "nothing of it is left over"
    );
}

/// Goal: a job that is due and cannot be removed stands in nobody's way, and is no failure of the rounds
/// after it. Method: it is the first that is due, and a round takes one.
#[tokio::test]
async fn what_cannot_be_removed_stands_in_nobodys_way() {
    let dir = folder();
    let (queue, clocks) = open(sqlite(dir.path()).await).await;
    let stays = over(&queue, "").await;
    meddle(dir.path().join("jobs.db"), &stays, NO_QUEUE).await;
    for _ in 0..3 {
        clocks.pass(INSTANT);
        let key = over(&queue, "").await;
        clocks.pass(RETENTION_DEFAULT);
        let mut gone = 0;
        let mut rounds = 0;
        loop {
            let done = queue.purge_due(1).await.expect("a round");
            gone += done.jobs;
            rounds += 1;
            assert!(rounds < 10, "it never ends");
            if !done.more {
                assert_eq!(done.next, None);
                break;
            }
        }
        assert_eq!(gone, 1);
        assert!(!is_there(&queue, &key).await);
    }
    let left = count(dir.path(), "select count(*) from jobs").await;
    assert_eq!(left, 1);
    queue.close().await;
}

/// Goal: the duty wakes when a job ends that may go sooner than any other, and goes on after a failure.
/// Method: it sleeps for a week's end already; jobs with no retention end, and the first purge fails.
#[tokio::test]
async fn retention_wakes_for_what_ends_and_outlives_failures() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let clocks = Clocks::default();
    let waiting = keys(3);
    let entries = waiting.iter().map(|key| {
        let mut spec = JobSpec::of(Name::of("work"));
        spec.retention.finished = Duration::ZERO;
        Entry::Submit {
            new: Box::new(NewJob::new(key.clone(), spec, None)),
            hand_over: None,
        }
    });
    store
        .commit(group(entries.collect(), &clocks))
        .await
        .expect("stored");
    let (queue, _) = open(Fronted(store.clone())).await;
    let duties = Duties::start(&queue);
    let later = over(&queue, "").await;
    for error in [
        None,
        Some(StoreError::DiskFull),
        Some(StoreError::Internal("this test's fault".to_owned())),
    ]
    .into_iter()
    .zip(&waiting)
    {
        let (error, key) = error;
        if let Some(error) = error {
            store.fail_next_purge(error);
        }
        queue.cancel(key, String::new()).await.expect("it waits");
        gone(&queue, key).await;
    }
    assert!(is_there(&queue, &later).await);
    duties.end().await;
    queue.close().await;
}

/// Goal: what was asked for before the end is done, and nothing else is begun there: a queue that closes
/// answers every removal, and claims nothing more.
#[tokio::test]
async fn a_queue_that_closes_removes_what_it_was_asked_to() {
    let dir = folder();
    let store = sqlite(dir.path()).await;
    let over = keys(300);
    for keys in over.chunks(100) {
        let group = lives(keys, RETENTION_DEFAULT, &Clocks::default());
        store.commit(group).await.expect("stored");
    }
    let (queue, _) = open(store).await;
    let purge: Vec<Purge> = over.iter().cloned().map(Purge::Job).collect();
    let (purged, ()) = soon(async { tokio::join!(queue.purge(purge), queue.close()) }).await;
    let expected: Vec<Purged> = over.iter().cloned().map(Purged::Job).collect();
    assert_eq!(purged.expect("it was asked first"), expected);
    assert_eq!(count(dir.path(), "select count(*) from jobs").await, 0);
}

/// Goal: a call that finds the disk full before its first job says so, and loses nothing: the same call does
/// all of it once there is room.
#[tokio::test]
async fn deleting_many_on_a_full_disk_says_so_and_is_done_later() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let over = keys(100);
    let group = lives(&over, RETENTION_DEFAULT, &Clocks::default());
    store.commit(group).await.expect("stored");
    let (queue, _) = open(Fronted(store.clone())).await;
    let query = ListQuery::all(default_tenant());
    store.fail_next_purge(StoreError::DiskFull);
    let refused = queue.delete_many(query.clone(), 0, "").await;
    assert!(
        matches!(refused, Err(Error::Exhausted { .. })),
        "{refused:?}"
    );
    let page = queue
        .delete_many(query, 0, "")
        .await
        .expect("there is room");
    assert_eq!((page.deleted, page.next_token), (100, None));
    queue.close().await;
}

/// Goal: a call that finds the disk full in its middle counts what has gone, and the next one begins there.
/// Method: the same hundred jobs, and a disk that is full before the first, the second, … transaction, until
/// there are no more; what was counted and what is still listed are all of them.
#[tokio::test]
async fn deleting_many_counts_what_has_gone_wherever_the_disk_gets_full() {
    const JOBS: usize = 100;
    let mut deleted_first = Vec::new();
    for transactions in 0.. {
        let dir = folder();
        let store = Faulty::open(dir.path()).await;
        // So large that what is asked for in one go takes several transactions.
        let group = lives_with(40_000, &keys(JOBS), RETENTION_DEFAULT, &Clocks::default());
        store.commit(group).await.expect("stored");
        let server = FaultyServer::on(store.clone(), WAITING_DEFAULT).await;
        let listed = async || {
            let request = pb::ListRequest {
                page_size: 1_000,
                ..pb::ListRequest::default()
            };
            let page = server.client.clone().list(request).await.expect("a read");
            page.into_inner().jobs.len()
        };
        let delete = async |page_token: String| {
            let request = pb::DeleteManyRequest {
                all: true,
                page_token,
                ..pb::DeleteManyRequest::default()
            };
            let answer = server.client.clone().delete_many(request).await;
            answer.map(tonic::Response::into_inner)
        };
        store.fail_purge_after(transactions, StoreError::DiskFull);
        let mut page_token = String::new();
        if transactions == 0 {
            let refused = delete(String::new()).await.expect_err("no room");
            let expected = (Code::ResourceExhausted, "DISK_FULL".to_owned());
            assert_eq!(reason_of(&refused), expected);
            assert_eq!(listed().await, JOBS);
        } else {
            let page = delete(String::new()).await.expect("some of it is done");
            let deleted = usize::try_from(page.deleted_count).expect("a few");
            assert_eq!(
                deleted + listed().await,
                JOBS,
                "{transactions} transactions"
            );
            if store.spare_purges() {
                assert_eq!((deleted, page.next_page_token.as_str()), (JOBS, ""));
                break;
            }
            deleted_first.push(deleted);
            page_token = page.next_page_token;
            assert_ne!(page_token, "", "there are more");
            // It says why it cannot go on, and loses nothing.
            store.fail_next_purge(StoreError::DiskFull);
            let refused = delete(page_token.clone()).await.expect_err("no room");
            assert_eq!(reason_of(&refused).1, "DISK_FULL");
            assert_eq!(deleted + listed().await, JOBS);
        }
        let done = deleted_first.get(transactions.wrapping_sub(1)).copied();
        let page = delete(page_token).await.expect("there is room");
        let rest = usize::try_from(page.deleted_count).expect("a few");
        assert_eq!((done.unwrap_or(0) + rest, listed().await), (JOBS, 0));
        assert_eq!(page.next_page_token, "");
    }
    assert!(deleted_first.is_sorted(), "{deleted_first:?}");
    // Before, in and behind the first 64, which are removed in one go.
    let [first, .., last] = deleted_first[..] else {
        panic!("{deleted_first:?}");
    };
    assert!(first < 64 && last > 64, "{deleted_first:?}");
}

/// Goal: a purge of very many jobs leaves room for others, and takes nothing else. Method: submits one after
/// the other while it runs; in the end exactly they are there.
#[tokio::test]
async fn others_come_in_between_while_many_jobs_go() {
    let dir = folder();
    let store = sqlite(dir.path()).await;
    let clocks = Clocks::default();
    for keys in keys(2_000).chunks(250) {
        let group = lives(keys, Duration::ZERO, &clocks);
        store.commit(group).await.expect("stored");
    }
    let (queue, _) = open(store).await;
    let duties = Duties::start(&queue);
    let due = "select count(*) from jobs where purge_at_us is not null";
    let (mut meanwhile, mut kept) = (0, 0);
    soon(async {
        while count(dir.path(), due).await > 0 {
            submitted(&queue, "").await;
            meanwhile += 1;
        }
        kept = count(dir.path(), "select count(*) from jobs").await;
    })
    .await;
    assert_eq!(kept, meanwhile);
    assert!(meanwhile > 1, "{meanwhile}");
    for table in [
        "select count(*) from payloads",
        "select count(*) from log_rests",
    ] {
        assert_eq!(count(dir.path(), table).await, 0, "{table}");
    }
    let segments = count(dir.path(), "select count(*) from segments").await;
    assert_eq!(segments, meanwhile);
    duties.end().await;
    queue.close().await;
}

/// Goal: what a server that died left of a long log goes with the next one. Method: a purge of a job with
/// many segments, a store that is dropped, and a queue that never hears of the job.
#[tokio::test]
async fn what_is_left_of_a_long_log_goes_after_a_crash() {
    let dir = folder();
    let clocks = Clocks::default();
    let key = keys(1).remove(0);
    {
        let store = sqlite(dir.path()).await;
        let mut spec = JobSpec::of(Name::of("work"));
        spec.progress_interval = Duration::ZERO;
        let new = Box::new(NewJob::new(key.clone(), spec, None));
        let submit = Entry::Submit {
            new,
            hand_over: Some(0),
        };
        store
            .commit(group(vec![submit], &clocks))
            .await
            .expect("stored");
        let report = || Change::Report {
            attempt: 1,
            reports: vec![Report::Output {
                stream: "stdout".to_owned(),
                chunk: Payload::text("x"),
            }],
            heard_at: clocks.steady(),
            lease_until: clocks.steady().after(LEASE),
            number: 0,
        };
        let finish = Change::Finish {
            attempt: 1,
            outcome: Outcome::Succeeded(None),
            chance: 0.5,
            fingerprint: None,
        };
        for change in (0..900).map(|_| report()).chain([finish]) {
            let key = key.clone();
            let entries = vec![Entry::Change { key, change }];
            store.commit(group(entries, &clocks)).await.expect("stored");
        }
        let purge = vec![Purge::Job(key.clone())];
        store.purge(purge).await.expect("it is done");
    }
    let left = "select count(*) from segments";
    assert!(count(dir.path(), left).await > 0, "it was not that long");
    let (queue, _) = open(sqlite(dir.path()).await).await;
    assert!(!is_there(&queue, &key).await);
    let duties = Duties::start(&queue);
    soon(async {
        while count(dir.path(), "select count(*) from log_rests").await > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(count(dir.path(), left).await, 0);
    duties.end().await;
    queue.close().await;
}

/// Goal: room that was made is used again. Method: rounds of jobs that come and go; the file of the last one
/// is as large as that of the first.
#[tokio::test]
async fn the_file_does_not_grow_over_rounds_of_jobs_that_come_and_go() {
    let dir = folder();
    let store = sqlite(dir.path()).await;
    let clocks = Clocks::default();
    let mut pages = Vec::new();
    for _ in 0..5 {
        let keys = keys(500);
        for keys in keys.chunks(250) {
            let group = lives(keys, Duration::ZERO, &clocks);
            store.commit(group).await.expect("stored");
        }
        pages.push(count(dir.path(), "pragma page_count").await);
        let mut left: Vec<Purge> = keys.into_iter().map(Purge::Job).collect();
        while !left.is_empty() {
            let some = left.len().min(32);
            let purged = store.purge(left[..some].to_vec()).await;
            let purged = purged.expect("it is done");
            let done = |one: &&Purged| **one != Purged::Later;
            left.drain(..purged.iter().filter(done).count());
        }
    }
    let (first, last) = (pages[0], pages[4]);
    assert!(first > 500, "{pages:?}");
    assert!(last * 20 <= first * 21, "{pages:?}");
    store.close().await;
}
