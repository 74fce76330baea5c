//! Unique work: the four things that may become of a job whose place is taken, windows, and races.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pacenote::error::Error;
use pacenote::job::policy::OnConflict::{
    self, CancelRunning, Reject, ReplaceWaiting, ReturnExisting,
};
use pacenote::job::{Job, JobState, Outcome};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::queue::{Submission, UniqueRequest};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{TestServer, folder, reason_of, soon, submit_request};
use crate::life::states;
use crate::submit_bench::{Bench, handed, of_tenant, unique};

const MANY: usize = 100_000;

fn windowed(key: &str, on_conflict: OnConflict, seconds: u64) -> Submission {
    let mut submission = unique(key, on_conflict);
    if let Some(unique) = &mut submission.unique {
        unique.window = Some(Duration::from_secs(seconds));
    }
    submission
}

/// The job that refuses another one its place.
async fn refused_by(bench: &Bench, submission: Submission) -> String {
    match bench.queue.submit(submission).await {
        Err(Error::UniqueTaken { id }) => id.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_one_that_has_the_place_is_answered() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let mut places = bench.place().await;
    let first = bench.submit(unique("u", ReturnExisting)).await;
    let again = async || {
        let other = Submission {
            priority: 3,
            ..unique("u", ReturnExisting)
        };
        let (job, deduplicated) = bench.queue.submit(other).await.expect("answered");
        (job.key == first.key, deduplicated)
    };
    assert_eq!(again().await, (true, true));
    let (_, lease) = handed(&mut places).await;
    assert_eq!(again().await, (true, true), "while it runs");
    bench
        .queue
        .cancel(&first.key, String::new())
        .await
        .expect("asked");
    assert_eq!(again().await, (true, true), "while it stops");
    let ended = bench
        .queue
        .finish(&lease, Vec::new(), Outcome::Cancelled)
        .await;
    ended.expect("it ends");
    assert_eq!(
        again().await,
        (false, false),
        "it is over: the place is free"
    );
}

#[tokio::test]
async fn a_place_belongs_to_its_tenant_type_and_key() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let first = bench.submit(unique("u", Reject)).await;
    assert_eq!(
        refused_by(&bench, unique("u", Reject)).await,
        first.key.id.to_string()
    );
    bench.submit(unique("v", Reject)).await;
    bench.submit(unique("U", Reject)).await;
    let theirs = Submission {
        unique: unique("u", Reject).unique,
        ..of_tenant("other")
    };
    bench.submit(theirs).await;
}

/// Goal: a place is kept for its window by the clock of the server, over or not, and not a microsecond
/// longer.
#[tokio::test]
async fn a_window_keeps_the_place_of_a_job_that_is_over() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let first = bench.submit(windowed("u", Reject, 60)).await;
    bench
        .queue
        .cancel(&first.key, String::new())
        .await
        .expect("cancelled");
    let id = first.key.id.to_string();
    assert_eq!(refused_by(&bench, unique("u", Reject)).await, id);
    let (job, deduplicated) = bench
        .queue
        .submit(unique("u", ReturnExisting))
        .await
        .expect("it");
    assert!(deduplicated && job.key == first.key && job.state == JobState::Cancelled);
    bench.clock.pass(Duration::from_micros(59_999_999));
    assert_eq!(refused_by(&bench, unique("u", Reject)).await, id);
    bench.clock.pass(Duration::from_micros(1));
    let second = bench.submit(unique("u", Reject)).await;
    assert_ne!(second.key, first.key);
    // A longer window of the one that asks changes nothing: the one that has the place set its own.
    bench
        .queue
        .cancel(&second.key, String::new())
        .await
        .expect("cancelled");
    bench.submit(windowed("u", Reject, 3_600)).await;
}

#[tokio::test]
async fn a_job_that_is_over_is_neither_replaced_nor_in_the_way_of_who_replaces() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    for on_conflict in [ReplaceWaiting, CancelRunning] {
        let first = bench.submit(windowed("u", on_conflict, 60)).await;
        bench
            .queue
            .cancel(&first.key, String::new())
            .await
            .expect("cancelled");
        let before = bench.get(&first.key).await;
        let second = bench.submit(windowed("u", on_conflict, 60)).await;
        assert_ne!(second.key, first.key);
        assert_eq!(bench.get(&first.key).await, before, "nothing happens to it");
    }
}

fn replacing(on_conflict: pb::unique_policy::OnConflict) -> pb::SubmitRequest {
    pb::SubmitRequest {
        unique: Some(pb::UniquePolicy {
            key: "u".to_owned(),
            on_conflict: on_conflict.into(),
            window: None,
        }),
        ..submit_request("puppet")
    }
}

/// Goal: who replaces a waiting one says so in its log, and leaves one that runs alone. Method: through
/// gRPC, with one that runs and three that come after it.
#[tokio::test]
async fn a_waiting_job_is_replaced_and_a_running_one_goes_on() {
    use pb::unique_policy::OnConflict::ReplaceWaiting;
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let running = server.submit(replacing(ReplaceWaiting)).await;
    let puppet = puppets.next().await;
    let later = pb::SubmitRequest {
        start: Some(pb::submit_request::Start::Delay(prost_types::Duration {
            seconds: 3_600,
            nanos: 0,
        })),
        ..replacing(ReplaceWaiting)
    };
    let waiting = server.submit(later.clone()).await;
    assert_eq!(waiting.state(), State::Scheduled);
    let last = server.submit(later).await;
    let replaced = server.get(&waiting.job_id).await;
    assert_eq!(replaced.state(), State::Cancelled);
    assert_eq!(
        replaced.cancel_reason,
        format!("replaced by {}", last.job_id)
    );
    let log = server.log(&waiting.job_id).await;
    let expected = [(State::Scheduled, ""), (State::Cancelled, "REPLACED")];
    assert_eq!(states(&log), expected);
    assert_eq!(server.get(&running.job_id).await.state(), State::Running);
    puppet.succeed();
    assert_eq!(
        server.end_of(&running.job_id).await.state(),
        State::Succeeded
    );
    // The one that waits still has the place.
    let rejected = replacing(pb::unique_policy::OnConflict::Reject);
    let refused = server
        .client
        .clone()
        .submit(rejected)
        .await
        .expect_err("taken");
    let expected = (Code::AlreadyExists, "UNIQUE_CONFLICT".to_owned());
    assert_eq!(reason_of(&refused), expected);
    let details = refused.get_error_details();
    let info = details.error_info().expect("an ErrorInfo");
    assert_eq!(info.metadata["job_id"], last.job_id);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_running_job_is_asked_to_stop_and_its_place_is_taken() {
    use pb::unique_policy::OnConflict::CancelRunning;
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let first = server.submit(replacing(CancelRunning)).await;
    let puppet = puppets.next().await;
    let second = server.submit(replacing(CancelRunning)).await;
    soon(puppet.attempt.stop.cancelled()).await;
    let stopping = server.get(&first.job_id).await;
    assert_eq!(stopping.state(), State::Cancelling);
    assert_eq!(
        stopping.cancel_reason,
        format!("replaced by {}", second.job_id)
    );
    // It does not wait for the other's end.
    let next = puppets.next().await;
    assert_eq!(next.attempt.key.id.to_string(), second.job_id);
    puppet.succeed();
    assert_eq!(server.end_of(&first.job_id).await.state(), State::Cancelled);
    next.succeed();
    assert_eq!(
        server.end_of(&second.job_id).await.state(),
        State::Succeeded
    );
    server.stop().await.expect("a clean end");
}

/// Goal: a job that still runs has its place although a later one, beside it, is over already.
#[tokio::test]
async fn a_place_is_taken_while_any_of_its_jobs_is_not_over() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let mut places = bench.place().await;
    let running = bench.submit(unique("u", ReplaceWaiting)).await;
    let (_, lease) = handed(&mut places).await;
    let beside = bench.submit(unique("u", ReplaceWaiting)).await;
    assert_ne!(beside.key, running.key);
    bench
        .queue
        .cancel(&beside.key, String::new())
        .await
        .expect("cancelled");
    assert_eq!(
        refused_by(&bench, unique("u", Reject)).await,
        running.key.id.to_string()
    );
    let beside = bench.submit(unique("u", ReplaceWaiting)).await;
    let taking = bench.submit(unique("u", CancelRunning)).await;
    assert_eq!(bench.get(&beside.key).await.state, JobState::Cancelled);
    assert_eq!(bench.get(&running.key).await.state, JobState::Cancelling);
    let ended = bench
        .queue
        .finish(&lease, Vec::new(), Outcome::Cancelled)
        .await;
    ended.expect("it ends");
    assert_eq!(
        refused_by(&bench, unique("u", Reject)).await,
        taking.key.id.to_string()
    );
}

/// Everything that a hundred submitters of one place are told at once.
async fn race(bench: &Bench, on_conflict: OnConflict) -> Vec<Result<(Arc<Job>, bool), Error>> {
    let submits = (0..100).map(|_| {
        let queue = bench.queue.clone();
        tokio::spawn(async move { queue.submit(unique("u", on_conflict)).await })
    });
    let answers = soon(join_all(submits)).await.into_iter();
    answers.map(|answer| answer.expect("no panic")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_submitters_of_one_place_make_one_job() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    for round in 0..20 {
        let answers = race(&bench, ReturnExisting).await;
        let jobs: Vec<_> = answers
            .into_iter()
            .map(|answer| answer.expect("answered"))
            .collect();
        assert_eq!(
            jobs.iter().filter(|(_, known)| !known).count(),
            1,
            "round {round}"
        );
        assert!(jobs.iter().all(|(job, _)| job.key == jobs[0].0.key));
        assert_eq!(bench.waiting("default").await, 1);
        let refusals = race(&bench, Reject).await;
        assert!(refusals.iter().all(Result::is_err));
        bench
            .queue
            .cancel(&jobs[0].0.key, String::new())
            .await
            .expect("cancelled");
        let answers = race(&bench, Reject).await;
        let taken: Vec<_> = answers.into_iter().flatten().collect();
        assert_eq!(taken.len(), 1, "round {round}");
        bench
            .queue
            .cancel(&taken[0].0.key, String::new())
            .await
            .expect("cancelled");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_who_replace_each_other_one_waits() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let mut places = bench.place().await;
    bench.submit(unique("u", ReplaceWaiting)).await;
    let (running, _) = handed(&mut places).await;
    for on_conflict in [ReplaceWaiting, CancelRunning] {
        let answers = race(&bench, on_conflict).await;
        let mut waiting = 0;
        for answer in answers {
            let (job, known) = answer.expect("taken");
            assert!(!known);
            waiting += usize::from(bench.get(&job.key).await.state.is_waiting());
        }
        assert_eq!((waiting, bench.waiting("default").await), (1, 1));
    }
    assert_eq!(bench.get(&running.key).await.state, JobState::Cancelling);
}

#[tokio::test]
async fn a_key_comes_before_a_place() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let with_key = |on_conflict| Submission {
        idempotency_key: "k".to_owned(),
        ..unique("u", on_conflict)
    };
    let first = bench.submit(with_key(ReplaceWaiting)).await;
    let (again, known) = bench
        .queue
        .submit(with_key(ReplaceWaiting))
        .await
        .expect("it");
    assert!(
        known && again.key == first.key,
        "the same request replaces nothing"
    );
    let refused = bench.queue.submit(with_key(CancelRunning)).await;
    assert!(matches!(refused, Err(Error::KeyReused { .. })));
    assert_eq!(bench.get(&first.key).await.state, JobState::Queued);
    let other = Submission {
        unique: Some(UniqueRequest {
            key: "u".to_owned(),
            on_conflict: None,
            window: None,
        }),
        ..unique("u", Reject)
    };
    let (job, known) = bench.queue.submit(other).await.expect("it");
    assert!(
        known && job.key == first.key,
        "by default the one that has it is answered"
    );
}
