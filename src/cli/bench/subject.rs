//! The server that is measured: this binary again, as a child process with a store of its own.
//!
//! Its settings are the defaults, but for the bounds of logs and of waiting jobs, which figures go past. Its job
//! types do nothing, so that what is measured is us. Beside the port that everyone knows it has another
//! one, on the same runtime and transport settings, where the echo is.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::cli::bench::echo::Echo;
use crate::cli::exit::{Exit, Failure};
use crate::cli::logging;
use crate::config::settings::Settings;
use crate::config::{Config, TypeSettings};
use crate::executor::handler::{Context, HandlerExecutor};
use crate::job::name::Name;
use crate::server::incoming::connections;
use crate::server::{Server, builder};

/// Ends at once, with the time at which it began.
pub(super) const NOOP: &str = "noop";
/// Has one place, which its first job never gives back: whatever comes after it waits.
pub(super) const FULL: &str = "full";
/// Writes chunks of 64 bytes for as many milliseconds as its input says.
pub(super) const TALK: &str = "talk";

/// The name of its store in its folder.
pub(super) const STORE: &str = "bench.db";

/// Above what `TALK` can write in a minute.
const LOG_BYTES_MAX: u64 = 16 << 30;

/// Above what `FULL` is given in an hour: what waits is measured, not refused.
const WAITING_MAX: usize = 100_000_000;

/// What the child is told.
#[derive(Args, Clone, Debug)]
pub struct SubjectArgs {
    /// Its store.
    #[arg(long)]
    pub store: PathBuf,
    /// Jobs that run at once, where not by default.
    #[arg(long)]
    pub workers: Option<usize>,
}

/// Serves until its standard input ends, which is when its parent does.
///
/// # Errors
/// What ended it.
pub fn serve(args: SubjectArgs) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(Exit::Storage, error.to_string());
    logging::init(&Settings::default()).map_err(|error| failed(&error))?;
    // As `serve` makes it.
    let runtime = tokio::runtime::Runtime::new().map_err(|error| failed(&error))?;
    let served = runtime.block_on(serve_both(args));
    runtime.shutdown_background();
    served.map_err(|error| failed(&format!("{error:#}")))
}

async fn serve_both(SubjectArgs { store, workers }: SubjectArgs) -> anyhow::Result<()> {
    let (jobs, echo) = (local().await?, local().await?);
    let addresses = format!("{} {}", jobs.local_addr()?, echo.local_addr()?);
    let over = CancellationToken::new();
    let echo = builder()
        .add_routes(Routes::new(Echo))
        .serve_with_incoming_shutdown(
            connections(echo, over.clone()),
            over.clone().cancelled_owned(),
        );
    let default = Config::default();
    let config = Config {
        workers: workers.unwrap_or(default.workers),
        checksum_root: store.parent().unwrap_or(Path::new(".")).to_owned(),
        store,
        log_bytes_max: LOG_BYTES_MAX,
        waiting_max: WAITING_MAX,
        drain_timeout: Duration::ZERO,
        ..default
    };
    let one_place = TypeSettings {
        concurrency: Some(1),
        ..TypeSettings::default()
    };
    let jobs = Server::new(config)
        .executor(Name::of(NOOP), TypeSettings::default(), noop())
        .executor(Name::of(TALK), TypeSettings::default(), talk())
        .executor(Name::of(FULL), one_place, full())
        .on_ready(move || println!("{addresses}"))
        .serve(jobs, over.clone().cancelled_owned());
    let parent_is_gone = async {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(_)) = lines.next_line().await {}
        over.cancel();
    };
    // Owned by this function: all three are over when it returns.
    let (jobs, echo, ()) = tokio::join!(jobs, tokio::spawn(echo), parent_is_gone);
    jobs?;
    echo??;
    Ok(())
}

async fn local() -> std::io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await
}

fn noop() -> HandlerExecutor {
    HandlerExecutor::new(|_: Context, _: serde_json::Value| async { Ok(now_micros()) })
}

fn full() -> HandlerExecutor {
    HandlerExecutor::new(|context: Context, _: serde_json::Value| async move {
        context.cancelled().await;
        Ok(())
    })
}

fn talk() -> HandlerExecutor {
    HandlerExecutor::new(|context: Context, millis: u64| async move {
        let end = std::time::Instant::now() + Duration::from_millis(millis);
        let chunk = "x".repeat(64);
        while std::time::Instant::now() < end && !context.is_stopping() {
            context.output("stdout", chunk.as_str()).await?;
        }
        Ok(())
    })
}

/// A clock that parent and child share. Microseconds.
pub(super) fn now_micros() -> i64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("every Linux has a monotonic clock");
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000
}

/// The child, seen by its parent. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Subject {
    child: Child,
    pub(super) jobs: String,
    pub(super) echo: String,
}

impl Subject {
    /// Starts it on the folder's store, and waits until it serves.
    pub(super) async fn start(folder: &Path) -> anyhow::Result<Self> {
        Self::start_on(folder, &folder.join("bench.db")).await
    }

    /// Starts it on a store, and waits until it serves.
    pub(super) async fn start_on(folder: &Path, store: &Path) -> anyhow::Result<Self> {
        Self::start_with(folder, store, None).await
    }

    /// The same, with so many jobs running at once.
    pub(super) async fn start_with(
        folder: &Path,
        store: &Path,
        workers: Option<usize>,
    ) -> anyhow::Result<Self> {
        let workers = workers.map(|workers| format!("--workers={workers}"));
        // Records of its log cost what they cost anyone who keeps them in a file.
        let log = std::fs::File::create(folder.join("server.log"))?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("bench-subject")
            .arg("--store")
            .arg(store)
            .args(workers)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the server")?;
        let stdout = child.stdout.take().context("it has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = lines.next_line().await?.unwrap_or_default();
        let addresses = line.split_once(' ');
        let (jobs, echo) = addresses.context("the server did not start: see its log")?;
        Ok(Self {
            child,
            jobs: format!("http://{jobs}"),
            echo: format!("http://{echo}"),
        })
    }

    /// CPU time it has used so far, in user and kernel. Seconds.
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        /// What the kernel counts in, whatever its own tick. Source: proc(5), sysconf(3).
        const TICKS_A_SECOND: f64 = 100.0;
        let pid = self.child.id().context("the server has ended")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold spaces. Behind it: state is field 3, utime 14, stime 15.
        let behind_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = behind_name.split(' ').collect();
        ensure!(fields.len() > 12, "/proc/{pid}/stat is too short");
        let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / TICKS_A_SECOND)
    }

    /// Its share of the machine's memory. KiB.
    pub(super) fn pss_kib(&self) -> anyhow::Result<f64> {
        let pid = self.child.id().context("the server has ended")?;
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let mut lines = rollup.lines();
        let pss = lines.find_map(|line| line.strip_prefix("Pss:"));
        let pss = pss.context("smaps_rollup has no Pss")?;
        Ok(pss.trim_end_matches("kB").trim().parse()?)
    }

    /// Ends it.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        // Its standard input ends, and with it the server.
        drop(self.child.stdin.take());
        self.child.wait().await?;
        Ok(())
    }
}
