//! One attempt of a command from its start to its end: who reads what, who is told to stop when, and
//! in which order it is taken down.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::process::ChildStdin;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::config::{CommandConfig, ProgressMode};
use crate::executor::command::environment::{EVENTS_VARIABLE, Environment};
use crate::executor::command::events::{Events, Told};
use crate::executor::command::folder::Folder;
use crate::executor::command::leader::Leader;
use crate::executor::command::processes::{self, Wanted};
use crate::executor::command::spawn::{Program, Started};
use crate::executor::command::streams::{Stream, Tail};
use crate::executor::command::{exit, result};
use crate::executor::reporter::Reporter;
use crate::executor::{Attempt, Grace};
use crate::job::Outcome;
use crate::job::event::{ErrorCode, JobError, LogLevel};
use crate::job::limits::DETAIL_BYTES_MAX;
use crate::job::payload::Payload;

/// How long output is waited for once the program has ended: others may hold the pipe for ever.
const LINGER: Duration = Duration::from_secs(2);
/// How long what was killed may take to be gone before the attempt ends without it.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// An attempt that runs. Dropped, it kills its group and removes its folder.
pub(super) struct Running {
    leader: Leader,
    folder: Folder,
    /// Which processes are its own.
    wanted: Wanted,
    /// Those who read stdout and stderr; done when both have ended.
    streams: TaskTracker,
    /// Tells every reader that nothing more is to be waited for.
    ended: CancellationToken,
    stdout: AbortOnDropHandle<Tail>,
    stderr: AbortOnDropHandle<Tail>,
    events: AbortOnDropHandle<Told>,
    _stdin: Option<AbortOnDropHandle<()>>,
    /// Ours of the FIFO's writing end: without it, the FIFO would end with every writer.
    _events_sender: pipe::Sender,
}

/// How the program came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    ByItself,
    /// It was told to; its grace ends here.
    Stopped(Instant),
    /// It was killed and is still there.
    Stuck,
}

/// What the readers have kept.
struct Kept {
    stdout: Tail,
    stderr: Tail,
    told: Told,
}

impl Running {
    /// Makes the attempt's folder and starts the program.
    pub(super) async fn start(
        config: &CommandConfig,
        environment: Environment,
        attempts_dir: &Path,
        argv: Vec<String>,
        attempt: &mut Attempt,
    ) -> Result<Self, JobError> {
        let input = attempt.input.take();
        let preparation = Preparation {
            attempt: attempt.clone(),
            attempts_dir: attempts_dir.to_owned(),
            argv,
            dir: config.dir.clone(),
            environment,
            has_stdin: input.is_some(),
        };
        // Files and fork block.
        let (folder, started, receiver, sender) =
            tokio::task::spawn_blocking(move || preparation.prepare())
                .await
                .map_err(|error| setup_error(&error))??;

        let reporter = &attempt.reporter;
        let has_progress = Arc::new(AtomicBool::new(false));
        let percentages = (config.progress == ProgressMode::Auto).then_some(&has_progress);
        let (streams, ended) = (TaskTracker::new(), CancellationToken::new());
        let read = |name, pipe, bytes_kept| {
            let stream = Stream::new(name, reporter.clone(), percentages.cloned(), bytes_kept);
            AbortOnDropHandle::new(streams.spawn(stream.read(pipe, ended.clone())))
        };
        let stdout = read(
            "stdout",
            started.stdout,
            result::stdout_bytes_kept(config.result),
        );
        let stderr = read("stderr", started.stderr, DETAIL_BYTES_MAX);
        streams.close();
        let events = Events::new(
            reporter.clone(),
            config.result,
            config.progress,
            has_progress,
        );
        let events = AbortOnDropHandle::new(tokio::spawn(events.read(receiver, ended.clone())));
        let stdin = started.stdin.zip(input);
        let wanted = Wanted {
            groups: vec![started.leader.pid().as_raw_nonzero().get()],
            events: vec![folder.events()],
            seen: Vec::new(),
        };
        Ok(Self {
            wanted,
            leader: started.leader,
            folder,
            streams,
            ended,
            stdout,
            stderr,
            events,
            _stdin: stdin
                .map(|(stdin, input)| AbortOnDropHandle::new(tokio::spawn(feed(stdin, input)))),
            _events_sender: sender,
        })
    }

    /// Waits for the program's end, stops it where it has to, and leaves nothing of it behind.
    pub(super) async fn finish(mut self, config: &CommandConfig, attempt: &Attempt) -> Outcome {
        let end = self.wait(&attempt.stop, &attempt.grace).await;
        let linger = match end {
            End::ByItself => Instant::now() + LINGER,
            End::Stopped(grace_end) => grace_end.min(Instant::now() + LINGER),
            End::Stuck => Instant::now(),
        };
        // Out of time: others hold the pipes; what they wrote so far is still read below.
        let _ = timeout_at(linger, self.streams.wait()).await;
        let is_clean = self.end_processes(end).await;
        self.ended.cancel();
        if !is_clean {
            self.folder.keep();
        }
        if end == End::Stuck {
            return Outcome::Cancelled;
        }
        let status = self.leader.reap().await;
        self.leader.group_gone().await;
        let kept = self.collect(&attempt.stop, end).await;
        match (end, status) {
            (End::Stopped(_) | End::Stuck, _) => Outcome::Cancelled,
            (End::ByItself, Ok(status)) => match kept.told.snooze {
                Some(wait) if exit::may_snooze(status) => Outcome::Snoozed(wait),
                Some(_) | None if status.success() => {
                    succeeded(config, kept, &attempt.reporter).await
                }
                Some(_) | None => {
                    let mut error = exit::error_of(status, kept.stderr.into_lines());
                    error.retry_after = kept.told.retry_after;
                    Outcome::Failed(error.cut())
                }
            },
            (End::ByItself, Err(error)) => Outcome::Failed(setup_error(&error)),
        }
    }

    /// Waits until the program has ended; told to stop, asks it to, and forces it after the grace.
    async fn wait(&mut self, stop: &CancellationToken, grace: &Grace) -> End {
        // Both are cancel safe: asking again goes on waiting.
        tokio::select! {
            biased;
            () = self.leader.exited() => return End::ByItself,
            () = stop.cancelled() => {}
        }
        // Noted first: once a process has gone, nobody can tell whose children its children were.
        let wanted = self.wanted.clone();
        let look = tokio::task::spawn_blocking(move || processes::look(&wanted));
        self.wanted.seen = look.await.unwrap_or_default();
        let grace_end = Instant::now() + grace.get();
        self.leader.signal_group(Signal::TERM);
        // Who was suspended would not hear it.
        self.leader.signal_group(Signal::CONT);
        if timeout_at(grace_end, self.leader.exited()).await.is_ok() {
            return End::Stopped(grace_end);
        }
        self.leader.signal_group(Signal::KILL);
        match timeout(KILL_PATIENCE, self.leader.exited()).await {
            Ok(()) => End::Stopped(grace_end),
            Err(_) => End::Stuck,
        }
    }

    /// Ends what the program left behind: after a success its group, otherwise also whoever left the
    /// group. Done before the program is reaped, so that its number is still its own. False where
    /// something is still there.
    async fn end_processes(&mut self, end: End) -> bool {
        if end == End::ByItself && self.leader.has_succeeded().await {
            self.leader.signal_group(Signal::KILL);
            return true;
        }
        let wanted = self.wanted.clone();
        let ended =
            tokio::task::spawn_blocking(move || processes::end(&wanted, KILL_PATIENCE)).await;
        self.leader.signal_group(Signal::KILL);
        let is_clean = ended.is_ok_and(|ended| ended.is_complete) && end != End::Stuck;
        if !is_clean {
            let events = self.folder.events();
            tracing::error!(events = %events.display(), "processes were killed but are not gone");
        }
        is_clean
    }

    /// What the readers have kept, once all is told. An attempt that has to stop waits no longer than
    /// for output.
    async fn collect(&mut self, stop: &CancellationToken, end: End) -> Kept {
        let told_to_stop = async {
            stop.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        let readers = async { tokio::join!(&mut self.stdout, &mut self.stderr, &mut self.events) };
        // Dropping either loses only what nobody has taken for too long.
        let kept = tokio::select! {
            biased;
            kept = readers => Some(kept),
            () = told_to_stop => None,
        };
        let is_lost = end == End::ByItself && kept.is_none();
        if is_lost {
            tracing::warn!("the last output of an attempt was not taken in time");
        }
        let (stdout, stderr, told) = match kept {
            Some((stdout, stderr, told)) => (stdout.ok(), stderr.ok(), told.ok()),
            None => (None, None, None),
        };
        Kept {
            stdout: stdout.unwrap_or_else(|| Tail::new(0)),
            stderr: stderr.unwrap_or_else(|| Tail::new(0)),
            told: told.unwrap_or_default(),
        }
    }
}

/// Everything that is needed to start, on a thread that may block.
struct Preparation {
    attempt: Attempt,
    attempts_dir: std::path::PathBuf,
    argv: Vec<String>,
    dir: std::path::PathBuf,
    environment: Environment,
    has_stdin: bool,
}

impl Preparation {
    fn prepare(mut self) -> Result<(Folder, Started, pipe::Receiver, pipe::Sender), JobError> {
        let (folder, (receiver, sender)) = self.files().map_err(|error| setup_error(&error))?;
        let program = Program {
            argv: &self.argv,
            environment: &self.environment,
            dir: &self.dir,
            has_stdin: self.has_stdin,
        };
        let started = program
            .start()
            .map_err(|error| exit::spawn_error(&error, &self.argv[0], &self.dir))?;
        let pid = started.leader.pid().as_raw_nonzero().get();
        if let Some(description) = processes::describe(pid) {
            folder
                .write_leader(&description)
                .map_err(|error| setup_error(&error))?;
        }
        Ok((folder, started, receiver, sender))
    }

    /// The folder with all that is in it, and the environment that tells the program about it.
    fn files(&mut self) -> std::io::Result<(Folder, (pipe::Receiver, pipe::Sender))> {
        let attempt = &self.attempt;
        let folder = Folder::create(&self.attempts_dir, attempt.key.id, attempt.number)?;
        let mut set = |name: &str, value: std::ffi::OsString| {
            self.environment.insert(name.into(), value);
        };
        set(EVENTS_VARIABLE, folder.events().into());
        set("PACENOTE_JOB_ID", attempt.key.id.to_string().into());
        set("PACENOTE_JOB_TYPE", attempt.job_type.as_str().into());
        set("PACENOTE_ATTEMPT", attempt.number.to_string().into());
        if let Some(checkpoint) = &attempt.checkpoint {
            set(
                "PACENOTE_CHECKPOINT",
                folder.write_checkpoint(checkpoint)?.into(),
            );
        }
        let events = folder.open_events()?;
        Ok((folder, events))
    }
}

/// Writes the input and closes stdin.
async fn feed(mut stdin: ChildStdin, input: Payload) {
    // A program need not read its input: a broken pipe is fine.
    let _ = stdin.write_all(input.as_bytes()).await;
}

async fn succeeded(config: &CommandConfig, kept: Kept, reporter: &Reporter) -> Outcome {
    match result::find(config.result, kept.stdout, kept.told.result) {
        Ok(found) => {
            if let Some(note) = found.note {
                // Nobody is listening any more: fine.
                let _ = reporter.log(LogLevel::Warn, note).await;
            }
            Outcome::Succeeded(found.result)
        }
        Err(error) => Outcome::Failed(error.with_detail(kept.stderr.into_lines()).cut()),
    }
}

/// What the attempt needs of this machine is not to be had: another time, or another machine, it may.
fn setup_error(error: &dyn std::error::Error) -> JobError {
    let message = format!("the attempt could not be set up: {error}");
    JobError::retryable("ATTEMPT_SETUP", message)
        .with_code(ErrorCode::Unavailable)
        .cut()
}
