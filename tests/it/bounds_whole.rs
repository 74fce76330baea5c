//! A request as a whole: everything that is wrong with it at once, its own size, and that its refusal can
//! be read.

use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::wire;
use prost_types::Timestamp;
use prost_types::value::Kind;
use tonic::Code;
use tonic_types::StatusExt;

use crate::bounds::{Call, MEBIBYTE, json, label, span, start, text};
use crate::harness::{bad_fields, folder, submit_request};

#[tokio::test]
async fn all_that_is_wrong_with_a_request_is_told_at_once() {
    let dir = folder();
    let server = start(&dir).await;
    let submit = pb::SubmitRequest {
        r#type: "a b".to_owned(),
        queue: "/".to_owned(),
        idempotency_key: "k".repeat(256),
        priority: 1_001,
        labels: label("l", 256),
        input: text(MEBIBYTE),
        retry_policy: Some(pb::RetryPolicy {
            max_attempts: 101,
            backoff_multiplier: 11.0,
            ..pb::RetryPolicy::default()
        }),
        timeouts: Some(pb::Timeouts {
            run_timeout: span(0, 0),
            stall_time: span(-1, 0),
            ..pb::Timeouts::default()
        }),
        start: span(-1, 0).map(pb::submit_request::Start::Delay),
        retention: span(-1, 0),
        concurrency_key: "a b".to_owned(),
        unique: Some(pb::UniquePolicy {
            on_conflict: 9,
            ..pb::UniquePolicy::default()
        }),
        ..pb::SubmitRequest::default()
    };
    let of_submit = [
        "retry_policy.max_attempts",
        "retry_policy.backoff_multiplier",
        "timeouts.run_timeout",
        "timeouts.stall_time",
        "delay",
        "retention",
        "concurrency_key",
        "unique.on_conflict",
        "unique.key",
        "type",
        "queue",
        "idempotency_key",
        "priority",
        "labels[\"l\"]",
        "input",
    ];
    let run = pb::RunRequest {
        submit: Some(submit.clone()),
        event_types: vec![0],
        min_progress_interval: span(-1, 0),
        heartbeat_interval: span(0, 0),
    };
    let mut of_run = vec![
        "event_types[0]",
        "min_progress_interval",
        "heartbeat_interval",
    ];
    let prefixed: Vec<String> = of_submit
        .iter()
        .map(|field| format!("submit.{field}"))
        .collect();
    of_run.extend(prefixed.iter().map(String::as_str));
    let list = pb::ListRequest {
        page_size: -1,
        page_token: "t".repeat(1_025),
        states: vec![0],
        types: vec![String::new()],
        queues: vec![String::new()],
        idempotency_key: "k".repeat(256),
        created_after: Some(Timestamp {
            seconds: 0,
            nanos: -1,
        }),
        created_before: Some(Timestamp {
            seconds: 0,
            nanos: -1,
        }),
        view: 3,
    };
    let of_list = vec![
        "page_size",
        "page_token",
        "states[0]",
        "types[0]",
        "queues[0]",
        "idempotency_key",
        "created_after",
        "created_before",
        "view",
    ];
    let wait = pb::WaitRequest {
        job_id: "x".to_owned(),
        timeout: span(-1, 0),
        after_sequence: Some(-1),
        view: 3,
    };
    let events = pb::ListEventsRequest {
        job_id: "x".to_owned(),
        after_sequence: -1,
        page_size: -1,
        event_types: vec![0],
    };
    let watch = pb::WatchJobRequest {
        job_id: "x".to_owned(),
        after_sequence: Some(-1),
        event_types: vec![0],
        min_progress_interval: span(-1, 0),
        heartbeat_interval: span(0, 0),
    };
    let get = pb::GetRequest {
        job_id: "x".to_owned(),
        view: 3,
    };
    let cancel = pb::CancelRequest {
        job_id: "x".to_owned(),
        reason: "r".repeat(1_025),
    };
    for (call, fields) in [
        (Call::Submit(submit), of_submit.to_vec()),
        (Call::Run(run), of_run),
        (Call::List(list), of_list),
        (
            Call::Wait(wait),
            vec!["job_id", "timeout", "after_sequence", "view"],
        ),
        (
            Call::Events(events),
            vec!["job_id", "after_sequence", "page_size", "event_types[0]"],
        ),
        (
            Call::Watch(watch),
            vec![
                "job_id",
                "after_sequence",
                "event_types[0]",
                "min_progress_interval",
                "heartbeat_interval",
            ],
        ),
        (Call::Get(get), vec!["job_id", "view"]),
        (Call::Cancel(cancel), vec!["job_id", "reason"]),
    ] {
        let what = format!("{call:.60?}");
        let refused = call.make(&server).await.expect_err("everything is wrong");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let (mut told, mut fields) = (bad_fields(&refused), fields);
        told.sort();
        fields.sort_unstable();
        assert_eq!(told, fields, "{what}");
    }
    drop(server);
}

/// Goal: the whole request has a bound of its own, above those of its fields. Method: a field that is
/// wrong by itself, so large that the request is at the bound, and one byte past it.
#[tokio::test]
async fn a_request_is_taken_up_to_four_mebibytes() {
    let dir = folder();
    let server = start(&dir).await;
    // Tag and a four-byte length stand before the text.
    for (bytes, field) in [(4 * MEBIBYTE - 5, "job_id"), (4 * MEBIBYTE - 4, "request")] {
        let get = pb::GetRequest {
            job_id: "x".repeat(bytes),
            view: 0,
        };
        let refused = Call::Get(get).make(&server).await.expect_err("no id");
        assert_eq!(bad_fields(&refused), [field]);
    }
    drop(server);
}

/// Goal: a refusal can always be read, however large the names in it. Method: names of half a megabyte,
/// and more faults than any header holds.
#[tokio::test]
async fn a_refusal_fits_into_the_headers_that_clients_take() {
    let dir = folder();
    let server = start(&dir).await;
    let huge = pb::SubmitRequest {
        labels: (0..6)
            .map(|n| (format!("{n}{}", "é".repeat(250_000)), String::new()))
            .collect(),
        ..submit_request("puppet")
    };
    let many = pb::ListRequest {
        types: vec!["é".repeat(500); 100],
        states: vec![0; 100],
        ..pb::ListRequest::default()
    };
    for call in [Call::Submit(huge), Call::List(many)] {
        let refused = call.make(&server).await.expect_err("wrong names");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        // As they travel: base64, and three bytes for each byte that is not ASCII.
        let message = refused
            .message()
            .chars()
            .map(|c| if c.is_ascii() { 1 } else { 3 * c.len_utf8() });
        let bytes = refused.details().len() * 4 / 3 + message.sum::<usize>();
        assert!(bytes < 8 * 1024, "{bytes} bytes");
        let details = refused.get_error_details();
        assert!(
            details
                .bad_request()
                .is_some_and(|bad| !bad.field_violations.is_empty())
        );
    }
    drop(server);
}

#[tokio::test]
async fn numbers_that_json_cannot_say_are_refused_with_advice() {
    let dir = folder();
    let server = start(&dir).await;
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let request = pb::SubmitRequest {
            input: json(Kind::NumberValue(number)),
            ..submit_request("puppet")
        };
        let refused = server
            .client
            .clone()
            .submit(request)
            .await
            .expect_err("no JSON");
        assert!(
            refused.message().contains("application/json"),
            "{}",
            refused.message()
        );
    }
    let text = Payload::text("9007199254740993").with_media_type("application/json");
    let request = pb::SubmitRequest {
        input: Some(wire::to_payload(text.expect("a media type"))),
        ..submit_request("puppet")
    };
    server
        .client
        .clone()
        .submit(request)
        .await
        .expect("as the advice says");
    drop(server);
}
