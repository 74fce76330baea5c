//! How fast and in what portions a watch tells: lines 5 and 14 of the watch contract.

use std::time::Duration;

use futures_util::FutureExt;
use pacenote::job::event::EventTag;
use pacenote::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use pacenote::pb;
use pacenote::pb::watch_job_response::Content;
use pacenote::queue::{Watch, WatchContent, WatchOptions};
use tokio::time::Instant;
use tonic::Code;

use crate::harness::{
    TestServer, bad_fields, folder, job_key, output, progress, proto_duration, soon, watch_request,
};

/// The time within which events travel together, as the contract says it.
const TOGETHER: Duration = Duration::from_millis(25);

/// A watch in this process, which moves only when it is asked to.
async fn pulled(server: &TestServer, id: &str) -> Watch {
    let options = WatchOptions {
        after_sequence: Some(0),
        ..WatchOptions::default()
    };
    let watch = server.queue.watch(&job_key(id), options).await;
    watch.expect("a watch")
}

/// What it has to say without waiting, as sequences.
fn at_once(watch: &mut Watch) -> Option<Vec<i64>> {
    let message = watch.next().now_or_never()?;
    let message = message.expect("no error").expect("no end");
    let WatchContent::Events(events) = message.content else {
        panic!("{message:?}")
    };
    Some(events.iter().map(|event| event.sequence).collect())
}

/// Line 5: what comes within 25 ms of a message waits, a change of state does not, and takes along what
/// waits.
///
/// Method: poll once and never wait. A round in which the machine took longer than 25 ms says nothing
/// and is repeated.
#[tokio::test]
async fn a_change_of_state_is_sent_at_once_with_what_waits_before_it() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    for _ in 0..200 {
        let (id, puppet) = server.begin(&puppets).await;
        let mut watch = pulled(&server, &id).await;
        soon(watch.next()).await.expect("no error");
        let given = Instant::now();
        puppet.store(&server.queue, vec![output("waits")]).await;
        let waited = at_once(&mut watch);
        if given.elapsed() >= TOGETHER {
            continue;
        }
        assert_eq!(waited, None, "it waits for its 25 ms");
        server
            .queue
            .cancel(&job_key(&id), String::new())
            .await
            .expect("it runs");
        let told = at_once(&mut watch);
        if given.elapsed() >= TOGETHER {
            continue;
        }
        assert_eq!(
            told,
            Some(vec![3, 4, 5]),
            "output, cancel requested, CANCELLING"
        );

        return;
    }
    panic!("the machine never did one round in 25 ms");
}

/// Line 5.
#[tokio::test]
async fn the_first_event_after_quiet_is_sent_at_once() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut watch = pulled(&server, &id).await;
    soon(watch.next()).await.expect("no error");
    for sequence in 3..8 {
        tokio::time::sleep(TOGETHER).await;
        puppet.store(&server.queue, vec![output("x")]).await;
        assert_eq!(at_once(&mut watch), Some(vec![sequence]));
    }
}

/// Line 5, through gRPC: a burst of single commits comes in few messages.
#[tokio::test]
async fn a_burst_travels_together() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut watch = server.watch(&id, Some(2)).await;
    let began = Instant::now();
    let reading = tokio::spawn(async move {
        let told = watch.until(302).await;
        (watch, told)
    });
    for _ in 0..300 {
        puppet.store(&server.queue, vec![output("x")]).await;
    }
    let (watch, told) = reading.await.expect("no panic");
    let windows = began.elapsed().as_millis() / TOGETHER.as_millis();
    assert_eq!(told.sequences(), (3..=302).collect::<Vec<_>>());
    assert!(
        told.messages as u128 <= windows + 2,
        "{} in {windows} windows",
        told.messages
    );
    puppet.succeed();
    watch.to_end().await;
    server.stop().await.expect("a clean end");
}

/// Line 5: who is behind gets full batches, within both bounds, and a larger event alone.
#[tokio::test]
async fn who_is_behind_gets_batches_of_at_most_256_events_or_256_kib() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    // Commits of odd sizes, so that batches and segments do not fall together.
    let (id, puppet) = server.begin(&puppets).await;
    for _ in 0..30 {
        puppet
            .store(&server.queue, (0..37).map(|_| output("x")).collect())
            .await;
    }
    puppet.succeed();
    let total = server.end_of(&id).await.last_sequence;
    let told = server.watch(&id, Some(0)).await.to_end().await;
    assert_eq!(told.sequences(), (1..=total).collect::<Vec<_>>());
    let fewest = (total as usize).div_ceil(BATCH_EVENTS_MAX) + 1;
    assert_eq!(told.messages, fewest, "full batches and the final snapshot");

    let (id, puppet) = server.begin(&puppets).await;
    let sizes = [
        100_000, 100_000, 100_000, 600_000, 1, 262_000, 100_000, 1_000_000, 1,
    ];
    for size in sizes {
        puppet
            .store(&server.queue, vec![output("x".repeat(size))])
            .await;
    }
    puppet.succeed();
    server.end_of(&id).await;
    let mut watch = server.watch(&id, Some(0)).await;
    let mut batches = Vec::new();
    while let Some(message) = watch.next().await.expect("no error") {
        if let Some(Content::Events(batch)) = message.content {
            let bytes: usize = batch.events.iter().map(|event| event.len()).sum();
            assert!(
                bytes <= BATCH_BYTES_MAX || batch.events.len() == 1,
                "{bytes}"
            );
            batches.push(batch.events.len());
        }
    }
    assert_eq!(
        batches,
        [4, 1, 1, 1, 1, 1, 1, 2],
        "sizes {sizes:?} behind two states"
    );
    server.stop().await.expect("a clean end");
}

/// Lines 4 and 5: progress that was held back does not burst a batch that is full.
#[tokio::test]
async fn held_progress_does_not_make_a_full_batch_larger() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    for outputs in [
        vec![output("x"); BATCH_EVENTS_MAX - 1],
        vec![output("x".repeat(130_000)), output("x".repeat(131_900))],
    ] {
        let (id, puppet) = server.begin(&puppets).await;
        let mut reports = vec![progress(0.1)];
        reports.extend(outputs);
        let shown = reports.len() as i64;
        puppet.store(&server.queue, reports).await;
        puppet.store(&server.queue, vec![progress(0.2)]).await;
        puppet.succeed();
        server.end_of(&id).await;
        let request = pb::WatchJobRequest {
            after_sequence: Some(0),
            event_types: vec![pb::EventType::Progress as i32, pb::EventType::Output as i32],
            min_progress_interval: Some(proto_duration(Duration::from_secs(3600))),
            ..watch_request(&id)
        };
        let mut watch = server.try_watch(request).await.expect("a watch");
        let mut sequences = Vec::new();
        while let Some(message) = watch.next().await.expect("no error") {
            if let Some(Content::Events(batch)) = message.content {
                let bytes: usize = batch.events.iter().map(|event| event.len()).sum();
                assert!(batch.events.len() <= BATCH_EVENTS_MAX && bytes <= BATCH_BYTES_MAX);
                let events = batch.decoded().expect("events");
                sequences.extend(events.iter().map(|event| event.sequence));
                let held = shown + 3;
                assert!(message.through_sequence < held || sequences.contains(&held));
            }
        }
        assert_eq!(sequences, (3..=shown + 3).collect::<Vec<_>>());
    }
    server.stop().await.expect("a clean end");
}

/// Line 5: a change of state does not wait for a hidden flood to be read.
#[tokio::test]
async fn a_filtered_watch_of_a_long_log_gets_what_it_asked_for_and_no_empty_batches() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    for _ in 0..20 {
        puppet
            .store(&server.queue, (0..200).map(|_| output("x")).collect())
            .await;
    }
    puppet.succeed();
    server.end_of(&id).await;
    let options = WatchOptions {
        after_sequence: Some(0),
        tags: vec![EventTag::StateChange],
        ..WatchOptions::default()
    };
    let mut watch = server
        .queue
        .watch(&job_key(&id), options)
        .await
        .expect("a watch");
    let mut sequences = Vec::new();
    while let Some(message) = soon(watch.next()).await.expect("no error") {
        if let WatchContent::Events(events) = message.content {
            assert!(!events.is_empty());
            sequences.extend(events.iter().map(|event| event.sequence));
        }
    }
    assert_eq!(sequences, [1, 2, 4003]);
    server.stop().await.expect("a clean end");
}

/// Line 14: as often as asked, on a quiet stream only.
#[tokio::test]
async fn a_quiet_watch_gives_a_sign_of_life_as_often_as_asked() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let request = pb::WatchJobRequest {
        heartbeat_interval: Some(proto_duration(Duration::from_secs(1))),
        ..watch_request(&id)
    };
    let mut watch = server.try_watch(request).await.expect("a watch");
    let first = watch.next().await.expect("no error").expect("no end");
    assert!(matches!(first.content, Some(Content::Snapshot(_))));
    let mut last = Instant::now();
    for _ in 0..2 {
        let message = watch.next().await.expect("no error").expect("no end");
        let Some(Content::Heartbeat(heartbeat)) = message.content else {
            panic!("{message:?}")
        };
        assert!(heartbeat.server_time.is_some());
        assert_eq!(message.through_sequence, first.through_sequence);
        assert!(
            last.elapsed() > Duration::from_millis(900),
            "{:?}",
            last.elapsed()
        );
        last = Instant::now();
    }
    // Events put it off.
    let mut quiet_since = Instant::now();
    while last.elapsed() < Duration::from_millis(1500) {
        puppet.store(&server.queue, vec![output("x")]).await;
        let message = watch.next().await.expect("no error").expect("no end");
        let late = quiet_since.elapsed() > Duration::from_millis(900);
        assert!(
            late || matches!(message.content, Some(Content::Events(_))),
            "{message:?}"
        );
        quiet_since = Instant::now();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Line 14, at both limits and one past each.
#[tokio::test]
async fn heartbeats_are_asked_for_between_a_second_and_five_minutes() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, _puppet) = server.begin(&puppets).await;
    let request = |interval| pb::WatchJobRequest {
        heartbeat_interval: Some(proto_duration(interval)),
        ..watch_request(&id)
    };
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(300));
    let nano = Duration::from_nanos(1);
    for good in [least, most] {
        server
            .try_watch(request(good))
            .await
            .expect("within the bounds");
    }
    for bad in [least - nano, most + nano] {
        let status = server.refused_watch(request(bad)).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(bad_fields(&status), ["heartbeat_interval"]);
    }
}
