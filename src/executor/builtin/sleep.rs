//! `sleep`: does nothing for a while, and says how far it has come.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use crate::executor::handler::{Context, HandlerError, HandlerExecutor};
use crate::job::progress::Progress;

/// Where the input does not say.
const DEFAULT: Duration = Duration::from_secs(1);
/// The longest. Chosen: it is for trying things out.
const LONGEST: Duration = Duration::from_secs(3600);
/// Between two reports: a bar that moves smoothly needs no more than ten a second.
const STEP: Duration = Duration::from_millis(100);

/// The job type `sleep`: `{"duration": "2s"}`, `{"seconds": 2}`, or a second without input; an hour at
/// most. Its result is `{"slept_seconds": 2}`.
pub fn sleep() -> HandlerExecutor {
    HandlerExecutor::checked(
        |input: &Option<Input>| {
            duration(input.as_ref())
                .map(drop)
                .map_err(|problem| vec![problem])
        },
        |context: Context, input: Option<Input>| async move {
            let whole = duration(input.as_ref()).map_err(|(field, problem)| {
                HandlerError::permanent("INPUT_INVALID", format!("{field} {problem}"))
            })?;
            run(&context, whole).await
        },
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    duration: Option<String>,
    seconds: Option<f64>,
}

#[derive(Serialize)]
struct Slept {
    slept_seconds: f64,
}

async fn run(context: &Context, whole: Duration) -> Result<Slept, HandlerError> {
    let start = Instant::now();
    let end = start + whole;
    loop {
        let passed = start.elapsed().min(whole);
        let fraction = if whole.is_zero() {
            1.0
        } else {
            passed.as_secs_f64() / whole.as_secs_f64()
        };
        let message = format!(
            "{:.1} s of {:.1} s",
            passed.as_secs_f64(),
            whole.as_secs_f64()
        );
        context
            .progress(Progress::fraction(fraction).with_message(message))
            .await?;
        if passed == whole {
            let slept_seconds = whole.as_secs_f64();
            return Ok(Slept { slept_seconds });
        }
        // Both are cancel safe: nothing is lost.
        tokio::select! {
            () = context.cancelled() => return Err(HandlerError::cancelled()),
            () = sleep_until(end.min(Instant::now() + STEP)) => {}
        }
    }
}

/// How long, or which field says it wrongly.
fn duration(input: Option<&Input>) -> Result<Duration, (String, String)> {
    let (field, parsed) = match input {
        None => return Ok(DEFAULT),
        Some(Input {
            duration: None,
            seconds: None,
        }) => return Ok(DEFAULT),
        Some(Input {
            duration: Some(_),
            seconds: Some(_),
        }) => {
            let problem = "has both duration and seconds; one is accepted".to_owned();
            return Err(("input".to_owned(), problem));
        }
        Some(Input {
            duration: Some(text),
            ..
        }) => (
            "input.duration",
            humantime::parse_duration(text)
                .map_err(|error| format!("is no duration such as 2s or 500ms: {error}")),
        ),
        Some(Input {
            seconds: Some(seconds),
            ..
        }) => (
            "input.seconds",
            Duration::try_from_secs_f64(*seconds)
                .map_err(|error| format!("is no number of seconds: {error}")),
        ),
    };
    let field = field.to_owned();
    match parsed {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(duration) => {
            let problem = format!(
                "is {} s; at most {} s are accepted",
                duration.as_secs_f64(),
                LONGEST.as_secs()
            );
            Err((field, problem))
        }
        Err(problem) => Err((field, problem)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::executor::Executor;
    use crate::executor::testing::{Harness, deadline};
    use crate::job::payload::Payload;
    use crate::job::{Outcome, Report};

    #[test]
    fn an_input_that_says_no_bounded_time_is_refused() {
        let check =
            |input: serde_json::Value| sleep().check(Some(&Payload::json(&input).expect("valid")));
        for good in [
            json!({}),
            json!({"seconds": 0}),
            json!({"seconds": 3600}),
            json!({"duration": "1h"}),
            json!({"duration": "2s 5ms"}),
        ] {
            assert_eq!(check(good.clone()), Ok(()), "{good}");
        }
        assert_eq!(sleep().check(None), Ok(()));
        for (bad, field) in [
            (json!({"seconds": 3600.5}), "input.seconds"),
            (json!({"seconds": -1}), "input.seconds"),
            (json!({"seconds": "2"}), "input.seconds"),
            (json!({"duration": "61m"}), "input.duration"),
            (json!({"duration": "soon"}), "input.duration"),
            (json!({"duration": "1s", "seconds": 1}), "input"),
            (json!({"secs": 1}), "input.secs"),
        ] {
            assert_eq!(
                check(bad.clone()).expect_err("refused")[0].0,
                field,
                "{bad}"
            );
        }
    }

    #[tokio::test]
    async fn it_sleeps_and_says_how_far_it_has_come() {
        let input = Payload::json(&json!({"duration": "250ms"})).expect("valid");
        let mut harness = Harness::new(Some(input));
        let start = Instant::now();
        let outcome = deadline(sleep().run(harness.take_attempt())).await;
        assert!(start.elapsed() >= Duration::from_millis(250));
        let result = Payload::json(&json!({"slept_seconds": 0.25})).expect("valid");
        assert_eq!(outcome, Outcome::Succeeded(Some(result)));
        let reports = harness.reports().await;
        let fractions: Vec<f64> = reports
            .iter()
            .filter_map(|report| match report {
                Report::Progress(progress) => progress.fraction,
                _ => None,
            })
            .collect();
        assert!((3..=4).contains(&fractions.len()), "{fractions:?}");
        assert!(fractions.is_sorted() && fractions[0] < 0.5, "{fractions:?}");
        assert_eq!(fractions.last(), Some(&1.0));
        assert!(
            matches!(reports.last(), Some(Report::Progress(p)) if p.message == "0.2 s of 0.2 s")
        );
    }

    #[tokio::test]
    async fn a_cancel_wakes_it_at_once() {
        let input = Payload::json(&json!({"seconds": 3600})).expect("valid");
        let mut harness = Harness::new(Some(input));
        let running = tokio::spawn(sleep().run(harness.take_attempt()));
        harness.until(|reports| !reports.is_empty()).await;
        harness.stop.cancel();
        assert_eq!(
            deadline(running).await.expect("does not panic"),
            Outcome::Cancelled
        );
    }
}
