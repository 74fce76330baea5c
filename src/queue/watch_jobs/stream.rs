//! The watch of many jobs as a stream of their events.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::job::JobSnapshot;
use crate::job::event::EventTag;
use crate::job::name::JobId;
use crate::job::segment::EncodedEvent;
use crate::queue::watch::{Batch, COALESCE};
use crate::queue::watch_jobs::cursor::{Cursor, CursorKey};
use crate::queue::watch_jobs::ended::Ended;
use crate::queue::watch_jobs::feed::{Entry, Feed};
use crate::queue::watch_jobs::held::Held;
use crate::queue::watch_jobs::opening::Opening;
use crate::queue::watch_jobs::{JobsContent, JobsGap, JobsMessage, JobsWatchOptions, ends};

/// How long a batch may wait while the watch is behind. Chosen: who catches up gets full batches, and who
/// looks for few events in a busy log sees each of them soon all the same.
const BEHIND_WAIT: Duration = Duration::from_millis(250);

/// A stream of events that is open.
#[derive(Debug)]
pub(super) struct EventStream {
    pub(super) feed: Feed,
    pub(super) key: CursorKey,
    pub(super) options: JobsWatchOptions,
    /// The snapshot, while it was not given whole.
    pub(super) opening: Option<Opening>,
    /// The snapshot shows these jobs with their events up to a sequence, some of which the feed is yet to
    /// bring.
    pub(super) shown: HashMap<JobId, i64>,
    /// What the snapshot shows stands up to this position: there the cursors begin.
    pub(super) whole_at: i64,
    pub(super) whole: bool,
    /// A cursor was given.
    pub(super) told_cursor: bool,
    /// What the watch resumes from.
    pub(super) resumed: Cursor,
    /// Purges of the tenant that were looked for, and said where something is missing.
    pub(super) gaps_seen: i64,
    /// Gaps that go before anything else, and what is said to be missing with each.
    pub(super) gaps: VecDeque<(JobsGap, i64)>,
    /// Where the watch ends with its jobs: up to which sequence each was given or said to be missing, as far
    /// as gaps are concerned.
    pub(super) fronts: HashMap<JobId, i64>,
    batch: Batch,
    /// Position of the first event in the batch.
    batch_from: Option<i64>,
    held: Held,
    progress_given_at: Option<Instant>,
    pub(super) ended: Ended,
    /// Where the watch ends with its jobs: those that are not over.
    pub(super) pending: Option<HashSet<JobId>>,
    /// One of them may have been purged.
    pub(super) look_for_purged: bool,
    given_at: Instant,
    pub(super) finished: bool,
}

impl EventStream {
    pub(super) async fn open(
        feed: Feed,
        key: CursorKey,
        after: Option<Cursor>,
        options: JobsWatchOptions,
    ) -> Result<Self, Error> {
        let now = Instant::now();
        let mut stream = Self {
            key,
            opening: None,
            shown: HashMap::new(),
            whole_at: 0,
            whole: after.is_some(),
            told_cursor: after.is_some(),
            resumed: after.unwrap_or_default(),
            gaps_seen: after.map_or(0, |after| after.gaps),
            gaps: VecDeque::new(),
            fronts: HashMap::new(),
            batch: Batch::default(),
            batch_from: None,
            held: Held::default(),
            progress_given_at: None,
            ended: Ended::new(options.finished_view),
            pending: ends(&feed.filter).then(HashSet::new),
            look_for_purged: false,
            given_at: now.checked_sub(COALESCE).unwrap_or(now),
            finished: false,
            options,
            feed,
        };
        match after {
            None => stream.opening = Some(Opening::new(&stream.feed)),
            Some(_) => stream.find_pending().await?,
        }
        Ok(stream)
    }

    pub(super) async fn next(&mut self) -> Result<Option<JobsMessage>, Error> {
        loop {
            // However much there is to take without waiting: others on this thread want to go on.
            tokio::task::coop::consume_budget().await;
            if self.finished {
                return Ok(None);
            }
            if let Some((gap, seen)) = self.gaps.pop_front() {
                self.gaps_seen = self.gaps_seen.max(seen);
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

    /// Gives what is due, or takes one step.
    async fn go_on(&mut self) -> Result<Option<JobsMessage>, Error> {
        if let Some(events) = self.batch_if_due() {
            return Ok(Some(self.message(JobsContent::Events(events))));
        }
        if self.batch.events.is_empty() && !self.ended.is_empty() {
            return self.give_ended().await;
        }
        if self.is_whole() && !self.told_cursor {
            return Ok(Some(self.heartbeat()));
        }
        if self.is_over() {
            self.finished = true;
            return Ok(None);
        }
        if let Some(sign) = self.heartbeat_if_due() {
            return Ok(Some(sign));
        }
        if self.feed.front().is_some() {
            self.take_front();
        } else if self.feed.is_behind() {
            self.read_log().await?;
        } else if !self.feed.is_quiet() {
            let purged = self.feed.hear_now();
            self.hear_of_purges(&purged);
        } else if self.look_for_purged {
            self.tell_purged().await?;
        } else {
            return self.wait().await;
        }
        Ok(None)
    }

    /// What is told to be through: never beyond what is held back or in a batch that was not given.
    fn through(&self) -> i64 {
        let waiting = [self.held.first(), self.batch_from];
        let waiting = waiting.into_iter().flatten().map(|first| first - 1);
        let through = waiting.chain([self.feed.taken()]).min();
        through.unwrap_or_default().max(self.resumed.events)
    }

    fn cursor(&self) -> Cursor {
        let events = self.through();
        let owed = self.ended.first().map(|first| first - 1);
        let finished = [Some(events), Some(self.feed.taken()), owed];
        Cursor {
            events,
            finished: finished.into_iter().flatten().min().unwrap_or_default(),
            gaps: self.gaps_seen,
        }
    }

    /// Whether the snapshot, and what brings all of it to one moment, was given.
    fn is_whole(&mut self) -> bool {
        if !self.whole
            && self.opening.is_none()
            && self.ended.first() != Some(0)
            && self.through() >= self.whole_at
        {
            self.whole = true;
            self.shown = HashMap::new();
        }
        self.whole
    }

    pub(super) fn message(&mut self, content: JobsContent) -> JobsMessage {
        self.given_at = Instant::now();
        let whole = self.is_whole();
        self.told_cursor |= whole;
        let cursor = whole.then(|| self.key.encode(self.cursor()));
        JobsMessage {
            cursor: cursor.unwrap_or_default(),
            content,
        }
    }

    fn heartbeat(&mut self) -> JobsMessage {
        let now = self.feed.queue.shared.clock.now();
        self.message(JobsContent::Heartbeat(now))
    }

    /// A sign of life where it was quiet for long, also while much is read of which nothing is shown.
    pub(super) fn heartbeat_if_due(&mut self) -> Option<JobsMessage> {
        let due = Instant::now() >= self.given_at + self.options.heartbeat_interval;
        due.then(|| self.heartbeat())
    }

    fn batch_if_due(&mut self) -> Option<Vec<EncodedEvent>> {
        let now = Instant::now();
        let held_due_at = self.held_due_at();
        let held_is_due = !self.held.is_empty() && held_due_at.is_none_or(|at| at <= now);
        if held_is_due || self.held.is_full() {
            self.release_held(now);
        }
        if self.batch.events.is_empty() {
            return None;
        }
        let due = self.batch.urgent || now >= self.given_at + COALESCE;
        let give = self.batch.closed
            || self.batch.is_full()
            || self.ended.is_full()
            || (due && self.feed.is_quiet())
            || now >= self.given_at + BEHIND_WAIT;
        if !give {
            return None;
        }
        self.batch_from = None;
        Some(std::mem::take(&mut self.batch).events)
    }

    /// When what is held back goes; `None` for at once.
    fn held_due_at(&self) -> Option<Instant> {
        let given_at = self.progress_given_at?;
        given_at.checked_add(self.options.min_progress_interval)
    }

    /// Puts what was held back into the batch. Answers whether there was room for all of it.
    pub(super) fn release_held(&mut self, now: Instant) -> bool {
        if self.held.is_empty() {
            return true;
        }
        let batch = &mut self.batch;
        while let Some((position, event)) = self.held.take_if(|event| batch.has_room_for(event)) {
            self.batch_from.get_or_insert(position);
            batch.push(event);
        }
        if !self.held.is_empty() {
            self.batch.closed = true;
            return false;
        }
        self.progress_given_at = Some(now);
        true
    }

    /// Has what was taken so far given before anything else is. Answers whether all of it was.
    pub(super) fn has_given_all(&mut self) -> bool {
        self.release_held(Instant::now());
        self.batch.closed |= !self.batch.events.is_empty();
        self.batch.events.is_empty() && self.held.is_empty() && self.ended.is_empty()
    }

    /// Takes the events of the front entry, as far as there is room for them.
    fn take_front(&mut self) {
        let Some(entry) = self.feed.front().cloned() else {
            return;
        };
        let id = entry.job.key.id;
        let shown = self.shown.get(&id).copied().unwrap_or(0);
        for event in entry.segment.events_after(entry.taken) {
            let (sequence, position) = (event.sequence, entry.position_of(event.sequence));
            let given = position <= self.resumed.events || sequence <= shown;
            let tags = &self.options.tags;
            let hidden = given || (!tags.is_empty() && !tags.contains(&event.tag));
            if !hidden && !self.take_shown(position, id, event) {
                self.batch.closed = true;
                return;
            }
            self.feed.took(sequence);
        }
        self.feed.pop();
        if entry.ends_job() {
            self.take_end(entry, shown);
        }
    }

    /// Takes an event that is shown, unless there is no room for it.
    fn take_shown(&mut self, position: i64, job: JobId, event: EncodedEvent) -> bool {
        if event.tag == EventTag::Progress && !self.options.min_progress_interval.is_zero() {
            if self.held.is_full() {
                return false;
            }
            self.held.hold(position, job, &event);
            return true;
        }
        if !self.release_held(Instant::now()) || !self.batch.has_room_for(&event) {
            return false;
        }
        self.batch_from.get_or_insert(position);
        // What is hidden beside it must not stay in memory for its sake.
        let alone = !self.options.tags.is_empty();
        self.batch
            .push(if alone { event.detached() } else { event });
        true
    }

    /// The snapshot shows events of a job up to `shown`.
    fn take_end(&mut self, entry: Entry, shown: i64) {
        if let Some(pending) = &mut self.pending {
            pending.remove(&entry.job.key.id);
            // Whatever is purged of it later was given.
            self.fronts.insert(entry.job.key.id, i64::MAX);
        }
        if shown < entry.job.last_sequence {
            // What was told before the end goes before the job, and at once.
            self.batch.urgent = true;
            let position = entry.last_position();
            self.ended.push(position, entry.job, entry.payloads);
        }
    }

    async fn give_ended(&mut self) -> Result<Option<JobsMessage>, Error> {
        let store = Arc::clone(&self.feed.queue.shared.store);
        let part = self.ended.next_part(&*store).await?;
        if let Some(id) = part.purged {
            self.tell_gap_of(id, None, self.gaps_seen);
        }
        if part.jobs.is_empty() {
            return Ok(None);
        }
        let jobs: Vec<JobSnapshot> = part.jobs;
        Ok(Some(self.message(JobsContent::Finished(jobs))))
    }

    /// All jobs that were asked for are over, and all was said.
    fn is_over(&self) -> bool {
        self.pending.as_ref().is_some_and(HashSet::is_empty)
            && self.gaps.is_empty()
            && self.batch.events.is_empty()
            && self.held.is_empty()
            && self.ended.is_empty()
            && self.feed.taken() >= self.whole_at
    }

    pub(super) fn hear_of_purges(&mut self, purged: &[JobId]) {
        if let Some(pending) = &self.pending {
            self.look_for_purged |= purged.iter().any(|id| pending.contains(id));
        }
    }

    /// Waits for news, or for a time at which something is due.
    async fn wait(&mut self) -> Result<Option<JobsMessage>, Error> {
        // Moves past what others have stored, so that a cursor does.
        let purged = self.feed.hear_now();
        self.hear_of_purges(&purged);
        if !self.feed.is_quiet() || self.look_for_purged {
            return Ok(None);
        }
        let heartbeat_at = self.given_at + self.options.heartbeat_interval;
        let batch_at = (!self.batch.events.is_empty()).then_some(self.given_at + COALESCE);
        let held_at = (!self.held.is_empty())
            .then(|| self.held_due_at())
            .flatten();
        let wake_at = [Some(heartbeat_at), batch_at, held_at];
        let wake_at = wake_at.into_iter().flatten().min().unwrap_or(heartbeat_at);
        let shared = Arc::clone(&self.feed.queue.shared);
        tokio::select! {
            // hear_next() is cancel safe: what was not heard is heard next time.
            purged = self.feed.hear_next() => self.hear_of_purges(purged.as_slice()),
            () = tokio::time::sleep_until(wake_at) => {}
            () = shared.draining.cancelled() => return Err(Error::draining()),
            () = shared.failed.cancelled() => return Err(Error::outcome_unknown()),
        }
        Ok(None)
    }
}
