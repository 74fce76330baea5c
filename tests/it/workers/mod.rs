//! Workers that are other programs: leases, reports and ends through `WorkerService`.

mod bounds;
mod faults;
mod leases;
mod life;
mod protocol;
mod relay;
mod runtime;
mod runtime_ends;

use std::sync::Arc;
use std::time::Duration;

use pacenote::config::{JobType, TypeSettings};
use pacenote::job::name::Name;
use pacenote::job::time::Clock;
use pacenote::pb;
use pacenote::pb::finish_request::Outcome;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;
use pacenote::pb::queue_service_client::QueueServiceClient;
use pacenote::pb::worker_service_client::WorkerServiceClient;
use pacenote::queue::{Submission, WorkRequest, default_tenant};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::{
    Puppets, Setup, TestClock, TestServer, bad_fields, eventually, folder, reason_of, soon,
    submit_request,
};

type WorkerClient = WorkerServiceClient<Channel>;

/// A server, and a worker of another program that has leased for the type `work` once.
pub(crate) struct Scene {
    pub(crate) server: TestServer,
    worker: WorkerClient,
}

async fn worker_of(server: &TestServer) -> WorkerClient {
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).expect("an address");
    let channel = endpoint.connect().await.expect("the server accepts");
    WorkerServiceClient::new(channel).max_decoding_message_size(64 * 1024 * 1024)
}

impl Scene {
    async fn new(setup: Setup) -> Self {
        let server = setup.start().await;
        let worker = worker_of(&server).await;
        let scene = Self { server, worker };
        // From here on its type is known.
        assert_eq!(scene.lease(at_once(1)).await, []);
        scene
    }

    pub(crate) async fn on(dir: &TempDir) -> Self {
        Self::new(Setup::on(dir.path())).await
    }

    async fn lease(&self, request: pb::LeaseRequest) -> Vec<pb::LeasedJob> {
        let leased = soon(self.worker.clone().lease(request)).await;
        leased.expect("a good request").into_inner().leased_jobs
    }

    /// One job that waits already, or comes soon.
    pub(crate) async fn lease_one(&self) -> pb::LeasedJob {
        let mut leased = self.lease(lease_request(1)).await;
        assert_eq!(leased.len(), 1);
        leased.remove(0)
    }

    async fn submit(&self) -> String {
        self.server.submit(submit_request("work")).await.job_id
    }

    /// A job that a worker holds.
    pub(crate) async fn begin(&self) -> pb::LeasedJob {
        let job_id = self.submit().await;
        let leased = self.lease_one().await;
        assert_eq!(id_of(&leased), job_id);
        leased
    }

    async fn report(&self, request: pb::ReportRequest) -> Result<pb::ReportResponse, Status> {
        let reported = soon(self.worker.clone().report(request)).await;
        reported.map(tonic::Response::into_inner)
    }

    pub(crate) async fn finish(&self, token: &str, outcome: Outcome) -> Result<pb::Job, Status> {
        let request = pb::FinishRequest {
            lease_token: token.to_owned(),
            outcome: Some(outcome),
            retry_delay: None,
        };
        let finished = soon(self.worker.clone().finish(request)).await?;
        Ok(finished.into_inner().job.expect("the job"))
    }

    async fn extend(&self, tokens: &[&str]) -> Vec<pb::LeaseStatus> {
        let request = pb::ExtendLeasesRequest {
            lease_tokens: tokens.iter().map(ToString::to_string).collect(),
        };
        let extended = soon(self.worker.clone().extend_leases(request)).await;
        extended.expect("good tokens").into_inner().leases
    }

    /// Waits until a worker waits for work.
    async fn somebody_waits(&self) {
        let queue = &self.server.queue;
        eventually("a worker waits", || queue.waiting_workers() > 0).await;
        queue.settle().await;
    }

    pub(crate) async fn stop(self) {
        drop(self.worker);
        self.server.stop().await.expect("a clean end");
    }
}

fn lease_request(max_jobs: i32) -> pb::LeaseRequest {
    pb::LeaseRequest {
        worker_id: "worker-1".to_owned(),
        types: vec!["work".to_owned()],
        max_jobs,
        ..pb::LeaseRequest::default()
    }
}

/// Looks once, and does not wait.
fn at_once(max_jobs: i32) -> pb::LeaseRequest {
    pb::LeaseRequest {
        wait: Some(prost_types::Duration::default()),
        ..lease_request(max_jobs)
    }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn text(text: &str) -> pb::Payload {
    pb::Payload {
        content: Some(pb::payload::Content::Text(text.to_owned())),
        ..pb::Payload::default()
    }
}

fn done(result: &str) -> Outcome {
    Outcome::Result(text(result))
}

fn failed(retryable: bool) -> Outcome {
    Outcome::Error(pb::JobError {
        reason: "BROKEN".to_owned(),
        message: "it broke".to_owned(),
        retryable,
        ..pb::JobError::default()
    })
}

fn output(text_of: &str) -> pb::WorkerEvent {
    pb::WorkerEvent {
        event: Some(pb::worker_event::Event::Output(pb::OutputChunk {
            stream: "stdout".to_owned(),
            offset: 0,
            chunk: Some(text(text_of)),
        })),
    }
}

fn outputs(log: &[pb::JobEvent]) -> Vec<(i64, String)> {
    let output = |event: &pb::JobEvent| match &event.event {
        Some(Event::Output(output)) => {
            let chunk = output.chunk.clone().expect("a chunk").content;
            let Some(pb::payload::Content::Text(text)) = chunk else {
                panic!("no text: {chunk:?}");
            };
            Some((output.offset, text))
        }
        _ => None,
    };
    log.iter().filter_map(output).collect()
}

pub(crate) fn id_of(leased: &pb::LeasedJob) -> String {
    leased.job.clone().expect("a job").job_id
}

fn heartbeat(token: &str) -> pb::ReportRequest {
    pb::ReportRequest {
        lease_token: token.to_owned(),
        ..pb::ReportRequest::default()
    }
}

fn assert_stale<T: std::fmt::Debug>(refused: Result<T, Status>) {
    let refused = refused.expect_err("the lease is lost");
    let stale = (Code::FailedPrecondition, "STALE_LEASE".to_owned());
    assert_eq!(reason_of(&refused), stale, "{refused:?}");
}
