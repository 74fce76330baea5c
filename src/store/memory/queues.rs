//! Looking at queues, and what was set for them.

use std::collections::BTreeSet;
use std::ops::Bound;

use uuid::Uuid;

use crate::job::JobState;
use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::time::Timestamp;
use crate::store::memory::tables::{Tables, Turn};
use crate::store::{QueueRange, Setting};

impl Tables {
    pub(super) fn depths_of(
        &self,
        tenant: &Name,
        queues: &QueueRange,
    ) -> Vec<(Lane, JobState, i64)> {
        let mine = || {
            self.depths
                .iter()
                .filter(|((lane, _), _)| lane.tenant == *tenant)
        };
        let wanted: BTreeSet<&Name> = match queues {
            QueueRange::One(queue) => [queue].into(),
            QueueRange::Behind(after, limit) => {
                let queues: BTreeSet<&Name> = mine().map(|((lane, _), _)| &lane.queue).collect();
                let after = after.as_ref();
                let behind = queues
                    .into_iter()
                    .filter(|queue| after.is_none_or(|after| *queue > after));
                behind.take(*limit).collect()
            }
        };
        // Counters are in the order of their lanes, which begin with the queue.
        mine()
            .filter(|((lane, _), _)| wanted.contains(&lane.queue))
            .map(|((lane, state), jobs)| (lane.clone(), *state, *jobs))
            .collect()
    }

    /// Goes from priority to priority: the first of each has been due the longest.
    pub(super) fn due_longest(&self, lane: &Lane) -> Option<Timestamp> {
        let turns = self.ready.get(lane)?;
        let mut longest: Option<Timestamp> = None;
        let mut from: Bound<Turn> = Bound::Unbounded;
        while let Some((priority, run_at, _)) = turns.range((from, Bound::Unbounded)).next() {
            longest = Some(longest.map_or(*run_at, |longest| longest.min(*run_at)));
            let last = (
                *priority,
                Timestamp::from_micros(i64::MAX),
                JobId::new(Uuid::max()),
            );
            from = Bound::Excluded(last);
        }
        longest
    }

    pub(super) fn waiting(
        &self,
        lane: &Lane,
        state: JobState,
        before: JobId,
        limit: usize,
    ) -> Vec<JobKey> {
        if !state.is_waiting() {
            return Vec::new();
        }
        let rows = self.jobs.values().map(|row| &row.job);
        rows.filter(|job| job.state == state && job.key.id < before && job.lane() == *lane)
            .map(|job| job.key.clone())
            .take(limit)
            .collect()
    }

    pub(super) fn settings(&self) -> Vec<Setting> {
        let settings = self.settings.iter();
        settings
            .map(|((kind, name), value)| Setting {
                kind: *kind,
                name: name.clone(),
                value: Some(value.clone()),
            })
            .collect()
    }

    pub(super) fn put_setting(&mut self, setting: Setting) {
        let of = (setting.kind, setting.name);
        match setting.value {
            Some(value) => self.settings.insert(of, value),
            None => self.settings.remove(&of),
        };
    }
}
