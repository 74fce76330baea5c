//! What the end of a program means for its job: which exits are failures, which of them another
//! attempt may heal, and what the error says.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::job::event::{ErrorCode, JobError};

/// Longest part of the last line of stderr that the message repeats. Bytes; chosen: one terminal line
/// or two.
const LAST_LINE_BYTES_MAX: usize = 200;

/// The error of a program that ended with other than exit code 0.
pub(super) fn error_of(status: ExitStatus, last_lines: String) -> JobError {
    let last_line = last_lines.lines().next_back().unwrap_or_default();
    let last_line = &last_line[..last_line.floor_char_boundary(LAST_LINE_BYTES_MAX)];
    let error = match (status.code(), status.signal()) {
        (Some(code), _) => exit_code(code, last_line),
        (None, Some(number)) => signal(number, status.core_dumped()),
        (None, None) => {
            JobError::retryable("EXIT_CODE", format!("the program ended with {status}"))
        }
    };
    error.with_detail(last_lines)
}

/// Whether a program that asked to go on later has ended as one that did not fail: with success, or with
/// the code of sysexits(3) that asks to try again.
pub(super) fn may_snooze(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | 75))
}

/// The error of a program that could not be started.
pub(super) fn spawn_error(error: &io::Error, program: &str, dir: &Path) -> JobError {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let why = match errno {
        _ if !dir.is_dir() => format!("its folder {} does not exist", dir.display()),
        Some(Errno::EACCES) => format!("{error}: is it a file with permission to execute?"),
        Some(Errno::ENOENT) => {
            format!(
                "{error}: neither the file nor the interpreter in its first line may be missing"
            )
        }
        Some(Errno::E2BIG) => format!("{error}: read the input from stdin instead"),
        _ => error.to_string(),
    };
    let message = format!("the program {program:?} could not be started: {why}");
    // What may pass by itself: processes, memory, descriptors, or a file that is being written.
    let is_transient = matches!(
        errno,
        Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::ETXTBSY)
    );
    let mut told = if is_transient {
        JobError::retryable("SPAWN_FAILED", message).with_code(ErrorCode::Unavailable)
    } else {
        JobError::permanent("SPAWN_FAILED", message).with_code(ErrorCode::FailedPrecondition)
    };
    if let Some(errno) = errno {
        told = told.with_metadata("errno", format!("{errno:?}"));
    }
    told
}

fn exit_code(code: i32, last_line: &str) -> JobError {
    let message = match code {
        126 => "the program exited with code 126: a shell's way to say that a command was found but cannot be executed".to_owned(),
        127 => "the program exited with code 127: a shell's way to say that a command was not found".to_owned(),
        _ if last_line.is_empty() => format!("the program exited with code {code}"),
        _ => format!("the program exited with code {code}: {last_line}"),
    };
    let error = if is_retryable(code) {
        JobError::retryable("EXIT_CODE", message)
    } else {
        JobError::permanent("EXIT_CODE", message)
    };
    error.with_metadata("exit_code", code)
}

/// 2 is wrong usage by convention, 64 to 78 are those of sysexits(3), of which 75 asks to try again,
/// and 126 and 127 are a shell's for what it cannot run.
fn is_retryable(code: i32) -> bool {
    !matches!(code, 2 | 64..=74 | 76..=78 | 126 | 127)
}

fn signal(number: i32, core_dumped: bool) -> JobError {
    let name = Signal::try_from(number).map_or_else(
        |_| format!("SIG{number}"),
        |signal| signal.as_str().to_owned(),
    );
    let core = if core_dumped {
        " and dumped its core"
    } else {
        ""
    };
    let message = format!("the program was ended by {name} (signal {number}){core}");
    JobError::retryable("SIGNAL", message)
        .with_metadata("signal", number)
        .with_metadata("signal_name", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_retried_unless_they_say_that_it_is_of_no_use() {
        let kept: Vec<i32> = (1..=255).filter(|code| !is_retryable(*code)).collect();
        let expected: Vec<i32> = [2]
            .into_iter()
            .chain((64..=78).filter(|code| *code != 75))
            .chain([126, 127])
            .collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn only_what_passes_by_itself_is_started_again() {
        for errno in [
            Errno::EAGAIN,
            Errno::ENOMEM,
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ETXTBSY,
        ] {
            let error = io::Error::from_raw_os_error(errno as i32);
            assert!(
                spawn_error(&error, "p", Path::new("/")).retryable,
                "{errno}"
            );
        }
        for errno in [
            Errno::ENOENT,
            Errno::EACCES,
            Errno::E2BIG,
            Errno::ENOEXEC,
            Errno::EPERM,
        ] {
            let error = io::Error::from_raw_os_error(errno as i32);
            let error = spawn_error(&error, "p", Path::new("/"));
            assert!(!error.retryable, "{errno}");
            assert_eq!(error.metadata["errno"], format!("{errno:?}"));
        }
    }
}
