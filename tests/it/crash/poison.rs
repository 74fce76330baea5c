//! A job that kills the server that runs it, every time.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use pacenote::client::Client;
use pacenote::job::limits::ATTEMPTS_LOST_MAX;
use pacenote::pb;
use pacenote::pb::job::State;

use super::process::Start;
use super::{sleep_request, until};
use crate::harness::{count_of, folder, soon, submit_request};
use crate::life::{check_finished, states};

/// Waits until it is told whom to kill in this attempt.
const SCRIPT: &str = r#"
told="pid-$PACENOTE_ATTEMPT"
until [ -e "$told" ]; do sleep 0.01; done
kill -9 "$(cat "$told")"
exec sleep 600
"#;

/// Goal: FAULTS F58. A job that takes its worker with it is FAILED after three, with its history, although
/// its policy allows many more attempts; and while it runs the others of its queue do, too. Method: a program
/// that kills the server when the test says so, which is when all that were submitted beside it are over.
/// `PACENOTE_TEST_POISON_OTHERS` says how many come beside each attempt (20).
#[tokio::test]
async fn a_job_that_kills_the_server_each_time_fails_after_three_and_blocks_nobody() {
    let others = count_of("PACENOTE_TEST_POISON_OTHERS", 20);
    let dir = folder();
    std::fs::write(dir.path().join("script.sh"), SCRIPT).expect("a file");
    let config = r#"
        [job_types.poison]
        command = ["/bin/sh", "script.sh"]
        max_attempts = 50
        "#;
    std::fs::write(dir.path().join("pacenote.toml"), config).expect("a file");
    let start = Start::on(dir.path()).flag("--workers", "2");
    let mut server = start.start();
    let mut client = server.client().await;
    let poison = client.submit(submit_request("poison")).await;
    let poison = poison.expect("stored").job.expect("a job").job_id;
    for attempt in 1..=ATTEMPTS_LOST_MAX {
        until(&client, &poison, State::Running).await;
        all_succeed(&client, others).await;
        let running = client.get(poison.as_str()).await.expect("it is there");
        let expected = (State::Running, i32::try_from(attempt).expect("a few"));
        assert_eq!((running.state(), running.attempt), expected);
        tell(dir.path(), attempt, server.pid());
        let (status, log) = server.end().await;
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{log}");
        server = start.start();
        client = server.client().await;
    }
    let end = client.wait(poison.as_str(), None).await.expect("it ends");
    let end = end.job.expect("a job");
    assert_eq!(end.state(), State::Failed);
    assert_eq!((end.attempt, end.attempts_charged), (3, 3));
    assert_eq!(end.error.expect("why").reason, "WORKER_LOST");
    let request = pb::ListEventsRequest {
        job_id: poison,
        page_size: 1_000,
        ..pb::ListEventsRequest::default()
    };
    let log = client.list_events(request).await.expect("it is there");
    check_finished(&log.events);
    let lost = states(&log.events).into_iter();
    let lost = lost.filter(|(_, why)| *why == "WORKER_LOST");
    let lost: Vec<State> = lost.map(|(to, _)| to).collect();
    assert_eq!(lost, [State::Queued, State::Queued, State::Failed]);
    all_succeed(&client, others).await;
    server.stop().await;
}

/// Submits jobs to the same queue, and waits for their ends.
async fn all_succeed(client: &Client, count: usize) {
    let lives = (0..count).map(async |_| {
        let submitted = client.submit(sleep_request(0.0)).await?;
        let id = submitted.job.expect("a job").job_id;
        client.wait(id, None).await
    });
    let ends = soon(try_join_all(lives)).await.expect("it answers");
    for end in ends {
        assert_eq!(end.job.expect("a job").state(), State::Succeeded);
    }
}

/// Says whom to kill, in one go.
fn tell(dir: &Path, attempt: u32, pid: u32) {
    let draft = dir.join("pid");
    std::fs::write(&draft, pid.to_string()).expect("a file");
    std::fs::rename(draft, dir.join(format!("pid-{attempt}"))).expect("renamed");
}
