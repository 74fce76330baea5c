//! Changes that become durable together, and what became of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::segment::Segment;
use crate::job::time::Timestamp;
use crate::job::{Change, Job, JobState, NewJob, Payloads, Refusal};

/// Changes that become durable together.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// In the order of arrival.
    pub entries: Vec<Entry>,
    /// What may be claimed once the entries are done. Of one lane, whoever comes first is served first.
    pub demand: Vec<Demand>,
    /// How many jobs of a tenant wait before the group, and how many may before its submits are refused;
    /// tenants that are not named are not bound.
    pub room: HashMap<Name, WaitingRoom>,
    /// How many jobs of a queue may run at once that share a concurrency key; queues that are not named
    /// have the default of one.
    pub key_limits: Arc<BTreeMap<Name, usize>>,
    /// Who claims, by the numbers that they have in this group, and until when the leases hold.
    pub claimants: BTreeMap<usize, ClaimTerms>,
    /// The time of every event in the group.
    pub now: Timestamp,
}

impl Group {
    /// How many jobs of each lane may be claimed, whoever claims them.
    pub(super) fn places(&self) -> Vec<(&Lane, usize)> {
        let mut places: Vec<(&Lane, usize)> = Vec::with_capacity(self.demand.len());
        let mut index: HashMap<&Lane, usize> = HashMap::with_capacity(self.demand.len());
        for demand in &self.demand {
            let at = *index.entry(&demand.lane).or_insert(places.len());
            match places.get_mut(at) {
                Some((_, of_lane)) => *of_lane += demand.places,
                None => places.push((&demand.lane, demand.places)),
            }
        }
        places
    }
}

/// One change of a group.
#[derive(Clone, PartialEq, Debug)]
pub enum Entry {
    /// A new job, unless its idempotency key is used or its unique place is taken.
    Submit {
        /// The job.
        new: Box<NewJob>,
        /// Which claimant takes it at once: one that has a free place for it, and nothing waits before it.
        hand_over: Option<usize>,
    },
    /// New jobs of one tenant, all or none of them. Those whose idempotency key is used are answered as
    /// they are.
    Batch(Vec<NewJob>),
    /// A new job that is not to be stored: is its idempotency key used, or its unique place taken?
    Check(Box<NewJob>),
    /// A new job made of one that failed, was cancelled or has expired; or the one that was made of it
    /// before.
    Retry {
        /// Which one.
        key: JobKey,
        /// The id of the new one.
        new_id: JobId,
    },
    /// Something happens to a stored job.
    Change {
        /// Which one.
        key: JobKey,
        /// What.
        change: Change,
    },
}

/// How many jobs of a tenant wait, and how many may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitingRoom {
    /// Waiting now. May be above `max`: an attempt's own retry is never refused.
    pub waiting: usize,
    /// The bound.
    pub max: usize,
}

impl WaitingRoom {
    /// Whether so many more may wait.
    pub(super) fn has(&self, jobs: usize) -> bool {
        jobs == 0 || self.waiting + jobs <= self.max
    }

    /// A job has begun, or ceased, to wait.
    pub(super) fn moved(&mut self, waited: bool, waits: bool) {
        self.waiting = (self.waiting + usize::from(waits)).saturating_sub(usize::from(waited));
    }
}

/// Free places for the jobs of one lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
    /// Which claimant.
    pub claimant: usize,
    /// Where to claim.
    pub lane: Lane,
    /// Most jobs to claim there.
    pub places: usize,
}

/// Who claims, and until when the leases hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClaimTerms {
    /// Who.
    pub worker_id: String,
    /// Now, by the steady clock.
    pub heard_at: Timestamp,
    /// Until when, by the steady clock.
    pub lease_until: Timestamp,
    /// Where it is another program: how long each renewal holds.
    pub term: Option<Duration>,
}

/// What a group did.
#[derive(Clone, PartialEq, Debug)]
pub struct Committed {
    /// For each entry, in order.
    pub replies: Vec<Reply>,
    /// What was claimed: handed over first, then from the lanes.
    pub claimed: Vec<Claimed>,
    /// New events, in the order of their positions.
    pub published: Vec<Published>,
    /// How the counters moved.
    pub depth_changes: Vec<(Lane, JobState, i64)>,
}

/// What became of an entry.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// It happened, or there was nothing to do.
    Done {
        /// The job after it.
        job: Arc<Job>,
        /// A submit found the job that its key had made.
        deduplicated: bool,
    },
    /// The job refused the change.
    Refused(Refusal),
    /// There is no such job.
    Missing,
    /// What it is about is stored, but damaged: nothing was done.
    Unreadable,
    /// A submit was refused.
    NotTaken(NotTaken),
    /// The jobs of a batch, in order, each with whether its key had made it before.
    Batch(Vec<(Arc<Job>, bool)>),
    /// A batch was refused: by item, from 0.
    BatchNotTaken(Vec<(usize, NotTaken)>),
    /// A job that is not to be stored could have been.
    Checked {
        /// Another one would have been answered in its place.
        deduplicated: bool,
    },
}

/// Why a new job was not stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotTaken {
    /// Its key belongs to another request, which made this job.
    KeyReused(JobId),
    /// This job has its unique place.
    UniqueTaken(JobId),
    /// As many jobs of its tenant wait as may.
    NoRoom {
        /// How many wait, and how many may.
        room: WaitingRoom,
        /// How many more would have waited.
        asked: usize,
    },
}

/// A job that was claimed, with what an attempt needs.
#[derive(Clone, PartialEq, Debug)]
pub struct Claimed {
    /// The job, RUNNING.
    pub job: Arc<Job>,
    /// Input and checkpoint.
    pub payloads: Payloads,
    /// Who claimed it.
    pub claimant: usize,
}

/// New events of one job, and the job after them.
#[derive(Clone, PartialEq, Debug)]
pub struct Published {
    /// The job.
    pub job: Arc<Job>,
    /// Where its first new event stands among the events of all jobs; the others follow it.
    pub position: i64,
    /// Its new events.
    pub segment: Arc<Segment>,
    /// With the last ones: the job's payloads, where the store knew them without reading.
    pub payloads: Option<Arc<Payloads>>,
}
