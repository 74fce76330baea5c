//! How a handler fails.

use std::any::Any;
use std::time::Duration;

use crate::executor::reporter::ReportError;
use crate::job::event::JobError;

/// Why a handler did not do its work. Any error becomes one with `?`: reason `HANDLER_ERROR`, retryable,
/// with its causes as the detail.
#[derive(Debug)]
pub struct HandlerError(pub(super) Box<Cause>);

/// What is behind a [`HandlerError`]; boxed, because results should be small.
#[derive(Debug)]
pub(super) enum Cause {
    Failed(JobError),
    Cancelled,
    Snoozed(Duration),
}

impl HandlerError {
    /// Another attempt may heal it. The reason is UPPER_SNAKE_CASE and stable.
    pub fn retryable(reason: &str, message: impl Into<String>) -> Self {
        Self::failed(JobError::retryable(reason, message))
    }

    /// No other attempt heals it. The reason is UPPER_SNAKE_CASE and stable.
    pub fn permanent(reason: &str, message: impl Into<String>) -> Self {
        Self::failed(JobError::permanent(reason, message))
    }

    /// With everything a job's error can say. What is beyond its bounds is cut.
    pub fn failed(error: JobError) -> Self {
        Self(Box::new(Cause::Failed(error)))
    }

    /// With a wait before the next attempt, in place of the retry policy's backoff. 0 to 1 year, longer ones
    /// are cut. Changes nothing where there is no next attempt.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use pacenote::executor::handler::HandlerError;
    /// # fn busy() -> Result<(), HandlerError> {
    /// let busy = HandlerError::retryable("BUSY", "the service asks to come back in a minute");
    /// Err(busy.retry_after(Duration::from_secs(60)))
    /// # }
    /// # let _ = busy();
    /// ```
    pub fn retry_after(mut self, wait: Duration) -> Self {
        if let Cause::Failed(error) = &mut *self.0 {
            error.retry_after = Some(wait);
        }
        self
    }

    /// It did not fail: it has nothing to do now, and wants to go on after this wait, in another attempt
    /// with the newest checkpoint. Charges nothing, however often. 0 to 1 year, longer ones are cut.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use pacenote::executor::handler::{Context, HandlerError, HandlerExecutor};
    /// let poll = HandlerExecutor::new(|_: Context, path: String| async move {
    ///     if !std::path::Path::new(&path).exists() {
    ///         return Err(HandlerError::snooze(Duration::from_secs(10)));
    ///     }
    ///     Ok(path)
    /// });
    /// # let _ = poll;
    /// ```
    pub fn snooze(wait: Duration) -> Self {
        Self(Box::new(Cause::Snoozed(wait)))
    }

    /// It stopped because it was told to. Where it was not, the job fails with `HANDLER_CANCELLED`.
    pub fn cancelled() -> Self {
        Self(Box::new(Cause::Cancelled))
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        if let Some(ReportError::AttemptOver) = (&error as &dyn Any).downcast_ref() {
            return Self::cancelled();
        }
        let mut detail = String::new();
        let mut source = error.source();
        while let Some(cause) = source {
            detail.push_str(&format!("caused by: {cause}\n"));
            source = cause.source();
        }
        Self::failed(JobError::retryable("HANDLER_ERROR", error.to_string()).with_detail(detail))
    }
}
