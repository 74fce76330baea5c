//! Jobs that cost their worker its life, every time: FAULTS F58 by the clock. What a killed server makes of
//! it stands in `crash/poison.rs`.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use pacenote::error::{Error, Precondition};
use pacenote::job::limits::{ATTEMPTS_LOST_MAX, LEASE};
use pacenote::job::name::{JobKey, Name};
use pacenote::job::time::Clock;
use pacenote::job::{JobState, Outcome};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::queue::{EventQuery, JobQueue, Lease, Places};
use pacenote::store::View;
use prost::Message;
use tokio::sync::mpsc;

use crate::clock::OwnedClock;
use crate::harness::{count_of, folder, soon};
use crate::life::{check_finished, settings, states};
use crate::life_time::{open, state_of, submit};

const TICK: Duration = Duration::from_micros(1);
/// Jobs whose worker is lost each time.
const POISON: usize = 3;

async fn log(queue: &JobQueue, key: &JobKey) -> Vec<pb::JobEvent> {
    let query = EventQuery {
        after: 0,
        page_size: 1_000,
        tags: Vec::new(),
    };
    let page = queue.events(key, &query).await.expect("it is there");
    let events = page.events.into_iter();
    events
        .map(|event| pb::JobEvent::decode(event.bytes).expect("an event"))
        .collect()
}

/// Goal: jobs whose worker is never heard of again end as FAILED once three leases have run out, with their
/// history, although their policy allows many more attempts; and until then they take no more than their
/// places from the others of their queue. Method: a clock that the test owns; of four places three are
/// poisoned, and all others that came behind them end through the fourth before a lease is over.
/// `PACENOTE_TEST_POISON_OTHERS` says how many come in each lease (20).
#[tokio::test]
async fn jobs_whose_leases_run_out_fail_after_three_and_block_nobody() {
    let others_a_lease = count_of("PACENOTE_TEST_POISON_OTHERS", 20);
    let (dir, clock) = (folder(), OwnedClock::new(58));
    let many = settings(|settings| settings.retry_policy.max_attempts = 50);
    let queue = open(dir.path(), &clock, many).await;
    let work = Name::of("work");
    let places = Places::new(POISON + 1, [(work.clone(), POISON + 1)]);
    let (claimed, mut handed) = mpsc::unbounded_channel();
    // The test is over: nobody runs it.
    let begin = Box::new(move |job| drop(claimed.send(job)));
    let poison = join_all((0..POISON).map(|_| submit(&queue))).await;
    queue
        .attach_pool("test".to_owned(), places.clone(), begin)
        .await;
    let mut lost: HashMap<JobKey, Lease> = HashMap::new();
    for round in 1..=ATTEMPTS_LOST_MAX {
        lost.clear();
        let others = join_all((0..others_a_lease).map(|_| submit(&queue))).await;
        let mut ended = 0;
        while lost.len() < POISON || ended < others.len() {
            let job = soon(handed.recv()).await.expect("claimed").claimed.job;
            let lease = Lease {
                key: job.key.clone(),
                attempt: job.attempt,
            };
            if poison.contains(&job.key) {
                assert_eq!(job.attempt, round);
                lost.insert(job.key.clone(), lease);
                continue;
            }
            let done = queue.finish(&lease, Vec::new(), Outcome::Succeeded(None));
            assert_eq!(done.await.expect("it ran").state, JobState::Succeeded);
            places.give_back(&work);
            queue.wake().await;
            ended += 1;
        }
        for key in &poison {
            assert_eq!(state_of(&queue, key).await.0, JobState::Running);
        }
        clock.pass(LEASE);
        assert_eq!(queue.sweep_leases(clock.steady()).await.expect("a look"), 0);
        clock.pass(TICK);
        let swept = queue.sweep_leases(clock.steady()).await;
        assert_eq!(swept.expect("a look"), POISON);
        for _ in 0..POISON {
            places.give_back(&work);
        }
        queue.wake().await;
    }
    for key in &poison {
        let lost_for_good = (JobState::Failed, "WORKER_LOST".to_owned());
        assert_eq!(state_of(&queue, key).await, lost_for_good);
        let job = queue.get(key, View::Basic).await.expect("it is there").job;
        assert_eq!((job.attempt, job.attempts_charged), (3, 3));
        let log = log(&queue, key).await;
        check_finished(&log);
        let expected = [
            (State::Queued, ""),
            (State::Running, ""),
            (State::Queued, "WORKER_LOST"),
            (State::Running, ""),
            (State::Queued, "WORKER_LOST"),
            (State::Running, ""),
            (State::Failed, "WORKER_LOST"),
        ];
        assert_eq!(states(&log), expected);
        // The worker was only slow: too late.
        let late = queue.finish(&lost[key], Vec::new(), Outcome::Succeeded(None));
        let refused = late.await.expect_err("its lease is over");
        let stale = Error::Precondition(Precondition::StaleLease);
        assert_eq!(format!("{refused:?}"), format!("{stale:?}"));
    }
    // The places are everybody's again.
    let next = submit(&queue).await;
    let job = soon(handed.recv()).await.expect("claimed").claimed.job;
    assert_eq!(job.key, next);
    queue.close().await;
}
