//! What a group of changes comes to: pure, and the same for every backend.
//!
//! The backend reads the rows that the group touches, [`plan`] runs the changes over them in the order
//! of arrival, numbers the events and says what has to be written, and the backend writes it.

mod keys;
mod submit;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::job::limits::PAGE_BYTES_MAX;
use crate::job::name::{ConcurrencyKey, JobKey, Lane, Name};
use crate::job::payload::Payload;
use crate::job::segment::SegmentBuilder;
use crate::job::time::Timestamp;
use crate::job::{Applied, CancelCause, Change, Job, JobState, Payloads, Refusal};
use crate::store::plan::keys::{KeyGate, Room};
use crate::store::{
    ClaimTerms, Claimed, Committed, Demand, Entry, Group, Published, Reply, WaitingRoom,
};
use crate::wire;

pub(super) use keys::{BlockedHeads, KeyRoom, KeysRunning, SET_ASIDE_MAX};

/// Payloads that a backend may remember of a job that is not over. Bytes. Chosen: most are smaller.
pub(super) const BESIDE_BYTES_MAX: usize = 4 * 1024;
/// Payloads of a job that is over which are passed to its watchers; larger ones they read themselves.
/// Bytes. Chosen: what a watch may hold of what it heard anyway.
const END_BYTES_MAX: usize = 64 * 1024;

/// What a job is beside its payloads, in the answer to whoever claims it. Bytes. Chosen: most are smaller.
const CLAIMED_BYTES: usize = 2 * 1024;

/// What the backend has read for a group.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The jobs that its entries name or whose idempotency keys they carry.
    pub(super) jobs: HashMap<JobKey, Arc<Job>>,
    /// Those among them that have one of its idempotency keys.
    pub(super) keys: HashMap<(Name, String), JobKey>,
    /// The jobs of each unique place that its submits ask for, the newest first: those that are not over,
    /// or, where all are, the newest one. They are among the jobs.
    pub(super) uniques: HashMap<UniquePlace, Vec<JobKey>>,
    /// The inputs of jobs that are retried. The job that each was retried by before is among the jobs.
    pub(super) inputs: HashMap<JobKey, Payload>,
    /// What is stored beside some of them: input and checkpoint.
    pub(super) payloads: HashMap<JobKey, Arc<Payloads>>,
    /// The first jobs that wait for others with the concurrency keys of the jobs that its entries may
    /// end: of each type as many as there are such jobs, beside those that it may end themselves.
    pub(super) blocked: HashMap<ConcurrencyKey, BlockedHeads>,
    /// For each entry, whether something that it is about is stored but cannot be read; empty where all can.
    pub(super) unreadable: Vec<bool>,
    /// The heads of the lanes in demand, each lane in its own order: as many as are in demand, beside
    /// those that have to wait for others.
    pub(super) candidates: Vec<Candidate>,
}

/// A job that could be claimed.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) job: Arc<Job>,
    /// What an attempt needs; `None` where it was only read to be set aside.
    pub(super) payloads: Option<Payloads>,
}

impl Candidate {
    /// About how large it is in the answer to whoever claims it.
    fn encoded_len(&self) -> usize {
        let payloads = self.payloads.as_ref().map_or(0, Payloads::encoded_len);
        payloads + CLAIMED_BYTES
    }
}

/// Tenant, type and unique key.
pub(super) type UniquePlace = (Name, Name, String);

/// What the backend has to write.
#[derive(Debug)]
pub(super) struct Plan {
    /// New rows.
    pub(super) inserts: Vec<Arc<Job>>,
    /// Changed rows, each with the version that was read.
    pub(super) updates: Vec<(Arc<Job>, i64)>,
    /// Payloads, new or in place of the ones before.
    pub(super) payloads: Vec<(JobKey, Role, Payload)>,
    /// The position after the last event.
    pub(super) next_position: i64,
    /// What stands beside each job that waits or runs now, where it is known and small.
    pub(super) beside: HashMap<JobKey, Arc<Payloads>>,
    /// How many more or fewer jobs run with a concurrency key.
    pub(super) key_moves: Vec<(ConcurrencyKey, i64)>,
    /// What to answer.
    pub(super) committed: Committed,
}

/// What a payload is to its job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Input,
    Result,
    Checkpoint,
}

impl Role {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Result => "result",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// A job that the group has changed.
struct Touched {
    job: Job,
    /// State and version when it was read; `None` for a new one.
    before: Option<(JobState, i64)>,
    events: SegmentBuilder,
    /// New in this group.
    payloads: Payloads,
    /// All that stands beside it now, where that is known and small.
    beside: Option<Arc<Payloads>>,
    /// By whom this group claimed it, where it did, and what the attempt needs.
    claimed: Option<(usize, Payloads)>,
}

/// A reply that waits for the end of the group, so that one copy of the job serves everyone.
enum Pending {
    Touched {
        index: usize,
        deduplicated: bool,
    },
    Ready(Reply),
    /// The jobs of a batch: never another batch.
    Batch(Vec<Pending>),
}

/// Runs a group over what is known. `running` counts as of the last commit.
pub(super) fn plan(group: Group, known: Known, next_position: i64, running: &KeysRunning) -> Plan {
    let mut planner = Planner {
        jobs: known.jobs,
        keys: known.keys,
        uniques: known.uniques,
        inputs: known.inputs,
        payloads: known.payloads,
        touched: Vec::new(),
        index: HashMap::new(),
        claims: Vec::new(),
        claimants: group.claimants,
        room: group.room,
        gate: KeyGate::new(running, group.key_limits, known.blocked),
        contested: known
            .candidates
            .iter()
            .filter_map(|candidate| candidate.job.concurrency_key())
            .collect(),
        now: group.now,
    };
    let entries = group.entries.into_iter().enumerate();
    let replies: Vec<Pending> = entries
        .map(|(index, entry)| match known.unreadable.get(index) {
            Some(true) => Pending::Ready(Reply::Unreadable),
            Some(false) | None => planner.entry(entry),
        })
        .collect();
    planner.release();
    planner.claim(known.candidates, &group.demand);
    planner.finish(replies, next_position)
}

struct Planner<'a> {
    jobs: HashMap<JobKey, Arc<Job>>,
    keys: HashMap<(Name, String), JobKey>,
    uniques: HashMap<UniquePlace, Vec<JobKey>>,
    inputs: HashMap<JobKey, Payload>,
    payloads: HashMap<JobKey, Arc<Payloads>>,
    touched: Vec<Touched>,
    index: HashMap<JobKey, usize>,
    /// Indexes of claimed jobs, in the order of their claims.
    claims: Vec<usize>,
    claimants: BTreeMap<usize, ClaimTerms>,
    room: HashMap<Name, WaitingRoom>,
    gate: KeyGate<'a>,
    /// Concurrency keys of jobs that wait and could be claimed now.
    contested: HashSet<ConcurrencyKey>,
    now: Timestamp,
}

impl Planner<'_> {
    fn entry(&mut self, entry: Entry) -> Pending {
        match entry {
            Entry::Submit { new, hand_over } => self.submit(*new, hand_over),
            Entry::Batch(jobs) => self.batch(jobs),
            Entry::Check(new) => self.check(&new),
            Entry::Retry { key, new_id } => self.retry(&key, new_id),
            Entry::Change { key, change } => self.change(&key, change),
        }
    }

    fn change(&mut self, key: &JobKey, change: Change) -> Pending {
        let Some(index) = self.touch(key) else {
            return Pending::Ready(Reply::Missing);
        };
        let job = &self.touched[index].job;
        // Who ends what waits in a queue has to know what it has ended.
        if let Change::Cancel { cause, .. } = &change
            && *cause != CancelCause::QueuePurged
            && !job.can_be_cancelled()
        {
            return Pending::Touched {
                index,
                deduplicated: false,
            };
        }
        match self.apply(index, change) {
            Ok(()) => Pending::Touched {
                index,
                deduplicated: false,
            },
            Err(refusal) => Pending::Ready(Reply::Refused(refusal)),
        }
    }

    fn apply(&mut self, index: usize, change: Change) -> Result<(), Refusal> {
        let job = &mut self.touched[index].job;
        let before = job.state;
        let applied = job.apply(change, self.now)?;
        self.gate.moved(before, job);
        let (after, tenant) = (job.state, &job.key.tenant);
        if let Some(room) = self.room.get_mut(tenant) {
            room.moved(before.is_waiting(), after.is_waiting());
        }
        self.absorb(index, applied);
        Ok(())
    }

    /// Lets jobs go on that waited for others with their concurrency key, for each that made room.
    fn release(&mut self) {
        while let Some(lines) = self.gate.next_released() {
            for (key, job_type) in lines {
                while let Some(head) = self.gate.next_blocked(&key, &job_type) {
                    let index = match self.index.get(&head.key) {
                        Some(index) => *index,
                        None => self.add(Arc::unwrap_or_clone(head), None),
                    };
                    // One that was cancelled in this very group refuses: the next one, then.
                    if self.apply(index, Change::Unblock).is_ok() {
                        break;
                    }
                }
            }
        }
    }

    /// A job as it is at this point of the group.
    fn current(&self, key: &JobKey) -> Option<&Job> {
        match self.index.get(key) {
            Some(index) => Some(&self.touched[*index].job),
            None => self.jobs.get(key).map(|job| &**job),
        }
    }

    /// The place of a job among the touched ones, or `None` where there is no such job.
    fn touch(&mut self, key: &JobKey) -> Option<usize> {
        if let Some(index) = self.index.get(key) {
            return Some(*index);
        }
        let job = Job::clone(self.jobs.get(key)?);
        let beside = self.payloads.remove(key);
        Some(self.add(job, beside))
    }

    fn add(&mut self, job: Job, beside: Option<Arc<Payloads>>) -> usize {
        let index = self.touched.len();
        self.index.insert(job.key.clone(), index);
        self.touched.push(Touched {
            before: Some((job.state, job.version)),
            job,
            events: SegmentBuilder::default(),
            payloads: Payloads::default(),
            beside,
            claimed: None,
        });
        index
    }

    fn absorb(&mut self, index: usize, applied: Applied) {
        let touched = &mut self.touched[index];
        wire::encode_events(&mut touched.events, touched.job.key.id, applied.events);
        let new = Payloads {
            input: None,
            result: applied.result,
            checkpoint: applied.checkpoint,
        };
        if new.bytes() > END_BYTES_MAX {
            touched.beside = None;
        }
        if let Some(beside) = &mut touched.beside
            && (new.result.is_some() || new.checkpoint.is_some())
        {
            Arc::make_mut(beside).put(new.clone());
        }
        touched.payloads.put(new);
    }

    /// Claims from the lanes, and sets aside on the way what has to wait for others with its concurrency
    /// key. What this group has touched waits for the next one: its row was read before the change.
    fn claim(&mut self, mut candidates: Vec<Candidate>, demand: &[Demand]) {
        let has_key = |candidate: &Candidate| candidate.job.spec.concurrency_key.is_some();
        if candidates.iter().any(has_key) {
            // Jobs of several lanes may share a key: whoever is first of all of them has it.
            let rank = |job: &Job| (Reverse(job.spec.priority), job.run_at, job.key.id);
            candidates.sort_by_key(|candidate| rank(&candidate.job));
        }
        let mut places: HashMap<&Lane, VecDeque<(usize, usize)>> = HashMap::new();
        for Demand {
            claimant,
            lane,
            places: wanted,
        } in demand
        {
            let of_lane = places.entry(lane).or_default();
            of_lane.extend((*wanted > 0).then_some((*claimant, *wanted)));
        }
        // What each was given of the lanes. Bytes.
        let mut given: HashMap<usize, usize> = HashMap::new();
        let mut left_for_next = HashSet::new();
        for candidate in candidates {
            let lane = candidate.job.lane();
            let Some(of_lane) = places.get_mut(&lane) else {
                continue;
            };
            // What does not go into the answer of one goes to the next.
            let mut bytes = 0;
            while let Some((claimant, _)) = of_lane.front()
                && self.is_remote(*claimant)
            {
                // Counted once, and not for the pool, which takes whatever it is: JSON has to be read for it.
                if bytes == 0 {
                    bytes = candidate.encoded_len();
                }
                // The first job always goes.
                match given.get(claimant) {
                    Some(given) if given + bytes > PAGE_BYTES_MAX => of_lane.pop_front(),
                    Some(_) | None => break,
                };
            }
            let Some((claimant, left)) = of_lane.front_mut() else {
                continue;
            };
            if self.index.contains_key(&candidate.job.key) {
                continue;
            }
            let Candidate { job, payloads } = candidate;
            if job.is_overdue(self.now) {
                let index = self.add(Arc::unwrap_or_clone(job), None);
                // It waits, and its time is over: what is not refused is done.
                let _ = self.apply(index, Change::Expire);
                continue;
            }
            let key = job.concurrency_key();
            if key.as_ref().is_some_and(|key| left_for_next.contains(key)) {
                continue;
            }
            match (self.gate.room(key.as_ref()), payloads) {
                (Room::Free, Some(payloads)) => {
                    let index = self.add(Arc::unwrap_or_clone(job), small(&payloads));
                    if self.claim_one(index, *claimant, payloads) {
                        *given.entry(*claimant).or_default() += bytes;
                        *left -= 1;
                        if *left == 0 {
                            of_lane.pop_front();
                        }
                    }
                }
                // The next group sees who comes first, and reads what it needs: nobody overtakes it here.
                (Room::Promised, _) => {}
                (Room::Free, None) => left_for_next.extend(key),
                (Room::None, _) => {
                    let index = self.add(Arc::unwrap_or_clone(job), None);
                    // It waits for its turn: what is not refused is done.
                    let _ = self.apply(index, Change::Hold);
                }
            }
        }
    }

    /// Whether a claimant is another program, whose answer has a bound.
    fn is_remote(&self, claimant: usize) -> bool {
        let terms = self.claimants.get(&claimant);
        terms.is_some_and(|terms| terms.term.is_some())
    }

    /// Claims a job. Answers whether it did.
    fn claim_one(&mut self, index: usize, claimant: usize, payloads: Payloads) -> bool {
        let Some(terms) = self.claimants.get(&claimant).cloned() else {
            return false;
        };
        let claim = Change::Claim {
            worker_id: terms.worker_id,
            heard_at: terms.heard_at,
            lease_until: terms.lease_until,
            term: terms.term,
        };
        let claimed = self.apply(index, claim).is_ok();
        if claimed {
            self.touched[index].claimed = Some((claimant, payloads));
            self.claims.push(index);
        }
        claimed
    }

    fn finish(self, replies: Vec<Pending>, next_position: i64) -> Plan {
        let mut plan = Plan {
            inserts: Vec::new(),
            updates: Vec::new(),
            payloads: Vec::new(),
            next_position,
            beside: HashMap::new(),
            key_moves: self.gate.into_moves(),
            committed: Committed {
                replies: Vec::new(),
                claimed: Vec::new(),
                published: Vec::new(),
                depth_changes: Vec::new(),
            },
        };
        let mut depths = BTreeMap::new();
        let mut jobs = Vec::with_capacity(self.touched.len());
        let mut claims = HashMap::new();
        for (index, touched) in self.touched.into_iter().enumerate() {
            count(&mut depths, &touched);
            if let Some(claimed) = touched.claimed {
                claims.insert(index, claimed);
            }
            let job = Arc::new(touched.job);
            plan.write(&job, touched.before, touched.payloads, touched.events);
            plan.keep(&job, touched.beside);
            jobs.push(job);
        }
        plan.committed.depth_changes = depths
            .into_iter()
            .filter(|(_, moved)| *moved != 0)
            .map(|((lane, state), moved)| (lane, state, moved))
            .collect();
        plan.committed.claimed = self
            .claims
            .into_iter()
            .filter_map(|index| {
                let (claimant, payloads) = claims.remove(&index)?;
                Some(Claimed {
                    job: Arc::clone(&jobs[index]),
                    payloads,
                    claimant,
                })
            })
            .collect();
        let replies = replies.into_iter();
        plan.committed.replies = replies.map(|pending| pending.reply(&jobs)).collect();
        plan
    }
}

impl Pending {
    /// The reply, once every job of the group is as it is after it.
    fn reply(self, jobs: &[Arc<Job>]) -> Reply {
        match self {
            Self::Ready(reply) => reply,
            Self::Touched {
                index,
                deduplicated,
            } => Reply::Done {
                job: Arc::clone(&jobs[index]),
                deduplicated,
            },
            Self::Batch(items) => {
                let items = items.into_iter().filter_map(|item| match item.reply(jobs) {
                    Reply::Done { job, deduplicated } => Some((job, deduplicated)),
                    _ => None,
                });
                Reply::Batch(items.collect())
            }
        }
    }
}

impl Plan {
    fn write(
        &mut self,
        job: &Arc<Job>,
        before: Option<(JobState, i64)>,
        payloads: Payloads,
        events: SegmentBuilder,
    ) {
        match before {
            None => self.inserts.push(Arc::clone(job)),
            Some((_, version)) if version != job.version => {
                self.updates.push((Arc::clone(job), version));
            }
            Some(_) => {}
        }
        let roles = [
            (Role::Input, payloads.input),
            (Role::Result, payloads.result),
            (Role::Checkpoint, payloads.checkpoint),
        ];
        for (role, payload) in roles {
            if let Some(payload) = payload {
                self.payloads.push((job.key.clone(), role, payload));
            }
        }
        for segment in events.finish() {
            let position = self.next_position;
            self.next_position += segment.len() as i64;
            self.committed.published.push(Published {
                job: Arc::clone(job),
                position,
                segment: Arc::new(segment),
                payloads: None,
            });
        }
    }

    /// Keeps what stands beside a job that has just been written: for its next change, or for its
    /// watchers once it is over.
    fn keep(&mut self, job: &Job, beside: Option<Arc<Payloads>>) {
        let Some(beside) = beside else { return };
        if !job.state.is_terminal() {
            if beside.bytes() <= BESIDE_BYTES_MAX {
                self.beside.insert(job.key.clone(), beside);
            }
        } else if let Some(last) = self.committed.published.last_mut()
            && last.job.key == job.key
        {
            last.payloads = Some(beside);
        }
    }
}

/// A copy of payloads that are small, with nothing of the request that they came in.
fn small(payloads: &Payloads) -> Option<Arc<Payloads>> {
    (payloads.bytes() <= BESIDE_BYTES_MAX).then(|| Arc::new(payloads.detached()))
}

fn count(depths: &mut BTreeMap<(Lane, JobState), i64>, touched: &Touched) {
    let lane = touched.job.lane();
    if let Some((before, _)) = touched.before {
        *depths.entry((lane.clone(), before)).or_default() -= 1;
    }
    *depths.entry((lane, touched.job.state)).or_default() += 1;
}
