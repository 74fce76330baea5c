//! Concurrency keys: how many jobs with one run, and who waits for them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::job::limits::KEY_CONCURRENCY_DEFAULT;
use crate::job::name::{ConcurrencyKey, Lane, Name};
use crate::job::{Job, JobState};

/// How many jobs run with each concurrency key, as committed. A backend counts them when it opens.
#[derive(Debug, Default)]
pub(in crate::store) struct KeysRunning(HashMap<ConcurrencyKey, i64>);

impl KeysRunning {
    /// Moves the counts as a commit did.
    pub(in crate::store) fn moved(
        &mut self,
        moves: impl IntoIterator<Item = (ConcurrencyKey, i64)>,
    ) {
        for (key, by) in moves {
            let running = self.0.entry(key.clone()).or_default();
            *running += by;
            if *running <= 0 {
                self.0.remove(&key);
            }
        }
    }

    /// How many run with a key.
    pub(in crate::store) fn of(&self, key: &ConcurrencyKey) -> i64 {
        self.0.get(key).copied().unwrap_or(0)
    }
}

/// How many of the first jobs of a lane could be claimed, as things were at the last commit. Only an
/// estimate: the plan decides.
pub(in crate::store) struct KeyRoom<'a> {
    running: &'a KeysRunning,
    lane: &'a Lane,
    limit: i64,
    taken: HashMap<Name, i64>,
}

impl<'a> KeyRoom<'a> {
    pub(in crate::store) fn new(
        running: &'a KeysRunning,
        lane: &'a Lane,
        limits: &BTreeMap<Name, usize>,
    ) -> Self {
        Self {
            running,
            lane,
            limit: limit_of(limits, &lane.queue),
            taken: HashMap::new(),
        }
    }

    /// Whether the next job of the lane, with this key, could be claimed behind those before it.
    pub(in crate::store) fn take(&mut self, key: Option<Name>) -> bool {
        let Some(key) = key else { return true };
        let full = ConcurrencyKey {
            tenant: self.lane.tenant.clone(),
            queue: self.lane.queue.clone(),
            key: key.clone(),
        };
        let taken = self.taken.entry(key).or_default();
        let has_room = self.running.of(&full) + *taken < self.limit;
        *taken += i64::from(has_room);
        has_room
    }
}

fn limit_of(limits: &BTreeMap<Name, usize>, queue: &Name) -> i64 {
    let limit = limits
        .get(queue)
        .copied()
        .unwrap_or(KEY_CONCURRENCY_DEFAULT);
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Who may run while a group is planned.
pub(super) struct KeyGate<'a> {
    running: &'a KeysRunning,
    limits: Arc<BTreeMap<Name, usize>>,
    moves: HashMap<ConcurrencyKey, i64>,
    /// Keys of which somebody who ran, or could have run next, has gone: one each time.
    releases: VecDeque<ConcurrencyKey>,
    blocked: HashMap<ConcurrencyKey, VecDeque<Arc<Job>>>,
}

impl<'a> KeyGate<'a> {
    pub(super) fn new(
        running: &'a KeysRunning,
        limits: Arc<BTreeMap<Name, usize>>,
        blocked: HashMap<ConcurrencyKey, VecDeque<Arc<Job>>>,
    ) -> Self {
        Self {
            running,
            limits,
            moves: HashMap::new(),
            releases: VecDeque::new(),
            blocked,
        }
    }

    /// Whether as many jobs run with this key as may. Without one, there is no limit.
    pub(super) fn is_full(&self, key: Option<ConcurrencyKey>) -> bool {
        key.is_some_and(|key| {
            let moved = self.moves.get(&key).copied().unwrap_or(0);
            self.running.of(&key) + moved >= limit_of(&self.limits, &key.queue)
        })
    }

    /// Learns that a job has gone from a state to the one that it is in.
    pub(super) fn moved(&mut self, before: JobState, job: &Job) {
        if before == job.state || job.spec.concurrency_key.is_none() {
            return;
        }
        let Some(key) = job.concurrency_key() else {
            return;
        };
        let by = i64::from(job.state.is_leased()) - i64::from(before.is_leased());
        if by != 0 {
            *self.moves.entry(key.clone()).or_default() += by;
        }
        // Whoever could run and does not any more makes room for one that waits. A job that goes from
        // QUEUED to BLOCKED was refused, and makes none.
        let can_run = |state: JobState| state == JobState::Queued || state.is_leased();
        if can_run(before) && !can_run(job.state) && job.state != JobState::Blocked {
            self.releases.push_back(key);
        }
    }

    /// The next key of which one job may go on.
    pub(super) fn next_release(&mut self) -> Option<ConcurrencyKey> {
        self.releases.pop_front()
    }

    /// The next job that waits for others with this key.
    pub(super) fn next_blocked(&mut self, key: &ConcurrencyKey) -> Option<Arc<Job>> {
        self.blocked.get_mut(key)?.pop_front()
    }

    pub(super) fn into_moves(self) -> Vec<(ConcurrencyKey, i64)> {
        self.moves.into_iter().filter(|(_, by)| *by != 0).collect()
    }
}
