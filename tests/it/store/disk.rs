//! Disks that are full, and disks that fail: what a server says, what it keeps, and how it ends.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pacenote::client::ClientError;
use pacenote::job::Outcome;
use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::pb::job::State;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::crash::process::{Start, client};
use crate::harness::{
    Puppets, Setup, TestServer, connect, folder, reason_of, soon, submit_request,
};

/// Says loudly that a test cannot run here. Where everything has to run, it fails.
fn skip(why: &str) {
    let must = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!must, "CI=true, and {why}");
    eprintln!("\n!!! SKIPPED: {why}\n");
}

/// A small disk of its own, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = folder();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(dir))
    }

    /// Takes all the room there is, and answers how to give it back.
    fn fill(&self) -> impl FnOnce() + use<> {
        let path = self.0.path().join("ballast");
        let mut ballast = std::fs::File::create(&path).expect("a file");
        for piece in [65_536, 4096] {
            while ballast.write_all(&vec![1; piece]).is_ok() {}
        }
        move || std::fs::remove_file(path).expect("it is there")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that a failing test left open would hold it.
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn large_submit() -> pb::SubmitRequest {
    pb::SubmitRequest {
        input: Some(pb::Payload {
            content: Some(pb::payload::Content::Data(vec![7; 50_000].into())),
            media_type: String::new(),
        }),
        ..submit_request("later")
    }
}

/// Submits until there is no room, and answers what was acknowledged.
async fn submit_until_full(server: &TestServer) -> Vec<String> {
    let mut acknowledged = Vec::new();
    loop {
        match server.client.clone().submit(large_submit()).await {
            Ok(answer) => {
                let job = answer.into_inner().job.expect("a job");
                acknowledged.push(job.job_id);
            }
            Err(status) => {
                let full = (Code::ResourceExhausted, "DISK_FULL".to_owned());
                assert_eq!(reason_of(&status), full, "{status:?}");
                return acknowledged;
            }
        }
        assert!(acknowledged.len() < 10_000, "the disk does not fill");
    }
}

async fn health(address: &str) -> ServingStatus {
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}"));
    let channel = channel.expect("an address").connect().await;
    let request = HealthCheckRequest {
        service: "pacenote.v1.JobService".to_owned(),
    };
    let answer = HealthClient::new(channel.expect("it listens"))
        .check(request)
        .await;
    answer.expect("an answer").into_inner().status()
}

/// Goal: FAULTS F7: a full disk refuses submits and nothing else, what runs waits with what it has to say,
/// and everything goes on once there is room. Method: a server on a disk of 4 MiB, with a file that takes
/// the rest of it and goes away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_submits_and_keeps_everything_else_going() {
    let Some(disk) = SmallDisk::mount("4m") else {
        return skip("a small disk cannot be mounted, so a full one is not tested");
    };
    let (puppets, later) = (Puppets::default(), Puppets::default());
    let server = Setup::on(disk.0.path())
        .job_type("puppet", puppets.clone())
        .job_type("later", later.clone())
        .config(|config| config.workers = 2)
        .start()
        .await;
    let talking = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    puppet.say("before").await;
    let watch = server.watch(&talking.job_id, Some(0)).await;
    let give_back = disk.fill();
    let acknowledged = submit_until_full(&server).await;

    // Reads go on, and nobody thinks that the server is ill.
    let begun = Instant::now();
    assert_eq!(server.get(&talking.job_id).await.state(), State::Running);
    assert!(server.log(&talking.job_id).await.len() >= 3);
    let mut second = server.watch(&talking.job_id, Some(0)).await;
    second.until(3).await;
    let list = connect(&server.address)
        .await
        .list(pb::ListRequest::default())
        .await;
    let listed = list.expect("an answer").into_inner().jobs.len();
    assert_eq!(listed, (acknowledged.len() + 1).min(50));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(health(&server.address).await, ServingStatus::Serving);

    // What runs talks on, and waits for room.
    let told = "x".repeat(30_000);
    for _ in 0..4 {
        puppet.say(&told).await;
    }
    puppet.end(Outcome::Succeeded(Some(Payload::text(told.repeat(2)))));
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(server.get(&talking.job_id).await.state(), State::Running);

    give_back();
    let freed = Instant::now();
    let end = server.end_of(&talking.job_id).await;
    assert_eq!((end.state(), end.attempt), (State::Succeeded, 1));
    assert!(
        freed.elapsed() < Duration::from_secs(5),
        "{:?}",
        freed.elapsed()
    );
    let told = watch.to_end().await;
    assert_eq!(
        told.sequences(),
        (1..=8).collect::<Vec<_>>(),
        "nothing is lost"
    );
    server.submit(submit_request("later")).await;
    for _ in 0..=acknowledged.len() {
        later.next().await.succeed();
    }
    for id in &acknowledged {
        assert_eq!(server.end_of(id).await.state(), State::Succeeded);
    }
    server.stop().await.expect("a clean end");
}

/// Goal: jobs that wait are handed out once there is room, with nobody asking for anything. Method: the
/// disk is full before a place becomes free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_jobs_begin_when_a_full_disk_has_room_again() {
    let Some(disk) = SmallDisk::mount("4m") else {
        return skip("a small disk cannot be mounted, so a full one is not tested");
    };
    let later = Puppets::default();
    let server = Setup::on(disk.0.path())
        .job_type("later", later.clone())
        .config(|config| config.workers = 1)
        .start()
        .await;
    let first = server.submit(submit_request("later")).await;
    let second = server.submit(submit_request("later")).await;
    let puppet = later.next().await;
    let give_back = disk.fill();
    let acknowledged = submit_until_full(&server).await;
    puppet.succeed();
    tokio::time::sleep(Duration::from_millis(300)).await;
    give_back();
    for id in [&first.job_id, &second.job_id]
        .into_iter()
        .chain(&acknowledged)
    {
        if id != &first.job_id {
            later.next().await.succeed();
        }
        assert_eq!(server.end_of(id).await.state(), State::Succeeded);
    }
    server.stop().await.expect("a clean end");
}

/// Goal: FAULTS F6: the first I/O error ends the server, and nothing that it acknowledged is lost. Method: the
/// real binary under strace, which lets one sync of each thread fail (SQLite may be built with fsync or with fdatasync).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_io_error_ends_the_server_and_loses_nothing() {
    if Command::new("strace").arg("--version").output().is_err() {
        return skip("there is no strace, so I/O errors are not tested");
    }
    // Not the second: it is that of the folder of the new log, whose failure SQLite leaves out of account.
    for failing in [1, 3, 5, 17, 60] {
        let dir = folder();
        // Made before, so that the figure counts the commits and not the creation.
        Start::on(dir.path()).start().stop().await;
        fail_at(dir.path(), failing).await;
    }
}

async fn fail_at(dir: &Path, failing: u32) {
    let mut start = Start::on(dir);
    let inject = format!("inject=fsync,fdatasync:error=EIO:when={failing}");
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync,fdatasync",
        "-e",
        &inject,
    ];
    start.under = strace.map(str::to_owned).into();
    let server = match start.spawn() {
        Ok(server) => server,
        Err((status, said)) => {
            assert_eq!(status.code(), Some(74), "{said}");
            return;
        }
    };
    let mut health = watch_health(&server.address).await;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..6 {
        let client = client(&server.address).await;
        clients.spawn(submit_until_error(client, number));
    }
    let (mut acknowledged, mut unknown, mut failed) = (Vec::new(), 0, None);
    while let Some(one) = soon(clients.join_next()).await {
        let (ids, error) = one.expect("no panic");
        failed.get_or_insert_with(Instant::now);
        acknowledged.extend(ids);
        let ClientError::Unavailable { reason, .. } = &error else {
            panic!("{failing}: {error:?}");
        };
        unknown += usize::from(reason == "OUTCOME_UNKNOWN");
    }
    let mut last = None;
    while let Ok(Some(status)) = health.message().await {
        last = Some(status.status());
    }
    let (status, log) = server.end().await;
    let took = failed.expect("a failure").elapsed();
    eprintln!(
        "sync {failing}: {} acknowledged, ended after {took:?}",
        acknowledged.len()
    );
    assert_eq!(status.code(), Some(74), "{log}");
    assert!(unknown > 0, "those whose commit failed are told so");
    assert_eq!(last, Some(ServingStatus::NotServing));
    assert!(took < Duration::from_secs(3), "{took:?}");

    let server = Start::on(dir).start();
    let client = server.client().await;
    for id in &acknowledged {
        let job = client.get(id.as_str()).await.expect("it was acknowledged");
        assert_eq!(job.job_id, *id);
    }
    server.stop().await;
}

async fn submit_until_error(
    client: pacenote::client::Client,
    number: u32,
) -> (Vec<String>, ClientError) {
    let mut ids = Vec::new();
    loop {
        let mut request = crate::crash::sleep_request(0.001);
        request.idempotency_key = format!("{number} {}", ids.len());
        // They wait, so that every commit is somebody's submit, and whoever's fails can be told.
        let hour = prost_types::Duration {
            seconds: 3_600,
            nanos: 0,
        };
        request.start = Some(pacenote::pb::submit_request::Start::Delay(hour));
        match soon(client.submit(request)).await {
            Ok(answer) => ids.push(answer.job.expect("a job").job_id),
            Err(error) => return (ids, error),
        }
    }
}

async fn watch_health(address: &str) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}"));
    let channel = channel.expect("an address").connect().await;
    let request = HealthCheckRequest {
        service: "pacenote.v1.JobService".to_owned(),
    };
    let watch = HealthClient::new(channel.expect("it listens"))
        .watch(request)
        .await;
    watch.expect("an answer").into_inner()
}
