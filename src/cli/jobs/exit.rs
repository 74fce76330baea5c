//! How the commands end: one exit code for each thing a script may want to tell apart.

use std::io;
use std::process::ExitCode;

use crate::cli::jobs::escape::escape;
use crate::client::{ClientError, is_final};
use crate::pb;
use crate::pb::job::State;

/// An exit code by what it means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// 0: the call worked; where a job was followed, it succeeded.
    Success,
    /// 1: the job failed.
    Failed,
    /// 2: wrong usage. clap uses the same.
    Usage,
    /// 3: the job was cancelled or has expired.
    Stopped,
    /// 4: could not connect, or the connection did not come back.
    NotConnected,
    /// 5: the server refused.
    Refused,
    /// 74: stdout could not be written (`EX_IOERR` of sysexits.h).
    Io,
    /// 75: `wait` ran out of time (`EX_TEMPFAIL` of sysexits.h).
    TimedOut,
    /// 130: Ctrl-C, as shells say it.
    Interrupted,
}

impl Exit {
    /// How a job's end is told; `Success` for one that has not ended.
    pub(super) fn of(state: State) -> Self {
        match state {
            State::Failed => Self::Failed,
            State::Cancelled | State::Expired => Self::Stopped,
            State::Succeeded
            | State::Unspecified
            | State::Scheduled
            | State::Blocked
            | State::Queued
            | State::Running
            | State::Cancelling => Self::Success,
        }
    }

    /// What `wait` says of a job that it got back.
    pub(super) fn of_wait(job: &pb::Job) -> Self {
        if is_final(job.state()) {
            Self::of(job.state())
        } else {
            Self::TimedOut
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Stopped => 3,
            Exit::NotConnected => 4,
            Exit::Refused => 5,
            Exit::Io => 74,
            Exit::TimedOut => 75,
            Exit::Interrupted => 130,
        })
    }
}

/// Why a command ended before it was done.
#[derive(Debug)]
pub(crate) enum Stop {
    Usage(String),
    Client(ClientError),
    /// Writing to stdout failed. A reader that went away is no error.
    Output(io::Error),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Stop {
    /// The code, and what to say on stderr; nothing where `head` has read enough.
    pub(crate) fn into_exit(self) -> (Exit, Option<String>) {
        match self {
            Self::Usage(message) => (Exit::Usage, Some(message)),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                (Exit::Success, None)
            }
            Self::Output(error) => (Exit::Io, Some(format!("cannot write to stdout: {error}"))),
            Self::Client(error) => (exit_of(&error), Some(explain(&error))),
        }
    }
}

fn exit_of(error: &ClientError) -> Exit {
    match error {
        ClientError::Endpoint { .. } => Exit::Usage,
        ClientError::System { .. } => Exit::Io,
        ClientError::Connect { .. }
        | ClientError::Unavailable { .. }
        | ClientError::Deadline { .. } => Exit::NotConnected,
        ClientError::Refused(_) | ClientError::Contract { .. } => Exit::Refused,
    }
}

/// The error, a bad field a line, and what to try.
fn explain(error: &ClientError) -> String {
    match error {
        ClientError::Refused(refusal) => {
            let name = if refusal.reason.is_empty() {
                refusal.code
            } else {
                &refusal.reason
            };
            let mut text = format!("{}: {}", escape(name), escape(&refusal.message));
            // The message of a single one says it already.
            let told = match refusal.violations.as_slice() {
                [only] if refusal.message.contains(&only.description) => &[],
                violations => violations,
            };
            for violation in told {
                let (field, why) = (escape(&violation.field), escape(&violation.description));
                text.push_str(&format!("\n  {field}: {why}"));
            }
            if let Some(after) = refusal.retry_after {
                text.push_str(&format!(
                    "\ntry again in {}",
                    humantime::format_duration(after)
                ));
            }
            text
        }
        ClientError::Connect { .. } => format!(
            "{}\nstart a server with `pacenote serve`, or name one with --server or PACENOTE_SERVER",
            escape(&error.to_string())
        ),
        ClientError::Endpoint { .. }
        | ClientError::Unavailable { .. }
        | ClientError::Deadline { .. }
        | ClientError::System { .. }
        | ClientError::Contract { .. } => escape(&error.to_string()).into_owned(),
    }
}
