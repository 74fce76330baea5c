//! The process that was started for an attempt, and the group it leads.
//!
//! Its end is noticed before it is reaped: as long as it is a zombie, its number, which is the group's
//! too, belongs to nobody else, so that a signal to the group cannot hit a stranger.

use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::process::Child;

#[cfg(target_os = "linux")]
use crate::executor::command::descriptors;

/// How long killed processes are waited for that nothing else waits for. Chosen: they need less than a
/// millisecond on an idle machine; where nobody reaps orphans, this is all that is lost.
const DYING_TIME: Duration = Duration::from_millis(200);

/// A started process that leads its own group. Dropped before it was reaped, it takes the group along.
#[derive(Debug)]
pub(super) struct Leader {
    child: Child,
    /// Also the group's number. Greater than 1: a signal to group 0 or 1 would hit ourselves or all.
    pid: Pid,
    is_reaped: bool,
    #[cfg(target_os = "linux")]
    exit: Option<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>>,
}

impl Leader {
    pub(super) fn new(child: Child) -> io::Result<Self> {
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .filter(|id| *id > 1)
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the started process has no number"))?;
        Ok(Self {
            child,
            pid,
            is_reaped: false,
            #[cfg(target_os = "linux")]
            exit: notice_of_exit(pid),
        })
    }

    /// Its number, and its group's.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end, without reaping it where the system can do that.
    ///
    /// # Cancel safety
    /// Safe: asking again goes on waiting.
    pub(super) async fn exited(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(exit) = &self.exit
            && exit.readable().await.is_ok()
        {
            return;
        }
        self.is_reaped |= self.child.wait().await.is_ok();
    }

    /// Sends a signal to the whole group. Nothing happens where nobody is left.
    pub(super) fn signal_group(&self, signal: Signal) {
        if !self.is_reaped {
            // Nobody left to get it: fine.
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Whether it has ended with exit code 0. Leaves it as it is.
    pub(super) async fn has_succeeded(&mut self) -> bool {
        if self.is_reaped {
            // Given again by the runtime, which has kept it.
            return self.child.wait().await.is_ok_and(|status| status.success());
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let ended = waitid(WaitId::Pid(self.pid), options);
        ended.is_ok_and(|status| status.is_some_and(|status| status.exit_status() == Some(0)))
    }

    /// Takes its exit status, after which its number is free.
    pub(super) async fn reap(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.is_reaped = true;
        status
    }

    /// Waits a moment until those of its group that were killed are gone. Only looks: once the leader is
    /// reaped, the number may be another's.
    pub(super) async fn group_gone(&self) {
        let deadline = Instant::now() + DYING_TIME;
        while rustix::process::test_kill_process_group(self.pid).is_ok()
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        // The child itself is killed and reaped by the runtime.
        self.signal_group(Signal::KILL);
    }
}

/// A descriptor that becomes readable when the process ends, pidfd_open(2). None where the kernel has
/// no such thing; then the end is noticed by reaping.
#[cfg(target_os = "linux")]
fn notice_of_exit(pid: Pid) -> Option<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    use rustix::process::{PidfdFlags, pidfd_open};

    let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    descriptors::watch(descriptor).ok()
}
