//! What the in-process pool calls to get a job done: a Rust handler, or a configured command.
//!
//! An executor promises to come back: once it was told to stop, within the grace it was given plus a
//! few seconds, with whatever it started gone or counted as left behind. It knows nothing of leases,
//! stores or the wire; what it has to tell on the way goes through a [`Reporter`].

mod bounds;
#[cfg(feature = "server")]
pub mod builtin;
#[cfg(feature = "server")]
pub mod command;
pub mod handler;
mod quarters;
pub mod reporter;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use crate::executor::quarters::Quarters;

use crate::executor::reporter::Reporter;
use crate::job::Outcome;
use crate::job::event::{ErrorCode, JobError};
use crate::job::name::{JobKey, Name};
use crate::job::payload::Payload;

/// Something that can run the jobs of one type.
pub trait Executor: Send + Sync + 'static {
    /// Checks an input before the job is stored, so that a submit that could never run is refused.
    ///
    /// # Errors
    /// The field within the input (`input.width`) and what is wrong with it, for each one.
    fn check(&self, input: Option<&Payload>) -> Result<(), Vec<(String, String)>> {
        let _ = input;
        Ok(())
    }

    /// Runs one attempt to its end. Never panics through: a panic of the work itself is an outcome.
    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Outcome>;
}

/// One run of a job: what it works on, where it tells what it does, and how it is told to stop.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Whose job, and which one. The id is the key for the work's own side effects.
    pub key: JobKey,
    /// The job type.
    pub job_type: Name,
    /// 1 for the first.
    pub number: u32,
    /// As submitted.
    pub input: Option<Payload>,
    /// The newest one that an earlier attempt saved.
    pub checkpoint: Option<Payload>,
    /// Where it tells what it does.
    pub reporter: Reporter,
    /// Tripped when it has to stop: a cancel, a timeout, a drain, a lost lease.
    pub stop: CancellationToken,
    /// How long it may take to stop once told to.
    pub grace: Grace,
    /// Threads that it may block: whatever else runs beside it does not run there.
    pub quarters: Handle,
}

/// Beyond its grace, how long an executor may take to come back: it has promised "a few seconds" more.
/// Chosen: a command takes up to seven to end what it started.
pub const SLACK: Duration = Duration::from_secs(10);
/// What an attempt has to stop in when its worker drains. Chosen: the drain's own time is over by then.
pub const DRAIN_GRACE: Duration = Duration::from_secs(3);

/// An outcome that can be told: a result beyond its bound is an error, and so is an end as cancelled that
/// nobody asked for.
#[must_use]
pub fn checked(outcome: Outcome, was_stopped: bool) -> Outcome {
    match outcome {
        Outcome::Succeeded(Some(result)) => match result.check_size() {
            Ok(()) => Outcome::Succeeded(Some(result)),
            Err(problem) => Outcome::Failed(JobError::permanent(
                "RESULT_INVALID",
                format!("the result {problem}"),
            )),
        },
        Outcome::Cancelled if !was_stopped => Outcome::Failed(
            JobError::permanent(
                "HANDLER_CANCELLED",
                "it ended as cancelled, which nobody asked for",
            )
            .with_code(ErrorCode::Cancelled),
        ),
        outcome => outcome,
    }
}

/// The outcome of an executor that broke its promise not to panic.
#[must_use]
pub fn crashed(error: &tokio::task::JoinError) -> Outcome {
    Outcome::Failed(JobError::retryable(
        "PANIC",
        format!("the executor failed: {error}"),
    ))
}

/// How long an attempt may take to stop once told to. It may get shorter meanwhile: a drain, or a lease that is lost,
/// leaves less time than a cancel. Cheap to clone; clones share the time.
#[derive(Clone, Debug)]
pub struct Grace(Arc<watch::Sender<Duration>>);

impl Grace {
    /// So long.
    pub fn new(grace: Duration) -> Self {
        Self(Arc::new(watch::Sender::new(grace)))
    }

    /// So long as things stand.
    pub fn get(&self) -> Duration {
        *self.0.borrow()
    }

    /// No longer than this.
    pub fn shorten(&self, most: Duration) {
        self.0.send_if_modified(|grace| {
            let is_shorter = most < *grace;
            *grace = most.min(*grace);
            is_shorter
        });
    }

    /// Comes when it has passed, from now on, and `more` on top of it.
    ///
    /// # Cancel safety
    /// Dropped and called again, it begins anew.
    pub async fn passed(&self, more: Duration) {
        let begun = Instant::now();
        let mut grace = self.0.subscribe();
        loop {
            // What no clock can tell never passes.
            let all = grace.borrow_and_update().saturating_add(more);
            let ends = begun.checked_add(all);
            let passes = async {
                match ends {
                    Some(ends) => tokio::time::sleep_until(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = passes => return,
                Ok(()) = grace.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_grace_that_is_shortened_while_it_passes_passes_sooner() {
        let grace = Grace::new(Duration::from_secs(3_600));
        let begun = Instant::now();
        let shorten = async {
            tokio::task::yield_now().await;
            grace.shorten(Duration::from_millis(10));
            grace.shorten(Duration::from_secs(60));
        };
        tokio::join!(grace.passed(Duration::from_millis(10)), shorten);
        let passed = begun.elapsed();
        assert!(passed >= Duration::from_millis(20) && passed < Duration::from_secs(60));
        assert_eq!(grace.get(), Duration::from_millis(10));
    }
}
