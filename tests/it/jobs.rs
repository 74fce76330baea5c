//! A job's life, seen through gRPC.

use pacenote::job::Outcome;
use pacenote::job::event::JobError;
use pacenote::pb::job::State;

use crate::harness::{TestServer, folder, submit_request};

#[tokio::test]
async fn a_job_goes_from_submit_to_its_result() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let watch = server.watch(&job.job_id, Some(0)).await;
    let puppet = puppets.next().await;
    puppet.say("hello").await;
    puppet.succeed();
    let told = watch.to_end().await;
    let kinds: Vec<_> = told
        .events
        .iter()
        .map(|e| format!("{:?}", e.event))
        .collect();
    assert_eq!(told.sequences(), [1, 2, 3, 4], "{kinds:?}");
    let end = server.end_of(&job.job_id).await;
    assert_eq!(end.state(), State::Succeeded);
    assert_eq!(told.snapshots, [end]);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_until_its_budget_is_used_up() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    for attempt in 1..=3 {
        let puppet = puppets.next().await;
        assert_eq!(puppet.attempt.number, attempt);
        puppet.end(Outcome::Failed(JobError::retryable("BROKEN", "again")));
    }
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempts_charged), (State::Failed, 3));
    assert_eq!(end.error.expect("an error").reason, "BROKEN");
    server.stop().await.expect("a clean end");
}
