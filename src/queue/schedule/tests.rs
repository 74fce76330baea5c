//! The rules of the schedule, one by one.

use std::time::Duration;

use super::*;
use crate::job::queue::RateLimit;

pub(super) fn lane(queue: &str, job_type: &str, tenant: &str) -> Lane {
    let name = |text: &str| Name::new(text).expect("a name");
    Lane {
        queue: name(queue),
        job_type: name(job_type),
        tenant: name(tenant),
    }
}

pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp::from_micros(millis * 1_000)
}

pub(super) fn limits(concurrency: Option<u32>, rate: Option<RateLimit>) -> QueueLimits {
    QueueLimits {
        concurrency,
        rate,
        ..QueueLimits::default()
    }
}

/// A schedule as it would be beside a store that grants every offer.
struct Stage {
    schedule: Schedule,
    places: Places,
    now: Timestamp,
}

impl Stage {
    fn new(overall: usize, types: &[(&'static str, usize)]) -> Self {
        let of_types = types.iter();
        let of_types = of_types.map(|(name, places)| (Name::of(name), *places));
        Self {
            schedule: Schedule::default(),
            places: Places::new(overall, of_types),
            now: at(0),
        }
    }

    fn weigh(mut self, tenant: &'static str, weight: u32) -> Self {
        self.schedule.weights.insert(Name::of(tenant), weight);
        self
    }

    fn queued(&mut self, lane: &Lane, jobs: i64) {
        self.schedule
            .moved(&[(lane.clone(), JobState::Queued, jobs)]);
    }

    fn bound(&mut self, queue: &'static str, limits: &QueueLimits) {
        let now = self.now;
        self.schedule
            .set_queue(&Name::of(queue), limits, false, now);
    }

    fn pause(&mut self, queue: &'static str, paused: bool) {
        let (queue, now) = (Name::of(queue), self.now);
        self.schedule
            .set_queue(&queue, &QueueLimits::default(), paused, now);
    }

    /// One round: what is offered is claimed.
    fn round(&mut self) -> Vec<(Lane, usize)> {
        self.schedule.tick(self.now);
        let offer = self.schedule.offer(&self.places, self.now);
        let demand = offer.demand();
        self.grant(offer);
        demand.into_iter().map(|d| (d.lane, d.places)).collect()
    }

    fn grant(&mut self, offer: Offer) {
        let mut moves = Vec::new();
        for ((lane, _), jobs) in &offer.demand {
            let jobs = i64::try_from(*jobs).expect("few");
            moves.push((lane.clone(), JobState::Queued, -jobs));
            moves.push((lane.clone(), JobState::Running, jobs));
        }
        for (lane, _) in &offer.hand_overs {
            moves.push((lane.clone(), JobState::Running, 1));
        }
        self.schedule.moved(&moves);
        let claims = offer.demand.iter().map(|((lane, _), jobs)| (lane, *jobs));
        let claims = claims.chain(offer.hand_overs.iter().map(|(lane, _)| (lane, 1)));
        let claimed: Vec<Claimed> = claims
            .flat_map(|(lane, jobs)| (0..jobs).map(|_| model_tests::claimed(lane)))
            .collect();
        let unused = self
            .schedule
            .settle(offer, &claimed, Some(&self.places), self.now);
        assert_eq!(unused, 0);
    }

    fn end(&mut self, lane: &Lane) {
        self.schedule
            .moved(&[(lane.clone(), JobState::Running, -1)]);
        self.places.give_back(&lane.job_type);
    }

    fn hands_over(&mut self, lane: &Lane) -> bool {
        self.schedule.tick(self.now);
        let mut offer = self.schedule.offer(&self.places, self.now);
        let handed = self
            .schedule
            .hand_over(lane, &mut offer, &self.places, self.now);
        self.grant(offer);
        handed
    }

    /// The lanes that are served one by one, a place each.
    fn one_by_one(&mut self, rounds: usize) -> Vec<Lane> {
        let mut served = Vec::new();
        for _ in 0..rounds {
            for (lane, jobs) in self.round() {
                assert_eq!(jobs, 1);
                self.end(&lane);
                served.push(lane);
            }
        }
        served
    }
}

fn count(served: &[Lane], lane: &Lane) -> usize {
    served.iter().filter(|served| *served == lane).count()
}

#[test]
fn a_backlog_in_one_lane_leaves_places_to_the_others() {
    let (big, small) = (lane("q", "x", "big"), lane("q", "x", "small"));
    let mut stage = Stage::new(4, &[("x", 4)]);
    stage.queued(&big, 1_000_000);
    stage.queued(&small, 1);
    assert_eq!(stage.round(), [(big, 3), (small, 1)]);
    assert!(!stage.places.take(&Name::of("x")), "all places are taken");
}

#[test]
fn a_full_type_is_not_asked_for_and_a_drained_pool_takes_nothing() {
    let (full, free) = (lane("q", "full", "t"), lane("q", "free", "t"));
    let mut stage = Stage::new(4, &[("full", 1), ("free", 2)]);
    stage.queued(&full, 5);
    stage.queued(&free, 5);
    assert!(stage.places.take(&Name::of("full")));
    assert_eq!(stage.round(), [(free.clone(), 2)]);
    stage.end(&free);
    stage.end(&free);
    stage.places.close();
    assert_eq!(stage.round(), []);
}

#[test]
fn one_place_goes_round_all_tenants_and_all_lanes_of_each() {
    let lanes = [
        lane("p", "x", "a"),
        lane("q", "x", "a"),
        lane("p", "x", "b"),
    ];
    let mut stage = Stage::new(1, &[("x", 1)]);
    for lane in &lanes {
        stage.queued(lane, 9);
    }
    let [first, second, other] = lanes;
    let served = stage.one_by_one(6);
    let round = [
        first.clone(),
        other.clone(),
        second.clone(),
        other.clone(),
        first,
        other,
    ];
    assert_eq!(served, round);
}

#[test]
fn a_lane_is_not_passed_over_because_another_type_was_served_in_between() {
    let (one, two, other) = (
        lane("q", "x", "a"),
        lane("q", "x", "b"),
        lane("q", "y", "a"),
    );
    let mut stage = Stage::new(2, &[("x", 1), ("y", 1)]);
    for lane in [&one, &two, &other] {
        stage.queued(lane, 100);
    }
    // The place of y is always free first, so that a was always served last.
    let mut served = vec![];
    let mut running = stage.round();
    for _ in 0..20 {
        running.sort_by_key(|(lane, _)| std::cmp::Reverse(lane.job_type.clone()));
        for (lane, _) in std::mem::take(&mut running) {
            stage.end(&lane);
            running.extend(stage.round());
            served.push(lane);
        }
    }
    assert_eq!(count(&served, &other), 20);
    assert_eq!((count(&served, &one), count(&served, &two)), (10, 10));
}

#[test]
fn a_tenant_gets_no_more_of_the_pool_by_using_more_types() {
    let types: Vec<String> = (0..50).map(|number| format!("x{number}")).collect();
    let mut stage = Stage::new(1, &[]);
    stage.places = Places::new(
        1,
        types.iter().map(|name| (Name::new(name).expect("ok"), 1)),
    );
    for name in &types {
        stage.queued(&lane("q", name, "many"), 1_000);
    }
    let other = lane("q", "x7", "one");
    stage.queued(&other, 1_000);
    // Who is before it in its type has its turn first, and nobody else.
    assert!(stage.one_by_one(3).contains(&other));
    let served = stage.one_by_one(300);
    assert!(count(&served, &other) >= 100, "{}", count(&served, &other));
    for name in &types {
        assert!(count(&served, &lane("q", name, "many")) > 0, "{name}");
    }
}

#[test]
fn tenants_of_types_of_their_own_share_the_pool_by_their_weights() {
    let (heavy, light) = (lane("q", "x", "heavy"), lane("q", "y", "light"));
    let mut stage = Stage::new(1, &[("x", 1), ("y", 1)]).weigh("heavy", 3);
    stage.queued(&heavy, 1_000);
    stage.queued(&light, 1_000);
    let served = stage.one_by_one(400);
    assert_eq!((count(&served, &heavy), count(&served, &light)), (300, 100));
}

#[test]
fn a_tenant_with_a_million_jobs_delays_anothers_first_by_no_more_than_its_weight() {
    let (big, new) = (lane("q", "x", "big"), lane("q", "x", "new"));
    let mut stage = Stage::new(1, &[("x", 1)]).weigh("big", 7);
    stage.queued(&big, 1_000_000);
    for before in 0..20 {
        stage.one_by_one(before);
        stage.queued(&new, 1);
        let served = stage.one_by_one(8);
        assert_eq!(count(&served, &new), 1, "after {before}");
    }
}

#[test]
fn a_tenant_that_was_held_up_gets_its_next_turn_and_no_arrears() {
    let (held, other) = (lane("paused", "x", "a"), lane("q", "x", "b"));
    let mut stage = Stage::new(1, &[("x", 1)]);
    stage.queued(&held, 1_000);
    stage.queued(&other, 1_000);
    stage.pause("paused", true);
    assert_eq!(count(&stage.one_by_one(100), &other), 100);
    stage.pause("paused", false);
    let served = stage.one_by_one(10);
    assert_eq!((count(&served, &held), count(&served, &other)), (5, 5));
    assert_eq!(served[0], held);
}

#[test]
fn a_paused_queue_and_a_paused_type_start_nothing_and_hold_up_nobody() {
    let (held, other) = (lane("paused", "x", "a"), lane("q", "x", "a"));
    let paused_type = lane("q", "y", "a");
    let mut stage = Stage::new(9, &[("x", 9), ("y", 9)]);
    stage.pause("paused", true);
    stage.schedule.pause_type(&Name::of("y"), true);
    for lane in [&held, &other, &paused_type] {
        stage.queued(lane, 2);
    }
    assert_eq!(stage.round(), [(other.clone(), 2)]);
    assert!(!stage.hands_over(&held) && !stage.hands_over(&paused_type));
    assert!(stage.hands_over(&other), "nothing that could run waits");
    stage.pause("paused", false);
    assert_eq!(stage.round(), [(held.clone(), 2)]);
    stage.schedule.pause_type(&Name::of("y"), false);
    assert_eq!(stage.round(), [(paused_type.clone(), 2)]);
    assert!(stage.hands_over(&held) && stage.hands_over(&paused_type));
}

#[test]
fn a_queue_runs_no_more_than_it_may_over_all_types_and_tenants() {
    let lanes = [
        lane("q", "x", "a"),
        lane("q", "y", "a"),
        lane("q", "x", "b"),
    ];
    let free = lane("free", "x", "a");
    let mut stage = Stage::new(20, &[("x", 20), ("y", 20)]);
    // What runs already counts, and so does what is being cancelled.
    stage
        .schedule
        .moved(&[(lanes[1].clone(), JobState::Cancelling, 1)]);
    stage.bound("q", &limits(Some(3), None));
    for lane in lanes.iter().chain([&free]) {
        stage.queued(lane, 5);
    }
    let started = stage.round();
    let in_q: usize = started
        .iter()
        .filter(|(lane, _)| lane.queue == Name::of("q"))
        .map(|(_, jobs)| jobs)
        .sum();
    assert_eq!(in_q, 2);
    assert!(started.contains(&(free.clone(), 5)));
    assert!(!stage.hands_over(&lane("q", "y", "c")));
    assert!(stage.hands_over(&free));
    stage
        .schedule
        .moved(&[(lanes[1].clone(), JobState::Cancelling, -1)]);
    assert_eq!(stage.round().len(), 1);
    assert_eq!(stage.round(), []);
    stage.bound("q", &limits(None, None));
    let rest: usize = stage.round().iter().map(|(_, jobs)| jobs).sum();
    assert_eq!(rest, 11, "there are places for all of the 12 but one");
}

#[test]
fn a_rate_limit_says_when_it_lets_something_start_again() {
    let bound = lane("q", "x", "a");
    let rate = RateLimit {
        starts: 2,
        period: Duration::from_secs(1),
    };
    let mut stage = Stage::new(9, &[("x", 9)]);
    stage.bound("q", &limits(None, Some(rate)));
    assert!(stage.hands_over(&bound), "the first of its burst");
    stage.queued(&bound, 3);
    assert_eq!(stage.schedule.next_start(), None);
    assert_eq!(stage.round(), [(bound.clone(), 1)]);
    assert!(!stage.hands_over(&bound));
    assert_eq!(stage.schedule.next_start(), Some(at(500)));
    stage.now = at(499);
    assert_eq!(stage.round(), []);
    stage.now = at(500);
    assert_eq!(stage.round(), [(bound.clone(), 1)]);
    assert_eq!(stage.round(), []);
    assert_eq!(stage.schedule.next_start(), Some(at(1_000)));
    stage.now = at(60_000);
    assert_eq!(stage.round(), [(bound, 1)]);
    assert_eq!(stage.schedule.next_start(), None);
}

#[test]
fn what_was_offered_and_not_claimed_costs_no_place_and_no_start() {
    let bound = lane("q", "x", "a");
    let rate = RateLimit {
        starts: 1,
        period: Duration::from_secs(1),
    };
    let mut stage = Stage::new(1, &[("x", 1)]);
    stage.bound("q", &limits(Some(1), Some(rate)));
    stage.queued(&bound, 3);
    for _ in 0..3 {
        stage.schedule.tick(stage.now);
        let offer = stage.schedule.offer(&stage.places, stage.now);
        assert_eq!(offer.demand().len(), 1);
        let places = Some(&stage.places);
        assert_eq!(stage.schedule.settle(offer, &[], places, stage.now), 1);
    }
    assert_eq!(stage.round(), [(bound, 1)]);
}

#[test]
fn nothing_is_kept_of_what_neither_waits_nor_runs_nor_is_bound() {
    let lane = lane("q", "x", "a");
    let mut stage = Stage::new(2, &[("x", 2)]);
    stage.queued(&lane, 2);
    stage.bound("q", &limits(Some(1), None));
    stage.bound("q", &limits(None, None));
    assert_eq!(stage.round().len(), 1);
    stage.end(&lane);
    stage.end(&lane);
    stage.schedule.pause_type(&lane.job_type, true);
    stage.schedule.pause_type(&lane.job_type, false);
    let schedule = &stage.schedule;
    assert!(schedule.lanes.is_empty() && schedule.types.is_empty());
    assert!(schedule.queues.is_empty() && schedule.pool.is_empty());
    assert!(schedule.timers.is_empty());
}

/// A claim looks at what it can serve, however much stands beside it that it cannot.
#[test]
fn blocked_queues_and_waiting_tenants_are_not_looked_at() {
    let mut stage = Stage::new(4, &[("x", 4)]);
    for queue in 0..100 {
        let name = Name::new(format!("paused{queue}")).expect("a name");
        let none = QueueLimits::default();
        stage.schedule.set_queue(&name, &none, true, at(0));
        for tenant in 0..100 {
            stage.queued(&lane(name.as_str(), "x", &format!("t{tenant}")), 1_000);
        }
    }
    for tenant in 0..1_000 {
        stage.queued(&lane("q", "x", &format!("t{tenant}")), 1_000);
    }
    // The first round finds them held up, once.
    stage.one_by_one(0);
    stage.round().iter().for_each(|(lane, _)| stage.end(lane));
    order::LOOKS.with(|looks| looks.set(0));
    for _ in 0..1_000 {
        for (lane, _) in stage.round() {
            stage.end(&lane);
        }
    }
    let looks = order::LOOKS.with(std::cell::Cell::get);
    // Four places a round; for each the order of the pool and of the type, by line and by tenant.
    assert!(looks < 4_000 * 20, "{looks} looks for 4000 jobs");
}
