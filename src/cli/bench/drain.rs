//! How fast a backlog is worked off: jobs that do nothing, waiting when the server starts, with its
//! default settings.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use tonic::transport::Endpoint;

use crate::cli::bench::claims::Bench;
use crate::cli::bench::report::{Figure, Report, Target};
use crate::cli::bench::subject::{self, Subject};
use crate::pb;
use crate::pb::job::State;
use crate::pb::job_service_client::JobServiceClient;
use crate::store::JobStore;

/// What to aim for. Jobs a second. Source: the fastest of the systems that others measured.
const AIM: f64 = 40_000.0;

/// Fills a store with jobs, starts the server on it, and waits for the last one.
pub(super) async fn measure(report: &Report, folder: &Path, jobs: usize) -> anyhow::Result<()> {
    let path = folder.join("drain.db");
    let bench = Bench::open(&path).await?;
    bench.fill(subject::NOOP, jobs, 1).await?;
    bench.store.close().await;
    let began = Instant::now();
    let subject = Subject::start_on(folder, &path).await?;
    worked_off(&subject, jobs).await?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = subject.cpu()? * 1e6 / jobs as f64;
    let rate = jobs as f64 / seconds;
    report.figure(&Figure {
        name: "drain",
        what: "waiting no-op jobs worked off, default settings, start of the server included",
        ceiling: "40,000/s",
        rate: Some(rate),
        p50_ms: None,
        p99_ms: None,
        cpu_us: Some(cpu),
        ratio: rate / AIM,
        target: Target::AtLeast(1.0),
        rounds: vec![rate / AIM],
    })?;
    subject.stop().await
}

/// Waits until the last of so many jobs is done, and looks whether they were done well.
pub(super) async fn worked_off(subject: &Subject, jobs: usize) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(subject.jobs.clone())?
        .connect()
        .await?;
    let mut client = JobServiceClient::new(channel);
    let waiting = pb::ListRequest {
        page_size: 1,
        states: vec![State::Queued as i32, State::Running as i32],
        ..pb::ListRequest::default()
    };
    // Newest first, and the newest is claimed last: one look at a time is cheap, and nothing is asked twice
    // before it has an answer.
    loop {
        let page = client.list(waiting.clone()).await?.into_inner();
        let Some(last) = page.jobs.into_iter().next() else {
            break;
        };
        let wait = pb::WaitRequest {
            job_id: last.job_id,
            ..pb::WaitRequest::default()
        };
        client.wait(wait).await?;
    }
    let done = pb::ListRequest {
        page_size: 1_000,
        states: vec![State::Succeeded as i32],
        ..pb::ListRequest::default()
    };
    let page = client.list(done).await?.into_inner();
    ensure!(page.jobs.len() == jobs.min(1_000), "some did not succeed");
    let last = page.jobs.first().context("nothing was done")?;
    ensure!(last.attempt == 1, "a job ran {} times", last.attempt);
    Ok(())
}
