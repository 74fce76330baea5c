//! How a handler fails.

use std::any::Any;

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
