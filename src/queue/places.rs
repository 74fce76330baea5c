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
    pub(super) fn free_for(&self, job_type: &Name) -> usize {
        let free = self.lock();
        match free.by_type.get(job_type) {
            Some(of_type) if free.open => free.overall.min(*of_type),
            _ => 0,
        }
    }

    /// Whether any place is free.
    pub(super) fn any_free(&self) -> bool {
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
