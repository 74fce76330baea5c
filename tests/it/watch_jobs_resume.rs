//! Cut the watch of many jobs anywhere and resume: also while they run, race its beginning, across a
//! restart and a kill.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{self, StreamExt};
use nix::sys::signal::Signal;
use pacenote::config::TypeSettings;
use pacenote::executor::{Attempt, Executor};
use pacenote::job::Outcome;
use pacenote::job::payload::Payload;
use pacenote::pb;

use crate::crash::process::Start;
use crate::harness::{
    Puppet, Puppets, Setup, TestServer, connect, count_of, eventually, folder, log_line, output,
    progress, soon, submit_request,
};
use crate::watch_jobs::{JobsTold, JobsWatched, begin, ids, labelled, team, watch_jobs};

/// Watches under way at once: enough to keep two cores busy.
const IN_FLIGHT: usize = 8;

async fn start(dir: &tempfile::TempDir, puppets: &Puppets) -> TestServer {
    let settings = TypeSettings {
        progress_interval: Duration::ZERO,
        ..TypeSettings::default()
    };
    Setup::on(dir.path())
        .job_type_with("puppet", settings, puppets.clone())
        .start()
        .await
}

/// Jobs that run beside each other and talk in turn, one after another ending.
async fn talk(server: &TestServer, mut running: Vec<Puppet>, rounds: usize) {
    let mut round = 0;
    while !running.is_empty() {
        for (number, puppet) in running.iter().enumerate() {
            let reports = match (round + number) % 4 {
                0 => vec![progress(round as f64 / rounds as f64)],
                1 => vec![log_line("a line"), output("x"), log_line("another")],
                2 => vec![output("y".repeat(20_000))],
                _ => vec![log_line("alone")],
            };
            puppet.store(&server.queue, reports).await;
        }
        if round >= rounds / 2 {
            // Two of them end in one commit, where there are two.
            let ending = running.len().min(2);
            for puppet in running.drain(..ending) {
                puppet.succeed();
            }
        }
        round += 1;
    }
}

/// The rest of a watch, as far as it was not told before a cut.
fn rest(whole: &JobsTold, before: &JobsTold) -> (Vec<(String, i64)>, Vec<String>) {
    let events = whole.places().split_off(before.events.len());
    let finished = whole.finished_ids().split_off(before.finished.len());
    (events, finished)
}

/// Goal: whatever message a watch is cut after, what follows is exactly the rest, in order. Method: eight
/// jobs, watched from before their first event to after the last, then once more from each cursor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_can_be_cut_after_every_message_and_resumed_without_a_hole_or_a_double() {
    let dir = folder();
    let puppets = Puppets::default();
    let server = start(&dir, &puppets).await;
    let mut jobs = Vec::new();
    let mut running = Vec::new();
    for _ in 0..8 {
        let (id, puppet) = begin(&server, &puppets, "a").await;
        jobs.push(id);
        running.push(puppet);
    }
    let jobs: Vec<&str> = jobs.iter().map(String::as_str).collect();
    let mut watch = watch_jobs(&server, ids(&jobs)).await;
    let opened = watch.opened().await;
    assert!(opened.events.is_empty());
    let telling = talk(&server, running, count_of("PACENOTE_TEST_CUT_ROUNDS", 40));
    let reading = async {
        let mut steps = vec![opened.clone()];
        let mut told = opened.clone();
        while let Some(message) = watch.next().await.expect("no error") {
            told.add(message);
            steps.push(told.clone());
        }
        steps
    };
    let ((), steps) = tokio::join!(telling, reading);
    let whole = steps.last().expect("at least the first").clone();
    assert_eq!(whole.finished.len(), 8);
    for id in &jobs {
        let log = server.log(id).await;
        let told = whole.events.iter().filter(|event| event.job_id == *id);
        let told: Vec<pb::JobEvent> = told.cloned().collect();
        assert_eq!(told, log[2..], "submitted and claimed before the watch");
    }
    let (server, whole, jobs) = (&server, &whole, &jobs);
    let cuts = stream::iter(steps).map(|before| async move {
        let request = pb::WatchJobsRequest {
            after_cursor: before.cursor.clone(),
            ..ids(jobs)
        };
        let told = watch_jobs(server, request).await.to_end().await;
        assert_eq!((told.places(), told.finished_ids()), rest(whole, &before));
        assert!(told.snapshot.is_empty() && told.gaps.is_empty());
    });
    cuts.buffer_unordered(IN_FLIGHT).collect::<Vec<()>>().await;
}

/// The same while the jobs are talking, with every kind of merging: each watcher is cut after every single
/// message. With a filter that also hides most of what happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_watch_can_be_cut_after_every_message() {
    let dir = folder();
    let puppets = Puppets::default();
    let server = start(&dir, &puppets).await;
    let request = team("a");
    let begun = watch_jobs(&server, request.clone()).await.opened().await;
    let mut jobs = Vec::new();
    let mut running = Vec::new();
    for number in 0..8 {
        let team = if number % 2 == 0 { "a" } else { "b" };
        let (id, puppet) = begin(&server, &puppets, team).await;
        if team == "a" {
            jobs.push(id);
        }
        running.push(puppet);
    }
    let server = &server;
    let cutting = async |request: pb::WatchJobsRequest| {
        let mut told = JobsTold {
            cursor: begun.cursor.clone(),
            ..JobsTold::default()
        };
        while told.finished.len() < 4 {
            let request = pb::WatchJobsRequest {
                after_cursor: told.cursor.clone(),
                ..request.clone()
            };
            let mut watch = watch_jobs(server, request).await;
            told.add(watch.next().await.expect("no error").expect("no end"));
        }
        told
    };
    let merging = pb::WatchJobsRequest {
        min_progress_interval: Some(prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        }),
        ..request.clone()
    };
    let only_logs = pb::WatchJobsRequest {
        event_types: vec![pb::EventType::Log.into()],
        ..request.clone()
    };
    let telling = talk(server, running, 40);
    let all = [request, merging, only_logs].map(cutting);
    let ((), told) = tokio::join!(telling, join_all(all));
    for id in &jobs {
        let log = server.log(id).await;
        let of = |number: usize, keep: fn(&pb::JobEvent) -> bool| {
            let told: &JobsTold = &told[number];
            let told = told.events.iter().filter(|event| event.job_id == *id);
            let told: Vec<i64> = told.filter(|e| keep(e)).map(|e| e.sequence).collect();
            told
        };
        let in_log = |keep: fn(&pb::JobEvent) -> bool| {
            let log = log.iter().filter(|event| keep(event));
            log.map(|event| event.sequence).collect::<Vec<i64>>()
        };
        assert_eq!(of(0, |_| true), in_log(|_| true));
        assert_eq!(of(1, |e| !is_progress(e)), in_log(|e| !is_progress(e)));
        assert!(of(1, |_| true).is_sorted_by(|a, b| a < b), "none twice");
        assert_eq!(of(2, |_| true), in_log(is_log));
        for told in &told {
            let times = told
                .finished_ids()
                .iter()
                .filter(|told| *told == id)
                .count();
            assert_eq!(times, 1);
        }
    }
}

fn is_progress(event: &pb::JobEvent) -> bool {
    matches!(event.event, Some(pb::job_event::Event::Progress(_)))
}

fn is_log(event: &pb::JobEvent) -> bool {
    matches!(event.event, Some(pb::job_event::Event::Log(_)))
}

/// A job type whose attempts are over before they have begun.
#[derive(Clone)]
struct AtOnce;

impl Executor for AtOnce {
    fn run(&self, _: Attempt) -> BoxFuture<'static, Outcome> {
        Box::pin(std::future::ready(Outcome::Succeeded(Some(Payload::text(
            "r",
        )))))
    }
}

/// Goal: a job that is submitted, runs and ends while a watch begins is in its snapshot, in its events or
/// both, exactly once each; and its end is told once. Method: hundreds of watches, each begun in the middle
/// of such jobs, and without a pause anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_to_watch_while_jobs_begin_and_end_misses_none_and_sees_none_twice() {
    let dir = folder();
    let server = Setup::on(dir.path())
        .job_type("at-once", AtOnce)
        .start()
        .await;
    let races = count_of("PACENOTE_TEST_RACES", 1_000) / 4;
    let server = &server;
    let all = stream::iter(0..races).map(|race| async move {
        let name = format!("race-{race}");
        let submit = || server.submit(labelled("at-once", &name));
        let before = submit().await;
        let submits = join_all((0..4).map(|_| submit()));
        let watching = async {
            let mut watch = watch_jobs(server, team(&name)).await;
            let opened = watch.opened().await;
            (watch, opened)
        };
        let (others, (watch, opened)) = tokio::join!(submits, watching);
        let mut jobs: Vec<String> = others.into_iter().map(|job| job.job_id).collect();
        jobs.push(before.job_id);
        check_race(server, watch, opened, jobs, &name).await;
    });
    all.buffer_unordered(IN_FLIGHT).collect::<Vec<()>>().await;
    // The last ones have let go of their streams, which is noticed soon.
    eventually("all watches are gone", || server.queue.open_watches() == 0).await;
}

/// One more job after the others: once it was told to be over, so were all that are going to be.
async fn check_race(
    server: &TestServer,
    mut watch: JobsWatched,
    mut told: JobsTold,
    jobs: Vec<String>,
    name: &str,
) {
    for id in &jobs {
        server.end_of(id).await;
    }
    let last = server.submit(labelled("at-once", name)).await.job_id;
    while !told.finished_ids().contains(&last) {
        told.add(watch.next().await.expect("no error").expect("no end"));
    }
    let shown = told.snapshot.iter();
    let shown: BTreeMap<&str, i64> = shown
        .map(|j| (j.job_id.as_str(), j.last_sequence))
        .collect();
    assert_eq!(shown.len(), told.snapshot.len(), "none is shown twice");
    for id in jobs.iter().chain([&last]) {
        let sequences = told.sequences_of(id);
        let times = told
            .finished_ids()
            .iter()
            .filter(|told| *told == id)
            .count();
        match shown.get(id.as_str()) {
            Some(shown) => assert_eq!(sequences, ((shown + 1)..=3).collect::<Vec<_>>()),
            // It was over before the watch began, or ended or began under it.
            None => assert!(sequences.is_empty() || sequences.last() == Some(&3)),
        }
        assert!(sequences.is_sorted_by(|a, b| b - a == 1), "{sequences:?}");
        assert_eq!(times, usize::from(!sequences.is_empty()));
    }
}

/// By ids nothing may be missing at all, whenever the watch begins: each job is told to be over, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_by_ids_tells_each_end_once_whenever_it_begins() {
    let dir = folder();
    let server = Setup::on(dir.path())
        .job_type("at-once", AtOnce)
        .start()
        .await;
    let races = count_of("PACENOTE_TEST_RACES", 1_000) / 4;
    let server = &server;
    let all = stream::iter(0..races).map(|_| async move {
        let jobs = join_all((0..4).map(|_| server.submit(submit_request("at-once")))).await;
        let jobs: Vec<&str> = jobs.iter().map(|job| job.job_id.as_str()).collect();
        let told = watch_jobs(server, ids(&jobs)).await.to_end().await;
        let mut finished = told.finished_ids();
        finished.sort();
        let mut jobs: Vec<String> = jobs.iter().map(|id| (*id).to_owned()).collect();
        jobs.sort();
        assert_eq!(finished, jobs);
        assert!(told.gaps.is_empty());
        for shown in &told.snapshot {
            let rest = (shown.last_sequence + 1)..=3;
            assert_eq!(told.sequences_of(&shown.job_id), rest.collect::<Vec<_>>());
        }
    });
    all.buffer_unordered(IN_FLIGHT).collect::<Vec<()>>().await;
    assert_eq!(server.queue.open_watches(), 0);
}

/// The same cursor works after kill -9: what was told before and after it is every log, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_the_kill_of_its_server() {
    let dir = folder();
    let mut told = JobsTold::default();
    let mut jobs = Vec::new();
    for kill in 0..3 {
        let process = Start::on(dir.path()).start();
        let mut client = connect(&process.address).await;
        let request = pb::WatchJobsRequest {
            after_cursor: told.cursor.clone(),
            ..team("a")
        };
        let stream = soon(client.watch_jobs(request)).await.expect("a watch");
        let mut watch = JobsWatched(stream.into_inner());
        if kill == 0 {
            told = watch.opened().await;
        }
        for _ in 0..20 {
            let request = pb::SubmitRequest {
                input: Some(sleep_for(0.01)),
                ..labelled("sleep", "a")
            };
            let job = soon(client.submit(request)).await.expect("stored");
            jobs.push(job.into_inner().job.expect("a job").job_id);
        }
        while told.finished.len() < jobs.len() - 10 {
            told.add(watch.next().await.expect("no error").expect("no end"));
        }
        process.signal(Signal::SIGKILL);
        // What was under way when the connection broke was told as well.
        while let Ok(Some(message)) = watch.next().await {
            told.add(message);
        }
        process.kill().await;
    }
    let process = Start::on(dir.path()).start();
    let mut client = connect(&process.address).await;
    let request = pb::WatchJobsRequest {
        after_cursor: told.cursor.clone(),
        ..team("a")
    };
    let stream = soon(client.watch_jobs(request)).await.expect("a watch");
    let mut watch = JobsWatched(stream.into_inner());
    while told.finished.len() < jobs.len() {
        told.add(watch.next().await.expect("no error").expect("no end"));
    }
    assert!(told.gaps.is_empty());
    for id in &jobs {
        let events = told.sequences_of(id);
        let last = told.finished.iter().find(|job| job.job_id == *id);
        let last = last.expect("it is over");
        assert_eq!(events, (1..=last.last_sequence).collect::<Vec<_>>());
    }
    let mut finished = told.finished_ids();
    finished.sort();
    finished.dedup();
    assert_eq!(finished.len(), told.finished.len(), "each once");
}

fn sleep_for(seconds: f64) -> pb::Payload {
    let fields = [(
        "seconds".to_owned(),
        prost_types::Value {
            kind: Some(prost_types::value::Kind::NumberValue(seconds)),
        },
    )];
    let object = prost_types::Struct {
        fields: fields.into(),
    };
    pb::Payload {
        media_type: String::new(),
        content: Some(pb::payload::Content::Json(prost_types::Value {
            kind: Some(prost_types::value::Kind::StructValue(object)),
        })),
    }
}
