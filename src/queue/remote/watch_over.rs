//! The limits of an attempt that another program runs: the server ends what its worker does not end in time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::job::{Job, Outcome};
use crate::queue::lease::may_heal;
use crate::queue::limits::Limits;
use crate::queue::{JobQueue, Lease, StopCause, StopSignal};

/// How often an end is tried again that the store could not take.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

impl JobQueue {
    /// Ends the attempt when it has reached a limit, or was asked to stop and does not: its lease is void
    /// from then on. Goes on in a task of its own until the attempt or the server has ended.
    pub(super) fn watch_over(&self, job: Arc<Job>, stop: StopSignal) {
        let queue = self.clone();
        tokio::spawn(async move {
            let over = queue.shared.written.clone();
            // Dropped between two steps: whatever was sent to the writer happens.
            over.run_until_cancelled_owned(end_in_time(queue, job, stop))
                .await
        });
    }
}

async fn end_in_time(queue: JobQueue, job: Arc<Job>, stop: StopSignal) {
    let lease = Lease {
        key: job.key.clone(),
        attempt: job.attempt,
    };
    // It only waits: whatever it waits for, there is nothing to end once the attempt is over.
    let overdue = overdue(&queue, &job, &lease, &stop);
    let Some(outcome) = stop.over().run_until_cancelled(overdue).await.flatten() else {
        return;
    };
    tracing::info!(job = %job.key.id, attempt = job.attempt, "a worker did not end its attempt in time");
    let mut internal = 0;
    loop {
        match queue.finish(&lease, Vec::new(), outcome.clone()).await {
            Err(error) if may_heal(&error, internal) => {
                internal += u32::from(matches!(error, Error::Internal { .. }));
            }
            // It has ended by itself at the last moment; or nothing is stored any more.
            Ok(_) | Err(_) => return,
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// How an attempt ends that has not ended in time; `None` where it has, or is not its worker's any more.
async fn overdue(queue: &JobQueue, job: &Job, lease: &Lease, stop: &StopSignal) -> Option<Outcome> {
    let mut limits = Limits::of(job, queue);
    loop {
        tokio::select! {
            // Both only wait.
            () = stop.token().cancelled() => break,
            () = tokio::time::sleep_until(limits.next()) => {
                if let Some(heard) = queue.shared.attempts.heard(lease) {
                    limits.heard_at(heard);
                }
                if let Some(limit) = limits.reached(Instant::now(), false) {
                    return Some(limit.outcome());
                }
            }
        }
    }
    if stop.cause() != Some(StopCause::Cancel) {
        return None;
    }
    // Its worker hears of it with its next word, which has to come within the lease.
    let term = job
        .detail
        .remote_lease
        .map_or(Duration::ZERO, |lease| lease.term);
    tokio::time::sleep(term + job.spec.timeouts.cancel_grace).await;
    Some(Outcome::Cancelled)
}
