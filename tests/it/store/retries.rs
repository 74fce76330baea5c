//! Rules: a new job made of one that is over.

use std::collections::BTreeMap;
use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::name::{BatchId, JobId, JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::{JobSpec, JobState, Outcome, Refusal, Report, Unique};
use pacenote::store::{Entry, NotTaken, Purge, Reply, WaitingRoom};
use uuid::Uuid;

use super::bench::{Bench, NewJobBuilder, cancel, changed, done};

fn id(number: u128) -> JobId {
    JobId::new(Uuid::from_u128(u128::MAX - number))
}

fn retry(key: &JobKey, number: u128) -> Entry {
    Entry::Retry {
        key: key.clone(),
        new_id: id(number),
    }
}

/// A job with everything that a job can have, which has failed.
async fn failed(bench: &Bench) -> JobKey {
    let new = bench
        .new_job()
        .input(Payload::text("in"))
        .priority(7)
        .idempotent("k", "print")
        .spec(|spec| {
            spec.labels = BTreeMap::from([("team".to_owned(), "docs".to_owned())]);
            spec.batch_id = Some(BatchId::new(Uuid::from_u128(5)));
            spec.concurrency_key = Some(Name::of("c"));
            spec.unique = Some(Unique {
                key: "u".to_owned(),
                window: Duration::from_secs(60),
            });
            spec.retry_policy.max_attempts = 5;
            spec.timeouts.run_timeout = Some(Duration::from_secs(9));
            spec.retention.failed = Duration::from_secs(77);
            spec.event_retention = Some(Duration::from_secs(7));
        });
    let committed = bench.commit(vec![new.hand_over()], vec![]).await;
    let job = committed.claimed[0].job.clone();
    bench
        .report(&job, vec![Report::Checkpoint(Payload::text("half"))])
        .await;
    let error = JobError::permanent("BAD", "it is");
    let over = bench.finish(&job, Outcome::Failed(error)).await;
    assert_eq!(over.state, JobState::Failed);
    over.key.clone()
}

pub(crate) async fn a_retry_is_the_same_job_but_for_what_was_its_own(bench: Bench) {
    let old = failed(&bench).await;
    let before = bench.get(&old).await;
    bench.pass(Duration::from_secs(5));
    let committed = bench.commit(vec![retry(&old, 1)], vec![]).await;
    let (new, deduplicated) = done(&committed.replies[0]);
    assert!(!deduplicated);
    let expected = JobSpec {
        idempotency_key: None,
        fingerprint: String::new(),
        unique: None,
        batch_id: None,
        retry_of: Some(old.id),
        ..(*before.job.spec).clone()
    };
    assert_eq!(*new.spec, expected);
    assert_eq!(
        (new.state, new.run_at, new.attempt),
        (JobState::Queued, bench.now(), 0)
    );
    let found = bench.get(&new.key).await;
    assert_eq!(found.payloads.input, before.payloads.input);
    assert_eq!(found.payloads.checkpoint, None);
    // The old one is as it was, and says where it goes on.
    let after = bench.get(&old).await;
    assert_eq!(after.job.detail.retried_by, Some(new.key.id));
    assert_eq!(after.job.state, JobState::Failed);
    assert_eq!(after.job.last_sequence, before.job.last_sequence);
    assert_eq!(after.payloads, before.payloads);
}

/// Goal: one retry a job, whoever asks, however often: in one group, in the next, after a crash.
pub(crate) async fn a_job_is_retried_once_and_asking_again_answers_the_same(mut bench: Bench) {
    let old = failed(&bench).await;
    let committed = bench
        .commit(vec![retry(&old, 1), retry(&old, 2)], vec![])
        .await;
    let (new, first) = done(&committed.replies[0]);
    assert_eq!((new.key.id, first), (id(1), false));
    assert_eq!(done(&committed.replies[1]), (new.clone(), true));
    let committed = bench.commit(vec![retry(&old, 3)], vec![]).await;
    assert_eq!(done(&committed.replies[0]), (new.clone(), true));
    bench.crash().await;
    let committed = bench.commit(vec![retry(&old, 4)], vec![]).await;
    assert_eq!(done(&committed.replies[0]), (new.clone(), true));
    assert_eq!(bench.all().await.len(), 2);
    // It goes on with the new one, once that is over as well.
    bench.change(&new.key, cancel()).await;
    let committed = bench.commit(vec![retry(&new.key, 5)], vec![]).await;
    let (newest, _) = done(&committed.replies[0]);
    assert_eq!(newest.spec.retry_of, Some(new.key.id));
}

pub(crate) async fn only_what_is_over_without_a_result_is_retried(bench: Bench) {
    let of = |builder: NewJobBuilder| builder.spec(|spec| spec.retry_policy.max_attempts = 1);
    let queued = bench.submit(of(bench.new_job())).await;
    let committed = bench.commit(vec![retry(&queued.key, 1)], vec![]).await;
    let refused = |state| {
        Reply::Refused(Refusal::NotRetryable {
            state,
            retried_by: None,
        })
    };
    assert_eq!(committed.replies, [refused(JobState::Queued)]);
    let running = bench.claim(1).await.remove(0);
    let committed = bench.commit(vec![retry(&running.key, 2)], vec![]).await;
    assert_eq!(committed.replies, [refused(JobState::Running)]);
    let over = bench.finish(&running, Outcome::Succeeded(None)).await;
    let committed = bench.commit(vec![retry(&over.key, 3)], vec![]).await;
    assert_eq!(committed.replies, [refused(JobState::Succeeded)]);
    let cancelled = bench.submit(of(bench.new_job())).await;
    let entries = vec![changed(&cancelled.key, cancel()), retry(&cancelled.key, 4)];
    let committed = bench.commit(entries, vec![]).await;
    let new = done(&committed.replies[1]).0;
    assert_eq!(new.spec.retry_of, Some(cancelled.key.id));
    let unknown = bench.new_job().new.key;
    let committed = bench.commit(vec![retry(&unknown, 5)], vec![]).await;
    assert_eq!(committed.replies, [Reply::Missing]);
    let other = JobKey {
        tenant: Name::of("other"),
        id: cancelled.key.id,
    };
    let committed = bench.commit(vec![retry(&other, 6)], vec![]).await;
    assert_eq!(committed.replies, [Reply::Missing]);
}

/// What was retried may have succeeded before it was removed: it is not run a second time.
pub(crate) async fn a_job_whose_retry_was_removed_is_not_retried_again(bench: Bench) {
    let old = failed(&bench).await;
    let committed = bench.commit(vec![retry(&old, 1)], vec![]).await;
    let new = done(&committed.replies[0]).0;
    bench.change(&new.key, cancel()).await;
    bench.purge(vec![Purge::Job(new.key.clone())]).await;
    let committed = bench.commit(vec![retry(&old, 2)], vec![]).await;
    let refused = Refusal::NotRetryable {
        state: JobState::Failed,
        retried_by: Some(new.key.id),
    };
    assert_eq!(committed.replies, [Reply::Refused(refused)]);
    assert_eq!(bench.all().await.len(), 1);
}

pub(crate) async fn a_retry_finds_room_among_what_waits_or_changes_nothing(bench: Bench) {
    let old = failed(&bench).await;
    let before = bench.get(&old).await;
    let other = {
        let new = bench.new_job();
        bench.submit(new).await
    };
    bench.change(&other.key, cancel()).await;
    let with_room = |entries, max| {
        let mut group = bench.group(entries, vec![]);
        let room = WaitingRoom { waiting: 0, max };
        group.room.insert(Name::of("default"), room);
        group
    };
    let none = with_room(vec![retry(&old, 1)], 0);
    let committed = bench.store().commit(none).await.expect("stored");
    let refused = |reply: &Reply| matches!(reply, Reply::NotTaken(NotTaken::NoRoom { .. }));
    assert!(refused(&committed.replies[0]));
    assert_eq!(bench.get(&old).await, before);
    let one = with_room(
        vec![retry(&old, 2), retry(&other.key, 3), retry(&old, 4)],
        1,
    );
    let committed = bench.store().commit(one).await.expect("stored");
    let (new, _) = done(&committed.replies[0]);
    assert!(refused(&committed.replies[1]));
    assert_eq!(
        done(&committed.replies[2]),
        (new, true),
        "that one waits already"
    );
}
