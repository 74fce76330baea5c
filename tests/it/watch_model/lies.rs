//! Planted bugs: what an honest watch told, with one thing changed in it that none tells. For each promise
//! there is a lie that breaks it, because a checker that never found anything proves nothing.

use std::sync::Arc;
use std::time::Duration;

use pacenote::job::event::EventTag;
use pacenote::job::segment::EncodedEvent;
use pacenote::job::{Job, JobFields, JobState};
use pacenote::queue::{WatchContent, WatchMessage, WatchOptions};

use super::checker::{Log, Promise, Told};
use super::{Bench, Kind, log, reports};
use crate::harness::{folder, soon};

/// Everything that an honest watch told of a job that is over, from 0, with its log: more than two batches
/// of output, progress in between and at the end.
async fn honest(options: &WatchOptions, purge_percent: Option<i64>) -> (Vec<WatchMessage>, Log) {
    let dir = folder();
    let bench = Bench::new(dir.path()).await;
    for _ in 0..5 {
        bench.store(reports(Kind::Output, 119)).await;
        bench.store(reports(Kind::Progress, 60)).await;
        bench.store(reports(Kind::Progress, 61)).await;
        bench.store(reports(Kind::Log, 1)).await;
    }
    bench.finish().await;
    let log = log(&bench, purge_percent).await;
    let mut watch = bench.watch(options, 0).await;
    let mut told = Vec::new();
    while let Some(message) = soon(watch.next()).await.expect("no error") {
        told.push(message);
    }
    (told, log)
}

fn merged() -> WatchOptions {
    WatchOptions {
        min_progress_interval: Duration::from_secs(3600),
        ..WatchOptions::default()
    }
}

fn check(told: Vec<WatchMessage>, options: WatchOptions, log: &Log) -> Vec<(Promise, String)> {
    let mut checked = Told::new(options);
    for message in told {
        checked.take(message);
    }
    checked.check(log)
}

fn is_batch(message: &&mut WatchMessage) -> bool {
    matches!(message.content, WatchContent::Events(_))
}

/// The message with events of that number.
fn batch(told: &mut [WatchMessage], number: usize) -> &mut WatchMessage {
    let mut batches = told.iter_mut().filter(is_batch);
    batches.nth(number).expect("there are as many")
}

fn events(told: &mut [WatchMessage], number: usize) -> &mut Vec<EncodedEvent> {
    match &mut batch(told, number).content {
        WatchContent::Events(events) => events,
        other => panic!("{other:?}"),
    }
}

fn place_of(told: &[WatchMessage], is_it: fn(&WatchContent) -> bool) -> usize {
    let place = told.iter().position(|message| is_it(&message.content));
    place.expect("there is one")
}

fn is_gap(content: &WatchContent) -> bool {
    matches!(content, WatchContent::Gap(..))
}

fn is_events(content: &WatchContent) -> bool {
    matches!(content, WatchContent::Events(_))
}

type Lie = fn(&mut Vec<WatchMessage>);

/// Of a whole log.
const LIES: [(&str, Promise, Lie); 17] = [
    ("a hole", Promise::Complete, |told| {
        events(told, 0).remove(7);
    }),
    ("a lost message", Promise::Complete, |told| {
        told.remove(place_of(told, is_events));
    }),
    ("no end of the log", Promise::Complete, |told| {
        let last = told.iter_mut().rfind(is_batch).expect("one");
        if let WatchContent::Events(events) = &mut last.content {
            events.pop();
        }
    }),
    (
        "merged progress that nobody asked for",
        Promise::Complete,
        |told| {
            let progress = |event: &EncodedEvent| event.tag == EventTag::Progress;
            let first = events(told, 0).iter().position(progress).expect("some");
            events(told, 0).remove(first);
        },
    ),
    ("an event twice", Promise::Ascending, |told| {
        let again = events(told, 0)[7].clone();
        events(told, 0).insert(7, again);
    }),
    ("a message twice", Promise::Ascending, |told| {
        let again = batch(told, 1).clone();
        told.insert(place_of(told, is_events) + 2, again);
    }),
    ("a wrong order", Promise::Ascending, |told| {
        events(told, 1).swap(3, 4)
    }),
    ("a wrong order of messages", Promise::Ascending, |told| {
        let first = place_of(told, is_events);
        told.swap(first, first + 1);
    }),
    ("a gap where nothing is purged", Promise::Gaps, |told| {
        let message = batch(told, 0);
        message.content = WatchContent::Gap(1, message.through_sequence);
    }),
    ("a cursor that goes back", Promise::Cursor, |told| {
        let before = batch(told, 0).through_sequence;
        told[1].through_sequence = before - 1;
    }),
    ("a cursor behind what was told", Promise::Cursor, |told| {
        batch(told, 0).through_sequence -= 1;
    }),
    ("a cursor that runs ahead", Promise::Cursor, |told| {
        let ahead = batch(told, 1).through_sequence;
        batch(told, 0).through_sequence = ahead;
    }),
    ("too large a message", Promise::Bounds, |told| {
        let mut second = std::mem::take(events(told, 1));
        events(told, 0).append(&mut second);
    }),
    ("an end too soon", Promise::End, |told| {
        let end = told.pop().expect("an end");
        told.truncate(told.len() - 1);
        told.push(end);
        let through = told[told.len() - 2].through_sequence;
        told.last_mut().expect("an end").through_sequence = through;
    }),
    ("an end without the job", Promise::End, |told| {
        told.pop();
    }),
    ("the end of what runs", Promise::End, |told| {
        if let Some(WatchMessage {
            content: WatchContent::Snapshot(snapshot),
            ..
        }) = told.last_mut()
        {
            let mut fields = JobFields::clone(&snapshot.job);
            fields.state = JobState::Running;
            snapshot.job = Arc::new(Job::from_fields(fields));
        }
    }),
    ("an end too late", Promise::End, |told| {
        let again = told.last().expect("an end").clone();
        told.push(again);
    }),
];

/// Of a log whose front was purged.
const LIES_ABOUT_GAPS: [(&str, Promise, Lie); 4] = [
    ("a gap that is not told", Promise::Complete, |told| {
        told.remove(place_of(told, is_gap));
    }),
    ("a gap that is told too short", Promise::Complete, |told| {
        let gap = place_of(told, is_gap);
        if let WatchContent::Gap(_, last) = &mut told[gap].content {
            *last -= 1;
        }
        told[gap].through_sequence -= 1;
    }),
    ("a gap over what is kept", Promise::Gaps, |told| {
        let gap = place_of(told, is_gap);
        if let WatchContent::Gap(_, last) = &mut told[gap].content {
            *last += 1;
        }
        told[gap].through_sequence += 1;
    }),
    ("a gap over what was told", Promise::Gaps, |told| {
        let gap = told[place_of(told, is_gap)].clone();
        let behind = place_of(told, is_events) + 1;
        told.insert(behind, gap);
    }),
];

/// Of a log whose progress is merged.
const LIES_ABOUT_MERGING: [(&str, Promise, Lie); 2] = [
    ("the newest progress swallowed", Promise::Merge, |told| {
        let progress = |event: &EncodedEvent| event.tag != EventTag::Progress;
        events(told, 0).retain(progress);
    }),
    ("more than progress merged", Promise::Complete, |told| {
        let log = |event: &EncodedEvent| event.tag != EventTag::Log;
        events(told, 0).retain(log);
    }),
];

fn is_found(
    (name, promise, lie): (&str, Promise, Lie),
    told: &[WatchMessage],
    options: &WatchOptions,
    log: &Log,
) -> Promise {
    let mut told = told.to_vec();
    lie(&mut told);
    let found = check(told, options.clone(), log);
    let named = found.iter().any(|(broken, _)| *broken == promise);
    assert!(named, "{name}: {found:?}");
    promise
}

/// Goal: the checker finds each lie, and says which promise it breaks; and finds nothing where there is none.
#[tokio::test]
async fn every_lie_of_a_watch_is_found_by_name() {
    let mut found = Vec::new();
    let (plain, merged) = (WatchOptions::default(), merged());
    for (options, purge_percent, lies) in [
        (&plain, None, &LIES[..]),
        (&plain, Some(60), &LIES_ABOUT_GAPS[..]),
        (&merged, None, &LIES_ABOUT_MERGING[..]),
    ] {
        let (told, log) = honest(options, purge_percent).await;
        assert_eq!(check(told.clone(), options.clone(), &log), []);
        for lie in lies {
            found.push(is_found(*lie, &told, options, &log));
        }
    }
    // Who asked for less is told everything.
    let (told, log) = honest(&plain, None).await;
    let less = WatchOptions {
        tags: vec![EventTag::Log],
        ..WatchOptions::default()
    };
    let nothing: Lie = |_| {};
    let lie = ("a filter that nobody looks at", Promise::Filter, nothing);
    found.push(is_found(lie, &told, &less, &log));
    for promise in Promise::ALL {
        assert!(found.contains(&promise), "no lie breaks {promise:?}");
    }
}
