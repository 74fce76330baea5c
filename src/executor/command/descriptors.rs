//! What a child inherits, and descriptors that the runtime watches: the one module of this crate that
//! needs `unsafe`.
#![expect(
    unsafe_code,
    reason = "what a child inherits can only be set between fork and exec"
)]

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

#[cfg(target_os = "linux")]
use tokio::io::{Interest, unix::AsyncFd};
use tokio::process::Command;

/// Marks every descriptor from 3 on to be closed by exec, whoever opened it and forgot to.
pub(super) fn close_on_exec(command: &mut Command) {
    // SAFETY: the closure calls nothing but async-signal-safe system calls, allocates nothing and
    // touches no lock, as fork in a program with threads demands (fork(2), signal-safety(7)).
    unsafe {
        command.pre_exec(mark_all);
    }
}

/// Lets the runtime watch a descriptor for being readable.
#[cfg(target_os = "linux")]
pub(super) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same descriptor, and holds it open until the `AsyncFd`, to
    // which it is given, has taken it off the runtime.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

#[cfg(target_os = "linux")]
fn mark_all() -> io::Result<()> {
    let (first, last) = (3_u32, u32::MAX);
    // SAFETY: takes three integers and changes only flags of descriptors. As a bare system call,
    // because not every libc has it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            last,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == 0 {
        return Ok(());
    }
    // Kernels before 5.11, and sandboxes.
    mark_each();
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn mark_all() -> io::Result<()> {
    mark_each();
    Ok(())
}

/// Most descriptors that are marked one by one. `_SC_OPEN_MAX` may be a billion (containers without a
/// limit), and a call for each would take minutes before every start. The kernel gives the lowest free
/// number, so one beyond this bound takes a million open at once; `/proc/self/fd` would say exactly, but
/// reading a folder allocates, which may deadlock between fork and exec.
const DESCRIPTORS_MAX: libc::c_int = 1 << 20;

fn mark_each() {
    // SAFETY: takes an integer and gives one.
    let open_max = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    let open_max = libc::c_int::try_from(open_max).unwrap_or(DESCRIPTORS_MAX);
    // Without a limit, the answer is -1.
    let open_max = if open_max < 0 {
        DESCRIPTORS_MAX
    } else {
        open_max.min(DESCRIPTORS_MAX)
    };
    for descriptor in 3..open_max {
        // SAFETY: takes integers; fails with EBADF where there is no such descriptor.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
