//! Rows that somebody changed from beside the writer, which remembers what it wrote.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pacenote::job::name::JobKey;
use pacenote::job::payload::Payload;
use pacenote::job::policy::OnConflict;
use pacenote::job::{JobState, Outcome};
use pacenote::store::{Entry, Purge, Purged, Reply, StoreError};
use sqlx::Connection;

use super::bench::{
    Bench, NewJobBuilder, Sqlite, batch_of, cancel, changed, connect, demand, done, finish,
};

const ANOTHER_VERSION: &str =
    "update jobs set version = version + 1000 where tenant = $1 and id = $2";
pub(crate) const DAMAGED: &str = "update jobs set detail = x'00' where tenant = $1 and id = $2";

/// A name has no spaces.
const NO_KEY: &str = "update jobs set concurrency_key = 'a b' where tenant = $1 and id = $2";
const NO_TYPE: &str = "update jobs set job_type = 'a b' where tenant = $1 and id = $2";

pub(crate) const NO_QUEUE: &str = "update jobs set queue = 'a b' where tenant = $1 and id = $2";
const NO_STATE: &str = "update jobs set state = 'odd' where tenant = $1 and id = $2";
const RIGHT: &str = "
update jobs set queue = 'default', job_type = 'work', state = 'succeeded' where tenant = $1 and id = $2";

/// Changes a job's row as nobody ever should.
pub(crate) async fn meddle(path: PathBuf, key: &JobKey, how: &'static str) {
    let mut connection = connect(path).await;
    let changed = sqlx::query(how)
        .bind(key.tenant.to_string())
        .bind(key.id.as_uuid().as_bytes().to_vec())
        .execute(&mut connection)
        .await
        .expect("an update");
    assert_eq!(changed.rows_affected(), 1);
    connection.close().await.expect("closed");
}

/// Goal: where a row is not as it was read, nothing of the group is stored and the store goes on, for
/// that job too. Method: a row is changed from beside the writer, which remembers it as leased.
#[tokio::test]
async fn a_row_changed_behind_the_writer_fails_its_group_alone() {
    let sqlite = Sqlite::new();
    let path = sqlite.path();
    let bench = Bench::new(sqlite).await;
    let committed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let leased = Arc::clone(&committed.claimed[0].job);
    meddle(path, &leased.key, ANOTHER_VERSION).await;
    let bystander = bench.new_job();
    let entries = vec![
        bystander.clone().entry(),
        changed(&leased.key, finish(1, Outcome::Succeeded(None))),
    ];
    let refused = bench.try_commit(entries, vec![demand("work", 1)]).await;
    assert!(
        matches!(refused, Err(StoreError::Internal(_))),
        "{refused:?}"
    );
    assert_eq!(bench.find(&bystander.new.key).await, None);
    assert_eq!(bench.get(&leased.key).await.job.state, JobState::Running);
    assert_eq!(bench.log(&leased.key).await.len(), 2);
    let job = bench.submit(bystander).await;
    assert_eq!(job.state, JobState::Queued);
    let over = bench.commit(
        vec![changed(&leased.key, finish(1, Outcome::Succeeded(None)))],
        vec![],
    );
    assert_eq!(done(&over.await.replies[0]).0.state, JobState::Succeeded);
}

/// The same for a job that waits, which its writer remembers too: the claim that fails leaves it where it
/// is, and the next one has it with what an attempt needs.
#[tokio::test]
async fn a_waiting_row_changed_behind_the_writer_is_claimed_by_the_next_group() {
    let sqlite = Sqlite::new();
    let path = sqlite.path();
    let bench = Bench::new(sqlite).await;
    let input = Payload::text("the input");
    let job = bench.submit(bench.new_job().input(input.clone())).await;
    meddle(path, &job.key, ANOTHER_VERSION).await;
    let refused = bench.try_commit(vec![], vec![demand("work", 1)]).await;
    assert!(
        matches!(refused, Err(StoreError::Internal(_))),
        "{refused:?}"
    );
    assert_eq!(bench.get(&job.key).await.job.state, JobState::Queued);
    let claimed = bench.commit(vec![], vec![demand("work", 1)]).await.claimed;
    assert_eq!(claimed[0].job.key, job.key);
    assert_eq!(claimed[0].payloads.input, Some(input));
}

/// Goal: a row that cannot be read fails those whose entries are about it, and nobody else in their group.
/// Method: the row of a job that is over is damaged, and a group asks for it in every way there is, beside
/// one that does not.
#[tokio::test]
async fn a_row_that_cannot_be_read_fails_those_alone_who_ask_for_it() {
    let sqlite = Sqlite::new();
    let path = sqlite.path();
    let bench = Bench::new(sqlite).await;
    let new = || {
        let new = bench.new_job().idempotent("key", "the same");
        new.unique("place", Duration::from_secs(60), OnConflict::ReturnExisting)
    };
    let job = bench.finished(new()).await;
    meddle(path, &job.key, DAMAGED).await;
    let in_place = bench.new_job();
    let in_place = in_place.unique("place", Duration::from_secs(60), OnConflict::Reject);
    let bystander = bench.new_job();
    let key = bystander.new.key.clone();
    let entries = vec![
        changed(&job.key, cancel()),
        new().entry(),
        bystander.entry(),
        in_place.clone().entry(),
        batch_of(&[bench.new_job(), new()]),
        Entry::Check(Box::new(in_place.new)),
        Entry::Retry {
            key: job.key.clone(),
            new_id: bench.new_job().new.key.id,
        },
    ];
    // Not the bench's own commit, which compares with a list of all jobs.
    let committed = bench.store().commit(bench.group(entries, vec![])).await;
    let mut replies = committed.expect("a group").replies;
    let of_bystander = replies.remove(2);
    assert_eq!(done(&of_bystander).0.key, key);
    assert_eq!(replies, vec![Reply::Unreadable; 6]);
    assert_eq!(bench.get(&key).await.job.state, JobState::Queued);
}

/// A store in which these jobs wait, opened anew after the first of them was changed: until then it was
/// remembered.
async fn waiting(jobs: &[JobKind], how: &'static str) -> (Bench, Vec<JobKey>) {
    let sqlite = Sqlite::new();
    let path = sqlite.path();
    let mut bench = Bench::new(sqlite).await;
    let mut keys = Vec::new();
    for job in jobs {
        let job = bench.submit(job(bench.new_job())).await;
        assert_eq!(job.state, JobState::Queued);
        keys.push(job.key.clone());
    }
    meddle(path, &keys[0], how).await;
    bench.close_and_open().await;
    (bench, keys)
}

/// What kind of job.
type JobKind = fn(NewJobBuilder) -> NewJobBuilder;

/// Commits without the bench's own checks, which read all jobs. Answers what was claimed.
async fn commit(bench: &Bench, entries: Vec<Entry>, places: usize) -> Vec<JobKey> {
    let group = bench.group(entries, vec![demand("work", places)]);
    let committed = bench.store().commit(group).await.expect("a group");
    let claimed = committed.claimed.into_iter();
    claimed.map(|claimed| claimed.job.key.clone()).collect()
}

/// Goal: a row that cannot be read takes no place, and none of those for its concurrency key, from the jobs
/// behind it. Method: it stands at the head of a lane that has one place.
#[tokio::test]
async fn a_job_behind_a_row_that_cannot_be_read_has_its_place() {
    let with_key: JobKind = |new| new.concurrency_key("key");
    let (bench, keys) = waiting(&[with_key, with_key, |new| new], DAMAGED).await;
    assert_eq!(commit(&bench, vec![], 1).await, keys[1..2]);
    assert_eq!(commit(&bench, vec![], 1).await, keys[2..]);
}

#[tokio::test]
async fn a_waiting_row_whose_concurrency_key_is_no_name_fails_nobodys_commit() {
    let (bench, keys) = waiting(&[|new| new, |new| new], NO_KEY).await;
    let bystander = bench.new_job();
    let key = bystander.new.key.clone();
    let claimed = commit(&bench, vec![bystander.entry()], 1).await;
    assert_eq!(claimed, keys[1..]);
    assert_eq!(bench.get(&key).await.job.state, JobState::Queued);
}

/// The same for one that waits for another with its key, which ends: the next one of a type that can be
/// read goes on.
#[tokio::test]
async fn a_blocked_row_whose_type_is_no_name_fails_nobodys_commit() {
    let sqlite = Sqlite::new();
    let path = sqlite.path();
    let bench = Bench::new(sqlite).await;
    let with_key = || bench.new_job().concurrency_key("key");
    let first = bench.commit(vec![with_key().hand_over()], vec![]).await;
    let first = Arc::clone(&first.claimed[0].job);
    let damaged = bench.submit(with_key()).await;
    let next = bench.submit(with_key()).await;
    assert_eq!(bench.claim(2).await, []);
    assert_eq!(bench.get(&next.key).await.job.state, JobState::Blocked);
    meddle(path, &damaged.key, NO_TYPE).await;
    let over = changed(&first.key, finish(1, Outcome::Succeeded(None)));
    assert_eq!(commit(&bench, vec![over], 0).await, []);
    assert_eq!(bench.get(&first.key).await.job.state, JobState::Succeeded);
    assert_eq!(bench.get(&next.key).await.job.state, JobState::Queued);
}

#[tokio::test]
async fn a_store_opens_although_a_row_that_runs_has_a_concurrency_key_that_is_no_name() {
    let sqlite = Sqlite::new();
    let path = sqlite.path();
    let mut bench = Bench::new(sqlite).await;
    let new = bench.new_job().concurrency_key("key");
    let committed = bench.commit(vec![new.hand_over()], vec![]).await;
    meddle(path, &committed.claimed[0].job.key, NO_KEY).await;
    bench.close_and_open().await;
    let other = bench.new_job().concurrency_key("key");
    let key = other.new.key.clone();
    assert_eq!(commit(&bench, vec![other.entry()], 0).await, []);
    assert_eq!(commit(&bench, vec![], 1).await, [key]);
}

/// Goal: a row of which nobody knows where it was counted is not removed, with all that belongs to it, and
/// what is removed in the same transaction is. Method: each column that says it is damaged, and mended.
#[tokio::test]
async fn a_row_that_was_counted_nobody_knows_where_stays_and_fails_no_removal() {
    for how in [NO_QUEUE, NO_TYPE, NO_STATE] {
        let sqlite = Sqlite::new();
        let path = sqlite.path();
        let bench = Bench::new(sqlite).await;
        let new = bench.new_job().input(Payload::text("the input"));
        let damaged = bench.finished(new).await.key.clone();
        let other = bench.finished(bench.new_job()).await.key.clone();
        meddle(path.clone(), &damaged, how).await;
        let purge = [&damaged, &other].map(|key| Purge::Job(key.clone()));
        let purged = bench.store().purge(purge.to_vec()).await;
        let expected = [Purged::Nothing, Purged::Job(other)];
        assert_eq!(purged.expect("it is done"), expected, "{how}");
        meddle(path, &damaged, RIGHT).await;
        let found = bench.get(&damaged).await;
        assert_eq!(found.payloads.input, Some(Payload::text("the input")));
        assert_eq!(bench.log(&damaged).await.len(), 3);
        let purged = bench.purge(purge[..1].to_vec()).await;
        assert_eq!(purged, [Purged::Job(damaged)]);
    }
}
