//! What workers tell, in their messages and read from them.

use std::collections::BTreeMap;

use crate::job::event::{ErrorCode, JobError, LogLevel, LogLine, truncate};
use crate::job::limits::{DETAIL_BYTES_MAX, ERROR_METADATA_MAX};
use crate::job::name::Name;
use crate::job::policy::check_reason;
use crate::job::progress::Progress;
use crate::job::{Outcome, Report};
use crate::pb;
use crate::wire::{
    from_payload, json, to_duration, to_error, to_log_line, to_payload, to_progress,
};

/// What is wrong with a message: which of its fields, and a sentence.
pub type Problem = (String, String);

/// The event of what an attempt tells.
///
/// # Errors
/// The message of a checkpoint, which is no event: it has a place of its own in the request.
pub fn to_event(report: Report) -> Result<pb::WorkerEvent, pb::Payload> {
    use pb::worker_event::Event;
    let event = match report {
        Report::Progress(progress) => Event::Progress(to_progress(progress)),
        Report::Output { stream, chunk } => Event::Output(pb::OutputChunk {
            stream,
            chunk: Some(to_payload(chunk)),
            offset: 0,
        }),
        Report::Log(line) => Event::Log(to_log_line(line)),
        Report::Checkpoint(checkpoint) => return Err(to_payload(checkpoint)),
    };
    Ok(pb::WorkerEvent { event: Some(event) })
}

/// The request that tells how an attempt went.
pub fn to_finish(lease_token: String, outcome: Outcome) -> pb::FinishRequest {
    use pb::finish_request::Outcome as Wire;
    let mut retry_delay = None;
    let outcome = match outcome {
        Outcome::Succeeded(result) => Wire::Result(result.map(to_payload).unwrap_or_default()),
        Outcome::Failed(error) => {
            retry_delay = error.retry_after.map(to_duration);
            Wire::Error(to_error(error))
        }
        Outcome::Cancelled => Wire::Cancelled(pb::Cancelled {}),
        Outcome::Snoozed(wait) => Wire::Snooze(pb::Snooze {
            delay: Some(to_duration(wait)),
        }),
        // Whether a job's total timeout has ended, the server knows by itself.
        Outcome::HandedBack | Outcome::Expired => Wire::HandBack(pb::HandBack {}),
    };
    pb::FinishRequest {
        lease_token,
        outcome: Some(outcome),
        retry_delay,
    }
}

/// What an attempt tells with one event.
///
/// # Errors
/// The first field that is wrong.
pub fn from_event(event: pb::WorkerEvent) -> Result<Report, Problem> {
    use pb::worker_event::Event;
    match event.event {
        None => Err(("event".to_owned(), "is required".to_owned())),
        Some(Event::Progress(progress)) => from_progress(progress).map(Report::Progress),
        Some(Event::Output(output)) => {
            let field = |name: &str| format!("output.{name}");
            Name::new(&output.stream).map_err(|problem| (field("stream"), problem))?;
            let chunk = output.chunk.map_or(Ok(None), from_payload);
            let chunk = chunk.map_err(|problem| (field("chunk"), problem))?;
            let chunk = chunk.ok_or_else(|| (field("chunk"), "is required".to_owned()))?;
            Ok(Report::Output {
                stream: output.stream,
                chunk,
            })
        }
        Some(Event::Log(line)) => from_log_line(line).map(Report::Log),
    }
}

fn from_progress(progress: pb::Progress) -> Result<Progress, Problem> {
    let progress = Progress {
        fraction: progress.fraction,
        completed_units: progress.completed_units,
        total_units: progress.total_units,
        unit: progress.unit,
        phase: progress.phase,
        message: progress.message,
        ..Progress::default()
    };
    let checked = progress.check();
    checked.map_err(|(field, problem)| (format!("progress.{field}"), problem))?;
    Ok(progress)
}

fn from_log_line(line: pb::LogLine) -> Result<LogLine, Problem> {
    use pb::log_line::Level;
    let field = |name: &str| format!("log.{name}");
    let level = match Level::try_from(line.level) {
        Ok(Level::Unspecified | Level::Info) => LogLevel::Info,
        Ok(Level::Debug) => LogLevel::Debug,
        Ok(Level::Warn) => LogLevel::Warn,
        Ok(Level::Error) => LogLevel::Error,
        Err(_) => {
            let problem = format!("is {}, which is no Level", line.level);
            return Err((field("level"), problem));
        }
    };
    let mut message = line.message;
    truncate(&mut message, DETAIL_BYTES_MAX);
    let mut fields = serde_json::Map::new();
    for (name, value) in line.fields.unwrap_or_default().fields {
        let value = json::from_value(value).map_err(|problem| (field("fields"), problem))?;
        fields.insert(name, value);
    }
    let line = LogLine {
        level,
        message,
        fields,
    };
    line.check_fields()
        .map_err(|problem| (field("fields"), problem))?;
    Ok(line)
}

/// How an attempt failed. Long texts are cut.
///
/// # Errors
/// Every field that is wrong.
pub fn from_error(error: pb::JobError) -> Result<JobError, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut wrong = |field: &str, problem: String| problems.push((field.to_owned(), problem));
    let code = match error.code {
        0 => Some(ErrorCode::Unknown),
        code => ErrorCode::from_number(code),
    };
    if code.is_none() {
        wrong("code", format!("is {}; 1 to 16 is accepted", error.code));
    }
    if let Err(problem) = check_reason(&error.reason) {
        wrong("reason", problem);
    }
    let entries = error.metadata.len();
    if entries > ERROR_METADATA_MAX {
        wrong(
            "metadata",
            format!("has {entries} entries; at most {ERROR_METADATA_MAX} are accepted"),
        );
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let metadata: BTreeMap<String, String> = error.metadata.into_iter().collect();
    let told = JobError {
        code: code.unwrap_or(ErrorCode::Unknown),
        reason: error.reason,
        message: error.message,
        retryable: error.retryable,
        retry_after: None,
        metadata,
        detail: error.detail,
    };
    Ok(told.cut())
}
