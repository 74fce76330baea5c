//! Starting a program: its own process group, its own small environment, no descriptor but 0, 1 and 2,
//! and never a shell.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Stdio;

use tokio::net::unix::pipe;
use tokio::process::{ChildStdin, Command};

use crate::executor::command::descriptors;
use crate::executor::command::environment::{self, Environment};
use crate::executor::command::leader::Leader;

/// What is to be started.
pub(super) struct Program<'a> {
    /// The program and its arguments.
    pub(super) argv: &'a [String],
    /// Everything it sees.
    pub(super) environment: &'a Environment,
    /// Where it runs.
    pub(super) dir: &'a Path,
    /// Whether something will be written to its stdin; empty otherwise.
    pub(super) has_stdin: bool,
}

/// A program that runs.
pub(super) struct Started {
    pub(super) leader: Leader,
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

impl Program<'_> {
    /// Starts it. Blocks until it runs; needs the runtime in reach.
    pub(super) fn start(&self) -> io::Result<Started> {
        let (name, arguments) = self
            .argv
            .split_first()
            .expect("checked: a command has a program");
        let program = environment::find_program(name, self.environment, self.dir)?;
        let mut command = Command::new(program);
        command
            .arg0(OsStr::new(name))
            .args(arguments)
            .env_clear()
            .envs(self.environment)
            .current_dir(self.dir)
            .process_group(0)
            .stdin(if self.has_stdin {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        descriptors::close_on_exec(&mut command);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("asked for a pipe");
        let stderr = child.stderr.take().expect("asked for a pipe");
        let leader = Leader::new(child)?;
        Ok(Started {
            leader,
            stdin,
            stdout: pipe::Receiver::from_owned_fd(stdout.into_owned_fd()?)?,
            stderr: pipe::Receiver::from_owned_fd(stderr.into_owned_fd()?)?,
        })
    }
}
