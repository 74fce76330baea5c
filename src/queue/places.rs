//! Free places in the pool: how much more may run in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::job::name::Name;

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
    /// Given back since the round began.
    returned: usize,
    by_type: HashMap<Name, OfType>,
}

#[derive(Debug)]
struct OfType {
    free: usize,
    /// Given back since the round began.
    returned: usize,
}

impl Places {
    /// A pool with so many places, and so many of them for each type that it can run.
    pub fn new(overall: usize, by_type: impl IntoIterator<Item = (Name, usize)>) -> Self {
        let free = Free {
            open: true,
            overall,
            returned: 0,
            by_type: by_type
                .into_iter()
                .map(|(name, free)| (name, OfType { free, returned: 0 }))
                .collect(),
        };
        Self {
            free: Arc::new(Mutex::new(free)),
        }
    }

    /// Begins a round: what was given back until now may be taken in it. What is given back later waits for
    /// the next one, so that nobody gets it before those who waited when it was not there.
    pub(super) fn begin_round(&self) {
        let mut free = self.lock();
        let free = &mut *free;
        if free.returned == 0 {
            return;
        }
        free.overall += std::mem::take(&mut free.returned);
        for of_type in free.by_type.values_mut() {
            of_type.free += std::mem::take(&mut of_type.returned);
        }
    }

    /// Takes a place for a job of the type, if there was one when the round began.
    pub fn take(&self, job_type: &Name) -> bool {
        let mut free = self.lock();
        let free = &mut *free;
        match free.by_type.get_mut(job_type) {
            Some(of_type) if free.open && free.overall > 0 && of_type.free > 0 => {
                free.overall -= 1;
                of_type.free -= 1;
                true
            }
            _ => false,
        }
    }

    /// How many jobs of the type could be given a place now.
    pub(super) fn free_for(&self, job_type: &Name) -> usize {
        let free = self.lock();
        match free.by_type.get(job_type) {
            Some(of_type) if free.open => free.overall.min(of_type.free),
            _ => 0,
        }
    }

    /// Whether any place is free.
    pub(super) fn any_free(&self) -> bool {
        let free = self.lock();
        free.open && free.overall > 0
    }

    /// Undoes a take of this very round.
    pub(super) fn put_back(&self, job_type: &Name) {
        let mut free = self.lock();
        free.overall += 1;
        if let Some(of_type) = free.by_type.get_mut(job_type) {
            of_type.free += 1;
        }
    }

    /// Gives a place back, for the next round.
    pub fn give_back(&self, job_type: &Name) {
        let mut free = self.lock();
        free.returned += 1;
        if let Some(of_type) = free.by_type.get_mut(job_type) {
            of_type.returned += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_in_a_round_is_for_the_next_one() {
        let name = Name::of("x");
        let places = Places::new(1, [(name.clone(), 1)]);
        places.begin_round();
        assert!(places.take(&name));
        places.give_back(&name);
        assert!(
            !places.take(&name) && !places.any_free(),
            "somebody may wait for it"
        );
        places.begin_round();
        assert_eq!(places.free_for(&name), 1);
        assert!(places.take(&name));
        places.put_back(&name);
        assert!(places.take(&name), "it was never gone");
    }
}
