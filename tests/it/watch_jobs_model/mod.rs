//! The watch of many jobs against a model, in this process: whatever is submitted, reported, ended, missed,
//! purged, cut and read in whatever order, what was told adds up to the logs of all jobs in the order of
//! their commits.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pacenote::config::TypeSettings;
use pacenote::job::event::EventTag;
use pacenote::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, WAITING_DEFAULT};
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::time::SystemClock;
use pacenote::job::{Job, Outcome, Report};
use pacenote::pb;
use pacenote::queue::{
    Handed, JobQueue, JobsContent, JobsMessage, JobsWatch, JobsWatchOptions, KnownType, Lease,
    Places, QueueSettings, Submission, default_tenant,
};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobFilter, JobStore, Purge, TenantRange};
use proptest::prelude::*;
use prost::Message;
use tokio::sync::mpsc;

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
    /// By id, with whether it is over.
    jobs: BTreeMap<JobId, bool>,
    log: Vec<Logged>,
    logged_through: i64,
}

/// One event of the log of all jobs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Logged {
    position: i64,
    id: JobId,
    sequence: i64,
    tag: u8,
    matches: bool,
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
            jobs: BTreeMap::new(),
            log: Vec::new(),
            logged_through: 0,
        }
    }

    async fn submit(&mut self, job_type: &str, label: &str) -> JobId {
        let submission = labelled(job_type, label);
        let (job, _) = self.queue.submit(submission).await.expect("stored");
        self.jobs.insert(job.key.id, false);
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
        self.jobs.insert(job.key.id, true);
        self.places.give_back(&job.spec.job_type);
        self.queue.wake().await;
        self.settle().await;
    }

    /// More than the channel takes, in a few commits: jobs that nobody runs.
    async fn burst(&mut self, label: &str) {
        let submits = (0..1_100).map(|_| self.queue.submit(labelled("idle", label)));
        for submitted in futures_util::future::join_all(submits).await {
            let (job, _) = submitted.expect("stored");
            self.jobs.insert(job.key.id, false);
        }
    }

    async fn purge(&mut self, which: usize, whole: bool) {
        self.settle().await;
        let over = self.jobs.iter().filter(|(_, over)| **over);
        let over: Vec<JobId> = over.map(|(id, _)| *id).collect();
        if let Some(id) = pick(&over, which) {
            let purge = if whole {
                Purge::Job(key(*id))
            } else {
                Purge::Events(key(*id), 3)
            };
            self.queue.purge(vec![purge]).await.expect("purged");
            if whole {
                self.jobs.remove(id);
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
                self.log.extend(events.map(|event| Logged {
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
            let begin = self.log.last().map_or(0, |event| event.position);
            *told = Told {
                begin,
                ..Told::default()
            };
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

/// What one watcher was told, over all its cuts since it last began anew.
#[derive(Debug, Default)]
struct Told {
    /// Position of the newest event when it began.
    begin: i64,
    snapshot: BTreeMap<JobId, i64>,
    events: Vec<(JobId, i64)>,
    finished: Vec<JobId>,
    gaps: usize,
    cursor: String,
}

impl Told {
    fn take(&mut self, message: JobsMessage) {
        let whole = !self.cursor.is_empty();
        assert!(!whole || !message.cursor.is_empty(), "a cursor was given");
        match message.content {
            JobsContent::Snapshot(jobs) => {
                assert!(!whole && !jobs.is_empty() && jobs.len() <= BATCH_EVENTS_MAX);
                for found in jobs {
                    let (id, last) = (found.job.key.id, found.job.last_sequence);
                    assert!(!found.job.state.is_terminal());
                    assert_eq!(self.snapshot.insert(id, last), None, "shown twice");
                }
            }
            JobsContent::Events(events) => {
                let bytes: usize = events.iter().map(|event| event.bytes.len()).sum();
                assert!(!events.is_empty() && events.len() <= BATCH_EVENTS_MAX);
                assert!(bytes <= BATCH_BYTES_MAX || events.len() == 1);
                for event in events {
                    let read = pb::JobEvent::decode(event.bytes).expect("an event");
                    let id = JobId::parse(&read.job_id).expect("an id");
                    assert_eq!(read.sequence, event.sequence);
                    self.events.push((id, event.sequence));
                }
            }
            JobsContent::Finished(jobs) => {
                assert!(!jobs.is_empty() && jobs.len() <= BATCH_EVENTS_MAX);
                for found in jobs {
                    assert!(found.job.state.is_terminal());
                    self.finished.push(found.job.key.id);
                }
            }
            JobsContent::Gap(gap) => {
                assert_eq!(gap.job, None, "nobody asked by id");
                self.gaps += 1;
            }
            JobsContent::Heartbeat(_) => {}
            JobsContent::RollUp(_) => panic!("not asked for"),
        }
        self.cursor = message.cursor;
    }

    /// Whether it adds up to the log of all jobs, as far as that is shown and was not gone by then.
    fn check(&self, world: &World, bench: &Bench) {
        let log: Vec<&Logged> = bench.log.iter().filter(|event| event.matches).collect();
        let positions: BTreeMap<(JobId, i64), i64> = log
            .iter()
            .map(|event| ((event.id, event.sequence), event.position))
            .collect();
        let told: Vec<i64> = self.events.iter().map(|told| positions[told]).collect();
        assert!(told.is_sorted_by(|a, b| a < b), "not in order, or twice");
        let told: BTreeSet<i64> = told.into_iter().collect();
        let expected: Vec<&Logged> = log.into_iter().filter(|e| self.is_due(world, e)).collect();
        let due: BTreeSet<i64> = expected.iter().map(|event| event.position).collect();
        assert!(told.is_subset(&due), "shown already, or hidden");
        let is_lost = |event: &Logged| {
            self.gaps > 0 && (!bench.jobs.contains_key(&event.id) || event.sequence <= 3)
        };
        // Of each job: progress that nothing has followed yet.
        let mut newest: BTreeMap<JobId, &Logged> = BTreeMap::new();
        for event in expected {
            if is_lost(event) {
                continue;
            }
            if event.tag == EventTag::Progress as u8 && self.merges(world) {
                newest.insert(event.id, event);
                continue;
            }
            for event in newest.values().chain([&event]) {
                assert!(told.contains(&event.position), "{event:?} is missing");
            }
            newest.clear();
        }
        self.check_finished(bench);
    }

    fn merges(&self, world: &World) -> bool {
        !world.options.min_progress_interval.is_zero()
    }

    fn is_after_the_snapshot(&self, event: &Logged) -> bool {
        match self.snapshot.get(&event.id) {
            Some(shown) => event.sequence > *shown,
            // It came later, or was over before its part of the snapshot was read.
            None => event.position > self.begin,
        }
    }

    fn is_due(&self, world: &World, event: &Logged) -> bool {
        let tags = &world.options.tags;
        let shown = tags.is_empty() || tags.iter().any(|tag| *tag as u8 == event.tag);
        shown && self.is_after_the_snapshot(event)
    }

    /// Every job whose end came after the snapshot was told to be over, once.
    fn check_finished(&self, bench: &Bench) {
        let log = bench.log.iter().filter(|event| event.matches);
        let last: BTreeMap<JobId, &Logged> = log.map(|event| (event.id, event)).collect();
        for (id, last) in last {
            let times = self.finished.iter().filter(|told| **told == id).count();
            let due = self.is_after_the_snapshot(last);
            match bench.jobs.get(&id) {
                Some(over) => assert_eq!(times, usize::from(*over && due), "{id:?}"),
                // Purged: the end may have come before that.
                None => assert!(times <= usize::from(due), "{id:?}"),
            }
        }
    }
}

/// Runs the steps, then lets one more job begin and end, and reads until that was told.
async fn play(steps: Vec<Step>, world: World, open_at: usize) {
    let dir = folder();
    let mut bench = Bench::new(dir.path()).await;
    let mut told = Told::default();
    let mut open = None;
    for (number, step) in steps.into_iter().enumerate() {
        if number == open_at {
            (open, told) = (None, Told::default());
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
    bench.jobs.insert(last, true);
    bench.note(&world.filter).await;
    while !told.finished.contains(&last) {
        let message = soon(watch.next()).await.expect("no error");
        told.take(message.expect("no end"));
    }
    told.check(&world, &bench);
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
