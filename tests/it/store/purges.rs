//! Rules: what may be removed, and what is left of it.

use std::time::Duration;

use pacenote::job::payload::Payload;
use pacenote::job::{JobState, Outcome, Report};
use pacenote::store::{Purge, Purged, Timer};

use super::bench::{Bench, cancel, changed, finish, lose, output, query, report};

pub(crate) async fn only_what_is_finished_is_purged(bench: Bench) {
    let queued = bench.submit(bench.new_job().job_type("x")).await;
    bench.submit(bench.new_job()).await;
    bench.submit(bench.new_job()).await;
    bench.submit(bench.new_job()).await;
    let mut running = bench.claim(3).await;
    let cancelling = bench.change(&running[1].key, cancel()).await;
    let again = pacenote::job::event::JobError::retryable("BROKEN", "again");
    let scheduled = bench.finish(&running[2], Outcome::Failed(again)).await;
    let unknown = bench.new_job().new.key;
    let live = [
        queued.key.clone(),
        running.remove(0).key.clone(),
        cancelling.key.clone(),
        scheduled.key.clone(),
    ];
    for key in live.iter().chain([&unknown]) {
        let purge = vec![Purge::Job(key.clone()), Purge::Events(key.clone(), 1000)];
        assert_eq!(bench.purge(purge).await, [Purged::Nothing, Purged::Nothing]);
    }
    for key in &live {
        bench.log(key).await;
    }
    assert_eq!(bench.all().await.len(), 4);
    // In the middle of others, the finished one goes all the same.
    let over = bench.finished(bench.new_job()).await;
    let purge = vec![
        Purge::Job(queued.key.clone()),
        Purge::Job(over.key.clone()),
        Purge::Job(over.key.clone()),
    ];
    let purged = [
        Purged::Nothing,
        Purged::Job(over.key.clone()),
        Purged::Nothing,
    ];
    assert_eq!(bench.purge(purge).await, purged);
}

pub(crate) async fn a_purged_job_leaves_nothing_behind(bench: Bench) {
    let mut keys = Vec::new();
    for state in [JobState::Succeeded, JobState::Failed, JobState::Cancelled] {
        let new = bench.new_job().input(Payload::text("in"));
        let committed = bench.commit(vec![new.hand_over()], vec![]).await;
        let job = &committed.claimed[0].job;
        bench
            .report(job, vec![Report::Checkpoint(Payload::text("c"))])
            .await;
        let outcome = match state {
            JobState::Succeeded => Outcome::Succeeded(Some(Payload::text("r"))),
            JobState::Failed => {
                Outcome::Failed(pacenote::job::event::JobError::permanent("BAD", "it is"))
            }
            _ => {
                bench.change(&job.key, cancel()).await;
                Outcome::Cancelled
            }
        };
        let over = bench.finish(job, outcome).await;
        assert_eq!(over.state, state);
        keys.push(over.key.clone());
    }
    let purge = keys.iter().cloned().map(Purge::Job).collect();
    let purged: Vec<_> = keys.iter().cloned().map(Purged::Job).collect();
    assert_eq!(bench.purge(purge).await, purged);
    for key in &keys {
        assert_eq!(bench.find(key).await, None);
        let committed = bench.commit(vec![changed(key, cancel())], vec![]).await;
        assert_eq!(committed.replies, [pacenote::store::Reply::Missing]);
    }
    assert_eq!(bench.list(query("default")).await, []);
    assert!(bench.depths().await.is_empty());
    // The id may come again, and finds nothing of the one before it.
    let mut again = bench.new_job();
    again.new.key = keys[0].clone();
    let job = bench.submit(again).await;
    assert_eq!(bench.get(&job.key).await.payloads, Default::default());
    assert_eq!(bench.log(&job.key).await.len(), 1);
}

pub(crate) async fn the_front_of_a_log_goes_and_its_last_event_stays(bench: Bench) {
    let committed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let job = &committed.claimed[0].job;
    for _ in 0..3 {
        let lines = (0..3).map(|_| output(Payload::text("x"))).collect();
        bench.report(job, lines).await;
    }
    let over = bench.finish(job, Outcome::Succeeded(None)).await;
    assert_eq!(over.last_sequence, 12, "segments of 2, 3, 3, 3 and 1");
    let purge = |through| bench.purge(vec![Purge::Events(over.key.clone(), through)]);
    assert_eq!(purge(1).await, [Purged::Nothing], "no whole segment");
    assert_eq!(purge(4).await, [Purged::Events(over.key.clone(), 3)]);
    assert_eq!(bench.get(&over.key).await.job.first_sequence, 3);
    assert_eq!(bench.log(&over.key).await.len(), 10);
    assert_eq!(purge(4).await, [Purged::Nothing], "nothing more to remove");
    assert_eq!(
        purge(i64::MAX).await,
        [Purged::Events(over.key.clone(), 12)]
    );
    let found = bench.get(&over.key).await.job;
    assert_eq!((found.first_sequence, found.last_sequence), (12, 12));
    assert_eq!(bench.log(&over.key).await.len(), 1);
    // The writer sees what the purge did: a change of the same job is no clash.
    let entries = vec![changed(&over.key, cancel()), changed(&over.key, lose(1))];
    bench.pass(Duration::from_secs(1));
    bench.commit(entries, vec![]).await;
    let purge = vec![Purge::Job(over.key.clone())];
    assert_eq!(bench.purge(purge).await, [Purged::Job(over.key.clone())]);
}

/// A finished job with so many segments. The front of its log may go at once.
async fn long_job(bench: &Bench, segments: usize) -> std::sync::Arc<pacenote::job::Job> {
    let new = bench.new_job();
    let new = new.spec(|spec| spec.event_retention = Some(Duration::ZERO));
    let committed = bench.commit(vec![new.hand_over()], vec![]).await;
    let job = &committed.claimed[0].job;
    // Without the checks of a bench, which read the whole log each time.
    for _ in 0..segments - 2 {
        let line = report(job.attempt, vec![output(Payload::text("x"))], bench.now());
        let group = bench.group(vec![changed(&job.key, line)], vec![]);
        bench.store().commit(group).await.expect("stored");
    }
    let end = finish(job.attempt, Outcome::Succeeded(None));
    bench.change(&job.key, end).await
}

/// Goal: however long a log is, its job is gone at once and whole, whenever the store dies, and nothing of
/// it stays for ever. Method: a log of several transactions; a crash after the first.
pub(crate) async fn a_long_log_goes_in_parts_and_its_job_at_once(mut bench: Bench) {
    let long = long_job(&bench, 700).await;
    let other = bench.submit(bench.new_job()).await;
    let purged = bench.purge(vec![Purge::Job(long.key.clone())]).await;
    assert_eq!(purged, [Purged::Job(long.key.clone())]);
    assert_eq!(bench.find(&long.key).await, None);
    bench.crash().await;
    assert_eq!(bench.find(&long.key).await, None);
    let mut rounds = 0;
    while bench.purge(vec![Purge::Rest]).await == [Purged::Rest] {
        rounds += 1;
        assert!(rounds < 100, "it never ends");
    }
    assert_eq!(bench.purge(vec![Purge::Rest]).await, [Purged::Nothing]);
    assert_eq!(bench.log(&other.key).await.len(), 1);
    // Nothing is left under its id.
    let mut again = bench.new_job();
    again.new.key = long.key.clone();
    let again = bench.submit(again).await;
    assert_eq!(bench.log(&again.key).await.len(), 1);
}

/// Goal: one transaction is short whatever is asked for: what has no room in it is left, in order, and the
/// first one never is. Method: a log longer than a transaction, in front of others and behind them.
pub(crate) async fn what_has_no_room_in_a_transaction_is_left_for_the_next(bench: Bench) {
    let long = long_job(&bench, 700).await;
    let mut keys = vec![long.key.clone()];
    for _ in 0..3 {
        keys.push(bench.finished(bench.new_job()).await.key.clone());
    }
    let mut left: Vec<Purge> = keys.iter().cloned().map(Purge::Job).collect();
    let mut gone = Vec::new();
    let mut rounds = 0;
    while !left.is_empty() {
        rounds += 1;
        let purged = bench.purge(left.clone()).await;
        let done = purged.iter().take_while(|one| **one != Purged::Later);
        let done: Vec<Purged> = done.cloned().collect();
        assert!(!done.is_empty(), "the first one is never left");
        assert!(purged[done.len()..].iter().all(|one| *one == Purged::Later));
        left.drain(..done.len());
        gone.extend(done);
    }
    let all: Vec<Purged> = keys.iter().cloned().map(Purged::Job).collect();
    assert_eq!(gone, all);
    assert!(rounds <= 2, "{rounds}");
    assert_eq!(bench.list(query("default")).await, []);
}

/// Goal: the front of a long log goes in parts, too, each of which is a log without holes; until the last
/// one has gone, it is due.
pub(crate) async fn the_front_of_a_long_log_goes_in_parts(mut bench: Bench) {
    let long = long_job(&bench, 700).await;
    let last = long.last_sequence;
    let mut first = 1;
    loop {
        let purged = bench
            .purge(vec![Purge::Events(long.key.clone(), last)])
            .await;
        match &purged[0] {
            Purged::Events(_, now) => {
                assert!(*now > first);
                first = *now;
            }
            Purged::Nothing => break,
            other => panic!("{other:?}"),
        }
        bench.crash().await;
        assert_eq!(bench.get(&long.key).await.job.first_sequence, first);
        let log = bench.log(&long.key).await;
        assert_eq!(log.len() as i64, last - first + 1);
        let due = bench.store().due(Timer::PurgeEvents, bench.now(), 10);
        let due = due.await.expect("a read").keys;
        assert_eq!(due.contains(&long.key), first < last);
    }
    assert_eq!(first, last);
}
