//! Rules: what is due, and whose lease has ended.

use std::sync::Arc;
use std::time::Duration;

use super::bench::{Bench, cancel, changed, finish, lose, output, report};
use pacenote::job::event::JobError;
use pacenote::job::payload::Payload;
use pacenote::job::time::Timestamp;
use pacenote::job::{Change, Job, JobState, Outcome, Refusal};
use pacenote::store::{AttemptTimer, Due, Purge, Purged, Reply, Timer};

pub(crate) async fn due_jobs_come_earliest_first_and_say_what_is_next(bench: Bench) {
    let nothing = Due {
        keys: vec![],
        next: None,
    };
    assert_eq!(
        bench.store().due(Timer::Start, bench.now(), 10).await,
        Ok(nothing.clone())
    );
    let mut times = Vec::new();
    for _ in 0..5 {
        bench.submit(bench.new_job()).await;
        let job = bench.claim(1).await.remove(0);
        let error = JobError::retryable("BROKEN", "again");
        let job = bench.finish(&job, Outcome::Failed(error)).await;
        times.push((job.run_at, job.key.clone()));
        bench.pass(Duration::from_millis(100));
    }
    let before_all = Timestamp::from_micros(times[0].0.as_micros() - 1);
    let found = bench
        .store()
        .due(Timer::Start, before_all, 10)
        .await
        .expect("a read");
    assert_eq!((found.keys.len(), found.next), (0, Some(times[0].0)));
    let found = bench
        .store()
        .due(Timer::Start, times[2].0, 10)
        .await
        .expect("a read");
    let keys: Vec<_> = times[..3].iter().map(|(_, key)| key.clone()).collect();
    assert_eq!((found.keys, found.next), (keys, Some(times[3].0)));
    let found = bench
        .store()
        .due(Timer::Start, times[4].0, 2)
        .await
        .expect("a read");
    assert_eq!((found.keys.len(), found.next), (2, Some(times[2].0)));
    bench.pass(Duration::from_secs(60));
    for (_, key) in &times[..4] {
        bench.change(key, Change::BecomeDue).await;
    }
    bench.change(&times[4].1, cancel()).await;
    assert_eq!(
        bench.store().due(Timer::Start, bench.now(), 10).await,
        Ok(nothing)
    );
}

pub(crate) async fn ended_leases_are_found_and_others_are_not(bench: Bench) {
    let mut jobs = Vec::new();
    for _ in 0..4 {
        bench.submit(bench.new_job()).await;
        jobs.push(bench.claim(1).await.remove(0));
        bench.pass(Duration::from_secs(1));
    }
    bench.submit(bench.new_job()).await;
    let all = Timestamp::from_micros(i64::MAX);
    let ended = |before, limit| {
        bench
            .store()
            .attempts_due(AttemptTimer::Lease, before, limit)
    };
    let first_end = jobs[0].lease_expires_at.expect("a lease");
    assert_eq!(ended(first_end, 10).await, Ok(vec![]), "not before its end");
    let just_after = first_end.after(Duration::from_micros(1));
    assert_eq!(
        ended(just_after, 10).await,
        Ok(vec![(jobs[0].key.clone(), 1)])
    );
    assert_eq!(ended(all, 3).await.expect("a read").len(), 3);
    // A heartbeat renews it, a cancel leaves it, an end takes it.
    let change = report(1, vec![], bench.now().after(Duration::from_secs(100)));
    bench.change(&jobs[0].key, change).await;
    bench.change(&jobs[1].key, cancel()).await;
    bench.finish(&jobs[2], Outcome::Succeeded(None)).await;
    let soon = bench.now().after(Duration::from_secs(50));
    let keys: Vec<_> = [&jobs[1], &jobs[3]].map(|job| (job.key.clone(), 1)).into();
    assert_eq!(ended(soon, 10).await, Ok(keys));
    let lost = bench.change(&jobs[3].key, lose(1)).await;
    assert_eq!((lost.attempt, lost.lease_expires_at), (1, None));
    assert_eq!(ended(all, 10).await.expect("a read").len(), 2);
}

/// Goal: a heartbeat that comes between the look for ended leases and their end keeps the lease, and one
/// tick decides who was first.
pub(crate) async fn a_lease_renewed_after_the_look_is_not_lost(bench: Bench) {
    bench.submit(bench.new_job()).await;
    let job = bench.claim(1).await.remove(0);
    let ends = job.lease_expires_at.expect("a lease");
    let tick = Duration::from_micros(1);
    let lose = |before| Change::Lose { attempt: 1, before };
    let refused = Reply::Refused(Refusal::NotDue);
    let at_its_end = bench.commit(vec![changed(&job.key, lose(ends))], vec![]);
    assert_eq!(at_its_end.await.replies, std::slice::from_ref(&refused));
    // The sweep saw it a tick over; the heartbeat that renews it by a tick was first.
    let before = ends.after(tick);
    let heartbeat = Change::Report {
        attempt: 1,
        reports: vec![],
        heard_at: bench.now(),
        lease_until: before,
        number: 0,
    };
    let group = vec![
        changed(&job.key, heartbeat),
        changed(&job.key, lose(before)),
    ];
    let committed = bench.commit(group, vec![]).await;
    assert_eq!(committed.replies[1], refused);
    assert_eq!(bench.get(&job.key).await.job.state, JobState::Running);
    let lost = bench.change(&job.key, lose(before.after(tick))).await;
    assert_eq!((lost.state, lost.attempts_charged), (JobState::Queued, 1));
    // The heartbeat that comes now is late.
    let late = bench.commit(
        vec![changed(&job.key, report(1, vec![], bench.now()))],
        vec![],
    );
    let stale = Reply::Refused(Refusal::StaleLease);
    assert_eq!(late.await.replies, [stale]);
}

pub(crate) async fn a_job_with_a_start_time_waits_for_it(bench: Bench) {
    let at = bench.now().after(Duration::from_secs(60));
    let later = bench.submit(bench.new_job().start_at(at)).await;
    let now = bench.submit(bench.new_job().start_at(bench.now())).await;
    assert_eq!((later.state, later.run_at), (JobState::Scheduled, at));
    assert_eq!(now.state, JobState::Queued);
    let due = bench.store().due(Timer::Start, bench.now(), 10).await;
    assert_eq!(due.map(|due| due.next), Ok(Some(at)));
    bench.pass(Duration::from_secs(60));
    let due = bench.store().due(Timer::Start, bench.now(), 10).await;
    assert_eq!(due.map(|due| due.keys), Ok(vec![later.key.clone()]));
}

/// Goal: what waits expires at its deadline and not before, what runs does not, and who waits again has what
/// is left of the total. Method: the timer is read at each of these times.
pub(crate) async fn deadlines_of_waiting_jobs_are_found(bench: Bench) {
    let secs = Duration::from_secs;
    let due = || bench.store().due(Timer::Deadline, bench.now(), 10);
    let new = || {
        bench.new_job().timeouts(|timeouts| {
            timeouts.queue_timeout = Some(secs(10));
            timeouts.total_timeout = Some(secs(30));
        })
    };
    let expires = bench.submit(new().job_type("x")).await;
    bench.submit(new()).await;
    let running = bench.claim(1).await.remove(0);
    assert_eq!(running.deadline_at, None, "whoever runs it sees to it");
    let found = due().await.expect("a read");
    assert_eq!(
        (found.keys.len(), found.next),
        (0, Some(bench.now().after(secs(10))))
    );
    bench.pass(secs(10));
    assert_eq!(
        due().await.map(|due| due.keys),
        Ok(vec![expires.key.clone()])
    );
    let over = bench.change(&expires.key, Change::Expire).await;
    assert_eq!(over.state, JobState::Expired);
    let waits = bench.finish(&running, Outcome::HandedBack).await;
    let rest = bench.now().after(secs(20));
    let found = due().await.expect("a read");
    assert_eq!((found.keys.len(), found.next), (0, Some(rest)));
    bench.pass(secs(20));
    assert_eq!(due().await.map(|due| due.keys), Ok(vec![waits.key.clone()]));
    bench.change(&waits.key, cancel()).await;
    assert_eq!(due().await.map(|due| due.keys), Ok(vec![]));
}

/// Goal: whoever is the first to look at a job whose time is over, it does not begin. Method: the claim
/// comes before the timer, at the deadline and one tick before.
pub(crate) async fn a_job_whose_time_is_over_is_not_claimed(bench: Bench) {
    let limit = Duration::from_secs(10);
    let tick = Duration::from_micros(1);
    let new = || {
        bench
            .new_job()
            .timeouts(|timeouts| timeouts.queue_timeout = Some(limit))
    };
    let late = bench.submit(new()).await;
    bench.pass(tick);
    let just_in_time = bench.submit(new()).await;
    bench.pass(limit - tick);
    let claimed = bench.claim(2).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].key, just_in_time.key);
    let expired = bench.get(&late.key).await.job;
    assert_eq!((expired.state, expired.attempt), (JobState::Expired, 0));
    let error = expired.detail.error.as_ref().expect("it says why");
    assert_eq!(error.reason, "QUEUE_TIMEOUT");
}

pub(crate) async fn what_is_over_is_found_when_it_need_not_be_kept(bench: Bench) {
    let secs = Duration::from_secs;
    let due = || bench.store().due(Timer::Purge, bench.now(), 10);
    let kept = |finished, failed| {
        bench.new_job().spec(|spec| {
            spec.retention.finished = finished;
            spec.retention.failed = failed;
        })
    };
    let first = bench.finished(kept(secs(10), secs(99))).await;
    let committed = bench
        .commit(vec![kept(secs(5), secs(20)).hand_over()], vec![])
        .await;
    let failed = Outcome::Failed(JobError::permanent("BAD", "it is"));
    let second = bench.finish(&committed.claimed[0].job, failed).await;
    bench.submit(kept(secs(0), secs(0))).await;
    let found = due().await.expect("a read");
    assert_eq!((found.keys.len(), found.next), (0, first.purge_at));
    bench.pass(secs(10));
    assert_eq!(due().await.map(|due| due.keys), Ok(vec![first.key.clone()]));
    bench.purge(vec![Purge::Job(first.key.clone())]).await;
    bench.pass(secs(10));
    assert_eq!(
        due().await.map(|due| due.keys),
        Ok(vec![second.key.clone()])
    );
}

async fn fronts_due(bench: &Bench) -> Due {
    let due = bench.store().due(Timer::PurgeEvents, bench.now(), 10);
    let mut due = due.await.expect("a read");
    due.keys.sort();
    due
}

/// Goal: the front of a log is due when its time is over, not before, and until nothing is left that could
/// go; never where the job itself goes no later. Method: jobs of each kind, and the timer after each step.
pub(crate) async fn fronts_of_logs_are_found_until_they_have_gone(mut bench: Bench) {
    let (secs, tick) = (Duration::from_secs, Duration::from_micros(1));
    let kept = |bench: &Bench, events| {
        bench.new_job().spec(|spec| {
            spec.retention.finished = secs(10);
            spec.event_retention = Some(events);
        })
    };
    let due = |keys: &[&Arc<Job>], next: Option<&Arc<Job>>| {
        let mut keys: Vec<_> = keys.iter().map(|job| job.key.clone()).collect();
        keys.sort();
        let next = next.and_then(|job| job.events_purge_at);
        Due { keys, next }
    };
    bench.finished(bench.new_job()).await;
    let whole = bench.finished(kept(&bench, secs(10))).await;
    assert_eq!(
        (whole.events_purge_at, whole.purge_at.is_some()),
        (None, true)
    );
    bench.submit(kept(&bench, secs(0)).job_type("x")).await;
    assert_eq!(fronts_due(&bench).await, due(&[], None));

    let last = bench.finished(kept(&bench, secs(10) - tick)).await;
    // Its key keeps the job for a day.
    let keyed = bench
        .finished(kept(&bench, secs(10)).idempotent("k", "print"))
        .await;
    let first = bench.finished(kept(&bench, secs(5))).await;
    let new = kept(&bench, secs(5));
    let key = new.new.key.clone();
    let end = changed(&key, finish(1, Outcome::Succeeded(None)));
    bench.commit(vec![new.hand_over(), end], vec![]).await;
    let single = bench.get(&key).await.job;
    assert_eq!(first.events_purge_at, Some(bench.now().after(secs(5))));
    bench.pass(secs(5) - tick);
    assert_eq!(fronts_due(&bench).await, due(&[], Some(&first)));
    bench.pass(tick);
    assert_eq!(
        fronts_due(&bench).await,
        due(&[&first, &single], Some(&last))
    );

    let front = |job: &Arc<Job>, through| vec![Purge::Events(job.key.clone(), through)];
    assert_eq!(bench.purge(front(&first, 1)).await, [Purged::Nothing]);
    // What came in one commit goes together, or stays.
    assert_eq!(
        bench.purge(front(&single, i64::MAX)).await,
        [Purged::Nothing]
    );
    assert_eq!(fronts_due(&bench).await, due(&[&first], Some(&last)));
    let gone = [Purged::Events(first.key.clone(), first.last_sequence)];
    assert_eq!(bench.purge(front(&first, i64::MAX)).await, gone);
    bench.crash().await;
    assert_eq!(fronts_due(&bench).await, due(&[], Some(&last)));
    for (job, first_sequence) in [(&first, 3), (&single, 1)] {
        let found = bench.get(&job.key).await.job;
        assert_eq!(
            (found.events_purge_at, found.purge_at),
            (None, job.purge_at)
        );
        assert_eq!(found.first_sequence, first_sequence);
        assert_eq!(found.version, job.version + 1);
    }
    bench.pass(secs(5));
    assert_eq!(fronts_due(&bench).await, due(&[&last, &keyed], None));
    let jobs = [&last, &keyed].map(|job| Purge::Job(job.key.clone()));
    bench.purge(jobs.to_vec()).await;
    assert_eq!(fronts_due(&bench).await, due(&[], None));
    let all = bench.store().due(Timer::Purge, bench.now(), 10).await;
    let all = all.expect("a read").keys;
    assert!(all.contains(&first.key) && all.contains(&single.key));
}

pub(crate) async fn silent_attempts_are_found(bench: Bench) {
    let minute = Duration::from_secs(60);
    let new = || {
        bench
            .new_job()
            .timeouts(|timeouts| timeouts.stall_time = minute)
    };
    let entries = vec![new().hand_over(), new().hand_over(), new().entry()];
    let committed = bench.commit(entries, vec![]).await;
    let [talks, silent] = [0, 1].map(|at: usize| committed.claimed[at].job.clone());
    let found = || {
        bench
            .store()
            .attempts_due(AttemptTimer::Stall, bench.now(), 10)
    };
    bench.pass(minute / 2);
    bench.report(&talks, vec![output(Payload::text("x"))]).await;
    // A heartbeat alone says nothing.
    bench.report(&silent, vec![]).await;
    assert_eq!(found().await, Ok(vec![]));
    bench.pass(minute / 2);
    assert_eq!(found().await, Ok(vec![(silent.key.clone(), 1)]));
    let stall = Change::Stall {
        attempt: 1,
        steady_now: bench.now(),
    };
    let stalled = bench.change(&silent.key, stall).await;
    assert!(stalled.stalled_since.is_some());
    assert_eq!(found().await, Ok(vec![]), "it is said once");
    bench
        .report(&silent, vec![output(Payload::text("x"))])
        .await;
    bench.pass(minute);
    assert_eq!(found().await.expect("a read").len(), 2);
}
