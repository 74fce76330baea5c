//! The only one that changes the store: takes what is waiting, commits it as one group, then answers
//! everyone, publishes in the order of the commit and hands out what was claimed.
//!
//! Nothing is answered or published before its commit. Who asked may be gone by then: the work is done
//! all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use crate::error::Error;
use crate::events::News;
use crate::job::limits::DURATION_MAX;
use crate::job::name::{Lane, Name};
use crate::job::time::Timestamp;
use crate::job::{Change, JobState};
use crate::queue::Shared;
use crate::queue::attempts::StopSignal;
use crate::queue::lease::Lease;
use crate::queue::places::Places;
use crate::queue::polls::{Poll, Polls};
use crate::queue::progress::{Addressed, ProgressGate};
use crate::queue::purges::{PurgeLine, PurgedTo};
use crate::queue::quota::Quota;
use crate::queue::schedule::{Offer, POOL, Schedule};
use crate::queue::settings::{Next, SettingChange};
use crate::store::{Claimed, Committed, Entry, Group, Purge, Purged, Reply, StoreError};

/// Entries of one group. Chosen: beyond it a group only makes everyone wait longer.
pub(super) const GROUP_ENTRIES_MAX: usize = 512;
/// Payload bytes of one group.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long after a claim that failed the next one is tried: a full disk does not knock when it has room.
const CLAIM_RETRY: Duration = Duration::from_millis(500);

/// What the writer is asked to do.
pub(super) enum Request {
    /// Changes, answered one by one.
    Entries {
        entries: Vec<Entry>,
        bytes: usize,
        reply: ReplyTo,
        /// The request's share of the bytes that may wait.
        share: Option<OwnedSemaphorePermit>,
    },
    /// Remove what is over.
    Purge { purge: Vec<Purge>, reply: PurgedTo },
    /// Keep a setting, and go by it from then on.
    Set { change: SettingChange, reply: SetTo },
    /// A worker of another program waits for work.
    Poll(Poll),
    /// A place is free, or a pool has come: look again for work to hand out.
    Wake,
    /// Take nothing more, finish what is waiting, and end.
    Stop,
}

/// What became of a change.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// The store's word.
    Stored(Reply),
    /// Progress that stands behind newer progress, or waits for its interval.
    Held,
}

impl Answer {
    /// Whether the change happened.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Stored(Reply::Done { .. }))
    }
}

/// Where claimed jobs go.
pub(super) struct Pool {
    pub(super) worker_id: String,
    pub(super) places: Places,
    pub(super) begin: Begin,
}

/// Begins the attempt of a claimed job, and comes back at once.
pub type Begin = Box<dyn Fn(Handed) + Send + Sync>;

/// A claimed job on its way into the pool.
#[derive(Debug)]
pub struct Handed {
    /// The job, and what its attempt needs.
    pub claimed: Claimed,
    /// How the attempt is told to stop.
    pub stop: StopSignal,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    schedule: Schedule,
    quota: Quota,
    /// Jobs of a queue that may run at once with one concurrency key.
    key_limits: Arc<BTreeMap<Name, usize>>,
    gate: ProgressGate,
    purges: PurgeLine,
    polls: Polls,
    /// When there may be more to claim although nobody knocks: at once after a commit that let jobs
    /// wait, claimed some, or had no use for a place; a moment later after one that failed.
    look_again_at: Option<Timestamp>,
}

/// What a group is made of, before the store has seen it.
#[derive(Default)]
struct Batch {
    entries: Vec<Addressed>,
    slots: usize,
    replies: Vec<(std::ops::Range<usize>, ReplyTo)>,
    bytes: usize,
    shares: Vec<OwnedSemaphorePermit>,
    settings: Vec<(SettingChange, SetTo)>,
}

type ReplyTo = oneshot::Sender<Result<Vec<Answer>, Error>>;
type SetTo = oneshot::Sender<Result<(), Error>>;

/// Says that the writer has ended; and where that was a panic, that the store has failed: nobody else
/// could, and everyone would wait for ever.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .fail(&StoreError::Failed("the writer has panicked".to_owned()));
        }
        self.0.written.cancel();
        self.0.take_pool();
    }
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Request>,
        schedule: Schedule,
        quota: Quota,
    ) -> Self {
        let key_limits = shared.live().key_limits(&shared.settings.queues);
        Self {
            shared,
            requests,
            key_limits,
            schedule,
            quota,
            gate: ProgressGate::default(),
            purges: PurgeLine::default(),
            polls: Polls::default(),
            look_again_at: Some(Timestamp::default()),
        }
    }

    /// Begins to work, on a thread of its own, because a store may block it (see
    /// [`JobStore`](crate::store::JobStore)). Nobody joins it: `Shared::written` says that it has ended.
    pub(super) fn start(self) -> std::io::Result<()> {
        let guard = Guard(Arc::clone(&self.shared));
        let work = move || {
            // Without a driver for sockets, of which it has none: then a wake-up is a futex, not an epoll.
            match Builder::new_current_thread().enable_time().build() {
                Ok(runtime) => runtime.block_on(self.run()),
                Err(error) => {
                    let cause = format!("no runtime for the writer: {error}");
                    self.shared.fail(&StoreError::Failed(cause));
                }
            }
            drop(guard);
        };
        let thread = std::thread::Builder::new().name("pacenote-writer".to_owned());
        thread.spawn(work).map(drop)
    }

    /// Works until it is told to stop, or the store has failed.
    async fn run(mut self) {
        loop {
            let batch = self.next_batch().await;
            if batch.is_none() && self.purges.is_empty() {
                return;
            }
            let written = match (self.shared.failure.get(), batch) {
                // Found by whoever tidied up: nothing is written behind it.
                (Some(error), _) => Err(error.clone()),
                (None, Some(batch)) => self.write(batch).await,
                (None, None) => self.purge().await,
            };
            if let Err(error) = written {
                self.fail(&error).await;
                return;
            }
        }
    }

    /// Waits for the first request, or for held progress to be due, or for nothing where there is something
    /// to remove, and takes what else is there. `None` once there will be no more.
    async fn next_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        let at_once = (!self.purges.is_empty()).then(Timestamp::default);
        let due_at = [
            self.gate.next_due(),
            self.look_again_at,
            self.schedule.next_start(),
            at_once,
        ];
        let due_at = due_at.into_iter().flatten().min();
        let wait = due_at.map_or(DURATION_MAX, |at| at.since(self.shared.clock.steady()));
        let first = tokio::select! {
            biased;
            // recv() is cancel safe: no request is lost.
            request = self.requests.recv() => Some(request?),
            () = self.shared.unclaimed.changed.notified() => None,
            () = tokio::time::sleep_until(Instant::now() + wait), if due_at.is_some() => None,
        };
        let now = self.shared.clock.steady();
        self.look_again_at = self.look_again_at.filter(|at| *at > now);
        for entry in self.shared.unclaimed.hand_backs() {
            self.gate.admit(entry, None, now, &mut batch.entries);
        }
        let mut next = first;
        while let Some(request) = next {
            self.add(&mut batch, request, now);
            if batch.entries.len() >= GROUP_ENTRIES_MAX || batch.bytes >= GROUP_BYTES_MAX {
                break;
            }
            next = self.requests.try_recv().ok();
        }
        self.gate.end_group(now, &mut batch.entries);
        Some(batch)
    }

    fn add(&mut self, batch: &mut Batch, request: Request, now: Timestamp) {
        match request {
            Request::Entries {
                entries,
                bytes,
                reply,
                share,
            } => {
                let first = batch.slots;
                for mut entry in entries {
                    let slot = Some(batch.slots);
                    batch.slots += 1;
                    renew(&mut entry, now);
                    self.gate.admit(entry, slot, now, &mut batch.entries);
                }
                batch.bytes += bytes;
                batch.shares.extend(share);
                batch.replies.push((first..batch.slots, reply));
            }
            Request::Purge { purge, reply } => self.purges.push(purge, reply),
            Request::Set { change, reply } => batch.settings.push((change, reply)),
            Request::Poll(poll) => self.polls.add(poll),
            Request::Wake => {}
            Request::Stop => self.requests.close(),
        }
    }

    async fn write(&mut self, mut batch: Batch) -> Result<(), StoreError> {
        let settings = std::mem::take(&mut batch.settings);
        let pool = self.shared.pool();
        let now = self.shared.clock.steady();
        self.schedule.tick(now);
        let places = pool.as_deref().map(|pool| &pool.places);
        let offer = self.offer(&mut batch.entries, places, now);
        if !batch.entries.is_empty() || !offer.is_empty() {
            self.commit(batch, offer, pool.as_deref()).await?;
        } else {
            // Everything in it is held back, or it was only a knock.
            answer(batch.replies, &mut vec![Answer::Held; batch.slots], None);
        }
        for (change, reply) in settings {
            self.set(change, reply).await?;
        }
        self.purge().await
    }

    async fn commit(
        &mut self,
        batch: Batch,
        offer: Offer,
        pool: Option<&Pool>,
    ) -> Result<(), StoreError> {
        let (entries, slots): (Vec<Entry>, Vec<Option<usize>>) = batch.entries.into_iter().unzip();
        let (had_entries, claims) = (!entries.is_empty(), !offer.is_empty());
        let held: Vec<Entry> = entries
            .iter()
            .zip(&slots)
            .filter(|(_, slot)| slot.is_none())
            .map(|(entry, _)| entry.clone())
            .collect();
        let clock = &self.shared.clock;
        let room = self.quota.room(&entries);
        let keeps_leases = entries.iter().any(|entry| self.keeps_leases(entry));
        let group = Group {
            entries,
            demand: offer.demand(),
            claimants: self.polls.claimants(pool, &offer, clock.steady()),
            room,
            key_limits: Arc::clone(&self.key_limits),
            now: clock.now(),
        };
        let places = pool.map(|pool| &pool.places);
        match self.shared.store.commit(group).await {
            Ok(committed) => {
                self.after_commit(&committed);
                let now = self.shared.clock.steady();
                let claimed = &committed.claimed;
                let unused = self.schedule.settle(offer, claimed, places, now);
                if had_entries && unused > 0 {
                    // Whom the place was for was touched by the same group: it may be for another one.
                    self.look_again_at = Some(Timestamp::default());
                }
                let mut answers = vec![Answer::Held; batch.slots];
                for (slot, reply) in slots.into_iter().zip(committed.replies) {
                    if let Some(slot) = slot {
                        answers[slot] = Answer::Stored(reply);
                    }
                }
                self.hand_out(committed.claimed, pool);
                answer(batch.replies, &mut answers, None);
                Ok(())
            }
            Err(error) => {
                let to_caller = Error::from(error.clone());
                if keeps_leases && to_caller.retry_after().is_some() {
                    self.shared.attempts.refuse();
                }
                let now = self.shared.clock.steady();
                self.schedule.settle(offer, &[], places, now);
                if claims {
                    self.look_again_at = Some(now.after(CLAIM_RETRY));
                }
                for entry in held {
                    self.take_back(entry, now);
                }
                answer(batch.replies, &mut [], Some(&to_caller));
                unless_failed(error)
            }
        }
    }

    /// Whether it is a word of a worker of another program, or the end of one's lease.
    fn keeps_leases(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Change {
                key,
                change: Change::Report { attempt, .. } | Change::Lose { attempt, .. },
            } => self.shared.attempts.is_remote(key, *attempt),
            Entry::Change { .. }
            | Entry::Submit { .. }
            | Entry::Batch(_)
            | Entry::Check(_)
            | Entry::Retry { .. } => false,
        }
    }

    /// What nobody asked for comes again: progress that was held, and what is handed back for those who have
    /// gone.
    fn take_back(&mut self, entry: Entry, now: Timestamp) {
        match entry {
            Entry::Change {
                key,
                change: Change::Undelivered { attempt },
            } => {
                self.shared.unclaimed.put_back(Lease { key, attempt });
                self.look_again_at = Some(now.after(CLAIM_RETRY));
            }
            entry => self.gate.take_back(entry, now),
        }
    }

    /// Takes places for what waits, and then for new jobs that nothing which could run waits before:
    /// those are claimed in the commit that stores them.
    fn offer(
        &mut self,
        entries: &mut [Addressed],
        places: Option<&Places>,
        now: Timestamp,
    ) -> Offer {
        let mut offer = match places {
            Some(places) => self.schedule.offer(places, now),
            None => Offer::default(),
        };
        self.polls.take_part(&mut self.schedule, &mut offer, now);
        let wall = self.shared.clock.now();
        // Types of which jobs of this very group wait that could run: what comes behind them must not run
        // before them. A single one that is not handed over cannot run.
        let mut waits: BTreeSet<Name> = BTreeSet::new();
        for (entry, _) in entries {
            if !places.is_some_and(Places::any_free) && !self.polls.any_free() {
                break;
            }
            let (new, hand_over) = match entry {
                Entry::Submit { new, hand_over } => (new, hand_over),
                Entry::Batch(jobs) => {
                    waits.extend(jobs.iter().map(|new| new.spec.job_type.clone()));
                    continue;
                }
                // Of these, some let a job wait of a type that is not known here.
                Entry::Retry { .. }
                | Entry::Change {
                    change: Change::BecomeDue | Change::Unblock,
                    ..
                } => break,
                Entry::Check(_) | Entry::Change { .. } => continue,
            };
            let job_type = &new.spec.job_type;
            if new.run_at(wall) > wall || waits.contains(job_type) {
                continue;
            }
            let lane = Lane {
                queue: new.spec.queue.clone(),
                job_type: job_type.clone(),
                tenant: new.key.tenant.clone(),
            };
            let schedule = &mut self.schedule;
            let to_pool = places
                .filter(|places| schedule.hand_over(&lane, &mut offer, places, now))
                .map(|_| POOL);
            *hand_over = to_pool.or_else(|| self.polls.hand_over(&lane, schedule, &mut offer, now));
        }
        offer
    }

    fn after_commit(&mut self, committed: &Committed) {
        let made_room = self.schedule.moved(&committed.depth_changes);
        self.quota.moved(&committed.depth_changes);
        let (depths, claimed) = (&committed.depth_changes, &committed.claimed);
        let now = self.shared.clock.steady();
        self.shared.rates().moved(depths, claimed, now);
        let mut moved = committed.depth_changes.iter();
        let more = made_room
            || !committed.claimed.is_empty()
            // One that was set aside has left its place to the next.
            || moved.any(|(_, state, by)| {
                matches!(state, JobState::Queued | JobState::Blocked) && *by > 0
            });
        if more {
            self.look_again_at = Some(Timestamp::default());
        }
        for published in &committed.published {
            let job = &published.job;
            self.gate.committed(job);
            self.shared.attempts.committed(job, now);
            if job.state == JobState::Scheduled {
                self.shared.due_changed.notify_one();
            }
            if let Some(deadline) = job.deadline_at {
                self.shared.deadlines.hear(deadline);
            }
            if let Some(purge_at) = job.events_purge_at.or(job.purge_at) {
                self.shared.retention.alarm.hear(purge_at);
            }
            let segment = &published.segment;
            let news = || {
                let (job, segment) = (Arc::clone(job), Arc::clone(segment));
                match &published.payloads {
                    None => News::Events(job, segment),
                    Some(payloads) => News::Over(job, Arc::clone(payloads), segment),
                }
            };
            let hub = &self.shared.hub;
            hub.publish(&job.key, published.position, segment.len(), news);
        }
    }

    fn hand_out(&mut self, claimed: Vec<Claimed>, pool: Option<&Pool>) {
        let now = self.shared.clock.steady();
        let mut of_polls: BTreeMap<usize, Vec<Handed>> = BTreeMap::new();
        for claimed in claimed {
            let stop = self.shared.attempts.begin(&claimed.job, now);
            let claimant = claimed.claimant;
            let handed = Handed { claimed, stop };
            match pool {
                Some(pool) if claimant == POOL => (pool.begin)(handed),
                Some(_) | None => of_polls.entry(claimant).or_default().push(handed),
            }
        }
        self.polls.answer(of_polls, &self.shared.unclaimed);
    }

    /// Keeps a setting, and goes by it once it is kept.
    async fn set(&mut self, change: SettingChange, reply: SetTo) -> Result<(), StoreError> {
        let clock = &self.shared.clock;
        let next = self.shared.live().after(change, clock.now());
        let next = match next {
            Ok(next) => next,
            Err(error) => {
                // Whoever asked may be gone: fine.
                let _ = reply.send(Err(error));
                return Ok(());
            }
        };
        let stored = self.shared.store.put_setting(next.setting()).await;
        if stored.is_ok() {
            self.go_by(next);
        }
        let ended = stored.clone().or_else(unless_failed);
        // Whoever asked may be gone: fine.
        let _ = reply.send(stored.map_err(Error::from));
        ended
    }

    fn go_by(&mut self, next: Next) {
        let file = &self.shared.settings.queues;
        let mut live = self.shared.live();
        live.put(next.clone());
        match &next {
            Next::Queue(name, queue) => {
                let (limits, paused) = (live.limits(name, file), queue.paused_at.is_some());
                let now = self.shared.clock.steady();
                self.schedule.set_queue(name, &limits, paused, now);
            }
            Next::Type(name, of_type) => {
                self.schedule.pause_type(name, of_type.paused_at.is_some());
            }
        }
        self.key_limits = live.key_limits(file);
        // Something may be let go that was held up.
        self.look_again_at = Some(Timestamp::default());
    }

    /// Removes the next few of what is to be removed: no more than everybody else's changes can wait for.
    async fn purge(&mut self) -> Result<(), StoreError> {
        let next = self.purges.next();
        if next.is_empty() {
            return Ok(());
        }
        match self.shared.store.purge(next).await {
            Ok(purged) => {
                for one in &purged {
                    if let Purged::Job(key) = one {
                        self.shared.hub.publish_purge(key);
                    }
                }
                self.purges.done(purged);
                Ok(())
            }
            Err(error) => {
                self.purges.failed(&error);
                unless_failed(error)
            }
        }
    }

    /// Answers whoever still waits, after the store has failed, and only then says so: what serves them
    /// ends with that.
    async fn fail(&mut self, error: &StoreError) {
        tracing::error!(%error, "the store has failed: nothing more is stored");
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            match request {
                // Whoever asked may be gone: fine.
                Request::Entries { reply, .. } => {
                    let _ = reply.send(Err(Error::outcome_unknown()));
                }
                Request::Purge { reply, .. } => {
                    let _ = reply.send(Err(Error::outcome_unknown()));
                }
                Request::Set { reply, .. } => {
                    let _ = reply.send(Err(Error::outcome_unknown()));
                }
                // Whoever polls is told by the end of the reply's channel.
                Request::Poll(_) | Request::Wake | Request::Stop => {}
            }
        }
        self.shared.fail(error);
    }
}

/// The writer goes on after every error of its store but the one that says that it cannot be trusted.
fn unless_failed(error: StoreError) -> Result<(), StoreError> {
    match error {
        StoreError::Failed(_) => Err(error),
        StoreError::DiskFull | StoreError::Busy | StoreError::Internal(_) => Ok(()),
    }
}

/// A lease is renewed from when the writer sees the report: one that had to wait renews no less.
fn renew(entry: &mut Entry, now: Timestamp) {
    if let Entry::Change {
        change:
            Change::Report {
                heard_at,
                lease_until,
                ..
            },
        ..
    } = entry
    {
        let term = lease_until.since(*heard_at);
        *lease_until = (*lease_until).max(now.after(term));
    }
}

fn answer(
    replies: Vec<(std::ops::Range<usize>, ReplyTo)>,
    answers: &mut [Answer],
    error: Option<&Error>,
) {
    for (slots, reply) in replies {
        let result = match error {
            Some(error) => Err(error.clone()),
            None => Ok(answers[slots]
                .iter_mut()
                .map(|answer| std::mem::replace(answer, Answer::Held))
                .collect()),
        };
        // Whoever asked may be gone: fine.
        let _ = reply.send(result);
    }
}
