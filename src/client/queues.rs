//! Queues and job types: how they stand, and what bounds them.

use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::client::error::ClientError;
use crate::client::{Client, DECODED_BYTES_MAX};
use crate::pb;
use crate::pb::queue_service_client::QueueServiceClient;

/// The calls of `QueueService`. Each may be sent again without harm, and is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Queues {
    client: Client,
    service: QueueServiceClient<Channel>,
}

impl Client {
    /// The calls that operators make, on a connection of their own.
    pub fn queues(&self) -> Queues {
        let channel = self.endpoint.connect_lazy();
        Queues {
            client: self.clone(),
            service: QueueServiceClient::new(channel).max_decoding_message_size(DECODED_BYTES_MAX),
        }
    }
}

impl Queues {
    /// One page of queues, by name.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `INVALID_FIELD`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent, which changes nothing.
    pub async fn list(
        &self,
        request: pb::ListQueuesRequest,
    ) -> Result<pb::ListQueuesResponse, ClientError> {
        self.call(request, |mut service, request| async move {
            service.list_queues(request).await
        })
        .await
    }

    /// The job types that are served, by name.
    ///
    /// # Errors
    /// [`ClientError`]: nobody answers.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent, which changes nothing.
    pub async fn job_types(&self) -> Result<Vec<pb::JobType>, ClientError> {
        let request = pb::ListJobTypesRequest {};
        let answer = self.call(request, |mut service, request| async move {
            service.list_job_types(request).await
        });
        Ok(answer.await?.job_types)
    }

    /// Starts nothing of a queue from here on, or starts it again. Answers the queue after it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `INVALID_FIELD`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: it may be done.
    pub async fn pause(
        &self,
        queue: impl Into<String>,
        paused: bool,
    ) -> Result<pb::Queue, ClientError> {
        let queue = queue.into();
        let after = if paused {
            let request = pb::PauseQueueRequest { queue };
            let answer = self.call(request, |mut service, request| async move {
                service.pause_queue(request).await
            });
            answer.await?.queue
        } else {
            let request = pb::ResumeQueueRequest { queue };
            let answer = self.call(request, |mut service, request| async move {
                service.resume_queue(request).await
            });
            answer.await?.queue
        };
        after.ok_or_else(|| nothing("the queue"))
    }

    /// Starts nothing of a job type from here on, or starts it again. Answers the type after it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `UNKNOWN_TYPE`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: it may be done.
    pub async fn pause_type(
        &self,
        job_type: impl Into<String>,
        paused: bool,
    ) -> Result<pb::JobType, ClientError> {
        let job_type = job_type.into();
        let after = if paused {
            let request = pb::PauseJobTypeRequest { job_type };
            let answer = self.call(request, |mut service, request| async move {
                service.pause_job_type(request).await
            });
            answer.await?.job_type
        } else {
            let request = pb::ResumeJobTypeRequest { job_type };
            let answer = self.call(request, |mut service, request| async move {
                service.resume_job_type(request).await
            });
            answer.await?.job_type
        };
        after.ok_or_else(|| nothing("the job type"))
    }

    /// Sets or resets limits of a queue. Answers the queue after it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `INVALID_FIELD`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: it may be done.
    pub async fn set_limits(
        &self,
        request: pb::SetQueueLimitsRequest,
    ) -> Result<pb::Queue, ClientError> {
        let answer = self.call(request, |mut service, request| async move {
            service.set_queue_limits(request).await
        });
        let after = answer.await?.queue;
        after.ok_or_else(|| nothing("the queue"))
    }

    /// Ends some of what waits in a queue. A call that was sent again answers for its last try alone.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `INVALID_FIELD` or `UNKNOWN_TYPE`.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent: some may be ended.
    pub async fn purge(
        &self,
        request: pb::PurgeQueueRequest,
    ) -> Result<pb::PurgeQueueResponse, ClientError> {
        self.call(request, |mut service, request| async move {
            service.purge_queue(request).await
        })
        .await
    }

    async fn call<Q, R, Send, Answer>(&self, request: Q, send: Send) -> Result<R, ClientError>
    where
        Q: Clone,
        Send: Fn(QueueServiceClient<Channel>, Request<Q>) -> Answer,
        Answer: Future<Output = Result<Response<R>, Status>>,
    {
        let settings = self.client.settings();
        let (tries, deadline) = (settings.tries_max, settings.call_deadline);
        let send = |request| send(self.service.clone(), request);
        self.client.retried(request, tries, deadline, send).await
    }
}

fn nothing(what: &str) -> ClientError {
    ClientError::Contract {
        message: format!("the server answered without {what}"),
    }
}
