//! What a worker of another program can do, and what it shares with the pool.

use super::*;

/// Goal: a worker in another program does a job from its claim to its result, and everybody sees all of it.
#[tokio::test]
async fn a_worker_of_another_program_does_a_job() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let request = pb::SubmitRequest {
        input: Some(text("the input")),
        ..submit_request("work")
    };
    let job_id = scene.server.submit(request).await.job_id;
    let leased = scene.lease_one().await;
    let job = leased.job.clone().expect("a job");
    assert_eq!(job.state(), State::Running);
    assert_eq!((job.attempt, job.worker_id.as_str()), (1, "worker-1"));
    assert_eq!(job.input, Some(text("the input")));
    assert!(leased.lease_expire_time.is_some());
    let progress = pb::Progress {
        completed_units: Some(3),
        total_units: Some(4),
        unit: "rows".to_owned(),
        ..pb::Progress::default()
    };
    let line = pb::LogLine {
        message: "half way".to_owned(),
        ..pb::LogLine::default()
    };
    let report = pb::ReportRequest {
        events: vec![
            output("one "),
            output("two"),
            pb::WorkerEvent {
                event: Some(pb::worker_event::Event::Log(line)),
            },
            pb::WorkerEvent {
                event: Some(pb::worker_event::Event::Progress(progress)),
            },
        ],
        report_number: 1,
        checkpoint: Some(text("here")),
        ..heartbeat(&leased.lease_token)
    };
    let standing = scene.report(report).await.expect("it holds the lease");
    assert!(!standing.cancel_requested);
    let finished = scene.finish(&leased.lease_token, done("the result")).await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    let job = scene.server.get(&job_id).await;
    assert_eq!(job.result, Some(text("the result")));
    assert_eq!(job.checkpoint, Some(text("here")));
    let progress = job.progress.expect("its progress");
    assert_eq!(progress.fraction, Some(0.75));
    let log = scene.server.log(&job_id).await;
    let told = [(0, "one ".to_owned()), (4, "two".to_owned())];
    assert_eq!(outputs(&log), told);
    scene.stop().await;
}

/// Goal: whoever waits for work has it as soon as it comes, in the commit that stores it, and where none
/// comes an empty answer in time.
#[tokio::test]
async fn a_waiting_worker_gets_a_job_as_it_comes() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let worker = scene.worker.clone();
    let polling = tokio::spawn(async move { worker.clone().lease(lease_request(2)).await });
    scene.somebody_waits().await;
    let job_id = scene.submit().await;
    let leased = soon(polling).await.expect("no panic").expect("work");
    let leased = leased.into_inner();
    assert!(!leased.drain);
    let [leased] = leased.leased_jobs.try_into().expect("one job");
    assert_eq!(id_of(&leased), job_id);
    assert_eq!(scene.lease(at_once(1)).await, []);
    scene.stop().await;
}

/// Goal: a worker hears of a cancel with its next word; whatever it says then, its job is CANCELLED; and
/// nobody can say that it was cancelled who was not asked.
#[tokio::test]
async fn a_cancel_reaches_the_worker_with_its_next_word() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (one, two) = (scene.begin().await, scene.begin().await);
    let refused = scene.finish(&one.lease_token, Outcome::Cancelled(pb::Cancelled {}));
    let refused = refused.await.expect_err("nobody asked");
    let reason = (Code::FailedPrecondition, "NOT_CANCELLING".to_owned());
    assert_eq!(reason_of(&refused), reason);
    for leased in [&one, &two] {
        let job = scene.server.cancel(&id_of(leased)).await;
        assert_eq!(job.state(), State::Cancelling);
    }
    let standing = scene.report(heartbeat(&one.lease_token)).await;
    let standing = standing.expect("it holds the lease");
    let told = (standing.cancel_requested, standing.cancel_reason.as_str());
    assert_eq!(told, (true, "enough"));
    // Progress that is held back brings the news as well.
    let progress = pb::WorkerEvent {
        event: Some(pb::worker_event::Event::Progress(pb::Progress::default())),
    };
    for _ in 0..2 {
        let report = pb::ReportRequest {
            events: vec![progress.clone()],
            ..heartbeat(&one.lease_token)
        };
        let standing = scene.report(report).await.expect("it holds the lease");
        assert!(standing.cancel_requested);
    }
    let status = scene.extend(&[&two.lease_token]).await.remove(0);
    assert!(status.cancel_requested && !status.lost);
    assert_eq!(status.cancel_reason, "enough");
    let ended = scene.finish(&one.lease_token, Outcome::Cancelled(pb::Cancelled {}));
    assert_eq!(ended.await.expect("its end").state(), State::Cancelled);
    let ended = scene.finish(&two.lease_token, done("too late")).await;
    let ended = ended.expect("the end is told, with OK");
    assert_eq!((ended.state(), ended.result), (State::Cancelled, None));
    scene.stop().await;
}

/// Goal: each way in which an attempt may end has the effect that it has in the pool.
#[tokio::test]
async fn an_attempt_may_be_handed_back_snoozed_or_fail() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let leased = scene.begin().await;
    let ended = scene.finish(&leased.lease_token, Outcome::HandBack(pb::HandBack {}));
    let ended = ended.await.expect("its end");
    assert_eq!((ended.state(), ended.attempts_charged), (State::Queued, 0));
    let leased = scene.lease_one().await;
    assert_eq!(leased.job.as_ref().expect("a job").attempt, 2);
    let snooze = Outcome::Snooze(pb::Snooze {
        delay: Some(seconds(3600)),
    });
    let ended = scene.finish(&leased.lease_token, snooze).await;
    let ended = ended.expect("its end");
    assert_eq!(
        (ended.state(), ended.attempts_charged),
        (State::Scheduled, 0)
    );
    let leased = scene.begin().await;
    let request = pb::FinishRequest {
        lease_token: leased.lease_token.clone(),
        outcome: Some(failed(true)),
        retry_delay: Some(seconds(1800)),
    };
    let ended = scene.worker.clone().finish(request).await;
    let ended = ended.expect("its end").into_inner().job.expect("the job");
    assert_eq!(
        (ended.state(), ended.attempts_charged),
        (State::Scheduled, 1)
    );
    let wait = ended.schedule_time.expect("when").seconds - ended.update_time.expect("now").seconds;
    assert!((1799..=1801).contains(&wait), "{wait}");
    let leased = scene.begin().await;
    let ended = scene.finish(&leased.lease_token, failed(false)).await;
    let ended = ended.expect("its end");
    assert_eq!(ended.state(), State::Failed);
    assert_eq!(ended.error.expect("why").reason, "BROKEN");
    scene.stop().await;
}

/// Goal: what a worker does not end in time, the server ends: its lease is void from then on.
#[tokio::test]
async fn the_server_ends_an_attempt_that_has_reached_a_limit() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let millis = |millis: i32| prost_types::Duration {
        seconds: 0,
        nanos: millis * 1_000_000,
    };
    let once = pb::RetryPolicy {
        max_attempts: 1,
        ..pb::RetryPolicy::default()
    };
    let cases = [
        (
            pb::Timeouts {
                run_timeout: Some(millis(300)),
                ..pb::Timeouts::default()
            },
            (State::Failed, "RUN_TIMEOUT"),
        ),
        (
            pb::Timeouts {
                heartbeat_timeout: Some(millis(300)),
                ..pb::Timeouts::default()
            },
            (State::Failed, "HEARTBEAT_TIMEOUT"),
        ),
        (
            pb::Timeouts {
                total_timeout: Some(millis(300)),
                ..pb::Timeouts::default()
            },
            (State::Expired, "TOTAL_TIMEOUT"),
        ),
    ];
    for (timeouts, expected) in cases {
        let request = pb::SubmitRequest {
            timeouts: Some(timeouts),
            retry_policy: Some(once.clone()),
            ..submit_request("work")
        };
        let job_id = scene.server.submit(request).await.job_id;
        let leased = scene.lease_one().await;
        // A heartbeat renews the lease, and tells nothing.
        scene
            .report(heartbeat(&leased.lease_token))
            .await
            .expect("it holds");
        let job = scene.server.end_of(&job_id).await;
        let reason = job.error.clone().expect("why").reason;
        assert_eq!((job.state(), reason.as_str()), expected);
        assert_stale(scene.report(heartbeat(&leased.lease_token)).await);
        assert_stale(scene.finish(&leased.lease_token, done("late")).await);
    }
    scene.stop().await;
}

/// Goal: a type may be served by the pool, by workers, or by both; a worker gets jobs of its types and
/// queues alone; and limits and pauses of queues and types bind it as they bind the pool.
#[tokio::test]
async fn workers_stand_beside_the_pool_and_under_the_same_limits() {
    let dir = folder();
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path())
        .config(|config| config.workers = 1)
        .job_type("puppet", puppets.clone());
    let scene = Scene::new(setup).await;
    let in_queue = |job_type: &str, queue: &str| pb::SubmitRequest {
        queue: queue.to_owned(),
        ..submit_request(job_type)
    };
    let first = scene.server.submit(submit_request("puppet")).await.job_id;
    let puppet = puppets.next().await;
    assert_eq!(puppet.attempt.key.id.to_string(), first);
    let second = scene.server.submit(submit_request("puppet")).await.job_id;
    let of_both = pb::LeaseRequest {
        types: vec!["work".to_owned(), "puppet".to_owned()],
        ..at_once(10)
    };
    let leased = scene.lease(of_both.clone()).await;
    assert_eq!(leased.iter().map(id_of).collect::<Vec<_>>(), [second]);
    puppet.succeed();
    for queue in ["a", "b", "b"] {
        scene.server.submit(in_queue("work", queue)).await;
    }
    let of_b = pb::LeaseRequest {
        queues: vec!["b".to_owned()],
        ..at_once(1)
    };
    let leased = scene.lease(of_b.clone()).await;
    assert_eq!(leased[0].job.as_ref().expect("a job").queue, "b");
    let endpoint = Channel::from_shared(format!("http://{}", scene.server.address));
    let channel = endpoint.expect("an address").connect().await;
    let mut queues = QueueServiceClient::new(channel.expect("it accepts"));
    let limits = pb::SetQueueLimitsRequest {
        queue: "b".to_owned(),
        concurrency: Some(1),
        ..pb::SetQueueLimitsRequest::default()
    };
    queues.set_queue_limits(limits).await.expect("set");
    assert_eq!(scene.lease(of_b.clone()).await, [], "one of b runs");
    let ended = scene.finish(&leased[0].lease_token, done("b")).await;
    ended.expect("its end");
    let pause = |name: &str| pb::PauseJobTypeRequest {
        job_type: name.to_owned(),
    };
    queues.pause_job_type(pause("work")).await.expect("paused");
    assert_eq!(scene.lease(of_both.clone()).await, []);
    let resume = pb::ResumeJobTypeRequest {
        job_type: "work".to_owned(),
    };
    queues.resume_job_type(resume).await.expect("resumed");
    let leased = scene.lease(of_both).await;
    let names = leased
        .iter()
        .map(|one| one.job.clone().expect("a job").queue);
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    scene.stop().await;
}

/// Goal: a type that nobody serves is refused until a worker has leased for it; from then on it is listed.
#[tokio::test]
async fn a_type_is_known_once_a_worker_has_leased_for_it() {
    let dir = folder();
    let server = Setup::on(dir.path()).start().await;
    let refused = server.client.clone().submit(submit_request("work")).await;
    let refused = refused.expect_err("nobody serves it");
    assert_eq!(bad_fields(&refused), ["type"]);
    let worker = worker_of(&server).await;
    let scene = Scene { server, worker };
    assert_eq!(scene.lease(at_once(1)).await, []);
    scene.submit().await;
    let endpoint = Channel::from_shared(format!("http://{}", scene.server.address));
    let channel = endpoint.expect("an address").connect().await;
    let mut queues = QueueServiceClient::new(channel.expect("it accepts"));
    let listed = queues.list_job_types(pb::ListJobTypesRequest {}).await;
    let listed = listed.expect("a list").into_inner().job_types;
    assert!(listed.iter().any(|one| one.name == "work"), "{listed:?}");
    // Another tenant knows nothing of it.
    let other = Name::of("other");
    let types = scene.server.queue.job_types(&other).await.expect("types");
    assert!(types.iter().all(|one| one.status.name.as_str() != "work"));
    scene.stop().await;
}

/// Goal: a server that is about to stop says so to those who wait for work, and to those who come; what they
/// hold stays theirs.
#[tokio::test]
async fn a_draining_server_gives_no_more_work() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let held = scene.begin().await;
    let worker = scene.worker.clone();
    let polling = tokio::spawn(async move { worker.clone().lease(lease_request(1)).await });
    scene.somebody_waits().await;
    scene.server.queue.drain();
    let work = soon(polling).await.expect("no panic").expect("an answer");
    let work = work.into_inner();
    assert_eq!((work.drain, work.leased_jobs.len()), (true, 0));
    let work = scene.worker.clone().lease(lease_request(1)).await;
    assert!(work.expect("an answer").into_inner().drain);
    let finished = scene.finish(&held.lease_token, done("in time")).await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    scene.stop().await;
}
