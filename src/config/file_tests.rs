//! What the file accepts and how it refuses, without flags and variables.

use std::path::Path;
use std::time::Duration;

use crate::config::file::ConfigFile;
use crate::config::problem::{ConfigError, SourceText};
use crate::config::{Caps, ProgressMode, ResultMode, TypeSettings};
use crate::job::name::Name;

const EXAMPLE: &str = include_str!("../../pacenote.example.toml");

fn parse_in(text: &str, folder: &Path) -> Result<ConfigFile, String> {
    let source = SourceText {
        name: "p.toml".to_owned(),
        text: text.to_owned(),
    };
    match ConfigFile::parse(source, folder.to_owned()) {
        Ok((file, problems)) if problems.is_empty() => Ok(file),
        Ok((_, problems)) => Err(ConfigError::new(problems).to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse(text: &str) -> Result<ConfigFile, String> {
    parse_in(text, Path::new("/"))
}

/// A type `t` that is right but for `lines`.
fn job_type(lines: &str) -> Result<ConfigFile, String> {
    parse(&format!("[job_types.t]\ncommand = [\"x\"]\n{lines}\n"))
}

fn refused(text: &str) -> String {
    parse(text).expect_err(text)
}

#[test]
fn a_job_type_is_read_with_every_key_it_has() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("work")).expect("a folder in it");
    let text = r#"
        [job_types."v1/thumb.nail"]
        command = ["python3", "t.py", "--width", "{input.size.width}", "{{}}"]
        dir = "work"
        env = { LANG = "C", "odd-name" = "" }
        allow_dash = true
        queue = "images"
        concurrency = 4
        run_timeout = "10m"
        cancel_grace = "0s"
        max_attempts = 100
        initial_backoff = "2s"
        max_backoff = "365d"
        queue_timeout = "1h"
        total_timeout = "2h"
        heartbeat_timeout = "3m"
        stall_time = "2m"
        backoff_multiplier = 1.5
        non_retryable_reasons = ["EXIT_CODE", "SIGNAL"]
        retention = "1d"
        dead_letter_retention = "2d"
        event_retention = "1h"
        result = "stdout-json"
        progress = "events"
        progress_interval = "1s"
    "#;
    let file = parse_in(text, folder.path()).expect("it is right");
    let read = &file.job_types[&Name::of("v1/thumb.nail")];
    assert_eq!(read.command.as_ref().expect("a command").command.len(), 5);
    assert_eq!(
        read.command.as_ref().expect("a command").dir,
        folder.path().join("work")
    );
    assert_eq!(read.command.as_ref().expect("a command").env["LANG"], "C");
    assert!(read.command.as_ref().expect("a command").allow_dash);
    assert_eq!(
        read.command.as_ref().expect("a command").result,
        ResultMode::StdoutJson
    );
    assert_eq!(
        read.command.as_ref().expect("a command").progress,
        ProgressMode::Events
    );
    let settings = &read.settings;
    assert_eq!(settings.queue, Name::of("images"));
    assert_eq!(settings.concurrency, Some(4));
    assert_eq!(
        settings.timeouts.run_timeout,
        Some(Duration::from_secs(600))
    );
    assert_eq!(settings.timeouts.cancel_grace, Duration::ZERO);
    assert_eq!(settings.retry_policy.max_attempts, 100);
    assert_eq!(
        settings.retry_policy.initial_backoff,
        Duration::from_secs(2)
    );
    assert_eq!(
        settings.retry_policy.max_backoff,
        Duration::from_secs(365 * 86_400)
    );
    assert_eq!(settings.progress_interval, Duration::from_secs(1));
    let (hour, day) = (Duration::from_secs(3_600), Duration::from_secs(86_400));
    let (timeouts, policy) = (&settings.timeouts, &settings.retry_policy);
    assert_eq!(timeouts.queue_timeout, Some(hour));
    assert_eq!(timeouts.total_timeout, Some(2 * hour));
    assert_eq!(timeouts.heartbeat_timeout, Some(hour / 20));
    assert_eq!(timeouts.stall_time, hour / 30);
    assert!((policy.backoff_multiplier - 1.5).abs() < f64::EPSILON);
    assert_eq!(policy.non_retryable_reasons, ["EXIT_CODE", "SIGNAL"]);
    let retention = settings.retention;
    assert_eq!(
        (retention.finished, retention.failed),
        (Some(day), Some(2 * day))
    );
    assert_eq!(settings.event_retention, Some(hour));
    let caps = Caps {
        max_attempts: Some(100),
        initial_backoff: Some(Duration::from_secs(2)),
        max_backoff: Some(365 * day),
        backoff_multiplier: Some(1.5),
        queue_timeout: Some(hour),
        run_timeout: Some(hour / 6),
        total_timeout: Some(2 * hour),
        heartbeat_timeout: Some(hour / 20),
        stall_time: Some(hour / 30),
        cancel_grace: Some(Duration::ZERO),
        retention: Some(day),
    };
    assert_eq!(settings.caps, caps, "what it sets is the most");
}

#[test]
fn a_job_type_with_nothing_but_a_command_has_the_defaults() {
    let file = job_type("").expect("it is right");
    let read = &file.job_types[&Name::of("t")];
    assert_eq!(read.settings, TypeSettings::default());
    assert_eq!(
        read.command.as_ref().expect("a command").dir,
        Path::new("/")
    );
    assert_eq!(
        read.command.as_ref().expect("a command").result,
        ResultMode::StdoutText
    );
    assert_eq!(
        read.command.as_ref().expect("a command").progress,
        ProgressMode::Auto
    );
}

#[test]
fn an_unknown_key_is_refused_where_it_stands_with_the_nearest_one() {
    for (text, place, help) in [
        (
            "\nworker = 4\n",
            "p.toml:2:1: worker: unknown key",
            "did you mean `workers`?",
        ),
        (
            "log-format = \"json\"",
            "p.toml:1:1: log-format",
            "did you mean `log_format`?",
        ),
        ("colour = 1", "p.toml:1:1: colour", "known here: listen"),
        (
            "run_timeout = \"1s\"",
            "p.toml:1:1",
            "belongs to a job type",
        ),
        (
            "[job_types.t]\ncommand = [\"x\"]\nworkers = 1",
            "p.toml:3:1: job_types.t.workers",
            "setting of the server",
        ),
        (
            "[job_types.t]\ncommand = [\"x\"]\ntimeout = \"1s\"",
            "job_types.t.timeout: unknown key",
            "did you mean `run_timeout`?",
        ),
        (
            "[job_types.a.b]\ncommand = [\"x\"]",
            "job_types.a.b: unknown key",
            "is quoted",
        ),
        (
            "[job_type.a]\ncommand = [\"x\"]",
            "job_type: unknown key",
            "`job_types`",
        ),
    ] {
        let error = refused(text);
        assert!(
            error.contains(place) && error.contains(help),
            "{text}\n{error}"
        );
    }
}

#[test]
fn a_wrong_type_names_what_was_found_and_how_it_is_meant() {
    for (text, why, help) in [
        (
            "workers = \"4\"",
            "workers: expected a whole number, found the string \"4\"",
            "quotes: 4",
        ),
        (
            "drain_timeout = 30",
            "found the integer 30",
            "write \"30s\"",
        ),
        (
            "insecure = \"true\"",
            "expected true or false",
            "leave out the quotes",
        ),
        (
            "listen = 7430",
            "expected a string, found the integer 7430",
            "double quotes",
        ),
        ("log_bytes_max = 1.5", "found the number 1.5", "1 |"),
        ("store = []", "found an array", "1 |"),
        (
            "job_types = 1",
            "job_types: expected a table",
            "[job_types.NAME]",
        ),
        ("job_types.x = 1", "job_types.x: expected a table", "1 |"),
    ] {
        let error = refused(text);
        assert!(
            error.contains(why) && error.contains(help) && error.contains('^'),
            "{error}"
        );
    }
}

#[test]
fn what_is_no_toml_is_refused_with_line_and_column() {
    for (text, place) in [
        ("workers = ", "p.toml:1:"),
        ("a = 1\nworkers == 2", "p.toml:2:"),
        ("[job_types.x\n", "p.toml:1:"),
        ("workers = 1\nworkers = 2\n", "p.toml:2:1"),
        ("store = \"unfinished", "p.toml:1:"),
        ("listen = 127.0.0.1:80", "put it in double quotes"),
    ] {
        let error = refused(text);
        assert!(
            error.contains(place) && error.contains('^'),
            "{text}\n{error}"
        );
    }
}

#[test]
fn a_command_is_an_array_of_well_formed_arguments() {
    for (command, why) in [
        ("\"python3 x.py\"", "there is no shell"),
        ("[]", "names no program"),
        ("[\"\"]", "names no program"),
        ("[\"x\", 4]", "expected only strings, found the integer 4"),
        ("[\"x\", \"{print $1}\"]", "is no placeholder"),
        ("[\"x\", \"}\"]", "brace"),
        ("[\"{input.program}\"]", "not for the input to choose"),
        ("[\"x\", \"a\\u0000\"]", "NUL"),
    ] {
        let error = refused(&format!("[job_types.t]\ncommand = {command}\n"));
        assert!(
            error.contains("job_types.t.command") && error.contains(why),
            "{error}"
        );
    }
    let most = format!("[job_types.t]\ncommand = [{}]", "\"x\",".repeat(100));
    assert!(parse(&most).is_ok());
    let error = refused(&most.replace("[\"x\",", "[\"x\",\"x\","));
    assert!(error.contains("has 101 arguments; at most 100"), "{error}");
    let longest = format!(
        "[job_types.t]\ncommand = [\"x\", \"{}\"]",
        "a".repeat(16_384)
    );
    assert!(parse(&longest).is_ok());
    assert!(refused(&longest.replace("\"a", "\"aa")).contains("is 16385 bytes; at most 16384"));
}

#[test]
fn a_type_without_a_command_is_for_workers() {
    let file = parse("[job_types.render]\nqueue = \"gpu\"\nrun_timeout = \"1m\"\n");
    let render = &file.expect("it is right").job_types[&Name::of("render")];
    assert_eq!(render.command, None);
    assert_eq!(render.settings.queue, Name::of("gpu"));
    for setting in [
        "dir = \".\"",
        "env = { A = \"b\" }",
        "allow_dash = true",
        "concurrency = 2",
        "result = \"none\"",
        "progress = \"off\"",
    ] {
        let error = refused(&format!("[job_types.render]\n{setting}\n"));
        let (key, _) = setting.split_once(" =").expect("a key");
        assert!(
            error.contains(&format!("job_types.render.{key}: is about a `command`")),
            "{error}"
        );
    }
}

#[test]
fn a_built_in_name_is_refused_by_name() {
    for name in ["sleep", "checksum"] {
        let error = refused(&format!("[job_types.{name}]\ncommand = [\"x\"]\n"));
        assert!(
            error.contains(&format!("job_types.{name}: is built in")),
            "{error}"
        );
    }
    let error = refused("[job_types.\"a b\"]\ncommand = [\"x\"]\n");
    assert!(
        error.contains("job_types.\"a b\": the name has the character ' '"),
        "{error}"
    );
}

#[test]
fn the_bounds_of_a_job_type_hold_at_the_limit_and_one_past_it() {
    for (key, least, most, below, above) in [
        ("max_attempts", "1", "100", "0", "101"),
        ("concurrency", "1", "10000", "0", "10001"),
        (
            "cancel_grace",
            "\"0s\"",
            "\"365d\"",
            "\"-1s\"",
            "\"365d 1us\"",
        ),
        ("run_timeout", "\"1ms\"", "\"365d\"", "\"0s\"", "\"1y\""),
        (
            "queue_timeout",
            "\"1ms\"",
            "\"365d\"",
            "\"999us\"",
            "\"1y\"",
        ),
        (
            "total_timeout",
            "\"1ms\"",
            "\"365d\"",
            "\"999us\"",
            "\"1y\"",
        ),
        (
            "heartbeat_timeout",
            "\"1ms\"",
            "\"365d\"",
            "\"999us\"",
            "\"1y\"",
        ),
        ("stall_time", "\"1ms\"", "\"365d\"", "\"999us\"", "\"1y\""),
        ("backoff_multiplier", "1", "10.0", "0.999", "10.001"),
        ("backoff_multiplier", "1.0", "1e1", "nan", "\"2\""),
        ("retention", "\"0s\"", "\"365d\"", "\"-1s\"", "\"366d\""),
        (
            "dead_letter_retention",
            "\"0s\"",
            "\"365d\"",
            "\"-1s\"",
            "\"366d\"",
        ),
        (
            "event_retention",
            "\"0s\"",
            "\"365d\"",
            "3600",
            "\"365d 1us\"",
        ),
        ("max_backoff", "\"1s\"", "\"365d\"", "\"999ms\"", "\"366d\""),
        ("initial_backoff", "\"0s\"", "\"10m\"", "\"x\"", "\"601s\""),
        (
            "progress_interval",
            "\"0s\"",
            "\"365d\"",
            "\"\"",
            "\"366d\"",
        ),
    ] {
        for good in [least, most] {
            let read = job_type(&format!("{key} = {good}"));
            assert!(read.is_ok(), "{key} = {good}: {read:?}");
        }
        for bad in [below, above] {
            let error = job_type(&format!("{key} = {bad}")).expect_err(bad);
            assert!(
                error.contains(&format!("p.toml:3:{}", key.len() + 4)),
                "{error}"
            );
            assert!(error.contains(&format!("job_types.t.{key}: ")), "{error}");
        }
    }
    let reasons = |reason: &str, count| {
        job_type(&format!(
            "non_retryable_reasons = {:?}",
            vec![reason; count]
        ))
    };
    assert!(reasons(&"R".repeat(64), 100).is_ok());
    for (reason, count, why) in [
        ("R".repeat(65), 1, "is 65 bytes; 1 to 64"),
        ("r".to_owned(), 1, "A-Z 0-9 _"),
        ("R".to_owned(), 101, "has 101 entries; at most 100"),
    ] {
        let error = reasons(&reason, count).expect_err(&reason);
        assert!(
            error.contains("job_types.t.non_retryable_reasons: ") && error.contains(why),
            "{error}"
        );
    }
    let name = "q".repeat(128);
    assert!(job_type(&format!("queue = \"{name}\"")).is_ok());
    let error = job_type(&format!("queue = \"{name}q\"")).expect_err("one more");
    assert!(
        error.contains("job_types.t.queue: is 129 bytes; at most 128"),
        "{error}"
    );
}

#[test]
fn words_folders_and_variables_of_a_job_type_are_checked() {
    for (lines, why) in [
        (
            "result = \"json\"",
            "expected one of stdout-text, stdout-json, events; did you mean \"stdout-json\"?",
        ),
        ("progress = \"on\"", "expected one of auto, events, off"),
        (
            "dir = \"nowhere-at-all\"",
            "job_types.t.dir: /nowhere-at-all: No such file",
        ),
        ("dir = \"/dev/null\"", "is no folder"),
        ("dir = \"\"", "names no path"),
        (
            "env = { A = 1 }",
            "A: expected a string, found the integer 1",
        ),
        (
            "env = { \"A=B\" = \"\" }",
            "\"A=B\" is no name for a variable",
        ),
        ("env = { PACENOTE_JOB_ID = \"\" }", "set by the server"),
        ("env = [\"A=B\"]", "expected a table, found an array"),
    ] {
        let error = job_type(lines).expect_err(lines);
        assert!(error.contains(why), "{lines}\n{error}");
    }
    let variables =
        |count: usize| -> String { (0..count).map(|n| format!("V{n} = \"\"\n")).collect() };
    assert!(job_type(&format!("[job_types.t.env]\n{}", variables(100))).is_ok());
    let error = job_type(&format!("[job_types.t.env]\n{}", variables(101))).expect_err("one more");
    assert!(error.contains("has 101 variables; at most 100"), "{error}");
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let error = refused(
        "wokers = 4\nlisten = 1\n[job_types.a]\nqueue = \"a b\"\nmax_attempts = 0\n[job_types.sleep]\ncommand = 1\n",
    );
    assert!(error.contains("refused: 6 problems"), "{error}");
    let lines: Vec<&str> = error
        .lines()
        .filter(|line| line.starts_with("p.toml:"))
        .collect();
    let places: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split(": ").next())
        .collect();
    let expected = [
        "p.toml:1:1",
        "p.toml:2:10",
        "p.toml:4:9",
        "p.toml:5:16",
        "p.toml:6:12",
        "p.toml:7:11",
    ];
    assert_eq!(places, expected, "{error}");
}

#[test]
fn a_file_that_is_too_large_or_no_text_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.toml");
    for (bytes, why) in [
        (vec![b'#'; 1024 * 1024 + 1], "larger than 1048576 bytes"),
        (vec![b'#', 0xff], "is not UTF-8 text (byte 1)"),
    ] {
        std::fs::write(&path, bytes).expect("the file is written");
        let error = ConfigFile::read(&path).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
    std::fs::write(&path, vec![b'#'; 1024 * 1024]).expect("the file is written");
    assert!(ConfigFile::read(&path).is_ok());
    let error = ConfigFile::read(folder.path())
        .expect_err("a folder")
        .to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn no_text_makes_the_reader_panic() {
    use proptest::prelude::*;
    let pieces = prop::sample::select(vec![
        "[job_types.",
        "x",
        "]",
        "\n",
        " = ",
        "\"",
        "{",
        "}",
        "[",
        "command",
        "env",
        "workers",
        "1",
        "é",
        "\t",
        ".",
        ",",
        "[job_types.t]\ncommand = [\"x\"]\n",
        "\u{0}",
        "dir = \"/\"\n",
        "'",
        "#",
        "0x",
        "true",
    ]);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let texts = prop::collection::vec(pieces, 0..24);
    runner
        .run(&texts, |pieces| {
            let _ = parse(&pieces.concat());
            Ok(())
        })
        .expect("no text makes it panic");
}

#[test]
fn the_example_is_right_and_lists_every_key_of_the_parser() {
    use crate::config::job_type::JOB_TYPE_KEYS;
    use crate::config::key::KEYS;
    use crate::config::queue::{QUEUE_KEYS, TENANT_KEYS};
    let file = parse(EXAMPLE).expect("the example is right");
    assert_eq!(file.job_types.len(), 4);
    let lists = |key: &str| {
        let entry = format!("{key} = ");
        EXAMPLE
            .lines()
            .any(|line| line.trim_start_matches('#').starts_with(&entry))
    };
    for key in KEYS {
        assert!(lists(key.name), "{key:?}");
        assert!(
            EXAMPLE.contains(&key.flag()) && EXAMPLE.contains(&key.variable()),
            "{key:?}"
        );
    }
    for key in JOB_TYPE_KEYS.iter().chain(&QUEUE_KEYS).chain(&TENANT_KEYS) {
        assert!(lists(key), "{key}");
    }
    let thumbnail = &file.job_types[&Name::of("thumbnail")];
    assert_eq!(
        thumbnail.settings,
        TypeSettings::default(),
        "the example shows the defaults"
    );
}

#[test]
fn the_example_with_every_comment_taken_off_shows_the_defaults() {
    use crate::config::settings::{Given, Settings};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("p.toml");
    let is_entry =
        |line: &str| line.starts_with('#') && line.contains(" = ") && !line.starts_with("# ");
    let text: String = EXAMPLE
        .lines()
        .map(|line| if is_entry(line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    std::fs::write(&path, text).expect("the file is written");
    let given = Given {
        file: Some(path),
        ..Given::default()
    };
    let read = Settings::resolve(&given).expect("it is right");
    let default = Settings::default();
    assert_eq!(
        (&read.listen, read.insecure),
        (&default.listen, default.insecure)
    );
    assert_eq!(
        (&read.log, read.log_format),
        (&default.log, default.log_format)
    );
    assert_eq!(read.config.log_bytes_max, default.config.log_bytes_max);
    assert_eq!(read.config.watchers_max, default.config.watchers_max);
    assert_eq!(read.config.drain_timeout, default.config.drain_timeout);
    assert_eq!(read.config.store, folder.path().join("pacenote.db"));
}
