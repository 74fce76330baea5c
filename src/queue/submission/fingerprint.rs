//! What a request is known by: equal requests have equal fingerprints, however they were written.

use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::job::payload::Content;
use crate::job::policy::OnConflict;
use crate::queue::submission::{
    RetryOverrides, Start, Submission, TimeoutOverrides, UniqueRequest,
};

/// SHA-256 over the request as it was sent, normalised, without its key and with no defaults filled
/// in; in hex.
pub(super) fn fingerprint(submission: &Submission) -> String {
    // Every field by its name, so that a new one changes nothing where it is not given.
    let Submission {
        tenant: _,
        idempotency_key: _,
        unreadable: _,
        job_type,
        input,
        queue,
        priority,
        labels,
        start,
        retry_policy,
        timeouts,
        retention,
        concurrency_key,
        unique,
    } = submission;
    let mut print = Print(Sha256::new());
    print.text("type", job_type);
    print.text("queue", queue);
    if *priority != 0 {
        print.bytes("priority", &priority.to_le_bytes());
    }
    if let Ok(Some(input)) = input {
        let kind = match input.content() {
            Content::Json(_) => "input.json",
            Content::Text(_) => "input.text",
            Content::Data(_) => "input.data",
        };
        print.bytes(kind, input.as_bytes());
        let media_type = input.given_media_type().unwrap_or_default();
        print.text("input.media_type", media_type);
    }
    for (name, value) in labels {
        print.bytes("label.name", name.as_bytes());
        print.bytes("label.value", value.as_bytes());
    }
    match start {
        Start::AtOnce => {}
        Start::At(at) => print.bytes("schedule_time", &at.as_micros().to_le_bytes()),
        Start::After(delay) => print.span("delay", Some(*delay)),
    }
    print.retry_policy(retry_policy);
    print.timeouts(timeouts);
    print.span("retention", *retention);
    print.text("concurrency_key", concurrency_key);
    if let Some(unique) = unique {
        print.unique(unique);
    }
    let digest = print.0.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What has been put in so far.
struct Print(Sha256);

impl Print {
    /// A part with its name; each with its length before it, so that no two requests run together.
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        for part in [name.as_bytes(), bytes] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    /// A text, unless it is empty, which is not given.
    fn text(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.bytes(name, text.as_bytes());
        }
    }

    fn span(&mut self, name: &str, span: Option<Duration>) {
        if let Some(span) = span {
            self.bytes(name, &span.as_nanos().to_le_bytes());
        }
    }

    fn retry_policy(&mut self, given: &RetryOverrides) {
        let RetryOverrides {
            max_attempts,
            initial_backoff,
            max_backoff,
            backoff_multiplier,
            non_retryable_reasons,
        } = given;
        if let Some(attempts) = max_attempts {
            self.bytes("max_attempts", &attempts.to_le_bytes());
        }
        self.span("initial_backoff", *initial_backoff);
        self.span("max_backoff", *max_backoff);
        if let Some(multiplier) = backoff_multiplier {
            self.bytes("backoff_multiplier", &multiplier.to_le_bytes());
        }
        for reason in non_retryable_reasons {
            self.bytes("non_retryable_reasons", reason.as_bytes());
        }
    }

    fn timeouts(&mut self, given: &TimeoutOverrides) {
        let TimeoutOverrides {
            queue_timeout,
            run_timeout,
            total_timeout,
            heartbeat_timeout,
            cancel_grace,
            stall_time,
        } = given;
        self.span("queue_timeout", *queue_timeout);
        self.span("run_timeout", *run_timeout);
        self.span("total_timeout", *total_timeout);
        self.span("heartbeat_timeout", *heartbeat_timeout);
        self.span("cancel_grace", *cancel_grace);
        self.span("stall_time", *stall_time);
    }

    fn unique(&mut self, unique: &UniqueRequest) {
        let UniqueRequest {
            key,
            on_conflict,
            window,
        } = unique;
        self.bytes("unique.key", key.as_bytes());
        if let Some(on_conflict) = on_conflict {
            let word = match on_conflict {
                OnConflict::ReturnExisting => "return",
                OnConflict::Reject => "reject",
                OnConflict::ReplaceWaiting => "replace",
                OnConflict::CancelRunning => "cancel",
            };
            self.text("unique.on_conflict", word);
        }
        self.span("unique.window", *window);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::job::payload::Payload;
    use crate::job::time::Timestamp;

    type With = Box<dyn Fn(&mut Submission)>;

    fn with(change: impl Fn(&mut Submission) + 'static) -> With {
        Box::new(change)
    }

    /// One change of each thing that a request can say.
    fn changes() -> Vec<With> {
        let second = Duration::from_secs(1);
        let unique = |key: &str, on_conflict, window| UniqueRequest {
            key: key.to_owned(),
            on_conflict,
            window,
        };
        vec![
            with(|_| {}),
            with(|s| s.job_type = "u".to_owned()),
            with(|s| s.input = Ok(Some(Payload::text("x")))),
            with(|s| s.input = Ok(Some(Payload::data("x")))),
            with(|s| s.input = Payload::json(&"x".into()).map(Some)),
            with(|s| s.input = Payload::text("x").with_media_type("a/b").map(Some)),
            with(|s| s.queue = "q".to_owned()),
            with(|s| s.priority = 1),
            with(|s| s.labels = [("a".to_owned(), "b".to_owned())].into()),
            with(|s| s.labels = [("b".to_owned(), "a".to_owned())].into()),
            with(|s| s.start = Start::At(Timestamp::from_micros(7))),
            with(|s| s.start = Start::At(Timestamp::from_micros(8))),
            with(|s| s.start = Start::After(Duration::ZERO)),
            with(|s| s.start = Start::After(Duration::from_nanos(1))),
            with(|s| s.retry_policy.max_attempts = Some(1)),
            with(move |s| s.retry_policy.initial_backoff = Some(second)),
            with(move |s| s.retry_policy.max_backoff = Some(second)),
            with(|s| s.retry_policy.backoff_multiplier = Some(1.5)),
            with(|s| s.retry_policy.non_retryable_reasons = vec!["AB".to_owned()]),
            with(|s| {
                s.retry_policy.non_retryable_reasons = vec!["A".to_owned(), "B".to_owned()];
            }),
            with(move |s| s.timeouts.queue_timeout = Some(second)),
            with(move |s| s.timeouts.run_timeout = Some(second)),
            with(move |s| s.timeouts.total_timeout = Some(second)),
            with(move |s| s.timeouts.heartbeat_timeout = Some(second)),
            with(move |s| s.timeouts.cancel_grace = Some(second)),
            with(move |s| s.timeouts.stall_time = Some(second)),
            with(move |s| s.retention = Some(second)),
            with(|s| s.concurrency_key = "q".to_owned()),
            with(move |s| s.unique = Some(unique("q", None, None))),
            with(move |s| s.unique = Some(unique("q", Some(OnConflict::ReturnExisting), None))),
            with(move |s| s.unique = Some(unique("q", Some(OnConflict::Reject), None))),
            with(move |s| s.unique = Some(unique("q", Some(OnConflict::ReplaceWaiting), None))),
            with(move |s| s.unique = Some(unique("q", Some(OnConflict::CancelRunning), None))),
            with(move |s| s.unique = Some(unique("q", None, Some(second)))),
        ]
    }

    fn print(change: impl Fn(&mut Submission)) -> String {
        let mut submission = Submission::new("t", None);
        change(&mut submission);
        fingerprint(&submission)
    }

    #[test]
    fn each_thing_that_a_request_says_changes_its_fingerprint() {
        let changes = changes();
        let prints: BTreeSet<String> = changes.iter().map(print).collect();
        assert_eq!(prints.len(), changes.len());
    }

    #[test]
    fn neither_the_key_nor_the_order_of_labels_does() {
        let key = print(|s| s.idempotency_key = "k".to_owned());
        assert_eq!(key, print(|_| {}));
        let pair = |name: &str| (name.to_owned(), "v".to_owned());
        assert_eq!(
            print(|s| s.labels = [pair("a"), pair("b")].into()),
            print(|s| s.labels = [pair("b"), pair("a")].into())
        );
    }
}
