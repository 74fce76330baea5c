//! What a watch has taken and not yet given: within the bounds of one message. Of one job or of many.

use std::time::Duration;

use crate::job::event::EventTag;
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::job::segment::EncodedEvent;

/// Events within this time travel together. Chosen: small frames left unread make HTTP/2 clients drop
/// the connection, and forty messages a second look live.
pub(in crate::queue) const COALESCE: Duration = Duration::from_millis(25);

/// Events on their way out.
#[derive(Debug, Default)]
pub(in crate::queue) struct Batch {
    pub(in crate::queue) events: Vec<EncodedEvent>,
    bytes: usize,
    /// Holds a change of state, which does not wait for its time.
    pub(in crate::queue) urgent: bool,
    /// Has no room for what comes next, or must not be overtaken by it: goes before anything is read.
    pub(in crate::queue) closed: bool,
}

impl Batch {
    pub(in crate::queue) fn has_room_for(&self, event: &EncodedEvent) -> bool {
        self.events.is_empty()
            || (self.events.len() < BATCH_EVENTS_MAX
                && self.bytes + event.bytes.len() <= BATCH_BYTES_MAX)
    }

    pub(in crate::queue) fn is_full(&self) -> bool {
        self.events.len() >= BATCH_EVENTS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    pub(in crate::queue) fn push(&mut self, event: EncodedEvent) {
        self.bytes += event.bytes.len();
        self.urgent |= event.tag == EventTag::StateChange;
        self.events.push(event);
    }
}
