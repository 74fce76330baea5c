//! Rows that cannot be read, seen from the queue: what is about such a row fails, and all else goes on.

use std::path::Path;
use std::sync::Arc;

use pacenote::error::Error;
use pacenote::job::JobState;
use pacenote::job::name::{JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::time::Timestamp;
use pacenote::queue::{JobQueue, Skipped, Submission, Waiting, default_tenant};
use pacenote::store::ListQuery;

use crate::clock::OwnedClock;
use crate::harness::{folder, one_place, soon};
use crate::life::settings;
use crate::life_time::{open, state_of, submit};
use crate::store::meddled::{DAMAGED, meddle};

/// Damages a job's row, as no call ever does.
async fn damage(dir: &Path, key: &JobKey, how: &'static str) {
    meddle(dir.join("jobs.db"), key, how).await;
}

/// A queue in which so many jobs wait, opened anew after the first of them was damaged: until then it was
/// remembered.
async fn waiting(
    dir: &Path,
    clock: &Arc<OwnedClock>,
    jobs: usize,
    how: &'static str,
) -> (JobQueue, Vec<JobKey>) {
    let queue = open(dir, clock, settings(|_| {})).await;
    let mut keys = Vec::new();
    for _ in 0..jobs {
        keys.push(submit(&queue).await);
    }
    queue.close().await;
    drop(queue);
    damage(dir, &keys[0], how).await;
    (open(dir, clock, settings(|_| {})).await, keys)
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

/// Goal: a call that ends what waits comes to an end although it cannot end all of it, ends what it can, and
/// does not say that nothing is left. Method: one that cannot be read in each of two states that it goes
/// through, and a job behind them.
#[tokio::test]
async fn what_waits_is_ended_but_for_what_cannot_be_read() {
    const SET_ASIDE: &str =
        "update jobs set detail = x'00', state = 'scheduled' where tenant = $1 and id = $2";
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let (queue, jobs) = waiting(dir.path(), &clock, 3, SET_ASIDE).await;
    damage(dir.path(), &jobs[1], DAMAGED).await;
    let what = Waiting {
        tenant: default_tenant(),
        queue: Name::of("default"),
        job_type: None,
        states: vec![JobState::Scheduled, JobState::Queued],
        limit: 10_000,
        reason: String::new(),
    };
    let cleared = soon(queue.clear(&what)).await;
    let refused = cleared.expect_err("some of it is left");
    assert!(matches!(refused, Error::Internal { .. }), "{refused:?}");
    assert_eq!(state_of(&queue, &jobs[2]).await.0, JobState::Cancelled);
    queue.close().await;
}

/// Goal: of what a filter finds, a job whose input cannot be read is passed over, in its place and with a
/// reason, and keeps neither those behind it nor the next page from being retried. Method: it is alone on
/// the second of three pages, and then among the others of one.
#[tokio::test]
async fn a_retry_of_many_passes_over_what_cannot_be_read() {
    const NO_KIND: &str =
        "update payloads set kind = 'odd' where tenant = $1 and job_id = $2 and role = 'input'";
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let queue = open(dir.path(), &clock, settings(|_| {})).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let submission = Submission::new("work", Some(Payload::text("the input")));
        let key = queue
            .submit(submission)
            .await
            .expect("stored")
            .0
            .key
            .clone();
        queue.cancel(&key, String::new()).await.expect("it waits");
        jobs.push(key.id);
        if jobs.len() == 2 {
            damage(dir.path(), &key, NO_KIND).await;
        }
    }
    jobs.reverse();
    let query = ListQuery {
        states: vec![JobState::Cancelled],
        ..ListQuery::all(default_tenant())
    };
    let mut retried = Vec::new();
    let mut skipped = Vec::new();
    let mut token = String::new();
    loop {
        let page = queue.retry_many(query.clone(), 1, &token).await;
        let page = page.expect("a page");
        retried.extend(page.retried.into_iter().map(|(old, _)| old));
        skipped.extend(page.skipped);
        let Some(next) = page.next_token else { break };
        token = next;
    }
    assert_eq!(retried, [jobs[0], jobs[2]]);
    assert_eq!(skipped, [(jobs[1], Skipped::Unreadable)]);
    let all = queue
        .retry_many(query.clone(), 0, "")
        .await
        .expect("a page");
    assert_eq!(all.retried, []);
    let why = all
        .skipped
        .iter()
        .map(|(id, why)| (*id, *why == Skipped::Unreadable));
    let expected = [(jobs[0], false), (jobs[1], true), (jobs[2], false)];
    assert_eq!(why.collect::<Vec<_>>(), expected);
    // It can be removed all the same.
    let gone = queue.delete_many(query, 0, "").await.expect("a page");
    assert_eq!((gone.deleted, gone.next_token), (3, None));
    queue.close().await;
}
