//! The figures that go over the network, each in turns with its ceiling: a machine that is busy with
//! something else slows both down, and the ratio stays.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tonic::transport::{Channel, Endpoint};

use crate::cli::bench::load::{Sample, drive, median, micros};
use crate::cli::bench::report::{Figure, Report, Target};
use crate::cli::bench::subject::{self, Subject};
use crate::cli::bench::{disk, echo};
use crate::pb;
use crate::pb::job::State;
use crate::pb::job_service_client::JobServiceClient;
use crate::pb::watch_job_response::Content;

pub(super) const CONNECTIONS: usize = 8;
pub(super) const IN_FLIGHT: usize = 64;
/// Between two looks at a job that has not begun yet.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A server, the connections to it, and how long to measure.
pub(super) struct Course {
    pub(super) subject: Subject,
    pub(super) folder: PathBuf,
    pub(super) jobs: Vec<Channel>,
    pub(super) echo: Vec<Channel>,
    /// How often a figure and its ceiling take turns.
    pub(super) rounds: usize,
    /// How long each is measured in a turn.
    pub(super) turn: Duration,
}

impl Course {
    pub(super) async fn open(
        folder: PathBuf,
        rounds: usize,
        turn: Duration,
    ) -> anyhow::Result<Self> {
        let subject = Subject::start(&folder).await?;
        let (mut jobs, mut echo) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            jobs.push(connect(&subject.jobs).await?);
            echo.push(connect(&subject.echo).await?);
        }
        Ok(Self {
            subject,
            folder,
            jobs,
            echo,
            rounds,
            turn,
        })
    }

    pub(super) fn client(&self, number: usize) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.jobs[number % CONNECTIONS].clone())
    }

    /// What the figures with many calls in flight have of them.
    pub(super) fn in_flight(&self) -> usize {
        IN_FLIGHT
    }

    pub(super) async fn echo(&self, in_flight: usize) -> anyhow::Result<Sample> {
        let channels = self.echo.clone();
        drive(&self.subject, in_flight, self.turn, move |number| {
            echo::call(channels[number % CONNECTIONS].clone())
        })
        .await
    }

    /// Durable submits, so many in flight.
    pub(super) async fn submit(
        &self,
        job_type: &'static str,
        in_flight: usize,
    ) -> anyhow::Result<Sample> {
        let channels = self.jobs.clone();
        drive(&self.subject, in_flight, self.turn, move |number| {
            let mut client = JobServiceClient::new(channels[number % CONNECTIONS].clone());
            async move {
                let answer = client.submit(request(job_type)).await?.into_inner();
                ensure!(answer.job.is_some(), "a submit without a job");
                Ok(())
            }
        })
        .await
    }

    async fn run(&self, in_flight: usize) -> anyhow::Result<Sample> {
        let channels = self.jobs.clone();
        drive(&self.subject, in_flight, self.turn, move |number| {
            let client = JobServiceClient::new(channels[number % CONNECTIONS].clone());
            run_to_end(client, request(subject::NOOP))
        })
        .await
    }

    /// Whether there is any job of a type.
    pub(super) async fn any_of(&self, job_type: &str) -> anyhow::Result<bool> {
        let mut request = pb::ListRequest {
            page_size: 1,
            types: vec![job_type.to_owned()],
            ..pb::ListRequest::default()
        };
        loop {
            let page = self.client(0).list(request.clone()).await?.into_inner();
            if !page.jobs.is_empty() || page.next_page_token.is_empty() {
                return Ok(!page.jobs.is_empty());
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Fills the only place of the type whose jobs wait.
    pub(super) async fn fill_place(&self) -> anyhow::Result<()> {
        let mut client = self.client(0);
        let submitted = client.submit(request(subject::FULL)).await?.into_inner();
        let job_id = submitted.job.unwrap_or_default().job_id;
        loop {
            let get = pb::GetRequest {
                job_id: job_id.clone(),
                ..pb::GetRequest::default()
            };
            let job = client.get(get).await?.into_inner().job.unwrap_or_default();
            match job.state() {
                State::Running => return Ok(()),
                State::Queued => tokio::time::sleep(LOOK_AGAIN).await,
                state => anyhow::bail!("the job that fills the place is {state:?}"),
            }
        }
    }

    /// Durable submits of jobs that wait, or that run meanwhile.
    pub(super) async fn submits(&self, report: &Report, run: bool) -> anyhow::Result<()> {
        let (name, what, job_type) = if run {
            (
                "submit-run",
                "Submit, 64 in flight, jobs run",
                subject::NOOP,
            )
        } else {
            ("submit", "Submit, 64 in flight, jobs wait", subject::FULL)
        };
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let ceiling = self.echo(IN_FLIGHT).await?;
            let sample = self.submit(job_type, IN_FLIGHT).await?;
            if run {
                // What is still to be run would slow the ceiling down.
                self.run_dry().await?;
            }
            rounds.push((ceiling, sample));
        }
        self.rates(report, name, what, Target::AtLeast(0.25), &rounds)
    }

    /// Waits until a job of the type that runs is done, and so are all before it.
    async fn run_dry(&self) -> anyhow::Result<()> {
        run_to_end(self.client(0), request(subject::NOOP)).await
    }

    pub(super) async fn runs(&self, report: &Report) -> anyhow::Result<()> {
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            rounds.push((self.echo(IN_FLIGHT).await?, self.run(IN_FLIGHT).await?));
        }
        let what = "Run of a no-op to its end, 64 in flight";
        self.rates(report, "run", what, Target::AtLeast(0.16), &rounds)
    }

    fn rates(
        &self,
        report: &Report,
        name: &'static str,
        what: &'static str,
        target: Target,
        rounds: &[(Sample, Sample)],
    ) -> anyhow::Result<()> {
        let ratios: Vec<f64> = rounds
            .iter()
            .map(|(ceiling, sample)| sample.rate() / ceiling.rate())
            .collect();
        let figure = Figure {
            name,
            what,
            ceiling: "echo, 64 in flight",
            rate: None,
            p50_ms: None,
            p99_ms: None,
            cpu_us: None,
            ratio: median(ratios.iter().copied()),
            target,
            rounds: ratios,
        };
        report.plain("  echo", &Sample::joined(rounds.iter().map(|(c, _)| c)))?;
        report.figure(&figure.of(&Sample::joined(rounds.iter().map(|(_, s)| s))))?;
        Ok(())
    }

    /// Latency of one caller alone: of a submit, or from it to the start of its handler.
    pub(super) async fn latency(&self, report: &Report, to_start: bool) -> anyhow::Result<()> {
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let echo = self.echo(1).await?;
            let sync = tokio::task::block_in_place(|| disk::sync(&self.folder, self.turn))?;
            let sample = if to_start {
                self.starts().await?
            } else {
                self.submit(subject::FULL, 1).await?
            };
            rounds.push((echo, sync, sample));
        }
        let p50 = |sample: &Sample| sample.quantile(0.5);
        let ratios: Vec<f64> = rounds
            .iter()
            .map(|(echo, sync, sample)| p50(sample) / (p50(echo) + p50(sync)))
            .collect();
        let (name, what) = if to_start {
            (
                "start",
                "submit to handler start, nothing else running, p50",
            )
        } else {
            ("submit-1", "Submit, 1 in flight, p50")
        };
        let figure = Figure {
            name,
            what,
            ceiling: "echo p50 at 1 + fdatasync p50",
            rate: None,
            p50_ms: None,
            p99_ms: None,
            cpu_us: None,
            ratio: median(ratios.iter().copied()),
            target: Target::AtMost(3.0),
            rounds: ratios,
        };
        report.plain(
            "  echo-1",
            &Sample::joined(rounds.iter().map(|(e, _, _)| e)),
        )?;
        report.plain(
            "  fdatasync",
            &Sample::joined(rounds.iter().map(|(_, d, _)| d)),
        )?;
        report.figure(&figure.of(&Sample::joined(rounds.iter().map(|(_, _, s)| s))))?;
        Ok(())
    }

    /// From before the call of a submit to the first line of its handler, one job at a time. The
    /// handler's time is its result.
    async fn starts(&self) -> anyhow::Result<Sample> {
        let mut client = self.client(0);
        let (cpu, start) = (self.subject.cpu()?, Instant::now());
        let mut sample = Sample::default();
        while start.elapsed() < self.turn {
            let before = subject::now_micros();
            let submitted = client.submit(request(subject::NOOP)).await?.into_inner();
            let wait = pb::WaitRequest {
                job_id: submitted.job.unwrap_or_default().job_id,
                ..pb::WaitRequest::default()
            };
            let job = client.wait(wait).await?.into_inner().job;
            let began = began_at(job.unwrap_or_default())?;
            let latency = u64::try_from(began - before).context("the clocks disagree")?;
            sample
                .latencies
                .push(micros(Duration::from_micros(latency)));
        }
        sample.seconds = start.elapsed().as_secs_f64();
        sample.cpu = self.subject.cpu()? - cpu;
        sample.latencies.sort_unstable();
        Ok(sample)
    }

    /// Output events of one job to one watcher, counted and checked.
    pub(super) async fn events(&self, report: &Report) -> anyhow::Result<()> {
        let how_long = self.turn.max(Duration::from_secs(5));
        let mut submit = request(subject::TALK);
        submit.input = Some(crate::cli::jobs::json_payload(
            &how_long.as_millis().to_string(),
        ));
        let request = pb::RunRequest {
            submit: Some(submit),
            ..pb::RunRequest::default()
        };
        let (cpu, start) = (self.subject.cpu()?, Instant::now());
        let mut updates = self.client(0).run(request).await?.into_inner();
        let mut log = Log::default();
        while let Some(response) = updates.message().await? {
            log.take(response.update.context("a message without an update")?)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let job = log.last.context("no final snapshot")?;
        ensure!(job.state() == State::Succeeded, "it is {:?}", job.state());
        ensure!(
            job.last_sequence == log.sequence,
            "the end of the log is missing"
        );
        ensure!(job.dropped_log_bytes == 0, "the log's bound was reached");
        let rate = log.outputs as f64 / seconds;
        let cpu = (self.subject.cpu()? - cpu) * 1e6 / log.outputs.max(1) as f64;
        report.figure(&Figure {
            name: "events",
            what: "output events of 64 bytes, one job to one watcher, none missing",
            ceiling: "100,000/s",
            rate: Some(rate),
            p50_ms: None,
            p99_ms: None,
            cpu_us: Some(cpu),
            ratio: rate / 100_000.0,
            target: Target::AtLeast(1.0),
            rounds: vec![rate / 100_000.0],
        })?;
        Ok(())
    }
}

/// A log as it arrives.
#[derive(Debug, Default)]
struct Log {
    sequence: i64,
    offset: i64,
    outputs: u64,
    last: Option<pb::Job>,
}

impl Log {
    /// Takes what comes next, and only that.
    fn take(&mut self, update: pb::WatchJobResponse) -> anyhow::Result<()> {
        match update.content {
            Some(Content::Snapshot(job)) => self.last = Some(job),
            Some(Content::Events(batch)) => {
                for event in batch.decoded()? {
                    let expected = self.sequence + 1;
                    ensure!(event.sequence == expected, "event {expected} is missing");
                    self.sequence = expected;
                    if let Some(pb::job_event::Event::Output(output)) = event.event {
                        ensure!(output.offset == self.offset, "a hole in the output");
                        self.offset += 64;
                        self.outputs += 1;
                    }
                }
            }
            Some(Content::Gap(gap)) => anyhow::bail!("a gap: {gap:?}"),
            Some(Content::Heartbeat(_)) | None => {}
        }
        Ok(())
    }
}

pub(super) async fn connect(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned())?.tcp_nodelay(true);
    Ok(endpoint.connect().await?)
}

/// A job as people submit them: with a small input.
pub(super) fn request(job_type: &'static str) -> pb::SubmitRequest {
    pb::SubmitRequest {
        r#type: job_type.to_owned(),
        input: Some(crate::cli::jobs::json_payload(
            r#"{"path":"pictures/2026/november/0001.jpg","width":640}"#,
        )),
        ..pb::SubmitRequest::default()
    }
}

async fn run_to_end(
    mut client: JobServiceClient<Channel>,
    submit: pb::SubmitRequest,
) -> anyhow::Result<()> {
    let request = pb::RunRequest {
        submit: Some(submit),
        ..pb::RunRequest::default()
    };
    let mut updates = client.run(request).await?.into_inner();
    let mut last = None;
    while let Some(response) = updates.message().await? {
        last = response.update;
    }
    match last.and_then(|update| update.content) {
        Some(Content::Snapshot(job)) if job.state() == State::Succeeded => Ok(()),
        other => anyhow::bail!("a run ended with {other:?}"),
    }
}

fn began_at(job: pb::Job) -> anyhow::Result<i64> {
    let content = job.result.and_then(|result| result.content);
    match content {
        Some(pb::payload::Content::Json(value)) => match value.kind {
            Some(prost_types::value::Kind::NumberValue(at)) => Ok(at as i64),
            other => anyhow::bail!("the handler gave {other:?}"),
        },
        other => anyhow::bail!("the handler gave {other:?}"),
    }
}
