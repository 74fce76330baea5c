//! What every field of every request may hold: at its limit accepted, one past it refused by its name.

use pacenote::pb;
use prost_types::value::Kind;
use prost_types::{Duration, ListValue, Timestamp, Value};
use tonic::{Code, Status};

use crate::harness::{Puppets, Setup, TestServer, bad_fields, folder, reason_of, submit_request};

pub(crate) const MEBIBYTE: usize = 1024 * 1024;

/// One call of any kind.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Submit(pb::SubmitRequest),
    Batch(pb::BatchSubmitRequest),
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
            Self::Batch(request) => client.batch_submit(request).await.map(drop),
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

pub(crate) fn span(seconds: i64, nanos: i32) -> Option<Duration> {
    Some(Duration { seconds, nanos })
}

fn payload(content: pb::payload::Content, media_type: &str) -> Option<pb::Payload> {
    Some(pb::Payload {
        content: Some(content),
        media_type: media_type.to_owned(),
    })
}

pub(crate) fn text(bytes: usize) -> Option<pb::Payload> {
    payload(pb::payload::Content::Text("x".repeat(bytes)), "")
}

pub(crate) fn json(kind: Kind) -> Option<pb::Payload> {
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

pub(crate) fn label(name: &str, value_bytes: usize) -> std::collections::HashMap<String, String> {
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

pub(crate) const YEAR: i64 = 365 * 24 * 3600;

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
        (get(&job_id().to_uppercase(), 0), None),
        (get(&job_id().replace('-', ""), 0), Some("job_id")),
        (get(&format!("{{{}}}", job_id()), 0), Some("job_id")),
        (get(&format!("urn:uuid:{}", job_id()), 0), Some("job_id")),
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
        (watch(&|r| r.event_types = vec![8]), Some("event_types[0]")),
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

pub(crate) async fn start(dir: &tempfile::TempDir) -> TestServer {
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

pub(crate) async fn check(server: &TestServer, call: Call, refused_field: Option<&str>) {
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
