//! Stopping: whatever a program does about it, nothing of it is left.

use crate::executor::Grace;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::*;

/// A grace short enough for a test and long enough for a shell's trap.
const GRACE: Duration = Duration::from_millis(500);

impl Trial {
    /// Starts, waits until the script has said `ready PID…` on stdout, and stops. Gives the pids.
    async fn stop_when_ready(&mut self) -> (Outcome, Vec<i32>) {
        self.harness.attempt_mut().grace = Grace::new(GRACE);
        let running = self.start();
        let mut pids = Vec::new();
        self.harness
            .until(|reports| {
                let text = String::from_utf8_lossy(&output(reports, "stdout")).into_owned();
                let line = text
                    .split_inclusive('\n')
                    .find(|line| line.starts_with("ready"));
                let Some(line) = line.filter(|line| line.ends_with('\n')) else {
                    return false;
                };
                let words = line.split_whitespace().skip(1);
                pids = words.filter_map(|word| word.parse().ok()).collect();
                true
            })
            .await;
        self.harness.stop.cancel();
        let outcome = deadline(running).await.expect("does not panic");
        (outcome, pids)
    }
}

#[tokio::test]
async fn a_program_that_was_told_to_stop_is_cancelled_whatever_it_exits_with() {
    for script in [
        "echo ready; sleep 60 & wait",
        "trap 'echo cleaned; exit 0' TERM; echo ready; sleep 60 & wait",
        "trap 'exit 3' TERM; echo ready; sleep 60 & wait",
        "echo ready; kill -STOP $$",
    ] {
        let mut trial = Trial::sh(script);
        let started = Instant::now();
        let (outcome, _) = trial.stop_when_ready().await;
        assert_eq!(outcome, Outcome::Cancelled, "{script}");
        assert!(started.elapsed() < Duration::from_secs(5), "{script}");
        let said = output(&trial.harness.reports().await, "stdout");
        assert_eq!(
            script.contains("cleaned"),
            said.ends_with(b"cleaned\n"),
            "{script}"
        );
        assert_eq!(
            std::fs::read_dir(trial.attempts_dir())
                .expect("made")
                .count(),
            0
        );
    }
}

#[tokio::test]
async fn a_program_that_ignores_the_signal_is_killed_after_its_grace() {
    let mut trial = Trial::sh("trap '' TERM; sleep 60 & echo ready $$ $!; wait; sleep 60");
    let started = Instant::now();
    let (outcome, pids) = trial.stop_when_ready().await;
    assert_eq!(outcome, Outcome::Cancelled);
    assert!(started.elapsed() >= GRACE);
    assert_eq!(pids.len(), 2);
    assert!(!pids.into_iter().any(is_running));
}

#[tokio::test]
async fn an_attempt_that_is_stopped_before_it_starts_starts_nothing() {
    let mut trial = Trial::sh("touch started");
    trial.harness.stop.cancel();
    assert_eq!(trial.run().await, Outcome::Cancelled);
    assert!(!trial.path().join("started").exists());
}

/// A daemon the old way: fork, setsid, fork, nothing of its parents kept but the environment.
#[cfg(target_os = "linux")]
const DAEMON: &str = "(setsid sh -c 'sh -c \"echo \\$\\$ > daemon.new; mv daemon.new daemon; exec sleep 60\" </dev/null >/dev/null 2>&1 & ') & while ! [ -s daemon ]; do :; done;";

#[cfg(target_os = "linux")]
#[tokio::test]
async fn daemons_and_other_escapees_are_killed_with_what_was_stopped_or_failed() {
    if !has("setsid") {
        return;
    }
    for end in ["echo ready $(cat daemon); sleep 60", "exit 1"] {
        let mut trial = Trial::sh(&format!("{DAEMON} {end}"));
        let outcome = if end.starts_with("exit") {
            trial.run().await
        } else {
            trial.stop_when_ready().await.0
        };
        assert!(!matches!(outcome, Outcome::Succeeded(_)));
        let pid = read_pid(&trial.path().join("daemon"));
        assert!(!is_running(pid), "{end}");
    }
    // In a session of its own, without our environment, but still a child.
    let script = "setsid env -i sh -c 'echo $$; exec sleep 60' > daemon & while ! [ -s daemon ]; do :; done; echo ready $(cat daemon); sleep 60";
    let mut trial = Trial::sh(script);
    let (_, pids) = trial.stop_when_ready().await;
    assert_eq!(pids.len(), 1);
    assert!(!pids.into_iter().any(is_running));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_success_ends_its_group_and_leaves_a_daemon_alone() {
    if !has("setsid") {
        return;
    }
    let mut trial = Trial::sh(&format!("sleep 60 >/dev/null 2>&1 & echo $!; {DAEMON}"));
    let pid: i32 = trial.succeed().await.trim().parse().expect("a number");
    gone(pid).await;
    let daemon = read_pid(&trial.path().join("daemon"));
    assert!(is_running(daemon));
    // Nor does the next start take it for a survivor.
    assert_eq!(end_survivors(&trial.attempts_dir()), 0);
    assert!(is_running(daemon));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(daemon).expect("not zero"),
        rustix::process::Signal::KILL,
    )
    .expect("killed");
}

#[tokio::test]
async fn who_holds_the_pipe_holds_the_attempt_for_two_seconds_at_most() {
    let mut trial = Trial::sh("sleep 60 & echo $!");
    let started = Instant::now();
    let pid: i32 = trial.succeed().await.trim().parse().expect("a number");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    gone(pid).await;
}

#[tokio::test]
async fn what_a_child_writes_shortly_after_the_program_has_ended_is_still_read() {
    let mut trial = Trial::sh("(read go < go; echo late) & (echo > go) & exit 0");
    nix::unistd::mkfifo(&trial.path().join("go"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    assert_eq!(trial.succeed().await, "late\n");
}

#[tokio::test]
async fn an_attempt_that_nobody_waits_for_any_more_takes_its_program_along() {
    let mut trial = Trial::sh("sleep 60 & echo ready $$ $!; wait");
    let running = trial.start();
    trial.until_output("\n").await;
    running.abort();
    let _ = deadline(running).await;
    let said = String::from_utf8(output(&trial.harness.reports().await, "stdout")).expect("UTF-8");
    let pids: Vec<i32> = said
        .split_whitespace()
        .filter_map(|w| w.parse().ok())
        .collect();
    assert_eq!(pids.len(), 2);
    for pid in pids {
        gone(pid).await;
    }
}

/// Goal: after a crash of the server, its programs are ended by the next start, and nobody else's are.
/// Method: processes as a crash leaves them: an attempt's folder, a group whose leader has cleared its
/// environment, and a daemon that has left the group.
#[cfg(target_os = "linux")]
#[test]
fn what_a_crash_left_running_is_ended_by_the_next_start() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let attempts_dir = dir.path().join("attempts");
    let folder = |attempt: u32| {
        let id = crate::job::name::JobId::new(uuid::Uuid::now_v7());
        let mut folder = folder::Folder::create(&attempts_dir, id, attempt).expect("made");
        folder.keep();
        folder
    };
    let (recorded, scanned) = (folder(1), folder(2));
    std::fs::create_dir(attempts_dir.join("not-an-attempt")).expect("made");

    let start = |argv: &[&str], events: Option<PathBuf>| {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new(argv[0]);
        command
            .args(&argv[1..])
            .stdout(Stdio::piped())
            .process_group(0);
        if let Some(events) = events {
            command.env("PACENOTE_EVENTS", events);
        }
        command.spawn().expect("started")
    };
    let mut bare = start(&["env", "-i", "sleep", "60"], Some(recorded.events()));
    let pid = i32::try_from(bare.id()).expect("fits");
    recorded
        .write_leader(&processes::describe(pid).expect("runs"))
        .expect("written");
    let script = "setsid sleep 60 & echo $!; setsid sleep 60 & echo $!; exec sleep 60";
    let mut tree = start(&["sh", "-c", script], Some(scanned.events()));
    let mut daemons = [String::new(), String::new()];
    let mut reader = std::io::BufReader::new(tree.stdout.take().expect("piped"));
    for daemon in &mut daemons {
        std::io::BufRead::read_line(&mut reader, daemon).expect("said");
    }
    let other = attempts_dir.join("other/events");
    let mut stranger = start(&["sleep", "60"], Some(other));

    let started = Instant::now();
    assert_eq!(end_survivors(&attempts_dir), 4);
    assert!(started.elapsed() < Duration::from_secs(5));
    for daemon in daemons {
        assert!(!is_running(daemon.trim().parse().expect("a number")));
    }
    assert!(!bare.wait().expect("waited").success());
    assert!(!tree.wait().expect("waited").success());
    assert!(
        stranger.try_wait().expect("asked").is_none(),
        "a stranger lives on"
    );
    stranger.kill().expect("killed");
    stranger.wait().expect("waited");
    let left: Vec<_> = std::fs::read_dir(&attempts_dir)
        .expect("is there")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    assert_eq!(left, ["not-an-attempt"]);
    assert_eq!(end_survivors(&attempts_dir), 0);
    assert_eq!(end_survivors(&dir.path().join("never-made")), 0);
}

#[cfg(target_os = "linux")]
fn read_pid(path: &Path) -> i32 {
    let text = std::fs::read_to_string(path).expect("written");
    text.trim().parse().expect("a number")
}
