//! Cancel, in every state and against everything that can happen at the same time.

use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use pacenote::executor::{Attempt, Executor};
use pacenote::job::event::JobError;
use pacenote::job::payload::Payload;
use pacenote::job::time::Timestamp;
use pacenote::job::{Outcome, policy::RetryPolicy};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;

use crate::harness::{Puppets, Setup, TestServer, folder, soon, submit_request};
use crate::life::{broken, check_finished, long_waits, settings, states};

#[tokio::test]
async fn a_job_that_waits_for_a_place_is_cancelled_at_once_and_never_runs() {
    let dir = folder();
    let puppets = Puppets::default();
    let one = settings(|settings| settings.concurrency = Some(1));
    let setup = Setup::on(dir.path()).job_type_with("puppet", one, puppets.clone());
    let server = setup.start().await;
    server.submit(submit_request("puppet")).await;
    let running = puppets.next().await;
    let job = server.submit(submit_request("puppet")).await;
    assert_eq!(job.state(), State::Queued);
    let cancelled = server.cancel(&job.job_id).await;
    assert_eq!(cancelled.state(), State::Cancelled);
    assert_eq!(cancelled.cancel_reason, "enough");
    let log = server.log(&job.job_id).await;
    assert_eq!(
        states(&log),
        [(State::Queued, ""), (State::Cancelled, "CANCEL_REQUESTED")]
    );
    // The one behind it runs next, and nothing else does.
    let next = server.submit(submit_request("puppet")).await;
    running.succeed();
    let begun = puppets.next().await;
    assert_eq!(begun.attempt.key.id.to_string(), next.job_id);
    begun.succeed();
    server.end_of(&next.job_id).await;
    assert!(puppets.is_idle().await);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_job_that_waits_for_its_retry_is_cancelled_at_once() {
    let dir = folder();
    let puppets = Puppets::default();
    let slow = settings(|settings| settings.retry_policy = long_waits());
    let setup = Setup::on(dir.path()).job_type_with("puppet", slow, puppets.clone());
    let server = setup.start().await;
    let job = server.submit(submit_request("puppet")).await;
    puppets.next().await.end(broken());
    server.until_state(&job.job_id, State::Scheduled).await;
    let cancelled = server.cancel(&job.job_id).await;
    assert_eq!(cancelled.state(), State::Cancelled);
    check_finished(&server.log(&job.job_id).await);
    server.stop().await.expect("a clean end");
}

/// Goal: a running job that was asked to stop ends as CANCELLED and is never run again, whatever its
/// attempt says afterwards. Method: every outcome there is, the cancel always first.
#[tokio::test]
async fn a_running_job_ends_as_cancelled_whatever_its_attempt_says() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    for outcome in [
        Outcome::Succeeded(Some(Payload::text("done"))),
        Outcome::Succeeded(None),
        broken(),
        Outcome::Failed(JobError::permanent("BROKEN", "no use")),
        Outcome::Cancelled,
        Outcome::HandedBack,
    ] {
        let job = server.submit(submit_request("puppet")).await;
        let puppet = puppets.next().await;
        let asked = server.cancel(&job.job_id).await;
        assert_eq!(asked.state(), State::Cancelling);
        soon(puppet.attempt.stop.cancelled()).await;
        let what = format!("{outcome:?}");
        puppet.end(outcome);
        let end = server.end_of(&job.job_id).await;
        assert_eq!(end.state(), State::Cancelled, "{what}");
        assert_eq!((end.attempt, end.result), (1, None), "{what}");
        let log = server.log(&job.job_id).await;
        check_finished(&log);
        assert_eq!(
            states(&log)[1..],
            [
                (State::Running, ""),
                (State::Cancelling, "CANCEL_REQUESTED"),
                (State::Cancelled, "CANCEL_REQUESTED"),
            ],
            "{what}"
        );
        assert!(puppets.is_idle().await, "{what}");
    }
    server.stop().await.expect("a clean end");
}

/// Panics once it is told to stop.
struct Bomb;

impl Executor for Bomb {
    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Outcome> {
        Box::pin(async move {
            attempt.stop.cancelled().await;
            panic!("this test's bomb");
        })
    }
}

#[tokio::test]
async fn a_panic_after_the_cancel_ends_as_cancelled() {
    let dir = folder();
    let server = Setup::on(dir.path()).job_type("bomb", Bomb).start().await;
    let job = server.submit(submit_request("bomb")).await;
    server.until_state(&job.job_id, State::Running).await;
    server.cancel(&job.job_id).await;
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempt), (State::Cancelled, 1));
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_cancel_while_a_timeout_is_being_carried_out_ends_as_cancelled() {
    let dir = folder();
    let puppets = Puppets::default();
    let short = settings(|settings| {
        settings.timeouts.run_timeout = Some(Duration::from_millis(20));
    });
    let setup = Setup::on(dir.path()).job_type_with("puppet", short, puppets.clone());
    let server = setup.start().await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    // The time-out has told it to stop; it has not stopped yet.
    soon(puppet.attempt.stop.cancelled()).await;
    assert_eq!(server.cancel(&job.job_id).await.state(), State::Cancelling);
    puppet.end(Outcome::Cancelled);
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempt), (State::Cancelled, 1));
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_worker_lost_after_the_cancel_ends_as_cancelled() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    server.cancel(&job.job_id).await;
    let end_of_time = Timestamp::from_micros(i64::MAX);
    let swept = server.queue.sweep_leases(end_of_time).await;
    assert_eq!(swept.expect("the store works"), 1);
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempt), (State::Cancelled, 1));
    puppet.succeed();
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn cancelling_twice_or_a_finished_job_changes_nothing() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    let first = server.cancel(&job.job_id).await;
    let again = pb::CancelRequest {
        job_id: job.job_id.clone(),
        reason: "another reason".to_owned(),
    };
    let second = server.client.clone().cancel(again.clone()).await;
    let second = second.expect("no error").into_inner().job.expect("a job");
    assert_eq!(second, first);
    puppet.end(Outcome::Cancelled);
    let end = server.end_of(&job.job_id).await;
    let third = server.client.clone().cancel(again).await;
    let third = third.expect("no error").into_inner().job.expect("a job");
    assert_eq!(third, end);
    check_finished(&server.log(&job.job_id).await);

    let done = server.submit(submit_request("puppet")).await;
    puppets.next().await.succeed();
    let end = server.end_of(&done.job_id).await;
    assert_eq!(server.cancel(&done.job_id).await.state(), State::Succeeded);
    assert_eq!(server.get(&done.job_id).await, end);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_hundred_cancels_at_once_are_one() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    let cancels = (0..100).map(|_| server.cancel(&job.job_id));
    let answers = soon(join_all(cancels)).await;
    assert!(answers.iter().all(|job| job.state() == State::Cancelling));
    assert!(answers.iter().all(|job| *job == answers[0]));
    puppet.end(Outcome::Cancelled);
    server.end_of(&job.job_id).await;
    let log = server.log(&job.job_id).await;
    check_finished(&log);
    let asked = log
        .iter()
        .filter(|event| matches!(event.event, Some(Event::CancelRequested(_))));
    assert_eq!(asked.count(), 1);
    server.stop().await.expect("a clean end");
}

/// Goal: whoever commits first wins, and the answers say who. Method: a thousand times a result and a
/// cancel at the same moment, each of them first in turn; no sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_and_a_cancel_at_once_have_one_winner() {
    let dir = folder();
    let puppets = Puppets::default();
    let often = settings(|settings| {
        settings.retry_policy = RetryPolicy {
            max_attempts: 1,
            ..RetryPolicy::default()
        };
    });
    let setup = Setup::on(dir.path()).job_type_with("puppet", often, puppets.clone());
    let server = setup.start().await;
    for round in 0..1_000 {
        let job = server.submit(submit_request("puppet")).await;
        let puppet = puppets.next().await;
        let answer = if round % 2 == 0 {
            puppet.succeed();
            server.cancel(&job.job_id).await
        } else {
            let (answer, ()) = tokio::join!(server.cancel(&job.job_id), async {
                puppet.succeed();
            });
            answer
        };
        let end = server.end_of(&job.job_id).await;
        let expected = match answer.state() {
            State::Succeeded => State::Succeeded,
            State::Cancelling | State::Cancelled => State::Cancelled,
            other => panic!("a cancel answered {other:?}"),
        };
        assert_eq!(end.state(), expected, "round {round}");
        assert_eq!(end.result.is_some(), expected == State::Succeeded);
        check_finished(&server.log(&job.job_id).await);
    }
    server.stop().await.expect("a clean end");
}
