//! What a claim costs the store, with few jobs waiting and with many, of one tenant and of a thousand:
//! without a server, in this process, through the verb that the server uses.

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
pub(super) const CLAIM: usize = 32;
pub(super) const FEW: usize = 10_000;
const GROUP: usize = 2_000;

/// Tenants that share a backlog.
const TENANTS: usize = 1_000;

/// A store and a clock.
pub(super) struct Bench {
    pub(super) store: SqliteStore,
    clock: SystemClock,
}

/// Compares claims with 10,000 waiting, with `many`, and with `many` of a type that is full.
pub(super) async fn measure(report: &Report, folder: &Path, many: usize) -> anyhow::Result<()> {
    let few = Bench::open(&folder.join("few.db")).await?;
    let big = Bench::open(&folder.join("many.db")).await?;
    few.fill("work", FEW, 1).await?;
    big.fill("work", many, 1).await?;
    big.fill("other", FEW, 1).await?;
    few.fill("shared", FEW, TENANTS).await?;
    big.fill("shared", many, TENANTS).await?;
    let mut samples = [const { Vec::new() }; 5];
    let rounds = 200;
    ensure!(rounds * CLAIM < FEW, "there would be too few to claim");
    for round in 0..rounds {
        samples[0].push(few.claim(&[("work", 0, CLAIM)]).await?);
        samples[1].push(big.claim(&[("work", 0, CLAIM)]).await?);
        samples[2].push(big.claim(&[("other", 0, CLAIM)]).await?);
        // One place each, as places are shared between tenants.
        let first = round * CLAIM;
        let of_tenants = (first..first + CLAIM).map(|number| ("shared", number % TENANTS, 1));
        let of_tenants: Vec<_> = of_tenants.collect();
        samples[3].push(few.claim(&of_tenants).await?);
        samples[4].push(big.claim(&of_tenants).await?);
    }
    report.plain("  claim-10k", &sample(&samples[0]))?;
    report.plain("  claim-10k-1k", &sample(&samples[3]))?;
    let figures = [
        ("claim-many", "a claim of 32 with 1,000,000 waiting", 1, 0),
        (
            "claim-full",
            "the same, the million being of a full type",
            2,
            0,
        ),
        (
            "claim-tenants",
            "one job each of 32 of 1,000 tenants, 1,000,000 waiting",
            4,
            3,
        ),
    ];
    for (name, what, of, beside) in figures {
        let ceiling = ("with 10,000 waiting", &samples[beside][..]);
        compared(report, (name, what), &samples[of], ceiling)?;
    }
    few.store.close().await;
    big.store.close().await;
    Ok(())
}

/// The name of a tenant. The first one is the one that everyone is without keys.
fn tenant(number: usize) -> Name {
    match number {
        0 => default_tenant(),
        number => Name::new(format!("tenant-{number}")).expect("a name"),
    }
}

/// Reports what claims cost beside what others cost, which were taken in turns with them.
pub(super) fn compared(
    report: &Report,
    (name, what): (&'static str, &'static str),
    samples: &[Duration],
    (ceiling, others): (&'static str, &[Duration]),
) -> anyhow::Result<()> {
    // In tenths, as the other figures are in rounds.
    let tenths = |samples: &[Duration]| -> Vec<f64> {
        let tenth = samples.chunks(samples.len().div_ceil(10));
        tenth
            .map(|chunk| median(chunk.iter().map(Duration::as_secs_f64)))
            .collect()
    };
    let ratios: Vec<f64> = tenths(samples)
        .iter()
        .zip(&tenths(others))
        .map(|(figure, ceiling)| figure / ceiling)
        .collect();
    let figure = Figure {
        name,
        what,
        ceiling,
        rate: None,
        p50_ms: None,
        p99_ms: None,
        cpu_us: None,
        ratio: median(ratios.iter().copied()),
        target: Target::AtMost(1.5),
        rounds: ratios,
    };
    Ok(report.figure(&figure.of(&sample(samples)))?)
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
    pub(super) async fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            store: SqliteStore::open(path).await?,
            clock: SystemClock::new(),
        })
    }

    /// Lets jobs wait, those of several tenants in turns.
    pub(super) async fn fill(
        &self,
        job_type: &'static str,
        jobs: usize,
        tenants: usize,
    ) -> anyhow::Result<()> {
        let spec = JobSpec::of(Name::of(job_type));
        self.fill_with(&spec, jobs, |number| tenant(number % tenants))
            .await
    }

    /// Lets jobs wait in a queue.
    pub(super) async fn fill_queue(
        &self,
        queue: &Name,
        job_type: &'static str,
        jobs: usize,
    ) -> anyhow::Result<()> {
        let spec = JobSpec {
            queue: queue.clone(),
            ..JobSpec::of(Name::of(job_type))
        };
        self.fill_with(&spec, jobs, |_| default_tenant()).await
    }

    async fn fill_with(
        &self,
        spec: &JobSpec,
        jobs: usize,
        tenant: impl Fn(usize) -> Name,
    ) -> anyhow::Result<()> {
        let mut done = 0;
        while done < jobs {
            let some = done..jobs.min(done + GROUP);
            done = some.end;
            let submit = |number| Entry::Submit {
                new: Box::new(NewJob::new(
                    JobKey {
                        tenant: tenant(number),
                        id: JobId::new(Uuid::now_v7()),
                    },
                    spec.clone(),
                    Some(Payload::text("0001.jpg")),
                )),
                hand_over: None,
            };
            self.commit(some.map(submit).collect(), Vec::new()).await?;
        }
        Ok(())
    }

    /// One claim of type, tenant and how many, and how long it took with its commit.
    async fn claim(&self, of: &[(&'static str, usize, usize)]) -> anyhow::Result<Duration> {
        let demand = of.iter().map(|(job_type, number, places)| Demand {
            claimant: 0,
            lane: Lane {
                queue: TypeSettings::default().queue,
                job_type: Name::of(job_type),
                tenant: tenant(*number),
            },
            places: *places,
        });
        let demand = demand.collect();
        let began = Instant::now();
        let claimed = self.commit(Vec::new(), demand).await?;
        let took = began.elapsed();
        ensure!(claimed == CLAIM, "claimed {claimed} instead of {CLAIM}");
        Ok(took)
    }

    async fn commit(&self, entries: Vec<Entry>, demand: Vec<Demand>) -> anyhow::Result<usize> {
        let group = Group {
            entries,
            demand,
            claimants: [(
                0,
                ClaimTerms {
                    worker_id: "bench".to_owned(),
                    heard_at: self.clock.steady(),
                    lease_until: self.clock.steady().after(LEASE),
                    term: None,
                },
            )]
            .into(),
            room: Default::default(),
            key_limits: Arc::default(),
            now: self.clock.now(),
        };
        Ok(self.store.commit(group).await?.claimed.len())
    }
}
