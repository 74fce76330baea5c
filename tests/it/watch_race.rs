//! The end of a job races those who begin to watch it: lines 2, 7 and 11 of the watch contract.

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use pacenote::executor::{Attempt, Executor};
use pacenote::job::Outcome;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;

use crate::harness::{Setup, TestServer, Told, count_of, folder, soon, submit_request};

/// A job type whose attempts are over before they have begun.
#[derive(Clone)]
struct AtOnce;

impl Executor for AtOnce {
    fn run(&self, _: Attempt) -> BoxFuture<'static, Outcome> {
        Box::pin(std::future::ready(Outcome::Succeeded(None)))
    }
}

/// Without a sleep: watchers come at every moment between the submit and long after the end, on four
/// connections' worth of tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_at_the_moment_of_the_end_gets_the_end_once_and_never_hangs() {
    let dir = folder();
    let server = Setup::on(dir.path())
        .job_type("at-once", AtOnce)
        .start()
        .await;
    let races = count_of("PACENOTE_TEST_RACES", 1_000);
    let server = &server;
    let all = stream::iter(0..races).map(|race| async move {
        match race % 3 {
            0 => from_the_beginning(server, race).await,
            1 => from_now(server, race).await,
            _ => in_one_call(server).await,
        }
    });
    soon_for_all(all.buffer_unordered(4).collect::<Vec<()>>(), races).await;
    assert_eq!(server.queue.open_watches(), 0);
}

/// Each wait inside has its own deadline; this only bounds the whole.
async fn soon_for_all<T>(all: impl Future<Output = T>, races: usize) -> T {
    let most = std::time::Duration::from_secs(60 + races as u64 / 20);
    tokio::time::timeout(most, all).await.expect("it ends")
}

/// Comes a little later in each race.
async fn linger(race: usize) {
    for _ in 0..race % 40 {
        tokio::task::yield_now().await;
    }
}

async fn from_the_beginning(server: &TestServer, race: usize) {
    let job = server.submit(submit_request("at-once")).await;
    linger(race).await;
    let told = server.watch(&job.job_id, Some(0)).await.to_end().await;
    ended(&told);
    assert_eq!(told.sequences(), [1, 2, 3]);
    assert_eq!(told.snapshots.len(), 1);
}

async fn from_now(server: &TestServer, race: usize) {
    let job = server.submit(submit_request("at-once")).await;
    linger(race).await;
    let told = server.watch(&job.job_id, None).await.to_end().await;
    match told.snapshots.as_slice() {
        [only] => {
            assert_eq!(only.state(), State::Succeeded, "it was over already");
            assert!(told.events.is_empty());
        }
        [first, last] => {
            assert_eq!(last.state(), State::Succeeded);
            let rest: Vec<i64> = (first.last_sequence + 1..=3).collect();
            assert_eq!(told.sequences(), rest);
            ended(&told);
        }
        other => panic!("{other:?}"),
    }
}

async fn in_one_call(server: &TestServer) {
    let request = pb::RunRequest {
        submit: Some(submit_request("at-once")),
        ..pb::RunRequest::default()
    };
    let run = soon(server.client.clone().run(request)).await;
    let mut run = run.expect("a run").into_inner();
    let mut told = Told::default();
    while let Some(message) = soon(run.message()).await.expect("OK at the end") {
        told.add(message.update.expect("an update"));
    }
    ended(&told);
    assert_eq!((told.sequences(), told.snapshots.len()), (vec![1, 2, 3], 2));
}

/// Exactly one terminal event, and it is the last.
fn ended(told: &Told) {
    let terminal = |event: &&pb::JobEvent| match &event.event {
        Some(Event::StateChange(change)) => change.to_state() == State::Succeeded,
        _ => false,
    };
    let found: Vec<_> = told.events.iter().filter(terminal).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(told.events.last(), Some(found[0]));
    let last = told.snapshots.last().expect("a final snapshot");
    assert_eq!(last.state(), State::Succeeded);
    assert_eq!(last.last_sequence, told.through);
}
