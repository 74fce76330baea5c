//! The real binary: exit codes and messages of `serve`, `config` and `health`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tonic_health::ServingStatus;

/// Long enough for a busy machine, short enough to notice what hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// The binary in `folder`, with nothing in its environment that could change what it does.
fn pacenote(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("pacenote"));
    command.args(args).current_dir(folder).env_clear();
    command
}

/// Runs it to its end in a folder with this `pacenote.toml`.
fn with_file(text: &str, args: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("pacenote.toml"), text).expect("the file is written");
    pacenote(folder.path(), args).output().expect("it runs")
}

fn without_file(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    pacenote(folder.path(), args).output().expect("it runs")
}

#[track_caller]
fn expect(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// A running `serve` whose stderr is read line by line.
struct Serving {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Serving {
    fn start(folder: &Path, args: &[&str]) -> Self {
        let mut command = pacenote(folder, &[&["serve"], args].concat());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // Nobody is listening: the test is over.
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// The rest of the first line that begins with `start`.
    fn line(&self, start: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).expect(start);
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid fits");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it is alive");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Already gone: fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_file_that_is_right_is_summed_up_in_one_line() {
    let file = "workers = 3\n[job_types.a]\ncommand = [\"true\"]\n";
    let output = with_file(file, &["config", "check"]);
    expect(&output, 0, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        text,
        "ok: pacenote.toml; listen 127.0.0.1:7430, store pacenote.db, 3 workers, 1 configured job type\n"
    );
    assert!(output.stderr.is_empty());
}

#[test]
fn an_unknown_key_is_refused_with_line_caret_and_the_nearest_key() {
    for args in [&["config", "check"][..], &["serve"], &["config", "print"]] {
        let output = with_file("workers = 1\nlisen = \"x\"\n", args);
        let parts = [
            "error: ",
            "pacenote.toml:2:1: lisen: unknown key",
            " 2 | lisen",
            "^^^^^",
            "did you mean `listen`?",
        ];
        expect(&output, 78, &parts);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_type_is_refused_with_line_and_caret() {
    let output = with_file("\n\nworkers = \"four\"\n", &["config", "check"]);
    let parts = [
        "pacenote.toml:3:11: workers: expected a whole number",
        " 3 | workers = \"four\"",
        "           ^^^^^^",
    ];
    expect(&output, 78, &parts);
}

#[test]
fn a_bad_name_and_a_duration_one_past_its_limit_are_refused_together() {
    let file = "drain_timeout = \"365d 1s\"\n[job_types.\"a b\"]\ncommand = [\"x\"]\n";
    let output = with_file(file, &["config", "check"]);
    let parts = [
        "2 problems",
        "pacenote.toml:1:17: drain_timeout: ",
        "at most \"365d\"",
        "pacenote.toml:2:12: ",
        "' '",
    ];
    expect(&output, 78, &parts);
    let output = with_file("drain_timeout = \"365d\"\n", &["config", "check"]);
    expect(&output, 0, &[]);
}

#[test]
fn a_missing_file_is_an_error_only_where_it_was_named() {
    expect(&without_file(&["config", "check"]), 0, &[]);
    let output = without_file(&["serve", "--config", "missing.toml"]);
    expect(
        &output,
        78,
        &["flag --config: there is no file missing.toml"],
    );
}

#[test]
fn an_address_beyond_this_machine_is_refused_without_insecure() {
    for command in [&["serve"][..], &["config", "check"]] {
        let output = without_file(&[command, &["--listen", "0.0.0.0:0"]].concat());
        expect(
            &output,
            78,
            &[
                "flag --listen: ",
                "beyond this machine",
                "TLS",
                "--insecure",
            ],
        );
    }
    let insecure = without_file(&["config", "check", "--listen", "0.0.0.0:0", "--insecure"]);
    expect(&insecure, 0, &[]);
    let withdrawn = with_file(
        "listen = \"0.0.0.0:0\"\ninsecure = true\n",
        &["config", "check", "--insecure=false"],
    );
    expect(&withdrawn, 78, &["pacenote.toml:1: listen: "]);
}

#[test]
fn an_address_in_use_is_refused_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let output = without_file(&["serve", "--listen", &address]);
    expect(
        &output,
        78,
        &[
            "cannot listen on",
            "another program",
            "--listen 127.0.0.1:0",
        ],
    );
}

#[test]
fn wrong_usage_ends_with_2_and_no_arguments_with_help() {
    expect(
        &without_file(&["serve", "--wrokers", "1"]),
        2,
        &["--workers"],
    );
    expect(
        &without_file(&[]),
        2,
        &["Examples:", "pacenote serve", "Usage:"],
    );
    let version = without_file(&["--version"]);
    expect(&version, 0, &[]);
    let expected = concat!("pacenote ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
}

#[test]
fn print_says_where_each_value_comes_from_and_can_leave_all_sources_out() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("pacenote.toml"), "\nworkers = 3\n").expect("written");
    let run = |args: &[&str]| {
        let mut command = pacenote(folder.path(), &[&["config", "print"], args].concat());
        let output = command
            .env("PACENOTE_DRAIN_TIMEOUT", "9s")
            .output()
            .expect("it runs");
        expect(&output, 0, &[]);
        String::from_utf8(output.stdout).expect("it is text")
    };
    let text = run(&["--watchers-max", "5"]);
    for (start, end) in [
        ("workers = 3 ", "# pacenote.toml:2"),
        ("drain_timeout = \"9s\" ", "# PACENOTE_DRAIN_TIMEOUT"),
        ("watchers_max = 5 ", "# flag --watchers-max"),
        (
            "listen = \"127.0.0.1:7430\" ",
            "# default; --listen or PACENOTE_LISTEN",
        ),
    ] {
        let is_there = text
            .lines()
            .any(|line| line.starts_with(start) && line.ends_with(end));
        assert!(is_there, "{start}{end}\n{text}");
    }
    let defaults = run(&["--defaults"]);
    assert!(
        defaults.contains("drain_timeout = \"30s\"") && !defaults.contains("toml:"),
        "{defaults}"
    );
}

#[test]
fn serve_says_where_it_listens_once_it_serves_and_ends_with_0_after_a_drain() {
    use nix::sys::signal::Signal;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut serving = Serving::start(folder.path(), &["--listen", "127.0.0.1:0"]);
        let address = serving.line("listening on ");
        assert!(
            address.starts_with("127.0.0.1:") && !address.ends_with(":0"),
            "{address}"
        );
        std::net::TcpStream::connect(&address).expect("it listens there");
        serving.signal(signal);
        assert_eq!(
            serving.child.wait().expect("it ends").code(),
            Some(0),
            "{signal}"
        );
    }
}

#[test]
fn records_are_json_where_stderr_is_no_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let args = ["--listen", "0.0.0.0:0", "--insecure"];
    let serving = Serving::start(folder.path(), &args);
    let record = format!("{{{}", serving.line("{"));
    let record: serde_json::Value = serde_json::from_str(&record).expect(&record);
    assert_eq!(record["level"], "WARN");
    assert!(
        record["message"]
            .as_str()
            .is_some_and(|text| text.contains("without keys")),
        "{record}"
    );
    drop(serving);
    let serving = Serving::start(
        folder.path(),
        &[&args[..], &["--log-format", "text"]].concat(),
    );
    let line = serving.lines.recv_timeout(DEADLINE).expect("a line");
    assert!(
        line.contains(" WARN ") && !line.contains('\u{1b}'),
        "{line}"
    );
}

#[test]
fn a_reader_of_stdout_that_has_gone_away_is_no_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = pacenote(folder.path(), &["config", "print"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().expect("stderr is piped");
    pipe.read_to_string(&mut stderr).expect("it is text");
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
}

/// Goal: the three exit codes that probes rely on. Method: a health service of our own beside the
/// binary, which is asked while it serves, after it stopped serving, and where nobody listens.
#[tokio::test(flavor = "multi_thread")]
async fn health_ends_with_0_serving_1_not_serving_4_not_reached() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (reporter, service) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    let ask = async |server: &str, service: &str| {
        let args = [server, service].map(str::to_owned);
        let asked = tokio::task::spawn_blocking(move || {
            without_file(&["health", "--server", &args[0], "--service", &args[1]])
        });
        asked.await.expect("it runs")
    };
    let output = ask(&address, "").await;
    expect(&output, 0, &[]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "SERVING\n");
    expect(&ask(&format!("http://{address}"), "").await, 0, &[]);
    expect(
        &ask(&address, "unknown.Service").await,
        1,
        &["does not serve"],
    );
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
    expect(&ask(&address, "").await, 1, &["does not serve"]);
    serving.abort();
    // Awaited so that the port is closed.
    assert!(serving.await.is_err());
    expect(
        &ask(&address, "").await,
        4,
        &["cannot connect to", "refused"],
    );
    expect(&ask("not an address", "").await, 2, &["expected HOST:PORT"]);
    expect(&ask("localhost", "").await, 2, &["it has no port"]);
    expect(&ask("http://localhost", "").await, 2, &["it has no port"]);
}

/// Goal: a port that takes connections and never answers is "not reached" within the time asked for.
#[test]
fn health_does_not_wait_for_ever() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it is bound").to_string();
    let output = without_file(&["health", "--server", &address, "--timeout", "200ms"]);
    let code = output.status.code();
    assert!(matches!(code, Some(1 | 4)), "{code:?}");
}

/// A full disk behind stdout is a failure that is told, not a panic.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn health_does_not_panic_where_stdout_takes_nothing() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (_reporter, service) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    let full = std::fs::File::options().write(true).open("/dev/full");
    let full = full.expect("Linux has it");
    let asked = tokio::task::spawn_blocking(move || {
        std::process::Command::new(env!("CARGO_BIN_EXE_pacenote"))
            .args(["health", "--server", &address])
            .stdout(full)
            .output()
    });
    let output = asked.await.expect("it ran").expect("it started");
    expect(&output, 1, &["error: stdout: "]);
    serving.abort();
}
