//! The Rust client: unary calls with deadlines and safe retries, a watch that reconnects by itself, and a
//! [`worker`] that does jobs.
//!
//! It promises that a call is sent again only where that does no harm, and that a watch shows every
//! event of a log once, in order, or a stated gap, however often it is cut. It knows only the wire
//! ([`crate::pb`]), nothing of the server's insides.
//!
//! ```no_run
//! use pacenote::client::{Client, RunOptions, Update};
//! use pacenote::pb::SubmitRequest;
//!
//! # async fn example() -> Result<(), pacenote::client::ClientError> {
//! let client = Client::connect("127.0.0.1:7430").await?;
//! let submit = SubmitRequest { r#type: "sleep".to_owned(), ..SubmitRequest::default() };
//! let mut watch = client.run(submit, RunOptions::default());
//! while let Some(update) = watch.next().await {
//!     match update? {
//!         Update::Event(event) => println!("{}: {:?}", event.sequence, event.event),
//!         Update::Finished(job) => println!("{:?}", job.state()),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod backoff;
mod cursor;
mod error;
mod line;
mod queues;
mod request;
mod update;
mod watch;
mod watch_jobs;
pub mod worker;

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

pub use backoff::Backoff;
#[cfg(feature = "server")]
pub(crate) use cursor::is_final;
pub use error::{ClientError, Refusal, Violation};
pub use queues::Queues;
pub use request::request;
pub use update::{JobsUpdate, JobsWatchOptions, RunOptions, Update, WatchOptions};
pub use watch::Watch;
pub use watch_jobs::JobsWatch;

use crate::client::error::Failure;
use crate::pb;
use crate::pb::job_service_client::JobServiceClient;

/// How long a Wait may be asked to take by `WaitRequest.timeout`'s own default.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// A message of 1,000 jobs or events ends at 3 MiB; the server itself refuses to take more than 4 MiB.
const DECODED_BYTES_MAX: usize = 8 << 20;

/// Small, so that a stream nobody reads stops the server before its unread frames use up h2's budget
/// for small frames, which closes the whole connection (h2 0.4.16 and later, `counts.rs`).
const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// Large: the budget for small frames is half of it, and it is shared by all streams.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// A PING this often, also while nothing is in flight: a peer that vanished without a word is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long the answer to a PING may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How patient a [`Client`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// For the TCP connection. Default 5 s.
    pub connect_timeout: Duration,
    /// For each try of a unary call; `wait` gets it on top of its own time. Default 10 s.
    pub call_deadline: Duration,
    /// Most tries of a unary call, the first included. Default 5.
    pub tries_max: u32,
    /// The waits between tries, of calls and of watches.
    pub backoff: Backoff,
    /// How long a watch goes on trying to come back without getting anything. Default 5 min.
    pub give_up_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            call_deadline: Duration::from_secs(10),
            tries_max: 5,
            backoff: Backoff::default(),
            give_up_after: Duration::from_secs(300),
        }
    }
}

/// A connection to a server. Cheap to clone; clones share the connection, which comes back by itself.
#[derive(Clone, Debug)]
pub struct Client {
    service: JobServiceClient<Channel>,
    endpoint: Endpoint,
    settings: Settings,
}

impl Client {
    /// Connects to `127.0.0.1:7430` or `http://127.0.0.1:7430`.
    ///
    /// # Errors
    /// [`ClientError::Endpoint`] where the address cannot be used, [`ClientError::Connect`] where nobody
    /// answers.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future leaves nothing behind.
    pub async fn connect(endpoint: impl Into<String>) -> Result<Self, ClientError> {
        Self::connect_with(endpoint, Settings::default()).await
    }

    /// The same, with a patience of your own.
    ///
    /// # Errors
    /// As [`Client::connect`].
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future leaves nothing behind.
    pub async fn connect_with(
        endpoint: impl Into<String>,
        settings: Settings,
    ) -> Result<Self, ClientError> {
        let given = endpoint.into();
        let endpoint = parse_endpoint(&given, &settings)?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| ClientError::Connect {
                endpoint: given,
                message: error::chain("", &error),
            })?;
        Ok(Self {
            service: service(channel),
            endpoint,
            settings,
        })
    }

    /// Stores a job and answers once it is on disk. Sent again only with an idempotency key: without
    /// one, a second try might make a second job.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `INVALID_FIELD`, `UNKNOWN_TYPE`, `IDEMPOTENCY_KEY_REUSED`,
    /// `UNIQUE_CONFLICT` or `WAITING_LIMIT`;
    /// [`ClientError::Unavailable`] and [`ClientError::Deadline`], after which only a submit with a key
    /// can be repeated safely.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: the job may exist.
    pub async fn submit(
        &self,
        request: pb::SubmitRequest,
    ) -> Result<pb::SubmitResponse, ClientError> {
        let tries = if request.idempotency_key.is_empty() {
            1
        } else {
            self.settings.tries_max
        };
        let deadline = self.settings.call_deadline;
        self.call(
            request,
            tries,
            deadline,
            |mut service, request| async move { service.submit(request).await },
        )
        .await
    }

    /// Stores 1 to 1,000 jobs, all or none of them, and answers once they are on disk. Sent again only
    /// where every request has an idempotency key.
    ///
    /// # Errors
    /// As [`Client::submit`]; the fields are named as `requests[3].priority`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: the jobs may exist.
    pub async fn batch_submit(
        &self,
        request: pb::BatchSubmitRequest,
    ) -> Result<pb::BatchSubmitResponse, ClientError> {
        let mut keys = request.requests.iter().map(|one| &one.idempotency_key);
        let tries = match keys.all(|key| !key.is_empty()) {
            true => self.settings.tries_max,
            false => 1,
        };
        let deadline = self.settings.call_deadline;
        self.call(
            request,
            tries,
            deadline,
            |mut service, request| async move { service.batch_submit(request).await },
        )
        .await
    }

    /// The job as it is now, in full.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `JOB_NOT_FOUND`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent, which changes nothing.
    pub async fn get(&self, job_id: impl Into<String>) -> Result<pb::Job, ClientError> {
        let request = pb::GetRequest {
            job_id: job_id.into(),
            view: pb::JobView::Full.into(),
        };
        let answer = self.read(request, |mut service, request| async move {
            service.get(request).await
        });
        answer.await?.job.ok_or_else(|| no_job("Get"))
    }

    /// One page of jobs, newest first.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `INVALID_FIELD`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent, which changes nothing.
    pub async fn list(&self, request: pb::ListRequest) -> Result<pb::ListResponse, ClientError> {
        self.read(request, |mut service, request| async move {
            service.list(request).await
        })
        .await
    }

    /// Waits for the end of a job, at most `timeout` (the server takes up to 5 min; `None`: its default
    /// of 30 s). Running out of time is no error: the answer says `timed_out`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `JOB_NOT_FOUND`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent, which changes nothing.
    pub async fn wait(
        &self,
        job_id: impl Into<String>,
        timeout: Option<Duration>,
    ) -> Result<pb::WaitResponse, ClientError> {
        let request = pb::WaitRequest {
            job_id: job_id.into(),
            timeout: timeout.map(to_proto_duration),
            ..pb::WaitRequest::default()
        };
        let deadline = timeout.unwrap_or(WAIT_DEFAULT) + self.settings.call_deadline;
        let tries = self.settings.tries_max;
        self.call(
            request,
            tries,
            deadline,
            |mut service, request| async move { service.wait(request).await },
        )
        .await
    }

    /// Asks a job to stop, and answers with the job as it is then. Asking twice changes nothing.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `JOB_NOT_FOUND`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: the job may be asked to stop.
    pub async fn cancel(
        &self,
        job_id: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<pb::Job, ClientError> {
        let request = pb::CancelRequest {
            job_id: job_id.into(),
            reason: reason.into(),
        };
        let answer = self.read(request, |mut service, request| async move {
            service.cancel(request).await
        });
        answer.await?.job.ok_or_else(|| no_job("Cancel"))
    }

    /// Makes a new job of one that failed, was cancelled or has expired; asking again answers the same.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `JOB_NOT_FOUND` or `NOT_RETRYABLE`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: the job may be made. Ask again to hear of it.
    pub async fn retry(&self, job_id: impl Into<String>) -> Result<pb::RetryResponse, ClientError> {
        let request = pb::RetryRequest {
            job_id: job_id.into(),
        };
        self.read(request, |mut service, request| async move {
            service.retry(request).await
        })
        .await
    }

    /// Retries a page of the jobs that a filter finds. Where an answer was lost and the call sent again, the
    /// jobs that it had retried are among those that were skipped.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `INVALID_FIELD`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: some jobs may be retried.
    pub async fn retry_many(
        &self,
        request: pb::RetryManyRequest,
    ) -> Result<pb::RetryManyResponse, ClientError> {
        self.read(request, |mut service, request| async move {
            service.retry_many(request).await
        })
        .await
    }

    /// Removes a finished job with all that belongs to it. Sent once only: a second try would not find what
    /// the first one had removed.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `JOB_NOT_FOUND` or `NOT_FINISHED`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: the job may be removed.
    pub async fn delete(&self, job_id: impl Into<String>) -> Result<(), ClientError> {
        let request = pb::DeleteRequest {
            job_id: job_id.into(),
        };
        let deadline = self.settings.call_deadline;
        let answer = self.call(request, 1, deadline, |mut service, request| async move {
            service.delete(request).await
        });
        answer.await.map(drop)
    }

    /// Removes a page of the finished jobs that a filter finds. Where an answer was lost and the call sent
    /// again, what it had removed is not counted.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `INVALID_FIELD`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: some jobs may be removed.
    pub async fn delete_many(
        &self,
        request: pb::DeleteManyRequest,
    ) -> Result<pb::DeleteManyResponse, ClientError> {
        self.read(request, |mut service, request| async move {
            service.delete_many(request).await
        })
        .await
    }

    /// One page of a job's log.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `JOB_NOT_FOUND` or `SEQUENCE_AHEAD`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent, which changes nothing.
    pub async fn list_events(
        &self,
        request: pb::ListEventsRequest,
    ) -> Result<pb::ListEventsResponse, ClientError> {
        self.read(request, |mut service, request| async move {
            service.list_events(request).await
        })
        .await
    }

    /// Follows a job to its end, however often the connection breaks. Nothing is sent before the first
    /// [`Watch::next`].
    pub fn watch(&self, job_id: impl Into<String>, options: WatchOptions) -> Watch {
        Watch::of_job(self.clone(), job_id.into(), options)
    }

    /// Follows many jobs over one stream, however often the connection breaks. Nothing is sent before the
    /// first [`JobsWatch::next`].
    pub fn watch_jobs(&self, options: JobsWatchOptions) -> JobsWatch {
        JobsWatch::new(self.clone(), options)
    }

    /// Submits a job and follows it from its first event to its end, in one stream. Without an
    /// idempotency key the client makes one, so that a connection that breaks before the first answer
    /// never makes two jobs. Nothing is sent before the first [`Watch::next`].
    pub fn run(&self, submit: pb::SubmitRequest, options: RunOptions) -> Watch {
        Watch::of_submit(self.clone(), submit, options)
    }

    /// How patient it is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The generated client, for calls and options that this one does not have. Its calls have no
    /// deadline and are never sent again.
    pub fn service(&self) -> JobServiceClient<Channel> {
        self.service.clone()
    }

    /// The same client on a connection of its own: the old one may be dead without knowing it.
    fn reconnected(&self) -> Self {
        Self {
            service: service(self.endpoint.connect_lazy()),
            endpoint: self.endpoint.clone(),
            settings: self.settings,
        }
    }

    /// A call that may be sent any number of times.
    async fn read<Q, R, Send, Answer>(&self, request: Q, send: Send) -> Result<R, ClientError>
    where
        Q: Clone,
        Send: Fn(JobServiceClient<Channel>, tonic::Request<Q>) -> Answer,
        Answer: Future<Output = Result<Response<R>, Status>>,
    {
        let (tries, deadline) = (self.settings.tries_max, self.settings.call_deadline);
        self.call(request, tries, deadline, send).await
    }

    /// Sends a request up to `tries` times, each with its own deadline.
    async fn call<Q, R, Send, Answer>(
        &self,
        request: Q,
        tries: u32,
        deadline: Duration,
        send: Send,
    ) -> Result<R, ClientError>
    where
        Q: Clone,
        Send: Fn(JobServiceClient<Channel>, tonic::Request<Q>) -> Answer,
        Answer: Future<Output = Result<Response<R>, Status>>,
    {
        let send = |request| send(self.service(), request);
        self.retried(request, tries, deadline, send).await
    }

    /// The same, whatever service it is for.
    async fn retried<Q, R, Send, Answer>(
        &self,
        request: Q,
        tries: u32,
        deadline: Duration,
        send: Send,
    ) -> Result<R, ClientError>
    where
        Q: Clone,
        Send: Fn(tonic::Request<Q>) -> Answer,
        Answer: Future<Output = Result<Response<R>, Status>>,
    {
        let mut failures = 0;
        loop {
            let failure = match tried(request.clone(), deadline, &send).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            failures += 1;
            let asked = failure.error.retry_after();
            // A server that wants to be left alone for longer than we would ever wait has said no.
            let too_long = asked.is_some_and(|asked| asked > self.settings.backoff.max);
            if !failure.call_again || failures >= tries || too_long {
                return Err(failure.error);
            }
            tokio::time::sleep(self.settings.backoff.delay(failures - 1, asked)).await;
        }
    }
}

/// Sends a request once.
async fn tried<Q, R, Send, Answer>(request: Q, deadline: Duration, send: Send) -> Result<R, Failure>
where
    Send: FnOnce(tonic::Request<Q>) -> Answer,
    Answer: Future<Output = Result<Response<R>, Status>>,
{
    let mut sent = tonic::Request::new(request);
    // The server learns when nobody listens any more; a second more than we wait ourselves, so that our own
    // clock decides and the error says so.
    sent.set_timeout(deadline + Duration::from_secs(1));
    match tokio::time::timeout(deadline, send(sent)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Failure::from(status)),
        Err(_) => Err(Failure::deadline(deadline)),
    }
}

fn service(channel: Channel) -> JobServiceClient<Channel> {
    JobServiceClient::new(channel).max_decoding_message_size(DECODED_BYTES_MAX)
}

fn parse_endpoint(given: &str, settings: &Settings) -> Result<Endpoint, ClientError> {
    let bad = |message: &str| ClientError::Endpoint {
        endpoint: given.to_owned(),
        message: message.to_owned(),
    };
    let uri = match given.split_once("://") {
        None => format!("http://{given}"),
        Some(("http", _)) => given.to_owned(),
        Some((scheme, _)) => {
            return Err(bad(&format!("{scheme} is not supported; use http or none")));
        }
    };
    let endpoint = Endpoint::from_shared(uri).map_err(|error| bad(&error::chain("", &error)))?;
    if endpoint.uri().port().is_none() {
        return Err(bad("it has no port; 7430 is the usual one"));
    }
    Ok(endpoint
        .user_agent(concat!("pacenote/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| bad(&error::chain("", &error)))?
        .connect_timeout(settings.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(false))
}

/// A duration as the wire has it; what is beyond its range becomes the longest it has.
pub(crate) fn to_proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).expect("below a billion"),
    }
}

fn no_job(call: &str) -> ClientError {
    ClientError::Contract {
        message: format!("{call} answered without a job"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_with_and_without_scheme() {
        let settings = Settings::default();
        for given in ["127.0.0.1:7430", "http://127.0.0.1:7430", "localhost:7430"] {
            let endpoint = parse_endpoint(given, &settings).expect("a good address");
            assert_eq!(endpoint.uri().scheme_str(), Some("http"), "{given}");
        }
        for given in [
            "",
            "127.0.0.1",
            "https://127.0.0.1:7430",
            "a b:1",
            "http://",
        ] {
            let error = parse_endpoint(given, &settings).expect_err(given);
            assert!(matches!(error, ClientError::Endpoint { .. }), "{given}");
        }
    }
}
