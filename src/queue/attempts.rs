//! The attempts that live in this process, and how each is told to stop.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::job::name::{JobKey, Name};
use crate::job::time::Timestamp;
use crate::job::{Job, JobState};

/// Why an attempt has to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopCause {
    /// Somebody asked the job to stop.
    Cancel,
    /// It ran longer than it may.
    RunTimeout,
    /// Its job took longer than it may, over all its attempts.
    TotalTimeout,
    /// It told nothing for longer than it may.
    HeartbeatTimeout,
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
}

/// Weight of the newest attempt in the mean of a type. Chosen: the last ten or so decide.
const NEWEST: f64 = 0.1;
/// A mean that nothing was added to for so long says nothing about now.
const KNOWN_FOR: Duration = Duration::from_secs(3600);

/// The attempts that live in this process.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: HashMap<JobKey, Live>,
    /// Types of which an attempt has begun since the start.
    paces: HashMap<Name, Pace>,
}

#[derive(Debug)]
struct Live {
    attempt: u32,
    stop: StopSignal,
    began_at: Timestamp,
}

/// How the attempts of one type go.
#[derive(Debug, Default)]
struct Pace {
    running: usize,
    mean_seconds: f64,
    /// When the newest one was over; `None` before the first.
    known_at: Option<Timestamp>,
}

impl Pace {
    fn ended(&mut self, took: Duration, now: Timestamp) {
        self.running = self.running.saturating_sub(1);
        let took = took.as_secs_f64();
        let weight = if self.known_at.is_some() { NEWEST } else { 1.0 };
        self.mean_seconds += (took - self.mean_seconds) * weight;
        self.known_at = Some(now);
    }
}

impl Attempts {
    /// A new attempt of a claimed job. `now` by the steady clock.
    pub(super) fn begin(&self, job: &Job, now: Timestamp) -> StopSignal {
        let stop = StopSignal::default();
        let live = Live {
            attempt: job.attempt,
            stop: stop.clone(),
            began_at: now,
        };
        let mut state = self.lock();
        state.live.insert(job.key.clone(), live);
        match state.paces.get_mut(&job.spec.job_type) {
            Some(pace) => pace.running += 1,
            None => {
                let pace = Pace {
                    running: 1,
                    ..Pace::default()
                };
                state.paces.insert(job.spec.job_type.clone(), pace);
            }
        }
        stop
    }

    /// Learns how a job stands after a commit: whoever runs it is told to stop where it has to. `now` by
    /// the steady clock.
    pub(super) fn committed(&self, job: &Job, now: Timestamp) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(live) = state.live.get(&job.key) else {
            return;
        };
        if !job.state.is_leased() || job.attempt != live.attempt {
            // Where it has just finished by itself, nobody hears this.
            live.stop.stop(StopCause::LeaseLost);
            if let Some(pace) = state.paces.get_mut(&job.spec.job_type) {
                pace.ended(now.since(live.began_at), now);
            }
            state.live.remove(&job.key);
        } else if job.state == JobState::Cancelling {
            live.stop.stop(StopCause::Cancel);
        }
    }

    /// An attempt is over of which nobody could be told: it is left to the end of its lease.
    pub(super) fn forget(&self, key: &JobKey, attempt: u32, job_type: &Name, now: Timestamp) {
        let mut state = self.lock();
        let state = &mut *state;
        if state
            .live
            .get(key)
            .is_some_and(|live| live.attempt == attempt)
            && let Some(live) = state.live.remove(key)
            && let Some(pace) = state.paces.get_mut(job_type)
        {
            pace.ended(now.since(live.began_at), now);
        }
    }

    /// Whether an attempt is one of them.
    pub(super) fn is_alive(&self, key: &JobKey, attempt: u32) -> bool {
        let state = self.lock();
        let live = state.live.get(key);
        live.is_some_and(|live| live.attempt == attempt)
    }

    /// How many attempts of a type run, and how long they took lately; `None` where either is not known.
    /// `now` by the steady clock.
    pub(super) fn pace(&self, job_type: &Name, now: Timestamp) -> Option<(usize, Duration)> {
        let state = self.lock();
        let pace = state.paces.get(job_type)?;
        let known = pace.known_at.is_some_and(|at| now.since(at) <= KNOWN_FOR);
        (known && pace.running > 0)
            .then(|| (pace.running, Duration::from_secs_f64(pace.mean_seconds)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
