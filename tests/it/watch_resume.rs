//! Cut anywhere and resume: lines 3, 4 and 16 of the watch contract.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use pacenote::config::TypeSettings;
use pacenote::job::event::JobError;
use pacenote::job::policy::RetryPolicy;
use pacenote::job::{Outcome, Report};
use pacenote::pb;
use pacenote::pb::job::State;

use crate::harness::{
    Puppet, Puppets, Setup, TestServer, Told, count_of, folder, log_line, output, progress,
};

/// Watches under way at once: enough to keep two cores busy.
const IN_FLIGHT: usize = 8;

async fn start(dir: &tempfile::TempDir, puppets: &Puppets) -> TestServer {
    let settings = TypeSettings {
        progress_interval: Duration::ZERO,
        retry_policy: RetryPolicy {
            initial_backoff: Duration::ZERO,
            max_backoff: Duration::ZERO,
            ..RetryPolicy::default()
        },
        ..TypeSettings::default()
    };
    let server = Setup::on(dir.path())
        .config(|config| config.drain_timeout = Duration::from_millis(50))
        .job_type_with("puppet", settings, puppets.clone());
    server.start().await
}

/// Tells `events` events of every kind in commits of one to seven.
async fn talk(server: &TestServer, puppet: &Puppet, events: usize) {
    let mut told = 0;
    while told < events {
        let size = (1 + told % 7).min(events - told);
        let reports = (told..told + size).map(|n| match n % 5 {
            0 => progress(n as f64 / events as f64),
            1 => log_line("a line"),
            4 if n % 50 == 4 => output("y".repeat(20_000)),
            _ => output(n.to_string()),
        });
        let reports: Vec<Report> = reports.collect();
        // Progress of one commit is merged only where nothing stands between.
        told += reports.len();
        puppet.store(&server.queue, reports).await;
    }
}

/// A job of about so many events: states, progress, output, log lines, and an attempt that failed.
async fn make_job(server: &TestServer, puppets: &Puppets, events: usize) -> String {
    let (id, puppet) = server.begin(puppets).await;
    talk(server, &puppet, events / 2).await;
    puppet.end(Outcome::Failed(JobError::retryable("BROKEN", "again")));
    let puppet = puppets.next().await;
    talk(server, &puppet, events - events / 2 - 6).await;
    puppet.succeed();
    let end = server.end_of(&id).await;
    assert_eq!((end.state(), end.attempt), (State::Succeeded, 2));
    id
}

/// For every sequence: watch until it is reached, cut, resume from the stream's last cursor. The two
/// together are the log, event for event. And so from every sequence itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_can_be_cut_at_every_sequence_and_resumed_without_a_hole_or_a_duplicate() {
    let dir = folder();
    let puppets = Puppets::default();
    let server = start(&dir, &puppets).await;
    let events = count_of("PACENOTE_TEST_CUT_EVENTS", 500);
    let id = make_job(&server, &puppets, events).await;
    let log = server.log(&id).await;
    assert!(log.len() >= events - 1, "{} events", log.len());
    let dense: Vec<i64> = (1..=log.len() as i64).collect();
    let sequences: Vec<i64> = log.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, dense);
    let (server, id, log) = (&server, &id, &log);
    let cuts = stream::iter(0..=log.len()).map(|cut| async move {
        let mut told = Told::default();
        if cut > 0 {
            told = server.watch(id, Some(0)).await.until(cut as i64).await;
        }
        let rest = server.watch(id, Some(told.through)).await.to_end().await;
        told.events.extend(rest.events);
        assert!(told.events == *log, "cut at {cut}");
        let rest = server.watch(id, Some(cut as i64)).await.to_end().await;
        assert!(rest.events == log[cut..], "resumed after {cut}");
        assert_eq!(rest.through, log.len() as i64);
    });
    cuts.buffer_unordered(IN_FLIGHT).collect::<Vec<()>>().await;
}

/// The same while the job is talking: each watcher is cut after every single message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_watch_can_be_cut_after_every_message() {
    let dir = folder();
    let puppets = Puppets::default();
    let server = start(&dir, &puppets).await;
    let events = count_of("PACENOTE_TEST_CUT_EVENTS", 500);
    let (id, puppet) = server.begin(&puppets).await;
    let cutting = async |pause: bool| {
        let mut told = Told::default();
        let mut cuts = 0;
        loop {
            let mut watch = server.watch(&id, Some(told.through)).await;
            let Some(message) = watch.next().await.expect("no error") else {
                panic!("an end without a snapshot")
            };
            told.add(message);
            cuts += 1;
            if !told.snapshots.is_empty() {
                assert_eq!(watch.next().await.expect("OK"), None);
                return (told, cuts);
            }
            if pause {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let talking = async {
        talk(&server, &puppet, events / 2).await;
        puppet.end(Outcome::Failed(JobError::retryable("BROKEN", "again")));
        let puppet = puppets.next().await;
        talk(&server, &puppet, events / 2).await;
        puppet.succeed();
    };
    let (eager, calm, ()) = tokio::join!(cutting(false), cutting(true), talking);
    let log = server.log(&id).await;
    for (told, cuts) in [eager, calm] {
        assert!(cuts > 1);
        assert!(told.events == log, "{cuts} cuts");
    }
    server.stop().await.expect("a clean end");
}

/// Line 4: cut after every message, with a filter and with merged progress: what is shown is shown once.
#[tokio::test]
async fn a_filtered_and_merged_watch_can_be_cut_after_every_message() {
    let dir = folder();
    let puppets = Puppets::default();
    let server = start(&dir, &puppets).await;
    let id = make_job(&server, &puppets, 500).await;
    let log = server.log(&id).await;
    use pb::job_event::Event;
    let kinds = vec![pb::EventType::Progress as i32, pb::EventType::Log as i32];
    let mut told = Told::default();
    loop {
        let request = pb::WatchJobRequest {
            after_sequence: Some(told.through),
            event_types: kinds.clone(),
            min_progress_interval: Some(crate::harness::proto_duration(Duration::from_secs(60))),
            ..crate::harness::watch_request(&id)
        };
        let mut watch = server.try_watch(request).await.expect("a watch");
        told.add(watch.next().await.expect("no error").expect("a message"));
        if !told.snapshots.is_empty() {
            break;
        }
    }
    let is_log = |event: &&pb::JobEvent| matches!(event.event, Some(Event::Log(_)));
    let lines: Vec<_> = log.iter().filter(is_log).collect();
    assert_eq!(told.events.iter().filter(is_log).collect::<Vec<_>>(), lines);
    assert!(told.events.is_sorted_by(|a, b| a.sequence < b.sequence));
    let is_progress = |event: &&pb::JobEvent| matches!(event.event, Some(Event::Progress(_)));
    let newest = log.iter().rfind(is_progress);
    assert_eq!(
        told.events.iter().rfind(is_progress),
        newest,
        "the newest is shown"
    );
    server.stop().await.expect("a clean end");
}

/// Line 16: the cursor of one server works with the next one on the same store.
#[tokio::test]
async fn a_watch_resumes_where_it_was_after_the_server_came_again() {
    let dir = folder();
    let puppets = Puppets::default();
    let mut server = start(&dir, &puppets).await;
    let (id, mut puppet) = server.begin(&puppets).await;
    let mut told = Told::default();
    for round in 0..3 {
        let mut watch = server.watch(&id, Some(told.through)).await;
        talk(&server, &puppet, 20).await;
        let head = server.get(&id).await.last_sequence;
        let part = watch.until(head).await;
        told.events.extend(part.events);
        told.through = part.through;
        // What comes after the cut is read from the next server.
        talk(&server, &puppet, 30).await;
        // The attempt does what it is told, and is handed back.
        drop(puppet);
        server.stop().await.expect("a clean end");
        server = start(&dir, &puppets).await;
        puppet = puppets.next().await;
        assert_eq!(puppet.attempt.number, round + 2);
    }
    let watch = server.watch(&id, Some(told.through)).await;
    puppet.succeed();
    let rest = watch.to_end().await;
    told.events.extend(rest.events);
    assert_eq!(told.events, server.log(&id).await);
    assert_eq!(rest.snapshots[0].state(), State::Succeeded);
    server.stop().await.expect("a clean end");
    // And the finished job, once more after a restart.
    let server = start(&dir, &puppets).await;
    let again = server.watch(&id, Some(0)).await.to_end().await;
    assert_eq!(again.events, told.events);
    server.stop().await.expect("a clean end");
}
