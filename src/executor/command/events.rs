//! What a program tells through `PACENOTE_EVENTS`: one JSON object a line.
//!
//! A line that is not understood becomes a warning in the job's log, never an error: a program must not
//! fail because of what it tells. The number of warnings is bounded, and so is the length of a line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

use crate::config::value::duration;
use crate::config::{ProgressMode, ResultMode};
use crate::executor::bounds;
use crate::executor::command::pipe::{PipeReader, READ_BYTES_MAX};
use crate::executor::reporter::{ReportError, Reporter};
use crate::job::event::{LogLevel, LogLine};
use crate::job::limits::PAYLOAD_BYTES_MAX;
use crate::job::payload::Payload;
use crate::job::progress::Progress;

/// Longest line. Chosen: a payload of the largest size, with room for escapes and blanks.
const EVENT_LINE_BYTES_MAX: usize = 2 * PAYLOAD_BYTES_MAX;
/// Warnings about lines that were not understood, per attempt. Chosen: enough to see the mistake.
const WARNINGS_MAX: usize = 20;
/// A line, as section 9 of the design spells it.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Progress(ProgressLine),
    Output(OutputLine),
    Log(LogFields),
    Checkpoint(Value),
    Result(Value),
    Snooze(String),
    RetryAfter(String),
}

/// What a program has told about its end. Of each the last one stands.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Told {
    /// The result, or what is wrong with it.
    pub(super) result: Option<Result<Payload, String>>,
    /// It wants to go on after this wait.
    pub(super) snooze: Option<Duration>,
    /// How long the next attempt waits where this one has failed.
    pub(super) retry_after: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct ProgressLine {
    fraction: Option<f64>,
    completed_units: Option<i64>,
    total_units: Option<i64>,
    unit: String,
    phase: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputLine {
    #[serde(default = "default_stream")]
    stream: String,
    text: Option<String>,
    #[serde(default, deserialize_with = "present")]
    json: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogFields {
    #[serde(default = "default_level")]
    level: LogLevel,
    message: String,
    #[serde(default)]
    fields: serde_json::Map<String, Value>,
}

/// Reads the events of one attempt.
pub(super) struct Events {
    reporter: Reporter,
    result_mode: ResultMode,
    progress_mode: ProgressMode,
    /// Set with the first progress: from then on nothing is read out of the program's output.
    has_progress: Arc<AtomicBool>,
    line: Vec<u8>,
    /// The line is longer than the bound; only its beginning is held.
    is_too_long: bool,
    warnings: usize,
    about_end: Told,
}

impl Events {
    pub(super) fn new(
        reporter: Reporter,
        result_mode: ResultMode,
        progress_mode: ProgressMode,
        has_progress: Arc<AtomicBool>,
    ) -> Self {
        Self {
            reporter,
            result_mode,
            progress_mode,
            has_progress,
            line: Vec::new(),
            is_too_long: false,
            warnings: 0,
            about_end: Told::default(),
        }
    }

    /// Reads until told that the program has ended, then what is still there. Gives what was told about
    /// its end.
    pub(super) async fn read(mut self, pipe: Receiver, ended: CancellationToken) -> Told {
        let mut pipe = PipeReader::new(pipe, ended);
        while let Some(bytes) = pipe.next(READ_BYTES_MAX).await {
            self.take(bytes).await;
        }
        // The last line may lack its line feed.
        self.end_line().await;
        self.about_end
    }

    async fn take(&mut self, mut bytes: &[u8]) {
        while let Some(at) = memchr::memchr(b'\n', bytes) {
            self.push(&bytes[..at]);
            self.end_line().await;
            bytes = &bytes[at + 1..];
        }
        self.push(bytes);
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = EVENT_LINE_BYTES_MAX - self.line.len();
        self.is_too_long |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    async fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let is_too_long = std::mem::take(&mut self.is_too_long);
        let text = line.trim_ascii();
        if text.is_empty() {
            return;
        }
        let understood = if is_too_long {
            let problem = format!("is longer than {EVENT_LINE_BYTES_MAX} bytes");
            if text.starts_with(br#"{"result""#) {
                self.about_end.result = Some(Err(problem.clone()));
            }
            Err(problem)
        } else {
            match serde_json::from_slice(text) {
                Ok(line) => self.tell(line).await,
                Err(error) => Err(error.to_string()),
            }
        };
        if let Err(problem) = understood {
            self.warn(text, &problem).await;
        }
    }

    async fn tell(&mut self, line: Line) -> Result<(), String> {
        let told = match line {
            Line::Progress(line) => {
                if self.progress_mode == ProgressMode::Off {
                    return Ok(());
                }
                let progress = Progress {
                    fraction: line.fraction,
                    completed_units: line.completed_units,
                    total_units: line.total_units,
                    unit: line.unit,
                    phase: line.phase,
                    message: line.message,
                    ..Progress::default()
                };
                self.has_progress.store(true, Ordering::Relaxed);
                self.reporter.progress(progress).await
            }
            Line::Output(line) => {
                let chunk = match (line.text, line.json) {
                    (Some(text), None) => Payload::text(text),
                    (None, Some(value)) => bounds::json_payload(&value)?,
                    _ => return Err("output needs either text or json".to_owned()),
                };
                self.reporter.output(&line.stream, chunk).await
            }
            Line::Log(line) => {
                let line = LogLine {
                    level: line.level,
                    message: line.message,
                    fields: line.fields,
                };
                self.reporter.log_line(line).await
            }
            Line::Checkpoint(value) => {
                self.reporter
                    .checkpoint(bounds::json_payload(&value)?)
                    .await
            }
            Line::Result(value) => return self.take_result(&value),
            Line::Snooze(wait) => {
                self.about_end.snooze = Some(duration(&wait)?);
                return Ok(());
            }
            Line::RetryAfter(wait) => {
                self.about_end.retry_after = Some(duration(&wait)?);
                return Ok(());
            }
        };
        match told {
            // The attempt is over: there is nobody to tell, and nothing that the program did wrong.
            Ok(()) | Err(ReportError::AttemptOver) => Ok(()),
            Err(error @ ReportError::Invalid { .. }) => Err(error.to_string()),
        }
    }

    fn take_result(&mut self, value: &Value) -> Result<(), String> {
        if self.result_mode != ResultMode::Events {
            return Err("this job type takes its result from stdout".to_owned());
        }
        self.about_end.result = Some(bounds::json_payload(value));
        Ok(())
    }

    async fn warn(&mut self, line: &[u8], problem: &str) {
        self.warnings += 1;
        if self.warnings > WARNINGS_MAX {
            return;
        }
        let beginning = String::from_utf8_lossy(&line[..line.len().min(200)]);
        let more = if self.warnings == WARNINGS_MAX {
            "; further lines like this are not reported"
        } else {
            ""
        };
        let message = format!(
            "a line written to PACENOTE_EVENTS was not understood: {problem}: {beginning}{more}"
        );
        // Nobody is listening any more: fine.
        let _ = self.reporter.log(LogLevel::Warn, message).await;
    }
}

fn default_stream() -> String {
    "output".to_owned()
}

fn default_level() -> LogLevel {
    LogLevel::Info
}

/// A field that is there, null or not.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::testing::Harness;
    use crate::job::Report;
    use crate::job::limits::DURATION_MAX;

    /// What is told, and what of it is about the end, when a program writes this.
    async fn told(written: &[u8], mode: ResultMode) -> (Vec<Report>, Told) {
        let mut harness = Harness::new(None);
        let reporter = harness.take_attempt().reporter;
        let mut events = Events::new(reporter, mode, ProgressMode::Auto, Arc::default());
        events.take(written).await;
        events.end_line().await;
        let about_end = std::mem::take(&mut events.about_end);
        drop(events);
        (harness.reports().await, about_end)
    }

    fn warnings(reports: &[Report]) -> Vec<&str> {
        reports
            .iter()
            .filter_map(|report| match report {
                Report::Log(line) if line.level == LogLevel::Warn => Some(line.message.as_str()),
                _ => None,
            })
            .collect()
    }

    #[tokio::test]
    async fn every_kind_of_line_is_understood() {
        let written = br#"{"progress":{"completed_units":4,"total_units":10,"unit":"pages","message":"page 4"}}
{"output":{"text":"a"}}

 {"output":{"stream":"rows","json":null}}
{"log":{"level":"error","message":"m","fields":{"k":1}}}
{"log":{"message":"m"}}
{"checkpoint":{"page":4}}
{"result":1}
{"result":{"pages":10}}
{"snooze":"1h"}
{"snooze":"1m 30s"}
{"retry_after":"0s"}"#;
        let (reports, end) = told(written, ResultMode::Events).await;
        assert!(warnings(&reports).is_empty(), "{reports:?}");
        assert!(matches!(&reports[0], Report::Progress(p)
            if p.completed_units == Some(4) && p.unit == "pages" && p.message == "page 4"));
        assert!(matches!(&reports[1], Report::Output { stream, chunk }
            if stream == "output" && chunk.as_bytes() == b"a"));
        assert!(matches!(&reports[2], Report::Output { stream, chunk }
            if stream == "rows" && chunk.as_bytes() == b"null"));
        assert!(
            matches!(&reports[3], Report::Log(l) if l.level == LogLevel::Error && l.fields.len() == 1)
        );
        assert!(matches!(&reports[4], Report::Log(l) if l.level == LogLevel::Info));
        assert!(matches!(&reports[5], Report::Checkpoint(_)));
        assert_eq!(end.snooze, Some(Duration::from_secs(90)));
        assert_eq!(end.retry_after, Some(Duration::ZERO));
        let result = end.result.expect("given").expect("valid");
        assert_eq!(result.as_bytes(), br#"{"pages":10}"#);
    }

    #[tokio::test]
    async fn a_line_not_understood_is_a_warning_with_its_beginning_and_hurts_no_other() {
        for bad in [
            "hello",
            "{",
            "[]",
            "{\"progress\":{\"fracton\":0.4}}",
            "{\"progress\":{\"fraction\":1.5}}",
            "{\"output\":{}}",
            "{\"output\":{\"text\":\"a\",\"stream\":\"a b\"}}",
            "{\"log\":{\"level\":\"loud\",\"message\":\"m\"}}",
            "{\"result\":1}",
            "{\"snooze\":10}",
            "{\"snooze\":\"soon\"}",
            "{\"retry_after\":\"-1s\"}",
            "{\"progress\":{},\"output\":{\"text\":\"a\"}}",
        ] {
            let written = format!("{bad}\n{{\"output\":{{\"text\":\"next\"}}}}\n");
            let (reports, _) = told(written.as_bytes(), ResultMode::StdoutText).await;
            let warnings = warnings(&reports);
            assert_eq!(warnings.len(), 1, "{bad}: {reports:?}");
            assert!(warnings[0].contains(bad), "{warnings:?}");
            assert!(
                matches!(reports.last(), Some(Report::Output { .. })),
                "{bad}"
            );
        }
    }

    #[tokio::test]
    async fn warnings_are_bounded() {
        let (reports, _) = told("garbage\n".repeat(1000).as_bytes(), ResultMode::Events).await;
        assert_eq!(reports.len(), WARNINGS_MAX);
        assert!(warnings(&reports)[WARNINGS_MAX - 1].contains("further lines"));
    }

    #[tokio::test]
    async fn a_line_or_result_beyond_the_bound_is_refused_and_the_next_line_is_read() {
        let huge = format!(
            "{{\"result\":\"{}\"}}\n{{\"output\":{{\"text\":\"n\"}}}}\n",
            "x".repeat(EVENT_LINE_BYTES_MAX)
        );
        let (reports, end) = told(huge.as_bytes(), ResultMode::Events).await;
        assert!(end.result.expect("given").is_err());
        assert_eq!(reports.len(), 2);
        let at = async |bytes: usize| {
            let line = format!("{{\"result\":\"{}\"}}", "x".repeat(bytes));
            told(line.as_bytes(), ResultMode::Events)
                .await
                .1
                .result
                .expect("given")
        };
        assert!(at(PAYLOAD_BYTES_MAX - 8).await.is_ok());
        assert!(at(PAYLOAD_BYTES_MAX - 7).await.is_err());
    }

    #[tokio::test]
    async fn a_wait_is_taken_up_to_a_year_and_not_a_second_longer() {
        let at = async |secs: u64| {
            let line = format!("{{\"snooze\":\"{secs}s\"}}");
            told(line.as_bytes(), ResultMode::Events).await
        };
        let year = DURATION_MAX.as_secs();
        let (reports, end) = at(year).await;
        assert_eq!((reports, end.snooze), (vec![], Some(DURATION_MAX)));
        let (reports, end) = at(year + 1).await;
        assert_eq!((warnings(&reports).len(), end.snooze), (1, None));
    }
}
