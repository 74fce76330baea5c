//! What must hold of every history, whatever was done to the server and whatever failed: the invariants of
//! a job service, by the numbers of part 4 of the fault list.
//!
//! A [`Checker`] is told what was answered, handed out, watched and read back, in the order in which it
//! came, and names every invariant that this breaks. It knows nothing of how the history was made, and
//! nothing of what should have happened, which is a model's business. That it finds what it is for is shown
//! by `model/mutants.rs`, with a planted bug for each.

pub(crate) mod history;
mod log;

use std::collections::BTreeMap;
use std::fmt;

use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::{Job, JobState};

use history::{Entry, Observation, Seen, Snapshot, Stored};

/// What must hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Invariant {
    /// An acknowledged submit is found until it is deleted.
    Durability = 1,
    /// One terminal event a job, and it is the last.
    OneTerminal = 2,
    /// Sequences are 1 to n, and what was logged once stays as it is.
    Gapless = 3,
    /// What is seen of a job never goes back.
    Monotone = 4,
    /// The fence never decreases, and grows at each claim.
    AttemptsAscend = 5,
    /// One live lease a job.
    OneLease = 6,
    /// What is accepted carries the fence of its moment.
    Fencing = 7,
    /// One accepted result a job, and it stays.
    AtMostOneResult = 8,
    /// One job a key, and all answers are equal.
    Idempotency = 9,
    /// A terminal state is left by deletion alone, and deletion by nothing.
    NoResurrection = 10,
    /// A watch tells what the log says, and ends well only at the end.
    WatchIsTheLog = 11,
    /// An acknowledged cancel holds.
    CancelHolds = 12,
    /// Counters equal rows.
    Conservation = 13,
    /// Nothing of another tenant is ever shown.
    TenantsApart = 15,
    /// What can go on goes on.
    Liveness = 16,
}

impl Invariant {
    pub(crate) const ALL: [Self; 15] = [
        Self::Durability,
        Self::OneTerminal,
        Self::Gapless,
        Self::Monotone,
        Self::AttemptsAscend,
        Self::OneLease,
        Self::Fencing,
        Self::AtMostOneResult,
        Self::Idempotency,
        Self::NoResurrection,
        Self::WatchIsTheLog,
        Self::CancelHolds,
        Self::Conservation,
        Self::TenantsApart,
        Self::Liveness,
    ];
}

/// An invariant that does not hold, and how it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invariant, what } = self;
        write!(f, "I{} {invariant:?}: {what}", *invariant as u8)
    }
}

/// Reads a history, one observation after another.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    jobs: BTreeMap<JobKey, Story>,
    owners: BTreeMap<JobId, Name>,
    keys: BTreeMap<(Name, String), JobKey>,
    /// As of the newest snapshot.
    unfinished: Vec<JobKey>,
    found: Vec<Found>,
}

/// What is known of a job.
#[derive(Debug, Default)]
struct Story {
    acknowledged: bool,
    deleted: bool,
    may_be_deleted: bool,
    newest: Option<Seen>,
    /// The highest attempt that was handed out.
    claimed: u32,
    /// What the first acknowledged cancel showed.
    cancel: Option<JobState>,
    result: Option<Vec<u8>>,
    /// Every event that was ever seen.
    log: BTreeMap<i64, Entry>,
}

impl Checker {
    /// Everything that is wrong with a history.
    pub(crate) fn check(history: &[Observation]) -> Vec<Found> {
        let mut checker = Self::default();
        for observation in history {
            checker.observe(observation);
        }
        checker.found
    }

    /// What was found so far.
    pub(crate) fn found(&self) -> &[Found] {
        &self.found
    }

    pub(crate) fn has_found(&self, invariant: Invariant) -> bool {
        let mut found = self.found.iter();
        found.any(|found| found.invariant == invariant)
    }

    /// The newest sequence that was seen of a job; 0 where nothing was.
    pub(crate) fn last_sequence(&self, key: &JobKey) -> i64 {
        let newest = self.jobs.get(key).and_then(|story| story.newest.as_ref());
        newest.map_or(0, |seen| seen.last_sequence)
    }

    pub(crate) fn observe(&mut self, observation: &Observation) {
        match observation {
            Observation::Submitted {
                job,
                idempotency_key,
            } => self.submitted(job, idempotency_key.as_deref()),
            Observation::Answered(seen) => self.seen(seen),
            Observation::Cancelled(seen) => {
                self.seen(seen);
                if !seen.state.is_terminal() && seen.state != JobState::Cancelling {
                    let what = format!("a cancel was answered {seen:?}");
                    self.fault(Invariant::CancelHolds, what);
                }
                let story = self.jobs.entry(seen.key.clone()).or_default();
                story.cancel.get_or_insert(seen.state);
            }
            Observation::Claimed(key, attempt) => self.claimed(key, *attempt),
            Observation::ReportAccepted(key, attempt) => self.accepted(key, *attempt),
            Observation::ResultAccepted(key, attempt, result) => {
                self.accepted(key, *attempt);
                self.result(key, result, "accepted");
            }
            Observation::Deleted(key) => self.deleted(key),
            Observation::DeleteUnknown(key) => {
                self.jobs.entry(key.clone()).or_default().may_be_deleted = true;
            }
            Observation::Shown(to, ids) => self.shown(to, ids),
            Observation::Watched {
                key,
                after,
                events,
                ended,
            } => self.watched(key, *after, events, *ended),
            Observation::Snapshot(snapshot) => self.snapshot(snapshot),
            Observation::Settled => {
                for key in std::mem::take(&mut self.unfinished) {
                    self.fault(Invariant::Liveness, format!("job {} never ends", key.id));
                }
            }
        }
    }

    fn fault(&mut self, invariant: Invariant, what: String) {
        self.found.push(Found { invariant, what });
    }

    fn submitted(&mut self, job: &Seen, idempotency_key: Option<&str>) {
        self.seen(job);
        let owner = job.key.tenant.clone();
        self.owners.insert(job.key.id, owner.clone());
        let story = self.jobs.entry(job.key.clone()).or_default();
        let again = std::mem::replace(&mut story.acknowledged, true);
        let Some(key) = idempotency_key else {
            if again {
                let what = format!("{} was answered to two submits without a key", job.key.id);
                self.fault(Invariant::Idempotency, what);
            }
            return;
        };
        let of_tenant = (owner, key.to_owned());
        let before = self.keys.insert(of_tenant, job.key.clone());
        let is_other = |before: &JobKey| {
            *before != job.key && self.jobs.get(before).is_some_and(|story| !story.deleted)
        };
        if before.as_ref().is_some_and(is_other) {
            let what = format!("key {key} was answered with {before:?} and {:?}", job.key);
            self.fault(Invariant::Idempotency, what);
        }
    }

    /// A job was shown to somebody.
    fn seen(&mut self, seen: &Seen) {
        let mut faults = Vec::new();
        let story = self.jobs.entry(seen.key.clone()).or_default();
        if story.deleted {
            faults.push((Invariant::NoResurrection, "was deleted".to_owned()));
        }
        if let Some(before) = &story.newest {
            let was = format!("was {before:?}");
            let is_same = before.state == seen.state && before.last_sequence == seen.last_sequence;
            if before.state.is_terminal() && !is_same {
                faults.push((Invariant::NoResurrection, was.clone()));
            }
            let back = before.last_sequence > seen.last_sequence
                || (before.last_sequence == seen.last_sequence && before.state != seen.state);
            if back {
                faults.push((Invariant::Monotone, was.clone()));
            }
            if before.attempt > seen.attempt {
                faults.push((Invariant::AttemptsAscend, was));
            }
        }
        if let Some(answered) = story.cancel {
            let held = match answered {
                end if end.is_terminal() => seen.state == end,
                _ => matches!(seen.state, JobState::Cancelling | JobState::Cancelled),
            };
            if !held {
                let what = format!("its cancel was answered {answered:?}");
                faults.push((Invariant::CancelHolds, what));
            }
        }
        story.newest = Some(seen.clone());
        for (invariant, what) in faults {
            self.fault(invariant, format!("{seen:?} {what}"));
        }
    }

    fn claimed(&mut self, key: &JobKey, attempt: u32) {
        let mut faults = Vec::new();
        let story = self.jobs.entry(key.clone()).or_default();
        if attempt == story.claimed {
            faults.push((Invariant::OneLease, "was handed out before".to_owned()));
        }
        if attempt <= story.claimed {
            let what = format!("comes after attempt {}", story.claimed);
            faults.push((Invariant::AttemptsAscend, what));
        }
        if story.cancel.is_some() {
            faults.push((Invariant::CancelHolds, "comes after a cancel".to_owned()));
        }
        let newest = story.newest.as_ref();
        if story.deleted || newest.is_some_and(|seen| seen.state.is_terminal()) {
            let what = "comes after the end".to_owned();
            faults.push((Invariant::NoResurrection, what));
        }
        story.claimed = story.claimed.max(attempt);
        for (invariant, what) in faults {
            let what = format!("attempt {attempt} of job {} {what}", key.id);
            self.fault(invariant, what);
        }
    }

    fn accepted(&mut self, key: &JobKey, attempt: u32) {
        let story = self.jobs.entry(key.clone()).or_default();
        let seen = story.newest.as_ref();
        let newest = story.claimed.max(seen.map_or(0, |seen| seen.attempt));
        let leased = seen.is_none_or(|seen| seen.state.is_leased() || seen.attempt < attempt);
        if attempt != newest || !leased {
            let what = format!("attempt {attempt} was accepted for {seen:?}");
            self.fault(Invariant::Fencing, what);
        }
    }

    fn result(&mut self, key: &JobKey, result: &[u8], how: &str) {
        let story = self.jobs.entry(key.clone()).or_default();
        let before = story.result.replace(result.to_owned());
        let again = before.as_ref().is_some_and(|before| {
            // Read back it is the same; accepted it is a second one.
            how == "accepted" || before != result
        });
        if again {
            let what = format!("job {}: a second result was {how}", key.id);
            self.fault(Invariant::AtMostOneResult, what);
        }
    }

    fn deleted(&mut self, key: &JobKey) {
        let story = self.jobs.entry(key.clone()).or_default();
        story.deleted = true;
        self.keys.retain(|_, made| made != key);
    }

    fn shown(&mut self, to: &Name, ids: &[JobId]) {
        for id in ids {
            let owner = self.owners.get(id).cloned();
            if owner.as_ref().is_some_and(|owner| owner != to) {
                let what = format!("job {id} of {owner:?} was shown to {to}");
                self.fault(Invariant::TenantsApart, what);
            }
        }
    }

    fn watched(&mut self, key: &JobKey, after: i64, events: &[Entry], ended: Option<JobState>) {
        let invariant = Invariant::WatchIsTheLog;
        let sequences = events.iter().map(|event| event.sequence);
        if !sequences.clone().eq((after + 1..).take(events.len())) {
            let sequences: Vec<_> = sequences.collect();
            let what = format!("job {}: {sequences:?} after {after}", key.id);
            self.fault(invariant, what);
        }
        for event in events {
            self.log_entry(key, event, invariant);
        }
        let Some(state) = ended else { return };
        let story = self.jobs.entry(key.clone()).or_default();
        let last = story.newest.as_ref().map_or(0, |seen| seen.last_sequence);
        let through = events.last().map_or(after, |event| event.sequence);
        if !state.is_terminal() || through < last {
            let what = format!("job {}: ended {state:?} at {through} of {last}", key.id);
            self.fault(invariant, what);
        }
    }

    /// Whoever shows an event shows the same one.
    fn log_entry(&mut self, key: &JobKey, entry: &Entry, invariant: Invariant) {
        let story = self.jobs.entry(key.clone()).or_default();
        let before = story.log.insert(entry.sequence, entry.clone());
        if before.as_ref().is_some_and(|before| before != entry) {
            let what = format!("job {}: {entry:?} was {before:?}", key.id);
            self.fault(invariant, what);
        }
    }

    fn snapshot(&mut self, snapshot: &Snapshot) {
        let mut counted: BTreeMap<_, i64> = BTreeMap::new();
        let mut keys: BTreeMap<(Name, String), JobKey> = BTreeMap::new();
        let mut there = std::collections::BTreeSet::new();
        self.unfinished.clear();
        for stored in &snapshot.jobs {
            let job = &*stored.job;
            there.insert(job.key.clone());
            *counted.entry((job.lane(), job.state)).or_default() += 1;
            if let Some(key) = &job.spec.idempotency_key {
                let of_tenant = (job.key.tenant.clone(), key.clone());
                if let Some(other) = keys.insert(of_tenant, job.key.clone()) {
                    let what = format!("key {key} made {other:?} and {:?}", job.key);
                    self.fault(Invariant::Idempotency, what);
                }
            }
            if !job.state.is_terminal() {
                self.unfinished.push(job.key.clone());
            }
            self.stored(job, stored);
        }
        if counted != snapshot.depths {
            let what = format!("counters {:?}, rows {counted:?}", snapshot.depths);
            self.fault(Invariant::Conservation, what);
        }
        let lost: Vec<JobKey> = self
            .jobs
            .iter()
            .filter(|(key, story)| story.acknowledged && !story.deleted && !there.contains(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            let story = self.jobs.entry(key.clone()).or_default();
            if story.may_be_deleted {
                self.deleted(&key);
                continue;
            }
            let what = format!("job {} is not stored", key.id);
            self.fault(Invariant::Durability, what);
        }
    }

    fn stored(&mut self, job: &Job, stored: &Stored) {
        self.seen(&Seen::of(job));
        if let Some(result) = &stored.result {
            self.result(&job.key, result, "read back");
        }
        let Some(log) = &stored.log else { return };
        self.found.extend(log::Reader::read(job, log));
        for entry in log {
            self.log_entry(&job.key, entry, Invariant::Gapless);
        }
    }
}
