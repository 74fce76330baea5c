//! The commands against a scripted server: what is on stdout, what the exit code says, and that a job
//! cannot drive the terminal.

mod fake;

use std::io::BufRead;
use std::time::Duration;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use fake::{
    Answers, Fake, JOB_ID, Step, batch, event, event_of, gap, honest_rest, job, snapshot, status,
};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;
use pacenote::pb::payload::Content;
use tonic::Code;

/// Runs the program against the fake, beside the runtime that serves it.
async fn pacenote(fake: &Fake, arguments: &[&str]) -> Assert {
    let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
    let server = fake.address.to_string();
    tokio::task::spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_pacenote"))
            .args(arguments)
            .env("PACENOTE_SERVER", server)
            .timeout(Duration::from_secs(30))
            .assert()
    })
    .await
    .expect("the program was run")
}

fn stdout(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).expect("UTF-8")
}

fn stderr(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).expect("UTF-8")
}

fn text(text: &str) -> pb::Payload {
    pb::Payload {
        content: Some(Content::Text(text.to_owned())),
        media_type: String::new(),
    }
}

fn output(sequence: i64, stream: &str, chunk: &str) -> pb::JobEvent {
    let chunk = pb::OutputChunk {
        stream: stream.to_owned(),
        offset: 0,
        chunk: Some(text(chunk)),
    };
    event_of(sequence, Event::Output(chunk))
}

fn change(sequence: i64, from: State, to: State) -> pb::JobEvent {
    let change = pb::StateChange {
        from_state: from.into(),
        to_state: to.into(),
        reason: String::new(),
    };
    event_of(sequence, Event::StateChange(change))
}

/// A job of six events that ends in `state` and means harm.
fn story(state: State) -> Vec<Step> {
    let progress = pb::Progress {
        fraction: Some(0.45),
        completed_units: Some(4),
        total_units: Some(10),
        unit: "pages".to_owned(),
        message: "page \x1b[2J four".to_owned(),
        ..pb::Progress::default()
    };
    let mut last = job(state, 6);
    if state == State::Failed {
        last.error = Some(pb::JobError {
            reason: "EXIT_CODE".to_owned(),
            message: "exit code 3".to_owned(),
            ..pb::JobError::default()
        });
    } else {
        last.result = Some(text("all\n"));
    }
    vec![
        batch(
            &[
                change(1, State::Unspecified, State::Queued),
                change(2, State::Queued, State::Running),
                event_of(3, Event::Progress(progress)),
            ],
            3,
        ),
        batch(
            &[
                output(4, "stdout", "one\ntwo\n"),
                output(5, "stderr", "oh\x07\n"),
            ],
            5,
        ),
        batch(&[change(6, State::Running, state)], 6),
        snapshot(last, 6),
    ]
}

fn watches(steps: Vec<Step>) -> Answers {
    Answers {
        watch: Box::new(move |_, _| Ok(steps.clone())),
        ..Answers::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_without_a_terminal_is_one_plain_line_an_event() {
    let fake = Fake::start(watches(story(State::Succeeded))).await;
    let assert = pacenote(&fake, &["watch", JOB_ID, "--after", "0"])
        .await
        .code(0);
    assert_eq!(
        stdout(&assert),
        "1 state QUEUED\n\
         2 state QUEUED -> RUNNING\n\
         3 progress 45% 4/10 pages page \\x1b[2J four\n\
         4 output stdout one\\ntwo\n\
         5 output stderr oh\\x07\n\
         6 state RUNNING -> SUCCEEDED\n\
         end SUCCEEDED\n\
         result all\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_prints_what_the_job_wrote_byte_for_byte() {
    let fake = Fake::start(watches(story(State::Succeeded))).await;
    let assert = pacenote(&fake, &["watch", JOB_ID, "--after", "0", "--quiet"])
        .await
        .code(0);
    assert_eq!(
        (stdout(&assert).as_str(), stderr(&assert).as_str()),
        ("one\ntwo\n", "oh\x07\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_watch_is_events_and_the_final_job_a_line_each() {
    let fake = Fake::start(watches(story(State::Succeeded))).await;
    let assert = pacenote(&fake, &["watch", JOB_ID, "--after", "0", "--json"])
        .await
        .code(0);
    let lines: Vec<serde_json::Value> = stdout(&assert)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let sequences: Vec<_> = lines
        .iter()
        .filter_map(|line| line["sequence"].as_str())
        .collect();
    assert_eq!(sequences, ["1", "2", "3", "4", "5", "6"]);
    assert_eq!(lines[2]["progress"]["fraction"], 0.45);
    assert_eq!(lines[3]["output"]["chunk"]["text"], "one\ntwo\n");
    assert_eq!(lines[6]["state"], "STATE_SUCCEEDED");
    assert_eq!(lines[6]["result"]["text"], "all\n");
    assert!(!stdout(&assert).contains('\x1b'));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_the_jobs_outcome() {
    let cases = [
        (State::Succeeded, 0),
        (State::Failed, 1),
        (State::Cancelled, 3),
        (State::Expired, 3),
    ];
    for (state, code) in cases {
        let fake = Fake::start(Answers {
            wait: Box::new(move |_, _| {
                Ok(pb::WaitResponse {
                    job: Some(job(state, 6)),
                    timed_out: false,
                })
            }),
            run: Box::new(move |_, _| {
                let mut steps = vec![snapshot(job(State::Queued, 1), 0)];
                steps.extend(story(state));
                Ok(steps)
            }),
            ..watches(story(state))
        })
        .await;
        pacenote(&fake, &["watch", JOB_ID, "--after", "0"])
            .await
            .code(code);
        pacenote(&fake, &["submit", "pages", "--watch"])
            .await
            .code(code);
        pacenote(&fake, &["wait", JOB_ID]).await.code(code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_cut_goes_on_without_gap_or_double() {
    let fake = Fake::start(Answers {
        watch: Box::new(|request, before| {
            let mut steps = honest_rest(request.after_sequence.unwrap_or(0), 6, 2);
            if before == 0 {
                steps.truncate(1);
                steps.push(Step::Cut);
            }
            Ok(steps)
        }),
        ..Answers::default()
    })
    .await;
    let assert = pacenote(&fake, &["watch", JOB_ID, "--after", "0"])
        .await
        .code(0);
    let lines: Vec<String> = (1..=6)
        .map(|n| format!("{n} log INFO line {n}\n"))
        .collect();
    assert_eq!(
        stdout(&assert),
        format!("{}end SUCCEEDED\n", lines.concat())
    );
    assert!(
        stderr(&assert).contains("reconnecting in"),
        "{}",
        stderr(&assert)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stated_gap_is_printed() {
    let mut steps = vec![gap(1, 4)];
    steps.extend(honest_rest(4, 5, 1));
    let fake = Fake::start(watches(steps)).await;
    let assert = pacenote(&fake, &["watch", JOB_ID, "--after", "0"])
        .await
        .code(0);
    assert!(
        stdout(&assert).starts_with("gap 1-4 were purged\n5 log"),
        "{}",
        stdout(&assert)
    );
}

fn submits() -> Answers {
    Answers {
        submit: Box::new(|_, _| {
            Ok(pb::SubmitResponse {
                job: Some(job(State::Queued, 1)),
                deduplicated: false,
            })
        }),
        ..Answers::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_prints_the_id_alone_on_stdout() {
    let fake = Fake::start(submits()).await;
    let arguments = [
        "submit",
        "pages",
        "--input",
        r#"{"n": 3}"#,
        "--queue",
        "slow",
        "--priority",
        "-5",
        "--label",
        "a=b=c",
        "--label",
        "team=docs",
        "--idempotency-key",
        "k",
    ];
    let assert = pacenote(&fake, &arguments).await.code(0);
    assert_eq!(stdout(&assert), format!("{JOB_ID}\n"));
    assert!(
        stderr(&assert).contains("pacenote watch"),
        "the next command is suggested"
    );
    let request = fake.asked(|asked| asked.submit[0].clone());
    assert_eq!((request.queue.as_str(), request.priority), ("slow", -5));
    assert_eq!(request.labels["a"], "b=c");
    assert_eq!(request.idempotency_key, "k");
    assert!(matches!(
        request.input.and_then(|input| input.content),
        Some(Content::Json(_))
    ));

    let assert = pacenote(&fake, &["submit", "pages", "--json"])
        .await
        .code(0);
    let printed: serde_json::Value = serde_json::from_str(&stdout(&assert)).expect("JSON");
    assert_eq!(printed["jobId"], JOB_ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_submit_says_whether_the_key_was_used_before() {
    for deduplicated in [false, true] {
        let fake = Fake::start(Answers {
            submit: Box::new(move |_, _| {
                Ok(pb::SubmitResponse {
                    job: Some(job(State::Queued, 1)),
                    deduplicated,
                })
            }),
            run: Box::new(|_, _| {
                let mut steps = vec![snapshot(job(State::Queued, 1), 0)];
                steps.extend(story(State::Succeeded));
                Ok(steps)
            }),
            run_deduplicated: deduplicated,
            ..Answers::default()
        })
        .await;
        let arguments = ["submit", "pages", "--idempotency-key", "k", "--json"];
        let watching = [arguments.as_slice(), &["--watch"]].concat();
        for arguments in [arguments.as_slice(), &watching] {
            let assert = pacenote(&fake, arguments).await.code(0);
            let lines: Vec<serde_json::Value> = stdout(&assert)
                .lines()
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect();
            assert_eq!(lines[0]["jobId"], JOB_ID);
            assert_eq!(lines[0]["deduplicated"], deduplicated);
            // It is the submit's answer, not a word about the job or an event.
            let others = lines[1..].iter();
            assert!(
                others
                    .clone()
                    .all(|line| line.get("deduplicated").is_none())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_integer_that_a_double_cannot_hold_travels_as_text() {
    let fake = Fake::start(submits()).await;
    let input = r#"{"id": 12345678901234567890}"#;
    pacenote(&fake, &["submit", "pages", "--input", input])
        .await
        .code(0);
    let sent = fake
        .asked(|asked| asked.submit[0].input.clone())
        .expect("an input");
    assert_eq!(sent.content, Some(Content::Text(input.to_owned())));
    assert_eq!(sent.media_type, "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_is_not_json_is_refused_here_with_its_place() {
    let fake = Fake::start(submits()).await;
    let assert = pacenote(&fake, &["submit", "pages", "--input", "{n: 3}"])
        .await
        .code(2);
    assert!(
        stderr(&assert).contains("line 1 column 2"),
        "{}",
        stderr(&assert)
    );
    assert_eq!(fake.asked(|asked| asked.submit.len()), 0);
    pacenote(&fake, &["submit", "pages", "--label", "novalue"])
        .await
        .code(2);
    pacenote(&fake, &["submit"]).await.code(2);
    pacenote(&fake, &["watch", JOB_ID, "--after", "-1"])
        .await
        .code(2);
    pacenote(&fake, &["get", JOB_ID, "--server", "https://x:1"])
        .await
        .code(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_exit_5_with_every_bad_field() {
    let fake = Fake::start(Answers {
        submit: Box::new(|_, _| Err(status(Code::InvalidArgument, "UNKNOWN_TYPE\x1b[1m", None))),
        ..Answers::default()
    })
    .await;
    let assert = pacenote(&fake, &["submit", "pages"]).await.code(5);
    assert!(
        stderr(&assert).contains("UNKNOWN_TYPE\\x1b[1m"),
        "{}",
        stderr(&assert)
    );
    pacenote(&fake, &["get", JOB_ID]).await.code(5);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_exit_4_and_says_what_to_do() {
    let fake = Fake::start(Answers::default()).await;
    let assert = pacenote(&fake, &["get", JOB_ID, "--server", "127.0.0.1:1"])
        .await
        .code(4);
    assert!(
        stderr(&assert).contains("pacenote serve"),
        "{}",
        stderr(&assert)
    );
    assert_eq!(stdout(&assert), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_runs_out_of_time_is_exit_75() {
    let fake = Fake::start(Answers {
        wait: Box::new(|_, _| {
            Ok(pb::WaitResponse {
                job: Some(job(State::Running, 3)),
                timed_out: true,
            })
        }),
        ..Answers::default()
    })
    .await;
    let assert = pacenote(&fake, &["wait", JOB_ID, "--timeout", "0s", "--json"])
        .await
        .code(75);
    assert!(stdout(&assert).contains("STATE_RUNNING"));
}

#[tokio::test(flavor = "multi_thread")]
async fn list_goes_through_pages_up_to_its_limit_and_names_the_next() {
    let fake = Fake::start(Answers {
        list: Box::new(|request, before| {
            let count = usize::try_from(request.page_size).expect("positive").min(2);
            Ok(pb::ListResponse {
                jobs: vec![job(State::Failed, 6); count],
                next_page_token: format!("t{before}"),
            })
        }),
        ..Answers::default()
    })
    .await;
    let arguments = [
        "list",
        "--state",
        "failed,expired",
        "--type",
        "pages",
        "--limit",
        "3",
    ];
    let assert = pacenote(&fake, &arguments).await.code(0);
    assert_eq!(stdout(&assert).lines().count(), 3);
    assert!(
        stderr(&assert).contains("--page-token t1"),
        "{}",
        stderr(&assert)
    );
    let asked = fake.asked(|asked| asked.list.clone());
    assert_eq!(
        asked[0].states,
        [State::Failed as i32, State::Expired as i32]
    );
    assert_eq!((asked[0].page_size, asked[1].page_size), (3, 1));
    assert_eq!(asked[1].page_token, "t0");
}

#[tokio::test(flavor = "multi_thread")]
async fn list_goes_on_over_empty_pages_and_sends_every_filter() {
    let fake = Fake::start(Answers {
        list: Box::new(|_, before| {
            Ok(pb::ListResponse {
                jobs: vec![job(State::Failed, 6); usize::from(before == 3)],
                next_page_token: if before < 3 { "t" } else { "" }.to_owned(),
            })
        }),
        ..Answers::default()
    })
    .await;
    let batch = "0198c0de-0000-7000-8000-00000000000b";
    let arguments = [
        "list",
        "--label",
        "a=b=c",
        "--label",
        "d=",
        "--batch",
        batch,
        "--reason",
        "BAD",
        "--stalled",
        "--since",
        "2026-11-21",
        "--ended-before",
        "2026-11-22T01:02:03Z",
        "--created-after",
        "1h",
        "--created-before",
        "2026-11-23 00:00:00",
    ];
    let assert = pacenote(&fake, &arguments).await.code(0);
    assert_eq!(stdout(&assert).lines().count(), 1);
    let asked = fake.asked(|asked| asked.list.clone());
    assert_eq!(asked.len(), 4);
    let first = &asked[0];
    assert_eq!(
        (first.labels["a"].as_str(), first.labels["d"].as_str()),
        ("b=c", "")
    );
    assert_eq!((first.batch_id.as_str(), first.stalled_only), (batch, true));
    assert_eq!(first.reasons, ["BAD"]);
    let seconds = |time: &Option<prost_types::Timestamp>| time.expect("given").seconds;
    assert_eq!(seconds(&first.ended_after), 1_795_219_200);
    assert_eq!(seconds(&first.ended_before), 1_795_309_323);
    assert_eq!(seconds(&first.created_before), 1_795_392_000);
    assert!(seconds(&first.created_after) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_prints_the_ids_of_the_new_jobs_page_by_page() {
    let fake = Fake::start(Answers {
        retry: Box::new(|_, _| {
            Ok(pb::RetryResponse {
                job: Some(job(State::Queued, 1)),
                deduplicated: false,
            })
        }),
        retry_many: Box::new(|_, before| {
            let retried = pb::retry_many_response::Retried {
                job_id: "old".to_owned(),
                new_job_id: format!("new{before}"),
            };
            Ok(pb::RetryManyResponse {
                retried: vec![retried; usize::from(before != 1)],
                skipped: Vec::new(),
                next_page_token: if before < 2 { "t" } else { "" }.to_owned(),
            })
        }),
        ..Answers::default()
    })
    .await;
    let assert = pacenote(&fake, &["retry", "a", "b"]).await.code(0);
    assert_eq!(stdout(&assert), format!("{JOB_ID}\n{JOB_ID}\n"));
    let asked = fake.asked(|asked| asked.retry.clone());
    assert_eq!(
        (asked[0].job_id.as_str(), asked[1].job_id.as_str()),
        ("a", "b")
    );
    let by_filter = ["retry", "--failed", "--type", "pages", "--since", "1d"];
    let assert = pacenote(&fake, &by_filter).await.code(0);
    assert_eq!(stdout(&assert), "new0\nnew2\n");
    let asked = fake.asked(|asked| asked.retry_many.clone());
    assert_eq!((asked.len(), asked[1].page_token.as_str()), (3, "t"));
    assert_eq!(asked[2].types, ["pages"]);
    assert!(asked[2].ended_after.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_counts_what_is_gone_and_wants_to_be_told_which() {
    let fake = Fake::start(Answers {
        delete: Box::new(|_, _| Ok(pb::DeleteResponse {})),
        delete_many: Box::new(|_, before| {
            Ok(pb::DeleteManyResponse {
                deleted_count: 2,
                next_page_token: if before == 0 { "t" } else { "" }.to_owned(),
            })
        }),
        ..Answers::default()
    })
    .await;
    let assert = pacenote(&fake, &["delete", "a", "b", "c"]).await.code(0);
    assert_eq!(stdout(&assert), "3 deleted\n");
    let assert = pacenote(&fake, &["delete", "--all", "--json"])
        .await
        .code(0);
    assert_eq!(stdout(&assert), "{\"deletedCount\":4}\n");
    assert!(fake.asked(|asked| asked.delete_many.iter().all(|request| request.all)));
    for wrong in [
        vec!["delete"],
        vec!["retry"],
        vec!["delete", "a", "--type", "pages"],
        vec!["retry", "a", "--failed"],
        vec!["delete", "--all", "--state", "failed"],
        vec!["delete", "--since", "yesterday"],
    ] {
        pacenote(&fake, &wrong).await.code(2);
    }
    assert_eq!(fake.asked(|asked| asked.delete.len()), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reads_every_page_to_the_end_of_the_log() {
    let fake = Fake::start(Answers {
        list_events: Box::new(|request, _| {
            let after = request.after_sequence;
            let until = (after + 2).min(5);
            Ok(pb::ListEventsResponse {
                events: (after + 1..=until).map(event).collect(),
                through_sequence: until,
                job_finished: false,
                gap: None,
            })
        }),
        ..Answers::default()
    })
    .await;
    let assert = pacenote(&fake, &["events", JOB_ID, "--after", "1"])
        .await
        .code(0);
    assert_eq!(
        stdout(&assert),
        "2 log INFO line 2\n3 log INFO line 3\n4 log INFO line 4\n5 log INFO line 5\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_get_exit_0_when_the_call_worked() {
    let fake = Fake::start(Answers {
        cancel: Box::new(|_, _| {
            let job = Some(job(State::Cancelling, 4));
            Ok(pb::CancelResponse { job })
        }),
        get: Box::new(|_, _| {
            let mut failed = job(State::Failed, 6);
            failed
                .labels
                .insert("evil".to_owned(), "\x1b]0;title\x07".to_owned());
            Ok(pb::GetResponse { job: Some(failed) })
        }),
        ..Answers::default()
    })
    .await;
    let assert = pacenote(&fake, &["cancel", JOB_ID, "--reason", "enough"])
        .await
        .code(0);
    assert_eq!(stdout(&assert), "CANCELLING\n");
    assert_eq!(fake.asked(|asked| asked.cancel[0].reason.clone()), "enough");
    let assert = pacenote(&fake, &["get", JOB_ID]).await.code(0);
    assert!(
        stdout(&assert).contains("evil=\\x1b]0;title\\x07"),
        "{}",
        stdout(&assert)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_went_away_ends_it_quietly() {
    let fake = Fake::start(watches(honest_rest(0, 20_000, 100))).await;
    let server = fake.address.to_string();
    let (text, status) = tokio::task::spawn_blocking(move || {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_pacenote"))
            .args(["watch", JOB_ID, "--after", "0"])
            .env("PACENOTE_SERVER", server)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        (
            String::from_utf8(output.stderr).expect("UTF-8"),
            output.status,
        )
    })
    .await
    .expect("the program was run");
    assert_eq!((text.as_str(), status.code()), ("", Some(0)));
}

/// Goal: Ctrl-C leaves the job alone and says how to go on. Method: interrupt a watch once its first
/// event is on stdout.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_the_watch_and_names_the_way_back() {
    let fake = Fake::start(watches(vec![batch(&[event(1)], 1), Step::Silence])).await;
    let server = fake.address.to_string();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_pacenote"))
            .args(["watch", JOB_ID, "--after", "0"])
            .env("PACENOTE_SERVER", server)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        std::io::BufReader::new(stdout)
            .read_line(&mut line)
            .expect("a line");
        let pid = i32::try_from(child.id()).expect("a pid fits");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGINT)
            .expect("it runs");
        child.wait_with_output().expect("it ends")
    })
    .await
    .expect("the program was run");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(
        stderr,
        format!("go on with: pacenote watch {JOB_ID} --after 1\n")
    );
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(fake.asked(|asked| asked.cancel.len()), 0);
}

#[test]
fn an_empty_idempotency_key_is_wrong_usage_and_nothing_is_sent() {
    Command::new(env!("CARGO_BIN_EXE_pacenote"))
        .args(["submit", "sleep", "--idempotency-key", ""])
        .args(["--server", "127.0.0.1:1"])
        .assert()
        .code(2);
}

#[test]
fn an_empty_variable_names_no_server() {
    for command in ["list", "health"] {
        let help = Command::new(env!("CARGO_BIN_EXE_pacenote"))
            .args([command, "--help"])
            .env("PACENOTE_SERVER", "")
            .assert()
            .success();
        // The help is wrapped.
        let words: Vec<_> = stdout(&help)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let words = words.join(" ");
        assert!(words.contains("[default: 127.0.0.1:7430]"), "{words}");
    }
}
