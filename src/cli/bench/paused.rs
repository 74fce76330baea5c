//! What claims cost where many queues are paused: the whole way from a free place to a claimed job, through
//! the queue's own door, in this process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::sync::mpsc;

use crate::cli::bench::claims::{Bench, CLAIM, FEW, compared};
use crate::cli::bench::report::Report;
use crate::config::TypeSettings;
use crate::job::name::Name;
use crate::job::time::SystemClock;
use crate::queue::{Handed, JobQueue, KnownType, Places, QueueSettings};
use crate::store::JobStore;

const TYPE: &str = "work";
const QUEUES: usize = 100;
const ROUNDS: usize = 200;

/// Compares claims out of one queue with those beside a hundred paused ones that hold `many` jobs together.
pub(super) async fn measure(report: &Report, folder: &Path, many: usize) -> anyhow::Result<()> {
    let mut alone = Line::open(&folder.join("alone.db"), 0).await?;
    let mut beside = Line::open(&folder.join("beside.db"), many).await?;
    let (mut ceiling, mut samples) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ceiling.push(alone.claim().await?);
        samples.push(beside.claim().await?);
    }
    compared(
        report,
        (
            "claim-paused",
            "32 claims through the queue, 1,000,000 waiting in 100 paused queues",
        ),
        &samples,
        ("with no other queue", &ceiling),
    )?;
    alone.queue.close().await;
    beside.queue.close().await;
    Ok(())
}

/// A queue whose jobs are claimed and never end.
struct Line {
    queue: JobQueue,
    places: Places,
    handed: mpsc::UnboundedReceiver<Handed>,
}

impl Line {
    async fn open(path: &Path, paused: usize) -> anyhow::Result<Self> {
        let bench = Bench::open(path).await?;
        let names = (0..QUEUES).map(|number| Name::new(format!("paused-{number}")));
        let names: Vec<Name> = names
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::msg)?;
        bench.fill(TYPE, FEW, 1).await?;
        for name in &names {
            bench.fill_queue(name, TYPE, paused / QUEUES).await?;
        }
        bench.store.close().await;
        let store = Bench::open(path).await?.store;
        let work = KnownType {
            settings: TypeSettings::default(),
            check: Arc::new(|_| Ok(())),
        };
        let settings = QueueSettings {
            types: [(Name::of(TYPE), work)].into(),
            ..QueueSettings::default()
        };
        let clock = Arc::new(SystemClock::new());
        let queue = JobQueue::open(Arc::new(store), clock, settings).await?;
        if paused > 0 {
            for name in &names {
                queue.pause_queue(name, true).await?;
            }
        }
        let places = Places::new(CLAIM, [(Name::of(TYPE), CLAIM)]);
        let (sender, handed) = mpsc::unbounded_channel();
        let begin = Box::new(move |job| drop(sender.send(job)));
        queue
            .attach_pool("bench".to_owned(), places.clone(), begin)
            .await;
        let mut line = Self {
            queue,
            places,
            handed,
        };
        line.take().await?;
        Ok(line)
    }

    /// From free places to as many jobs, their commit included.
    async fn claim(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        for _ in 0..CLAIM {
            self.places.give_back(&Name::of(TYPE));
        }
        self.queue.wake().await;
        self.take().await?;
        Ok(began.elapsed())
    }

    async fn take(&mut self) -> anyhow::Result<()> {
        for _ in 0..CLAIM {
            let handed = self.handed.recv().await.context("the queue has ended")?;
            let queue = &handed.claimed.job.spec.queue;
            ensure!(queue.as_str() == "default", "claimed from {queue}");
        }
        Ok(())
    }
}
