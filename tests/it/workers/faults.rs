//! Workers and a server that cannot hear them: damaged rows, a full disk, a process that stood still, callers that
//! went away. What is no worker's fault costs no worker its lease, and no job an attempt.

use std::pin::pin;

use futures_util::future::poll_immediate;
use pacenote::config::TypeSettings;
use pacenote::error::{Error, Limit, Precondition};
use pacenote::job::event::JobError;
use pacenote::job::limits::{
    LOG_BYTES_DEFAULT, WAITING_DEFAULT, WATCHERS_DEFAULT, WORKERS_WAITING_MAX,
};
use pacenote::job::name::JobKey;
use pacenote::job::progress::Progress;
use pacenote::job::time::SystemClock;
use pacenote::job::{Job, JobState, Outcome, Report};
use pacenote::queue::{JobQueue, KnownType, Lease, LeasedJob, Places, QueueSettings};
use pacenote::store::{StoreError, View};
use tokio::task::JoinSet;

use super::*;
use crate::clock::OwnedClock;
use crate::errors_store::Faulty;
use crate::fronted::Fronted;
use crate::harness::{job_key, one_place, output as said};
use crate::life::settings;
use crate::life_time;
use crate::store::bench::connect;
use crate::store::meddled::{DAMAGED, meddle};

const TERM: Duration = Duration::from_secs(15);
const SECOND: Duration = Duration::from_secs(1);

/// A queue without a pool or duties, on a store that fails when it is told to. Serves the type `work`.
async fn open(store: &Faulty, clock: Arc<dyn Clock>, settings: TypeSettings) -> JobQueue {
    let work = KnownType {
        settings,
        check: Arc::new(|_| Ok(())),
    };
    let settings = QueueSettings {
        types: [(Name::of("work"), work)].into(),
        log_bytes_max: LOG_BYTES_DEFAULT,
        watchers_max: WATCHERS_DEFAULT,
        waiting_max: WAITING_DEFAULT,
        ..QueueSettings::default()
    };
    let opened = JobQueue::open(Arc::new(Fronted(store.clone())), clock, settings).await;
    opened.expect("it opens")
}

fn work_request(max_jobs: usize, term: Duration) -> WorkRequest {
    WorkRequest {
        tenant: default_tenant(),
        worker_id: "worker-1".to_owned(),
        types: vec![Name::of("work")],
        queues: Vec::new(),
        max_jobs,
        term,
        wait: Duration::ZERO,
    }
}

/// New jobs that a worker holds.
async fn held(queue: &JobQueue, jobs: usize, term: Duration) -> Vec<LeasedJob> {
    for _ in 0..jobs {
        life_time::submit(queue).await;
    }
    let mut held = Vec::new();
    while held.len() < jobs {
        let work = soon(queue.lease(work_request(jobs - held.len(), term), |_| true)).await;
        held.extend(work.expect("a good request").jobs);
    }
    held
}

fn key_of(leased: &LeasedJob) -> &JobKey {
    &leased.snapshot.job.key
}

async fn job_of(queue: &JobQueue, key: &JobKey) -> Arc<Job> {
    queue.get(key, View::Basic).await.expect("it is there").job
}

async fn renew(queue: &JobQueue, leased: &LeasedJob) -> Result<(), Error> {
    let tenant = default_tenant();
    let renewed = queue.report_as(&tenant, &leased.token, 0, Vec::new());
    soon(renewed).await.map(drop)
}

/// How many attempts the sweep of the server ends now.
async fn sweep(queue: &JobQueue) -> Result<usize, Error> {
    soon(queue.sweep_lost_leases(queue.steady_now())).await
}

fn assert_full<T: std::fmt::Debug>(refused: Result<T, Error>) {
    let limit = Limit::DiskFull;
    assert!(
        matches!(&refused, Err(Error::Exhausted { limit: full, .. }) if *full == limit),
        "{refused:?}"
    );
}

/// Goal: a lease of which the server can say nothing, because its job's row is damaged or cannot be written, is
/// neither renewed nor lost, and takes no other lease along. Method: one row damaged between two servers, so that
/// nobody remembers it, and one that fails every commit that changes it.
#[tokio::test]
async fn a_lease_that_nothing_is_known_of_takes_no_other_along() {
    const UNWRITABLE: &str = "
create trigger unwritable before update on jobs when old.priority = 7
begin select raise(abort, 'this test''s fault'); end";
    let dir = folder();
    let path = || dir.path().join("pacenote.db");
    let scene = Scene::on(&dir).await;
    let (damaged, unwritable, lost) = (1, 4, 6);
    let mut held = Vec::new();
    for index in 0..7 {
        let request = pb::SubmitRequest {
            priority: if index == unwritable { 7 } else { 0 },
            ..submit_request("work")
        };
        scene.server.submit(request).await;
        held.push(scene.lease_one().await);
    }
    scene.stop().await;
    meddle(path(), &job_key(&id_of(&held[damaged])), DAMAGED).await;
    let server = Setup::on(dir.path()).start().await;
    let worker = worker_of(&server).await;
    let scene = Scene { server, worker };
    let ended = scene.finish(&held[lost].lease_token, done("over")).await;
    ended.expect("its end");
    let mut beside = connect(path()).await;
    let made = sqlx::query(UNWRITABLE).execute(&mut beside).await;
    made.expect("a trigger");
    let tokens: Vec<&str> = held.iter().map(|one| one.lease_token.as_str()).collect();
    for _ in 0..2 {
        for (index, status) in scene.extend(&tokens).await.iter().enumerate() {
            let renewed = status.lease_expire_time.is_some();
            let holds = ![damaged, unwritable, lost].contains(&index);
            let expected = (holds, index == lost);
            assert_eq!((renewed, status.lost), expected, "{index}");
        }
    }
    scene.stop().await;
}

/// Goal: however many leases end at once, one sweep ends them all, also where attempts stand before them that it
/// leaves alone. Method: attempts of this process, whose leases ended first, and a worker that died with many jobs.
#[tokio::test]
async fn one_sweep_ends_all_leases_that_are_over() {
    const OF_THE_POOL: usize = 300;
    const OF_WORKERS: usize = 700;
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let queue = life_time::open(dir.path(), &clock, TypeSettings::default()).await;
    let (claimed, mut handed) = tokio::sync::mpsc::unbounded_channel();
    let places = Places::new(OF_THE_POOL, [(Name::of("work"), OF_THE_POOL)]);
    let begin = Box::new(move |job| claimed.send(job).expect("the test is there"));
    queue.attach_pool("test".to_owned(), places, begin).await;
    let mut alive = Vec::new();
    for _ in 0..OF_THE_POOL {
        life_time::submit(&queue).await;
        alive.push(soon(handed.recv()).await.expect("claimed"));
    }
    clock.pass(SECOND);
    let dead = held(&queue, OF_WORKERS, TERM).await;
    clock.pass(TERM + SECOND);
    assert_eq!(sweep(&queue).await.expect("swept"), OF_WORKERS);
    for leased in &dead {
        let job = job_of(&queue, key_of(leased)).await;
        assert_eq!((job.state, job.attempts_charged), (JobState::Queued, 1));
    }
    for one in &alive {
        let job = job_of(&queue, &one.claimed.job.key).await;
        assert_eq!((job.state, job.attempt), (JobState::Running, 1));
    }
    queue.close().await;
}

/// Goal: while the server stood still nobody could renew anything: each lease holds for its own full term from when it
/// came back, and whoever was gone before is gone after it. Method: what the sweeping duty does, by a clock of the
/// test's, with leases of the shortest, the usual and the longest term.
#[tokio::test]
async fn leases_begin_anew_after_the_server_stood_still() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let queue = life_time::open(dir.path(), &clock, TypeSettings::default()).await;
    let terms = [5, 15, 300].map(Duration::from_secs);
    let mut leased = Vec::new();
    for term in terms {
        leased.push(held(&queue, 1, term).await.remove(0));
    }
    clock.pass(SECOND * 1_000);
    queue.begin_leases_anew();
    let mut passed = Duration::ZERO;
    for (term, leased) in terms.into_iter().zip(&leased) {
        clock.pass(term - passed);
        passed = term;
        assert_eq!(sweep(&queue).await.expect("swept"), 0, "{term:?}");
        clock.pass(SECOND);
        passed += SECOND;
        assert_eq!(sweep(&queue).await.expect("swept"), 1, "{term:?}");
        let state = job_of(&queue, key_of(leased)).await.state;
        assert_eq!(state, JobState::Queued);
    }
    // Leases that are given from here on know nothing of it.
    held(&queue, 3, terms[0]).await;
    clock.pass(terms[0] + SECOND);
    assert_eq!(sweep(&queue).await.expect("swept"), 3);
    queue.close().await;
}

/// Goal: what no worker can renew because the store has no room is not lost once it has: each lease begins anew.
/// Method: leases of two terms, the one renewed in vain and the other not even tried, on a store that is full for
/// longer than both hold.
#[tokio::test]
async fn leases_outlive_a_full_disk() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let store = Faulty::open(dir.path()).await;
    let queue = open(&store, clock.clone(), TypeSettings::default()).await;
    let short = held(&queue, 2, TERM).await;
    let long = held(&queue, 1, TERM * 4).await.remove(0);
    store.fail_every_commit(StoreError::DiskFull);
    clock.pass(SECOND * 5);
    assert_full(renew(&queue, &short[0]).await);
    clock.pass(TERM * 5);
    for _ in 0..2 {
        assert_full(sweep(&queue).await);
        clock.pass(SECOND);
    }
    store.spare_commits();
    assert_eq!(sweep(&queue).await.expect("swept"), 0, "each begins anew");
    clock.pass(TERM - SECOND);
    renew(&queue, &short[0]).await.expect("it holds the lease");
    assert_eq!(sweep(&queue).await.expect("swept"), 0);
    clock.pass(SECOND * 2);
    // Whoever has not come back since is gone.
    assert_eq!(sweep(&queue).await.expect("swept"), 1);
    assert_eq!(
        job_of(&queue, key_of(&short[1])).await.state,
        JobState::Queued
    );
    clock.pass(TERM * 3 - SECOND * 2);
    renew(&queue, &long).await.expect("it holds the lease");
    assert_eq!(sweep(&queue).await.expect("swept"), 1, "nobody renews it");
    assert_eq!(
        job_of(&queue, key_of(&short[0])).await.state,
        JobState::Queued
    );
    queue.close().await;
}

/// Goal: who was told to come back later is not silent until then. Method: two attempts with the same heartbeat
/// timeout, of which the one tells something that finds no room; that of the other is the signal that the time is over.
#[tokio::test]
async fn a_report_that_found_no_room_is_no_silence() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let silent = settings(|settings| {
        settings.timeouts.heartbeat_timeout = Some(SECOND);
        settings.retry_policy.max_attempts = 1;
    });
    let queue = open(&store, Arc::new(SystemClock::new()), silent).await;
    let talks = held(&queue, 1, TERM).await.remove(0);
    store.fail_next_commit(StoreError::DiskFull);
    let tenant = default_tenant();
    let told = queue.report_as(&tenant, &talks.token, 1, vec![said("a")]);
    assert_full(soon(told).await);
    let is_silent = held(&queue, 1, TERM).await.remove(0);
    let waited = queue.wait(
        key_of(&is_silent),
        Duration::from_secs(20),
        None,
        View::Basic,
    );
    let job = soon(waited).await.expect("it is there").snapshot.job;
    let error = job.detail.error.as_ref().expect("why");
    assert_eq!(error.reason, "HEARTBEAT_TIMEOUT");
    assert_eq!(
        job_of(&queue, key_of(&talks)).await.state,
        JobState::Running
    );
    queue.close().await;
}

/// Goal: a server that starts on a full disk ends no worker's lease for it, and once there is room does what its start
/// could not: leases of workers hold for a fresh term by its own clock, attempts of the process before it are ended.
/// Method: the next server's steady clock stands elsewhere, so that what the one before it stored means nothing.
#[tokio::test]
async fn leases_outlive_a_start_on_a_full_disk() {
    for later in [Duration::ZERO, Duration::from_secs(1_000_000)] {
        let dir = folder();
        let store = Faulty::open(dir.path()).await;
        let before = OwnedClock::new(1);
        before.pass(Duration::from_secs(500_000));
        let queue = open(&store, before, TypeSettings::default()).await;
        let leased = held(&queue, 2, TERM).await;
        let (places, mut handed) = one_place(&queue, "work").await;
        let of_pool = life_time::submit(&queue).await;
        soon(handed.recv()).await.expect("claimed");
        queue.close().await;
        drop((queue, handed, places));
        store.let_go().await;

        let store = Faulty::open(dir.path()).await;
        store.fail_every_commit(StoreError::DiskFull);
        let clock = OwnedClock::new(1);
        clock.pass(later);
        let queue = open(&store, clock.clone(), TypeSettings::default()).await;
        for _ in 0..2 {
            clock.pass(TERM * 2);
            assert_full(sweep(&queue).await);
        }
        store.spare_commits();
        assert_eq!(sweep(&queue).await.expect("swept"), 0);
        let job = job_of(&queue, &of_pool).await;
        assert_eq!((job.state, job.attempts_lost), (JobState::Queued, 1));
        clock.pass(TERM - SECOND);
        renew(&queue, &leased[0]).await.expect("it holds the lease");
        assert_eq!(sweep(&queue).await.expect("swept"), 0);
        clock.pass(SECOND * 2);
        assert_eq!(sweep(&queue).await.expect("swept"), 1);
        let state = job_of(&queue, key_of(&leased[1])).await.state;
        assert_eq!(state, JobState::Queued);
        queue.close().await;
    }
}

/// A claim of which nobody hears.
async fn claim_in_vain(queue: &JobQueue, key: &JobKey) {
    let attempt = job_of(queue, key).await.attempt;
    let work = soon(queue.lease(work_request(1, TERM), |_| false)).await;
    assert_eq!(work.expect("a good request").jobs.len(), 0);
    queue.settle().await;
    let job = job_of(queue, key).await;
    assert_eq!((job.state, job.attempt), (JobState::Queued, attempt + 1));
}

/// Goal: a job that was claimed for a caller of whom nothing more was heard has not begun: it expires when it would
/// have, and its attempts that were lost before are still lost in a row.
#[tokio::test]
async fn a_claim_that_nobody_heard_of_leaves_a_job_as_it_was() {
    const MINUTE: Duration = Duration::from_secs(60);
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let timed = settings(|settings| {
        settings.timeouts.queue_timeout = Some(MINUTE);
        settings.retry_policy.max_attempts = 10;
    });
    let queue = life_time::open(dir.path(), &clock, timed).await;
    let late = life_time::submit(&queue).await;
    clock.pass(MINUTE / 2);
    for _ in 0..2 {
        claim_in_vain(&queue, &late).await;
    }
    assert_eq!(job_of(&queue, &late).await.detail.started_at, None);
    clock.pass(MINUTE / 2);
    queue.expire_waiting().await.expect("the store works");
    let expired = (JobState::Expired, "QUEUE_TIMEOUT".to_owned());
    assert_eq!(life_time::state_of(&queue, &late).await, expired);

    let poison = life_time::submit(&queue).await;
    for lost in 1..=3 {
        let work = soon(queue.lease(work_request(1, TERM), |_| true)).await;
        assert_eq!(work.expect("a good request").jobs.len(), 1);
        clock.pass(TERM + SECOND);
        assert_eq!(sweep(&queue).await.expect("swept"), 1);
        assert_eq!(job_of(&queue, &poison).await.attempts_lost, lost);
        if lost < 3 {
            claim_in_vain(&queue, &poison).await;
            // It was started in time once: no queue timeout ends it any more.
            assert_eq!(job_of(&queue, &poison).await.deadline_at, None);
        }
    }
    let failed = (JobState::Failed, "WORKER_LOST".to_owned());
    assert_eq!(life_time::state_of(&queue, &poison).await, failed);
    queue.close().await;
}

/// Goal: what has no length fills the log's bound all the same: no worker grows a log without end.
#[tokio::test]
async fn what_is_empty_fills_the_log_as_well() {
    const BOUND: u64 = 10_000;
    let dir = folder();
    let setup = Setup::on(dir.path()).config(|config| config.log_bytes_max = BOUND);
    let scene = Scene::new(setup).await;
    let line = pb::WorkerEvent {
        event: Some(pb::worker_event::Event::Log(pb::LogLine::default())),
    };
    for event in [output(""), line] {
        let leased = scene.begin().await;
        let report = pb::ReportRequest {
            events: vec![event; 1_000],
            ..heartbeat(&leased.lease_token)
        };
        for _ in 0..2 {
            scene.report(report.clone()).await.expect("it holds");
        }
        let job = scene.server.get(&id_of(&leased)).await;
        assert!(job.last_sequence < 200, "{}", job.last_sequence);
    }
    scene.stop().await;
}

impl Scene {
    /// A call for work while as many wait as may.
    pub(crate) async fn one_worker_too_many(&self) -> Status {
        let queue = &self.server.queue;
        let mut waiting = wait_for_work(queue).await;
        let refused = soon(self.worker.clone().lease(at_once(1))).await;
        waiting.shutdown().await;
        refused.expect_err("one too many")
    }
}

/// As many calls for work as may wait, of one tenant.
async fn wait_for_work(queue: &JobQueue) -> JoinSet<()> {
    let mut waiting = JoinSet::new();
    for _ in 0..WORKERS_WAITING_MAX {
        let queue = queue.clone();
        let request = WorkRequest {
            wait: Duration::from_secs(300),
            ..work_request(1, TERM)
        };
        waiting.spawn(async move { drop(queue.lease(request, |_| true).await) });
    }
    let all = || queue.waiting_workers() == WORKERS_WAITING_MAX;
    eventually("all of them wait", all).await;
    waiting
}

/// Goal: calls for work that wait are bounded for each tenant, each that ends makes room, and whoever is one too many
/// is told so.
#[tokio::test]
async fn workers_that_wait_are_bounded_by_tenant() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let queue = life_time::open(dir.path(), &clock, TypeSettings::default()).await;
    let mut waiting = wait_for_work(&queue).await;
    let ask = |tenant: &'static str| {
        let request = WorkRequest {
            tenant: Name::of(tenant),
            ..work_request(1, TERM)
        };
        soon(queue.lease(request, |_| true))
    };
    let refused = ask("default").await;
    let Err(Error::Exhausted { limit, .. }) = &refused else {
        panic!("{refused:?}");
    };
    let max = WORKERS_WAITING_MAX;
    assert_eq!(*limit, Limit::Workers { waiting: max, max });
    ask("other").await.expect("another tenant has room");
    waiting.abort_all();
    let gone = soon(waiting.join_next()).await.expect("they waited");
    assert!(gone.expect_err("it waits for ever").is_cancelled());
    ask("default").await.expect("one has gone");
    waiting.shutdown().await;
    queue.close().await;
}

/// Goal: a worker that waits is one for whose types jobs are taken. Method: a type that nobody leased for before, and
/// a look while it is being remembered.
#[tokio::test]
async fn a_worker_waits_once_its_types_are_known() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let queue = life_time::open(dir.path(), &clock, TypeSettings::default()).await;
    let request = WorkRequest {
        types: vec![Name::of("new")],
        wait: Duration::from_secs(300),
        ..work_request(1, TERM)
    };
    let mut leasing = pin!(queue.lease(request, |_| true));
    assert!(poll_immediate(&mut leasing).await.is_none());
    assert_eq!(queue.waiting_workers(), 0, "its type is not known yet");
    let submitted = async {
        eventually("it waits", || queue.waiting_workers() == 1).await;
        queue.submit(Submission::new("new", None)).await
    };
    let (work, submitted) = soon(async { tokio::join!(leasing, submitted) }).await;
    submitted.expect("its type is known");
    assert_eq!(work.expect("a good request").jobs.len(), 1);
    queue.close().await;
}

/// Goal: a word that comes behind the end of its attempt is refused, also in the group that ends it, where it is
/// progress alone. Method: commits are held back until both wait for the same group.
#[tokio::test]
async fn progress_behind_the_end_in_its_group_is_refused() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let clock = Arc::new(SystemClock::new());
    let queue = open(&store, clock, TypeSettings::default()).await;
    let leased = held(&queue, 1, TERM).await.remove(0);
    let lease = Lease {
        key: key_of(&leased).clone(),
        attempt: leased.snapshot.job.attempt,
    };
    let commits = store.hold_commits().await;
    let mut earlier = pin!(queue.submit(Submission::new("work", None)));
    assert!(poll_immediate(&mut earlier).await.is_none());
    store.commit_held().await;
    // As the server does where its worker does not.
    let error = JobError::retryable("RUN_TIMEOUT", "too long");
    let mut finish = pin!(queue.finish(&lease, Vec::new(), Outcome::Failed(error)));
    assert!(poll_immediate(&mut finish).await.is_none());
    let tenant = default_tenant();
    let progress = vec![Report::Progress(Progress::fraction(0.5))];
    let mut report = pin!(queue.report_as(&tenant, &leased.token, 1, progress));
    assert!(poll_immediate(&mut report).await.is_none());
    drop(commits);
    soon(earlier).await.expect("stored");
    let job = soon(finish).await.expect("it ends");
    assert!(!job.state.is_leased());
    let told = soon(report).await;
    assert!(
        matches!(told, Err(Error::Precondition(Precondition::StaleLease))),
        "{told:?}"
    );
    queue.close().await;
}
