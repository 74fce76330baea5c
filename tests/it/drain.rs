//! The end of a server: what is told to whom, what becomes of running jobs, and that it comes in time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;
use pacenote::store::OpenError;
use pacenote::store::sqlite::SqliteStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::harness::{Puppets, Setup, TestServer, folder, reason_of, soon, submit_request};

/// A server that gives running jobs so long to finish.
async fn patient(dir: &tempfile::TempDir, drain: Duration) -> (TestServer, Puppets) {
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path())
        .config(|config| config.drain_timeout = drain)
        .job_type("puppet", puppets.clone());
    (setup.start().await, puppets)
}

fn assert_draining(refused: &Status) {
    assert_eq!(
        reason_of(refused),
        (Code::Unavailable, "SERVER_DRAINING".to_owned())
    );
    let details = refused.get_error_details();
    let retry = details.retry_info().expect("a RetryInfo");
    assert!(
        retry
            .retry_delay
            .is_some_and(|delay| delay > Duration::ZERO)
    );
}

/// Goal: everybody learns of a drain at once, and a job that finishes in time keeps its result.
/// Method: a running job holds the drain open, while every call is tried.
#[tokio::test]
async fn a_drain_is_told_to_everybody_at_once_and_lets_a_running_job_finish() {
    let dir = folder();
    let (server, puppets) = patient(&dir, Duration::from_secs(30)).await;
    let channel = Channel::from_shared(format!("http://{}", server.address)).expect("an address");
    let mut health = HealthClient::new(channel.connect().await.expect("it accepts"));
    let request = HealthCheckRequest {
        service: "pacenote.v1.JobService".to_owned(),
    };
    let mut told = health.watch(request).await.expect("known").into_inner();
    let first = soon(told.message())
        .await
        .expect("no error")
        .expect("a word");
    assert_eq!(first.status(), ServingStatus::Serving);

    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    server.until_state(&job.job_id, State::Running).await;
    let watch = server.watch(&job.job_id, None).await;
    let wait = pb::WaitRequest {
        job_id: job.job_id.clone(),
        ..pb::WaitRequest::default()
    };
    let mut client = server.client.clone();
    let waiting = tokio::spawn(async move { client.wait(wait).await });
    soon(async {
        while server.queue.open_watches() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    server.begin_stop();
    let next = soon(told.message())
        .await
        .expect("no error")
        .expect("a word");
    assert_eq!(next.status(), ServingStatus::NotServing);
    let (_, ended) = watch.to_error().await;
    assert_draining(&ended);
    let waited = soon(waiting).await.expect("no panic").expect("OK");
    assert!(waited.into_inner().timed_out);
    let refused = server.client.clone().submit(submit_request("puppet")).await;
    assert_draining(&refused.expect_err("it drains"));
    let run = pb::RunRequest {
        submit: Some(submit_request("puppet")),
        ..pb::RunRequest::default()
    };
    assert_draining(&server.client.clone().run(run).await.expect_err("it drains"));
    let watch = server
        .try_watch(crate::harness::watch_request(&job.job_id))
        .await;
    assert_draining(&watch.err().expect("it drains"));
    // Looking and cancelling work to the end.
    assert_eq!(server.get(&job.job_id).await.state(), State::Running);
    assert!(!puppet.attempt.stop.is_cancelled(), "it has its time");
    puppet.succeed();
    server.stop().await.expect("a clean end");

    let (server, puppets) = patient(&dir, Duration::from_secs(30)).await;
    assert_eq!(server.get(&job.job_id).await.state(), State::Succeeded);
    assert!(puppets.is_idle().await);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_job_that_does_not_finish_in_time_is_handed_back_without_charge() {
    let dir = folder();
    let (server, puppets) = patient(&dir, Duration::from_millis(50)).await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    server.begin_stop();
    soon(puppet.attempt.stop.cancelled()).await;
    drop(puppet);
    server.stop().await.expect("a clean end");

    let (server, puppets) = patient(&dir, Duration::from_millis(50)).await;
    let again = puppets.next().await;
    assert_eq!(again.attempt.number, 2);
    again.succeed();
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempts_charged), (State::Succeeded, 1));
    let log = server.log(&job.job_id).await;
    let handed_back = log.iter().any(|event| match &event.event {
        Some(Event::AttemptEnd(end)) => end.error.is_none() && !end.charged,
        _ => false,
    });
    assert!(handed_back, "{log:?}");
    server.stop().await.expect("a clean end");
}

/// Goal: a job claimed at the very moment of the stop is handed back like any other, never lost. Method:
/// submits race with the stop, round after round on one store; a lost lease would be charged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_claimed_while_the_stop_begins_is_handed_back_too() {
    let dir = folder();
    let mut acknowledged = 0;
    for round in 0..10 {
        let (server, puppets) = patient(&dir, Duration::from_millis(1)).await;
        let obedient = tokio::spawn(async move {
            // Lets go of each attempt: it ends as soon as it is told to stop.
            loop {
                drop(puppets.next().await);
            }
        });
        let (answered, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let submits = (0..30).map(|_| {
            let (mut client, answered) = (server.client.clone(), answered.clone());
            tokio::spawn(async move {
                let answer = client.submit(submit_request("puppet")).await;
                answered.send(()).expect("the test waits");
                answer
            })
        });
        let submits: Vec<_> = submits.collect();
        for _ in 0..round {
            soon(answers.recv()).await.expect("an answer");
        }
        server.begin_stop();
        for answer in soon(join_all(submits)).await {
            match answer.expect("no panic") {
                Ok(_) => acknowledged += 1,
                // Too late for the server, or for the connection: what breaks a call on its way says
                // whatever it likes, and carries no details.
                Err(refused) => {
                    let late = refused.code() == Code::Unavailable || refused.details().is_empty();
                    assert!(late, "{refused}");
                }
            }
        }
        server.stop().await.expect("a clean end");
        obedient.abort();
    }
    let (server, puppets) = patient(&dir, Duration::from_millis(1)).await;
    let jobs = server.all_jobs(pb::ListRequest::default()).await;
    assert!(
        jobs.len() >= acknowledged && acknowledged > 0,
        "{acknowledged}"
    );
    for job in &jobs {
        assert_eq!(job.attempts_charged, 0, "{job:?}");
        assert_eq!(job.error, None, "{job:?}");
    }
    let obedient = tokio::spawn(async move {
        loop {
            drop(puppets.next().await);
        }
    });
    server.stop().await.expect("a clean end");
    obedient.abort();
}

/// A frame of HTTP/2. Source: RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Opens a watch by hand and never reads a byte of it.
async fn watch_without_reading(address: &str, job_id: &str) -> TcpStream {
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/pacenote.v1.JobService/WatchJob"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        // A literal without indexing. Source: RFC 7541, section 6.2.2.
        headers.extend([0, name.len() as u8]);
        headers.extend(name.as_bytes());
        headers.push(value.len() as u8);
        headers.extend(value.as_bytes());
    }
    let request = pb::WatchJobRequest {
        after_sequence: Some(0),
        ..crate::harness::watch_request(job_id)
    };
    let message = prost::Message::encode_to_vec(&request);
    let mut data = vec![0];
    data.extend((message.len() as u32).to_be_bytes());
    data.extend(message);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 4, 1, &headers));
    bytes.extend(frame(0, 1, 1, &data));
    let mut connection = TcpStream::connect(address).await.expect("it accepts");
    connection.write_all(&bytes).await.expect("it reads");
    connection
}

/// Goal: nobody can hold the end up. Method: connections that never speak, that greet and fall silent,
/// and a watch of more than any window that nobody reads; then a stop, with nothing left to run.
#[tokio::test]
async fn the_end_comes_in_time_whoever_holds_a_connection() {
    let dir = folder();
    let (server, puppets) = patient(&dir, Duration::from_secs(30)).await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    for _ in 0..4 {
        let chunk = Payload::text("x".repeat(1_000_000));
        puppet
            .attempt
            .reporter
            .output("stdout", chunk)
            .await
            .expect("it is alive");
    }
    let mut silent = TcpStream::connect(&server.address)
        .await
        .expect("it accepts");
    let mut greets = TcpStream::connect(&server.address)
        .await
        .expect("it accepts");
    greets
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .expect("it reads");
    let unread = watch_without_reading(&server.address, &job.job_id).await;
    soon(async {
        while server.queue.open_watches() < 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let open = server.watch(&job.job_id, None).await;
    puppet.succeed();
    server.end_of(&job.job_id).await;
    let begun = Instant::now();
    server.stop().await.expect("a clean end");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    drop((open, unread));
    // Whoever still listens hears the end of the connection.
    for connection in [&mut silent, &mut greets] {
        let mut rest = Vec::new();
        let _ = soon(connection.read_to_end(&mut rest)).await;
    }
}

/// Goal: whoever embeds a server and lets its runtime go, as a crash would, finds the store free again.
/// Method: the attempt that runs, the pool and the queue all know each other; another open of the store
/// succeeds only once the last of them is gone.
#[test]
fn a_runtime_that_goes_takes_the_server_with_it_and_leaves_the_store_free() {
    let dir = folder();
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let first = runtime();
    let server = first.block_on(async {
        let (server, puppets) = TestServer::with_puppets(&dir).await;
        server.submit(submit_request("puppet")).await;
        drop(soon(puppets.next()).await);
        server
    });
    first.shutdown_background();
    drop(server);
    runtime().block_on(async {
        let path = dir.path().join("pacenote.db");
        let open = async {
            while let Err(error) = SqliteStore::open(&path).await {
                assert!(matches!(error, OpenError::Locked { .. }), "{error}");
                tokio::task::yield_now().await;
            }
        };
        soon(open).await;
    });
}
