//! The write-ahead log behind reads that never leave a pause.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use crate::store::sqlite::{SqliteStore, locked};

/// Reads in the log, without an end of its own.
const ENDLESS: &str = "
with recursive n(i) as (select value from meta union all select 1 from n)
select i from n where i = 'nothing'";

/// Larger than any log in these tests.
const LARGE: u64 = 1 << 40;

async fn store(dir: &Path) -> Arc<SqliteStore> {
    let store = SqliteStore::open(&dir.join("jobs.db")).await;
    Arc::new(store.expect("a store"))
}

/// Writes two hundred pages more into the log.
fn write(store: &SqliteStore) {
    const BALLAST: &str =
        "insert or replace into meta (name, value) values ('ballast', randomblob(800000))";
    let writer = locked(&store.writer);
    let connection = &writer.as_ref().expect("it is open").connection;
    connection.execute(BALLAST, []).expect("stored");
}

/// Two reads that go on for as long as they may, again and again.
async fn read_without_pause(store: &Arc<SqliteStore>) -> Vec<AbortOnDropHandle<()>> {
    let read = || {
        let store = Arc::clone(store);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let ended = store.readers.all_of_long(sqlx::query(ENDLESS)).await;
                ended.expect_err("it never ends");
            }
        }))
    };
    let reads = vec![read(), read()];
    while store.readers.is_free_for_long() {
        tokio::task::yield_now().await;
    }
    reads
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    let what = tokio::time::timeout(Duration::from_secs(30), what);
    what.await.expect("long before that")
}

/// Goal: reads that overlap for ever do not let the log grow for ever. Method: two of them, and a limit that
/// the log reaches, then passes.
#[tokio::test]
async fn a_log_past_its_limit_is_cut_back_although_reads_overlap() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path()).await;
    write(&store);
    let _reads = read_without_pause(&store).await;
    for _ in 0..10 {
        write(&store);
    }
    let bytes = store.wal_bytes();
    let at_limit = soon(store.keep_log_small(LARGE, bytes)).await;
    assert_eq!(at_limit, Ok(bytes));
    let past_limit = soon(store.keep_log_small(LARGE, bytes - 1)).await;
    assert_eq!(past_limit, Ok(0));
    write(&store);
    assert!((1..bytes).contains(&store.wal_bytes()));
}

/// Goal: another program that holds the log holds up neither reads nor writes. Method: a snapshot of its own,
/// beside the store.
#[tokio::test]
async fn a_log_that_another_program_holds_is_left_until_it_lets_go() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path()).await;
    write(&store);
    let other = rusqlite::Connection::open(dir.path().join("jobs.db")).expect("a connection");
    let held = other.execute_batch("begin; select count(*) from meta");
    held.expect("a snapshot");
    write(&store);
    let bytes = store.wal_bytes();
    let held = soon(store.keep_log_small(LARGE, 0)).await;
    assert_eq!(held, Ok(bytes));
    write(&store);
    let select = sqlx::query("select value from meta");
    let read = soon(store.readers.all(select)).await;
    assert!(read.is_ok(), "{read:?}");
    other.execute_batch("rollback").expect("it lets go");
    assert_eq!(soon(store.keep_log_small(LARGE, 0)).await, Ok(0));
}
