//! The tables of docs/errors.md that are of jobs: each reason is reached through gRPC, is retried where its
//! row says so, and carries the details that its row promises.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use pacenote::config::{CommandConfig, JobType, ProgressMode, ResultMode, TypeSettings};
use pacenote::executor::handler::{Context, HandlerError, HandlerExecutor};
use pacenote::executor::{Attempt, Executor};
use pacenote::job::Outcome;
use pacenote::job::name::Name;
use pacenote::job::payload::Payload;
use pacenote::job::time::Timestamp;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::errors::rows;
use crate::harness::{
    Puppets, Setup, TestClock, TestServer, folder, proto_duration, soon, submit_request,
};
use crate::life::{check_finished, settings, states};
use crate::queues::queues_at;
use crate::workers::Scene;

const END_OF_TIME: Timestamp = Timestamp::from_micros(i64::MAX);
const SHORT: Duration = Duration::from_millis(50);
const HOUR: Duration = Duration::from_secs(3_600);

/// What no test reaches in seconds: `checksum` lists a million files before it refuses more, and to make them
/// alone takes a disk half a minute.
const TOO_LONG_TO_REACH: [&str; 1] = ["TOO_MANY_FILES"];

/// Collects how jobs have ended, and holds each against its row.
struct Reached {
    rows: BTreeMap<String, Vec<String>>,
    of_changes: BTreeSet<String>,
    seen: BTreeSet<String>,
}

impl Reached {
    fn new() -> Self {
        Self {
            rows: rows("## Of jobs"),
            of_changes: reasons_of_changes(),
            seen: BTreeSet::new(),
        }
    }

    /// What the column says of whether a reason is retried.
    fn retried(&self, reason: &str) -> &str {
        &self.rows[reason][0]
    }

    /// Waits for the end of a job, which has to be as the row says.
    async fn add(&mut self, server: &TestServer, job_id: &str, reason: &str) -> pb::JobError {
        let by_rule = self.retried(reason).starts_with("yes");
        self.add_one(server, job_id, reason, by_rule).await
    }

    /// As [`Reached::add`], for what the row makes an exception of.
    async fn add_exception(&mut self, server: &TestServer, job_id: &str, reason: &str) {
        let rule = self.retried(reason);
        let by_rule = rule.starts_with("yes");
        assert!(
            rule != "yes" && rule != "no",
            "{reason} knows no exceptions"
        );
        self.add_one(server, job_id, reason, !by_rule).await;
    }

    async fn add_one(
        &mut self,
        server: &TestServer,
        job_id: &str,
        reason: &str,
        is_retried: bool,
    ) -> pb::JobError {
        let end = server.end_of(job_id).await;
        let log = server.log(job_id).await;
        check_finished(&log);
        check_changes(&log, &end, &self.of_changes);
        let error = end.error.clone().expect("why");
        assert_eq!(error.reason, reason, "{error:?}");
        let again = log.iter().any(|event| match &event.event {
            Some(Event::AttemptEnd(over)) => {
                let error = over.error.as_ref();
                error.is_some_and(|error| error.reason == reason)
            }
            _ => false,
        });
        let told = (error.retryable, again);
        assert_eq!(told, (is_retried, is_retried), "{error:?}");
        if !is_retried {
            let most = end.retry_policy.as_ref().expect("a policy").max_attempts;
            assert!(end.attempts_charged < most, "another attempt was left");
        }
        let row = self.rows[reason].join(" ");
        let expected = if row.contains("it is EXPIRED") {
            State::Expired
        } else {
            State::Failed
        };
        assert_eq!(end.state(), expected, "{reason}");
        assert!(!error.message.is_empty(), "{reason}");
        for promised in row.split("`metadata.").skip(1) {
            let (name, _) = promised.split_once('`').expect("in backticks");
            assert!(error.metadata.contains_key(name), "{name}: {error:?}");
        }
        if row.contains("`detail`") {
            assert_eq!(error.detail, "no paper", "its last lines");
        }
        self.seen.insert(reason.to_owned());
        error
    }
}

fn reasons_of_changes() -> BTreeSet<String> {
    rows("## Of changes of state").into_keys().collect()
}

/// Each change of state has the reason of the error where an attempt or the job failed, and otherwise one
/// of its own table, or none.
fn check_changes(log: &[pb::JobEvent], end: &pb::Job, of_changes: &BTreeSet<String>) {
    let mut failed = None;
    for event in log {
        match &event.event {
            Some(Event::AttemptEnd(over)) => failed = over.error.as_ref(),
            Some(Event::StateChange(change)) => {
                let error = match change.to_state() {
                    State::Failed | State::Expired => end.error.as_ref(),
                    _ => failed.take(),
                };
                let reason = change.reason.as_str();
                match error {
                    Some(error) => assert_eq!(reason, error.reason),
                    None => assert!(
                        reason.is_empty() || of_changes.contains(reason),
                        "{change:?}"
                    ),
                }
            }
            _ => {}
        }
    }
}

/// A job with so many attempts, one at once after the other.
fn request(job_type: &str, max_attempts: i32) -> pb::SubmitRequest {
    pb::SubmitRequest {
        retry_policy: Some(pb::RetryPolicy {
            max_attempts,
            initial_backoff: Some(prost_types::Duration::default()),
            ..pb::RetryPolicy::default()
        }),
        ..submit_request(job_type)
    }
}

async fn submit(server: &TestServer, job_type: &str) -> String {
    server.submit(request(job_type, 2)).await.job_id
}

async fn submit_with(server: &TestServer, job_type: &str, input: &serde_json::Value) -> String {
    let input = pb::Payload {
        content: Some(pb::payload::Content::Text(input.to_string())),
        media_type: "application/json".to_owned(),
    };
    let request = pb::SubmitRequest {
        input: Some(input),
        ..request(job_type, 2)
    };
    server.submit(request).await.job_id
}

/// Goal: each reason of a job's error is reached through gRPC, is retried as its row says, and carries what
/// its row promises. Method: one job for each way to it; all may have one attempt more than they get where
/// the row says that there is none.
#[tokio::test]
async fn every_reason_of_a_job_is_reached_by_a_job() {
    let mut reached = Reached::new();
    from_workers_that_are_lost(&mut reached).await;
    from_attempts_in_the_tests_hands(&mut reached).await;
    from_jobs_that_wait(&mut reached).await;
    from_handlers(&mut reached).await;
    from_a_runtime_that_ends(&mut reached).await;
    from_a_type_that_has_changed(&mut reached).await;
    from_programs(&mut reached).await;
    let beyond = TOO_LONG_TO_REACH.map(str::to_owned);
    let expected: BTreeSet<String> = reached.rows.keys().cloned().collect();
    assert_eq!(reached.seen, &expected - &beyond.into());
}

async fn from_workers_that_are_lost(reached: &mut Reached) {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let server = &scene.server;
    for (max_attempts, lost) in [(2, 2), (5, 3)] {
        let job = server.submit(request("work", max_attempts)).await.job_id;
        for _ in 0..lost {
            scene.lease_one().await;
            let swept = server.queue.sweep_leases(END_OF_TIME).await;
            assert_eq!(swept.expect("the store works"), 1);
        }
        reached.add(server, &job, "WORKER_LOST").await;
        let end = server.get(&job).await;
        assert_eq!(end.attempts_charged, lost, "not after three in a row");
    }
    scene.stop().await;
}

async fn from_attempts_in_the_tests_hands(reached: &mut Reached) {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let short = Some(proto_duration(SHORT));
    let of_run = pb::Timeouts {
        run_timeout: short,
        ..pb::Timeouts::default()
    };
    let of_silence = pb::Timeouts {
        heartbeat_timeout: short,
        ..pb::Timeouts::default()
    };
    for (timeouts, reason) in [(of_run, "RUN_TIMEOUT"), (of_silence, "HEARTBEAT_TIMEOUT")] {
        let request = pb::SubmitRequest {
            timeouts: Some(timeouts),
            ..request("puppet", 2)
        };
        let job = server.submit(request).await.job_id;
        for _ in 0..2 {
            // Let go of, it ends once it is told to stop.
            drop(puppets.next().await);
        }
        reached.add(&server, &job, reason).await;
    }
    let huge = Payload::text("x".repeat(1 << 20));
    for (outcome, reason) in [
        (Outcome::Cancelled, "HANDLER_CANCELLED"),
        (Outcome::Succeeded(Some(huge)), "RESULT_INVALID"),
    ] {
        let job = submit(&server, "puppet").await;
        puppets.next().await.end(outcome);
        reached.add(&server, &job, reason).await;
    }
    server.stop().await.expect("a clean end");
}

async fn from_jobs_that_wait(reached: &mut Reached) {
    let dir = folder();
    let puppets = Puppets::default();
    let one = settings(|settings| settings.concurrency = Some(1));
    let setup = Setup::on(dir.path()).job_type_with("puppet", one, puppets.clone());
    let server = setup.start().await;
    let (_, holds) = server.begin(&puppets).await;
    let short = Some(proto_duration(SHORT));
    let of_start = pb::Timeouts {
        queue_timeout: short,
        ..pb::Timeouts::default()
    };
    let of_all = pb::Timeouts {
        total_timeout: short,
        ..pb::Timeouts::default()
    };
    for (timeouts, reason) in [(of_start, "QUEUE_TIMEOUT"), (of_all, "TOTAL_TIMEOUT")] {
        let request = pb::SubmitRequest {
            timeouts: Some(timeouts),
            ..request("puppet", 2)
        };
        let job = server.submit(request).await.job_id;
        reached.add(&server, &job, reason).await;
    }
    holds.succeed();
    server.stop().await.expect("a clean end");
}

/// An executor that does not keep its promises.
struct Breaks;

impl Executor for Breaks {
    fn run(&self, _: Attempt) -> BoxFuture<'static, Outcome> {
        Box::pin(async { panic!("the executor has no paper") })
    }
}

async fn from_handlers(reached: &mut Reached) {
    let panics = HandlerExecutor::new(|context: Context, _: ()| async move {
        assert!(context.attempt() > 2, "the handler has no paper");
        Ok(())
    });
    let fails = HandlerExecutor::new(|_, _: ()| async move {
        Err::<(), _>(std::io::Error::other("out of paper").into())
    });
    let cancels =
        HandlerExecutor::new(|_, _: ()| async move { Err::<(), _>(HandlerError::cancelled()) });
    let changed = HandlerExecutor::new(|context: Context, _: ()| async move {
        context.checkpoint::<u32>()?;
        context.save_checkpoint(&"page 7").await?;
        Err::<(), _>(HandlerError::retryable("BUSY", "once more"))
    });
    let inexact = HandlerExecutor::new(|_, _: ()| async move { Ok((1_u64 << 53) + 1) });
    let dir = folder();
    let server = Setup::on(dir.path())
        .job_type("panics", panics)
        .job_type("breaks", Breaks)
        .job_type("fails", fails)
        .job_type("cancels", cancels)
        .job_type("inexact", inexact)
        .job_type("changed", changed)
        .start()
        .await;
    for (job_type, reason, message) in [
        ("panics", "PANIC", "the handler has no paper"),
        ("breaks", "PANIC", "the executor has no paper"),
        ("fails", "HANDLER_ERROR", "out of paper"),
        ("cancels", "HANDLER_CANCELLED", "nobody had asked"),
        ("inexact", "RESULT_INVALID", "integer"),
    ] {
        let job = submit(&server, job_type).await;
        let error = reached.add(&server, &job, reason).await;
        assert!(error.message.contains(message), "{error:?}");
    }
    // The second attempt finds what the first one saved, and the third would.
    let job = server.submit(request("changed", 3)).await.job_id;
    reached.add(&server, &job, "CHECKPOINT_INVALID").await;
    let missing = serde_json::json!({"path": "no-such-file"});
    let job = submit_with(&server, "checksum", &missing).await;
    let error = reached.add(&server, &job, "INPUT_INVALID").await;
    assert!(error.message.contains("input.path"), "{error:?}");
    server.stop().await.expect("a clean end");
}

/// A runtime that is shut down when it is dropped, and waits for nobody.
struct Own(Option<Runtime>);

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn from_a_runtime_that_ends(reached: &mut Reached) {
    let runtime = Builder::new_multi_thread().worker_threads(1).build();
    let runtime = runtime.expect("a thread");
    let handle = runtime.handle().clone();
    let own = Own(Some(runtime));
    let (begun, mut begins) = mpsc::unbounded_channel();
    let handler = HandlerExecutor::new(move |_, _: ()| {
        begun.send(()).expect("the test is there");
        std::future::pending::<Result<(), HandlerError>>()
    });
    let dir = folder();
    let setup = Setup::on(dir.path()).job_type("handler", handler.on(handle));
    let server = setup.start().await;
    let job = submit(&server, "handler").await;
    soon(begins.recv()).await.expect("it begins");
    drop(own);
    reached.add(&server, &job, "INTERRUPTED").await;
    server.stop().await.expect("a clean end");
}

/// A job that was taken by the type as it was, and is due once the type needs a number.
async fn from_a_type_that_has_changed(reached: &mut Reached) {
    let dir = folder();
    let (server, _) = TestServer::with_puppets(&dir).await;
    let later = pb::SubmitRequest {
        start: Some(pb::submit_request::Start::Delay(proto_duration(HOUR))),
        ..request("puppet", 2)
    };
    let job = server.submit(later).await.job_id;
    server.stop().await.expect("a clean end");
    let numbers = HandlerExecutor::new(|_, number: u32| async move { Ok(number) });
    let clock = TestClock::new();
    clock.pass(HOUR);
    let server = Setup::on(dir.path())
        .clock(std::sync::Arc::new(clock))
        .job_type("puppet", numbers)
        .start()
        .await;
    reached.add(&server, &job, "INPUT_INVALID").await;
    server.stop().await.expect("a clean end");
}

fn program(dir: &Path, command: &[&str], result: ResultMode) -> JobType {
    JobType {
        settings: TypeSettings::default(),
        command: Some(CommandConfig {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            dir: dir.to_owned(),
            env: [].into(),
            allow_dash: false,
            result,
            progress: ProgressMode::Off,
        }),
    }
}

/// The numbers that a sentence names, ranges such as `64–74` among them.
fn numbers_in(text: &str) -> BTreeSet<i32> {
    let words = text.split(|c: char| !c.is_ascii_digit() && c != '–');
    let mut numbers = BTreeSet::new();
    for word in words.filter(|word| !word.is_empty()) {
        let (first, last) = word.split_once('–').unwrap_or((word, word));
        let number = |text: &str| text.parse::<i32>().expect("a number");
        numbers.extend(number(first)..=number(last));
    }
    numbers
}

async fn from_programs(reached: &mut Reached) {
    let dir = folder();
    let setup = Setup::on(dir.path()).config(|config| {
        let sh = ["sh", "-c", "{input.script}"];
        for (name, command, result) in [
            ("text", sh.as_slice(), ResultMode::StdoutText),
            ("json", &sh, ResultMode::StdoutJson),
            ("gone", &["./no-such-program"], ResultMode::StdoutText),
        ] {
            let job_type = program(dir.path(), command, result);
            config.job_types.insert(Name::of(name), job_type);
        }
    });
    let server = setup.start().await;
    let script = |script: &str| serde_json::json!({ "script": script });

    // Nothing has run yet: where the attempts' folders are to be is nothing.
    let attempts = dir.path().join("pacenote.db.attempts");
    std::fs::write(&attempts, "a file where the folder should be").expect("written");
    let job = submit_with(&server, "text", &script("true")).await;
    reached.add(&server, &job, "ATTEMPT_SETUP").await;
    std::fs::remove_file(&attempts).expect("it is there");

    let job = submit(&server, "gone").await;
    let error = reached.add(&server, &job, "SPAWN_FAILED").await;
    assert_eq!(error.metadata["errno"], "ENOENT");

    let job = submit_with(&server, "text", &script("echo no paper >&2; kill -KILL $$")).await;
    let error = reached.add(&server, &job, "SIGNAL").await;
    assert_eq!(error.metadata["signal"], "9");

    for output in ["no JSON", "9007199254740993"] {
        let job = submit_with(&server, "json", &script(&format!("echo {output}"))).await;
        reached.add(&server, &job, "RESULT_INVALID").await;
    }

    let final_codes = numbers_in(reached.retried("EXIT_CODE"));
    assert!(final_codes.contains(&2), "the row names them");
    // Each end of what the row names, and its neighbours.
    let ends = final_codes.iter().flat_map(|code| code - 1..=code + 1);
    let tried: BTreeSet<i32> = ends.filter(|code| !(66..=72).contains(code)).collect();
    let mut jobs = Vec::new();
    for code in tried {
        let exits = script(&format!("echo no paper >&2; exit {code}"));
        jobs.push((code, submit_with(&server, "text", &exits).await));
    }
    for (code, job) in jobs {
        if final_codes.contains(&code) {
            reached.add_exception(&server, &job, "EXIT_CODE").await;
        } else {
            reached.add(&server, &job, "EXIT_CODE").await;
        }
        let error = server.get(&job).await.error.expect("why");
        assert_eq!(error.metadata["exit_code"], code.to_string());
    }
    server.stop().await.expect("a clean end");
}

/// Goal: each reason of a change of state that is no error's is reached through gRPC, on the way to the
/// states that it is for, and charges nothing where its row says so. Method: one job for each way to it; all
/// changes of all logs are collected.
#[tokio::test]
async fn every_reason_of_a_change_of_state_is_reached_by_a_job() {
    let dir = folder();
    let puppets = Puppets::default();
    let start = || {
        let setup = Setup::on(dir.path()).config(|config| config.drain_timeout = Duration::ZERO);
        setup.job_type("puppet", puppets.clone()).start()
    };
    let server = start().await;
    let mut jobs = cancelled_ones(&server, &puppets).await;
    jobs.push(held_up_one(&server, &puppets).await);

    let (snoozed, puppet) = server.begin(&puppets).await;
    puppet.end(Outcome::Snoozed(Duration::from_millis(1)));
    let again = puppets.next().await;
    assert_eq!(again.attempt.number, 2);
    again.succeed();
    server.end_of(&snoozed).await;

    let (handed_back, puppet) = server.begin(&puppets).await;
    server.begin_stop();
    soon(puppet.attempt.stop.cancelled()).await;
    drop(puppet);
    server.stop().await.expect("a clean end");
    let server = start().await;
    let again = puppets.next().await;
    assert_eq!(again.attempt.number, 2);
    again.succeed();
    for job in [snoozed, handed_back] {
        let end = server.end_of(&job).await;
        let counted = (end.state(), end.attempt, end.attempts_charged);
        assert_eq!(counted, (State::Succeeded, 2, 1), "it is not charged");
        jobs.push(job);
    }

    let of_changes = reasons_of_changes();
    let mut seen: BTreeMap<String, BTreeSet<State>> = BTreeMap::new();
    for job in &jobs {
        let log = server.log(job).await;
        check_finished(&log);
        check_changes(&log, &server.get(job).await, &of_changes);
        for (state, reason) in states(&log) {
            seen.entry(reason.to_owned()).or_default().insert(state);
        }
    }
    seen.remove("");
    assert_eq!(seen.keys().cloned().collect::<BTreeSet<_>>(), of_changes);
    let expected: [(&str, &[State]); 6] = [
        ("CANCEL_REQUESTED", &[State::Cancelling, State::Cancelled]),
        ("CONCURRENCY_KEY", &[State::Blocked]),
        ("HANDED_BACK", &[State::Queued]),
        ("QUEUE_PURGED", &[State::Cancelled]),
        ("REPLACED", &[State::Cancelled]),
        ("SNOOZED", &[State::Scheduled]),
    ];
    for (reason, states) in expected {
        let states = states.iter().copied().collect();
        assert_eq!(seen[reason], states, "{reason}");
    }
    server.stop().await.expect("a clean end");
}

/// By a call while it runs, by another one that takes its place, and with its queue.
async fn cancelled_ones(server: &TestServer, puppets: &Puppets) -> Vec<String> {
    let (running, puppet) = server.begin(puppets).await;
    server.cancel(&running).await;
    puppet.end(Outcome::Cancelled);
    server.end_of(&running).await;

    let waits = pb::SubmitRequest {
        queue: "other".to_owned(),
        unique: Some(pb::UniquePolicy {
            key: "u".to_owned(),
            on_conflict: pb::unique_policy::OnConflict::ReplaceWaiting.into(),
            window: None,
        }),
        start: Some(pb::submit_request::Start::Delay(proto_duration(HOUR))),
        ..submit_request("puppet")
    };
    let replaced = server.submit(waits.clone()).await.job_id;
    let purged = server.submit(waits).await.job_id;
    let purge = pb::PurgeQueueRequest {
        queue: "other".to_owned(),
        states: vec![State::Scheduled.into()],
        ..pb::PurgeQueueRequest::default()
    };
    let answer = queues_at(&server.address).await.purge_queue(purge).await;
    let answer = answer.expect("it is purged").into_inner();
    assert_eq!(answer.purged_count, 1, "the other one was replaced");
    vec![running, replaced, purged]
}

/// One that waits for another one with its key, and runs then.
async fn held_up_one(server: &TestServer, puppets: &Puppets) -> String {
    let keyed = pb::SubmitRequest {
        concurrency_key: "k".to_owned(),
        ..submit_request("puppet")
    };
    server.submit(keyed.clone()).await;
    let first = puppets.next().await;
    let held = server.submit(keyed).await.job_id;
    server.until_state(&held, State::Blocked).await;
    first.succeed();
    puppets.next().await.succeed();
    server.end_of(&held).await;
    held
}
