//! Jobs that come together and are watched together: BatchSubmit, and one stream over a thousand of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::cli::bench::figures::{Course, request};
use crate::cli::bench::load::{Sample, median, micros};
use crate::cli::bench::report::{Figure, Report, Target};
use crate::cli::bench::subject::{self, Subject};
use crate::cli::jobs::json_payload;
use crate::pb;
use crate::pb::job::State;
use crate::pb::job_service_client::JobServiceClient;
use crate::pb::watch_jobs_response::Content;

/// Jobs of one call, and that run at once under one watch.
const BATCH: usize = 1_000;

impl Course {
    /// Durable jobs a second that come a thousand a call, one call after the other.
    pub(super) async fn batches(&self, report: &Report) -> anyhow::Result<()> {
        let mut client = self.client(0);
        let requests = vec![request(subject::FULL); BATCH];
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let ceiling = self.echo(self.in_flight()).await?;
            let (cpu, start) = (self.subject.cpu()?, Instant::now());
            let mut sample = Sample::default();
            while start.elapsed() < self.turn {
                let began = Instant::now();
                let requests = requests.clone();
                let batch = pb::BatchSubmitRequest { requests };
                let answer = client.batch_submit(batch).await?.into_inner();
                ensure!(answer.responses.len() == BATCH, "a batch is not whole");
                sample.latencies.push(micros(began.elapsed()));
            }
            sample.seconds = start.elapsed().as_secs_f64();
            sample.cpu = self.subject.cpu()? - cpu;
            sample.latencies.sort_unstable();
            rounds.push((ceiling, sample));
        }
        let ratios: Vec<f64> = rounds
            .iter()
            .map(|(ceiling, sample)| sample.rate() * BATCH as f64 / ceiling.rate())
            .collect();
        let all = Sample::joined(rounds.iter().map(|(_, sample)| sample));
        let figure = Figure {
            name: "batch",
            what: "jobs of BatchSubmit, 1,000 a call, 1 call in flight; times are a call's",
            ceiling: "echo, 64 in flight",
            rate: None,
            p50_ms: None,
            p99_ms: None,
            cpu_us: None,
            ratio: median(ratios.iter().copied()),
            target: Target::AtLeast(1.0),
            rounds: ratios,
        };
        let mut figure = figure.of(&all);
        figure.rate = figure.rate.map(|rate| rate * BATCH as f64);
        figure.cpu_us = figure.cpu_us.map(|cpu| cpu / BATCH as f64);
        Ok(report.figure(&figure)?)
    }
}

/// A thousand jobs that run at once and write as fast as they are let, under one watch.
pub(super) async fn watch(report: &Report, folder: &Path, turn: Duration) -> anyhow::Result<()> {
    let store = folder.join("watch-jobs.db");
    let subject = Subject::start_with(folder, &store, Some(BATCH)).await?;
    let mut client = JobServiceClient::connect(subject.jobs.clone()).await?;
    let mut talk = request(subject::TALK);
    talk.input = Some(json_payload(&turn.as_millis().to_string()));
    let requests = vec![talk; BATCH];
    let (cpu, start) = (subject.cpu()?, Instant::now());
    let batch = pb::BatchSubmitRequest { requests };
    let batch_id = client.batch_submit(batch).await?.into_inner().batch_id;
    let request = pb::WatchJobsRequest {
        batch_id,
        ..pb::WatchJobsRequest::default()
    };
    let mut updates = client.watch_jobs(request).await?.into_inner();
    let mut seen = Seen::default();
    while let Some(update) = updates.message().await? {
        seen.take(update.content.context("a message without content")?)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    ensure!(seen.finished == BATCH, "{} jobs were over", seen.finished);
    let rate = seen.outputs as f64 / seconds;
    let cpu = (subject.cpu()? - cpu) * 1e6 / seen.outputs.max(1) as f64;
    report.figure(&Figure {
        name: "watch-jobs",
        what: "output events of 1,000 jobs at once to one watcher, none missing",
        ceiling: "100,000/s",
        rate: Some(rate),
        p50_ms: None,
        p99_ms: None,
        cpu_us: Some(cpu),
        ratio: rate / 100_000.0,
        target: Target::AtLeast(1.0),
        rounds: vec![rate / 100_000.0],
    })?;
    subject.stop().await
}

/// What has arrived.
#[derive(Debug, Default)]
struct Seen {
    /// The last sequence of each job.
    sequences: std::collections::HashMap<String, i64>,
    outputs: u64,
    finished: usize,
}

impl Seen {
    /// Takes what comes next of each job, and only that.
    fn take(&mut self, content: Content) -> anyhow::Result<()> {
        match content {
            Content::Snapshot(jobs) => {
                for job in jobs.jobs {
                    self.sequences.insert(job.job_id, job.last_sequence);
                }
            }
            Content::Events(batch) => {
                for event in batch.decoded()? {
                    let last = self.sequences.entry(event.job_id).or_default();
                    *last += 1;
                    ensure!(event.sequence == *last, "event {last} is missing");
                    let output = matches!(event.event, Some(pb::job_event::Event::Output(_)));
                    self.outputs += u64::from(output);
                }
            }
            Content::Finished(jobs) => {
                for job in jobs.jobs {
                    ensure!(
                        job.state() == State::Succeeded,
                        "a job is {:?}",
                        job.state()
                    );
                    let seen = self.sequences.get(&job.job_id).copied().unwrap_or(0);
                    ensure!(seen == job.last_sequence, "the end of a log is missing");
                    self.finished += 1;
                }
            }
            Content::Gap(gap) => anyhow::bail!("a gap: {gap:?}"),
            Content::Heartbeat(_) | Content::RollUp(_) => {}
        }
        Ok(())
    }
}
