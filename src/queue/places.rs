//! Free places in the pool, and what waits for them: what may be claimed is decided from memory, by the
//! only one who writes.

use std::collections::{BTreeMap, HashMap};
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
    lanes: BTreeMap<Lane, i64>,
    by_type: HashMap<Name, i64>,
    /// Where the last round ended: the next one goes on behind it, so that no lane starves another.
    last: Option<Lane>,
}

impl Waiting {
    /// Moves the counters as a commit did.
    pub(super) fn moved(&mut self, depths: &[(Lane, JobState, i64)]) {
        for (lane, state, by) in depths {
            if *state != JobState::Queued {
                continue;
            }
            *self.by_type.entry(lane.job_type.clone()).or_default() += by;
            let waiting = self.lanes.entry(lane.clone()).or_default();
            *waiting += by;
            if *waiting <= 0 {
                self.lanes.remove(lane);
            }
        }
    }

    /// Whether a job of the type would have to wait behind another one.
    pub(super) fn any_of(&self, job_type: &Name) -> bool {
        self.by_type
            .get(job_type)
            .is_some_and(|waiting| *waiting > 0)
    }

    /// Takes free places for what waits, one at a time and lane by lane.
    pub(super) fn demand(&mut self, places: &Places) -> Vec<Demand> {
        let mut demand: BTreeMap<Lane, usize> = BTreeMap::new();
        loop {
            let mut any = false;
            for lane in self.round() {
                let so_far = demand.get(&lane).copied().unwrap_or(0);
                let waiting = self.lanes.get(&lane).copied().unwrap_or(0);
                let more = usize::try_from(waiting).is_ok_and(|waiting| so_far < waiting);
                if more && places.take(&lane.job_type) {
                    demand.insert(lane.clone(), so_far + 1);
                    self.last = Some(lane);
                    any = true;
                }
            }
            if !any {
                break;
            }
        }
        let demand = demand.into_iter();
        demand
            .map(|(lane, places)| Demand { lane, places })
            .collect()
    }

    /// Every lane once, beginning behind the one that was served last.
    fn round(&self) -> Vec<Lane> {
        let Some(last) = &self.last else {
            return self.lanes.keys().cloned().collect();
        };
        let behind = (Bound::Excluded(last), Bound::Unbounded);
        let before = (Bound::Unbounded, Bound::Included(last));
        let behind = self.lanes.range::<Lane, _>(behind);
        let before = self.lanes.range::<Lane, _>(before);
        behind.chain(before).map(|(lane, _)| lane.clone()).collect()
    }
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
}
