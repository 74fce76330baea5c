//! Many jobs as people watch them: with the Rust client, as the README shows it, and on the command line.

use std::path::Path;
use std::process::Stdio;

use pacenote::client::Client;
use pacenote::job::Outcome;
use pacenote::job::event::JobError;
use pacenote::pb::job::State;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{TestServer, binary, folder, soon};
use crate::watch_jobs::begin;

#[path = "../../examples/collect.rs"]
#[expect(dead_code, reason = "the example's own main is not called")]
mod collect;

/// The README shows it as it is, and it does what it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_are_collected_as_they_finish_as_the_readme_shows_it() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let client = Client::connect(server.address.as_str()).await;
    let jobs = collect::collect(client.expect("it serves")).await;
    let jobs = jobs.expect("no error");
    assert_eq!(jobs.len(), 1_000);
    assert!(
        jobs.iter()
            .all(|job| job.state() == State::Succeeded && job.result.is_some())
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = include_str!("../../examples/collect.rs");
    let (_, function) = code.split_once("/// The jobs in").expect("it is there");
    let (function, _) = function.split_once("\n#[tokio::main]").expect("its main");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("a README");
    let shown = format!("```rust\n/// The jobs in{function}```\n");
    assert!(readme.contains(&shown), "the README shows it as it is");
}

/// The command line, as it runs.
fn watching(server: &TestServer, arguments: &[&str]) -> Child {
    Command::new(binary())
        .args(["watch", "--server", &server.address])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary is there")
}

/// The command line, with what it says and how it exits.
async fn watch(server: &TestServer, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = soon(watching(server, arguments).wait_with_output()).await;
    let output = output.expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_watches_many_jobs_and_exits_by_the_worst_of_them() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (good, first) = begin(&server, &puppets, "a").await;
    let (bad, second) = begin(&server, &puppets, "a").await;
    first.succeed();
    server.end_of(&good).await;
    let mut watching = watching(&server, &["--id", &good, "--id", &bad]);
    let stdout = watching.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout).lines();
    // Only now does it know how the job stands; its end before that would be part of the first look.
    let told = soon(lines.next_line()).await.expect("text");
    assert_eq!(told, Some(format!("{bad} RUNNING")));
    second.end(Outcome::Failed(JobError::permanent("BROKEN", "no")));
    let mut stdout = String::new();
    while let Some(line) = soon(lines.next_line()).await.expect("text") {
        stdout.push_str(&line);
        stdout.push('\n');
    }
    let status = soon(watching.wait()).await.expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(
        stdout.contains(&format!("{good} end SUCCEEDED")),
        "{stdout}"
    );
    assert!(
        stdout.contains(&format!("{bad} 3 state RUNNING -> FAILED")),
        "{stdout}"
    );
    assert!(stdout.contains(&format!("{bad} end FAILED")), "{stdout}");
    let (code, stdout, _) = watch(&server, &["--id", &good, "--label", "team=a", "--json"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(stdout.lines().count(), 1);
    assert!(stdout.contains("STATE_SUCCEEDED"), "{stdout}");
    let (code, stdout, _) = watch(&server, &["--id", &bad, "--roll-up"]).await;
    let roll_up = "waiting 0 running 0 succeeded 0 failed 1 cancelled 0 expired 0 100%\n";
    assert_eq!((code, stdout.as_str()), (Some(1), roll_up));
    for wrong in [
        &[][..],
        &[good.as_str(), "--label", "team=a"],
        &[good.as_str(), "--roll-up"],
        &["--label", "team=a", "--after", "3"],
        &["--cursor", "x"],
    ] {
        let (code, _, stderr) = watch(&server, wrong).await;
        assert_eq!(code, Some(2), "{wrong:?}: {stderr}");
    }
    let (code, _, stderr) = watch(&server, &["--all", "--cursor", "x"]).await;
    assert_eq!(code, Some(5));
    assert!(stderr.contains("after_cursor"), "{stderr}");
}
