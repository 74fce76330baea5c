//! Planted bugs in histories: what an honest server showed, with one thing changed in it that none shows.

use std::sync::Arc;

use pacenote::job::name::{JobKey, Name};
use pacenote::job::{Job, JobFields, JobState};
use pacenote::store::memory::Memory;

use super::mortal::Honest;
use super::steps::{Call, Dies, End, Pick, Step, Submit, Telling, Type};
use super::world::World;
use crate::invariants::history::{Entry, Observation, Seen, Snapshot, Stored, What};
use crate::invariants::{Checker, Invariant};

fn submit(tenant: u8, idempotency_key: Option<u8>) -> Step {
    Step::Call(Call::Submit(Submit {
        tenant,
        job_type: Type::Work,
        priority: 0,
        idempotency_key,
        input: 0,
        with_place: false,
    }))
}

/// A run in which a job succeeds in its second attempt, one is cancelled while it runs and one is deleted.
async fn good() -> Vec<Observation> {
    let mut world = World::new(Memory::new(), Arc::new(Honest)).await;
    let newest = Pick::newest();
    let steps = [
        submit(0, Some(1)),
        submit(0, Some(1)),
        Step::Claim(Type::Work),
        Step::Call(Call::Report(newest, Telling::Output)),
        Step::Watch(newest, false),
        Step::Call(Call::Finish(newest, End::Fails(128))),
        Step::Pass(3_600_000),
        Step::Claim(Type::Work),
        Step::Call(Call::Report(newest, Telling::Log)),
        Step::Call(Call::Finish(newest, End::Succeeds)),
        Step::Watch(newest, false),
        submit(1, None),
        Step::Claim(Type::Work),
        Step::Call(Call::Cancel(newest)),
        Step::Call(Call::Finish(newest, End::IsCancelled)),
        submit(1, None),
        Step::Call(Call::Cancel(newest)),
        Step::Call(Call::Delete(newest)),
        Step::Crash(Some((Call::Delete(newest), Dies::BeforeTheCommit))),
    ];
    for step in steps {
        world.take(step).await;
    }
    world.settle().await;
    assert_eq!(world.faults(), Vec::<String>::new());
    world.history().to_vec()
}

/// The newest snapshot.
fn snapshot(history: &mut [Observation]) -> &mut Snapshot {
    let mut newest = history.iter_mut().rev();
    let snapshot = newest.find_map(|observation| match observation {
        Observation::Snapshot(snapshot) => Some(snapshot),
        _ => None,
    });
    snapshot.expect("a snapshot")
}

/// The job in the newest snapshot that ended so.
fn stored(history: &mut [Observation], state: JobState) -> &mut Stored {
    let mut jobs = snapshot(history).jobs.iter_mut();
    jobs.find(|stored| stored.job.state == state)
        .expect("one that ended so")
}

fn log(history: &mut [Observation], state: JobState) -> &mut Vec<Entry> {
    let stored = stored(history, state);
    stored.log.as_mut().expect("the last look reads everything")
}

fn alter(stored: &mut Stored, change: impl FnOnce(&mut JobFields)) {
    let mut fields = JobFields::clone(&stored.job);
    change(&mut fields);
    stored.job = Arc::new(Job::from_fields(fields));
}

fn key(history: &mut [Observation], state: JobState) -> JobKey {
    stored(history, state).job.key.clone()
}

fn seen(history: &mut [Observation], state: JobState) -> Seen {
    Seen::of(&stored(history, state).job)
}

/// The events of the last watch that ended well and told some.
fn watch(history: &mut [Observation]) -> (&mut Vec<Entry>, &mut Option<JobState>) {
    let mut newest = history.iter_mut().rev();
    let watch = newest.find_map(|observation| match observation {
        Observation::Watched { events, ended, .. } if ended.is_some() && events.len() > 2 => {
            Some((events, ended))
        }
        _ => None,
    });
    watch.expect("a watch")
}

fn deleted(history: &[Observation]) -> JobKey {
    let mut all = history.iter();
    let deleted = all.find_map(|observation| match observation {
        Observation::Deleted(key) => Some(key.clone()),
        _ => None,
    });
    deleted.expect("a deleted job")
}

use JobState::{Cancelled, Failed, Queued, Running, Succeeded};

type Bug = fn(&mut Vec<Observation>);

const BUGS: [(&str, Invariant, Bug); 32] = [
    ("a job is not stored", Invariant::Durability, |h| {
        snapshot(h).jobs.remove(0);
    }),
    ("an event after the end", Invariant::OneTerminal, |h| {
        let log = log(h, Succeeded);
        let mut more = log[2].clone();
        more.sequence = log.len() as i64 + 1;
        log.push(more);
    }),
    ("two ends", Invariant::OneTerminal, |h| {
        log(h, Succeeded)[1].what = What::Moved(Some(Queued), Failed);
    }),
    ("no end", Invariant::OneTerminal, |h| {
        log(h, Succeeded).last_mut().expect("an end").what = What::Other;
    }),
    ("a hole", Invariant::Gapless, |h| {
        log(h, Succeeded).remove(3);
    }),
    ("an event twice", Invariant::Gapless, |h| {
        let log = log(h, Succeeded);
        let again = log[3].clone();
        log.insert(3, again);
    }),
    ("new numbers", Invariant::Gapless, |h| {
        for entry in log(h, Succeeded) {
            entry.sequence += 1;
        }
    }),
    ("other bytes", Invariant::Gapless, |h| {
        log(h, Succeeded)[2].print += 1;
    }),
    (
        "a change from a state that it was not in",
        Invariant::Gapless,
        |h| {
            log(h, Succeeded)[1].what = What::Moved(Some(JobState::Blocked), Running);
        },
    ),
    ("fewer events than before", Invariant::Monotone, |h| {
        let mut before = seen(h, Succeeded);
        before.last_sequence -= 1;
        h.push(Observation::Answered(before));
    }),
    ("a lower fence", Invariant::AttemptsAscend, |h| {
        let mut before = seen(h, Succeeded);
        before.attempt -= 1;
        h.push(Observation::Answered(before));
    }),
    (
        "the fence of before at a claim",
        Invariant::AttemptsAscend,
        |h| {
            for entry in log(h, Succeeded) {
                entry.attempt = entry.attempt.min(1);
            }
        },
    ),
    ("an attempt handed out twice", Invariant::OneLease, |h| {
        let seen = seen(h, Succeeded);
        h.push(Observation::Claimed(seen.key, seen.attempt));
    }),
    ("a claim of what runs", Invariant::OneLease, |h| {
        let log = log(h, Succeeded);
        log[2].what = What::Moved(Some(Running), Running);
    }),
    ("a lease of what is over", Invariant::OneLease, |h| {
        let ended_at = stored(h, Succeeded).job.ended_at;
        alter(stored(h, Succeeded), |job| job.lease_expires_at = ended_at);
    }),
    ("output of an attempt before", Invariant::Fencing, |h| {
        let log = log(h, Succeeded);
        let second = log.iter_mut().rfind(|entry| entry.what == What::Told);
        second.expect("a line").attempt -= 1;
    }),
    ("output of nobody", Invariant::Fencing, |h| {
        log(h, Cancelled)[0].what = What::Told;
    }),
    ("a report of an old attempt", Invariant::Fencing, |h| {
        let key = key(h, Succeeded);
        h.push(Observation::ReportAccepted(key, 1));
    }),
    ("a report after the end", Invariant::Fencing, |h| {
        let seen = seen(h, Succeeded);
        h.push(Observation::ReportAccepted(seen.key, seen.attempt));
    }),
    ("a second result", Invariant::AtMostOneResult, |h| {
        let seen = seen(h, Succeeded);
        let again = Observation::ResultAccepted(seen.key, seen.attempt, vec![1]);
        h.push(again);
    }),
    (
        "another result than was accepted",
        Invariant::AtMostOneResult,
        |h| {
            stored(h, Succeeded).result = Some(vec![1]);
        },
    ),
    ("a key that made two jobs", Invariant::Idempotency, |h| {
        let twin = Observation::Submitted {
            job: Seen {
                key: JobKey {
                    tenant: Name::of("blue"),
                    ..key(h, Cancelled)
                },
                ..seen(h, Cancelled)
            },
            idempotency_key: Some("key 1".to_owned()),
        };
        h.push(twin);
    }),
    (
        "a job answered to two requests",
        Invariant::Idempotency,
        |h| {
            let again = Observation::Submitted {
                job: seen(h, Cancelled),
                idempotency_key: None,
            };
            h.push(again);
        },
    ),
    ("a claim after the end", Invariant::NoResurrection, |h| {
        let seen = seen(h, Succeeded);
        h.push(Observation::Claimed(seen.key, seen.attempt + 1));
    }),
    (
        "a deleted job that is back",
        Invariant::NoResurrection,
        |h| {
            let back = Seen {
                key: deleted(h),
                ..seen(h, Cancelled)
            };
            h.push(Observation::Answered(back));
        },
    ),
    ("a hole in a watch", Invariant::WatchIsTheLog, |h| {
        watch(h).0.remove(1);
    }),
    (
        "a watch that tells something else",
        Invariant::WatchIsTheLog,
        |h| {
            watch(h).0[1].print += 1;
        },
    ),
    (
        "a watch that ends too soon",
        Invariant::WatchIsTheLog,
        |h| {
            watch(h).0.pop();
        },
    ),
    (
        "a watch that ends well with what runs",
        Invariant::WatchIsTheLog,
        |h| {
            *watch(h).1 = Some(Running);
        },
    ),
    ("a result after a cancel", Invariant::CancelHolds, |h| {
        let log = log(h, Cancelled);
        let before = log.len() - 1;
        log[before].what = What::Moved(Some(JobState::Cancelling), Succeeded);
    }),
    ("a row that is not counted", Invariant::Conservation, |h| {
        snapshot(h).depths.pop_first();
    }),
    ("an id of another tenant", Invariant::TenantsApart, |h| {
        let id = key(h, Succeeded).id;
        h.push(Observation::Shown(Name::of("green"), vec![id]));
    }),
];

#[tokio::test]
async fn every_bug_in_a_history_is_found_by_name() {
    let good = good().await;
    assert_eq!(Checker::check(&good), []);
    for (name, invariant, bug) in BUGS {
        let mut history = good.clone();
        bug(&mut history);
        let found = Checker::check(&history);
        let named = found.iter().any(|found| found.invariant == invariant);
        assert!(named, "{name}: {found:#?}");
    }
}

/// The end of a history is its liveness.
#[tokio::test]
async fn a_job_that_never_ends_is_found() {
    let mut world = World::new(Memory::new(), Arc::new(Honest)).await;
    world.take(submit(0, None)).await;
    let mut history = world.history().to_vec();
    assert_eq!(Checker::check(&history), []);
    history.push(Observation::Settled);
    let found = Checker::check(&history);
    assert_eq!(found[0].invariant, Invariant::Liveness);
}
