//! Time, ids and chance in the hands of the test.

use std::sync::Mutex;
use std::time::Duration;

use pacenote::job::name::JobId;
use pacenote::job::time::{Clock, Timestamp};
use uuid::Uuid;

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub(super) struct TestClock(Mutex<Hands>);

#[derive(Debug)]
struct Hands {
    now: Timestamp,
    steady: Timestamp,
    ids: u64,
    chance: f64,
}

impl TestClock {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Hands {
            now: Timestamp::from_micros(1_700_000_000_000_000),
            steady: Timestamp::from_micros(1_000_000_000),
            ids: 0,
            chance: 0.5,
        }))
    }

    /// Lets time pass.
    pub(super) fn pass(&self, time: Duration) {
        let mut hands = self.0.lock().expect("no panic");
        hands.now = hands.now.after(time);
        hands.steady = hands.steady.after(time);
    }

    /// Sets the wall clock.
    pub(super) fn set(&self, by_millis: i64) {
        let mut hands = self.0.lock().expect("no panic");
        let micros = hands.now.as_micros() + by_millis * 1000;
        hands.now = Timestamp::from_micros(micros);
    }

    pub(super) fn set_chance(&self, chance: f64) {
        self.0.lock().expect("no panic").chance = chance;
    }

    /// The id that the next job is given.
    pub(super) fn next_id(&self) -> JobId {
        id(self.0.lock().expect("no panic").ids + 1)
    }
}

fn id(number: u64) -> JobId {
    // A UUIDv7, of the first second of its epoch, so that nothing hangs on the time in it.
    let bits = (7_u128 << 76) | (2_u128 << 62) | u128::from(number);
    JobId::new(Uuid::from_u128(bits))
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.0.lock().expect("no panic").now
    }

    fn steady(&self) -> Timestamp {
        self.0.lock().expect("no panic").steady
    }

    fn new_id(&self) -> Uuid {
        let mut hands = self.0.lock().expect("no panic");
        hands.ids += 1;
        *id(hands.ids).as_uuid()
    }

    fn chance(&self) -> f64 {
        self.0.lock().expect("no panic").chance
    }
}
