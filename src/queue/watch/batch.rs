//! What a watch has taken and not yet given: within the bounds of one message.

use crate::job::event::EventTag;
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::job::segment::EncodedEvent;

/// Events on their way out.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) events: Vec<EncodedEvent>,
    bytes: usize,
    /// Holds a change of state, which does not wait for its time.
    pub(super) urgent: bool,
    /// Has no room for what comes next, or must not be overtaken by it: goes before anything is read.
    pub(super) closed: bool,
}

impl Batch {
    pub(super) fn has_room_for(&self, event: &EncodedEvent) -> bool {
        self.events.is_empty()
            || (self.events.len() < BATCH_EVENTS_MAX
                && self.bytes + event.bytes.len() <= BATCH_BYTES_MAX)
    }

    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= BATCH_EVENTS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    pub(super) fn push(&mut self, event: EncodedEvent) {
        self.bytes += event.bytes.len();
        self.urgent |= event.tag == EventTag::StateChange;
        self.events.push(event);
    }
}
