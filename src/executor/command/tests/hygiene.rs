//! What a program sees of this process: exactly what it should.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

#[tokio::test]
async fn the_environment_is_the_allow_list_the_types_own_and_the_attempts() {
    // Whoever runs this test has many a variable: only those named below may come through.
    assert!(std::env::vars_os().count() > 0);
    let mut trial = Trial::of(&["env"]);
    trial
        .config
        .env
        .insert("OWN".to_owned(), "value".to_owned());
    trial
        .config
        .env
        .insert("TZ".to_owned(), "Europe/Berlin".to_owned());
    let attempt = trial.harness.attempt_mut();
    attempt.number = 7;
    let id = attempt.key.id;
    let printed = trial.succeed().await;
    let variables: BTreeMap<&str, &str> = printed
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let mut expected: BTreeSet<&str> = [
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR",
    ]
    .into_iter()
    .filter(|name| std::env::var_os(name).is_some())
    .collect();
    expected.extend(["OWN", "TZ", "PYTHONUNBUFFERED", "PACENOTE_EVENTS"]);
    expected.extend(["PACENOTE_JOB_ID", "PACENOTE_JOB_TYPE", "PACENOTE_ATTEMPT"]);
    assert_eq!(variables.keys().copied().collect::<BTreeSet<_>>(), expected);
    assert_eq!(variables["OWN"], "value");
    assert_eq!(variables["TZ"], "Europe/Berlin");
    assert_eq!(variables["PYTHONUNBUFFERED"], "1");
    assert_eq!(variables["PACENOTE_JOB_ID"], id.to_string());
    assert_eq!(variables["PACENOTE_JOB_TYPE"], "test");
    assert_eq!(variables["PACENOTE_ATTEMPT"], "7");
    assert!(variables["PACENOTE_EVENTS"].ends_with(&format!("/{id}-7/events")));
}

/// Goal: nothing is inherited, not even what somebody opened without close-on-exec. Method: open such a
/// file, and let the program list what it has.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_descriptor_but_the_standard_three_is_inherited() {
    let file = std::fs::File::open("/dev/null").expect("opened");
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).expect("set");
    // `sh` lists with its own glob: no further descriptor but the one it reads the folder with.
    let mut trial = Trial::sh("for f in /proc/$$/fd/*; do echo ${f##*/}; done");
    let printed = trial.succeed().await;
    let descriptors: Vec<&str> = printed
        .lines()
        .filter(|fd| ["0", "1", "2"].contains(fd) || !is_glob_descriptor(fd))
        .collect();
    assert_eq!(descriptors, ["0", "1", "2"]);
    drop(file);
}

/// The lowest free descriptor is the one a shell's glob reads the folder with.
#[cfg(target_os = "linux")]
fn is_glob_descriptor(fd: &str) -> bool {
    fd == "3"
}

#[tokio::test]
async fn a_program_runs_in_its_folder_in_its_own_group_with_its_own_name() {
    let mut trial = Trial::of(&["./tool", "a b", "", "*"]);
    let script = "#!/bin/sh\npwd -P\nps -o pgid= -p $$ 2>/dev/null || cut -d' ' -f5 /proc/$$/stat\necho $$\nprintf '[%s]' \"$@\"\n";
    let tool = trial.path().join("tool");
    write_executable(&tool, script);
    let printed = trial.succeed().await;
    let lines: Vec<&str> = printed.lines().map(str::trim).collect();
    let folder = trial.path().canonicalize().expect("is there");
    assert_eq!(lines[0], folder.to_str().expect("UTF-8"));
    assert_eq!(lines[1], lines[2], "the program leads its group");
    assert_eq!(lines[3], "[a b][][*]");
}

#[tokio::test]
async fn a_program_is_looked_up_in_its_own_path() {
    let mut trial = Trial::of(&["tool"]);
    let folder = trial.path().join("bin");
    std::fs::create_dir(&folder).expect("made");
    write_executable(&folder.join("tool"), "#!/bin/sh\necho found\n");
    trial
        .config
        .env
        .insert("PATH".to_owned(), "/nowhere:bin:/usr/bin:/bin".to_owned());
    assert_eq!(trial.succeed().await, "found\n");
}

#[tokio::test]
async fn the_input_arrives_on_stdin_as_it_was_normalised_or_submitted() {
    let json = Payload::json(&json!({"b": 1, "a": "é"})).expect("valid");
    assert_eq!(
        Trial::of(&["cat"]).with_input(json).succeed().await,
        r#"{"a":"é","b":1}"#
    );
    let text = Payload::text(" hello\n");
    assert_eq!(
        Trial::of(&["cat"]).with_input(text).succeed().await,
        " hello\n"
    );
    let bytes = Payload::data(b"\xff\0".as_slice());
    let outcome = Trial::of(&["cat"]).with_input(bytes.clone()).run().await;
    assert_eq!(outcome, Outcome::Succeeded(Some(bytes)));
    assert_eq!(Trial::of(&["cat"]).succeed().await, "");
}

#[tokio::test]
async fn a_program_need_not_read_its_input() {
    let input = Payload::text("x".repeat(1024 * 1024 - 4));
    assert_eq!(
        Trial::sh("exec <&-; echo done")
            .with_input(input)
            .succeed()
            .await,
        "done\n"
    );
}

#[tokio::test]
async fn the_attempts_folder_is_private_and_gone_afterwards() {
    let mut trial = Trial::sh(
        r#"ls -ld "${PACENOTE_EVENTS%/*}" "$PACENOTE_EVENTS"; cat "$PACENOTE_CHECKPOINT""#,
    );
    trial.harness.attempt_mut().checkpoint = Some(Payload::text("page 4"));
    let printed = trial.succeed().await;
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].starts_with("drwx------"), "{printed}");
    assert!(lines[1].starts_with("prw-------"), "{printed}");
    assert_eq!(lines[2], "page 4");
    assert_eq!(
        std::fs::read_dir(trial.attempts_dir())
            .expect("made")
            .count(),
        0
    );
}

/// Through a shell, because a file that this process has open for writing, or that a child forked at
/// that moment has, cannot be executed.
fn write_executable(path: &Path, script: &str) {
    let written = std::process::Command::new("sh")
        .args([
            "-c",
            "printf '%s' \"$2\" > \"$1\" && chmod 755 \"$1\"",
            "sh",
        ])
        .arg(path)
        .arg(script)
        .status()
        .expect("sh runs");
    assert!(written.success());
}
