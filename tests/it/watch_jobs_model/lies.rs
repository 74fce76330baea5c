//! Planted bugs: what an honest watch of many jobs told, with one thing changed in it that none tells. For
//! each promise there is a lie that breaks it, because a checker that never found anything proves nothing.

use std::sync::Arc;
use std::time::Duration;

use pacenote::job::event::EventTag;
use pacenote::job::limits::BATCH_EVENTS_MAX;
use pacenote::job::name::JobId;
use pacenote::job::segment::EncodedEvent;
use pacenote::job::{Job, JobFields, JobSnapshot, JobState};
use pacenote::queue::{JobsContent, JobsMessage, JobsWatch, JobsWatchOptions, default_tenant};
use pacenote::store::JobFilter;

use super::checker::{Logs, Promise, Told};
use super::{Bench, Kind, World, reports};
use crate::harness::{folder, soon};

/// What was told, and what it has to add up to.
#[derive(Clone)]
struct Story {
    world: World,
    /// Before the first message.
    fresh: Told,
    told: Vec<JobsMessage>,
    logs: Logs,
    /// A job that waits from the beginning to the end.
    waits: JobId,
}

impl Story {
    /// Everything that an honest watch told: two jobs run and end, one waits. Perhaps the first is removed
    /// while nobody watches.
    async fn honest(options: JobsWatchOptions, purges: bool) -> Self {
        let dir = folder();
        let mut bench = Bench::new(dir.path()).await;
        let world = World {
            filter: JobFilter::all_of(default_tenant()),
            options,
        };
        for _ in 0..2 {
            bench.submit("work", "ours").await;
        }
        let waits = bench.submit("idle", "theirs").await;
        let mut live = Told::new(0);
        let mut watch = bench.open(None, &mut live, &world).await;
        let (fresh, mut told) = (live.clone(), Vec::new());
        while live.cursor.is_empty() {
            read(&mut watch, &mut live, &mut told).await;
        }
        for _ in 0..2 {
            bench.report(0, reports(Kind::Output, 300)).await;
            bench.report(1, reports(Kind::Progress, 30)).await;
            bench.report(1, reports(Kind::Progress, 31)).await;
            bench.report(1, reports(Kind::Log, 1)).await;
        }
        let ends = [0, 1].map(|job| bench.running[job].key.id);
        bench.finish(0).await;
        bench.note(&world.filter).await;
        if purges {
            drop(watch);
            bench.purge(0, true).await;
            watch = bench.open(None, &mut live, &world).await;
        }
        bench.finish(0).await;
        bench.note(&world.filter).await;
        while !live.knows_over(&ends[1]) {
            read(&mut watch, &mut live, &mut told).await;
        }
        Self {
            world,
            fresh,
            told,
            logs: bench.logs,
            waits,
        }
    }

    fn check(self) -> Vec<(Promise, String)> {
        let mut checked = self.fresh;
        for message in self.told {
            checked.take(message);
        }
        checked.check(&self.world, &self.logs)
    }

    fn place_of(&self, is_it: fn(&JobsContent) -> bool) -> usize {
        let place = self.told.iter().position(|told| is_it(&told.content));
        place.expect("there is one")
    }

    /// The events of the first message that has many.
    fn events(&mut self) -> &mut Vec<EncodedEvent> {
        let place = self.place_of(is_events);
        match &mut self.told[place].content {
            JobsContent::Events(events) => events,
            other => panic!("{other:?}"),
        }
    }

    fn retain(&mut self, mut stays: impl FnMut(&EncodedEvent) -> bool) {
        for message in &mut self.told {
            if let JobsContent::Events(events) = &mut message.content {
                events.retain(&mut stays);
            }
        }
        self.told.retain(|message| match &message.content {
            JobsContent::Events(events) => !events.is_empty(),
            _ => true,
        });
    }

    fn snapshot(&mut self) -> &mut Vec<JobSnapshot> {
        match &mut self.told[0].content {
            JobsContent::Snapshot(jobs) => jobs,
            other => panic!("{other:?}"),
        }
    }

    fn finished(&mut self) -> &mut Vec<JobSnapshot> {
        let place = self.place_of(is_finished);
        match &mut self.told[place].content {
            JobsContent::Finished(jobs) => jobs,
            other => panic!("{other:?}"),
        }
    }
}

async fn read(watch: &mut JobsWatch, live: &mut Told, told: &mut Vec<JobsMessage>) {
    let message = soon(watch.next()).await.expect("no error").expect("no end");
    live.take(message.clone());
    told.push(message);
}

fn is_events(content: &JobsContent) -> bool {
    matches!(content, JobsContent::Events(events) if events.len() > 20)
}

fn is_finished(content: &JobsContent) -> bool {
    matches!(content, JobsContent::Finished(_))
}

fn is_gap(content: &JobsContent) -> bool {
    matches!(content, JobsContent::Gap(_))
}

fn alter(found: &mut JobSnapshot, change: impl FnOnce(&mut JobFields)) {
    let mut fields = JobFields::clone(&found.job);
    change(&mut fields);
    found.job = Arc::new(Job::from_fields(fields));
}

type Lie = fn(&mut Story);

/// Of two jobs that end and one that waits.
const LIES: [(&str, Promise, Lie); 19] = [
    ("a hole", Promise::Complete, |story| {
        story.events().remove(7);
    }),
    ("a lost message", Promise::Complete, |story| {
        story.told.remove(story.place_of(is_events));
    }),
    (
        "progress merged that nobody asked for",
        Promise::Complete,
        |story| {
            story.retain(|event| event.tag != EventTag::Progress);
        },
    ),
    ("an event twice", Promise::Ordered, |story| {
        let again = story.events()[7].clone();
        story.events().insert(7, again);
    }),
    ("a message twice", Promise::Ordered, |story| {
        let place = story.place_of(is_events);
        let again = story.told[place].clone();
        story.told.insert(place, again);
    }),
    ("a wrong order", Promise::Ordered, |story| {
        story.events().swap(7, 8)
    }),
    ("a job of another filter", Promise::Filter, |story| {
        let hidden = story.finished()[0].job.key.id;
        for event in &mut story.logs.log {
            event.matches &= event.id != hidden;
        }
    }),
    ("what the snapshot had", Promise::Filter, |story| {
        alter(&mut story.snapshot()[0], |job| job.last_sequence += 1);
    }),
    (
        "a job that is missing in the snapshot",
        Promise::Snapshot,
        |story| {
            let waits = story.waits;
            story.snapshot().retain(|found| found.job.key.id != waits);
        },
    ),
    ("a job twice in the snapshot", Promise::Snapshot, |story| {
        let again = story.snapshot()[0].clone();
        story.snapshot().push(again);
    }),
    (
        "a job in the snapshot that is over",
        Promise::Snapshot,
        |story| {
            alter(&mut story.snapshot()[0], |job| job.state = JobState::Failed);
        },
    ),
    ("a snapshot in the middle", Promise::Snapshot, |story| {
        let again = story.told[0].clone();
        story.told.push(again);
    }),
    ("an end that is not told", Promise::Finished, |story| {
        story.told.remove(story.place_of(is_finished));
    }),
    ("an end that is told twice", Promise::Finished, |story| {
        let again = story.told[story.place_of(is_finished)].clone();
        story.told.push(again);
    }),
    ("the end of what waits", Promise::Finished, |story| {
        let waits = story.waits;
        alter(&mut story.finished()[0], |job| job.key.id = waits);
    }),
    ("the end of what runs", Promise::Finished, |story| {
        alter(&mut story.finished()[0], |job| {
            job.state = JobState::Running
        });
    }),
    ("no cursor", Promise::Cursor, |story| {
        story.told.last_mut().expect("one").cursor.clear();
    }),
    ("too large a message", Promise::Bounds, |story| {
        let again = story.events().clone();
        for _ in 0..BATCH_EVENTS_MAX {
            story.events().extend(again.iter().cloned());
        }
    }),
    ("a message of nothing", Promise::Bounds, |story| {
        story.events().clear()
    }),
];

/// Of jobs of which one was removed before its events were told.
const LIES_ABOUT_GAPS: [(&str, Promise, Lie); 2] = [
    ("a gap that is not told", Promise::Complete, |story| {
        story.told.retain(|message| !is_gap(&message.content));
    }),
    ("a gap of a job that nobody named", Promise::Gaps, |story| {
        let (place, waits) = (story.place_of(is_gap), story.waits);
        if let JobsContent::Gap(gap) = &mut story.told[place].content {
            gap.job = Some(waits);
        }
    }),
];

/// Of jobs whose progress is merged.
const LIES_ABOUT_MERGING: [(&str, Promise, Lie); 2] = [
    ("the newest progress swallowed", Promise::Merge, |story| {
        story.retain(|event| event.tag != EventTag::Progress);
    }),
    ("more than progress merged", Promise::Complete, |story| {
        story.retain(|event| event.tag != EventTag::Log);
    }),
];

/// Goal: the checker finds each lie, and says which promise it breaks; and finds nothing where there is none.
#[tokio::test]
async fn every_lie_of_a_watch_of_many_jobs_is_found_by_name() {
    let plain = JobsWatchOptions::default;
    let merged = JobsWatchOptions {
        min_progress_interval: Duration::from_secs(3600),
        ..plain()
    };
    let mut told = Vec::new();
    for (options, purges, lies) in [
        (plain(), false, &LIES[..]),
        (plain(), true, &LIES_ABOUT_GAPS[..]),
        (merged, false, &LIES_ABOUT_MERGING[..]),
    ] {
        let honest = Story::honest(options, purges).await;
        assert_eq!(honest.clone().check(), []);
        for (name, promise, lie) in lies {
            let mut story = honest.clone();
            lie(&mut story);
            let found = story.check();
            let named = found.iter().any(|(broken, _)| broken == promise);
            assert!(named, "{name}: {found:?}");
            told.push(*promise);
        }
    }
    for promise in Promise::ALL {
        assert!(told.contains(&promise), "no lie breaks {promise:?}");
    }
}
