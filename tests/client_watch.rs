//! The client's watch against a scripted server: whatever is cut, dropped, doubled or left out, a
//! caller sees the log once, in order, or an error that says why not.

mod fake;

use std::time::{Duration, Instant};

use fake::{
    Answers, Fake, JOB_ID, Step, batch, event, gap, hasty, heartbeat, honest_rest, job, snapshot,
    status,
};
use pacenote::client::{Client, ClientError, RunOptions, Settings, Update, Watch, WatchOptions};
use pacenote::pb;
use pacenote::pb::job::State;
use tonic::{Code, Status};

/// Everything a watch told, in short.
#[derive(Default, Debug)]
struct Told {
    sequences: Vec<i64>,
    snapshots: usize,
    gaps: Vec<(i64, i64)>,
    heartbeats: usize,
    reconnects: usize,
    finished: usize,
    error: Option<ClientError>,
}

/// Reads to the end; a watch that never ends fails the test.
async fn read(watch: &mut Watch) -> Told {
    let mut told = Told::default();
    let reading = async {
        while let Some(update) = watch.next().await {
            match update {
                Ok(Update::Event(event)) => told.sequences.push(event.sequence),
                Ok(Update::Snapshot(_)) => told.snapshots += 1,
                Ok(Update::Gap(gap)) => told
                    .gaps
                    .push((gap.first_missing_sequence, gap.last_missing_sequence)),
                Ok(Update::Heartbeat) => told.heartbeats += 1,
                Ok(Update::Reconnecting { .. }) => told.reconnects += 1,
                Ok(Update::Finished(_)) => told.finished += 1,
                Ok(other) => panic!("{other:?} is new here"),
                Err(error) => told.error = Some(error),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading)
        .await
        .expect("the watch ends");
    told
}

fn from_start() -> WatchOptions {
    WatchOptions {
        after_sequence: Some(0),
        ..WatchOptions::default()
    }
}

fn scripted(
    script: impl Fn(&pb::WatchJobRequest, usize) -> Vec<Step> + Send + Sync + 'static,
) -> Answers {
    Answers {
        watch: Box::new(move |request, before| Ok(script(request, before))),
        ..Answers::default()
    }
}

/// Goal: cut anywhere, nothing is lost or doubled. Method: a log of 50 events in batches of `size`;
/// the stream is cut after every count of messages, by a status and by the network in turn.
async fn cut_everywhere(size: usize) {
    let messages = honest_rest(0, 50, size).len();
    for cut_after in 0..=messages {
        let fake = Fake::start(scripted(move |request, before| {
            let after = request.after_sequence.expect("resumes by sequence");
            let mut steps = honest_rest(after, 50, size);
            if before == 0 {
                steps.truncate(cut_after);
                steps.push(match cut_after % 2 {
                    0 => Step::Fail(status(Code::Unavailable, "SERVER_DRAINING", None)),
                    _ => Step::Cut,
                });
            }
            steps
        }))
        .await;
        let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
        assert_eq!(
            told.sequences,
            (1..=50).collect::<Vec<_>>(),
            "cut after {cut_after}"
        );
        assert_eq!((told.finished, told.error), (1, None));
    }
}

#[tokio::test]
async fn a_cut_after_any_message_of_one_event_each_gives_exactly_the_log() {
    cut_everywhere(1).await;
}

#[tokio::test]
async fn a_cut_after_any_batch_gives_exactly_the_log() {
    cut_everywhere(7).await;
}

#[tokio::test]
async fn a_stream_that_breaks_after_every_single_event_still_gives_exactly_the_log() {
    let fake = Fake::start(scripted(|request, _| {
        let after = request.after_sequence.expect("resumes by sequence");
        let mut steps = honest_rest(after, 50, 1);
        if steps.len() > 1 {
            steps.truncate(1);
            steps.push(Step::Fail(Status::unavailable("again")));
        }
        steps
    }))
    .await;
    let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
    assert_eq!(told.sequences, (1..=50).collect::<Vec<_>>());
    assert_eq!((told.reconnects, told.finished), (50, 1));
}

#[tokio::test]
async fn the_rest_of_a_batch_is_handed_out_after_the_cut_and_not_asked_for_again() {
    let fake = Fake::start(scripted(|request, before| match before {
        0 => vec![
            batch(&[event(1), event(2), event(3), event(4)], 4),
            Step::Cut,
        ],
        _ => honest_rest(request.after_sequence.unwrap_or(0), 6, 2),
    }))
    .await;
    let mut watch = fake.client().await.watch(JOB_ID, from_start());
    let first = watch.next().await.expect("an update").expect("no error");
    assert!(matches!(first, Update::Event(event) if event.sequence == 1));
    assert_eq!(
        watch.delivered_sequence(),
        Some(1),
        "what was handed out, not what came"
    );
    let told = read(&mut watch).await;
    assert_eq!(told.sequences, [2, 3, 4, 5, 6]);
    assert_eq!(fake.asked(|asked| asked.watch[1].after_sequence), Some(4));
}

#[tokio::test]
async fn line_8_of_the_contract_says_which_status_resumes_and_which_stops() {
    let cases = [
        (Code::Unavailable, true),
        (Code::ResourceExhausted, true),
        (Code::DeadlineExceeded, true),
        (Code::Cancelled, true),
        (Code::Internal, true),
        (Code::Unknown, true),
        (Code::NotFound, false),
        (Code::InvalidArgument, false),
        (Code::FailedPrecondition, false),
        (Code::Unauthenticated, false),
        (Code::PermissionDenied, false),
        (Code::Unimplemented, false),
    ];
    for (code, resumes) in cases {
        for mid_stream in [false, true] {
            let first = status(code, "REASON", None);
            let fake = Fake::start(Answers {
                watch: Box::new(move |request, before| match (before, mid_stream) {
                    (0, false) => Err(first.clone()),
                    (0, true) => Ok(vec![batch(&[event(1)], 1), Step::Fail(first.clone())]),
                    _ => Ok(honest_rest(request.after_sequence.unwrap_or(0), 3, 1)),
                }),
                ..Answers::default()
            })
            .await;
            let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
            assert_eq!(told.finished == 1, resumes, "{code:?}");
            assert_eq!(told.reconnects, usize::from(resumes), "{code:?}");
            match told.error {
                None => assert_eq!(told.sequences, [1, 2, 3]),
                Some(ClientError::Refused(refusal)) => assert_eq!(refusal.reason, "REASON"),
                Some(other) => panic!("{code:?} gave {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn ok_without_a_final_snapshot_is_a_cut() {
    let fake = Fake::start(scripted(|request, before| match before {
        0 => vec![batch(&[event(1)], 1)],
        _ => honest_rest(request.after_sequence.unwrap_or(0), 2, 1),
    }))
    .await;
    let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
    assert_eq!(
        (told.sequences, told.reconnects, told.finished),
        (vec![1, 2], 1, 1)
    );
}

#[tokio::test]
async fn a_watch_that_began_with_a_snapshot_resumes_without_one() {
    let fake = Fake::start(scripted(|request, before| match before {
        0 => vec![
            snapshot(job(State::Running, 4), 4),
            batch(&[event(5)], 5),
            Step::Cut,
        ],
        _ => honest_rest(request.after_sequence.unwrap_or(0), 7, 1),
    }))
    .await;
    let mut watch = fake.client().await.watch(JOB_ID, WatchOptions::default());
    let told = read(&mut watch).await;
    assert_eq!((told.snapshots, told.sequences), (1, vec![5, 6, 7]));
    let asked = fake.asked(|asked| {
        let asked = asked.watch.iter().map(|request| request.after_sequence);
        asked.collect::<Vec<_>>()
    });
    assert_eq!(asked, [None, Some(5)]);
    assert_eq!(watch.delivered_sequence(), Some(7));
}

#[tokio::test]
async fn doubles_from_a_bad_server_are_not_shown() {
    let fake = Fake::start(scripted(|_, before| match before {
        0 => vec![batch(&[event(1), event(2)], 2), Step::Cut],
        _ => honest_rest(0, 4, 3),
    }))
    .await;
    let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
    assert_eq!(told.sequences, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_hole_that_was_not_announced_ends_the_watch_with_an_error() {
    let fake = Fake::start(scripted(|_, _| {
        vec![batch(&[event(1), event(2), event(4)], 4), Step::Silence]
    }))
    .await;
    let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
    assert_eq!(told.sequences, [1, 2]);
    assert!(matches!(told.error, Some(ClientError::Contract { .. })));
}

#[tokio::test]
async fn an_announced_gap_is_shown_and_the_watch_goes_on() {
    let fake = Fake::start(scripted(|_, _| {
        let mut steps = vec![gap(1, 3), snapshot(job(State::Succeeded, 5), 3)];
        steps.extend(honest_rest(3, 5, 1));
        steps
    }))
    .await;
    let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
    assert_eq!(
        (told.gaps, told.snapshots, told.sequences, told.finished),
        (vec![(1, 3)], 1, vec![4, 5], 1)
    );
}

#[tokio::test]
async fn a_silent_stream_is_left_for_another_connection() {
    let fake = Fake::start(scripted(|request, before| match before {
        0 => vec![batch(&[event(1)], 1), Step::Silence],
        _ => honest_rest(request.after_sequence.unwrap_or(0), 2, 1),
    }))
    .await;
    let options = WatchOptions {
        heartbeat_interval: Duration::from_millis(300),
        ..from_start()
    };
    let start = Instant::now();
    let told = read(&mut fake.client().await.watch(JOB_ID, options)).await;
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "three heartbeats"
    );
    assert_eq!(
        (told.sequences, told.reconnects, told.finished),
        (vec![1, 2], 1, 1)
    );
}

#[tokio::test]
async fn heartbeats_are_told_and_move_nothing() {
    let fake = Fake::start(scripted(|_, _| {
        let mut steps = vec![batch(&[event(1)], 1), heartbeat(1), heartbeat(1)];
        steps.extend(honest_rest(1, 2, 1));
        steps
    }))
    .await;
    let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
    assert_eq!((told.heartbeats, told.sequences), (2, vec![1, 2]));
}

#[tokio::test]
async fn the_wait_that_a_draining_server_asks_for_is_kept() {
    let asked = Duration::from_millis(150);
    let fake = Fake::start(Answers {
        watch: Box::new(move |_, before| match before {
            0 => Err(status(Code::Unavailable, "SERVER_DRAINING", Some(asked))),
            _ => Ok(honest_rest(0, 1, 1)),
        }),
        ..Answers::default()
    })
    .await;
    let start = Instant::now();
    let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
    assert!(start.elapsed() >= asked);
    assert_eq!(told.finished, 1);
}

#[tokio::test]
async fn a_watch_gives_up_with_the_last_error_when_nothing_comes_any_more() {
    let fake = Fake::start(scripted(|_, _| vec![Step::Fail(Status::unavailable("no"))])).await;
    let settings = Settings {
        give_up_after: Duration::from_millis(50),
        ..hasty()
    };
    let client = Client::connect_with(fake.address.to_string(), settings)
        .await
        .expect("the fake is there");
    let told = read(&mut client.watch(JOB_ID, from_start())).await;
    assert!(matches!(told.error, Some(ClientError::Unavailable { .. })));
    assert!(told.reconnects > 1);
}

#[tokio::test]
async fn a_server_that_goes_away_and_comes_back_on_its_port_is_found_again() {
    let fake = Fake::start(scripted(|_, _| vec![batch(&[event(1)], 1), Step::Silence])).await;
    let address = fake.address;
    let mut watch = fake.client().await.watch(JOB_ID, from_start());
    let first = watch.next().await.expect("an update").expect("no error");
    assert!(matches!(first, Update::Event(_)));
    drop(fake);
    let cut = watch.next().await.expect("an update").expect("no error");
    assert!(matches!(cut, Update::Reconnecting { attempt: 1, .. }));

    let listener = bind_again(address).await;
    let again = Fake::start_on(
        listener,
        scripted(|request, _| honest_rest(request.after_sequence.unwrap_or(0), 3, 1)),
    )
    .await;
    let told = read(&mut watch).await;
    assert_eq!((told.sequences, told.finished), (vec![2, 3], 1));
    assert_eq!(again.asked(|asked| asked.watch[0].after_sequence), Some(1));
}

/// The listener of a server that just went away: its task may still be letting go of the port.
async fn bind_again(address: std::net::SocketAddr) -> tokio::net::TcpListener {
    for _ in 0..10_000 {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => tokio::task::yield_now().await,
        }
    }
    panic!("{address} stays in use");
}

#[tokio::test]
async fn a_server_that_says_goaway_is_left_and_its_successor_found() {
    let fake = Fake::start(scripted(|request, before| {
        let mut steps = honest_rest(request.after_sequence.unwrap_or(0), 5, 1);
        if before < 2 {
            steps.truncate(1);
            steps.push(Step::Goaway);
        }
        steps
    }))
    .await;
    let told = read(&mut fake.client().await.watch(JOB_ID, from_start())).await;
    assert_eq!((told.sequences, told.finished), (vec![1, 2, 3, 4, 5], 1));
}

/// Goal: a `next` dropped by `select!` loses nothing. Method: race every `next` against a future that
/// is ready on the second poll, over a stream that is cut twice.
#[tokio::test]
async fn a_next_that_is_dropped_loses_nothing() {
    let fake = Fake::start(scripted(|request, before| {
        let mut steps = honest_rest(request.after_sequence.unwrap_or(0), 30, 4);
        if before < 2 {
            steps.truncate(2);
            steps.push(Step::Cut);
        }
        steps
    }))
    .await;
    let mut watch = fake.client().await.watch(JOB_ID, from_start());
    let mut sequences = Vec::new();
    let reading = async {
        loop {
            tokio::select! {
                biased;
                update = watch.next() => match update {
                    Some(Ok(Update::Event(event))) => sequences.push(event.sequence),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => panic!("{error}"),
                    None => break,
                },
                () = tokio::task::yield_now() => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading)
        .await
        .expect("the watch ends");
    assert_eq!(sequences, (1..=30).collect::<Vec<_>>());
}

fn pages() -> pb::SubmitRequest {
    pb::SubmitRequest {
        r#type: "pages".to_owned(),
        ..pb::SubmitRequest::default()
    }
}

/// Goal: one job, its whole log, whatever breaks. Method: the first Run is cut before its first
/// message, the second after two events; then WatchJob has to take over.
#[tokio::test]
async fn a_run_is_repeated_with_one_key_until_its_first_answer_and_then_resumed_as_a_watch() {
    let fake = Fake::start(Answers {
        run: Box::new(|_, before| {
            Ok(match before {
                0 => vec![Step::Cut],
                _ => vec![
                    snapshot(job(State::Queued, 1), 0),
                    batch(&[event(1), event(2)], 2),
                    Step::Cut,
                ],
            })
        }),
        run_deduplicated: true,
        watch: Box::new(|request, _| Ok(honest_rest(request.after_sequence.unwrap_or(0), 5, 1))),
        ..Answers::default()
    })
    .await;
    let mut watch = fake.client().await.run(pages(), RunOptions::default());
    assert_eq!(watch.job_id(), None);
    let told = read(&mut watch).await;
    assert_eq!(told.sequences, [1, 2, 3, 4, 5]);
    assert_eq!((told.snapshots, told.finished, told.reconnects), (1, 1, 2));
    assert_eq!(watch.job_id(), Some(JOB_ID));
    assert_eq!(
        watch.deduplicated(),
        Some(false),
        "the key was the client's own"
    );
    let keys = fake.asked(|asked| {
        let keys = asked.run.iter().flat_map(|run| &run.submit);
        keys.map(|submit| submit.idempotency_key.clone())
            .collect::<Vec<_>>()
    });
    assert_eq!(keys.len(), 2);
    assert!(!keys[0].is_empty() && keys[0] == keys[1], "{keys:?}");
    assert_eq!(fake.asked(|asked| asked.watch[0].after_sequence), Some(2));
}

#[tokio::test]
async fn a_run_with_a_used_key_attaches_to_a_finished_job_and_replays_it() {
    let fake = Fake::start(Answers {
        run: Box::new(|_, _| {
            let mut steps = vec![snapshot(job(State::Succeeded, 3), 0)];
            steps.extend(honest_rest(0, 3, 2));
            Ok(steps)
        }),
        run_deduplicated: true,
        ..Answers::default()
    })
    .await;
    let submit = pb::SubmitRequest {
        idempotency_key: "mine".to_owned(),
        ..pages()
    };
    let mut watch = fake.client().await.run(submit, RunOptions::default());
    let told = read(&mut watch).await;
    assert_eq!(
        (told.snapshots, told.sequences, told.finished),
        (1, vec![1, 2, 3], 1)
    );
    assert_eq!(watch.deduplicated(), Some(true));
}

#[tokio::test]
async fn a_refused_run_ends_with_the_refusal() {
    let fake = Fake::start(Answers {
        run: Box::new(|_, _| Err(status(Code::InvalidArgument, "UNKNOWN_TYPE", None))),
        ..Answers::default()
    })
    .await;
    let told = read(&mut fake.client().await.run(pages(), RunOptions::default())).await;
    let error = told.error.expect("a refusal");
    assert_eq!(error.reason(), "UNKNOWN_TYPE");
    assert_eq!(fake.asked(|asked| asked.run.len()), 1);
}
