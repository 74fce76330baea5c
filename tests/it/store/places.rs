//! Rules: batches, unique places, checks that store nothing, and how many jobs may wait.

use std::sync::Arc;
use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::policy::OnConflict::{CancelRunning, Reject, ReplaceWaiting, ReturnExisting};
use pacenote::job::{Change, JobState, Outcome};
use pacenote::store::{Entry, NotTaken, Reply, WaitingRoom};

use super::bench::{Bench, NewJobBuilder, cancel, changed, done};

fn batch(items: impl IntoIterator<Item = NewJobBuilder>) -> Entry {
    Entry::Batch(items.into_iter().map(|item| item.new).collect())
}

fn check(new: NewJobBuilder) -> Entry {
    Entry::Check(Box::new(new.new))
}

async fn reply(bench: &Bench, entry: Entry) -> Reply {
    bench.commit(vec![entry], vec![]).await.replies.remove(0)
}

fn no_room(waiting: usize, max: usize, asked: usize) -> NotTaken {
    NotTaken::NoRoom {
        room: WaitingRoom { waiting, max },
        asked,
    }
}

pub(crate) async fn a_batch_is_stored_whole_or_not_at_all(bench: Bench) {
    let used = bench.submit(bench.new_job().idempotent("k", "one")).await;
    let place = bench
        .submit(bench.new_job().unique("u", Duration::ZERO, Reject))
        .await;
    let items = || {
        let fresh = bench.new_job().idempotent("fresh", "x");
        let known = bench.new_job().idempotent("k", "one");
        [fresh, known, bench.new_job()]
    };
    let bad = [
        bench.new_job().idempotent("k", "two"),
        bench.new_job().unique("u", Duration::ZERO, Reject),
    ];
    let refused = reply(&bench, batch(items().into_iter().chain(bad))).await;
    let expected = vec![
        (3, NotTaken::KeyReused(used.key.id)),
        (4, NotTaken::UniqueTaken(place.key.id)),
    ];
    assert_eq!(refused, Reply::BatchNotTaken(expected));
    assert_eq!(bench.all().await.len(), 2);

    let Reply::Batch(jobs) = reply(&bench, batch(items())).await else {
        panic!("it is good");
    };
    let flags: Vec<bool> = jobs.iter().map(|(_, known)| *known).collect();
    assert_eq!(flags, [false, true, false]);
    assert_eq!(jobs[1].0.key, used.key);
    assert_eq!(bench.all().await.len(), 4);
    let again = reply(&bench, batch(items().into_iter().take(2))).await;
    let Reply::Batch(again) = again else {
        panic!("both are known");
    };
    assert!(again.iter().all(|(_, known)| *known));
    assert_eq!(again[0].0.key, jobs[0].0.key);
}

/// Goal: a store holds by itself what the door refuses before: items of one batch never get in each
/// other's way unseen.
pub(crate) async fn items_of_a_batch_see_each_other(bench: Bench) {
    let first = bench.new_job().idempotent("k", "one");
    let id = first.new.key.id;
    let other = bench.new_job().idempotent("k", "two");
    let refused = reply(&bench, batch([first, other])).await;
    assert_eq!(
        refused,
        Reply::BatchNotTaken(vec![(1, NotTaken::KeyReused(id))])
    );
    let first = bench.new_job().unique("u", Duration::ZERO, Reject);
    let id = first.new.key.id;
    let second = bench.new_job().unique("u", Duration::ZERO, Reject);
    let refused = reply(&bench, batch([first.clone(), second])).await;
    assert_eq!(
        refused,
        Reply::BatchNotTaken(vec![(1, NotTaken::UniqueTaken(id))])
    );
    assert!(bench.all().await.is_empty());

    bench.bound(1);
    let returned = bench.new_job().unique("u", Duration::ZERO, ReturnExisting);
    let replacing = bench.new_job().unique("u", Duration::ZERO, ReplaceWaiting);
    let Reply::Batch(jobs) = reply(&bench, batch([first, returned, replacing])).await else {
        panic!("one of them waits in the end");
    };
    let seen: Vec<_> = jobs
        .iter()
        .map(|(job, known)| (job.state, *known))
        .collect();
    let expected = [
        (JobState::Cancelled, false),
        (JobState::Cancelled, true),
        (JobState::Queued, false),
    ];
    assert_eq!(seen, expected);
}

pub(crate) async fn a_check_answers_as_a_submit_would_and_stores_nothing(bench: Bench) {
    let used = bench.submit(bench.new_job().idempotent("k", "one")).await;
    let place = bench
        .submit(bench.new_job().unique("u", Duration::ZERO, Reject))
        .await;
    bench.bound(2);
    let checked = |deduplicated| Reply::Checked { deduplicated };
    for (new, expected) in [
        (bench.new_job(), checked(false)),
        (bench.new_job().idempotent("k", "one"), checked(true)),
        (
            bench.new_job().idempotent("k", "two"),
            Reply::NotTaken(NotTaken::KeyReused(used.key.id)),
        ),
        (
            bench.new_job().unique("u", Duration::ZERO, ReturnExisting),
            checked(true),
        ),
        (
            bench.new_job().unique("u", Duration::ZERO, ReplaceWaiting),
            checked(false),
        ),
        (
            bench.new_job().unique("u", Duration::ZERO, Reject),
            Reply::NotTaken(NotTaken::UniqueTaken(place.key.id)),
        ),
    ] {
        let committed = bench.commit(vec![check(new)], vec![]).await;
        assert_eq!(committed.replies, [expected]);
        assert!(committed.published.is_empty() && committed.depth_changes.is_empty());
    }
    assert_eq!(bench.all().await.len(), 2);
    assert_eq!(bench.get(&place.key).await.job, place);
}

/// Goal: a place is taken while any job of it is not over, be it the newest or not; and who takes it takes
/// it from all of them.
pub(crate) async fn a_place_belongs_to_all_of_its_jobs_that_are_not_over(bench: Bench) {
    let new = || bench.new_job().unique("u", Duration::ZERO, ReplaceWaiting);
    let committed = bench.commit(vec![new().hand_over()], vec![]).await;
    let running = Arc::clone(&committed.claimed[0].job);
    let waiting = bench.submit(new()).await;
    let newest = bench.submit(new()).await;
    assert_eq!(bench.get(&waiting.key).await.job.state, JobState::Cancelled);
    bench.change(&newest.key, cancel()).await;
    let refused = reply(
        &bench,
        bench.new_job().unique("u", Duration::ZERO, Reject).entry(),
    )
    .await;
    assert_eq!(
        refused,
        Reply::NotTaken(NotTaken::UniqueTaken(running.key.id))
    );

    // The one that ran waits for its retry, beside another one: both make way.
    let beside = bench.submit(new()).await;
    let failed = Outcome::Failed(JobError::retryable("BROKEN", "once"));
    let retrying = bench.finish(&running, failed).await;
    assert_eq!(retrying.state, JobState::Scheduled);
    let taking = bench
        .submit(bench.new_job().unique("u", Duration::ZERO, CancelRunning))
        .await;
    for key in [&retrying.key, &beside.key] {
        assert_eq!(bench.get(key).await.job.state, JobState::Cancelled);
    }
    // Its type, its tenant and its key are its own.
    for other in [
        bench
            .new_job()
            .unique("u", Duration::ZERO, Reject)
            .job_type("other"),
        bench
            .new_job()
            .unique("u", Duration::ZERO, Reject)
            .tenant("other"),
        bench.new_job().unique("u\0", Duration::ZERO, Reject),
        bench.new_job().unique("U", Duration::ZERO, Reject),
    ] {
        bench.submit(other).await;
    }
    bench.change(&taking.key, cancel()).await;
    bench
        .submit(bench.new_job().unique("u", Duration::ZERO, Reject))
        .await;
}

pub(crate) async fn a_place_is_taken_within_one_group(bench: Bench) {
    let first = bench.new_job().unique("u", Duration::ZERO, Reject);
    let key = first.new.key.clone();
    let entries = vec![
        first.entry(),
        bench.new_job().unique("u", Duration::ZERO, Reject).entry(),
        bench
            .new_job()
            .unique("u", Duration::ZERO, ReturnExisting)
            .entry(),
        changed(&key, cancel()),
        bench.new_job().unique("u", Duration::ZERO, Reject).entry(),
    ];
    let committed = bench.commit(entries, vec![]).await;
    let replies = &committed.replies;
    assert_eq!(replies[1], Reply::NotTaken(NotTaken::UniqueTaken(key.id)));
    let (same, known) = done(&replies[2]);
    assert!(known && same.key == key);
    let (second, known) = done(&replies[4]);
    assert!(!known && second.state == JobState::Queued);
}

/// Goal: room is counted with every change of a group. Method: one place to wait, and in one group a
/// submit that is refused, a cancel, one that is taken, and one that is refused again.
pub(crate) async fn room_moves_with_every_change_of_a_group(bench: Bench) {
    bench.bound(1);
    let waiting = bench.submit(bench.new_job()).await;
    let entries = vec![
        bench.new_job().entry(),
        changed(&waiting.key, cancel()),
        bench.new_job().entry(),
        bench.new_job().entry(),
        batch([bench.new_job(), bench.new_job()]),
    ];
    let committed = bench.commit(entries, vec![]).await;
    let replies = &committed.replies;
    assert_eq!(replies[0], Reply::NotTaken(no_room(1, 1, 1)));
    done(&replies[2]);
    assert_eq!(replies[3], Reply::NotTaken(no_room(1, 1, 1)));
    let refused = vec![(0, no_room(1, 1, 2))];
    assert_eq!(replies[4], Reply::BatchNotTaken(refused));
    let theirs = bench.new_job().tenant("other").entry();
    done(&reply(&bench, theirs).await);
}

/// Goal: what is handed over needs no room, unless it has to wait all the same.
pub(crate) async fn a_handed_over_job_needs_room_only_where_it_waits(bench: Bench) {
    bench.bound(1);
    bench.submit(bench.new_job()).await;
    let committed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    assert_eq!(committed.claimed.len(), 1);
    let later = bench.new_job().delayed(Duration::from_secs(1)).hand_over();
    assert_eq!(
        reply(&bench, later).await,
        Reply::NotTaken(no_room(1, 1, 1))
    );
    let keyed = || {
        let new = bench.new_job();
        new.spec(|spec| spec.concurrency_key = Some(pacenote::job::name::Name::of("c")))
    };
    let committed = bench.commit(vec![keyed().hand_over()], vec![]).await;
    assert_eq!(committed.claimed.len(), 1);
    let refused = reply(&bench, keyed().hand_over()).await;
    assert_eq!(refused, Reply::NotTaken(no_room(1, 1, 1)));
}

pub(crate) async fn a_retry_needs_room_and_an_attempts_own_does_not(bench: Bench) {
    bench.bound(1);
    let over = bench.finished(bench.new_job()).await;
    let failed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let failed = Arc::clone(&failed.claimed[0].job);
    let error = Outcome::Failed(JobError::permanent("BROKEN", "for good"));
    let failed = bench.finish(&failed, error).await;
    let running = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let running = Arc::clone(&running.claimed[0].job);
    bench.submit(bench.new_job()).await;
    let retry = |of: &pacenote::job::Job| Entry::Retry {
        key: of.key.clone(),
        new_id: bench.new_job().new.key.id,
    };
    let refused = reply(&bench, retry(&failed)).await;
    assert_eq!(refused, Reply::NotTaken(no_room(1, 1, 1)));
    let refused = reply(&bench, retry(&over)).await;
    assert!(matches!(refused, Reply::Refused(_)), "it has succeeded");
    let lost = bench
        .change(
            &running.key,
            Change::Lose {
                attempt: 1,
                before: pacenote::job::time::Timestamp::from_micros(i64::MAX),
            },
        )
        .await;
    assert_eq!(lost.state, JobState::Queued);
    let refused = reply(&bench, retry(&failed)).await;
    assert_eq!(refused, Reply::NotTaken(no_room(2, 1, 1)));
}
