//! One attempt, from the claim to the end: run it, store what it tells, keep its lease, stop it when it
//! has to stop, and say how it went.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::executor::reporter::{self, Reports};
use crate::executor::{Attempt, DRAIN_GRACE, Executor, Grace, SLACK, checked, crashed};
use crate::job::limits::{DETAIL_BYTES_MAX, LEASE_HEARTBEAT};
use crate::job::{Job, Outcome, Report};
use crate::queue::{Handed, JobQueue, Lease, Limits, Places, StopCause, StopSignal, may_heal};

/// Reports that are stored in one go.
const REPORTS_MAX: usize = 512;
/// How often something is tried again that the store could not take.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long work that was aborted may take to be dropped.
const ABORT_WAIT: Duration = Duration::from_secs(1);
/// How long the hand-back of everything may take at the end of a drain.
pub(super) const HAND_BACK_MAX: Duration = DRAIN_GRACE
    .saturating_add(SLACK)
    .saturating_add(Duration::from_secs(3));

/// Runs an attempt to its end, and gives its place back.
pub(super) async fn run(
    queue: JobQueue,
    executor: Arc<dyn Executor>,
    handed: Handed,
    places: Places,
    hand_back: CancellationToken,
    quarters: Handle,
) {
    let Handed { claimed, stop } = handed;
    let job = claimed.job;
    let (reporter, reports) = reporter::channel();
    let grace = Grace::new(job.spec.timeouts.cancel_grace);
    let lease = Lease {
        key: job.key.clone(),
        attempt: job.attempt,
    };
    let attempt = Attempt {
        key: job.key.clone(),
        job_type: job.spec.job_type.clone(),
        number: job.attempt,
        input: claimed.payloads.input,
        checkpoint: claimed.payloads.checkpoint,
        reporter,
        stop: stop.token().clone(),
        grace: grace.clone(),
        quarters,
    };
    let running = Running {
        queue: queue.clone(),
        lease,
        stop,
        reports,
        unsaid: Vec::new(),
        retry: Retry::default(),
        hand_back: hand_back.clone(),
        grace,
        limits: Limits::of(&job, &queue),
    };
    tracing::debug!(job = %job.key.id, attempt = job.attempt, "attempt begins");
    // In a task of its own: storing what it tells must not hold it up. Called there, because it may panic before
    // there is a future.
    let work = tokio::spawn(async move { executor.run(attempt).await });
    let told_of = running.lease.clone();
    let ended = running.until_end(work).await;
    places.give_back(&job.spec.job_type);
    match ended {
        Some(ended) => ended.store(&queue, &hand_back).await,
        None => queue.wake().await,
    }
    // Where its end could not be stored, its lease ends it.
    queue.abandon(&told_of);
    tracing::debug!(job = %job.key.id, attempt = job.attempt, "attempt ended");
}

struct Running {
    queue: JobQueue,
    lease: Lease,
    stop: StopSignal,
    reports: Reports,
    /// Reports that the store had no room for: the work waits with them.
    unsaid: Vec<Report>,
    retry: Retry,
    hand_back: CancellationToken,
    grace: Grace,
    limits: Limits,
}

/// An attempt that is over and has to be stored.
struct Ended {
    lease: Lease,
    reports: Vec<Report>,
    outcome: Outcome,
}

impl Running {
    /// Stores what the attempt tells until it ends. `None` where it does not hold its lease any more:
    /// then nobody wants to know.
    async fn until_end(mut self, mut work: JoinHandle<Outcome>) -> Option<Ended> {
        let mut heartbeat = tokio::time::interval(LEASE_HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        let mut talks = true;
        let overdue = overdue(
            self.stop.clone(),
            self.hand_back.clone(),
            self.grace.clone(),
        );
        let mut overdue = std::pin::pin!(overdue);
        let outcome = loop {
            tokio::select! {
                // A JoinHandle is cancel safe: its outcome is still there next time.
                outcome = &mut work => break outcome,
                // take() is cancel safe: a report is taken or still waits.
                reports = self.reports.take(REPORTS_MAX), if talks && !self.retry.is_due() => {
                    talks = !reports.is_empty();
                    if talks {
                        self.unsaid = reports;
                        self.report().await;
                        heartbeat.reset();
                        self.limits.hear();
                    }
                }
                () = self.retry.wait(), if self.retry.is_due() => self.report().await,
                _ = heartbeat.tick() => self.report().await,
                // Asleep again the next time round: the limits are what counts.
                () = tokio::time::sleep_until(self.limits.next()), if self.stop.cause().is_none() => {
                    let waits = self.retry.is_due() || self.reports.any();
                    if let Some(limit) = self.limits.reached(Instant::now(), waits) {
                        self.stop.stop(StopCause::Limit(limit));
                    }
                }
                () = self.hand_back.cancelled(), if self.stop.cause().is_none() => {
                    self.grace.shorten(DRAIN_GRACE);
                    self.stop.stop(StopCause::Drain);
                }
                () = &mut overdue => {
                    tracing::error!(
                        job = %self.lease.key.id,
                        attempt = self.lease.attempt,
                        "the executor does not come back: it is left behind"
                    );
                    work.abort();
                    // Dropped, it kills what it had started; a thread that is blocked drops nothing.
                    let _ = tokio::time::timeout(ABORT_WAIT, &mut work).await;
                    break Ok(Outcome::Cancelled);
                }
            }
        };
        let outcome = outcome.unwrap_or_else(|error| crashed(&error));
        let cause = self.stop.cause();
        if cause == Some(StopCause::LeaseLost) {
            return None;
        }
        let mut reports = self.unsaid;
        reports.extend(self.reports.close());
        Some(Ended {
            reports,
            outcome: decided(outcome, cause),
            lease: self.lease,
        })
    }

    /// Stores what was not said yet, which may be nothing: then it is a heartbeat.
    async fn report(&mut self) {
        match self.queue.report(&self.lease, self.unsaid.clone()).await {
            Ok(()) => {
                self.unsaid.clear();
                self.retry = Retry::default();
            }
            Err(error) if self.retry.may_heal(&error, &self.lease) => {}
            Err(_) => self.stop.stop(StopCause::LeaseLost),
        }
    }
}

impl Ended {
    /// Stores how it went, however long that takes; but a drain does not wait for it.
    async fn store(self, queue: &JobQueue, hand_back: &CancellationToken) {
        let mut retry = Retry::default();
        loop {
            let finished = queue
                .finish(&self.lease, self.reports.clone(), self.outcome.clone())
                .await;
            match finished {
                Ok(job) => return say(&job),
                Err(error) if retry.may_heal(&error, &self.lease) => {}
                Err(_) => return queue.wake().await,
            }
            tokio::select! {
                () = retry.wait() => {}
                // The next start finds the attempt as if this process had crashed.
                () = hand_back.cancelled() => return,
            }
        }
    }
}

/// Patience with a store that cannot take something now.
#[derive(Default)]
struct Retry {
    at: Option<Instant>,
    failures: u32,
}

impl Retry {
    /// Whether the same thing may be stored later, and if so, when.
    fn may_heal(&mut self, error: &Error, lease: &Lease) -> bool {
        let (job, attempt) = (lease.key.id, lease.attempt);
        let heals = may_heal(error, self.failures);
        if !heals {
            tracing::error!(%job, attempt, %error, "what it tells cannot be stored");
        } else if self.failures == 0 {
            tracing::warn!(%job, attempt, %error, "what it tells waits to be stored");
        }
        self.failures += 1;
        self.at = heals.then(|| Instant::now() + RETRY_PAUSE);
        heals
    }

    fn is_due(&self) -> bool {
        self.at.is_some()
    }

    /// Waits for the next try.
    async fn wait(&self) {
        tokio::time::sleep_until(self.at.unwrap_or_else(Instant::now)).await;
    }
}

/// Comes when an executor that was told to stop has broken its promise to come back: the job, and a
/// drain, do not wait for it for ever.
async fn overdue(stop: StopSignal, hand_back: CancellationToken, grace: Grace) {
    stop.token().cancelled().await;
    let drained = async {
        hand_back.cancelled().await;
        tokio::time::sleep(DRAIN_GRACE + SLACK).await;
    };
    tokio::select! {
        // Whichever comes first; the other one is not needed any more.
        () = tokio::time::sleep(grace.get() + SLACK) => {}
        () = drained => {}
    }
}

/// How an attempt went, given why it was told to stop, if it was.
fn decided(outcome: Outcome, cause: Option<StopCause>) -> Outcome {
    match (cause, checked(outcome, cause.is_some())) {
        (Some(StopCause::Limit(limit)), outcome) => with_last_words(limit.outcome(), outcome),
        (Some(StopCause::Drain), Outcome::Succeeded(result)) => Outcome::Succeeded(result),
        (Some(StopCause::Drain), _) => Outcome::HandedBack,
        (Some(StopCause::Cancel | StopCause::LeaseLost) | None, outcome) => outcome,
    }
}

/// How an attempt ended, with what it said when it was stopped.
fn with_last_words(mut ended: Outcome, said: Outcome) -> Outcome {
    if let (Outcome::Failed(error), Outcome::Failed(how)) = (&mut ended, said) {
        error.detail = how.detail;
        error
            .detail
            .truncate(error.detail.floor_char_boundary(DETAIL_BYTES_MAX));
    }
    ended
}

fn say(job: &Job) {
    let Some(error) = &job.detail.error else {
        return tracing::debug!(
            job = %job.key.id,
            job_type = %job.spec.job_type,
            attempt = job.attempt,
            state = job.state.as_str(),
            "attempt stored"
        );
    };
    tracing::info!(
        job = %job.key.id,
        job_type = %job.spec.job_type,
        attempt = job.attempt,
        state = job.state.as_str(),
        reason = error.reason,
        "attempt stored"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::policy::Limit;

    #[test]
    fn why_it_was_stopped_decides_what_its_attempt_comes_to() {
        let done = || Outcome::Succeeded(None);
        let reason = |cause| match decided(done(), Some(cause)) {
            Outcome::Failed(error) => {
                assert!(error.retryable);
                error.reason
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(StopCause::Limit(Limit::Run)), "RUN_TIMEOUT");
        assert_eq!(
            reason(StopCause::Limit(Limit::Heartbeat)),
            "HEARTBEAT_TIMEOUT"
        );
        let expired = decided(done(), Some(StopCause::Limit(Limit::Total)));
        assert_eq!(expired, Outcome::Expired);
        assert_eq!(decided(done(), Some(StopCause::Cancel)), done());
    }
}
