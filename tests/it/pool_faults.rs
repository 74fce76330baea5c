//! The pool and its queue on a store that fails: nothing waits for ever, and nothing that lives is lost.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::poll_immediate;
use pacenote::config::TypeSettings;
use pacenote::executor::Executor;
use pacenote::job::limits::{LOG_BYTES_DEFAULT, WAITING_DEFAULT, WATCHERS_DEFAULT};
use pacenote::job::name::{JobKey, Name};
use pacenote::job::time::{SystemClock, Timestamp};
use pacenote::job::{JobState, Outcome};
use pacenote::queue::{Handed, JobQueue, KnownType, Lease, QueueSettings, Submission};
use pacenote::store::{StoreError, View};
use pacenote::worker::{Pool, PoolSettings};

use crate::errors_store::Faulty;
use crate::fronted::Fronted;
use crate::harness::{Puppets, folder, one_place, soon};

const TYPE: &str = "puppet";
const END_OF_TIME: Timestamp = Timestamp::from_micros(i64::MAX);

async fn open(store: &Faulty) -> JobQueue {
    let puppet = KnownType {
        settings: TypeSettings::default(),
        check: Arc::new(|_| Ok(())),
    };
    let settings = QueueSettings {
        types: [(Name::of(TYPE), puppet)].into(),
        log_bytes_max: LOG_BYTES_DEFAULT,
        watchers_max: WATCHERS_DEFAULT,
        waiting_max: WAITING_DEFAULT,
        ..QueueSettings::default()
    };
    let clock = Arc::new(SystemClock::new());
    let queue = JobQueue::open(Arc::new(Fronted(store.clone())), clock, settings).await;
    queue.expect("it opens")
}

async fn submit(queue: &JobQueue) -> JobKey {
    let submitted = queue.submit(Submission::new(TYPE, None)).await;
    submitted.expect("it is stored").0.key.clone()
}

fn lease_of(handed: &Handed) -> Lease {
    let job = &handed.claimed.job;
    Lease {
        key: job.key.clone(),
        attempt: job.attempt,
    }
}

/// Has a request wait for the writer, whose commits are held back.
async fn queued<T>(request: &mut (impl Future<Output = T> + Unpin)) {
    assert!(
        poll_immediate(request).await.is_none(),
        "it waits for the writer"
    );
}

/// A place becomes free in the same group that cancels the head of the line: it is for the next one.
#[tokio::test]
async fn a_place_whose_job_is_cancelled_in_the_same_group_goes_to_the_next_one() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let queue = open(&store).await;
    let (places, mut handed) = one_place(&queue, TYPE).await;
    submit(&queue).await;
    let running = soon(handed.recv()).await.expect("claimed");
    let (head, next) = (submit(&queue).await, submit(&queue).await);
    let lease = lease_of(&running);
    let held = store.hold_commits().await;
    let mut earlier = pin!(submit(&queue));
    queued(&mut earlier).await;
    store.commit_held().await;
    places.give_back(&Name::of(TYPE));
    let mut finish = pin!(queue.finish(&lease, Vec::new(), Outcome::Succeeded(None)));
    queued(&mut finish).await;
    let mut cancel = pin!(queue.cancel(&head, String::new()));
    queued(&mut cancel).await;
    drop(held);
    soon(earlier).await;
    assert_eq!(
        soon(finish).await.expect("it ends").state,
        JobState::Succeeded
    );
    assert_eq!(
        soon(cancel).await.expect("it ends").state,
        JobState::Cancelled
    );
    let claimed = soon(handed.recv()).await.expect("claimed");
    assert_eq!(claimed.claimed.job.key, next);
}

#[tokio::test]
async fn a_claim_that_found_no_room_is_tried_again_without_a_knock() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let queue = open(&store).await;
    let waiting = submit(&queue).await;
    store.fail_next_commit(StoreError::DiskFull);
    let (_places, mut handed) = one_place(&queue, TYPE).await;
    let claimed = soon(handed.recv()).await.expect("claimed");
    assert_eq!(claimed.claimed.job.key, waiting);
}

async fn pool_of(queue: &JobQueue, puppets: &Puppets) -> Pool {
    let executor: Arc<dyn Executor> = Arc::new(puppets.clone());
    let settings = PoolSettings {
        executors: [(Name::of(TYPE), executor)].into(),
        concurrency: [].into(),
        workers: 2,
        worker_id: "test".to_owned(),
    };
    let pool = Pool::start(queue.clone(), settings).await;
    pool.expect("threads")
}

/// What runs has something to say and there is no room for it; the drain ends all the same, and the
/// next start finds the job.
#[tokio::test]
async fn a_drain_on_a_full_disk_ends() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let queue = open(&store).await;
    let puppets = Puppets::default();
    let pool = pool_of(&queue, &puppets).await;
    let key = submit(&queue).await;
    let puppet = puppets.next().await;
    store.fail_every_commit(StoreError::DiskFull);
    puppet.say("no room").await;
    drop(puppet);
    let begun = Instant::now();
    queue.drain();
    pool.drain(Duration::ZERO).await;
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    let job = queue.get(&key, View::Basic).await.expect("it is there").job;
    assert_eq!(job.state, JobState::Running);
}

#[tokio::test]
async fn a_result_outlives_a_store_that_is_busy_or_trips_for_a_while() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let queue = open(&store).await;
    let puppets = Puppets::default();
    let _pool = pool_of(&queue, &puppets).await;
    for error in [StoreError::Busy, StoreError::Internal("a bug".to_owned())] {
        let key = submit(&queue).await;
        let puppet = puppets.next().await;
        store.fail_next_commit(error);
        puppet.succeed();
        let waited = queue.wait(&key, Duration::from_secs(20), None, View::Basic);
        let job = soon(waited).await.expect("it is there").snapshot.job;
        assert_eq!(job.state, JobState::Succeeded);
    }
}

#[tokio::test]
async fn an_attempt_that_lives_here_is_not_lost_whatever_its_lease_says() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let queue = open(&store).await;
    let puppets = Puppets::default();
    let _pool = pool_of(&queue, &puppets).await;
    let key = submit(&queue).await;
    let puppet = puppets.next().await;
    let swept = queue.sweep_lost_leases(END_OF_TIME).await;
    assert_eq!(swept.expect("a look"), 0);
    puppet.succeed();
    let waited = queue.wait(&key, Duration::from_secs(20), None, View::Basic);
    let job = soon(waited).await.expect("it is there").snapshot.job;
    assert_eq!((job.state, job.attempt), (JobState::Succeeded, 1));
}

/// Goal: an attempt whose end nobody could be told of is not RUNNING until the next start: its lease ends it,
/// and the next attempt goes on. Method: no commit takes an end until the pool gives up; then the lease of
/// every attempt is over, of which the pool knows the live ones.
#[tokio::test]
async fn an_attempt_whose_end_cannot_be_stored_is_lost_with_its_lease() {
    let dir = folder();
    let store = Faulty::open(dir.path()).await;
    let queue = open(&store).await;
    let puppets = Puppets::default();
    let _pool = pool_of(&queue, &puppets).await;
    let (key, other) = (submit(&queue).await, submit(&queue).await);
    let (one, two) = (puppets.next().await, puppets.next().await);
    let (ends, lives) = if one.attempt.key == key {
        (one, two)
    } else {
        (two, one)
    };
    store.fail_every_end(StoreError::Internal("a bug".to_owned()));
    ends.succeed();
    let swept = soon(async {
        // Nothing announces that the pool has given up.
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        loop {
            looks.tick().await;
            let swept = queue.sweep_lost_leases(END_OF_TIME).await.expect("a look");
            if swept > 0 {
                return swept;
            }
        }
    });
    assert_eq!(swept.await, 1, "the other one lives");
    store.spare_ends();
    let next = puppets.next().await;
    assert_eq!((&next.attempt.key, next.attempt.number), (&key, 2));
    let job = queue.get(&key, View::Basic).await.expect("it is there").job;
    assert_eq!((job.state, job.attempts_charged), (JobState::Running, 1));
    next.succeed();
    lives.succeed();
    for (key, attempt) in [(&key, 2), (&other, 1)] {
        let waited = queue.wait(key, Duration::from_secs(20), None, View::Basic);
        let job = soon(waited).await.expect("it is there").snapshot.job;
        assert_eq!((job.state, job.attempt), (JobState::Succeeded, attempt));
    }
}
