//! Two that come at once: a retry that is due and a deadline or a cancel, a lease that ends and a report or
//! a result, a cancel and a result. One of them wins, there is no third state, and the log tells one story.
//!
//! Each pair comes a tick before, at and a tick after the time that both are about, in either order and
//! together, for many jobs in the same groups, on a clock that the test owns and on a store in memory.
//!
//! `PACENOTE_TEST_TIES` says how many ties there are.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pacenote::config::TypeSettings;
use pacenote::error::{Error, Precondition};
use pacenote::job::event::JobError;
use pacenote::job::limits::{LEASE, LOG_BYTES_DEFAULT, WAITING_DEFAULT, WATCHERS_DEFAULT};
use pacenote::job::name::Name;
use pacenote::job::time::Clock;
use pacenote::job::{Job, JobState, Outcome};
use pacenote::queue::{
    EventQuery, Handed, JobQueue, KnownType, Lease, Places, QueueSettings, Submission,
};
use pacenote::store::memory::{Memory, MemoryStore};
use pacenote::store::{JobStore, Purge, View};
use tokio::sync::mpsc;

use crate::clock::OwnedClock;
use crate::harness::{count_of, soon};
use crate::invariants::Checker;
use crate::invariants::history::{Entry, Observation, Seen, Snapshot, Stored};

const TICK: Duration = Duration::from_micros(1);
/// After so long a job that has not ended expires, and its retry is due.
const MINUTE: Duration = Duration::from_secs(60);
/// Jobs of one round, all in the same tie. Chosen: one sweep takes them all.
const JOBS: usize = 75;

/// Who comes at once.
#[derive(Clone, Copy, Debug)]
enum Pair {
    /// A retry is due when its job's time ends.
    RetryAndDeadline,
    RetryAndCancel,
    /// A lease is renewed when it ends.
    ReportAndSweep,
    ResultAndSweep,
    ResultAndCancel,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    FirstFirst,
    SecondFirst,
    Together,
}

/// When they come: a tick before the time that both are about, at it, or a tick after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Around {
    Before,
    At,
    After,
}

const PAIRS: [Pair; 5] = [
    Pair::RetryAndDeadline,
    Pair::RetryAndCancel,
    Pair::ReportAndSweep,
    Pair::ResultAndSweep,
    Pair::ResultAndCancel,
];
const ORDERS: [Order; 3] = [Order::FirstFirst, Order::SecondFirst, Order::Together];
const TIMES: [Around; 3] = [Around::Before, Around::At, Around::After];

impl Around {
    fn of(self, time: Duration) -> Duration {
        match self {
            Self::Before => time - TICK,
            Self::At => time,
            Self::After => time + TICK,
        }
    }
}

/// What one of the two was answered: the job's state; or that the lease was lost. `None` where it was not
/// asked about any one job.
type Answer = Option<Result<JobState, Precondition>>;

struct Bench {
    queue: JobQueue,
    store: Arc<MemoryStore>,
    clock: Arc<OwnedClock>,
    places: Places,
    handed: mpsc::UnboundedReceiver<Handed>,
    checker: Checker,
}

impl Bench {
    async fn new() -> Self {
        let clock = OwnedClock::new(55);
        let store = MemoryStore::open(&Memory::new()).expect("nobody else has it");
        let store = Arc::new(store);
        let mut timed = TypeSettings::default();
        timed.timeouts.total_timeout = Some(MINUTE);
        timed.retry_policy.max_attempts = 100;
        let work = KnownType {
            settings: timed,
            check: Arc::new(|_| Ok(())),
        };
        let settings = QueueSettings {
            types: [(Name::of("work"), work)].into(),
            log_bytes_max: LOG_BYTES_DEFAULT,
            watchers_max: WATCHERS_DEFAULT,
            waiting_max: WAITING_DEFAULT,
            ..QueueSettings::default()
        };
        let opened = JobQueue::open(Arc::<MemoryStore>::clone(&store), clock.clone(), settings);
        let queue = soon(opened).await.expect("it opens");
        let places = Places::new(JOBS, [(Name::of("work"), JOBS)]);
        let (claimed, handed) = mpsc::unbounded_channel();
        let begin = Box::new(move |job| {
            // The test is over: nobody runs it.
            let _ = claimed.send(job);
        });
        queue
            .attach_pool("test".to_owned(), places.clone(), begin)
            .await;
        Self {
            queue,
            store,
            clock,
            places,
            handed,
            checker: Checker::default(),
        }
    }

    /// So many jobs that run.
    async fn begin(&mut self) -> Vec<Lease> {
        let submits = (0..JOBS).map(|_| self.queue.submit(Submission::new("work", None)));
        for submitted in soon(join_all(submits)).await {
            let (job, _) = submitted.expect("there is room");
            self.checker.observe(&Observation::Submitted {
                job: Seen::of(&job),
                idempotency_key: None,
            });
        }
        let mut leases = Vec::new();
        for _ in 0..JOBS {
            let job = soon(self.handed.recv()).await.expect("claimed").claimed.job;
            let (key, attempt) = (job.key.clone(), job.attempt);
            self.checker
                .observe(&Observation::Claimed(key.clone(), attempt));
            leases.push(Lease { key, attempt });
        }
        leases
    }

    /// Lets the time come that both are about.
    async fn approach(&self, pair: Pair, leases: &[Lease], around: Around) {
        match pair {
            Pair::RetryAndDeadline | Pair::RetryAndCancel => {
                let again = JobError::retryable("BROKEN", "again").with_retry_after(MINUTE);
                let ends = leases.iter().map(|lease| {
                    let outcome = Outcome::Failed(again.clone());
                    self.queue.finish(lease, Vec::new(), outcome)
                });
                for ended in soon(join_all(ends)).await {
                    assert_eq!(ended.expect("it runs").state, JobState::Scheduled);
                }
                self.clock.pass(around.of(MINUTE));
            }
            Pair::ReportAndSweep | Pair::ResultAndSweep => self.clock.pass(around.of(LEASE)),
            Pair::ResultAndCancel => {}
        }
    }

    /// What the first of a pair does, to all jobs.
    async fn first(&self, pair: Pair, leases: &[Lease]) -> Vec<Answer> {
        match pair {
            Pair::RetryAndDeadline | Pair::RetryAndCancel => {
                self.queue.make_due().await.expect("the store works");
                vec![None; JOBS]
            }
            Pair::ReportAndSweep => {
                let reports = leases
                    .iter()
                    .map(|lease| self.queue.report(lease, Vec::new()));
                let reported = join_all(reports).await.into_iter();
                let running = reported.map(|told| told.map(|()| JobState::Running));
                running.map(answer).collect()
            }
            Pair::ResultAndSweep | Pair::ResultAndCancel => {
                let ends = leases.iter().map(|lease| {
                    let outcome = Outcome::Succeeded(None);
                    self.queue.finish(lease, Vec::new(), outcome)
                });
                answers(join_all(ends).await)
            }
        }
    }

    /// What the second does.
    async fn second(&self, pair: Pair, leases: &[Lease]) -> Vec<Answer> {
        match pair {
            Pair::RetryAndDeadline => {
                self.queue.expire_waiting().await.expect("the store works");
                vec![None; JOBS]
            }
            Pair::ReportAndSweep | Pair::ResultAndSweep => {
                let now = self.clock.steady();
                self.queue.sweep_leases(now).await.expect("the store works");
                vec![None; JOBS]
            }
            Pair::RetryAndCancel | Pair::ResultAndCancel => {
                let cancels = leases
                    .iter()
                    .map(|lease| self.queue.cancel(&lease.key, String::new()));
                answers(join_all(cancels).await)
            }
        }
    }

    /// Lets both come, and reads how each job stands then.
    async fn tie(&mut self, pair: Pair, order: Order, around: Around) {
        let leases = self.begin().await;
        self.approach(pair, &leases, around).await;
        // A cancel and a result are about no time but that of each other.
        let between = match (pair, around) {
            (Pair::ResultAndCancel, Around::Before | Around::After) => TICK,
            _ => Duration::ZERO,
        };
        let (first, second) = match order {
            Order::FirstFirst => {
                let first = soon(self.first(pair, &leases)).await;
                self.clock.pass(between);
                (first, soon(self.second(pair, &leases)).await)
            }
            Order::SecondFirst => {
                let second = soon(self.second(pair, &leases)).await;
                self.clock.pass(between);
                (soon(self.first(pair, &leases)).await, second)
            }
            Order::Together => {
                let both =
                    async { tokio::join!(self.first(pair, &leases), self.second(pair, &leases)) };
                soon(both).await
            }
        };
        let jobs = self.look(&leases).await;
        for ((job, first), second) in jobs.iter().zip(first).zip(second) {
            let found = (job.state, first, second);
            let may_be = outcomes(pair, order, around);
            assert!(
                may_be.contains(&found),
                "{pair:?} {order:?} {around:?}: {found:?}, not one of {may_be:?}"
            );
        }
        self.end(&leases).await;
    }

    /// Reads all that is stored, and lets the invariants be checked.
    async fn look(&mut self, leases: &[Lease]) -> Vec<Arc<Job>> {
        let mut snapshot = Snapshot::default();
        for lease in leases {
            let found = self.queue.get(&lease.key, View::Full).await;
            let found = found.expect("it is there");
            let query = EventQuery {
                after: 0,
                page_size: 1000,
                tags: Vec::new(),
            };
            let page = self.queue.events(&lease.key, &query).await.expect("a log");
            snapshot.jobs.push(Stored {
                job: found.job,
                result: None,
                log: Some(page.events.iter().map(Entry::decoded).collect()),
            });
        }
        let depths = self.store.depths().await.expect("a read").into_iter();
        snapshot.depths = depths.map(|(lane, state, n)| ((lane, state), n)).collect();
        let jobs = snapshot.jobs.iter().map(|stored| Arc::clone(&stored.job));
        let jobs = jobs.collect();
        self.checker.observe(&Observation::Snapshot(snapshot));
        assert_eq!(self.checker.found(), []);
        jobs
    }

    /// Ends what goes on, and removes everything.
    async fn end(&mut self, leases: &[Lease]) {
        let cancels = leases
            .iter()
            .map(|lease| self.queue.cancel(&lease.key, String::new()));
        for cancelled in join_all(cancels).await {
            let job = cancelled.expect("it is there");
            if !job.state.is_terminal() {
                let lease = Lease {
                    key: job.key.clone(),
                    attempt: job.attempt,
                };
                let ended = self.queue.finish(&lease, Vec::new(), Outcome::Cancelled);
                ended.await.expect("it runs");
            }
        }
        let purge = leases.iter().map(|lease| Purge::Job(lease.key.clone()));
        self.queue.purge(purge.collect()).await.expect("removed");
        for lease in leases {
            self.checker
                .observe(&Observation::Deleted(lease.key.clone()));
            self.places.give_back(&Name::of("work"));
        }
    }
}

fn answer(answered: Result<JobState, Error>) -> Answer {
    Some(match answered {
        Ok(state) => Ok(state),
        Err(Error::Precondition(refused)) => Err(refused),
        Err(other) => panic!("{other:?}"),
    })
}

fn answers(answered: Vec<Result<Arc<Job>, Error>>) -> Vec<Answer> {
    let states = answered.into_iter().map(|job| job.map(|job| job.state));
    states.map(answer).collect()
}

/// How a job may stand after a tie, with what the first and the second of the pair were answered.
fn outcomes(pair: Pair, order: Order, around: Around) -> Vec<(JobState, Answer, Answer)> {
    use JobState::{Cancelled, Cancelling, Expired, Queued, Running, Scheduled, Succeeded};
    let said = |state| Some(Ok(state));
    let stale = || Some(Err(Precondition::StaleLease));
    let of_order = |first, second| match order {
        Order::FirstFirst => vec![first],
        Order::SecondFirst => vec![second],
        Order::Together => vec![first, second],
    };
    match (pair, around) {
        (Pair::RetryAndDeadline, Around::Before) => vec![(Scheduled, None, None)],
        // The deadline stands above the retry, whoever comes first.
        (Pair::RetryAndDeadline, _) => vec![(Expired, None, None)],
        (Pair::RetryAndCancel, _) => vec![(Cancelled, None, said(Cancelled))],
        // At its end a lease still holds.
        (Pair::ReportAndSweep, Around::Before | Around::At) => {
            vec![(Running, said(Running), None)]
        }
        (Pair::ReportAndSweep, Around::After) => {
            of_order((Running, said(Running), None), (Queued, stale(), None))
        }
        (Pair::ResultAndSweep, Around::Before | Around::At) => {
            vec![(Succeeded, said(Succeeded), None)]
        }
        (Pair::ResultAndSweep, Around::After) => {
            of_order((Succeeded, said(Succeeded), None), (Queued, stale(), None))
        }
        (Pair::ResultAndCancel, _) => {
            let mut outcomes = of_order(
                (Succeeded, said(Succeeded), said(Succeeded)),
                (Cancelled, said(Cancelled), said(Cancelling)),
            );
            if order == Order::Together {
                // In one group each is told how the job is after all of it.
                outcomes.push((Cancelled, said(Cancelled), said(Cancelled)));
            }
            outcomes
        }
    }
}

/// Goal: of two that come at once one wins, and the job knows one end. Method: see above.
#[tokio::test]
async fn of_ten_thousand_ties_each_has_one_winner() {
    let mut bench = Bench::new().await;
    let mut left = count_of("PACENOTE_TEST_TIES", 10_000);
    while left > 0 {
        for pair in PAIRS {
            for order in ORDERS {
                for around in TIMES {
                    bench.tie(pair, order, around).await;
                    left = left.saturating_sub(JOBS);
                }
            }
        }
    }
    bench.queue.close().await;
}
