//! `pacenote demo`: a server, three jobs, a cut and a proof, in one process and a temporary folder.
//!
//! It talks to its server as any client does, through gRPC on a free port, and ends with exit 0 only if
//! everything held. It leaves nothing behind.

mod proof;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::cli::demo::proof::Proof;
use crate::cli::demo::show::{Show, output};
use crate::cli::jobs::{escape, say};
use crate::client::{Client, RunOptions, Settings, Update, WatchOptions};
use crate::config::{CommandConfig, Config, JobType, ProgressMode, ResultMode, TypeSettings};
use crate::pb;
use crate::pb::job::State;
use crate::pb::job_event::Event;
use crate::server::Server;

/// A current folder with more than this is not hashed unless it was named: a demo should take seconds.
const UNASKED_BYTES_MAX: u64 = 256 << 20;

/// The same, in files.
const UNASKED_FILES_MAX: usize = 20_000;

/// How long nobody watches between the cut and the resume.
const AWAY: Duration = Duration::from_millis(600);

/// A job type that nobody had to write a server for: ten pages, with output and progress. A doubled
/// brace is a brace: a single one begins a placeholder.
const COMMAND: &str = r#"
for page in 1 2 3 4 5 6 7 8 9 10; do
  echo "page $page of 10"
  echo "{{\"progress\":{{\"completed_units\":$page,\"total_units\":10,\"unit\":\"pages\"}}}}" >> "$PACENOTE_EVENTS"
  sleep 0.3
done
"#;

/// `pacenote demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// The folder whose files are hashed [default: the current folder, or a part of it where it is big]
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
}

/// Runs the demo and says what the process should exit with: 0 if everything held, 1 otherwise.
pub async fn run(args: DemoArgs) -> ExitCode {
    match demo(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {}", escape(&format!("{error:#}"))));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let root = match args.path {
        Some(path) => path,
        None => some_folder(Path::new("."))?,
    };
    let root = root
        .canonicalize()
        .with_context(|| format!("cannot read {}", root.display()))?;
    ensure!(root.is_dir(), "{} is no folder", root.display());
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let config = config(folder.path(), &root);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    output().line(&format!(
        "A server on {address}, its store in a temporary folder"
    ))?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = Server::new(config).serve(listener, async move {
        // A sender that is gone says the same.
        let _ = stopped.await;
    });
    tokio::pin!(serving);
    tokio::select! {
        told = tour(&address, &root) => told?,
        // Ended before it was asked to: dropping the tour loses nothing that is worth keeping.
        served = &mut serving => {
            served?;
            bail!("the server ended early");
        }
    }
    // The receiver is gone only if the server has ended already, and then the next line says so.
    let _ = stop.send(());
    serving.await?;
    output().line("\nEverything held. Yours: pacenote serve")?;
    Ok(())
}

/// The three jobs.
async fn tour(address: &str, root: &Path) -> anyhow::Result<()> {
    let settings = Settings {
        // The server is in this process: away for ten seconds is gone.
        give_up_after: Duration::from_secs(10),
        ..Settings::default()
    };
    let client = Client::connect_with(address, settings).await?;

    let shown = root.display().to_string();
    output().line(&format!("\n1. checksum of {}", escape(&shown)))?;
    let input = crate::cli::jobs::json_payload(r#"{"path":"."}"#);
    let job = cut_and_resume(&client, submit("checksum", Some(input)), false).await?;
    ensure!(job.state() == State::Succeeded, "checksum did not succeed");

    output().line("\n2. demo-command: a shell script")?;
    let job = cut_and_resume(&client, submit("demo-command", None), true).await?;
    ensure!(
        job.state() == State::Succeeded,
        "demo-command did not succeed"
    );

    output().line("\n3. sleep for 60 s, and a cancel")?;
    cancel_while_running(&client).await
}

/// Runs a job, cuts its watch in the middle, resumes on another connection, and proves that both halves
/// are the log.
async fn cut_and_resume(
    client: &Client,
    submit: pb::SubmitRequest,
    with_output: bool,
) -> anyhow::Result<pb::Job> {
    let mut show = Show::new(&submit.r#type, with_output);
    let mut proof = Proof::default();
    let job_id = first_half(client, submit, &mut show, &mut proof).await?;
    let cut_after = proof.before.last().copied().unwrap_or(0);
    show.line(&format!(
        "  -- cut the stream after event {cut_after}; the job does not notice --"
    ))?;
    show.says("nobody is watching");
    tokio::time::sleep(AWAY).await;

    let options = WatchOptions {
        after_sequence: Some(cut_after),
        ..WatchOptions::default()
    };
    let mut watch = client.watch(job_id.clone(), options);
    show.line(&format!("  -- resumed with after_sequence {cut_after} --"))?;
    let job = loop {
        match watch
            .next()
            .await
            .context("the watch ended without the job")??
        {
            Update::Event(event) => {
                proof.after.push(event.sequence);
                show.event(&event)?;
            }
            Update::Finished(job) => break job,
            Update::Gap(_) => bail!("events were purged"),
            Update::Snapshot(_) | Update::Heartbeat | Update::Reconnecting { .. } => {}
        }
    };
    show.end(&job)?;
    let held = proof
        .check(&log(client, &job_id).await?)
        .map_err(anyhow::Error::msg)?;
    output().line(&format!("  events {held}"))?;
    Ok(*job)
}

/// Follows a job until it is half done. One that is over sooner counts as cut in the middle of its log,
/// so that there is always a second half.
async fn first_half(
    client: &Client,
    submit: pb::SubmitRequest,
    show: &mut Show,
    proof: &mut Proof,
) -> anyhow::Result<String> {
    let mut watch = client.run(submit, RunOptions::default());
    loop {
        match watch
            .next()
            .await
            .context("the watch ended without the job")??
        {
            Update::Event(event) => {
                proof.before.push(event.sequence);
                show.event(&event)?;
                let is_half = matches!(&event.event, Some(Event::Progress(progress))
                    if progress.fraction.is_some_and(|fraction| fraction >= 0.5));
                if is_half {
                    break;
                }
            }
            Update::Finished(_) => {
                proof.before.truncate(proof.before.len().div_ceil(2));
                break;
            }
            Update::Gap(_) => bail!("events were purged"),
            Update::Snapshot(_) | Update::Heartbeat | Update::Reconnecting { .. } => {}
        }
    }
    Ok(watch
        .job_id()
        .context("an event came before the snapshot")?
        .to_owned())
}

/// The log as the store has it, for comparison with what the watches saw.
async fn log(client: &Client, job_id: &str) -> anyhow::Result<Vec<i64>> {
    let mut sequences = Vec::new();
    let mut after_sequence = 0;
    loop {
        let request = pb::ListEventsRequest {
            job_id: job_id.to_owned(),
            after_sequence,
            page_size: 1_000,
            event_types: Vec::new(),
        };
        let page = client.list_events(request).await?;
        sequences.extend(page.events.iter().map(|event| event.sequence));
        if page.job_finished || page.through_sequence <= after_sequence {
            return Ok(sequences);
        }
        after_sequence = page.through_sequence;
    }
}

async fn cancel_while_running(client: &Client) -> anyhow::Result<()> {
    let input = crate::cli::jobs::json_payload(r#"{"seconds":60}"#);
    let mut watch = client.run(submit("sleep", Some(input)), RunOptions::default());
    let mut show = Show::new("sleep", true);
    let job = loop {
        match watch
            .next()
            .await
            .context("the watch ended without the job")??
        {
            Update::Event(event) => {
                show.event(&event)?;
                let is_running = matches!(&event.event, Some(Event::StateChange(change))
                    if change.to_state() == State::Running);
                if let (true, Some(job_id)) = (is_running, watch.job_id()) {
                    client.cancel(job_id, "the demo has seen enough").await?;
                    show.line("  -- asked it to stop --")?;
                }
            }
            Update::Finished(job) => break job,
            Update::Gap(_) => bail!("events were purged"),
            Update::Snapshot(_) | Update::Heartbeat | Update::Reconnecting { .. } => {}
        }
    };
    show.end(&job)?;
    ensure!(job.state() == State::Cancelled, "sleep was not cancelled");
    Ok(())
}

fn submit(job_type: &str, input: Option<pb::Payload>) -> pb::SubmitRequest {
    pb::SubmitRequest {
        r#type: job_type.to_owned(),
        input,
        ..pb::SubmitRequest::default()
    }
}

fn config(folder: &Path, root: &Path) -> Config {
    let command = JobType {
        settings: TypeSettings::default(),
        command: Some(CommandConfig {
            command: ["sh", "-c", COMMAND].map(str::to_owned).to_vec(),
            dir: folder.to_owned(),
            env: std::collections::BTreeMap::new(),
            allow_dash: false,
            result: ResultMode::StdoutText,
            progress: ProgressMode::Auto,
        }),
    };
    let name = "demo-command"
        .to_owned()
        .try_into()
        .expect("a valid name in the source");
    Config {
        store: folder.join("demo.db"),
        checksum_root: root.to_owned(),
        job_types: [(name, command)].into(),
        ..Config::default()
    }
}

/// The folder itself where it is small; otherwise its first folder that is.
fn some_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    if is_small(folder) {
        return Ok(folder.to_owned());
    }
    let mut within: Vec<PathBuf> = std::fs::read_dir(folder)
        .context("cannot read the current folder")?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .collect();
    within.sort();
    within
        .into_iter()
        .find(|folder| is_small(folder) && has_files(folder))
        .context("the current folder is big: name a smaller one, as in `pacenote demo src`")
}

/// Stops counting at the bound: the point is to save time.
fn is_small(folder: &Path) -> bool {
    let (mut files, mut bytes) = (0, 0);
    for entry in walkdir::WalkDir::new(folder)
        .into_iter()
        .filter_map(Result::ok)
    {
        if entry.file_type().is_file() {
            files += 1;
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        }
        if files > UNASKED_FILES_MAX || bytes > UNASKED_BYTES_MAX {
            return false;
        }
    }
    true
}

fn has_files(folder: &Path) -> bool {
    let mut entries = walkdir::WalkDir::new(folder)
        .into_iter()
        .filter_map(Result::ok);
    entries.any(|entry| entry.file_type().is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_big_current_folder_is_left_for_a_small_one_within() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["big", "empty", "small"] {
            std::fs::create_dir(path(name)).expect("a folder");
        }
        std::fs::write(path("small/a"), "a").expect("a file");
        assert_eq!(some_folder(folder.path()).expect("small"), folder.path());
        let big = std::fs::File::create(path("big/a")).expect("a file");
        big.set_len(UNASKED_BYTES_MAX + 1).expect("a sparse file");
        assert_eq!(some_folder(folder.path()).expect("small"), path("small"));
    }
}
