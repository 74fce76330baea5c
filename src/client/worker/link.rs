//! The way from a worker to its server: one connection, left for another where it may be dead, and calls
//! that are sent until they are answered.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::client::error::{ClientError, Failure};
use crate::client::{Client, DECODED_BYTES_MAX, Settings, tried};
use crate::pb::worker_service_client::WorkerServiceClient;

pub(super) type Service = WorkerServiceClient<Channel>;

/// Longest wait for which a worker takes its server's word. Chosen: its leases may be at stake.
const ASKED_MAX: Duration = Duration::from_secs(30);

/// A connection of the worker's own, shared by all that it does.
#[derive(Debug)]
pub(super) struct Link {
    endpoint: Endpoint,
    pub(super) settings: Settings,
    /// With how often it was made anew.
    service: Mutex<(u64, Service)>,
}

impl Link {
    pub(super) fn new(client: &Client) -> Self {
        let endpoint = client.endpoint.clone();
        Self {
            service: Mutex::new((0, connected(&endpoint))),
            settings: client.settings,
            endpoint,
        }
    }

    /// Sends a request once.
    pub(super) async fn send<Q, R, Send, Answer>(
        &self,
        request: Q,
        deadline: Duration,
        send: Send,
    ) -> Result<R, Failure>
    where
        Send: FnOnce(Service, Request<Q>) -> Answer,
        Answer: Future<Output = Result<Response<R>, Status>>,
    {
        let (made, service) = self.service().clone();
        let answer = tried(request, deadline, |request| send(service, request)).await;
        if let Err(Failure {
            error: ClientError::Deadline { .. },
            ..
        }) = &answer
        {
            // A half-open connection stays silent whatever is sent on it: take another.
            let mut service = self.service();
            if service.0 == made {
                *service = (made + 1, connected(&self.endpoint));
            }
        }
        answer
    }

    /// Sends a request until it is answered or refused for good. For what may be sent twice.
    ///
    /// # Errors
    /// Why it was refused.
    ///
    /// # Cancel safety
    /// Dropping the future does not take back what was sent.
    pub(super) async fn insist<Q, R, Send, Answer>(
        &self,
        request: Q,
        send: Send,
    ) -> Result<R, ClientError>
    where
        Q: Clone,
        Send: Fn(Service, Request<Q>) -> Answer,
        Answer: Future<Output = Result<Response<R>, Status>>,
    {
        let mut failures = 0;
        loop {
            let deadline = self.settings.call_deadline;
            match self.send(request.clone(), deadline, &send).await {
                Ok(answer) => return Ok(answer),
                Err(failure) if !failure.resume => return Err(failure.error),
                Err(failure) => tokio::time::sleep(self.pause(failures, &failure.error)).await,
            }
            failures += 1;
        }
    }

    /// How long to wait after so many failures before this one.
    pub(super) fn pause(&self, failures: u32, error: &ClientError) -> Duration {
        let asked = error.retry_after().map(|asked| asked.min(ASKED_MAX));
        self.settings.backoff.delay(failures, asked)
    }

    fn service(&self) -> std::sync::MutexGuard<'_, (u64, Service)> {
        // Nothing that holds it can panic half-way.
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connected(endpoint: &Endpoint) -> Service {
    WorkerServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(DECODED_BYTES_MAX)
}
