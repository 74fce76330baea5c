//! How programs end, and what becomes of it.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;

use super::*;

#[tokio::test]
async fn exit_codes_and_signals_have_their_own_reasons() {
    for (script, reason, retryable, key, value) in [
        ("exit 1", "EXIT_CODE", true, "exit_code", "1"),
        ("exit 2", "EXIT_CODE", false, "exit_code", "2"),
        ("exit 64", "EXIT_CODE", false, "exit_code", "64"),
        ("exit 75", "EXIT_CODE", true, "exit_code", "75"),
        ("exit 78", "EXIT_CODE", false, "exit_code", "78"),
        ("exit 79", "EXIT_CODE", true, "exit_code", "79"),
        ("exit 255", "EXIT_CODE", true, "exit_code", "255"),
        (
            "no-such-program-here",
            "EXIT_CODE",
            false,
            "exit_code",
            "127",
        ),
        ("/", "EXIT_CODE", false, "exit_code", "126"),
        ("kill -SEGV $$", "SIGNAL", true, "signal_name", "SIGSEGV"),
        ("kill -KILL $$", "SIGNAL", true, "signal", "9"),
        ("kill -TERM $$", "SIGNAL", true, "signal_name", "SIGTERM"),
    ] {
        let error = Trial::sh(script).fail().await;
        assert_eq!(
            (error.reason.as_str(), error.retryable),
            (reason, retryable),
            "{script}"
        );
        assert_eq!(error.metadata[key], value, "{script}");
    }
}

#[tokio::test]
async fn an_error_carries_the_last_lines_of_stderr() {
    let error = Trial::sh("seq 1 10000 >&2; echo 'no paper' >&2; exit 3")
        .fail()
        .await;
    assert_eq!(error.message, "the program exited with code 3: no paper");
    assert!(
        error.detail.ends_with("\n10000\nno paper"),
        "{}",
        error.detail
    );
    assert!(error.detail.len() <= 16 * 1024);
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_not_tried_again() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let without_permission = dir.path().join("plain");
    std::fs::write(&without_permission, "#!/bin/sh\n").expect("written");
    let without_interpreter = dir.path().join("script");
    std::fs::write(&without_interpreter, "#!/no/such/interpreter\n").expect("written");
    std::fs::set_permissions(&without_interpreter, PermissionsExt::from_mode(0o755)).expect("set");
    for (program, errno, why) in [
        ("no-such-program-here", None, "in no folder of PATH"),
        ("./no-such-program-here", Some("ENOENT"), "No such file"),
        (
            without_permission.to_str().expect("UTF-8"),
            Some("EACCES"),
            "permission to execute",
        ),
        (
            without_interpreter.to_str().expect("UTF-8"),
            Some("ENOENT"),
            "interpreter",
        ),
        ("/", Some("EACCES"), "permission to execute"),
    ] {
        let mut trial = Trial::of(&[program]);
        let error = trial.fail().await;
        assert_eq!(
            (error.reason.as_str(), error.retryable),
            ("SPAWN_FAILED", false),
            "{program}"
        );
        assert_eq!(
            error.metadata.get("errno").map(String::as_str),
            errno,
            "{program}"
        );
        assert!(error.message.contains(why), "{}", error.message);
        let left = std::fs::read_dir(trial.attempts_dir())
            .expect("made")
            .count();
        assert_eq!(left, 0, "the attempt's folder is removed");
    }
    let mut trial = Trial::of(&["sh"]);
    trial.config.dir = "/no/such/folder".into();
    assert!(
        trial
            .fail()
            .await
            .message
            .contains("folder /no/such/folder does not exist")
    );
}

#[tokio::test]
async fn an_attempt_without_a_folder_of_its_own_may_be_tried_again() {
    let mut trial = Trial::sh("true");
    std::fs::write(trial.attempts_dir(), "a file where the folder should be").expect("written");
    let error = trial.fail().await;
    assert_eq!(
        (error.reason.as_str(), error.retryable),
        ("ATTEMPT_SETUP", true)
    );
}

#[tokio::test]
async fn every_kind_of_result_is_found() {
    let mut trial = Trial::sh("echo hello; echo noise >&2");
    assert_eq!(trial.succeed().await, "hello\n");
    let mut trial = Trial::sh("echo '{\"b\": 1, \"a\": 2}'").with_result(ResultMode::StdoutJson);
    assert_eq!(trial.succeed().await, r#"{"a":2,"b":1}"#);
    let script = r#"echo hello; for i in 1 2; do echo "{\"result\":{\"n\":$i}}" >> "$PACENOTE_EVENTS"; done"#;
    let mut trial = Trial::sh(script).with_result(ResultMode::Events);
    assert_eq!(trial.succeed().await, r#"{"n":2}"#);
    let mut trial = Trial::sh("echo hello").with_result(ResultMode::Events);
    assert_eq!(trial.run().await, Outcome::Succeeded(None));
}

#[tokio::test]
async fn a_result_that_cannot_be_one_fails_the_job_for_good() {
    for mode in [ResultMode::StdoutJson, ResultMode::Events] {
        let script = r#"echo hello; echo '{"result":9007199254740993}' >> "$PACENOTE_EVENTS""#;
        let error = Trial::sh(script).with_result(mode).fail().await;
        assert_eq!(
            (error.reason.as_str(), error.retryable),
            ("RESULT_INVALID", false)
        );
    }
}

#[tokio::test]
async fn text_beyond_the_bound_is_cut_and_said_and_the_job_has_succeeded() {
    let mut trial = Trial::sh("head -c 1048577 /dev/zero | tr '\\0' x");
    assert_eq!(trial.succeed().await.len(), 1024 * 1024 - 4);
    let reports = trial.harness.reports().await;
    assert!(log_lines(&reports)[0].contains("truncated"));
    assert_eq!(output(&reports, "stdout").len(), 1_048_577);
}

#[tokio::test]
async fn the_input_decides_the_arguments_and_is_checked_before_and_when_it_runs() {
    let argv = ["printf", "[%s]", "{input.name}", "--w={input.w}", "{{}}"];
    let input = Payload::json(&json!({"name": "a b; $(c)", "w": -2})).expect("valid");
    let mut trial = Trial::of(&argv).with_input(input);
    assert_eq!(trial.succeed().await, "[a b; $(c)][--w=-2][{}]");

    let mut trial = Trial::of(&argv);
    let executor = CommandExecutor::new(trial.config.clone(), trial.attempts_dir()).expect("valid");
    let wrong = Payload::json(&json!({"name": "-rf"})).expect("valid");
    let problems = executor.check(Some(&wrong)).expect_err("two problems");
    let fields: Vec<&str> = problems.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["input.name", "input.w"]);
    let error = trial.fail().await;
    assert_eq!(
        (error.reason.as_str(), error.retryable),
        ("INPUT_INVALID", false)
    );
}

#[test]
fn a_configuration_that_could_never_run_is_refused() {
    let at = |argv: &[&str], env: &[(&str, &str)]| {
        let dir = std::env::temp_dir();
        let config = CommandConfig {
            command: argv.iter().map(|argument| (*argument).to_owned()).collect(),
            dir: dir.clone(),
            env: env
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            allow_dash: false,
            result: ResultMode::default(),
            progress: ProgressMode::default(),
        };
        CommandExecutor::new(config, dir).map(drop)
    };
    assert_eq!(at(&["sh"], &[("A", "b")]), Ok(()));
    for (argv, env) in [
        (&[][..], &[][..]),
        (&[""], &[]),
        (&["{input.program}"], &[]),
        (&["sh", "{input"], &[]),
        (&["sh"], &[("A=B", "c")]),
        (&["sh"], &[("A", "b\0")]),
        (&["sh"], &[("PACENOTE_JOB_ID", "x")]),
    ] {
        assert!(at(argv, env).is_err(), "{argv:?} {env:?}");
    }
}

#[tokio::test]
async fn a_program_that_asks_to_go_on_later_is_asked_again_unless_it_has_failed() {
    let tell = |line: &str, code: u8| format!("echo '{line}' >> \"$PACENOTE_EVENTS\"; exit {code}");
    for code in [0, 75] {
        let outcome = Trial::sh(&tell(r#"{"snooze":"10s"}"#, code)).run().await;
        assert_eq!(outcome, Outcome::Snoozed(Duration::from_secs(10)), "{code}");
    }
    let error = Trial::sh(&tell(r#"{"snooze":"10s"}"#, 1)).fail().await;
    assert_eq!(
        (error.reason.as_str(), error.retry_after),
        ("EXIT_CODE", None)
    );
    let error = Trial::sh(&tell(r#"{"retry_after":"20s"}"#, 75))
        .fail()
        .await;
    assert_eq!(error.retry_after, Some(Duration::from_secs(20)));
    assert!(error.retryable);
    let done = Trial::sh(&tell(r#"{"retry_after":"20s"}"#, 0)).run().await;
    assert!(matches!(done, Outcome::Succeeded(_)), "{done:?}");
}
