//! Who waits for work: counted, and bounded for each tenant.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Limit};
use crate::job::limits::WORKERS_WAITING_MAX;
use crate::job::name::Name;

/// When to come back. Chosen: work that comes is for those who wait; who comes now is not missed.
const COME_BACK: Duration = Duration::from_secs(5);

/// How many calls for work wait, by tenant; only of those of whom some do.
#[derive(Debug, Default)]
pub(in crate::queue) struct Waiters(Mutex<HashMap<Name, usize>>);

impl Waiters {
    /// One more waits, until what is answered is dropped.
    pub(super) fn enter(&self, tenant: &Name) -> Result<Waits<'_>, Error> {
        let mut waiters = self.lock();
        let waiting = waiters.get(tenant).copied().unwrap_or_default();
        if waiting >= WORKERS_WAITING_MAX {
            let limit = Limit::Workers {
                waiting,
                max: WORKERS_WAITING_MAX,
            };
            return Err(Error::Exhausted {
                limit,
                retry_after: COME_BACK,
            });
        }
        waiters.insert(tenant.clone(), waiting + 1);
        drop(waiters);
        Ok(Waits {
            waiters: self,
            tenant: tenant.clone(),
        })
    }

    /// How many wait, of all tenants.
    pub(super) fn all(&self) -> usize {
        self.lock().values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, usize>> {
        // Nothing in here can be left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Waits<'a> {
    waiters: &'a Waiters,
    tenant: Name,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut waiters = self.waiters.lock();
        if let Some(waiting) = waiters.get_mut(&self.tenant) {
            *waiting -= 1;
            if *waiting == 0 {
                waiters.remove(&self.tenant);
            }
        }
    }
}
