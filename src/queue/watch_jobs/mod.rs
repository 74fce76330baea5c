//! The watch of many jobs: what happened to all that a filter admits, in the order of the commits, exactly
//! once, for as long as anybody reads; or how many of them are how far.
//!
//! As in the watch of one job the log is the truth and the hub the fast path, and a watch is pulled: it
//! holds at most what one read and one message have, and who does not read costs nothing but that. It knows
//! no transport.

mod cursor;
mod ended;
mod feed;
mod gaps;
mod held;
mod jobs;
mod opening;
mod roll_up;
mod stream;

use std::sync::Arc;
use std::time::Duration;

pub use roll_up::RollUp;

use crate::error::{Error, Limit, Violations};
use crate::job::JobSnapshot;
use crate::job::event::EventTag;
use crate::job::limits::HEARTBEAT_DEFAULT;
use crate::job::name::JobId;
use crate::job::segment::EncodedEvent;
use crate::job::time::Timestamp;
use crate::queue::JobQueue;
use crate::queue::watch_jobs::cursor::{Cursor, CursorKey};
use crate::queue::watch_jobs::feed::Feed;
use crate::queue::watch_jobs::roll_up::RollUpStream;
use crate::queue::watch_jobs::stream::EventStream;
use crate::store::{JobFilter, View};

/// How many jobs are watched.
#[derive(Clone, PartialEq, Debug)]
pub struct JobsWatchOptions {
    /// Empty: a snapshot, then what comes after it. Otherwise what comes after it.
    pub after_cursor: String,
    /// Which kinds of events to show. Empty: all.
    pub tags: Vec<EventTag>,
    /// At most one progress event of a job, or one roll-up, in this time.
    pub min_progress_interval: Duration,
    /// How long the watch may be quiet before it gives a sign of life.
    pub heartbeat_interval: Duration,
    /// How much of the jobs that are over is shown.
    pub finished_view: View,
    /// Shows how far all of them are, in place of events.
    pub roll_up: bool,
}

impl Default for JobsWatchOptions {
    fn default() -> Self {
        Self {
            after_cursor: String::new(),
            tags: Vec::new(),
            min_progress_interval: Duration::ZERO,
            heartbeat_interval: HEARTBEAT_DEFAULT,
            finished_view: View::Basic,
            roll_up: false,
        }
    }
}

/// One message of a watch of many jobs.
#[derive(Clone, PartialEq, Debug)]
pub struct JobsMessage {
    /// Everything up to it was given, hidden or merged: resume from it. Empty until the snapshot was given
    /// whole.
    pub cursor: String,
    /// What it says.
    pub content: JobsContent,
}

/// What a message of a watch of many jobs says.
#[derive(Clone, PartialEq, Debug)]
pub enum JobsContent {
    /// Jobs as they are: part of all that are not over, by id, the oldest first. At most 256 jobs or 256
    /// KiB.
    Snapshot(Vec<JobSnapshot>),
    /// What happened, in the order of the commits. At most 256 events or 256 KiB; one larger event comes
    /// alone.
    Events(Vec<EncodedEvent>),
    /// Jobs that are over, after their last events. At most 256 jobs or 256 KiB; one larger job comes
    /// alone.
    Finished(Vec<JobSnapshot>),
    /// How far all of them are.
    RollUp(RollUp),
    /// Events that were asked for and are purged.
    Gap(JobsGap),
    /// Sign of life, with the server's time.
    Heartbeat(Timestamp),
}

/// What is missing from a watch of many jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobsGap {
    /// Whose events; `None` where nobody knows: maybe none of the filter's.
    pub job: Option<JobId>,
    /// First and last sequence, where they are known.
    pub sequences: Option<(i64, i64)>,
}

impl JobsGap {
    /// Something may be missing, nobody knows of what.
    const UNKNOWN: Self = Self {
        job: None,
        sequences: None,
    };
}

/// A watch of many jobs that is open. Dropping it ends it; no job is ever touched.
#[derive(Debug)]
pub struct JobsWatch(Kind);

#[derive(Debug)]
enum Kind {
    Events(Box<EventStream>),
    RollUp(Box<RollUpStream>),
}

impl JobsWatch {
    /// Waits for the next message. `None`, for ever, once all jobs that were asked for by their ids or
    /// batch are over and all was said.
    ///
    /// # Errors
    /// [`Error::Unavailable`] in a drain or after the store has failed, [`Error::Exhausted`] where a read
    /// took too long. The watch is over then.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost that was not returned.
    pub async fn next(&mut self) -> Result<Option<JobsMessage>, Error> {
        match &mut self.0 {
            Kind::Events(stream) => stream.next().await,
            Kind::RollUp(stream) => stream.next().await,
        }
    }
}

impl JobQueue {
    /// Opens a watch of many jobs.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the cursor was not made for this filter, [`Error::Exhausted`] where the
    /// tenant has too many watches open, [`Error::Unavailable`] in a drain.
    pub async fn watch_jobs(
        &self,
        filter: JobFilter,
        options: JobsWatchOptions,
    ) -> Result<JobsWatch, Error> {
        if self.shared.draining.is_cancelled() {
            return Err(Error::draining());
        }
        let mut violations = Violations::default();
        let after = self.decode_cursor(&filter, &options.after_cursor, &mut violations);
        violations.into_result()?;
        let key = self.cursor_key(&filter);
        let max = self.shared.settings.watchers_max;
        let listener = self.shared.hub.listen_to_all(&filter.tenant, max);
        let listener = listener.map_err(|open| Error::Exhausted {
            limit: Limit::Watchers { open, max },
            retry_after: Duration::from_secs(5),
        })?;
        // After the listening began: what comes later is heard.
        let head = self.shared.store.head().await?;
        if let Some(after) = after
            && after.events > head
        {
            let problem = "is ahead of the log: this store was set back since";
            return Err(Error::invalid("after_cursor", problem));
        }
        let begin = after.filter(|_| !options.roll_up);
        let begin = begin.map_or(head, |after| after.finished);
        let feed = Feed::new(self.clone(), Arc::new(filter), listener, begin);
        Ok(JobsWatch(if options.roll_up {
            Kind::RollUp(Box::new(RollUpStream::new(feed, key, &options)))
        } else {
            let stream = EventStream::open(feed, key, after, options).await?;
            Kind::Events(Box::new(stream))
        }))
    }

    /// Checks a cursor, where there is one. It was made for one filter, so that it is wrong for one that has
    /// faults, too.
    pub fn check_jobs_cursor(&self, filter: &JobFilter, cursor: &str, violations: &mut Violations) {
        self.decode_cursor(filter, cursor, violations);
    }

    fn decode_cursor(
        &self,
        filter: &JobFilter,
        cursor: &str,
        violations: &mut Violations,
    ) -> Option<Cursor> {
        if cursor.is_empty() {
            return None;
        }
        violations.check("after_cursor", self.cursor_key(filter).decode(cursor))
    }

    fn cursor_key(&self, filter: &JobFilter) -> CursorKey {
        CursorKey::new(&self.shared.store.secret(), filter)
    }
}

/// Whether a watch of these jobs ends once they are over: no other job ever joins them.
fn ends(filter: &JobFilter) -> bool {
    filter.batch_id.is_some() || !filter.ids.is_empty()
}
