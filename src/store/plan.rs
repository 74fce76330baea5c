//! What a group of changes comes to: pure, and the same for every backend.
//!
//! The backend reads the rows that the group touches, [`plan`] runs the changes over them in the order
//! of arrival, numbers the events and says what has to be written, and the backend writes it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::job::name::{JobKey, Lane, Name};
use crate::job::payload::Payload;
use crate::job::segment::SegmentBuilder;
use crate::job::time::Timestamp;
use crate::job::{Applied, Change, Job, JobState, NewJob, Payloads};
use crate::store::{ClaimTerms, Claimed, Committed, Demand, Entry, Group, Published, Reply};
use crate::wire;

/// Payloads that a backend may remember of a job that is not over. Bytes. Chosen: most are smaller.
pub(super) const BESIDE_BYTES_MAX: usize = 4 * 1024;
/// Payloads of a job that is over which are passed to its watchers; larger ones they read themselves.
/// Bytes. Chosen: what a watch may hold of what it heard anyway.
const END_BYTES_MAX: usize = 64 * 1024;

/// What the backend has read for a group.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The jobs that its entries name or whose idempotency keys they carry.
    pub(super) jobs: HashMap<JobKey, Arc<Job>>,
    /// Those among them that have one of its idempotency keys.
    pub(super) keys: HashMap<(Name, String), JobKey>,
    /// What is stored beside some of them: input and checkpoint.
    pub(super) payloads: HashMap<JobKey, Arc<Payloads>>,
    /// The heads of the lanes in demand, each lane in its own order.
    pub(super) candidates: Vec<Claimed>,
}

/// What the backend has to write.
#[derive(Debug)]
pub(super) struct Plan {
    /// New rows.
    pub(super) inserts: Vec<Arc<Job>>,
    /// Changed rows, each with the version that was read.
    pub(super) updates: Vec<(Arc<Job>, i64)>,
    /// Payloads, new or in place of the ones before.
    pub(super) payloads: Vec<(JobKey, Role, Payload)>,
    /// Position of each published segment's first event, in the same order.
    pub(super) positions: Vec<i64>,
    /// The position after the last event.
    pub(super) next_position: i64,
    /// What stands beside each job that waits or runs now, where it is known and small.
    pub(super) beside: HashMap<JobKey, Arc<Payloads>>,
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
    /// With what an attempt needs, where this group claimed it.
    claimed: Option<Payloads>,
}

/// A reply that waits for the end of the group, so that one copy of the job serves everyone.
enum Pending {
    Touched { index: usize, deduplicated: bool },
    Ready(Reply),
}

/// Runs a group over what is known.
pub(super) fn plan(group: Group, known: Known, next_position: i64) -> Plan {
    let mut planner = Planner {
        jobs: known.jobs,
        keys: known.keys,
        payloads: known.payloads,
        touched: Vec::new(),
        index: HashMap::new(),
        claims: Vec::new(),
        terms: group.terms,
        now: group.now,
    };
    let replies: Vec<Pending> = group
        .entries
        .into_iter()
        .map(|entry| planner.entry(entry))
        .collect();
    planner.claim(known.candidates, &group.demand);
    planner.finish(replies, next_position)
}

struct Planner {
    jobs: HashMap<JobKey, Arc<Job>>,
    keys: HashMap<(Name, String), JobKey>,
    payloads: HashMap<JobKey, Arc<Payloads>>,
    touched: Vec<Touched>,
    index: HashMap<JobKey, usize>,
    /// Indexes of claimed jobs, in the order of their claims.
    claims: Vec<usize>,
    terms: ClaimTerms,
    now: Timestamp,
}

impl Planner {
    fn entry(&mut self, entry: Entry) -> Pending {
        match entry {
            Entry::Submit { new, hand_over } => self.submit(*new, hand_over),
            Entry::Change { key, change } => self.change(&key, change),
        }
    }

    fn submit(&mut self, new: NewJob, hand_over: bool) -> Pending {
        let key = new.spec.idempotency_key.clone();
        let key = key.map(|key| (new.key.tenant.clone(), key));
        if let Some(reply) = key.as_ref().and_then(|key| self.used_key(key, &new)) {
            return reply;
        }
        let (job, applied) = Job::submit(&new, self.now);
        let index = self.touched.len();
        if let Some(key) = key {
            self.keys.insert(key, new.key.clone());
        }
        self.index.insert(new.key, index);
        let payloads = Payloads {
            input: new.input,
            ..Payloads::default()
        };
        self.touched.push(Touched {
            job,
            before: None,
            events: SegmentBuilder::default(),
            beside: small(&payloads),
            payloads,
            claimed: None,
        });
        self.absorb(index, applied);
        if hand_over {
            let payloads = self.touched[index].payloads.clone();
            self.claim_one(index, payloads);
        }
        Pending::Touched {
            index,
            deduplicated: false,
        }
    }

    /// The reply to a submit whose key is used already.
    fn used_key(&self, key: &(Name, String), new: &NewJob) -> Option<Pending> {
        let found = self.keys.get(key)?;
        let index = self.index.get(found).copied();
        let job: &Job = match index {
            Some(index) => &self.touched[index].job,
            None => self.jobs.get(found)?,
        };
        if job.spec.fingerprint != new.spec.fingerprint {
            return Some(Pending::Ready(Reply::KeyReused(found.id)));
        }
        Some(match index {
            Some(index) => Pending::Touched {
                index,
                deduplicated: true,
            },
            None => Pending::Ready(Reply::Done {
                job: Arc::clone(self.jobs.get(found)?),
                deduplicated: true,
            }),
        })
    }

    fn change(&mut self, key: &JobKey, change: Change) -> Pending {
        let Some(index) = self.touch(key) else {
            return Pending::Ready(Reply::Missing);
        };
        let touched = &mut self.touched[index];
        if matches!(change, Change::Cancel { .. }) && !touched.job.can_be_cancelled() {
            return Pending::Touched {
                index,
                deduplicated: false,
            };
        }
        match touched.job.apply(change, self.now) {
            Ok(applied) => {
                self.absorb(index, applied);
                Pending::Touched {
                    index,
                    deduplicated: false,
                }
            }
            Err(refusal) => Pending::Ready(Reply::Refused(refusal)),
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

    /// Claims from the lanes. What this group has touched waits for the next one: its row was read
    /// before the change.
    fn claim(&mut self, candidates: Vec<Claimed>, demand: &[Demand]) {
        let mut places: HashMap<&Lane, usize> = demand
            .iter()
            .map(|demand| (&demand.lane, demand.places))
            .collect();
        for candidate in candidates {
            let lane = candidate.job.lane();
            let Some(left) = places.get_mut(&lane).filter(|left| **left > 0) else {
                continue;
            };
            if self.index.contains_key(&candidate.job.key) {
                continue;
            }
            *left -= 1;
            let job = Arc::unwrap_or_clone(candidate.job);
            let index = self.add(job, small(&candidate.payloads));
            self.claim_one(index, candidate.payloads);
        }
    }

    fn claim_one(&mut self, index: usize, payloads: Payloads) {
        let claim = Change::Claim {
            worker_id: self.terms.worker_id.clone(),
            lease_until: self.terms.lease_until,
        };
        if let Ok(applied) = self.touched[index].job.apply(claim, self.now) {
            self.absorb(index, applied);
            self.touched[index].claimed = Some(payloads);
            self.claims.push(index);
        }
    }

    fn finish(self, replies: Vec<Pending>, next_position: i64) -> Plan {
        let mut plan = Plan {
            inserts: Vec::new(),
            updates: Vec::new(),
            payloads: Vec::new(),
            positions: Vec::new(),
            next_position,
            beside: HashMap::new(),
            committed: Committed {
                replies: Vec::new(),
                claimed: Vec::new(),
                published: Vec::new(),
                depth_changes: Vec::new(),
            },
        };
        let mut depths = BTreeMap::new();
        let mut jobs = Vec::with_capacity(self.touched.len());
        let mut payloads_of_claims = HashMap::new();
        for (index, touched) in self.touched.into_iter().enumerate() {
            count(&mut depths, &touched);
            if let Some(payloads) = touched.claimed {
                payloads_of_claims.insert(index, payloads);
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
                Some(Claimed {
                    job: Arc::clone(&jobs[index]),
                    payloads: payloads_of_claims.remove(&index)?,
                })
            })
            .collect();
        plan.committed.replies = replies
            .into_iter()
            .map(|pending| match pending {
                Pending::Ready(reply) => reply,
                Pending::Touched {
                    index,
                    deduplicated,
                } => Reply::Done {
                    job: Arc::clone(&jobs[index]),
                    deduplicated,
                },
            })
            .collect();
        plan
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
            self.positions.push(self.next_position);
            self.next_position += segment.len() as i64;
            self.committed.published.push(Published {
                job: Arc::clone(job),
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
