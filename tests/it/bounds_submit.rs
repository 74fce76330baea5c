//! The options of a submit: each at its limit accepted, one past it refused by its name; and what its type
//! sets itself, the same way.

use std::time::{Duration, SystemTime};

use pacenote::config::{Caps, TenantSettings, TypeSettings};
use pacenote::job::policy::{GivenRetention, RetryPolicy, Timeouts};
use pacenote::pb;
use pacenote::pb::submit_request::Start;
use pacenote::queue::default_tenant;
use prost_types::Timestamp;
use tonic::Code;

use crate::bounds::{Call, YEAR, check, span, start};
use crate::harness::{
    Puppets, Setup, bad_fields, folder, proto_duration, reason_of, submit_request,
};
use crate::life::settings;

type Case = (pb::SubmitRequest, Option<&'static str>);

fn with(change: impl FnOnce(&mut pb::SubmitRequest)) -> pb::SubmitRequest {
    let mut request = submit_request("puppet");
    change(&mut request);
    request
}

fn retry(change: impl FnOnce(&mut pb::RetryPolicy)) -> pb::SubmitRequest {
    let mut policy = pb::RetryPolicy::default();
    change(&mut policy);
    with(|request| request.retry_policy = Some(policy))
}

fn timeouts(change: impl FnOnce(&mut pb::Timeouts)) -> pb::SubmitRequest {
    let mut timeouts = pb::Timeouts::default();
    change(&mut timeouts);
    with(|request| request.timeouts = Some(timeouts))
}

fn unique(change: impl FnOnce(&mut pb::UniquePolicy)) -> pb::SubmitRequest {
    let mut unique = pb::UniquePolicy {
        key: "u".to_owned(),
        ..pb::UniquePolicy::default()
    };
    change(&mut unique);
    with(|request| request.unique = Some(unique))
}

fn starts() -> Vec<Case> {
    let at = |ahead: i64| {
        let now = Timestamp::from(SystemTime::now());
        let seconds = now.seconds + ahead;
        with(|r| r.start = Some(Start::ScheduleTime(Timestamp { seconds, nanos: 0 })))
    };
    let delay = |seconds, nanos| {
        let delay = span(seconds, nanos).expect("some");
        with(|r| r.start = Some(Start::Delay(delay)))
    };
    vec![
        (at(-YEAR), None),
        (at(YEAR - 60), None),
        (at(YEAR + 60), Some("schedule_time")),
        (
            with(|r| {
                let nanos = -1;
                r.start = Some(Start::ScheduleTime(Timestamp { seconds: 0, nanos }));
            }),
            Some("schedule_time"),
        ),
        (delay(0, 0), None),
        (delay(YEAR, 0), None),
        (delay(YEAR, 1), Some("delay")),
        (delay(0, -1), Some("delay")),
        (with(|r| r.retention = span(0, 0)), None),
        (with(|r| r.retention = span(YEAR, 0)), None),
        (with(|r| r.retention = span(YEAR, 1)), Some("retention")),
        (with(|r| r.retention = span(-1, 0)), Some("retention")),
        (with(|r| r.concurrency_key = "c".repeat(128)), None),
        (
            with(|r| r.concurrency_key = "c".repeat(129)),
            Some("concurrency_key"),
        ),
        (
            with(|r| r.concurrency_key = "a b".to_owned()),
            Some("concurrency_key"),
        ),
    ]
}

fn uniques() -> Vec<Case> {
    vec![
        (unique(|u| u.key = "u".repeat(255)), None),
        (unique(|u| u.key = "u".repeat(256)), Some("unique.key")),
        (unique(|u| u.key.clear()), Some("unique.key")),
        (unique(|u| u.on_conflict = 4), None),
        (unique(|u| u.on_conflict = 5), Some("unique.on_conflict")),
        (unique(|u| u.window = span(YEAR, 0)), None),
        (unique(|u| u.window = span(YEAR, 1)), Some("unique.window")),
        (unique(|u| u.window = span(0, -1)), Some("unique.window")),
    ]
}

fn policies() -> Vec<Case> {
    let reasons = |reason: String, count| retry(|p| p.non_retryable_reasons = vec![reason; count]);
    let (first, longest) = ("retry_policy.initial_backoff", "retry_policy.max_backoff");
    let growth = "retry_policy.backoff_multiplier";
    let of_reasons = "retry_policy.non_retryable_reasons";
    let of_first = "retry_policy.non_retryable_reasons[0]";
    vec![
        (retry(|p| p.max_attempts = 1), None),
        (retry(|p| p.max_attempts = 100), None),
        (
            retry(|p| p.max_attempts = 101),
            Some("retry_policy.max_attempts"),
        ),
        (
            retry(|p| p.max_attempts = -1),
            Some("retry_policy.max_attempts"),
        ),
        (retry(|p| p.initial_backoff = span(0, 0)), None),
        (retry(|p| p.initial_backoff = span(600, 0)), None),
        (retry(|p| p.initial_backoff = span(600, 1)), Some(first)),
        (retry(|p| p.initial_backoff = span(-1, 0)), Some(first)),
        (retry(|p| p.max_backoff = span(0, 0)), None),
        (retry(|p| p.max_backoff = span(YEAR, 0)), None),
        (retry(|p| p.max_backoff = span(YEAR, 1)), Some(longest)),
        (retry(|p| p.backoff_multiplier = 1.0), None),
        (retry(|p| p.backoff_multiplier = 10.0), None),
        (retry(|p| p.backoff_multiplier = 0.999), Some(growth)),
        (retry(|p| p.backoff_multiplier = 10.001), Some(growth)),
        (retry(|p| p.backoff_multiplier = f64::NAN), Some(growth)),
        (reasons("R".repeat(64), 100), None),
        (reasons("R".to_owned(), 101), Some(of_reasons)),
        (reasons("R".repeat(65), 1), Some(of_first)),
        (reasons("r".to_owned(), 1), Some(of_first)),
        (reasons(String::new(), 1), Some(of_first)),
    ]
}

fn times() -> Vec<Case> {
    let mut cases = vec![
        (timeouts(|t| t.cancel_grace = span(0, 0)), None),
        (timeouts(|t| t.cancel_grace = span(YEAR, 0)), None),
        (
            timeouts(|t| t.cancel_grace = span(YEAR, 1)),
            Some("timeouts.cancel_grace"),
        ),
    ];
    type Put = fn(&mut pb::Timeouts, Option<prost_types::Duration>);
    let fields: [(&'static str, Put); 5] = [
        ("timeouts.queue_timeout", |t, span| t.queue_timeout = span),
        ("timeouts.run_timeout", |t, span| t.run_timeout = span),
        ("timeouts.total_timeout", |t, span| t.total_timeout = span),
        ("timeouts.heartbeat_timeout", |t, span| {
            t.heartbeat_timeout = span;
        }),
        ("timeouts.stall_time", |t, span| t.stall_time = span),
    ];
    for (field, put) in fields {
        cases.extend([
            (timeouts(|t| put(t, span(0, 1_000_000))), None),
            (timeouts(|t| put(t, span(0, 999_999))), Some(field)),
            (timeouts(|t| put(t, span(YEAR, 0))), None),
            (timeouts(|t| put(t, span(YEAR, 1))), Some(field)),
            (timeouts(|t| put(t, span(-1, 0))), Some(field)),
        ]);
    }
    cases
}

#[tokio::test]
async fn every_option_of_a_submit_is_taken_at_its_limit_and_refused_one_past_it() {
    let dir = folder();
    let server = start(&dir).await;
    for (request, field) in [starts(), uniques(), policies(), times()].concat() {
        check(&server, Call::Submit(request.clone()), field).await;
        let run = pb::RunRequest {
            submit: Some(request),
            ..pb::RunRequest::default()
        };
        let field = field.map(|field| format!("submit.{field}"));
        check(&server, Call::Run(run), field.as_deref()).await;
    }
    drop(server);
}

#[tokio::test]
async fn a_run_cannot_only_be_checked() {
    let dir = folder();
    let server = start(&dir).await;
    let run = pb::RunRequest {
        submit: Some(with(|r| r.validate_only = true)),
        ..pb::RunRequest::default()
    };
    check(&server, Call::Run(run), Some("submit.validate_only")).await;
    drop(server);
}

/// A type that sets everything itself, all of it to `n` seconds or attempts.
fn tight() -> TypeSettings {
    let second = Duration::from_secs(1);
    settings(|settings| {
        settings.concurrency = Some(1);
        settings.retry_policy = RetryPolicy {
            max_attempts: 2,
            initial_backoff: second,
            max_backoff: 2 * second,
            backoff_multiplier: 3.0,
            non_retryable_reasons: vec!["POISON".to_owned()],
        };
        settings.timeouts = Timeouts {
            queue_timeout: Some(3_600 * second),
            run_timeout: Some(3_601 * second),
            total_timeout: Some(3_602 * second),
            heartbeat_timeout: Some(3_603 * second),
            stall_time: 3_604 * second,
            cancel_grace: second,
        };
        settings.retention = GivenRetention {
            finished: Some(3_605 * second),
            failed: Some(3_606 * second),
        };
        settings.caps = Caps {
            max_attempts: Some(2),
            initial_backoff: Some(second),
            max_backoff: Some(2 * second),
            backoff_multiplier: Some(3.0),
            queue_timeout: Some(3_600 * second),
            run_timeout: Some(3_601 * second),
            total_timeout: Some(3_602 * second),
            heartbeat_timeout: Some(3_603 * second),
            stall_time: Some(3_604 * second),
            cancel_grace: Some(second),
            retention: Some(3_605 * second),
        };
    })
}

fn at_the_caps(more: i64) -> pb::SubmitRequest {
    let seconds = |seconds: i64| span(seconds + more, 0);
    pb::SubmitRequest {
        retry_policy: Some(pb::RetryPolicy {
            max_attempts: 2 + more as i32,
            initial_backoff: seconds(1),
            max_backoff: seconds(2),
            backoff_multiplier: 3.0 + more as f64,
            non_retryable_reasons: vec!["OTHER".to_owned()],
        }),
        timeouts: Some(pb::Timeouts {
            queue_timeout: seconds(3_600),
            run_timeout: seconds(3_601),
            total_timeout: seconds(3_602),
            heartbeat_timeout: seconds(3_603),
            stall_time: seconds(3_604),
            cancel_grace: seconds(1),
        }),
        retention: seconds(3_605),
        ..submit_request("tight")
    }
}

/// Goal: what a type sets is the most that is accepted, of each field. Method: all of them at the type's
/// own value, then all one past it.
#[tokio::test]
async fn no_option_goes_beyond_what_its_type_sets() {
    let dir = folder();
    let setup = Setup::on(dir.path()).job_type_with("tight", tight(), Puppets::default());
    let server = setup.start().await;
    let request = at_the_caps(0);
    let job = server.submit(request.clone()).await;
    assert_eq!(
        (job.retry_policy, job.timeouts),
        (request.retry_policy, request.timeouts)
    );
    let mut client = server.client.clone();
    let refused = client.submit(at_the_caps(1)).await.expect_err("too much");
    let expected = (Code::InvalidArgument, "INVALID_FIELD".to_owned());
    assert_eq!(reason_of(&refused), expected);
    let fields = [
        "retry_policy.max_attempts",
        "retry_policy.initial_backoff",
        "retry_policy.max_backoff",
        "retry_policy.backoff_multiplier",
        "timeouts.queue_timeout",
        "timeouts.run_timeout",
        "timeouts.total_timeout",
        "timeouts.heartbeat_timeout",
        "timeouts.stall_time",
        "timeouts.cancel_grace",
        "retention",
    ];
    assert_eq!(bad_fields(&refused), fields);
    let message = refused.message();
    assert!(
        message.contains("is 3; job type tight sets 2, and no more is accepted"),
        "{message}"
    );
    drop(server);
}

/// Goal: what a tenant sets is the most that is accepted, too. Method: at its bound and one past it.
#[tokio::test]
async fn no_retention_goes_beyond_what_its_tenant_sets() {
    let dir = folder();
    let setup = Setup::on(dir.path()).config(|config| {
        let mut own = TenantSettings::default();
        own.retention.failed = Some(Duration::from_secs(60));
        config.tenants.insert(default_tenant(), own);
    });
    let server = setup.job_type("puppet", Puppets::default()).start().await;
    let kept = |nanos| pb::SubmitRequest {
        retention: span(60, nanos),
        ..submit_request("puppet")
    };
    server.submit(kept(0)).await;
    let refused = server.client.clone().submit(kept(1)).await;
    let refused = refused.expect_err("more than its tenant allows");
    assert_eq!(bad_fields(&refused), ["retention"]);
    let bound = "is 1m 1ns; tenant default sets 1m, and no more is accepted";
    assert!(refused.message().contains(bound), "{refused:?}");
    drop(server);
}

/// Goal: what a submit gives takes the place of its type's own, and the rest stays. Method: one field at a
/// time, of a type that sets all of them.
#[tokio::test]
async fn a_job_has_its_types_own_but_for_what_it_was_given() {
    let dir = folder();
    let setup = Setup::on(dir.path()).job_type_with("tight", tight(), Puppets::default());
    let server = setup.start().await;
    let own = server.submit(submit_request("tight")).await;
    let (policy, times) = (
        own.retry_policy.expect("a policy"),
        own.timeouts.expect("timeouts"),
    );
    assert_eq!(policy.non_retryable_reasons, ["POISON"]);
    assert_eq!(
        times.heartbeat_timeout,
        Some(proto_duration(Duration::from_secs(3_603)))
    );
    let given = pb::SubmitRequest {
        retry_policy: Some(pb::RetryPolicy {
            max_attempts: 1,
            ..pb::RetryPolicy::default()
        }),
        timeouts: Some(pb::Timeouts {
            run_timeout: span(7, 0),
            ..pb::Timeouts::default()
        }),
        ..submit_request("tight")
    };
    let job = server.submit(given).await;
    let expected = pb::RetryPolicy {
        max_attempts: 1,
        ..policy
    };
    assert_eq!(job.retry_policy, Some(expected));
    let expected = pb::Timeouts {
        run_timeout: span(7, 0),
        ..times
    };
    assert_eq!(job.timeouts, Some(expected));
    drop(server);
}
