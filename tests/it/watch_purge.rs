//! What was purged is said out loud: line 6 of the watch contract.

use std::time::Duration;

use pacenote::pb;
use pacenote::pb::watch_job_response::Content;
use pacenote::queue::WatchContent;
use pacenote::queue::WatchOptions;
use pacenote::store::{Purge, Purged};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{
    Puppets, Setup, TestServer, folder, job_key, output, reason_of, soon, watch_request,
};
use crate::life::settings;

/// A finished job of 8 events, a segment each but the last.
async fn finished(server: &TestServer, puppets: &crate::harness::Puppets) -> String {
    let (id, puppet) = server.begin(puppets).await;
    for text in ["3", "4", "5", "6", "7"] {
        puppet.store(&server.queue, vec![output(text)]).await;
    }
    puppet.succeed();
    assert_eq!(server.end_of(&id).await.last_sequence, 8);
    id
}

async fn purge_front(server: &TestServer, id: &str, through: i64) {
    let purged = server
        .queue
        .purge(vec![Purge::Events(job_key(id), through)])
        .await;
    let expected = Purged::Events(job_key(id), through + 1);
    assert_eq!(purged.expect("the store is well"), [expected]);
}

/// Line 6, and line 4: the gap and the snapshot after it carry the last missing sequence.
#[tokio::test]
async fn a_watcher_that_asks_for_purged_events_gets_a_gap_a_snapshot_and_what_is_kept() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let id = finished(&server, &puppets).await;
    purge_front(&server, &id, 5).await;
    let end = server.get(&id).await;
    assert_eq!(end.first_sequence, 6);
    for after in [0, 1, 4] {
        let mut watch = server.watch(&id, Some(after)).await;
        let first = watch.next_content().await;
        assert_eq!(first.through_sequence, 5);
        let Some(Content::Gap(gap)) = first.content else {
            panic!("{first:?}")
        };
        assert_eq!(gap.job_id, id);
        assert_eq!(gap.cause(), pb::event_gap::Cause::Retention);
        assert_eq!(
            (gap.first_missing_sequence, gap.last_missing_sequence),
            (after + 1, 5)
        );
        let second = watch.next_content().await;
        assert_eq!(second.through_sequence, 5);
        assert!(
            matches!(second.content, Some(Content::Snapshot(_))),
            "{second:?}"
        );
        let told = watch.to_end().await;
        assert_eq!(told.sequences(), [6, 7, 8]);
        assert_eq!(told.snapshots, std::slice::from_ref(&end));
    }
    for after in 5..=8 {
        let told = server.watch(&id, Some(after)).await.to_end().await;
        assert!(told.gaps.is_empty());
        assert_eq!(told.sequences(), ((after + 1)..=8).collect::<Vec<_>>());
    }
    let told = server.watch(&id, None).await.to_end().await;
    assert_eq!(told.messages, 1);
    server.stop().await.expect("a clean end");
}

/// Line 6: a type's `event_retention` takes the front of a finished job's log by itself, and says so.
#[tokio::test]
async fn a_watcher_that_comes_after_the_event_retention_gets_a_gap_and_the_end() {
    let dir = folder();
    let puppets = Puppets::default();
    let brief = settings(|settings| settings.event_retention = Some(Duration::ZERO));
    let setup = Setup::on(dir.path()).job_type_with("puppet", brief, puppets.clone());
    let server = setup.start().await;
    let id = finished(&server, &puppets).await;
    let end = soon(async {
        loop {
            let job = server.get(&id).await;
            if job.first_sequence > 1 {
                return job;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((end.first_sequence, end.last_sequence), (8, 8));
    let told = server.watch(&id, Some(0)).await.to_end().await;
    let [gap] = &told.gaps[..] else {
        panic!("{told:?}")
    };
    assert_eq!(gap.cause(), pb::event_gap::Cause::Retention);
    let missing = (gap.first_missing_sequence, gap.last_missing_sequence);
    assert_eq!((missing, told.sequences()), ((1, 7), vec![8]));
    assert_eq!(told.snapshots.last(), Some(&end));
    let told = server.watch(&id, Some(7)).await.to_end().await;
    assert!(told.gaps.is_empty());
    assert_eq!(told.sequences(), [8]);
    server.stop().await.expect("a clean end");
}

/// Line 6: the front goes while a watcher is still reading. Nothing that it took is lost, and a gap is
/// said for what it had not.
///
/// Method: the watch is pulled by hand, in this process, so that the purge falls where it hurts.
#[tokio::test]
async fn events_purged_under_a_slow_watcher_are_a_gap_too() {
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
    let mut seen = Vec::new();
    let first = soon(watch.next()).await.expect("no error").expect("no end");
    let WatchContent::Events(events) = first.content else {
        panic!("{first:?}")
    };
    seen.extend(events.iter().map(|event| event.sequence));
    // More commits than the channel holds, so that it has to read the log.
    for n in 0..100 {
        puppet
            .store(&server.queue, vec![output(n.to_string())])
            .await;
    }
    puppet.succeed();
    let last = server.end_of(&id).await.last_sequence;
    purge_front(&server, &id, 50).await;
    let mut gap = None;
    let mut through = first.through_sequence;
    while let Some(message) = soon(watch.next()).await.expect("no error") {
        assert!(message.through_sequence >= through);
        through = message.through_sequence;
        match message.content {
            WatchContent::Events(events) => seen.extend(events.iter().map(|event| event.sequence)),
            WatchContent::Gap(first, last) => gap = Some((first, last)),
            WatchContent::Snapshot(_) | WatchContent::Heartbeat(_) => {}
        }
    }
    assert_eq!(gap, Some((3, 50)));
    let kept: Vec<i64> = [1, 2].into_iter().chain(51..=last).collect();
    assert_eq!(seen, kept);
    server.stop().await.expect("a clean end");
}

/// Line 6.
#[tokio::test]
async fn a_cursor_ahead_of_the_log_is_refused_with_the_last_sequence() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (running, puppet) = server.begin(&puppets).await;
    let done = {
        puppet.store(&server.queue, vec![output("x")]).await;
        let (id, other) = server.begin(&puppets).await;
        other.succeed();
        server.end_of(&id).await;
        id
    };
    for id in [running, done] {
        let last = server.get(&id).await.last_sequence;
        assert_eq!(last, 3);
        for after in [last + 1, i64::MAX] {
            let request = pb::WatchJobRequest {
                after_sequence: Some(after),
                ..watch_request(&id)
            };
            let status = server.refused_watch(request).await;
            let expected = (Code::FailedPrecondition, "SEQUENCE_AHEAD".to_owned());
            assert_eq!(reason_of(&status), expected);
            let details = status.get_error_details();
            let info = details.error_info().expect("an ErrorInfo");
            assert_eq!(info.metadata["last_sequence"], "3");
        }
        // At the head itself a watch is good.
        server.watch(&id, Some(last)).await;
    }
}

/// Line 6.
#[tokio::test]
async fn a_job_purged_under_its_watchers_ends_them_with_job_purged() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let options = |after_sequence| WatchOptions {
        after_sequence,
        ..WatchOptions::default()
    };
    // One that has read nothing yet, one that has read it all but the end.
    let mut fresh = server
        .queue
        .watch(&job_key(&id), options(Some(0)))
        .await
        .expect("a watch");
    let mut behind = server
        .queue
        .watch(&job_key(&id), options(None))
        .await
        .expect("a watch");
    soon(behind.next())
        .await
        .expect("no error")
        .expect("the snapshot");
    puppet.succeed();
    server.end_of(&id).await;
    let purged = server.queue.purge(vec![Purge::Job(job_key(&id))]).await;
    assert_eq!(
        purged.expect("the store is well"),
        [Purged::Job(job_key(&id))]
    );
    for watch in [&mut fresh, &mut behind] {
        let error = loop {
            match soon(watch.next()).await {
                Ok(message) => assert!(message.is_some(), "a purge is no OK"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, pacenote::error::Error::Purged { .. }),
            "{error:?}"
        );
    }
    let status = server.refused_watch(watch_request(&id)).await;
    assert_eq!(
        reason_of(&status),
        (Code::NotFound, "JOB_NOT_FOUND".to_owned())
    );
    server.stop().await.expect("a clean end");
}

/// Line 6, on the wire: the watcher's window is full when its job is purged.
#[tokio::test]
async fn a_slow_client_of_a_purged_job_is_told_job_purged() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let watch = server.watch(&id, Some(0)).await;
    let chunk = "x".repeat(200_000);
    for _ in 0..40 {
        puppet
            .store(&server.queue, vec![output(chunk.clone())])
            .await;
    }
    puppet.succeed();
    server.end_of(&id).await;
    server
        .queue
        .purge(vec![Purge::Job(job_key(&id))])
        .await
        .expect("purged");
    let (told, status) = watch.to_error().await;
    assert_eq!(
        reason_of(&status),
        (Code::NotFound, "JOB_PURGED".to_owned())
    );
    let sequences = told.sequences();
    assert_eq!(sequences, (1..=sequences.len() as i64).collect::<Vec<_>>());
    server.stop().await.expect("a clean end");
}
