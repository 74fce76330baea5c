//! How a watch begins and what it tells on the way: lines 1 to 4, 8 and 9 of the watch contract.

use std::time::Duration;

use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::watch_job_response::Content;
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{
    Setup, TestServer, bad_fields, folder, log_line, output, progress, proto_duration, reason_of,
    submit_request, watch_request,
};

/// Line 1.
#[tokio::test]
async fn a_watch_of_an_unknown_job_is_not_found_at_once() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    for after_sequence in [None, Some(0), Some(7)] {
        let request = pb::WatchJobRequest {
            after_sequence,
            ..watch_request("0190b0a0-0000-7000-8000-000000000000")
        };
        let status = server.refused_watch(request).await;
        let expected = (Code::NotFound, "JOB_NOT_FOUND".to_owned());
        assert_eq!(reason_of(&status), expected);
    }
    let status = server.refused_watch(watch_request("no id")).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(bad_fields(&status), ["job_id"]);
    assert_eq!(server.queue.open_watches(), 0);
    server.stop().await.expect("a clean end");
}

/// Line 1: the answer to a submit comes after its commit.
#[tokio::test]
async fn a_job_that_was_acknowledged_can_be_watched() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    for _ in 0..50 {
        let job = server.submit(submit_request("puppet")).await;
        let told = server.watch(&job.job_id, Some(0)).await.until(1).await;
        assert_eq!(told.sequences()[0], 1);
    }
}

/// Line 2.
#[tokio::test]
async fn without_a_cursor_a_snapshot_comes_first_and_then_what_comes_after_it() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    puppet.store(&server.queue, vec![output("before")]).await;
    let mut watch = server.watch(&id, None).await;
    let first = watch.next_content().await;
    let Some(Content::Snapshot(job)) = first.content else {
        panic!("{first:?}")
    };
    assert_eq!((job.state(), job.last_sequence), (State::Running, 3));
    assert_eq!(first.through_sequence, 3);
    puppet.store(&server.queue, vec![output("after")]).await;
    puppet.succeed();
    let told = watch.to_end().await;
    assert_eq!(told.sequences(), [4, 5]);
    assert_eq!(told.snapshots.len(), 1, "the final one");
    server.stop().await.expect("a clean end");
}

/// Line 2.
#[tokio::test]
async fn with_a_cursor_the_events_after_it_come_and_no_snapshot_first() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    for text in ["a", "b", "c"] {
        puppet.store(&server.queue, vec![output(text)]).await;
    }
    for after in 0..=4 {
        let mut watch = server.watch(&id, Some(after)).await;
        let first = watch.next_content().await;
        let Some(Content::Events(batch)) = first.content else {
            panic!("{first:?}")
        };
        let events = batch.decoded().expect("events");
        assert_eq!(events[0].sequence, after + 1);
        let sequences: Vec<i64> = events.iter().map(|event| event.sequence).collect();
        assert_eq!(sequences, ((after + 1)..=5).collect::<Vec<_>>());
    }
}

/// Line 3. Kept ones and live ones are one sequence: the watch begins in the middle of the job.
#[tokio::test]
async fn events_come_dense_ascending_and_once_from_the_log_and_live() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut watches = Vec::new();
    for round in 0..20 {
        watches.push(server.watch(&id, Some(0)).await);
        let reports = (0..round).map(|n| output(n.to_string())).collect();
        puppet.store(&server.queue, reports).await;
    }
    puppet.succeed();
    let log = server.end_of(&id).await.last_sequence;
    for watch in watches {
        let told = watch.to_end().await;
        assert_eq!(told.sequences(), (1..=log).collect::<Vec<_>>());
        assert_eq!(told.events, server.log(&id).await);
    }
    server.stop().await.expect("a clean end");
}

/// Line 4: hidden events move the cursor, and only once what was sent has been sent.
///
/// Method: a watch for log lines alone; every message's cursor lies before the next shown event.
#[tokio::test]
async fn hidden_events_move_through_sequence_and_never_past_what_is_shown() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let request = pb::WatchJobRequest {
        after_sequence: Some(0),
        event_types: vec![pb::EventType::Log as i32],
        heartbeat_interval: Some(proto_duration(Duration::from_secs(1))),
        ..watch_request(&id)
    };
    let mut watch = server.try_watch(request).await.expect("a watch");
    let hidden = watch.next().await.expect("no error").expect("no end");
    assert!(matches!(hidden.content, Some(Content::Heartbeat(_))));
    assert_eq!(hidden.through_sequence, 2, "all there is is hidden");
    for _ in 0..3 {
        let reports = vec![output("hidden"), log_line("shown"), output("hidden")];
        puppet.store(&server.queue, reports).await;
    }
    puppet.succeed();
    let mut through = 2;
    let mut shown = Vec::new();
    while let Some(message) = watch.next().await.expect("no error") {
        if let Some(Content::Events(batch)) = &message.content {
            let events = batch.decoded().expect("events");
            assert!(events.iter().all(|event| event.sequence > through));
            shown.extend(events.iter().map(|event| event.sequence));
        }
        let unsent = [4, 7, 10]
            .into_iter()
            .find(|sequence| !shown.contains(sequence));
        assert!(message.through_sequence < unsent.unwrap_or(i64::MAX));
        through = message.through_sequence;
    }
    assert_eq!((shown, through), (vec![4, 7, 10], 12));
    server.stop().await.expect("a clean end");
}

/// Lines 4 and 14: a sign of life carries what was sent, not the head of the log.
#[tokio::test]
async fn a_heartbeat_does_not_run_ahead_of_progress_that_is_held_back() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    puppet
        .store(&server.queue, vec![progress(0.1), log_line("a")])
        .await;
    let request = pb::WatchJobRequest {
        after_sequence: Some(0),
        min_progress_interval: Some(proto_duration(Duration::from_secs(3600))),
        heartbeat_interval: Some(proto_duration(Duration::from_secs(1))),
        event_types: vec![pb::EventType::Progress as i32],
        ..watch_request(&id)
    };
    let mut watch = server.try_watch(request).await.expect("a watch");
    assert_eq!(watch.until(3).await.sequences(), [3]);
    // Held back, and followed by what the filter hides.
    puppet
        .store(&server.queue, vec![progress(0.2), log_line("b")])
        .await;
    for _ in 0..2 {
        let message = watch.next().await.expect("no error").expect("no end");
        assert!(
            matches!(message.content, Some(Content::Heartbeat(_))),
            "{message:?}"
        );
        assert_eq!(message.through_sequence, 4, "5 is held back");
    }
    puppet.succeed();
    let told = watch.to_end().await;
    assert_eq!((told.sequences(), told.through), (vec![5], 7));
    server.stop().await.expect("a clean end");
}

/// Line 8: the codes that tell a client to stop.
#[tokio::test]
async fn a_watch_that_is_asked_for_wrongly_is_told_every_bad_field_at_once() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, _puppet) = server.begin(&puppets).await;
    let negative = pb::WatchJobRequest {
        after_sequence: Some(-1),
        ..watch_request(&id)
    };
    let status = server.refused_watch(negative).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(bad_fields(&status), ["after_sequence"]);
    let request = pb::WatchJobRequest {
        job_id: "x".to_owned(),
        event_types: vec![0, 1, 99],
        min_progress_interval: Some(prost_types::Duration {
            seconds: -1,
            nanos: 0,
        }),
        heartbeat_interval: Some(prost_types::Duration::default()),
        ..pb::WatchJobRequest::default()
    };
    let mut fields = bad_fields(&server.refused_watch(request).await);
    fields.sort();
    let expected = [
        "event_types[0]",
        "event_types[2]",
        "heartbeat_interval",
        "job_id",
        "min_progress_interval",
    ];
    assert_eq!(fields, expected);
}

/// Line 9.
#[tokio::test]
async fn a_drain_ends_watches_with_unavailable_and_says_when_to_come_back() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut watch = server.watch(&id, Some(0)).await;
    watch.until(2).await;
    let run = pb::RunRequest {
        submit: Some(submit_request("puppet")),
        ..pb::RunRequest::default()
    };
    let run = server.client.clone().run(run).await.expect("a run");
    let other = puppets.next().await;
    server.begin_stop();
    let (_, status) = watch.to_error().await;
    let expected = (Code::Unavailable, "SERVER_DRAINING".to_owned());
    assert_eq!(reason_of(&status), expected);
    let details = status.get_error_details();
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    assert!(retry.is_some_and(|delay| !delay.is_zero()), "{details:?}");
    let mut run = run.into_inner();
    let status = loop {
        match run.message().await {
            Ok(message) => assert!(message.is_some(), "a drain is no OK"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason_of(&status), expected);
    // And who comes while it drains.
    let status = server.refused_watch(watch_request(&id)).await;
    assert_eq!(reason_of(&status), expected);
    puppet.succeed();
    other.succeed();
    server.stop().await.expect("a clean end");
}

/// Line 9, at the limit and one past it; a watch that ends makes room.
#[tokio::test]
async fn one_watch_more_than_the_limit_is_refused_until_another_ends() {
    let dir = folder();
    let puppets = crate::harness::Puppets::default();
    let server = Setup::on(dir.path())
        .config(|config| config.watchers_max = 2)
        .job_type("puppet", puppets.clone())
        .start()
        .await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut one = server.watch(&id, Some(0)).await;
    let two = server.watch(&id, Some(0)).await;
    one.until(2).await;
    let expected = (Code::ResourceExhausted, "WATCHER_LIMIT".to_owned());
    let status = server.refused_watch(watch_request(&id)).await;
    assert_eq!(reason_of(&status), expected);
    let details = status.get_error_details();
    assert!(
        details
            .retry_info()
            .is_some_and(|info| info.retry_delay.is_some())
    );
    assert!(details.quota_failure().is_some());
    // A Run that could not be watched does not begin at all.
    let run = pb::RunRequest {
        submit: Some(submit_request("puppet")),
        ..pb::RunRequest::default()
    };
    let status = server.client.clone().run(run).await.expect_err("refused");
    assert_eq!(reason_of(&status), expected);
    let list = server.client.clone().list(pb::ListRequest::default()).await;
    assert_eq!(list.expect("a page").into_inner().jobs.len(), 1);

    drop(two);
    let queue = server.queue.clone();
    crate::harness::eventually("a place is free", || queue.open_watches() < 2).await;
    let three = server.watch(&id, Some(0)).await;
    puppet.succeed();
    assert_eq!(three.to_end().await.sequences(), [1, 2, 3]);
    server.stop().await.expect("a clean end");
}
