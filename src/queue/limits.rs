//! What ends an attempt although nobody asks it to stop: its own run timeout, its job's total timeout, and
//! silence. The same for the pool and for workers of other programs.

use std::time::Duration;

use tokio::time::Instant;

use crate::job::Job;
use crate::job::limits::DURATION_MAX;
use crate::job::policy::Limit;
use crate::queue::JobQueue;

/// How late the end of a silence is noticed at most: later, and it was this process that slept. Chosen: no
/// busy machine takes so long.
const LATE_MAX: Duration = Duration::from_secs(2);

/// When an attempt has to stop although nobody asks it to.
pub(crate) struct Limits {
    run: Instant,
    total: Instant,
    heartbeat_timeout: Duration,
    /// When it has told something last, or could not.
    heard: Instant,
}

impl Limits {
    pub(crate) fn of(job: &Job, queue: &JobQueue) -> Self {
        let now = Instant::now();
        let timeouts = &job.spec.timeouts;
        let expires_at = job.detail.expires_at;
        let in_all = expires_at.map_or(DURATION_MAX, |at| queue.until(at));
        Self {
            run: now + timeouts.run_timeout.unwrap_or(DURATION_MAX),
            total: now + in_all.min(DURATION_MAX),
            heartbeat_timeout: timeouts.heartbeat_timeout.unwrap_or(DURATION_MAX),
            heard: now,
        }
    }

    /// It has told something, or could not be heard.
    pub(crate) fn hear(&mut self) {
        self.heard = Instant::now();
    }

    /// It told something then.
    pub(crate) fn heard_at(&mut self, at: Instant) {
        self.heard = self.heard.max(at);
    }

    fn silent_at(&self) -> Instant {
        self.heard + self.heartbeat_timeout
    }

    /// When to look next.
    pub(crate) fn next(&self) -> Instant {
        self.run.min(self.total).min(self.silent_at())
    }

    /// Which one is reached. One that waits to be heard is not silent; and where this process itself did
    /// not get round to listening, a stopped one for instance, its silence begins anew.
    pub(crate) fn reached(&mut self, now: Instant, waits_to_be_heard: bool) -> Option<Limit> {
        if now >= self.total {
            return Some(Limit::Total);
        }
        if now >= self.run {
            return Some(Limit::Run);
        }
        let silent_at = self.silent_at();
        if now < silent_at {
            return None;
        }
        if waits_to_be_heard || now - silent_at > LATE_MAX {
            self.heard = now;
            return None;
        }
        Some(Limit::Heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_nanos(1);

    fn limits(heartbeat_timeout: Duration) -> Limits {
        let now = Instant::now();
        Limits {
            run: now + DURATION_MAX,
            total: now + DURATION_MAX,
            heartbeat_timeout,
            heard: now,
        }
    }

    #[test]
    fn each_limit_is_reached_at_its_time_and_not_a_tick_sooner() {
        let minute = Duration::from_secs(60);
        let mut limits = limits(minute * 3);
        (limits.run, limits.total) = (limits.heard + minute, limits.heard + minute * 2);
        let start = limits.heard;
        assert_eq!(limits.next(), start + minute);
        assert_eq!(limits.reached(start + minute - TICK, false), None);
        let run = limits.reached(start + minute, false);
        assert_eq!(run, Some(Limit::Run));
        // The job's end stands above its attempt's.
        let total = limits.reached(start + minute * 2, false);
        assert_eq!(total, Some(Limit::Total));
    }

    #[test]
    fn a_silent_attempt_reaches_its_heartbeat_timeout_and_one_that_talks_does_not() {
        let minute = Duration::from_secs(60);
        let mut limits = limits(minute);
        let start = limits.heard;
        assert_eq!(limits.reached(start + minute - TICK, false), None);
        let silent = limits.reached(start + minute, false);
        assert_eq!(silent, Some(Limit::Heartbeat));
        // What it told waits to be taken, or to be stored.
        assert_eq!(limits.reached(start + minute, true), None);
        assert_eq!(limits.next(), start + minute * 2);
    }

    #[test]
    fn a_process_that_slept_gives_a_fresh_term() {
        let minute = Duration::from_secs(60);
        let mut limits = limits(minute);
        let start = limits.heard;
        let late = start + minute + LATE_MAX;
        let awake = limits.reached(late, false);
        assert_eq!(awake, Some(Limit::Heartbeat));
        assert_eq!(limits.reached(late + TICK, false), None);
        assert_eq!(limits.next(), late + TICK + minute);
        let silent = limits.reached(late + TICK + minute, false);
        assert_eq!(silent, Some(Limit::Heartbeat));
    }
}
