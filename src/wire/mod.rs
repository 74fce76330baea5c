//! Between the words of `job` and the messages of `pb`: no rules of its own, and no transport.
//!
//! The log is stored in the form in which it is sent, so that an event is encoded once in its life;
//! that form is the published `pacenote.v1.JobEvent`, which `buf breaking` keeps readable for ever.

pub mod json;
pub mod reports;

use std::time::Duration;

use prost::Message;

use crate::job::event::{Event, EventKind, EventTag, JobError, LogLevel, LogLine};
use crate::job::name::JobId;
use crate::job::payload::{Content, Payload};
use crate::job::progress::Progress;
use crate::job::segment::SegmentBuilder;
use crate::job::time::Timestamp;
use crate::job::{JobSnapshot, JobState};
use crate::pb;

/// Adds events to a job's segments.
pub fn encode_events(builder: &mut SegmentBuilder, id: JobId, events: Vec<Event>) {
    let job_id = id.to_string();
    let mut encoded = Vec::new();
    for event in events {
        let (sequence, tag) = (event.sequence, event.kind.tag());
        encoded.clear();
        to_event(job_id.clone(), event)
            .encode(&mut encoded)
            .expect("a vector grows as needed");
        builder.push(sequence, tag, &encoded);
    }
}

/// The message of an event.
pub fn to_event(job_id: String, event: Event) -> pb::JobEvent {
    use pb::job_event::Event as Wire;
    let wire = match event.kind {
        EventKind::StateChange { from, to, reason } => Wire::StateChange(pb::StateChange {
            from_state: from.map_or(0, |from| to_state(from) as i32),
            to_state: to_state(to) as i32,
            reason,
        }),
        EventKind::Progress(progress) => Wire::Progress(to_progress(progress)),
        EventKind::Output {
            stream,
            offset,
            chunk,
        } => Wire::Output(pb::OutputChunk {
            stream,
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            chunk: Some(to_payload(chunk)),
        }),
        EventKind::Log(line) => Wire::Log(to_log_line(line)),
        EventKind::AttemptEnd {
            error,
            charged,
            next_attempt_at,
        } => Wire::AttemptEnd(pb::AttemptEnd {
            error: error.map(to_error),
            charged,
            next_attempt_time: Some(to_timestamp(next_attempt_at)),
        }),
        EventKind::CancelRequested {
            reason,
            requested_by,
        } => Wire::CancelRequested(pb::CancelRequested {
            reason,
            requested_by,
        }),
        EventKind::Stalled { silent_since } => Wire::Stalled(pb::Stalled {
            silent_since: Some(to_timestamp(silent_since)),
        }),
    };
    pb::JobEvent {
        job_id,
        sequence: event.sequence,
        event_time: Some(to_timestamp(event.at)),
        attempt: to_i32(event.attempt),
        event: Some(wire),
    }
}

/// The message of a job.
pub fn to_job(snapshot: JobSnapshot) -> pb::Job {
    let JobSnapshot { job, payloads } = snapshot;
    let spec = &job.spec;
    let policy = &spec.retry_policy;
    let waits = !job.state.is_terminal() && !job.state.is_leased();
    pb::Job {
        job_id: job.key.id.to_string(),
        r#type: spec.job_type.to_string(),
        queue: spec.queue.to_string(),
        input: payloads.input.map(to_payload),
        labels: spec.labels.clone().into_iter().collect(),
        priority: spec.priority,
        state: to_state(job.state) as i32,
        progress: job.detail.progress.clone().map(to_progress),
        result: payloads.result.map(to_payload),
        error: job.detail.error.clone().map(to_error),
        attempt: to_i32(job.attempt),
        attempts_charged: to_i32(job.attempts_charged),
        retry_policy: Some(pb::RetryPolicy {
            max_attempts: to_i32(policy.max_attempts),
            initial_backoff: Some(to_duration(policy.initial_backoff)),
            max_backoff: Some(to_duration(policy.max_backoff)),
            backoff_multiplier: policy.backoff_multiplier,
            non_retryable_reasons: policy.non_retryable_reasons.clone(),
        }),
        timeouts: Some(pb::Timeouts {
            queue_timeout: spec.timeouts.queue_timeout.map(to_duration),
            run_timeout: spec.timeouts.run_timeout.map(to_duration),
            total_timeout: spec.timeouts.total_timeout.map(to_duration),
            heartbeat_timeout: spec.timeouts.heartbeat_timeout.map(to_duration),
            cancel_grace: Some(to_duration(spec.timeouts.cancel_grace)),
            stall_time: Some(to_duration(spec.timeouts.stall_time)),
        }),
        last_sequence: job.last_sequence,
        first_sequence: job.first_sequence,
        // Only who is asked for one job looks: see `put_place`.
        queue_position: None,
        estimated_start_time: None,
        create_time: Some(to_timestamp(job.created_at)),
        schedule_time: waits.then(|| to_timestamp(job.run_at)),
        start_time: job.detail.started_at.map(to_timestamp),
        update_time: Some(to_timestamp(job.updated_at)),
        end_time: job.ended_at.map(to_timestamp),
        purge_time: job.purge_at.map(to_timestamp),
        stalled_since: job.stalled_since.map(to_timestamp),
        worker_id: job.detail.worker_id.clone(),
        cancel_reason: job.detail.cancel_reason.clone(),
        concurrency_key: text_of(spec.concurrency_key.as_ref()),
        checkpoint: payloads.checkpoint.map(to_payload),
        tenant: job.key.tenant.to_string(),
        idempotency_key: spec.idempotency_key.clone().unwrap_or_default(),
        batch_id: text_of(spec.batch_id),
        retry_of_job_id: text_of(spec.retry_of),
        retried_by_job_id: text_of(job.detail.retried_by),
        dropped_log_bytes: i64::try_from(job.detail.dropped_log_bytes).unwrap_or(i64::MAX),
    }
}

/// Adds to the message of a waiting job where it stands.
pub fn put_place(job: &mut pb::Job, position: Option<u64>, estimated_start_at: Option<Timestamp>) {
    job.queue_position = position.map(|position| i64::try_from(position).unwrap_or(i64::MAX));
    job.estimated_start_time = estimated_start_at.map(to_timestamp);
}

/// Empty where there is nothing.
fn text_of(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// The message of a payload.
pub fn to_payload(payload: Payload) -> pb::Payload {
    use pb::payload::Content as Wire;
    let media_type = payload.given_media_type().unwrap_or_default().to_owned();
    let content = match payload.content() {
        Content::Json(text) => Wire::Json(json::to_value(
            // Only normalised JSON is kept; were it damaged, null would say so.
            serde_json::from_str(text).unwrap_or_default(),
        )),
        Content::Text(text) => Wire::Text(text.clone()),
        Content::Data(data) => Wire::Data(data.clone()),
    };
    pb::Payload {
        media_type,
        content: Some(content),
    }
}

/// The payload of a message; `None` where it has no content.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn from_payload(payload: pb::Payload) -> Result<Option<Payload>, String> {
    use pb::payload::Content as Wire;
    let content = match payload.content {
        None if payload.media_type.is_empty() => return Ok(None),
        None => return Err("has a media_type and no content".to_owned()),
        Some(Wire::Json(value)) => Payload::json(&json::from_value(value)?)?,
        Some(Wire::Text(text)) => Payload::text(text),
        Some(Wire::Data(data)) => Payload::data(data),
    };
    let payload = content
        .with_media_type(payload.media_type)
        .map_err(|problem| format!("has a media_type that {problem}"))?;
    payload.check_size()?;
    Ok(Some(payload))
}

/// The message's word for a state.
pub fn to_state(state: JobState) -> pb::job::State {
    match state {
        JobState::Scheduled => pb::job::State::Scheduled,
        JobState::Blocked => pb::job::State::Blocked,
        JobState::Queued => pb::job::State::Queued,
        JobState::Running => pb::job::State::Running,
        JobState::Cancelling => pb::job::State::Cancelling,
        JobState::Succeeded => pb::job::State::Succeeded,
        JobState::Failed => pb::job::State::Failed,
        JobState::Cancelled => pb::job::State::Cancelled,
        JobState::Expired => pb::job::State::Expired,
    }
}

/// The state of a message; `None` for UNSPECIFIED and for numbers that nobody knows.
pub fn from_state(state: i32) -> Option<JobState> {
    JobState::ALL
        .into_iter()
        .find(|known| to_state(*known) as i32 == state)
}

/// The event kind of a message; `None` for UNSPECIFIED and for numbers that nobody knows.
pub fn from_event_type(event_type: i32) -> Option<EventTag> {
    u8::try_from(event_type)
        .ok()
        .and_then(EventTag::from_number)
}

/// The message of a point in time.
pub fn to_timestamp(at: Timestamp) -> prost_types::Timestamp {
    let micros = at.as_micros();
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: (micros.rem_euclid(1_000_000) * 1_000) as i32,
    }
}

/// The point in time of a message, to the microsecond.
///
/// # Errors
/// Where it is outside the range of `google.protobuf.Timestamp`.
pub fn from_timestamp(at: prost_types::Timestamp) -> Result<Timestamp, String> {
    // Source: google/protobuf/timestamp.proto, years 1 to 9999.
    const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    if !SECONDS.contains(&at.seconds) || !(0..1_000_000_000).contains(&at.nanos) {
        return Err("is not a valid timestamp".to_owned());
    }
    let micros = at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000;
    Ok(Timestamp::from_micros(micros))
}

/// The message of a duration.
pub fn to_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

/// The duration of a message, checked against its range.
///
/// # Errors
/// A sentence that names the value and the range.
pub fn from_duration(
    duration: prost_types::Duration,
    range: std::ops::RangeInclusive<Duration>,
) -> Result<Duration, String> {
    let exact = Duration::try_from(duration).ok();
    exact
        .filter(|duration| range.contains(duration))
        .ok_or_else(|| {
            format!(
                "is {}.{:09} s; {:?} to {:?} is accepted",
                duration.seconds,
                duration.nanos.unsigned_abs(),
                range.start(),
                range.end()
            )
        })
}

fn to_progress(progress: Progress) -> pb::Progress {
    pb::Progress {
        fraction: progress.fraction,
        completed_units: progress.completed_units,
        total_units: progress.total_units,
        unit: progress.unit,
        phase: progress.phase,
        message: progress.message,
        units_per_second: progress.units_per_second,
        estimated_end_time: progress.estimated_end_at.map(to_timestamp),
        update_time: progress.updated_at.map(to_timestamp),
    }
}

fn to_error(error: JobError) -> pb::JobError {
    pb::JobError {
        code: error.code as i32,
        message: error.message,
        reason: error.reason,
        retryable: error.retryable,
        metadata: error.metadata.into_iter().collect(),
        detail: error.detail,
    }
}

fn to_log_line(line: LogLine) -> pb::LogLine {
    use pb::log_line::Level;
    let level = match line.level {
        LogLevel::Debug => Level::Debug,
        LogLevel::Info => Level::Info,
        LogLevel::Warn => Level::Warn,
        LogLevel::Error => Level::Error,
    };
    pb::LogLine {
        level: level as i32,
        message: line.message,
        fields: (!line.fields.is_empty()).then(|| json::to_struct(line.fields)),
    }
}

fn to_i32(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_payload_is_known_without_encoding_it() {
        let json = serde_json::json!({
            "": [], "a": {}, "n": null, "b": [true, 1.5, -7, "text", {"deep": ["x".repeat(200)]}],
        });
        let payloads = [
            Payload::json(&json).expect("valid"),
            Payload::json(&serde_json::json!(null)).expect("valid"),
            Payload::text(""),
            Payload::text("x".repeat(127)),
            Payload::text("x".repeat(128)),
            Payload::data(vec![0; 16_384])
                .with_media_type("image/png")
                .expect("valid"),
        ];
        for payload in payloads {
            let message = to_payload(payload.clone());
            assert_eq!(payload.encoded_len(), message.encoded_len(), "{payload:?}");
            assert_eq!(from_payload(message), Ok(Some(payload)));
        }
    }

    #[test]
    fn every_state_and_event_kind_has_a_word_on_the_wire() {
        for state in JobState::ALL {
            assert_eq!(from_state(to_state(state) as i32), Some(state));
        }
        assert_eq!(from_state(0), None);
        assert_eq!(from_state(99), None);
        for number in 1..=7 {
            let wire = pb::EventType::try_from(number).expect("published");
            let tag = from_event_type(number).expect("known");
            let (wire, tag) = (wire.as_str_name().replace('_', ""), format!("{tag:?}"));
            assert_eq!(wire, format!("EVENTTYPE{}", tag.to_uppercase()));
        }
        assert_eq!(from_event_type(0), None);
        assert_eq!(from_event_type(8), None);
    }

    #[test]
    fn times_before_the_epoch_and_between_microseconds_are_kept() {
        let at = Timestamp::from_micros(-1);
        assert_eq!(from_timestamp(to_timestamp(at)), Ok(at));
    }
}
