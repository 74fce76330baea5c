//! How a watch of many jobs begins: with the jobs as they are, or, where it resumes, with finding out
//! which of them are not over.
//!
//! The snapshot is read part by part while jobs go on changing. Each part is newer than the one before it,
//! and all are newer than the position at which the events begin; so what a part shows already is not shown
//! again, and what came after it is. Once the events have reached the position at which the last part was
//! read, everything is of one moment, and the cursors begin.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::error::Error;
use crate::job::limits::BATCH_BYTES_MAX;
use crate::job::name::JobId;
use crate::job::{Job, JobSnapshot, Payloads};
use crate::queue::read::snapshot_bytes;
use crate::queue::watch_jobs::feed::Feed;
use crate::queue::watch_jobs::jobs::{Found, Jobs};
use crate::queue::watch_jobs::stream::EventStream;
use crate::queue::watch_jobs::{JobsContent, JobsGap, JobsMessage, ends};

/// A snapshot that was not given whole.
#[derive(Debug)]
pub(super) struct Opening {
    jobs: Jobs,
    /// The position behind which the events begin.
    begin: i64,
    /// Read, and not given.
    unfinished: VecDeque<Arc<Job>>,
    /// Go behind all that are not over, in the order of their ends.
    finished: Vec<Arc<Job>>,
    missing: Vec<JobId>,
    /// No part had anything.
    empty: bool,
}

impl Opening {
    pub(super) fn new(feed: &Feed) -> Self {
        Self {
            jobs: Jobs::new(Arc::clone(&feed.filter), !ends(&feed.filter)),
            begin: feed.taken(),
            unfinished: VecDeque::new(),
            finished: Vec::new(),
            missing: Vec::new(),
            empty: true,
        }
    }

    /// Takes in a part. Answers what it shows of jobs of which the events are yet to come.
    fn add(&mut self, found: Vec<Found>) -> HashMap<JobId, i64> {
        let mut shown = HashMap::new();
        self.empty &= found.is_empty();
        for found in found {
            match found {
                Found::Job(job, position) => {
                    if position > self.begin {
                        shown.insert(job.key.id, job.last_sequence);
                    }
                    if job.state.is_terminal() {
                        self.finished.push(job);
                    } else {
                        self.unfinished.push_back(job);
                    }
                }
                Found::Missing(id) => self.missing.push(id),
            }
        }
        shown
    }

    /// A message's worth of what was read.
    fn part(&mut self) -> Vec<JobSnapshot> {
        let mut part = Vec::new();
        let mut bytes = 0;
        while let Some(job) = self.unfinished.front() {
            let snapshot = JobSnapshot {
                job: Arc::clone(job),
                payloads: Payloads::default(),
            };
            bytes += snapshot_bytes(&snapshot);
            if bytes > BATCH_BYTES_MAX && !part.is_empty() {
                break;
            }
            part.push(snapshot);
            self.unfinished.pop_front();
        }
        part
    }
}

impl EventStream {
    /// Gives the next part of the snapshot, or reads it.
    pub(super) async fn open_further(&mut self) -> Result<Option<JobsMessage>, Error> {
        let Some(opening) = &mut self.opening else {
            return Ok(None);
        };
        let part = opening.part();
        if !part.is_empty() {
            return Ok(Some(self.message(JobsContent::Snapshot(part))));
        }
        let store = Arc::clone(&self.feed.queue.shared.store);
        match opening.jobs.next(&*store).await? {
            Some(found) => {
                let shown = opening.add(found);
                self.shown.extend(shown);
                if let Some(pending) = &mut self.pending {
                    pending.extend(opening.unfinished.iter().map(|job| job.key.id));
                }
            }
            None => {
                // Nothing that was shown is newer than this.
                let head = store.head().await?;
                self.end_opening(head);
            }
        }
        Ok(self.heartbeat_if_due())
    }

    fn end_opening(&mut self, head: i64) {
        self.whole_at = head;
        let Some(mut opening) = self.opening.take() else {
            return;
        };
        opening.finished.sort_by_key(|job| job.ended_at);
        if opening.empty && self.feed.filter.batch_id.is_some() {
            // Batches are stored whole: this one was purged, or never was.
            self.gaps.push_back((JobsGap::UNKNOWN, 0));
        }
        for job in opening.finished {
            self.fronts.insert(job.key.id, i64::MAX);
            self.ended.push(0, job, None);
        }
        for id in opening.missing {
            self.tell_gap_of(id, None, 0);
        }
    }

    /// Finds which jobs are not over, where the watch ends with them.
    pub(super) async fn find_pending(&mut self) -> Result<(), Error> {
        let Some(pending) = &mut self.pending else {
            return Ok(());
        };
        let store = Arc::clone(&self.feed.queue.shared.store);
        let mut jobs = Jobs::new(Arc::clone(&self.feed.filter), true);
        while let Some(found) = jobs.next(&*store).await? {
            for found in found {
                // One that is missing was purged: where that is news, the log's first part says so.
                if let Found::Job(job, _) = found {
                    pending.insert(job.key.id);
                }
            }
        }
        // Those that are over by now have their ends up to here.
        self.whole_at = store.head().await?;
        Ok(())
    }
}
