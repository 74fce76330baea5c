//! Where jobs and their logs are kept.
//!
//! [`JobStore`] has few verbs, and each is one transaction: what it answers is on disk. Every change
//! goes through [`JobStore::commit`], which runs `Job::apply` and numbers the events; the other verbs
//! read, or remove what is over. A store does not publish, wake or decide: that is the queue's work.
//! No verb may be dropped before it has answered, except those that only read.

pub mod memory;
mod plan;
pub mod sqlite;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Error;
use crate::job::name::{BatchId, JobId, JobKey, Lane, Name};
use crate::job::segment::Segment;
use crate::job::time::Timestamp;
use crate::job::{Change, Job, JobSnapshot, JobState, NewJob, Payloads, Refusal};

/// What every store can do. One process writes at a time.
///
/// [`JobStore::commit`], [`JobStore::put_setting`] and [`JobStore::purge`] may block the thread that polls
/// them, for as long as a disk takes: call them from a thread of their own.
#[async_trait]
pub trait JobStore: Send + Sync + 'static {
    /// Makes a group of changes, then claims waiting jobs, all in one durable transaction. A change
    /// that is refused fails alone.
    ///
    /// # Errors
    /// [`StoreError`]: nothing of the group was stored, or, for `Failed`, nobody knows.
    ///
    /// # Cancel safety
    /// Not safe: await it to its end.
    async fn commit(&self, group: Group) -> Result<Committed, StoreError>;

    /// One job, with its payloads if asked for.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn job(&self, key: &JobKey, view: View) -> Result<Option<JobSnapshot>, ReadError>;

    /// How many jobs of its lane would be claimed before a QUEUED job; `None` where that is more than
    /// [`AHEAD_MAX`].
    ///
    /// # Errors
    /// [`ReadError`].
    async fn ahead_of(&self, job: &Job) -> Result<Option<u64>, ReadError>;

    /// Part of a list of jobs, newest first, without payloads. Looks at no more jobs than the query says,
    /// so that it may find few or none although there are more.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn list(&self, query: &ListQuery) -> Result<Listed, ReadError>;

    /// Part of a job's log, and the job as it was when that part was read; `None` where there is no
    /// such job.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn log(&self, key: &JobKey, range: LogRange) -> Result<Option<LogPart>, ReadError>;

    /// The next part of the log of all jobs, as far as it is one tenant's: segments after a position, in
    /// the order of their commits, each with its job as it was when it was read.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn log_after(&self, range: &TenantRange) -> Result<TenantLog, ReadError>;

    /// The position of the newest event of all jobs; 0 before the first. Never falls, whatever is purged.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn head(&self) -> Result<i64, ReadError>;

    /// The next part of a tenant's jobs, in the order of their ids: those that a filter admits. Looks at a
    /// bounded number of jobs, however few of them it admits.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn scan(&self, query: &ScanQuery) -> Result<Scan, ReadError>;

    /// Jobs whose time of some kind has come, the earliest first, at most `limit`; and when the next one
    /// after them is due.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn due(&self, timer: Timer, now: Timestamp, limit: usize) -> Result<Due, ReadError>;

    /// Jobs whose living attempt's time of some kind ended before `before`, by the steady clock, with
    /// the attempt; at most `limit`.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn attempts_due(
        &self,
        timer: AttemptTimer,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<(JobKey, u32)>, ReadError>;

    /// How many jobs there are, by lane and state, from counters that are exact at every commit.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn depths(&self) -> Result<Vec<(Lane, JobState, i64)>, ReadError>;

    /// The line behind `after`, or the first one, in which jobs of a queue wait for others with their
    /// concurrency key, and its first jobs in the order of claims, at most `limit`; `None` behind the
    /// last line.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn next_blocked(
        &self,
        queue: &Name,
        after: Option<&BlockedLine>,
        limit: usize,
    ) -> Result<Option<(BlockedLine, Vec<JobKey>)>, ReadError>;

    /// The counters of one tenant, by lane and state, of some queues, in the order of their names.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn depths_of(
        &self,
        tenant: &Name,
        queues: &QueueRange,
    ) -> Result<Vec<(Lane, JobState, i64)>, ReadError>;

    /// Since when the QUEUED job of a lane that has been due the longest is due.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn due_longest(&self, lane: &Lane) -> Result<Option<Timestamp>, ReadError>;

    /// Jobs of a lane that wait in one state and are older than `before`; at most `limit`, in any order.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn waiting(
        &self,
        lane: &Lane,
        state: JobState,
        before: JobId,
        limit: usize,
    ) -> Result<Vec<JobKey>, ReadError>;

    /// What was set while a server ran.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn settings(&self) -> Result<Vec<Setting>, ReadError>;

    /// Keeps a setting in place of the one before, or forgets it.
    ///
    /// # Errors
    /// As [`JobStore::commit`].
    ///
    /// # Cancel safety
    /// Not safe: await it to its end.
    async fn put_setting(&self, setting: Setting) -> Result<(), StoreError>;

    /// Removes finished jobs, or the front of their logs, in one transaction that is short however large
    /// they are: what has no room in it is left for the next one. What is not finished is left alone.
    /// Answers what became of each, in order. The first one is never left.
    ///
    /// # Errors
    /// As [`JobStore::commit`].
    ///
    /// # Cancel safety
    /// Not safe: await it to its end.
    async fn purge(&self, purge: Vec<Purge>) -> Result<Vec<Purged>, StoreError>;

    /// Random, made at the first start and kept: authenticates page tokens.
    fn secret(&self) -> [u8; 32];

    /// Housekeeping for a quiet moment. Answers the size of the write-ahead log afterwards, in bytes.
    ///
    /// # Errors
    /// As [`JobStore::commit`].
    async fn tidy(&self) -> Result<u64, StoreError>;

    /// Ends every connection. Nothing may be called afterwards.
    async fn close(&self);
}

/// Jobs that [`JobStore::ahead_of`] counts to. Chosen: counted in about a millisecond.
pub const AHEAD_MAX: u64 = 10_000;

/// How much of a job to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// Without payloads.
    Basic,
    /// With input, result and checkpoint.
    Full,
}

/// Changes that become durable together.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    /// In the order of arrival.
    pub entries: Vec<Entry>,
    /// What may be claimed once the entries are done. At most one entry a lane.
    pub demand: Vec<Demand>,
    /// How many jobs of a tenant wait before the group, and how many may before its submits are refused;
    /// tenants that are not named are not bound.
    pub room: HashMap<Name, WaitingRoom>,
    /// How many jobs of a queue may run at once that share a concurrency key; queues that are not named
    /// have the default of one.
    pub key_limits: Arc<BTreeMap<Name, usize>>,
    /// Who claims, and until when the leases hold.
    pub terms: ClaimTerms,
    /// The time of every event in the group.
    pub now: Timestamp,
}

/// One change of a group.
#[derive(Clone, PartialEq, Debug)]
pub enum Entry {
    /// A new job, unless its idempotency key is used or its unique place is taken.
    Submit {
        /// The job.
        new: Box<NewJob>,
        /// Whether it is claimed at once: its type has a free place and nothing waits before it.
        hand_over: bool,
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
    fn has(&self, jobs: usize) -> bool {
        jobs == 0 || self.waiting + jobs <= self.max
    }

    /// A job has begun, or ceased, to wait.
    fn moved(&mut self, waited: bool, waits: bool) {
        self.waiting = (self.waiting + usize::from(waits)).saturating_sub(usize::from(waited));
    }
}

/// Free places for the jobs of one lane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demand {
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

/// Which queues.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueueRange {
    /// So many that have jobs, behind this one or from the first.
    Behind(Option<Name>, usize),
    /// This one.
    One(Name),
}

/// Something that was set while a server ran. What it says is the queue's business.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// What it is for.
    pub kind: SettingKind,
    /// Which one.
    pub name: Name,
    /// JSON; `None` forgets what was set.
    pub value: Option<String>,
}

/// What a setting is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SettingKind {
    /// A queue.
    Queue,
    /// A job type.
    JobType,
}

impl SettingKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Queue, Self::JobType];

    /// Lower case, as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::JobType => "job_type",
        }
    }
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
    fn admits_plainly(&self, job: &Job) -> bool {
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
    /// Which jobs. Its ids are not looked up but compared: ask for a few by [`JobStore::job`].
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

/// What to remove.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Purge {
    /// A finished job, its log and its payloads.
    Job(JobKey),
    /// The front of a finished job's log: whole segments whose events are all up to this sequence, but
    /// never its last event. Of a long one, as much as has room.
    Events(JobKey, i64),
    /// What is left of the logs of jobs that are gone already, as much as has room.
    Rest,
}

/// What was removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Purged {
    /// The whole job.
    Job(JobKey),
    /// Its log now begins with this sequence. There may be more to remove.
    Events(JobKey, i64),
    /// Part of what was left. There may be more.
    Rest,
    /// Nothing: there is no such job, or it is not finished; or nothing is left.
    Nothing,
    /// Nothing yet: the transaction was full. Ask again.
    Later,
}

/// Why a store could not do what it was asked to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. Nothing was stored; reads go on.
    #[error("the disk is full")]
    DiskFull,
    /// Somebody else holds the store's database. Nothing was stored; try again.
    #[error("the database is in use by another program")]
    Busy,
    /// Our own mistake, or damaged data. Nothing was stored; the store goes on.
    #[error("{0}")]
    Internal(String),
    /// The store cannot be trusted any more: whether the last group was stored is not known.
    #[error("{0}")]
    Failed(String),
}

/// Why a store could not answer a question.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// It took longer than a read may, or waited too long for others. Ask for less, or try again.
    #[error("the read took too long")]
    TooLong,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a store could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The path cannot be used.
    #[error("{0}")]
    Path(String),
    /// Another server has it open.
    #[error("{path} is in use by another server{}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The store.
        path: String,
        /// The other server's process, where it said so.
        pid: Option<u32>,
    },
    /// It is damaged, of another program, or of a newer version; it was left as it is.
    #[error("{0}")]
    Unusable(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DiskFull => Self::disk_full(),
            StoreError::Busy => Self::store_busy(),
            StoreError::Internal(cause) => Self::internal(&cause),
            StoreError::Failed(cause) => {
                tracing::error!(%cause, "the store has failed");
                Self::outcome_unknown()
            }
        }
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::TooLong => Self::read_too_long(),
            ReadError::Store(error) => error.into(),
        }
    }
}
