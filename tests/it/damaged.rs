//! Rows that cannot be read, seen from the queue: what is about such a row fails, and all else goes on.

use std::path::Path;

use pacenote::job::JobState;
use pacenote::job::name::{JobKey, Name};
use pacenote::job::time::Timestamp;

use crate::clock::OwnedClock;
use crate::harness::{folder, one_place, soon};
use crate::life::settings;
use crate::life_time::{open, state_of, submit};
use crate::store::meddled::{DAMAGED, meddle};

/// Damages a job's row, as no call ever does.
async fn damage(dir: &Path, key: &JobKey, how: &'static str) {
    meddle(dir.join("jobs.db"), key, how).await;
}

/// Goal: attempts of a server that died are ended at the next start although the row of one of them cannot
/// be read, and that one stands in nobody's way. Method: two jobs that run when the server goes, of which
/// one is damaged before the next comes.
#[tokio::test]
async fn a_server_starts_although_a_job_that_ran_cannot_be_read() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let queue = open(dir.path(), &clock, settings(|_| {})).await;
    let (places, mut handed) = one_place(&queue, "work").await;
    let mut jobs = Vec::new();
    for _ in 0..2 {
        jobs.push(submit(&queue).await);
        soon(handed.recv()).await.expect("claimed");
        places.give_back(&Name::of("work"));
    }
    queue.close().await;
    drop(queue);
    damage(dir.path(), &jobs[0], DAMAGED).await;
    let queue = soon(open(dir.path(), &clock, settings(|_| {}))).await;
    assert_eq!(state_of(&queue, &jobs[1]).await.0, JobState::Queued);
    let next = submit(&queue).await;
    assert_eq!(state_of(&queue, &next).await.0, JobState::Queued);
    // What still holds its lease is looked at again and again: it never counts as something done.
    let swept = queue.sweep_leases(Timestamp::from_micros(i64::MAX));
    assert_eq!(swept.await.expect("a look"), 0);
    queue.close().await;
}
