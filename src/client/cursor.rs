//! What a watch has seen: takes the messages of any number of streams and hands out one log. Pure, no
//! I/O.
//!
//! It promises that what it hands out has no event twice and, where the watch hides nothing, no hole
//! that was not announced. It does not open streams: `watch` does.

use std::collections::VecDeque;

use crate::client::error::ClientError;
use crate::client::update::Update;
use crate::pb;
use crate::pb::job::State;
use crate::pb::watch_job_response::Content;

/// Where a watch stands, and what it has received but not handed out.
#[derive(Debug)]
pub(super) struct Cursor {
    /// Everything up to it was received, hidden or merged; `None` before the first snapshot.
    received: Option<i64>,
    /// Everything up to it was handed out: what a program may store to resume from.
    delivered: Option<i64>,
    /// Nothing is hidden or merged, so that sequences must come one by one.
    dense: bool,
    /// Received, with `delivered` as it is once the entry was handed out.
    ready: VecDeque<(Update, Option<i64>)>,
}

impl Cursor {
    /// A watch that begins after `after_sequence`, or with a snapshot.
    pub(super) fn new(after_sequence: Option<i64>, dense: bool) -> Self {
        Self {
            received: after_sequence,
            delivered: after_sequence,
            dense,
            ready: VecDeque::new(),
        }
    }

    /// What the next stream has to begin after.
    pub(super) fn received(&self) -> Option<i64> {
        self.received
    }

    /// What a program may store: everything up to it was handed out.
    pub(super) fn delivered(&self) -> Option<i64> {
        self.delivered
    }

    /// The next thing for the caller.
    pub(super) fn hand_out(&mut self) -> Option<Update> {
        let (update, delivered) = self.ready.pop_front()?;
        self.delivered = delivered;
        Some(update)
    }

    /// Takes one message in. Answers whether it brought the watch further.
    ///
    /// # Errors
    /// The server broke the contract. What came before the breach is still handed out.
    pub(super) fn take(&mut self, message: pb::WatchJobResponse) -> Result<bool, ClientError> {
        let before = self.received;
        let through = message.through_sequence;
        let mut alive = false;
        match message.content {
            Some(Content::Snapshot(job)) => self.take_snapshot(job, through)?,
            Some(Content::Events(batch)) => self.take_events(&batch, through)?,
            Some(Content::Gap(gap)) => self.take_gap(gap)?,
            Some(Content::Heartbeat(_)) => {
                self.advance(through)?;
                self.push(Update::Heartbeat);
                alive = true;
            }
            // A kind of message that this client is too old for: a sign of life.
            None => self.advance(through)?,
        }
        Ok(alive || self.received != before)
    }

    fn take_snapshot(&mut self, job: pb::Job, through: i64) -> Result<(), ClientError> {
        if self.received.is_none() {
            self.received = Some(through);
        }
        self.advance(through)?;
        // A snapshot of a finished job may also come first (`Run` with a used key) or after a gap, with
        // more of the log to follow. Only the one that covers the whole log ends the watch.
        let over = is_final(job.state()) && through >= job.last_sequence;
        self.push(if over {
            Update::Finished(Box::new(job))
        } else {
            Update::Snapshot(Box::new(job))
        });
        Ok(())
    }

    fn take_events(&mut self, batch: &pb::EventBatch, through: i64) -> Result<(), ClientError> {
        let Some(mut last) = self.received else {
            return Err(breach("events came before the snapshot"));
        };
        let events = batch
            .decoded()
            .map_err(|error| breach(format!("an event does not decode: {error}")))?;
        for event in events {
            let sequence = event.sequence;
            if sequence <= last {
                continue;
            }
            if self.dense && sequence != last + 1 {
                return Err(hole(last + 1, sequence - 1));
            }
            last = sequence;
            self.received = Some(sequence);
            self.push(Update::Event(Box::new(event)));
        }
        self.advance(through)
    }

    fn take_gap(&mut self, gap: pb::EventGap) -> Result<(), ClientError> {
        let (first, last) = (gap.first_missing_sequence, gap.last_missing_sequence);
        if let Some(received) = self.received {
            if last <= received {
                return Ok(());
            }
            if self.dense && first > received + 1 {
                return Err(hole(received + 1, first - 1));
            }
        }
        self.received = Some(last);
        self.push(Update::Gap(gap));
        Ok(())
    }

    /// Takes the server's word that nothing else is to be shown up to `through`.
    fn advance(&mut self, through: i64) -> Result<(), ClientError> {
        let Some(received) = self.received else {
            return Ok(());
        };
        if through <= received {
            return Ok(());
        }
        if self.dense {
            return Err(hole(received + 1, through));
        }
        self.received = Some(through);
        match self.ready.back_mut() {
            Some((_, delivered)) => *delivered = Some(through),
            // Nothing is waiting to be handed out before it.
            None => self.delivered = Some(through),
        }
        Ok(())
    }

    fn push(&mut self, update: Update) {
        self.ready.push_back((update, self.received));
    }
}

/// The job is over, for ever.
pub(crate) fn is_final(state: State) -> bool {
    match state {
        State::Succeeded | State::Failed | State::Cancelled | State::Expired => true,
        State::Unspecified
        | State::Scheduled
        | State::Blocked
        | State::Queued
        | State::Running
        | State::Cancelling => false,
    }
}

fn hole(first: i64, last: i64) -> ClientError {
    breach(format!(
        "events {first} to {last} are missing and no gap was announced"
    ))
}

fn breach(message: impl Into<String>) -> ClientError {
    ClientError::Contract {
        message: message.into(),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn message(through: i64, content: Content) -> pb::WatchJobResponse {
        pb::WatchJobResponse {
            through_sequence: through,
            content: Some(content),
        }
    }

    fn events(sequences: &[i64], through: i64) -> pb::WatchJobResponse {
        let event = |sequence: &i64| pb::JobEvent {
            sequence: *sequence,
            ..pb::JobEvent::default()
        };
        let events = sequences
            .iter()
            .map(|s| event(s).encode_to_vec().into())
            .collect();
        message(through, Content::Events(pb::EventBatch { events }))
    }

    fn snapshot(state: State, last_sequence: i64, through: i64) -> pb::WatchJobResponse {
        let job = pb::Job {
            state: state.into(),
            last_sequence,
            ..pb::Job::default()
        };
        message(through, Content::Snapshot(job))
    }

    fn gap(first: i64, last: i64) -> pb::WatchJobResponse {
        let gap = pb::EventGap {
            first_missing_sequence: first,
            last_missing_sequence: last,
            ..pb::EventGap::default()
        };
        message(last, Content::Gap(gap))
    }

    fn drain(cursor: &mut Cursor) -> Vec<String> {
        std::iter::from_fn(|| cursor.hand_out())
            .map(|update| match update {
                Update::Event(event) => event.sequence.to_string(),
                Update::Gap(gap) => {
                    format!(
                        "gap {}-{}",
                        gap.first_missing_sequence, gap.last_missing_sequence
                    )
                }
                Update::Snapshot(_) => "snapshot".to_owned(),
                Update::Finished(_) => "finished".to_owned(),
                Update::Heartbeat => "heartbeat".to_owned(),
                Update::Reconnecting { .. } => "reconnecting".to_owned(),
            })
            .collect()
    }

    #[test]
    fn doubles_within_and_across_messages_are_dropped() {
        let mut cursor = Cursor::new(Some(0), true);
        cursor.take(events(&[1, 1, 2], 2)).expect("no breach");
        let further = cursor.take(events(&[1, 2], 2)).expect("no breach");
        assert!(
            !further,
            "a message of doubles does not bring the watch further"
        );
        cursor.take(events(&[2, 3], 3)).expect("no breach");
        assert_eq!(drain(&mut cursor), ["1", "2", "3"]);
    }

    #[test]
    fn a_hole_is_an_error_and_what_came_before_it_is_still_handed_out() {
        let mut cursor = Cursor::new(Some(0), true);
        let error = cursor.take(events(&[1, 2, 4], 4)).expect_err("a hole");
        assert!(error.to_string().contains("events 3 to 3 are missing"));
        assert_eq!(drain(&mut cursor), ["1", "2"]);
        assert_eq!(cursor.delivered(), Some(2));
    }

    #[test]
    fn a_heartbeat_that_runs_ahead_of_what_was_sent_is_a_hole() {
        let mut cursor = Cursor::new(Some(5), true);
        let ahead = message(7, Content::Heartbeat(pb::Heartbeat::default()));
        assert!(cursor.take(ahead).is_err());
        let mut cursor = Cursor::new(Some(5), true);
        assert!(cursor.take(snapshot(State::Succeeded, 7, 7)).is_err());
    }

    #[test]
    fn a_filtered_watch_takes_the_servers_word_for_what_is_hidden() {
        let mut cursor = Cursor::new(Some(0), false);
        cursor.take(events(&[3, 7], 9)).expect("no breach");
        assert!(matches!(cursor.hand_out(), Some(Update::Event(_))));
        assert_eq!(
            cursor.delivered(),
            Some(3),
            "in the middle of the batch: its own event"
        );
        assert!(matches!(cursor.hand_out(), Some(Update::Event(_))));
        assert_eq!(
            cursor.delivered(),
            Some(9),
            "after the batch: what it covers"
        );
    }

    #[test]
    fn an_announced_gap_moves_on_and_an_unannounced_part_of_it_does_not() {
        let mut cursor = Cursor::new(Some(0), true);
        cursor.take(gap(1, 4)).expect("no breach");
        cursor
            .take(snapshot(State::Succeeded, 6, 4))
            .expect("no breach");
        cursor.take(events(&[5, 6], 6)).expect("no breach");
        cursor
            .take(snapshot(State::Succeeded, 6, 6))
            .expect("no breach");
        assert_eq!(
            drain(&mut cursor),
            ["gap 1-4", "snapshot", "5", "6", "finished"]
        );
        assert!(Cursor::new(Some(0), true).take(gap(3, 4)).is_err());
    }

    #[test]
    fn events_before_the_first_snapshot_are_a_breach() {
        let mut cursor = Cursor::new(None, true);
        assert!(cursor.take(events(&[1], 1)).is_err());
    }

    #[test]
    fn a_watch_without_a_start_begins_at_its_snapshot() {
        let mut cursor = Cursor::new(None, true);
        cursor
            .take(snapshot(State::Running, 41, 41))
            .expect("no breach");
        assert_eq!(cursor.received(), Some(41));
        assert_eq!(cursor.delivered(), None, "nothing was handed out yet");
        assert_eq!(drain(&mut cursor), ["snapshot"]);
        assert_eq!(cursor.delivered(), Some(41));
    }
}
