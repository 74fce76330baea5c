//! Who is next: what may be claimed is decided from memory, by the only one who writes.
//!
//! A place of the pool goes to the tenant whose turn it is; within one type the tenants have a circle of
//! their own, so that a lane is not passed over because its tenant was served elsewhere. Of a tenant's
//! lanes the one that has waited longest for its turn is served. What cannot be started (its queue is
//! paused, full or has no start left, its type is paused or has no place) is not looked at, however
//! much of it waits.
//!
//! It knows what was committed and nothing else: an offer that came to nothing leaves no trace but a
//! turn. Limits of keys are the store's business, priorities that of a lane's index.

mod bucket;
mod circle;
mod line;
#[cfg(test)]
mod model_tests;
mod order;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::job::JobState;
use crate::job::limits::WEIGHT_DEFAULT;
use crate::job::name::{Lane, Name};
use crate::job::queue::{GivenLimits, QueueLimits};
use crate::job::time::Timestamp;
use crate::queue::places::Places;
use crate::queue::schedule::bucket::Bucket;
use crate::queue::schedule::circle::Circle;
use crate::queue::schedule::line::{By, JobType, LineKey};
use crate::queue::schedule::order::Rank;
use crate::queue::settings::Live;
use crate::store::{Claimed, Demand};

/// What waits, what runs, and what bounds it, as committed.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    lanes: HashMap<Lane, Waiting>,
    /// Types that are paused or of which something waits.
    types: BTreeMap<Name, JobType>,
    /// Queues that have a bound, are paused, or of which something runs.
    queues: HashMap<Name, Queue>,
    /// The tenants that have something waiting.
    pool: Circle,
    weights: BTreeMap<Name, u32>,
    /// When a rate limit lets something start again, and of which queue.
    timers: BTreeSet<(Timestamp, Name)>,
    /// Turns that were given so far.
    turns: u64,
}

/// Who claims for the pool of this process; polls are counted from 1.
pub(super) const POOL: usize = 0;

/// What a poll asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) tenant: Name,
    pub(super) types: BTreeSet<Name>,
    /// Empty: all.
    pub(super) queues: BTreeSet<Name>,
}

impl Wanted {
    fn has_queue(&self, queue: &Name) -> bool {
        self.queues.is_empty() || self.queues.contains(queue)
    }

    /// Whether jobs of a lane are among it.
    pub(super) fn has(&self, lane: &Lane) -> bool {
        lane.tenant == self.tenant
            && self.types.contains(&lane.job_type)
            && self.has_queue(&lane.queue)
    }
}

/// A lane in which something waits.
#[derive(Debug)]
struct Waiting {
    jobs: i64,
    /// The turn in which it was last served, or came.
    served: u64,
}

#[derive(Debug, Default)]
struct Queue {
    running: i64,
    paused: bool,
    concurrency: Option<u32>,
    rate: Option<Bucket>,
}

/// Whether another job of a queue may start.
enum Room {
    Free,
    None,
    /// The rate limit has something then.
    At(Timestamp),
}

/// What may be claimed in one commit. Its places are taken.
#[derive(Debug, Default)]
pub(super) struct Offer {
    /// Of each lane, and for whom.
    demand: BTreeMap<(Lane, usize), usize>,
    hand_overs: Vec<(Lane, usize)>,
    /// How many jobs of each lane in demand, whoever they are for.
    of_lanes: HashMap<Lane, usize>,
    /// How many of each queue.
    starts: HashMap<Name, usize>,
    /// Lanes of which all that waits is offered.
    emptied: Vec<Lane>,
}

impl Offer {
    pub(super) fn is_empty(&self) -> bool {
        self.demand.is_empty() && self.hand_overs.is_empty()
    }

    /// What may be claimed of that which waits already.
    pub(super) fn demand(&self) -> Vec<Demand> {
        let demand = self.demand.iter();
        demand
            .map(|((lane, claimant), places)| Demand {
                claimant: *claimant,
                lane: lane.clone(),
                places: *places,
            })
            .collect()
    }

    /// Who may claim something.
    pub(super) fn claimants(&self) -> impl Iterator<Item = usize> {
        let of_demand = self.demand.keys();
        of_demand
            .chain(&self.hand_overs)
            .map(|(_, claimant)| *claimant)
    }

    fn add_start(&mut self, lane: &Lane) {
        *self.starts.entry(lane.queue.clone()).or_default() += 1;
    }
}

impl Schedule {
    pub(super) fn new(weights: BTreeMap<Name, u32>) -> Self {
        Self {
            weights,
            ..Self::default()
        }
    }

    /// Moves the counters as a commit did. Answers whether that made room for what waits in a queue that
    /// was held up.
    pub(super) fn moved(&mut self, depths: &[(Lane, JobState, i64)]) -> bool {
        let mut made_room = false;
        for (lane, state, by) in depths {
            match state {
                JobState::Queued => self.waits(lane, *by),
                JobState::Running | JobState::Cancelling => {
                    made_room |= self.runs(&lane.queue, *by);
                }
                JobState::Scheduled
                | JobState::Blocked
                | JobState::Succeeded
                | JobState::Failed
                | JobState::Cancelled
                | JobState::Expired => {}
            }
        }
        made_room
    }

    /// What was set and configured before the first job comes.
    pub(super) fn set_all(
        &mut self,
        live: &Live,
        file: &BTreeMap<Name, GivenLimits>,
        now: Timestamp,
    ) {
        for name in file.keys().chain(live.queues.keys()) {
            let paused = live.queue(name).paused_at.is_some();
            self.set_queue(name, &live.limits(name, file), paused, now);
        }
        for (name, of_type) in &live.types {
            self.pause_type(name, of_type.paused_at.is_some());
        }
    }

    /// What bounds a queue from here on, and whether it starts anything.
    pub(super) fn set_queue(
        &mut self,
        name: &Name,
        limits: &QueueLimits,
        paused: bool,
        now: Timestamp,
    ) {
        let key = self.line_key(name);
        let queue = self.queues.entry(name.clone()).or_default();
        queue.paused = paused;
        queue.concurrency = limits.concurrency;
        queue.rate = match (limits.rate, queue.rate.take()) {
            (None, _) => None,
            (Some(limit), None) => Some(Bucket::new(limit, now)),
            (Some(limit), Some(before)) if before.limit() == limit => Some(before),
            (Some(limit), Some(before)) => Some(before.changed(limit, now)),
        };
        self.forget_idle_queue(name);
        if self.line_key(name) != key {
            self.move_lines(name, &key);
        }
        self.open(name);
    }

    /// Whether anything of a type is started from here on.
    pub(super) fn pause_type(&mut self, name: &Name, paused: bool) {
        self.types.entry(name.clone()).or_default().paused = paused;
        self.forget_idle_type(name);
    }

    /// When a rate limit lets something start again that was held up.
    pub(super) fn next_start(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Looks again at what a rate limit held up until now. Before everything else in a round.
    pub(super) fn tick(&mut self, now: Timestamp) {
        while let Some((at, queue)) = self.timers.first().cloned()
            && at <= now
        {
            self.timers.remove(&(at, queue.clone()));
            self.open(&queue);
        }
    }

    /// Whether any job waits that could be claimed, were there room for it.
    pub(super) fn anything_waits(&self) -> bool {
        !self.lanes.is_empty()
    }

    /// Takes free places for what waits, until no place is left or nothing that could be started.
    /// Looks at no more lanes than it serves, and at the first of those that could be.
    pub(super) fn offer(&mut self, places: &Places, now: Timestamp) -> Offer {
        let mut offer = Offer::default();
        places.begin_round();
        // Most commits come while the pool is full, or while nothing waits.
        if self.lanes.is_empty() || !places.any_free() {
            return offer;
        }
        let types = self.types.iter();
        let mut competing: Vec<Name> = types
            .filter(|(name, job_type)| job_type.may_start() && places.free_for(name) > 0)
            .map(|(name, _)| name.clone())
            .collect();
        while let Some((job_type, tenant)) = self.next_type(&mut competing, &offer, now) {
            if !places.take(&job_type) {
                if !places.any_free() {
                    break;
                }
                competing.retain(|name| *name != job_type);
                continue;
            }
            match self.next_lane(&job_type, &offer, now) {
                Some(lane) => self.serve(lane, POOL, &tenant, &mut offer),
                None => places.put_back(&job_type),
            }
        }
        offer
    }

    /// Whether a new job of the lane may be claimed in the commit that stores it. After
    /// [`Schedule::offer`] in the same round: what waits and could be started has its place by then, so
    /// that whatever still waits is not before it.
    pub(super) fn hand_over(
        &mut self,
        lane: &Lane,
        offer: &mut Offer,
        places: &Places,
        now: Timestamp,
    ) -> bool {
        let paused = self.types.get(&lane.job_type).is_some_and(|t| t.paused);
        let room = self.room(&lane.queue, offer, now);
        if paused || !matches!(room, Room::Free) || !places.take(&lane.job_type) {
            return false;
        }
        offer.add_start(lane);
        offer.hand_overs.push((lane.clone(), POOL));
        true
    }

    /// Offers a job of what a poll asks for to it: of its lanes the one that has waited longest for its turn.
    /// Answers whether there was one.
    pub(super) fn offer_to(
        &mut self,
        wanted: &Wanted,
        claimant: usize,
        offer: &mut Offer,
        now: Timestamp,
    ) -> bool {
        let Some(lane) = self.next_wanted(wanted, offer, now) else {
            return false;
        };
        let tenant = lane.tenant.clone();
        self.serve(lane, claimant, &tenant, offer);
        true
    }

    /// The same as [`Schedule::hand_over`] for a poll that still has a place for a job of the lane. After
    /// [`Schedule::offer_to`] has found nothing more for it in the same round.
    pub(super) fn hand_over_to(
        &mut self,
        lane: &Lane,
        claimant: usize,
        offer: &mut Offer,
        now: Timestamp,
    ) -> bool {
        let paused = self.types.get(&lane.job_type).is_some_and(|t| t.paused);
        if paused || !matches!(self.room(&lane.queue, offer, now), Room::Free) {
            return false;
        }
        offer.add_start(lane);
        offer.hand_overs.push((lane.clone(), claimant));
        true
    }

    fn next_wanted(&mut self, wanted: &Wanted, offer: &Offer, now: Timestamp) -> Option<Lane> {
        let mut later = Vec::new();
        let mut best: Option<(u64, Lane)> = None;
        for name in &wanted.types {
            let Some(job_type) = self.types.get(name) else {
                continue;
            };
            let is_open = |queue: &Name| match room(&self.queues, queue, offer, now) {
                Room::Free => true,
                Room::None => false,
                Room::At(at) => {
                    later.push((at, queue.clone()));
                    false
                }
            };
            if let Some((served, queue)) = job_type.first_of(wanted, is_open)
                && best.as_ref().is_none_or(|(first, _)| served < *first)
            {
                let lane = Lane {
                    queue,
                    job_type: name.clone(),
                    tenant: wanted.tenant.clone(),
                };
                best = Some((served, lane));
            }
        }
        self.timers.extend(later);
        best.map(|(_, lane)| lane)
    }

    /// Ends an offer: gives back what was not claimed, and takes from the rate limits what was. After
    /// [`Schedule::moved`] of the same commit. Answers how many places it gives back.
    pub(super) fn settle(
        &mut self,
        offer: Offer,
        claimed: &[Claimed],
        places: Option<&Places>,
        now: Timestamp,
    ) -> usize {
        let mut unused = offer.demand;
        for hand_over in offer.hand_overs {
            *unused.entry(hand_over).or_default() += 1;
        }
        for claimed in claimed {
            let lane = claimed.job.lane();
            let queue = self.queues.get_mut(&lane.queue);
            if let Some(rate) = queue.and_then(|queue| queue.rate.as_mut()) {
                rate.take(1, now);
            }
            if let Some(left) = unused.get_mut(&(lane, claimed.claimant)) {
                *left = left.saturating_sub(1);
            }
        }
        for ((lane, claimant), left) in &unused {
            // A poll that got nothing goes on waiting, and one that got something is over.
            if let Some(places) = places.filter(|_| *claimant == POOL) {
                for _ in 0..*left {
                    places.give_back(&lane.job_type);
                }
            }
        }
        for lane in offer.emptied {
            self.list(&lane);
        }
        for queue in offer.starts.keys() {
            self.open(queue);
        }
        unused.values().sum()
    }

    /// The type that the next place goes to, and the tenant whose turn it is: its lane that was served
    /// the longest ago is of this type.
    fn next_type(
        &mut self,
        competing: &mut Vec<Name>,
        offer: &Offer,
        now: Timestamp,
    ) -> Option<(Name, Name)> {
        let mut best: Option<(Rank, Name, Name)> = None;
        let mut held_up = Vec::new();
        for name in competing.iter() {
            match self.first(name, By::Pool, offer, now) {
                Some((rank, tenant, _))
                    if best.as_ref().is_none_or(|(first, ..)| rank < *first) =>
                {
                    best = Some((rank, name.clone(), tenant));
                }
                Some(_) => {}
                None => held_up.push(name.clone()),
            }
        }
        competing.retain(|name| !held_up.contains(name));
        best.map(|(_, name, tenant)| (name, tenant))
    }

    /// The lane of a type that is next, by the turns of its tenants within the type.
    fn next_lane(&mut self, job_type: &Name, offer: &Offer, now: Timestamp) -> Option<Lane> {
        let (_, tenant, queue) = self.first(job_type, By::Type, offer, now)?;
        Some(Lane {
            queue,
            job_type: job_type.clone(),
            tenant,
        })
    }

    fn first(
        &mut self,
        job_type: &Name,
        by: By,
        offer: &Offer,
        now: Timestamp,
    ) -> Option<(Rank, Name, Name)> {
        let mut later = Vec::new();
        let queues = &self.queues;
        let job_type = self.types.get_mut(job_type)?;
        let first = job_type.first(by, &self.pool, |queue| {
            match room(queues, queue, offer, now) {
                Room::Free => true,
                Room::None => false,
                Room::At(at) => {
                    later.push((at, queue.clone()));
                    false
                }
            }
        });
        self.timers.extend(later);
        first
    }

    /// Offers a job of a lane. `turn_of` is the tenant whose turn it was: where another one was before it
    /// in the type, it keeps its turn, and so does the other one.
    fn serve(&mut self, lane: Lane, claimant: usize, turn_of: &Name, offer: &mut Offer) {
        offer.add_start(&lane);
        *offer.demand.entry((lane.clone(), claimant)).or_default() += 1;
        let offered = offer.of_lanes.entry(lane.clone()).or_default();
        *offered += 1;
        let offered = *offered;
        self.unlist(&lane);
        let weight = self.weight_of(&lane.tenant);
        let end = self.next_turn();
        if lane.tenant == *turn_of {
            self.pool.serve(&lane.tenant, weight, end);
        }
        if let Some(job_type) = self.types.get_mut(&lane.job_type) {
            job_type.circle.serve(&lane.tenant, weight, end);
        }
        let Some(waiting) = self.lanes.get_mut(&lane) else {
            return;
        };
        waiting.served = end;
        if usize::try_from(waiting.jobs).is_ok_and(|jobs| jobs > offered) {
            self.list(&lane);
        } else {
            offer.emptied.push(lane);
        }
    }

    fn waits(&mut self, lane: &Lane, by: i64) {
        match self.lanes.get_mut(lane) {
            Some(waiting) => {
                waiting.jobs += by;
                if waiting.jobs <= 0 {
                    self.leave(lane);
                }
            }
            None if by > 0 => self.join(lane, by),
            None => {}
        }
    }

    fn join(&mut self, lane: &Lane, jobs: i64) {
        let served = self.next_turn();
        let weight = self.weight_of(&lane.tenant);
        self.lanes.insert(lane.clone(), Waiting { jobs, served });
        self.pool.join(&lane.tenant, weight, served);
        let job_type = self.types.entry(lane.job_type.clone()).or_default();
        job_type.circle.join(&lane.tenant, weight, served);
        self.list(lane);
    }

    fn leave(&mut self, lane: &Lane) {
        self.unlist(lane);
        self.lanes.remove(lane);
        self.pool.leave(&lane.tenant);
        if let Some(job_type) = self.types.get_mut(&lane.job_type) {
            job_type.circle.leave(&lane.tenant);
        }
        self.forget_idle_type(&lane.job_type);
    }

    /// Puts a lane where it is found, if something waits in it.
    fn list(&mut self, lane: &Lane) {
        let Some(served) = self.lanes.get(lane).map(|waiting| waiting.served) else {
            return;
        };
        let key = self.line_key(&lane.queue);
        if let Some(job_type) = self.types.get_mut(&lane.job_type) {
            job_type.list(&key, &lane.tenant, &lane.queue, served, &self.pool);
        }
    }

    fn unlist(&mut self, lane: &Lane) {
        let Some(waiting) = self.lanes.get(lane) else {
            return;
        };
        let key = self.line_key(&lane.queue);
        if let Some(job_type) = self.types.get_mut(&lane.job_type) {
            job_type.unlist(&key, &lane.tenant, waiting.served);
        }
    }

    fn runs(&mut self, name: &Name, by: i64) -> bool {
        self.queues.entry(name.clone()).or_default().running += by;
        self.forget_idle_queue(name);
        by < 0 && self.open(name)
    }

    /// Looks again at what waits in a queue that has a bound. Answers whether anything does.
    fn open(&mut self, queue: &Name) -> bool {
        let mut waits = false;
        if self.queues.get(queue).is_some_and(Queue::is_bounded) {
            let key = Some(queue.clone());
            for job_type in self.types.values_mut() {
                waits |= job_type.open(&key);
            }
        }
        waits
    }

    fn room(&self, queue: &Name, offer: &Offer, now: Timestamp) -> Room {
        room(&self.queues, queue, offer, now)
    }

    /// Which line the lanes of a queue stand in.
    fn line_key(&self, queue: &Name) -> LineKey {
        let bounded = self.queues.get(queue).is_some_and(Queue::is_bounded);
        bounded.then(|| queue.clone())
    }

    /// Moves the lanes of a queue out of the line where they stood. Looks at every lane: a queue gets or
    /// loses its bounds when somebody says so, not when a job comes.
    fn move_lines(&mut self, queue: &Name, from: &LineKey) {
        let lanes: Vec<Lane> = self
            .lanes
            .keys()
            .filter(|lane| lane.queue == *queue)
            .cloned()
            .collect();
        for lane in lanes {
            if let Some(waiting) = self.lanes.get(&lane)
                && let Some(job_type) = self.types.get_mut(&lane.job_type)
            {
                job_type.unlist(from, &lane.tenant, waiting.served);
            }
            self.list(&lane);
        }
    }

    fn forget_idle_queue(&mut self, name: &Name) {
        if self.queues.get(name).is_some_and(Queue::is_idle) {
            self.queues.remove(name);
        }
    }

    fn forget_idle_type(&mut self, name: &Name) {
        if self.types.get(name).is_some_and(JobType::is_idle) {
            self.types.remove(name);
        }
    }

    fn weight_of(&self, tenant: &Name) -> u32 {
        self.weights.get(tenant).copied().unwrap_or(WEIGHT_DEFAULT)
    }

    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }
}

impl Queue {
    fn is_bounded(&self) -> bool {
        self.paused || self.concurrency.is_some() || self.rate.is_some()
    }

    fn is_idle(&self) -> bool {
        self.running <= 0 && !self.is_bounded()
    }
}

/// Whether another job of a queue may start beside those that are offered.
fn room(queues: &HashMap<Name, Queue>, name: &Name, offer: &Offer, now: Timestamp) -> Room {
    let Some(queue) = queues.get(name) else {
        return Room::Free;
    };
    let offered = offer.starts.get(name).copied().unwrap_or(0);
    let running = usize::try_from(queue.running).unwrap_or(0) + offered;
    if queue.paused
        || queue
            .concurrency
            .is_some_and(|most| running >= most as usize)
    {
        return Room::None;
    }
    match &queue.rate {
        Some(rate) if rate.tokens(now) <= offered => Room::At(rate.has_at(offered + 1)),
        Some(_) | None => Room::Free,
    }
}
