//! A queue on a store, everything that can be done to it, and what is seen of it.
//!
//! After each step, every job is compared with what the reference says it should be, and every observation
//! goes to the checker of the invariants. Nothing here panics over what the queue does: faults are
//! collected, so that a planted bug can be followed to the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pacenote::config::TypeSettings;
use pacenote::error::{Error, Precondition};
use pacenote::job::event::{JobError, LogLevel, LogLine};
use pacenote::job::limits::{LOG_BYTES_DEFAULT, WAITING_DEFAULT};
use pacenote::job::name::{JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::progress::Progress;
use pacenote::job::time::Clock;
use pacenote::job::{Job, JobState, Outcome, Report};
use pacenote::queue::{
    EventQuery, Handed, JobQueue, KnownType, Lease, Places, QueueSettings, Start, Submission,
    TimeoutOverrides, UniqueRequest, Watch, WatchContent, WatchOptions,
};
use pacenote::store::{JobStore, ListQuery, Purge, Purged, View};
use tokio::sync::{mpsc, oneshot};

use super::clock::TestClock;
use super::mortal::{Lie, Mortal};
use super::reference::{Expected, Reference, Refused, Reply, seconds, text_of};
use super::steps::{Call, Dies, End, Step, Submit, Telling, Type};
use crate::fronted::Fronted;
use crate::harness::soon;
use crate::invariants::Checker;
use crate::invariants::history::{Entry, Observation, Seen, Snapshot, Stored};
use crate::store::bench::{Backend, query};

const TENANTS: [&str; 2] = ["blue", "green"];
const TYPES: [Type; 2] = [Type::Work, Type::Once];
/// Turns that everything has to end in, once nothing stands in its way. Chosen: three attempts of each job
/// of the longest run would be less.
const TURNS_TO_SETTLE: usize = 300;

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
        let known = |one: Type| KnownType {
            settings: TypeSettings {
                retry_policy: one.policy(),
                progress_interval: Duration::ZERO,
                ..TypeSettings::default()
            },
            check: Arc::new(|_| Ok(())),
        };
        let settings = QueueSettings {
            types: TYPES.map(|one| (one.name(), known(one))).into(),
            log_bytes_max: LOG_BYTES_DEFAULT,
            watchers_max: 1_000,
            waiting_max: WAITING_DEFAULT,
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
                let all = pacenote::job::time::Timestamp::from_micros(i64::MAX);
                self.reference.lose(all, self.clock.now());
                self.read.clear();
            }
        }
        self.look().await;
    }

    /// A free place for the type, until the next look at what was handed out.
    async fn claim(&mut self, job_type: Type) {
        // What is over its time expires at the claim, too, as far as that looks at it.
        self.expire().await;
        self.process().places.give_back(&job_type.name());
        self.queue().wake().await;
        self.take_handed(job_type, None).await;
    }

    /// Takes what was claimed for a place that was given, or the place. A job that came with the place is
    /// claimed in its own commit or behind all that waited before it.
    async fn take_handed(&mut self, job_type: Type, newcomer: Option<&JobKey>) {
        // What has to wait for others is set aside first, and the next group looks again.
        for _ in 0..4 {
            self.queue().settle().await;
        }
        let mut claims = 0;
        while let Ok(handed) = self.process().handed.try_recv() {
            claims += 1;
            let (key, attempt) = (handed.claimed.job.key.clone(), handed.claimed.job.attempt);
            if !self.reference.is_next(&key, newcomer) {
                let what = format!("job {} was claimed before its turn", key.id);
                self.mismatches.push(what);
            }
            self.see(Observation::Claimed(key.clone(), attempt));
            self.reference.claim(&key, self.clock.steady());
            self.leases.push(Lease { key, attempt });
        }
        if claims == 0 {
            self.process().places.take(&job_type.name());
        }
        let waits = self.reference.any_waits(job_type);
        if claims > 1 || (claims == 0 && waits) {
            let what = format!("{claims} claims for one place of {job_type:?}");
            self.mismatches.push(what);
        }
    }

    /// Lets time pass, and does what it brings.
    async fn pass(&mut self, time: Duration) {
        self.clock.pass(time);
        if let Err(error) = soon(self.queue().make_due()).await {
            self.mismatches.push(format!("make_due: {error:?}"));
        }
        self.reference.become_due(self.clock.now());
        self.expire().await;
    }

    async fn expire(&mut self) {
        if let Err(error) = soon(self.queue().expire_waiting()).await {
            self.mismatches.push(format!("expire_waiting: {error:?}"));
        }
        self.reference.expire(self.clock.now());
    }

    async fn sweep(&mut self) {
        let now = self.clock.steady();
        if let Err(error) = soon(self.queue().sweep_leases(now)).await {
            self.mismatches.push(format!("sweep: {error:?}"));
        }
        self.reference.lose(now, self.clock.now());
    }

    /// Makes a call and compares its answer with the reference's. In a call that the process dies in, only
    /// what is stored may have changed.
    async fn call(&mut self, call: Call, dies: Option<Dies>) {
        if let Some(dies) = dies {
            self.process().mortal.0.die_in_next(dies);
        }
        let before = self.reference.clone();
        let Some((expected, reply)) = self.make(call.clone(), dies.is_some()).await else {
            return;
        };
        let expected = match dies {
            None => expected,
            Some(_) => {
                if dies == Some(Dies::BeforeTheCommit) {
                    self.reference = before;
                }
                Reply::Refused(Refused::Unknown)
            }
        };
        self.expect(&format!("{call:?}"), &expected, &reply);
    }

    /// What the reference says of a call, and what the queue says. `None` where there is nothing to call
    /// about.
    async fn make(&mut self, call: Call, dies: bool) -> Option<(Reply, Reply)> {
        Some(match call {
            Call::Submit(submit) => self.submit(submit, dies).await,
            Call::Batch(submits) => self.submit_batch(submits).await,
            Call::Report(pick, telling) => {
                let lease = pick.of(&self.leases)?.clone();
                let expected = self.reference.report(&lease, self.clock.steady());
                let reported = soon(self.queue().report(&lease, reports(telling))).await;
                if reported.is_ok() {
                    self.see(Observation::ReportAccepted(lease.key, lease.attempt));
                }
                (expected, reported.map_or_else(refused, |()| Reply::Done))
            }
            Call::Finish(pick, end) => {
                let lease = pick.of(&self.leases)?.clone();
                self.finish(&lease, end).await
            }
            Call::Cancel(pick) => {
                let key = pick.of(&self.made)?.clone();
                let expected = self.reference.cancel(&key);
                let cancelled = soon(self.queue().cancel(&key, "enough".to_owned())).await;
                if let Ok(job) = &cancelled {
                    self.see(Observation::Cancelled(Seen::of(job)));
                }
                (expected, reply(cancelled))
            }
            Call::CancelAsStranger(pick) => {
                let key = stranger(pick.of(&self.made)?);
                let cancelled = soon(self.queue().cancel(&key, String::new())).await;
                if let Ok(job) = &cancelled {
                    let shown = Observation::Shown(key.tenant, vec![job.key.id]);
                    self.see(shown);
                }
                (Reply::Refused(Refused::NotFound), reply(cancelled))
            }
            Call::Delete(pick) => {
                let key = pick.of(&self.made)?.clone();
                self.reference.delete(&key);
                self.purge(Purge::Job(key)).await
            }
            Call::DeleteFront(pick, percent) => {
                let key = pick.of(&self.made)?.clone();
                let last = self.checker.last_sequence(&key);
                let through = last * i64::from(percent) / 100;
                self.purge(Purge::Events(key, through)).await
            }
        })
    }

    async fn submit(&mut self, submit: Submit, dies: bool) -> (Reply, Reply) {
        let key = JobKey {
            tenant: tenant_of(&submit),
            id: self.clock.next_id(),
        };
        let with_place = submit.with_place && !dies;
        if with_place {
            self.expire().await;
        }
        let expected = self
            .reference
            .submit(key.clone(), &submit, self.clock.now());
        if with_place {
            let job_type = submit.job_type.name();
            self.process().places.give_back(&job_type);
        }
        let submitted = soon(self.queue().submit(submission(&submit))).await;
        self.note_made(&key);
        let found = match submitted {
            Err(error) => refused(error),
            Ok((job, deduplicated)) => {
                let found = self.submitted(&submit, &job, deduplicated);
                // With a place, it may run already.
                match found {
                    Reply::Job(key, JobState::Running) if with_place => {
                        Reply::Job(key, JobState::Queued)
                    }
                    as_it_is => as_it_is,
                }
            }
        };
        if with_place {
            self.take_handed(submit.job_type, Some(&key)).await;
        }
        (expected, found)
    }

    async fn submit_batch(&mut self, submits: Vec<Submit>) -> (Reply, Reply) {
        // The batch has an id of its own, before those of its jobs.
        let jobs: Vec<_> = (1..)
            .zip(&submits)
            .map(|(place, submit)| {
                let key = JobKey {
                    tenant: tenant_of(submit),
                    id: self.clock.id_after(place),
                };
                (key, submit.clone())
            })
            .collect();
        let expected = self.reference.submit_batch(&jobs, self.clock.now());
        let submissions = submits.iter().map(submission).collect();
        let stored = soon(self.queue().submit_batch(submissions)).await;
        for (key, _) in &jobs {
            self.note_made(key);
        }
        let found = match stored {
            Err(error) => refused(error),
            Ok(batch) => {
                let stored = submits.iter().zip(&batch.jobs);
                let replies =
                    stored.map(|(submit, (job, known))| self.submitted(submit, job, *known));
                Reply::Batch(replies.collect())
            }
        };
        (expected, found)
    }

    fn note_made(&mut self, key: &JobKey) {
        if self.reference.jobs.contains_key(key) {
            self.made.push(key.clone());
        }
    }

    /// A submit was acknowledged with this job.
    fn submitted(&mut self, submit: &Submit, job: &Job, deduplicated: bool) -> Reply {
        let idempotency_key = submit.idempotency_key.map(text_of);
        let seen = Seen::of(job);
        let by_place = deduplicated
            && (idempotency_key.is_none() || job.spec.idempotency_key != idempotency_key);
        self.see(if by_place {
            Observation::Answered(seen)
        } else {
            Observation::Submitted {
                job: seen,
                idempotency_key,
            }
        });
        let (key, state) = (job.key.clone(), in_line(job.state));
        if deduplicated {
            Reply::Deduplicated(key, state)
        } else {
            Reply::Job(key, state)
        }
    }

    async fn finish(&mut self, lease: &Lease, end: End) -> (Reply, Reply) {
        let chance = match end {
            End::Fails(chance) => f64::from(chance) / 256.0,
            _ => 0.5,
        };
        self.clock.set_chance(chance);
        let expected = self.reference.finish(lease, end, chance, self.clock.now());
        let result = Payload::text(format!("of attempt {}", lease.attempt));
        let outcome = match end {
            End::Succeeds => Outcome::Succeeded(Some(result.clone())),
            End::Fails(_) => Outcome::Failed(JobError::retryable("BROKEN", "again")),
            End::FailsForGood => Outcome::Failed(JobError::permanent("BROKEN", "for good")),
            End::IsCancelled => Outcome::Cancelled,
            End::HandsBack => Outcome::HandedBack,
            End::Snoozes(for_) => Outcome::Snoozed(Duration::from_secs(u64::from(for_))),
        };
        let finished = soon(self.queue().finish(lease, Vec::new(), outcome)).await;
        if let Ok(job) = &finished {
            let (key, attempt) = (lease.key.clone(), lease.attempt);
            // Accepted first, seen then: the answer shows the job after it.
            self.see(match job.state {
                JobState::Succeeded => {
                    Observation::ResultAccepted(key, attempt, result.as_bytes().to_vec())
                }
                _ => Observation::ReportAccepted(key, attempt),
            });
            self.see(Observation::Answered(Seen::of(job)));
        }
        (expected, reply(finished))
    }

    async fn purge(&mut self, purge: Purge) -> (Reply, Reply) {
        let purged = soon(self.queue().purge(vec![purge.clone()])).await;
        let found = match purged {
            Ok(purged) => {
                for one in purged {
                    if let Purged::Job(key) = one {
                        self.see(Observation::Deleted(key));
                    }
                }
                Reply::Done
            }
            Err(error) => {
                if let Purge::Job(key) = purge {
                    self.see(Observation::DeleteUnknown(key));
                }
                refused(error)
            }
        };
        (Reply::Done, found)
    }

    /// Goes on with the watch of a job, or from where the last one was cut, and reads what there is.
    async fn watch(&mut self, key: &JobKey) {
        let after = self.cursors.get(key).copied().unwrap_or_default();
        let open = self.process().watches.remove(key);
        let opened = match open {
            Some(watch) => Ok(watch),
            None => {
                let options = WatchOptions {
                    after_sequence: Some(after),
                    ..WatchOptions::default()
                };
                soon(self.queue().watch(key, options)).await
            }
        };
        let read = match opened {
            Ok(watch) => self.read_watch(key, watch, after).await,
            Err(error) => Err(error),
        };
        let is_there = self.reference.jobs.contains_key(key);
        match read {
            Ok(()) => {}
            Err(Error::NotFound { .. } | Error::Purged { .. }) if !is_there => {}
            Err(error) => self.mismatches.push(format!("a watch: {error:?}")),
        }
    }

    async fn read_watch(
        &mut self,
        key: &JobKey,
        mut watch: Watch,
        after: i64,
    ) -> Result<(), Error> {
        let last = self.checker.last_sequence(key);
        let over = self.reference.is_over(key);
        let (mut begin, mut through) = (after, after);
        let (mut events, mut end) = (Vec::new(), None);
        while over || through < last {
            let Some(message) = soon(watch.next()).await? else {
                self.watched(key, begin, events, end);
                self.cursors.insert(key.clone(), through);
                return Ok(());
            };
            match message.content {
                WatchContent::Events(told) => events.extend(told.iter().map(Entry::decoded)),
                WatchContent::Gap(first, last) => {
                    self.expect("a gap begins", &(through + 1), &first);
                    let told = std::mem::take(&mut events);
                    self.watched(key, begin, told, None);
                    begin = last;
                }
                WatchContent::Snapshot(snapshot) => end = Some(snapshot.job.state),
                WatchContent::Heartbeat(_) => {}
            }
            through = message.through_sequence;
        }
        self.watched(key, begin, events, None);
        self.cursors.insert(key.clone(), through);
        self.process().watches.insert(key.clone(), watch);
        Ok(())
    }

    fn watched(&mut self, key: &JobKey, after: i64, events: Vec<Entry>, ended: Option<JobState>) {
        self.see(Observation::Watched {
            key: key.clone(),
            after,
            events,
            ended,
        });
    }

    /// Reads everything back, through the door wherever there is one.
    async fn look(&mut self) {
        let queue = self.queue();
        let mut snapshot = Snapshot::default();
        for tenant in TENANTS {
            let jobs = self.list(&queue, tenant).await;
            let ids = jobs.iter().map(|job| job.key.id).collect();
            let tenant = Name::new(tenant).expect("a name");
            self.see(Observation::Shown(tenant, ids));
            for job in jobs {
                snapshot.jobs.push(self.read(&queue, job).await);
            }
        }
        let depths = self.process().mortal.depths().await.expect("a read");
        let depths = depths.into_iter();
        snapshot.depths = depths.map(|(lane, state, n)| ((lane, state), n)).collect();
        self.compare(&snapshot);
        self.see(Observation::Snapshot(snapshot));
    }

    async fn list(&mut self, queue: &JobQueue, tenant: &str) -> Vec<Arc<Job>> {
        let (mut jobs, mut token) = (Vec::new(), Some(String::new()));
        while let Some(page) = token {
            let query = ListQuery {
                limit: 0,
                ..query(tenant)
            };
            let listed = soon(queue.list(query, 7, &page, View::Basic)).await;
            match listed {
                Ok(page) => {
                    jobs.extend(page.jobs.into_iter().map(|snapshot| snapshot.job));
                    token = page.next_token;
                }
                Err(error) => {
                    self.mismatches.push(format!("a list: {error:?}"));
                    break;
                }
            }
        }
        jobs
    }

    /// A job as it is read by itself, with its log where that is not known yet.
    async fn read(&mut self, queue: &JobQueue, job: Arc<Job>) -> Stored {
        let mut stored = Stored {
            job,
            result: None,
            log: None,
        };
        let key = stored.job.key.clone();
        if self.read.get(&key) == Some(&stored.job.version) {
            return stored;
        }
        match soon(queue.get(&key, View::Full)).await {
            Ok(found) => {
                self.expect("a job and its list", &stored.job, &found.job);
                self.see(Observation::Answered(Seen::of(&found.job)));
                stored.result = found.payloads.result.map(|p| p.as_bytes().to_vec());
            }
            Err(error) => {
                let what = format!("job {} is listed and not found: {error:?}", key.id);
                self.mismatches.push(what);
            }
        }
        let mut log = Vec::new();
        let mut after = 0;
        // In a log that lies, no page goes on.
        for _ in 0..100 {
            let query = EventQuery {
                after,
                page_size: 1000,
                tags: Vec::new(),
            };
            match soon(queue.events(&key, &query)).await {
                Ok(page) => {
                    log.extend(page.events.iter().map(Entry::decoded));
                    let done = page.through == after || page.through >= stored.job.last_sequence;
                    after = page.through;
                    if done {
                        break;
                    }
                }
                Err(error) => {
                    self.mismatches.push(format!("a log: {error:?}"));
                    break;
                }
            }
        }
        stored.log = Some(log);
        self.read.insert(key, stored.job.version);
        stored
    }

    fn compare(&mut self, snapshot: &Snapshot) {
        let expected: BTreeMap<JobKey, _> = self
            .reference
            .jobs
            .iter()
            .map(|(key, job)| (key.clone(), outline(job)))
            .collect();
        let found: BTreeMap<JobKey, _> = snapshot
            .jobs
            .iter()
            .map(|stored| (stored.job.key.clone(), outline_of(&stored.job)))
            .collect();
        self.expect("the jobs", &expected, &found);
    }

    /// Lets everything come to its end: no more faults, time for whatever waits for it, and a worker that
    /// does all there is.
    pub(super) async fn settle(&mut self) {
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
}

type Outline = (JobState, u32, u32, u32, i8, Option<i64>);

fn outline(job: &Expected) -> Outline {
    let waits = job.state.is_waiting();
    (
        job.state,
        job.attempt,
        job.charged,
        job.lost,
        job.request.priority,
        waits.then(|| job.run_at.as_micros()),
    )
}

fn outline_of(job: &Job) -> Outline {
    let waits = job.state.is_waiting();
    (
        in_line(job.state),
        job.attempt,
        job.attempts_charged,
        job.attempts_lost,
        i8::try_from(job.spec.priority).unwrap_or(i8::MAX),
        waits.then(|| job.run_at.as_micros()),
    )
}

/// Whether a job that could run but for its concurrency key stands in its lane or beside it is the
/// server's own business: what matters is who runs.
fn in_line(state: JobState) -> JobState {
    match state {
        JobState::Blocked => JobState::Queued,
        as_it_is => as_it_is,
    }
}

fn tenant_of(submit: &Submit) -> Name {
    let tenant = TENANTS[usize::from(submit.tenant) % TENANTS.len()];
    Name::new(tenant).expect("a name")
}

fn submission(submit: &Submit) -> Submission {
    let input = Payload::text(submit.input.to_string());
    let delay = seconds(submit.delay);
    Submission {
        tenant: tenant_of(submit),
        priority: i32::from(submit.priority),
        idempotency_key: submit.idempotency_key.map(text_of).unwrap_or_default(),
        start: delay.map_or(Start::AtOnce, Start::After),
        unique: submit.unique.map(|(place, choice)| UniqueRequest {
            key: format!("place {place}"),
            on_conflict: Some(choice),
            window: None,
        }),
        concurrency_key: submit
            .concurrency_key
            .map(|key| format!("shared-{key}"))
            .unwrap_or_default(),
        timeouts: TimeoutOverrides {
            queue_timeout: seconds(submit.queue_timeout),
            total_timeout: seconds(submit.total_timeout),
            ..TimeoutOverrides::default()
        },
        ..Submission::new(submit.job_type.name().as_str(), Some(input))
    }
}

/// The same job, asked for by another tenant.
fn stranger(key: &JobKey) -> JobKey {
    let other = TENANTS
        .iter()
        .find(|tenant| **tenant != key.tenant.as_str());
    JobKey {
        tenant: Name::new(other.expect("there are two")).expect("a name"),
        id: key.id,
    }
}

fn reply(answer: Result<Arc<Job>, Error>) -> Reply {
    match answer {
        Ok(job) => Reply::Job(job.key.clone(), in_line(job.state)),
        Err(error) => refused(error),
    }
}

fn refused(error: Error) -> Reply {
    Reply::Refused(match error {
        Error::NotFound { .. } => Refused::NotFound,
        Error::KeyReused { id } => Refused::KeyReused(id),
        Error::UniqueTaken { id } => Refused::UniqueTaken(id),
        Error::BatchTaken { .. } => Refused::BatchTaken,
        Error::Precondition(Precondition::StaleLease) => Refused::StaleLease,
        Error::Precondition(Precondition::NotCancelling) => Refused::NotCancelling,
        Error::Unavailable { .. } => Refused::Unknown,
        other => Refused::Otherwise(format!("{other:?}")),
    })
}

fn reports(telling: Telling) -> Vec<Report> {
    match telling {
        Telling::Nothing => vec![],
        Telling::Progress(percent) => {
            vec![Report::Progress(Progress::fraction(
                f64::from(percent) / 100.0,
            ))]
        }
        Telling::Output => vec![Report::Output {
            stream: "stdout".to_owned(),
            chunk: Payload::text("a line\n"),
        }],
        Telling::Log => vec![Report::Log(LogLine::new(LogLevel::Info, "a line"))],
        Telling::Checkpoint => vec![Report::Checkpoint(Payload::text("here"))],
    }
}
