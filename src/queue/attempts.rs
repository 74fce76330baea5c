//! The attempts that live, in this process and in workers of other programs, and how each is told to stop.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::job::limits::LEASE;
use crate::job::name::{JobKey, Lane, Name};
use crate::job::policy::Limit;
use crate::job::time::Timestamp;
use crate::job::{Job, JobState};
use crate::queue::lease::Lease;

/// Why an attempt has to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopCause {
    /// Somebody asked the job to stop.
    Cancel,
    /// It has reached a limit of its own.
    Limit(Limit),
    /// The server drains.
    Drain,
    /// It does not hold the lease any more.
    LeaseLost,
}

/// How an attempt is told to stop. The first cause stands. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StopSignal {
    token: CancellationToken,
    cause: Arc<OnceLock<StopCause>>,
    over: CancellationToken,
}

impl StopSignal {
    /// Tells it to stop, unless it was told before.
    pub fn stop(&self, cause: StopCause) {
        // Told before: the first cause stands.
        let _ = self.cause.set(cause);
        self.token.cancel();
    }

    /// Why it was told to stop, if it was.
    pub fn cause(&self) -> Option<StopCause> {
        self.cause.get().copied()
    }

    /// Tripped when it is told to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Tripped when the attempt is over, for whatever cause it was told to stop before.
    pub(super) fn over(&self) -> &CancellationToken {
        &self.over
    }
}

/// Weight of the newest attempt in the mean of a type. Chosen: the last ten or so decide.
const NEWEST: f64 = 0.1;
/// A mean that nothing was added to for so long says nothing about now.
const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// The attempts that live.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: HashMap<JobKey, Live>,
    /// How many of them are of each lane.
    running: HashMap<Lane, usize>,
    /// How long those took that are over, by type.
    means: HashMap<Name, Mean>,
    /// Nobody could be heard until then, by the steady clock: each lease holds for its full term from there.
    anew_from: Option<Timestamp>,
    /// The store had no room for a worker's renewal, and it is not known that it has since.
    refused: bool,
}

impl State {
    fn of(&mut self, lease: &Lease) -> Option<&mut Live> {
        let live = self.live.get_mut(&lease.key);
        live.filter(|live| live.attempt == lease.attempt)
    }

    /// An attempt is over.
    fn end(&mut self, key: &JobKey, now: Timestamp) {
        let Some(live) = self.live.remove(key) else {
            return;
        };
        let Live {
            stop,
            lane,
            began_at,
            ..
        } = live;
        stop.over.cancel();
        let took = now.since(began_at);
        match self.means.get_mut(&lane.job_type) {
            Some(mean) => mean.add(took, now),
            None => {
                let mean = Mean {
                    seconds: took.as_secs_f64(),
                    known_at: now,
                };
                self.means.insert(lane.job_type.clone(), mean);
            }
        }
        if let Entry::Occupied(mut running) = self.running.entry(lane) {
            *running.get_mut() -= 1;
            if *running.get() == 0 {
                running.remove();
            }
        }
    }
}

#[derive(Debug)]
struct Live {
    attempt: u32,
    stop: StopSignal,
    began_at: Timestamp,
    lane: Lane,
    /// Where its worker is another program: how long each renewal of its lease holds.
    remote_term: Option<Duration>,
    /// When such a worker told something last, or may next.
    heard: Instant,
}

/// How long the attempts of one type took lately.
#[derive(Debug)]
struct Mean {
    seconds: f64,
    /// When the newest one was over.
    known_at: Timestamp,
}

impl Mean {
    fn add(&mut self, took: Duration, now: Timestamp) {
        self.seconds += (took.as_secs_f64() - self.seconds) * NEWEST;
        self.known_at = now;
    }
}

impl Attempts {
    /// A new attempt of a claimed job. `now` by the steady clock.
    pub(super) fn begin(&self, job: &Job, now: Timestamp) -> StopSignal {
        let stop = StopSignal::default();
        let lane = job.lane();
        let live = Live {
            attempt: job.attempt,
            stop: stop.clone(),
            began_at: now,
            lane: lane.clone(),
            remote_term: job.detail.remote_lease.map(|lease| lease.term),
            heard: Instant::now(),
        };
        let mut state = self.lock();
        state.live.insert(job.key.clone(), live);
        *state.running.entry(lane).or_default() += 1;
        stop
    }

    /// Learns how a job stands after a commit: whoever runs it is told to stop where it has to. `now` by
    /// the steady clock.
    pub(super) fn committed(&self, job: &Job, now: Timestamp) {
        let mut state = self.lock();
        let Some(live) = state.live.get(&job.key) else {
            return;
        };
        if !job.state.is_leased() || job.attempt != live.attempt {
            // Where it has just finished by itself, nobody hears this.
            live.stop.stop(StopCause::LeaseLost);
            state.end(&job.key, now);
        } else if job.state == JobState::Cancelling {
            live.stop.stop(StopCause::Cancel);
        }
    }

    /// An attempt is over of which nobody could be told: it is left to the end of its lease.
    pub(super) fn forget(&self, key: &JobKey, attempt: u32, now: Timestamp) {
        let mut state = self.lock();
        let live = state.live.get(key);
        if live.is_some_and(|live| live.attempt == attempt) {
            state.end(key, now);
        }
    }

    /// Nobody could be heard until now: each lease begins anew. `now` by the steady clock.
    pub(super) fn begin_anew(&self, now: Timestamp) {
        let mut state = self.lock();
        state.anew_from = Some(now);
        state.refused = false;
    }

    /// The store can take nothing now: whoever renews a lease is refused, through no fault of its own.
    pub(super) fn refuse(&self) {
        self.lock().refused = true;
    }

    /// Whether a worker's renewal was refused since leases began anew.
    pub(super) fn has_refused(&self) -> bool {
        self.lock().refused
    }

    /// Any attempt of another program's worker, and the term of its lease.
    pub(super) fn any_remote(&self) -> Option<(Lease, Duration)> {
        let state = self.lock();
        state.live.iter().find_map(|(key, live)| {
            let lease = Lease {
                key: key.clone(),
                attempt: live.attempt,
            };
            Some((lease, live.remote_term?))
        })
    }

    /// Whether an attempt lives whose worker is another program.
    pub(super) fn is_remote(&self, key: &JobKey, attempt: u32) -> bool {
        let state = self.lock();
        let live = state.live.get(key);
        live.is_some_and(|live| live.attempt == attempt && live.remote_term.is_some())
    }

    /// Whether an attempt is lost whose lease, as it is stored, ended before `before`: not where it runs in this
    /// process, and not within its term after nobody could be heard.
    pub(super) fn is_lost(&self, key: &JobKey, attempt: u32, before: Timestamp) -> bool {
        let state = self.lock();
        let live = state.live.get(key).filter(|live| live.attempt == attempt);
        let term = match live {
            Some(live) => match live.remote_term {
                Some(term) => term,
                None => return false,
            },
            None => LEASE,
        };
        state.anew_from.is_none_or(|from| from.after(term) < before)
    }

    /// The worker of an attempt has told something, or was told not to before a time to come.
    pub(super) fn hear(&self, lease: &Lease, at: Instant) {
        if let Some(live) = self.lock().of(lease) {
            live.heard = at;
        }
    }

    /// When the worker of an attempt told something last, or may next.
    pub(super) fn heard(&self, lease: &Lease) -> Option<Instant> {
        self.lock().of(lease).map(|live| live.heard)
    }

    /// Why an attempt has to stop, if it has.
    pub(super) fn cause(&self, lease: &Lease) -> Option<StopCause> {
        self.lock().of(lease).and_then(|live| live.stop.cause())
    }

    /// How many attempts of a lane run, and how long those of its type took lately; `None` where either is
    /// not known. `now` by the steady clock.
    pub(super) fn pace(&self, lane: &Lane, now: Timestamp) -> Option<(usize, Duration)> {
        let state = self.lock();
        let running = *state.running.get(lane)?;
        let mean = state.means.get(&lane.job_type)?;
        let known = now.since(mean.known_at) <= KNOWN_FOR;
        known.then(|| (running, Duration::from_secs_f64(mean.seconds)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
