//! `submit` and `submit-batch`: what is typed, or stands in a file, as requests.

use std::path::Path;

use prost_reflect::{DynamicMessage, ReflectMessage};

use crate::cli::jobs::args::SubmitArgs;
use crate::cli::jobs::{Exit, Output, Stop, escape, follow, input};
use crate::client::{Client, RunOptions};
use crate::pb;

/// The request that a line asks for.
///
/// # Errors
/// What is wrong on the line or in the input.
pub(super) fn request(args: &SubmitArgs) -> Result<pb::SubmitRequest, String> {
    let file = if args.stdin.is_some() || args.input.as_deref() == Some("-") {
        Some(Path::new("-"))
    } else {
        args.input_file.as_deref()
    };
    let (source, bytes) = match (file, &args.input) {
        (Some(path), _) if path == Path::new("-") => ("stdin".to_owned(), Some(input::read(path)?)),
        (Some(path), _) => (path.display().to_string(), Some(input::read(path)?)),
        (None, Some(text)) => ("--input".to_owned(), Some(text.clone().into_bytes())),
        (None, None) => (String::new(), None),
    };
    let payload = match (bytes, &args.media_type) {
        (None, _) => None,
        (Some(bytes), Some(media_type)) => Some(input::as_is(bytes, media_type)),
        (Some(bytes), None) => {
            let text = String::from_utf8(bytes)
                .map_err(|error| format!("{source} is not JSON: {}", error.utf8_error()))?;
            Some(input::json(&source, &text)?)
        }
    };
    let mut request = pb::SubmitRequest {
        r#type: args.job_type.clone(),
        input: payload,
        queue: args.queue.clone().unwrap_or_default(),
        idempotency_key: args.idempotency_key.clone().unwrap_or_default(),
        priority: args.priority,
        labels: args.labels.iter().cloned().collect(),
        validate_only: args.validate_only,
        ..pb::SubmitRequest::default()
    };
    args.options.add_to(&mut request);
    Ok(request)
}

/// Stores a job, and watches it if asked.
pub(super) async fn one(
    client: Client,
    request: pb::SubmitRequest,
    watch: bool,
    output: Output,
) -> Result<Exit, Stop> {
    if watch {
        let name = request.r#type.clone();
        let watch = client.run(request, RunOptions::default());
        return follow::follow(watch, &name, output).await;
    }
    let only_checked = request.validate_only;
    let answer = client.submit(request).await?;
    if only_checked {
        return checked(&answer, output);
    }
    let job = answer.job.unwrap_or_default();
    if answer.deduplicated {
        output.note(follow::WAS_THERE);
    }
    if output.json {
        output.submitted(&job, answer.deduplicated)?;
    } else {
        let job_id = escape(&job.job_id);
        output.line(&job_id)?;
        output.note(&format!(
            "follow it with: pacenote watch {job_id} --after 0"
        ));
    }
    Ok(Exit::Success)
}

/// The requests of a file, a line each.
///
/// # Errors
/// What is wrong, and in which line.
pub(super) fn requests(file: &Path) -> Result<pb::BatchSubmitRequest, String> {
    let source = if file == Path::new("-") {
        "stdin".to_owned()
    } else {
        file.display().to_string()
    };
    let text = String::from_utf8(input::read(file)?)
        .map_err(|error| format!("{source} is not JSON: {}", error.utf8_error()))?;
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let requests = lines.map(|(index, line)| {
        request_of_line(line).map_err(|why| format!("{source}, line {}: {why}", index + 1))
    });
    Ok(pb::BatchSubmitRequest {
        requests: requests.collect::<Result<_, String>>()?,
    })
}

fn request_of_line(line: &str) -> Result<pb::SubmitRequest, String> {
    if input::has_wide_integer(line) {
        return Err(
            "has an integer beyond 2^53, which JSON numbers do not hold exactly; send such an input \
             as text with media_type application/json"
                .to_owned(),
        );
    }
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let descriptor = pb::SubmitRequest::default().descriptor();
    let message = DynamicMessage::deserialize(descriptor, &mut deserializer);
    let message = message.and_then(|message| deserializer.end().map(|()| message));
    let message = message.map_err(|error| format!("is no SubmitRequest: {error}"))?;
    let request = message.transcode_to();
    request.map_err(|error| format!("is no SubmitRequest: {error}"))
}

/// Stores jobs together, and prints a line for each.
pub(super) async fn batch(
    client: Client,
    request: pb::BatchSubmitRequest,
    output: Output,
) -> Result<Exit, Stop> {
    let answer = client.batch_submit(request).await?;
    let known = answer.responses.iter().filter(|one| one.deduplicated);
    let (known, all) = (known.count(), answer.responses.len());
    for one in &answer.responses {
        let job = one.job.clone().unwrap_or_default();
        if output.json {
            output.submitted(&job, one.deduplicated)?;
        } else {
            output.line(&escape(&job.job_id))?;
        }
    }
    let batch = match answer.batch_id.as_str() {
        "" => "no batch of their own".to_owned(),
        id => format!("batch {}", escape(id)),
    };
    output.note(&format!(
        "{batch}: {all} jobs, {known} of them there before"
    ));
    Ok(Exit::Success)
}

/// Says that a request is good.
fn checked(answer: &pb::SubmitResponse, output: Output) -> Result<Exit, Stop> {
    if output.json {
        let deduplicated = answer.deduplicated;
        output.line(&format!("{{\"deduplicated\":{deduplicated}}}"))?;
    }
    output.note(if answer.deduplicated {
        "the request is good, and its job is there already; nothing was stored"
    } else {
        "the request is good; nothing was stored"
    });
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request_in_canonical_json() {
        let line = r#"{"type":"sleep","input":{"json":{"seconds":1}},"delay":"1.5s","priority":2}"#;
        let request = request_of_line(line).expect("it is right");
        assert_eq!((request.r#type.as_str(), request.priority), ("sleep", 2));
        let delay = prost_types::Duration {
            seconds: 1,
            nanos: 500_000_000,
        };
        let start = pb::submit_request::Start::Delay(delay);
        assert_eq!(request.start, Some(start));
    }

    #[test]
    fn a_line_that_is_no_request_is_refused() {
        for (line, why) in [
            ("{", "no SubmitRequest"),
            ("[]", "no SubmitRequest"),
            (r#"{"kind":"sleep"}"#, "kind"),
            (r#"{"type":"a"} {"type":"b"}"#, "trailing"),
            (r#"{"type":"a","input":{"json":9007199254740993}}"#, "2^53"),
        ] {
            let error = request_of_line(line).expect_err(line);
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
