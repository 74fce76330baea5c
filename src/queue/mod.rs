//! The one door: every change of a job, and every look at one, comes through a [`JobQueue`].
//!
//! gRPC, the pool, and whatever else wants something of a job, call it; it checks what comes in, hands
//! changes to the writer, and answers once they are on disk. It promises that nobody sees an event
//! before it is stored. It knows neither the wire nor SQL.

mod alarm;
mod attempts;
mod clear;
mod duties;
mod estimate;
mod forget;
mod lease;
mod limits;
mod many;
mod overview;
mod page;
mod places;
mod polls;
mod progress;
mod purges;
mod quota;
mod rates;
mod read;
mod remote;
mod retry;
mod schedule;
mod seal;
mod settings;
mod submission;
mod submit;
mod watch;
mod watch_jobs;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use crate::job::name::default_tenant;
pub use attempts::{StopCause, StopSignal};
pub use clear::{Cleared, Waiting};
pub use estimate::Place;
pub use forget::{ROUND_EACH_MAX, Retired};
pub use lease::Lease;
pub(crate) use lease::may_heal;
pub(crate) use limits::Limits;
pub use many::{DeletedPage, RetriedPage, Skipped};
pub use overview::{Depths, LimitSources, QueueList, QueueStatus, Source, Status, TypeStatus};
pub use places::Places;
pub use rates::LastMinute;
pub use read::{EventPage, EventQuery, JobPage, Waited, check_page_size, check_sequence};
pub use remote::{LeaseStanding, LeasedJob, Renewal, Work, WorkRequest};
pub use settings::{Edit, LimitsEdit};
pub use submission::{
    InputCheck, KnownType, RetryOverrides, Start, Submission, TimeoutOverrides, UniqueRequest,
};
pub use submit::Batch;
pub use watch::{Watch, WatchContent, WatchMessage, WatchOptions};
pub use watch_jobs::{JobsContent, JobsGap, JobsMessage, JobsWatch, JobsWatchOptions, RollUp};
pub use writer::{Begin, Handed};

use crate::config::TenantSettings;
use crate::error::{Error, Precondition};
use crate::events::Hub;
use crate::job::limits::{LOG_BYTES_DEFAULT, STRING_BYTES_MAX, WAITING_DEFAULT, WATCHERS_DEFAULT};
use crate::job::name::{JobKey, Name};
use crate::job::queue::GivenLimits;
use crate::job::time::{Clock, Timestamp};
use crate::job::{CancelCause, Change, Job, Refusal};
use crate::queue::alarm::Alarm;
use crate::queue::attempts::Attempts;
use crate::queue::forget::Retention;
use crate::queue::polls::Unclaimed;
use crate::queue::quota::Quota;
use crate::queue::rates::Rates;
use crate::queue::remote::{LeftOver, Waiters};
use crate::queue::schedule::Schedule;
use crate::queue::settings::Live;
use crate::queue::submit::not_taken;
use crate::queue::writer::{Answer, Pool, Request, Writer};
use crate::store::{Entry, JobStore, Reply, StoreError};

/// Requests that may wait for the writer. Chosen: a few groups; who comes later waits at the door.
const REQUESTS_WAITING_MAX: usize = 2048;
/// Payload bytes that may wait for the writer, so that waiting requests cannot fill the memory.
const BYTES_WAITING_MAX: usize = 64 * 1024 * 1024;

/// What a queue is told when it opens.
pub struct QueueSettings {
    /// The job types that are served.
    pub types: BTreeMap<Name, KnownType>,
    /// Output and log lines kept of one job. Bytes.
    pub log_bytes_max: u64,
    /// Open watches of one tenant.
    pub watchers_max: usize,
    /// Jobs of one tenant that may wait.
    pub waiting_max: usize,
    /// What bounds queues, by name, unless it was set at run time.
    pub queues: BTreeMap<Name, GivenLimits>,
    /// How the jobs of tenants are treated, by name; one that is not named has the defaults.
    pub tenants: BTreeMap<Name, TenantSettings>,
}

impl Default for QueueSettings {
    /// No types, and every bound as it is where nobody says.
    fn default() -> Self {
        Self {
            types: BTreeMap::new(),
            log_bytes_max: LOG_BYTES_DEFAULT,
            watchers_max: WATCHERS_DEFAULT,
            waiting_max: WAITING_DEFAULT,
            queues: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }
}

/// The one door to jobs. Cheap to clone.
#[derive(Clone)]
pub struct JobQueue {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

/// What the queue and its writer share.
pub(crate) struct Shared {
    store: Arc<dyn JobStore>,
    clock: Arc<dyn Clock>,
    hub: Hub,
    settings: QueueSettings,
    attempts: Attempts,
    /// Taken away when the writer ends: the pool knows the queue, too.
    pool: Mutex<Option<Arc<Pool>>>,
    /// How the types are treated that nobody configured.
    other_types: KnownType,
    /// What was set at run time, as stored.
    live: Mutex<Live>,
    /// What the last minute brought.
    rates: Mutex<Rates>,
    /// Somebody waits for a time that may come sooner than known.
    due_changed: Notify,
    /// The next deadline of a job that waits.
    deadlines: Alarm,
    retention: Retention,
    draining: CancellationToken,
    failed: CancellationToken,
    failure: OnceLock<StoreError>,
    bytes: Arc<Semaphore>,
    /// What was claimed for workers that had gone.
    unclaimed: Arc<Unclaimed>,
    /// Calls for work that wait.
    waiters: Waiters,
    /// What the start had to leave, because the disk was full.
    left_over: LeftOver,
    /// The writer has ended: nothing more will be stored.
    written: CancellationToken,
}

impl Shared {
    fn pool(&self) -> Option<Arc<Pool>> {
        self.lock_pool().clone()
    }

    /// Hands out nothing more.
    fn take_pool(&self) {
        let pool = self.lock_pool().take();
        // Dropped here, when the lock is open again: it may hold the last of much.
        if let Some(pool) = pool {
            pool.places.close();
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Nothing in here can be left half done by a panic.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        // A count that a panic left half done is a count.
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_pool(&self) -> MutexGuard<'_, Option<Arc<Pool>>> {
        // Nothing in here can be left half done by a panic.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: &StoreError) {
        // Failed before: the first cause stands.
        let _ = self.failure.set(error.clone());
        self.failed.cancel();
    }
}

impl JobQueue {
    /// Opens the door to a store: reads what waits in it and starts the writer. Attempts that were
    /// alive when the store was last used are lost: the process that held them is dead. Where the disk is full,
    /// that is stored by the first [`sweep`](JobQueue::sweep_lost_leases) that finds room.
    ///
    /// # Errors
    /// Where the store cannot be read or written.
    pub async fn open(
        store: Arc<dyn JobStore>,
        clock: Arc<dyn Clock>,
        settings: QueueSettings,
    ) -> Result<Self, Error> {
        let live = Live::read(store.settings().await?)?;
        let tenants = settings.tenants.iter();
        let weights = tenants.map(|(name, tenant)| (name.clone(), tenant.weight));
        let mut schedule = Schedule::new(weights.collect());
        schedule.set_all(&live, &settings.queues, clock.steady());
        let depths = store.depths().await?;
        schedule.moved(&depths);
        let mut quota = Quota::new(settings.waiting_max);
        quota.moved(&depths);
        let shared = Arc::new(Shared {
            store,
            clock,
            hub: Hub::new(),
            settings,
            attempts: Attempts::default(),
            pool: Mutex::default(),
            other_types: KnownType::plain(),
            live: Mutex::new(live),
            rates: Mutex::default(),
            due_changed: Notify::new(),
            deadlines: Alarm::default(),
            retention: Retention::default(),
            draining: CancellationToken::new(),
            failed: CancellationToken::new(),
            failure: OnceLock::new(),
            bytes: Arc::new(Semaphore::new(BYTES_WAITING_MAX)),
            unclaimed: Arc::default(),
            waiters: Waiters::default(),
            left_over: LeftOver::default(),
            written: CancellationToken::new(),
        });
        let (requests, receiver) = mpsc::channel(REQUESTS_WAITING_MAX);
        Writer::new(Arc::clone(&shared), receiver, schedule, quota)
            .start()
            .map_err(|error| Error::internal(&format!("no thread for the writer: {error}")))?;
        let queue = Self { shared, requests };
        queue.take_over_leases().await?;
        Ok(queue)
    }

    /// Asks a job to stop, and answers with the job as it is then. A finished job, or one that was
    /// asked before, is answered unchanged.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotFound`], [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, it happens although nobody hears of it.
    pub async fn cancel(&self, key: &JobKey, reason: String) -> Result<Arc<Job>, Error> {
        if reason.len() > STRING_BYTES_MAX {
            let len = reason.len();
            let problem = format!("is {len} bytes; at most {STRING_BYTES_MAX} are accepted");
            return Err(Error::invalid("reason", problem));
        }
        let change = Change::Cancel {
            cause: CancelCause::Requested,
            reason,
            requested_by: key.tenant.to_string(),
        };
        self.change_job(key, change, 0).await
    }

    /// Begins the end: no new jobs, no new claims, and watches are told to come back.
    pub fn drain(&self) {
        // Places first: once the pool knows of the drain, nothing more may come to it.
        if let Some(pool) = self.shared.pool() {
            pool.places.close();
        }
        self.shared.draining.cancel();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.is_cancelled()
    }

    /// Waits until a drain has begun.
    pub async fn drained(&self) {
        self.shared.draining.cancelled().await;
    }

    /// Waits until the store has failed, and says why.
    pub async fn failed(&self) -> StoreError {
        self.shared.failed.cancelled().await;
        let cause = self.shared.failure.get().cloned();
        cause.unwrap_or_else(|| StoreError::Failed("the store has failed".to_owned()))
    }

    /// Whether the store has failed.
    pub fn has_failed(&self) -> bool {
        self.shared.failed.is_cancelled()
    }

    /// The steady clock's time.
    pub fn steady_now(&self) -> Timestamp {
        self.shared.clock.steady()
    }

    /// The wall clock's time.
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// How long it is until a point in time, by the wall clock.
    pub fn until(&self, at: Timestamp) -> Duration {
        at.since(self.shared.clock.now())
    }

    /// Watches that are open now.
    pub fn open_watches(&self) -> usize {
        self.shared.hub.listeners()
    }

    /// Waits for what is being written, and closes the store. Whoever asks for anything afterwards is
    /// told that it is unavailable.
    pub async fn close(&self) {
        // The writer is gone already: fine.
        let _ = self.requests.send(Request::Stop).await;
        self.shared.written.cancelled().await;
        self.shared.store.close().await;
    }

    async fn change_job(
        &self,
        key: &JobKey,
        change: Change,
        bytes: usize,
    ) -> Result<Arc<Job>, Error> {
        let entry = Entry::Change {
            key: key.clone(),
            change,
        };
        let answer = self.change_one(entry, bytes).await?;
        self.job_of(key, answer)?
            .ok_or_else(|| Error::internal(&"a change was held back that must not be"))
    }

    /// The job in an answer; `None` where it was held back.
    fn job_of(&self, key: &JobKey, answer: Answer) -> Result<Option<Arc<Job>>, Error> {
        match answer {
            Answer::Held => Ok(None),
            Answer::Stored(Reply::Done { job, .. }) => Ok(Some(job)),
            Answer::Stored(Reply::Missing) => Err(Error::NotFound { id: key.id }),
            Answer::Stored(Reply::NotTaken(why)) => Err(not_taken(&key.tenant, why)),
            Answer::Stored(
                reply @ (Reply::Unreadable
                | Reply::Batch(_)
                | Reply::BatchNotTaken(_)
                | Reply::Checked { .. }),
            ) => Err(Error::internal(&format!(
                "job {} was answered {reply:?}",
                key.id
            ))),
            Answer::Stored(Reply::Refused(refusal)) => Err(match refusal {
                Refusal::StaleLease => Error::Precondition(Precondition::StaleLease),
                Refusal::NotCancelling => Error::Precondition(Precondition::NotCancelling),
                Refusal::NotRetryable { state, retried_by } => {
                    Error::Precondition(Precondition::NotRetryable { state, retried_by })
                }
                Refusal::NotQueued
                | Refusal::NotDue
                | Refusal::NotBlocked
                | Refusal::NotWaiting => Error::internal(&format!("job {}: {refusal:?}", key.id)),
            }),
        }
    }

    async fn change_one(&self, entry: Entry, bytes: usize) -> Result<Answer, Error> {
        let mut answers = self.change(vec![entry], bytes).await?;
        answers.pop().ok_or_else(Error::outcome_unknown)
    }

    async fn change(&self, entries: Vec<Entry>, bytes: usize) -> Result<Vec<Answer>, Error> {
        let share = if bytes == 0 {
            None
        } else {
            let bytes = u32::try_from(bytes.min(BYTES_WAITING_MAX)).unwrap_or(u32::MAX);
            let share = Arc::clone(&self.shared.bytes).acquire_many_owned(bytes);
            Some(share.await.map_err(|_| Error::outcome_unknown())?)
        };
        let (reply, answers) = oneshot::channel();
        let request = Request::Entries {
            entries,
            bytes,
            reply,
            share,
        };
        self.send(request).await?;
        // The writer answers everyone; where it cannot, it has failed in the middle.
        answers.await.map_err(|_| Error::outcome_unknown())?
    }

    async fn send(&self, request: Request) -> Result<(), Error> {
        self.requests
            .send(request)
            .await
            .map_err(|_| Error::outcome_unknown())
    }
}

impl std::fmt::Debug for JobQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobQueue").finish_non_exhaustive()
    }
}
