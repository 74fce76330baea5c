//! Progress that waits for its interval: the newest of each job stands for the rest.
//!
//! All of it goes together, in the order of the commits and before anything that was committed later, so
//! that a cursor never has to say more than one position.

use std::collections::{BTreeMap, HashMap};

use crate::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::job::name::JobId;
use crate::job::segment::EncodedEvent;

/// Jobs whose progress is held. Chosen: four messages; beyond it, what is held goes early.
const JOBS_MAX: usize = 4 * BATCH_EVENTS_MAX;
/// Bytes that are held.
const BYTES_MAX: usize = BATCH_BYTES_MAX;

/// Progress events by position.
#[derive(Debug, Default)]
pub(super) struct Held {
    events: BTreeMap<i64, (JobId, EncodedEvent)>,
    by_job: HashMap<JobId, i64>,
    bytes: usize,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Holds no more.
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= JOBS_MAX || self.bytes >= BYTES_MAX
    }

    /// Position of the oldest.
    pub(super) fn first(&self) -> Option<i64> {
        self.events.keys().next().copied()
    }

    /// Takes an event in place of the job's earlier one.
    pub(super) fn hold(&mut self, position: i64, job: JobId, event: &EncodedEvent) {
        if let Some(earlier) = self.by_job.insert(job, position) {
            self.remove(earlier);
        }
        // A copy, so that it does not keep its whole segment for as long as it waits.
        let event = event.detached();
        self.bytes += event.bytes.len();
        self.events.insert(position, (job, event));
    }

    /// The oldest, if it passes.
    pub(super) fn take_if(
        &mut self,
        passes: impl FnOnce(&EncodedEvent) -> bool,
    ) -> Option<(i64, EncodedEvent)> {
        let (position, (job, event)) = self.events.first_key_value()?;
        if !passes(event) {
            return None;
        }
        let (position, job) = (*position, *job);
        self.by_job.remove(&job);
        self.remove(position).map(|event| (position, event))
    }

    fn remove(&mut self, position: i64) -> Option<EncodedEvent> {
        let (_, event) = self.events.remove(&position)?;
        self.bytes -= event.bytes.len();
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::job::event::EventTag;

    fn id(number: u128) -> JobId {
        JobId::new(Uuid::from_u128(number))
    }

    fn event(sequence: i64, bytes: usize) -> EncodedEvent {
        EncodedEvent {
            sequence,
            tag: EventTag::Progress,
            bytes: Bytes::from(vec![0; bytes]),
        }
    }

    #[test]
    fn the_newest_of_each_job_comes_out_by_position() {
        let mut held = Held::default();
        held.hold(1, id(1), &event(1, 1));
        held.hold(2, id(2), &event(1, 1));
        held.hold(3, id(1), &event(2, 1));
        assert_eq!(held.first(), Some(2));
        let out: Vec<i64> = std::iter::from_fn(|| held.take_if(|_| true))
            .map(|(position, _)| position)
            .collect();
        assert_eq!(out, [2, 3]);
        assert!(held.is_empty() && held.by_job.is_empty());
        assert_eq!(held.bytes, 0);
    }

    #[test]
    fn what_is_held_is_bounded_in_jobs_and_bytes() {
        let mut held = Held::default();
        for number in 1..JOBS_MAX as i64 {
            held.hold(number, id(number as u128), &event(1, 1));
        }
        assert!(!held.is_full());
        held.hold(1 << 20, id(1 << 20), &event(1, 1));
        assert!(held.is_full());
        let mut held = Held::default();
        held.hold(1, id(1), &event(1, BYTES_MAX - 1));
        assert!(!held.is_full());
        held.hold(2, id(2), &event(1, 1));
        assert!(held.is_full());
    }
}
