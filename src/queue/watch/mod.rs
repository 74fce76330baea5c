//! The watch of one job: what happened, exactly once and in order, for as long as anybody reads.
//!
//! The log is the truth and the hub the fast path: listen first, read second; take news from the hub
//! only if it is exactly what comes next, and read the log whenever it is not. A watch is pulled: it
//! holds at most one batch, and who does not read costs nothing but that. It knows no transport; gRPC
//! (and whoever else) turns its messages into frames.

mod batch;
mod open;

use std::sync::Arc;
use std::time::Duration;

pub(super) use batch::{Batch, COALESCE};
use tokio::time::Instant;

use crate::error::Error;
use crate::events::{Heard, Listener, News};
use crate::job::event::EventTag;
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, HEARTBEAT_DEFAULT};
use crate::job::name::JobKey;
use crate::job::segment::{EncodedEvent, Segment};
use crate::job::time::Timestamp;
use crate::job::{Job, JobSnapshot, Payloads};
use crate::queue::JobQueue;
use crate::store::{LogRange, View};

/// Largest segment of the hub that is kept where the batch has room for its beginning only. Bytes.
/// Chosen: reading a larger one from the log again costs little beside sending it, and a watch that
/// nobody reads holds no more than this.
const REST_BYTES_MAX: usize = 64 * 1024;

/// How a watch is asked for.
#[derive(Clone, PartialEq, Debug)]
pub struct WatchOptions {
    /// `None`: a snapshot, then what comes after it. Otherwise the events with a higher sequence.
    pub after_sequence: Option<i64>,
    /// Empty: all.
    pub tags: Vec<EventTag>,
    /// At most one progress event in this time.
    pub min_progress_interval: Duration,
    /// How long the watch may be quiet before it gives a sign of life.
    pub heartbeat_interval: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            after_sequence: None,
            tags: Vec::new(),
            min_progress_interval: Duration::ZERO,
            heartbeat_interval: HEARTBEAT_DEFAULT,
        }
    }
}

/// One message of a watch.
#[derive(Clone, PartialEq, Debug)]
pub struct WatchMessage {
    /// Everything up to it was given, hidden by the filter, or merged by the interval: resume from it.
    pub through_sequence: i64,
    /// What it says.
    pub content: WatchContent,
}

/// What a message of a watch says.
#[derive(Clone, PartialEq, Debug)]
pub enum WatchContent {
    /// The job as it is.
    Snapshot(JobSnapshot),
    /// What happened, ascending. At most 256 events or 256 KiB; one larger event comes alone.
    Events(Vec<EncodedEvent>),
    /// First and last of the events that were asked for and are purged.
    Gap(i64, i64),
    /// Sign of life, with the server's time.
    Heartbeat(Timestamp),
}

/// A watch that is open. Dropping it ends it; the job is never touched.
#[derive(Debug)]
pub struct Watch {
    queue: JobQueue,
    key: JobKey,
    options: WatchOptions,
    listener: Listener,
    /// A message that goes before anything else: the first snapshot, or the one behind a gap.
    first: Vec<WatchMessage>,
    /// Everything up to it was taken from the log or the hub.
    taken: i64,
    /// There is more in the log than was taken.
    behind: bool,
    /// The job is over, and this was its last sequence.
    over_at: Option<i64>,
    finished: bool,
    /// What the last message shows, where it was heard.
    end: Option<(Arc<Job>, Arc<Payloads>)>,
    batch: Batch,
    /// Heard, and taken in part only: its other events come next.
    rest: Option<Arc<Segment>>,
    /// Progress that waits for its interval.
    held: Option<EncodedEvent>,
    progress_given_at: Option<Instant>,
    given_at: Instant,
}

impl Watch {
    fn new(queue: JobQueue, key: JobKey, options: WatchOptions, listener: Listener) -> Self {
        let now = Instant::now();
        Self {
            queue,
            key,
            options,
            listener,
            first: Vec::new(),
            taken: 0,
            behind: false,
            over_at: None,
            finished: false,
            end: None,
            batch: Batch::default(),
            rest: None,
            held: None,
            progress_given_at: None,
            given_at: now.checked_sub(COALESCE).unwrap_or(now),
        }
    }

    /// The job that is watched.
    pub fn job_id(&self) -> String {
        self.key.id.to_string()
    }

    /// Waits for the next message. `None`, for ever, once the job is over and all was said.
    ///
    /// # Errors
    /// [`Error::Unavailable`] in a drain or after the store has failed, [`Error::Purged`] where the job
    /// was purged in the meantime. The watch is over then.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost that was not returned.
    pub async fn next(&mut self) -> Result<Option<WatchMessage>, Error> {
        loop {
            if self.finished {
                return Ok(None);
            }
            if !self.first.is_empty() {
                return Ok(Some(self.give(0)));
            }
            if let Some(message) = self.batch_if_due() {
                return Ok(Some(message));
            }
            if self.over_at == Some(self.taken) && self.held.is_none() {
                return self.last_message().await.map(Some);
            }
            if self.queue.shared.draining.is_cancelled() {
                return Err(Error::draining());
            }
            if let Some(rest) = self.rest.take() {
                self.take_heard(rest);
            } else if self.behind {
                self.read_log().await?;
            } else if let Some(message) = self.wait().await? {
                return Ok(Some(message));
            }
        }
    }

    /// One of the messages that go before anything else.
    fn give(&mut self, index: usize) -> WatchMessage {
        self.given_at = Instant::now();
        self.first.remove(index)
    }

    /// What is told to be through: never beyond progress that is held back, nor beyond what is in a
    /// batch that was not given.
    fn through(&self) -> i64 {
        let held = self.held.as_ref().map(|held| held.sequence - 1);
        let waiting = self.batch.events.first().map(|event| event.sequence - 1);
        [Some(self.taken), held, waiting]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.taken)
    }

    fn batch_if_due(&mut self) -> Option<WatchMessage> {
        let now = Instant::now();
        if self.held_is_due(now) && !self.release_held(now) {
            self.batch.closed = true;
        }
        if self.batch.events.is_empty() {
            return None;
        }
        let ends = self.over_at == Some(self.taken);
        // Who is behind gets full batches; who is not, at most one in the time that looks live.
        let due = self.batch.urgent || ends || now >= self.given_at + COALESCE;
        let give = self.batch.closed || self.batch.is_full() || ends || (due && !self.behind);
        if !give {
            return None;
        }
        let batch = std::mem::take(&mut self.batch);
        self.given_at = now;
        Some(WatchMessage {
            through_sequence: self.through(),
            content: WatchContent::Events(batch.events),
        })
    }

    fn held_is_due(&self, now: Instant) -> bool {
        let due_at = self.held_due_at();
        self.held.is_some()
            && (self.over_at == Some(self.taken) || due_at.is_some_and(|at| at <= now))
    }

    fn held_due_at(&self) -> Option<Instant> {
        self.held.as_ref()?;
        let given_at = self.progress_given_at?;
        given_at.checked_add(self.options.min_progress_interval)
    }

    /// Puts progress that was held back, if there is any, into the batch. Answers whether there was room.
    fn release_held(&mut self, now: Instant) -> bool {
        let Some(held) = self.held.take_if(|held| self.batch.has_room_for(held)) else {
            return self.held.is_none();
        };
        self.progress_given_at = Some(now);
        self.batch.push(held);
        true
    }

    /// Takes what was heard. Where the batch has no more room, the rest is taken next, or read from the
    /// log where it is large.
    fn take_heard(&mut self, segment: Arc<Segment>) {
        if self.take(&segment) {
            return;
        }
        if segment.body().len() <= REST_BYTES_MAX {
            self.rest = Some(segment);
        } else {
            self.behind = true;
        }
    }

    /// Takes the events of a segment that come next. Answers whether the batch had room for all.
    fn take(&mut self, segment: &Segment) -> bool {
        let taken = self.taken;
        for event in segment.events_after(taken) {
            let sequence = event.sequence;
            let hidden = !self.options.tags.is_empty() && !self.options.tags.contains(&event.tag);
            if !hidden && !self.take_shown(event) {
                self.batch.closed = true;
                return false;
            }
            self.taken = sequence;
        }
        true
    }

    /// Takes an event that is shown, unless there is no room for it.
    fn take_shown(&mut self, event: EncodedEvent) -> bool {
        let now = Instant::now();
        let merges = !self.options.min_progress_interval.is_zero();
        if event.tag == EventTag::Progress && merges {
            let quiet = self
                .progress_given_at
                .is_none_or(|at| now >= at + self.options.min_progress_interval);
            if !quiet {
                // A copy, so that it does not keep its whole segment for as long as it waits.
                self.held = Some(event.detached());
                return true;
            }
        }
        if event.tag == EventTag::Progress {
            if !self.batch.has_room_for(&event) {
                return false;
            }
            // Newer than what was held back, and given in its place.
            self.held = None;
            self.progress_given_at = Some(now);
            self.batch.push(event);
            return true;
        }
        if !self.release_held(now) || !self.batch.has_room_for(&event) {
            return false;
        }
        self.batch.push(event);
        true
    }

    async fn read_log(&mut self) -> Result<(), Error> {
        let range = LogRange {
            after: self.taken,
            events: BATCH_EVENTS_MAX,
            bytes: BATCH_BYTES_MAX,
        };
        // It takes a while until the end is reached: what was heard of it may be purged by then.
        self.end = None;
        let part = self.queue.shared.store.log(&self.key, range).await?;
        let part = part.ok_or(Error::Purged { id: self.key.id })?;
        let next_kept = part
            .segments
            .first()
            .map_or(part.job.first_sequence, |segment| segment.first_sequence());
        if next_kept > self.taken + 1 && part.job.last_sequence > self.taken {
            if !self.batch.events.is_empty() || self.held.is_some() {
                // What was taken goes before the gap, which is found again. Held progress that has no
                // room now has it next time.
                self.release_held(Instant::now());
                self.batch.closed = true;
                return Ok(());
            }
            self.tell_gap(&part.job, next_kept - 1);
        }
        for segment in &part.segments {
            if !self.take(segment) {
                return Ok(());
            }
        }
        self.behind = self.taken < part.job.last_sequence;
        self.look_at(&part.job);
        Ok(())
    }

    /// Says that the front of what was asked for is purged, and where the job is.
    fn tell_gap(&mut self, job: &Arc<Job>, last_missing: i64) {
        self.first.push(WatchMessage {
            through_sequence: last_missing,
            content: WatchContent::Gap(self.taken + 1, last_missing),
        });
        self.first.push(snapshot_message(job, last_missing));
        self.taken = last_missing;
    }

    /// Learns from a job whether it is over.
    fn look_at(&mut self, job: &Job) {
        if job.state.is_terminal() {
            self.over_at = Some(job.last_sequence);
        }
    }

    /// Waits for news, or for a time at which something is due. Answers a sign of life where it was
    /// quiet for long.
    async fn wait(&mut self) -> Result<Option<WatchMessage>, Error> {
        let heartbeat_at = self.given_at + self.options.heartbeat_interval;
        let batch_at = (!self.batch.events.is_empty()).then_some(self.given_at + COALESCE);
        let wake_at = [Some(heartbeat_at), batch_at, self.held_due_at()]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(heartbeat_at);
        let shared = Arc::clone(&self.queue.shared);
        tokio::select! {
            // next() is cancel safe: what was not heard is heard next time.
            heard = self.listener.next() => {
                self.hear(heard)?;
                // What else is there travels along.
                while !self.behind && !self.batch.closed && !self.batch.is_full() {
                    let Some(heard) = self.listener.try_next() else { break };
                    self.hear(heard)?;
                }
                Ok(None)
            }
            () = tokio::time::sleep_until(wake_at) => {
                let now = Instant::now();
                if now < heartbeat_at || !self.batch.events.is_empty() || self.held_is_due(now) {
                    return Ok(None);
                }
                self.given_at = now;
                Ok(Some(WatchMessage {
                    through_sequence: self.through(),
                    content: WatchContent::Heartbeat(shared.clock.now()),
                }))
            }
            () = shared.draining.cancelled() => Err(Error::draining()),
            () = shared.failed.cancelled() => Err(Error::outcome_unknown()),
        }
    }

    fn hear(&mut self, heard: Heard) -> Result<(), Error> {
        match heard {
            Heard::News(News::Events(job, segment)) => self.hear_events(&job, segment),
            Heard::News(News::Over(job, payloads, segment)) => {
                self.hear_events(&job, segment);
                self.end = Some((job, payloads));
            }
            Heard::News(News::Stored) | Heard::Lagged => self.behind = true,
            Heard::News(News::Purged) => return Err(Error::Purged { id: self.key.id }),
        }
        Ok(())
    }

    fn hear_events(&mut self, job: &Job, segment: Arc<Segment>) {
        if segment.last_sequence() <= self.taken {
            return;
        }
        if segment.first_sequence() > self.taken + 1 {
            self.behind = true;
        } else {
            self.take_heard(segment);
        }
        self.look_at(job);
    }

    async fn last_message(&mut self) -> Result<WatchMessage, Error> {
        let snapshot = match self.end.take() {
            // As of the end of the job, which is when it was heard.
            Some((job, payloads)) => {
                while let Some(heard) = self.listener.try_next() {
                    self.hear(heard)?;
                }
                JobSnapshot {
                    job,
                    payloads: Arc::unwrap_or_clone(payloads),
                }
            }
            None => {
                let found = self.queue.get(&self.key, View::Full).await;
                found.map_err(|error| match error {
                    Error::NotFound { id } => Error::Purged { id },
                    other => other,
                })?
            }
        };
        self.finished = true;
        Ok(WatchMessage {
            through_sequence: self.taken,
            content: WatchContent::Snapshot(snapshot),
        })
    }
}

fn snapshot_message(job: &Arc<Job>, through_sequence: i64) -> WatchMessage {
    let snapshot = JobSnapshot {
        job: Arc::clone(job),
        payloads: Payloads::default(),
    };
    WatchMessage {
        through_sequence,
        content: WatchContent::Snapshot(snapshot),
    }
}
