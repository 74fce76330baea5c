//! A watch that outlives its streams: it reconnects, resumes after what it has, and ends with the job.
//!
//! It promises every event once and in order, or a stated gap, and it ends only with
//! [`Update::Finished`] or an error. It never touches the job: dropping it only stops the watching.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::client::cursor::Cursor;
use crate::client::error::{ClientError, Failure};
use crate::client::update::{RunOptions, Update, WatchOptions};
use crate::client::{Client, to_proto_duration};
use crate::pb;

/// A stream that says nothing for this many heartbeats is dead: one may be late, two may be lost.
const SILENT_HEARTBEATS: u32 = 3;

/// Longest wait for which a watch takes a server's word. Chosen: longer than any drain or limit of ours.
const ASKED_MAX: Duration = Duration::from_secs(300);

/// A job's log as it grows. Made by [`Client::watch`] and [`Client::run`].
///
/// ```no_run
/// # async fn example(client: pacenote::client::Client) -> Result<(), pacenote::client::ClientError> {
/// use pacenote::client::{Update, WatchOptions};
///
/// let options = WatchOptions { after_sequence: Some(0), ..WatchOptions::default() };
/// let mut watch = client.watch("0198c0de-0000-7000-8000-000000000000", options);
/// while let Some(update) = watch.next().await {
///     if let Update::Event(event) = update? {
///         println!("{}", event.sequence);
///         // Store it to resume from here in another process: `watch.delivered_sequence()`.
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Watch {
    client: Client,
    origin: Origin,
    options: WatchOptions,
    cursor: Cursor,
    phase: Phase,
    /// Ends the watch once everything received was handed out.
    failure: Option<ClientError>,
    /// Failed tries since the watch last got further.
    failures: u32,
    /// When the first of them failed.
    failing_since: Option<Instant>,
    deduplicated: Option<bool>,
}

/// What the next stream is opened with.
#[derive(Clone, Debug)]
enum Origin {
    /// The job is known: `WatchJob`.
    Job(String),
    /// No answer came yet: `Run`, with a key, so that it may be sent any number of times.
    Submit {
        request: Box<pb::SubmitRequest>,
        /// We made the key: what looks like a duplicate is our own earlier try.
        own_key: bool,
    },
}

enum Phase {
    /// Waits before the next try, if only until now.
    Resting(Instant),
    /// Waits for the stream, at most until then. Kept here, so that dropping `next()` loses nothing.
    Opening(BoxFuture<'static, Result<Source, Status>>, Instant),
    /// Reads, and was last heard from then.
    Reading(Box<Source>, Instant),
    Over,
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Resting(_) => "Resting",
            Self::Opening(..) => "Opening",
            Self::Reading(..) => "Reading",
            Self::Over => "Over",
        })
    }
}

enum Source {
    Watch(Streaming<pb::WatchJobResponse>),
    Run(Streaming<pb::RunResponse>),
}

/// What a stream says next.
enum Heard {
    Message(Box<pb::WatchJobResponse>, Option<bool>),
    /// The server ended it with OK.
    End,
}

impl Source {
    async fn next(&mut self) -> Result<Heard, Status> {
        Ok(match self {
            Self::Watch(stream) => stream.message().await?.map_or(Heard::End, |message| {
                Heard::Message(Box::new(message), None)
            }),
            Self::Run(stream) => stream.message().await?.map_or(Heard::End, |message| {
                let update = message.update.unwrap_or_default();
                Heard::Message(Box::new(update), Some(message.deduplicated))
            }),
        })
    }
}

impl Watch {
    pub(super) fn of_job(client: Client, job_id: String, options: WatchOptions) -> Self {
        Self::new(client, Origin::Job(job_id), options)
    }

    pub(super) fn of_submit(
        client: Client,
        mut request: pb::SubmitRequest,
        options: RunOptions,
    ) -> Self {
        let own_key = request.idempotency_key.is_empty();
        if own_key {
            request.idempotency_key = uuid::Uuid::new_v4().to_string();
        }
        let origin = Origin::Submit {
            request: Box::new(request),
            own_key,
        };
        let options = WatchOptions {
            after_sequence: None,
            event_types: options.event_types,
            min_progress_interval: options.min_progress_interval,
            heartbeat_interval: options.heartbeat_interval,
        };
        Self::new(client, origin, options)
    }

    fn new(client: Client, origin: Origin, options: WatchOptions) -> Self {
        let dense = options.event_types.is_empty() && options.min_progress_interval.is_zero();
        Self {
            client,
            origin,
            cursor: Cursor::new(options.after_sequence, dense),
            options,
            phase: Phase::Resting(Instant::now()),
            failure: None,
            failures: 0,
            failing_since: None,
            deduplicated: None,
        }
    }

    /// The next update; `None` after [`Update::Finished`] or an error.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the server's answer ends the watch (`JOB_NOT_FOUND`,
    /// `JOB_PURGED`, `SEQUENCE_AHEAD`, …, and all of `Submit`'s), [`ClientError::Contract`] where the
    /// server left out an event, and the last error met where it got nothing for
    /// [`Settings::give_up_after`](crate::client::Settings::give_up_after).
    ///
    /// # Cancel safety
    /// Cancel safe: a `next` that is dropped loses no update, and the one after it goes on with the same
    /// stream or try.
    pub async fn next(&mut self) -> Option<Result<Update, ClientError>> {
        loop {
            if let Some(update) = self.cursor.hand_out() {
                if matches!(update, Update::Finished(_)) {
                    self.phase = Phase::Over;
                }
                return Some(Ok(update));
            }
            if let Some(error) = self.failure.take() {
                self.phase = Phase::Over;
                return Some(Err(error));
            }
            if matches!(self.phase, Phase::Over) {
                return None;
            }
            let failure = match self.listen().await {
                Ok(Heard::Message(message, deduplicated)) => {
                    self.take(*message, deduplicated);
                    continue;
                }
                // Only a final snapshot ends a job's watch: an OK without one was a proxy's.
                Ok(Heard::End) => Failure::cut("the stream ended before the job did"),
                Err(failure) => failure,
            };
            if let Some(update) = self.cut(failure) {
                return Some(Ok(update));
            }
        }
    }

    /// Rests, opens a stream and reads from it, whatever is due. Cancel safe: what it waits for stays
    /// in the phase.
    async fn listen(&mut self) -> Result<Heard, Failure> {
        loop {
            match &mut self.phase {
                Phase::Over => return Ok(Heard::End),
                Phase::Resting(until) => {
                    tokio::time::sleep_until(*until).await;
                    let patience = self.client.settings().call_deadline;
                    self.phase = Phase::Opening(self.open(), Instant::now() + patience);
                }
                Phase::Opening(opening, until) => {
                    match tokio::time::timeout_at(*until, opening).await {
                        Ok(Ok(source)) => {
                            self.phase = Phase::Reading(Box::new(source), Instant::now())
                        }
                        Ok(Err(status)) => return Err(Failure::from(status)),
                        Err(_) => return Err(self.leave_connection("the server did not answer")),
                    }
                }
                Phase::Reading(source, heard) => {
                    let silence = self.options.heartbeat_interval * SILENT_HEARTBEATS;
                    return match tokio::time::timeout_at(*heard + silence, source.next()).await {
                        Ok(heard) => heard.map_err(Failure::from),
                        Err(_) => Err(self.leave_connection("the server fell silent")),
                    };
                }
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Update, ClientError>> + Send {
        futures_util::stream::unfold(self, |mut watch| async move {
            let item = watch.next().await?;
            Some((item, watch))
        })
    }

    /// Everything up to it was handed out, hidden or merged: another watch with this `after_sequence`
    /// goes on exactly here. `None` before the first snapshot of a watch that began with one.
    pub fn delivered_sequence(&self) -> Option<i64> {
        self.cursor.delivered()
    }

    /// Which job it follows; `None` before the first answer to [`Client::run`].
    pub fn job_id(&self) -> Option<&str> {
        match &self.origin {
            Origin::Job(job_id) => Some(job_id),
            Origin::Submit { .. } => None,
        }
    }

    /// After the first answer to [`Client::run`]: whether the caller's idempotency key had been used
    /// before. Always `Some(false)` where the client made the key.
    pub fn deduplicated(&self) -> Option<bool> {
        self.deduplicated
    }

    fn take(&mut self, message: pb::WatchJobResponse, deduplicated: Option<bool>) {
        if let (
            Origin::Submit { own_key, .. },
            Some(pb::watch_job_response::Content::Snapshot(job)),
        ) = (&self.origin, &message.content)
        {
            self.deduplicated = deduplicated.map(|deduplicated| deduplicated && !own_key);
            self.origin = Origin::Job(job.job_id.clone());
        }
        match self.cursor.take(message) {
            Ok(further) => {
                if further {
                    self.failures = 0;
                    self.failing_since = None;
                }
                if let Phase::Reading(_, heard) = &mut self.phase {
                    *heard = Instant::now();
                }
            }
            Err(error) => self.failure = Some(error),
        }
    }

    /// Notes a cut and rests before the next try, or notes what ends the watch.
    fn cut(&mut self, failure: Failure) -> Option<Update> {
        let now = Instant::now();
        let since = *self.failing_since.get_or_insert(now);
        if !failure.resume || now.duration_since(since) > self.client.settings().give_up_after {
            self.failure = Some(failure.error);
            return None;
        }
        let asked = failure
            .error
            .retry_after()
            .map(|asked| asked.min(ASKED_MAX));
        let delay = self.client.settings().backoff.delay(self.failures, asked);
        self.failures += 1;
        self.phase = Phase::Resting(now + delay);
        Some(Update::Reconnecting {
            error: failure.error,
            attempt: self.failures,
            delay,
        })
    }

    /// A half-open connection stays silent for every stream opened on it: take another.
    fn leave_connection(&mut self, message: &str) -> Failure {
        self.client = self.client.reconnected();
        Failure::cut(message)
    }

    fn open(&self) -> BoxFuture<'static, Result<Source, Status>> {
        let mut service = self.client.service();
        let event_types = self
            .options
            .event_types
            .iter()
            .map(|t| (*t).into())
            .collect();
        let interval = self.options.min_progress_interval;
        let min_progress_interval = (!interval.is_zero()).then(|| to_proto_duration(interval));
        let heartbeat_interval = Some(to_proto_duration(self.options.heartbeat_interval));
        match &self.origin {
            Origin::Job(job_id) => {
                let request = pb::WatchJobRequest {
                    job_id: job_id.clone(),
                    after_sequence: self.cursor.received(),
                    event_types,
                    min_progress_interval,
                    heartbeat_interval,
                };
                async move {
                    let response = service.watch_job(request).await?;
                    Ok(Source::Watch(response.into_inner()))
                }
                .boxed()
            }
            Origin::Submit { request, .. } => {
                let request = pb::RunRequest {
                    submit: Some(request.as_ref().clone()),
                    event_types,
                    min_progress_interval,
                    heartbeat_interval,
                };
                async move {
                    let response = service.run(request).await?;
                    Ok(Source::Run(response.into_inner()))
                }
                .boxed()
            }
        }
    }
}
