//! Rules: what a group does, and what it answers.

use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::payload::Payload;
use pacenote::job::{Change, JobState, Outcome, Refusal, Report};
use pacenote::store::{LogRange, Purge, Purged, Reply, StoreError, View};

use super::bench::{Bench, cancel, changed, demand, done, finish, lose, output, query, report};

pub(crate) async fn what_was_submitted_is_found_again(bench: Bench) {
    let new = bench
        .new_job()
        .queue("mail")
        .job_type("send/daily.v1")
        .priority(-7)
        .idempotent("once", "print")
        .spec(|spec| {
            spec.labels.insert("team".to_owned(), "blue".to_owned());
        })
        .input(Payload::text("hello"));
    let job = bench.submit(new.clone()).await;
    let found = bench.get(&job.key).await;
    assert_eq!(found.job, job);
    assert_eq!(found.job.spec, new.new.spec);
    assert_eq!(found.payloads.input, new.new.input);
    assert_eq!((job.state, job.last_sequence), (JobState::Queued, 1));
    assert_eq!(bench.log(&job.key).await.len(), 1);
}

pub(crate) async fn a_refused_change_fails_alone(bench: Bench) {
    let (one, other) = (
        bench.submit(bench.new_job()).await,
        bench.submit(bench.new_job()).await,
    );
    let entries = vec![
        changed(&one.key, Change::BecomeDue),
        changed(&one.key, finish(1, Outcome::Succeeded(None))),
        changed(&other.key, cancel()),
        bench.new_job().entry(),
        changed(&other.key, report(1, vec![], bench.now())),
    ];
    let committed = bench.commit(entries, vec![]).await;
    let replies = &committed.replies;
    assert_eq!(replies[0], Reply::Refused(Refusal::NotDue));
    assert_eq!(replies[1], Reply::Refused(Refusal::StaleLease));
    assert_eq!(done(&replies[2]).0.state, JobState::Cancelled);
    assert_eq!(done(&replies[3]).0.state, JobState::Queued);
    assert_eq!(replies[4], Reply::Refused(Refusal::StaleLease));
    assert_eq!(bench.get(&one.key).await.job, one, "as it was");
    assert_eq!(bench.all().await.len(), 3);
}

/// Goal: nothing is left of a group that names an id that is taken, neither in rows nor in what is looked
/// for. Method: beside it are a new key, a change of another job and a claim, all of which come again.
pub(crate) async fn an_id_that_is_taken_fails_its_group_alone(bench: Bench) {
    let job = bench.submit(bench.new_job().job_type("x")).await;
    let waiting = bench.submit(bench.new_job()).await;
    let twice = bench.new_job().job_type("x");
    for taken in [vec![job.key.clone()], vec![twice.new.key.clone(); 2]] {
        let mut entries = vec![
            bench.new_job().idempotent("k", "a").hand_over(),
            changed(&job.key, cancel()),
        ];
        entries.extend(taken.into_iter().map(|key| {
            let mut again = bench.new_job();
            again.new.key = key;
            again.entry()
        }));
        let refused = bench.try_commit(entries, vec![demand("work", 1)]).await;
        assert!(
            matches!(refused, Err(StoreError::Internal(_))),
            "{refused:?}"
        );
        assert_eq!(bench.get(&job.key).await.job, job);
        assert_eq!(bench.get(&waiting.key).await.job, waiting);
        assert_eq!(bench.all().await.len(), 2);
    }
    let entries = vec![
        bench.new_job().idempotent("k", "b").job_type("x").entry(),
        changed(&job.key, cancel()),
        twice.entry(),
    ];
    let committed = bench.commit(entries, vec![demand("work", 1)]).await;
    assert!(!done(&committed.replies[0]).1, "the key is free");
    assert_eq!(done(&committed.replies[1]).0.state, JobState::Cancelled);
    assert_eq!(committed.claimed[0].job.key, waiting.key);
}

pub(crate) async fn replies_stand_in_the_order_of_the_entries(bench: Bench) {
    let news: Vec<_> = (0..20).map(|_| bench.new_job()).collect();
    let unknown = bench.new_job().new.key;
    let mut entries: Vec<_> = news.iter().rev().cloned().map(|new| new.entry()).collect();
    entries.insert(7, changed(&unknown, cancel()));
    let committed = bench.commit(entries, vec![]).await;
    assert_eq!(committed.replies[7], Reply::Missing);
    let mut replies = committed.replies;
    replies.remove(7);
    for (reply, new) in replies.iter().zip(news.iter().rev()) {
        assert_eq!(done(reply).0.key, new.new.key);
    }
    let published: Vec<_> = committed.published.iter().map(|p| p.job.key.id).collect();
    let submitted: Vec<_> = news.iter().rev().map(|new| new.new.key.id).collect();
    assert_eq!(published, submitted, "published in the order of arrival");
}

pub(crate) async fn a_group_sees_what_its_earlier_entries_did(bench: Bench) {
    let new = bench.new_job();
    let key = new.new.key.clone();
    let entries = vec![
        new.hand_over(),
        changed(
            &key,
            report(1, vec![output(Payload::text("a"))], bench.now()),
        ),
        changed(&key, cancel()),
        changed(&key, finish(1, Outcome::Succeeded(None))),
        changed(&key, finish(1, Outcome::Succeeded(None))),
    ];
    let committed = bench.commit(entries, vec![]).await;
    assert_eq!(done(&committed.replies[3]).0.state, JobState::Cancelled);
    assert_eq!(committed.replies[4], Reply::Refused(Refusal::StaleLease));
    // Submitted, claimed, output, cancel asked, cancelling, cancelled.
    assert_eq!(bench.log(&key).await.len(), 6);
    assert_eq!(committed.depth_changes.len(), 1, "only where it ended up");
}

pub(crate) async fn a_cancel_that_changes_nothing_stores_nothing(bench: Bench) {
    let job = bench.finished(bench.new_job()).await;
    let committed = bench
        .commit(vec![changed(&job.key, cancel())], vec![])
        .await;
    assert_eq!(done(&committed.replies[0]).0, job);
    assert!(committed.published.is_empty() && committed.depth_changes.is_empty());
    let committed = bench.commit(vec![], vec![]).await;
    assert!(committed.replies.is_empty());
}

/// Goal: a life with a failed attempt, a lost one and a hand-back is stored as it was answered. Method:
/// every answer is compared with what a read gives by the bench; here only the figures are.
pub(crate) async fn a_life_from_submit_to_result_is_stored_step_by_step(bench: Bench) {
    bench.submit(bench.new_job()).await;
    let job = bench.claim(1).await.remove(0);
    assert_eq!(job.detail.worker_id, "worker");
    let error = JobError::retryable("BROKEN", "once");
    let job = bench.finish(&job, Outcome::Failed(error.clone())).await;
    assert_eq!(job.state, JobState::Scheduled);
    assert_eq!(job.detail.error.as_ref(), Some(&error));
    bench.pass(Duration::from_secs(2));
    let job = bench.change(&job.key, Change::BecomeDue).await;
    assert_eq!(bench.claim(1).await[0].attempt, 2);
    let job = bench.change(&job.key, lose(2)).await;
    assert_eq!((job.state, job.attempts_lost), (JobState::Queued, 1));
    let job = bench.claim(1).await.remove(0);
    let job = bench.finish(&job, Outcome::HandedBack).await;
    assert_eq!((job.attempt, job.attempts_charged), (3, 2));
    let job = bench.claim(1).await.remove(0);
    let result = Payload::text("done");
    bench
        .report(&job, vec![Report::Checkpoint(Payload::text("near"))])
        .await;
    let job = bench
        .finish(&job, Outcome::Succeeded(Some(result.clone())))
        .await;
    assert_eq!((job.state, job.attempts_charged), (JobState::Succeeded, 3));
    let found = bench.get(&job.key).await;
    assert_eq!(found.payloads.result, Some(result));
    assert_eq!(found.payloads.checkpoint, Some(Payload::text("near")));
}

/// Goal: a tenant cannot reach another's job by its id in any verb. Method: the same ids, asked for under
/// another name.
pub(crate) async fn another_tenant_sees_and_changes_nothing(bench: Bench) {
    let waiting = bench.submit(bench.new_job()).await;
    let over = bench.finished(bench.new_job().job_type("other")).await;
    bench
        .submit(bench.new_job().tenant("thief").job_type("x"))
        .await;
    let range = LogRange {
        after: 0,
        events: 10,
        bytes: 1 << 20,
    };
    for job in [&waiting, &over] {
        let mut key = job.key.clone();
        key.tenant = pacenote::job::name::Name::of("thief");
        for view in [View::Basic, View::Full] {
            assert_eq!(bench.store().job(&key, view).await, Ok(None));
        }
        assert_eq!(bench.store().log(&key, range).await, Ok(None));
        let entries = vec![
            changed(&key, cancel()),
            changed(&key, report(1, vec![], bench.now())),
            changed(&key, lose(1)),
        ];
        let committed = bench.commit(entries, vec![]).await;
        assert!(
            committed
                .replies
                .iter()
                .all(|reply| *reply == Reply::Missing)
        );
        let purge = vec![Purge::Job(key.clone()), Purge::Events(key, 1)];
        assert_eq!(bench.purge(purge).await, [Purged::Nothing, Purged::Nothing]);
        assert_eq!(bench.get(&job.key).await.job, *job);
    }
    assert_eq!(bench.list(query("thief")).await.len(), 1);
    let mut lane = demand("work", 5);
    lane.lane.tenant = pacenote::job::name::Name::of("thief");
    assert_eq!(bench.commit(vec![], vec![lane]).await.claimed, []);
}

pub(crate) async fn two_tenants_may_have_a_job_of_the_same_id(bench: Bench) {
    let one = bench.new_job().tenant("one").input(Payload::text("1"));
    let mut two = bench.new_job().tenant("two").input(Payload::text("2"));
    two.new.key.id = one.new.key.id;
    let keys = [one.new.key.clone(), two.new.key.clone()];
    let entries = vec![one.hand_over(), two.hand_over()];
    let committed = bench.commit(entries, vec![]).await;
    for (job, text) in committed.claimed.iter().zip(["1", "2"]) {
        let finish = Outcome::Succeeded(Some(Payload::text(text)));
        bench.finish(&job.job, finish).await;
    }
    for (key, text) in keys.iter().zip(["1", "2"]) {
        let payloads = bench.get(key).await.payloads;
        assert_eq!(payloads.input, Some(Payload::text(text)));
        assert_eq!(payloads.result, Some(Payload::text(text)));
    }
    // What is over for one of them is not over for the other one.
    let purge = vec![Purge::Job(keys[0].clone())];
    assert_eq!(bench.purge(purge).await, [Purged::Job(keys[0].clone())]);
    let left = bench.get(&keys[1]).await;
    assert_eq!(left.payloads.input, Some(Payload::text("2")));
    assert_eq!(bench.log(&keys[1]).await.len(), 3);
}
