//! What a handler knows of its attempt, and how it tells what it does.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::executor::Attempt;
use crate::executor::bounds;
use crate::executor::handler::error::HandlerError;
use crate::executor::handler::{Presence, to_value};
use crate::executor::reporter::{ReportError, Reporter};
use crate::job::event::LogLevel;
use crate::job::name::{JobId, Name};
use crate::job::payload::Payload;
use crate::job::progress::Progress;

/// What a handler knows of its attempt, and how it tells what it does. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    attempt: Arc<Attempt>,
    _presence: Arc<Presence>,
}

impl Context {
    pub(super) fn new(attempt: Attempt, presence: Arc<Presence>) -> Self {
        Self {
            attempt: Arc::new(attempt),
            _presence: presence,
        }
    }

    /// The job. The key for the handler's own side effects: every attempt of a job has the same.
    pub fn job_id(&self) -> JobId {
        self.attempt.key.id
    }

    /// Whose job it is.
    pub fn tenant(&self) -> &Name {
        &self.attempt.key.tenant
    }

    /// The job's type.
    pub fn job_type(&self) -> &Name {
        &self.attempt.job_type
    }

    /// Which attempt this is; 1 for the first.
    pub fn attempt(&self) -> u32 {
        self.attempt.number
    }

    /// The input as submitted.
    pub fn input(&self) -> Option<&Payload> {
        self.attempt.input.as_ref()
    }

    /// Where an earlier attempt got to.
    ///
    /// # Errors
    /// Permanent, reason `CHECKPOINT_INVALID`, where it is no such value.
    pub fn checkpoint<T: DeserializeOwned>(&self) -> Result<Option<T>, HandlerError> {
        let Some(checkpoint) = &self.attempt.checkpoint else {
            return Ok(None);
        };
        to_value(Some(checkpoint))
            .and_then(|value| serde_json::from_value(value).map_err(|error| error.to_string()))
            .map(Some)
            .map_err(|problem| {
                let message = format!("the checkpoint {problem}");
                HandlerError::permanent("CHECKPOINT_INVALID", message)
            })
    }

    /// Tells how far it has come.
    ///
    /// # Errors
    /// Where a field is out of its range, or the attempt is over.
    pub async fn progress(&self, progress: Progress) -> Result<(), ReportError> {
        self.reporter().progress(progress).await
    }

    /// Adds text to an output stream.
    ///
    /// # Errors
    /// Where the stream is no valid name, the text is larger than 1 MiB, or the attempt is over.
    pub async fn output(&self, stream: &str, text: impl Into<String>) -> Result<(), ReportError> {
        self.reporter().output(stream, Payload::text(text)).await
    }

    /// Adds a chunk of any kind to an output stream.
    ///
    /// # Errors
    /// Where the stream is no valid name, the chunk is larger than 1 MiB, or the attempt is over.
    pub async fn output_payload(&self, stream: &str, chunk: Payload) -> Result<(), ReportError> {
        self.reporter().output(stream, chunk).await
    }

    /// Adds a line for people. Messages beyond 16 KiB are cut.
    ///
    /// # Errors
    /// Where the attempt is over.
    pub async fn log(
        &self,
        level: LogLevel,
        message: impl Into<String>,
    ) -> Result<(), ReportError> {
        self.reporter().log(level, message).await
    }

    /// Saves where the next attempt could go on.
    ///
    /// # Errors
    /// Where it cannot be written as JSON of at most 1 MiB, or the attempt is over.
    pub async fn save_checkpoint(
        &self,
        checkpoint: &(impl Serialize + Sync),
    ) -> Result<(), ReportError> {
        let invalid = |problem| ReportError::Invalid {
            field: "checkpoint",
            problem,
        };
        let value = serde_json::to_value(checkpoint).map_err(|error| invalid(error.to_string()))?;
        let payload = bounds::json_payload(&value).map_err(invalid)?;
        self.reporter().checkpoint(payload).await
    }

    /// Waits until the handler has to stop. Then it has its grace to end, best with
    /// [`HandlerError::cancelled`].
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub async fn cancelled(&self) {
        self.attempt.stop.cancelled().await;
    }

    /// Whether the handler has to stop.
    pub fn is_stopping(&self) -> bool {
        self.attempt.stop.is_cancelled()
    }

    /// What tells it to stop, for code that takes a token.
    pub fn stop_token(&self) -> CancellationToken {
        self.attempt.stop.clone()
    }

    /// How long it may take to stop once told to.
    pub fn grace(&self) -> Duration {
        self.attempt.grace.get()
    }

    /// Everything that can be told, with all its options.
    pub fn reporter(&self) -> &Reporter {
        &self.attempt.reporter
    }
}
