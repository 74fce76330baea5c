//! What a group has to know before it can be planned.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::job::name::{ConcurrencyKey, JobId, JobKey, Lane, Name};
use crate::job::{NewJob, Payloads};
use crate::store::memory::tables::{Tables, unique_place, with_id};
use crate::store::plan::{
    BESIDE_BYTES_MAX, BlockedHeads, Candidate, KeyRoom, Known, SET_ASIDE_MAX,
};
use crate::store::{BlockedLine, Entry, Group};

impl Tables {
    pub(super) fn read(&self, group: &Group) -> Known {
        let mut known = Known::default();
        for entry in &group.entries {
            match entry {
                Entry::Change { key, .. } => self.know(key, &mut known),
                Entry::Retry { key, .. } => self.know_retry(key, &mut known),
                Entry::Submit { new, .. } | Entry::Check(new) => self.know_rivals(new, &mut known),
                Entry::Batch(jobs) => {
                    for new in jobs {
                        self.know_rivals(new, &mut known);
                    }
                }
            }
        }
        let in_place: usize = known.uniques.values().map(Vec::len).sum();
        self.know_blocked(group.entries.len() + in_place, &mut known);
        let mut set_aside = 0;
        for (lane, places) in group.places() {
            self.lane_heads(
                lane,
                places,
                &group.key_limits,
                &mut set_aside,
                &mut known.candidates,
            );
        }
        known
    }

    fn know(&self, key: &JobKey, known: &mut Known) {
        let Some(row) = self.jobs.get(key) else {
            return;
        };
        known.jobs.insert(key.clone(), Arc::clone(&row.job));
        if row.payloads.bytes() <= BESIDE_BYTES_MAX {
            let payloads = Arc::clone(&row.payloads);
            known.payloads.insert(key.clone(), payloads);
        }
    }

    /// A job that is retried: with its input, and beside the job that it was retried by before.
    fn know_retry(&self, key: &JobKey, known: &mut Known) {
        let Some(row) = self.jobs.get(key) else {
            return;
        };
        self.know(key, known);
        if let Some(by) = row.job.detail.retried_by {
            self.know(&with_id(&key.tenant, by), known);
        }
        if let Some(input) = &row.payloads.input {
            known.inputs.insert(key.clone(), input.clone());
        }
    }

    /// The jobs that have a new one's idempotency key or unique place.
    fn know_rivals(&self, new: &NewJob, known: &mut Known) {
        let tenant = &new.key.tenant;
        if let Some(key) = &new.spec.idempotency_key {
            let of_tenant = (tenant.clone(), key.clone());
            if let Some(id) = self.keys.get(&of_tenant) {
                let key = with_id(tenant, *id);
                self.know(&key, known);
                known.keys.insert(of_tenant, key);
            }
        }
        if let Some(place) = unique_place(&new.key, &new.spec)
            && let Some(jobs) = self.uniques.get(&place)
        {
            let keys = self.in_place(tenant, jobs);
            for key in &keys {
                self.know(key, known);
            }
            known.uniques.insert(place, keys);
        }
    }

    /// The jobs of a place that are not over, the newest first; or, where all are, the newest one.
    fn in_place(&self, tenant: &Name, jobs: &BTreeSet<JobId>) -> Vec<JobKey> {
        let newest_first = jobs.iter().rev().map(|id| with_id(tenant, *id));
        let is_open = |key: &JobKey| {
            let row = self.jobs.get(key);
            row.is_some_and(|row| !row.job.state.is_terminal())
        };
        let open: Vec<JobKey> = newest_first.clone().filter(is_open).collect();
        if open.is_empty() {
            return newest_first.take(1).collect();
        }
        open
    }

    /// For each job with a concurrency key that may make room, one of each type that waits for it; and
    /// `spare` more, because those may themselves be ended by this group.
    fn know_blocked(&self, spare: usize, known: &mut Known) {
        let mut makes_room: HashMap<ConcurrencyKey, usize> = HashMap::new();
        for key in known.jobs.values().filter_map(|job| job.concurrency_key()) {
            *makes_room.entry(key).or_default() += 1;
        }
        for (key, jobs) in makes_room {
            let heads = self.blocked_heads(&key, jobs + spare);
            if !heads.is_empty() {
                known.blocked.insert(key, heads);
            }
        }
    }

    /// The first jobs of each type that wait for others with a key.
    fn blocked_heads(&self, key: &ConcurrencyKey, most: usize) -> BlockedHeads {
        let first = BlockedLine {
            tenant: key.tenant.clone(),
            key: key.key.clone(),
            // No name comes before this one.
            job_type: Name::of("-"),
        };
        let lines = self.blocked.get(&key.queue).into_iter();
        let lines = lines.flat_map(|lines| lines.range(&first..));
        let lines = lines.take_while(|(line, _)| line.tenant == key.tenant && line.key == key.key);
        let job = |id: &JobId| {
            let row = self.jobs.get(&with_id(&key.tenant, *id));
            row.map(|row| Arc::clone(&row.job))
        };
        lines
            .map(|(line, turns)| {
                let heads = turns.iter().take(most);
                let heads = heads.filter_map(|(_, _, id)| job(id)).collect();
                (line.job_type.clone(), heads)
            })
            .collect()
    }

    /// The jobs at the head of a lane: as many as can be claimed, beside those in between that have to
    /// wait for others with their concurrency key.
    fn lane_heads(
        &self,
        lane: &Lane,
        places: usize,
        key_limits: &BTreeMap<Name, usize>,
        set_aside: &mut usize,
        heads: &mut Vec<Candidate>,
    ) {
        let mut room = KeyRoom::new(&self.keys_running, lane, key_limits);
        let mut claimable = 0;
        for (_, _, id) in self.ready.get(lane).into_iter().flatten() {
            if claimable == places || *set_aside == SET_ASIDE_MAX {
                break;
            }
            let Some(row) = self.jobs.get(&with_id(&lane.tenant, *id)) else {
                continue;
            };
            heads.push(Candidate {
                job: Arc::clone(&row.job),
                payloads: Some(Payloads::clone(&row.payloads)),
            });
            if room.take(row.job.spec.concurrency_key.clone()) {
                claimable += 1;
            } else {
                *set_aside += 1;
            }
        }
    }
}
