//! A queue on a store, everything that can be done to it, and what is seen of it.
//!
//! After each step, every job is compared with what the reference says it should be, and every observation
//! goes to the checker of the invariants. Nothing here panics over what the queue does: faults are
//! collected, so that a planted bug can be followed to the end.
mod calls;
mod looking;
mod many;
mod turns;
mod watching;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pacenote::config::TypeSettings;
use pacenote::job::limits::LOG_BYTES_DEFAULT;
use pacenote::job::name::JobKey;
use pacenote::job::policy::{GivenRetention, Retention};
use pacenote::job::time::{Clock, Timestamp};
use pacenote::queue::{Handed, JobQueue, KnownType, Lease, Places, QueueSettings, Watch};
use pacenote::store::JobStore;
use tokio::sync::{mpsc, oneshot};

use super::clock::TestClock;
use super::mortal::{Lie, Mortal};
use super::reference::{Reference, WAITING_MAX};
use super::steps::{Call, End, Queue, Rule, Step, Type};
use crate::fronted::Fronted;
use crate::harness::soon;
use crate::invariants::Checker;
use crate::invariants::history::Observation;
use crate::store::bench::Backend;

const TENANTS: [&str; 2] = ["blue", "green"];
const TYPES: [Type; 2] = [Type::Work, Type::Once];
const QUEUES: [Queue; 2] = [Queue::First, Queue::Second];
/// Turns that everything has to end in, once nothing stands in its way. Chosen: three attempts of each job
/// of the longest run would be less.
const TURNS_TO_SETTLE: usize = 300;

/// Chosen: a key is kept for a day, and anything else for less.
const LONGER_THAN_ANYTHING_IS_KEPT: Duration = Duration::from_secs(2 * 24 * 3600);

/// The system under test.
pub(crate) struct World {
    backend: Box<dyn Backend>,
    lie: Arc<dyn Lie>,
    clock: Arc<TestClock>,
    /// `None` only between two processes.
    process: Option<Process>,
    reference: Reference,
    checker: Checker,
    history: Vec<Observation>,
    /// What is not as the reference says.
    mismatches: Vec<String>,
    /// Every lease that was ever handed out.
    leases: Vec<Lease>,
    /// Every job that was ever made, in order.
    made: Vec<JobKey>,
    /// How far the last watch of each job came.
    cursors: BTreeMap<JobKey, i64>,
    /// The version of each job whose log was read.
    read: BTreeMap<JobKey, i64>,
}

/// What goes with a process.
struct Process {
    queue: JobQueue,
    mortal: Arc<Fronted<Mortal>>,
    gone: oneshot::Receiver<()>,
    /// None is free, but within a step that gives one.
    places: Places,
    handed: mpsc::UnboundedReceiver<Handed>,
    watches: BTreeMap<JobKey, Watch>,
}
impl World {
    pub(super) async fn new(backend: impl Backend, lie: Arc<dyn Lie>) -> Self {
        let mut world = Self {
            backend: Box::new(backend),
            lie,
            clock: Arc::new(TestClock::new()),
            process: None,
            reference: Reference::default(),
            checker: Checker::default(),
            history: Vec::new(),
            mismatches: Vec::new(),
            leases: Vec::new(),
            made: Vec::new(),
            cursors: BTreeMap::new(),
            read: BTreeMap::new(),
        };
        world.start().await;
        world
    }

    /// Everything that is wrong so far, in words.
    pub(super) fn faults(&self) -> Vec<String> {
        let found = self.checker.found().iter().map(ToString::to_string);
        found.chain(self.mismatches.iter().cloned()).collect()
    }

    /// Whether anything was not as the reference says.
    pub(super) fn has_mismatch(&self) -> bool {
        !self.mismatches.is_empty()
    }

    pub(super) fn checker(&self) -> &Checker {
        &self.checker
    }

    pub(super) fn history(&self) -> &[Observation] {
        &self.history
    }

    fn see(&mut self, observation: Observation) {
        self.checker.observe(&observation);
        self.history.push(observation);
    }

    fn expect<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, expected: &T, found: &T) {
        if expected != found {
            let mismatch = format!("{what}: {found:?} where {expected:?} was expected");
            self.mismatches.push(mismatch);
        }
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a process is there")
    }

    fn queue(&mut self) -> JobQueue {
        self.process().queue.clone()
    }

    async fn start(&mut self) {
        let store = self.backend.open().await;
        let (mortal, gone) = Mortal::new(store, Arc::clone(&self.lie));
        let mortal = Arc::new(Fronted(mortal));
        let known = |one: Type| {
            let Retention { finished, failed } = one.retention();
            KnownType {
                settings: TypeSettings {
                    retry_policy: one.policy(),
                    retention: GivenRetention {
                        finished: Some(finished),
                        failed: Some(failed),
                    },
                    progress_interval: Duration::ZERO,
                    ..TypeSettings::default()
                },
                check: Arc::new(|_| Ok(())),
            }
        };
        let settings = QueueSettings {
            types: TYPES.map(|one| (one.name(), known(one))).into(),
            log_bytes_max: LOG_BYTES_DEFAULT,
            watchers_max: 1_000,
            waiting_max: WAITING_MAX,
            ..QueueSettings::default()
        };
        let clock = Arc::clone(&self.clock);
        let opened = JobQueue::open(Arc::clone(&mortal) as Arc<dyn JobStore>, clock, settings);
        let queue = soon(opened).await.expect("a queue");
        let places = Places::new(0, TYPES.map(|one| (one.name(), 0)));
        let (claimed, handed) = mpsc::unbounded_channel();
        let begin = Box::new(move |job| {
            // The process is over: nobody runs it.
            let _ = claimed.send(job);
        });
        queue
            .attach_pool("pool".to_owned(), places.clone(), begin)
            .await;
        self.process = Some(Process {
            queue,
            mortal,
            gone,
            places,
            handed,
            watches: BTreeMap::new(),
        });
    }

    /// As a kill -9 does it: nothing is closed, and what was under way is not answered.
    async fn die(&mut self) {
        let process = self.process.take().expect("a process is there");
        let gone = process.gone;
        drop((process.queue, process.mortal, process.places));
        drop((process.handed, process.watches));
        // An error: its sender has gone with the store.
        let _ = soon(gone).await;
    }

    pub(super) async fn take(&mut self, step: Step) {
        match step {
            Step::Call(call) => self.call(call, None).await,
            Step::Claim(job_type) => self.claim(job_type).await,
            Step::Pass(millis) => self.pass(Duration::from_millis(u64::from(millis))).await,
            Step::SetClock(millis) => self.clock.set(i64::from(millis)),
            Step::Sweep => self.sweep().await,
            Step::Watch(pick, cut) => {
                if let Some(key) = pick.of(&self.made).cloned() {
                    if cut {
                        self.process().watches.remove(&key);
                    }
                    self.watch(&key).await;
                }
            }
            Step::Crash(in_call) => {
                if let Some((call, dies)) = in_call {
                    self.call(call, Some(dies)).await;
                }
                self.die().await;
                self.start().await;
                let all = Timestamp::from_micros(i64::MAX);
                self.reference.lose(all, self.clock.now());
                self.read.clear();
            }
        }
        self.look().await;
    }

    /// Lets everything come to its end: no more faults, nothing paused, time for whatever waits for it, and
    /// a worker that does all there is.
    pub(super) async fn settle(&mut self) {
        for queue in QUEUES {
            self.call(Call::Set(Rule::PauseQueue(queue, false)), None)
                .await;
            self.call(Call::Set(Rule::Limit(queue, None, None)), None)
                .await;
        }
        for job_type in TYPES {
            self.call(Call::Set(Rule::PauseType(job_type, false)), None)
                .await;
        }
        for _ in 0..TURNS_TO_SETTLE {
            self.pass(Duration::from_secs(3600)).await;
            self.sweep().await;
            let before = self.leases.len();
            for job_type in TYPES {
                self.claim(job_type).await;
            }
            let new = self.leases[before..].to_vec();
            for lease in new {
                self.finish(&lease, End::Succeeds).await;
            }
            let waits = self
                .reference
                .jobs
                .values()
                .any(|job| !job.state.is_terminal());
            if self.leases.len() == before && !waits {
                break;
            }
        }
        for key in self.made.clone() {
            self.watch(&key).await;
        }
        self.read.clear();
        self.look().await;
        self.see(Observation::Settled);
    }

    /// Lets so much time pass that nothing which is over is kept any longer, and looks whether it is gone.
    pub(super) async fn outlive(&mut self) {
        self.pass(LONGER_THAN_ANYTHING_IS_KEPT).await;
        self.call(Call::Retire(10), None).await;
        self.look().await;
        let left: Vec<&JobKey> = self.reference.jobs.keys().collect();
        if !left.is_empty() {
            let what = format!("{left:?} are kept for ever");
            self.mismatches.push(what);
        }
    }
}
