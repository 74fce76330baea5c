//! `pacenote bench`: what this machine gets out of this program, as ratios to what the machine can do.
//!
//! The server runs as a process of its own and is driven over gRPC from here. Absolute figures move
//! with whatever else the machine does; a figure and its ceiling are measured in turns, and the median
//! of their ratios is what to compare. Everything it makes is in a temporary folder that goes with it.

mod batch;
mod claims;
mod disk;
mod drain;
mod echo;
mod figures;
mod load;
mod paused;
mod purge;
mod report;
pub mod subject;
mod workers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::bench::figures::Course;
use crate::cli::bench::report::Report;
use crate::cli::jobs::say;

/// How long a figure or its ceiling is measured before the other one has its turn.
const TURN: Duration = Duration::from_secs(2);
const TURN_SHORT: Duration = Duration::from_millis(300);

/// `pacenote bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// How long each figure is measured, its ceiling included
    #[arg(long, default_value_t = 24, value_name = "N")]
    pub seconds: u64,
    /// Only this figure
    #[arg(long, value_name = "NAME")]
    pub only: Option<Which>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// A second or so a figure and a tenth of the backlog: does it work, not how fast is it
    #[arg(long)]
    pub short: bool,
    /// How many jobs are there to be removed while submits are measured
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub purge_jobs: usize,
    /// Where the stores are made: on the disk to measure [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
}

/// The figures, in the order in which they are measured: what leaves a backlog behind comes late.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// Latency of Submit at 1 in flight
    #[value(name = "submit-1")]
    SubmitOne,
    /// From submit to handler start on an idle server
    Start,
    /// From submit to the handler of a worker outside the server
    WorkerStart,
    /// Run of a handler that does nothing, to its end, at 64 in flight
    Run,
    /// Durable Submit at 64 in flight, the jobs being run
    SubmitRun,
    /// Durable Submit at 64 in flight, the jobs waiting
    Submit,
    /// Jobs of BatchSubmit, a thousand a call
    Batch,
    /// Output events of one job to one watcher
    Events,
    /// Output events of a thousand jobs to one watcher
    WatchJobs,
    /// Claims with many jobs waiting
    Claim,
    /// Working off a backlog of jobs that do nothing
    Drain,
    /// Working off such a backlog by a worker outside the server, beside the server's own pool
    Workers,
    /// A thousand workers that wait for work
    WorkerIdle,
    /// Durable Submit at 64 in flight while a million jobs are removed
    Purge,
}

impl Which {
    /// Has a store, or a server, of its own.
    fn is_apart(self) -> bool {
        matches!(
            self,
            Self::WatchJobs
                | Self::Claim
                | Self::Drain
                | Self::Workers
                | Self::WorkerIdle
                | Self::Purge
        )
    }
}

/// Measures, and says what the process should exit with: 0 where everything could be measured.
pub async fn run(args: BenchArgs) -> ExitCode {
    match measure(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: BenchArgs) -> anyhow::Result<()> {
    let folder = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let report = Report { json: args.json };
    report.head()?;
    let (rounds, turn) = if args.short {
        (2, TURN_SHORT)
    } else {
        (args.seconds.div_ceil(2 * TURN.as_secs()) as usize, TURN)
    };
    let wanted = |which| args.only.is_none_or(|only| only == which);
    let mut figures = Which::value_variants().iter().copied();
    if figures.any(|which| !which.is_apart() && wanted(which)) {
        let course = Course::open(folder.path().to_owned(), rounds.max(1), turn).await?;
        course.fill_place().await?;
        for which in Which::value_variants() {
            if wanted(*which) && !which.is_apart() {
                one(&course, &report, *which).await?;
            }
        }
        course.subject.stop().await?;
    }
    if wanted(Which::WatchJobs) {
        let how_long = if args.short { turn } else { 2 * turn };
        batch::watch(&report, folder.path(), how_long).await?;
    }
    if wanted(Which::Claim) {
        let many = if args.short { 100_000 } else { 1_000_000 };
        claims::measure(&report, folder.path(), many).await?;
        paused::measure(&report, folder.path(), many).await?;
    }
    if wanted(Which::Drain) {
        let jobs = if args.short { 10_000 } else { 100_000 };
        drain::measure(&report, folder.path(), jobs).await?;
    }
    if wanted(Which::Workers) {
        let jobs = if args.short { 5_000 } else { 30_000 };
        workers::drains(&report, folder.path(), jobs, rounds.clamp(1, 3), turn).await?;
    }
    if wanted(Which::WorkerIdle) {
        workers::idle(&report, folder.path(), args.short).await?;
    }
    if wanted(Which::Purge) {
        let shrink = if args.short { 10 } else { 1 };
        let jobs = (args.purge_jobs / shrink).max(1);
        purge::measure(&report, folder.path(), jobs, rounds.clamp(1, 4), turn).await?;
    }
    Ok(())
}

async fn one(course: &Course, report: &Report, which: Which) -> anyhow::Result<()> {
    match which {
        Which::Submit => course.submits(report, false).await,
        Which::SubmitRun => course.submits(report, true).await,
        Which::Run => course.runs(report).await,
        Which::SubmitOne => course.latency(report, false).await,
        Which::Start => course.latency(report, true).await,
        Which::WorkerStart => workers::starts(course, report).await,
        Which::Batch => course.batches(report).await,
        Which::Events => course.events(report).await,
        apart => unreachable!("{apart:?} has a server of its own"),
    }
}
