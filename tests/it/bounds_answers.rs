//! Answers with many jobs: a client that takes no more than gRPC's usual four mebibytes gets every one of
//! them, however large the jobs are.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use pacenote::config::TypeSettings;
use pacenote::job::event::JobError;
use pacenote::job::limits::{
    BATCH_MAX, IDEMPOTENCY_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LIST_MAX, NAME_BYTES_MAX,
    PAGE_BYTES_MAX, PAGE_SIZE_MAX, REASON_BYTES_MAX, REQUEST_BYTES_MAX, STRING_BYTES_MAX,
};
use pacenote::job::{JobState, Outcome};
use pacenote::pb;
use pacenote::pb::job_service_client::JobServiceClient;
use prost::Message;

use crate::bounds::span;
use crate::clock::OwnedClock;
use crate::harness::{Client, Puppets, Setup, TestServer, folder, submit_request};
use crate::life::{key, lease};

/// A client that takes what tonic, like most others, takes unless it is told otherwise: four mebibytes.
async fn usual_client(server: &TestServer) -> Client {
    let connected = JobServiceClient::connect(format!("http://{}", server.address)).await;
    connected.expect("the server accepts")
}

async fn batch(client: &Client, requests: &[pb::SubmitRequest]) -> pb::BatchSubmitResponse {
    let request = pb::BatchSubmitRequest {
        requests: requests.to_vec(),
    };
    let answer = client.clone().batch_submit(request).await;
    answer
        .expect("it is good, and so is its answer")
        .into_inner()
}

/// A job that waits, with `full` labels as long as they may be and one of `rest` bytes.
fn labelled(full: usize, rest: usize) -> pb::SubmitRequest {
    let full = (0..full).map(|n| (format!("l{n:02}"), LABEL_VALUE_BYTES_MAX));
    let labels = full.chain([("rest".to_owned(), rest)]);
    pb::SubmitRequest {
        labels: labels
            .map(|(name, bytes)| (name, "v".repeat(bytes)))
            .collect(),
        start: span(3_600, 0).map(pb::submit_request::Start::Delay),
        ..submit_request("puppet")
    }
}

fn bytes_of(answer: &pb::BatchSubmitResponse) -> usize {
    answer.responses.iter().map(Message::encoded_len).sum()
}

/// Goal: the answer of a batch holds all that is known of its jobs as long as they take no more than three
/// mebibytes, and of one byte more what its caller does not know. Method: a clock that stands, so that jobs
/// that are alike take the same; a first batch says how much, and the next ones are longer by what is left.
#[tokio::test]
async fn a_batch_is_answered_whole_up_to_three_mebibytes_and_lean_one_byte_past_them() {
    const JOBS: usize = 820;
    const FULL: usize = 13;
    /// From here on a label's length takes two bytes.
    const SHORT: usize = 130;
    let dir = folder();
    let setup = Setup::on(dir.path())
        .clock(OwnedClock::new(1))
        .job_type("puppet", Puppets::default());
    let server = setup.start().await;
    let client = usual_client(&server).await;
    let shorter = batch(&client, &vec![labelled(FULL, SHORT); JOBS]).await;
    let left = PAGE_BYTES_MAX - bytes_of(&shorter);
    for past in [0, 1] {
        let more = left + past;
        let requests: Vec<_> = (0..JOBS)
            .map(|n| SHORT + more / JOBS + usize::from(n < more % JOBS))
            .map(|rest| labelled(FULL, rest))
            .collect();
        let answer = batch(&client, &requests).await;
        assert_eq!(answer.responses.len(), JOBS);
        let jobs = || answer.responses.iter().filter_map(|one| one.job.as_ref());
        if past == 0 {
            assert_eq!(bytes_of(&answer), PAGE_BYTES_MAX);
            for (job, request) in jobs().zip(&requests) {
                assert_eq!(job.labels, request.labels);
                assert!(job.retry_policy.is_some() && job.timeouts.is_some());
            }
            continue;
        }
        for job in jobs() {
            assert_eq!(job.labels, HashMap::new());
            assert!(job.retry_policy.is_none() && job.timeouts.is_none());
            assert_eq!(job.state(), pb::job::State::Scheduled);
            assert_eq!(job.batch_id, answer.batch_id);
        }
        // It was stored as it was sent.
        let last = jobs().last().expect("some");
        let stored = server.get(&last.job_id).await;
        assert_eq!(
            Some(&stored.labels),
            requests.last().map(|last| &last.labels)
        );
    }
    server.stop().await.expect("a clean end");
}

/// Goal: the answer fits whatever its jobs have become since they were first submitted. Method: as many as a
/// batch takes, everything as long as it may be; each fails and is cancelled; the same batch once more.
#[tokio::test]
async fn the_largest_jobs_of_the_largest_batch_fit_into_its_answer() {
    let dir = folder();
    let puppets = Puppets::default();
    let name: &'static str = Box::leak("n".repeat(NAME_BYTES_MAX).into_boxed_str());
    let setup = Setup::on(dir.path())
        .config(|config| config.workers = BATCH_MAX)
        .job_type_with(name, TypeSettings::default(), puppets.clone());
    let server = setup.start().await;
    let client = usual_client(&server).await;
    let requests: Vec<_> = (0..BATCH_MAX)
        .map(|n| pb::SubmitRequest {
            queue: name.to_owned(),
            idempotency_key: format!("{n:0width$}", width = IDEMPOTENCY_KEY_BYTES_MAX),
            concurrency_key: format!("{n:0width$}", width = NAME_BYTES_MAX),
            labels: [("l".to_owned(), "v".repeat(LABEL_VALUE_BYTES_MAX))].into(),
            ..submit_request(name)
        })
        .collect();
    let first = batch(&client, &requests).await;
    let long = "t".repeat(STRING_BYTES_MAX);
    let error = JobError::retryable(&long, long.clone())
        .with_detail("d")
        .with_metadata("m", "m")
        .with_retry_after(Duration::from_secs(3_600));
    for _ in 0..BATCH_MAX {
        drop(puppets.next().await);
    }
    let jobs = first.responses.iter().filter_map(|one| one.job.as_ref());
    let ends = jobs.map(async |job| {
        let failed = Outcome::Failed(error.clone());
        let lease = lease(&job.job_id, 1);
        let failed = server.queue.finish(&lease, Vec::new(), failed).await;
        assert_eq!(failed.expect("it runs").state, JobState::Scheduled);
        let over = server.queue.cancel(&key(&job.job_id), long.clone()).await;
        assert_eq!(over.expect("it waits").state, JobState::Cancelled);
    });
    join_all(ends).await;
    let again = batch(&client, &requests).await;
    assert!(again.encoded_len() <= REQUEST_BYTES_MAX);
    assert_eq!(again.batch_id, first.batch_id);
    for (again, first) in again.responses.iter().zip(&first.responses) {
        let (job, first) = (again.job.as_ref().expect("a job"), first.job.as_ref());
        assert!(again.deduplicated);
        assert_eq!(Some(&job.job_id), first.map(|first| &first.job_id));
        assert_eq!(job.cancel_reason, long);
        assert_eq!(job.labels, HashMap::new());
        let error = job.error.as_ref().expect("of its only attempt");
        assert_eq!((&error.reason, &error.message), (&long, &long));
        assert!(error.detail.is_empty() && error.metadata.is_empty());
    }
    server.stop().await.expect("a clean end");
}

/// Goal: a page of jobs ends at three mebibytes whatever it is of a job that takes them. Method: every job
/// has as many reasons that end it as it may, which nothing but a job's policy holds.
#[tokio::test]
async fn a_page_of_jobs_with_long_policies_fits_into_its_answer() {
    const BATCHES: usize = 2;
    const JOBS: usize = 350;
    let dir = folder();
    let setup = Setup::on(dir.path()).job_type("puppet", Puppets::default());
    let server = setup.start().await;
    let client = usual_client(&server).await;
    let reasons = (0..LIST_MAX).map(|n| format!("R{n:0width$}", width = REASON_BYTES_MAX - 1));
    let request = pb::SubmitRequest {
        retry_policy: Some(pb::RetryPolicy {
            non_retryable_reasons: reasons.collect(),
            ..pb::RetryPolicy::default()
        }),
        start: span(3_600, 0).map(pb::submit_request::Start::Delay),
        ..submit_request("puppet")
    };
    let mut submitted = Vec::new();
    for _ in 0..BATCHES {
        let answer = batch(&client, &vec![request.clone(); JOBS]).await;
        let jobs = answer.responses.into_iter().filter_map(|one| one.job);
        submitted.extend(jobs.map(|job| job.job_id));
    }
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListRequest {
            page_size: i32::try_from(PAGE_SIZE_MAX).expect("a few"),
            page_token,
            ..pb::ListRequest::default()
        };
        let page = client.clone().list(request).await;
        let page = page.expect("the page fits").into_inner();
        let bytes = page.encoded_len();
        assert!(bytes <= PAGE_BYTES_MAX, "{bytes} bytes");
        page_token = page.next_page_token;
        // What is counted is more than what is sent, but not twice as much.
        let is_full = bytes > PAGE_BYTES_MAX / 3 * 2;
        assert!(is_full || page_token.is_empty(), "{bytes} bytes");
        for job in page.jobs {
            let policy = job.retry_policy.expect("all of it");
            assert_eq!(policy.non_retryable_reasons.len(), LIST_MAX);
            listed.push(job.job_id);
        }
        if page_token.is_empty() {
            break;
        }
    }
    listed.reverse();
    assert_eq!(listed, submitted);
    server.stop().await.expect("a clean end");
}
