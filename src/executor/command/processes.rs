//! Finding and ending the processes of an attempt, also those that left its process group.
//!
//! A process is recognised by its group, by its ancestors (as far as they live, so this has to be looked
//! at before anything is ended), or by the `PACENOTE_EVENTS` in its environment, which a daemon inherits
//! however often it forks. It is ended through a pidfd, after looking again that it still is the one that
//! was found: no stranger is hit. Not found: a daemon that has left the group, lost its ancestors and
//! cleared its environment. Linux only; elsewhere the process group alone is ended.

#[cfg(target_os = "linux")]
pub(super) use linux::{end, identity, look};
#[cfg(not(target_os = "linux"))]
pub(super) use other::{end, identity, look};

use std::path::{Path, PathBuf};

/// Which processes are meant.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Groups whose members are wanted, because their leader is known.
    pub(super) groups: Vec<i32>,
    /// Whose `PACENOTE_EVENTS` is one of these, with their groups.
    pub(super) events: Vec<PathBuf>,
    /// Those that were found before.
    pub(super) seen: Vec<Seen>,
}

/// One process, told from a later one of the same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pid: i32,
    /// Clock ticks since boot.
    started: u64,
}

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ended {
    /// Processes that were sent a KILL.
    pub(super) count: usize,
    /// Whether none is left.
    pub(super) is_complete: bool,
}

/// What identifies a process beyond its number, which may be given again: written down by
/// [`describe`], compared by the next start.
pub(super) fn describe(pid: i32) -> Option<String> {
    Some(format!("{pid} {}", identity(pid)?))
}

/// The number of a process described before, where that very process is still there.
pub(super) fn find_described(description: &str) -> Option<i32> {
    let (pid, described) = description.trim_end().split_once(' ')?;
    let pid = pid.parse().ok().filter(|pid| *pid > 1)?;
    (identity(pid)? == described).then_some(pid)
}

impl Wanted {
    fn has_events(&self, path: &Path) -> bool {
        self.events.iter().any(|wanted| wanted == path)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{HashMap, HashSet};
    use std::ffi::OsStr;
    use std::fs;
    use std::io;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::Errno;
    use rustix::process::{
        Pid, PidfdFlags, Signal, getpgrp, kill_process, pidfd_open, pidfd_send_signal,
    };

    use super::{Ended, Seen, Wanted};
    use crate::executor::command::environment::EVENTS_VARIABLE;

    /// Between two looks where nothing tells that a process has gone.
    const PAUSE: Duration = Duration::from_millis(10);

    /// A process as `/proc` showed it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Process {
        pid: i32,
        parent: i32,
        group: i32,
        /// Clock ticks since boot: with the number, it tells a process from its successor.
        started: u64,
        is_dead: bool,
    }

    impl Process {
        fn seen(self) -> Seen {
            Seen {
                pid: self.pid,
                started: self.started,
            }
        }
    }

    /// Ends every wanted process and waits until it is gone, looking again until there is none: a
    /// process may fork while it is being looked for. Blocks.
    pub(in super::super) fn end(wanted: &Wanted, patience: Duration) -> Ended {
        let deadline = Instant::now() + patience;
        let mut known = HashSet::new();
        let mut groups: HashSet<i32> = wanted.groups.iter().copied().collect();
        loop {
            let found = find(wanted, &mut groups);
            let mut dying = Vec::new();
            for process in &found {
                if let Ok(descriptor) = kill(*process) {
                    known.insert((process.pid, process.started));
                    dying.extend(descriptor);
                }
            }
            let is_complete = found.is_empty();
            if is_complete || Instant::now() >= deadline {
                let count = known.len();
                return Ended { count, is_complete };
            }
            if dying.is_empty() {
                // Nothing to wait on: they may not be killed by us, or the kernel has no descriptors.
                std::thread::sleep(PAUSE);
            }
            for descriptor in dying {
                wait_for_exit(&descriptor, deadline);
            }
        }
    }

    /// The wanted processes as they are now. Blocks.
    pub(in super::super) fn look(wanted: &Wanted) -> Vec<Seen> {
        let mut groups = wanted.groups.iter().copied().collect();
        find(wanted, &mut groups)
            .into_iter()
            .map(Process::seen)
            .collect()
    }

    /// When a process was started, in a way that no other process shares: by boot and clock tick.
    pub(in super::super) fn identity(pid: i32) -> Option<String> {
        let process = read_process(pid)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        (!process.is_dead).then(|| format!("{} {}", boot.trim_end(), process.started))
    }

    /// The wanted processes that live. Every group that one of them is in becomes wanted, too.
    fn find(wanted: &Wanted, groups: &mut HashSet<i32>) -> Vec<Process> {
        let all = all_processes();
        let ourselves = i32::try_from(std::process::id()).unwrap_or_default();
        let our_group = getpgrp().as_raw_nonzero().get();
        let mut ours: HashSet<i32> = all
            .iter()
            .filter(|process| !process.is_dead)
            .filter(|process| {
                wanted.seen.contains(&process.seen()) || events_of(process.pid, wanted)
            })
            .map(|process| process.pid)
            .collect();
        let members = all.iter().filter(|process| ours.contains(&process.pid));
        groups.extend(members.map(|process| process.group));
        groups.retain(|group| *group > 1 && *group != our_group);
        let parents: HashMap<i32, i32> = all.iter().map(|p| (p.pid, p.parent)).collect();
        ours.extend(groups.iter().copied());
        let is_descendant = |process: &Process| {
            let mut pid = process.pid;
            // Bounded: what was read one after another may show a circle.
            for _ in 0..256 {
                if ours.contains(&pid) {
                    return true;
                }
                match parents.get(&pid) {
                    Some(parent) if *parent > 1 && *parent != ourselves => pid = *parent,
                    _ => return false,
                }
            }
            false
        };
        all.iter()
            .filter(|p| !p.is_dead && p.pid != ourselves && p.pid > 1)
            .filter(|p| groups.contains(&p.group) || is_descendant(p))
            .copied()
            .collect()
    }

    fn all_processes() -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(read_process)
            .collect()
    }

    /// Reads `/proc/PID/stat`, proc_pid_stat(5). The name in parentheses may hold anything.
    fn read_process(pid: i32) -> Option<Process> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Process {
            pid,
            // A zombie with threads is one whose main thread has ended before the others.
            is_dead: matches!(*fields.first()?, "Z" | "X" | "x")
                && fields.get(17)?.parse::<u32>().ok()? <= 1,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether the process was started with one of the wanted FIFOs. Others' processes cannot be read.
    fn events_of(pid: i32, wanted: &Wanted) -> bool {
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            return false;
        };
        environment.split(|byte| *byte == 0).any(|variable| {
            variable
                .strip_prefix(EVENTS_VARIABLE.as_bytes())
                .and_then(|rest| rest.strip_prefix(b"="))
                .is_some_and(|path| wanted.has_events(Path::new(OsStr::from_bytes(path))))
        })
    }

    /// Kills exactly this process. The descriptor, where the kernel has such, tells when it is gone.
    fn kill(process: Process) -> io::Result<Option<OwnedFd>> {
        let pid = Pid::from_raw(process.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Some(descriptor),
            Err(Errno::NOSYS) => None,
            Err(error) => return Err(error.into()),
        };
        // From here on the descriptor means one process; this makes sure that it is the one found.
        if read_process(process.pid).map(|now| now.started) != Some(process.started) {
            return Err(io::ErrorKind::NotFound.into());
        }
        match &descriptor {
            Some(descriptor) => pidfd_send_signal(descriptor, Signal::KILL)?,
            None => kill_process(pid, Signal::KILL)?,
        }
        Ok(descriptor)
    }

    fn wait_for_exit(descriptor: &OwnedFd, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut waited = [PollFd::new(descriptor, PollFlags::IN)];
        // Interrupted or out of time: the next look decides.
        let _ = poll(&mut waited, Some(&timeout));
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

    use super::{Ended, Seen, Wanted};

    /// Nothing beyond the group is known here.
    pub(in super::super) fn look(_: &Wanted) -> Vec<Seen> {
        Vec::new()
    }

    /// Ends the wanted groups and waits until they are gone. Blocks.
    pub(in super::super) fn end(wanted: &Wanted, patience: Duration) -> Ended {
        let deadline = Instant::now() + patience;
        let groups = wanted.groups.iter().filter(|group| **group > 1);
        let killed: Vec<Pid> = groups
            .filter_map(|group| Pid::from_raw(*group))
            .filter(|group| kill_process_group(*group, Signal::KILL).is_ok())
            .collect();
        let is_left = || {
            killed
                .iter()
                .any(|group| test_kill_process_group(*group).is_ok())
        };
        while is_left() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ended {
            count: killed.len(),
            // A leader that was not reaped yet still counts as a member: it does not run any more.
            is_complete: true,
        }
    }

    /// When a process was started.
    pub(in super::super) fn identity(pid: i32) -> Option<String> {
        let listed = Command::new("ps")
            .args(["-o", "lstart=", "-p", &pid.to_string()])
            .output()
            .ok()?;
        let started = String::from_utf8(listed.stdout).ok()?.trim().to_owned();
        (!started.is_empty()).then_some(started)
    }
}
