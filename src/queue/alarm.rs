//! When somebody who sleeps until a time has to look again: when an earlier one has come.
//!
//! In memory only. Who sleeps says until when; who learns of an earlier time wakes it. Times in between
//! cost neither anything.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Notify;

use crate::job::time::Timestamp;

/// Wakes one sleeper for times that are earlier than the one it sleeps for.
#[derive(Debug)]
pub(super) struct Alarm {
    /// Microseconds; the far end of the range while the sleeper looks.
    set_for: AtomicI64,
    earlier: Notify,
}

impl Default for Alarm {
    fn default() -> Self {
        Self {
            set_for: AtomicI64::new(i64::MAX),
            earlier: Notify::new(),
        }
    }
}

impl Alarm {
    /// The sleeper begins to look: from here on every time wakes it, because it may have been missed.
    pub(super) fn clear(&self) {
        self.set_for.store(i64::MAX, Ordering::SeqCst);
    }

    /// The sleeper has looked, and knows of this time; `None` for none.
    pub(super) fn set(&self, next: Option<Timestamp>) {
        let micros = next.map_or(i64::MAX, Timestamp::as_micros);
        self.set_for.store(micros, Ordering::SeqCst);
    }

    /// Somebody has learnt of a time.
    pub(super) fn hear(&self, at: Timestamp) {
        if at.as_micros() < self.set_for.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    /// Wakes the sleeper whatever it sleeps for.
    pub(super) fn ring(&self) {
        self.earlier.notify_one();
    }

    /// Waits for an earlier time than the one that it is set for, or for whoever wakes it without one.
    ///
    /// # Cancel safety
    /// Safe: an earlier time that was heard is still there next time.
    pub(super) async fn rings(&self) {
        self.earlier.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::FutureExt;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn rings(alarm: &Alarm) -> bool {
        alarm.rings().now_or_never().is_some()
    }

    #[test]
    fn only_an_earlier_time_rings() {
        let alarm = Alarm::default();
        alarm.set(Some(at(10)));
        alarm.hear(at(11));
        alarm.hear(at(10));
        assert!(!rings(&alarm));
        alarm.hear(at(9));
        alarm.hear(at(11));
        assert!(rings(&alarm) && !rings(&alarm));
        alarm.set(None);
        alarm.hear(at(1_000));
        assert!(rings(&alarm));
    }

    #[test]
    fn a_time_that_comes_while_it_looks_is_not_missed() {
        let alarm = Alarm::default();
        alarm.set(Some(at(10)));
        alarm.clear();
        alarm.hear(at(20));
        alarm.set(Some(at(30)));
        assert!(rings(&alarm));
    }
}
