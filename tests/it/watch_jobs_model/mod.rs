//! The watch of many jobs against a model, in this process: whatever is submitted, reported, ended, missed,
//! purged, cut and read in whatever order, what was told adds up to the logs of all jobs in the order of
//! their commits.

mod checker;
mod lies;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pacenote::config::TypeSettings;
use pacenote::job::event::EventTag;
use pacenote::job::limits::WAITING_DEFAULT;
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::time::SystemClock;
use pacenote::job::{Job, Outcome, Report};
use pacenote::queue::{
    Handed, JobQueue, JobsWatch, JobsWatchOptions, KnownType, Lease, Places, QueueSettings,
    Submission, default_tenant,
};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobFilter, JobStore, Purge, TenantRange};
use proptest::prelude::*;
use tokio::sync::mpsc;

use self::checker::{Logged, Logs, Told};
use crate::harness::{count_of, folder, log_line, output, progress, soon};

/// Jobs that run at once.
const PLACES: usize = 4;

/// A queue whose every commit the test makes, on a store that it may look into.
struct Bench {
    queue: JobQueue,
    store: Arc<SqliteStore>,
    handed: mpsc::UnboundedReceiver<Handed>,
    places: Places,
    running: Vec<Arc<Job>>,
    logs: Logs,
    logged_through: i64,
}

impl Bench {
    async fn new(dir: &Path) -> Self {
        let store = SqliteStore::open(&dir.join("pacenote.db")).await;
        let store = Arc::new(store.expect("a store"));
        let known = KnownType {
            settings: TypeSettings {
                progress_interval: Duration::ZERO,
                ..TypeSettings::default()
            },
            check: Arc::new(|_| Ok(())),
        };
        let types = ["work", "idle"].map(|name| (Name::of(name), known.clone()));
        let settings = QueueSettings {
            types: types.into(),
            log_bytes_max: 64 * 1024 * 1024,
            watchers_max: 1,
            waiting_max: WAITING_DEFAULT,
            ..QueueSettings::default()
        };
        let clock = Arc::new(SystemClock::new());
        let queue = JobQueue::open(Arc::<SqliteStore>::clone(&store), clock, settings).await;
        let queue = queue.expect("a queue");
        let places = Places::new(PLACES, [(Name::of("work"), PLACES)]);
        let (claimed, handed) = mpsc::unbounded_channel();
        let begin = Box::new(move |job| {
            // The test is over: nobody runs it.
            let _ = claimed.send(job);
        });
        let worker = "test".to_owned();
        queue.attach_pool(worker, places.clone(), begin).await;
        Self {
            queue,
            store,
            handed,
            places,
            running: Vec::new(),
            logs: Logs::default(),
            logged_through: 0,
        }
    }

    async fn submit(&mut self, job_type: &str, label: &str) -> JobId {
        let submission = labelled(job_type, label);
        let (job, _) = self.queue.submit(submission).await.expect("stored");
        self.logs.jobs.insert(job.key.id, false);
        job.key.id
    }

    /// Runs what was handed out.
    async fn settle(&mut self) {
        self.queue.settle().await;
        while let Ok(handed) = self.handed.try_recv() {
            self.running.push(handed.claimed.job);
        }
    }

    async fn report(&mut self, which: usize, reports: Vec<Report>) {
        self.settle().await;
        if let Some(job) = pick(&self.running, which) {
            self.queue
                .report(&lease(job), reports)
                .await
                .expect("it runs");
        }
    }

    async fn finish(&mut self, which: usize) {
        self.settle().await;
        if self.running.is_empty() {
            return;
        }
        let job = self.running.remove(which % self.running.len());
        let outcome = Outcome::Succeeded(None);
        let finished = self.queue.finish(&lease(&job), Vec::new(), outcome).await;
        finished.expect("it runs");
        self.logs.jobs.insert(job.key.id, true);
        self.places.give_back(&job.spec.job_type);
        self.queue.wake().await;
        self.settle().await;
    }

    /// More than the channel takes, in a few commits: jobs that nobody runs.
    async fn burst(&mut self, label: &str) {
        let submits = (0..1_100).map(|_| self.queue.submit(labelled("idle", label)));
        for submitted in futures_util::future::join_all(submits).await {
            let (job, _) = submitted.expect("stored");
            self.logs.jobs.insert(job.key.id, false);
        }
    }

    async fn purge(&mut self, which: usize, whole: bool) {
        self.settle().await;
        let over = self.logs.jobs.iter().filter(|(_, over)| **over);
        let over: Vec<JobId> = over.map(|(id, _)| *id).collect();
        if let Some(id) = pick(&over, which) {
            let purge = if whole {
                Purge::Job(key(*id))
            } else {
                Purge::Events(key(*id), 3)
            };
            self.queue.purge(vec![purge]).await.expect("purged");
            if whole {
                self.logs.jobs.remove(id);
            }
        }
    }

    /// Notes what was logged since, before any of it is purged.
    async fn note(&mut self, filter: &JobFilter) {
        loop {
            let range = TenantRange {
                tenant: default_tenant(),
                after: self.logged_through,
                events: 100_000,
                bytes: 64 << 20,
                segments: 100_000,
            };
            let part = self.store.log_after(&range).await.expect("a read");
            for placed in &part.segments {
                let segment = &placed.segment;
                let events = segment.events_after(0);
                self.logs.log.extend(events.map(|event| Logged {
                    position: placed.position + event.sequence - segment.first_sequence(),
                    id: placed.job.key.id,
                    sequence: event.sequence,
                    tag: event.tag as u8,
                    matches: filter.admits(&placed.job),
                }));
            }
            self.logged_through = part.through;
            if !part.more {
                return;
            }
        }
    }

    /// The watch that is open, or one that goes on where it was cut: anew where that was too soon.
    async fn open(&mut self, open: Option<JobsWatch>, told: &mut Told, world: &World) -> JobsWatch {
        if let Some(open) = open {
            return open;
        }
        self.settle().await;
        self.note(&world.filter).await;
        if told.cursor.is_empty() {
            let begin = self.logs.log.last().map_or(0, |event| event.position);
            *told = Told::new(begin);
        }
        let options = JobsWatchOptions {
            after_cursor: told.cursor.clone(),
            ..world.options.clone()
        };
        let watch = self.queue.watch_jobs(world.filter.clone(), options);
        watch.await.expect("a watch")
    }
}

fn pick<T>(all: &[T], which: usize) -> Option<&T> {
    all.get(which.checked_rem(all.len())?)
}

fn key(id: JobId) -> JobKey {
    JobKey {
        tenant: default_tenant(),
        id,
    }
}

fn lease(job: &Job) -> Lease {
    Lease {
        key: job.key.clone(),
        attempt: job.attempt,
    }
}

fn labelled(job_type: &str, label: &str) -> Submission {
    Submission {
        labels: [("team".to_owned(), label.to_owned())].into(),
        ..Submission::new(job_type, None)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Submit(&'static str),
    /// A job of another tenant.
    Elsewhere,
    /// One commit of so many events of a kind.
    Report(usize, Kind, usize),
    Finish(usize),
    /// A job, or the front of its log.
    Purge(usize, bool),
    /// More than the channel holds.
    Burst(&'static str),
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

const LABELS: [&str; 2] = ["ours", "theirs"];

fn step() -> impl Strategy<Value = Step> {
    let label = || prop::sample::select(LABELS.to_vec());
    let kind = prop_oneof![
        1 => Just(Kind::Output),
        1 => Just(Kind::Large),
        1 => Just(Kind::Log),
        2 => Just(Kind::Progress)
    ];
    prop_oneof![
        6 => label().prop_map(Step::Submit),
        1 => Just(Step::Elsewhere),
        10 => (0..PLACES, kind, 1..100_usize).prop_map(|(which, kind, n)| Step::Report(which, kind, n)),
        4 => (0..PLACES).prop_map(Step::Finish),
        1 => (0..8_usize, any::<bool>()).prop_map(|(which, whole)| Step::Purge(which, whole)),
        1 => label().prop_map(Step::Burst),
        6 => (0..30_u64).prop_map(Step::Read),
        3 => Just(Step::Cut),
    ]
}

fn reports(kind: Kind, count: usize) -> Vec<Report> {
    match kind {
        Kind::Output => (0..count).map(|n| output(n.to_string())).collect(),
        Kind::Large => vec![output("x".repeat(count * 9_000))],
        Kind::Log => (0..count).map(|_| log_line("a line")).collect(),
        Kind::Progress => vec![progress(count as f64 / 100.0)],
    }
}

/// How it is watched.
#[derive(Clone, Debug)]
struct World {
    filter: JobFilter,
    options: JobsWatchOptions,
}

fn filter() -> impl Strategy<Value = JobFilter> {
    let all = JobFilter::all_of(default_tenant());
    let labels = JobFilter {
        labels: [("team".to_owned(), "ours".to_owned())].into(),
        ..all.clone()
    };
    let types = JobFilter {
        types: [Name::of("work")].into(),
        ..all.clone()
    };
    prop_oneof![1 => Just(all), 3 => Just(labels), 1 => Just(types)]
}

fn options() -> impl Strategy<Value = JobsWatchOptions> {
    let tags = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec![EventTag::Log]),
        1 => Just(vec![EventTag::Progress, EventTag::StateChange]),
    ];
    let merged = prop_oneof![2 => Just(0_u64), 1 => Just(10), 1 => Just(3_600_000)];
    (tags, merged).prop_map(|(tags, millis)| JobsWatchOptions {
        tags,
        min_progress_interval: Duration::from_millis(millis),
        ..JobsWatchOptions::default()
    })
}

/// Runs the steps, then lets one more job begin and end, and reads until that was told.
async fn play(steps: Vec<Step>, world: World, open_at: usize) {
    let dir = folder();
    let mut bench = Bench::new(dir.path()).await;
    let mut told = Told::new(0);
    let mut open = None;
    for (number, step) in steps.into_iter().enumerate() {
        if number == open_at {
            (open, told) = (None, Told::new(0));
        }
        match step {
            Step::Submit(label) => drop(bench.submit("work", label).await),
            Step::Elsewhere => {
                let mut elsewhere = labelled("idle", "ours");
                elsewhere.tenant = Name::of("elsewhere");
                bench.queue.submit(elsewhere).await.expect("stored");
            }
            Step::Report(which, kind, count) => bench.report(which, reports(kind, count)).await,
            Step::Finish(which) => bench.finish(which).await,
            Step::Purge(which, whole) => {
                bench.note(&world.filter).await;
                bench.purge(which, whole).await;
            }
            Step::Burst(label) => bench.burst(label).await,
            Step::Read(millis) => {
                let mut watch = bench.open(open.take(), &mut told, &world).await;
                let until = tokio::time::Instant::now() + Duration::from_millis(millis);
                while let Ok(message) = tokio::time::timeout_at(until, watch.next()).await {
                    told.take(message.expect("no error").expect("no end"));
                }
                open = Some(watch);
            }
            Step::Cut => {
                drop(open.take());
                open = Some(bench.open(None, &mut told, &world).await);
            }
        }
    }
    let mut watch = bench.open(open.take(), &mut told, &world).await;
    let last = bench.submit("work", "ours").await;
    bench
        .queue
        .cancel(&key(last), String::new())
        .await
        .expect("it waits or runs");
    bench.settle().await;
    if let Some(running) = bench.running.iter().position(|job| job.key.id == last) {
        let job = bench.running.remove(running);
        let lease = lease(&job);
        let ended = bench.queue.finish(&lease, Vec::new(), Outcome::Cancelled);
        ended.await.expect("it runs");
    }
    bench.logs.jobs.insert(last, true);
    bench.note(&world.filter).await;
    while !told.knows_over(&last) {
        let message = soon(watch.next()).await.expect("no error");
        told.take(message.expect("no end"));
    }
    assert_eq!(told.check(&world, &bench.logs), []);
    drop(watch);
    assert_eq!(bench.queue.open_watches(), 0);
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
    fn whatever_happens_what_was_told_adds_up_to_all_logs(
        steps in proptest::collection::vec(step(), 1..40),
        filter in filter(),
        options in options(),
        open_at in 0..20_usize,
    ) {
        let world = World { filter, options };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(play(steps, world, open_at));
    }
}
