//! What has to be done from time to time: make scheduled jobs due, sweep leases that ended, remove what is
//! over and whose time has come, tidy the store when it is quiet. One duty a task; each ends with the token.

mod retention;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::job::limits::LEASE;
use crate::queue::JobQueue;

/// The longest sleep of the timer of scheduled jobs: the wall clock may have jumped meanwhile.
const DUE_CHECK_MAX: Duration = Duration::from_secs(10);
/// Pause after a duty failed. What failed is logged where it failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// How often the store is asked whether it wants tidying.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// Begins all duties.
pub fn start(queue: &JobQueue, tasks: &TaskTracker, stop: &CancellationToken) {
    let duties = (queue.clone(), queue.clone(), queue.clone());
    tasks.spawn(stop.clone().run_until_cancelled_owned(make_due(duties.0)));
    tasks.spawn(
        stop.clone()
            .run_until_cancelled_owned(sweep_leases(duties.1)),
    );
    tasks.spawn(stop.clone().run_until_cancelled_owned(tidy(duties.2)));
    let retire = retention::retire(queue.clone());
    tasks.spawn(stop.clone().run_until_cancelled_owned(retire));
}

/// Wakes when the next scheduled job is due, or when one came that is due sooner.
async fn make_due(queue: JobQueue) {
    loop {
        let sleep = match queue.make_due().await {
            Ok(Some(next)) => queue.until(next).min(DUE_CHECK_MAX),
            Ok(None) => DUE_CHECK_MAX,
            Err(_) => FAILED_PAUSE,
        };
        tokio::select! {
            // Either only ends the sleep; nothing is lost.
            () = tokio::time::sleep(sleep) => {}
            () = queue.due_changed() => {}
        }
    }
}

/// Looks for ended leases three times in a lease's time. Where this process itself stood still (a
/// stopped process, a paused machine), nobody could renew: everyone gets a fresh term first.
async fn sweep_leases(queue: JobQueue) {
    let every = LEASE / 3;
    let mut last = queue.steady_now();
    let mut spared_until = last;
    loop {
        tokio::time::sleep(every).await;
        let now = queue.steady_now();
        if now.since(last) > every * 2 {
            tracing::warn!(stood_still = ?now.since(last), "no lease is swept for one term");
            spared_until = now.after(LEASE);
        }
        last = now;
        if now >= spared_until
            && let Ok(swept @ 1..) = queue.sweep_lost_leases(now).await
        {
            tracing::warn!(swept, "leases ended without a word from their workers");
        }
    }
}

async fn tidy(queue: JobQueue) {
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        // A failure is logged where it happened; the next round tries again.
        let _ = queue.tidy().await;
    }
}
