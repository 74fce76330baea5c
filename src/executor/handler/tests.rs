//! What handlers may do, and what becomes of it.

use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::*;
use crate::executor::Grace;
use crate::executor::testing::{Harness, deadline};
use crate::job::Report;
use crate::job::event::LogLevel;
use crate::job::limits::PAYLOAD_BYTES_MAX;
use crate::job::progress::Progress;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    width: u32,
    #[serde(default)]
    names: Vec<String>,
}

fn failed(outcome: Outcome) -> JobError {
    match outcome {
        Outcome::Failed(error) => error,
        other => panic!("expected a failure, got {other:?}"),
    }
}

async fn run(executor: &HandlerExecutor, input: Option<Payload>) -> Outcome {
    let mut harness = Harness::new(input);
    deadline(executor.run(harness.take_attempt())).await
}

#[tokio::test]
async fn a_handler_gets_its_typed_input_and_gives_a_result() {
    let double = HandlerExecutor::new(|_, input: Resize| async move {
        Ok(input.width * 2 + input.names.len() as u32)
    });
    let input = Payload::json(&json!({"width": 21})).expect("valid");
    let outcome = run(&double, Some(input)).await;
    assert_eq!(
        outcome,
        Outcome::Succeeded(Some(Payload::json(&json!(42)).expect("valid")))
    );
}

#[tokio::test]
async fn an_absent_input_is_null_and_a_null_result_is_none() {
    let nothing = HandlerExecutor::new(|_, input: Option<u32>| async move {
        assert_eq!(input, None);
        Ok(())
    });
    assert_eq!(run(&nothing, None).await, Outcome::Succeeded(None));
}

#[tokio::test]
async fn text_is_a_json_string() {
    let echo = HandlerExecutor::new(|_, input: String| async move { Ok(input) });
    let outcome = run(&echo, Some(Payload::text("hello"))).await;
    let hello = Payload::json(&json!("hello")).expect("valid");
    assert_eq!(outcome, Outcome::Succeeded(Some(hello)));
}

#[tokio::test]
async fn an_input_of_another_type_names_the_field_when_submitted_and_when_run() {
    let executor = HandlerExecutor::new(|_, _: Resize| async move { Ok(()) });
    for (input, field) in [
        (Some(json!({"width": -1})), "input.width"),
        (
            Some(json!({"width": 1, "names": ["a", 2]})),
            "input.names[1]",
        ),
        (Some(json!({"width": 1, "height": 2})), "input.height"),
        (Some(json!({})), "input"),
        (None, "input"),
    ] {
        let input = input.map(|value| Payload::json(&value).expect("valid"));
        let problems = executor.check(input.as_ref()).expect_err(field);
        assert_eq!(problems[0].0, field, "{problems:?}");
        let error = failed(run(&executor, input).await);
        assert_eq!(error.reason, "INPUT_INVALID");
        assert!(!error.retryable);
        assert!(error.message.starts_with(field), "{}", error.message);
    }
    let bytes = Payload::data(vec![0xff]);
    assert!(
        executor.check(Some(&bytes)).expect_err("bytes")[0]
            .1
            .contains("bytes")
    );
}

#[tokio::test]
async fn a_panic_is_a_retryable_failure_with_its_message() {
    let executor = HandlerExecutor::new(|context: Context, _: ()| async move {
        if context.attempt() == 1 {
            panic!("no {} left", "paper");
        }
        Ok(())
    });
    let error = failed(run(&executor, None).await);
    assert_eq!(error.reason, "PANIC");
    assert!(error.retryable);
    assert!(error.message.contains("no paper left"), "{}", error.message);
}

#[tokio::test]
async fn any_error_becomes_a_retryable_failure_and_is_cut_to_its_bounds() {
    let executor = HandlerExecutor::new(|_, kind: u32| async move {
        match kind {
            0 => Err(std::io::Error::other("é".repeat(2000)))?,
            1 => Err(HandlerError::permanent("NO_SUCH_PAGE", "page 7"))?,
            _ => Err(HandlerError::cancelled())?,
        }
        Ok(())
    });
    let at = async |kind: u32| {
        let input = Payload::json(&json!(kind)).expect("valid");
        failed(run(&executor, Some(input)).await)
    };
    let error = at(0).await;
    assert_eq!(
        (error.reason.as_str(), error.retryable),
        ("HANDLER_ERROR", true)
    );
    assert_eq!(error.message.len(), 1024);
    let error = at(1).await;
    assert_eq!(
        (error.reason.as_str(), error.retryable),
        ("NO_SUCH_PAGE", false)
    );
    let error = at(2).await;
    assert_eq!(
        (error.reason.as_str(), error.retryable),
        ("HANDLER_CANCELLED", false)
    );
}

#[tokio::test]
async fn a_handler_says_how_long_the_next_attempt_waits() {
    let executor = HandlerExecutor::new(|_, secs: u64| async move {
        let wait = Duration::from_secs(secs);
        match secs {
            0 => Err(HandlerError::retryable("BUSY", "later").retry_after(wait))?,
            1 => Err(HandlerError::snooze(wait).retry_after(Duration::ZERO))?,
            _ => Err(HandlerError::snooze(wait))?,
        }
        Ok(())
    });
    let at = async |secs: u64| {
        let input = Payload::json(&json!(secs)).expect("valid");
        run(&executor, Some(input)).await
    };
    let error = failed(at(0).await);
    assert_eq!(
        (error.reason.as_str(), error.retry_after),
        ("BUSY", Some(Duration::ZERO))
    );
    assert_eq!(at(1).await, Outcome::Snoozed(Duration::from_secs(1)));
    let year = DURATION_MAX.as_secs();
    assert_eq!(at(year).await, Outcome::Snoozed(DURATION_MAX));
    assert_eq!(at(year + 1).await, Outcome::Snoozed(DURATION_MAX));
}

#[tokio::test]
async fn a_result_beyond_the_bound_is_refused_with_advice() {
    let executor = HandlerExecutor::new(|_, bytes: usize| async move { Ok("x".repeat(bytes)) });
    // A JSON string travels as a Value in a Payload: two tags and two three-byte lengths.
    let at = async |bytes: usize| {
        let input = Payload::json(&json!(bytes)).expect("valid");
        run(&executor, Some(input)).await
    };
    let largest = PAYLOAD_BYTES_MAX - 8;
    assert!(matches!(at(largest).await, Outcome::Succeeded(Some(_))));
    let error = failed(at(largest + 1).await);
    assert_eq!(
        (error.reason.as_str(), error.retryable),
        ("RESULT_INVALID", false)
    );
    assert!(
        error.message.contains("pass a reference"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn what_a_handler_tells_arrives_in_order() {
    let executor = HandlerExecutor::new(|context: Context, _: ()| async move {
        context.progress(Progress::fraction(0.5)).await?;
        context.output("tokens", "Hello").await?;
        context.log(LogLevel::Info, "half way").await?;
        context.save_checkpoint(&json!({"page": 2})).await?;
        assert_eq!(context.checkpoint::<u32>().ok().flatten(), Some(7));
        Ok(())
    });
    let mut harness = Harness::new(None);
    harness.attempt_mut().checkpoint = Some(Payload::json(&json!(7)).expect("valid"));
    let outcome = deadline(executor.run(harness.take_attempt())).await;
    assert_eq!(outcome, Outcome::Succeeded(None));
    let reports = harness.reports().await;
    assert!(matches!(&reports[0], Report::Progress(p) if p.fraction == Some(0.5)));
    assert!(matches!(&reports[1], Report::Output { stream, .. } if stream == "tokens"));
    assert!(matches!(&reports[2], Report::Log(line) if line.message == "half way"));
    assert!(matches!(&reports[3], Report::Checkpoint(c) if c.as_bytes() == br#"{"page":2}"#));
    assert_eq!(reports.len(), 4);
}

#[tokio::test]
async fn a_handler_that_obeys_its_token_ends_as_cancelled() {
    let executor = HandlerExecutor::new(|context: Context, _: ()| async move {
        context.cancelled().await;
        assert!(context.is_stopping());
        Err::<(), _>(HandlerError::cancelled())
    });
    let mut harness = Harness::new(None);
    harness.stop.cancel();
    let outcome = deadline(executor.run(harness.take_attempt())).await;
    assert_eq!(outcome, Outcome::Cancelled);
}

/// Goal: neither a handler that hangs nor one that blocks its thread keeps an attempt alive, and both
/// are counted for as long as they are there. One test, because the gauge is the process's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_ignores_its_token_is_left_behind_and_counted_until_it_ends() {
    let hangs = HandlerExecutor::new(|_, _: ()| std::future::pending::<Result<(), HandlerError>>());
    let mut harness = Harness::new(None);
    harness.attempt_mut().grace = Grace::new(Duration::from_millis(10));
    harness.stop.cancel();
    let outcome = deadline(hangs.run(harness.take_attempt())).await;
    assert_eq!(outcome, Outcome::Cancelled);
    deadline(async {
        while left_behind() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let (release, released) = mpsc::channel::<()>();
    let (ended, end) = oneshot::channel::<()>();
    let parts = std::sync::Mutex::new(Some((released, ended)));
    let blocks = HandlerExecutor::new(move |_, _: ()| {
        let parts = parts.lock().expect("not poisoned").take();
        async move {
            let (released, ended) = parts.expect("runs once");
            // Nobody sends: this waits for the other end to go.
            let _ = released.recv();
            drop(ended);
            Ok(())
        }
    });
    let mut harness = Harness::new(None);
    harness.attempt_mut().grace = Grace::new(Duration::from_millis(10));
    harness.stop.cancel();
    // In a task, because a current thread that runs it itself would be the one that is blocked.
    let run = tokio::spawn(blocks.run(harness.take_attempt()));
    let outcome = deadline(run).await.expect("does not panic");
    assert_eq!(outcome, Outcome::Cancelled);
    assert_eq!(left_behind(), 1);
    drop(release);
    let _ = deadline(end).await;
    deadline(async {
        while left_behind() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
