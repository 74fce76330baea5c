//! What a claim costs the store, with few jobs waiting and with many: without a server, in this
//! process, through the verb that the server uses.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use uuid::Uuid;

use crate::cli::bench::load::{Sample, median, micros};
use crate::cli::bench::report::{Figure, Report, Target};
use crate::config::TypeSettings;
use crate::job::limits::LEASE;
use crate::job::name::{JobId, JobKey, Lane, Name};
use crate::job::payload::Payload;
use crate::job::time::{Clock, SystemClock};
use crate::job::{JobSpec, NewJob};
use crate::queue::default_tenant;
use crate::store::sqlite::SqliteStore;
use crate::store::{ClaimTerms, Demand, Entry, Group, JobStore};

/// Jobs that one claim takes.
const CLAIM: usize = 32;
const FEW: usize = 10_000;
const GROUP: usize = 2_000;

/// A store and a clock.
struct Bench {
    store: SqliteStore,
    clock: SystemClock,
}

/// Compares claims with 10,000 waiting, with `many`, and with `many` of a type that is full.
pub(super) async fn measure(report: &Report, folder: &Path, many: usize) -> anyhow::Result<()> {
    let few = Bench::open(&folder.join("few.db")).await?;
    let big = Bench::open(&folder.join("many.db")).await?;
    few.fill("work", FEW).await?;
    big.fill("work", many).await?;
    big.fill("other", FEW).await?;
    let mut samples = [const { Vec::new() }; 3];
    let rounds = 200;
    ensure!(rounds * CLAIM < FEW, "there would be too few to claim");
    for _ in 0..rounds {
        samples[0].push(few.claim("work").await?);
        samples[1].push(big.claim("work").await?);
        samples[2].push(big.claim("other").await?);
    }
    // In tenths, as the other figures are in rounds.
    let tenths = |samples: &[Duration]| -> Vec<f64> {
        let tenth = samples.chunks(rounds / 10);
        tenth
            .map(|chunk| median(chunk.iter().map(Duration::as_secs_f64)))
            .collect()
    };
    let ceiling = tenths(&samples[0]);
    report.plain("  claim-10k", &sample(&samples[0]))?;
    let figures = [
        ("claim-many", "a claim of 32 with 1,000,000 waiting"),
        ("claim-full", "the same, the million being of a full type"),
    ];
    for ((name, what), samples) in figures.into_iter().zip(&samples[1..]) {
        let ratios: Vec<f64> = tenths(samples)
            .iter()
            .zip(&ceiling)
            .map(|(figure, ceiling)| figure / ceiling)
            .collect();
        let figure = Figure {
            name,
            what,
            ceiling: "with 10,000 waiting",
            rate: None,
            p50_ms: None,
            p99_ms: None,
            cpu_us: None,
            ratio: median(ratios.iter().copied()),
            target: Target::AtMost(1.5),
            rounds: ratios,
        };
        report.figure(&figure.of(&sample(samples)))?;
    }
    few.store.close().await;
    big.store.close().await;
    Ok(())
}

fn sample(durations: &[Duration]) -> Sample {
    let mut latencies: Vec<u32> = durations.iter().map(|time| micros(*time)).collect();
    latencies.sort_unstable();
    Sample {
        seconds: durations.iter().map(Duration::as_secs_f64).sum(),
        latencies,
        cpu: 0.0,
    }
}

impl Bench {
    async fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            store: SqliteStore::open(path).await?,
            clock: SystemClock::new(),
        })
    }

    async fn fill(&self, job_type: &'static str, jobs: usize) -> anyhow::Result<()> {
        let mut left = jobs;
        while left > 0 {
            let some = left.min(GROUP);
            left -= some;
            let submit = |_| Entry::Submit {
                new: Box::new(NewJob::new(
                    JobKey {
                        tenant: default_tenant(),
                        id: JobId::new(Uuid::now_v7()),
                    },
                    JobSpec::of(Name::of(job_type)),
                    Some(Payload::text("0001.jpg")),
                )),
                hand_over: false,
            };
            self.commit((0..some).map(submit).collect(), Vec::new())
                .await?;
        }
        Ok(())
    }

    /// One claim, and how long it took with its commit.
    async fn claim(&self, job_type: &'static str) -> anyhow::Result<Duration> {
        let demand = Demand {
            lane: Lane {
                queue: TypeSettings::default().queue,
                job_type: Name::of(job_type),
                tenant: default_tenant(),
            },
            places: CLAIM,
        };
        let began = Instant::now();
        let claimed = self.commit(Vec::new(), vec![demand]).await?;
        let took = began.elapsed();
        ensure!(claimed == CLAIM, "claimed {claimed} instead of {CLAIM}");
        Ok(took)
    }

    async fn commit(&self, entries: Vec<Entry>, demand: Vec<Demand>) -> anyhow::Result<usize> {
        let group = Group {
            entries,
            demand,
            terms: ClaimTerms {
                worker_id: "bench".to_owned(),
                heard_at: self.clock.steady(),
                lease_until: self.clock.steady().after(LEASE),
            },
            room: Default::default(),
            key_limits: Arc::default(),
            now: self.clock.now(),
        };
        Ok(self.store.commit(group).await?.claimed.len())
    }
}
