//! A point in time as the store keeps it, and the one place where time, chance and ids come from.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Later by `duration`; the far end of the range where that would overflow.
    pub fn after(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// Earlier by `duration`; the far end of the range where that would overflow.
    pub fn before(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }

    /// How long after `earlier` this is; zero where it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0)
    }
}

/// Where time, chance and ids come from, so that tests can own them.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock: what jobs and events are stamped with. May jump.
    fn now(&self) -> Timestamp;

    /// A clock that never jumps while the process lives: what leases are judged by. Only differences
    /// within one process mean anything.
    fn steady(&self) -> Timestamp;

    /// A new UUIDv7, ascending within the process.
    fn new_id(&self) -> Uuid;

    /// Uniform in 0 to 1, 1 excluded: the jitter of a retry.
    fn chance(&self) -> f64;
}

/// The machine's clocks and random numbers.
#[derive(Debug)]
pub struct SystemClock {
    started_at: Timestamp,
    started: Instant,
}

impl SystemClock {
    /// Starts the steady clock at the wall clock's time.
    pub fn new() -> Self {
        Self {
            started_at: wall_clock(),
            started: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        wall_clock()
    }

    fn steady(&self) -> Timestamp {
        self.started_at.after(self.started.elapsed())
    }

    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn chance(&self) -> f64 {
        rand::random()
    }
}

fn wall_clock() -> Timestamp {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(0).after(elapsed)
}
