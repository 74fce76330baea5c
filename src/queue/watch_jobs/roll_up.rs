//! The watch of many jobs as one message for all of them: how many are how far.
//!
//! It counts what is over and remembers what is not, a few bytes a job, so that it is exact with any number
//! of jobs and never counts them again; but for a watch that has fallen behind a purge, which begins anew.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::job::name::JobId;
use crate::job::time::Timestamp;
use crate::job::{Job, JobState};
use crate::queue::watch::COALESCE;
use crate::queue::watch_jobs::cursor::{Cursor, CursorKey};
use crate::queue::watch_jobs::feed::{Entry, Feed};
use crate::queue::watch_jobs::jobs::{Found, Jobs};
use crate::queue::watch_jobs::{JobsContent, JobsGap, JobsMessage, JobsWatchOptions, ends};

/// How many jobs are how far, over all that match.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct RollUp {
    /// Not started: scheduled, blocked or queued.
    pub waiting: u64,
    /// Running or cancelling.
    pub running: u64,
    /// Over, with a result.
    pub succeeded: u64,
    /// Over, with an error.
    pub failed: u64,
    /// Over, because somebody asked.
    pub cancelled: u64,
    /// Over, because they were not started or not finished in time.
    pub expired: u64,
    /// Mean of the jobs' fractions, 1 for each that is over and 0 where one is not known; `None` without
    /// jobs.
    pub fraction: Option<f64>,
    /// When all of them will be over at the pace of the newest ends; `None` where that cannot be known.
    pub estimated_end_at: Option<Timestamp>,
}

/// A job that is not over.
#[derive(Clone, Copy, Debug)]
struct Live {
    runs: bool,
    fraction: f64,
    last_sequence: i64,
}

/// What was counted.
#[derive(Debug, Default)]
struct Counts {
    live: HashMap<JobId, Live>,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    expired: u64,
    pace: Pace,
}

impl Counts {
    fn add_live(&mut self, job: &Job, last_sequence: i64) {
        let progress = job.detail.progress.as_ref();
        let live = Live {
            runs: job.state.is_leased() || job.state.is_terminal(),
            fraction: progress.and_then(|known| known.fraction).unwrap_or(0.0),
            last_sequence,
        };
        self.live.insert(job.key.id, live);
    }

    fn add_ended(&mut self, job: &Job) {
        self.live.remove(&job.key.id);
        match job.state {
            JobState::Succeeded => self.succeeded += 1,
            JobState::Failed => self.failed += 1,
            JobState::Cancelled => self.cancelled += 1,
            JobState::Expired => self.expired += 1,
            JobState::Scheduled
            | JobState::Blocked
            | JobState::Queued
            | JobState::Running
            | JobState::Cancelling => {}
        }
        self.pace.add(job.ended_at.unwrap_or(job.updated_at));
    }

    fn roll_up(&self, now: Timestamp) -> RollUp {
        let live = self.live.values();
        let running = live.clone().filter(|live| live.runs).count() as u64;
        let unfinished = self.live.len() as u64;
        let over = self.succeeded + self.failed + self.cancelled + self.expired;
        let done = over as f64 + live.map(|live| live.fraction).sum::<f64>();
        let all = over + unfinished;
        RollUp {
            waiting: unfinished - running,
            running,
            succeeded: self.succeeded,
            failed: self.failed,
            cancelled: self.cancelled,
            expired: self.expired,
            fraction: (all > 0).then(|| done / all as f64),
            estimated_end_at: self.pace.end_of(unfinished, now),
        }
    }
}

/// When the newest jobs ended.
#[derive(Debug, Default)]
struct Pace {
    ends: BinaryHeap<Reverse<Timestamp>>,
}

impl Pace {
    /// Ends that are looked back on. Chosen: enough to even out chance, few enough to follow a change.
    const ENDS_MAX: usize = 64;
    /// Fewer are no pace. Chosen: two could be anything.
    const ENDS_MIN: usize = 3;
    /// Nothing ended for so many times as long as between two of the newest ends: the pace is over.
    const STALL: u32 = 10;

    fn add(&mut self, end: Timestamp) {
        self.ends.push(Reverse(end));
        if self.ends.len() > Self::ENDS_MAX {
            self.ends.pop();
        }
    }

    /// When so many more will have ended.
    fn end_of(&self, more: u64, now: Timestamp) -> Option<Timestamp> {
        let Reverse(oldest) = *self.ends.peek()?;
        let Reverse(newest) = *self.ends.iter().min()?;
        if more == 0 || self.ends.len() < Self::ENDS_MIN {
            return None;
        }
        let between = u32::try_from(self.ends.len() - 1).ok()?;
        let each = newest.since(oldest) / between;
        if each.is_zero() || now.since(newest) > each * Self::STALL {
            return None;
        }
        // Counted up to now, so that it moves back while nothing ends.
        let span = now.since(oldest).max(newest.since(oldest));
        let rest = span.as_secs_f64() / f64::from(between) * more as f64;
        Some(now.after(Duration::try_from_secs_f64(rest).ok()?))
    }
}

/// A stream of roll-ups that is open.
#[derive(Debug)]
pub(super) struct RollUpStream {
    feed: Feed,
    key: CursorKey,
    interval: Duration,
    heartbeat_interval: Duration,
    /// The jobs that were not counted yet, and the position behind which the feed began.
    opening: Option<(Jobs, i64)>,
    /// Was counted with jobs that the feed is yet to bring up to a sequence.
    counted: HashMap<JobId, i64>,
    /// There the counts are of one moment.
    whole_at: i64,
    counts: Counts,
    gaps_seen: i64,
    /// No job was there although they were asked for by their ids.
    missing: Vec<JobId>,
    told: Option<RollUp>,
    /// Something was counted since.
    counted_more: bool,
    told_at: Instant,
    given_at: Instant,
    /// Everything up to this position is in what was told.
    told_through: i64,
    finished: bool,
}

impl RollUpStream {
    pub(super) fn new(feed: Feed, key: CursorKey, options: &JobsWatchOptions) -> Self {
        let now = Instant::now();
        let begin = feed.taken();
        Self {
            opening: Some((Jobs::new(Arc::clone(&feed.filter), false), begin)),
            feed,
            key,
            interval: options.min_progress_interval.max(COALESCE),
            heartbeat_interval: options.heartbeat_interval,
            counted: HashMap::new(),
            whole_at: 0,
            counts: Counts::default(),
            gaps_seen: 0,
            missing: Vec::new(),
            told: None,
            counted_more: true,
            told_at: now,
            given_at: now,
            told_through: begin,
            finished: false,
        }
    }

    pub(super) async fn next(&mut self) -> Result<Option<JobsMessage>, Error> {
        loop {
            tokio::task::coop::consume_budget().await;
            if self.finished {
                return Ok(None);
            }
            if let Some(id) = self.missing.pop() {
                let gap = JobsGap {
                    job: Some(id),
                    sequences: None,
                };
                return Ok(Some(self.message(JobsContent::Gap(gap))));
            }
            if self.feed.queue.shared.draining.is_cancelled() {
                return Err(Error::draining());
            }
            let given = match self.opening {
                Some(_) => self.open_further().await?,
                None => self.go_on().await?,
            };
            if given.is_some() {
                return Ok(given);
            }
        }
    }

    /// Counts the next part of the jobs as they are.
    async fn open_further(&mut self) -> Result<Option<JobsMessage>, Error> {
        let Some((jobs, begin)) = &mut self.opening else {
            return Ok(None);
        };
        let store = Arc::clone(&self.feed.queue.shared.store);
        let Some(found) = jobs.next(&*store).await? else {
            self.whole_at = store.head().await?;
            self.opening = None;
            return Ok(None);
        };
        let begin = *begin;
        for found in found {
            match found {
                Found::Job(job, position) => {
                    if position > begin {
                        self.counted.insert(job.key.id, job.last_sequence);
                    }
                    if job.state.is_terminal() {
                        self.counts.add_ended(&job);
                    } else {
                        self.counts.add_live(&job, job.last_sequence);
                    }
                }
                Found::Missing(id) => self.missing.push(id),
            }
        }
        Ok(self.heartbeat_if_due())
    }

    /// Gives what is due, or takes one step.
    async fn go_on(&mut self) -> Result<Option<JobsMessage>, Error> {
        let whole = self.feed.taken() >= self.whole_at;
        let quiet = self.feed.is_quiet();
        if whole {
            self.counted = HashMap::new();
            let over = ends(&self.feed.filter) && self.counts.live.is_empty();
            let due = Instant::now() >= self.told_at + self.interval;
            if self.told.is_none() || over || due {
                if let Some(message) = self.roll_up_if_new() {
                    return Ok(Some(message));
                }
                if over {
                    self.finished = true;
                    return Ok(None);
                }
            }
        }
        if let Some(sign) = self.heartbeat_if_due() {
            return Ok(Some(sign));
        }
        if let Some(entry) = self.feed.front().cloned() {
            self.take(&entry);
            self.feed.pop();
        } else if self.feed.is_behind() {
            self.read_log().await?;
        } else if !quiet {
            self.feed.hear_now();
        } else {
            self.wait().await?;
        }
        Ok(None)
    }

    fn take(&mut self, entry: &Entry) {
        let (job, last) = (&entry.job, entry.segment.last_sequence());
        let counted = self.counted.get(&job.key.id).copied().unwrap_or(0);
        let known = self.counts.live.get(&job.key.id);
        let known = known.map_or(counted, |live| live.last_sequence.max(counted));
        if last <= known {
            return;
        }
        self.counted_more = true;
        if entry.ends_job() {
            self.counts.add_ended(job);
        } else {
            // Read from the log, the job may be over: its end is yet to come.
            self.counts.add_live(job, last);
        }
    }

    async fn read_log(&mut self) -> Result<(), Error> {
        let log = self.feed.read().await?;
        if log.purges > self.gaps_seen && log.purged_through > self.feed.taken() {
            // Jobs may have ended and gone without being counted.
            self.gaps_seen = log.purges;
            // All is counted anew from here, as at the beginning: what lies before is in the rows.
            let head = self.feed.queue.shared.store.head().await?;
            self.feed.skip_to(head);
            let jobs = Jobs::new(Arc::clone(&self.feed.filter), false);
            self.opening = Some((jobs, self.feed.taken()));
            self.counted_more = true;
            self.counts = Counts::default();
            self.counted = HashMap::new();
            return Ok(());
        }
        self.feed.absorb(log);
        Ok(())
    }

    fn now(&self) -> Timestamp {
        self.feed.queue.shared.clock.now()
    }

    /// A new estimate alone is nothing new.
    fn roll_up_if_new(&mut self) -> Option<JobsMessage> {
        if !std::mem::take(&mut self.counted_more) {
            return None;
        }
        let roll_up = self.counts.roll_up(self.now());
        let as_told = self.told.map(|told| RollUp {
            estimated_end_at: roll_up.estimated_end_at,
            ..told
        });
        if as_told == Some(roll_up) {
            return None;
        }
        self.told = Some(roll_up);
        self.told_at = Instant::now();
        self.told_through = self.feed.taken();
        Some(self.message(JobsContent::RollUp(roll_up)))
    }

    fn message(&mut self, content: JobsContent) -> JobsMessage {
        self.given_at = Instant::now();
        let cursor = Cursor {
            events: self.told_through,
            finished: self.told_through,
            gaps: self.gaps_seen,
        };
        let cursor = self.told.is_some().then(|| self.key.encode(cursor));
        JobsMessage {
            cursor: cursor.unwrap_or_default(),
            content,
        }
    }

    fn heartbeat_if_due(&mut self) -> Option<JobsMessage> {
        let due = Instant::now() >= self.given_at + self.heartbeat_interval;
        due.then(|| {
            let whole = self.opening.is_none() && self.feed.taken() >= self.whole_at;
            if whole && self.feed.is_quiet() && !self.counted_more {
                self.told_through = self.feed.taken();
            }
            self.message(JobsContent::Heartbeat(self.now()))
        })
    }

    /// Waits for news, or for a time at which something is due.
    async fn wait(&mut self) -> Result<(), Error> {
        // Moves past what others have stored, so that a cursor does.
        self.feed.hear_now();
        if !self.feed.is_quiet() {
            return Ok(());
        }
        let heartbeat_at = self.given_at + self.heartbeat_interval;
        let told_at = self.told_at.checked_add(self.interval);
        let due_at = told_at.filter(|_| self.counted_more);
        let wake_at = due_at.map_or(heartbeat_at, |at| at.min(heartbeat_at));
        let shared = Arc::clone(&self.feed.queue.shared);
        tokio::select! {
            // hear_next() is cancel safe. Which job was purged does not matter: it was counted.
            _ = self.feed.hear_next() => Ok(()),
            () = tokio::time::sleep_until(wake_at) => Ok(()),
            () = shared.draining.cancelled() => Err(Error::draining()),
            () = shared.failed.cancelled() => Err(Error::outcome_unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_micros(1_000_000_000);

    fn at(secs: u64) -> Timestamp {
        START.after(Duration::from_secs(secs))
    }

    /// Jobs that ended at these times.
    fn pace(ends: impl IntoIterator<Item = u64>) -> Pace {
        let mut pace = Pace::default();
        for end in ends {
            pace.add(at(end));
        }
        pace
    }

    #[test]
    fn the_end_is_estimated_from_the_pace_of_the_ends_so_far() {
        // One in ten seconds, in whichever order they are heard of.
        let ends = [0, 20, 10, 30];
        assert_eq!(pace(ends).end_of(5, at(30)), Some(at(80)));
        // It moves back while nothing ends: 45 s for three of them by now.
        assert_eq!(pace(ends).end_of(5, at(45)), Some(at(120)));
    }

    #[test]
    fn there_is_no_estimate_of_what_is_over_or_has_no_pace() {
        assert_eq!(pace([0, 10, 20]).end_of(0, at(20)), None);
        assert_eq!(pace([]).end_of(5, at(20)), None);
        assert_eq!(pace([0, 10]).end_of(5, at(10)), None, "too few");
        assert_eq!(pace([7, 7, 7]).end_of(5, at(7)), None, "all at once");
        let last = 20 + 10 * u64::from(Pace::STALL);
        assert!(pace([0, 10, 20]).end_of(5, at(last)).is_some());
        let over = at(last).after(Duration::from_micros(1));
        assert_eq!(pace([0, 10, 20]).end_of(5, over), None, "it has stalled");
    }

    #[test]
    fn a_pace_that_changes_is_followed() {
        let slow = (0..100).map(|job| job * 60);
        let quick = (0..Pace::ENDS_MAX as u64).map(|job| 6_000 + job);
        let last = 6_000 + Pace::ENDS_MAX as u64 - 1;
        let end = pace(slow.chain(quick)).end_of(10, at(last));
        assert_eq!(end, Some(at(last + 10)));
    }
}
