//! What becomes of jobs that are over: retried, deleted, one or many.

use pacenote::job::Outcome;
use pacenote::job::event::JobError;
use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::retry_many_response::{Retried, Skipped};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::harness::{
    Puppets, Setup, TestServer, folder, job_key, reason_of, soon, submit_request, watch_request,
};
use crate::life::{is_terminal, settings};

impl TestServer {
    async fn retry(&self, job_id: &str) -> Result<pb::RetryResponse, Status> {
        let job_id = job_id.to_owned();
        let answer = self.client.clone().retry(pb::RetryRequest { job_id }).await;
        answer.map(tonic::Response::into_inner)
    }

    async fn delete(&self, job_id: &str) -> Result<(), Status> {
        let job_id = job_id.to_owned();
        let answer = self
            .client
            .clone()
            .delete(pb::DeleteRequest { job_id })
            .await;
        answer.map(drop)
    }

    async fn retry_many(
        &self,
        request: pb::RetryManyRequest,
    ) -> Result<pb::RetryManyResponse, Status> {
        let answer = soon(self.client.clone().retry_many(request)).await;
        answer.map(tonic::Response::into_inner)
    }

    async fn delete_many(
        &self,
        request: pb::DeleteManyRequest,
    ) -> Result<pb::DeleteManyResponse, Status> {
        let answer = soon(self.client.clone().delete_many(request)).await;
        answer.map(tonic::Response::into_inner)
    }

    async fn ids(&self, request: pb::ListRequest) -> Vec<String> {
        let page = self.client.clone().list(request).await;
        let jobs = page.expect("good").into_inner().jobs;
        jobs.into_iter().map(|job| job.job_id).collect()
    }

    /// A job that has failed with a reason.
    async fn failed(&self, puppets: &Puppets, reason: &str) -> pb::Job {
        let (id, puppet) = self.begin(puppets).await;
        let error = JobError::permanent(reason, "it is");
        puppet.end(Outcome::Failed(error));
        self.end_of(&id).await
    }
}

fn metadata_of(status: &Status, name: &str) -> String {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has an ErrorInfo");
    info.metadata.get(name).cloned().unwrap_or_default()
}

fn refused_as<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    reason_of(&answer.expect_err("it is refused"))
}

#[tokio::test]
async fn a_retry_runs_the_same_input_in_a_new_job_and_asking_again_answers_it() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let request = pb::SubmitRequest {
        input: Some(pb::Payload {
            content: Some(pb::payload::Content::Text("in".to_owned())),
            ..Default::default()
        }),
        idempotency_key: "k".to_owned(),
        labels: [("team".to_owned(), "docs".to_owned())].into(),
        priority: 3,
        ..submit_request("puppet")
    };
    let old = server.submit(request).await;
    let refused = server.retry(&old.job_id).await.expect_err("it is not over");
    assert_eq!(
        reason_of(&refused),
        (Code::FailedPrecondition, "NOT_RETRYABLE".to_owned())
    );
    let puppet = puppets.next().await;
    puppet.end(Outcome::Failed(JobError::permanent("BAD", "it is")));
    let old = server.end_of(&old.job_id).await;

    let first = server.retry(&old.job_id).await.expect("it failed");
    assert!(!first.deduplicated);
    let new = first.job.expect("a job");
    assert_eq!(new.retry_of_job_id, old.job_id);
    assert_eq!((new.idempotency_key.as_str(), new.priority), ("", 3));
    assert_eq!(new.labels, old.labels);
    assert_eq!(server.get(&old.job_id).await.retried_by_job_id, new.job_id);
    let puppet = puppets.next().await;
    assert_eq!(puppet.attempt.key, job_key(&new.job_id));
    assert_eq!(puppet.attempt.input, Some(Payload::text("in")));
    puppet.succeed();
    assert_eq!(server.end_of(&new.job_id).await.state(), State::Succeeded);
    let again = server.retry(&old.job_id).await.expect("the same");
    assert!(again.deduplicated);
    let again = again.job.expect("a job");
    assert_eq!(
        (again.job_id, again.state),
        (new.job_id.clone(), State::Succeeded as i32)
    );

    let refused = server.retry(&new.job_id).await.expect_err("it succeeded");
    assert_eq!(metadata_of(&refused, "state"), "STATE_SUCCEEDED");
    server.delete(&new.job_id).await.expect("it is over");
    let refused = server
        .retry(&old.job_id)
        .await
        .expect_err("the retry is gone");
    assert_eq!(
        reason_of(&refused),
        (Code::FailedPrecondition, "NOT_RETRYABLE".to_owned())
    );
    assert_eq!(metadata_of(&refused, "retried_by_job_id"), new.job_id);
    assert_eq!(metadata_of(&refused, "state"), "STATE_FAILED");
    server.stop().await.expect("a clean end");
}

/// Goal: one retry a job (F59), whoever asks at once. Method: many callers, for each of a few jobs.
#[tokio::test]
async fn racing_retries_make_one_job() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    for _ in 0..5 {
        let old = server.failed(&puppets, "BAD").await;
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (mut client, job_id) = (server.client.clone(), old.job_id.clone());
            callers.spawn(async move { client.retry(pb::RetryRequest { job_id }).await });
        }
        let answers = soon(callers.join_all()).await;
        let answers = answers.into_iter().map(|answer| answer.expect("it failed"));
        let answers: Vec<pb::RetryResponse> = answers.map(tonic::Response::into_inner).collect();
        let made = answers.iter().filter(|answer| !answer.deduplicated);
        assert_eq!(made.count(), 1);
        let by = server.get(&old.job_id).await.retried_by_job_id;
        for answer in answers {
            assert_eq!(answer.job.expect("a job").job_id, by);
        }
        puppets.next().await.succeed();
        assert_eq!(server.end_of(&by).await.retry_of_job_id, old.job_id);
    }
    assert_eq!(server.ids(pb::ListRequest::default()).await.len(), 10);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_deleted_job_is_gone_with_its_key_and_its_watches_are_told() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let keyed = pb::SubmitRequest {
        idempotency_key: "k".to_owned(),
        ..submit_request("puppet")
    };
    let job = server.submit(keyed.clone()).await;
    let puppet = puppets.next().await;
    let expected = (Code::FailedPrecondition, "NOT_FINISHED".to_owned());
    assert_eq!(refused_as(server.delete(&job.job_id).await), expected);
    // More than any window holds, so that the watch still has to read when the job is gone.
    let watch = server.watch(&job.job_id, Some(0)).await;
    for _ in 0..14 {
        puppet.say(&"x".repeat(1_000_000)).await;
    }
    puppet.succeed();
    soon(async {
        while !is_terminal(server.get(&job.job_id).await.state()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.delete(&job.job_id).await.expect("it is over");
    let told = watch.to_error().await.1;
    assert_eq!(reason_of(&told), (Code::NotFound, "JOB_PURGED".to_owned()));
    let gone = (Code::NotFound, "JOB_NOT_FOUND".to_owned());
    assert_eq!(refused_as(server.delete(&job.job_id).await), gone);
    assert_eq!(refused_as(server.retry(&job.job_id).await), gone);
    assert_eq!(
        reason_of(&server.refused_watch(watch_request(&job.job_id)).await),
        gone
    );
    let nobody = Uuid::from_u128(1).to_string();
    assert_eq!(refused_as(server.delete(&nobody).await), gone);
    // The key makes another job, and the first one's log is no part of it.
    let other = server.submit(keyed).await;
    assert_ne!(other.job_id, job.job_id);
    puppets.next().await.succeed();
    server.end_of(&other.job_id).await;
    assert_eq!(server.log(&other.job_id).await.len(), 3);
    server.stop().await.expect("a clean end");
}

/// Goal: the flow of dead letters: find those of a reason, look, retry them all, delete the rest, a page at
/// a time. Method: as one would do it by hand, with the same filter throughout.
#[tokio::test]
async fn dead_letters_are_found_retried_and_deleted_by_one_filter() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let mut bad = Vec::new();
    for _ in 0..5 {
        bad.push(server.failed(&puppets, "BAD").await.job_id);
        server.failed(&puppets, "WORSE").await;
        let (_, puppet) = server.begin(&puppets).await;
        puppet.succeed();
    }
    bad.reverse();
    let list = pb::ListRequest {
        states: vec![State::Failed as i32],
        types: vec!["puppet".to_owned()],
        reasons: vec!["BAD".to_owned()],
        ended_after: server.get(&bad[4]).await.end_time,
        ..Default::default()
    };
    assert_eq!(server.ids(list.clone()).await, bad);
    let mut retry = pb::RetryManyRequest {
        page_size: 2,
        states: list.states.clone(),
        types: list.types.clone(),
        reasons: list.reasons.clone(),
        ended_after: list.ended_after,
        ..Default::default()
    };
    // One of them was retried by hand before.
    let by_hand = server.retry(&bad[1]).await.expect("it failed");
    puppets.next().await.succeed();
    let (mut retried, mut skipped) = (Vec::new(), Vec::new());
    let mut calls = 0;
    loop {
        let page = server.retry_many(retry.clone()).await.expect("good");
        calls += 1;
        retried.extend(page.retried);
        skipped.extend(page.skipped);
        retry.page_token = page.next_page_token;
        if retry.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(calls, 3);
    let before = Skipped {
        job_id: bad[1].clone(),
        reason: "NOT_RETRYABLE".to_owned(),
        new_job_id: by_hand.job.clone().unwrap_or_default().job_id,
    };
    assert_eq!(skipped, [before]);
    let old: Vec<_> = retried.iter().map(|one| one.job_id.clone()).collect();
    assert_eq!(old, [0, 2, 3, 4].map(|index| bad[index].clone()));
    for Retried { job_id, new_job_id } in &retried {
        assert_eq!(&server.get(new_job_id).await.retry_of_job_id, job_id);
        puppets.next().await.succeed();
    }
    for one in &retried {
        server.end_of(&one.new_job_id).await;
    }
    let delete = pb::DeleteManyRequest {
        page_size: 3,
        states: list.states.clone(),
        types: list.types.clone(),
        reasons: list.reasons.clone(),
        ended_after: list.ended_after,
        ..Default::default()
    };
    let first = server.delete_many(delete.clone()).await.expect("good");
    assert_eq!(first.deleted_count, 3);
    let second = pb::DeleteManyRequest {
        page_token: first.next_page_token,
        ..delete
    };
    let second = server.delete_many(second).await.expect("good");
    assert_eq!(
        (second.deleted_count, second.next_page_token),
        (2, String::new())
    );
    assert_eq!(server.ids(list).await, Vec::<String>::new());
    let by_hand = by_hand.job.expect("a job").job_id;
    assert_eq!(server.end_of(&by_hand).await.state(), State::Succeeded);
    server.stop().await.expect("a clean end");
}

/// Goal: what cannot go on says what it did, and the next call says why; nothing is retried twice. Method:
/// more dead letters than may wait.
#[tokio::test]
async fn retrying_many_stops_where_no_more_may_wait_and_goes_on_later() {
    let dir = folder();
    let puppets = Puppets::default();
    let one = settings(|settings| settings.concurrency = Some(1));
    let setup = Setup::on(dir.path())
        .config(|config| config.waiting_max = 12)
        .job_type_with("puppet", one, puppets.clone());
    let server = setup.start().await;
    for _ in 0..20 {
        server.failed(&puppets, "BAD").await;
    }
    let (_, blocker) = server.begin(&puppets).await;
    let retry = pb::RetryManyRequest::default();
    let first = server.retry_many(retry.clone()).await.expect("some of it");
    assert_eq!((first.retried.len(), first.skipped.len()), (12, 0));
    assert!(!first.next_page_token.is_empty());
    let next = pb::RetryManyRequest {
        page_token: first.next_page_token,
        ..retry
    };
    let refused = server.retry_many(next.clone()).await;
    let expected = (Code::ResourceExhausted, "WAITING_LIMIT".to_owned());
    assert_eq!(refused_as(refused), expected);
    blocker.succeed();
    for one in &first.retried {
        puppets.next().await.succeed();
        server.end_of(&one.new_job_id).await;
    }
    let (_, blocker) = server.begin(&puppets).await;
    let rest = server.retry_many(next).await.expect("there is room");
    assert_eq!((rest.retried.len(), rest.skipped.len()), (8, 0));
    assert_eq!(rest.next_page_token, "");
    blocker.succeed();
    for _ in &rest.retried {
        puppets.next().await.succeed();
    }
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn deleting_many_leaves_what_is_not_finished_and_all_is_said_out_loud() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    server.failed(&puppets, "BAD").await;
    let (running, puppet) = server.begin(&puppets).await;
    let (_, other) = server.begin(&puppets).await;
    other.succeed();
    let nothing = pb::DeleteManyRequest::default();
    let refused = server.delete_many(nothing.clone()).await;
    assert_eq!(
        refused_as(refused),
        (Code::InvalidArgument, "INVALID_FIELD".to_owned())
    );
    soon(async {
        let over = pb::ListRequest {
            states: vec![State::Failed as i32, State::Succeeded as i32],
            ..Default::default()
        };
        while server.ids(over.clone()).await.len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let all = pb::DeleteManyRequest {
        all: true,
        ..nothing
    };
    let deleted = server.delete_many(all).await.expect("good");
    assert_eq!(
        (deleted.deleted_count, deleted.next_page_token),
        (2, String::new())
    );
    assert_eq!(server.ids(pb::ListRequest::default()).await, [running]);
    puppet.succeed();
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_retry_while_the_server_drains_is_refused() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let old = server.failed(&puppets, "BAD").await;
    server.queue.drain();
    let expected = (Code::Unavailable, "SERVER_DRAINING".to_owned());
    assert_eq!(refused_as(server.retry(&old.job_id).await), expected);
    let many = server.retry_many(pb::RetryManyRequest::default()).await;
    assert_eq!(refused_as(many), expected);
    server.stop().await.expect("a clean end");
}
