//! How a watch ends, and the Run that is a submit and a watch in one: line 7 of the watch contract.

use pacenote::job::event::JobError;
use pacenote::job::payload::Payload;
use pacenote::job::{Outcome, Report};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::watch_job_response::Content;
use tonic::Streaming;

use crate::harness::{
    TestServer, Told, eventually, folder, output, soon, submit_request, watch_request,
};

/// Line 7: the terminal event, a FULL snapshot, OK.
#[tokio::test]
async fn a_watch_ends_with_the_terminal_event_a_full_snapshot_and_ok() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let ends = [
        (
            Outcome::Succeeded(Some(Payload::text("done"))),
            State::Succeeded,
        ),
        (
            Outcome::Failed(JobError::permanent("BROKEN", "for good")),
            State::Failed,
        ),
        (Outcome::Cancelled, State::Cancelled),
    ];
    for (outcome, state) in ends {
        let mut request = submit_request("puppet");
        request.input = Some(pb::Payload {
            content: Some(pb::payload::Content::Text("input".to_owned())),
            ..pb::Payload::default()
        });
        let id = server.submit(request).await.job_id;
        let watch = server.watch(&id, Some(0)).await;
        let puppet = puppets.next().await;
        let checkpoint = vec![Report::Checkpoint(Payload::text("page 3"))];
        puppet.store(&server.queue, checkpoint).await;
        if state == State::Cancelled {
            server.cancel(&id).await;
        }
        puppet.end(outcome);
        let told = watch.to_end().await;
        let last = told.events.last().expect("events");
        let Some(pb::job_event::Event::StateChange(change)) = &last.event else {
            panic!("{last:?}")
        };
        assert_eq!(change.to_state(), state);
        let job = server.get(&id).await;
        assert_eq!(told.through, job.last_sequence);
        assert!(job.input.is_some(), "FULL has the input");
        assert!(job.checkpoint.is_some(), "FULL has the checkpoint");
        assert_eq!(job.result.is_some(), state == State::Succeeded);
        assert_eq!(job.error.is_some(), state == State::Failed);
        assert_eq!(told.snapshots, [job]);
        assert_eq!(server.queue.open_watches(), 0);
    }
    server.stop().await.expect("a clean end");
}

/// Line 7.
#[tokio::test]
async fn a_filter_hides_the_terminal_event_but_not_the_final_snapshot() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let request = pb::WatchJobRequest {
        after_sequence: Some(0),
        event_types: vec![pb::EventType::Output as i32],
        ..watch_request(&id)
    };
    let watch = server.try_watch(request.clone()).await.expect("a watch");
    puppet.store(&server.queue, vec![output("x")]).await;
    puppet.succeed();
    let finished = |told: Told| {
        assert_eq!((told.sequences(), told.through), (vec![3], 4));
        assert_eq!(told.snapshots.len(), 1);
        assert_eq!(told.snapshots[0].state(), State::Succeeded);
        assert!(told.snapshots[0].result.is_some());
    };
    finished(watch.to_end().await);
    finished(
        server
            .try_watch(request)
            .await
            .expect("a watch")
            .to_end()
            .await,
    );
    server.stop().await.expect("a clean end");
}

/// Line 7.
#[tokio::test]
async fn a_watch_of_a_finished_job_is_one_snapshot_or_the_rest_of_its_log() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    puppet.say("x").await;
    puppet.succeed();
    let end = server.end_of(&id).await;

    let told = server.watch(&id, None).await.to_end().await;
    assert_eq!((told.messages, told.through), (1, 4));
    assert_eq!(told.snapshots, std::slice::from_ref(&end));
    for after in 0..=4 {
        let told = server.watch(&id, Some(after)).await.to_end().await;
        assert_eq!(told.sequences(), ((after + 1)..=4).collect::<Vec<_>>());
        assert_eq!(told.snapshots, std::slice::from_ref(&end));
        assert_eq!(told.through, 4);
    }
    server.stop().await.expect("a clean end");
}

fn run_request(key: &str) -> pb::RunRequest {
    pb::RunRequest {
        submit: Some(pb::SubmitRequest {
            idempotency_key: key.to_owned(),
            ..submit_request("puppet")
        }),
        ..pb::RunRequest::default()
    }
}

async fn run(server: &TestServer, key: &str) -> Running {
    let stream = soon(server.client.clone().run(run_request(key))).await;
    let mut stream = stream.expect("a run").into_inner();
    let first = soon(stream.message())
        .await
        .expect("no error")
        .expect("a message");
    let update = first.update.expect("an update");
    assert_eq!(update.through_sequence, 0, "the snapshot moves no cursor");
    let Some(Content::Snapshot(job)) = update.content else {
        panic!("the first message is a snapshot: {update:?}")
    };
    Running {
        deduplicated: first.deduplicated,
        job,
        stream,
    }
}

struct Running {
    deduplicated: bool,
    job: pb::Job,
    stream: Streaming<pb::RunResponse>,
}

impl Running {
    async fn rest(mut self) -> Told {
        let mut told = Told::default();
        while let Some(message) = soon(self.stream.message()).await.expect("OK at the end") {
            assert!(!message.deduplicated, "said once, at the beginning");
            told.add(message.update.expect("an update"));
        }
        told
    }
}

/// Line 4 and section 4: the first message of a Run, then everything from the beginning.
#[tokio::test]
async fn a_run_begins_with_a_snapshot_at_zero_and_then_tells_everything() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let running = run(&server, "").await;
    assert!(!running.deduplicated);
    let puppet = puppets.next().await;
    assert_eq!(running.job.job_id, puppet.attempt.key.id.to_string());
    puppet.say("x").await;
    puppet.succeed();
    let id = running.job.job_id.clone();
    let told = running.rest().await;
    assert_eq!(told.events, server.log(&id).await);
    assert_eq!(told.snapshots, [server.get(&id).await]);
    server.stop().await.expect("a clean end");
}

/// Section 4: with a used key it attaches, while the job runs and when it is over.
#[tokio::test]
async fn a_run_with_a_used_key_attaches_to_that_job_from_its_beginning() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let first = run(&server, "key").await;
    let puppet = puppets.next().await;
    puppet.store(&server.queue, vec![output("x")]).await;
    let second = run(&server, "key").await;
    assert_eq!((first.deduplicated, second.deduplicated), (false, true));
    assert_eq!(second.job.job_id, first.job.job_id);
    assert_eq!(second.job.last_sequence, 3);
    puppet.succeed();
    let id = first.job.job_id.clone();
    let told = first.rest().await;
    assert_eq!(told.sequences(), [1, 2, 3, 4]);
    let attached = second.rest().await;
    assert_eq!(
        (attached.events, attached.snapshots),
        (told.events, told.snapshots)
    );

    let third = run(&server, "key").await;
    assert!(third.deduplicated);
    assert_eq!(
        (third.job.job_id.as_str(), third.job.state()),
        (&*id, State::Succeeded)
    );
    assert_eq!(third.rest().await.sequences(), [1, 2, 3, 4]);
    assert!(puppets.is_idle().await, "one job, one attempt");
    server.stop().await.expect("a clean end");
}

/// Line 15 and section 4.
#[tokio::test]
async fn ending_the_call_of_a_run_does_not_cancel_its_job() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let running = run(&server, "").await;
    let puppet = puppets.next().await;
    let id = running.job.job_id.clone();
    drop(running);
    let queue = server.queue.clone();
    eventually("the watch is gone", || queue.open_watches() == 0).await;
    assert_eq!(server.get(&id).await.state(), State::Running);
    assert!(!puppet.attempt.stop.is_cancelled());
    puppet.succeed();
    assert_eq!(server.end_of(&id).await.state(), State::Succeeded);
    server.stop().await.expect("a clean end");
}
