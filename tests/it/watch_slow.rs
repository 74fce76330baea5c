//! Watchers that do not read, lag or go away: lines 10, 11 and 15 of the watch contract.

use std::time::Duration;

use pacenote::job::Outcome;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_service_client::JobServiceClient;
use pacenote::queue::{WatchContent, WatchOptions};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::harness::{
    Client, TestServer, Watched, connect, eventually, folder, job_key, output, soon, watch_request,
};

/// A client on a connection of its own, which takes in no more than 64 KiB that was not read.
async fn small_client(server: &TestServer) -> Client {
    let endpoint = Channel::from_shared(format!("http://{}", server.address));
    let endpoint = endpoint
        .expect("an address")
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535);
    JobServiceClient::new(endpoint.connect().await.expect("the server accepts"))
}

async fn watch_from(client: &mut Client, id: &str, after: i64) -> Watched {
    let request = pb::WatchJobRequest {
        after_sequence: Some(after),
        ..watch_request(id)
    };
    let stream = soon(client.watch_job(request)).await.expect("a watch");
    Watched(stream.into_inner())
}

/// Line 10: the producer and the neighbours do not notice; later it reads all, without a gap.
///
/// Method: eight watchers that read nothing, on connections of their own, while a job writes 12 MiB:
/// far more than windows, channel and batches hold together.
#[tokio::test]
async fn a_watcher_that_does_not_read_slows_nobody_and_later_reads_all() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut client = small_client(&server).await;
        slow.push((watch_from(&mut client, &id, 0).await, client));
    }
    let mut neighbour = connect(&server.address).await;
    let quick = watch_from(&mut neighbour, &id, 0).await;
    let quick = tokio::spawn(quick.to_end());
    let chunk = "x".repeat(60_000);
    for _ in 0..200 {
        puppet
            .store(&server.queue, vec![output(chunk.clone())])
            .await;
    }
    puppet.succeed();
    // All this happens while the slow ones stand still.
    let end = server.end_of(&id).await;
    assert_eq!(end.state(), State::Succeeded);
    assert_eq!(soon(quick).await.expect("no panic").sequences().len(), 203);
    assert_eq!(
        server.queue.open_watches(),
        8,
        "none is cut off for being slow"
    );
    for (watch, _client) in slow {
        let told = watch.to_end().await;
        assert!(told.gaps.is_empty());
        assert_eq!(told.sequences(), (1..=203).collect::<Vec<_>>());
        assert_eq!(told.snapshots, std::slice::from_ref(&end));
    }
    server.stop().await.expect("a clean end");
}

/// Line 11: more commits than the channel holds go by, unread.
#[tokio::test]
async fn a_watcher_that_lags_reads_the_log_and_misses_nothing() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let options = WatchOptions {
        after_sequence: Some(0),
        ..WatchOptions::default()
    };
    let mut watch = server
        .queue
        .watch(&job_key(&id), options)
        .await
        .expect("a watch");
    let mut sequences = Vec::new();
    for round in [3, 64, 65, 150, 1] {
        for _ in 0..round {
            puppet.store(&server.queue, vec![output("x")]).await;
        }
        let message = soon(watch.next()).await.expect("no error").expect("no end");
        let WatchContent::Events(events) = message.content else {
            panic!("{message:?}")
        };
        sequences.extend(events.iter().map(|event| event.sequence));
        assert_eq!(message.through_sequence, sequences.len() as i64);
    }
    puppet.succeed();
    while let Some(message) = soon(watch.next()).await.expect("no error") {
        if let WatchContent::Events(events) = message.content {
            sequences.extend(events.iter().map(|event| event.sequence));
        }
    }
    assert_eq!(sequences, (1..=286).collect::<Vec<_>>());
    server.stop().await.expect("a clean end");
}

/// Lines 10 and 11: few commits, but too many bytes to keep for the slow: the news is only that there is
/// more, and the end is among it.
#[tokio::test]
async fn a_watcher_that_is_only_told_that_there_is_more_reads_it_from_the_log() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let options = WatchOptions {
        after_sequence: Some(2),
        ..WatchOptions::default()
    };
    let watch = server.queue.watch(&job_key(&id), options).await;
    let mut watch = watch.expect("a watch");
    for _ in 0..20 {
        let chunk = output("x".repeat(60_000));
        puppet.store(&server.queue, vec![chunk]).await;
    }
    // The end comes in one commit with as much again.
    let rest = vec![output("x".repeat(60_000))];
    let lease = puppet.lease();
    let finished = server.queue.finish(&lease, rest, Outcome::Succeeded(None));
    finished.await.expect("it runs");
    drop(puppet);
    let mut sequences = Vec::new();
    while let Some(message) = soon(watch.next()).await.expect("no error") {
        if let WatchContent::Events(events) = message.content {
            sequences.extend(events.iter().map(|event| event.sequence));
        }
    }
    assert_eq!(sequences, (3..=24).collect::<Vec<_>>());
    server.stop().await.expect("a clean end");
}

/// Line 11: the end itself is among what was missed.
#[tokio::test]
async fn a_watcher_that_lags_past_the_end_still_gets_the_end() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut client = small_client(&server).await;
    let watch = watch_from(&mut client, &id, 0).await;
    for _ in 0..150 {
        puppet
            .store(&server.queue, vec![output("x".repeat(2_000))])
            .await;
    }
    puppet.succeed();
    server.end_of(&id).await;
    let told = watch.to_end().await;
    assert_eq!(told.sequences(), (1..=153).collect::<Vec<_>>());
    assert_eq!(told.snapshots.len(), 1);
    server.stop().await.expect("a clean end");
}

/// Line 15: the server's side is gone within a second of a reset, whether the watch was idle or stood
/// still with a full window, and the job goes on.
#[tokio::test]
async fn a_watch_that_is_cancelled_is_gone_within_a_second_and_its_job_is_not_touched() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut idle_client = connect(&server.address).await;
    let mut idle = watch_from(&mut idle_client, &id, 0).await;
    idle.until(2).await;
    let mut stuck_client = small_client(&server).await;
    let stuck = watch_from(&mut stuck_client, &id, 0).await;
    for _ in 0..10 {
        puppet
            .store(&server.queue, vec![output("x".repeat(100_000))])
            .await;
    }
    assert_eq!(server.queue.open_watches(), 2);
    for (watch, left) in [(idle, 1), (stuck, 0)] {
        drop(watch);
        gone(&server, left).await;
    }
    // The connections are still there.
    soon(watch_from(&mut stuck_client, &id, 0)).await;
    assert_eq!(server.get(&id).await.state(), State::Running);
    assert!(!puppet.attempt.stop.is_cancelled());
    puppet.succeed();
    assert_eq!(server.end_of(&id).await.state(), State::Succeeded);
    server.stop().await.expect("a clean end");
}

/// Line 15: the same where the whole connection goes.
#[tokio::test]
async fn a_lost_connection_takes_its_watches_with_it_and_no_job() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    // Through a relay, so that the connection breaks without a word of HTTP/2.
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = relay.local_addr().expect("an address").to_string();
    let to = server.address.clone();
    let relaying = tokio::spawn(async move {
        let (mut near, _) = relay.accept().await.expect("a client");
        let mut far = tokio::net::TcpStream::connect(to)
            .await
            .expect("the server");
        tokio::io::copy_bidirectional(&mut near, &mut far).await
    });
    let mut client = connect(&address).await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        let mut watch = watch_from(&mut client, &id, 0).await;
        watch.until(2).await;
        watches.push(watch);
    }
    assert_eq!(server.queue.open_watches(), 3);
    relaying.abort();
    gone(&server, 0).await;
    assert_eq!(server.get(&id).await.state(), State::Running);
    puppet.succeed();
    assert_eq!(server.end_of(&id).await.state(), State::Succeeded);
    server.stop().await.expect("a clean end");
}

async fn gone(server: &TestServer, left: usize) {
    let queue = server.queue.clone();
    let since = Instant::now();
    eventually("the server's side is gone", || queue.open_watches() == left).await;
    assert!(
        since.elapsed() < Duration::from_secs(1),
        "{:?}",
        since.elapsed()
    );
}
