//! Looking at jobs: Wait, pages of List, pages of ListEvents.

use std::time::{Duration, Instant};

use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::wire;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{
    Puppets, Setup, TestServer, bad_fields, folder, reason_of, soon, submit_request,
};
use crate::life::settings;

fn wait(job_id: &str, seconds: i64, after_sequence: Option<i64>) -> pb::WaitRequest {
    pb::WaitRequest {
        job_id: job_id.to_owned(),
        timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        after_sequence,
        view: 0,
    }
}

impl TestServer {
    async fn wait(&self, request: pb::WaitRequest) -> Result<pb::WaitResponse, Status> {
        let answer = soon(self.client.clone().wait(request)).await;
        answer.map(tonic::Response::into_inner)
    }
}

#[tokio::test]
async fn a_wait_ends_with_the_job_or_with_a_newer_event_or_with_its_time() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    let running = server.until_state(&job.job_id, State::Running).await;

    let out_of_time = server.wait(wait(&job.job_id, 0, None)).await.expect("OK");
    assert!(out_of_time.timed_out);
    let at_the_head = wait(&job.job_id, 0, Some(running.last_sequence));
    assert!(server.wait(at_the_head).await.expect("OK").timed_out);
    let behind = server
        .wait(wait(&job.job_id, 30, Some(1)))
        .await
        .expect("OK");
    assert!(!behind.timed_out, "there is newer already");

    let newer = wait(&job.job_id, 30, Some(running.last_sequence));
    let (newer, ()) = tokio::join!(server.wait(newer), puppet.say("hello"));
    let newer = newer.expect("OK");
    assert!(!newer.timed_out);
    assert_eq!(
        newer.job.expect("a job").last_sequence,
        running.last_sequence + 1
    );

    let end = server.wait(wait(&job.job_id, 30, None));
    let (end, ()) = tokio::join!(end, async { puppet.succeed() });
    let end = end.expect("OK");
    assert!(!end.timed_out);
    assert_eq!(end.job.expect("a job").state(), State::Succeeded);
    let over = server.wait(wait(&job.job_id, 0, None)).await.expect("OK");
    assert!(!over.timed_out, "it is over already");

    let ahead = server
        .wait(wait(&job.job_id, 0, Some(99)))
        .await
        .expect_err("ahead");
    let expected = (Code::FailedPrecondition, "SEQUENCE_AHEAD".to_owned());
    assert_eq!(reason_of(&ahead), expected);
    let nobody = Uuid::from_u128(1).to_string();
    let unknown = server
        .wait(wait(&nobody, 0, None))
        .await
        .expect_err("unknown");
    assert_eq!(
        reason_of(&unknown),
        (Code::NotFound, "JOB_NOT_FOUND".to_owned())
    );
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_wait_takes_as_long_as_it_was_given() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    let begun = Instant::now();
    assert!(
        server
            .wait(wait(&job.job_id, 1, None))
            .await
            .expect("OK")
            .timed_out
    );
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "{took:?}"
    );
    puppet.succeed();
    server.stop().await.expect("a clean end");
}

/// A server on which everything waits behind one running job.
async fn with_a_backlog(dir: &tempfile::TempDir) -> (TestServer, Puppets) {
    let puppets = Puppets::default();
    let one = settings(|settings| settings.concurrency = Some(1));
    let setup = Setup::on(dir.path())
        .config(|config| config.drain_timeout = Duration::from_millis(10))
        .job_type_with("puppet", one, puppets.clone());
    let server = setup.start().await;
    (server, puppets)
}

/// Goal: pages show every job that was there when the first was read, once, whatever is submitted in
/// between. Method: read three pages, submit two jobs between each.
#[tokio::test]
async fn pages_of_jobs_are_stable_while_others_are_submitted() {
    let dir = folder();
    let (server, puppets) = with_a_backlog(&dir).await;
    let mut there = Vec::new();
    for _ in 0..7 {
        there.push(server.submit(submit_request("puppet")).await.job_id);
    }
    there.reverse();
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    for (page_size, expected) in [(3, 3), (2, 2), (1_000, 2)] {
        let request = pb::ListRequest {
            page_size,
            page_token,
            ..pb::ListRequest::default()
        };
        let page = server
            .client
            .clone()
            .list(request)
            .await
            .expect("good")
            .into_inner();
        assert_eq!(page.jobs.len(), expected);
        seen.extend(page.jobs.into_iter().map(|job| job.job_id));
        page_token = page.next_page_token;
        for _ in 0..2 {
            server.submit(submit_request("puppet")).await;
        }
    }
    assert_eq!(seen, there);
    assert!(page_token.is_empty(), "the last page");
    drop(puppets.next().await);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_page_token_is_good_for_its_own_filter_only() {
    let dir = folder();
    let (server, puppets) = with_a_backlog(&dir).await;
    for _ in 0..3 {
        server.submit(submit_request("puppet")).await;
    }
    let first = pb::ListRequest {
        page_size: 1,
        types: vec!["puppet".to_owned()],
        ..pb::ListRequest::default()
    };
    let page = server
        .client
        .clone()
        .list(first.clone())
        .await
        .expect("good")
        .into_inner();
    let token = page.next_page_token;
    let good = pb::ListRequest {
        page_token: token.clone(),
        ..first.clone()
    };
    server
        .client
        .clone()
        .list(good.clone())
        .await
        .expect("its own filter");
    let mut forged = token.clone().into_bytes();
    let last = forged.len() - 1;
    forged[last] = if forged[last] == b'A' { b'Q' } else { b'A' };
    let forged = String::from_utf8(forged).expect("text");
    for bad in [
        pb::ListRequest {
            types: vec![],
            ..good.clone()
        },
        pb::ListRequest {
            states: vec![State::Queued as i32],
            ..good.clone()
        },
        pb::ListRequest {
            queues: vec!["default".to_owned()],
            ..good.clone()
        },
        pb::ListRequest {
            idempotency_key: "k".to_owned(),
            ..good.clone()
        },
        pb::ListRequest {
            created_after: Some(prost_types::Timestamp::default()),
            ..good.clone()
        },
        pb::ListRequest {
            page_token: forged,
            ..good.clone()
        },
        pb::ListRequest {
            page_token: token[1..].to_owned(),
            ..good.clone()
        },
        pb::ListRequest {
            page_token: "ü \u{0}".to_owned(),
            ..good.clone()
        },
    ] {
        let refused = server
            .client
            .clone()
            .list(bad)
            .await
            .expect_err("not its token");
        assert_eq!(reason_of(&refused).0, Code::InvalidArgument);
        assert_eq!(bad_fields(&refused), ["page_token"]);
    }
    drop(puppets.next().await);
    server.stop().await.expect("a clean end");
}

/// Goal: whoever mends what a refused List names is not refused once more, for its token. Method: a
/// token of another filter, a forged one and no token at all, each beside other bad fields.
#[tokio::test]
async fn a_page_token_that_is_not_ours_is_told_with_all_that_is_wrong() {
    let dir = folder();
    let (server, puppets) = with_a_backlog(&dir).await;
    for _ in 0..2 {
        server.submit(submit_request("puppet")).await;
    }
    let list = |request| {
        let mut client = server.client.clone();
        async move { client.list(request).await }
    };
    let good = pb::ListRequest {
        page_size: 1,
        ..pb::ListRequest::default()
    };
    let page = list(good.clone()).await.expect("good").into_inner();
    let own = pb::ListRequest {
        page_token: page.next_page_token.clone(),
        page_size: -1,
        ..good
    };
    let of_own = bad_fields(&list(own).await.expect_err("a bad size"));
    assert_eq!(of_own, ["page_size"], "the token is right");
    for page_token in [page.next_page_token, "QUJD".to_owned(), "ü".to_owned()] {
        let bad = pb::ListRequest {
            page_token,
            page_size: 1_001,
            states: vec![State::Queued as i32, 99],
            types: vec!["a b".to_owned()],
            view: 3,
            ..pb::ListRequest::default()
        };
        let mut told = bad_fields(&list(bad).await.expect_err("all of it is bad"));
        told.sort();
        assert_eq!(
            told,
            ["page_size", "page_token", "states[1]", "types[0]", "view"]
        );
    }
    drop(puppets.next().await);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn filters_of_a_list_are_joined_by_and() {
    let dir = folder();
    let (server, puppets) = with_a_backlog(&dir).await;
    let running = server.submit(submit_request("puppet")).await;
    let _puppet = puppets.next().await;
    let keyed = pb::SubmitRequest {
        idempotency_key: "k".to_owned(),
        queue: "other".to_owned(),
        ..submit_request("puppet")
    };
    let waiting = server.submit(keyed).await;
    let time = waiting.create_time;
    let all = pb::ListRequest::default();
    let states = |states: &[State]| states.iter().map(|state| *state as i32).collect();
    for (filter, expected) in [
        (all.clone(), vec![&waiting, &running]),
        (
            pb::ListRequest {
                states: states(&[State::Running]),
                ..all.clone()
            },
            vec![&running],
        ),
        (
            pb::ListRequest {
                states: states(&[State::Queued, State::Running]),
                ..all.clone()
            },
            vec![&waiting, &running],
        ),
        (
            pb::ListRequest {
                states: states(&[State::Failed]),
                ..all.clone()
            },
            vec![],
        ),
        (
            pb::ListRequest {
                idempotency_key: "k".to_owned(),
                ..all.clone()
            },
            vec![&waiting],
        ),
        (
            pb::ListRequest {
                idempotency_key: "l".to_owned(),
                ..all.clone()
            },
            vec![],
        ),
        (
            pb::ListRequest {
                types: vec!["sleep".to_owned()],
                ..all.clone()
            },
            vec![],
        ),
        (
            pb::ListRequest {
                queues: vec!["other".to_owned()],
                ..all.clone()
            },
            vec![&waiting],
        ),
        (
            pb::ListRequest {
                queues: vec!["other".to_owned()],
                states: states(&[State::Running]),
                ..all.clone()
            },
            vec![],
        ),
        (
            pb::ListRequest {
                created_after: time,
                ..all.clone()
            },
            vec![&waiting],
        ),
        (
            pb::ListRequest {
                created_before: time,
                ..all.clone()
            },
            vec![&running],
        ),
    ] {
        let what = format!("{filter:?}");
        let found: Vec<String> = server
            .all_jobs(filter)
            .await
            .into_iter()
            .map(|j| j.job_id)
            .collect();
        let expected: Vec<String> = expected.iter().map(|job| job.job_id.clone()).collect();
        assert_eq!(found, expected, "{what}");
    }
    server.stop().await.expect("a clean end");
}

/// Nearly a megabyte, so that three fit into a page and a fourth does not.
fn large() -> Payload {
    Payload::text("x".repeat(1_000_000))
}

#[tokio::test]
async fn a_page_of_jobs_ends_early_at_three_mebibytes() {
    let dir = folder();
    let (server, puppets) = with_a_backlog(&dir).await;
    for _ in 0..5 {
        let request = pb::SubmitRequest {
            input: Some(wire::to_payload(large())),
            ..submit_request("puppet")
        };
        server.submit(request).await;
    }
    let mut lens = Vec::new();
    let mut page_token = String::new();
    while lens.is_empty() || !page_token.is_empty() {
        let request = pb::ListRequest {
            page_token,
            page_size: 1_000,
            view: pb::JobView::Full as i32,
            ..pb::ListRequest::default()
        };
        let page = server
            .client
            .clone()
            .list(request)
            .await
            .expect("good")
            .into_inner();
        lens.push(page.jobs.len());
        page_token = page.next_page_token;
    }
    assert_eq!(lens, [3, 2]);
    let basic = server.all_jobs(pb::ListRequest::default()).await;
    assert!(basic.len() == 5 && basic.iter().all(|job| job.input.is_none()));
    drop(puppets.next().await);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn pages_of_a_log_are_dense_filtered_and_end_early_at_three_mebibytes() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let job = server.submit(submit_request("puppet")).await;
    let puppet = puppets.next().await;
    for _ in 0..5 {
        let told = puppet.attempt.reporter.output("stdout", large()).await;
        told.expect("it is alive");
    }
    puppet.succeed();
    let last = server.end_of(&job.job_id).await.last_sequence;
    assert_eq!(last, 8, "queued, running, five chunks, succeeded");
    let page = async |after_sequence, page_size, event_types: &[pb::EventType]| {
        let request = pb::ListEventsRequest {
            job_id: job.job_id.clone(),
            after_sequence,
            page_size,
            event_types: event_types
                .iter()
                .map(|event_type| *event_type as i32)
                .collect(),
        };
        let page = server.client.clone().list_events(request).await;
        let page = page.expect("good").into_inner();
        let sequences: Vec<i64> = page.events.iter().map(|event| event.sequence).collect();
        (sequences, page.through_sequence, page.job_finished)
    };
    assert_eq!(page(0, 2, &[]).await, (vec![1, 2], 2, false));
    assert_eq!(page(0, 1_000, &[]).await, (vec![1, 2, 3, 4, 5], 5, false));
    assert_eq!(page(5, 1_000, &[]).await, (vec![6, 7, 8], 8, true));
    assert_eq!(page(8, 1_000, &[]).await, (vec![], 8, true));
    let states = [pb::EventType::StateChange];
    assert_eq!(page(0, 2, &states).await, (vec![1, 2], 7, false));
    assert_eq!(page(7, 2, &states).await, (vec![8], 8, true));
    assert_eq!(page(0, 0, &[pb::EventType::Log]).await, (vec![], 8, true));
    let ahead = pb::ListEventsRequest {
        job_id: job.job_id.clone(),
        after_sequence: 9,
        ..pb::ListEventsRequest::default()
    };
    let refused = server
        .client
        .clone()
        .list_events(ahead)
        .await
        .expect_err("ahead");
    assert_eq!(reason_of(&refused).1, "SEQUENCE_AHEAD");
    server.stop().await.expect("a clean end");
}
