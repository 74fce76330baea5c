//! Rules: who waits for whom: concurrency keys, and the place in a lane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::name::Name;
use pacenote::job::{Change, Job, JobState, Outcome};
use pacenote::store::Committed;

use super::bench::{Bench, cancel, changed, demand, finish};

/// Claims until nothing more is claimed or set aside, as the queue does.
async fn claim_all(bench: &Bench, places: usize) -> Vec<Arc<Job>> {
    let mut claimed = Vec::new();
    loop {
        let left = places - claimed.len();
        let committed = bench.commit(vec![], vec![demand("work", left)]).await;
        let idle = committed.depth_changes.is_empty();
        claimed.extend(committed.claimed.into_iter().map(|claimed| claimed.job));
        if idle || claimed.len() == places {
            return claimed;
        }
    }
}

async fn end(bench: &Bench, job: &Job) -> Committed {
    let end = changed(&job.key, finish(job.attempt, Outcome::Succeeded(None)));
    bench.commit(vec![end], vec![]).await
}

async fn state(bench: &Bench, job: &Job) -> JobState {
    bench.get(&job.key).await.job.state
}

pub(crate) async fn one_job_of_a_key_runs_and_the_next_follows_in_turn(bench: Bench) {
    let mut jobs = Vec::new();
    for priority in [0, 0, 5, 0] {
        let new = bench.new_job().concurrency_key("k").priority(priority);
        jobs.push(bench.submit(new).await);
        bench.pass(Duration::from_millis(1));
    }
    let free = bench.submit(bench.new_job()).await;
    let claimed = claim_all(&bench, 5).await;
    let ids: Vec<_> = claimed.iter().map(|job| job.key.id).collect();
    assert_eq!(ids, [jobs[2].key.id, free.key.id]);
    for job in [&jobs[0], &jobs[1], &jobs[3]] {
        assert_eq!(state(&bench, job).await, JobState::Blocked);
    }
    let mut running = claimed[0].clone();
    for next in [&jobs[0], &jobs[1], &jobs[3]] {
        end(&bench, &running).await;
        assert_eq!(state(&bench, next).await, JobState::Queued, "it may go on");
        let claimed = claim_all(&bench, 5).await;
        assert_eq!(claimed.len(), 1);
        assert_eq!(claimed[0].key, next.key);
        running = claimed[0].clone();
    }
}

pub(crate) async fn a_key_is_of_its_tenant_and_queue_and_may_have_a_limit(bench: Bench) {
    let keyed = |queue: &str, tenant: &str| {
        let new = bench.new_job().queue(queue).tenant(tenant);
        new.concurrency_key("k").hand_over()
    };
    let entries = vec![
        keyed("default", "default"),
        keyed("default", "default"),
        keyed("default", "other"),
        keyed("wide", "default"),
        keyed("wide", "default"),
        keyed("wide", "default"),
    ];
    let mut group = bench.group(entries, vec![]);
    group.key_limits = Arc::new(BTreeMap::from([(Name::of("wide"), 2)]));
    let committed = bench.commit_group(group).await;
    let states = committed
        .replies
        .iter()
        .map(|reply| super::bench::done(reply).0.state);
    use JobState::{Queued, Running};
    assert_eq!(
        states.collect::<Vec<_>>(),
        [Running, Queued, Running, Running, Running, Queued]
    );
}

/// Goal: whoever goes makes room, however it goes. Method: two jobs of a key, of which one waits, and the
/// first one succeeds, fails, snoozes, expires or waits for its retry.
pub(crate) async fn room_is_made_however_a_job_goes(bench: Bench) {
    let again = || Outcome::Failed(JobError::retryable("BROKEN", "again"));
    let ends: [fn(u32) -> Change; 4] = [
        |attempt| finish(attempt, Outcome::Succeeded(None)),
        |attempt| {
            finish(
                attempt,
                Outcome::Failed(JobError::permanent("BAD", "it is")),
            )
        },
        |attempt| finish(attempt, Outcome::Snoozed(Duration::from_secs(60))),
        |attempt| finish(attempt, Outcome::Expired),
    ];
    for end in ends.into_iter().chain([again_of as fn(u32) -> Change]) {
        let key = format!("k{}", bench.new_job().new.key.id);
        let new = || bench.new_job().concurrency_key(&key).hand_over();
        let committed = bench.commit(vec![new(), new()], vec![]).await;
        let (first, second) = (committed.claimed[0].job.clone(), &committed.replies[1]);
        let second = super::bench::done(second).0;
        claim_all(&bench, 1).await;
        assert_eq!(state(&bench, &second).await, JobState::Blocked);
        bench.change(&first.key, end(first.attempt)).await;
        assert_eq!(state(&bench, &second).await, JobState::Queued);
        let claimed = bench.claim(1).await;
        assert_eq!(claimed[0].key, second.key);
        bench.change(&second.key, cancel()).await;
        bench.finish(&claimed[0], again()).await;
    }
}

fn again_of(attempt: u32) -> Change {
    finish(
        attempt,
        Outcome::Failed(JobError::retryable("BROKEN", "again")),
    )
}

pub(crate) async fn who_waits_can_be_cancelled_and_makes_no_room(bench: Bench) {
    let new = || bench.new_job().concurrency_key("k").hand_over();
    let committed = bench.commit(vec![new(), new(), new(), new()], vec![]).await;
    let jobs: Vec<_> = committed
        .replies
        .iter()
        .map(|r| super::bench::done(r).0)
        .collect();
    claim_all(&bench, 4).await;
    bench.change(&jobs[1].key, cancel()).await;
    assert_eq!(state(&bench, &jobs[2]).await, JobState::Blocked);
    // The next one is cancelled in the very group that makes room: then it is the one behind it.
    let entries = vec![
        changed(&jobs[0].key, finish(1, Outcome::Succeeded(None))),
        changed(&jobs[2].key, cancel()),
    ];
    bench.commit(entries, vec![]).await;
    assert_eq!(state(&bench, &jobs[2]).await, JobState::Cancelled);
    assert_eq!(state(&bench, &jobs[3]).await, JobState::Queued);
}

pub(crate) async fn keys_are_counted_after_a_crash(mut bench: Bench) {
    let news = [0; 3].map(|_| bench.new_job().concurrency_key("k"));
    let [first, second, third] = news;
    let entries = vec![first.hand_over(), second.hand_over()];
    let committed = bench.commit(entries, vec![]).await;
    let running = committed.claimed[0].job.clone();
    bench.crash().await;
    bench.submit(third).await;
    assert_eq!(claim_all(&bench, 3).await, []);
    end(&bench, &running).await;
    assert_eq!(claim_all(&bench, 3).await.len(), 1);
}

/// A long line of one key does not hold up what stands behind it.
pub(crate) async fn a_long_line_of_one_key_is_passed(bench: Bench) {
    let line = (0..600).map(|_| bench.new_job().concurrency_key("k").entry());
    bench.commit(line.collect(), vec![]).await;
    bench.pass(Duration::from_secs(1));
    let free = bench.submit(bench.new_job()).await;
    let claimed = claim_all(&bench, 2).await;
    assert_eq!(claimed.len(), 2);
    assert_eq!(claimed[1].key, free.key);
}

pub(crate) async fn a_place_in_a_lane_is_counted(bench: Bench) {
    let mut jobs = Vec::new();
    for priority in [0, 0, 5, -1, 0] {
        jobs.push(bench.submit(bench.new_job().priority(priority)).await);
        bench.pass(Duration::from_millis(1));
    }
    bench
        .submit(bench.new_job().tenant("other").priority(9))
        .await;
    bench
        .submit(bench.new_job().job_type("other").priority(9))
        .await;
    let mut ahead = Vec::new();
    for job in &jobs {
        ahead.push(bench.store().ahead_of(job).await.expect("a read"));
    }
    assert_eq!(ahead, [1, 2, 0, 4, 3].map(Some));
    bench.claim(2).await;
    assert_eq!(bench.store().ahead_of(&jobs[3]).await, Ok(Some(2)));
}
