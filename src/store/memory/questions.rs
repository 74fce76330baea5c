//! What is asked of a memory store.

use std::ops::Bound;
use std::sync::Arc;

use uuid::Uuid;

use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::time::Timestamp;
use crate::job::{Job, JobSnapshot, JobState, Payloads};
use crate::store::memory::tables::{Tables, lease_end, turn, with_id};
use crate::store::{
    AHEAD_MAX, AttemptTimer, BlockedLine, Due, JobFilter, ListQuery, Listed, LogPart, LogRange,
    PlacedSegment, Scan, ScanQuery, Scanned, TenantLog, TenantRange, Timer, View,
};

/// No id is lower.
const NIL: JobId = JobId::new(Uuid::nil());

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

    pub(super) fn list(&self, query: &ListQuery) -> Listed {
        if let Some(key) = &query.idempotency_key {
            let id = self.keys.get(&(query.tenant.clone(), key.clone()));
            let row = id.and_then(|id| self.jobs.get(&with_id(&query.tenant, *id)));
            let job = row.map(|row| Arc::clone(&row.job));
            let jobs = job.into_iter().filter(|job| query.admits(job)).collect();
            let through = None;
            return Listed { jobs, through };
        }
        let first = Bound::Included(with_id(&query.tenant, NIL));
        let end = match query.before_id {
            Some(before) => Bound::Excluded(with_id(&query.tenant, before)),
            None => Bound::Included(with_id(&query.tenant, JobId::new(Uuid::max()))),
        };
        let mut listed = Listed {
            jobs: Vec::new(),
            through: None,
        };
        let mut last = None;
        for (looked_at, (key, row)) in self.jobs.range((first, end)).rev().enumerate() {
            if looked_at >= query.rows.max(1) || listed.jobs.len() >= query.limit.max(1) {
                listed.through = last;
                break;
            }
            last = Some(key.id);
            if query.admits(&row.job) {
                listed.jobs.push(Arc::clone(&row.job));
            }
        }
        listed
    }

    pub(super) fn log(&self, key: &JobKey, range: LogRange) -> Option<LogPart> {
        let row = self.jobs.get(key)?;
        let begin = row
            .log
            .partition_point(|(_, segment)| segment.last_sequence() <= range.after);
        let next = range.after.saturating_add(1).max(row.job.first_sequence);
        let events = i64::try_from(range.events.max(1)).unwrap_or(i64::MAX);
        let end = next.saturating_add(events);
        let mut bytes = 0;
        let segments = row.log[begin..].iter().map(|(_, segment)| segment);
        let segments = segments.take_while(|segment| {
            let fits = segment.first_sequence() < end && bytes < range.bytes.max(1);
            bytes += segment.body().len();
            fits
        });
        Some(LogPart {
            job: Arc::clone(&row.job),
            segments: segments.map(Arc::clone).collect(),
        })
    }

    pub(super) fn log_after(&self, range: &TenantRange) -> TenantLog {
        let purged = self.purged.get(&range.tenant).copied();
        let (purged_through, purges) = purged.unwrap_or_default();
        let mut log = TenantLog {
            segments: Vec::new(),
            through: range.after,
            more: false,
            purged_through,
            purges,
        };
        // The segment that holds the next event may begin before it.
        let next = range.after.saturating_add(1);
        let begins = self.segments.range(..=next).next_back();
        let begins = begins.map_or(next, |(position, _)| *position);
        let (mut looked_at, mut events, mut bytes) = (0, 0, 0);
        for (position, (key, segment)) in self.segments.range(begins..) {
            let last = position + segment.len() as i64 - 1;
            if last <= range.after {
                continue;
            }
            let full = events >= range.events.max(1) || bytes >= range.bytes.max(1);
            if full || looked_at == range.segments.max(1) {
                log.more = true;
                return log;
            }
            looked_at += 1;
            log.through = log.through.max(last);
            if key.tenant != range.tenant {
                continue;
            }
            events += segment.len();
            bytes += segment.body().len();
            if let Some(row) = self.jobs.get(key) {
                log.segments.push(PlacedSegment {
                    position: *position,
                    job: Arc::clone(&row.job),
                    segment: Arc::clone(segment),
                });
            }
        }
        log.through = log.through.max(self.head());
        log
    }

    pub(super) fn next_blocked(
        &self,
        queue: &Name,
        after: Option<&BlockedLine>,
        limit: usize,
    ) -> Option<(BlockedLine, Vec<JobKey>)> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut lines = self.blocked.get(queue)?.range((after, Bound::Unbounded));
        let (line, turns) = lines.next()?;
        let ids = turns.iter().take(limit).map(|(_, _, id)| *id);
        let keys = ids.map(|id| with_id(&line.tenant, id)).collect();
        Some((line.clone(), keys))
    }

    pub(super) fn head(&self) -> i64 {
        self.next_position - 1
    }

    pub(super) fn scan(&self, query: &ScanQuery) -> Scan {
        let filter = &query.filter;
        let looked_at = self.scanned(filter, query.after, query.look_at.max(1));
        let mut scan = Scan {
            jobs: Vec::new(),
            through: looked_at.last().copied(),
        };
        for id in looked_at {
            let Some(row) = self.jobs.get(&with_id(&filter.tenant, id)) else {
                continue;
            };
            let asked_for =
                filter.admits(&row.job) && !(query.unfinished && row.job.state.is_terminal());
            let Some((position, _)) = row.log.last().filter(|_| asked_for) else {
                continue;
            };
            scan.jobs.push(Scanned {
                job: Arc::clone(&row.job),
                position: *position,
            });
            if scan.jobs.len() == query.limit.max(1) {
                scan.through = Some(id);
                break;
            }
        }
        scan
    }

    /// The next jobs that a scan looks at, whether or not the filter admits them.
    fn scanned(&self, filter: &JobFilter, after: Option<JobId>, look_at: usize) -> Vec<JobId> {
        let tenant = &filter.tenant;
        if let Some(batch) = filter.batch_id {
            let ids = self.batches.get(&(tenant.clone(), batch)).into_iter();
            let after = after.map_or(Bound::Unbounded, Bound::Excluded);
            let ids = ids.flat_map(|ids| ids.range((after, Bound::Unbounded)));
            return ids.take(look_at).copied().collect();
        }
        let after = after.map_or(Bound::Included(with_id(tenant, NIL)), |id| {
            Bound::Excluded(with_id(tenant, id))
        });
        let jobs = self
            .jobs
            .range((after, Bound::Unbounded))
            .map(|(key, _)| key);
        let ids = jobs
            .take_while(|key| key.tenant == *tenant)
            .map(|key| key.id);
        ids.take(look_at).collect()
    }

    pub(super) fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Due {
        let times = match timer {
            Timer::Start => &self.scheduled,
            Timer::Deadline => &self.deadlines,
            Timer::Purge => &self.purges,
            Timer::PurgeEvents => &self.event_purges,
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
