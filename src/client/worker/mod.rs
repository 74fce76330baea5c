//! A worker for a server elsewhere: leases jobs, runs a Rust function for each, keeps the leases and tells
//! how it goes.
//!
//! It promises that what a handler tells is stored once and in order, however often the connection breaks or
//! the server is started again; that a handler is told to stop before its job can go to somebody else; and that
//! nothing is told of a job that has. Handlers are those of the server's own pool
//! ([`HandlerExecutor`]): the same function serves there and here. Execution is at least once: the job id is the
//! key for side effects.
//!
//! ```no_run
//! use pacenote::client::Client;
//! use pacenote::client::worker::{Context, HandlerError, Progress, Worker};
//!
//! async fn sum(context: Context, numbers: Vec<i64>) -> Result<i64, HandlerError> {
//!     let (mut sum, total) = (0, numbers.len() as i64);
//!     for (number, done) in numbers.iter().zip(1..) {
//!         sum += number;
//!         context.progress(Progress::units(done, Some(total), "numbers")).await?;
//!     }
//!     Ok(sum)
//! }
//!
//! # async fn example(shutdown: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("127.0.0.1:7430").await?;
//! Worker::new(&client).handler("sum", sum).concurrency(8).run(shutdown).await?;
//! # Ok(())
//! # }
//! ```

mod attempt;
mod hold;
mod link;

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use crate::executor::Executor;
pub use crate::executor::handler::{Context, HandlerError, HandlerExecutor};
pub use crate::executor::reporter::ReportError;
pub use crate::job::event::{JobError, LogLevel};
pub use crate::job::name::Name;
pub use crate::job::payload::Payload;
pub use crate::job::progress::Progress;

use crate::client::error::Failure;
use crate::client::worker::hold::Holds;
use crate::client::worker::link::Link;
use crate::client::{Client, ClientError, to_proto_duration};
use crate::executor::{DRAIN_GRACE, Quarters, SLACK};
use crate::job::limits::{LEASE, LEASE_TERMS, LEASED_MAX};
use crate::pb;

/// How long the server may hold a call for work. Chosen: its own default.
const WAIT: Duration = Duration::from_secs(30);
/// How long a drain waits for work that may be on its way. Chosen: where work waits, it comes in
/// milliseconds; a call that is given up in that moment would keep its jobs until their leases end.
const ON_ITS_WAY: Duration = Duration::from_millis(500);
/// How long to wait before asking a server again that is about to stop.
const DRAINING_PAUSE: Duration = Duration::from_secs(1);
/// How long the hand-back of everything may take at the end of a drain.
const HAND_BACK_MAX: Duration = DRAIN_GRACE
    .saturating_add(SLACK)
    .saturating_add(Duration::from_secs(3));
/// Drain time where none was set. The server's pool has 30 s, and workers are best gone before it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

type Executors = HashMap<Name, Arc<dyn Executor>>;

/// Does the jobs of some types, until it is told to stop.
#[derive(Clone)]
#[must_use]
pub struct Worker {
    client: Client,
    executors: Executors,
    request: pb::LeaseRequest,
    concurrency: usize,
    lease: Duration,
    drain_timeout: Duration,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let types: Vec<&Name> = self.executors.keys().collect();
        f.debug_struct("Worker")
            .field("worker_id", &self.request.worker_id)
            .field("types", &types)
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// For the server of this client, on a connection of its own, with the client's patience. One job at a
    /// time, leased for 15 s, from every queue.
    pub fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            executors: HashMap::new(),
            request: pb::LeaseRequest {
                worker_id: own_id(),
                wait: Some(to_proto_duration(WAIT)),
                ..pb::LeaseRequest::default()
            },
            concurrency: 1,
            lease: LEASE,
            drain_timeout: DRAIN_TIMEOUT,
        }
    }

    /// Runs an async function for the jobs of this type; what it takes and gives is JSON. The type is known to
    /// the server from the worker's first call on.
    ///
    /// # Panics
    /// Where `job_type` is no name: 1 to 128 of `[A-Za-z0-9._/-]`.
    pub fn handler<T, R, F, Fut>(self, job_type: &'static str, handler: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        self.executor(Name::of(job_type), HandlerExecutor::new(handler))
    }

    /// Runs something else for the jobs of this type. The last one of a type stands.
    pub fn executor(mut self, job_type: Name, executor: impl Executor) -> Self {
        self.executors.insert(job_type, Arc::new(executor));
        self
    }

    /// Only jobs of these queues: at most 100. Default: of every queue.
    pub fn queues(mut self, queues: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.request.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// Who it is; shown as `Job.worker_id`, 1 to 1,024 bytes, best unique for a process. Default: host, process and
    /// chance.
    pub fn worker_id(mut self, worker_id: impl Into<String>) -> Self {
        self.request.worker_id = worker_id.into();
        self
    }

    /// How many jobs run at once: 1 to 1,000, others become the nearest. Default 1.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency.clamp(1, LEASED_MAX);
        self
    }

    /// How long a job stays with a worker that fell silent: 5 s to 5 min, others become the nearest. Default 15
    /// s. It is renewed after a third of that. A handler is told to stop two seconds before the end of a lease
    /// that could not be renewed, or a fifth of the term, whichever is less.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.clamp(*LEASE_TERMS.start(), *LEASE_TERMS.end());
        self
    }

    /// What runs has so long to end once the worker is told to stop; after that it is told to, and what does
    /// not end within 3 s is handed back, charged nothing. Default 20 s.
    pub fn drain_timeout(mut self, drain_timeout: Duration) -> Self {
        self.drain_timeout = drain_timeout;
        self
    }

    /// Works until `shutdown` comes and what runs is over or handed back. A server that is away is waited
    /// for, however long.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the server refuses to give work at all: `INVALID_FIELD` (no type, a name
    /// that is none, …). What runs then is drained first. [`ClientError::System`] where the system gives no
    /// threads.
    ///
    /// # Cancel safety
    /// Dropping the future stops what runs at once; its jobs are taken up again when their leases end.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ClientError> {
        let Self {
            client,
            executors,
            mut request,
            concurrency,
            lease,
            drain_timeout,
        } = self;
        request.types = executors.keys().map(Name::to_string).collect();
        request.lease = Some(to_proto_duration(lease));
        let quarters = Quarters::new(concurrency).map_err(|error| ClientError::System {
            message: error.to_string(),
        })?;
        let crew = Crew {
            link: Link::new(&client),
            holds: Holds::new(lease),
            executors,
            hand_back: CancellationToken::new(),
            quarters,
        };
        let mut shift = Shift {
            crew: Arc::new(crew),
            request,
            places: Arc::new(Semaphore::new(concurrency)),
            attempts: JoinSet::new(),
        };
        let crew = Arc::clone(&shift.crew);
        let worked = async {
            let worked = shift.work(shutdown).await;
            shift.drain(drain_timeout).await;
            worked
        };
        tokio::select! {
            worked = worked => worked,
            () = crew.holds.keep(&crew.link) => unreachable!("leases are kept for ever"),
        }
    }
}

/// What all attempts of a worker share.
struct Crew {
    link: Link,
    holds: Holds,
    executors: Executors,
    /// Tripped when attempts that still run have to be handed back.
    hand_back: CancellationToken,
    quarters: Quarters,
}

/// A worker at work.
struct Shift {
    crew: Arc<Crew>,
    /// What it asks for, but for the number of jobs.
    request: pb::LeaseRequest,
    places: Arc<Semaphore>,
    /// Ended with it, were it dropped.
    attempts: JoinSet<()>,
}

/// What came of a call for work.
enum Asked {
    InTime(Result<Work, Failure>),
    /// After the worker was told to stop.
    TooLate(Option<Work>),
}

/// Jobs, and since when they surely are the worker's.
struct Work {
    jobs: Vec<pb::LeasedJob>,
    since: Instant,
    drain: bool,
}

impl Work {
    /// The answer to a call that was sent then.
    fn new(answer: pb::LeaseResponse, sent: Instant) -> Self {
        let waited = answer.waited.and_then(|waited| waited.try_into().ok());
        Self {
            jobs: answer.leased_jobs,
            // Where this machine slept meanwhile, its clock did as well.
            since: (sent + waited.unwrap_or(Duration::ZERO)).min(Instant::now()),
            drain: answer.drain,
        }
    }
}

impl Shift {
    /// Leases and begins jobs until it is told to stop, or the server refuses for good.
    async fn work(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), ClientError> {
        let mut shutdown = pin!(shutdown);
        let mut failures = 0;
        loop {
            while self.attempts.try_join_next().is_some() {}
            let places = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                places = self.free_places() => places,
            };
            let most = places.num_permits();
            let answer = match self.ask(most, shutdown.as_mut()).await {
                Asked::InTime(answer) => answer,
                Asked::TooLate(work) => {
                    work.into_iter().for_each(|work| self.give_back(work));
                    return Ok(());
                }
            };
            let link = &self.crew.link;
            let pause = match answer {
                Ok(work) => {
                    failures = 0;
                    // It says so at once, as long as it is there.
                    let pause = work.drain.then_some(DRAINING_PAUSE);
                    self.begin(work, places);
                    pause
                }
                Err(failure) if !failure.resume => return Err(failure.error),
                Err(failure) => {
                    if failures == 0 {
                        tracing::warn!(error = %failure.error, "no work can be had; trying again");
                    }
                    failures += 1;
                    Some(link.pause(failures - 1, &failure.error))
                }
            };
            if let Some(pause) = pause {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = &mut shutdown => return Ok(()),
                }
            }
        }
    }

    /// Asks for work. Once told to stop, it waits a moment for what may be on its way.
    async fn ask(&self, most: usize, shutdown: Pin<&mut impl Future<Output = ()>>) -> Asked {
        let link = &self.crew.link;
        let request = pb::LeaseRequest {
            max_jobs: i32::try_from(most).unwrap_or(i32::MAX),
            ..self.request.clone()
        };
        let deadline = WAIT + link.settings.call_deadline;
        let sent = Instant::now();
        let mut answer = pin!(
            link.send(request, deadline, |mut service, request| async move {
                service.lease(request).await
            })
        );
        tokio::select! {
            answer = &mut answer => {
                return Asked::InTime(answer.map(|answer| Work::new(answer, sent)));
            }
            () = shutdown => {}
        }
        let answer = tokio::time::timeout(ON_ITS_WAY, answer).await;
        let answer = answer.ok().and_then(Result::ok);
        Asked::TooLate(answer.map(|answer| Work::new(answer, sent)))
    }

    /// All places that are free, one at least.
    ///
    /// # Cancel safety
    /// Safe: places that were not given out stay free.
    async fn free_places(&self) -> OwnedSemaphorePermit {
        let places = Arc::clone(&self.places);
        let one = places.acquire_owned().await;
        let mut free = one.expect("never closed");
        let more = self.places.available_permits();
        if let Ok(more) = Arc::clone(&self.places).try_acquire_many_owned(more as u32) {
            free.merge(more);
        }
        free
    }

    fn begin(&mut self, work: Work, mut places: OwnedSemaphorePermit) {
        for mut leased in work.jobs {
            let token = std::mem::take(&mut leased.lease_token);
            let hold = self.crew.holds.take(token, work.since);
            let crew = Arc::clone(&self.crew);
            match places.split(1).filter(|_| self.crew.holds.is_good(&hold)) {
                Some(place) => self.attempts.spawn(attempt::run(crew, leased, hold, place)),
                // More than were asked for; or its answer was on its way for so long that somebody else may be at it.
                None => self.attempts.spawn(attempt::hand_back(crew, hold)),
            };
        }
    }

    fn give_back(&mut self, work: Work) {
        for leased in work.jobs {
            let hold = self.crew.holds.take(leased.lease_token, work.since);
            let crew = Arc::clone(&self.crew);
            self.attempts.spawn(attempt::hand_back(crew, hold));
        }
    }

    /// Waits until nothing runs any more, at most `grace`; what still runs then is stopped and handed back.
    async fn drain(&mut self, grace: Duration) {
        if tokio::time::timeout(grace, self.all_over()).await.is_ok() {
            return;
        }
        self.crew.hand_back.cancel();
        let handed_back = tokio::time::timeout(HAND_BACK_MAX, self.all_over());
        if handed_back.await.is_err() {
            tracing::warn!(
                left = self.attempts.len(),
                "jobs could not be handed back: they go on when their leases end"
            );
        }
    }

    async fn all_over(&mut self) {
        while self.attempts.join_next().await.is_some() {}
    }
}

/// Host, process and chance.
fn own_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.as_deref().map_or("worker", str::trim_end);
    let chance = uuid::Uuid::new_v4().simple().to_string();
    format!("{host}-{}-{}", std::process::id(), &chance[..8])
}
