//! The commands that talk to a server: `submit`, `submit-batch`, `get`, `list`, `watch`, `wait`, `cancel`, `events`.
//!
//! They promise data on stdout and everything else on stderr, no event twice or left out, an exit code
//! by outcome, and that nothing a job says can drive the terminal. They know only the client.

mod args;
mod escape;
mod exit;
mod follow;
mod follow_jobs;
mod input;
mod json;
mod options;
mod output;
mod screen;
mod submit;
pub(crate) mod text;

use std::process::ExitCode;
use std::time::{Duration, Instant};

pub use args::{
    CancelArgs, Common, EventsArgs, GetArgs, JobsCommand, ListArgs, StateArg, SubmitArgs,
    SubmitBatchArgs, WaitArgs, WatchArgs,
};
pub(crate) use escape::escape;
pub(crate) use exit::{Exit, Stop};
pub use options::{ConflictArg, JobOptions};
pub(crate) use output::{Output, say};
pub(crate) use screen::Screen;

use crate::client::{Client, WatchOptions};
use crate::pb;
use crate::pb::job::State;

/// Most jobs or events of one page: the server's own bound.
const PAGE_MAX: u32 = 1_000;

/// One long poll of `wait`. Below the minute after which many proxies cut a quiet request.
const WAIT_STEP: Duration = Duration::from_secs(50);

/// Runs a command to its end and says what the process should exit with.
pub async fn run(command: JobsCommand) -> ExitCode {
    let exit = match dispatch(command).await {
        Ok(exit) => exit,
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

async fn dispatch(command: JobsCommand) -> Result<Exit, Stop> {
    let common = command.common().clone();
    let output = Output::new(&common);
    let connect = || Client::connect(common.server.clone());
    match command {
        // What is wrong on the line is said before anybody is called.
        JobsCommand::Submit(args) => {
            let request = submit::request(&args).map_err(Stop::Usage)?;
            submit::one(connect().await?, request, args.watch, output).await
        }
        JobsCommand::SubmitBatch(args) => {
            let request = submit::requests(&args.file).map_err(Stop::Usage)?;
            submit::batch(connect().await?, request, output).await
        }
        JobsCommand::Get(args) => get(connect().await?, args, output).await,
        JobsCommand::List(args) => list(connect().await?, args, output).await,
        JobsCommand::Watch(args) => watch(connect().await?, args, output).await,
        JobsCommand::Wait(args) => wait(connect().await?, args, output).await,
        JobsCommand::Cancel(args) => cancel(connect().await?, args, output).await,
        JobsCommand::Events(args) => events(connect().await?, args, output).await,
    }
}

async fn get(client: Client, args: GetArgs, output: Output) -> Result<Exit, Stop> {
    show(&client.get(args.job_id).await?, output)?;
    Ok(Exit::Success)
}

async fn list(client: Client, args: ListArgs, output: Output) -> Result<Exit, Stop> {
    let mut left = if args.all { u32::MAX } else { args.limit };
    let states = args
        .states
        .into_iter()
        .map(|state| State::from(state).into());
    let mut request = pb::ListRequest {
        page_token: args.page_token.unwrap_or_default(),
        states: states.collect(),
        types: args.types,
        queues: args.queues,
        idempotency_key: args.idempotency_key.unwrap_or_default(),
        ..pb::ListRequest::default()
    };
    if !output.json {
        output.note(text::HEADING);
    }
    loop {
        request.page_size = page_size(left);
        let page = client.list(request.clone()).await?;
        for job in &page.jobs {
            if output.json {
                output.message(job)?;
            } else {
                output.line(&text::row(job))?;
            }
        }
        left = left.saturating_sub(u32::try_from(page.jobs.len()).unwrap_or(u32::MAX));
        if page.next_page_token.is_empty() {
            return Ok(Exit::Success);
        }
        request.page_token = page.next_page_token;
        if left == 0 {
            let token = escape(&request.page_token);
            output.note(&format!("there are more: --page-token {token}"));
            return Ok(Exit::Success);
        }
    }
}

async fn watch(client: Client, args: WatchArgs, output: Output) -> Result<Exit, Stop> {
    if let Some(options) = follow_jobs::options(&args) {
        return follow_jobs::follow(client, options, output).await;
    }
    let job_id = args.job_id.unwrap_or_default();
    let options = WatchOptions {
        after_sequence: args.after,
        ..WatchOptions::default()
    };
    let watch = client.watch(job_id.clone(), options);
    follow::follow(watch, &job_id, output).await
}

async fn wait(client: Client, args: WaitArgs, output: Output) -> Result<Exit, Stop> {
    let start = Instant::now();
    let mut early = 0;
    loop {
        let left = args
            .timeout
            .map(|timeout| timeout.saturating_sub(start.elapsed()));
        let step = left.map_or(WAIT_STEP, |left| left.min(WAIT_STEP));
        let asked = Instant::now();
        let answer = client.wait(args.job_id.clone(), Some(step)).await?;
        let job = answer.job.unwrap_or_default();
        let is_over = crate::client::is_final(job.state());
        if is_over
            || args
                .timeout
                .is_some_and(|timeout| start.elapsed() >= timeout)
        {
            if !is_over {
                output.note("the time is up; the job goes on");
            }
            show(&job, output)?;
            return Ok(Exit::of_wait(&job));
        }
        // A server that drains answers at once; it needs no hail of questions while it does.
        if asked.elapsed() < step / 2 {
            let pause = client.settings().backoff.delay(early + 1, None);
            early += 1;
            tokio::time::sleep(left.map_or(pause, |left| pause.min(left))).await;
        } else {
            early = 0;
        }
    }
}

async fn cancel(client: Client, args: CancelArgs, output: Output) -> Result<Exit, Stop> {
    let job = client.cancel(args.job_id, args.reason).await?;
    if output.json {
        output.message(&job)?;
    } else {
        output.line(text::state(job.state()))?;
    }
    Ok(Exit::Success)
}

async fn events(client: Client, args: EventsArgs, output: Output) -> Result<Exit, Stop> {
    let mut left = args.limit.unwrap_or(u32::MAX);
    let mut after_sequence = args.after;
    while left > 0 {
        let page = client
            .list_events(pb::ListEventsRequest {
                job_id: args.job_id.clone(),
                after_sequence,
                page_size: page_size(left),
                event_types: Vec::new(),
            })
            .await?;
        if let Some(gap) = &page.gap {
            if output.json {
                output.message(gap)?;
            } else {
                output.line(&text::gap(gap))?;
            }
        }
        for event in &page.events {
            if output.json {
                output.message(event)?;
            } else {
                output.line(&text::event(event))?;
            }
        }
        left = left.saturating_sub(u32::try_from(page.events.len()).unwrap_or(u32::MAX));
        // The end of the log as it is now; or a server that would be asked the same for ever.
        if page.job_finished || page.through_sequence <= after_sequence {
            break;
        }
        after_sequence = page.through_sequence;
    }
    Ok(Exit::Success)
}

fn show(job: &pb::Job, output: Output) -> Result<(), Stop> {
    if output.json {
        output.message(job)?;
    } else {
        output.line(&text::job(job))?;
    }
    Ok(())
}

fn page_size(left: u32) -> i32 {
    i32::try_from(left.min(PAGE_MAX)).expect("a page fits")
}

/// A payload of JSON known to be valid when the program was written.
pub(crate) fn json_payload(text: &str) -> pb::Payload {
    input::json("the source", text).expect("valid JSON in the source")
}
