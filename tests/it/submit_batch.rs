//! Jobs that are submitted together: all or none, each with its own key, every bad one named.

use std::collections::BTreeSet;

use pacenote::pb;
use pacenote::pb::job::State;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::bounds::{Call, MEBIBYTE, check, text};
use crate::harness::{Puppets, Setup, TestServer, bad_fields, folder, reason_of, submit_request};
use crate::life::settings;

/// A server whose jobs wait behind one that runs.
async fn start(dir: &tempfile::TempDir) -> (TestServer, Puppets) {
    let puppets = Puppets::default();
    let one = settings(|settings| settings.concurrency = Some(1));
    let setup = Setup::on(dir.path())
        .config(|config| config.drain_timeout = std::time::Duration::ZERO)
        .job_type_with("puppet", one, puppets.clone());
    (setup.start().await, puppets)
}

fn keyed(key: &str) -> pb::SubmitRequest {
    pb::SubmitRequest {
        idempotency_key: key.to_owned(),
        ..submit_request("puppet")
    }
}

fn unique(key: &str, on_conflict: pb::unique_policy::OnConflict) -> pb::SubmitRequest {
    pb::SubmitRequest {
        unique: Some(pb::UniquePolicy {
            key: key.to_owned(),
            on_conflict: on_conflict.into(),
            window: None,
        }),
        ..submit_request("puppet")
    }
}

async fn batch(
    server: &TestServer,
    requests: Vec<pb::SubmitRequest>,
) -> Result<pb::BatchSubmitResponse, Status> {
    let request = pb::BatchSubmitRequest { requests };
    let answer = server.client.clone().batch_submit(request).await;
    answer.map(tonic::Response::into_inner)
}

fn ids(answer: &pb::BatchSubmitResponse) -> Vec<String> {
    let jobs = answer.responses.iter().map(|one| one.job.as_ref());
    jobs.map(|job| job.expect("a job").job_id.clone()).collect()
}

async fn stored(server: &TestServer) -> Vec<pb::Job> {
    server.all_jobs(pb::ListRequest::default()).await
}

#[tokio::test]
async fn a_batch_answers_in_the_order_of_its_requests() {
    let dir = folder();
    let (server, _puppets) = start(&dir).await;
    let requests: Vec<_> = (0..1_000)
        .map(|number| pb::SubmitRequest {
            priority: number,
            ..submit_request("puppet")
        })
        .collect();
    let answer = batch(&server, requests).await.expect("a good batch");
    assert!(uuid::Uuid::parse_str(&answer.batch_id).is_ok_and(|id| id.get_version_num() == 7));
    assert_eq!(answer.responses.len(), 1_000);
    for (number, one) in (0..).zip(&answer.responses) {
        let job = one.job.as_ref().expect("a job");
        assert!(!one.deduplicated);
        assert_eq!((job.priority, &job.batch_id), (number, &answer.batch_id));
        assert_eq!(job.last_sequence, 1);
    }
    assert_eq!(stored(&server).await.len(), 1_000);
    let ids: BTreeSet<_> = ids(&answer).into_iter().collect();
    assert_eq!(ids.len(), 1_000, "each is a job of its own");
    drop(server);
}

#[tokio::test]
async fn a_batch_is_taken_up_to_its_limit_and_refused_one_past_it() {
    let dir = folder();
    let (server, _puppets) = start(&dir).await;
    let of = |count| {
        Call::Batch(pb::BatchSubmitRequest {
            requests: vec![submit_request("puppet"); count],
        })
    };
    check(&server, of(0), Some("requests")).await;
    check(&server, of(1_001), Some("requests")).await;
    assert_eq!(stored(&server).await.len(), 0);
    check(&server, of(1), None).await;
    check(&server, of(1_000), None).await;
    let whole = pb::SubmitRequest {
        input: text(MEBIBYTE - 4),
        ..submit_request("puppet")
    };
    let requests = vec![whole; 4];
    check(
        &server,
        Call::Batch(pb::BatchSubmitRequest { requests }),
        Some("request"),
    )
    .await;
    drop(server);
}

#[tokio::test]
async fn every_bad_item_of_a_batch_is_named_and_nothing_is_stored() {
    let dir = folder();
    let (server, _puppets) = start(&dir).await;
    let bad = pb::SubmitRequest {
        priority: 1_001,
        queue: "a//b".to_owned(),
        ..keyed("bad")
    };
    let only_checked = pb::SubmitRequest {
        validate_only: true,
        ..submit_request("puppet")
    };
    let requests = vec![
        keyed("good"),
        bad.clone(),
        submit_request("pupet"),
        only_checked,
        bad,
    ];
    let refused = batch(&server, requests).await.expect_err("four are bad");
    assert_eq!(
        reason_of(&refused),
        (Code::InvalidArgument, "INVALID_FIELD".to_owned())
    );
    let mut fields = bad_fields(&refused);
    fields.sort();
    let expected = [
        "requests[1].priority",
        "requests[1].queue",
        "requests[2].type",
        "requests[3].validate_only",
        "requests[4].priority",
        "requests[4].queue",
    ];
    assert_eq!(fields, expected);
    assert_eq!(stored(&server).await.len(), 0);
    for key in ["good", "bad"] {
        let answer = server.client.clone().submit(keyed(key)).await;
        assert!(!answer.expect("its key is free").into_inner().deduplicated);
    }
    drop(server);
}

#[tokio::test]
async fn items_that_contradict_each_other_are_named() {
    use pb::unique_policy::OnConflict::{CancelRunning, Reject, ReplaceWaiting, ReturnExisting};
    let dir = folder();
    let (server, _puppets) = start(&dir).await;
    let requests = vec![
        keyed("k"),
        keyed("k"),
        pb::SubmitRequest {
            priority: 1,
            ..keyed("k")
        },
        unique("u", Reject),
        unique("u", ReturnExisting),
        unique("u", Reject),
        unique("u", ReplaceWaiting),
        unique("u", CancelRunning),
        unique("v", CancelRunning),
    ];
    let refused = batch(&server, requests.clone())
        .await
        .expect_err("it contradicts itself");
    let expected = [
        "requests[2].idempotency_key",
        "requests[5].unique",
        "requests[6].unique",
        "requests[7].unique",
    ];
    assert_eq!(bad_fields(&refused), expected);
    assert!(
        refused.message().contains("requests[0]"),
        "{}",
        refused.message()
    );
    assert_eq!(stored(&server).await.len(), 0);

    let good = [0, 1, 3, 4, 8].map(|index| requests[index].clone());
    let answer = batch(&server, good.to_vec())
        .await
        .expect("no contradiction");
    let flags: Vec<bool> = answer
        .responses
        .iter()
        .map(|one| one.deduplicated)
        .collect();
    assert_eq!(flags, [false, true, false, true, false]);
    let ids = ids(&answer);
    assert_eq!((&ids[0], &ids[2]), (&ids[1], &ids[3]));
    assert_eq!(stored(&server).await.len(), 3);
    drop(server);
}

#[tokio::test]
async fn a_batch_that_is_resent_is_the_first_one() {
    let dir = folder();
    let (server, _puppets) = start(&dir).await;
    let requests = |keys: &[&str]| keys.iter().map(|key| keyed(key)).collect::<Vec<_>>();
    let first = batch(&server, requests(&["a", "b"])).await.expect("good");
    let again = batch(&server, requests(&["b", "a"])).await.expect("good");
    assert_eq!(again.batch_id, first.batch_id);
    assert!(again.responses.iter().all(|one| one.deduplicated));
    let mut reversed = ids(&again);
    reversed.reverse();
    assert_eq!(reversed, ids(&first));

    // One more: the old ones keep their batch, the new one has one of its own.
    let more = batch(&server, requests(&["a", "c"])).await.expect("good");
    assert_ne!(more.batch_id, first.batch_id);
    let batches = more.responses.iter().map(|one| {
        let job = one.job.as_ref().expect("a job");
        (one.deduplicated, job.batch_id.clone())
    });
    let batches = batches.collect::<Vec<_>>();
    let expected = [
        (true, first.batch_id.clone()),
        (false, more.batch_id.clone()),
    ];
    assert_eq!(batches, expected);

    // All of them known, of two batches, or of none.
    let mixed = batch(&server, requests(&["a", "c"])).await.expect("good");
    assert_eq!(mixed.batch_id, "");
    server.submit(keyed("alone")).await;
    let alone = batch(&server, requests(&["alone"])).await.expect("good");
    assert_eq!(alone.batch_id, "");
    assert_eq!(stored(&server).await.len(), 4);
    drop(server);
}

#[tokio::test]
async fn a_batch_with_a_used_key_or_a_taken_place_is_refused_item_by_item() {
    use pb::unique_policy::OnConflict::Reject;
    let dir = folder();
    let (server, _puppets) = start(&dir).await;
    let used = server.submit(keyed("k")).await;
    server.submit(unique("u", Reject)).await;
    let other = pb::SubmitRequest {
        priority: 1,
        ..keyed("k")
    };
    let requests = vec![keyed("new"), other, unique("u", Reject)];
    let refused = batch(&server, requests).await.expect_err("two are taken");
    let expected = (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED".to_owned());
    assert_eq!(reason_of(&refused), expected);
    let details = refused.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!(info.metadata["job_id"], used.job_id);
    let bad = details.bad_request().expect("a BadRequest");
    let told = bad
        .field_violations
        .iter()
        .map(|v| (v.field.as_str(), v.reason.as_str()));
    let told = told.collect::<Vec<_>>();
    let expected = [
        ("requests[1].idempotency_key", "IDEMPOTENCY_KEY_REUSED"),
        ("requests[2].unique", "UNIQUE_CONFLICT"),
    ];
    assert_eq!(told, expected);
    assert_eq!(stored(&server).await.len(), 2);
    let free = server.client.clone().submit(keyed("new")).await;
    assert!(!free.expect("its key is free").into_inner().deduplicated);
    drop(server);
}

/// Goal: a batch is on disk, whole, once it was answered. Method: another server on the same store.
#[tokio::test]
async fn a_batch_outlives_its_server() {
    let dir = folder();
    let (server, puppets) = start(&dir).await;
    let requests = vec![keyed("a"), keyed("b"), keyed("c")];
    let first = batch(&server, requests.clone()).await.expect("good");
    drop(puppets.next().await);
    server.stop().await.expect("a clean end");
    let (server, _puppets) = start(&dir).await;
    let again = batch(&server, requests).await.expect("good");
    assert_eq!(
        (&again.batch_id, ids(&again)),
        (&first.batch_id, ids(&first))
    );
    assert_eq!(server.get(&ids(&first)[1]).await.batch_id, first.batch_id);
    drop(server);
}

#[tokio::test]
async fn the_jobs_of_a_batch_run() {
    let dir = folder();
    let (server, puppets) = start(&dir).await;
    let requests = vec![submit_request("puppet"); 3];
    let answer = batch(&server, requests).await.expect("good");
    for _ in 0..3 {
        puppets.next().await.succeed();
    }
    for id in ids(&answer) {
        assert_eq!(server.end_of(&id).await.state(), State::Succeeded);
    }
    server.stop().await.expect("a clean end");
}
