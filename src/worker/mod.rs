//! The pool of this process: takes what the queue claims for it, and runs each attempt to its end.
//!
//! It is a worker like any other: it holds leases, reports and finishes through the queue's door. It
//! promises to finish or hand back whatever it was given, and to hold a place no longer than that.

mod attempt;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::executor::{Executor, Quarters};
use crate::job::name::Name;
use crate::queue::{Handed, JobQueue, Places};

/// What attempts get to stop in once the store has failed. Chosen: whoever waits for the end of this
/// process, to start the next one, should not wait long.
const ABANDON_WAIT: Duration = Duration::from_millis(300);

/// What a pool is made of.
pub struct PoolSettings {
    /// What runs each type.
    pub executors: HashMap<Name, Arc<dyn Executor>>,
    /// Most jobs running at once of each type that has a bound of its own.
    pub concurrency: HashMap<Name, usize>,
    /// Most jobs running at once.
    pub workers: usize,
    /// Who it is: stands in every job that it runs.
    pub worker_id: String,
}

/// A pool that is at work.
#[derive(Debug)]
pub struct Pool {
    queue: JobQueue,
    tasks: TaskTracker,
    /// Tripped when attempts that still run have to be handed back.
    hand_back: CancellationToken,
    _quarters: Quarters,
}

impl Pool {
    /// Makes the pool known to the queue and begins to work.
    ///
    /// # Errors
    /// Where the system gives no threads.
    pub async fn start(queue: JobQueue, settings: PoolSettings) -> std::io::Result<Self> {
        let PoolSettings {
            executors,
            concurrency,
            workers,
            worker_id,
        } = settings;
        let by_type = executors.keys().map(|job_type| {
            let most = concurrency.get(job_type).copied().unwrap_or(workers);
            (job_type.clone(), most.min(workers))
        });
        let quarters = Quarters::new(workers)?;
        let places = Places::new(workers, by_type);
        let crew = Crew {
            queue: queue.clone(),
            executors,
            places: places.clone(),
            hand_back: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            quarters: quarters.handle().clone(),
        };
        let pool = Self {
            queue: queue.clone(),
            tasks: crew.tasks.clone(),
            hand_back: crew.hand_back.clone(),
            _quarters: quarters,
        };
        let begin = Box::new(move |handed| crew.begin(handed));
        queue.attach_pool(worker_id, places, begin).await;
        Ok(pool)
    }

    /// Waits until nothing runs any more, at most `grace`; what still runs then is stopped and handed
    /// back, for which it has a few seconds. The queue must be draining already.
    pub async fn drain(self, grace: Duration) {
        if tokio::time::timeout(grace, self.all_over()).await.is_err() {
            self.hand_back.cancel();
            if tokio::time::timeout(attempt::HAND_BACK_MAX, self.all_over())
                .await
                .is_err()
            {
                tracing::error!("attempts are left to the next start: they could not be stored");
            }
        }
    }

    /// Waits until every attempt is over, those included whose claims were on their way when the drain
    /// began.
    async fn all_over(&self) {
        self.queue.settle().await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Stops everything without waiting for its end, for which there is no store any more.
    pub async fn abandon(self) {
        self.tasks.close();
        self.hand_back.cancel();
        // Most of it ends at once; a command that does not is ended by the next start.
        let _ = tokio::time::timeout(ABANDON_WAIT, self.tasks.wait()).await;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The queue must not hand out to a pool that has gone, nor be held by it.
        self.queue.detach_pool();
    }
}

struct Crew {
    queue: JobQueue,
    executors: HashMap<Name, Arc<dyn Executor>>,
    places: Places,
    hand_back: CancellationToken,
    tasks: TaskTracker,
    /// Where attempts are looked after.
    runtime: Handle,
    /// Where handlers run.
    quarters: Handle,
}

impl Crew {
    fn begin(&self, handed: Handed) {
        let job_type = handed.claimed.job.spec.job_type.clone();
        let Some(executor) = self.executors.get(&job_type).cloned() else {
            // Places exist for known types only, so that nothing else is ever claimed.
            tracing::error!(%job_type, "claimed a job that this pool cannot run");
            self.places.give_back(&job_type);
            return;
        };
        let run = attempt::run(
            self.queue.clone(),
            executor,
            handed,
            self.places.clone(),
            self.hand_back.clone(),
            self.quarters.clone(),
        );
        self.tasks.spawn_on(run, &self.runtime);
    }
}
