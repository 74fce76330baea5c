//! Leases: who is fenced off, what may be sent again, and what becomes of those who go away.

use futures_util::future::join_all;

use super::*;

/// Goal: nothing that comes with the token of a lost lease changes anything; and the job goes on in another
/// attempt, which has the checkpoint. Method: the lease runs out by a clock of the test's.
#[tokio::test]
async fn a_lost_lease_fences_its_holder_off() {
    let dir = folder();
    let clock = TestClock::new();
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let scene = Scene::new(setup).await;
    let old = scene.begin().await;
    let report = pb::ReportRequest {
        checkpoint: Some(text("so far")),
        ..heartbeat(&old.lease_token)
    };
    scene.report(report).await.expect("it holds the lease");
    let queue = &scene.server.queue;
    // A tick before its end nothing is lost.
    clock.pass(Duration::from_secs(14));
    assert_eq!(queue.sweep_leases(clock.steady()).await.expect("swept"), 0);
    clock.pass(Duration::from_secs(2));
    assert_eq!(queue.sweep_leases(clock.steady()).await.expect("swept"), 1);
    let new = scene.lease_one().await;
    let job = new.job.clone().expect("the job");
    assert_eq!((id_of(&new), job.attempt), (id_of(&old), 2));
    assert_eq!(job.checkpoint, Some(text("so far")));
    assert_eq!((job.attempts_charged, job.last_sequence), (1, 5));
    let late = pb::ReportRequest {
        events: vec![output("late")],
        ..heartbeat(&old.lease_token)
    };
    assert_stale(scene.report(late).await);
    assert_stale(scene.finish(&old.lease_token, done("late")).await);
    let [old_status, new_status] = scene
        .extend(&[&old.lease_token, &new.lease_token])
        .await
        .try_into()
        .expect("two");
    assert!(old_status.lost && old_status.lease_expire_time.is_none());
    assert!(!new_status.lost && new_status.lease_expire_time.is_some());
    assert_eq!(scene.server.get(&id_of(&new)).await.last_sequence, 5);
    let finished = scene.finish(&new.lease_token, done("in time")).await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    scene.stop().await;
}

/// Goal: a worker that vanishes with more leases than one commit takes loses all of them at once: nobody waits
/// for the next look.
#[tokio::test]
async fn a_worker_that_vanishes_with_many_leases_loses_all_of_them_at_once() {
    const JOBS: usize = 600;
    let dir = folder();
    let clock = TestClock::new();
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let scene = Scene::new(setup).await;
    let queue = &scene.server.queue;
    let submits = (0..JOBS).map(|_| queue.submit(Submission::new("work", None)));
    for submitted in soon(join_all(submits)).await {
        submitted.expect("there is room");
    }
    let mut held = 0;
    while held < JOBS {
        held += scene.lease(at_once(1_000)).await.len();
    }
    clock.pass(Duration::from_secs(16));
    let swept = queue.sweep_lost_leases(clock.steady()).await;
    assert_eq!(swept.expect("swept"), JOBS);
    scene.stop().await;
}

/// Goal: a renewal holds for the term that the worker asked for, no less and no more.
#[tokio::test]
async fn a_lease_holds_for_the_term_that_was_asked_for() {
    let dir = folder();
    let clock = TestClock::new();
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let scene = Scene::new(setup).await;
    let queue = &scene.server.queue;
    for term in [5, 300] {
        scene.submit().await;
        let request = pb::LeaseRequest {
            lease: Some(seconds(term)),
            ..lease_request(1)
        };
        let leased = scene.lease(request).await.remove(0);
        for _ in 0..2 {
            clock.pass(Duration::from_secs(term as u64 - 1));
            assert_eq!(queue.sweep_leases(clock.steady()).await.expect("swept"), 0);
            let standing = scene.report(heartbeat(&leased.lease_token)).await;
            standing.expect("it holds the lease");
        }
        clock.pass(Duration::from_secs(term as u64 + 1));
        assert_eq!(queue.sweep_leases(clock.steady()).await.expect("swept"), 1);
        scene.server.cancel(&id_of(&leased)).await;
    }
    scene.stop().await;
}

/// Goal: what is sent again because its answer was lost has no second effect.
#[tokio::test]
async fn what_is_sent_twice_is_stored_once() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let leased = scene.begin().await;
    let token = &leased.lease_token;
    let report = |number: i64, text: &str| pb::ReportRequest {
        events: vec![output(text)],
        report_number: number,
        ..heartbeat(token)
    };
    for (number, text) in [
        (1, "a"),
        (1, "a"),
        (2, "b"),
        (1, "a"),
        (2, "b"),
        (4, "c"),
        (4, "c"),
    ] {
        scene.report(report(number, text)).await.expect("it holds");
    }
    // Those that are not counted are stored each time.
    for _ in 0..2 {
        scene.report(report(0, "d")).await.expect("it holds");
    }
    let log = scene.server.log(&id_of(&leased)).await;
    let texts: Vec<String> = outputs(&log).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts.concat(), "abcdd");
    let first = scene.finish(token, failed(true)).await.expect("its end");
    let again = scene.finish(token, failed(true)).await.expect("the same");
    assert_eq!(first, again);
    assert_eq!(first.attempts_charged, 1);
    // Another end is not the same one.
    assert_stale(scene.finish(token, failed(false)).await);
    assert_stale(scene.report(report(5, "late")).await);
    scene.stop().await;
}

/// Goal: the same over a restart of the server: tokens, numbers and ends are known to the next one, which
/// gives every lease a fresh term.
#[tokio::test]
async fn a_worker_outlives_its_server() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (one, two) = (scene.begin().await, scene.begin().await);
    let report = pb::ReportRequest {
        events: vec![output("a")],
        report_number: 1,
        ..heartbeat(&one.lease_token)
    };
    scene.report(report.clone()).await.expect("it holds");
    let ended = scene.finish(&two.lease_token, done("two")).await;
    ended.expect("its end");
    scene.stop().await;
    let server = Setup::on(dir.path()).start().await;
    let worker = worker_of(&server).await;
    let scene = Scene { server, worker };
    let job = scene.server.get(&id_of(&one)).await;
    assert_eq!((job.state(), job.attempt), (State::Running, 1));
    scene.report(report).await.expect("it holds");
    let log = scene.server.log(&id_of(&one)).await;
    assert_eq!(outputs(&log).len(), 1, "it was sent before");
    let again = scene.finish(&two.lease_token, done("two")).await;
    assert_eq!(again.expect("the same end").state(), State::Succeeded);
    let finished = scene.finish(&one.lease_token, done("one")).await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    // The type is known to the next server as well.
    scene.submit().await;
    assert_eq!(scene.lease(at_once(10)).await.len(), 1);
    scene.stop().await;
}

/// Goal: a caller that has gone gets nothing.
#[tokio::test]
async fn a_caller_that_has_gone_is_forgotten() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let mut worker = scene.worker.clone();
    let polling = tokio::spawn(async move { worker.lease(lease_request(1)).await });
    scene.somebody_waits().await;
    polling.abort();
    let queue = &scene.server.queue;
    eventually("nobody waits", || queue.waiting_workers() == 0).await;
    let leased = scene.begin().await;
    assert_eq!(leased.job.expect("a job").attempts_charged, 0);
    scene.stop().await;
}

/// Goal: what was claimed for a caller that went away at that very moment is handed back at once, and
/// charged to nobody. Method: callers that go before, while and after their job comes; not one job may be
/// lost, which only the end of a lease would give back.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_caller_went_away_is_handed_back() {
    const JOBS: usize = 500;
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let queue = &scene.server.queue;
    let request = || WorkRequest {
        tenant: default_tenant(),
        worker_id: "worker-1".to_owned(),
        types: vec![Name::of("work")],
        queues: Vec::new(),
        max_jobs: 1,
        term: Duration::from_secs(300),
        wait: Duration::from_secs(300),
    };
    let lease = || {
        let queue = queue.clone();
        tokio::spawn(async move { queue.lease(request(), |_| true).await })
    };
    let mut callers = Vec::new();
    for index in 0..JOBS {
        let caller = lease();
        let submitted = tokio::spawn({
            let queue = queue.clone();
            async move { queue.submit(Submission::new("work", None)).await }
        });
        for _ in 0..index % 50 {
            tokio::task::yield_now().await;
        }
        caller.abort();
        callers.push(caller);
        soon(submitted).await.expect("no panic").expect("stored");
    }
    let mut kept = 0;
    for caller in callers {
        if let Ok(work) = caller.await {
            kept += work.expect("a good request").jobs.len();
        }
    }
    assert!(kept < JOBS, "some went before their job came");
    let mut left = 0;
    while kept + left < JOBS {
        let work = soon(lease()).await.expect("no panic").expect("work");
        for one in &work.jobs {
            assert_eq!(one.snapshot.job.attempts_charged, 0);
        }
        left += work.jobs.len();
    }
    assert_eq!(scene.lease(at_once(1)).await, []);
    scene.stop().await;
}

/// Goal: progress that is held back for its interval renews a short lease all the same. Method: progress
/// alone, every third of the shortest term, of a type whose interval is longer than that.
#[tokio::test]
async fn progress_that_is_held_back_renews_a_short_lease() {
    let dir = folder();
    let clock = TestClock::new();
    let (scene, leased) = slow_progress(&dir, &clock).await;
    for step in 0..10 {
        let report = progress(&leased.lease_token, f64::from(step) / 10.0);
        scene.report(report).await.expect("it holds the lease");
        clock.pass(Duration::from_millis(1_700));
        let queue = &scene.server.queue;
        let swept = queue.sweep_leases(clock.steady()).await;
        assert_eq!(swept.expect("swept"), 0, "step {step}");
    }
    scene.stop().await;
}

/// Goal: a worker may count its term from any report that was answered, also where its progress was held back
/// and nothing was stored: whoever comes to end the lease finds it renewed, and not for longer.
#[tokio::test]
async fn a_lease_holds_its_term_from_a_report_that_was_held_back() {
    let dir = folder();
    let clock = TestClock::new();
    let (scene, leased) = slow_progress(&dir, &clock).await;
    // The first is stored at once.
    for (fraction, millis) in [(0.1, 0), (0.2, 900), (0.3, 500)] {
        clock.pass(Duration::from_millis(millis));
        let told = scene.report(progress(&leased.lease_token, fraction)).await;
        told.expect("it holds the lease");
    }
    clock.pass(Duration::from_secs(4));
    let queue = &scene.server.queue;
    let swept = queue.sweep_leases(clock.steady()).await;
    assert_eq!(swept.expect("swept"), 0);
    clock.pass(Duration::from_secs(1) + Duration::from_millis(1));
    let swept = queue.sweep_leases(clock.steady()).await;
    assert_eq!(swept.expect("swept"), 1);
    scene.stop().await;
}

/// A job whose progress is stored once a minute, leased for the shortest term.
async fn slow_progress(dir: &TempDir, clock: &TestClock) -> (Scene, pb::LeasedJob) {
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let setup = setup.config(|config| {
        let settings = TypeSettings {
            progress_interval: Duration::from_secs(60),
            ..TypeSettings::default()
        };
        let of_workers = JobType {
            settings,
            command: None,
        };
        config.job_types.insert(Name::of("work"), of_workers);
    });
    let scene = Scene::new(setup).await;
    scene.submit().await;
    let request = pb::LeaseRequest {
        lease: Some(seconds(5)),
        ..lease_request(1)
    };
    let leased = scene.lease(request).await.remove(0);
    (scene, leased)
}

fn progress(token: &str, fraction: f64) -> pb::ReportRequest {
    let progress = pb::Progress {
        fraction: Some(fraction),
        ..pb::Progress::default()
    };
    pb::ReportRequest {
        events: vec![pb::WorkerEvent {
            event: Some(pb::worker_event::Event::Progress(progress)),
        }],
        ..heartbeat(token)
    }
}

/// Goal: nothing is left of an attempt that was cancelled and is over, whatever grace it had.
#[tokio::test]
async fn cancelled_attempts_that_are_over_leave_nothing_behind() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let round = async || {
        let mut submit = submit_request("work");
        submit.timeouts = Some(pb::Timeouts {
            cancel_grace: Some(seconds(24 * 3_600)),
            ..pb::Timeouts::default()
        });
        let job_id = scene.server.submit(submit).await.job_id;
        let leased = scene.lease_one().await;
        scene.server.cancel(&job_id).await;
        let ended = scene.finish(&leased.lease_token, Outcome::Cancelled(pb::Cancelled {}));
        assert_eq!(ended.await.expect("its end").state(), State::Cancelled);
    };
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    for _ in 0..50 {
        round().await;
    }
    // Some belong to connections.
    let all_over = || metrics.num_alive_tasks() < before + 10;
    eventually("what watches over them ends", all_over).await;
    scene.stop().await;
}
