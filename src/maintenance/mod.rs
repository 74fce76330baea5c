//! What has to be done beside what is served. At the start: let go on what newer limits let. From time to
//! time: make scheduled jobs due, expire those that waited too long, sweep leases that ended, say which
//! attempts are silent, remove what is over and whose time has come, tidy the store when it is quiet. One
//! duty a task; each ends with the token.

mod retention;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::job::limits::STALL_TIME_DEFAULT;
use crate::job::time::Timestamp;
use crate::queue::JobQueue;

/// The longest sleep of the timers of jobs that wait: the wall clock may have jumped meanwhile.
const DUE_CHECK_MAX: Duration = Duration::from_secs(10);
/// Pause after a duty failed. What failed is logged where it failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// How often attempts are looked through for ended leases and for silence: either is found so late at most.
/// Chosen: whoever waits for a lost lease waits for little more than the lease.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long after the one before a look may come before this process is said to have stood still. Chosen: less
/// than the shortest lease.
const LATE_MAX: Duration = Duration::from_secs(3);
/// How often the store is asked whether it wants tidying.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// Begins all duties.
pub fn start(queue: &JobQueue, tasks: &TaskTracker, stop: &CancellationToken) {
    let stop = || stop.clone();
    let queue = || queue.clone();
    tasks.spawn(stop().run_until_cancelled_owned(unblock(queue())));
    tasks.spawn(stop().run_until_cancelled_owned(make_due(queue())));
    tasks.spawn(stop().run_until_cancelled_owned(expire_waiting(queue())));
    tasks.spawn(stop().run_until_cancelled_owned(sweep_attempts(queue())));
    tasks.spawn(stop().run_until_cancelled_owned(tidy(queue())));
    tasks.spawn(stop().run_until_cancelled_owned(retention::retire(queue())));
}

/// However many lines of blocked jobs there are, nobody waits for it.
async fn unblock(queue: JobQueue) {
    // What fails was logged where it failed, or is a full disk.
    while queue.unblock_all().await.is_err() {
        tokio::time::sleep(FAILED_PAUSE).await;
    }
}

/// Wakes when the next scheduled job is due, or when one came that is due sooner.
async fn make_due(queue: JobQueue) {
    loop {
        let sleep = sleep_until(&queue, queue.make_due().await.ok());
        tokio::select! {
            // Either only ends the sleep; nothing is lost.
            () = tokio::time::sleep(sleep) => {}
            () = queue.due_changed() => {}
        }
    }
}

/// Wakes when the next waiting job expires, or when one came that expires sooner.
async fn expire_waiting(queue: JobQueue) {
    loop {
        let sleep = sleep_until(&queue, queue.expire_waiting().await.ok());
        tokio::select! {
            // Either only ends the sleep; nothing is lost.
            () = tokio::time::sleep(sleep) => {}
            () = queue.deadlines_changed() => {}
        }
    }
}

/// How long a timer sleeps that knows when it is due next, or has failed.
fn sleep_until(queue: &JobQueue, next: Option<Option<Timestamp>>) -> Duration {
    match next {
        Some(Some(next)) => queue.until(next).min(DUE_CHECK_MAX),
        Some(None) => DUE_CHECK_MAX,
        None => FAILED_PAUSE,
    }
}

/// Looks for ended leases and for silent attempts.
async fn sweep_attempts(queue: JobQueue) {
    let mut pulse = Pulse::new(queue.steady_now());
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        // Behind a disk that stands still nobody is heard either.
        queue.settle().await;
        let now = queue.steady_now();
        if let Some(stood_still) = pulse.beat(now) {
            tracing::warn!(
                ?stood_still,
                "nobody was heard meanwhile: each lease begins anew"
            );
            queue.begin_leases_anew();
        }
        // What fails was logged where it failed; the next round tries again.
        if let Ok(swept @ 1..) = queue.sweep_lost_leases(now).await {
            tracing::warn!(swept, "leases ended without a word from their workers");
        }
        let _ = queue.report_stalled(pulse.heard_until(now)).await;
    }
}

/// Knows when this process itself stood still (a stopped process, a paused machine, a disk that took its time):
/// nobody could be heard meanwhile, and nobody is to be blamed for it.
#[derive(Debug)]
struct Pulse {
    last: Timestamp,
    /// Time that does not count as silence, and until when that is so.
    unheard: Duration,
    unheard_until: Timestamp,
}

impl Pulse {
    fn new(now: Timestamp) -> Self {
        Self {
            last: now,
            unheard: Duration::ZERO,
            unheard_until: now,
        }
    }

    /// To be called every [`SWEEP_EVERY`]. Answers how long this process has stood still, if it has.
    fn beat(&mut self, now: Timestamp) -> Option<Duration> {
        let since = now.since(self.last);
        self.last = now;
        if now >= self.unheard_until {
            self.unheard = Duration::ZERO;
        }
        if since <= LATE_MAX {
            return None;
        }
        self.unheard += since;
        // Chosen: by then most have spoken, or would be called silent anyway.
        self.unheard_until = now.after(self.unheard + STALL_TIME_DEFAULT);
        Some(since)
    }

    /// The time by which silence is judged.
    fn heard_until(&self, now: Timestamp) -> Timestamp {
        now.before(self.unheard)
    }
}

async fn tidy(queue: JobQueue) {
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        // A failure is logged where it happened; the next round tries again.
        let _ = queue.tidy().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::default().after(Duration::from_secs(secs))
    }

    #[test]
    fn a_process_that_beats_in_time_judges_by_the_clock_as_it_is() {
        let mut pulse = Pulse::new(at(0));
        for secs in [1, 4, 5, 8] {
            assert_eq!(pulse.beat(at(secs)), None);
            assert_eq!(pulse.heard_until(at(secs)), at(secs));
        }
    }

    #[test]
    fn one_that_stood_still_blames_nobody_for_that_time() {
        let mut pulse = Pulse::new(at(0));
        assert_eq!(pulse.beat(at(1_000)), Some(Duration::from_secs(1_000)));
        // Whoever was silent for ten seconds before is so for ten seconds now.
        assert_eq!(pulse.heard_until(at(1_000)), at(0));
        assert_eq!(pulse.beat(at(1_003)), None);
        assert_eq!(pulse.heard_until(at(1_003)), at(3));
        // Again: both times count.
        assert_eq!(pulse.beat(at(1_105)), Some(Duration::from_secs(102)));
        assert_eq!(pulse.heard_until(at(1_105)), at(3));
        // In the end the clock is as it is.
        let mut now = 1_105;
        while pulse.heard_until(at(now)) != at(now) {
            now += 3;
            pulse.beat(at(now));
            assert!(now < 4_000, "{pulse:?}");
        }
        assert!(now >= 1_105 + STALL_TIME_DEFAULT.as_secs());
    }
}
