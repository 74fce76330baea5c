//! Output and progress, as they are written.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn output_arrives_while_the_program_runs_without_waiting_for_a_line() {
    let mut trial = Trial::sh("printf 'no line feed'; read go < go; echo; echo done >&2");
    nix::unistd::mkfifo(&trial.path().join("go"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    let running = trial.start();
    trial.until_output("no line feed").await;
    let go = trial.path().join("go");
    tokio::task::spawn_blocking(move || std::fs::write(go, "\n"))
        .await
        .expect("does not panic")
        .expect("written");
    deadline(running).await.expect("does not panic");
    let reports = trial.harness.reports().await;
    assert_eq!(output(&reports, "stdout"), b"no line feed\n");
    assert_eq!(output(&reports, "stderr"), b"done\n");
}

/// Goal: much output, in one endless line, costs neither memory nor a byte. Method: a listener that
/// counts; what waits in between is bounded by the reporter.
#[tokio::test]
async fn a_hundred_megabytes_in_one_line_arrive_in_bounded_chunks() {
    const BYTES: usize = 100_000_000;
    let mut trial = Trial::sh("head -c 100000000 /dev/zero | tr '\\0' x");
    let (reporter, mut reports) = crate::executor::reporter::channel();
    trial.harness.attempt_mut().reporter = reporter;
    let memory = peak_memory_kib();
    let started = Instant::now();
    let running = trial.start();
    let mut bytes = 0;
    loop {
        let batch = deadline(reports.take(256)).await;
        if batch.is_empty() {
            break;
        }
        for report in batch {
            if let Report::Output { chunk, .. } = report {
                assert!(chunk.as_bytes().len() <= 64 * 1024);
                bytes += chunk.as_bytes().len();
            }
        }
    }
    let outcome = deadline(running).await.expect("does not panic");
    assert!(
        matches!(outcome, Outcome::Succeeded(Some(_))),
        "the result is the end of it"
    );
    assert_eq!(bytes, BYTES);
    let grown = peak_memory_kib().saturating_sub(memory);
    eprintln!(
        "100 MB in {:?}, peak memory grew by {grown} KiB",
        started.elapsed()
    );
    // Other tests run beside it: far below the 100 MB is what can be said here.
    assert!(grown < 48 * 1024, "{grown} KiB");
}

/// The most memory this process ever had.
fn peak_memory_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn bytes_that_are_no_text_arrive_as_they_are() {
    let mut trial = Trial::sh(r"printf '\377\000a\303'; printf '\251' >&2");
    let outcome = trial.run().await;
    let bytes = b"\xff\0a\xc3".as_slice();
    assert_eq!(outcome, Outcome::Succeeded(Some(Payload::data(bytes))));
    let reports = trial.harness.reports().await;
    assert_eq!(output(&reports, "stdout"), bytes);
    assert_eq!(output(&reports, "stderr"), b"\xa9");
}

#[tokio::test]
async fn a_program_that_closes_its_output_goes_on() {
    let mut trial = Trial::sh(
        "echo a; exec >&- 2>&-; echo '{\"output\":{\"text\":\"b\"}}' >> \"$PACENOTE_EVENTS\"; exit 3",
    );
    assert_eq!(trial.fail().await.metadata["exit_code"], "3");
    let reports = trial.harness.reports().await;
    assert_eq!(output(&reports, "stdout"), b"a\n");
    assert_eq!(output(&reports, "output"), b"b");
}

#[tokio::test]
async fn a_shell_tells_its_events_and_its_children_do() {
    let script = r#"
        echo '{"progress":{"fraction":0.4,"message":"page 4 of 10"}}' >> "$PACENOTE_EVENTS"
        (echo '{"log":{"level":"info","message":"from a child"}}' >> "$PACENOTE_EVENTS")
        echo 'this is not JSON' >> "$PACENOTE_EVENTS"
        echo '{"checkpoint":{"page":4}}' >> "$PACENOTE_EVENTS"
        printf '{"output":{"stream":"rows","text":"last, without a line feed"}}' >> "$PACENOTE_EVENTS"
    "#;
    let mut trial = Trial::sh(script);
    trial.succeed().await;
    let reports = trial.harness.reports().await;
    assert_eq!(fractions(&reports), [0.4]);
    let lines = log_lines(&reports);
    assert_eq!(lines[0], "from a child");
    assert!(lines[1].contains("this is not JSON"), "{lines:?}");
    assert!(
        reports
            .iter()
            .any(|report| matches!(report, Report::Checkpoint(_)))
    );
    assert_eq!(output(&reports, "rows"), b"last, without a line feed");
}

#[tokio::test]
async fn ten_thousand_events_arrive_each_once_and_in_order() {
    let script = r#"seq -f '{"log":{"message":"%.0f"}}' 1 10000 >> "$PACENOTE_EVENTS""#;
    let mut trial = Trial::sh(script);
    trial.succeed().await;
    let reports = trial.harness.reports().await;
    let expected: Vec<String> = (1..=10_000).map(|n: u32| n.to_string()).collect();
    assert_eq!(log_lines(&reports), expected);
}

#[tokio::test]
async fn a_bar_that_is_redrawn_is_progress_and_what_the_program_tells_itself_wins() {
    let bar = r"printf '\r 10%%'; printf '\r 55%%\r'; printf '\r100%%\n' >&2";
    let mut trial = Trial::sh(bar);
    trial.succeed().await;
    assert_eq!(
        fractions(&trial.harness.reports().await).last(),
        Some(&0.55)
    );

    let mut trial = Trial::sh(bar);
    trial.config.progress = ProgressMode::Events;
    trial.succeed().await;
    assert!(fractions(&trial.harness.reports().await).is_empty());

    let script = format!(
        "echo '{{\"progress\":{{\"fraction\":0.2}}}}' >> \"$PACENOTE_EVENTS\"; read go < go; {bar}"
    );
    let mut trial = Trial::sh(&script);
    let go = trial.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let running = trial.start();
    trial
        .harness
        .until(|reports| fractions(reports) == [0.2])
        .await;
    tokio::task::spawn_blocking(move || std::fs::write(go, "\n"))
        .await
        .expect("does not panic")
        .expect("written");
    deadline(running).await.expect("does not panic");
    assert_eq!(fractions(&trial.harness.reports().await), [0.2]);

    let mut trial = Trial::sh(&script.replace("read go < go;", ""));
    trial.config.progress = ProgressMode::Off;
    trial.succeed().await;
    assert!(fractions(&trial.harness.reports().await).is_empty());
}

#[tokio::test]
async fn a_program_in_python_is_live_without_flushing() {
    if !has("python3") {
        return;
    }
    let mut trial = Trial::of(&[
        "python3",
        "-c",
        "print('hello')\nimport time\ntime.sleep(60)",
    ]);
    let running = trial.start();
    trial.until_output("hello").await;
    trial.harness.stop.cancel();
    let outcome = deadline(running).await.expect("does not panic");
    assert_eq!(outcome, Outcome::Cancelled);
}
