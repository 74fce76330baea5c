//! A clock that the test owns: time passes when it says so, and chance is seeded.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pacenote::job::time::{Clock, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

/// A clock that stands still until it is told that time has passed.
pub(crate) struct OwnedClock {
    wall: AtomicI64,
    steady: AtomicI64,
    chance: Mutex<StdRng>,
}

impl OwnedClock {
    /// Begins in November 2023. The seed is of its chances.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            wall: AtomicI64::new(1_700_000_000_000_000),
            steady: AtomicI64::new(1_000_000_000_000),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
        })
    }

    /// Lets time pass, for both clocks.
    pub(crate) fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).expect("a short time");
        self.wall.fetch_add(micros, Ordering::SeqCst);
        self.steady.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for OwnedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.wall.load(Ordering::SeqCst))
    }

    fn steady(&self) -> Timestamp {
        Timestamp::from_micros(self.steady.load(Ordering::SeqCst))
    }

    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn chance(&self) -> f64 {
        self.chance.lock().expect("no panic").random()
    }
}
