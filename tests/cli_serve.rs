//! `pacenote serve` as a process: how it ends.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pacenote::client::{Client, Update, WatchOptions};
use pacenote::pb;
use pacenote::pb::job::State;

/// A server that goes with its test.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(folder: &Path, drain_timeout: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pacenote"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--drain-timeout",
                drain_timeout,
            ])
            .current_dir(folder)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is there");
        let stderr = child.stderr.take().expect("a pipe");
        let mut lines = BufReader::new(stderr).lines();
        let first = lines.next().expect("a line").expect("text");
        let address = first.strip_prefix("listening on ").expect("the address");
        let address = address.to_owned();
        // Read on, so that the server never waits for its log to be read.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn signal(&self) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is alive");
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address).await.expect("it serves")
    }

    /// Waits for its end in a thread, and says how long that took.
    async fn end(mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        let status = tokio::task::spawn_blocking(move || self.child.wait().expect("it ends"));
        let status = tokio::time::timeout(Duration::from_secs(30), status).await;
        let status = status.expect("it ends long before").expect("no panic");
        (status, begun.elapsed())
    }
}

async fn submit_sleep(client: &Client) -> String {
    let request = pb::SubmitRequest {
        r#type: "sleep".to_owned(),
        input: Some(pb::Payload {
            content: Some(pb::payload::Content::Text(r#"{"seconds":600}"#.to_owned())),
            media_type: "application/json".to_owned(),
        }),
        ..pb::SubmitRequest::default()
    };
    let submitted = client.submit(request).await.expect("a good request");
    submitted.job.expect("a job").job_id
}

/// A drain ends by its deadline with a job that runs on, a watch that is open and a connection that
/// never says a word; the job is handed back, nothing charged, and runs again after the next start.
#[tokio::test]
async fn a_drain_ends_in_time_and_hands_back_what_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Serving::start(folder.path(), "1s");
    let idle = std::net::TcpStream::connect(&serving.address).expect("it accepts");
    let client = serving.client().await;
    let job_id = submit_sleep(&client).await;
    let mut watch = client.watch(&job_id, WatchOptions::default());
    let first = watch.next().await.expect("a watch").expect("a snapshot");
    assert!(matches!(first, Update::Snapshot(_)), "{first:?}");
    serving.signal();
    let (status, took) = serving.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    drop(idle);

    let serving = Serving::start(folder.path(), "1s");
    let job = serving
        .client()
        .await
        .get(&job_id)
        .await
        .expect("it is kept");
    assert_eq!(
        (job.state(), job.attempt, job.attempts_charged),
        (State::Running, 2, 0)
    );
    serving.signal();
    assert_eq!(serving.end().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let serving = Serving::start(folder.path(), "30s");
    let client = serving.client().await;
    let job_id = submit_sleep(&client).await;
    let mut watch = client.watch(&job_id, WatchOptions::default());
    watch.next().await.expect("a watch").expect("a snapshot");
    serving.signal();
    // The drain has begun once the watch is told of it.
    let told = loop {
        match watch.next().await.expect("no end of it") {
            Ok(Update::Reconnecting { error, .. }) => break error,
            Ok(_) => {}
            Err(error) => panic!("the watch of a running job ended: {error}"),
        }
    };
    assert!(format!("{told:?}").contains("SERVER_DRAINING"), "{told:?}");
    serving.signal();
    let (status, took) = serving.end().await;
    assert_eq!(status.code(), Some(143));
    assert!(took < Duration::from_secs(2), "{took:?}");
}
