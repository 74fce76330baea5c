//! What the pool runs at once, in which order, and what handlers see of their jobs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use pacenote::client::request;
use pacenote::executor::handler::{Context, HandlerError, HandlerExecutor};
use pacenote::executor::{Attempt, Executor};
use pacenote::job::Outcome;
use pacenote::job::event::{LogLevel, LogLine};
use pacenote::job::limits::JSON_DEPTH_MAX;
use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::wire;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use crate::harness::{
    Puppets, Setup, TestServer, bad_fields, folder, reason_of, soon, submit_request,
};
use crate::life::{check_finished, settings};

/// Attempts that run now, and the most there ever were.
#[derive(Clone, Copy, Default, Debug)]
struct Count {
    now: usize,
    most: usize,
}

/// Counts its attempts, of its own type and of all, and holds each until so many ran at once.
#[derive(Clone)]
struct Counted {
    own: Arc<watch::Sender<Count>>,
    all: Arc<watch::Sender<Count>>,
    all_at_once: usize,
}

impl Executor for Counted {
    fn run(&self, _: Attempt) -> BoxFuture<'static, Outcome> {
        let Self {
            own,
            all,
            all_at_once,
        } = self.clone();
        Box::pin(async move {
            for count in [&own, &all] {
                count.send_modify(|count| {
                    count.now += 1;
                    count.most = count.most.max(count.now);
                });
            }
            let enough = |count: &Count| count.most >= all_at_once;
            soon(all.subscribe().wait_for(enough)).await.expect("open");
            for count in [&own, &all] {
                count.send_modify(|count| count.now -= 1);
            }
            Outcome::Succeeded(None)
        })
    }
}

/// Goal: neither a type nor the pool ever runs more than it may, both bounds are reached, and all jobs
/// run. Method: forty jobs of two types that hold their places until five run at once.
#[tokio::test]
async fn no_more_run_at_once_than_the_type_and_the_pool_allow_and_all_of_them_run() {
    let dir = folder();
    let all = Arc::new(watch::Sender::new(Count::default()));
    let counted = || Counted {
        own: Arc::new(watch::Sender::new(Count::default())),
        all: Arc::clone(&all),
        all_at_once: 5,
    };
    let (narrow, wide) = (counted(), counted());
    let three = settings(|settings| settings.concurrency = Some(3));
    let setup = Setup::on(dir.path())
        .config(|config| config.workers = 5)
        .job_type_with("narrow", three, narrow.clone())
        .job_type("wide", wide.clone());
    let server = setup.start().await;
    let submits = (0..40).map(|number| {
        let job_type = if number < 20 { "narrow" } else { "wide" };
        server.submit(submit_request(job_type))
    });
    let jobs = join_all(submits).await;
    for job in jobs {
        assert_eq!(server.end_of(&job.job_id).await.state(), State::Succeeded);
    }
    assert!(narrow.own.borrow().most <= 3, "{:?}", narrow.own.borrow());
    assert_eq!(all.borrow().most, 5);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_full_type_takes_exactly_its_places_and_the_next_job_one_that_is_free() {
    let dir = folder();
    let puppets = Puppets::default();
    let three = settings(|settings| settings.concurrency = Some(3));
    let setup = Setup::on(dir.path()).job_type_with("puppet", three, puppets.clone());
    let server = setup.start().await;
    let jobs = join_all((0..20).map(|_| server.submit(submit_request("puppet")))).await;
    let mut running = Vec::new();
    for _ in 0..3 {
        running.push(puppets.next().await);
    }
    for ended in 0..20 {
        // Whatever was going to begin has begun once the writer has nothing more to do.
        server.queue.settle().await;
        assert!(puppets.is_idle().await, "more than three run");
        running.remove(0).succeed();
        if ended < 17 {
            running.push(puppets.next().await);
        }
    }
    for job in jobs {
        assert_eq!(server.end_of(&job.job_id).await.state(), State::Succeeded);
    }
    server.stop().await.expect("a clean end");
}

/// Never comes back, whatever it is told. The test hears of each attempt that begins, and of its end.
struct Stubborn(mpsc::UnboundedSender<oneshot::Receiver<()>>);

impl Executor for Stubborn {
    fn run(&self, _: Attempt) -> BoxFuture<'static, Outcome> {
        let (alive, gone) = oneshot::channel();
        self.0.send(gone).expect("the test is there");
        Box::pin(async move {
            let _alive: oneshot::Sender<()> = alive;
            std::future::pending().await
        })
    }
}

/// Goal: an executor that breaks its promise to come back holds up neither its job nor its place. Method:
/// the real ten seconds beyond its grace, and another job that waits for the only place of the type.
#[tokio::test]
async fn an_executor_that_ignores_its_stop_is_left_behind_after_its_grace() {
    let dir = folder();
    let (begun, mut attempts) = mpsc::unbounded_channel();
    let one = settings(|settings| {
        settings.concurrency = Some(1);
        settings.timeouts.cancel_grace = Duration::from_millis(50);
    });
    let setup = Setup::on(dir.path()).job_type_with("stubborn", one, Stubborn(begun));
    let server = setup.start().await;
    let job = server.submit(submit_request("stubborn")).await;
    let next = server.submit(submit_request("stubborn")).await;
    let gone = soon(attempts.recv()).await.expect("it begins");
    let told = Instant::now();
    assert_eq!(server.cancel(&job.job_id).await.state(), State::Cancelling);
    let end = server.end_of(&job.job_id).await;
    assert_eq!(end.state(), State::Cancelled);
    assert!(told.elapsed() >= Duration::from_secs(10), "it had its time");
    check_finished(&server.log(&job.job_id).await);
    // Dropped, which ends what it had started; it has nothing to answer.
    soon(gone).await.expect_err("it never answers");
    soon(attempts.recv()).await.expect("its place is free");
    assert_eq!(server.get(&next.job_id).await.state(), State::Running);
}

#[tokio::test]
async fn higher_priority_runs_first_and_equals_run_in_the_order_they_came() {
    let dir = folder();
    let puppets = Puppets::default();
    let one = settings(|settings| settings.concurrency = Some(1));
    let setup = Setup::on(dir.path()).job_type_with("puppet", one, puppets.clone());
    let server = setup.start().await;
    server.submit(submit_request("puppet")).await;
    let mut running = puppets.next().await;
    let mut waiting = Vec::new();
    for priority in [0, 5, -1_000, 5, 1_000, 0] {
        let request = pb::SubmitRequest {
            priority,
            ..submit_request("puppet")
        };
        waiting.push(server.submit(request).await);
    }
    for index in [4, 1, 3, 0, 5, 2] {
        running.succeed();
        running = puppets.next().await;
        assert_eq!(
            running.attempt.key.id.to_string(),
            waiting[index].job_id,
            "{index}"
        );
    }
    running.succeed();
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn everything_of_a_submit_comes_back() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let input = wire::to_payload(Payload::json(&json!({"b": 1.0, "a": "\u{0}é"})).expect("JSON"));
    let request = pb::SubmitRequest {
        r#type: "puppet".to_owned(),
        input: Some(input.clone()),
        queue: "video/high".to_owned(),
        idempotency_key: "order 7 \u{0}ü".to_owned(),
        priority: -7,
        labels: [("team", "é \u{0}"), ("empty", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..pb::SubmitRequest::default()
    };
    let basic = server.submit(request.clone()).await;
    assert_eq!(basic.input, None, "BASIC");
    let puppet = puppets.next().await;
    assert_eq!(puppet.attempt.job_type.as_str(), "puppet");
    let seen = puppet.attempt.input.clone().expect("an input");
    assert_eq!(seen.as_bytes(), "{\"a\":\"\\u0000é\",\"b\":1}".as_bytes());
    let job = server.get(&basic.job_id).await;
    assert_eq!(job.r#type, request.r#type);
    assert_eq!(job.input, Some(input));
    assert_eq!(job.queue, request.queue);
    assert_eq!(job.labels, request.labels);
    assert_eq!(job.priority, request.priority);
    assert_eq!(job.idempotency_key, request.idempotency_key);
    assert_eq!(job.tenant, "default");
    let by_queue = pb::ListRequest {
        queues: vec!["video/high".to_owned()],
        ..pb::ListRequest::default()
    };
    assert_eq!(server.all_jobs(by_queue).await.len(), 1);
    puppet.succeed();
    server.stop().await.expect("a clean end");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    width: u32,
    name: String,
}

#[derive(Serialize)]
struct Resized {
    pixels: u64,
    file: String,
}

#[tokio::test]
async fn a_handler_typed_by_serde_is_called_with_its_input_and_answers_its_result() {
    let dir = folder();
    let resize = HandlerExecutor::new(|_: Context, input: Resize| async move {
        Ok::<_, HandlerError>(Resized {
            pixels: u64::from(input.width) * u64::from(input.width),
            file: format!("{}.png", input.name),
        })
    });
    let server = Setup::on(dir.path())
        .job_type("resize", resize)
        .start()
        .await;
    let submit = |input: serde_json::Value| pb::SubmitRequest {
        input: Some(wire::to_payload(Payload::json(&input).expect("JSON"))),
        ..submit_request("resize")
    };
    let job = server
        .submit(submit(json!({"width": 20, "name": "cat"})))
        .await;
    let end = server.end_of(&job.job_id).await;
    let expected = Payload::json(&json!({"pixels": 400, "file": "cat.png"})).expect("JSON");
    assert_eq!(end.result, Some(wire::to_payload(expected)));

    for (input, field) in [
        (json!({"width": -1, "name": "cat"}), "input.width"),
        (
            json!({"width": 1, "name": "cat", "hight": 2}),
            "input.hight",
        ),
        (json!([]), "input"),
    ] {
        let refused = server.client.clone().submit(submit(input)).await;
        let refused = refused.expect_err("not as the type needs it");
        assert_eq!(reason_of(&refused).1, "INVALID_FIELD");
        assert_eq!(bad_fields(&refused), [field]);
    }
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn an_integer_that_json_cannot_hold_fails_the_job_instead_of_changing() {
    let dir = folder();
    let ids = HandlerExecutor::new(|_: Context, above: bool| async move {
        Ok::<u64, HandlerError>((1 << 53) + u64::from(above))
    });
    let server = Setup::on(dir.path()).job_type("ids", ids).start().await;
    for (above, state) in [(false, State::Succeeded), (true, State::Failed)] {
        let input = Payload::json(&json!(above)).expect("JSON");
        let request = pb::SubmitRequest {
            input: Some(wire::to_payload(input)),
            ..submit_request("ids")
        };
        let job = server.submit(request).await;
        let end = server.end_of(&job.job_id).await;
        assert_eq!(end.state(), state);
        if let Some(error) = end.error {
            assert_eq!(error.reason, "RESULT_INVALID");
            assert!(error.message.contains("9007199254740993"), "{error:?}");
        }
    }
    server.stop().await.expect("a clean end");
}

/// Goal: an executor that panics before there is a future of it ends its attempt, and gives its place back.
#[tokio::test]
async fn an_executor_that_panics_at_once_ends_its_attempt() {
    struct Panics;
    impl Executor for Panics {
        fn run(&self, _: Attempt) -> BoxFuture<'static, Outcome> {
            panic!("the executor has no paper")
        }
    }
    let dir = folder();
    let setup = Setup::on(dir.path()).config(|config| config.workers = 1);
    let server = setup.job_type("work", Panics).start().await;
    for _ in 0..2 {
        let mut submit = submit_request("work");
        submit.retry_policy = Some(pb::RetryPolicy {
            max_attempts: 1,
            ..pb::RetryPolicy::default()
        });
        let job_id = server.submit(submit).await.job_id;
        let job = server.end_of(&job_id).await;
        let error = job.error.clone().expect("why it failed");
        assert_eq!(
            (job.state(), error.reason.as_str()),
            (State::Failed, "PANIC")
        );
        assert!(error.message.contains("no paper"), "{error:?}");
    }
    server.stop().await.expect("a clean end");
}

/// Goal: fields of a log line nest as deeply as JSON may, and no deeper: each line that is stored can be read.
#[tokio::test]
async fn log_fields_nest_as_deeply_as_json_may() {
    let dir = folder();
    let handler = HandlerExecutor::new(async |context: Context, depth: usize| {
        let deep = (0..depth).fold(json!(1), |inner, _| json!({ "k": inner }));
        let mut line = LogLine::new(LogLevel::Info, "deep");
        line.fields.insert("deep".to_owned(), deep);
        let told = context.reporter().log_line(line).await;
        Ok(told.map_or_else(|error| error.to_string(), |()| "stored".to_owned()))
    });
    let server = Setup::on(dir.path())
        .job_type("work", handler)
        .start()
        .await;
    for depth in [JSON_DEPTH_MAX, JSON_DEPTH_MAX + 1, 2 * JSON_DEPTH_MAX] {
        let submit = request("work", &depth).expect("JSON");
        let job_id = server.submit(submit).await.job_id;
        let job = server.end_of(&job_id).await;
        let result = wire::from_payload(job.result.clone().expect("a result"));
        let told = result
            .expect("JSON")
            .expect("JSON")
            .to_json()
            .expect("JSON");
        let log = server.log(&job_id).await;
        let is_line =
            |event: &pb::JobEvent| matches!(event.event, Some(pb::job_event::Event::Log(_)));
        let lines = log.iter().filter(|event| is_line(event)).count();
        let told = told.as_str().expect("a text");
        if depth > JSON_DEPTH_MAX {
            assert!(told.contains("nest") && told.contains("30"), "{told}");
            assert_eq!(lines, 0);
        } else {
            assert_eq!((told, lines), ("stored", 1));
        }
    }
    server.stop().await.expect("a clean end");
}
