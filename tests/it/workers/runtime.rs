//! The library's own worker, `pacenote::client::worker`, against a real server, with a relay between them
//! that loses what it is told to.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pacenote::client::worker::{Context, HandlerError, LogLevel, Worker};
use pacenote::client::{Backoff, Client, ClientError, Settings, request};
use pacenote::job::Outcome as Ended;
use pacenote::job::payload::Payload;
use pacenote::job::progress::Progress;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::relay::{Fate, Relay};
use super::*;

/// The shortest there is.
const LEASE: Duration = Duration::from_secs(5);

/// A worker at work, in a task of its own.
pub(super) struct Working {
    pub(super) shutdown: CancellationToken,
    pub(super) running: JoinHandle<Result<(), ClientError>>,
}

pub(super) async fn worker_at(address: &str) -> Worker {
    let settings = Settings {
        backoff: Backoff {
            max: Duration::from_millis(500),
            ..Backoff::default()
        },
        ..Settings::default()
    };
    let client = Client::connect_with(address, settings).await;
    Worker::new(&client.expect("the server accepts")).lease(LEASE)
}

pub(super) fn begin(worker: Worker) -> Working {
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(worker.run(shutdown.clone().cancelled_owned()));
    Working { shutdown, running }
}

impl Working {
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        let ended = soon(self.running).await.expect("no panic");
        ended.expect("a good end");
    }
}

/// The test's hands, as what runs the jobs of the type `work`.
async fn puppets_at(address: &str) -> (Worker, Puppets) {
    let puppets = Puppets::default();
    let worker = worker_at(address).await;
    (worker.executor(Name::of("work"), puppets.clone()), puppets)
}

/// Goal: a typed Rust function does jobs of a server elsewhere, and all that it tells is seen there.
#[tokio::test]
async fn all_that_a_handler_tells_is_seen() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let handler = |context: Context, rows: Vec<i64>| async move {
        let before: Option<i64> = context.checkpoint()?;
        assert_eq!((before, context.attempt()), (None, 1));
        context.log(LogLevel::Warn, "begins").await?;
        context
            .progress(Progress::units(1, Some(4), "rows"))
            .await?;
        context.output("stdout", "one ").await?;
        context.output("stdout", "zwölf").await?;
        context.save_checkpoint(&7).await?;
        context.progress(Progress::fraction(0.75)).await?;
        Ok(rows.iter().sum::<i64>())
    };
    let worker = worker_at(&scene.server.address)
        .await
        .handler("work", handler);
    let working = begin(worker.worker_id("worker-2"));
    let submit = request("work", &[1, 2, 3]).expect("JSON");
    let job_id = scene.server.submit(submit).await.job_id;
    let job = scene.server.end_of(&job_id).await;
    assert_eq!(job.state(), State::Succeeded, "{job:?}");
    assert_eq!((job.attempt, job.worker_id.as_str()), (1, "worker-2"));
    let six = request("", &6).expect("JSON").input;
    assert_eq!(job.result, six);
    let seven = request("", &7).expect("JSON").input;
    assert_eq!(job.checkpoint, seven);
    assert_eq!(job.progress.expect("its progress").fraction, Some(0.75));
    let log = scene.server.log(&job_id).await;
    let told = [(0, "one ".to_owned()), (4, "zwölf".to_owned())];
    assert_eq!(outputs(&log), told);
    let lines = log.iter().filter_map(|event| match &event.event {
        Some(Event::Log(line)) => Some(line.message.as_str()),
        _ => None,
    });
    assert_eq!(lines.collect::<Vec<_>>(), ["begins"]);
    working.stop().await;
    scene.stop().await;
}

/// Goal: whatever gets lost on the way, each report and each end is stored once, and in order.
#[tokio::test]
async fn what_is_lost_on_the_way_is_sent_again_and_stored_once() {
    for fate in [Fate::RequestLost, Fate::AnswerLost] {
        let dir = folder();
        let scene = Scene::on(&dir).await;
        let relay = Relay::to(&scene.server.address, move |call| match call.method {
            "Report" | "Finish" if call.before == 0 => fate.clone(),
            _ => Fate::Passes,
        });
        let relay = relay.await;
        let handler = |context: Context, (): ()| async move {
            for number in 0..5 {
                context.output("stdout", format!("{number} ")).await?;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            Ok("done")
        };
        let working = begin(worker_at(&relay.address).await.handler("work", handler));
        let job_id = scene.submit().await;
        let job = scene.server.end_of(&job_id).await;
        assert_eq!((job.state(), job.attempt), (State::Succeeded, 1), "{job:?}");
        let told: String = outputs(&scene.server.log(&job_id).await)
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        assert_eq!(told, "0 1 2 3 4 ");
        working.stop().await;
        // Or else nothing was lost.
        assert!(relay.calls("Report") >= 2 && relay.calls("Finish") >= 2);
        scene.stop().await;
    }
}

/// Goal: a cancel reaches a handler that says nothing, within a heartbeat and a second; its job is CANCELLED.
#[tokio::test]
async fn a_cancel_reaches_a_silent_handler() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (worker, puppets) = puppets_at(&scene.server.address).await;
    let working = begin(worker);
    let job_id = scene.submit().await;
    let puppet = puppets.next().await;
    assert_eq!(
        scene.server.cancel(&job_id).await.state(),
        State::Cancelling
    );
    let asked = std::time::Instant::now();
    soon(puppet.attempt.stop.cancelled()).await;
    assert!(asked.elapsed() < LEASE / 3 + Duration::from_secs(1));
    puppet.end(Ended::Cancelled);
    assert_eq!(scene.server.end_of(&job_id).await.state(), State::Cancelled);
    working.stop().await;
    scene.stop().await;
}

/// Goal: a worker that nobody answers any more stops its handler before its lease is over, and what it says later
/// changes nothing; the job goes on elsewhere.
#[tokio::test]
async fn a_worker_that_is_cut_off_stops_before_its_lease_ends() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let is_cut = Arc::new(AtomicBool::new(false));
    let cut = Arc::clone(&is_cut);
    let relay = Relay::to(&scene.server.address, move |_| {
        match cut.load(Ordering::Relaxed) {
            true => Fate::Silence,
            false => Fate::Passes,
        }
    });
    let relay = relay.await;
    let (worker, puppets) = puppets_at(&relay.address).await;
    let working = begin(worker);
    let job_id = scene.submit().await;
    let puppet = puppets.next().await;
    let begun = std::time::Instant::now();
    is_cut.store(true, Ordering::Relaxed);
    soon(puppet.attempt.stop.cancelled()).await;
    let stopped_after = begun.elapsed();
    assert!(
        stopped_after < LEASE && stopped_after > LEASE / 2,
        "{stopped_after:?}"
    );
    // Still leased when its handler was stopped; then it is free.
    assert_eq!(scene.server.get(&job_id).await.attempt, 1);
    let second = scene.lease_one().await;
    assert_eq!(id_of(&second), job_id);
    puppet.end(Ended::Cancelled);
    is_cut.store(false, Ordering::Relaxed);
    // It knows that the job has gone once its word was refused.
    let refused = || relay.calls("Finish") > 0;
    eventually("it tells its end", refused).await;
    let job = scene.finish(&second.lease_token, done("second")).await;
    let job = job.expect("it holds the lease");
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 2));
    working.stop().await;
    scene.stop().await;
}

/// Goal: the time that a call for work waits is not taken for a part of the lease: work that comes after a wait of more
/// than a term is begun.
#[tokio::test]
async fn a_long_wait_for_work_takes_nothing_from_the_lease() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (worker, puppets) = puppets_at(&scene.server.address).await;
    let working = begin(worker);
    scene.somebody_waits().await;
    // The time itself is what is looked at.
    tokio::time::sleep(LEASE + Duration::from_millis(500)).await;
    let job_id = scene.submit().await;
    let puppet = puppets.next().await;
    // Nor is it told to stop a moment later.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!puppet.attempt.stop.is_cancelled());
    puppet.succeed();
    let job = scene.server.end_of(&job_id).await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 1));
    working.stop().await;
    scene.stop().await;
}

/// Goal: work whose answer was on its way for longer than its lease is never begun: it may be somebody else's.
#[tokio::test]
async fn work_that_comes_too_late_is_not_begun() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (hold, held) = tokio::sync::watch::channel(());
    let relay = Relay::to(&scene.server.address, move |call| {
        match (call.method, call.before) {
            ("Lease", 0) => Fate::Held(held.clone()),
            _ => Fate::Passes,
        }
    });
    let relay = relay.await;
    let (worker, puppets) = puppets_at(&relay.address).await;
    let working = begin(worker);
    scene.somebody_waits().await;
    let job_id = scene.submit().await;
    // It has the job's lease, and has not heard of it, until that is over.
    let second = loop {
        let leased = scene.lease(lease_request(1)).await;
        if let [second] = &leased[..] {
            break second.clone();
        }
    };
    assert_eq!(id_of(&second), job_id);
    drop(hold);
    let told = || relay.calls("Finish") > 0;
    eventually("it gives the job back", told).await;
    assert!(puppets.is_idle().await, "it has begun");
    let job = scene.finish(&second.lease_token, done("second")).await;
    assert_eq!(job.expect("it holds the lease").attempt, 2);
    working.stop().await;
    scene.stop().await;
}

/// Goal: where the lease is lost, the handler is told within a heartbeat, and nothing more is told of the job.
#[tokio::test]
async fn a_handler_whose_lease_is_lost_is_stopped_and_says_nothing_more() {
    let dir = folder();
    let clock = TestClock::new();
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let scene = Scene::new(setup).await;
    let relay = Relay::to(&scene.server.address, |_| Fate::Passes).await;
    let (worker, puppets) = puppets_at(&relay.address).await;
    let working = begin(worker);
    let job_id = scene.submit().await;
    let puppet = puppets.next().await;
    clock.pass(LEASE + Duration::from_secs(1));
    let swept = scene.server.queue.sweep_leases(clock.steady()).await;
    assert_eq!(swept.expect("swept"), 1);
    let second = scene.lease_one().await;
    assert_eq!(id_of(&second), job_id);
    soon(puppet.attempt.stop.cancelled()).await;
    puppet.end(Ended::Cancelled);
    let job = scene.finish(&second.lease_token, done("second")).await;
    assert_eq!(job.expect("it holds the lease").attempt, 2);
    working.stop().await;
    assert_eq!(relay.calls("Finish"), 0, "its end is nobody's business");
    scene.stop().await;
}

/// Goal: a worker outlives its server: the handler goes on, and all that it told before, meanwhile and
/// after is there once.
#[tokio::test]
async fn a_worker_outlives_a_restart_of_its_server() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let relay = Relay::to(&scene.server.address, |_| Fate::Passes).await;
    let (worker, puppets) = puppets_at(&relay.address).await;
    let working = begin(worker.lease(Duration::from_secs(30)));
    let job_id = scene.submit().await;
    let puppet = puppets.next().await;
    puppet.say("before ").await;
    let told = || relay.calls("Report") > 0;
    eventually("it has told", told).await;
    scene.stop().await;
    puppet.say("meanwhile ").await;
    let server = Setup::on(dir.path()).start().await;
    relay.lead_to(&server.address);
    puppet.say("after").await;
    puppet.succeed();
    let job = server.end_of(&job_id).await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 1), "{job:?}");
    let told: String = outputs(&server.log(&job_id).await)
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    assert_eq!(told, "before meanwhile after");
    working.stop().await;
    server.stop().await.expect("a clean end");
}

/// Goal: a worker that is told to stop finishes what it can in its time, and hands back the rest, uncharged.
#[tokio::test]
async fn a_drain_finishes_what_it_can_and_hands_back_the_rest() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (worker, puppets) = puppets_at(&scene.server.address).await;
    let working = begin(
        worker
            .concurrency(2)
            .drain_timeout(Duration::from_millis(500)),
    );
    let (quick, slow) = (scene.submit().await, scene.submit().await);
    let (first, second) = (puppets.next().await, puppets.next().await);
    let (first, second) = match first.attempt.key.id.to_string() == quick {
        true => (first, second),
        false => (second, first),
    };
    working.shutdown.cancel();
    let late = scene.submit().await;
    first.succeed();
    assert_eq!(scene.server.end_of(&quick).await.state(), State::Succeeded);
    soon(second.attempt.stop.cancelled()).await;
    second.end(Ended::Cancelled);
    working.stop().await;
    assert!(puppets.is_idle().await, "it took one more");
    let taken = scene.lease(at_once(2)).await;
    let mut taken: Vec<(String, i32)> = taken
        .iter()
        .map(|leased| {
            let job = leased.job.as_ref().expect("a job");
            (job.job_id.clone(), job.attempts_charged)
        })
        .collect();
    taken.sort();
    let mut expected = vec![(slow, 0), (late, 0)];
    expected.sort();
    assert_eq!(taken, expected, "nobody is charged before the end");
    scene.stop().await;
}

/// Goal: a job whose answer crosses the stop is given back at once, and nobody is charged for it.
#[tokio::test]
async fn work_that_comes_while_it_stops_is_handed_back() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (hold, held) = tokio::sync::watch::channel(());
    let relay = Relay::to(&scene.server.address, move |call| match call.method {
        "Lease" => Fate::Held(held.clone()),
        _ => Fate::Passes,
    });
    let relay = relay.await;
    let (worker, puppets) = puppets_at(&relay.address).await;
    let working = begin(worker);
    scene.somebody_waits().await;
    let job_id = scene.submit().await;
    let running = async || scene.server.get(&job_id).await.state() == State::Running;
    while !running().await {
        tokio::task::yield_now().await;
    }
    working.shutdown.cancel();
    drop(hold);
    working.stop().await;
    assert!(puppets.is_idle().await);
    let job = scene.lease_one().await.job.expect("a job");
    assert_eq!((job.job_id, job.attempts_charged), (job_id, 0));
    scene.stop().await;
}

/// Goal: each way in which a handler can end comes to what it says.
#[tokio::test]
async fn a_handler_ends_as_it_says() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let handler = |context: Context, how: String| async move {
        match (how.as_str(), context.attempt()) {
            ("permanent", _) => Err(HandlerError::permanent("NO_SUCH_ROW", "row 7 is not there")),
            ("retry", 1) => {
                let busy = HandlerError::retryable("BUSY", "come back");
                Err(busy.retry_after(Duration::from_millis(10)))
            }
            ("snooze", 1) => Err(HandlerError::snooze(Duration::from_millis(10))),
            ("panic", 1) => panic!("out of luck"),
            ("cancelled", _) => Err(HandlerError::cancelled()),
            ("large", _) => Ok("x".repeat(2 << 20)),
            (how, attempt) => Ok(format!("{how} {attempt}")),
        }
    };
    let working = begin(
        worker_at(&scene.server.address)
            .await
            .handler("work", handler),
    );
    let end = async |how: &str| {
        let mut submit = request("work", &how).expect("JSON");
        submit.retry_policy = Some(pb::RetryPolicy {
            initial_backoff: Some(prost_types::Duration {
                seconds: 0,
                nanos: 1_000_000,
            }),
            ..pb::RetryPolicy::default()
        });
        let job_id = scene.server.submit(submit).await.job_id;
        let job = scene.server.end_of(&job_id).await;
        let error = job.error.as_ref().map(|error| error.reason.clone());
        (job.state(), job.attempt, job.attempts_charged, error)
    };
    let failed = |reason: &str| (State::Failed, 1, 1, Some(reason.to_owned()));
    assert_eq!(end("permanent").await, failed("NO_SUCH_ROW"));
    assert_eq!(end("cancelled").await, failed("HANDLER_CANCELLED"));
    assert_eq!(end("large").await, failed("RESULT_INVALID"));
    assert_eq!(end("retry").await, (State::Succeeded, 2, 2, None));
    assert_eq!(end("panic").await, (State::Succeeded, 2, 2, None));
    assert_eq!(end("snooze").await, (State::Succeeded, 2, 1, None));
    let job_id = scene.submit().await; // without an input
    let job = scene.server.end_of(&job_id).await;
    assert_eq!(job.error.expect("an error").reason, "INPUT_INVALID");
    working.stop().await;
    scene.stop().await;
}

/// Goal: a handler that blocks its thread for longer than a lease keeps it, and others go on beside it.
#[tokio::test]
async fn a_handler_that_blocks_its_thread_keeps_its_lease() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let handler = |_: Context, seconds: f64| async move {
        std::thread::sleep(Duration::from_secs_f64(seconds));
        Ok(())
    };
    let worker = worker_at(&scene.server.address)
        .await
        .handler("work", handler);
    let working = begin(worker.concurrency(2));
    let submit = async |seconds: f64| {
        let submit = request("work", &seconds).expect("JSON");
        scene.server.submit(submit).await.job_id
    };
    let blocking = submit(LEASE.as_secs_f64() + 1.5).await;
    for _ in 0..3 {
        let quick = submit(0.0).await;
        assert_eq!(scene.server.end_of(&quick).await.state(), State::Succeeded);
    }
    let job = scene.server.end_of(&blocking).await;
    assert_eq!((job.state(), job.attempt), (State::Succeeded, 1));
    working.stop().await;
    scene.stop().await;
}

/// Goal: never more at once than it was told, and all of them where there is work.
#[tokio::test]
async fn as_many_run_at_once_as_it_was_told() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&now), Arc::clone(&most));
    let handler = move |_: Context, (): ()| {
        let (now, most) = counts.clone();
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let mut jobs = Vec::new();
    for _ in 0..12 {
        jobs.push(scene.submit().await);
    }
    let worker = worker_at(&scene.server.address)
        .await
        .handler("work", handler);
    let working = begin(worker.concurrency(3));
    for job_id in &jobs {
        assert_eq!(scene.server.end_of(job_id).await.state(), State::Succeeded);
    }
    assert_eq!(most.load(Ordering::SeqCst), 3);
    working.stop().await;
    scene.stop().await;
}

/// Goal: one lease that the server does not know must not take the others along.
#[tokio::test]
async fn a_token_that_is_not_known_loses_its_own_job_alone() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let refusals = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&refusals);
    // The first call has both tokens, and the next two have one each.
    let relay = Relay::to(&scene.server.address, move |call| match call.method {
        "ExtendLeases" if counted.fetch_add(1, Ordering::SeqCst) < 2 => {
            Fate::Refused(Status::invalid_argument("one of them is no token"))
        }
        _ => Fate::Passes,
    });
    let relay = relay.await;
    let (worker, puppets) = puppets_at(&relay.address).await;
    let working = begin(worker.concurrency(2));
    scene.submit().await;
    scene.submit().await;
    let both = [puppets.next().await, puppets.next().await];
    eventually("both were renewed", || refusals.load(Ordering::SeqCst) >= 3).await;
    let stopped = || {
        both.iter()
            .filter(|one| one.attempt.stop.is_cancelled())
            .count()
    };
    eventually("one is lost", || stopped() == 1).await;
    for puppet in both {
        if puppet.attempt.stop.is_cancelled() {
            puppet.end(Ended::Cancelled);
        } else {
            let job_id = puppet.attempt.key.id.to_string();
            puppet.end(Ended::Succeeded(Some(Payload::text("done"))));
            assert_eq!(scene.server.end_of(&job_id).await.state(), State::Succeeded);
        }
    }
    working.stop().await;
    scene.stop().await;
}

/// Goal: a worker that the server can never give work says so and ends.
#[tokio::test]
async fn a_worker_without_a_type_is_refused() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let worker = worker_at(&scene.server.address).await;
    let refused = soon(worker.run(std::future::pending())).await;
    let Err(ClientError::Refused(refusal)) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(refusal.reason, "INVALID_FIELD");
    assert_eq!(refusal.violations[0].field, "types");
    scene.stop().await;
}

/// Goal: a worker that is dropped stops what runs.
#[tokio::test]
async fn a_worker_that_is_dropped_stops_what_runs() {
    struct Gone(Arc<AtomicBool>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (runs, gone) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let flags = (Arc::clone(&runs), Arc::clone(&gone));
    let handler = move |_: Context, (): ()| {
        let (runs, gone) = flags.clone();
        async move {
            let _gone = Gone(gone);
            runs.store(true, Ordering::SeqCst);
            std::future::pending::<()>().await;
            Ok(())
        }
    };
    let working = begin(
        worker_at(&scene.server.address)
            .await
            .handler("work", handler),
    );
    scene.submit().await;
    eventually("it runs", || runs.load(Ordering::SeqCst)).await;
    working.running.abort();
    eventually("it is gone", || gone.load(Ordering::SeqCst)).await;
    scene.stop().await;
}
