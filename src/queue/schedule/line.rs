//! What waits for one job type, as far as it may be started: by line, tenant and lane.

use std::collections::{BTreeMap, HashMap};

use crate::job::name::Name;
use crate::queue::schedule::Wanted;
use crate::queue::schedule::circle::Circle;
use crate::queue::schedule::order::{Order, Rank};

/// Lanes of one type that are held up together: those of one queue that has a bound, or those of all
/// queues that have none.
pub(super) type LineKey = Option<Name>;

/// Whose turn counts: that within the type, or that over all types.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Type,
    Pool,
}

/// One job type.
#[derive(Debug, Default)]
pub(super) struct JobType {
    pub(super) paused: bool,
    /// The tenants that have something of it waiting.
    pub(super) circle: Circle,
    lines: HashMap<LineKey, Line>,
    /// The lines that nobody has found held up, each by its first tenant.
    by_type: Order<LineKey>,
    by_pool: Order<LineKey>,
}

#[derive(Debug, Default)]
struct Line {
    /// Of each tenant the queues, in the order in which they were served.
    tenants: HashMap<Name, BTreeMap<u64, Name>>,
    by_type: Order<Name>,
    by_pool: Order<Name>,
}

impl JobType {
    /// Whether nothing has to be kept of it.
    pub(super) fn is_idle(&self) -> bool {
        !self.paused && self.circle.is_empty()
    }

    /// Whether there is a line that was not found to be held up.
    pub(super) fn may_start(&self) -> bool {
        !self.paused && !self.by_pool.is_empty()
    }

    /// Adds a lane that was last served at `served`.
    pub(super) fn list(
        &mut self,
        key: &LineKey,
        tenant: &Name,
        queue: &Name,
        served: u64,
        pool: &Circle,
    ) {
        let line = self.lines.entry(key.clone()).or_default();
        let queues = line.tenants.entry(tenant.clone()).or_default();
        queues.insert(served, queue.clone());
        let first = queues.keys().next().copied().unwrap_or(served);
        let turn = |circle: &Circle| circle.turn_of(tenant).unwrap_or_default();
        line.by_type.put(tenant, (turn(&self.circle), first));
        line.by_pool.put(tenant, (turn(pool), first));
        self.open(key);
    }

    /// Takes away a lane that was last served at `served`.
    pub(super) fn unlist(&mut self, key: &LineKey, tenant: &Name, served: u64) {
        let Some(line) = self.lines.get_mut(key) else {
            return;
        };
        if let Some(queues) = line.tenants.get_mut(tenant) {
            queues.remove(&served);
            if queues.is_empty() {
                line.tenants.remove(tenant);
                line.by_type.remove(tenant);
                line.by_pool.remove(tenant);
            }
        }
        if line.tenants.is_empty() {
            self.lines.remove(key);
            self.by_type.remove(key);
            self.by_pool.remove(key);
        }
    }

    /// Looks at a line again: it may not be held up any more. Answers whether anything waits in it.
    pub(super) fn open(&mut self, key: &LineKey) -> bool {
        let waits = self.lines.contains_key(key);
        if waits {
            // Too early, perhaps: it finds its place when it is met.
            self.by_type.put(key, (0, 0));
            self.by_pool.put(key, (0, 0));
        }
        waits
    }

    /// Of the queues that a poll asks for, the one that was served the longest ago, and when that was. Looks at
    /// every line: most types have few.
    pub(super) fn first_of(
        &self,
        wanted: &Wanted,
        mut is_open: impl FnMut(&Name) -> bool,
    ) -> Option<(u64, Name)> {
        if self.paused {
            return None;
        }
        let mut best: Option<(u64, &Name)> = None;
        for (key, line) in &self.lines {
            let Some(queues) = line.tenants.get(&wanted.tenant) else {
                continue;
            };
            let first = queues.iter().find(|(_, queue)| wanted.has_queue(queue));
            if let Some((served, queue)) = first
                && best.is_none_or(|(first, _)| *served < first)
                && key.as_ref().is_none_or(&mut is_open)
            {
                best = Some((*served, queue));
            }
        }
        best.map(|(served, queue)| (served, queue.clone()))
    }

    /// Whose lane is next: tenant and queue.
    pub(super) fn first(
        &mut self,
        by: By,
        pool: &Circle,
        mut is_open: impl FnMut(&Name) -> bool,
    ) -> Option<(Rank, Name, Name)> {
        let lines = &mut self.lines;
        let (order, circle) = match by {
            By::Type => (&mut self.by_type, &self.circle),
            By::Pool => (&mut self.by_pool, pool),
        };
        let (rank, key) = order.first(|key| {
            if key.as_ref().is_some_and(|queue| !is_open(queue)) {
                return None;
            }
            let (rank, _) = lines.get_mut(key)?.first(by, circle)?;
            Some(rank)
        })?;
        let line = lines.get_mut(&key)?;
        let (_, tenant) = line.first(by, circle)?;
        let queue = line.tenants.get(&tenant)?.values().next()?.clone();
        Some((rank, tenant, queue))
    }
}

impl Line {
    fn first(&mut self, by: By, circle: &Circle) -> Option<(Rank, Name)> {
        let order = match by {
            By::Type => &mut self.by_type,
            By::Pool => &mut self.by_pool,
        };
        let tenants = &self.tenants;
        order.first(|tenant| {
            let served = tenants.get(tenant)?.keys().next()?;
            Some((circle.turn_of(tenant)?, *served))
        })
    }
}
