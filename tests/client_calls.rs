//! The client's unary calls against a scripted server: what is sent again, what is not, and what a
//! caller is told.

mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fake::{Answers, Fake, JOB_ID, hasty, job, status};
use pacenote::client::{Backoff, Client, ClientError, Settings};
use pacenote::pb;
use pacenote::pb::job::State;
use tonic::{Code, Status};

fn submit_request(key: &str) -> pb::SubmitRequest {
    pb::SubmitRequest {
        r#type: "pages".to_owned(),
        idempotency_key: key.to_owned(),
        ..pb::SubmitRequest::default()
    }
}

fn submit_fails_once(first: Status) -> Answers {
    Answers {
        submit: Box::new(move |_, before| match before {
            0 => Err(first.clone()),
            _ => Ok(pb::SubmitResponse {
                job: Some(job(State::Queued, 1)),
                deduplicated: false,
            }),
        }),
        ..Answers::default()
    }
}

fn get_fails(times: usize, with: Status) -> Answers {
    Answers {
        get: Box::new(move |_, before| {
            if before < times {
                return Err(with.clone());
            }
            Ok(pb::GetResponse {
                job: Some(job(State::Running, 3)),
            })
        }),
        ..Answers::default()
    }
}

#[tokio::test]
async fn a_submit_without_a_key_is_sent_once_whatever_happens() {
    let fake = Fake::start(submit_fails_once(status(
        Code::Unavailable,
        "OUTCOME_UNKNOWN",
        None,
    )))
    .await;
    let error = fake.client().await.submit(submit_request("")).await;
    let error = error.expect_err("the first answer stands");
    assert_eq!(error.reason(), "OUTCOME_UNKNOWN");
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
    assert_eq!(fake.asked(|asked| asked.submit.len()), 1);
}

#[tokio::test]
async fn a_submit_with_a_key_is_sent_again_with_the_same_key() {
    let fake = Fake::start(submit_fails_once(status(
        Code::Unavailable,
        "OUTCOME_UNKNOWN",
        None,
    )))
    .await;
    let answer = fake.client().await.submit(submit_request("k1")).await;
    assert_eq!(
        answer.expect("the second try").job.expect("a job").job_id,
        JOB_ID
    );
    let keys = fake.asked(|asked| {
        let keys = asked.submit.iter().map(|r| r.idempotency_key.clone());
        keys.collect::<Vec<_>>()
    });
    assert_eq!(keys, ["k1", "k1"]);
}

#[tokio::test]
async fn only_unavailable_and_a_dated_exhaustion_are_sent_again() {
    let soon = Some(Duration::from_millis(1));
    let cases = [
        (Code::Unavailable, None, 2),
        (Code::ResourceExhausted, soon, 2),
        (Code::ResourceExhausted, None, 1),
        (Code::NotFound, None, 1),
        (Code::InvalidArgument, None, 1),
        (Code::FailedPrecondition, None, 1),
        (Code::AlreadyExists, None, 1),
        (Code::PermissionDenied, None, 1),
        (Code::Unauthenticated, None, 1),
        (Code::Unimplemented, None, 1),
        (Code::Internal, None, 1),
        (Code::Unknown, None, 1),
        (Code::DeadlineExceeded, None, 1),
    ];
    for (code, retry_after, tries) in cases {
        let fake = Fake::start(get_fails(1, status(code, "REASON", retry_after))).await;
        let answer = fake.client().await.get(JOB_ID).await;
        assert_eq!(answer.is_ok(), tries == 2, "{code:?}");
        assert_eq!(fake.asked(|asked| asked.get.len()), tries, "{code:?}");
    }
}

#[tokio::test]
async fn tries_are_bounded() {
    let fake = Fake::start(get_fails(100, Status::unavailable("gone"))).await;
    let settings = Settings {
        tries_max: 3,
        ..hasty()
    };
    let client = Client::connect_with(fake.address.to_string(), settings)
        .await
        .expect("the fake is there");
    client.get(JOB_ID).await.expect_err("never answered");
    assert_eq!(fake.asked(|asked| asked.get.len()), 3);
}

#[tokio::test]
async fn the_wait_that_the_server_asks_for_is_kept() {
    let asked = Duration::from_millis(150);
    let fake = Fake::start(get_fails(
        1,
        status(Code::ResourceExhausted, "QUOTA", Some(asked)),
    ))
    .await;
    let settings = Settings {
        backoff: Backoff {
            initial: Duration::from_millis(1),
            max: Duration::from_secs(1),
        },
        ..Settings::default()
    };
    let client = Client::connect_with(fake.address.to_string(), settings)
        .await
        .expect("the fake is there");
    let start = Instant::now();
    client.get(JOB_ID).await.expect("the second try");
    assert!(start.elapsed() >= asked);
}

#[tokio::test]
async fn a_wait_longer_than_the_longest_backoff_is_left_to_the_caller() {
    let asked = Duration::from_secs(3600);
    let fake = Fake::start(get_fails(
        1,
        status(Code::ResourceExhausted, "QUOTA", Some(asked)),
    ))
    .await;
    let error = fake.client().await.get(JOB_ID).await.expect_err("too long");
    assert_eq!(error.retry_after(), Some(asked));
}

#[tokio::test]
async fn every_safe_call_survives_a_connection_that_is_cut() {
    let fake = Arc::new(std::sync::OnceLock::<Fake>::new());
    fn cut_first(fake: &std::sync::OnceLock<Fake>, before: usize) {
        if before == 0 {
            fake.get().expect("started before it is asked").cut();
        }
    }
    let (a, b, c, d, e) = (
        fake.clone(),
        fake.clone(),
        fake.clone(),
        fake.clone(),
        fake.clone(),
    );
    let answers = Answers {
        get: Box::new(move |_, before| {
            cut_first(&a, before);
            let job = Some(job(State::Running, 3));
            Ok(pb::GetResponse { job })
        }),
        list: Box::new(move |_, before| {
            cut_first(&b, before);
            Ok(pb::ListResponse::default())
        }),
        wait: Box::new(move |_, before| {
            cut_first(&c, before);
            Ok(pb::WaitResponse::default())
        }),
        cancel: Box::new(move |_, before| {
            cut_first(&d, before);
            let job = Some(job(State::Cancelling, 4));
            Ok(pb::CancelResponse { job })
        }),
        list_events: Box::new(move |_, before| {
            cut_first(&e, before);
            Ok(pb::ListEventsResponse::default())
        }),
        ..Answers::default()
    };
    let started = Fake::start(answers).await;
    let client = started.client().await;
    assert!(fake.set(started).is_ok(), "set once");
    client.get(JOB_ID).await.expect("get");
    client.list(pb::ListRequest::default()).await.expect("list");
    client.wait(JOB_ID, None).await.expect("wait");
    client.cancel(JOB_ID, "enough").await.expect("cancel");
    let events = client.list_events(pb::ListEventsRequest::default()).await;
    events.expect("list_events");
}

#[tokio::test]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("bound");
    let settings = Settings {
        call_deadline: Duration::from_millis(100),
        ..hasty()
    };
    // The system accepts the connection; nobody ever reads from it.
    let client = Client::connect_with(address.to_string(), settings)
        .await
        .expect("connected");
    let error = client.get(JOB_ID).await.expect_err("no answer");
    assert_eq!(error.to_string(), "no answer within 100ms");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_connect_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let error = Client::connect(address)
        .await
        .expect_err("nobody is listening");
    assert!(matches!(error, ClientError::Connect { .. }));
    assert!(error.to_string().contains("refused"), "{error}");
}
