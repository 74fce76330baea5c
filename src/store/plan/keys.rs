//! Concurrency keys: how many jobs with one run, and who waits for them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::job::limits::KEY_CONCURRENCY_DEFAULT;
use crate::job::name::{ConcurrencyKey, Lane, Name};
use crate::job::{Job, JobState};

/// Jobs of a lane that one group sets aside because they have to wait for others with their concurrency
/// key. Chosen: a long line of them is passed in a few groups, and none takes long.
pub(in crate::store) const SET_ASIDE_MAX: usize = 256;

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

    /// One that could be claimed is not there to be claimed after all.
    pub(in crate::store) fn give_back(&mut self, key: Option<&Name>) {
        if let Some(taken) = key.and_then(|key| self.taken.get_mut(key)) {
            *taken -= 1;
        }
    }
}

fn limit_of(limits: &BTreeMap<Name, usize>, queue: &Name) -> i64 {
    let limit = limits
        .get(queue)
        .copied()
        .unwrap_or(KEY_CONCURRENCY_DEFAULT);
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The first jobs that wait for others with a concurrency key, type by type, in the order of claims.
pub(in crate::store) type BlockedHeads = BTreeMap<Name, VecDeque<Arc<Job>>>;

/// Who may run while a group is planned.
///
/// It keeps this true of every key and type: while jobs of the type wait for others, as many jobs run
/// with the key, or are QUEUED in that type, as may run. So there is always one whose end lets the next
/// go on. Each type has its own, because another one may be paused, or have no worker.
pub(super) struct KeyGate<'a> {
    running: &'a KeysRunning,
    limits: Arc<BTreeMap<Name, usize>>,
    moves: HashMap<ConcurrencyKey, i64>,
    releases: VecDeque<Release>,
    /// Jobs that this group lets go on, and that the next one may claim.
    released: HashMap<ConcurrencyKey, i64>,
    blocked: HashMap<ConcurrencyKey, BlockedHeads>,
}

/// Somebody who ran, or could have run next, has made room for one.
struct Release {
    key: ConcurrencyKey,
    /// Of which type; `None` for one of each: any of them may be the first to find a place.
    job_type: Option<Name>,
}

/// Whether a job may run with its concurrency key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    Free,
    /// What is left is for those that this group has let go on.
    Promised,
    /// As many run as may.
    None,
}

impl<'a> KeyGate<'a> {
    pub(super) fn new(
        running: &'a KeysRunning,
        limits: Arc<BTreeMap<Name, usize>>,
        blocked: HashMap<ConcurrencyKey, BlockedHeads>,
    ) -> Self {
        Self {
            running,
            limits,
            moves: HashMap::new(),
            releases: VecDeque::new(),
            released: HashMap::new(),
            blocked,
        }
    }

    /// Whether a job with this key, if any, may run.
    pub(super) fn room(&self, key: Option<&ConcurrencyKey>) -> Room {
        let Some(key) = key else { return Room::Free };
        let moved = self.moves.get(key).copied().unwrap_or(0);
        let left = limit_of(&self.limits, &key.queue) - self.running.of(key) - moved;
        let heads = self.blocked.get(key).into_iter().flatten();
        let heads: usize = heads.map(|(_, line)| line.len()).sum();
        let mine = |release: &&Release| release.key == *key;
        let due = self.releases.iter().filter(mine).count().min(heads);
        let due = i64::try_from(due).unwrap_or(i64::MAX);
        let promised = self.released.get(key).copied().unwrap_or(0) + due;
        if left <= 0 {
            Room::None
        } else if left <= promised {
            Room::Promised
        } else {
            Room::Free
        }
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
        if before == JobState::Blocked && job.state == JobState::Queued {
            *self.released.entry(key).or_default() += 1;
        } else if by < 0 {
            // Also where it is QUEUED again: those that wait may come before it.
            self.releases.push_back(Release {
                key,
                job_type: None,
            });
        } else if before == JobState::Queued && job.state.is_terminal() {
            self.releases.push_back(Release {
                key,
                job_type: Some(job.spec.job_type.clone()),
            });
        }
    }

    /// The jobs that may go on next, each the first of its line, or of none: they may be over by now.
    /// `None` where nobody makes room any more.
    pub(super) fn next_released(&mut self) -> Option<Vec<(ConcurrencyKey, Name)>> {
        let Release { key, job_type } = self.releases.pop_front()?;
        let lines = self.blocked.get(&key).into_iter().flatten();
        let lines = lines.map(|(of_type, _)| of_type.clone());
        let lines = lines.filter(|of_type| job_type.as_ref().is_none_or(|only| only == of_type));
        Some(lines.map(|of_type| (key.clone(), of_type)).collect())
    }

    /// The next job of a type that waits for others with this key.
    pub(super) fn next_blocked(
        &mut self,
        key: &ConcurrencyKey,
        job_type: &Name,
    ) -> Option<Arc<Job>> {
        self.blocked.get_mut(key)?.get_mut(job_type)?.pop_front()
    }

    pub(super) fn into_moves(self) -> Vec<(ConcurrencyKey, i64)> {
        self.moves.into_iter().filter(|(_, by)| *by != 0).collect()
    }
}
