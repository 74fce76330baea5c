//! One key, one job: races of a hundred, keys in every state of their job, and requests that are only
//! checked. And when a job starts that is submitted for later.

use std::time::Duration;

use futures_util::future::join_all;
use pacenote::error::Error;
use pacenote::job::limits::DURATION_MAX;
use pacenote::job::policy::OnConflict::{Reject, ReturnExisting};
use pacenote::job::time::Timestamp;
use pacenote::job::{JobState, Outcome};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::submit_request::Start as WireStart;
use pacenote::queue::{Start, Submission};
use pacenote::store::{Purge, Purged};
use tonic::Code;

use crate::errors_store::Faulty;
use crate::fronted::Fronted;
use crate::harness::{
    TestServer, bad_fields, folder, proto_duration, reason_of, soon, submit_request,
};
use crate::submit_bench::{Bench, handed, keyed, of_tenant, unique, work};

const MANY: usize = 100_000;
const ROUNDS: usize = 200;

/// Goal: a key makes one job however many ask at once. Method: 200 rounds of a hundred submits in this
/// process; every job is watched from its first event, of which there is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_submits_with_one_key_make_one_job_two_hundred_times() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    for round in 0..ROUNDS {
        let key = format!("round {round}");
        let submits = (0..100).map(|_| {
            let (queue, submission) = (bench.queue.clone(), keyed(&key));
            tokio::spawn(async move { queue.submit(submission).await })
        });
        let answers = soon(join_all(submits)).await.into_iter();
        let answers: Vec<_> = answers
            .map(|answer| answer.expect("no panic").expect("good"))
            .collect();
        let new = answers.iter().filter(|(_, known)| !known).count();
        assert_eq!(new, 1, "{key}");
        let (first, _) = &answers[0];
        assert!(answers.iter().all(|(job, _)| job.key == first.key), "{key}");
        assert_eq!(
            bench.get(&first.key).await.last_sequence,
            1,
            "{key}: one event"
        );
        assert_eq!(bench.waiting("default").await, round as i64 + 1);
    }
}

/// Goal: a second request with a key waits for the first one, which is in flight, and then gets its job.
/// Method: the first one's commit is held back while the others arrive.
#[tokio::test]
async fn a_key_whose_first_request_is_in_flight_is_waited_for() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let bench = Bench::on(Fronted(store.clone()), MANY).await;
    let held = store.hold_commits().await;
    let submit = |submission| {
        let queue = bench.queue.clone();
        tokio::spawn(async move { queue.submit(submission).await })
    };
    let first = submit(keyed("k"));
    store.commit_held().await;
    let other = Submission {
        priority: 1,
        ..keyed("k")
    };
    let (same, other) = (submit(keyed("k")), submit(other));
    drop(held);
    let (first, known) = soon(first).await.expect("no panic").expect("stored");
    assert!(!known);
    let (same, known) = soon(same).await.expect("no panic").expect("answered");
    assert!(known && same.key == first.key);
    let refused = soon(other)
        .await
        .expect("no panic")
        .expect_err("another request");
    assert!(matches!(refused, Error::KeyReused { id } if id == first.key.id));
}

#[tokio::test]
async fn a_key_is_free_again_once_its_job_is_gone() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let mut places = bench.place().await;
    let first = bench.submit(keyed("k")).await;
    let (_, lease) = handed(&mut places).await;
    let ended = bench
        .queue
        .finish(&lease, Vec::new(), Outcome::Succeeded(None))
        .await;
    ended.expect("it ends");
    let (again, known) = bench.queue.submit(keyed("k")).await.expect("known");
    assert!(known && again.key == first.key && again.state == JobState::Succeeded);
    let purged = bench.queue.purge(vec![Purge::Job(first.key.clone())]).await;
    assert_eq!(
        purged.expect("it is done"),
        [Purged::Job(first.key.clone())]
    );
    let other = Submission {
        priority: 1,
        ..keyed("k")
    };
    let (second, known) = bench.queue.submit(other).await.expect("a free key");
    assert!(!known && second.key != first.key);
}

#[tokio::test]
async fn a_key_belongs_to_its_tenant() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let ours = bench.submit(keyed("k")).await;
    let theirs = Submission {
        idempotency_key: "k".to_owned(),
        priority: 1,
        ..of_tenant("other")
    };
    let (job, known) = bench
        .queue
        .submit(theirs.clone())
        .await
        .expect("a key of their own");
    assert!(!known && job.key.id != ours.key.id);
    let (again, known) = bench.queue.submit(theirs).await.expect("known");
    assert!(known && again.key == job.key);
}

#[tokio::test]
async fn the_jobs_of_a_batch_have_one_tenant() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let refused = bench
        .queue
        .submit_batch(vec![work(), of_tenant("other")])
        .await;
    let Err(Error::Invalid { violations }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(violations[0].field, "requests[1]");
    assert_eq!(bench.waiting("default").await, 0);
}

#[tokio::test]
async fn what_is_only_checked_stores_nothing_and_says_how_it_stands() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let check = async |submission| bench.queue.validate(submission).await;
    assert!(!check(keyed("k")).await.expect("good"));
    assert!(!check(unique("u", Reject)).await.expect("good"));
    assert_eq!(bench.waiting("default").await, 0);
    let keyed_job = bench.submit(keyed("k")).await;
    let unique_job = bench.submit(unique("u", Reject)).await;
    assert!(check(keyed("k")).await.expect("its job is there"));
    assert!(
        check(unique("u", ReturnExisting))
            .await
            .expect("its job is there")
    );
    let other = Submission {
        priority: 1,
        ..keyed("k")
    };
    let refused = check(other).await.expect_err("another request");
    assert!(matches!(refused, Error::KeyReused { id } if id == keyed_job.key.id));
    let refused = check(unique("u", Reject)).await.expect_err("taken");
    assert!(matches!(refused, Error::UniqueTaken { id } if id == unique_job.key.id));
    let bad = Submission {
        priority: 9_999,
        ..work()
    };
    check(bad).await.expect_err("out of bounds");
    assert_eq!(bench.waiting("default").await, 2);
    assert_eq!(
        bench.get(&keyed_job.key).await,
        keyed_job,
        "nothing happens to them"
    );
    assert_eq!(bench.get(&unique_job.key).await, unique_job);
}

#[tokio::test]
async fn a_checked_request_is_answered_without_a_job() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let mut client = server.client.clone();
    let checked = pb::SubmitRequest {
        validate_only: true,
        idempotency_key: "k".to_owned(),
        ..submit_request("puppet")
    };
    let answer = client
        .submit(checked.clone())
        .await
        .expect("good")
        .into_inner();
    assert_eq!(answer, pb::SubmitResponse::default());
    assert!(server.all_jobs(pb::ListRequest::default()).await.is_empty());
    let real = pb::SubmitRequest {
        validate_only: false,
        ..checked.clone()
    };
    server.submit(real).await;
    let answer = client
        .submit(checked.clone())
        .await
        .expect("good")
        .into_inner();
    assert_eq!((answer.job, answer.deduplicated), (None, true));
    let bad = pb::SubmitRequest {
        priority: 1_001,
        ..checked
    };
    let refused = client.submit(bad).await.expect_err("out of bounds");
    assert_eq!(reason_of(&refused).0, Code::InvalidArgument);
    assert_eq!(bad_fields(&refused), ["priority"]);
    puppets.next().await.succeed();
    assert!(puppets.is_idle().await, "it ran once");
    server.stop().await.expect("a clean end");
}

/// Goal: a delay is measured from when the job is stored, a time stands as it was given, and what is past
/// is at once. Method: a clock that stands still.
#[tokio::test]
async fn a_job_is_due_when_its_request_says() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let starting = async |start| bench.submit(Submission { start, ..work() }).await;
    let delay = Duration::from_millis(1_500);
    let job = starting(Start::After(delay)).await;
    assert_eq!(
        (job.state, job.run_at),
        (JobState::Scheduled, job.created_at.after(delay))
    );
    let at = job.created_at.after(2 * delay);
    let job = starting(Start::At(at)).await;
    assert_eq!((job.state, job.run_at), (JobState::Scheduled, at));
    for start in [
        Start::After(Duration::ZERO),
        Start::At(job.created_at.before(delay)),
    ] {
        let job = starting(start).await;
        assert_eq!(
            (job.state, job.run_at),
            (JobState::Queued, job.created_at),
            "{start:?}"
        );
    }
}

/// Goal: the bounds of a start time and a delay hold to the microsecond. Method: a clock that stands still.
#[tokio::test]
async fn a_job_starts_at_most_a_year_ahead() {
    let dir = folder();
    let bench = Bench::new(dir.path(), MANY).await;
    let now = bench.submit(work()).await.created_at;
    let micro = Duration::from_micros(1);
    for (start, field) in [
        (Start::At(now.after(DURATION_MAX)), None),
        (
            Start::At(now.after(DURATION_MAX + micro)),
            Some("schedule_time"),
        ),
        (Start::At(Timestamp::from_micros(i64::MIN)), None),
        (Start::After(DURATION_MAX), None),
        (Start::After(DURATION_MAX + micro), Some("delay")),
    ] {
        match (
            bench.queue.submit(Submission { start, ..work() }).await,
            field,
        ) {
            (Ok(_), None) => {}
            (Err(Error::Invalid { violations }), Some(field)) => {
                assert_eq!(violations[0].field, field);
            }
            (answer, _) => panic!("{start:?}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn a_delayed_job_is_not_handed_over_at_once_and_runs_when_it_is_due() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let delay = proto_duration(Duration::from_millis(200));
    let later = pb::SubmitRequest {
        start: Some(WireStart::Delay(delay)),
        ..submit_request("puppet")
    };
    let job = server.submit(later).await;
    assert_eq!((job.state(), job.attempt), (State::Scheduled, 0));
    let micros = |at: Option<prost_types::Timestamp>| {
        let at = at.expect("a time");
        at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000
    };
    let due = micros(job.schedule_time);
    assert_eq!(due, micros(job.create_time) + 200_000);
    puppets.next().await.succeed();
    let ended = server.end_of(&job.job_id).await;
    assert!(micros(ended.start_time) >= due, "not before its time");
    server.stop().await.expect("a clean end");
}
