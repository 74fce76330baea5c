//! The real binary as a process, to be killed and started again on the same store and address.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pacenote::client::{Client, Settings};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::soon;

/// How a server is started.
pub(crate) struct Start {
    pub(crate) folder: PathBuf,
    pub(crate) listen: String,
    /// What stands before the binary, such as strace and its arguments.
    pub(crate) under: Vec<String>,
    pub(crate) flags: Vec<String>,
}

/// A server that goes with its test.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
    pub(crate) begun: Instant,
    log: Option<std::thread::JoinHandle<String>>,
}

impl Start {
    /// On the store `pacenote.db` and the file `pacenote.toml`, if there is one, of a folder.
    pub(crate) fn on(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
            under: Vec::new(),
            flags: Vec::new(),
        }
    }

    pub(crate) fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Starts it and waits for its address. `Err` with its exit and what it said, where it ended instead.
    pub(crate) fn spawn(&self) -> Result<Process, (ExitStatus, String)> {
        let binary = crate::harness::binary().display().to_string();
        let words: Vec<&String> = self.under.iter().chain([&binary]).collect();
        let begun = Instant::now();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .args([
                "serve",
                "--listen",
                &self.listen,
                "--store",
                "sqlite:pacenote.db",
            ])
            .args(&self.flags)
            .current_dir(&self.folder)
            .stderr(Stdio::piped())
            // A group of its own, so that what stands before the binary goes with it.
            .process_group(0)
            .spawn()
            .expect("the binary is there");
        let stderr = child.stderr.take().expect("a pipe");
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line.unwrap_or_default();
            if let Some(address) = line.strip_prefix("listening on ") {
                let address = address.to_owned();
                // Read on, so that the server never waits for its log to be read.
                let log = std::thread::spawn(move || {
                    let lines: Vec<String> = lines.map_while(Result::ok).collect();
                    lines.join("\n")
                });
                return Ok(Process {
                    child,
                    address,
                    begun,
                    log: Some(log),
                });
            }
            said.push_str(&line);
            said.push('\n');
        }
        Err((child.wait().expect("it ends"), said))
    }

    pub(crate) fn start(&self) -> Process {
        self.spawn().unwrap_or_else(|ended| panic!("{ended:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let group = i32::try_from(self.child.id()).expect("a pid");
            // It may have ended by itself: fine.
            let _ = nix::sys::signal::killpg(Pid::from_raw(group), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // It may have ended by itself: fine.
        let _ = kill(Pid::from_raw(pid), signal);
    }

    /// Kills it as a power cut would, and waits until the system has cleared it away.
    pub(crate) async fn kill(self) {
        self.signal(Signal::SIGKILL);
        self.end().await;
    }

    /// Asks it to drain, and waits for its end.
    pub(crate) async fn stop(self) {
        self.signal(Signal::SIGTERM);
        let (status, log) = self.end().await;
        assert!(status.success(), "{status}: {log}");
    }

    /// Waits for its end, and answers what it logged.
    pub(crate) async fn end(mut self) -> (ExitStatus, String) {
        let status = soon(async {
            loop {
                if let Some(status) = self.child.try_wait().expect("it is ours") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        let log = self.log.take().expect("it is read once");
        let log = soon(tokio::task::spawn_blocking(|| log.join())).await;
        (status, log.expect("no panic").expect("no panic"))
    }

    pub(crate) async fn client(&self) -> Client {
        client(&self.address).await
    }

    /// Time from its start until health says SERVING.
    pub(crate) async fn ready_after(&self) -> Duration {
        let endpoint = format!("http://{}", self.address);
        let endpoint = tonic::transport::Channel::from_shared(endpoint).expect("an address");
        let channel = endpoint.connect().await.expect("it listens");
        let mut health = HealthClient::new(channel);
        let request = HealthCheckRequest {
            service: "pacenote.v1.JobService".to_owned(),
        };
        let answer = health.check(request).await.expect("it answers");
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
        self.begun.elapsed()
    }
}

/// A client that outlives the server's deaths.
pub(crate) async fn client(address: &str) -> Client {
    let settings = Settings {
        tries_max: 1,
        backoff: pacenote::client::Backoff {
            max: Duration::from_millis(200),
            ..Settings::default().backoff
        },
        ..Settings::default()
    };
    let connected = Client::connect_with(address, settings).await;
    connected.expect("it serves")
}
