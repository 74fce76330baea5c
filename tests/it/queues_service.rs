//! What QueueService shows, keeps, ends and refuses.

use pacenote::config::TypeSettings;
use pacenote::config::queue::rate_limit;
use pacenote::job::Outcome;
use pacenote::job::event::JobError;
use pacenote::job::limits::{DURATION_MAX, PURGE_JOBS_MAX, QUEUE_CONCURRENCY_MAX, RATE_STARTS_MAX};
use pacenote::job::name::Name;
use pacenote::job::policy::RetryPolicy;
use pacenote::job::queue::{Given, GivenLimits};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::queue_limits::Source;
use std::sync::Arc;
use tonic::{Code, Status};

use crate::harness::{
    Puppets, Setup, TestClock, TestServer, bad_fields, folder, reason_of, submit_request,
};
use crate::queues::{QueueClient, look, pause, queues_at, seconds, start, submit_to};

async fn set(
    queues: &mut QueueClient,
    request: pb::SetQueueLimitsRequest,
) -> Result<pb::QueueLimits, Status> {
    let after = queues.set_queue_limits(request).await?.into_inner();
    Ok(after.queue.and_then(|queue| queue.limits).expect("limits"))
}

fn limits_of(queue: &str) -> pb::SetQueueLimitsRequest {
    pb::SetQueueLimitsRequest {
        queue: queue.to_owned(),
        ..pb::SetQueueLimitsRequest::default()
    }
}

fn rate(starts: i32, seconds: i64, nanos: i32) -> Option<pb::RateLimit> {
    Some(pb::RateLimit {
        starts,
        period: Some(prost_types::Duration { seconds, nanos }),
    })
}

fn purge(queue: &str) -> pb::PurgeQueueRequest {
    pb::PurgeQueueRequest {
        queue: queue.to_owned(),
        ..pb::PurgeQueueRequest::default()
    }
}

/// A server whose file bounds the queue `reports`.
fn configured(dir: &std::path::Path) -> Setup {
    Setup::on(dir).config(|config| {
        let limits = GivenLimits {
            concurrency: Some(Given::Most(8)),
            rate: Some(Given::Most(rate_limit("100/1s").expect("a rate"))),
            key_concurrency: None,
        };
        config.queues.insert(Name::of("reports"), limits);
    })
}

/// Goal: run time beats the file, the file the default, limit by limit; all of it outlives a restart; a
/// reset brings the file back.
#[tokio::test]
async fn what_was_set_stands_above_the_file_outlives_a_restart_and_can_be_reset() {
    let dir = folder();
    let (server, mut queues, _) = start(configured(dir.path())).await;
    let file = look(&mut queues, "reports").await.limits.expect("limits");
    let expected = pb::QueueLimits {
        concurrency: Some(8),
        concurrency_source: Source::File.into(),
        rate_limit: rate(100, 1, 0),
        rate_limit_source: Source::File.into(),
        key_concurrency: 1,
        key_concurrency_source: Source::Default.into(),
    };
    assert_eq!(file, expected);
    let request = pb::SetQueueLimitsRequest {
        concurrency: Some(0),
        key_concurrency: Some(10_000),
        ..limits_of("reports")
    };
    let after = set(&mut queues, request).await.expect("it is set");
    let expected = pb::QueueLimits {
        concurrency: None,
        concurrency_source: Source::Runtime.into(),
        key_concurrency: 10_000,
        key_concurrency_source: Source::Runtime.into(),
        ..file
    };
    assert_eq!(after, expected);
    pause(&mut queues, "reports", true).await;
    server.stop().await.expect("a clean end");

    let (server, mut queues, _) = start(configured(dir.path())).await;
    let again = look(&mut queues, "reports").await;
    assert_eq!(again.limits, Some(expected));
    assert!(again.paused);
    let request = pb::SetQueueLimitsRequest {
        reset: vec![
            pb::QueueLimit::Concurrency.into(),
            pb::QueueLimit::KeyConcurrency.into(),
            pb::QueueLimit::Rate.into(),
        ],
        ..limits_of("reports")
    };
    let reset = set(&mut queues, request).await.expect("it is reset");
    assert_eq!(reset, file);
    let none = pb::SetQueueLimitsRequest {
        rate_limit: Some(pb::RateLimit::default()),
        ..limits_of("reports")
    };
    let none = set(&mut queues, none).await.expect("it is set");
    assert_eq!(none.rate_limit, None);
    assert_eq!(none.rate_limit_source(), Source::Runtime);
    assert!(
        look(&mut queues, "reports").await.paused,
        "limits are no pause"
    );
    server.stop().await.expect("a clean end");
}

/// Goal: every state is counted where it belongs, beside the age of the oldest and the last minute.
#[tokio::test]
async fn a_queue_and_a_type_say_how_they_stand() {
    let dir = folder();
    let clock = TestClock::new();
    let settings = TypeSettings {
        queue: Name::of("own"),
        concurrency: Some(1),
        ..TypeSettings::default()
    };
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let server = setup
        .job_type_with("single", settings, puppets.clone())
        .start()
        .await;
    let mut queues = queues_at(&server.address).await;
    let done = server.submit(submit_request("single")).await.job_id;
    puppets.next().await.succeed();
    server.end_of(&done).await;
    server.submit(submit_request("single")).await;
    let running = puppets.next().await;
    for priority in [0, 7] {
        let request = pb::SubmitRequest {
            priority,
            ..submit_request("single")
        };
        server.submit(request).await;
        clock.pass(std::time::Duration::from_secs(10));
    }
    let gone = server.submit(submit_request("single")).await;
    assert_eq!(server.cancel(&gone.job_id).await.state(), State::Cancelled);

    let own = look(&mut queues, "own").await;
    let counts = pb::JobCounts {
        queued: 2,
        running: 1,
        succeeded: 1,
        cancelled: 1,
        ..pb::JobCounts::default()
    };
    assert_eq!(own.counts, Some(counts));
    let age = own.oldest_waiting_age.expect("something waits").seconds;
    assert!(
        (20..50).contains(&age),
        "the one of low priority is older: {age} s"
    );
    let minute = own.last_minute.expect("it is counted");
    let expected = pb::MinuteCounts {
        submitted: 5,
        started: 2,
        succeeded: 1,
        cancelled: 1,
        ..pb::MinuteCounts::default()
    };
    assert_eq!(minute, expected);

    let types = queues.list_job_types(pb::ListJobTypesRequest {}).await;
    let types = types.expect("a list").into_inner().job_types;
    let names: Vec<&str> = types.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["checksum", "single", "sleep"]);
    let single = &types[1];
    assert_eq!(single.counts, Some(counts));
    assert_eq!(single.last_minute, Some(expected));
    assert_eq!(
        (single.queue.as_str(), single.concurrency),
        ("own", Some(1))
    );
    assert_eq!(types[0].counts, Some(pb::JobCounts::default()));
    assert_eq!(types[0].oldest_waiting_age, None);

    clock.pass(std::time::Duration::from_secs(60));
    let quiet = look(&mut queues, "own").await.last_minute;
    assert_eq!(quiet, Some(pb::MinuteCounts::default()));
    running.succeed();
    server.begin_stop();
}

#[tokio::test]
async fn queues_come_in_pages_by_name_with_those_that_have_no_job() {
    let dir = folder();
    let (server, mut queues, _) = start(configured(dir.path())).await;
    pause(&mut queues, "a", true).await;
    for queue in ["a", "b/c", "z"] {
        submit_to(&server, "puppet", queue).await;
    }
    pause(&mut queues, "y", true).await;
    for page_size in [1, 2, 3, 6, 7] {
        let mut names = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = pb::ListQueuesRequest {
                page_size,
                page_token,
            };
            let page = queues.list_queues(request).await.expect("a page");
            let page = page.into_inner();
            assert!(page.queues.len() <= page_size as usize);
            names.extend(page.queues.into_iter().map(|queue| queue.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(names, ["a", "b/c", "default", "reports", "y", "z"]);
    }
    server.begin_stop();
}

/// Jobs in the states of waiting and one that runs, all in the queue `q`.
async fn waiting_in_q(server: &TestServer, puppets: &Puppets, queues: &mut QueueClient) {
    // A failed attempt waits for its next one.
    let retried = submit_to(server, "puppet", "q").await;
    let failed = puppets.next().await;
    let error = JobError::retryable("AGAIN", "not yet");
    failed.end(Outcome::Failed(error));
    // Queued, running, the end of the attempt, scheduled.
    server.watch(&retried, Some(0)).await.until(4).await;
    submit_to(server, "puppet", "q").await;
    let running = puppets.next().await;
    pause(queues, "q", true).await;
    for job_type in ["puppet", "puppet", "sleep"] {
        submit_to(server, job_type, "q").await;
    }
    submit_to(server, "puppet", "other").await;
    drop((running, puppets.next().await));
}

/// Scripted jobs whose retries wait for long.
fn slow_to_retry(dir: &std::path::Path, puppets: &Puppets) -> Setup {
    let settings = TypeSettings {
        retry_policy: RetryPolicy {
            initial_backoff: DURATION_MAX,
            max_backoff: DURATION_MAX,
            ..RetryPolicy::default()
        },
        ..TypeSettings::default()
    };
    Setup::on(dir).job_type_with("puppet", settings, puppets.clone())
}

async fn counts(queues: &mut QueueClient) -> (i64, i64, i64, i64) {
    let counts = look(queues, "q").await.counts.expect("counts");
    let waiting = (counts.queued, counts.scheduled);
    (waiting.0, waiting.1, counts.running, counts.cancelled)
}

/// Goal: a purge ends what it was asked to and nothing else, so many a call, with its reason in the log.
#[tokio::test]
async fn a_purge_ends_what_waits_and_nothing_that_runs() {
    let dir = folder();
    let puppets = Puppets::default();
    let server = slow_to_retry(dir.path(), &puppets).start().await;
    let mut queues = queues_at(&server.address).await;
    waiting_in_q(&server, &puppets, &mut queues).await;
    assert_eq!(counts(&mut queues).await, (3, 1, 1, 0));
    let request = pb::PurgeQueueRequest {
        job_type: "sleep".to_owned(),
        ..purge("q")
    };
    let only = queues.purge_queue(request).await.expect("it is purged");
    let only = only.into_inner();
    assert_eq!((only.purged_count, only.is_complete), (1, true));
    assert_eq!(counts(&mut queues).await, (2, 1, 1, 1));

    let one = pb::PurgeQueueRequest {
        limit: 1,
        ..purge("q")
    };
    let one = queues.purge_queue(one).await.expect("it is purged");
    let one = one.into_inner();
    assert_eq!((one.purged_count, one.is_complete), (1, false));
    let rest = pb::PurgeQueueRequest {
        states: vec![State::Scheduled.into(), State::Queued.into()],
        reason: "wrong input".to_owned(),
        ..purge("q")
    };
    let rest = queues.purge_queue(rest).await.expect("it is purged");
    let rest = rest.into_inner();
    assert_eq!((rest.purged_count, rest.is_complete), (2, true));
    assert_eq!(counts(&mut queues).await, (0, 0, 1, 4));
    let again = queues
        .purge_queue(purge("q"))
        .await
        .expect("nothing is left");
    assert_eq!(again.into_inner().purged_count, 0);
    let other = look(&mut queues, "other").await.counts.expect("counts");
    assert_eq!(other.running, 1);

    let list = pb::ListRequest {
        states: vec![State::Cancelled.into()],
        ..pb::ListRequest::default()
    };
    let list = server.client.clone().list(list).await.expect("a list");
    let jobs = list.into_inner().jobs;
    for job in &jobs {
        let log = server.log(&job.job_id).await;
        let last = log.into_iter().next_back().and_then(|event| event.event);
        let Some(pb::job_event::Event::StateChange(change)) = last else {
            panic!("the last event is the end");
        };
        assert_eq!(change.reason, "QUEUE_PURGED");
    }
    server.begin_stop();
}

/// Goal: a purge goes by groups and takes no job that was started meanwhile. Method: it races the pool,
/// which drains the same queue; every job ends in one way, and the purge counts exactly its own.
#[tokio::test]
async fn a_purge_that_races_the_pool_counts_exactly_what_it_ended() {
    let dir = folder();
    let (server, mut queues, _) = start(Setup::on(dir.path())).await;
    pause(&mut queues, "q", true).await;
    let input = seconds(0.001);
    let submits = (0..600).map(|_| {
        server.submit(pb::SubmitRequest {
            queue: "q".to_owned(),
            input: Some(input.clone()),
            ..submit_request("sleep")
        })
    });
    let jobs = futures_util::future::join_all(submits).await;
    pause(&mut queues, "q", false).await;
    let purged = queues.purge_queue(purge("q")).await.expect("it is purged");
    let purged = purged.into_inner();
    assert!(purged.is_complete);
    for job in &jobs {
        server.end_of(&job.job_id).await;
    }
    let counts = look(&mut queues, "q").await.counts.expect("counts");
    assert_eq!(counts.cancelled, i64::from(purged.purged_count));
    assert_eq!(counts.succeeded, 600 - counts.cancelled);
    server.stop().await.expect("a clean end");
}

fn invalid(status: &Status, fields: &[&str]) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(bad_fields(status), fields, "{status:?}");
}

#[tokio::test]
async fn every_limit_is_taken_at_its_bounds_and_refused_one_past_them() {
    let dir = folder();
    let (server, mut queues, _) = start(Setup::on(dir.path())).await;
    let (most, starts) = (QUEUE_CONCURRENCY_MAX as i32, RATE_STARTS_MAX as i32);
    for (concurrency, rate_limit, key_concurrency) in [
        (most, rate(starts, 86_400, 0), 10_000),
        (1, rate(1, 0, 1_000_000), 1),
    ] {
        let request = pb::SetQueueLimitsRequest {
            concurrency: Some(concurrency),
            rate_limit,
            key_concurrency: Some(key_concurrency),
            ..limits_of("q")
        };
        let after = set(&mut queues, request).await.expect("it is at its bound");
        assert_eq!(after.concurrency, Some(concurrency));
        assert_eq!(after.rate_limit, rate_limit);
    }
    let before = look(&mut queues, "q").await;
    for (concurrency, rate_limit, key_concurrency) in [
        (most + 1, rate(starts + 1, 86_400, 1), 10_001),
        (-1, rate(0, 0, 999_999), 0),
        (i32::MIN, rate(-1, -1, 0), i32::MIN),
    ] {
        let request = pb::SetQueueLimitsRequest {
            queue: "no name".to_owned(),
            concurrency: Some(concurrency),
            rate_limit,
            key_concurrency: Some(key_concurrency),
            reset: vec![0, 1, 9],
        };
        let status = set(&mut queues, request)
            .await
            .expect_err("it is past them");
        let fields = [
            "queue",
            "concurrency",
            "rate_limit.starts",
            "rate_limit.period",
            "key_concurrency",
            "reset[0]",
            "reset[2]",
        ];
        invalid(&status, &fields);
    }
    let both = pb::SetQueueLimitsRequest {
        concurrency: Some(3),
        rate_limit: Some(pb::RateLimit {
            starts: 1,
            period: None,
        }),
        reset: vec![pb::QueueLimit::Concurrency.into()],
        ..limits_of("q")
    };
    let status = set(&mut queues, both).await.expect_err("both at once");
    invalid(&status, &["rate_limit.period", "reset[0]"]);
    assert_eq!(look(&mut queues, "q").await, before, "nothing has changed");
    server.begin_stop();
}

#[tokio::test]
async fn everything_else_that_is_wrong_is_named() {
    let dir = folder();
    let (server, mut queues, _) = start(Setup::on(dir.path())).await;
    let wrong = || String::from("no name");
    let status = queues
        .pause_queue(pb::PauseQueueRequest { queue: wrong() })
        .await;
    invalid(&status.expect_err("no name"), &["queue"]);
    let status = queues.resume_queue(pb::ResumeQueueRequest::default()).await;
    invalid(&status.expect_err("no name"), &["queue"]);
    let job_type = String::from("slep");
    let request = pb::PauseJobTypeRequest {
        job_type: job_type.clone(),
    };
    let status = queues.pause_job_type(request).await.expect_err("unknown");
    assert_eq!(
        reason_of(&status),
        (Code::InvalidArgument, "UNKNOWN_TYPE".to_owned())
    );
    assert!(status.message().contains("sleep"), "{status:?}");
    let request = pb::ResumeJobTypeRequest { job_type };
    let status = queues.resume_job_type(request).await.expect_err("unknown");
    assert_eq!(reason_of(&status).1, "UNKNOWN_TYPE");
    for page_size in [-1, 1_001] {
        let request = pb::ListQueuesRequest {
            page_size,
            page_token: String::new(),
        };
        let status = queues.list_queues(request).await.expect_err("no size");
        invalid(&status, &["page_size"]);
    }
    let request = pb::ListQueuesRequest {
        page_size: 1_000,
        page_token: "made-up".to_owned(),
    };
    let status = queues.list_queues(request).await.expect_err("no token");
    invalid(&status, &["page_token"]);

    let request = pb::PurgeQueueRequest {
        queue: wrong(),
        job_type: "nobody".to_owned(),
        states: vec![State::Queued.into(), State::Running.into(), 99],
        limit: PURGE_JOBS_MAX as i32 + 1,
        reason: "x".repeat(1_025),
    };
    let status = queues.purge_queue(request).await.expect_err("all wrong");
    let fields = [
        "queue",
        "job_type",
        "states[1]",
        "states[2]",
        "limit",
        "reason",
    ];
    invalid(&status, &fields);
    let request = pb::PurgeQueueRequest {
        limit: PURGE_JOBS_MAX as i32,
        reason: "x".repeat(1_024),
        states: vec![State::Queued.into(); 100],
        ..purge("q")
    };
    queues
        .purge_queue(request)
        .await
        .expect("all at their bounds");
    let request = pb::PurgeQueueRequest {
        states: vec![State::Queued.into(); 101],
        limit: -1,
        ..purge("q")
    };
    let status = queues.purge_queue(request).await.expect_err("too many");
    invalid(&status, &["states", "limit"]);
    server.begin_stop();
}
