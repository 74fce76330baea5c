//! Deadlines, silence and limits of time: what each ends in, and who wins a tie.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt;
use pacenote::config::TypeSettings;
use pacenote::executor::handler::{Context, HandlerError, HandlerExecutor};
use pacenote::job::event::JobError;
use pacenote::job::limits::{LOG_BYTES_DEFAULT, WAITING_DEFAULT, WATCHERS_DEFAULT};
use pacenote::job::name::{JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::time::{Clock, Timestamp};
use pacenote::job::{JobState, Outcome, Report};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;
use pacenote::queue::{JobQueue, KnownType, QueueSettings, Submission, default_tenant};
use pacenote::store::View;
use pacenote::store::sqlite::SqliteStore;

use crate::clock::OwnedClock;
use crate::harness::{
    Puppets, Setup, TestServer, folder, one_place, output, progress, soon, submit_request,
};
use crate::life::{broken, check_finished, key, lease, long_waits, settings, states};

const TICK: Duration = Duration::from_micros(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A queue without a pool or duties, on a clock that the test owns. Serves the type `work`.
pub(crate) async fn open(
    dir: &std::path::Path,
    clock: &Arc<OwnedClock>,
    settings: TypeSettings,
) -> JobQueue {
    let store = SqliteStore::open(&dir.join("jobs.db"))
        .await
        .expect("a store");
    let work = KnownType {
        settings,
        check: Arc::new(|_| Ok(())),
    };
    let settings = QueueSettings {
        types: [(Name::of("work"), work)].into(),
        log_bytes_max: LOG_BYTES_DEFAULT,
        watchers_max: WATCHERS_DEFAULT,
        waiting_max: WAITING_DEFAULT,
        ..QueueSettings::default()
    };
    let opened = JobQueue::open(Arc::new(store), clock.clone(), settings).await;
    opened.expect("it opens")
}

pub(crate) async fn submit(queue: &JobQueue) -> JobKey {
    let submitted = queue.submit(Submission::new("work", None)).await;
    submitted.expect("stored").0.key.clone()
}

/// How a job stands, and why.
pub(crate) async fn state_of(queue: &JobQueue, key: &JobKey) -> (JobState, String) {
    let job = queue.get(key, View::Basic).await.expect("it is there").job;
    let reason = job.detail.error.as_ref().map(|error| error.reason.clone());
    (job.state, reason.unwrap_or_default())
}

async fn expire(queue: &JobQueue) -> Option<Timestamp> {
    queue.expire_waiting().await.expect("the store works")
}

#[tokio::test]
async fn a_job_that_is_not_started_in_time_expires_at_its_deadline_and_not_a_tick_sooner() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let timed = settings(|settings| {
        settings.timeouts.queue_timeout = Some(MINUTE);
        settings.timeouts.total_timeout = Some(MINUTE * 2);
    });
    let queue = open(dir.path(), &clock, timed).await;
    assert_eq!(expire(&queue).await, None);
    let deadline = clock.now().after(MINUTE);
    let job = submit(&queue).await;
    soon(queue.deadlines_changed()).await;
    clock.pass(MINUTE - TICK);
    assert_eq!(expire(&queue).await, Some(deadline));
    // A later deadline wakes nobody.
    let later = submit(&queue).await;
    assert_eq!(queue.deadlines_changed().now_or_never(), None);
    clock.pass(TICK);
    let next = deadline.after(MINUTE - TICK);
    assert_eq!(expire(&queue).await, Some(next));
    let expired = (JobState::Expired, "QUEUE_TIMEOUT".to_owned());
    assert_eq!(state_of(&queue, &job).await, expired);
    assert_eq!(state_of(&queue, &later).await.0, JobState::Queued);
    queue.close().await;
}

#[tokio::test]
async fn a_job_that_was_started_in_time_expires_by_its_total_timeout_alone() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let timed = settings(|settings| {
        settings.timeouts.queue_timeout = Some(MINUTE);
        settings.timeouts.total_timeout = Some(MINUTE * 3);
        settings.retry_policy = long_waits();
    });
    let queue = open(dir.path(), &clock, timed).await;
    let (_, mut handed) = one_place(&queue, "work").await;
    let job = submit(&queue).await;
    let handed = soon(handed.recv()).await.expect("claimed");
    // Who runs it sees to its end.
    clock.pass(MINUTE * 2);
    assert_eq!(expire(&queue).await, None);
    let lease = pacenote::queue::Lease {
        key: job.clone(),
        attempt: handed.claimed.job.attempt,
    };
    let failed = queue.finish(&lease, vec![], broken()).await;
    assert_eq!(failed.expect("it runs").state, JobState::Scheduled);
    clock.pass(MINUTE);
    assert_eq!(expire(&queue).await, None);
    let expired = (JobState::Expired, "TOTAL_TIMEOUT".to_owned());
    assert_eq!(state_of(&queue, &job).await, expired);
    queue.close().await;
}

#[tokio::test]
async fn the_duty_expires_what_waits_too_long() {
    let dir = folder();
    let puppets = Puppets::default();
    let timed = settings(|settings| {
        settings.concurrency = Some(1);
        settings.timeouts.queue_timeout = Some(Duration::from_millis(300));
    });
    let setup = Setup::on(dir.path()).job_type_with("puppet", timed, puppets.clone());
    let server = setup.start().await;
    let (_, runs) = server.begin(&puppets).await;
    let waits = server.submit(submit_request("puppet")).await;
    let end = server.end_of(&waits.job_id).await;
    assert_eq!(end.state(), State::Expired);
    let error = end.error.expect("why");
    assert_eq!(
        (error.reason.as_str(), error.code, error.retryable),
        ("QUEUE_TIMEOUT", 4, false)
    );
    let log = server.log(&waits.job_id).await;
    check_finished(&log);
    assert_eq!(
        states(&log).last(),
        Some(&(State::Expired, "QUEUE_TIMEOUT"))
    );
    runs.succeed();
    server.stop().await.expect("a clean end");
}

fn obeys() -> HandlerExecutor {
    HandlerExecutor::new(|context: Context, _: ()| async move {
        context.cancelled().await;
        Err::<(), _>(HandlerError::cancelled())
    })
}

#[tokio::test]
async fn a_running_job_expires_by_its_total_timeout_and_a_silent_attempt_fails() {
    let dir = folder();
    let short = Some(Duration::from_millis(50));
    let in_all = settings(|settings| settings.timeouts.total_timeout = short);
    let silent = settings(|settings| {
        settings.timeouts.heartbeat_timeout = short;
        settings.retry_policy.initial_backoff = Duration::ZERO;
        settings.retry_policy.max_attempts = 2;
    });
    let server = Setup::on(dir.path())
        .job_type_with("in_all", in_all, obeys())
        .job_type_with("silent", silent, obeys())
        .start()
        .await;
    let job = server.submit(submit_request("in_all")).await;
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempt), (State::Expired, 1));
    assert_eq!(end.error.expect("why").reason, "TOTAL_TIMEOUT");
    check_finished(&server.log(&job.job_id).await);
    let job = server.submit(submit_request("silent")).await;
    let end = server.end_of(&job.job_id).await;
    assert_eq!((end.state(), end.attempt), (State::Failed, 2));
    let error = end.error.expect("why");
    assert_eq!(
        (error.reason.as_str(), error.code, error.retryable),
        ("HEARTBEAT_TIMEOUT", 4, true)
    );
    server.stop().await.expect("a clean end");
}

/// Goal: a job that somebody asked to stop is CANCELLED, whether its time-out comes before or after.
#[tokio::test]
async fn a_cancel_stands_above_a_timeout() {
    let dir = folder();
    let puppets = Puppets::default();
    let timed = settings(|settings| {
        settings.timeouts.total_timeout = Some(Duration::from_millis(100));
    });
    let setup = Setup::on(dir.path()).job_type_with("puppet", timed, puppets.clone());
    let server = setup.start().await;
    let (first, puppet) = server.begin(&puppets).await;
    soon(puppet.attempt.stop.cancelled()).await;
    assert_eq!(server.cancel(&first).await.state(), State::Cancelling);
    puppet.succeed();
    assert_eq!(server.end_of(&first).await.state(), State::Cancelled);
    let (second, puppet) = server.begin(&puppets).await;
    server.cancel(&second).await;
    soon(puppet.attempt.stop.cancelled()).await;
    puppet.end(Outcome::Expired);
    assert_eq!(server.end_of(&second).await.state(), State::Cancelled);
    server.stop().await.expect("a clean end");
}

fn stalls(log: &[pb::JobEvent]) -> usize {
    let stalled = log
        .iter()
        .filter(|event| matches!(event.event, Some(Event::Stalled(_))));
    stalled.count()
}

async fn stalled(server: &TestServer, clock: &OwnedClock) -> usize {
    let stalled = server.queue.report_stalled(clock.steady()).await;
    stalled.expect("the store works")
}

/// Goal: a silent attempt is said to be stalled at its time, once, and not killed; whatever it tells is
/// a sign of life, and its lease's heartbeat is not.
/// How many jobs are stalled, as the queue `default` and the type `puppet` say.
async fn counted_as_stalled(server: &TestServer) -> [u64; 2] {
    let tenant = default_tenant();
    let queue = server.queue.queue(&tenant, &Name::of("default")).await;
    let of_type = server.queue.job_type(&tenant, &Name::of("puppet")).await;
    let of_type = of_type.expect("a read").expect("it is served");
    [
        queue.expect("a read").status.stalled,
        of_type.status.stalled,
    ]
}

#[tokio::test]
async fn a_silent_attempt_is_said_to_be_stalled_until_it_tells_something() {
    let (dir, clock, puppets) = (folder(), OwnedClock::new(1), Puppets::default());
    let quiet = settings(|settings| {
        settings.timeouts.stall_time = MINUTE;
        settings.progress_interval = Duration::from_secs(1_000_000);
    });
    let server = Setup::on(dir.path())
        .clock(clock.clone())
        .config(|config| config.log_bytes_max = 3)
        .job_type_with("puppet", quiet, puppets.clone())
        .start()
        .await;
    let (job, puppet) = server.begin(&puppets).await;
    let began = clock.now();
    clock.pass(MINUTE - TICK);
    assert_eq!(stalled(&server, &clock).await, 0, "not a tick sooner");
    puppet.store(&server.queue, vec![]).await;
    clock.pass(TICK);
    assert_eq!(
        stalled(&server, &clock).await,
        1,
        "a heartbeat tells nothing"
    );
    assert_eq!(stalled(&server, &clock).await, 0, "said once");
    let seen = server.get(&job).await;
    assert_eq!(seen.state(), State::Running);
    let since = seen.stalled_since.expect("it says since when");
    assert_eq!(since, pacenote::wire::to_timestamp(began));
    assert!(!puppet.attempt.stop.is_cancelled(), "it goes on");
    assert_eq!(counted_as_stalled(&server).await, [1, 1]);
    // Whatever it tells: progress that is held back, output that fits, output that finds no room, where
    // it could go on.
    let signs: [fn() -> Report; 4] = [
        || progress(0.5),
        || output("abc"),
        || output("no room"),
        || Report::Checkpoint(Payload::text("here")),
    ];
    // The first progress of an attempt is stored at once.
    puppet.store(&server.queue, vec![progress(0.1)]).await;
    assert_eq!(server.get(&job).await.stalled_since, None);
    assert_eq!(counted_as_stalled(&server).await, [0, 0]);
    for (said, sign) in signs.into_iter().enumerate() {
        clock.pass(MINUTE - TICK);
        puppet.store(&server.queue, vec![sign()]).await;
        clock.pass(TICK);
        assert_eq!(stalled(&server, &clock).await, 0, "sign {said}");
        clock.pass(MINUTE);
        assert_eq!(stalled(&server, &clock).await, 1, "after sign {said}");
    }
    assert_eq!(stalls(&server.log(&job).await), 5);
    puppet.succeed();
    let end = server.end_of(&job).await;
    assert_eq!((end.state(), end.stalled_since), (State::Succeeded, None));
    check_finished(&server.log(&job).await);
    server.stop().await.expect("a clean end");
}

/// Goal: ten thousand jobs that failed together come back spread out. Method: all fail in the same
/// microsecond, by a clock that stands, with chances from a seed.
#[tokio::test]
async fn the_retries_of_ten_thousand_jobs_that_failed_together_are_spread_out() {
    const JOBS: usize = 10_000;
    let (dir, clock) = (folder(), OwnedClock::new(57));
    let slow = settings(|settings| {
        settings.retry_policy.initial_backoff = Duration::from_secs(10);
        settings.retry_policy.max_attempts = 2;
    });
    let queue = open(dir.path(), &clock, slow).await;
    let submits = (0..JOBS).map(|_| submit(&queue));
    futures_util::future::join_all(submits).await;
    let places = pacenote::queue::Places::new(JOBS, [(Name::of("work"), JOBS)]);
    let (claimed, mut handed) = tokio::sync::mpsc::unbounded_channel();
    let begin = Box::new(move |job| drop(claimed.send(job)));
    queue
        .attach_pool("test".to_owned(), places.clone(), begin)
        .await;
    let began = clock.now();
    for attempt in 1..=2 {
        let mut leases = Vec::new();
        for _ in 0..JOBS {
            let job = soon(handed.recv()).await.expect("claimed").claimed.job;
            assert_eq!(job.attempt, attempt);
            places.give_back(&job.spec.job_type);
            leases.push(pacenote::queue::Lease {
                key: job.key.clone(),
                attempt,
            });
        }
        let ends = leases
            .iter()
            .map(|lease| queue.finish(lease, vec![], broken()));
        let jobs = futures_util::future::join_all(ends).await;
        let jobs = jobs.into_iter().map(|job| job.expect("it ran"));
        if attempt == 2 {
            assert!(jobs.into_iter().all(|job| job.state == JobState::Failed));
            break;
        }
        let mut buckets = [0_usize; 100];
        for job in jobs {
            assert_eq!(job.state, JobState::Scheduled);
            let wait = job.run_at.since(began);
            buckets[usize::try_from(wait.as_millis() / 100).expect("small")] += 1;
        }
        let fullest = buckets.iter().max().expect("some");
        assert!(fullest * 20 <= JOBS, "{fullest} in 100 ms");
        clock.pass(Duration::from_secs(10));
        queue.make_due().await.expect("the store works");
    }
    queue.close().await;
}

/// Goal: a job that loses its worker each time ends, with its history, and holds up nobody. Method: one
/// place for two jobs; the other ones run in between.
#[tokio::test]
async fn a_job_that_kills_its_worker_ends_and_holds_up_nobody() {
    let dir = folder();
    let puppets = Puppets::default();
    let many = settings(|settings| {
        settings.concurrency = Some(1);
        settings.retry_policy.max_attempts = 50;
    });
    let setup = Setup::on(dir.path()).job_type_with("puppet", many, puppets.clone());
    let server = setup.start().await;
    let poison = server.submit(submit_request("puppet")).await.job_id;
    let mut others = Vec::new();
    let mut lost = 0;
    let end_of_time = Timestamp::from_micros(i64::MAX);
    for _ in 0..12 {
        others.push(server.submit(submit_request("puppet")).await.job_id);
        let puppet = puppets.next().await;
        if puppet.attempt.key != key(&poison) {
            puppet.succeed();
            continue;
        }
        let swept = server.queue.sweep_leases(end_of_time).await;
        assert_eq!(swept.expect("the store works"), 1);
        lost += 1;
        soon(puppet.attempt.stop.cancelled()).await;
        puppet.succeed();
    }
    assert_eq!(lost, 3);
    let end = server.end_of(&poison).await;
    assert_eq!((end.state(), end.attempt), (State::Failed, 3));
    assert_eq!(end.error.expect("why").reason, "WORKER_LOST");
    let log = server.log(&poison).await;
    let of_lost = states(&log)
        .into_iter()
        .filter(|(_, why)| *why == "WORKER_LOST");
    assert_eq!(of_lost.count(), 3, "its history says so");
    for _ in 0..lost {
        puppets.next().await.succeed();
    }
    for other in &others {
        assert_eq!(server.end_of(other).await.state(), State::Succeeded);
    }
    server.stop().await.expect("a clean end");
}

/// Goal: of two that come in the same microsecond one wins, and the job knows one end. Method: each pair
/// in both orders, a tick before, at and after the time that both are about.
#[tokio::test]
async fn of_two_that_come_at_once_one_wins() {
    let (dir, clock) = (folder(), OwnedClock::new(55));
    let timed = settings(|settings| {
        settings.timeouts.total_timeout = Some(MINUTE);
        settings.retry_policy.max_attempts = 100;
    });
    let queue = open(dir.path(), &clock, timed).await;
    let (places, mut handed) = one_place(&queue, "work").await;
    for around in [MINUTE - TICK, MINUTE, MINUTE + TICK] {
        for retry_first in [true, false] {
            let job = submit(&queue).await;
            let claimed = soon(handed.recv()).await.expect("claimed").claimed.job;
            let lease = pacenote::queue::Lease {
                key: job.clone(),
                attempt: claimed.attempt,
            };
            // The retry is due exactly when the job's time ends.
            let again = JobError::retryable("BROKEN", "again").with_retry_after(MINUTE);
            let failed = queue.finish(&lease, vec![], Outcome::Failed(again)).await;
            assert_eq!(failed.expect("it runs").state, JobState::Scheduled);
            clock.pass(around);
            if retry_first {
                queue.make_due().await.expect("the store works");
                queue.expire_waiting().await.expect("the store works");
            } else {
                queue.expire_waiting().await.expect("the store works");
                queue.make_due().await.expect("the store works");
            }
            let (state, reason) = state_of(&queue, &job).await;
            if around < MINUTE {
                assert_eq!(state, JobState::Scheduled, "it waits still");
            } else {
                assert_eq!(
                    (state, reason.as_str()),
                    (JobState::Expired, "TOTAL_TIMEOUT")
                );
            }
            // Cancelled where it waits still; then the place is for the next one.
            queue
                .cancel(&job, String::new())
                .await
                .expect("it is there");
            places.give_back(&Name::of("work"));
        }
    }
    queue.close().await;
}

/// Goal: a result and a cancel that come at once end the job once, in either order.
#[tokio::test]
async fn a_result_and_a_cancel_that_come_at_once_make_one_end() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    for _ in 0..crate::harness::count_of("PACENOTE_TEST_RACES", 200) / 10 {
        let (job, puppet) = server.begin(&puppets).await;
        let lease = lease(&job, 1);
        let done = Outcome::Succeeded(None);
        let key = key(&job);
        let (finished, cancelled) = tokio::join!(
            server.queue.finish(&lease, vec![], done),
            server.queue.cancel(&key, String::new()),
        );
        let (finished, cancelled) = (finished.expect("OK"), cancelled.expect("OK"));
        let end = server.end_of(&job).await;
        assert!(matches!(end.state(), State::Succeeded | State::Cancelled));
        assert!(finished.state.is_terminal());
        assert!(cancelled.state.is_terminal() || cancelled.state == JobState::Cancelling);
        check_finished(&server.log(&job).await);
        drop(puppet);
    }
    server.stop().await.expect("a clean end");
}

/// Goal: a snooze charges nothing and waits; what the attempt has saved is there for the next one.
#[tokio::test]
async fn a_snoozed_job_goes_on_at_its_time_with_its_checkpoint_and_is_charged_nothing() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let handler = HandlerExecutor::new(|context: Context, _: ()| async move {
        let page = context.checkpoint::<u32>()?.unwrap_or(0);
        if page < 5 {
            context.save_checkpoint(&(page + 1)).await?;
            return Err(HandlerError::snooze(MINUTE));
        }
        Ok(page)
    });
    let strict = settings(|settings| settings.retry_policy.max_attempts = 1);
    let server = Setup::on(dir.path())
        .clock(clock.clone())
        .job_type_with("handler", strict, handler)
        .start()
        .await;
    let job = server.submit(submit_request("handler")).await.job_id;
    for attempt in 1..=5 {
        let due = clock.now().after(MINUTE);
        let waits = server.until_state(&job, State::Scheduled).await;
        assert_eq!((waits.attempt, waits.attempts_charged), (attempt, 0));
        let due = pacenote::wire::to_timestamp(due);
        assert_eq!(waits.schedule_time, Some(due));
        clock.pass(MINUTE - TICK);
        server.queue.make_due().await.expect("the store works");
        assert_eq!(server.get(&job).await.state(), State::Scheduled);
        clock.pass(TICK);
        server.queue.make_due().await.expect("the store works");
        if attempt < 5 {
            let again = server.until_attempt(&job, attempt + 1).await;
            assert_eq!(again.error, None);
        }
    }
    let end = server.end_of(&job).await;
    assert_eq!((end.state(), end.attempt), (State::Succeeded, 6));
    assert_eq!(end.attempts_charged, 1);
    let log = server.log(&job).await;
    check_finished(&log);
    let snoozed = states(&log)
        .into_iter()
        .filter(|(_, why)| *why == "SNOOZED");
    assert_eq!(snoozed.count(), 5);
    server.stop().await.expect("a clean end");
}

/// Goal: what an error says about its next attempt stands above the policy, but for reasons that the policy
/// ends.
#[tokio::test]
async fn an_errors_own_wait_and_a_final_reason_stand_above_the_backoff() {
    let (dir, clock) = (folder(), OwnedClock::new(1));
    let picky = settings(|settings| {
        settings.retry_policy.non_retryable_reasons = vec!["NO_USE".to_owned()];
    });
    let queue = open(dir.path(), &clock, picky).await;
    let (places, mut handed) = one_place(&queue, "work").await;
    let year = Duration::from_secs(365 * 24 * 3600);
    for (reason, asked, waits) in [
        ("BUSY", Duration::ZERO, Some(Duration::ZERO)),
        ("BUSY", MINUTE, Some(MINUTE)),
        ("BUSY", year + TICK, Some(year)),
        ("NO_USE", MINUTE, None),
    ] {
        let job = submit(&queue).await;
        soon(handed.recv()).await.expect("claimed");
        let lease = pacenote::queue::Lease {
            key: job.clone(),
            attempt: 1,
        };
        let error = JobError::retryable(reason, "later").with_retry_after(asked);
        let after = queue.finish(&lease, vec![], Outcome::Failed(error)).await;
        let after = after.expect("it ran");
        match waits {
            None => assert_eq!(after.state, JobState::Failed),
            Some(wait) => assert_eq!(after.run_at, clock.now().after(wait)),
        }
        queue
            .cancel(&job, String::new())
            .await
            .expect("it is there");
        places.give_back(&Name::of("work"));
    }
    queue.close().await;
}
