//! What one watcher was told, and whether it adds up to the log. It knows the log and nothing of how the
//! watch came by what it told. That it finds what it is for is shown by `lies.rs`, with a lie for each
//! promise.

use std::collections::BTreeSet;

use pacenote::job::event::EventTag;
use pacenote::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use pacenote::queue::{WatchContent, WatchMessage, WatchOptions};

/// What a watch promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Promise {
    /// Events ascend, and none comes twice, over all cuts.
    Ascending,
    /// Nothing is missing that was not told to be.
    Complete,
    /// What is hidden stays hidden.
    Filter,
    /// Of merged progress the newest is told before anything else.
    Merge,
    /// A gap is what was asked for and is purged, and nothing else.
    Gaps,
    /// The cursor never goes back, and never beyond what was told.
    Cursor,
    /// A message has no more in it than it may, and not nothing.
    Bounds,
    /// The job as it is at its end is told last, once it is over.
    End,
}

impl Promise {
    pub(super) const ALL: [Self; 8] = [
        Self::Ascending,
        Self::Complete,
        Self::Filter,
        Self::Merge,
        Self::Gaps,
        Self::Cursor,
        Self::Bounds,
        Self::End,
    ];
}

/// The log of a job that is over, as it was before any of it was purged.
pub(super) struct Log {
    /// From sequence 1.
    pub(super) tags: Vec<EventTag>,
    /// Nothing behind it was purged.
    pub(super) purged_through: i64,
}

/// What one watcher was told, over all its cuts.
pub(super) struct Told {
    pub(super) options: WatchOptions,
    pub(super) through: i64,
    events: Vec<(i64, EventTag)>,
    gaps: Vec<(i64, i64)>,
    over: bool,
    broken: Vec<(Promise, String)>,
}

impl Told {
    pub(super) fn new(options: WatchOptions) -> Self {
        Self {
            options,
            through: 0,
            events: Vec::new(),
            gaps: Vec::new(),
            over: false,
            broken: Vec::new(),
        }
    }

    /// Notes a promise that was not kept.
    fn hold(&mut self, promise: Promise, kept: bool, what: impl FnOnce() -> String) {
        if !kept {
            self.broken.push((promise, what()));
        }
    }

    pub(super) fn take(&mut self, message: WatchMessage) {
        let (before, through) = (self.through, message.through_sequence);
        let after_the_end = self.over;
        self.hold(Promise::End, !after_the_end, || {
            format!("{message:?} after the end")
        });
        self.hold(Promise::Cursor, through >= before, || {
            format!("{through} after {before}")
        });
        match message.content {
            WatchContent::Events(events) => {
                let count = events.len();
                let bytes: usize = events.iter().map(|event| event.bytes.len()).sum();
                let bounded = count <= BATCH_EVENTS_MAX && (bytes <= BATCH_BYTES_MAX || count == 1);
                self.hold(Promise::Bounds, bounded && count > 0, || {
                    format!("{count} events of {bytes} bytes")
                });
                for event in events {
                    let sequence = event.sequence;
                    let last = self.events.last().map_or(0, |(last, _)| *last);
                    self.hold(Promise::Ascending, sequence > last, || {
                        format!("{sequence} after {last}")
                    });
                    // A cursor beyond what was told would lose it at a cut.
                    self.hold(Promise::Cursor, sequence > before, || {
                        format!("{sequence} was said to have been told with {before}")
                    });
                    self.hold(Promise::Cursor, sequence <= through, || {
                        format!("{sequence} was told with {through}")
                    });
                    self.events.push((sequence, event.tag));
                }
            }
            WatchContent::Gap(first, last) => {
                // What lies between the last cursor and the gap was read before, and hidden.
                let behind = before < first && first <= last && last == through;
                self.hold(Promise::Gaps, behind, || {
                    format!("{first} to {last} between {before} and {through}")
                });
                self.gaps.push((first, last));
            }
            WatchContent::Snapshot(snapshot) => {
                self.over =
                    snapshot.job.state.is_terminal() && through == snapshot.job.last_sequence;
            }
            WatchContent::Heartbeat(_) => {}
        }
        self.through = through;
    }

    /// Everything that was not kept, once the watch has ended.
    pub(super) fn check(mut self, log: &Log) -> Vec<(Promise, String)> {
        let (over, through, last) = (self.over, self.through, log.tags.len() as i64);
        self.hold(Promise::End, over && through == last, || {
            format!("it ended at {through} of {last}, and over is {over}")
        });
        let gaps = self.gaps.clone();
        for (first, last) in &gaps {
            self.hold(Promise::Gaps, *last <= log.purged_through, || {
                format!("{first} to {last} are kept")
            });
        }
        let is_gone = |sequence: i64| {
            let mut gaps = gaps.iter();
            gaps.any(|(first, last)| (*first..=*last).contains(&sequence))
        };
        let numbered = (1..).zip(log.tags.iter().copied());
        let (mut due, mut hidden) = (Vec::new(), BTreeSet::new());
        for (sequence, tag) in numbered {
            let shown = self.options.tags.is_empty() || self.options.tags.contains(&tag);
            if !shown {
                hidden.insert(sequence);
            } else if !is_gone(sequence) {
                due.push((sequence, tag));
            }
        }
        for (sequence, tag) in self.events.clone() {
            self.hold(Promise::Filter, !hidden.contains(&sequence), || {
                format!("{sequence} is {tag:?}")
            });
            self.hold(Promise::Gaps, !is_gone(sequence), || {
                format!("{sequence} is in a gap")
            });
        }
        self.check_due(&due);
        self.broken
    }

    /// Whether everything was told that had to be. Progress may be merged, where that was asked for; but
    /// where something else follows it, or nothing, the newest is told.
    fn check_due(&mut self, due: &[(i64, EventTag)]) {
        let told: BTreeSet<i64> = self.events.iter().map(|(told, _)| *told).collect();
        let merges = !self.options.min_progress_interval.is_zero();
        for (index, (sequence, tag)) in due.iter().enumerate() {
            let next = due.get(index + 1).map(|(_, tag)| *tag);
            let is_progress = merges && *tag == EventTag::Progress;
            if is_progress && next == Some(EventTag::Progress) {
                continue;
            }
            let promise = match is_progress {
                true => Promise::Merge,
                false => Promise::Complete,
            };
            self.hold(promise, told.contains(sequence), || {
                format!("{sequence} is missing")
            });
        }
    }
}
