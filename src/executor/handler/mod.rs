//! Rust functions as executors, typed by serde.
//!
//! A handler gets a [`Context`] and its input, and gives a result or a [`HandlerError`]. It runs in a
//! task of its own: a panic is an outcome, and one that does not stop within its grace is left behind
//! and counted ([`left_behind`]) while the attempt ends. A handler that blocks its thread blocks one
//! worker of the runtime it runs on: give such handlers [a runtime of their own](HandlerExecutor::on).

mod context;
mod error;

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, FutureExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use crate::executor::handler::context::Context;
pub use crate::executor::handler::error::HandlerError;

use crate::executor::handler::error::Cause;
use crate::executor::{Attempt, Executor, Grace, bounds};
use crate::job::Outcome;
use crate::job::event::{ErrorCode, JobError};
use crate::job::limits::DURATION_MAX;
use crate::job::payload::{Content, Payload};

/// Handlers that were told to stop, did not within their grace, and still run.
static LEFT_BEHIND: AtomicUsize = AtomicUsize::new(0);

type Handled = Result<Option<Payload>, HandlerError>;
type Run = dyn Fn(Context) -> BoxFuture<'static, Handled> + Send + Sync;
type Check = dyn Fn(Option<&Payload>) -> Result<(), Vec<(String, String)>> + Send + Sync;

/// Runs a Rust function for each attempt.
///
/// ```
/// use pacenote::executor::handler::{Context, HandlerError, HandlerExecutor};
/// use pacenote::job::progress::Progress;
///
/// let add = HandlerExecutor::new(|context: Context, numbers: Vec<i32>| async move {
///     let mut sum = 0_i32;
///     for (done, number) in numbers.iter().enumerate() {
///         sum = sum
///             .checked_add(*number)
///             .ok_or_else(|| HandlerError::permanent("OVERFLOW", "the sum is too large"))?;
///         context.progress(Progress::units(done as i64 + 1, None, "numbers")).await?;
///     }
///     Ok(sum)
/// });
/// # let _ = add;
/// ```
#[derive(Clone)]
pub struct HandlerExecutor {
    run: Arc<Run>,
    check: Arc<Check>,
    runtime: Option<Handle>,
}

impl HandlerExecutor {
    /// From a function of the context and the input. An absent input is JSON null, text is a JSON
    /// string; a result that serialises to null is no result.
    pub fn new<T, R, F, Fut>(handler: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        Self::checked(|_: &T| Ok(()), handler)
    }

    /// As [`HandlerExecutor::new`], with a check beyond the type, made when a job is submitted and
    /// again when it runs. It names the fields (`input.path`) and what is wrong with each.
    pub fn checked<T, R, C, F, Fut>(check: C, handler: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        C: Fn(&T) -> Result<(), Vec<(String, String)>> + Send + Sync + 'static,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        let parse = Arc::new(move |input: Option<&Payload>| {
            let input: T = parse(input)?;
            check(&input)?;
            Ok(input)
        });
        let handler = Arc::new(handler);
        Self {
            check: Arc::new({
                let parse = Arc::clone(&parse);
                move |input| parse(input).map(drop)
            }),
            run: Arc::new(move |context: Context| {
                let (parse, handler) = (Arc::clone(&parse), Arc::clone(&handler));
                let run = async move {
                    let input = parse(context.input())
                        .map_err(|problems| HandlerError::failed(invalid_input(&problems)))?;
                    let result = handler(context, input).await?;
                    to_payload(&result)
                };
                run.boxed()
            }),
            runtime: None,
        }
    }

    /// Runs the handler on another runtime than the pool's own for handlers.
    pub fn on(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }
}

impl std::fmt::Debug for HandlerExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandlerExecutor").finish_non_exhaustive()
    }
}

impl Executor for HandlerExecutor {
    fn check(&self, input: Option<&Payload>) -> Result<(), Vec<(String, String)>> {
        (self.check)(input)
    }

    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Outcome> {
        let run = Arc::clone(&self.run);
        let (stop, grace) = (attempt.stop.clone(), attempt.grace.clone());
        let presence = Arc::new(Presence::default());
        let runtime = self.runtime.as_ref().unwrap_or(&attempt.quarters).clone();
        let context = Context::new(attempt, Arc::clone(&presence));
        // Held by the task, because a handler may drop its context and go on.
        let held = Arc::clone(&presence);
        let work = async move {
            let _held = held;
            run(context).await
        };
        // At once, and not when the future below is first polled: that is one wake-up less to its start.
        let mut task = AbortOnDropHandle::new(runtime.spawn(work));
        async move {
            // Dropping `expired` loses nothing; dropping the task's handle aborts the task.
            tokio::select! {
                biased;
                ended = &mut task => outcome(ended, stop.is_cancelled()),
                () = expired(&stop, &grace) => {
                    presence.leave();
                    Outcome::Cancelled
                }
            }
        }
        .boxed()
    }
}

/// Handlers that were told to stop, did not within their grace, and still run. A gauge: each is taken
/// off when its future, and every [`Context`] it was given, is gone.
pub fn left_behind() -> usize {
    LEFT_BEHIND.load(Ordering::Relaxed)
}

/// Known to be here until the last clone is gone; counted in between once it was left behind.
#[derive(Debug, Default)]
struct Presence {
    left: AtomicBool,
}

impl Presence {
    fn leave(&self) {
        if !self.left.swap(true, Ordering::Relaxed) {
            LEFT_BEHIND.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if *self.left.get_mut() {
            LEFT_BEHIND.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Comes when the grace after the stop has passed.
async fn expired(stop: &CancellationToken, grace: &Grace) {
    stop.cancelled().await;
    grace.passed(std::time::Duration::ZERO).await;
}

/// What an ended handler means for its job.
fn outcome(ended: Result<Handled, JoinError>, is_stopping: bool) -> Outcome {
    let error = match ended {
        Ok(Ok(result)) => return Outcome::Succeeded(result),
        // Whatever went wrong while it was being stopped went wrong because of that.
        _ if is_stopping => return Outcome::Cancelled,
        Ok(Err(HandlerError(cause))) => match *cause {
            Cause::Failed(error) => error,
            Cause::Snoozed(wait) => return Outcome::Snoozed(wait.min(DURATION_MAX)),
            Cause::Cancelled => JobError::permanent(
                "HANDLER_CANCELLED",
                "the handler said it was cancelled, but nobody had asked it to stop",
            ),
        },
        Err(error) => match error.try_into_panic() {
            Ok(panic) => {
                let message = format!("the handler panicked: {}", panic_message(&*panic));
                JobError::retryable("PANIC", message).with_code(ErrorCode::Internal)
            }
            Err(_) => {
                JobError::retryable("INTERRUPTED", "the runtime of the handler was shut down")
                    .with_code(ErrorCode::Aborted)
            }
        },
    };
    Outcome::Failed(error.cut())
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// The input as the handler's type.
fn parse<T: DeserializeOwned>(input: Option<&Payload>) -> Result<T, Vec<(String, String)>> {
    let value = to_value(input).map_err(|problem| vec![("input".to_owned(), problem)])?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            "." => "input".to_owned(),
            path => format!("input.{path}"),
        };
        vec![(
            field,
            format!("is not as this type needs it: {}", error.inner()),
        )]
    })
}

/// The JSON value of a payload; null where there is none.
fn to_value(payload: Option<&Payload>) -> Result<Value, String> {
    let Some(payload) = payload else {
        return Ok(Value::Null);
    };
    if let Some(value) = payload.to_json() {
        return Ok(value);
    }
    match payload.content() {
        Content::Text(text) => Ok(Value::String(text.clone())),
        Content::Json(_) | Content::Data(_) => {
            Err("is bytes; this type needs JSON or text".to_owned())
        }
    }
}

/// The result as a payload; nothing where it is null.
fn to_payload(result: &impl Serialize) -> Handled {
    let invalid = |problem: String| {
        HandlerError::permanent("RESULT_INVALID", format!("the handler's result {problem}"))
    };
    let value = serde_json::to_value(result)
        .map_err(|error| invalid(format!("cannot be written as JSON: {error}")))?;
    if value.is_null() {
        return Ok(None);
    }
    bounds::json_payload(&value).map(Some).map_err(invalid)
}

/// The error of an attempt whose input its executor cannot work on.
pub(super) fn invalid_input(problems: &[(String, String)]) -> JobError {
    let sentences: Vec<String> = problems
        .iter()
        .map(|(field, problem)| format!("{field} {problem}"))
        .collect();
    JobError::permanent("INPUT_INVALID", sentences.join("; ")).with_code(ErrorCode::InvalidArgument)
}

#[cfg(test)]
mod tests;
