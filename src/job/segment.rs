//! A run of one job's events, encoded once: the unit in which the log is stored, published and sent.
//!
//! What the bytes mean is the business of `wire`; here they only have an order and a kind, which is all
//! that a watch needs to filter, merge and cut them.

use bytes::{BufMut, Bytes, BytesMut};

use crate::job::event::EventTag;
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};

/// Consecutive events of one job, encoded. At most 256 events or 256 KiB; one larger event is a
/// segment of its own.
#[derive(Clone, PartialEq, Debug)]
pub struct Segment {
    first_sequence: i64,
    tags: Vec<u8>,
    /// The encoded events, each behind the tag and length of a repeated field number 1: together they
    /// are one encoded `EventBatch`.
    body: Bytes,
    events: Vec<Bytes>,
}

/// One event of a [`Segment`].
#[derive(Clone, PartialEq, Debug)]
pub struct EncodedEvent {
    /// Its number in the job's log.
    pub sequence: i64,
    /// What kind it is.
    pub tag: EventTag,
    /// The encoded event. Shares the segment's memory.
    pub bytes: Bytes,
}

impl EncodedEvent {
    /// A copy that does not keep its segment in memory.
    pub fn detached(&self) -> Self {
        Self {
            bytes: Bytes::copy_from_slice(&self.bytes),
            ..*self
        }
    }
}

/// Why stored bytes are no segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the stored events are damaged")]
pub struct Damaged;

impl Segment {
    /// Sequence of the first event.
    pub fn first_sequence(&self) -> i64 {
        self.first_sequence
    }

    /// Sequence of the last event.
    pub fn last_sequence(&self) -> i64 {
        self.first_sequence + self.len() as i64 - 1
    }

    /// How many events. At least one.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Never: a segment holds at least one event.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The kind of each event: an [`EventTag`] a byte.
    pub fn tags(&self) -> &[u8] {
        &self.tags
    }

    /// All events as one encoded `EventBatch`.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The events after a sequence, ascending.
    pub fn events_after(&self, sequence: i64) -> impl Iterator<Item = EncodedEvent> + '_ {
        let skip = usize::try_from(sequence + 1 - self.first_sequence).unwrap_or(0);
        let numbered = self.tags.iter().zip(&self.events).enumerate().skip(skip);
        numbered.filter_map(|(index, (tag, bytes))| {
            Some(EncodedEvent {
                sequence: self.first_sequence + index as i64,
                tag: EventTag::from_number(*tag)?,
                bytes: bytes.clone(),
            })
        })
    }

    /// From what a store kept.
    ///
    /// # Errors
    /// [`Damaged`], where the bytes are not what [`SegmentBuilder`] wrote.
    pub fn from_stored(first_sequence: i64, tags: Vec<u8>, body: Bytes) -> Result<Self, Damaged> {
        let mut events = Vec::with_capacity(tags.len());
        let mut at = 0;
        while at < body.len() {
            if body[at] != FIELD_TAG {
                return Err(Damaged);
            }
            let (len, start) = read_varint(&body, at + 1).ok_or(Damaged)?;
            let end = start.checked_add(len).ok_or(Damaged)?;
            if end > body.len() {
                return Err(Damaged);
            }
            events.push(body.slice(start..end));
            at = end;
        }
        let known = tags.iter().all(|tag| EventTag::from_number(*tag).is_some());
        if events.len() != tags.len() || events.is_empty() || !known {
            return Err(Damaged);
        }
        Ok(Self {
            first_sequence,
            tags,
            body,
            events,
        })
    }
}

/// Field number 1, length-delimited: `repeated JobEvent events = 1` of `EventBatch`.
/// Source: the protobuf encoding guide.
const FIELD_TAG: u8 = 0x0a;

/// Collects consecutive events of one job into segments within their bounds.
#[derive(Debug, Default)]
pub struct SegmentBuilder {
    done: Vec<Segment>,
    first_sequence: i64,
    tags: Vec<u8>,
    body: BytesMut,
    spans: Vec<(usize, usize)>,
}

impl SegmentBuilder {
    /// Adds the next event.
    pub fn push(&mut self, sequence: i64, tag: EventTag, encoded: &[u8]) {
        let full = self.tags.len() >= BATCH_EVENTS_MAX
            || (!self.tags.is_empty() && self.body.len() + encoded.len() + 8 > BATCH_BYTES_MAX);
        if full {
            self.cut();
        }
        if self.tags.is_empty() {
            self.first_sequence = sequence;
        }
        self.tags.push(tag as u8);
        self.body.put_u8(FIELD_TAG);
        put_varint(&mut self.body, encoded.len());
        let start = self.body.len();
        self.body.extend_from_slice(encoded);
        self.spans.push((start, self.body.len()));
    }

    /// The segments, ascending.
    pub fn finish(mut self) -> Vec<Segment> {
        self.cut();
        self.done
    }

    fn cut(&mut self) {
        if self.tags.is_empty() {
            return;
        }
        let body = self.body.split().freeze();
        let spans = std::mem::take(&mut self.spans);
        let events = spans.iter().map(|(start, end)| body.slice(*start..*end));
        self.done.push(Segment {
            first_sequence: self.first_sequence,
            tags: std::mem::take(&mut self.tags),
            events: events.collect(),
            body,
        });
    }
}

fn put_varint(body: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        body.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    body.put_u8(value as u8);
}

fn read_varint(body: &[u8], start: usize) -> Option<(usize, usize)> {
    let mut value = 0_usize;
    for (index, byte) in body.get(start..)?.iter().take(5).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, start + index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_is_what_is_read_back() {
        let mut builder = SegmentBuilder::default();
        for sequence in 5..=7 {
            builder.push(
                sequence,
                EventTag::Output,
                &vec![b'x'; 100 * sequence as usize],
            );
        }
        let built = builder.finish();
        assert_eq!(built.len(), 1);
        let segment = &built[0];
        assert_eq!((segment.first_sequence(), segment.last_sequence()), (5, 7));
        let read = Segment::from_stored(5, segment.tags().to_vec(), segment.body().clone());
        assert_eq!(read.as_ref(), Ok(segment));
        let after: Vec<i64> = segment
            .events_after(5)
            .map(|event| event.sequence)
            .collect();
        assert_eq!(after, [6, 7]);
        assert_eq!(segment.events_after(0).count(), 3);
        assert_eq!(segment.events_after(7).count(), 0);
    }

    #[test]
    fn segments_are_cut_at_their_bounds_and_a_larger_event_travels_alone() {
        let mut builder = SegmentBuilder::default();
        for sequence in 1..=(BATCH_EVENTS_MAX as i64 + 1) {
            builder.push(sequence, EventTag::Log, b"x");
        }
        let lens: Vec<usize> = builder.finish().iter().map(Segment::len).collect();
        assert_eq!(lens, [BATCH_EVENTS_MAX, 1]);

        let mut builder = SegmentBuilder::default();
        builder.push(1, EventTag::Log, b"x");
        builder.push(2, EventTag::Output, &vec![0; BATCH_BYTES_MAX + 1]);
        builder.push(3, EventTag::Log, b"x");
        let lens: Vec<usize> = builder.finish().iter().map(Segment::len).collect();
        assert_eq!(lens, [1, 1, 1]);
    }

    #[test]
    fn damaged_bytes_are_refused_and_never_panic() {
        let mut builder = SegmentBuilder::default();
        builder.push(1, EventTag::Log, &[b'x'; 300]);
        let segment = builder.finish().remove(0);
        for end in 1..segment.body().len() {
            let cut = segment.body().slice(..end);
            assert_eq!(Segment::from_stored(1, vec![4], cut), Err(Damaged), "{end}");
        }
        assert_eq!(
            Segment::from_stored(1, vec![4, 4], segment.body().clone()),
            Err(Damaged)
        );
        assert_eq!(
            Segment::from_stored(1, vec![99], segment.body().clone()),
            Err(Damaged)
        );
        assert_eq!(Segment::from_stored(1, vec![], Bytes::new()), Err(Damaged));
    }
}
