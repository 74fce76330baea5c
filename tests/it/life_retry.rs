//! Attempts that fail, run too long, panic or are lost, and what the next one gets.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use pacenote::error::{Error, Precondition};
use pacenote::executor::handler::{Context, HandlerError, HandlerExecutor, left_behind};
use pacenote::job::event::JobError;
use pacenote::job::payload::Payload;
use pacenote::job::time::Timestamp;
use pacenote::job::{Outcome, Report, policy::RetryPolicy};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;

use crate::harness::{Puppets, Setup, TestServer, folder, soon, submit_request};
use crate::life::{broken, check_finished, lease, settings, states};

const END_OF_TIME: Timestamp = Timestamp::from_micros(i64::MAX);

fn micros(at: Option<&prost_types::Timestamp>) -> i64 {
    let at = at.expect("a time");
    at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000
}

#[tokio::test]
async fn a_retry_waits_its_backoff_and_not_less() {
    let dir = folder();
    let puppets = Puppets::default();
    let quick = settings(|settings| {
        settings.retry_policy = RetryPolicy {
            initial_backoff: Duration::from_millis(200),
            ..RetryPolicy::default()
        };
    });
    let setup = Setup::on(dir.path()).job_type_with("puppet", quick, puppets.clone());
    let server = setup.start().await;
    let job = server.submit(submit_request("puppet")).await;
    // As many as a job has by default.
    for attempt in 1..=3 {
        let puppet = puppets.next().await;
        assert_eq!(puppet.attempt.number, attempt);
        puppet.end(broken());
    }
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempts_charged), (State::Failed, 3));
    let log = server.log(&job.job_id).await;
    check_finished(&log);
    let mut due = Vec::new();
    for event in &log {
        let now = micros(event.event_time.as_ref());
        match event.event.as_ref().expect("every event says something") {
            Event::AttemptEnd(end) => {
                assert!(end.charged);
                assert_eq!(end.error.as_ref().expect("why").reason, "BROKEN");
                let next = micros(end.next_attempt_time.as_ref());
                // Full jitter: up to the initial backoff, doubled for the second.
                let most = 200_000 << due.len();
                assert!((0..=most).contains(&(next - now)), "{}", next - now);
                due.push(next);
            }
            Event::StateChange(change) if change.to_state() == State::Running => {
                assert!(due.last().is_none_or(|due| now >= *due), "too early");
            }
            _ => {}
        }
    }
    assert_eq!(due.len(), 2);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn an_error_that_no_retry_heals_ends_the_job_at_once() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let error = JobError::permanent("NO_SUCH_PAGE", "page 7")
        .with_metadata("page", 7)
        .with_detail("at line 1");
    puppets.next().await.end(Outcome::Failed(error));
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempt), (State::Failed, 1));
    let error = end.error.expect("why");
    assert_eq!(
        (error.reason.as_str(), error.retryable),
        ("NO_SUCH_PAGE", false)
    );
    assert_eq!(error.metadata["page"], "7");
    assert_eq!(error.detail, "at line 1");
    assert!(puppets.is_idle().await);
    server.stop().await.expect("a clean end");
}

fn one_short_attempt() -> pacenote::config::TypeSettings {
    settings(|settings| {
        settings.retry_policy.max_attempts = 1;
        settings.timeouts.run_timeout = Some(Duration::from_millis(50));
        settings.timeouts.cancel_grace = Duration::from_millis(50);
    })
}

/// Goal: a run time-out stops what obeys and leaves behind what does not; either way the job goes on.
/// Method: one handler that obeys, one that never ends, one that blocks its thread until it is let go.
#[tokio::test]
async fn an_attempt_that_runs_too_long_is_stopped_or_left_behind() {
    let obeys = HandlerExecutor::new(|context: Context, _: ()| async move {
        context.cancelled().await;
        Err::<(), _>(HandlerError::cancelled())
    });
    let hangs = HandlerExecutor::new(|_, _: ()| std::future::pending::<Result<(), HandlerError>>());
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let blocks = HandlerExecutor::new(move |_, _: ()| {
        let released = Arc::clone(&released);
        async move {
            // Nobody sends: this waits for the other end to go.
            let _ = released.lock().expect("one attempt").recv();
            Ok(())
        }
    });
    let dir = folder();
    let setup = Setup::on(dir.path())
        .job_type_with("obeys", one_short_attempt(), obeys)
        .job_type_with("hangs", one_short_attempt(), hangs)
        .job_type_with("blocks", one_short_attempt(), blocks);
    let server = setup.start().await;
    for job_type in ["obeys", "hangs", "blocks"] {
        let job = server.submit(submit_request(job_type)).await;
        let end = server.end_of(&job.job_id).await;
        assert_eq!(end.state(), State::Failed, "{job_type}");
        let error = end.error.expect("why");
        assert_eq!(error.reason, "RUN_TIMEOUT", "{job_type}");
        assert_eq!((error.code, error.retryable), (4, true), "{job_type}");
    }
    assert!(left_behind() >= 1, "the one that blocks still runs");
    drop(release);
    soon(async {
        while left_behind() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_panic_is_a_failed_attempt_and_the_next_one_runs() {
    let dir = folder();
    let handler = HandlerExecutor::new(|context: Context, _: ()| async move {
        assert!(context.attempt() > 1, "the first one always breaks");
        Ok("fine")
    });
    let quick = settings(|settings| settings.retry_policy.initial_backoff = Duration::ZERO);
    let setup = Setup::on(dir.path()).job_type_with("handler", quick, handler);
    let server = setup.start().await;
    let job = server.submit(submit_request("handler")).await;
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempt), (State::Succeeded, 2));
    assert_eq!(end.error, None, "a success has no error");
    let log = server.log(&job.job_id).await;
    let panicked = log.iter().find_map(|event| match &event.event {
        Some(Event::AttemptEnd(end)) => end.error.clone(),
        _ => None,
    });
    let panicked = panicked.expect("the first attempt's end");
    assert_eq!(panicked.reason, "PANIC");
    assert!(panicked.message.contains("always breaks"), "{panicked:?}");
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn three_workers_lost_in_a_row_end_a_job_with_budget_left() {
    let dir = folder();
    let puppets = Puppets::default();
    let many = settings(|settings| settings.retry_policy.max_attempts = 50);
    let setup = Setup::on(dir.path()).job_type_with("puppet", many, puppets.clone());
    let server = setup.start().await;
    let job = server.submit(submit_request("puppet")).await;
    for attempt in 1..=3 {
        let puppet = puppets.next().await;
        assert_eq!(puppet.attempt.number, attempt);
        let swept = server.queue.sweep_leases(END_OF_TIME).await;
        assert_eq!(swept.expect("the store works"), 1);
        // It is told to stop, and its place is free once it has.
        soon(puppet.attempt.stop.cancelled()).await;
        puppet.succeed();
    }
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempts_charged), (State::Failed, 3));
    assert_eq!(
        (end.result, end.error.expect("why").reason.as_str()),
        (None, "WORKER_LOST")
    );
    let log = server.log(&job.job_id).await;
    check_finished(&log);
    let lost = states(&log)
        .iter()
        .filter(|(_, reason)| *reason == "WORKER_LOST")
        .count();
    assert_eq!(lost, 3);
    assert!(puppets.is_idle().await);
    server.stop().await.expect("a clean end");
}

/// Goal: who has lost its lease can tell and end nothing any more. Method: lose the first attempt,
/// then speak in its name, while the second one runs and after it has ended.
#[tokio::test]
async fn a_late_report_or_result_is_refused_and_changes_nothing() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let lost = puppets.next().await;
    server
        .queue
        .sweep_leases(END_OF_TIME)
        .await
        .expect("the store works");
    let second = puppets.next().await;
    for round in ["while the second runs", "once it has ended"] {
        let before = server.get(&job.job_id).await;
        let late = lease(&job.job_id, 1);
        let output = Report::Output {
            stream: "stdout".to_owned(),
            chunk: Payload::text("late"),
        };
        for reports in [vec![], vec![output.clone()]] {
            let refused = server.queue.report(&late, reports).await;
            assert_stale(refused, round);
        }
        for outcome in [Outcome::Succeeded(None), broken(), Outcome::HandedBack] {
            let refused = server
                .queue
                .finish(&late, vec![output.clone()], outcome)
                .await;
            assert_stale(refused.map(drop), round);
        }
        let future = server.queue.report(&lease(&job.job_id, 3), vec![]).await;
        assert_stale(future, round);
        assert_eq!(server.get(&job.job_id).await, before, "{round}");
        if round == "while the second runs" {
            soon(lost.attempt.stop.cancelled()).await;
            assert!(!second.attempt.stop.is_cancelled());
            let result = Outcome::Succeeded(Some(Payload::text("second")));
            let ended = server
                .queue
                .finish(&lease(&job.job_id, 2), vec![], result)
                .await;
            ended.expect("it holds the lease");
        }
    }
    lost.succeed();
    second.succeed();
    let end = server.end_of(&job.job_id).await;
    let result = end.result.expect("a result").content;
    assert_eq!(
        result,
        Some(pb::payload::Content::Text("second".to_owned()))
    );
    check_finished(&server.log(&job.job_id).await);
    server.stop().await.expect("a clean end");
}

fn assert_stale(refused: Result<(), Error>, round: &str) {
    let stale = matches!(&refused, Err(Error::Precondition(Precondition::StaleLease)));
    assert!(stale, "{round}: {refused:?}");
}

#[tokio::test]
async fn the_next_attempt_gets_the_newest_checkpoint() {
    let dir = folder();
    let puppets = Puppets::default();
    let quick = settings(|settings| settings.retry_policy.initial_backoff = Duration::ZERO);
    let setup = Setup::on(dir.path()).job_type_with("puppet", quick, puppets.clone());
    let server = setup.start().await;
    let job = server.submit(submit_request("puppet")).await;
    let first = puppets.next().await;
    assert_eq!(first.attempt.checkpoint, None);
    for page in ["page 1", "page 2"] {
        let saved = first.attempt.reporter.checkpoint(Payload::text(page)).await;
        saved.expect("it is alive");
    }
    first.end(broken());
    let second = puppets.next().await;
    assert_eq!(second.attempt.checkpoint, Some(Payload::text("page 2")));
    // A lost attempt's checkpoint counts as well, once it was stored.
    let checkpoint = vec![Report::Checkpoint(Payload::text("page 3"))];
    let stored = server
        .queue
        .report(&lease(&job.job_id, 2), checkpoint)
        .await;
    stored.expect("it holds the lease");
    server
        .queue
        .sweep_leases(END_OF_TIME)
        .await
        .expect("the store works");
    let third = puppets.next().await;
    assert_eq!(third.attempt.checkpoint, Some(Payload::text("page 3")));
    let shown = server
        .get(&job.job_id)
        .await
        .checkpoint
        .expect("in the full view");
    let page = pb::payload::Content::Text("page 3".to_owned());
    assert_eq!(shown.content, Some(page));
    second.succeed();
    third.succeed();
    server.end_of(&job.job_id).await;
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_result_beyond_the_bound_fails_the_job_with_advice() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    for (bytes, fits) in [((1 << 20) - 4, true), ((1 << 20) - 3, false)] {
        let job = server.submit(submit_request("puppet")).await;
        let result = Payload::text("x".repeat(bytes));
        puppets.next().await.end(Outcome::Succeeded(Some(result)));
        let end = server.end_of(&job.job_id).await;
        if fits {
            assert_eq!(end.state(), State::Succeeded);
            continue;
        }
        assert_eq!(end.state(), State::Failed);
        let error = end.error.expect("why");
        assert_eq!(
            (error.reason.as_str(), error.retryable),
            ("RESULT_INVALID", false)
        );
        assert!(error.message.contains("pass a reference"), "{error:?}");
    }
    server.stop().await.expect("a clean end");
}
