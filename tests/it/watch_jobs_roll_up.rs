//! How many jobs are how far, in one message.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use pacenote::job::Outcome;
use pacenote::job::event::JobError;
use pacenote::pb;

use crate::harness::{Puppets, Setup, TestServer, folder, progress};
use crate::watch_jobs::{JobsTold, begin, ids, labelled, team, watch_jobs};

fn roll_up(request: pb::WatchJobsRequest) -> pb::WatchJobsRequest {
    pb::WatchJobsRequest {
        roll_up: true,
        min_progress_interval: Some(prost_types::Duration::default()),
        ..request
    }
}

/// Waiting, running, succeeded, failed, cancelled and expired.
fn counts(roll_up: &pb::RollUp) -> [i64; 6] {
    [
        roll_up.waiting,
        roll_up.running,
        roll_up.succeeded,
        roll_up.failed,
        roll_up.cancelled,
        roll_up.expired,
    ]
}

#[tokio::test]
async fn a_roll_up_counts_those_that_match_and_ends_with_the_last_of_them() {
    let dir = folder();
    let puppets = Puppets::default();
    let settings = pacenote::config::TypeSettings {
        progress_interval: Duration::ZERO,
        ..Default::default()
    };
    let server = Setup::on(dir.path())
        .config(|config| config.workers = 3)
        .job_type_with("puppet", settings, puppets.clone())
        .start()
        .await;
    let (_, other) = begin(&server, &puppets, "b").await;
    let (over, puppet) = begin(&server, &puppets, "a").await;
    puppet.succeed();
    server.end_of(&over).await;
    let (one, first) = begin(&server, &puppets, "a").await;
    let (two, second) = begin(&server, &puppets, "a").await;
    let three = server.submit(labelled("puppet", "a")).await.job_id;
    first.store(&server.queue, vec![progress(0.5)]).await;
    let mut watch = watch_jobs(&server, roll_up(team("a"))).await;
    let mut by_ids = watch_jobs(&server, roll_up(ids(&[&one, &two, &three]))).await;
    let told = watch.opened().await;
    assert_eq!(counts(&told.roll_ups[0]), [1, 2, 1, 0, 0, 0]);
    assert_eq!(told.roll_ups[0].fraction, Some(1.5 / 4.0));
    assert_eq!(
        told.roll_ups[0].estimated_end_time, None,
        "one end is no pace"
    );
    second.store(&server.queue, vec![progress(0.25)]).await;
    let told = watch.until(|told| !told.roll_ups.is_empty()).await;
    assert_eq!(told.roll_ups[0].fraction, Some(1.75 / 4.0));
    second.end(Outcome::Failed(JobError::permanent("BROKEN", "no")));
    let third = puppets.next().await;
    server.cancel(&three).await;
    drop(third);
    first.succeed();
    let done = |told: &JobsTold| {
        told.roll_ups
            .last()
            .is_some_and(|last| counts(last) == [0, 0, 2, 1, 1, 0])
    };
    let told = watch.until(done).await;
    assert_eq!(told.roll_ups.last().expect("one").fraction, Some(1.0));
    let told = by_ids.to_end().await;
    let last = told.roll_ups.last().expect("at least the first");
    assert_eq!(counts(last), [0, 0, 1, 1, 1, 0]);
    assert!(told.events.is_empty() && told.finished.is_empty() && told.snapshot.is_empty());
    for pair in told.roll_ups.windows(2) {
        assert_ne!(pair[0], pair[1], "only what has changed");
    }
    other.succeed();
}

/// A roll-up's cursor goes on with events, and an events' cursor with a roll-up.
#[tokio::test]
async fn a_roll_up_can_be_resumed_as_events() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = begin(&server, &puppets, "a").await;
    let told = watch_jobs(&server, roll_up(team("a"))).await.opened().await;
    puppet.succeed();
    let request = pb::WatchJobsRequest {
        after_cursor: told.cursor,
        ..team("a")
    };
    let mut watch = watch_jobs(&server, request.clone()).await;
    let told = watch.until(|told| !told.finished.is_empty()).await;
    assert_eq!(told.sequences_of(&id), [3]);
    let told = watch_jobs(&server, roll_up(request)).await.opened().await;
    assert_eq!(counts(&told.roll_ups[0]), [0, 0, 1, 0, 0, 0]);
    let nothing = watch_jobs(&server, roll_up(team("none")))
        .await
        .opened()
        .await;
    assert_eq!(nothing.roll_ups, [pb::RollUp::default()]);
}

/// Goal: exact with 10,000 jobs of one label, among others. Method: they are submitted while one watch
/// looks on; some run, half of those that wait are cancelled; then a second watch counts anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_jobs_of_one_label_are_counted_exactly() {
    const JOBS: i64 = 10_000;
    let dir = folder();
    let puppets = Puppets::default();
    let server = Setup::on(dir.path())
        .job_type("puppet", puppets.clone())
        .start()
        .await;
    let mut live = watch_jobs(&server, roll_up(team("a"))).await;
    let server = &server;
    let submits = stream::iter(0..JOBS + JOBS / 10).map(|number| async move {
        let team = if number % 11 == 10 { "b" } else { "a" };
        server.submit(labelled("puppet", team)).await.job_id
    });
    let jobs: Vec<String> = submits.buffered(256).collect().await;
    let ours = jobs
        .iter()
        .enumerate()
        .filter(|(number, _)| number % 11 != 10);
    let ours: Vec<&String> = ours.map(|(_, id)| id).collect();
    assert_eq!(ours.len() as i64, JOBS);
    // Eight run; of the others the newest half is cancelled, and it waits.
    let mut running = Vec::new();
    for _ in 0..8 {
        running.push(puppets.next().await);
    }
    let of_ours = |id: String| ours.iter().any(|ours| **ours == id);
    let run = running
        .iter()
        .filter(|p| of_ours(p.attempt.key.id.to_string()))
        .count() as i64;
    let cancels = stream::iter(ours[JOBS as usize / 2..].iter());
    let cancels = cancels.map(|id| server.cancel(id));
    cancels.buffer_unordered(256).for_each(async |_| ()).await;
    let expected = [JOBS / 2 - run, run, 0, 0, JOBS / 2, 0];
    let done = |told: &JobsTold| {
        told.roll_ups
            .last()
            .is_some_and(|last| counts(last) == expected)
    };
    let told = live.until(done).await;
    let all = told
        .roll_ups
        .iter()
        .map(|told| counts(told).iter().sum::<i64>());
    assert!(all.is_sorted(), "none is counted twice or lost on the way");
    let counted = watch_jobs(server, roll_up(team("a"))).await.opened().await;
    assert_eq!(counts(&counted.roll_ups[0]), expected);
    assert_eq!(counted.roll_ups[0].fraction, Some(0.5));
    drop(running);
}
