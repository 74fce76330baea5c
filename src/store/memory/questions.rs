//! What is asked of a memory store.

use std::sync::Arc;

use crate::job::name::{JobId, JobKey, Lane};
use crate::job::time::Timestamp;
use crate::job::{Job, JobSnapshot, JobState, Payloads};
use crate::store::memory::tables::{Tables, lease_end, turn, with_id};
use crate::store::{AHEAD_MAX, AttemptTimer, Due, ListQuery, LogPart, LogRange, Timer, View};

impl Tables {
    pub(super) fn secret(&self) -> [u8; 32] {
        self.secret
    }

    pub(super) fn job(&self, key: &JobKey, view: View) -> Option<JobSnapshot> {
        let row = self.jobs.get(key)?;
        let payloads = match view {
            View::Basic => Payloads::default(),
            View::Full => Payloads::clone(&row.payloads),
        };
        Some(JobSnapshot {
            job: Arc::clone(&row.job),
            payloads,
        })
    }

    pub(super) fn ahead_of(&self, job: &Job) -> Option<u64> {
        let turns = self.ready.get(&job.lane());
        let ahead = turns.into_iter().flat_map(|turns| turns.range(..turn(job)));
        let ahead = ahead.zip(1..=AHEAD_MAX + 1).count() as u64;
        (ahead <= AHEAD_MAX).then_some(ahead)
    }

    pub(super) fn list(&self, query: &ListQuery) -> Vec<Arc<Job>> {
        if let Some(key) = &query.idempotency_key {
            let id = self.keys.get(&(query.tenant.clone(), key.clone()));
            let row = id.and_then(|id| self.jobs.get(&with_id(&query.tenant, *id)));
            let job = row.map(|row| Arc::clone(&row.job));
            return job.into_iter().filter(|job| query.admits(job)).collect();
        }
        let oldest = JobId::new(uuid::Uuid::nil());
        let newest = query.before_id.unwrap_or(JobId::new(uuid::Uuid::max()));
        let range = with_id(&query.tenant, oldest)..=with_id(&query.tenant, newest);
        let rows = self.jobs.range(range).rev();
        rows.map(|(_, row)| &row.job)
            .filter(|job| query.admits(job))
            .take(query.limit)
            .map(Arc::clone)
            .collect()
    }

    pub(super) fn log(&self, key: &JobKey, range: LogRange) -> Option<LogPart> {
        let row = self.jobs.get(key)?;
        let begin = row
            .log
            .partition_point(|s| s.last_sequence() <= range.after);
        let next = range.after.saturating_add(1).max(row.job.first_sequence);
        let events = i64::try_from(range.events.max(1)).unwrap_or(i64::MAX);
        let end = next.saturating_add(events);
        let mut bytes = 0;
        let segments = row.log[begin..].iter().take_while(|segment| {
            let fits = segment.first_sequence() < end && bytes < range.bytes.max(1);
            bytes += segment.body().len();
            fits
        });
        Some(LogPart {
            job: Arc::clone(&row.job),
            segments: segments.map(Arc::clone).collect(),
        })
    }

    pub(super) fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Due {
        let times = match timer {
            Timer::Start => &self.scheduled,
            Timer::Deadline => &self.deadlines,
            Timer::Purge => &self.purges,
        };
        let mut due = Due {
            keys: Vec::new(),
            next: None,
        };
        for (at, key) in times {
            if *at > now || due.keys.len() == limit {
                due.next = Some(*at);
                break;
            }
            due.keys.push(key.clone());
        }
        due
    }

    pub(super) fn attempts_due(
        &self,
        timer: AttemptTimer,
        before: Timestamp,
        limit: usize,
    ) -> Vec<(JobKey, u32)> {
        let leased = self.leased.iter();
        let jobs = leased.filter_map(|(_, key)| self.jobs.get(key).map(|row| &row.job));
        let attempt = |job: &Arc<Job>| (job.key.clone(), job.attempt);
        match timer {
            AttemptTimer::Lease => {
                let ended = jobs.take_while(|job| lease_end(job).is_some_and(|end| end < before));
                ended.take(limit).map(attempt).collect()
            }
            // Looks at every job that runs.
            AttemptTimer::Stall => {
                let silent = jobs.filter(|job| job.stall_at.is_some_and(|at| at <= before));
                silent.take(limit).map(attempt).collect()
            }
        }
    }

    pub(super) fn depths(&self) -> Vec<(Lane, JobState, i64)> {
        let depths = self.depths.iter();
        depths
            .map(|((lane, state), jobs)| (lane.clone(), *state, *jobs))
            .collect()
    }
}
