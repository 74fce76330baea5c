//! The watch against a model, in this process: whatever is committed, missed, purged, cut and read in
//! whatever order, what was told adds up to the log. And what it costs: the log is not read for what
//! the hub has.

mod checker;
mod lies;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pacenote::config::TypeSettings;
use pacenote::job::event::EventTag;
use pacenote::job::limits::WAITING_DEFAULT;
use pacenote::job::name::{JobKey, Name};
use pacenote::job::time::SystemClock;
use pacenote::job::{Outcome, Report};
use pacenote::queue::{
    EventQuery, JobQueue, KnownType, Lease, QueueSettings, Submission, Watch, WatchContent,
    WatchMessage, WatchOptions,
};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobStore, LogPart, LogRange, Purge, Purged, ReadError};
use proptest::prelude::*;

use self::checker::{Log, Told};
use crate::fronted::{Front, Fronted};
use crate::harness::{count_of, folder, log_line, one_place, output, progress, soon};

/// A store that counts how often its log is read.
struct Counting {
    store: SqliteStore,
    log_reads: Arc<AtomicUsize>,
}

#[async_trait]
impl Front for Counting {
    fn store(&self) -> &dyn JobStore {
        &self.store
    }

    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError> {
        self.log_reads.fetch_add(1, Ordering::Relaxed);
        self.store.log(key, range).await
    }
}

/// A queue in this process with one running job, whose every commit the test makes.
struct Bench {
    queue: JobQueue,
    lease: Lease,
    log_reads: Arc<AtomicUsize>,
}

impl Bench {
    async fn new(dir: &Path) -> Self {
        let (queue, log_reads) = open(dir).await;
        let (_, mut handed) = one_place(&queue, "work").await;
        queue
            .submit(Submission::new("work", None))
            .await
            .expect("stored");
        let job = soon(handed.recv()).await.expect("claimed").claimed.job;
        let lease = Lease {
            key: job.key.clone(),
            attempt: job.attempt,
        };
        Self {
            queue,
            lease,
            log_reads,
        }
    }

    async fn store(&self, reports: Vec<Report>) {
        self.queue
            .report(&self.lease, reports)
            .await
            .expect("it runs");
    }

    async fn finish(&self) {
        let outcome = Outcome::Succeeded(None);
        let finished = self.queue.finish(&self.lease, Vec::new(), outcome).await;
        finished.expect("it runs");
    }

    async fn watch(&self, options: &WatchOptions, after: i64) -> Watch {
        let options = WatchOptions {
            after_sequence: Some(after),
            ..options.clone()
        };
        self.queue
            .watch(&self.lease.key, options)
            .await
            .expect("a watch")
    }
}

async fn open(dir: &Path) -> (JobQueue, Arc<AtomicUsize>) {
    let log_reads = Arc::new(AtomicUsize::new(0));
    let store = Counting {
        store: SqliteStore::open(&dir.join("pacenote.db"))
            .await
            .expect("a store"),
        log_reads: Arc::clone(&log_reads),
    };
    let known = KnownType {
        settings: TypeSettings {
            progress_interval: Duration::ZERO,
            ..TypeSettings::default()
        },
        check: Arc::new(|_| Ok(())),
    };
    let settings = QueueSettings {
        types: [(Name::of("work"), known)].into(),
        log_bytes_max: 64 * 1024 * 1024,
        watchers_max: 10,
        waiting_max: WAITING_DEFAULT,
        ..QueueSettings::default()
    };
    let queue = JobQueue::open(
        Arc::new(Fronted(store)),
        Arc::new(SystemClock::new()),
        settings,
    );
    (queue.await.expect("a queue"), log_reads)
}

#[derive(Clone, Debug)]
enum Step {
    /// One commit of so many events of a kind.
    Commit(Kind, usize),
    /// More commits than the hub's channel holds.
    Burst,
    /// Reads for a moment: dropped in the middle of whatever it does then.
    Read(u64),
    /// Drops the watch and resumes from its last cursor.
    Cut,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Output,
    Large,
    Log,
    Progress,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        Just(Kind::Output),
        Just(Kind::Large),
        Just(Kind::Log),
        Just(Kind::Progress)
    ];
    prop_oneof![
        6 => (kind, 1..120_usize).prop_map(|(kind, count)| Step::Commit(kind, count)),
        1 => Just(Step::Burst),
        4 => (0..40_u64).prop_map(Step::Read),
        1 => Just(Step::Cut),
    ]
}

fn tags() -> impl Strategy<Value = Vec<EventTag>> {
    prop_oneof![
        Just(vec![]),
        Just(vec![EventTag::Log]),
        Just(vec![EventTag::Progress, EventTag::Log]),
        Just(vec![EventTag::StateChange, EventTag::Output]),
    ]
}

fn reports(kind: Kind, count: usize) -> Vec<Report> {
    match kind {
        Kind::Output => (0..count).map(|n| output(n.to_string())).collect(),
        Kind::Large => vec![output("x".repeat(count * 5_000))],
        Kind::Log => (0..count).map(|_| log_line("a line")).collect(),
        Kind::Progress => vec![progress(count as f64 / 120.0)],
    }
}

/// Runs the steps, ends the job, perhaps purges the front of its log, and reads to the end.
async fn play(steps: Vec<Step>, options: WatchOptions, purge_percent: Option<i64>) {
    let dir = folder();
    let bench = Bench::new(dir.path()).await;
    let mut told = Told::new(options);
    let mut watch = bench.watch(&told.options, 0).await;
    for step in steps {
        match step {
            Step::Commit(kind, count) => bench.store(reports(kind, count)).await,
            Step::Burst => {
                for _ in 0..70 {
                    bench.store(reports(Kind::Output, 1)).await;
                }
            }
            Step::Read(millis) => {
                let until = tokio::time::Instant::now() + Duration::from_millis(millis);
                while let Ok(message) = tokio::time::timeout_at(until, watch.next()).await {
                    told.take(message.expect("no error").expect("no end yet"));
                }
            }
            Step::Cut => watch = bench.watch(&told.options, told.through).await,
        }
    }
    bench.finish().await;
    let log = log(&bench, purge_percent).await;
    while let Some(message) = soon(watch.next()).await.expect("no error") {
        told.take(message);
    }
    assert_eq!(told.check(&log), []);
    drop(watch);
    assert_eq!(bench.queue.open_watches(), 0);
}

/// The log of the job, which is over; then so many percent of it are purged.
async fn log(bench: &Bench, purge_percent: Option<i64>) -> Log {
    let tags = all_tags(bench).await;
    let Some(percent) = purge_percent else {
        return Log {
            tags,
            purged_through: 0,
        };
    };
    let through = tags.len() as i64 * percent / 100;
    let purge = Purge::Events(bench.lease.key.clone(), through);
    let purged = bench.queue.purge(vec![purge]).await.expect("purged");
    let purged_through = match purged[..] {
        [Purged::Events(_, first)] => first - 1,
        _ => 0,
    };
    Log {
        tags,
        purged_through,
    }
}

async fn all_tags(bench: &Bench) -> Vec<EventTag> {
    let mut tags = Vec::new();
    loop {
        let query = EventQuery {
            after: tags.len() as i64,
            page_size: 1000,
            tags: Vec::new(),
        };
        let page = bench
            .queue
            .events(&bench.lease.key, &query)
            .await
            .expect("a page");
        tags.extend(page.events.iter().map(|event| event.tag));
        if page.finished {
            return tags;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: count_of("PROPTEST_CASES", 24) as u32,
        max_shrink_iters: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Every case prints its input where it fails.
    #[test]
    fn whatever_happens_what_was_told_adds_up_to_the_log(
        steps in proptest::collection::vec(step(), 1..30),
        tags in tags(),
        merged_millis in prop_oneof![2 => Just(0_u64), 1 => Just(15), 1 => Just(3_600_000)],
        purge_percent in proptest::option::of(0..100_i64),
    ) {
        let options = WatchOptions {
            tags,
            min_progress_interval: Duration::from_millis(merged_millis),
            ..WatchOptions::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(play(steps, options, purge_percent));
    }
}

/// Goal: who keeps up costs no reads. Method: commits of all sizes, in bursts far beyond one batch, are
/// counted against the reads of the log.
#[tokio::test]
async fn a_watch_that_keeps_up_never_reads_the_log() {
    let dir = folder();
    let bench = Bench::new(dir.path()).await;
    let mut watch = bench.watch(&WatchOptions::default(), 0).await;
    let mut told = 0;
    while told < 2 {
        told += shown(soon(watch.next()).await.expect("no error"));
    }
    let before = bench.log_reads.load(Ordering::Relaxed);
    assert_eq!(before, 1, "to catch up once");
    for round in 0..60 {
        // Four commits of 100 do not fill batches evenly: the rest of one waits for the next message.
        let size = if round % 2 == 0 { 100 } else { 1 };
        for _ in 0..4 {
            bench.store(reports(Kind::Output, size)).await;
        }
        let goal = 2 + (round / 2 + 1) * 400 + if round % 2 == 0 { 0 } else { 4 };
        let goal = goal + (round / 2) * 4;
        while told < goal {
            told += shown(soon(watch.next()).await.expect("no error"));
        }
        assert_eq!(told, goal);
    }
    bench.finish().await;
    while let Some(message) = soon(watch.next()).await.expect("no error") {
        told += shown(Some(message));
    }
    assert_eq!(told, 2 + 30 * 404 + 1);
    assert_eq!(bench.log_reads.load(Ordering::Relaxed), before);
}

fn shown(message: Option<WatchMessage>) -> usize {
    match message.expect("no end").content {
        WatchContent::Events(events) => events.len(),
        WatchContent::Snapshot(_) | WatchContent::Gap(..) | WatchContent::Heartbeat(_) => 0,
    }
}

/// A Run listens before its job exists.
#[tokio::test]
async fn a_run_never_reads_the_log() {
    let dir = folder();
    let (queue, log_reads) = open(dir.path()).await;
    let (_, mut handed) = one_place(&queue, "work").await;
    let run = queue.run(Submission::new("work", None), WatchOptions::default());
    let (mut watch, _) = run.await.expect("a run");
    let job = soon(handed.recv()).await.expect("claimed").claimed.job;
    let lease = Lease {
        key: job.key.clone(),
        attempt: job.attempt,
    };
    queue
        .report(&lease, reports(Kind::Output, 200))
        .await
        .expect("it runs");
    let finished = queue
        .finish(&lease, Vec::new(), Outcome::Succeeded(None))
        .await;
    finished.expect("it runs");
    let mut told = 0;
    while let Some(message) = soon(watch.next()).await.expect("no error") {
        told += shown(Some(message));
    }
    assert_eq!((told, log_reads.load(Ordering::Relaxed)), (203, 0));
}
