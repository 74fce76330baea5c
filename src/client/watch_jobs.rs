//! A watch of many jobs that outlives its streams: it reconnects and resumes from the last cursor.
//!
//! It promises every event and every end once and in the order of the commits, or a stated gap; and where it
//! was cut before it had a cursor, it says that it begins anew. It never touches a job.

use std::collections::VecDeque;

use futures_util::{FutureExt, Stream, StreamExt};

use crate::client::error::{ClientError, Failure};
use crate::client::line::{Line, Opening};
use crate::client::update::{JobsUpdate, JobsWatchOptions};
use crate::client::{Client, to_proto_duration};
use crate::pb;
use crate::pb::watch_jobs_response::Content;

/// What happens to many jobs. Made by [`Client::watch_jobs`].
///
/// ```no_run
/// # async fn example(
/// #     client: pacenote::client::Client,
/// #     job_ids: Vec<String>,
/// # ) -> Result<(), pacenote::client::ClientError> {
/// use pacenote::client::{JobsUpdate, JobsWatchOptions};
/// use pacenote::pb::JobView;
///
/// let mut watch = client.watch_jobs(JobsWatchOptions {
///     job_ids,
///     finished_view: JobView::Full,
///     ..JobsWatchOptions::default()
/// });
/// while let Some(update) = watch.next().await {
///     if let JobsUpdate::Finished(job) = update? {
///         println!("{}: {:?}", job.job_id, job.result);
///         // Store it to resume from here in another process: `watch.delivered_cursor()`.
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct JobsWatch {
    line: Line<Box<pb::WatchJobsResponse>>,
    options: JobsWatchOptions,
    /// What the next stream is opened with; empty before the first cursor.
    received: String,
    /// Everything up to it was handed out.
    delivered: String,
    /// Received and not handed out; each with the cursor that is good from then on, if it is another one.
    ready: VecDeque<(JobsUpdate, Option<String>)>,
    /// Something was received before the first cursor.
    begun: bool,
    /// Ends the watch once everything received was handed out.
    failure: Option<ClientError>,
}

impl JobsWatch {
    pub(super) fn new(client: Client, options: JobsWatchOptions) -> Self {
        Self {
            line: Line::new(client, options.heartbeat_interval),
            received: options.after_cursor.clone(),
            delivered: options.after_cursor.clone(),
            options,
            ready: VecDeque::new(),
            begun: false,
            failure: None,
        }
    }

    /// The next update. `None` once all jobs of a batch or of the ids are over, or after an error; the watch
    /// of anything else goes on for ever.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the server's answer ends the watch, and the last error met where it
    /// got nothing for [`Settings::give_up_after`](crate::client::Settings::give_up_after).
    /// [`ClientError::Contract`] where an event does not decode.
    ///
    /// # Cancel safety
    /// Cancel safe: a `next` that is dropped loses no update, and the one after it goes on with the same
    /// stream or try.
    pub async fn next(&mut self) -> Option<Result<JobsUpdate, ClientError>> {
        loop {
            if let Some((update, cursor)) = self.ready.pop_front() {
                if let Some(cursor) = cursor {
                    self.delivered = cursor;
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
            let (options, after) = (&self.options, &self.received);
            let open = |client: &Client| open(client, options, after);
            let failure = match self.line.next(open).await {
                Ok(Some(message)) => {
                    self.take(*message);
                    continue;
                }
                Ok(None) if self.ends() => {
                    self.line.end();
                    return None;
                }
                // Such a watch never ends with OK: this one was a proxy's.
                Ok(None) => Failure::cut("the stream ended"),
                Err(failure) => failure,
            };
            match self.line.cut(failure) {
                Ok(cut) => {
                    if self.received.is_empty() && std::mem::take(&mut self.begun) {
                        self.ready.push_back((JobsUpdate::Anew, None));
                    }
                    return Some(Ok(JobsUpdate::Reconnecting {
                        error: cut.error,
                        attempt: cut.attempt,
                        delay: cut.delay,
                    }));
                }
                Err(error) => self.failure = Some(error),
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<JobsUpdate, ClientError>> + Send {
        futures_util::stream::unfold(self, |mut watch| async move {
            let item = watch.next().await?;
            Some((item, watch))
        })
    }

    /// Everything up to it was handed out, hidden or merged: another watch of the same jobs with this
    /// `after_cursor` goes on exactly here. Empty before the first cursor.
    pub fn delivered_cursor(&self) -> &str {
        &self.delivered
    }

    /// Whether the server ends the watch.
    fn ends(&self) -> bool {
        !self.options.batch_id.is_empty() || !self.options.job_ids.is_empty()
    }

    /// Takes one message in. Its cursor covers the whole of it: it counts with the last update.
    fn take(&mut self, message: pb::WatchJobsResponse) {
        let updates = match message.content {
            Some(Content::Snapshot(jobs)) => boxed(jobs, JobsUpdate::Snapshot),
            Some(Content::Finished(jobs)) => boxed(jobs, JobsUpdate::Finished),
            Some(Content::Events(batch)) => match batch.decoded() {
                Ok(events) => events
                    .into_iter()
                    .map(|event| JobsUpdate::Event(Box::new(event)))
                    .collect(),
                Err(error) => {
                    let message = format!("an event does not decode: {error}");
                    self.failure = Some(ClientError::Contract { message });
                    return;
                }
            },
            Some(Content::RollUp(roll_up)) => vec![JobsUpdate::RollUp(roll_up)],
            Some(Content::Gap(gap)) => vec![JobsUpdate::Gap(gap)],
            // Of a kind that this client is too old for: a sign of life.
            Some(Content::Heartbeat(_)) | None => vec![JobsUpdate::Heartbeat],
        };
        self.begun = true;
        // One that is cut again and again before its first cursor gets no further.
        self.line.heard(!message.cursor.is_empty());
        if !message.cursor.is_empty() {
            self.received.clone_from(&message.cursor);
        }
        self.ready
            .extend(updates.into_iter().map(|update| (update, None)));
        match self.ready.back_mut() {
            _ if message.cursor.is_empty() => {}
            Some((_, cursor)) => *cursor = Some(message.cursor),
            None => self.delivered = message.cursor,
        }
    }
}

fn boxed(jobs: pb::Jobs, update: fn(Box<pb::Job>) -> JobsUpdate) -> Vec<JobsUpdate> {
    let jobs = jobs.jobs.into_iter();
    jobs.map(|job| update(Box::new(job))).collect()
}

/// Opens the next stream of a watch.
fn open(
    client: &Client,
    options: &JobsWatchOptions,
    after_cursor: &str,
) -> Opening<Box<pb::WatchJobsResponse>> {
    let mut service = client.service();
    let options = options.clone();
    let request = pb::WatchJobsRequest {
        after_cursor: after_cursor.to_owned(),
        queues: options.queues,
        types: options.types,
        labels: options.labels.into_iter().collect(),
        batch_id: options.batch_id,
        job_ids: options.job_ids,
        event_types: options.event_types.into_iter().map(Into::into).collect(),
        min_progress_interval: options.min_progress_interval.map(to_proto_duration),
        heartbeat_interval: Some(to_proto_duration(options.heartbeat_interval)),
        roll_up: options.roll_up,
        finished_view: options.finished_view.into(),
    };
    async move {
        let stream = service.watch_jobs(request).await?.into_inner();
        Ok(stream.map(|message| message.map(Box::new)).boxed())
    }
    .boxed()
}
