//! Builds the parts, starts them in order, stops them in order. [`Server::serve`] is what `pacenote
//! serve` calls, and tests, and programs that embed us.

pub(crate) mod incoming;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, TypeSettings};
use crate::executor::Executor;
use crate::executor::builtin;
use crate::executor::command::{self, CommandExecutor};
use crate::executor::handler::{Context, HandlerError, HandlerExecutor};
use crate::grpc;
use crate::job::name::Name;
use crate::job::time::{Clock, SystemClock};
use crate::maintenance;
use crate::queue::{JobQueue, KnownType, QueueSettings};
use crate::store::sqlite::SqliteStore;
use crate::store::{OpenError, StoreError};
use crate::worker::{Pool, PoolSettings};

/// From the end of the drain until open connections are cut. Chosen: time for last answers to arrive.
const CONNECTIONS_GRACE: Duration = Duration::from_secs(1);

/// Why serving ended, or never began.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServeError {
    /// What it was told cannot be done.
    #[error("{0}")]
    Config(String),
    /// Another server has the store open.
    #[error("{message}")]
    StoreLocked {
        /// Which store, and by whom.
        message: String,
        /// The other server's process, where it said so.
        pid: Option<u32>,
    },
    /// The store is damaged, of another program or of a newer version, or has failed at run time.
    #[error("{0}")]
    Storage(String),
}

impl From<OpenError> for ServeError {
    fn from(error: OpenError) -> Self {
        let message = error.to_string();
        match error {
            OpenError::Path(_) => Self::Config(message),
            OpenError::Locked { pid, .. } => Self::StoreLocked { message, pid },
            OpenError::Unusable(_) => Self::Storage(message),
        }
    }
}

/// A server that is about to start.
pub struct Server {
    config: Config,
    clock: Arc<dyn Clock>,
    types: BTreeMap<Name, (TypeSettings, Arc<dyn Executor>)>,
    on_ready: Vec<Box<dyn FnOnce(JobQueue) + Send>>,
}

impl Server {
    /// A server with the built-in job types and those of the configuration.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            clock: Arc::new(SystemClock::new()),
            types: BTreeMap::new(),
            on_ready: Vec::new(),
        }
    }

    /// With another job type, run by a program's own executor. Takes the place of a built-in one, or of
    /// an earlier one, with this name; one of the configuration keeps the server from starting.
    #[must_use]
    pub fn executor(
        mut self,
        job_type: Name,
        settings: TypeSettings,
        executor: impl Executor,
    ) -> Self {
        self.types.insert(job_type, (settings, Arc::new(executor)));
        self
    }

    /// With another job type, run by a Rust function of its context and its input; both input and
    /// result are whatever serde knows. With [`TypeSettings::default`]: for a queue, a concurrency, a
    /// retry policy or timeouts of its own, and for names that are not constants, give
    /// [`Server::executor`] a [`HandlerExecutor`].
    ///
    /// ```
    /// use pacenote::embed::{Config, Context, Server};
    ///
    /// let server = Server::new(Config::default())
    ///     .handler("shout", |_: Context, text: String| async move { Ok(text.to_uppercase()) });
    /// # let _ = server;
    /// ```
    ///
    /// # Panics
    /// Where `job_type` is no name: 1 to 128 of `[A-Za-z0-9._/-]`.
    #[must_use]
    pub fn handler<T, R, F, Fut>(self, job_type: &'static str, handler: F) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        self.executor(
            Name::of(job_type),
            TypeSettings::default(),
            HandlerExecutor::new(handler),
        )
    }

    /// With another source of time, chance and ids.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Calls back once it serves.
    #[must_use]
    pub fn on_ready(mut self, ready: impl FnOnce() + Send + 'static) -> Self {
        self.on_ready.push(Box::new(|_| ready()));
        self
    }

    /// Calls back with the queue once it serves, for programs that submit and watch without a network.
    #[must_use]
    pub fn on_queue(mut self, ready: impl FnOnce(JobQueue) + Send + 'static) -> Self {
        self.on_ready.push(Box::new(ready));
        self
    }

    /// Serves until `shutdown`, then drains: health turns to NOT_SERVING, nothing new begins, watches
    /// end with `SERVER_DRAINING`, running jobs finish within the drain timeout or are handed back.
    ///
    /// # Errors
    /// [`ServeError`]. The store's failure at run time ends it with [`ServeError::Storage`]: nothing
    /// that was acknowledged is lost, and another `serve` goes on from there.
    ///
    /// # Cancel safety
    /// Not safe: dropped, it leaves what runs to the next start, as a crash does.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        // First, so that what is refused for its configuration leaves nothing behind.
        let attempts_dir = attempts_dir(&self.config.store)?;
        self.add_types(&attempts_dir)?;
        let store = SqliteStore::open(&self.config.store).await?;
        end_survivors(&attempts_dir).await;
        let on_ready = std::mem::take(&mut self.on_ready);
        let queue = JobQueue::open(Arc::new(store), self.clock.clone(), self.queue_settings())
            .await
            .map_err(|error| ServeError::Storage(error.to_string()))?;
        let parts = Parts::start(&queue, self.pool_settings())
            .await
            .map_err(|error| ServeError::Config(format!("no threads for the pool: {error}")))?;

        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, true).await;
        let routes = grpc::routes(queue.clone(), health_service)
            .map_err(|error| ServeError::Config(error.to_string()))?;
        let (stop_serving, cut) = (CancellationToken::new(), CancellationToken::new());
        let serving = builder().add_routes(routes).serve_with_incoming_shutdown(
            incoming::connections(listener, cut.clone()),
            stop_serving.clone().cancelled_owned(),
        );
        let mut serving = tokio::spawn(serving);
        for ready in on_ready {
            ready(queue.clone());
        }

        let failure = tokio::select! {
            () = shutdown => None,
            failure = queue.failed() => Some(failure),
        };
        set_health(&health, false).await;
        queue.drain();
        let failure = match failure {
            Some(failure) => {
                parts.abandon().await;
                Some(failure)
            }
            None => parts.drain(&queue, self.config.drain_timeout).await,
        };
        stop_serving.cancel();
        if tokio::time::timeout(CONNECTIONS_GRACE, &mut serving)
            .await
            .is_err()
        {
            // Connections whose clients do not answer, or do not read, would hold us for ever.
            cut.cancel();
            if tokio::time::timeout(CONNECTIONS_GRACE, &mut serving)
                .await
                .is_err()
            {
                serving.abort();
            }
        }
        queue.close().await;
        match failure {
            None => Ok(()),
            Some(failure) => Err(ServeError::Storage(format!(
                "the store has failed: {failure}"
            ))),
        }
    }

    fn add_types(&mut self, attempts_dir: &Path) -> Result<(), ServeError> {
        let root = &self.config.checksum_root;
        let checksum = builtin::checksum(root).map_err(|error| {
            ServeError::Config(format!(
                "checksum_root {} cannot be read: {error}",
                root.display()
            ))
        })?;
        let built_in: [(_, Arc<dyn Executor>); 2] = [
            (Name::of("checksum"), Arc::new(checksum)),
            (Name::of("sleep"), Arc::new(builtin::sleep())),
        ];
        for (name, executor) in built_in {
            let settings = TypeSettings::default();
            self.types.entry(name).or_insert((settings, executor));
        }
        for (name, job_type) in &self.config.job_types {
            let Entry::Vacant(place) = self.types.entry(name.clone()) else {
                return Err(ServeError::Config(format!(
                    "job_types.{name}: a type with this name is built in or embedded; choose another name"
                )));
            };
            // Its jobs wait for workers.
            let Some(command) = &job_type.command else {
                continue;
            };
            let executor = CommandExecutor::new(command.clone(), attempts_dir.to_owned())
                .map_err(|problem| ServeError::Config(format!("job_types.{name}: {problem}")))?;
            let configured: (_, Arc<dyn Executor>) =
                (job_type.settings.clone(), Arc::new(executor));
            place.insert(configured);
        }
        Ok(())
    }

    fn queue_settings(&self) -> QueueSettings {
        let types = self.types.iter().map(|(name, (settings, executor))| {
            let executor = Arc::clone(executor);
            let known = KnownType {
                settings: settings.clone(),
                check: Arc::new(move |input| executor.check(input)),
            };
            (name.clone(), known)
        });
        let of_workers = self.config.job_types.iter();
        let of_workers = of_workers.filter(|(_, job_type)| job_type.command.is_none());
        let of_workers = of_workers.map(|(name, job_type)| {
            let known = KnownType {
                settings: job_type.settings.clone(),
                check: Arc::new(|_| Ok(())),
            };
            (name.clone(), known)
        });
        QueueSettings {
            types: types.chain(of_workers).collect(),
            log_bytes_max: self.config.log_bytes_max,
            watchers_max: self.config.watchers_max,
            waiting_max: self.config.waiting_max,
            queues: self.config.queues.clone(),
            tenants: self.config.tenants.clone(),
        }
    }

    fn pool_settings(&self) -> PoolSettings {
        let concurrency = self.types.iter().filter_map(|(name, (settings, _))| {
            settings.concurrency.map(|most| (name.clone(), most))
        });
        let executors = self.types.iter();
        let executors = executors.map(|(name, (_, executor))| (name.clone(), Arc::clone(executor)));
        PoolSettings {
            concurrency: concurrency.collect(),
            executors: executors.collect(),
            workers: self.config.workers,
            worker_id: format!("pool:{}:{}", std::process::id(), self.clock.new_id()),
        }
    }
}

/// What runs beside the network.
struct Parts {
    pool: Pool,
    duties: TaskTracker,
    stop_duties: CancellationToken,
}

impl Parts {
    async fn start(queue: &JobQueue, pool: PoolSettings) -> std::io::Result<Self> {
        let parts = Self {
            pool: Pool::start(queue.clone(), pool).await?,
            duties: TaskTracker::new(),
            stop_duties: CancellationToken::new(),
        };
        maintenance::start(queue, &parts.duties, &parts.stop_duties);
        Ok(parts)
    }

    /// Lets what runs finish, or hands it back. Answers the store's failure, if there is one.
    async fn drain(self, queue: &JobQueue, timeout: Duration) -> Option<StoreError> {
        let failure = tokio::select! {
            () = self.pool.drain(timeout) => None,
            failure = queue.failed() => Some(failure),
        };
        end(&self.duties, &self.stop_duties).await;
        failure
    }

    /// Ends everything at once: the store has failed, and nothing can be handed back.
    async fn abandon(self) {
        self.pool.abandon().await;
        end(&self.duties, &self.stop_duties).await;
    }
}

async fn end(duties: &TaskTracker, stop: &CancellationToken) {
    stop.cancel();
    duties.close();
    duties.wait().await;
}

/// Where attempts of commands have their private folders: beside the store, so that the next server on
/// it finds what this one leaves, whatever its environment says.
fn attempts_dir(store: &Path) -> Result<PathBuf, ServeError> {
    let store = std::path::absolute(store)
        .map_err(|error| ServeError::Config(format!("{}: {error}", store.display())))?;
    let mut name = store.into_os_string();
    name.push(".attempts");
    Ok(PathBuf::from(name))
}

/// Ends what a server before this one left running, before anything is claimed again.
async fn end_survivors(attempts_dir: &Path) {
    let dir = attempts_dir.to_owned();
    let ended = tokio::task::spawn_blocking(move || command::end_survivors(&dir)).await;
    if let Ok(ended @ 1..) = ended {
        tracing::warn!(
            ended,
            "ended processes that the server before this one had left running"
        );
    }
}

async fn set_health(health: &tonic_health::server::HealthReporter, serving: bool) {
    let status = if serving {
        tonic_health::ServingStatus::Serving
    } else {
        tonic_health::ServingStatus::NotServing
    };
    for service in [
        "",
        grpc::JOB_SERVICE,
        grpc::QUEUE_SERVICE,
        grpc::WORKER_SERVICE,
    ] {
        health.set_service_status(service, status).await;
    }
}

/// The transport's settings. Source of the figures: the table of server settings in docs/protocol.md.
pub(crate) fn builder() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        // The bound of calls at work, too: the next one waits in the client. tonic's own limit, with its
        // load_shed, would refuse without a reason what this lets wait.
        .max_concurrent_streams(4_096)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_max_local_error_reset_streams(Some(256))
        .http2_max_header_list_size(16 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .initial_stream_window_size(256 * 1024)
}
