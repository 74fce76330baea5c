//! Waiting for the end of a job, or for any newer event.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::events::{Heard, Listener, News};
use crate::job::limits::POLL_MAX;
use crate::job::name::JobKey;
use crate::job::{Job, JobSnapshot, Payloads};
use crate::queue::JobQueue;
use crate::queue::read::{ahead, check_sequence};
use crate::store::View;

/// The end of a wait.
#[derive(Clone, Debug)]
pub struct Waited {
    /// The job as it is then.
    pub snapshot: JobSnapshot,
    /// The time ran out, or the server drains, before what was waited for.
    pub timed_out: bool,
}

impl JobQueue {
    /// Waits for the end of a job, or for any newer event if asked, or until the time is up.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotFound`], [`Precondition::SequenceAhead`](crate::error::Precondition::SequenceAhead), [`Error::Exhausted`].
    pub async fn wait(
        &self,
        key: &JobKey,
        timeout: Duration,
        after: Option<i64>,
        view: View,
    ) -> Result<Waited, Error> {
        if let Some(after) = after {
            check_sequence(after).map_err(|problem| Error::invalid("after_sequence", problem))?;
        }
        let deadline = tokio::time::Instant::now() + timeout.min(POLL_MAX);
        // Listens first and reads second, so that nothing falls in between.
        let mut listener = self.listen(key)?;
        let mut timed_out = false;
        loop {
            let snapshot = self.get(key, View::Basic).await?;
            let last = snapshot.job.last_sequence;
            if let Some(after) = after
                && after > last
            {
                return Err(ahead(after, last));
            }
            let over = is_over(&snapshot.job, after);
            if over || timed_out {
                let snapshot = match view {
                    View::Basic => snapshot,
                    View::Full => self.get(key, view).await?,
                };
                return Ok(Waited {
                    snapshot,
                    timed_out: !over,
                });
            }
            tokio::select! {
                // next() is cancel safe, and what it says is in the store as well.
                heard = heard_of_the_end(&mut listener, after) => {
                    if let Some(mut snapshot) = heard {
                        if view == View::Basic {
                            snapshot.payloads = Payloads::default();
                        }
                        return Ok(Waited { snapshot, timed_out: false });
                    }
                }
                () = tokio::time::sleep_until(deadline) => timed_out = true,
                () = self.shared.draining.cancelled() => timed_out = true,
                () = self.shared.failed.cancelled() => return Err(Error::outcome_unknown()),
            }
        }
    }
}

/// Whether a wait has what it waits for.
fn is_over(job: &Job, after: Option<i64>) -> bool {
    job.state.is_terminal() || after.is_some_and(|after| job.last_sequence > after)
}

/// Listens until there is a reason to read the store: a job may commit a thousand times before its end,
/// and what is heard of each commit says whether it was the one. Answers the job where it is over and
/// need not be read at all.
async fn heard_of_the_end(listener: &mut Listener, after: Option<i64>) -> Option<JobSnapshot> {
    loop {
        match listener.next().await {
            Heard::News(News::Events(job, _)) if !is_over(&job, after) => {}
            Heard::News(News::Over(job, payloads, _)) => {
                let payloads = Arc::unwrap_or_clone(payloads);
                return Some(JobSnapshot { job, payloads });
            }
            Heard::News(News::Events(..) | News::Stored | News::Purged) | Heard::Lagged => {
                return None;
            }
        }
    }
}
