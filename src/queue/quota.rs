//! How many jobs of each tenant wait, and how many more may: what a submit is refused for. What runs is
//! bounded later, where jobs are claimed.

use std::collections::HashMap;

use crate::job::JobState;
use crate::job::name::{Lane, Name};
use crate::store::{Entry, WaitingRoom};

/// How many jobs of each tenant wait, as committed.
#[derive(Debug)]
pub(super) struct Quota {
    max: usize,
    waiting: HashMap<Name, i64>,
}

impl Quota {
    /// Nobody waits; so many of one tenant may.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            waiting: HashMap::new(),
        }
    }

    /// Moves the counts as a commit did.
    pub(super) fn moved(&mut self, depths: &[(Lane, JobState, i64)]) {
        for (lane, state, by) in depths {
            if !state.is_waiting() {
                continue;
            }
            let waiting = self.waiting.entry(lane.tenant.clone()).or_default();
            *waiting += by;
            if *waiting == 0 {
                self.waiting.remove(&lane.tenant);
            }
        }
    }

    /// How many wait, and may, of each tenant that has new jobs among these entries.
    pub(super) fn room(&self, entries: &[Entry]) -> HashMap<Name, WaitingRoom> {
        let mut room = HashMap::new();
        for entry in entries {
            let tenant = match entry {
                Entry::Submit { new, .. } => Some(&new.key.tenant),
                Entry::Batch(jobs) => jobs.first().map(|new| &new.key.tenant),
                Entry::Retry { key, .. } => Some(&key.tenant),
                Entry::Check(_) | Entry::Change { .. } => None,
            };
            if let Some(tenant) = tenant
                && !room.contains_key(tenant)
            {
                room.insert(tenant.clone(), self.room_of(tenant));
            }
        }
        room
    }

    fn room_of(&self, tenant: &Name) -> WaitingRoom {
        let waiting = self.waiting.get(tenant).copied().unwrap_or(0);
        WaitingRoom {
            waiting: usize::try_from(waiting).unwrap_or(0),
            max: self.max,
        }
    }
}
