//! Jobs and events in words for people, one line each, escaped. What programs read is `json`.

use std::time::{Duration, SystemTime};

use crate::cli::jobs::escape::escape;
use crate::cli::jobs::json;
use crate::pb;
use crate::pb::job::State;
use crate::pb::job_event::Event;
use crate::pb::payload::Content;

/// `QUEUED`, without the enum's prefix.
pub(super) fn state(state: State) -> &'static str {
    state.as_str_name().trim_start_matches("STATE_")
}

/// One event: sequence, kind, text.
pub(crate) fn event(event: &pb::JobEvent) -> String {
    let sequence = event.sequence;
    match &event.event {
        Some(Event::StateChange(change)) => {
            let (from, to) = (change.from_state(), change.to_state());
            let from = match from {
                State::Unspecified => String::new(),
                from => format!("{} -> ", state(from)),
            };
            let reason = parenthesised(&change.reason);
            format!("{sequence} state {from}{}{reason}", state(to))
        }
        Some(Event::Progress(progress)) => {
            format!("{sequence} progress {}", self::progress(progress))
        }
        Some(Event::Output(output)) => {
            let text = output.chunk.as_ref().map_or_else(String::new, payload);
            let text = text.strip_suffix('\n').unwrap_or(&text);
            format!(
                "{sequence} output {} {}",
                escape(&output.stream),
                escape(text)
            )
        }
        Some(Event::Log(line)) => format!("{sequence} log {}", log(line)),
        Some(Event::AttemptEnd(end)) => {
            let how = end.error.as_ref().map_or_else(
                || "handed back, or snoozed".to_owned(),
                |error| format!("failed {}", job_error(error)),
            );
            let next = end
                .next_attempt_time
                .as_ref()
                .map_or_else(String::new, |at| format!(", next at {at}"));
            format!("{sequence} attempt {} {how}{next}", event.attempt)
        }
        Some(Event::CancelRequested(cancel)) => {
            format!(
                "{sequence} cancel requested{}",
                parenthesised(&cancel.reason)
            )
        }
        Some(Event::Stalled(stalled)) => {
            let since = stalled.silent_since.as_ref();
            let since = since.map_or_else(String::new, |at| format!(" since {at}"));
            format!("{sequence} stalled: silent{since}")
        }
        None => format!("{sequence} unknown (a newer pacenote can show it)"),
    }
}

/// `45% 4/10 pages encode: message`, as far as it is known.
pub(super) fn progress(progress: &pb::Progress) -> String {
    let mut parts = Vec::new();
    if let Some(fraction) = progress.fraction {
        parts.push(format!("{}%", percent(fraction)));
    }
    if let Some(units) = units(progress) {
        parts.push(units);
    }
    let phase = escape(&progress.phase);
    match (progress.phase.is_empty(), progress.message.is_empty()) {
        (true, true) => {}
        (false, true) => parts.push(phase.into_owned()),
        (true, false) => parts.push(escape(&progress.message).into_owned()),
        (false, false) => parts.push(format!("{phase}: {}", escape(&progress.message))),
    }
    if parts.is_empty() {
        parts.push("not known".to_owned());
    }
    parts.join(" ")
}

/// `4/10 pages`, `1.2 MiB/3 MiB`, `4 pages`.
pub(super) fn units(progress: &pb::Progress) -> Option<String> {
    let done = progress.completed_units?;
    let count = |units: i64| {
        if progress.unit == "bytes" {
            indicatif::HumanBytes(u64::try_from(units).unwrap_or_default()).to_string()
        } else {
            units.to_string()
        }
    };
    let total = progress
        .total_units
        .map_or_else(String::new, |total| format!("/{}", count(total)));
    let unit = match progress.unit.as_str() {
        "bytes" | "" => String::new(),
        unit => format!(" {}", escape(unit)),
    };
    Some(format!("{}{total}{unit}", count(done)))
}

/// Whole percents, 100 only when it is done.
fn percent(fraction: f64) -> u8 {
    // Rounding 99.7 up would say that it is over; a double in 0 to 100 fits.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped"
    )]
    let percent = (fraction.clamp(0.0, 1.0) * 100.0 + 1e-9).floor() as u8;
    percent
}

/// `WARN message {fields}`.
pub(super) fn log(line: &pb::LogLine) -> String {
    let level = match line.level() {
        pb::log_line::Level::Unspecified | pb::log_line::Level::Info => "INFO",
        pb::log_line::Level::Debug => "DEBUG",
        pb::log_line::Level::Warn => "WARN",
        pb::log_line::Level::Error => "ERROR",
    };
    let fields = line
        .fields
        .as_ref()
        .filter(|fields| !fields.fields.is_empty());
    let fields = fields.and_then(|fields| json::line(fields).ok());
    let fields = fields.map_or_else(String::new, |fields| format!(" {fields}"));
    format!("{level} {}{fields}", escape(&line.message))
}

/// `EXIT_CODE: message`.
pub(super) fn job_error(error: &pb::JobError) -> String {
    format!("{}: {}", escape(&error.reason), escape(&error.message))
}

/// `waiting 1 running 2 succeeded 3 failed 0 cancelled 0 expired 0 50%`, and when all will be over.
pub(super) fn roll_up(told: &pb::RollUp) -> String {
    let pb::RollUp {
        waiting,
        running,
        succeeded,
        failed,
        cancelled,
        expired,
        ..
    } = told;
    let mut text = format!(
        "waiting {waiting} running {running} succeeded {succeeded} failed {failed} \
         cancelled {cancelled} expired {expired}"
    );
    if let Some(fraction) = told.fraction {
        text.push_str(&format!(" {}%", percent(fraction)));
    }
    if let Some(at) = &told.estimated_end_time {
        text.push_str(&format!(", over at about {at}"));
    }
    text
}

/// What is missing and why.
pub(super) fn gap(gap: &pb::EventGap) -> String {
    format!(
        "gap {}-{} were purged",
        gap.first_missing_sequence, gap.last_missing_sequence
    )
}

/// A payload as text, not escaped: JSON as JSON, text as it is, bytes as well as they can be read.
pub(crate) fn payload(payload: &pb::Payload) -> String {
    match &payload.content {
        None => String::new(),
        Some(Content::Json(value)) => {
            json::line(value).unwrap_or_else(|error| format!("<{error}>"))
        }
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Data(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// How long a job took from its first start, or from its submit where it never started.
pub(super) fn took(job: &pb::Job) -> Option<Duration> {
    let start = job.start_time.as_ref().or(job.create_time.as_ref())?;
    let start = SystemTime::try_from(*start).ok()?;
    let end = SystemTime::try_from(*job.end_time.as_ref()?).ok()?;
    let took = end.duration_since(start).ok()?;
    // Milliseconds are all that a person reads.
    Some(Duration::from_millis(u64::try_from(took.as_millis()).ok()?))
}

/// `SUCCEEDED after 3s 200ms`, with the error of a job that has one.
pub(crate) fn ending(job: &pb::Job) -> String {
    let mut text = state(job.state()).to_owned();
    if let Some(took) = took(job) {
        text.push_str(&format!(" after {}", humantime::format_duration(took)));
    }
    if let Some(error) = &job.error {
        text.push_str(&format!(" {}", job_error(error)));
    }
    if !job.cancel_reason.is_empty() {
        text.push_str(&format!(" ({})", escape(&job.cancel_reason)));
    }
    text
}

/// A job as `get` and `wait` show it: a field a line.
pub(super) fn job(job: &pb::Job) -> String {
    let mut lines = vec![
        ("job", escape(&job.job_id).into_owned()),
        ("type", escape(&job.r#type).into_owned()),
        ("queue", escape(&job.queue).into_owned()),
        ("state", state(job.state()).to_owned()),
    ];
    if let Some(progress) = &job.progress {
        lines.push(("progress", self::progress(progress)));
    }
    let max_attempts = job
        .retry_policy
        .as_ref()
        .map_or(0, |policy| policy.max_attempts);
    let of = if max_attempts > 0 {
        format!(" ({} of {max_attempts} charged)", job.attempts_charged)
    } else {
        String::new()
    };
    lines.push(("attempt", format!("{}{of}", job.attempt)));
    if !job.cancel_reason.is_empty() {
        lines.push(("cancelled", escape(&job.cancel_reason).into_owned()));
    }
    for (name, value) in &job.labels {
        lines.push(("label", format!("{}={}", escape(name), escape(value))));
    }
    if !job.idempotency_key.is_empty() {
        lines.push(("key", escape(&job.idempotency_key).into_owned()));
    }
    let times = [
        ("created", &job.create_time),
        (due(job), &job.schedule_time),
        ("started", &job.start_time),
        ("stalled", &job.stalled_since),
        ("ended", &job.end_time),
    ];
    for (name, time) in times {
        if let Some(time) = time {
            lines.push((name, time.to_string()));
        }
    }
    if let Some(took) = took(job) {
        lines.push(("took", humantime::format_duration(took).to_string()));
    }
    lines.push(("events", job.last_sequence.to_string()));
    for (name, payload) in [
        ("input", &job.input),
        ("checkpoint", &job.checkpoint),
        ("result", &job.result),
    ] {
        if let Some(payload) = payload {
            lines.push((name, escape(self::payload(payload).trim_end()).into_owned()));
        }
    }
    if let Some(error) = &job.error {
        lines.push(("error", job_error(error)));
        for line in error.detail.lines() {
            lines.push(("", escape(line).into_owned()));
        }
    }
    let line = |(name, value): (&str, String)| format!("{name:<11}{value}");
    lines.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The heading over [`row`]s.
pub(super) const HEADING: &str =
    "JOB                                   STATE       DONE  CREATED               TYPE";

/// A job as `list` shows it.
pub(super) fn row(job: &pb::Job) -> String {
    let done = job.progress.as_ref().and_then(|progress| progress.fraction);
    let done = done.map_or_else(
        || "-".to_owned(),
        |fraction| format!("{}%", percent(fraction)),
    );
    let created = job.create_time.map_or_else(String::new, |mut time| {
        time.nanos = 0;
        time.to_string()
    });
    format!(
        "{:<36}  {:<10}  {done:>4}  {created:<20}  {}{}",
        escape(&job.job_id),
        state(job.state()),
        escape(&job.r#type),
        note(job)
    )
}

/// What the time is called at which a waiting job may run.
fn due(job: &pb::Job) -> &'static str {
    if job.attempt > 0 && job.state() == State::Scheduled {
        "next at"
    } else {
        "due"
    }
}

/// What a row says behind its columns: what a job waits for, or that nothing is heard of it.
fn note(job: &pb::Job) -> String {
    match (&job.stalled_since, &job.schedule_time) {
        (Some(since), _) => format!("  stalled since {since}"),
        (None, Some(at)) if job.state() == State::Scheduled => format!("  {} {at}", due(job)),
        (None, _) => String::new(),
    }
}

fn parenthesised(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(" ({})", escape(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_is_known_and_nothing_else() {
        let full = pb::Progress {
            fraction: Some(0.45),
            completed_units: Some(4),
            total_units: Some(10),
            unit: "pages".to_owned(),
            message: "a\x1b[2J".to_owned(),
            ..pb::Progress::default()
        };
        assert_eq!(progress(&full), "45% 4/10 pages a\\x1b[2J");
        assert_eq!(progress(&pb::Progress::default()), "not known");
        let bytes = pb::Progress {
            completed_units: Some(2_048),
            unit: "bytes".to_owned(),
            phase: "download".to_owned(),
            ..pb::Progress::default()
        };
        assert_eq!(progress(&bytes), "2.00 KiB download");
    }

    #[test]
    fn a_job_says_that_it_is_stalled_and_when_it_goes_on() {
        let at = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
        let mut waits = pb::Job {
            r#type: "print".to_owned(),
            state: State::Scheduled as i32,
            schedule_time: Some(at(60)),
            ..pb::Job::default()
        };
        assert!(row(&waits).ends_with("print  due 1970-01-01T00:01:00Z"));
        assert!(job(&waits).contains("\ndue        1970-01-01T00:01:00Z\n"));
        waits.attempt = 1;
        assert!(row(&waits).ends_with("print  next at 1970-01-01T00:01:00Z"));
        assert!(job(&waits).contains("\nnext at    1970-01-01T00:01:00Z\n"));
        let silent = pb::Job {
            state: State::Running as i32,
            stalled_since: Some(at(120)),
            schedule_time: None,
            ..waits
        };
        assert!(row(&silent).ends_with("print  stalled since 1970-01-01T00:02:00Z"));
        assert!(job(&silent).contains("\nstalled    1970-01-01T00:02:00Z\n"));
        let runs = pb::Job {
            stalled_since: None,
            ..silent
        };
        assert!(row(&runs).ends_with("  print") && !job(&runs).contains("stalled"));
    }

    #[test]
    fn a_hundred_percent_is_said_only_at_the_end() {
        assert_eq!(percent(0.999), 99);
        assert_eq!(percent(0.29), 29);
        assert_eq!(percent(1.0), 100);
        assert_eq!(percent(f64::NAN), 0);
    }
}
