//! What submits wait while retention removes very many jobs: the same server on two stores that were filled
//! alike, of which one keeps what is over, in turns.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use uuid::Uuid;

use crate::cli::bench::figures::Course;
use crate::cli::bench::load::{Sample, median};
use crate::cli::bench::report::{Figure, Report, Target};
use crate::cli::bench::subject;
use crate::job::limits::{DURATION_MAX, LEASE};
use crate::job::name::{JobId, JobKey, Name};
use crate::job::payload::Payload;
use crate::job::time::{Clock, SystemClock};
use crate::job::{Change, JobSpec, NewJob, Outcome};
use crate::queue::default_tenant;
use crate::store::sqlite::SqliteStore;
use crate::store::{ClaimTerms, Entry, Group, JobStore};

const GROUP: usize = 1_000;
/// The type of the jobs that are over.
const OVER: &str = "over";

/// Compares the p99 of submits with and without a purge beside them.
pub(super) async fn measure(
    report: &Report,
    folder: &Path,
    jobs: usize,
    rounds: usize,
    turn: Duration,
) -> anyhow::Result<()> {
    let kept = filled(folder, "kept", jobs, DURATION_MAX).await?;
    let removed = filled(folder, "removed", jobs, Duration::ZERO).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        without.push(submits(&kept, turn).await?);
        with.push(submits(&removed, turn).await?);
    }
    let pairs = with.iter().zip(&without);
    let ratios: Vec<f64> = pairs
        .map(|(with, without)| with.quantile(0.99) / without.quantile(0.99))
        .collect();
    report.plain("  purge-none", &Sample::joined(&without))?;
    let figure = Figure {
        name: "purge",
        what: "p99 of Submit, 64 in flight, while jobs are removed",
        ceiling: "while none are",
        rate: None,
        p50_ms: None,
        p99_ms: None,
        cpu_us: None,
        ratio: median(ratios.iter().copied()),
        target: Target::AtMost(2.0),
        rounds: ratios,
    };
    Ok(report.figure(&figure.of(&Sample::joined(&with)))?)
}

/// A turn of submits to a server on a store; what is due there is removed meanwhile.
async fn submits(folder: &Path, turn: Duration) -> anyhow::Result<Sample> {
    let course = Course::open(folder.to_owned(), 1, turn).await?;
    let left = course.any_of(OVER).await?;
    ensure!(left, "all are removed already: give more --purge-jobs");
    let sample = course
        .submit(subject::FULL, super::figures::IN_FLIGHT)
        .await?;
    course.subject.stop().await?;
    Ok(sample)
}

/// A folder with a store of jobs that have succeeded.
async fn filled(
    folder: &Path,
    name: &str,
    jobs: usize,
    retention: Duration,
) -> anyhow::Result<PathBuf> {
    let folder = folder.join(name);
    std::fs::create_dir(&folder).context("no folder for a store")?;
    let store = SqliteStore::open(&folder.join(subject::STORE)).await?;
    let clock = SystemClock::new();
    let mut left = jobs;
    while left > 0 {
        let some = left.min(GROUP);
        left -= some;
        let entries = (0..some).flat_map(|_| life(retention));
        let group = Group {
            entries: entries.collect(),
            demand: Vec::new(),
            claimants: [(
                0,
                ClaimTerms {
                    worker_id: "bench".to_owned(),
                    heard_at: clock.steady(),
                    lease_until: clock.steady().after(LEASE),
                    term: None,
                },
            )]
            .into(),
            room: Default::default(),
            key_limits: Arc::default(),
            now: clock.now(),
        };
        store.commit(group).await?;
    }
    store.close().await;
    Ok(folder)
}

/// From the submit to the end, in one group.
fn life(retention: Duration) -> [Entry; 2] {
    let key = JobKey {
        tenant: default_tenant(),
        id: JobId::new(Uuid::now_v7()),
    };
    let mut spec = JobSpec::of(Name::of(OVER));
    spec.retention.finished = retention;
    let new = NewJob::new(key.clone(), spec, Some(Payload::text("0001.jpg")));
    let submit = Entry::Submit {
        new: Box::new(new),
        hand_over: Some(0),
    };
    let change = Change::Finish {
        attempt: 1,
        outcome: Outcome::Succeeded(Some(Payload::text("done"))),
        chance: 0.0,
        fingerprint: None,
    };
    [submit, Entry::Change { key, change }]
}
