//! Where jobs and their logs are kept.
//!
//! [`JobStore`] has few verbs, and each is one transaction: what it answers is on disk. Every change
//! goes through [`JobStore::commit`], which runs `Job::apply` and numbers the events; the other verbs
//! read, or remove what is over. A store does not publish, wake or decide: that is the queue's work.
//! No verb may be dropped before it has answered, except those that only read.

mod error;
mod group;
pub mod memory;
mod plan;
mod query;
pub mod sqlite;

pub use self::error::{OpenError, ReadError, StoreError};
pub use self::group::{
    ClaimTerms, Claimed, Committed, Demand, Entry, Group, NotTaken, Published, Reply, WaitingRoom,
};
pub use self::query::{
    AttemptTimer, BlockedLine, Due, JobFilter, ListQuery, Listed, LogPart, LogRange, PlacedSegment,
    QueueRange, Scan, ScanQuery, Scanned, TenantLog, TenantRange, Timer, View,
};

use async_trait::async_trait;

use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::time::Timestamp;
use crate::job::{Job, JobSnapshot, JobState};

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

/// What to remove.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Purge {
    /// A finished job, its log and its payloads.
    Job(JobKey),
    /// The front of a finished job's log: whole segments whose events are all up to this sequence, but
    /// never its last event. Of a long one, as much as has room. Once nothing is left that could go before
    /// its last event, the job is due no more by [`Timer::PurgeEvents`].
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
    /// Nothing: there is no such job, or it is not finished; or nothing is left to remove.
    Nothing,
    /// Nothing yet: the transaction was full. Ask again.
    Later,
}
