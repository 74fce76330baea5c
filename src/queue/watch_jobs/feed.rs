//! What happens to the jobs that a filter admits, in the order of the commits: read from the log, and heard
//! once the log was read to its end.
//!
//! Listen first, read second. Every channel over a tenant's jobs carries all that is committed after the
//! listening began, or says that some was lost; so what was read through a position and then heard at higher
//! ones has neither hole nor double.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Error;
use crate::events::{Heard, JobNews, Listener, News};
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::job::name::JobId;
use crate::job::segment::Segment;
use crate::job::{Job, Payloads};
use crate::queue::JobQueue;
use crate::store::{JobFilter, TenantLog, TenantRange};

/// Segments that one read looks at, whosever they are. Chosen: a few milliseconds of work.
const LOOK_AT_MAX: usize = 4096;
/// News taken in one go although none of it matched. Chosen: others on this thread want to go on.
const HEARD_AT_ONCE_MAX: usize = 256;

/// Events of one job that were stored together.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Of the first event among those of all jobs.
    pub(super) position: i64,
    /// The job after these events, or after later ones.
    pub(super) job: Arc<Job>,
    pub(super) segment: Arc<Segment>,
    /// With the last events of a job: what stands beside it, where that is known.
    pub(super) payloads: Option<Arc<Payloads>>,
    /// Events up to this sequence were taken.
    pub(super) taken: i64,
}

impl Entry {
    pub(super) fn position_of(&self, sequence: i64) -> i64 {
        self.position + (sequence - self.segment.first_sequence())
    }

    pub(super) fn last_position(&self) -> i64 {
        self.position_of(self.segment.last_sequence())
    }

    /// Its last event is the terminal one.
    pub(super) fn ends_job(&self) -> bool {
        self.job.state.is_terminal() && self.segment.last_sequence() == self.job.last_sequence
    }
}

/// The entries that a filter admits, one after another.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) queue: JobQueue,
    pub(super) filter: Arc<JobFilter>,
    listener: Listener<JobNews>,
    /// Looked at and not taken: what one read gave, or one piece of news.
    ready: VecDeque<Entry>,
    /// Everything up to this position was looked at.
    looked: i64,
    /// There is more in the log than was looked at.
    behind: bool,
}

impl Feed {
    /// Begins behind a position, with the log.
    pub(super) fn new(
        queue: JobQueue,
        filter: Arc<JobFilter>,
        listener: Listener<JobNews>,
        after: i64,
    ) -> Self {
        Self {
            queue,
            filter,
            listener,
            ready: VecDeque::new(),
            looked: after,
            behind: true,
        }
    }

    /// Everything up to this position was taken, or is none of the filter's.
    pub(super) fn taken(&self) -> i64 {
        let front = self.ready.front();
        front.map_or(self.looked, |entry| entry.position_of(entry.taken))
    }

    pub(super) fn front(&self) -> Option<&Entry> {
        self.ready.front()
    }

    /// Events of the front entry were taken, up to a sequence.
    pub(super) fn took(&mut self, sequence: i64) {
        if let Some(entry) = self.ready.front_mut() {
            entry.taken = sequence;
        }
    }

    /// The front entry was taken whole.
    pub(super) fn pop(&mut self) {
        self.ready.pop_front();
    }

    /// Leaves out everything up to a position, and goes on behind it with the log.
    pub(super) fn skip_to(&mut self, position: i64) {
        self.ready.clear();
        self.looked = self.looked.max(position);
        self.behind = true;
    }

    pub(super) fn is_behind(&self) -> bool {
        self.behind
    }

    /// Nothing is there that was not taken.
    pub(super) fn is_quiet(&self) -> bool {
        self.ready.is_empty() && !self.behind && self.listener.is_empty()
    }

    /// The next part of the log, which has not been looked at then: [`Feed::absorb`] does that.
    pub(super) async fn read(&self) -> Result<TenantLog, Error> {
        let range = TenantRange {
            tenant: self.filter.tenant.clone(),
            after: self.looked,
            events: BATCH_EVENTS_MAX,
            bytes: BATCH_BYTES_MAX,
            segments: LOOK_AT_MAX,
        };
        Ok(self.queue.shared.store.log_after(&range).await?)
    }

    /// Takes in a part of the log.
    pub(super) fn absorb(&mut self, log: TenantLog) {
        for placed in log.segments {
            self.look_at(placed.position, placed.job, placed.segment, None);
        }
        self.looked = self.looked.max(log.through);
        self.behind = log.more;
    }

    /// Takes what was heard already, without waiting, up to the first entry of the filter's. Answers the
    /// jobs that were purged.
    pub(super) fn hear_now(&mut self) -> Vec<JobId> {
        let mut purged = Vec::new();
        // Before it looks: whatever was published up to here is in the channel by then.
        let published = self.queue.shared.hub.through();
        for _ in 0..HEARD_AT_ONCE_MAX {
            if !self.ready.is_empty() || self.behind {
                return purged;
            }
            match self.listener.try_next() {
                Some(heard) => purged.extend(self.hear(heard)),
                None => {
                    // Other tenants' events: a quiet watch must not read past them when it resumes.
                    self.looked = self.looked.max(published);
                    return purged;
                }
            }
        }
        purged
    }

    /// Waits for the next news. Answers the job, where one was purged.
    ///
    /// # Cancel safety
    /// Safe: what was not heard is heard next time.
    pub(super) async fn hear_next(&mut self) -> Option<JobId> {
        let heard = self.listener.next().await;
        self.hear(heard)
    }

    fn hear(&mut self, heard: Heard<JobNews>) -> Option<JobId> {
        let Heard::News(JobNews { id, position, news }) = heard else {
            self.behind = true;
            return None;
        };
        match news {
            News::Events(job, segment) => self.look_at(position, job, segment, None),
            News::Over(job, payloads, segment) => {
                self.look_at(position, job, segment, Some(payloads));
            }
            News::Stored => self.behind |= position > self.looked,
            News::Purged => return Some(id),
        }
        None
    }

    fn look_at(
        &mut self,
        position: i64,
        job: Arc<Job>,
        segment: Arc<Segment>,
        payloads: Option<Arc<Payloads>>,
    ) {
        let before = segment.first_sequence() - 1;
        let entry = Entry {
            position,
            job,
            taken: before + (self.looked + 1 - position).max(0),
            segment,
            payloads,
        };
        let last = entry.last_position();
        if last <= self.looked {
            return;
        }
        self.looked = last;
        if self.filter.admits(&entry.job) {
            self.ready.push_back(entry);
        }
    }
}
