//! Who wins: flag over environment over file over default, key by key.

use std::path::PathBuf;

use crate::config::key::{KEYS, Key};
use crate::config::print::to_toml;
use crate::config::settings::{Given, Origin, Settings};

/// A folder with a `pacenote.toml` of this text, and what names it.
fn with_file(text: &str) -> (tempfile::TempDir, Given) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pacenote.toml");
    std::fs::write(&path, text).expect("the file is written");
    let given = Given {
        file: Some(path),
        ..Given::default()
    };
    (folder, given)
}

/// What `config print` says a key is: the one form in which all keys can be compared.
fn shown(settings: &Settings, key: &Key) -> String {
    let text = to_toml(settings);
    let start = format!("{} = ", key.name);
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    let line = line.expect("every key is printed");
    line.split(" # ")
        .next()
        .unwrap_or(line)
        .trim()
        .trim_matches('"')
        .to_owned()
}

/// For each key a value for the file, the environment and the flag, no two alike, as they are shown.
/// `{}` stands for the folder of the file.
const VALUES: [(&str, [&str; 3]); 11] = [
    ("listen", ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]),
    ("insecure", ["true", "false", "true"]),
    (
        "store",
        ["sqlite:{}/1.db", "sqlite:{}/2.db", "sqlite:{}/3.db"],
    ),
    ("workers", ["101", "102", "103"]),
    ("checksum_root", ["{}/1", "{}/2", "{}/3"]),
    ("log_bytes_max", ["1 MiB", "2 MiB", "3 MiB"]),
    ("watchers_max", ["1", "2", "3"]),
    ("waiting_max", ["1", "2", "3"]),
    ("drain_timeout", ["1s", "2s", "3s"]),
    ("log", ["warn", "debug", "trace"]),
    ("log_format", ["text", "json", "text"]),
];

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default_for_every_key() {
    assert_eq!(KEYS.map(|key| key.name), VALUES.map(|(name, _)| name));
    for (key, (_, values)) in KEYS.iter().zip(VALUES) {
        let (folder, mut given) = with_file("");
        for n in ["1", "2", "3"] {
            std::fs::create_dir(folder.path().join(n)).expect("a folder in it");
        }
        let here = folder.path().display().to_string();
        let [in_file, in_environment, in_flag] = values.map(|value| value.replace("{}", &here));
        let expect = |given: &Given, value: &str, origin: Origin| {
            let settings = Settings::resolve(given).expect(key.name);
            assert_eq!(shown(&settings, key), value, "{}", key.name);
            assert_eq!(settings.origin(key.name), &origin, "{}", key.name);
        };
        let default = shown(&Settings::default(), key);
        expect(&given, &default, Origin::Default);

        let is_bare = matches!(
            key.name,
            "insecure" | "workers" | "watchers_max" | "waiting_max"
        );
        let quote = if is_bare { "" } else { "\"" };
        let path = folder.path().join("pacenote.toml");
        std::fs::write(&path, format!("\n{} = {quote}{in_file}{quote}\n", key.name))
            .expect("written");
        let name = path.display().to_string();
        expect(&given, &in_file, Origin::File(name, 2));

        given
            .environment
            .insert(key.variable(), in_environment.clone().into());
        expect(&given, &in_environment, Origin::Variable(key.variable()));

        given.flags.insert(key.name, in_flag.clone());
        expect(&given, &in_flag, Origin::Flag(key.flag()));
    }
}

#[test]
fn a_bad_value_is_refused_under_the_name_of_its_source() {
    for key in KEYS {
        let bad = if key.name == "checksum_root" {
            "/nowhere-at-all"
        } else {
            "="
        };
        let mut given = Given::default();
        given.environment.insert(key.variable(), bad.into());
        let error = Settings::resolve(&given).expect_err(key.name).to_string();
        assert!(
            error.contains(&format!("\n{}: ", key.variable())),
            "{error}"
        );

        given.flags.insert(key.name, bad.to_owned());
        let error = Settings::resolve(&given).expect_err(key.name).to_string();
        assert!(
            error.contains(&format!("\nflag {}: ", key.flag())),
            "{error}"
        );
    }
}

#[test]
fn a_bad_value_in_the_file_is_refused_even_where_a_flag_overrides_it() {
    let (_folder, mut given) = with_file("workers = 0\n");
    given.flags.insert("workers", "4".to_owned());
    let error = Settings::resolve(&given)
        .expect_err("zero workers")
        .to_string();
    assert!(
        error.contains("pacenote.toml:1:11: workers: is 0; 1 to 10000"),
        "{error}"
    );
}

#[test]
fn problems_of_all_sources_are_told_at_once() {
    let (_folder, mut given) = with_file("workers = 0\n[job_types.t]\nconcurrency = 1\n");
    given.flags.insert("listen", "nowhere".to_owned());
    given
        .environment
        .insert("PACENOTE_LOG_FORMAT".to_owned(), "xml".into());
    let error = Settings::resolve(&given)
        .expect_err("four problems")
        .to_string();
    assert!(error.contains("4 problems"), "{error}");
}

#[test]
fn relative_paths_start_at_the_file_or_else_at_the_current_folder() {
    let (folder, mut given) = with_file("store = \"sqlite:jobs.db\"\nchecksum_root = \".\"\n");
    let settings = Settings::resolve(&given).expect("it is right");
    assert_eq!(settings.config.store, folder.path().join("jobs.db"));
    assert_eq!(settings.config.checksum_root, folder.path().join("."));
    given.flags.insert("store", "sqlite:jobs.db".to_owned());
    let settings = Settings::resolve(&given).expect("it is right");
    assert_eq!(settings.config.store, PathBuf::from("jobs.db"));
}

#[test]
fn a_store_that_cannot_be_there_is_refused_where_it_was_named() {
    let (folder, given) = with_file("store = \"sqlite:missing/jobs.db\"\n");
    let error = Settings::resolve(&given)
        .expect_err("no folder")
        .to_string();
    assert!(
        error.contains("pacenote.toml:1:9: store: ") && error.contains("missing"),
        "{error}"
    );
    let mut given = Given::default();
    given
        .flags
        .insert("store", format!("sqlite:{}", folder.path().display()));
    let error = Settings::resolve(&given).expect_err("a folder").to_string();
    assert!(
        error.contains("flag --store: store: ") && error.contains("is a folder"),
        "{error}"
    );
}

#[test]
fn a_file_that_was_named_has_to_exist() {
    let missing = || PathBuf::from("/nowhere-at-all/p.toml");
    let given = Given {
        file: Some(missing()),
        ..Given::default()
    };
    let error = Settings::resolve(&given).expect_err("no file").to_string();
    assert!(
        error.contains("flag --config: there is no file /nowhere-at-all/p.toml"),
        "{error}"
    );
    let mut given = Given::default();
    given
        .environment
        .insert("PACENOTE_CONFIG".to_owned(), missing().into());
    let error = Settings::resolve(&given).expect_err("no file").to_string();
    assert!(
        error.contains("PACENOTE_CONFIG: there is no file"),
        "{error}"
    );
}

#[test]
fn the_flag_names_the_file_before_the_variable_does() {
    let (_folder, mut given) = with_file("workers = 77\n");
    given
        .environment
        .insert("PACENOTE_CONFIG".to_owned(), "/nowhere-at-all".into());
    let settings = Settings::resolve(&given).expect("the flag's file is there");
    assert_eq!(settings.config.workers, 77);
}

#[test]
fn an_empty_variable_counts_as_not_set_and_a_mistyped_one_is_pointed_out() {
    let mut given = Given::default();
    for (name, value) in [
        ("PACENOTE_WORKERS", ""),
        ("PACENOTE_WORKER", "9"),
        ("PACENOTE_SERVICE_HOST", "10.0.0.1"),
        ("PACENOTE_PORT_7430_TCP", "tcp://10.0.0.1"),
        ("PACENOTE_SERVER", "127.0.0.1:1"),
    ] {
        given.environment.insert(name.to_owned(), value.into());
    }
    let settings = Settings::resolve(&given).expect("nothing is wrong");
    assert_eq!(settings.config.workers, Settings::default().config.workers);
    let expected = ["PACENOTE_WORKER means nothing here; did you mean PACENOTE_WORKERS?"];
    assert_eq!(settings.warnings, expected);
}

#[test]
fn rust_log_counts_where_nobody_set_the_log_of_our_own() {
    let (_folder, mut given) = with_file("log = \"error\"\n");
    given
        .environment
        .insert("RUST_LOG".to_owned(), "debug".into());
    let settings = Settings::resolve(&given).expect("it is right");
    assert_eq!(
        (
            settings.log.as_str(),
            settings.origin("log").to_string().as_str()
        ),
        ("debug", "RUST_LOG")
    );
    given
        .environment
        .insert("PACENOTE_LOG".to_owned(), "trace".into());
    assert_eq!(Settings::resolve(&given).expect("it is right").log, "trace");
}

#[test]
fn what_is_printed_read_as_a_file_gives_the_same_settings() {
    let (folder, mut given) = with_file(
        "store = \"sqlite:odd \\\"name\\\".db\"\nlog_bytes_max = 65537\n[job_types.\"a.b/c\"]\n\
         command = [\"x\", \"line\\nbreak\", \"{input.a}\"]\nenv = { \"odd name\" = \"'\\\"\\\\\" }\n\
         run_timeout = \"1h 1ms\"\n[job_types.d]\ncommand = [\"y\"]\nresult = \"events\"\n\
         [queues.\"a.b\"]\nconcurrency = 3\nrate_limit = \"5/1m 30s\"\n[queues.c]\nkey_concurrency = 2\n\
         [tenants.acme]\nweight = 9\nretention = \"1d 1us\"\n[tenants.b]\n\
         dead_letter_retention = \"2d\"\n[job_types.e]\ncommand = [\"z\"]\nretention = \"3h\"\nevent_retention = \"2h 1us\"\n",
    );
    given.flags.insert("workers", "3".to_owned());
    let first = Settings::resolve(&given).expect("it is right");
    let printed = to_toml(&first);
    let origins = [
        "workers = 3",
        "# flag --workers",
        "pacenote.toml:2",
        "# default; --listen or PACENOTE_LISTEN",
        "# default: the tenant's, or 30d",
        "retention = \"1d 1us\"",
        "# default: 7d",
        "# default: as long as the job",
        "event_retention = \"2h 1us\"",
    ];
    assert!(
        origins.iter().all(|part| printed.contains(part)),
        "{printed}"
    );

    let again = folder.path().join("again.toml");
    std::fs::write(&again, &printed).expect("the file is written");
    let given = Given {
        file: Some(again),
        ..Given::default()
    };
    let mut second = Settings::resolve(&given).expect(&printed);
    // A printed default that was relative is now relative to the file.
    second.config.checksum_root = first.config.checksum_root.clone();
    assert_eq!(second.config, first.config);
    assert_eq!((second.listen, second.log), (first.listen, first.log));
}
