//! What a watch of many jobs refuses, and that who does not read it slows nobody and misses nothing.

use futures_util::future::join_all;
use pacenote::job::Outcome;
use pacenote::job::limits::WATCH_JOB_IDS_MAX;
use pacenote::pb;
use pacenote::pb::job_service_client::JobServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::{
    Puppets, Setup, TestServer, bad_fields, eventually, folder, log_line, output, reason_of, soon,
};
use crate::watch_jobs::{
    JobsTold, JobsWatched, begin, ids, labelled, refused, team, try_watch_jobs, watch_jobs,
};

fn seconds(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

const YEAR: i64 = 365 * 24 * 3600;

/// As much of everything as is accepted.
fn at_the_limits() -> pb::WatchJobsRequest {
    let names = |count| (0..count).map(|n| format!("n{n:0127}")).collect();
    let labels = (0..64).map(|n| (format!("l{n:0127}"), "v".repeat(255)));
    let ids = (0..WATCH_JOB_IDS_MAX).map(|n| uuid::Uuid::from_u128(n as u128).to_string());
    pb::WatchJobsRequest {
        after_cursor: String::new(),
        queues: names(100),
        types: names(100),
        labels: labels.collect(),
        batch_id: uuid::Uuid::from_u128(1).to_string(),
        job_ids: ids.collect(),
        event_types: vec![pb::EventType::Log.into(); 100],
        min_progress_interval: seconds(YEAR, 0),
        heartbeat_interval: seconds(300, 0),
        roll_up: false,
        finished_view: pb::JobView::Full.into(),
    }
}

#[tokio::test]
async fn every_field_is_bounded_and_each_fault_is_named() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let mut watch = watch_jobs(&server, at_the_limits()).await;
    let told = watch.to_end().await;
    assert_eq!(told.gaps.len(), WATCH_JOB_IDS_MAX, "none of them exists");
    let least = pb::WatchJobsRequest {
        min_progress_interval: seconds(0, 0),
        heartbeat_interval: seconds(1, 0),
        ..pb::WatchJobsRequest::default()
    };
    drop(watch_jobs(&server, least).await);
    type Fault = fn(&mut pb::WatchJobsRequest);
    let faults: [(&str, Fault); 16] = [
        ("queues", |r| r.queues.push("more".to_owned())),
        ("types", |r| r.types.push("more".to_owned())),
        ("queues[0]", |r| r.queues[0] = "n".repeat(129)),
        ("types[99]", |r| r.types[99] = "a b".to_owned()),
        ("labels", |r| {
            drop(r.labels.insert("more".to_owned(), String::new()))
        }),
        ("labels[\"long\"]", |r| {
            r.labels = [("long".to_owned(), "v".repeat(256))].into()
        }),
        ("labels[\"a b\"]", |r| {
            r.labels = [("a b".to_owned(), String::new())].into()
        }),
        ("batch_id", |r| r.batch_id = "7".to_owned()),
        ("job_ids", |r| r.job_ids.push(uuid::Uuid::nil().to_string())),
        ("job_ids[3]", |r| r.job_ids[3] = "7".to_owned()),
        ("event_types", |r| r.event_types.push(1)),
        ("event_types[0]", |r| r.event_types[0] = 99),
        ("min_progress_interval", |r| {
            r.min_progress_interval = seconds(YEAR, 1)
        }),
        ("heartbeat_interval", |r| {
            r.heartbeat_interval = seconds(300, 1)
        }),
        ("heartbeat_interval", |r| {
            r.heartbeat_interval = seconds(0, 999_999_999)
        }),
        ("finished_view", |r| r.finished_view = 9),
    ];
    for (field, fault) in &faults {
        let mut request = at_the_limits();
        fault(&mut request);
        let status = refused(&server, request).await;
        let invalid = (Code::InvalidArgument, "INVALID_FIELD".to_owned());
        assert_eq!(reason_of(&status), invalid, "{field}");
        assert_eq!(bad_fields(&status), [*field]);
    }
    // All at once, the cursor among them.
    let request = pb::WatchJobsRequest {
        after_cursor: "none of ours".to_owned(),
        queues: vec!["a b".to_owned()],
        types: vec![String::new()],
        batch_id: "7".to_owned(),
        job_ids: vec!["7".to_owned()],
        event_types: vec![0],
        min_progress_interval: seconds(-1, 0),
        heartbeat_interval: seconds(0, 0),
        finished_view: -1,
        ..pb::WatchJobsRequest::default()
    };
    let status = refused(&server, request).await;
    let mut fields = bad_fields(&status);
    fields.sort();
    let all = [
        "after_cursor",
        "batch_id",
        "event_types[0]",
        "finished_view",
        "heartbeat_interval",
        "job_ids[0]",
        "min_progress_interval",
        "queues[0]",
        "types[0]",
    ];
    assert_eq!(fields, all);
    assert_eq!(server.queue.open_watches(), 0);
}

#[tokio::test]
async fn a_cursor_is_good_for_its_own_filter_and_store_only() {
    let (dir, other_dir) = (folder(), folder());
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let (other, _others) = TestServer::with_puppets(&other_dir).await;
    let cursor = watch_jobs(&server, team("a")).await.opened().await.cursor;
    let with = |request: pb::WatchJobsRequest| pb::WatchJobsRequest {
        after_cursor: cursor.clone(),
        ..request
    };
    let mut damaged = with(team("a"));
    damaged.after_cursor.truncate(20);
    for (at, request) in [
        (&server, with(team("b"))),
        (&server, with(pb::WatchJobsRequest::default())),
        (&server, damaged),
        (&other, with(team("a"))),
    ] {
        let status = refused(at, request).await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(bad_fields(&status), ["after_cursor"]);
    }
    // What is shown of them may change.
    let shown_otherwise = pb::WatchJobsRequest {
        event_types: vec![pb::EventType::Log.into()],
        finished_view: pb::JobView::Full.into(),
        ..with(team("a"))
    };
    assert!(try_watch_jobs(&server, shown_otherwise).await.is_ok());
}

/// A store that was set back to an earlier copy of itself gives the positions behind it anew.
#[tokio::test]
async fn a_cursor_ahead_of_the_log_is_refused() {
    let (dir, copy) = (folder(), folder());
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    server.stop().await.expect("a clean end");
    let file = "pacenote.db";
    std::fs::copy(dir.path().join(file), copy.path().join(file)).expect("a copy");
    let setup = |dir: &tempfile::TempDir| Setup::on(dir.path()).job_type("puppet", puppets.clone());
    let server = setup(&dir).start().await;
    let (_id, _puppet) = begin(&server, &puppets, "a").await;
    let cursor = watch_jobs(&server, team("a")).await.opened().await.cursor;
    let server = setup(&copy).start().await;
    let request = pb::WatchJobsRequest {
        after_cursor: cursor,
        ..team("a")
    };
    let status = refused(&server, request).await;
    assert_eq!(bad_fields(&status), ["after_cursor"]);
}

#[tokio::test]
async fn a_watch_of_many_jobs_counts_as_one_watcher() {
    let dir = folder();
    let (server, _puppets) = TestServer::with_puppets(&dir).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut watch = watch_jobs(&server, pb::WatchJobsRequest::default()).await;
        watch.opened().await;
        open.push(watch);
    }
    assert_eq!(server.queue.open_watches(), 3);
    open.clear();
    eventually("they are gone", || server.queue.open_watches() == 0).await;
}

/// Goal: who does not read slows nobody, is never cut off, and reads all of it later, in order. Method:
/// watchers that stand still on connections of their own while jobs write far more than windows, channel
/// and batches hold together, in few large and in many small commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_slows_nobody_and_later_reads_all() {
    let dir = folder();
    let puppets = Puppets::default();
    // Two run, and all others wait.
    let server = Setup::on(dir.path())
        .config(|config| config.workers = 2)
        .job_type("puppet", puppets.clone())
        .start()
        .await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut client = small_client(&server).await;
        let stream = soon(client.watch_jobs(team("a"))).await.expect("a watch");
        let mut watch = JobsWatched(stream.into_inner());
        assert!(watch.opened().await.events.is_empty());
        slow.push((watch, client));
    }
    let quick = watch_jobs(&server, team("a")).await;
    let quick = tokio::spawn(read_until(quick, 1_202));
    let (large, puppet) = begin(&server, &puppets, "a").await;
    let (theirs, other) = begin(&server, &puppets, "b").await;
    for _ in 0..100 {
        puppet
            .store(&server.queue, vec![output("x".repeat(60_000))])
            .await;
        other
            .store(
                &server.queue,
                vec![output("x".repeat(60_000)), log_line("y")],
            )
            .await;
    }
    let submits = (0..1_201).map(|_| server.submit(labelled("puppet", "a")));
    let waiting = join_all(submits).await;
    let cancels = waiting.iter().map(|job| server.cancel(&job.job_id));
    join_all(cancels).await;
    other.succeed();
    puppet.succeed();
    let whole = soon(quick).await.expect("no panic");
    assert_eq!(whole.sequences_of(&large), (1..=103).collect::<Vec<_>>());
    assert!(whole.sequences_of(&theirs).is_empty());
    assert_eq!(
        server.queue.open_watches(),
        4,
        "none is cut off for being slow"
    );
    for (watch, _client) in slow {
        let told = read_until(watch, 1_202).await;
        assert_eq!(told.places(), whole.places());
        assert_eq!(told.finished_ids(), whole.finished_ids());
        assert!(told.gaps.is_empty());
    }
}

async fn read_until(mut watch: JobsWatched, finished: usize) -> JobsTold {
    watch.until(|told| told.finished.len() == finished).await
}

/// A client on a connection of its own, which takes in no more than 64 KiB that was not read.
async fn small_client(server: &TestServer) -> crate::harness::Client {
    let endpoint = Channel::from_shared(format!("http://{}", server.address));
    let endpoint = endpoint
        .expect("an address")
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535);
    JobServiceClient::new(endpoint.connect().await.expect("the server accepts"))
}

/// Results that are too large to travel together travel one by one, and those that were not heard are read.
#[tokio::test]
async fn results_of_any_size_come_with_their_jobs() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let mut jobs = Vec::new();
    let mut running = Vec::new();
    for _ in 0..4 {
        let (id, puppet) = begin(&server, &puppets, "a").await;
        jobs.push(id);
        running.push(puppet);
    }
    let job_ids: Vec<&str> = jobs.iter().map(String::as_str).collect();
    let request = pb::WatchJobsRequest {
        finished_view: pb::JobView::Full.into(),
        ..ids(&job_ids)
    };
    let mut watch = watch_jobs(&server, request).await;
    watch.opened().await;
    for (puppet, size) in running.into_iter().zip([1, 200_000, 900_000, 10_000]) {
        let result = pacenote::job::payload::Payload::text("r".repeat(size));
        puppet.end(Outcome::Succeeded(Some(result)));
    }
    let told = watch.to_end().await;
    assert_eq!(told.finished.len(), 4);
    for job in &told.finished {
        assert_eq!(*job, server.get(&job.job_id).await);
    }
}
