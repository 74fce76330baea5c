//! Rules: one job a place, as the caller of the next one chose.

use std::time::Duration;

use pacenote::job::policy::OnConflict;
use pacenote::job::{JobState, Outcome};
use pacenote::store::{NotTaken, Purge, Reply};

use super::bench::{Bench, changed, done, finish};

const NONE: Duration = Duration::ZERO;

pub(crate) async fn a_taken_place_is_answered_as_was_asked(bench: Bench) {
    let unique = |choice| bench.new_job().unique("u", NONE, choice);
    let first = bench.submit(unique(OnConflict::Reject)).await;
    let entries = vec![
        unique(OnConflict::ReturnExisting).entry(),
        unique(OnConflict::Reject).entry(),
    ];
    let committed = bench.commit(entries, vec![]).await;
    assert_eq!(done(&committed.replies[0]), (first.clone(), true));
    let taken = Reply::NotTaken(NotTaken::UniqueTaken(first.key.id));
    assert_eq!(committed.replies[1], taken);
    assert_eq!(bench.all().await.len(), 1);
}

pub(crate) async fn a_waiting_job_is_replaced(bench: Bench) {
    let unique = |choice| bench.new_job().unique("u", NONE, choice);
    let mut waiting = bench.submit(unique(OnConflict::Reject)).await;
    for choice in [OnConflict::ReplaceWaiting, OnConflict::CancelRunning] {
        let next = bench.submit(unique(choice)).await;
        let replaced = bench.get(&waiting.key).await.job;
        assert_eq!(replaced.state, JobState::Cancelled);
        assert!(
            replaced
                .detail
                .cancel_reason
                .contains(&next.key.id.to_string())
        );
        waiting = next;
    }
    // Three in one group: the last one stays.
    let news = [0; 3].map(|_| unique(OnConflict::ReplaceWaiting));
    let last = news[2].new.key.clone();
    let entries = news.into_iter().map(|new| new.entry()).collect();
    bench.commit(entries, vec![]).await;
    let left = bench.claim(10).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].key, last);
}

pub(crate) async fn a_running_job_is_cancelled_or_left_in_peace(bench: Bench) {
    let unique = |choice| bench.new_job().unique("u", NONE, choice);
    let running = bench
        .commit(vec![unique(OnConflict::Reject).hand_over()], vec![])
        .await;
    let running = running.claimed[0].job.clone();
    let beside = bench.submit(unique(OnConflict::ReplaceWaiting)).await;
    assert_eq!(bench.get(&running.key).await.job, running, "it goes on");
    let next = bench.submit(unique(OnConflict::CancelRunning)).await;
    assert_eq!(bench.get(&beside.key).await.job.state, JobState::Cancelled);
    let claimed = bench.claim(1).await.remove(0);
    assert_eq!(claimed.key, next.key);
    bench.submit(unique(OnConflict::CancelRunning)).await;
    assert_eq!(bench.get(&next.key).await.job.state, JobState::Cancelling);
    let over = bench.finish(&claimed, Outcome::Succeeded(None)).await;
    assert_eq!(over.state, JobState::Cancelled);
}

pub(crate) async fn a_place_is_free_after_the_end_and_its_window(bench: Bench) {
    let window = Duration::from_secs(60);
    let unique = || {
        bench
            .new_job()
            .unique("u", window, OnConflict::ReturnExisting)
    };
    let first = bench.finished(unique()).await;
    bench.pass(Duration::from_secs(59));
    let committed = bench.commit(vec![unique().entry()], vec![]).await;
    assert_eq!(done(&committed.replies[0]), (first.clone(), true));
    bench.pass(Duration::from_secs(1));
    let second = bench.submit(unique()).await;
    // The one that is purged does not stand in the way, and the one before it is too old to.
    bench.claim(1).await;
    let over = changed(&second.key, finish(1, Outcome::Succeeded(None)));
    bench.commit(vec![over], vec![]).await;
    bench.purge(vec![Purge::Job(second.key.clone())]).await;
    let third = bench.submit(unique()).await;
    assert_ne!(third.key, first.key);
}

pub(crate) async fn a_place_belongs_to_its_tenant_and_type(bench: Bench) {
    let unique = || bench.new_job().unique("u", NONE, OnConflict::Reject);
    let entries = vec![
        unique().entry(),
        unique().tenant("other").entry(),
        unique().job_type("other").entry(),
        bench
            .new_job()
            .unique("U", NONE, OnConflict::Reject)
            .entry(),
        bench
            .new_job()
            .unique("u\0", NONE, OnConflict::Reject)
            .entry(),
    ];
    let committed = bench.commit(entries, vec![]).await;
    assert!(committed.replies.iter().all(|reply| !done(reply).1));
    let committed = bench.commit(vec![unique().entry()], vec![]).await;
    assert!(matches!(committed.replies[0], Reply::NotTaken(_)));
}

pub(crate) async fn a_key_comes_before_a_place(bench: Bench) {
    let both = |key: &str| {
        let new = bench.new_job().idempotent(key, "a");
        new.unique("u", NONE, OnConflict::Reject)
    };
    let first = bench.submit(both("k")).await;
    let committed = bench
        .commit(vec![both("k").entry(), both("l").entry()], vec![])
        .await;
    assert_eq!(done(&committed.replies[0]), (first.clone(), true));
    let taken = Reply::NotTaken(NotTaken::UniqueTaken(first.key.id));
    assert_eq!(committed.replies[1], taken);
    bench.claim(1).await;
    bench
        .commit(
            vec![changed(&first.key, finish(1, Outcome::Succeeded(None)))],
            vec![],
        )
        .await;
    let second = bench.submit(both("l")).await;
    assert_eq!(
        second.spec.idempotency_key.as_deref(),
        Some("l"),
        "it was not used up"
    );
}
