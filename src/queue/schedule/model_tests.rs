//! The schedule beside a reference that remembers everything and looks at all of it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::tests::{at, lane, limits};
use super::*;
use crate::job::name::{JobId, JobKey};
use crate::job::queue::RateLimit;
use crate::job::{Job, JobSpec, NewJob, Payloads};

/// A job of a lane as a store hands it out.
pub(super) fn claimed(lane: &Lane) -> Claimed {
    let key = JobKey {
        tenant: lane.tenant.clone(),
        id: JobId::new(Uuid::nil()),
    };
    let spec = JobSpec {
        queue: lane.queue.clone(),
        ..JobSpec::of(lane.job_type.clone())
    };
    let new = NewJob::new(key, spec, None);
    Claimed {
        job: Arc::new(Job::submit(&new, at(0)).0),
        payloads: Payloads::default(),
        claimant: POOL,
    }
}

const QUEUES: [&str; 4] = ["open", "also-open", "p", "q"];
const TYPES: [&str; 2] = ["x", "y"];
const TENANTS: [&str; 3] = ["a", "b", "c"];

fn any_lane() -> impl Strategy<Value = Lane> {
    (0..QUEUES.len(), 0..TYPES.len(), 0..TENANTS.len())
        .prop_map(|(queue, job_type, tenant)| lane(QUEUES[queue], TYPES[job_type], TENANTS[tenant]))
}

#[derive(Clone, Debug)]
enum Step {
    Submit(Lane, i64),
    /// A submit that may be handed over.
    HandOver(Lane),
    /// Waiting jobs that were cancelled.
    Withdraw(Lane, i64),
    /// An attempt ends, the one so far along.
    End(usize),
    /// A cancel of a running job.
    Cancel(usize),
    /// Time passes.
    Pass(i64),
    Bound(usize, Option<u32>, Option<(u32, u64)>, bool),
    PauseType(usize, bool),
    /// A round whose commit claims only as many, or nothing.
    Round(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any_lane(), 1i64..6).prop_map(|(lane, jobs)| Step::Submit(lane, jobs)),
        2 => any_lane().prop_map(Step::HandOver),
        1 => (any_lane(), 1i64..6).prop_map(|(lane, jobs)| Step::Withdraw(lane, jobs)),
        4 => any::<usize>().prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::Cancel),
        3 => (0i64..700).prop_map(Step::Pass),
        2 => (
            0..QUEUES.len(),
            prop::option::of(1u32..4),
            prop::option::of((1u32..4, 100u64..2_000)),
            prop::bool::weighted(0.3),
        )
            .prop_map(|(queue, most, rate, paused)| Step::Bound(queue, most, rate, paused)),
        1 => (0..TYPES.len(), prop::bool::weighted(0.3))
            .prop_map(|(job_type, paused)| Step::PauseType(job_type, paused)),
        6 => (0usize..8).prop_map(Step::Round),
    ]
}

/// Everything, in the plainest form.
struct Reference {
    schedule: Schedule,
    places: Places,
    waiting: BTreeMap<Lane, i64>,
    running: Vec<(Lane, JobState)>,
    bounds: BTreeMap<Name, (QueueLimits, bool)>,
    paused_types: BTreeSet<Name>,
    buckets: BTreeMap<Name, Bucket>,
    now: Timestamp,
}

impl Reference {
    const OVERALL: usize = 6;
    const OF_TYPE: usize = 4;

    fn new() -> Self {
        let types = TYPES.map(|name| (Name::of(name), Self::OF_TYPE));
        Self {
            schedule: Schedule::default(),
            places: Places::new(Self::OVERALL, types),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            bounds: BTreeMap::new(),
            paused_types: BTreeSet::new(),
            buckets: BTreeMap::new(),
            now: at(0),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit(lane, jobs) => self.wait(&lane, jobs),
            Step::Withdraw(lane, jobs) => {
                let jobs = jobs.min(self.waiting.get(&lane).copied().unwrap_or(0));
                self.wait(&lane, -jobs);
            }
            Step::End(which) => self.end(which),
            Step::Cancel(which) => self.cancel(which),
            Step::Pass(millis) => {
                self.now = self.now.after(Duration::from_millis(millis.unsigned_abs()));
            }
            Step::Bound(queue, most, rate, paused) => self.bound(queue, most, rate, paused),
            Step::PauseType(job_type, paused) => {
                let job_type = Name::of(TYPES[job_type]);
                self.schedule.pause_type(&job_type, paused);
                if paused {
                    self.paused_types.insert(job_type);
                } else {
                    self.paused_types.remove(&job_type);
                }
            }
            Step::Round(claims) => self.round(None, claims),
            Step::HandOver(lane) => self.round(Some(&lane), usize::MAX),
        }
    }

    fn wait(&mut self, lane: &Lane, jobs: i64) {
        if jobs != 0 {
            self.schedule
                .moved(&[(lane.clone(), JobState::Queued, jobs)]);
            *self.waiting.entry(lane.clone()).or_default() += jobs;
            self.waiting.retain(|_, jobs| *jobs > 0);
        }
    }

    fn end(&mut self, which: usize) {
        if !self.running.is_empty() {
            let (lane, state) = self.running.swap_remove(which % self.running.len());
            self.schedule.moved(&[(lane.clone(), state, -1)]);
            self.places.give_back(&lane.job_type);
        }
    }

    fn cancel(&mut self, which: usize) {
        if !self.running.is_empty() {
            let which = which % self.running.len();
            let (lane, state) = &mut self.running[which];
            if *state == JobState::Running {
                *state = JobState::Cancelling;
                let moves = [
                    (lane.clone(), JobState::Running, -1),
                    (lane.clone(), JobState::Cancelling, 1),
                ];
                self.schedule.moved(&moves);
            }
        }
    }

    fn bound(&mut self, queue: usize, most: Option<u32>, rate: Option<(u32, u64)>, paused: bool) {
        // Two queues never get a bound.
        let queue = Name::of(QUEUES[2 + queue % 2]);
        let rate = rate.map(|(starts, millis)| RateLimit {
            starts,
            period: Duration::from_millis(millis),
        });
        let limits = limits(most, rate);
        self.schedule.set_queue(&queue, &limits, paused, self.now);
        match (rate, self.buckets.remove(&queue)) {
            (None, _) => None,
            (Some(rate), None) => self
                .buckets
                .insert(queue.clone(), Bucket::new(rate, self.now)),
            (Some(rate), Some(before)) => {
                let bucket = before.changed(rate, self.now);
                self.buckets.insert(queue.clone(), bucket)
            }
        };
        self.bounds.insert(queue, (limits, paused));
    }

    /// Whether a job of the lane could be started now, by everything that is known.
    fn could_start(&self, lane: &Lane) -> bool {
        let tokens = self.buckets.get(&lane.queue).map(|b| b.tokens(self.now));
        tokens.is_none_or(|tokens| tokens > 0) && self.could_start_but_for_its_rate(lane)
    }

    fn could_start_but_for_its_rate(&self, lane: &Lane) -> bool {
        let of = |matches: &dyn Fn(&Lane) -> bool| {
            self.running
                .iter()
                .filter(|(lane, _)| matches(lane))
                .count()
        };
        let none = (QueueLimits::default(), false);
        let (limits, paused) = self.bounds.get(&lane.queue).unwrap_or(&none);
        let in_queue = of(&|other| other.queue == lane.queue);
        !paused
            && !self.paused_types.contains(&lane.job_type)
            && limits
                .concurrency
                .is_none_or(|most| in_queue < most as usize)
            && self.running.len() < Self::OVERALL
            && of(&|other| other.job_type == lane.job_type) < Self::OF_TYPE
    }

    fn start(&mut self, lane: &Lane) {
        assert!(self.could_start(lane), "{lane:?} was started");
        self.running.push((lane.clone(), JobState::Running));
        if let Some(bucket) = self.buckets.get_mut(&lane.queue) {
            bucket.take(1, self.now);
        }
    }

    /// A round in which the store claims at most so many: each start must be allowed, and where all is
    /// claimed nothing may be left that could be started.
    fn round(&mut self, new: Option<&Lane>, claims: usize) {
        self.schedule.tick(self.now);
        let mut offer = self.schedule.offer(&self.places, self.now);
        let handed = new.is_some_and(|lane| {
            self.schedule
                .hand_over(lane, &mut offer, &self.places, self.now)
        });
        let mut moves: BTreeMap<(Lane, JobState), i64> = BTreeMap::new();
        let mut started = Vec::new();
        for Demand { lane, places, .. } in offer.demand() {
            for _ in 0..places {
                if started.len() < claims {
                    *moves.entry((lane.clone(), JobState::Queued)).or_default() -= 1;
                    *self.waiting.get_mut(&lane).expect("it waits") -= 1;
                    started.push(lane.clone());
                }
            }
        }
        let all = started.len() < claims;
        for lane in &started {
            assert!(self.waiting[lane] >= 0, "{lane:?} has no such job");
            self.start(lane);
        }
        self.waiting.retain(|_, jobs| *jobs > 0);
        if let Some(lane) = new {
            if handed {
                self.start(lane);
                started.push(lane.clone());
            } else {
                assert!(!self.could_start(lane), "{lane:?} was not handed over");
                *self.waiting.entry(lane.clone()).or_default() += 1;
                *moves.entry((lane.clone(), JobState::Queued)).or_default() += 1;
            }
        }
        for lane in &started {
            *moves.entry((lane.clone(), JobState::Running)).or_default() += 1;
        }
        let moves: Vec<_> = moves
            .into_iter()
            .map(|((lane, state), by)| (lane, state, by))
            .collect();
        self.schedule.moved(&moves);
        let claimed: Vec<Claimed> = started.iter().map(claimed).collect();
        self.schedule
            .settle(offer, &claimed, Some(&self.places), self.now);
        if all {
            let left = self.waiting.keys().find(|lane| self.could_start(lane));
            assert_eq!(left, None, "is left waiting");
            // What has just come is looked at in the next round: the writer sees to that.
            if new.is_none() {
                self.check_timers();
            }
        }
    }
}

impl Reference {
    /// What its rate limit alone holds up is looked at again once that frees.
    fn check_timers(&self) {
        for lane in self.waiting.keys() {
            if self.could_start_but_for_its_rate(lane)
                && let Some(bucket) = self.buckets.get(&lane.queue)
            {
                let next = self.schedule.next_start();
                assert!(
                    next.is_some_and(|next| next <= bucket.has_at(1)),
                    "{lane:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever happens in whatever order: nothing is started beyond a limit, and nothing that could be
    /// started is left waiting.
    #[test]
    fn no_limit_is_ever_exceeded_and_no_place_left_free(
        steps in prop::collection::vec(any_step(), 1..120),
    ) {
        let mut reference = Reference::new();
        for step in steps {
            reference.step(step);
        }
        // Time alone frees what only a rate limit holds up.
        for _ in 0..50 {
            let Some(next) = reference.schedule.next_start() else { break };
            reference.now = reference.now.max(next);
            reference.round(None, usize::MAX);
        }
    }

    /// One type, any lanes, any weights, places that come free in any order: over any stretch in which
    /// all of them wait, the shares of the tenants differ from their weights by one round at most.
    #[test]
    fn tenants_that_wait_share_by_weight_within_one_round(
        weights in prop::collection::vec(1u32..8, 2..6),
        queues in 1usize..4,
        places in 1usize..9,
        ends in prop::collection::vec(any::<usize>(), 100..400),
    ) {
        let names: Vec<String> = (0..weights.len()).map(|number| format!("t{number}")).collect();
        let by_tenant = names.iter().map(|name| Name::new(name).expect("a name"));
        let mut schedule = Schedule::new(by_tenant.zip(weights.iter().copied()).collect());
        let pool = Places::new(places, [(Name::of("x"), places)]);
        for queue in 0..queues {
            for name in &names {
                let lane = lane(&format!("q{queue}"), "x", name);
                schedule.moved(&[(lane, JobState::Queued, 1_000_000)]);
            }
        }
        let mut running: Vec<Lane> = Vec::new();
        let mut served: Vec<Lane> = Vec::new();
        for end in ends {
            let offer = schedule.offer(&pool, at(0));
            let mut started = Vec::new();
            for Demand { lane, places, .. } in offer.demand() {
                started.extend(std::iter::repeat_n(lane, places));
            }
            let claimed: Vec<Claimed> = started.iter().map(claimed).collect();
            schedule.settle(offer, &claimed, Some(&pool), at(0));
            served.extend(started.iter().cloned());
            running.extend(started);
            let ended = running.swap_remove(end % running.len());
            pool.give_back(&ended.job_type);
            // Checked at every moment, so over every stretch from the beginning.
            let rounds: Vec<f64> = names.iter().zip(&weights).map(|(name, weight)| {
                let of = served.iter().filter(|lane| lane.tenant.as_str() == name).count();
                of as f64 / f64::from(*weight)
            }).collect();
            let most = rounds.iter().copied().fold(f64::MIN, f64::max);
            let least = rounds.iter().copied().fold(f64::MAX, f64::min);
            prop_assert!(most - least <= 1.0, "{rounds:?}");
        }
        // Within a tenant its lanes take turns.
        for name in &names {
            let of_queue = |queue: usize| {
                let lane = lane(&format!("q{queue}"), "x", name);
                served.iter().filter(|served| **served == lane).count()
            };
            let counts: Vec<usize> = (0..queues).map(of_queue).collect();
            let (most, least) = (counts.iter().max(), counts.iter().min());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{counts:?}");
        }
    }

    /// Any types, any lanes, places that come free in any order: every lane is served before long.
    #[test]
    fn no_lane_starves(
        lanes in prop::collection::btree_set((0usize..3, 0usize..3, 0usize..3), 2..12),
        overall in 1usize..6,
        of_type in prop::collection::vec(1usize..4, 3),
        ends in prop::collection::vec(any::<usize>(), 400),
    ) {
        let types = ["x", "y", "z"];
        let lanes: Vec<Lane> = lanes
            .into_iter()
            .map(|(queue, job_type, tenant)| {
                lane(&format!("q{queue}"), types[job_type], &format!("t{tenant}"))
            })
            .collect();
        let of_type = types.iter().zip(&of_type).map(|(name, most)| (Name::of(name), *most));
        let pool = Places::new(overall, of_type);
        let mut schedule = Schedule::default();
        for lane in &lanes {
            schedule.moved(&[(lane.clone(), JobState::Queued, 1_000_000)]);
        }
        let mut running: Vec<Lane> = Vec::new();
        let mut served_at: BTreeMap<Lane, usize> = BTreeMap::new();
        for (step, end) in ends.into_iter().enumerate() {
            let offer = schedule.offer(&pool, at(0));
            let demand = offer.demand();
            let started: Vec<Lane> = demand
                .into_iter()
                .flat_map(|demand| std::iter::repeat_n(demand.lane, demand.places))
                .collect();
            let claimed: Vec<Claimed> = started.iter().map(claimed).collect();
            schedule.settle(offer, &claimed, Some(&pool), at(0));
            for lane in &started {
                served_at.insert(lane.clone(), step);
            }
            running.extend(started);
            // The oldest ends now and then, so that no place is held for ever.
            let which = if end % 3 == 0 { 0 } else { end % running.len() };
            let ended = running.remove(which);
            pool.give_back(&ended.job_type);
            for lane in &lanes {
                let last = served_at.get(lane).copied().unwrap_or(0);
                prop_assert!(step - last < 150, "{lane:?} was served at {last}, now is {step}");
            }
        }
    }
}
