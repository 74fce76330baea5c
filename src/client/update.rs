//! The words of a watch: where it begins, what it shows, and what it tells.

use std::time::Duration;

use crate::client::error::ClientError;
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
