//! The words of a watch: where it begins, what it shows, and what it tells.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::error::ClientError;
use crate::client::line::Cut;
use crate::pb;

/// From where a watch begins, and what it shows.
#[derive(Clone, PartialEq, Debug)]
pub struct WatchOptions {
    /// `None`: first a snapshot, then what comes after it. `Some(n)`: the events with a higher
    /// sequence; 0 for everything that is kept. Default `None`.
    pub after_sequence: Option<i64>,
    /// Which kinds of events to show. Default: all.
    pub event_types: Vec<pb::EventType>,
    /// At most one progress event in this time. Default zero: every stored one.
    pub min_progress_interval: Duration,
    /// How often the server gives a sign of life on a quiet stream; after three missed ones the watch
    /// reconnects. 1 s to 5 min; default 15 s.
    pub heartbeat_interval: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            after_sequence: None,
            event_types: Vec::new(),
            min_progress_interval: Duration::ZERO,
            heartbeat_interval: Duration::from_secs(15),
        }
    }
}

/// What the watch of a [`Client::run`](crate::client::Client::run) shows. As in [`WatchOptions`]; it begins with the first event.
#[derive(Clone, PartialEq, Debug)]
pub struct RunOptions {
    /// Which kinds of events to show. Default: all.
    pub event_types: Vec<pb::EventType>,
    /// At most one progress event in this time. Default zero: every stored one.
    pub min_progress_interval: Duration,
    /// How often the server gives a sign of life on a quiet stream. 1 s to 5 min; default 15 s.
    pub heartbeat_interval: Duration,
}

impl Default for RunOptions {
    fn default() -> Self {
        let watch = WatchOptions::default();
        Self {
            event_types: watch.event_types,
            min_progress_interval: watch.min_progress_interval,
            heartbeat_interval: watch.heartbeat_interval,
        }
    }
}

/// One thing a watch has to tell.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Update {
    /// The job as it is before the events that follow: at the beginning, and after a gap.
    Snapshot(Box<pb::Job>),
    /// The next event.
    Event(Box<pb::JobEvent>),
    /// Events that were purged before the watch asked for them.
    Gap(pb::EventGap),
    /// The server is there and has nothing to tell.
    Heartbeat,
    /// The stream was cut. The watch comes back by itself and resumes; nothing is lost.
    Reconnecting {
        /// What cut it.
        error: ClientError,
        /// Failed tries in a row, this one included.
        attempt: u32,
        /// The wait before the next one.
        delay: Duration,
    },
    /// The job is over, with its result or error. Always the last update.
    Finished(Box<pb::Job>),
}

impl Update {
    pub(super) fn reconnecting(cut: Cut) -> Self {
        Self::Reconnecting {
            error: cut.error,
            attempt: cut.attempt,
            delay: cut.delay,
        }
    }
}

/// Which jobs are watched together, from where, and what of them is shown. All that is given has to hold;
/// of a list, one of its entries.
#[derive(Clone, PartialEq, Debug)]
pub struct JobsWatchOptions {
    /// A cursor of an earlier watch of the same jobs: what comes after it. Default empty: first the jobs
    /// that are not over.
    pub after_cursor: String,
    /// All of them, with these values. At most 64. Default: any.
    pub labels: BTreeMap<String, String>,
    /// At most 100. Default: any.
    pub queues: Vec<String>,
    /// At most 100. Default: any.
    pub types: Vec<String>,
    /// The jobs of one batch. Default empty: any. With it the watch ends once all of them are over.
    pub batch_id: String,
    /// At most 1,000. Default: any. With them the watch ends once all of them are over.
    pub job_ids: Vec<String>,
    /// Which kinds of events to show. Default: all.
    pub event_types: Vec<pb::EventType>,
    /// At most one progress event of a job, or one roll-up, in this time. Default `None`: every stored
    /// event, or four roll-ups a second.
    pub min_progress_interval: Option<Duration>,
    /// How often the server gives a sign of life on a quiet stream; after three missed ones the watch
    /// reconnects. 1 s to 5 min; default 15 s.
    pub heartbeat_interval: Duration,
    /// In place of jobs and events: how many of them are how far. Default false.
    pub roll_up: bool,
    /// Of the jobs that are over. Default BASIC; FULL: with input and result.
    pub finished_view: pb::JobView,
}

impl Default for JobsWatchOptions {
    fn default() -> Self {
        Self {
            after_cursor: String::new(),
            labels: BTreeMap::new(),
            queues: Vec::new(),
            types: Vec::new(),
            batch_id: String::new(),
            job_ids: Vec::new(),
            event_types: Vec::new(),
            min_progress_interval: None,
            heartbeat_interval: Duration::from_secs(15),
            roll_up: false,
            finished_view: pb::JobView::Basic,
        }
    }
}

/// One thing a watch of many jobs has to tell.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum JobsUpdate {
    /// The watch was cut before its first cursor, and begins anew: what it told so far, it tells again.
    Anew,
    /// A job as it is before its events that follow. All of these come before the first cursor.
    Snapshot(Box<pb::Job>),
    /// The next event of any of the jobs, in the order of the commits.
    Event(Box<pb::JobEvent>),
    /// A job is over, once, after its last event.
    Finished(Box<pb::Job>),
    /// How far all of the jobs are.
    RollUp(pb::RollUp),
    /// Events that were purged before they could be told; without a `job_id` where nobody knows whose.
    Gap(pb::EventGap),
    /// The server is there and has nothing to tell.
    Heartbeat,
    /// The stream was cut. The watch comes back by itself and resumes; nothing is lost.
    Reconnecting {
        /// What cut it.
        error: ClientError,
        /// Failed tries in a row, this one included.
        attempt: u32,
        /// The wait before the next one.
        delay: Duration,
    },
}
