//! The demo is a test of everything at once: it checks itself and says so with its exit code.

use std::time::Duration;

use assert_cmd::Command;

#[test]

fn the_demo_holds_on_a_small_folder() {
    let assert = Command::new(env!("CARGO_BIN_EXE_pacenote"))
        .args(["demo", "proto"])
        .timeout(Duration::from_secs(60))
        .assert()
        .code(0);
    let stdout = String::from_utf8(assert.get_output().stdout.clone()).expect("UTF-8");
    assert_eq!(
        stdout
            .matches("the whole log: none missing, none double")
            .count(),
        2
    );
    assert!(stdout.contains("CANCELLED"));
    assert!(!stdout.contains('\x1b'), "no colours or bars in a log");
}
