//! What a worker may say: each bound, and one past it.

use pacenote::client::request;

use super::*;

/// Goal: an answer goes into a message that every client takes; what does not go into it waits for the next
/// one, in its place.
#[tokio::test]
async fn an_answer_has_no_more_jobs_than_go_into_it() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let large = "x".repeat(1_000_000);
    let mut ids = Vec::new();
    for _ in 0..8 {
        let request = pb::SubmitRequest {
            input: Some(text(&large)),
            ..submit_request("work")
        };
        ids.push(scene.server.submit(request).await.job_id);
    }
    let mut leased: Vec<pb::LeasedJob> = Vec::new();
    while leased.len() < ids.len() {
        let endpoint = Channel::from_shared(format!("http://{}", scene.server.address));
        let channel = endpoint.expect("an address").connect().await;
        // With the bound that every client has.
        let mut worker = WorkerServiceClient::new(channel.expect("it accepts"));
        let work = worker.lease(lease_request(8)).await.expect("it fits");
        let work = work.into_inner().leased_jobs;
        assert!((1..=3).contains(&work.len()), "{}", work.len());
        leased.extend(work);
    }
    assert_eq!(leased.iter().map(id_of).collect::<Vec<_>>(), ids);
    for one in &leased {
        let job = one.job.as_ref().expect("a job");
        assert_eq!((job.attempt, job.attempts_charged), (1, 0));
    }
    scene.stop().await;
}

/// Goal: JSON that does not go into an answer is not claimed for it: nothing is claimed and handed back. Method:
/// arrays of numbers, which are six times as large in a message as they are as text.
#[tokio::test]
async fn json_that_does_not_go_into_an_answer_is_not_claimed_for_it() {
    const JOBS: i32 = 12;
    let dir = folder();
    let scene = Scene::on(&dir).await;
    for _ in 0..JOBS {
        let submit = request("work", &vec![1; 60_000]).expect("JSON");
        scene.server.submit(submit).await;
    }
    let mut leased: Vec<pb::LeasedJob> = Vec::new();
    while leased.len() < JOBS as usize {
        leased.extend(scene.lease(lease_request(JOBS)).await);
        // Whatever is claimed runs, until it is handed back in a later commit.
        let list = pb::ListRequest {
            states: vec![State::Running.into()],
            page_size: 100,
            ..pb::ListRequest::default()
        };
        let running = scene.server.client.clone().list(list).await;
        assert_eq!(
            running.expect("a page").into_inner().jobs.len(),
            leased.len()
        );
    }
    let attempts = leased
        .iter()
        .map(|one| one.job.as_ref().expect("a job").attempt);
    assert_eq!(attempts.max(), Some(1));
    scene.stop().await;
}

/// Goal: everything that is wrong with a request is told at once, with the field, the value and the bound.
#[tokio::test]
async fn a_bad_request_is_told_field_by_field() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let leased = scene.begin().await;
    let fields = |status: Status| -> Vec<String> {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        bad_fields(&status)
    };
    let request = pb::LeaseRequest {
        worker_id: String::new(),
        types: vec!["a b".to_owned()],
        queues: vec![String::new()],
        max_jobs: 1_001,
        lease: Some(seconds(4)),
        wait: Some(seconds(301)),
    };
    let refused = scene.worker.clone().lease(request).await;
    let refused = fields(refused.expect_err("all of it is wrong"));
    for field in [
        "types[0]",
        "queues[0]",
        "lease",
        "wait",
        "worker_id",
        "max_jobs",
    ] {
        assert!(
            refused.iter().any(|one| one == field),
            "{field}: {refused:?}"
        );
    }
    for (request, accepted) in [
        (
            pb::LeaseRequest {
                max_jobs: 1_000,
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                max_jobs: -1,
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                lease: Some(seconds(5)),
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                lease: Some(seconds(300)),
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                lease: Some(seconds(301)),
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                worker_id: "w".repeat(1024),
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                worker_id: "w".repeat(1025),
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                types: vec!["work".to_owned(); 100],
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                types: vec!["work".to_owned(); 101],
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                types: vec![],
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                queues: vec!["q".to_owned(); 100],
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                queues: vec!["q".to_owned(); 101],
                ..at_once(1)
            },
            false,
        ),
    ] {
        let answered = scene.worker.clone().lease(request.clone()).await;
        assert_eq!(answered.is_ok(), accepted, "{request:?}: {answered:?}");
    }
    let report = pb::ReportRequest {
        events: vec![
            pb::WorkerEvent { event: None },
            pb::WorkerEvent {
                event: Some(pb::worker_event::Event::Progress(pb::Progress {
                    fraction: Some(1.5),
                    ..pb::Progress::default()
                })),
            },
            pb::WorkerEvent {
                event: Some(pb::worker_event::Event::Output(pb::OutputChunk::default())),
            },
        ],
        report_number: -1,
        checkpoint: Some(text(&"x".repeat(1024 * 1024 + 1))),
        ..heartbeat(&leased.lease_token)
    };
    let refused = fields(scene.report(report).await.expect_err("all of it is wrong"));
    let expected = [
        "report_number",
        "events[0].event",
        "events[1].progress.fraction",
        "events[2].output.stream",
        "checkpoint",
    ];
    assert_eq!(refused, expected);
    for (events, accepted) in [(1_000, true), (1_001, false)] {
        let report = pb::ReportRequest {
            events: vec![output("x"); events],
            ..heartbeat(&leased.lease_token)
        };
        assert_eq!(scene.report(report).await.is_ok(), accepted, "{events}");
    }
    let nothing = pb::FinishRequest {
        lease_token: leased.lease_token.clone(),
        retry_delay: Some(seconds(1)),
        outcome: None,
    };
    let refused = scene.worker.clone().finish(nothing).await;
    let refused = fields(refused.expect_err("it says nothing"));
    assert_eq!(refused, ["retry_delay", "outcome"]);
    let bad = Outcome::Error(pb::JobError {
        code: 17,
        reason: "lower".to_owned(),
        metadata: (0..33).map(|n| (n.to_string(), String::new())).collect(),
        ..pb::JobError::default()
    });
    let refused = scene.finish(&leased.lease_token, bad).await;
    let refused = fields(refused.expect_err("all of it is wrong"));
    assert_eq!(refused, ["error.code", "error.reason", "error.metadata"]);
    for token in ["", "no token", &leased.lease_token[1..]] {
        let refused = scene.report(heartbeat(token)).await;
        assert_eq!(fields(refused.expect_err("no token")), ["lease_token"]);
    }
    let request = pb::ExtendLeasesRequest {
        lease_tokens: vec![leased.lease_token.clone(), "no token".to_owned()],
    };
    let refused = scene.worker.clone().extend_leases(request).await;
    let refused = fields(refused.expect_err("one is no token"));
    assert_eq!(refused, ["lease_tokens[1]"]);
    for (count, accepted) in [(0, false), (1_000, true), (1_001, false)] {
        let request = pb::ExtendLeasesRequest {
            lease_tokens: vec![leased.lease_token.clone(); count],
        };
        let extended = scene.worker.clone().extend_leases(request).await;
        assert_eq!(extended.is_ok(), accepted, "{count}");
    }
    // Nothing of it was charged, or stored.
    let finished = scene
        .finish(&leased.lease_token, done("all the same"))
        .await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    scene.stop().await;
}
