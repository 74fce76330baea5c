//! What one watcher of many jobs was told, and whether it adds up to the log of all jobs. It knows that log
//! and nothing of how the watch came by what it told. That it finds what it is for is shown by `lies.rs`,
//! with a lie for each promise.

use std::collections::{BTreeMap, BTreeSet};

use pacenote::job::event::EventTag;
use pacenote::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use pacenote::job::name::JobId;
use pacenote::job::segment::EncodedEvent;
use pacenote::pb;
use pacenote::queue::{JobsContent, JobsMessage};
use prost::Message;

use super::World;

/// What a watch of many jobs promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Promise {
    /// First every job that is not over, each once; then no more of that.
    Snapshot,
    /// Events come in the order of the commits, and none twice, over all cuts.
    Ordered,
    /// Nothing is missing but what is purged and told to be.
    Complete,
    /// What is hidden, or was shown in the snapshot, does not come again.
    Filter,
    /// Of merged progress the newest of each job is told before anything else.
    Merge,
    /// A gap names nobody whom nobody asked for.
    Gaps,
    /// Each job that ends is told to be over, once, and no other.
    Finished,
    /// Once it was given, every message has a cursor.
    Cursor,
    /// A message has no more in it than it may, and not nothing.
    Bounds,
}

impl Promise {
    pub(super) const ALL: [Self; 9] = [
        Self::Snapshot,
        Self::Ordered,
        Self::Complete,
        Self::Filter,
        Self::Merge,
        Self::Gaps,
        Self::Finished,
        Self::Cursor,
        Self::Bounds,
    ];
}

/// The logs of all jobs.
#[derive(Clone, Debug, Default)]
pub(super) struct Logs {
    /// By id, with whether it is over. None that is purged.
    pub(super) jobs: BTreeMap<JobId, bool>,
    /// In the order of the commits, with what is purged since.
    pub(super) log: Vec<Logged>,
}

/// One event of the log of all jobs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Logged {
    pub(super) position: i64,
    pub(super) id: JobId,
    pub(super) sequence: i64,
    pub(super) tag: u8,
    pub(super) matches: bool,
}

/// What one watcher was told, over all its cuts since it last began anew.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) cursor: String,
    /// Position of the newest event when it began.
    begin: i64,
    snapshot: BTreeMap<JobId, i64>,
    events: Vec<(JobId, i64)>,
    finished: Vec<JobId>,
    gaps: usize,
    broken: Vec<(Promise, String)>,
}

impl Told {
    pub(super) fn new(begin: i64) -> Self {
        Self {
            cursor: String::new(),
            begin,
            snapshot: BTreeMap::new(),
            events: Vec::new(),
            finished: Vec::new(),
            gaps: 0,
            broken: Vec::new(),
        }
    }

    /// Whether a job was told to be over.
    pub(super) fn knows_over(&self, id: &JobId) -> bool {
        self.finished.contains(id)
    }

    /// Notes a promise that was not kept.
    fn hold(&mut self, promise: Promise, kept: bool, what: impl FnOnce() -> String) {
        if !kept {
            self.broken.push((promise, what()));
        }
    }

    fn hold_count(&mut self, count: usize) {
        let bounded = count > 0 && count <= BATCH_EVENTS_MAX;
        self.hold(Promise::Bounds, bounded, || format!("{count} in a message"));
    }

    pub(super) fn take(&mut self, message: JobsMessage) {
        let whole = !self.cursor.is_empty();
        let has_cursor = !message.cursor.is_empty();
        self.hold(Promise::Cursor, !whole || has_cursor, || {
            "a cursor was given before".to_owned()
        });
        match message.content {
            JobsContent::Snapshot(jobs) => {
                self.hold(Promise::Snapshot, !whole, || "after its end".to_owned());
                self.hold_count(jobs.len());
                for found in jobs {
                    let (id, last) = (found.job.key.id, found.job.last_sequence);
                    let is_over = found.job.state.is_terminal();
                    let again = self.snapshot.insert(id, last).is_some();
                    self.hold(Promise::Snapshot, !is_over && !again, || {
                        format!("{id}: over {is_over}, again {again}")
                    });
                }
            }
            JobsContent::Events(events) => self.take_events(events),
            JobsContent::Finished(jobs) => {
                self.hold_count(jobs.len());
                for found in jobs {
                    let (id, state) = (found.job.key.id, found.job.state);
                    self.hold(Promise::Finished, state.is_terminal(), || {
                        format!("{id} is {state:?}")
                    });
                    self.finished.push(id);
                }
            }
            JobsContent::Gap(gap) => {
                self.hold(Promise::Gaps, gap.job.is_none(), || format!("{gap:?}"));
                self.gaps += 1;
            }
            JobsContent::Heartbeat(_) => {}
            JobsContent::RollUp(_) => panic!("not asked for"),
        }
        self.cursor = message.cursor;
    }

    fn take_events(&mut self, events: Vec<EncodedEvent>) {
        let (count, bytes) = (
            events.len(),
            events.iter().map(|event| event.bytes.len()).sum::<usize>(),
        );
        self.hold_count(count);
        self.hold(
            Promise::Bounds,
            bytes <= BATCH_BYTES_MAX || count == 1,
            || format!("{count} events of {bytes} bytes"),
        );
        for event in events {
            let read = pb::JobEvent::decode(event.bytes).expect("an event");
            let id = JobId::parse(&read.job_id).expect("an id");
            assert_eq!(read.sequence, event.sequence);
            self.events.push((id, event.sequence));
        }
    }

    /// Everything that was not kept: whether it adds up to the log of all jobs, as far as that is shown and
    /// was not gone by then.
    pub(super) fn check(mut self, world: &World, logs: &Logs) -> Vec<(Promise, String)> {
        let log: Vec<&Logged> = logs.log.iter().filter(|event| event.matches).collect();
        let positions: BTreeMap<(JobId, i64), i64> = log
            .iter()
            .map(|event| ((event.id, event.sequence), event.position))
            .collect();
        let mut told = BTreeSet::new();
        let mut last = 0;
        for event in self.events.clone() {
            let Some(position) = positions.get(&event) else {
                self.hold(Promise::Filter, false, || format!("{event:?} is not shown"));
                continue;
            };
            self.hold(Promise::Ordered, *position > last, || {
                format!("{event:?} at {position} after {last}")
            });
            last = *position;
            told.insert(*position);
        }
        let due: Vec<&Logged> = log.into_iter().filter(|e| self.is_due(world, e)).collect();
        let positions: BTreeSet<i64> = due.iter().map(|event| event.position).collect();
        for position in told.difference(&positions) {
            let what = format!("the event at {position} was shown already, or is hidden");
            self.broken.push((Promise::Filter, what));
        }
        self.check_due(world, logs, &due, &told);
        self.check_snapshot(logs);
        self.check_finished(logs);
        self.broken
    }

    /// Whether everything was told that had to be. Progress may be merged, where that was asked for; but
    /// where something else follows it, the newest of each job is told.
    fn check_due(&mut self, world: &World, logs: &Logs, due: &[&Logged], told: &BTreeSet<i64>) {
        let is_merged = |event: &Logged| {
            event.tag == EventTag::Progress as u8 && !world.options.min_progress_interval.is_zero()
        };
        let told_a_gap = self.gaps > 0;
        let is_lost = |event: &Logged| {
            told_a_gap && (!logs.jobs.contains_key(&event.id) || event.sequence <= 3)
        };
        // Of each job: progress that nothing has followed yet.
        let mut newest: BTreeMap<JobId, &Logged> = BTreeMap::new();
        for event in due {
            if is_lost(event) {
                continue;
            }
            if is_merged(event) {
                newest.insert(event.id, event);
                continue;
            }
            for event in newest.values().chain([event]) {
                let promise = match is_merged(event) {
                    true => Promise::Merge,
                    false => Promise::Complete,
                };
                self.hold(promise, told.contains(&event.position), || {
                    format!("{event:?} is missing")
                });
            }
            newest.clear();
        }
    }

    /// Every job that was there when it began, and is not over yet, was in the snapshot.
    fn check_snapshot(&mut self, logs: &Logs) {
        let before = logs.log.iter().filter(|event| event.position <= self.begin);
        let shown = before.filter(|event| event.matches).map(|event| event.id);
        let is_open = |id: &JobId| logs.jobs.get(id) == Some(&false);
        let due: BTreeSet<JobId> = shown.filter(is_open).collect();
        for id in due {
            let told = self.snapshot.contains_key(&id);
            self.hold(Promise::Snapshot, told, || format!("{id} is not in it"));
        }
    }

    fn is_after_the_snapshot(&self, event: &Logged) -> bool {
        match self.snapshot.get(&event.id) {
            Some(shown) => event.sequence > *shown,
            // It came later, or was over before its part of the snapshot was read.
            None => event.position > self.begin,
        }
    }

    fn is_due(&self, world: &World, event: &Logged) -> bool {
        let tags = &world.options.tags;
        let shown = tags.is_empty() || tags.iter().any(|tag| *tag as u8 == event.tag);
        shown && self.is_after_the_snapshot(event)
    }

    /// Every job whose end came after the snapshot was told to be over, once.
    fn check_finished(&mut self, logs: &Logs) {
        let log = logs.log.iter().filter(|event| event.matches);
        let last: BTreeMap<JobId, &Logged> = log.map(|event| (event.id, event)).collect();
        for (id, last) in last {
            let times = self.finished.iter().filter(|told| **told == id).count();
            let due = self.is_after_the_snapshot(last);
            let kept = match logs.jobs.get(&id) {
                Some(over) => times == usize::from(*over && due),
                // Purged: the end may have come before that.
                None => times <= usize::from(due),
            };
            self.hold(Promise::Finished, kept, || format!("{id} {times} times"));
        }
    }
}
