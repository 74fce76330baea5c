//! What is hashed, and what is not.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::*;
use crate::executor::Executor;
use crate::executor::testing::{Harness, deadline};
use crate::job::event::JobError;
use crate::job::{Outcome, Report};

/// SHA-256 of nothing, of "abc" (FIPS 180-2, appendix B.1).
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// A root with a few files, beside a file that is none of its business.
fn tree() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("sub/empty")).expect("made");
    fs::write(dir.path().join("secret"), "secret").expect("written");
    fs::write(root.join("sub.txt"), "").expect("written");
    fs::write(root.join("sub/abc"), "abc").expect("written");
    fs::write(root.join("odd\nname\\"), "abc").expect("written");
    symlink(dir.path().join("secret"), root.join("link")).expect("linked");
    symlink(dir.path(), root.join("sub/up")).expect("linked");
    (dir, root)
}

async fn run(root: &Path, input: Option<Value>) -> (Outcome, Vec<Report>) {
    let input = input.map(|value| Payload::json(&value).expect("valid"));
    let mut harness = Harness::new(input);
    let executor = checksum(root).expect("a folder");
    let outcome = deadline(executor.run(harness.take_attempt())).await;
    (outcome, harness.reports().await)
}

fn lines(reports: &[Report]) -> Vec<String> {
    reports
        .iter()
        .filter_map(|report| match report {
            Report::Output { stream, chunk } => {
                assert_eq!(stream, "output");
                Some(String::from_utf8_lossy(chunk.as_bytes()).into_owned())
            }
            _ => None,
        })
        .collect()
}

fn result(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Succeeded(Some(result)) => result.to_json().expect("JSON"),
        other => panic!("expected a result, got {other:?}"),
    }
}

fn error(outcome: Outcome) -> JobError {
    match outcome {
        Outcome::Failed(error) => error,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[tokio::test]
async fn every_file_is_hashed_in_order_and_no_link_is_followed() {
    let (_dir, root) = tree();
    let (outcome, reports) = run(&root, None).await;
    let expected = [
        format!("\\{ABC}  odd\\nname\\\\\n"),
        format!("{EMPTY}  sub.txt\n"),
        format!("{ABC}  sub/abc\n"),
    ];
    assert_eq!(lines(&reports), expected);
    let all = hex(&Sha256::digest(expected.concat()));
    let summary = json!({"files": 3, "bytes": 6, "skipped": 0, "sha256": all});
    assert_eq!(result(&outcome), summary);
    let last = reports.iter().rev().find_map(|report| match report {
        Report::Progress(progress) => Some(progress),
        _ => None,
    });
    let last = last.expect("told");
    assert_eq!((last.completed_units, last.total_units), (Some(6), Some(6)));
    assert_eq!(last.unit, "bytes");
}

#[tokio::test]
async fn a_folder_a_file_and_an_absolute_path_below_the_root_can_be_asked_for() {
    let (_dir, root) = tree();
    let absolute = root.canonicalize().expect("is there").join("sub");
    for path in [
        "sub",
        "./sub/",
        "sub/abc",
        absolute.to_str().expect("UTF-8"),
    ] {
        let (_, reports) = run(&root, Some(json!({"path": path}))).await;
        assert_eq!(lines(&reports), [format!("{ABC}  abc\n")], "{path}");
    }
    let (outcome, _) = run(&root, Some(json!({"path": "sub/empty"}))).await;
    assert_eq!(
        result(&outcome),
        json!({"files": 0, "bytes": 0, "skipped": 0, "sha256": EMPTY})
    );
}

#[tokio::test]
async fn nothing_outside_of_the_root_can_be_asked_for() {
    let (dir, root) = tree();
    let secret = dir.path().join("secret");
    let executor = checksum(&root).expect("a folder");
    for path in [
        "..",
        "sub/../../secret",
        "/",
        "/etc/passwd",
        secret.to_str().expect("UTF-8"),
        "",
        "a\0",
    ] {
        let input = Payload::json(&json!({"path": path})).expect("valid");
        let problems = executor.check(Some(&input)).expect_err(path);
        assert_eq!(problems[0].0, "input.path");
        let (outcome, reports) = run(&root, Some(json!({"path": path}))).await;
        assert!(lines(&reports).is_empty());
        assert_eq!(error(outcome).reason, "INPUT_INVALID", "{path}");
    }
    // Only looking tells these: they are refused when it runs.
    for path in ["link", "sub/up", "sub/up/secret", "no-such-file"] {
        let (outcome, reports) = run(&root, Some(json!({"path": path}))).await;
        assert!(lines(&reports).is_empty());
        let error = error(outcome);
        assert_eq!(
            (error.reason.as_str(), error.retryable),
            ("INPUT_INVALID", false),
            "{path}"
        );
    }
    let unknown = Payload::json(&json!({"folder": "sub"})).expect("valid");
    assert!(executor.check(Some(&unknown)).is_err());
}

#[test]
fn a_folder_exchanged_for_a_link_while_it_is_walked_is_not_followed() {
    let (dir, root) = tree();
    let root = root.canonicalize().expect("is there");
    assert!(Hashing::open(&root, &root.join("sub/abc")).is_ok());
    for path in ["link", "sub/up/secret", "sub", "sub/gone"] {
        assert!(Hashing::open(&root, &root.join(path)).is_err(), "{path}");
    }
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    assert!(Hashing::open(&root, &root.join("fifo")).is_err());
    assert!(Hashing::open(&root, &dir.path().join("secret")).is_err());
}

#[tokio::test]
async fn what_has_vanished_is_said_and_counted() {
    let (_dir, root) = tree();
    let root: Arc<Path> = root.canonicalize().expect("is there").into();
    let mut harness = Harness::new(None);
    let start = root.to_path_buf();
    let executor = HandlerExecutor::new(move |context: Context, _: ()| {
        let (root, start) = (Arc::clone(&root), start.clone());
        async move {
            let work = Work::list(context, root, start.clone()).await?;
            fs::remove_file(start.join("sub/abc"))?;
            work.run().await
        }
    });
    let outcome = deadline(executor.run(harness.take_attempt())).await;
    let summary = result(&outcome);
    assert_eq!(
        (&summary["files"], &summary["skipped"], &summary["bytes"]),
        (&json!(2), &json!(1), &json!(3))
    );
    let reports = harness.reports().await;
    assert!(
        reports
            .iter()
            .any(|report| matches!(report, Report::Log(line)
        if line.level == LogLevel::Warn && line.message.contains("sub/abc")))
    );
}

#[tokio::test]
async fn a_large_file_is_read_in_pieces_and_can_be_cancelled_between_them() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // A file with a hole: large to read, nothing to store.
    let file = fs::File::create(dir.path().join("large")).expect("made");
    file.set_len(1 << 40).expect("set");
    let executor = checksum(dir.path()).expect("a folder");
    let mut harness = Harness::new(None);
    let running = tokio::spawn(executor.run(harness.take_attempt()));
    harness
        .until(|reports| {
            reports.iter().any(|report| {
                matches!(report, Report::Progress(p)
                if p.total_units == Some(1 << 40) && p.message == "large")
            })
        })
        .await;
    harness.stop.cancel();
    let started = Instant::now();
    assert_eq!(
        deadline(running).await.expect("does not panic"),
        Outcome::Cancelled
    );
    assert!(started.elapsed() < Duration::from_secs(2));
}
