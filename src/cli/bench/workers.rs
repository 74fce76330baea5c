//! Workers outside the server: how fast they work, how soon they begin, and what they cost while they wait.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::cli::bench::claims::Bench;
use crate::cli::bench::figures::{CONNECTIONS, Course, IN_FLIGHT, connect, request};
use crate::cli::bench::load::{Sample, drive, median, micros};
use crate::cli::bench::report::{Figure, Report, Target};
use crate::cli::bench::subject::{self, Subject};
use crate::cli::bench::{disk, drain, echo};
use crate::client::worker::{Context, HandlerError, Worker};
use crate::client::{Client, ClientError};
use crate::pb;
use crate::pb::worker_service_client::WorkerServiceClient;
use crate::store::JobStore;

/// A type that only workers serve.
const REMOTE: &str = "remote";
/// Workers that wait for work, and how many of them share a connection. Source: what the project aims at.
const WAITING: usize = 1_000;
const A_CONNECTION: usize = 10;
/// What they may cost together: of one core, and KiB each. Source: the same.
const WAITING_CPU_MAX: f64 = 0.05;
const WAITING_KIB_MAX: f64 = 20.0;
/// How long one waits before it asks again. Chosen: the default of the protocol.
const WAIT: Duration = Duration::from_secs(30);

/// A worker in this process, for as long as it is not stopped.
struct Working {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ClientError>>,
}

impl Working {
    /// Waits until its type is known to the server.
    async fn begin<F, Fut>(subject: &Subject, places: usize, handler: F) -> anyhow::Result<Self>
    where
        F: Fn(Context, Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let client = Client::connect(subject.jobs.clone()).await?;
        let worker = Worker::new(&client)
            .handler(REMOTE, handler)
            .concurrency(places);
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(worker.run(async {
            // It also ends where nobody waits for it any more.
            let _ = stopped.await;
        }));
        loop {
            let types = client.queues().job_types().await?;
            if types.iter().any(|known| known.name == REMOTE) {
                return Ok(Self { stop, running });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn end(self) -> anyhow::Result<()> {
        drop(self.stop);
        Ok(self.running.await??)
    }
}

/// Backlogs worked off by the pool of the server, and by a worker with as many places.
pub(super) async fn drains(
    report: &Report,
    folder: &Path,
    jobs: usize,
    rounds: usize,
    turn: Duration,
) -> anyhow::Result<()> {
    let places = crate::config::Config::default().workers;
    let (mut echoes, mut pool, mut same, mut many) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let store = |name: &str| folder.join(format!("workers-{name}-{round}.db"));
        let subject = filled(folder, &store("pool"), subject::NOOP, jobs).await?;
        pool.push(off(&subject, jobs).await?);
        echoes.push(echo_of(&subject, turn).await?);
        subject.stop().await?;
        for (name, places, rates) in [("same", places, &mut same), ("many", IN_FLIGHT, &mut many)] {
            let subject = filled(folder, &store(name), REMOTE, jobs).await?;
            // From here, and not from when its type is known: it may be half done by then.
            let (cpu, began) = (subject.cpu()?, Instant::now());
            let working = Working::begin(&subject, places, |_, _| async { Ok(()) }).await?;
            rates.push(since(&subject, jobs, cpu, began).await?);
            working.end().await?;
            subject.stop().await?;
        }
    }
    let ratio = |of: &[Rate], to: &dyn Fn(usize) -> f64| -> Vec<f64> {
        of.iter()
            .enumerate()
            .map(|(round, rate)| rate.a_second / to(round))
            .collect()
    };
    let figures = [
        (
            "workers",
            "no-op jobs worked off by a worker, as many places as the pool",
            "the pool of the server",
            &same,
            ratio(&same, &|round| pool[round].a_second),
        ),
        (
            "workers-64",
            "the same with 64 places",
            "the pool, with its own places",
            &many,
            ratio(&many, &|round| pool[round].a_second),
        ),
        (
            "workers-64",
            "the same with 64 places",
            "echo, 64 in flight",
            &many,
            ratio(&many, &|round| echoes[round]),
        ),
        (
            "pool",
            "the same jobs worked off by the pool of the server",
            "echo, 64 in flight",
            &pool,
            ratio(&pool, &|round| echoes[round]),
        ),
    ];
    for (name, what, ceiling, rates, ratios) in figures {
        report.figure(&Figure {
            name,
            what,
            ceiling,
            rate: Some(median(rates.iter().map(|rate| rate.a_second))),
            p50_ms: None,
            p99_ms: None,
            cpu_us: Some(median(rates.iter().map(|rate| rate.cpu_us))),
            ratio: median(ratios.iter().copied()),
            target: Target::Open,
            rounds: ratios,
        })?;
    }
    Ok(())
}

/// How fast a backlog was worked off.
struct Rate {
    a_second: f64,
    /// The server's. Microseconds a job.
    cpu_us: f64,
}

async fn filled(
    folder: &Path,
    store: &Path,
    job_type: &'static str,
    jobs: usize,
) -> anyhow::Result<Subject> {
    let bench = Bench::open(store).await?;
    bench.fill(job_type, jobs, 1).await?;
    bench.store.close().await;
    Subject::start_on(folder, store).await
}

async fn off(subject: &Subject, jobs: usize) -> anyhow::Result<Rate> {
    since(subject, jobs, subject.cpu()?, Instant::now()).await
}

async fn since(subject: &Subject, jobs: usize, cpu: f64, began: Instant) -> anyhow::Result<Rate> {
    drain::worked_off(subject, jobs).await?;
    Ok(Rate {
        a_second: jobs as f64 / began.elapsed().as_secs_f64(),
        cpu_us: (subject.cpu()? - cpu) * 1e6 / jobs as f64,
    })
}

async fn echo_of(subject: &Subject, turn: Duration) -> anyhow::Result<f64> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(connect(&subject.echo).await?);
    }
    let echoes = drive(subject, IN_FLIGHT, turn, move |number| {
        echo::call(channels[number % CONNECTIONS].clone())
    });
    Ok(echoes.await?.rate())
}

/// From before the call of a submit to the first line of its handler in a worker, one job at a time.
pub(super) async fn starts(course: &Course, report: &Report) -> anyhow::Result<()> {
    let (began, mut begun) = mpsc::unbounded_channel();
    let working = Working::begin(&course.subject, 1, move |_, _| {
        // The other end waits for it.
        let _ = began.send(Instant::now());
        async { Ok(()) }
    })
    .await?;
    let mut rounds = Vec::new();
    for _ in 0..course.rounds {
        let echo = course.echo(1).await?;
        let sync = tokio::task::block_in_place(|| disk::sync(&course.folder, course.turn))?;
        let mut client = course.client(0);
        let (cpu, start) = (course.subject.cpu()?, Instant::now());
        let mut sample = Sample::default();
        while start.elapsed() < course.turn {
            let before = Instant::now();
            let submitted = client.submit(request(REMOTE)).await?.into_inner();
            let began = begun.recv().await.context("the worker has ended")?;
            sample.latencies.push(micros(began - before));
            let wait = pb::WaitRequest {
                job_id: submitted.job.unwrap_or_default().job_id,
                ..pb::WaitRequest::default()
            };
            client.wait(wait).await?;
            // The next one is to meet a worker that waits.
            waits_again(course).await?;
        }
        sample.seconds = start.elapsed().as_secs_f64();
        sample.cpu = course.subject.cpu()? - cpu;
        sample.latencies.sort_unstable();
        rounds.push((echo, sync, sample));
    }
    working.end().await?;
    let p50 = |sample: &Sample| sample.quantile(0.5);
    let ratios: Vec<f64> = rounds
        .iter()
        .map(|(echo, sync, sample)| p50(sample) / (p50(echo) + p50(sync)))
        .collect();
    let figure = Figure {
        name: "worker-start",
        what: "submit to the handler of a worker that waits, nothing else running, p50",
        ceiling: "echo p50 at 1 + fdatasync p50",
        rate: None,
        p50_ms: None,
        p99_ms: None,
        cpu_us: None,
        ratio: median(ratios.iter().copied()),
        target: Target::Open,
        rounds: ratios,
    };
    report.figure(&figure.of(&Sample::joined(rounds.iter().map(|(_, _, s)| s))))?;
    Ok(())
}

/// Gives the worker the time of a call, which is what it needs to ask for work again.
async fn waits_again(course: &Course) -> anyhow::Result<()> {
    for channel in &course.echo {
        echo::call(channel.clone()).await?;
    }
    Ok(())
}

/// What workers cost that wait for work which does not come: processor time, and memory beside an empty server's.
pub(super) async fn idle(report: &Report, folder: &Path, short: bool) -> anyhow::Result<()> {
    // As many calls a second either way.
    let (waiting, wait) = match short {
        true => (WAITING / 10, WAIT / 10),
        false => (WAITING, WAIT),
    };
    let subject = Subject::start_on(folder, &folder.join("waiting.db")).await?;
    let mut channels = Vec::new();
    for _ in 0..waiting / A_CONNECTION {
        channels.push(connect(&subject.jobs).await?);
    }
    let empty = subject.pss_kib()?;
    let mut workers = JoinSet::new();
    for number in 0..waiting {
        let channel = channels[number / A_CONNECTION].clone();
        let request = pb::LeaseRequest {
            worker_id: format!("worker-{number}"),
            types: vec![REMOTE.to_owned()],
            wait: Some(prost_types::Duration::try_from(wait)?),
            ..pb::LeaseRequest::default()
        };
        workers.spawn(async move {
            let mut client = WorkerServiceClient::new(channel);
            // Spread over the time that each waits, as they would be after a while.
            tokio::time::sleep(wait.mul_f64(number as f64 / waiting as f64)).await;
            loop {
                client.lease(request.clone()).await?;
            }
            #[expect(unreachable_code, reason = "says what the task's type is")]
            anyhow::Ok(())
        });
    }
    // Each waits by then, and the first ones for the second time.
    tokio::time::sleep(wait).await;
    let (cpu, began) = (subject.cpu()?, Instant::now());
    tokio::time::sleep(2 * wait).await;
    let share = (subject.cpu()? - cpu) / began.elapsed().as_secs_f64();
    let each = (subject.pss_kib()? - empty) / waiting as f64;
    if let Some(ended) = workers.try_join_next() {
        ended??;
    }
    ensure!(workers.len() == waiting, "a worker has ended");
    workers.shutdown().await;
    for (what, ceiling, is, most) in [
        (
            "CPU of 1,000 workers that wait over 100 connections, of one core",
            "0.05",
            share,
            WAITING_CPU_MAX,
        ),
        ("memory of each of them, KiB", "20", each, WAITING_KIB_MAX),
    ] {
        report.figure(&Figure {
            name: "worker-idle",
            what,
            ceiling,
            rate: None,
            p50_ms: None,
            p99_ms: None,
            cpu_us: None,
            ratio: is / most,
            target: Target::AtMost(1.0),
            rounds: vec![is / most],
        })?;
    }
    subject.stop().await
}
