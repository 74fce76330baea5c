//! `pacenote submit` with its options, and `pacenote submit-batch`, against a server that writes down what
//! it was asked.

mod fake;

use std::path::Path;
use std::time::Duration;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use fake::{Answers, Fake, JOB_ID, job, status};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::submit_request::Start;
use pacenote::pb::unique_policy::OnConflict;
use tonic::Code;

async fn pacenote(fake: &Fake, arguments: &[&str], stdin: &str) -> Assert {
    let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
    let (server, stdin) = (fake.address.to_string(), stdin.to_owned());
    tokio::task::spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_pacenote"))
            .args(arguments)
            .env("PACENOTE_SERVER", server)
            .write_stdin(stdin)
            .timeout(Duration::from_secs(30))
            .assert()
    })
    .await
    .expect("the program was run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn submits() -> Answers {
    Answers {
        submit: Box::new(|request, _| {
            let queued = (!request.validate_only).then(|| job(State::Queued, 1));
            Ok(pb::SubmitResponse {
                job: queued,
                deduplicated: request.validate_only,
            })
        }),
        batch_submit: Box::new(|request, _| {
            let responses = request.requests.iter().enumerate().map(|(index, _)| {
                let deduplicated = index == 1;
                pb::SubmitResponse {
                    job: Some(job(State::Queued, 1)),
                    deduplicated,
                }
            });
            Ok(pb::BatchSubmitResponse {
                batch_id: "the-batch".to_owned(),
                responses: responses.collect(),
            })
        }),
        ..Answers::default()
    }
}

fn span(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_option_goes_into_the_request() {
    let fake = Fake::start(submits()).await;
    let line = "submit pages --delay 10s --concurrency-key c --unique u --on-conflict replace \
                --unique-window 1m --max-attempts 7 --initial-backoff 2s --max-backoff 3s \
                --backoff-multiplier 1.5 --non-retryable A --non-retryable B --queue-timeout 4s \
                --run-timeout 5s --total-timeout 6s --heartbeat-timeout 7s --stall-time 8s \
                --cancel-grace 9s --retention 1d";
    let arguments: Vec<&str> = line.split_whitespace().collect();
    pacenote(&fake, &arguments, "").await.code(0);
    let request = fake.asked(|asked| asked.submit[0].clone());
    let expected = pb::SubmitRequest {
        r#type: "pages".to_owned(),
        start: span(10).map(Start::Delay),
        concurrency_key: "c".to_owned(),
        unique: Some(pb::UniquePolicy {
            key: "u".to_owned(),
            on_conflict: OnConflict::ReplaceWaiting.into(),
            window: span(60),
        }),
        retry_policy: Some(pb::RetryPolicy {
            max_attempts: 7,
            initial_backoff: span(2),
            max_backoff: span(3),
            backoff_multiplier: 1.5,
            non_retryable_reasons: vec!["A".to_owned(), "B".to_owned()],
        }),
        timeouts: Some(pb::Timeouts {
            queue_timeout: span(4),
            run_timeout: span(5),
            total_timeout: span(6),
            heartbeat_timeout: span(7),
            stall_time: span(8),
            cancel_grace: span(9),
        }),
        retention: span(86_400),
        ..pb::SubmitRequest::default()
    };
    assert_eq!(request, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submit_without_options_says_nothing_of_them() {
    let fake = Fake::start(submits()).await;
    pacenote(&fake, &["submit", "pages"], "").await.code(0);
    let at = ["submit", "pages", "--at", "2030-01-31T08:00:00Z"];
    pacenote(&fake, &at, "").await.code(0);
    let bare = pb::SubmitRequest {
        r#type: "pages".to_owned(),
        ..pb::SubmitRequest::default()
    };
    let time = prost_types::Timestamp {
        seconds: 1_896_076_800,
        nanos: 0,
    };
    let timed = pb::SubmitRequest {
        start: Some(Start::ScheduleTime(time)),
        ..bare.clone()
    };
    assert_eq!(fake.asked(|asked| asked.submit.clone()), [bare, timed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_only_checked_prints_no_job() {
    let fake = Fake::start(submits()).await;
    let arguments = ["submit", "pages", "--validate-only"];
    let assert = pacenote(&fake, &arguments, "").await.code(0);
    assert_eq!(text(&assert.get_output().stdout), "");
    let said = text(&assert.get_output().stderr);
    assert!(said.contains("nothing was stored"), "{said}");
    let arguments = ["submit", "pages", "--validate-only", "--json"];
    let assert = pacenote(&fake, &arguments, "").await.code(0);
    assert_eq!(
        text(&assert.get_output().stdout),
        "{\"deduplicated\":true}\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_contradict_each_other_are_wrong_usage() {
    let fake = Fake::start(submits()).await;
    for line in [
        "submit t --delay 1s --at 2030-01-31T08:00:00Z",
        "submit t --validate-only --watch",
        "submit t --on-conflict reject",
        "submit t --unique-window 1s",
        "submit t --unique u --on-conflict keep",
        "submit t --delay soon",
        "submit t --at tomorrow",
        "submit t --max-attempts 0",
        "submit-batch",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        pacenote(&fake, &arguments, "").await.code(2);
    }
    assert!(fake.asked(|asked| asked.submit.is_empty()));
}

const LINES: &str = r#"
{"type": "pages", "input": {"json": {"n": 3}}, "idempotencyKey": "a"}

{"type": "pages", "delay": "10s", "labels": {"team": "docs"}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_read_line_by_line_and_answered_id_by_id() {
    let fake = Fake::start(submits()).await;
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("lines");
    std::fs::write(&file, LINES).expect("it is written");
    let file = file.to_str().expect("UTF-8");
    for (source, stdin) in [("-", LINES), (file, "")] {
        let assert = pacenote(&fake, &["submit-batch", source], stdin)
            .await
            .code(0);
        let ids = text(&assert.get_output().stdout);
        assert_eq!(ids, format!("{JOB_ID}\n{JOB_ID}\n"));
        let said = text(&assert.get_output().stderr);
        assert!(
            said.contains("batch the-batch: 2 jobs, 1 of them there before"),
            "{said}"
        );
    }
    let asked = fake.asked(|asked| asked.batch_submit.clone());
    assert_eq!(asked[0], asked[1]);
    let [first, second] = &asked[0].requests[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(
        (first.r#type.as_str(), first.idempotency_key.as_str()),
        ("pages", "a")
    );
    assert_eq!(second.start, span(10).map(Start::Delay));
    let assert = pacenote(&fake, &["submit-batch", "-", "--json"], LINES)
        .await
        .code(0);
    let printed = text(&assert.get_output().stdout);
    let flags = printed.lines().map(|line| {
        let job: serde_json::Value = serde_json::from_str(line).expect("JSON");
        job["deduplicated"].as_bool().expect("a flag")
    });
    assert_eq!(flags.collect::<Vec<_>>(), [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_is_named_before_anybody_is_called() {
    let fake = Fake::start(submits()).await;
    let lines = format!("{LINES}{{\"typ\": \"pages\"}}\n");
    let assert = pacenote(&fake, &["submit-batch", "-"], &lines)
        .await
        .code(2);
    let said = text(&assert.get_output().stderr);
    assert!(
        said.contains("stdin, line 5: is no SubmitRequest"),
        "{said}"
    );
    let missing = Path::new("nowhere/to.be.found").display().to_string();
    pacenote(&fake, &["submit-batch", &missing], "")
        .await
        .code(2);
    assert!(fake.asked(|asked| asked.batch_submit.is_empty()));
}

/// Goal: a batch is sent again only where a second try cannot make second jobs.
#[tokio::test]
async fn a_batch_is_sent_again_only_where_every_request_has_a_key() {
    let with_key = |key: &str| pb::SubmitRequest {
        idempotency_key: key.to_owned(),
        ..pb::SubmitRequest::default()
    };
    for (keys, tries) in [(["a", "b"], 2), (["a", ""], 1)] {
        let fake = Fake::start(Answers {
            batch_submit: Box::new(|_, before| match before {
                0 => Err(status(Code::Unavailable, "OUTCOME_UNKNOWN", None)),
                _ => Ok(pb::BatchSubmitResponse::default()),
            }),
            ..Answers::default()
        })
        .await;
        let requests = keys.map(with_key).to_vec();
        let answer = fake.client().await;
        let answer = answer
            .batch_submit(pb::BatchSubmitRequest { requests })
            .await;
        assert_eq!(answer.is_ok(), tries == 2);
        assert_eq!(fake.asked(|asked| asked.batch_submit.len()), tries);
    }
}
