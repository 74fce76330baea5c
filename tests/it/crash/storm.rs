//! Many more submits than may wait, and a server that is killed in the middle of them.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt};
use nix::sys::signal::Signal;
use pacenote::pb;
use pacenote::pb::queue_service_client::QueueServiceClient;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::process::{Process, Start};
use super::sleep_request;
use crate::bounds::span;
use crate::harness::{connect, count_of, folder, reason_of, soon};

/// Submits that are under way at once.
const AT_ONCE: usize = 50;

/// What became of a storm.
#[derive(Default)]
struct Told {
    admitted: BTreeSet<String>,
    full: usize,
    unknown: usize,
}

impl Told {
    fn add(&mut self, answer: Result<pb::SubmitResponse, Status>) {
        let status = match answer {
            Ok(answer) => {
                let id = answer.job.expect("a job").job_id;
                assert!(self.admitted.insert(id), "given twice");
                return;
            }
            Err(status) => status,
        };
        if status.code() == Code::ResourceExhausted {
            assert_eq!(reason_of(&status).1, "WAITING_LIMIT");
            let details = status.get_error_details();
            let retry = details.retry_info().expect("a RetryInfo");
            assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()));
            self.full += 1;
        } else {
            // Whatever a connection says whose other end is gone.
            self.unknown += 1;
        }
    }
}

/// Submits jobs that wait for an hour. The server is killed as soon as so many were admitted.
async fn storm(server: &Process, submits: usize, kill_at: usize) -> Told {
    let client = connect(&server.address).await;
    let request = pb::SubmitRequest {
        start: span(3_600, 0).map(pb::submit_request::Start::Delay),
        ..sleep_request(0.0)
    };
    let answers = stream::iter(0..submits).map(|_| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.submit(request).await }
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    let mut told = Told::default();
    while let Some(answer) = soon(answers.next()).await {
        told.add(answer.map(tonic::Response::into_inner));
        if told.admitted.len() == kill_at {
            server.signal(Signal::SIGKILL);
        }
    }
    told
}

/// The jobs that wait, by the rows; the counters must say the same.
async fn waiting(server: &Process) -> BTreeSet<String> {
    let mut client = connect(&server.address).await;
    let request = pb::ListRequest {
        page_size: 1_000,
        ..pb::ListRequest::default()
    };
    let page = client.list(request).await.expect("a read").into_inner();
    assert_eq!(page.next_page_token, "", "all on one page");
    let endpoint = format!("http://{}", server.address);
    let queues = QueueServiceClient::connect(endpoint).await;
    let request = pb::ListQueuesRequest::default();
    let queues = queues.expect("it listens").list_queues(request).await;
    let queues = queues.expect("a read").into_inner().queues;
    let counts = queues.iter().filter_map(|queue| queue.counts.as_ref());
    let counter: i64 = counts.map(|counts| counts.scheduled).sum();
    assert_eq!(usize::try_from(counter), Ok(page.jobs.len()));
    page.jobs.into_iter().map(|job| job.job_id).collect()
}

/// Goal: FAULTS F62: as many jobs wait as may and not one more, also after kill -9, and nothing that was
/// acknowledged is lost. Method: ten times the quota, and a kill when a third of it was acknowledged; the
/// storm comes again upon what was stored. `PACENOTE_TEST_QUOTA` says how many may wait (20).
#[tokio::test]
async fn a_storm_over_a_killed_server_gets_exactly_the_quota() {
    let quota = count_of("PACENOTE_TEST_QUOTA", 20);
    let dir = folder();
    let start = Start::on(dir.path()).flag("--waiting-max", &quota.to_string());
    let server = start.start();
    let before = storm(&server, 10 * quota, quota / 3).await;
    server.end().await;
    assert!(before.unknown > 0, "it was killed too late");
    let server = start.start();
    let left = waiting(&server).await;
    assert!(before.admitted.is_subset(&left));
    assert!(left.len() <= quota.min(before.admitted.len() + before.unknown));
    let after = storm(&server, 10 * quota, usize::MAX).await;
    let admitted = quota - left.len();
    assert_eq!((after.admitted.len(), after.unknown), (admitted, 0));
    assert_eq!(after.full, 10 * quota - admitted);
    let expected: BTreeSet<_> = left.union(&after.admitted).cloned().collect();
    assert_eq!(waiting(&server).await, expected);
    server.kill().await;
    let server = start.start();
    assert_eq!(waiting(&server).await, expected);
    server.stop().await;
}
