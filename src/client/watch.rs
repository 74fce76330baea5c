//! A watch that outlives its streams: it reconnects, resumes after what it has, and ends with the job.
//!
//! It promises every event once and in order, or a stated gap, and it ends only with
//! [`Update::Finished`] or an error. It never touches the job: dropping it only stops the watching.

use futures_util::{FutureExt, Stream, StreamExt};

use crate::client::cursor::Cursor;
use crate::client::error::{ClientError, Failure};
use crate::client::line::{Line, Opening};
use crate::client::update::{RunOptions, Update, WatchOptions};
use crate::client::{Client, to_proto_duration};
use crate::pb;

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
    line: Line<Heard>,
    origin: Origin,
    options: WatchOptions,
    cursor: Cursor,
    /// Ends the watch once everything received was handed out.
    failure: Option<ClientError>,
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

/// What a stream says: a message, and of a Run whether its key was used before.
type Heard = (Box<pb::WatchJobResponse>, Option<bool>);

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
            line: Line::new(client, options.heartbeat_interval),
            origin,
            cursor: Cursor::new(options.after_sequence, dense),
            options,
            failure: None,
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
                    self.line.end();
                }
                return Some(Ok(update));
            }
            if let Some(error) = self.failure.take() {
                self.line.end();
                return Some(Err(error));
            }
            if self.line.is_over() {
                return None;
            }
            let (origin, options) = (&self.origin, &self.options);
            let after = self.cursor.received();
            let open = |client: &Client| open(client, origin, options, after);
            let failure = match self.line.next(open).await {
                Ok(Some((message, deduplicated))) => {
                    self.take(*message, deduplicated);
                    continue;
                }
                // Only a final snapshot ends a job's watch: an OK without one was a proxy's.
                Ok(None) => Failure::cut("the stream ended before the job did"),
                Err(failure) => failure,
            };
            match self.line.cut(failure) {
                Ok(cut) => return Some(Ok(Update::reconnecting(cut))),
                Err(error) => self.failure = Some(error),
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
            Ok(further) => self.line.heard(further),
            Err(error) => self.failure = Some(error),
        }
    }
}

/// Opens the next stream of a watch.
fn open(
    client: &Client,
    origin: &Origin,
    options: &WatchOptions,
    after_sequence: Option<i64>,
) -> Opening<Heard> {
    let mut service = client.service();
    let event_types = options.event_types.iter().map(|t| (*t).into()).collect();
    let interval = options.min_progress_interval;
    let min_progress_interval = (!interval.is_zero()).then(|| to_proto_duration(interval));
    let heartbeat_interval = Some(to_proto_duration(options.heartbeat_interval));
    match origin {
        Origin::Job(job_id) => {
            let request = pb::WatchJobRequest {
                job_id: job_id.clone(),
                after_sequence,
                event_types,
                min_progress_interval,
                heartbeat_interval,
            };
            async move {
                let stream = service.watch_job(request).await?.into_inner();
                let stream = stream.map(|message| Ok((Box::new(message?), None)));
                Ok(stream.boxed())
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
                let stream = service.run(request).await?.into_inner();
                let stream = stream.map(|message| {
                    let message = message?;
                    let update = message.update.unwrap_or_default();
                    Ok((Box::new(update), Some(message.deduplicated)))
                });
                Ok(stream.boxed())
            }
            .boxed()
        }
    }
}
