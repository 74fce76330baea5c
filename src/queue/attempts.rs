//! The attempts that live in this process, and how each is told to stop.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::job::name::JobKey;
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

/// The attempts that live in this process.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    live: Mutex<HashMap<JobKey, (u32, StopSignal)>>,
}

impl Attempts {
    /// A new attempt of a claimed job.
    pub(super) fn begin(&self, job: &Job) -> StopSignal {
        let signal = StopSignal::default();
        self.lock()
            .insert(job.key.clone(), (job.attempt, signal.clone()));
        signal
    }

    /// Learns how a job stands after a commit: whoever runs it is told to stop where it has to.
    pub(super) fn committed(&self, job: &Job) {
        let mut live = self.lock();
        let Some((attempt, signal)) = live.get(&job.key) else {
            return;
        };
        if !job.state.is_leased() || job.attempt != *attempt {
            // Where it has just finished by itself, nobody hears this.
            signal.stop(StopCause::LeaseLost);
            live.remove(&job.key);
        } else if job.state == JobState::Cancelling {
            signal.stop(StopCause::Cancel);
        }
    }

    /// Whether an attempt is one of them.
    pub(super) fn is_alive(&self, key: &JobKey, attempt: u32) -> bool {
        self.lock()
            .get(key)
            .is_some_and(|(live, _)| *live == attempt)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobKey, (u32, StopSignal)>> {
        // Nothing in here can be left half done by a panic.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
