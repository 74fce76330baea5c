//! The waiting quota: exact at its limit, told with its numbers, and never in the way of what is there.

use std::time::Duration;

use futures_util::future::join_all;
use pacenote::error::{Error, Limit};
use pacenote::job::event::JobError;
use pacenote::job::{JobState, Outcome};
use pacenote::pb;
use pacenote::queue::{Start, Submission};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::{Puppets, Setup, folder, reason_of, soon, submit_request};
use crate::life::settings;
use crate::submit_bench::{Bench, handed, keyed, of_tenant, unique, work};

fn numbers(error: &Error) -> (usize, usize, usize) {
    match error {
        Error::Exhausted {
            limit:
                Limit::Waiting {
                    waiting,
                    asked,
                    max,
                    ..
                },
            ..
        } => (*waiting, *asked, *max),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn as_many_jobs_wait_as_may_and_not_one_more() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 3).await;
    for _ in 0..3 {
        bench.submit(work()).await;
    }
    let refused = bench
        .queue
        .submit(keyed("k"))
        .await
        .expect_err("one too many");
    assert_eq!(numbers(&refused), (3, 1, 3));
    assert_eq!(bench.waiting("default").await, 3);
    // Another tenant has room of its own.
    bench.submit(of_tenant("other")).await;
    let later = Submission {
        start: Start::After(Duration::from_secs(60)),
        ..work()
    };
    let refused = bench
        .queue
        .submit(later)
        .await
        .expect_err("scheduled ones wait, too");
    assert_eq!(numbers(&refused), (3, 1, 3));
}

#[tokio::test]
async fn a_submit_refused_for_the_quota_leaves_its_key_free() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 1).await;
    let first = bench.submit(keyed("a")).await;
    bench.queue.submit(keyed("b")).await.expect_err("full");
    // What is there already is answered, however full it is.
    let (again, deduplicated) = bench.queue.submit(keyed("a")).await.expect("known");
    assert!(deduplicated && again.key == first.key);
    bench
        .queue
        .cancel(&first.key, String::new())
        .await
        .expect("cancelled");
    let other = Submission {
        priority: 7,
        ..keyed("b")
    };
    let (_, deduplicated) = bench
        .queue
        .submit(other)
        .await
        .expect("room, and a free key");
    assert!(!deduplicated);
    assert_eq!(bench.waiting("default").await, 1);
}

/// Goal: the quota is exact however many ask at once. Method: rounds of twenty submitters over a quota of
/// seven; what was taken is cancelled between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submitters_that_race_for_the_last_places_get_exactly_those() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 7).await;
    for round in 0..20 {
        let submits = (0..20).map(|_| {
            let queue = bench.queue.clone();
            tokio::spawn(async move { queue.submit(work()).await })
        });
        let answers = soon(join_all(submits)).await.into_iter();
        let (taken, refused): (Vec<_>, Vec<_>) = answers
            .map(|answer| answer.expect("no panic"))
            .partition(Result::is_ok);
        assert_eq!((taken.len(), refused.len()), (7, 13), "round {round}");
        assert_eq!(bench.waiting("default").await, 7);
        for (job, _) in taken.into_iter().flatten() {
            bench
                .queue
                .cancel(&job.key, String::new())
                .await
                .expect("cancelled");
        }
    }
}

#[tokio::test]
async fn a_batch_needs_room_for_all_that_is_new_in_it() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 4).await;
    bench.submit(keyed("a")).await;
    let batch = |keys: &[&str]| keys.iter().map(|key| keyed(key)).collect::<Vec<_>>();
    let keys = ["a", "b", "c", "d", "e"];
    let refused = bench
        .queue
        .submit_batch(batch(&keys))
        .await
        .expect_err("one too many");
    assert_eq!(numbers(&refused), (1, 4, 4));
    assert_eq!(bench.waiting("default").await, 1);
    // The known one, and one that is asked for twice, count once.
    let keys = ["a", "b", "c", "d", "d"];
    let answer = bench
        .queue
        .submit_batch(batch(&keys))
        .await
        .expect("as many as may");
    let flags: Vec<bool> = answer.jobs.iter().map(|(_, known)| *known).collect();
    assert_eq!(flags, [true, false, false, false, true]);
    assert_eq!(bench.waiting("default").await, 4);
    let answer = bench
        .queue
        .submit_batch(batch(&keys))
        .await
        .expect("all known");
    assert!(answer.jobs.iter().all(|(_, known)| *known));
}

#[tokio::test]
async fn who_replaces_a_waiting_job_needs_no_room_of_its_own() {
    use pacenote::job::policy::OnConflict::{CancelRunning, ReplaceWaiting};
    let dir = folder();
    let bench = Bench::new(dir.path(), 2).await;
    let mut places = bench.place().await;
    bench.submit(unique("u", ReplaceWaiting)).await;
    handed(&mut places).await;
    let second = bench.submit(unique("u", ReplaceWaiting)).await;
    bench.submit(work()).await;
    assert_eq!(bench.waiting("default").await, 2, "full");
    let third = bench.submit(unique("u", ReplaceWaiting)).await;
    assert_eq!(bench.get(&second.key).await.state, JobState::Cancelled);
    let fourth = bench.submit(unique("u", CancelRunning)).await;
    assert_eq!(bench.get(&third.key).await.state, JobState::Cancelled);
    assert_eq!(bench.waiting("default").await, 2);
    // Whoever would only stop one that runs waits beside it.
    bench
        .queue
        .cancel(&fourth.key, String::new())
        .await
        .expect("cancelled");
    bench.submit(work()).await;
    let refused = bench.queue.submit(unique("u", CancelRunning)).await;
    assert_eq!(numbers(&refused.expect_err("full")), (2, 1, 2));
}

/// Goal: what was taken once is never refused: an attempt's own retry and a hand-back wait again although
/// as many wait as may.
#[tokio::test]
async fn an_attempts_own_retry_or_hand_back_is_never_refused() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 1).await;
    let mut places = bench.place().await;
    bench.submit(work()).await;
    let (_, lease) = handed(&mut places).await;
    bench.submit(work()).await;
    bench.queue.submit(work()).await.expect_err("full");
    let error = JobError::retryable("BROKEN", "again");
    let failed = Outcome::Failed(error);
    let job = bench.queue.finish(&lease, Vec::new(), failed).await;
    let job = job.expect("it is taken back").key.clone();
    assert_eq!(bench.get(&job).await.state, JobState::Scheduled);
    assert_eq!(bench.waiting("default").await, 2);
    let refused = bench
        .queue
        .submit(work())
        .await
        .expect_err("fuller than full");
    assert_eq!(numbers(&refused), (2, 1, 1));
}

/// Goal: counters are exact after a crash. Method: the store is opened again without being closed; the
/// quota goes on from the rows.
#[tokio::test]
async fn the_quota_is_exact_after_a_crash() {
    let dir = folder();
    let bench = Bench::new(dir.path(), 5).await;
    for _ in 0..4 {
        bench.submit(work()).await;
    }
    let bench = bench.crash(dir.path()).await;
    assert_eq!(bench.waiting("default").await, 4);
    bench.submit(work()).await;
    let refused = bench.queue.submit(work()).await.expect_err("full");
    assert_eq!(numbers(&refused), (5, 1, 5));
}

#[tokio::test]
async fn a_full_tenant_is_told_its_numbers_and_when_to_come_back() {
    let dir = folder();
    let one = settings(|settings| settings.concurrency = Some(1));
    let server = Setup::on(dir.path())
        .config(|config| {
            config.waiting_max = 2;
            config.drain_timeout = Duration::ZERO;
        })
        .job_type_with("puppet", one, Puppets::default())
        .start()
        .await;
    for _ in 0..3 {
        server.submit(submit_request("puppet")).await;
    }
    let mut client = server.client.clone();
    let refused = client
        .submit(submit_request("puppet"))
        .await
        .expect_err("full");
    let expected = (Code::ResourceExhausted, "WAITING_LIMIT".to_owned());
    assert_eq!(reason_of(&refused), expected);
    let details = refused.get_error_details();
    let quota = details.quota_failure().expect("a QuotaFailure");
    assert_eq!(quota.violations[0].subject, "tenant:default");
    let sentence = "2 jobs of tenant default wait, and 1 more would; at most 2 may";
    assert_eq!(quota.violations[0].description, sentence);
    assert!(
        details
            .retry_info()
            .is_some_and(|retry| retry.retry_delay.is_some())
    );
    let metadata = &details.error_info().expect("an ErrorInfo").metadata;
    assert_eq!(
        (metadata["waiting"].as_str(), metadata["limit"].as_str()),
        ("2", "2")
    );
    let requests = vec![submit_request("puppet"); 2];
    let refused = client
        .batch_submit(pb::BatchSubmitRequest { requests })
        .await;
    let refused = refused.expect_err("full");
    assert_eq!(reason_of(&refused).1, "WAITING_LIMIT");
    assert!(
        refused.message().contains("2 more"),
        "{}",
        refused.message()
    );
    drop(server);
}
