//! What every field of every request may hold: at its limit accepted, one past it refused by its name.

use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::wire;
use prost_types::value::Kind;
use prost_types::{Duration, ListValue, Timestamp, Value};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Puppets, Setup, TestServer, bad_fields, folder, reason_of, submit_request};

const MEBIBYTE: usize = 1024 * 1024;

/// One call of any kind.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Submit(pb::SubmitRequest),
    Run(pb::RunRequest),
    Get(pb::GetRequest),
    List(pb::ListRequest),
    Wait(pb::WaitRequest),
    Cancel(pb::CancelRequest),
    Watch(pb::WatchJobRequest),
    Events(pb::ListEventsRequest),
}

impl Call {
    pub(crate) async fn make(self, server: &TestServer) -> Result<(), Status> {
        let mut client = server.client.clone();
        match self {
            Self::Submit(request) => client.submit(request).await.map(drop),
            Self::Run(request) => client.run(request).await.map(drop),
            Self::Get(request) => client.get(request).await.map(drop),
            Self::List(request) => client.list(request).await.map(drop),
            Self::Wait(request) => client.wait(request).await.map(drop),
            Self::Cancel(request) => client.cancel(request).await.map(drop),
            Self::Watch(request) => client.watch_job(request).await.map(drop),
            Self::Events(request) => client.list_events(request).await.map(drop),
        }
    }
}

/// The longest name there is.
fn name(bytes: usize) -> String {
    "n".repeat(bytes)
}

fn span(seconds: i64, nanos: i32) -> Option<Duration> {
    Some(Duration { seconds, nanos })
}

fn payload(content: pb::payload::Content, media_type: &str) -> Option<pb::Payload> {
    Some(pb::Payload {
        content: Some(content),
        media_type: media_type.to_owned(),
    })
}

fn text(bytes: usize) -> Option<pb::Payload> {
    payload(pb::payload::Content::Text("x".repeat(bytes)), "")
}

fn json(kind: Kind) -> Option<pb::Payload> {
    payload(pb::payload::Content::Json(Value { kind: Some(kind) }), "")
}

fn nested(depth: usize) -> Option<pb::Payload> {
    let number = Value {
        kind: Some(Kind::NumberValue(1.0)),
    };
    let value = (0..depth).fold(number, |inner, _| Value {
        kind: Some(Kind::ListValue(ListValue {
            values: vec![inner],
        })),
    });
    payload(pb::payload::Content::Json(value), "")
}

fn labels(count: usize) -> std::collections::HashMap<String, String> {
    (0..count)
        .map(|number| (format!("l{number}"), String::new()))
        .collect()
}

fn label(name: &str, value_bytes: usize) -> std::collections::HashMap<String, String> {
    [(name.to_owned(), "v".repeat(value_bytes))].into()
}

/// What is accepted, and the fields of what is refused: of each field of a submit.
fn submits() -> Vec<(pb::SubmitRequest, Option<&'static str>)> {
    let good = submit_request("puppet");
    let with = |change: &dyn Fn(&mut pb::SubmitRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let longest = name(128);
    let field_of_label: &'static str = Box::leak(format!("labels[{:?}]", name(129)).into());
    vec![
        (with(&|r| r.r#type.clone_from(&longest)), None),
        (with(&|r| r.r#type = name(129)), Some("type")),
        (with(&|r| r.r#type.clear()), Some("type")),
        (with(&|r| r.queue = name(128)), None),
        (with(&|r| r.queue = name(129)), Some("queue")),
        (with(&|r| r.queue = "a//b".to_owned()), Some("queue")),
        (with(&|r| r.idempotency_key = "k".repeat(255)), None),
        (
            with(&|r| r.idempotency_key = "k".repeat(256)),
            Some("idempotency_key"),
        ),
        (with(&|r| r.priority = 1_000), None),
        (with(&|r| r.priority = 1_001), Some("priority")),
        (with(&|r| r.priority = -1_000), None),
        (with(&|r| r.priority = -1_001), Some("priority")),
        (with(&|r| r.labels = labels(64)), None),
        (with(&|r| r.labels = labels(65)), Some("labels")),
        (with(&|r| r.labels = label(&name(128), 0)), None),
        (
            with(&|r| r.labels = label(&name(129), 0)),
            Some(field_of_label),
        ),
        (with(&|r| r.labels = label("", 0)), Some("labels[\"\"]")),
        (with(&|r| r.labels = label("l", 255)), None),
        (with(&|r| r.labels = label("l", 256)), Some("labels[\"l\"]")),
        // Tag and a three-byte length stand before the text.
        (with(&|r| r.input = text(MEBIBYTE - 4)), None),
        (with(&|r| r.input = text(MEBIBYTE - 3)), Some("input")),
        (with(&|r| r.input = nested(30)), None),
        (with(&|r| r.input = nested(31)), Some("input")),
        (with(&|r| r.input = json(Kind::NumberValue(f64::MAX))), None),
        (
            with(&|r| r.input = json(Kind::NumberValue(f64::NAN))),
            Some("input"),
        ),
        (
            with(&|r| r.input = json(Kind::NumberValue(f64::INFINITY))),
            Some("input"),
        ),
        (with(&|r| r.input = media_type(&"m".repeat(1_024))), None),
        (
            with(&|r| r.input = media_type(&"m".repeat(1_025))),
            Some("input"),
        ),
        (
            with(&|r| r.input = media_type("text/plain\n")),
            Some("input"),
        ),
        (
            with(&|r| {
                r.input = Some(pb::Payload {
                    content: None,
                    media_type: "text/plain".to_owned(),
                });
            }),
            Some("input"),
        ),
    ]
}

fn media_type(media_type: &str) -> Option<pb::Payload> {
    payload(pb::payload::Content::Text("x".to_owned()), media_type)
}

const YEAR: i64 = 365 * 24 * 3600;

/// The same for every other request, on a job that is there.
fn others(job_id: &str) -> Vec<(Call, Option<&'static str>)> {
    let job_id = || job_id.to_owned();
    let get = |id: &str, view| {
        Call::Get(pb::GetRequest {
            job_id: id.to_owned(),
            view,
        })
    };
    let mut calls = vec![
        (get(&job_id(), 2), None),
        (get("", 0), Some("job_id")),
        (get("not-a-uuid", 0), Some("job_id")),
        (get(&job_id(), 3), Some("view")),
    ];
    let cancel = |reason: usize| {
        Call::Cancel(pb::CancelRequest {
            job_id: job_id(),
            reason: "r".repeat(reason),
        })
    };
    calls.extend([(cancel(1_024), None), (cancel(1_025), Some("reason"))]);

    let wait = pb::WaitRequest {
        job_id: job_id(),
        after_sequence: Some(0),
        ..Default::default()
    };
    let wait = |change: &dyn Fn(&mut pb::WaitRequest)| {
        let mut request = wait.clone();
        change(&mut request);
        Call::Wait(request)
    };
    calls.extend([
        (wait(&|r| r.timeout = span(300, 0)), None),
        (wait(&|r| r.timeout = span(300, 1)), Some("timeout")),
        (wait(&|r| r.timeout = span(0, 0)), None),
        (wait(&|r| r.timeout = span(0, -1)), Some("timeout")),
        (
            wait(&|r| r.timeout = span(i64::MAX, i32::MAX)),
            Some("timeout"),
        ),
        (
            wait(&|r| r.after_sequence = Some(-1)),
            Some("after_sequence"),
        ),
        (wait(&|r| r.view = 3), Some("view")),
    ]);

    let list = |change: &dyn Fn(&mut pb::ListRequest)| {
        let mut request = pb::ListRequest::default();
        change(&mut request);
        Call::List(request)
    };
    let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
    calls.extend([
        (list(&|r| r.page_size = 1_000), None),
        (list(&|r| r.page_size = 1_001), Some("page_size")),
        (list(&|r| r.page_size = -1), Some("page_size")),
        (
            list(&|r| r.page_token = "t".repeat(1_025)),
            Some("page_token"),
        ),
        (list(&|r| r.states = vec![9; 100]), None),
        (list(&|r| r.states = vec![9; 101]), Some("states")),
        (list(&|r| r.states = vec![1, 0]), Some("states[1]")),
        (list(&|r| r.states = vec![10]), Some("states[0]")),
        (list(&|r| r.types = vec![name(128); 100]), None),
        (list(&|r| r.types = vec![name(128); 101]), Some("types")),
        (list(&|r| r.types = vec![name(129)]), Some("types[0]")),
        (list(&|r| r.queues = vec![name(128); 100]), None),
        (list(&|r| r.queues = vec![name(128); 101]), Some("queues")),
        (
            list(&|r| r.queues = vec!["a".to_owned(), String::new()]),
            Some("queues[1]"),
        ),
        (list(&|r| r.idempotency_key = "k".repeat(255)), None),
        (
            list(&|r| r.idempotency_key = "k".repeat(256)),
            Some("idempotency_key"),
        ),
        (
            list(&|r| r.created_after = time(253_402_300_799, 999_999_999)),
            None,
        ),
        (
            list(&|r| r.created_after = time(253_402_300_800, 0)),
            Some("created_after"),
        ),
        (list(&|r| r.created_before = time(-62_135_596_800, 0)), None),
        (
            list(&|r| r.created_before = time(-62_135_596_801, 0)),
            Some("created_before"),
        ),
        (
            list(&|r| r.created_before = time(0, -1)),
            Some("created_before"),
        ),
        (list(&|r| r.view = 3), Some("view")),
    ]);

    let watch = |change: &dyn Fn(&mut pb::WatchJobRequest)| {
        let mut request = crate::harness::watch_request(&job_id());
        change(&mut request);
        Call::Watch(request)
    };
    calls.extend([
        (watch(&|r| r.after_sequence = Some(0)), None),
        (
            watch(&|r| r.after_sequence = Some(-1)),
            Some("after_sequence"),
        ),
        (watch(&|r| r.event_types = vec![6; 100]), None),
        (
            watch(&|r| r.event_types = vec![6; 101]),
            Some("event_types"),
        ),
        (
            watch(&|r| r.event_types = vec![1, 0]),
            Some("event_types[1]"),
        ),
        (watch(&|r| r.event_types = vec![7]), Some("event_types[0]")),
        (watch(&|r| r.min_progress_interval = span(YEAR, 0)), None),
        (
            watch(&|r| r.min_progress_interval = span(YEAR, 1)),
            Some("min_progress_interval"),
        ),
        (
            watch(&|r| r.min_progress_interval = span(-1, 0)),
            Some("min_progress_interval"),
        ),
        (watch(&|r| r.heartbeat_interval = span(1, 0)), None),
        (
            watch(&|r| r.heartbeat_interval = span(0, 999_999_999)),
            Some("heartbeat_interval"),
        ),
        (watch(&|r| r.heartbeat_interval = span(300, 0)), None),
        (
            watch(&|r| r.heartbeat_interval = span(300, 1)),
            Some("heartbeat_interval"),
        ),
    ]);

    let events = |change: &dyn Fn(&mut pb::ListEventsRequest)| {
        let mut request = pb::ListEventsRequest {
            job_id: job_id(),
            ..Default::default()
        };
        change(&mut request);
        Call::Events(request)
    };
    calls.extend([
        (events(&|r| r.page_size = 1_000), None),
        (events(&|r| r.page_size = 1_001), Some("page_size")),
        (events(&|r| r.page_size = -1), Some("page_size")),
        (events(&|r| r.after_sequence = -1), Some("after_sequence")),
        (events(&|r| r.event_types = vec![1; 100]), None),
        (
            events(&|r| r.event_types = vec![1; 101]),
            Some("event_types"),
        ),
        (events(&|r| r.event_types = vec![0]), Some("event_types[0]")),
    ]);
    calls
}

async fn start(dir: &tempfile::TempDir) -> TestServer {
    let puppets = Puppets::default();
    let longest: &'static str = Box::leak(name(128).into_boxed_str());
    let setup = Setup::on(dir.path())
        .config(|config| config.drain_timeout = std::time::Duration::ZERO)
        .job_type_with("puppet", waits(), puppets.clone())
        .job_type_with(longest, waits(), puppets);
    setup.start().await
}

/// Nothing of this type needs to run: one job in the test's hands, the others wait behind it.
fn waits() -> pacenote::config::TypeSettings {
    crate::life::settings(|settings| settings.concurrency = Some(1))
}

async fn check(server: &TestServer, call: Call, refused_field: Option<&str>) {
    let mut what = format!("{call:?}");
    what.truncate(what.floor_char_boundary(300));
    match (call.make(server).await, refused_field) {
        (Ok(()), None) => {}
        (Err(refused), Some(field)) => {
            let expected = (Code::InvalidArgument, "INVALID_FIELD".to_owned());
            assert_eq!(reason_of(&refused), expected, "{what}");
            assert_eq!(bad_fields(&refused), [field], "{what}");
            assert!(
                refused.message().starts_with(field),
                "{}",
                refused.message()
            );
        }
        (answer, field) => panic!("{what}: {answer:?}, expected {field:?}"),
    }
}

/// Goal: each field takes what it promises and not a step more, and its refusal names it exactly.
/// Method: the tables above, through gRPC; those of Submit again within Run, under `submit.`.
#[tokio::test]
async fn every_field_of_a_submit_is_taken_at_its_limit_and_refused_one_past_it() {
    let dir = folder();
    let server = start(&dir).await;
    for (request, field) in submits() {
        check(&server, Call::Submit(request.clone()), field).await;
        let run = pb::RunRequest {
            submit: Some(request),
            ..pb::RunRequest::default()
        };
        let field = field.map(|field| format!("submit.{field}"));
        check(&server, Call::Run(run), field.as_deref()).await;
    }
    check(
        &server,
        Call::Run(pb::RunRequest::default()),
        Some("submit"),
    )
    .await;
    drop(server);
}

#[tokio::test]
async fn every_field_of_the_other_requests_is_taken_at_its_limit_and_refused_one_past_it() {
    let dir = folder();
    let server = start(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    for (call, field) in others(&job.job_id) {
        check(&server, call, field).await;
    }
    drop(server);
}

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
    };
    let of_submit = [
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
