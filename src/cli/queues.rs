//! `pacenote queues`: how queues and job types stand, and pauses, limits and purges for operators.
//!
//! Data goes to stdout, a line each; how far a purge is goes to stderr.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use crate::cli::jobs::{Common, Exit, Output, StateArg, Stop, escape, say};
use crate::client::{Client, Queues};
use crate::config::queue::rate_limit;
use crate::config::value::duration_text;
use crate::pb;
use crate::pb::job::State;
use crate::pb::queue_limits::Source;

/// Queues of one page: the server's own bound.
const PAGE_SIZE: i32 = 1_000;
/// Jobs that one call of a purge ends. Chosen: done well within the deadline of a call, and a line of
/// progress every moment.
const PURGE_STEP: i32 = 5_000;

const QUEUES_HEADING: &str = "QUEUE                          QUEUED  SCHED.  BLOCKED  RUNNING  OLDEST      STARTED/MIN  LIMITS";
const TYPES_HEADING: &str = "TYPE                           QUEUED  SCHED.  BLOCKED  RUNNING  OLDEST      STARTED/MIN  QUEUE";

/// What to do with queues.
#[derive(Clone, Debug, Subcommand)]
pub enum QueuesCommand {
    /// List queues with what waits, what runs and what bounds them
    List(ListArgs),
    /// List job types in the same way
    Types(ListArgs),
    /// Start nothing of a queue, or of a job type, until it is resumed; what runs goes on
    Pause(WhichArgs),
    /// Start jobs of a queue, or of a job type, again
    Resume(WhichArgs),
    /// Set limits of a queue above those of the server's file, or reset them
    Limits(LimitsArgs),
    /// End what waits in a queue: its jobs are cancelled, and what runs goes on
    Purge(PurgeArgs),
}

/// How to speak, and with whom.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// Which queue, or which type.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["queue", "job_type"]))]
pub struct WhichArgs {
    /// The queue
    #[arg(value_name = "QUEUE")]
    pub queue: Option<String>,
    /// A job type, in place of a queue
    #[arg(long = "type", value_name = "TYPE")]
    pub job_type: Option<String>,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// Which limits.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("limits").required(true).multiple(true)
    .args(["concurrency", "rate", "key_concurrency", "reset"]))]
pub struct LimitsArgs {
    /// The queue
    #[arg(value_name = "QUEUE")]
    pub queue: String,
    /// Most of its jobs running at once, or `none`
    #[arg(long, value_name = "N", value_parser = number_or_none)]
    pub concurrency: Option<i32>,
    /// Most of its jobs started in a time, such as 100/1s, or `none`
    #[arg(long, value_name = "STARTS/DURATION", value_parser = rate_or_none)]
    pub rate: Option<pb::RateLimit>,
    /// Most of its jobs with one concurrency key running at once
    #[arg(long, value_name = "N")]
    pub key_concurrency: Option<i32>,
    /// Go back to what the server's file says; may be given again
    #[arg(long, value_enum, value_name = "LIMIT")]
    pub reset: Vec<LimitArg>,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

/// A limit of a queue.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LimitArg {
    /// Jobs running at once.
    Concurrency,
    /// Starts in a time.
    Rate,
    /// Jobs with one key running at once.
    KeyConcurrency,
}

/// What to end.
#[derive(Clone, Debug, Args)]
pub struct PurgeArgs {
    /// The queue
    #[arg(value_name = "QUEUE")]
    pub queue: String,
    /// Only jobs of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub job_type: Option<String>,
    /// Only jobs in this state, of queued, scheduled and blocked; may be given again [default: queued]
    #[arg(long = "state", value_enum, value_name = "STATE")]
    pub states: Vec<StateArg>,
    /// Stored with each job
    #[arg(long, default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Server and output.
    #[command(flatten)]
    pub common: Common,
}

impl QueuesCommand {
    fn common(&self) -> &Common {
        match self {
            Self::List(args) | Self::Types(args) => &args.common,
            Self::Pause(args) | Self::Resume(args) => &args.common,
            Self::Limits(args) => &args.common,
            Self::Purge(args) => &args.common,
        }
    }
}

/// Runs a command to its end and says what the process should exit with.
pub async fn run(command: QueuesCommand) -> ExitCode {
    let exit = match dispatch(command).await {
        Ok(()) => Exit::Success,
        Err(stop) => {
            let (exit, message) = stop.into_exit();
            if let Some(message) = message {
                say(&format!("error: {message}"));
            }
            exit
        }
    };
    exit.into()
}

async fn dispatch(command: QueuesCommand) -> Result<(), Stop> {
    let common = command.common().clone();
    let output = Output::new(&common);
    let queues = Client::connect(common.server).await?.queues();
    match command {
        QueuesCommand::List(_) => list(&queues, output).await,
        QueuesCommand::Types(_) => types(&queues, output).await,
        QueuesCommand::Pause(args) => pause(&queues, args, true, output).await,
        QueuesCommand::Resume(args) => pause(&queues, args, false, output).await,
        QueuesCommand::Limits(args) => show_queue(&queues.set_limits(limits(args)).await?, output),
        QueuesCommand::Purge(args) => purge(&queues, args, output).await,
    }
}

async fn list(queues: &Queues, output: Output) -> Result<(), Stop> {
    if !output.json {
        output.note(QUEUES_HEADING);
    }
    let mut page_token = String::new();
    loop {
        let request = pb::ListQueuesRequest {
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = queues.list(request).await?;
        for queue in &page.queues {
            show_queue(queue, output)?;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

async fn types(queues: &Queues, output: Output) -> Result<(), Stop> {
    if !output.json {
        output.note(TYPES_HEADING);
    }
    for job_type in &queues.job_types().await? {
        show_type(job_type, output)?;
    }
    Ok(())
}

async fn pause(queues: &Queues, args: WhichArgs, paused: bool, output: Output) -> Result<(), Stop> {
    match (args.queue, args.job_type) {
        (Some(queue), _) => show_queue(&queues.pause(queue, paused).await?, output),
        (None, job_type) => {
            let job_type = job_type.unwrap_or_default();
            show_type(&queues.pause_type(job_type, paused).await?, output)
        }
    }
}

fn limits(args: LimitsArgs) -> pb::SetQueueLimitsRequest {
    let reset = args.reset.into_iter().map(|limit| {
        let limit = match limit {
            LimitArg::Concurrency => pb::QueueLimit::Concurrency,
            LimitArg::Rate => pb::QueueLimit::Rate,
            LimitArg::KeyConcurrency => pb::QueueLimit::KeyConcurrency,
        };
        limit.into()
    });
    pb::SetQueueLimitsRequest {
        queue: args.queue,
        concurrency: args.concurrency,
        rate_limit: args.rate,
        key_concurrency: args.key_concurrency,
        reset: reset.collect(),
    }
}

async fn purge(queues: &Queues, args: PurgeArgs, output: Output) -> Result<(), Stop> {
    let states = args.states.into_iter();
    let request = pb::PurgeQueueRequest {
        queue: args.queue,
        job_type: args.job_type.unwrap_or_default(),
        states: states.map(|state| State::from(state).into()).collect(),
        limit: PURGE_STEP,
        reason: args.reason,
    };
    let mut purged: i64 = 0;
    loop {
        let step = queues.purge(request.clone()).await?;
        purged += i64::from(step.purged_count);
        if step.is_complete {
            break;
        }
        output.note(&format!("{purged} ended so far"));
    }
    if output.json {
        output.line(&format!("{{\"purgedCount\":{purged}}}"))?;
    } else {
        output.line(&purged.to_string())?;
    }
    Ok(())
}

fn show_queue(queue: &pb::Queue, output: Output) -> Result<(), Stop> {
    if output.json {
        output.message(queue)?;
        return Ok(());
    }
    let limits = queue.limits.as_ref().map(limits_text).unwrap_or_default();
    let last = if queue.paused {
        format!("paused {limits}")
    } else {
        limits
    };
    let counts = queue.counts.unwrap_or_default();
    let minute = queue.last_minute.as_ref();
    let age = queue.oldest_waiting_age.as_ref();
    output.line(&row(&queue.name, &counts, age, minute, &last))?;
    Ok(())
}

fn show_type(job_type: &pb::JobType, output: Output) -> Result<(), Stop> {
    if output.json {
        output.message(job_type)?;
        return Ok(());
    }
    let queue = escape(&job_type.queue);
    let last = if job_type.paused {
        format!("paused {queue}")
    } else {
        queue.into_owned()
    };
    let counts = job_type.counts.unwrap_or_default();
    let minute = job_type.last_minute.as_ref();
    let age = job_type.oldest_waiting_age.as_ref();
    output.line(&row(&job_type.name, &counts, age, minute, &last))?;
    Ok(())
}

fn row(
    name: &str,
    counts: &pb::JobCounts,
    age: Option<&prost_types::Duration>,
    minute: Option<&pb::MinuteCounts>,
    last: &str,
) -> String {
    let age = age.map_or_else(|| "-".to_owned(), |age| duration_text(whole_seconds(age)));
    let started = minute.map_or_else(|| "-".to_owned(), |minute| minute.started.to_string());
    let running = counts.running + counts.cancelling;
    let line = format!(
        "{:<30} {:>6}  {:>6}  {:>7}  {:>7}  {:<10}  {:>11}  {}",
        escape(name),
        counts.queued,
        counts.scheduled,
        counts.blocked,
        running,
        age,
        started,
        last
    );
    line.trim_end().to_owned()
}

/// `concurrency=8 rate=100/1s (runtime)`.
fn limits_text(limits: &pb::QueueLimits) -> String {
    let source = |source: Source| match source {
        Source::Runtime => " (runtime)",
        Source::File => " (file)",
        Source::Default | Source::Unspecified => "",
    };
    let mut parts = Vec::new();
    let from = source(limits.concurrency_source());
    match limits.concurrency {
        Some(most) => parts.push(format!("concurrency={most}{from}")),
        None if !from.is_empty() => parts.push(format!("concurrency=none{from}")),
        None => {}
    }
    let from = source(limits.rate_limit_source());
    match &limits.rate_limit {
        Some(rate) => {
            let period = rate.period.as_ref().map(exact).unwrap_or_default();
            let period = duration_text(period);
            parts.push(format!("rate={}/{period}{from}", rate.starts));
        }
        None if !from.is_empty() => parts.push(format!("rate=none{from}")),
        None => {}
    }
    let from = source(limits.key_concurrency_source());
    if !from.is_empty() {
        parts.push(format!("key_concurrency={}{from}", limits.key_concurrency));
    }
    parts.join(" ")
}

fn exact(duration: &prost_types::Duration) -> Duration {
    Duration::try_from(*duration).unwrap_or_default()
}

fn whole_seconds(duration: &prost_types::Duration) -> Duration {
    Duration::from_secs(exact(duration).as_secs())
}

fn number_or_none(text: &str) -> Result<i32, String> {
    if text == "none" {
        return Ok(0);
    }
    match text.parse() {
        Ok(most @ 1..) => Ok(most),
        Ok(_) | Err(_) => Err("expected a number from 1, or none".to_owned()),
    }
}

fn rate_or_none(text: &str) -> Result<pb::RateLimit, String> {
    if text == "none" {
        return Ok(pb::RateLimit::default());
    }
    let rate = rate_limit(text)?;
    Ok(pb::RateLimit {
        starts: i32::try_from(rate.starts).unwrap_or(i32::MAX),
        period: rate.period.try_into().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_as_they_are_given_and_say_who_said_so() {
        let limits = pb::QueueLimits {
            concurrency: None,
            concurrency_source: Source::Runtime.into(),
            rate_limit: Some(rate_or_none("100/1m 30s").expect("a rate")),
            rate_limit_source: Source::File.into(),
            key_concurrency: 1,
            key_concurrency_source: Source::Default.into(),
        };
        let text = "concurrency=none (runtime) rate=100/1m 30s (file)";
        assert_eq!(limits_text(&limits), text);
        assert_eq!(rate_or_none("none"), Ok(pb::RateLimit::default()));
        assert_eq!(number_or_none("none"), Ok(0));
        for bad in ["0", "-1", "x", ""] {
            assert!(
                number_or_none(bad).is_err() && rate_or_none(bad).is_err(),
                "{bad}"
            );
        }
    }
}
