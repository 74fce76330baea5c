//! Free places in the pool, and what waits for them: what may be claimed is decided from memory, by the
//! only one who writes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::job::JobState;
use crate::job::name::{Lane, Name};
use crate::store::Demand;

/// Places of the pool, overall and by type. Cheap to clone. A place is taken before a job is claimed,
/// and given back when its attempt is over.
#[derive(Clone, Debug)]
pub struct Places {
    free: Arc<Mutex<Free>>,
}

#[derive(Debug)]
struct Free {
    open: bool,
    overall: usize,
    by_type: HashMap<Name, usize>,
}

impl Places {
    /// A pool with so many places, and so many of them for each type that it can run.
    pub fn new(overall: usize, by_type: impl IntoIterator<Item = (Name, usize)>) -> Self {
        let free = Free {
            open: true,
            overall,
            by_type: by_type.into_iter().collect(),
        };
        Self {
            free: Arc::new(Mutex::new(free)),
        }
    }

    /// Takes a place for a job of the type, if there is one.
    pub fn take(&self, job_type: &Name) -> bool {
        let mut free = self.lock();
        let free = &mut *free;
        match free.by_type.get_mut(job_type) {
            Some(of_type) if free.open && free.overall > 0 && *of_type > 0 => {
                free.overall -= 1;
                *of_type -= 1;
                true
            }
            _ => false,
        }
    }

    /// How many jobs of the type could be given a place now.
    fn free_for(&self, job_type: &Name) -> usize {
        let free = self.lock();
        match free.by_type.get(job_type) {
            Some(of_type) if free.open => free.overall.min(*of_type),
            _ => 0,
        }
    }

    /// Whether any place is free.
    fn any_free(&self) -> bool {
        let free = self.lock();
        free.open && free.overall > 0
    }

    /// Gives a place back.
    pub fn give_back(&self, job_type: &Name) {
        let mut free = self.lock();
        free.overall += 1;
        if let Some(of_type) = free.by_type.get_mut(job_type) {
            *of_type += 1;
        }
    }

    /// Lets no more places be taken: the pool drains.
    pub fn close(&self) {
        self.lock().open = false;
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        // Nothing in here can be left half done by a panic.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many jobs are QUEUED in each lane, as committed.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_type: BTreeMap<Name, Lanes>,
    /// The type that was served last: the next round goes on behind it.
    last: Option<Name>,
}

/// The lanes of one type in which something waits.
#[derive(Debug, Default)]
struct Lanes {
    waiting: BTreeMap<Lane, i64>,
    /// The lane that was served last: the next round goes on behind it. Of each type by itself: were
    /// there one for all, a type served in between would send the round back to the first lane.
    last: Option<Lane>,
}

impl Waiting {
    /// Moves the counters as a commit did.
    pub(super) fn moved(&mut self, depths: &[(Lane, JobState, i64)]) {
        for (lane, state, by) in depths {
            if *state != JobState::Queued {
                continue;
            }
            let lanes = self.by_type.entry(lane.job_type.clone()).or_default();
            let waiting = lanes.waiting.entry(lane.clone()).or_default();
            *waiting += by;
            if *waiting <= 0 {
                lanes.waiting.remove(lane);
            }
            if lanes.waiting.is_empty() {
                self.by_type.remove(&lane.job_type);
            }
        }
    }

    /// Whether a job of the type would have to wait behind another one.
    pub(super) fn any_of(&self, job_type: &Name) -> bool {
        self.by_type.contains_key(job_type)
    }

    /// Takes free places for what waits, one at a time: type by type, and in each type lane by lane.
    /// Looks at no more lanes than there are free places, however many wait.
    pub(super) fn demand(&mut self, places: &Places) -> Vec<Demand> {
        // Most commits come while the pool is full, or while nothing waits.
        if self.by_type.is_empty() || !places.any_free() {
            return Vec::new();
        }
        let mut demand: BTreeMap<Lane, usize> = BTreeMap::new();
        let mut rounds = self.rounds(places);
        while let Some((job_type, mut round)) = rounds.pop_front() {
            let Some((lane, waiting)) = round.pop_front() else {
                continue;
            };
            if !places.take(&job_type) {
                continue;
            }
            *demand.entry(lane.clone()).or_default() += 1;
            if let Some(lanes) = self.by_type.get_mut(&job_type) {
                lanes.last = Some(lane.clone());
            }
            if waiting > 1 {
                round.push_back((lane, waiting - 1));
            }
            self.last = Some(job_type.clone());
            rounds.push_back((job_type, round));
        }
        let demand = demand.into_iter();
        demand
            .map(|(lane, places)| Demand { lane, places })
            .collect()
    }

    /// The types that have a free place, beginning behind the one that was served last, each with the
    /// lanes that could be served.
    fn rounds(&self, places: &Places) -> VecDeque<(Name, VecDeque<(Lane, i64)>)> {
        behind(&self.by_type, self.last.as_ref())
            .map(|(job_type, lanes)| {
                let free = places.free_for(job_type);
                let round = behind(&lanes.waiting, lanes.last.as_ref()).take(free);
                let round = round.map(|(lane, waiting)| (lane.clone(), *waiting));
                (job_type.clone(), round.collect())
            })
            .collect()
    }
}

/// All entries once, beginning behind the key `last`.
fn behind<'a, K: Ord, V>(
    map: &'a BTreeMap<K, V>,
    last: Option<&'a K>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let (first, second) = match last {
        Some(last) => (
            (Bound::Excluded(last), Bound::Unbounded),
            Some((Bound::Unbounded, Bound::Included(last))),
        ),
        None => ((Bound::Unbounded, Bound::Unbounded), None),
    };
    let second = second.map(|second| map.range(second));
    map.range(first).chain(second.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(job_type: &str, tenant: &str) -> Lane {
        Lane {
            queue: Name::of("default"),
            job_type: Name::new(job_type).expect("a name"),
            tenant: Name::new(tenant).expect("a name"),
        }
    }

    fn waiting(lanes: &[(&Lane, i64)]) -> Waiting {
        let mut waiting = Waiting::default();
        for (lane, jobs) in lanes {
            waiting.moved(&[((*lane).clone(), JobState::Queued, *jobs)]);
        }
        waiting
    }

    #[test]
    fn a_backlog_in_one_lane_leaves_places_to_the_others() {
        let (big, small) = (lane("x", "big"), lane("x", "small"));
        let mut waiting = waiting(&[(&big, 1_000_000), (&small, 1)]);
        let places = Places::new(4, [(Name::of("x"), 4)]);
        let demand = waiting.demand(&places);
        let of = |lane: &Lane| demand.iter().find(|d| d.lane == *lane).map(|d| d.places);
        assert_eq!((of(&big), of(&small)), (Some(3), Some(1)));
        assert!(!places.take(&Name::of("x")), "all places are taken");
    }

    #[test]
    fn a_full_type_is_not_asked_for_and_a_drained_pool_takes_nothing() {
        let (full, free) = (lane("full", "t"), lane("free", "t"));
        let mut waiting = waiting(&[(&full, 5), (&free, 5)]);
        let places = Places::new(4, [(Name::of("full"), 1), (Name::of("free"), 2)]);
        assert!(places.take(&Name::of("full")));
        let demand = waiting.demand(&places);
        assert_eq!(
            demand,
            [Demand {
                lane: free,
                places: 2
            }]
        );
        for _ in 0..2 {
            places.give_back(&Name::of("free"));
        }
        places.close();
        assert_eq!(waiting.demand(&places), []);
    }

    #[test]
    fn one_place_goes_round_all_lanes() {
        let lanes = [lane("x", "a"), lane("x", "b"), lane("x", "c")];
        let mut waiting = waiting(&[(&lanes[0], 9), (&lanes[1], 9), (&lanes[2], 9)]);
        let places = Places::new(1, [(Name::of("x"), 1)]);
        let mut served = Vec::new();
        for _ in 0..3 {
            let demand = waiting.demand(&places);
            served.push(demand[0].lane.clone());
            places.give_back(&Name::of("x"));
        }
        assert_eq!(served, lanes);
    }

    #[test]
    fn a_lane_is_not_passed_over_because_another_type_was_served_in_between() {
        let (one, two, other) = (lane("x", "a"), lane("x", "b"), lane("y", "a"));
        let mut waiting = waiting(&[(&one, 9), (&two, 9), (&other, 9)]);
        let places = Places::new(2, [(Name::of("x"), 1), (Name::of("y"), 1)]);
        let mut served = Vec::new();
        for _ in 0..2 {
            let demand = waiting.demand(&places);
            served.extend(demand.into_iter().map(|demand| demand.lane));
            places.give_back(&Name::of("x"));
            places.give_back(&Name::of("y"));
        }
        assert_eq!(served, [one, other.clone(), two, other]);
    }

    #[test]
    fn nothing_is_kept_of_a_lane_or_type_in_which_nothing_waits() {
        let lane = lane("x", "a");
        let mut waiting = waiting(&[(&lane, 2)]);
        assert!(waiting.any_of(&lane.job_type));
        waiting.moved(&[(lane.clone(), JobState::Queued, -2)]);
        assert!(!waiting.any_of(&lane.job_type));
        assert!(waiting.by_type.is_empty());
    }
}
