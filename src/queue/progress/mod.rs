//! Merges progress before it is numbered: at most one stored in a job's interval, the newest standing
//! for the rest, and what is held back stored before any other event of its job.
//!
//! Owned by the writer, which sees every change in order. Pure: the time comes in.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crate::job::limits::LEASE_HEARTBEAT;
use crate::job::name::JobKey;
use crate::job::progress::Progress;
use crate::job::time::Timestamp;
use crate::job::{Change, Job, Report};
use crate::store::Entry;

/// The longest an interval grows to. Chosen: a bar that moves once a minute is still alive.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// What "one a commit" becomes once it has to be doubled.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// How long progress whose commit failed is held at least. Chosen: a full disk is asked twice a second,
/// and a bar that stood still for half a second is no loss.
const FAILED_HOLD: Duration = Duration::from_millis(500);

/// Progress that is held back, by job.
#[derive(Debug, Default)]
pub(super) struct ProgressGate {
    jobs: HashMap<JobKey, Held>,
    due: BTreeSet<(Timestamp, JobKey)>,
    /// Whose attempts may end in the group that is being made.
    ending: HashSet<JobKey>,
}

#[derive(Debug)]
struct Held {
    /// The one that holds the lease: what another one reports is late.
    attempt: u32,
    interval: Duration,
    /// Until when the lease was asked to hold, of what was passed on.
    renewed_until: Timestamp,
    /// How long after a renewal the next one has to go, whatever is held back.
    renew_after: Duration,
    /// The newest numbered report that was stored, or is held back whole.
    reported: i64,
    /// When its last progress was stored.
    stored_at: Option<Timestamp>,
    newest: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    attempt: u32,
    lease_until: Timestamp,
    progress: Progress,
    due_at: Timestamp,
}

/// An entry on its way into a group, with the place of whoever waits for its reply.
pub(super) type Addressed = (Entry, Option<usize>);

impl ProgressGate {
    /// Passes an entry on, with what has to be stored before it. A report of which nothing is left
    /// now is held back whole: it does not come out.
    pub(super) fn admit(
        &mut self,
        entry: Entry,
        slot: Option<usize>,
        now: Timestamp,
        out: &mut Vec<Addressed>,
    ) {
        match entry {
            Entry::Change {
                key,
                change:
                    Change::Report {
                        attempt,
                        reports,
                        lease_until,
                        number,
                        ..
                    },
            } if self.holds_lease(&key, attempt) => {
                let reports = if self.came_before(&key, number) {
                    Vec::new()
                } else {
                    reports
                };
                self.admit_report(key, attempt, reports, lease_until, number, slot, now, out);
            }
            Entry::Change { key, change } => {
                if let Some(flushed) = self.flush(&key, now) {
                    out.push((flushed, None));
                }
                if matches!(change, Change::Finish { .. } | Change::Lose { .. }) {
                    self.ending.insert(key.clone());
                }
                out.push((Entry::Change { key, change }, slot));
            }
            new @ (Entry::Submit { .. }
            | Entry::Batch(_)
            | Entry::Check(_)
            | Entry::Retry { .. }) => {
                out.push((new, slot));
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one entry")]
    fn admit_report(
        &mut self,
        key: JobKey,
        attempt: u32,
        reports: Vec<Report>,
        lease_until: Timestamp,
        number: i64,
        slot: Option<usize>,
        now: Timestamp,
        out: &mut Vec<Addressed>,
    ) {
        let is_heartbeat = reports.is_empty();
        // What was held back before goes as an entry of its own: should the commit fail, it comes back
        // here, while whoever sent this report sends only this report again. Newer progress in front of
        // the first event stands for it, a checkpoint does not.
        let mut telling = reports
            .iter()
            .filter(|report| !matches!(report, Report::Checkpoint(_)));
        if telling.next().is_some_and(is_event)
            && let Some(flushed) = self.flush(&key, now)
        {
            out.push((flushed, None));
        }
        let mut passed = Vec::with_capacity(reports.len());
        for report in reports {
            if let Report::Progress(progress) = report {
                self.hold(&key, attempt, lease_until, progress);
                continue;
            }
            if is_event(&report) {
                passed.extend(self.release(&key, now));
            }
            passed.push(report);
        }
        if passed.is_empty() && !is_heartbeat && !self.must_renew(&key, lease_until) {
            if let Some(held) = self.jobs.get_mut(&key) {
                held.reported = held.reported.max(number);
            }
            return;
        }
        if let Some(held) = self.jobs.get_mut(&key) {
            held.renewed_until = held.renewed_until.max(lease_until);
        }
        let change = Change::Report {
            attempt,
            reports: passed,
            heard_at: now,
            lease_until,
            number,
        };
        out.push((Entry::Change { key, change }, slot));
    }

    /// Whether a report was stored already, or is held.
    fn came_before(&self, key: &JobKey, number: i64) -> bool {
        let held = self.jobs.get(key);
        number > 0 && held.is_some_and(|held| number <= held.reported)
    }

    /// Whether it is the attempt that holds the lease, as of the last commit; not behind what may end it in
    /// this group: the job itself has to say whether it did.
    fn holds_lease(&self, key: &JobKey, attempt: u32) -> bool {
        let held = self.jobs.get(key);
        held.is_some_and(|held| held.attempt == attempt) && !self.ending.contains(key)
    }

    /// Whether a report that is held back whole has to go all the same, as a heartbeat: an interval may
    /// be longer than a lease.
    fn must_renew(&self, key: &JobKey, lease_until: Timestamp) -> bool {
        let held = self.jobs.get(key);
        held.is_some_and(|held| lease_until.since(held.renewed_until) >= held.renew_after)
    }

    /// Ends a group, with what is due.
    pub(super) fn end_group(&mut self, now: Timestamp, out: &mut Vec<Addressed>) {
        self.ending.clear();
        while let Some((due_at, key)) = self.due.first().cloned() {
            if due_at > now {
                break;
            }
            match self.flush(&key, now) {
                Some(entry) => out.push((entry, None)),
                None => {
                    self.due.remove(&(due_at, key));
                }
            }
        }
    }

    /// When the next held progress is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(due_at, _)| *due_at)
    }

    /// Takes back progress whose commit failed, unless there is newer.
    pub(super) fn take_back(&mut self, entry: Entry, now: Timestamp) {
        if let Entry::Change {
            key,
            change:
                Change::Report {
                    attempt,
                    reports,
                    lease_until,
                    ..
                },
        } = entry
            && let Some(Report::Progress(progress)) = reports.into_iter().next_back()
            && let Some(held) = self.jobs.get_mut(&key)
            && held.newest.is_none()
        {
            held.stored_at = Some(now);
            held.interval = held.interval.max(FAILED_HOLD);
            self.hold(&key, attempt, lease_until, progress);
        }
    }

    /// Learns how a job stands after a commit.
    pub(super) fn committed(&mut self, job: &Job) {
        if !job.state.is_leased() {
            if let Some(held) = self.jobs.remove(&job.key)
                && let Some(pending) = held.newest
            {
                self.due.remove(&(pending.due_at, job.key.clone()));
            }
            return;
        }
        let interval = interval(job);
        let renewed_until = job.lease_expires_at.unwrap_or_default();
        let held = self.jobs.entry(job.key.clone()).or_insert(Held {
            attempt: job.attempt,
            interval,
            renewed_until,
            renew_after: LEASE_HEARTBEAT,
            reported: 0,
            stored_at: None,
            newest: None,
        });
        let remote = job.detail.remote_lease;
        let reported = remote.map_or(0, |lease| lease.last_report);
        held.renew_after = remote.map_or(LEASE_HEARTBEAT, |lease| lease.term / 3);
        held.reported = if held.attempt == job.attempt {
            held.reported.max(reported)
        } else {
            reported
        };
        held.attempt = job.attempt;
        held.interval = interval;
        held.renewed_until = held.renewed_until.max(renewed_until);
    }

    fn hold(&mut self, key: &JobKey, attempt: u32, lease_until: Timestamp, progress: Progress) {
        let Some(held) = self.jobs.get_mut(key) else {
            return;
        };
        let due_at = match &held.newest {
            Some(pending) => pending.due_at,
            None => {
                let due_at = held
                    .stored_at
                    .map_or(Timestamp::default(), |at| at.after(held.interval));
                self.due.insert((due_at, key.clone()));
                due_at
            }
        };
        held.newest = Some(Pending {
            attempt,
            lease_until,
            progress,
            due_at,
        });
    }

    /// The held progress of a job, as a report that goes before another one.
    fn release(&mut self, key: &JobKey, now: Timestamp) -> Option<Report> {
        let pending = self.take(key, now)?;
        Some(Report::Progress(pending.progress))
    }

    /// The held progress of a job, as an entry of its own.
    fn flush(&mut self, key: &JobKey, now: Timestamp) -> Option<Entry> {
        let pending = self.take(key, now)?;
        Some(Entry::Change {
            key: key.clone(),
            change: Change::Report {
                attempt: pending.attempt,
                reports: vec![Report::Progress(pending.progress)],
                heard_at: now,
                lease_until: pending.lease_until,
                number: 0,
            },
        })
    }

    fn take(&mut self, key: &JobKey, now: Timestamp) -> Option<Pending> {
        let held = self.jobs.get_mut(key)?;
        let pending = held.newest.take()?;
        held.stored_at = Some(now);
        self.due.remove(&(pending.due_at, key.clone()));
        held.renewed_until = held.renewed_until.max(pending.lease_until);
        Some(Pending {
            // A heartbeat may have renewed the lease since: nothing takes that back.
            lease_until: held.renewed_until,
            ..pending
        })
    }
}

/// Whether a report becomes an event that progress must not fall behind. A checkpoint becomes none.
fn is_event(report: &Report) -> bool {
    match report {
        Report::Output { .. } | Report::Log(_) => true,
        Report::Progress(_) | Report::Checkpoint(_) => false,
    }
}

/// The job's interval now: its type's, doubled for each quarter of its log bound that progress has
/// filled.
fn interval(job: &Job) -> Duration {
    let quarter = (job.spec.log_bytes_max / 4).max(1);
    let quarters = job.detail.progress_bytes / quarter;
    if quarters == 0 {
        return job.spec.progress_interval;
    }
    let factor = 1_u32 << quarters.min(16);
    job.spec
        .progress_interval
        .max(INTERVAL_MIN)
        .saturating_mul(factor)
        .min(INTERVAL_MAX.max(job.spec.progress_interval))
}
