//! One lie for each invariant: a store that breaks it, and as little else as it can. And some that break none,
//! but a promise that only the reference knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pacenote::job::name::{JobId, JobKey, Lane, Name};
use pacenote::job::segment::{Segment, SegmentBuilder};
use pacenote::job::time::Timestamp;
use pacenote::job::{Change, Job, JobFields, JobSnapshot, JobState, Outcome, Report};
use pacenote::pb;
use pacenote::store::{
    Claimed, Committed, Due, Entry, Group, ListQuery, LogPart, Reply, Setting, Timer,
};
use prost::Message;

use super::mortal::Lie;

/// A job that is another one than is stored.
fn altered(job: &Job, change: impl FnOnce(&mut JobFields)) -> Arc<Job> {
    let mut fields = JobFields::clone(job);
    change(&mut fields);
    Arc::new(Job::from_fields(fields))
}

/// Whether a job is one of those that are lied about.
fn is_chosen(id: JobId) -> bool {
    id.as_uuid().as_u128() % 3 == 2
}

/// I1: an acknowledged job is forgotten.
pub(super) struct Forgets;

impl Lie for Forgets {
    fn job(&self, found: &mut Option<JobSnapshot>) {
        found.take_if(|found| is_chosen(found.job.key.id));
    }

    fn list(&self, jobs: &mut Vec<Arc<Job>>) {
        jobs.retain(|job| !is_chosen(job.key.id));
    }

    fn log(&self, part: &mut Option<LogPart>) {
        part.take_if(|part| is_chosen(part.job.key.id));
    }
}

/// Every event of a part, with what `change` makes of it.
fn rewritten(
    part: &LogPart,
    mut change: impl FnMut(pb::JobEvent) -> Option<pb::JobEvent>,
) -> Vec<Arc<Segment>> {
    let mut segments = Vec::new();
    for segment in &part.segments {
        for event in segment.events_after(0) {
            let decoded = pb::JobEvent::decode(event.bytes).expect("an event");
            if let Some(event_now) = change(decoded) {
                let mut builder = SegmentBuilder::default();
                builder.push(event_now.sequence, event.tag, &event_now.encode_to_vec());
                segments.extend(builder.finish().into_iter().map(Arc::new));
            }
        }
    }
    segments
}

/// I2: the end of a job stands in its log twice.
pub(super) struct EndsTwice;

impl Lie for EndsTwice {
    fn log(&self, part: &mut Option<LogPart>) {
        let Some(part) = part.as_mut().filter(|part| part.job.state.is_terminal()) else {
            return;
        };
        let last = part.segments.last().map(|segment| segment.last_sequence());
        let whole = last == Some(part.job.last_sequence);
        if !whole || part.job.last_sequence < 3 {
            return;
        }
        let mut end = None;
        rewritten(part, |event| {
            end = Some(event.clone());
            None
        });
        let before_last = part.job.last_sequence - 1;
        part.segments = rewritten(part, |event| match &end {
            Some(end) if event.sequence == before_last => Some(pb::JobEvent {
                sequence: before_last,
                ..end.clone()
            }),
            _ => Some(event),
        });
    }
}

/// I3: an event is dropped from the middle of a log.
pub(super) struct DropsAnEvent;

impl Lie for DropsAnEvent {
    fn log(&self, part: &mut Option<LogPart>) {
        if let Some(part) = part {
            let last = part.job.last_sequence;
            part.segments = rewritten(part, |event| {
                (event.sequence != 2 || last == 2).then_some(event)
            });
        }
    }
}

/// I4: a job is shown as it was when it was first looked at, every other time.
#[derive(Default)]
pub(super) struct ShowsThePast(Mutex<HashMap<JobKey, (u32, JobSnapshot)>>);

impl Lie for ShowsThePast {
    fn job(&self, found: &mut Option<JobSnapshot>) {
        if let Some(found) = found {
            let mut past = self.0.lock().expect("no panic");
            let (times, first) = past
                .entry(found.job.key.clone())
                .or_insert_with(|| (0, found.clone()));
            *times += 1;
            if *times % 2 == 0 {
                *found = first.clone();
            }
        }
    }
}

/// I5: the fence falls when a lease ends.
pub(super) struct LowersTheFence;

impl Lie for LowersTheFence {
    fn job(&self, found: &mut Option<JobSnapshot>) {
        if let Some(found) = found
            && !found.job.state.is_leased()
        {
            found.job = altered(&found.job, |job| {
                job.attempt = job.attempt.saturating_sub(1)
            });
        }
    }
}

/// I6: whoever is claimed is handed out again with the next one.
#[derive(Default)]
pub(super) struct HandsOutTwice(Mutex<Option<Claimed>>);

impl Lie for HandsOutTwice {
    fn committed(&self, _: &Group, committed: &mut Committed) {
        if let Some(newest) = committed.claimed.last().cloned() {
            let before = self.0.lock().expect("no panic").replace(newest);
            committed.claimed.extend(before);
        }
    }
}

/// Replaces each reply for which `lie` has another one.
fn lie_in_replies(
    asked: &Group,
    committed: &mut Committed,
    lie: impl Fn(&Entry, &Reply) -> Option<Reply>,
) {
    for (entry, reply) in asked.entries.iter().zip(&mut committed.replies) {
        if let Some(another) = lie(entry, reply) {
            *reply = another;
        }
    }
}

/// What was last seen of each job, for answers that were never stored.
#[derive(Default)]
struct LastSeen(Mutex<HashMap<JobKey, Arc<Job>>>);

impl LastSeen {
    fn learn(&self, committed: &Committed) {
        let mut jobs = self.0.lock().expect("no panic");
        for published in &committed.published {
            jobs.insert(published.job.key.clone(), Arc::clone(&published.job));
        }
    }

    fn of(&self, key: &JobKey) -> Option<Arc<Job>> {
        self.0.lock().expect("no panic").get(key).cloned()
    }
}

/// I7: an old fence will do for a report.
#[derive(Default)]
pub(super) struct TakesOldFences(LastSeen);

impl Lie for TakesOldFences {
    fn committed(&self, asked: &Group, committed: &mut Committed) {
        self.0.learn(committed);
        lie_in_replies(asked, committed, |entry, reply| match (entry, reply) {
            (
                Entry::Change {
                    key,
                    change: Change::Report { reports, .. },
                },
                Reply::Refused(_),
            ) if !matches!(reports[..], [Report::Checkpoint(_)]) => Some(Reply::Done {
                job: self.0.of(key)?,
                deduplicated: false,
            }),
            _ => None,
        });
    }
}

/// I8: whoever succeeds again is thanked again.
#[derive(Default)]
pub(super) struct TakesTwoResults(LastSeen);

impl Lie for TakesTwoResults {
    fn committed(&self, asked: &Group, committed: &mut Committed) {
        self.0.learn(committed);
        lie_in_replies(asked, committed, |entry, reply| match (entry, reply) {
            (
                Entry::Change {
                    key,
                    change:
                        Change::Finish {
                            outcome: Outcome::Succeeded(_),
                            ..
                        },
                },
                Reply::Refused(_),
            ) => {
                let job = self.0.of(key)?;
                (job.state == JobState::Succeeded).then_some(Reply::Done {
                    job,
                    deduplicated: false,
                })
            }
            _ => None,
        });
    }
}

/// I9: idempotency keys are not looked at.
pub(super) struct ForgetsKeys;

impl Lie for ForgetsKeys {
    fn group(&self, group: &mut Group) {
        for entry in &mut group.entries {
            if let Entry::Submit { new, .. } = entry {
                Arc::make_mut(&mut new.spec).idempotency_key = None;
            }
        }
    }
}

/// I10: a job that is over waits again.
pub(super) struct Revives;

impl Lie for Revives {
    fn job(&self, found: &mut Option<JobSnapshot>) {
        if let Some(found) = found
            && found.job.state.is_terminal()
            && is_chosen(found.job.key.id)
        {
            found.job = altered(&found.job, |job| {
                job.state = JobState::Queued;
                job.last_sequence += 1;
            });
        }
    }
}

/// I11: who listens hears something else than is stored.
pub(super) struct TellsTales;

impl Lie for TellsTales {
    fn committed(&self, _: &Group, committed: &mut Committed) {
        for published in &mut committed.published {
            let mut builder = SegmentBuilder::default();
            for event in published.segment.events_after(0) {
                let mut tale = pb::JobEvent::decode(event.bytes).expect("an event");
                if tale.sequence > 1 {
                    tale.event_time = None;
                }
                builder.push(event.sequence, event.tag, &tale.encode_to_vec());
            }
            if let [tale] = &builder.finish()[..] {
                published.segment = Arc::new(tale.clone());
            }
        }
    }
}

/// I12: a cancel of what runs is acknowledged and forgotten.
#[derive(Default)]
pub(super) struct ForgetsCancels(LastSeen);

impl Lie for ForgetsCancels {
    fn group(&self, group: &mut Group) {
        for entry in &mut group.entries {
            if let Entry::Change { key, change } = entry
                && matches!(change, Change::Cancel { .. })
                && self
                    .0
                    .of(key)
                    .is_some_and(|job| job.state == JobState::Running)
            {
                // Refused, and so without a trace.
                *change = Change::Unblock;
            }
        }
    }

    fn committed(&self, asked: &Group, committed: &mut Committed) {
        self.0.learn(committed);
        lie_in_replies(asked, committed, |entry, reply| match (entry, reply) {
            (
                Entry::Change {
                    key,
                    change: Change::Cancel { .. },
                },
                Reply::Refused(_),
            ) => Some(Reply::Done {
                job: altered(&*self.0.of(key)?, |job| job.state = JobState::Cancelling),
                deduplicated: false,
            }),
            _ => None,
        });
    }
}

/// I13: a counter is one too high.
pub(super) struct Miscounts;

impl Lie for Miscounts {
    fn depths(&self, depths: &mut Vec<(Lane, JobState, i64)>) {
        let over = depths.iter_mut().find(|(_, state, _)| state.is_terminal());
        if let Some((_, _, jobs)) = over {
            *jobs += 1;
        }
    }
}

/// I15: a tenant's list is another one's.
pub(super) struct MixesTenants;

impl Lie for MixesTenants {
    fn query(&self, query: &mut ListQuery) {
        query.tenant = match query.tenant.as_str() {
            "blue" => Name::of("green"),
            _ => Name::of("blue"),
        };
    }
}

/// I16: what waits for its time waits for ever.
pub(super) struct NeverDue;

impl Lie for NeverDue {
    fn due(&self, due: &mut Due) {
        due.keys.clear();
    }
}

/// What was made of a job is told and not kept.
pub(super) struct ForgetsRetries;

impl ForgetsRetries {
    fn forget(job: &mut Arc<Job>) {
        *job = altered(job, |job| job.detail.retried_by = None);
    }
}

impl Lie for ForgetsRetries {
    fn job(&self, found: &mut Option<JobSnapshot>) {
        if let Some(found) = found {
            Self::forget(&mut found.job);
        }
    }

    fn list(&self, jobs: &mut Vec<Arc<Job>>) {
        jobs.iter_mut().for_each(Self::forget);
    }
}

/// One more job waits than may.
pub(super) struct TakesOneTooMany;

impl Lie for TakesOneTooMany {
    fn group(&self, group: &mut Group) {
        for room in group.room.values_mut() {
            room.max += 1;
        }
    }
}

/// One more job runs with a concurrency key than may.
pub(super) struct RunsOneTooMany;

impl Lie for RunsOneTooMany {
    fn group(&self, group: &mut Group) {
        let limits = Arc::make_mut(&mut group.key_limits);
        let limit = limits.entry(Name::of("default"));
        limit.and_modify(|most| *most += 1).or_insert(2);
    }
}

/// What is set holds until the process dies.
pub(super) struct ForgetsSettings;

impl Lie for ForgetsSettings {
    fn setting(&self, setting: &mut Option<Setting>) {
        *setting = None;
    }
}

/// What is over goes an hour too soon, whatever its key is promised.
pub(super) struct KeepsTooShort;

impl Lie for KeepsTooShort {
    fn due_by(&self, timer: Timer, now: &mut Timestamp) {
        if timer == Timer::Purge {
            *now = now.after(Duration::from_secs(3600));
        }
    }
}
