//! Real programs, run as jobs: mostly `sh`, where the behaviour needs no more.

mod ends;
mod hygiene;
mod output;
mod stops;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::config::{ProgressMode, ResultMode};
use crate::executor::testing::{Harness, deadline};
use crate::job::Report;
use crate::job::event::JobError;

/// A command in a folder of its own, and an attempt to run it with.
struct Trial {
    dir: TempDir,
    config: CommandConfig,
    harness: Harness,
}

impl Trial {
    fn of(argv: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = CommandConfig {
            command: argv.iter().map(|argument| (*argument).to_owned()).collect(),
            dir: dir.path().to_owned(),
            env: BTreeMap::new(),
            allow_dash: false,
            result: ResultMode::StdoutText,
            progress: ProgressMode::Auto,
        };
        Self {
            dir,
            config,
            harness: Harness::new(None),
        }
    }

    /// Braces are doubled, because an argument is a template.
    fn sh(script: &str) -> Self {
        let script = script.replace('{', "{{").replace('}', "}}");
        Self::of(&["sh", "-c", &script])
    }

    fn with_input(mut self, input: Payload) -> Self {
        self.harness.attempt_mut().input = Some(input);
        self
    }

    fn with_result(mut self, mode: ResultMode) -> Self {
        self.config.result = mode;
        self
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn attempts_dir(&self) -> PathBuf {
        self.dir.path().join("attempts")
    }

    fn start(&mut self) -> tokio::task::JoinHandle<Outcome> {
        let executor = CommandExecutor::new(self.config.clone(), self.attempts_dir())
            .expect("a valid command");
        tokio::spawn(executor.run(self.harness.take_attempt()))
    }

    async fn run(&mut self) -> Outcome {
        deadline(self.start()).await.expect("does not panic")
    }

    async fn fail(&mut self) -> JobError {
        match self.run().await {
            Outcome::Failed(error) => error,
            other => panic!("expected a failure, got {other:?}"),
        }
    }

    /// The result as text.
    async fn succeed(&mut self) -> String {
        match self.run().await {
            Outcome::Succeeded(Some(result)) => {
                String::from_utf8_lossy(result.as_bytes()).into_owned()
            }
            other => panic!("expected a result, got {other:?}"),
        }
    }

    /// Waits until the program has written this to stdout.
    async fn until_output(&mut self, text: &str) {
        self.harness
            .until(|reports| String::from_utf8_lossy(&output(reports, "stdout")).contains(text))
            .await;
    }
}

/// What was written to a stream, in one piece.
fn output(reports: &[Report], name: &str) -> Vec<u8> {
    reports
        .iter()
        .filter_map(|report| match report {
            Report::Output { stream, chunk } if stream == name => Some(chunk.as_bytes()),
            _ => None,
        })
        .collect::<Vec<_>>()
        .concat()
}

fn fractions(reports: &[Report]) -> Vec<f64> {
    reports
        .iter()
        .filter_map(|report| match report {
            Report::Progress(progress) => progress.fraction,
            _ => None,
        })
        .collect()
}

fn log_lines(reports: &[Report]) -> Vec<&str> {
    reports
        .iter()
        .filter_map(|report| match report {
            Report::Log(line) => Some(line.message.as_str()),
            _ => None,
        })
        .collect()
}

/// Whether a program is there; where it is not, says so, and is an error in CI.
fn has(program: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join(program).is_file());
    if !found {
        assert!(
            std::env::var_os("CI").is_none(),
            "{program} is needed in CI"
        );
        eprintln!("SKIPPED: {program} is missing");
    }
    found
}

/// Waits until a process is gone.
async fn gone(pid: i32) {
    deadline(async {
        while is_running(pid) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Whether a process runs (and is not just a zombie that nobody has reaped).
fn is_running(pid: i32) -> bool {
    processes::identity(pid).is_some()
}
