//! What a store can be asked, and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::job::name::{BatchId, JobId, JobKey, Name};
use crate::job::segment::Segment;
use crate::job::time::Timestamp;
use crate::job::{Job, JobState};

/// How much of a job to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// Without payloads.
    Basic,
    /// With input, result and checkpoint.
    Full,
}

/// Which queues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueueRange {
    /// So many that have jobs, behind this one or from the first.
    Behind(Option<Name>, usize),
    /// This one.
    One(Name),
}

/// Which jobs of a tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListQuery {
    /// Whose.
    pub tenant: Name,
    /// Empty: all.
    pub states: Vec<JobState>,
    /// Empty: all.
    pub types: Vec<Name>,
    /// Empty: all.
    pub queues: Vec<Name>,
    /// A job has all of them, with these values.
    pub labels: BTreeMap<String, String>,
    /// The batch that a job came in.
    pub batch_id: Option<BatchId>,
    /// The job made with this key.
    pub idempotency_key: Option<String>,
    /// Of the job's error. Empty: all.
    pub reasons: Vec<String>,
    /// Only those whose attempt is silent for longer than its stall time.
    pub stalled_only: bool,
    /// Created at or after.
    pub created_after: Option<Timestamp>,
    /// Created before.
    pub created_before: Option<Timestamp>,
    /// Ended at or after.
    pub ended_after: Option<Timestamp>,
    /// Ended before.
    pub ended_before: Option<Timestamp>,
    /// Only jobs older than this one: where the page before ended.
    pub before_id: Option<JobId>,
    /// How many to find, at most.
    pub limit: usize,
    /// How many to look at, at most, whether they are found or not.
    pub rows: usize,
}

impl ListQuery {
    /// Every job of a tenant.
    pub fn all(tenant: Name) -> Self {
        Self {
            tenant,
            states: Vec::new(),
            types: Vec::new(),
            queues: Vec::new(),
            labels: BTreeMap::new(),
            batch_id: None,
            idempotency_key: None,
            reasons: Vec::new(),
            stalled_only: false,
            created_after: None,
            created_before: None,
            ended_after: None,
            ended_before: None,
            before_id: None,
            limit: usize::MAX,
            rows: usize::MAX,
        }
    }

    /// Whether a job of the tenant is one of those asked for.
    pub fn admits(&self, job: &Job) -> bool {
        let has_label =
            |(name, value): (&String, &String)| job.spec.labels.get(name) == Some(value);
        let has_reason = || {
            let error = job.detail.error.as_ref();
            error.is_some_and(|error| self.reasons.contains(&error.reason))
        };
        let ended = |holds: &dyn Fn(Timestamp) -> bool| job.ended_at.is_some_and(holds);
        self.labels.iter().all(has_label)
            && self.batch_id.is_none_or(|id| job.spec.batch_id == Some(id))
            && (self.reasons.is_empty() || has_reason())
            && (!self.stalled_only || job.stalled_since.is_some())
            && self
                .ended_after
                .is_none_or(|after| ended(&|at| at >= after))
            && self
                .ended_before
                .is_none_or(|before| ended(&|at| at < before))
            && self.admits_plainly(job)
    }

    /// What needs no more than a look at a column.
    pub(super) fn admits_plainly(&self, job: &Job) -> bool {
        let key = &self.idempotency_key;
        (key.is_none() || job.spec.idempotency_key == *key)
            && (self.states.is_empty() || self.states.contains(&job.state))
            && (self.types.is_empty() || self.types.contains(&job.spec.job_type))
            && (self.queues.is_empty() || self.queues.contains(&job.spec.queue))
            && self
                .created_after
                .is_none_or(|after| job.created_at >= after)
            && self
                .created_before
                .is_none_or(|before| job.created_at < before)
            && self.before_id.is_none_or(|id| job.key.id < id)
    }
}

/// Part of a list.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    /// Newest first.
    pub jobs: Vec<Arc<Job>>,
    /// Where to go on: every job down to this one was looked at. `None`: there are no more.
    pub through: Option<JobId>,
}

/// Which part of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRange {
    /// Events with a higher sequence.
    pub after: i64,
    /// About how many events; at least one segment is read.
    pub events: usize,
    /// About how many bytes.
    pub bytes: usize,
}

/// Part of a job's log.
#[derive(Clone, PartialEq, Debug)]
pub struct LogPart {
    /// The job when it was read.
    pub job: Arc<Job>,
    /// Ascending, without holes. The first may begin before what was asked for.
    pub segments: Vec<Arc<Segment>>,
}

/// Which part of a tenant's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TenantRange {
    /// Whose.
    pub tenant: Name,
    /// Events at a higher position.
    pub after: i64,
    /// About how many events of the tenant; at least one segment is read.
    pub events: usize,
    /// About how many bytes of the tenant.
    pub bytes: usize,
    /// How many segments to look at, whosever they are. At least 1.
    pub segments: usize,
}

/// Part of a tenant's log.
#[derive(Clone, PartialEq, Debug)]
pub struct TenantLog {
    /// By position, ascending. The first may begin before what was asked for.
    pub segments: Vec<PlacedSegment>,
    /// Every event of the tenant up to this position, and after what was asked for, is in `segments`. Where
    /// there is nothing more, at least the position of the newest event that was stored then.
    pub through: i64,
    /// There was more when this was read.
    pub more: bool,
    /// The highest position at which an event of the tenant was purged; 0 where none ever was.
    pub purged_through: i64,
    /// How often events of the tenant were purged: rises with every purge, also with one further back.
    pub purges: i64,
}

/// A segment and where it stands among all.
#[derive(Clone, PartialEq, Debug)]
pub struct PlacedSegment {
    /// Position of its first event; the others follow it.
    pub position: i64,
    /// Its job as it was when the segment was read: maybe after later events.
    pub job: Arc<Job>,
    /// The events.
    pub segment: Arc<Segment>,
}

/// Jobs of a tenant that are looked at together. Nothing that it asks for ever changes in a job, so that
/// it admits a job for ever or never.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobFilter {
    /// Whose.
    pub tenant: Name,
    /// Each of them, with the same value. Empty: all.
    pub labels: BTreeMap<String, String>,
    /// One of them. Empty: all.
    pub queues: BTreeSet<Name>,
    /// One of them. Empty: all.
    pub types: BTreeSet<Name>,
    /// Those of one batch.
    pub batch_id: Option<BatchId>,
    /// One of them. Empty: all.
    pub ids: BTreeSet<JobId>,
}

impl JobFilter {
    /// Every job of a tenant.
    pub fn all_of(tenant: Name) -> Self {
        Self {
            tenant,
            labels: BTreeMap::new(),
            queues: BTreeSet::new(),
            types: BTreeSet::new(),
            batch_id: None,
            ids: BTreeSet::new(),
        }
    }

    /// Whether a job is one of them.
    pub fn admits(&self, job: &Job) -> bool {
        let spec = &job.spec;
        let mut labels = self.labels.iter();
        job.key.tenant == self.tenant
            && (self.batch_id.is_none() || spec.batch_id == self.batch_id)
            && (self.ids.is_empty() || self.ids.contains(&job.key.id))
            && (self.queues.is_empty() || self.queues.contains(&spec.queue))
            && (self.types.is_empty() || self.types.contains(&spec.job_type))
            && labels.all(|(name, value)| spec.labels.get(name) == Some(value))
    }
}

/// Which part of a tenant's jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanQuery {
    /// Which jobs. Its ids are not looked up but compared: ask for a few by [`JobStore::job`](crate::store::JobStore::job).
    pub filter: JobFilter,
    /// Only those that are not over.
    pub unfinished: bool,
    /// Jobs with a higher id; `None` for the first part.
    pub after: Option<JobId>,
    /// How many to look at. At least 1.
    pub look_at: usize,
    /// How many to answer. At least 1.
    pub limit: usize,
}

/// Part of a tenant's jobs.
#[derive(Clone, PartialEq, Debug)]
pub struct Scan {
    /// By id, ascending.
    pub jobs: Vec<Scanned>,
    /// Every job up to this id was looked at; `None` where there is none after what was asked for.
    pub through: Option<JobId>,
}

/// A job and how new it is.
#[derive(Clone, PartialEq, Debug)]
pub struct Scanned {
    /// The job.
    pub job: Arc<Job>,
    /// Position at which its newest segment begins.
    pub position: i64,
}

/// Times that come by the wall clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// When a scheduled job may run.
    Start,
    /// When a waiting job expires.
    Deadline,
    /// When a finished job may be removed.
    Purge,
    /// When the front of a finished job's log may be removed.
    PurgeEvents,
}

/// Times of a living attempt, by the steady clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttemptTimer {
    /// When its lease ends.
    Lease,
    /// When it has been silent for its job's stall time.
    Stall,
}

/// What is due.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Due {
    /// The earliest first.
    pub keys: Vec<JobKey>,
    /// When the next one after them is.
    pub next: Option<Timestamp>,
}

/// Where jobs of a queue wait for others with their concurrency key. Lines are in the order of tenant,
/// key and type.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BlockedLine {
    /// Whose.
    pub tenant: Name,
    /// The concurrency key.
    pub key: Name,
    /// What runs them.
    pub job_type: Name,
}
