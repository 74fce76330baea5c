//! The gRPC surface: `pacenote.v1.JobService`, `QueueService`, `WorkerService`, health and reflection. Translates, and nothing else:
//! what is asked for is checked and done behind the queue's door.

mod malformed;
mod queues;
mod requests;
mod status;
mod submissions;
mod watch_jobs;
mod workers;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream;
use prost::Message;
use tokio_stream::Stream;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::{Health, HealthServer};

pub use queues::QUEUE_SERVICE;
pub use status::DOMAIN;
pub use workers::WORKER_SERVICE;

use crate::error::{Error, Violations};
use crate::grpc::malformed::Refusing;
use crate::grpc::queues::Queues;
use crate::grpc::requests::check_request;
use crate::grpc::status::status;
use crate::grpc::submissions::{of_batch, submission};
use crate::grpc::workers::Workers;
use crate::job::limits::{CODEC_BYTES_MAX, PAGE_BYTES_MAX};
use crate::job::{Job, JobSnapshot, Payloads};
use crate::pb;
use crate::pb::job_service_server::{JobService, JobServiceServer};
use crate::pb::queue_service_server::QueueServiceServer;
use crate::pb::worker_service_server::WorkerServiceServer;
use crate::queue::{JobQueue, RetriedPage, Skipped, Watch, WatchContent, WatchMessage};
use crate::store::View;
use crate::wire;

/// Name of the job service, as health checks ask for it.
pub const JOB_SERVICE: &str = "pacenote.v1.JobService";

/// Everything that is served over gRPC.
pub fn routes<H: Health>(queue: JobQueue, health: HealthServer<H>) -> anyhow::Result<Routes> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that grpcurl can print what an error carries.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let queues = Queues {
        queue: queue.clone(),
    };
    let queues = QueueServiceServer::new(queues)
        .max_decoding_message_size(CODEC_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    let workers = Workers {
        queue: queue.clone(),
    };
    let workers = WorkerServiceServer::new(workers)
        .max_decoding_message_size(CODEC_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    let jobs = JobServiceServer::new(Jobs { queue })
        .max_decoding_message_size(CODEC_BYTES_MAX)
        .accept_compressed(CompressionEncoding::Gzip);
    // Who has gzip as a channel's default sends it to these as well.
    let health = health.accept_compressed(CompressionEncoding::Gzip);
    let reflection_v1 = reflection().build_v1()?;
    let reflection_v1 = reflection_v1.accept_compressed(CompressionEncoding::Gzip);
    let reflection_v1alpha = reflection().build_v1alpha()?;
    let reflection_v1alpha = reflection_v1alpha.accept_compressed(CompressionEncoding::Gzip);
    Ok(Routes::new(Refusing(jobs))
        .add_service(Refusing(queues))
        .add_service(Refusing(workers))
        .add_service(Refusing(health))
        .add_service(Refusing(reflection_v1))
        .add_service(Refusing(reflection_v1alpha)))
}

/// `pacenote.v1.JobService`.
struct Jobs {
    queue: JobQueue,
}

impl Jobs {
    /// The message of a job, with where it stands if it waits.
    async fn placed(&self, snapshot: JobSnapshot) -> Result<pb::Job, Status> {
        let place = self.queue.place_of(&snapshot.job).await.map_err(status)?;
        let mut job = wire::to_job(snapshot);
        if let Some(place) = place {
            wire::put_place(&mut job, place.position, place.estimated_start_at);
        }
        Ok(job)
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl JobService for Jobs {
    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        let request = opened(request)?;
        if request.validate_only {
            let checked = self.queue.validate(submission(request)).await;
            let deduplicated = checked.map_err(status)?;
            return Ok(Response::new(pb::SubmitResponse {
                job: None,
                deduplicated,
            }));
        }
        let submitted = self.queue.submit(submission(request)).await;
        Ok(Response::new(submitted.map(to_answer).map_err(status)?))
    }

    async fn batch_submit(
        &self,
        request: Request<pb::BatchSubmitRequest>,
    ) -> Result<Response<pb::BatchSubmitResponse>, Status> {
        let request = opened(request)?;
        let submissions = request.requests.into_iter().map(of_batch).collect();
        let batch = self.queue.submit_batch(submissions).await;
        let batch = batch.map_err(status)?;
        Ok(Response::new(pb::BatchSubmitResponse {
            batch_id: batch.id.map(|id| id.to_string()).unwrap_or_default(),
            responses: fitting(batch.jobs.into_iter().map(to_answer).collect()),
        }))
    }

    type RunStream = Messages<pb::RunResponse>;

    async fn run(
        &self,
        request: Request<pb::RunRequest>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let options = requests::watch_options(
            None,
            &request.event_types,
            request.min_progress_interval,
            request.heartbeat_interval,
            &mut violations,
        );
        if request
            .submit
            .as_ref()
            .is_some_and(|submit| submit.validate_only)
        {
            violations.add(
                "submit.validate_only",
                "is not for Run; Submit checks a request",
            );
        }
        let submission = request.submit.map(submission);
        match &submission {
            None => violations.add("submit", "is required"),
            // The queue tells what is wrong with the job, unless something around it is wrong as well.
            Some(_) if violations.is_empty() => {}
            Some(submission) => {
                if let Err(Error::Invalid { violations: more }) =
                    self.queue.check(submission.clone(), "submit.")
                {
                    violations.extend(more);
                }
            }
        }
        let submission = checked(submission, violations)?;
        let run = self.queue.run(submission, options).await;
        let (watch, deduplicated) = run.map_err(status)?;
        let mut first = true;
        let messages = messages(watch, move |update| {
            let response = pb::RunResponse {
                deduplicated: deduplicated && first,
                update: Some(update),
            };
            first = false;
            response
        });
        Ok(Response::new(messages))
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let key = requests::job_key(&request.job_id, &mut violations);
        let view = requests::view(request.view, View::Full, &mut violations);
        let key = checked(key, violations)?;
        let snapshot = self.queue.get(&key, view).await.map_err(status)?;
        Ok(Response::new(pb::GetResponse {
            job: Some(self.placed(snapshot).await?),
        }))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let query = requests::list_query(&request, &mut violations);
        let view = requests::view(request.view, View::Basic, &mut violations);
        let (size, token) = (request.page_size, &request.page_token);
        self.queue.check_page(&query, size, token, &mut violations);
        violations.into_result().map_err(status)?;
        let page = self.queue.list(query, size, token, view).await;
        let page = page.map_err(status)?;
        Ok(Response::new(pb::ListResponse {
            jobs: page.jobs.into_iter().map(wire::to_job).collect(),
            next_page_token: page.next_token.unwrap_or_default(),
        }))
    }

    async fn wait(
        &self,
        request: Request<pb::WaitRequest>,
    ) -> Result<Response<pb::WaitResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let key = requests::job_key(&request.job_id, &mut violations);
        let timeout = requests::wait_timeout(request.timeout, &mut violations);
        requests::check_cursor(request.after_sequence, &mut violations);
        let view = requests::view(request.view, View::Full, &mut violations);
        let key = checked(key, violations)?;
        let waited = self.queue.wait(&key, timeout, request.after_sequence, view);
        let waited = waited.await.map_err(status)?;
        Ok(Response::new(pb::WaitResponse {
            job: Some(self.placed(waited.snapshot).await?),
            timed_out: waited.timed_out,
        }))
    }

    async fn cancel(
        &self,
        request: Request<pb::CancelRequest>,
    ) -> Result<Response<pb::CancelResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let key = requests::job_key(&request.job_id, &mut violations);
        requests::check_string("reason", &request.reason, &mut violations);
        let key = checked(key, violations)?;
        let job = self.queue.cancel(&key, request.reason).await;
        let job = job.map_err(status)?;
        tracing::info!(job = %job.key.id, state = job.state.as_str(), "cancel asked");
        Ok(Response::new(pb::CancelResponse {
            job: Some(basic(job)),
        }))
    }

    async fn retry(
        &self,
        request: Request<pb::RetryRequest>,
    ) -> Result<Response<pb::RetryResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let key = requests::job_key(&request.job_id, &mut violations);
        let key = checked(key, violations)?;
        let (job, deduplicated) = self.queue.retry(&key).await.map_err(status)?;
        Ok(Response::new(pb::RetryResponse {
            job: Some(basic(job)),
            deduplicated,
        }))
    }

    async fn retry_many(
        &self,
        request: Request<pb::RetryManyRequest>,
    ) -> Result<Response<pb::RetryManyResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let query = requests::retry_query(&request, &mut violations);
        let (size, token) = (request.page_size, &request.page_token);
        self.queue.check_page(&query, size, token, &mut violations);
        violations.into_result().map_err(status)?;
        let page = self.queue.retry_many(query, size, token).await;
        let page = page.map_err(status)?;
        tracing::info!(retried = page.retried.len(), "jobs retried by a filter");
        Ok(Response::new(to_retried(page)))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let key = requests::job_key(&request.job_id, &mut violations);
        let key = checked(key, violations)?;
        self.queue.delete(&key).await.map_err(status)?;
        tracing::info!(job = %key.id, "deleted");
        Ok(Response::new(pb::DeleteResponse {}))
    }

    async fn delete_many(
        &self,
        request: Request<pb::DeleteManyRequest>,
    ) -> Result<Response<pb::DeleteManyResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let query = requests::delete_query(&request, &mut violations);
        let (size, token) = (request.page_size, &request.page_token);
        self.queue.check_page(&query, size, token, &mut violations);
        violations.into_result().map_err(status)?;
        let page = self.queue.delete_many(query, size, token).await;
        let page = page.map_err(status)?;
        tracing::info!(deleted = page.deleted, "jobs deleted by a filter");
        Ok(Response::new(pb::DeleteManyResponse {
            deleted_count: i32::try_from(page.deleted).unwrap_or(i32::MAX),
            next_page_token: page.next_token.unwrap_or_default(),
        }))
    }

    type WatchJobStream = Messages<pb::WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<pb::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let key = requests::job_key(&request.job_id, &mut violations);
        let options = requests::watch_options(
            request.after_sequence,
            &request.event_types,
            request.min_progress_interval,
            request.heartbeat_interval,
            &mut violations,
        );
        let key = checked(key, violations)?;
        let watch = self.queue.watch(&key, options).await.map_err(status)?;
        Ok(Response::new(messages(watch, |update| update)))
    }

    type WatchJobsStream = Messages<pb::WatchJobsResponse>;

    async fn watch_jobs(
        &self,
        request: Request<pb::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let filter = requests::job_filter(&request, &mut violations);
        let options = requests::jobs_watch_options(&request, &mut violations);
        let cursor = &options.after_cursor;
        self.queue
            .check_jobs_cursor(&filter, cursor, &mut violations);
        violations.into_result().map_err(status)?;
        let watch = self.queue.watch_jobs(filter, options).await;
        let watch = watch.map_err(status)?;
        Ok(Response::new(watch_jobs::messages(watch)))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let key = requests::job_key(&request.job_id, &mut violations);
        let query = requests::event_query(&request, &mut violations);
        let key = checked(key, violations)?;
        let page = self.queue.events(&key, &query).await.map_err(status)?;
        let events = page.events.into_iter().map(|event| event.bytes).collect();
        let events = pb::EventBatch { events }.decoded();
        Ok(Response::new(pb::ListEventsResponse {
            events: events.map_err(|error| status(Error::internal(&error)))?,
            through_sequence: page.through,
            job_finished: page.finished,
            gap: page.gap.map(|gap| to_gap(request.job_id, gap)),
        }))
    }
}

/// The message of a request, unless it is larger than any may be.
fn opened<T: Message>(request: Request<T>) -> Result<T, Status> {
    let request = request.into_inner();
    check_request(&request).map_err(status)?;
    Ok(request)
}

/// What was checked, or everything that is wrong with the request.
fn checked<T>(value: Option<T>, violations: Violations) -> Result<T, Status> {
    violations.into_result().map_err(status)?;
    value.ok_or_else(|| {
        status(Error::internal(
            &"a request without violations lacks a part",
        ))
    })
}

/// The answers of a batch, in a message that every client takes: where they are too large together, each job
/// comes without what its caller has sent, and without its error's details.
fn fitting(mut answers: Vec<pb::SubmitResponse>) -> Vec<pb::SubmitResponse> {
    let bytes: usize = answers.iter().map(Message::encoded_len).sum();
    if bytes > PAGE_BYTES_MAX {
        for job in answers.iter_mut().filter_map(|answer| answer.job.as_mut()) {
            job.labels.clear();
            job.retry_policy = None;
            job.timeouts = None;
            job.progress = None;
            if let Some(error) = &mut job.error {
                error.detail.clear();
                error.metadata.clear();
            }
        }
    }
    answers
}

fn to_answer((job, deduplicated): (Arc<Job>, bool)) -> pb::SubmitResponse {
    pb::SubmitResponse {
        job: Some(basic(job)),
        deduplicated,
    }
}

fn basic(job: Arc<Job>) -> pb::Job {
    wire::to_job(JobSnapshot {
        job,
        payloads: Payloads::default(),
    })
}

/// The messages of a watch, pulled one by one: while the connection has no room, nothing is read.
fn messages<T: Send + 'static>(
    watch: Watch,
    wrap: impl FnMut(pb::WatchJobResponse) -> T + Send + 'static,
) -> Messages<T> {
    let messages = stream::unfold(Some((watch, wrap)), |open| async {
        let (mut watch, mut wrap) = open?;
        match watch.next().await {
            Ok(Some(message)) => {
                let message = wrap(to_message(watch.job_id(), message));
                Some((Ok(message), Some((watch, wrap))))
            }
            Ok(None) => None,
            Err(error) => Some((Err(status(error)), None)),
        }
    });
    Box::pin(messages)
}

fn to_message(job_id: String, message: WatchMessage) -> pb::WatchJobResponse {
    use pb::watch_job_response::Content;
    let content = match message.content {
        WatchContent::Snapshot(snapshot) => Content::Snapshot(wire::to_job(snapshot)),
        WatchContent::Events(events) => Content::Events(pb::EventBatch {
            events: events.into_iter().map(|event| event.bytes).collect(),
        }),
        WatchContent::Gap(first, last) => Content::Gap(to_gap(job_id, (first, last))),
        WatchContent::Heartbeat(now) => Content::Heartbeat(pb::Heartbeat {
            server_time: Some(wire::to_timestamp(now)),
        }),
    };
    pb::WatchJobResponse {
        through_sequence: message.through_sequence,
        content: Some(content),
    }
}

fn to_retried(page: RetriedPage) -> pb::RetryManyResponse {
    use pb::retry_many_response::{Retried, Skipped as Passed};
    let retried = page.retried.into_iter().map(|(old, new)| Retried {
        job_id: old.to_string(),
        new_job_id: new.to_string(),
    });
    let skipped = page.skipped.into_iter().map(|(id, why)| Passed {
        job_id: id.to_string(),
        reason: match why {
            Skipped::RetriedBefore(_) | Skipped::NotRetryable => "NOT_RETRYABLE",
            Skipped::Gone => "JOB_NOT_FOUND",
            Skipped::Unreadable => "UNREADABLE",
        }
        .to_owned(),
        new_job_id: match why {
            Skipped::RetriedBefore(by) => by.to_string(),
            Skipped::NotRetryable | Skipped::Gone | Skipped::Unreadable => String::new(),
        },
    });
    pb::RetryManyResponse {
        retried: retried.collect(),
        skipped: skipped.collect(),
        next_page_token: page.next_token.unwrap_or_default(),
    }
}

fn to_gap(job_id: String, (first, last): (i64, i64)) -> pb::EventGap {
    pb::EventGap {
        cause: pb::event_gap::Cause::Retention as i32,
        job_id,
        first_missing_sequence: first,
        last_missing_sequence: last,
    }
}
