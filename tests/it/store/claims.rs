//! Rules: what is claimed, in which order, and what is left.

use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::name::Name;
use pacenote::job::payload::Payload;
use pacenote::job::{Change, JobState, Outcome, Report};
use pacenote::store::{ClaimTerms, Demand};

use super::bench::{Bench, cancel, changed, demand, done, finish};

pub(crate) async fn claims_go_by_priority_then_time_then_id(bench: Bench) {
    let mut submitted = Vec::new();
    for (pause, priorities) in [(0, [0, 5, -5]), (1, [0, 5, 1000]), (2, [-1000, 0, 5])] {
        bench.pass(Duration::from_millis(pause));
        // One group has one time: ids decide, whatever the order of arrival.
        let mut group: Vec<_> = priorities
            .into_iter()
            .flat_map(|priority| [priority, priority])
            .map(|priority| bench.new_job().priority(priority))
            .collect();
        group.reverse();
        let entries = group.into_iter().map(|new| new.entry()).collect();
        let committed = bench.commit(entries, vec![]).await;
        submitted.extend(committed.replies.iter().map(|reply| done(reply).0));
    }
    submitted.sort_by_key(|job| (-job.spec.priority, job.run_at, job.key.id));
    let mut claimed = Vec::new();
    for places in [1, 2, 5, 100] {
        claimed.extend(bench.claim(places).await);
    }
    let ids = |jobs: &[std::sync::Arc<pacenote::job::Job>]| -> Vec<_> {
        jobs.iter().map(|job| job.key.id).collect()
    };
    assert_eq!(ids(&claimed), ids(&submitted));
    assert!(claimed.iter().all(|job| job.state == JobState::Running));
}

pub(crate) async fn lanes_do_not_touch_each_other(bench: Bench) {
    let news = [
        bench.new_job(),
        bench.new_job().queue("q2"),
        bench.new_job().job_type("t2"),
        bench.new_job().tenant("other"),
    ];
    let lanes: Vec<_> = news.iter().map(|new| new.new.clone()).collect();
    for new in news.iter().chain(&news) {
        let mut new = new.clone();
        new.new.key.id = bench.new_job().new.key.id;
        bench.submit(new).await;
    }
    let demands = lanes.iter().enumerate().map(|(index, new)| {
        let mut demand = demand("work", 1 + index % 2);
        demand.lane.queue = new.spec.queue.clone();
        demand.lane.job_type = new.spec.job_type.clone();
        demand.lane.tenant = new.key.tenant.clone();
        demand
    });
    let demands: Vec<_> = demands.collect();
    for one in &demands {
        let mut empty = one.clone();
        empty.lane.queue = Name::of("nobody");
        assert_eq!(bench.commit(vec![], vec![empty]).await.claimed, []);
    }
    let claimed = bench.commit(vec![], demands.clone()).await.claimed;
    for demand in demands {
        let of_lane = claimed.iter().filter(|one| one.job.lane() == demand.lane);
        assert_eq!(of_lane.count(), demand.places);
    }
    assert_eq!(claimed.len(), 6);
}

pub(crate) async fn a_claim_takes_no_more_than_its_places(bench: Bench) {
    for _ in 0..5 {
        bench.submit(bench.new_job()).await;
    }
    assert_eq!(bench.claim(0).await.len(), 0);
    assert_eq!(bench.claim(3).await.len(), 3);
    assert_eq!(bench.claim(100).await.len(), 2);
    assert_eq!(bench.claim(1).await.len(), 0);
}

pub(crate) async fn what_the_group_touched_is_not_claimed_from_its_lane(bench: Bench) {
    let first = bench.submit(bench.new_job()).await;
    let second = bench.submit(bench.new_job()).await;
    let entries = vec![changed(&first.key, cancel()), bench.new_job().entry()];
    let committed = bench.commit(entries, vec![demand("work", 2)]).await;
    let claimed: Vec<_> = committed.claimed.iter().map(|c| c.job.key.id).collect();
    assert_eq!(claimed, [second.key.id]);
    assert_eq!(bench.get(&first.key).await.job.state, JobState::Cancelled);
    // What came within the group is there for the next one.
    assert_eq!(bench.claim(2).await.len(), 1);
}

pub(crate) async fn a_handed_over_job_is_claimed_in_the_commit_that_stores_it(bench: Bench) {
    let new = bench.new_job().input(Payload::text("in"));
    let committed = bench.commit(vec![new.hand_over()], vec![]).await;
    let (job, _) = done(&committed.replies[0]);
    assert_eq!((job.state, job.attempt), (JobState::Running, 1));
    assert_eq!(committed.claimed[0].job, job);
    assert_eq!(
        committed.claimed[0].payloads.input,
        Some(Payload::text("in"))
    );
    assert_eq!(bench.log(&job.key).await.len(), 2, "both events are logged");
    assert_eq!(job.detail.worker_id, "worker");
    assert_eq!(
        job.lease_expires_at,
        Some(bench.now().after(Duration::from_secs(15)))
    );
}

pub(crate) async fn a_claim_brings_input_and_checkpoint(bench: Bench) {
    bench
        .submit(bench.new_job().input(Payload::data(vec![0, 255])))
        .await;
    bench.submit(bench.new_job()).await;
    let job = bench.claim(1).await.remove(0);
    let checkpoint = Payload::text("page 4");
    bench
        .report(&job, vec![Report::Checkpoint(checkpoint.clone())])
        .await;
    bench.finish(&job, Outcome::HandedBack).await;
    let committed = bench.commit(vec![], vec![demand("work", 2)]).await;
    let payloads = &committed.claimed[0].payloads;
    assert_eq!(committed.claimed[0].job.attempt, 2);
    assert_eq!(payloads.input, Some(Payload::data(vec![0, 255])));
    assert_eq!(payloads.checkpoint, Some(checkpoint));
    assert_eq!(committed.claimed[1].payloads, Default::default());
}

pub(crate) async fn a_retry_waits_behind_what_was_there_before_it(bench: Bench) {
    let failed = bench.submit(bench.new_job()).await;
    let job = bench.claim(1).await.remove(0);
    bench.pass(Duration::from_millis(1));
    let waiting = bench.submit(bench.new_job()).await;
    let again = Outcome::Failed(JobError::retryable("BROKEN", "again"));
    bench
        .commit(vec![changed(&job.key, finish(1, again))], vec![])
        .await;
    bench.pass(Duration::from_secs(5));
    bench.change(&failed.key, Change::BecomeDue).await;
    let order: Vec<_> = bench.claim(2).await.iter().map(|job| job.key.id).collect();
    assert_eq!(order, [waiting.key.id, failed.key.id]);
}

pub(crate) async fn several_claimants_share_a_lane_each_on_its_own_terms(bench: Bench) {
    for _ in 0..5 {
        bench.submit(bench.new_job()).await;
    }
    let of = |claimant: usize, places: usize| Demand {
        claimant,
        ..demand("work", places)
    };
    let entries = vec![bench.new_job().job_type("new").entry_for(2)];
    let mut group = bench.group(entries, vec![of(0, 1), of(2, 2), of(1, 1)]);
    let minute = Duration::from_secs(60);
    for (number, worker_id) in [(1, "one"), (2, "two")] {
        let terms = ClaimTerms {
            worker_id: worker_id.to_owned(),
            heard_at: bench.now(),
            lease_until: bench.now().after(minute),
            term: Some(minute),
        };
        group.claimants.insert(number, terms);
    }
    let claimed = bench.commit_group(group).await.claimed;
    // What is handed over comes first, then the lane in the order of the demand.
    let claimants: Vec<usize> = claimed.iter().map(|one| one.claimant).collect();
    assert_eq!(claimants, [2, 0, 2, 2, 1]);
    let ids: Vec<_> = claimed[1..].iter().map(|one| one.job.key.id).collect();
    assert!(ids.is_sorted(), "in the order of the lane");
    for one in &claimed {
        let (worker_id, term) = match one.claimant {
            0 => ("worker", None),
            1 => ("one", Some(minute)),
            _ => ("two", Some(minute)),
        };
        let job = bench.get(&one.job.key).await.job;
        assert_eq!(job.detail.worker_id, worker_id);
        assert_eq!(job.detail.remote_lease.map(|lease| lease.term), term);
        let holds = term.unwrap_or(Duration::from_secs(15));
        assert_eq!(job.lease_expires_at, Some(bench.now().after(holds)));
    }
    assert_eq!(bench.claim(10).await.len(), 1);
}
