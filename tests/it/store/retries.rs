//! Rules: a new job made of one that is over.

use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::policy::OnConflict;
use pacenote::job::{Job, JobState, Outcome, Refusal};
use pacenote::store::{Entry, NotTaken, Purge, Reply, WaitingRoom};

use super::bench::{Bench, cancel, done};

fn retry(bench: &Bench, key: &JobKey) -> (Entry, JobId) {
    let new_id = bench.new_job().new.key.id;
    let key = key.clone();
    (Entry::Retry { key, new_id }, new_id)
}

/// A dead letter with everything that its retry does not take over.
async fn failed(bench: &Bench) -> std::sync::Arc<Job> {
    let new = bench
        .new_job()
        .priority(7)
        .idempotent("k", "a")
        .unique("u", Duration::from_secs(3600), OnConflict::Reject)
        .batch(3)
        .start_at(bench.now())
        .input(Payload::text("the input"));
    let committed = bench.commit(vec![new.hand_over()], vec![]).await;
    let error = JobError::permanent("BAD", "it is");
    bench
        .finish(&committed.claimed[0].job, Outcome::Failed(error))
        .await
}

pub(crate) async fn a_retry_is_a_new_job_of_the_same_work(bench: Bench) {
    let old = failed(&bench).await;
    bench.pass(Duration::from_secs(5));
    let (entry, new_id) = retry(&bench, &old.key);
    let committed = bench.commit(vec![entry], vec![]).await;
    let (new, again) = done(&committed.replies[0]);
    assert_eq!((new.key.id, again), (new_id, false));
    assert_eq!(
        (new.state, new.attempt, new.run_at),
        (JobState::Queued, 0, bench.now())
    );
    assert_eq!(new.spec.retry_of, Some(old.key.id));
    assert_eq!((new.spec.priority, new.spec.batch_id), (7, None));
    assert_eq!(
        (&new.spec.idempotency_key, &new.spec.unique),
        (&None, &None)
    );
    let found = bench.get(&new.key).await;
    assert_eq!(found.payloads.input, Some(Payload::text("the input")));
    let kept = bench.get(&old.key).await.job;
    assert_eq!(
        (kept.state, kept.detail.retried_by),
        (JobState::Failed, Some(new_id))
    );
    assert_eq!(kept.last_sequence, old.last_sequence, "its log has ended");
    let claimed = bench.claim(1).await;
    assert_eq!(claimed[0].key, new.key);
}

pub(crate) async fn a_job_is_retried_once(bench: Bench) {
    let old = failed(&bench).await;
    let (first, new_id) = retry(&bench, &old.key);
    let (second, _) = retry(&bench, &old.key);
    let committed = bench.commit(vec![first, second], vec![]).await;
    let (new, _) = done(&committed.replies[0]);
    assert_eq!(done(&committed.replies[1]), (new.clone(), true));
    let (third, _) = retry(&bench, &old.key);
    let committed = bench.commit(vec![third], vec![]).await;
    assert_eq!(done(&committed.replies[0]), (new.clone(), true));
    assert_eq!(bench.all().await.len(), 2);
    // Once that one is gone, there is nothing to answer with, and nothing new is made.
    let claimed = bench.claim(1).await.remove(0);
    bench.finish(&claimed, Outcome::Succeeded(None)).await;
    bench.purge(vec![Purge::Job(new.key.clone())]).await;
    let (fourth, _) = retry(&bench, &old.key);
    let committed = bench.commit(vec![fourth], vec![]).await;
    assert_eq!(committed.replies[0], Reply::Refused(Refusal::NotRetryable));
    assert_eq!(
        bench.get(&old.key).await.job.detail.retried_by,
        Some(new_id)
    );
}

pub(crate) async fn only_what_ended_badly_is_retried(bench: Bench) {
    let waiting = bench.submit(bench.new_job().job_type("x")).await;
    bench.submit(bench.new_job()).await;
    let running = bench.claim(1).await.remove(0);
    let succeeded = bench.finished(bench.new_job()).await;
    for key in [&waiting.key, &running.key, &succeeded.key] {
        let (entry, _) = retry(&bench, key);
        let committed = bench.commit(vec![entry], vec![]).await;
        assert_eq!(committed.replies[0], Reply::Refused(Refusal::NotRetryable));
    }
    let mut stranger = waiting.key.clone();
    stranger.tenant = Name::of("other");
    let unknown = bench.new_job().new.key;
    for key in [&stranger, &unknown] {
        let (entry, _) = retry(&bench, key);
        let committed = bench.commit(vec![entry], vec![]).await;
        assert_eq!(committed.replies[0], Reply::Missing);
    }
    bench.change(&waiting.key, cancel()).await;
    let (entry, _) = retry(&bench, &waiting.key);
    let committed = bench.commit(vec![entry], vec![]).await;
    assert!(!done(&committed.replies[0]).1);
}

pub(crate) async fn a_retry_needs_room_and_leaves_no_trace_without(bench: Bench) {
    let old = failed(&bench).await;
    let (entry, _) = retry(&bench, &old.key);
    let mut group = bench.group(vec![entry], vec![]);
    let room = WaitingRoom { waiting: 0, max: 0 };
    group.room.insert(Name::of("default"), room);
    let committed = bench.commit_group(group).await;
    assert!(matches!(
        committed.replies[0],
        Reply::NotTaken(NotTaken::NoRoom { .. })
    ));
    assert_eq!(bench.get(&old.key).await.job, old);
}
