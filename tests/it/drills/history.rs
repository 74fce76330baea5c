//! All that is known after a drill, in the words of the invariants.
//!
//! Many spoke at once, and an answer says little about what came before another one: but each shows a job at a
//! sequence, and sequences are the order of the commits. What was seen is put into that order, and the order
//! itself is held against the clock: what was answered before something else was asked shows no more of a job.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pacenote::job::JobState;
use pacenote::job::name::JobKey;
use pacenote::pb;
use pacenote::pb::job_event::Event;
use pacenote::queue::default_tenant;
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobStore, ListQuery, LogRange, View};
use prost::Message;

use super::evidence::Tale;
use super::journal::{Line, Word};
use super::load::{Answer, Heard};
use super::worker::succeeded;
use crate::harness::job_key;
use crate::invariants::history::{Entry, Observation, Seen, Snapshot, Stored, What};
use crate::invariants::{Checker, Found, Invariant};

/// What the store has in the end.
#[derive(Default)]
pub(super) struct Kept {
    snapshot: Snapshot,
    pub(super) tales: BTreeMap<String, Tale>,
}

impl Kept {
    /// Everything in a store that no server has open.
    pub(super) async fn read(path: &Path) -> Self {
        let store = SqliteStore::open(path).await.expect("it opens");
        let mut kept = Self::default();
        let query = ListQuery::all(default_tenant());
        for job in store.list(&query).await.expect("a read").jobs {
            let found = store.job(&job.key, View::Full).await.expect("a read");
            let result = found.expect("it is there").payloads.result;
            let range = LogRange {
                after: 0,
                events: usize::MAX,
                bytes: usize::MAX,
            };
            let log = store.log(&job.key, range).await.expect("a read");
            let log = log.expect("it is there").segments;
            let log = log.iter().flat_map(|segment| segment.events_after(0));
            let log = log.map(|event| pb::JobEvent::decode(event.bytes).expect("an event"));
            let log: Vec<pb::JobEvent> = log.collect();
            let result = result.map(|result| result.as_bytes().to_vec());
            let tale = tale(&log, result.as_deref());
            kept.tales.insert(job.key.id.to_string(), tale);
            kept.snapshot.jobs.push(Stored {
                job: Arc::clone(&job),
                result,
                log: Some(log.iter().map(Entry::of).collect()),
            });
        }
        let depths = store.depths().await.expect("a read").into_iter();
        let depths = depths.map(|(lane, state, jobs)| ((lane, state), jobs));
        kept.snapshot.depths = depths.filter(|(_, jobs)| *jobs != 0).collect();
        store.close().await;
        kept
    }

    /// How many jobs ended so.
    pub(super) fn count(&self, state: JobState) -> usize {
        let jobs = self.snapshot.jobs.iter();
        jobs.filter(|stored| stored.job.state == state).count()
    }
}

fn tale(log: &[pb::JobEvent], result: Option<&[u8]>) -> Tale {
    let mut tale = Tale {
        result: result.map(|result| String::from_utf8_lossy(result).into_owned()),
        ..Tale::default()
    };
    for event in log {
        let attempt = u32::try_from(event.attempt).expect("an attempt");
        let at = event.event_time.expect("a time");
        let at = at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000;
        match &event.event {
            Some(Event::StateChange(moved)) if moved.to_state() == pb::job::State::Running => {
                tale.claims.insert(attempt, at);
            }
            Some(Event::StateChange(moved)) if moved.reason == "WORKER_LOST" => {
                tale.losses.insert(attempt, at);
            }
            Some(Event::Output(output)) => {
                let content = output
                    .chunk
                    .as_ref()
                    .and_then(|chunk| chunk.content.clone());
                if let Some(pb::payload::Content::Text(text)) = content {
                    tale.outputs.push((text, attempt));
                }
            }
            _ => {}
        }
    }
    tale
}

/// Everything that is wrong with what clients and workers were told, and with what is stored.
pub(super) fn check(heard: &Heard, lines: &[Line], kept: &Kept) -> Vec<Found> {
    let mut found = Checker::check(&observations(heard, lines, kept));
    let mut answers: BTreeMap<&JobKey, Vec<&Answer>> = BTreeMap::new();
    let submits = heard.submits.iter().map(|(_, answer)| answer);
    for answer in submits.chain(&heard.cancels).chain(&heard.looks) {
        answers.entry(&answer.seen.key).or_default().push(answer);
    }
    for answers in answers.into_values() {
        found.extend(goes_back(answers));
    }
    found
}

/// I4: what was answered before something was asked is no newer than what that shows.
fn goes_back(answers: Vec<&Answer>) -> Option<Found> {
    let pairs = answers.iter().flat_map(|one| {
        let later = answers.iter().filter(|other| one.answered < other.asked);
        later.map(move |other| (one, other))
    });
    let mut back = pairs.filter(|(one, other)| one.seen.last_sequence > other.seen.last_sequence);
    back.next().map(|(one, other)| Found {
        invariant: Invariant::Monotone,
        what: format!("{:?} after {:?}", other.seen, one.seen),
    })
}

fn observations(heard: &Heard, lines: &[Line], kept: &Kept) -> Vec<Observation> {
    // By job, and by the commit; what a worker was told before what was seen of the job after it.
    let mut in_order: Vec<(JobKey, i64, u8, Observation)> = Vec::new();
    let mut see = |seen: &Seen, observation: Observation| {
        in_order.push((seen.key.clone(), seen.last_sequence, 1, observation));
    };
    for (key, Answer { seen, .. }) in &heard.submits {
        let submitted = Observation::Submitted {
            job: seen.clone(),
            idempotency_key: Some(key.clone()),
        };
        see(seen, submitted);
    }
    for Answer { seen, .. } in &heard.cancels {
        see(seen, Observation::Cancelled(seen.clone()));
    }
    for Answer { seen, .. } in &heard.looks {
        see(seen, Observation::Answered(seen.clone()));
    }
    for (seen, events) in &heard.watches {
        let watched = Observation::Watched {
            key: seen.key.clone(),
            after: 0,
            events: events.clone(),
            ended: Some(seen.state),
        };
        see(seen, watched);
    }
    for line in lines {
        in_order.extend(told(line, kept));
    }
    in_order.sort_by_key(|(key, sequence, rank, _)| (key.clone(), *sequence, *rank));
    let mut history: Vec<Observation> = in_order.into_iter().map(|(_, _, _, seen)| seen).collect();
    history.push(Observation::Snapshot(kept.snapshot.clone()));
    history.push(Observation::Settled);
    history
}

/// What a worker was told, at the event that it made; `None` where there is none, which `evidence` finds.
fn told(line: &Line, kept: &Kept) -> Option<(JobKey, i64, u8, Observation)> {
    let key = job_key(&line.job);
    let stored = kept
        .snapshot
        .jobs
        .iter()
        .find(|stored| stored.job.key == key)?;
    let log = stored.log.as_ref()?;
    let attempt = line.attempt;
    match line.word {
        Word::Begun => {
            let is_claim = |entry: &&Entry| {
                entry.attempt == attempt && matches!(entry.what, What::Moved(_, JobState::Running))
            };
            let claim = log.iter().find(is_claim)?.sequence;
            Some((key.clone(), claim, 0, Observation::Claimed(key, attempt)))
        }
        Word::Ended if line.what == succeeded() => {
            let result = stored.result.clone().unwrap_or_default();
            let taken = Observation::ResultAccepted(key.clone(), attempt, result);
            Some((key, stored.job.last_sequence, 0, taken))
        }
        Word::Told => {
            // By its number: reports of an attempt are stored in their order.
            let number: usize = line.what.split('.').nth(1)?.parse().ok()?;
            let of_attempt = |entry: &&Entry| entry.attempt == attempt && entry.what == What::Told;
            let at = log.iter().filter(of_attempt).nth(number - 1)?.sequence;
            Some((
                key.clone(),
                at,
                0,
                Observation::ReportAccepted(key, attempt),
            ))
        }
        Word::Ended | Word::Alive | Word::Says | Word::Stale | Word::Stopped => None,
    }
}
