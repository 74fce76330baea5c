//! Submitting once and only once: idempotency keys, races for them, and refusals that leave no trace.

use futures_util::future::join_all;
use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::wire;
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{TestServer, connect, folder, reason_of, soon, submit_request, watch_request};

fn keyed(key: &str) -> pb::SubmitRequest {
    let input = Payload::json(&json!({"a": 1, "b": [true]})).expect("JSON");
    pb::SubmitRequest {
        input: Some(wire::to_payload(input)),
        idempotency_key: key.to_owned(),
        labels: [("team".to_owned(), "a".to_owned())].into(),
        ..submit_request("puppet")
    }
}

fn of_key(key: &str) -> pb::ListRequest {
    pb::ListRequest {
        idempotency_key: key.to_owned(),
        ..pb::ListRequest::default()
    }
}

#[tokio::test]
async fn the_same_request_with_a_key_is_the_same_job_in_every_state() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let mut client = server.client.clone();
    let first = client.submit(keyed("k")).await.expect("good").into_inner();
    assert!(!first.deduplicated);
    let job_id = first.job.expect("a job").job_id;
    let again = async |state: State| {
        let answer = server.client.clone().submit(keyed("k")).await;
        let answer = answer.expect("the same request").into_inner();
        let job = answer.job.expect("a job");
        assert!(answer.deduplicated);
        assert_eq!((job.job_id.as_str(), job.state()), (job_id.as_str(), state));
    };
    let puppet = puppets.next().await;
    again(State::Running).await;
    server.cancel(&job_id).await;
    again(State::Cancelling).await;
    puppet.succeed();
    server.end_of(&job_id).await;
    again(State::Cancelled).await;
    assert!(puppets.is_idle().await, "it ran once");
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn another_request_with_a_used_key_is_refused_and_names_the_job() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(keyed("k")).await;
    let text = |text: &str| Some(wire::to_payload(Payload::text(text)));
    let others = [
        pb::SubmitRequest {
            queue: "other".to_owned(),
            ..keyed("k")
        },
        // Said out loud or left to the default is not the same request.
        pb::SubmitRequest {
            queue: "default".to_owned(),
            ..keyed("k")
        },
        pb::SubmitRequest {
            priority: 1,
            ..keyed("k")
        },
        pb::SubmitRequest {
            labels: [].into(),
            ..keyed("k")
        },
        pb::SubmitRequest {
            input: None,
            ..keyed("k")
        },
        pb::SubmitRequest {
            input: text("{\"a\":1,\"b\":[true]}"),
            ..keyed("k")
        },
        pb::SubmitRequest {
            r#type: "sleep".to_owned(),
            input: text("{}"),
            ..keyed("k")
        },
    ];
    for (index, other) in others.into_iter().enumerate() {
        let refused = server.client.clone().submit(other).await;
        let refused = refused.expect_err("another request");
        let (code, reason) = reason_of(&refused);
        // The last one's type may refuse its input first: either way no job.
        if index == 6 && code == Code::InvalidArgument {
            continue;
        }
        assert_eq!(
            (code, reason.as_str()),
            (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED"),
            "{index}"
        );
        let details = refused.get_error_details();
        let metadata = &details.error_info().expect("an ErrorInfo").metadata;
        assert_eq!(metadata["job_id"], job.job_id);
    }
    assert_eq!(server.all_jobs(pb::ListRequest::default()).await.len(), 1);
    puppets.next().await.succeed();
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn equal_json_is_the_same_request_however_it_was_written() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(keyed("k")).await;
    // Maps have no order on the wire, and a number is a double: only the text form could differ.
    let input = Payload::json(&serde_json::from_str("{\"b\":[true],\"a\":1.0}").expect("JSON"));
    let same = pb::SubmitRequest {
        input: Some(wire::to_payload(input.expect("JSON"))),
        ..keyed("k")
    };
    assert_eq!(server.submit(same).await.job_id, job.job_id);
    puppets.next().await.succeed();
    server.stop().await.expect("a clean end");
}

/// Goal: a key makes one job however many ask at once. Method: twenty rounds of a hundred submits over
/// four connections, all in flight together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_submits_that_race_with_one_key_make_one_job() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(connect(&server.address).await);
    }
    for round in 0..20 {
        let key = format!("round {round}");
        let submits = (0..100).map(|number| {
            let mut client = clients[number % clients.len()].clone();
            let request = keyed(&key);
            tokio::spawn(async move { client.submit(request).await })
        });
        let answers: Vec<_> = soon(join_all(submits)).await;
        let answers: Vec<pb::SubmitResponse> = answers
            .into_iter()
            .map(|answer| answer.expect("no panic").expect("good").into_inner())
            .collect();
        let new = answers.iter().filter(|answer| !answer.deduplicated).count();
        assert_eq!(new, 1, "{key}");
        let id = |answer: &pb::SubmitResponse| answer.job.as_ref().expect("a job").job_id.clone();
        assert!(
            answers.iter().all(|answer| id(answer) == id(&answers[0])),
            "{key}"
        );
        assert_eq!(server.all_jobs(of_key(&key)).await.len(), 1, "{key}");
        puppets.next().await.succeed();
        server.end_of(&id(&answers[0])).await;
    }
    assert!(puppets.is_idle().await);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_key_is_kept_over_a_restart() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(keyed("k")).await;
    puppets.next().await.succeed();
    server.end_of(&job.job_id).await;
    server.stop().await.expect("a clean end");

    let (server, puppets) = TestServer::with_puppets(&dir).await;
    assert_eq!(server.submit(keyed("k")).await.job_id, job.job_id);
    let other = pb::SubmitRequest {
        priority: 1,
        ..keyed("k")
    };
    let refused = server
        .client
        .clone()
        .submit(other)
        .await
        .expect_err("another");
    assert_eq!(reason_of(&refused).1, "IDEMPOTENCY_KEY_REUSED");
    assert!(puppets.is_idle().await);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_refused_submit_stores_nothing_and_leaves_its_key_free() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let bad = pb::SubmitRequest {
        priority: 1_001,
        ..keyed("k")
    };
    server
        .client
        .clone()
        .submit(bad.clone())
        .await
        .expect_err("out of bounds");
    let run = pb::RunRequest {
        submit: Some(bad),
        ..pb::RunRequest::default()
    };
    server
        .client
        .clone()
        .run(run)
        .await
        .expect_err("out of bounds");
    let unknown = pb::SubmitRequest {
        r#type: "pupet".to_owned(),
        ..keyed("k")
    };
    let refused = server
        .client
        .clone()
        .submit(unknown)
        .await
        .expect_err("unknown");
    assert_eq!(
        reason_of(&refused),
        (Code::InvalidArgument, "UNKNOWN_TYPE".to_owned())
    );
    assert!(
        refused.message().contains("puppet"),
        "{}",
        refused.message()
    );
    assert!(server.all_jobs(pb::ListRequest::default()).await.is_empty());
    assert!(puppets.is_idle().await);
    let good = server
        .client
        .clone()
        .submit(keyed("k"))
        .await
        .expect("good");
    assert!(!good.into_inner().deduplicated);
    puppets.next().await.succeed();
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn without_a_key_two_submits_are_two_jobs() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (first, second) = (
        server.submit(keyed("")).await,
        server.submit(keyed("")).await,
    );
    assert_ne!(first.job_id, second.job_id);
    for _ in 0..2 {
        puppets.next().await.succeed();
    }
    // Whoever was told of a job can look at it and watch it at once.
    let watch = server.try_watch(watch_request(&second.job_id)).await;
    watch.expect("a watch").to_end().await;
    server.stop().await.expect("a clean end");
}
