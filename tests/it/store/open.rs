//! Opening the SQLite store: what is not ours, or damaged, is refused with the right words and left as it
//! is, byte by byte.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobStore, OpenError};
use sha2::{Digest, Sha256};
use sqlx::Connection;

use super::bench::{self, Backend, Bench, Sqlite, query};
use crate::harness::folder;

/// A store with a few jobs, closed.
async fn closed_store(dir: &Path) -> PathBuf {
    let path = dir.join("jobs.db");
    let store = SqliteStore::open(&path).await.expect("a store");
    let bench = Bench::new(Sqlite::new()).await;
    for _ in 0..20 {
        let entries = (0..20).map(|_| bench.new_job().entry()).collect();
        store
            .commit(bench.group(entries, vec![]))
            .await
            .expect("stored");
    }
    store.close().await;
    path
}

fn hash(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).expect("the file")).to_vec()
}

async fn refused(path: &Path) -> OpenError {
    match SqliteStore::open(path).await {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

/// Refused as unusable, with these words, and left as it was.
async fn unusable(path: &Path, words: &str) {
    let before = hash(path);
    match refused(path).await {
        OpenError::Unusable(text) => {
            assert!(text.contains(words), "{text}");
            assert!(text.contains(&*path.file_name().expect("a name").to_string_lossy()));
        }
        other => panic!("{words}: {other:?}"),
    }
    assert!(before == hash(path), "{words}: the file has changed");
}

#[tokio::test]
async fn a_second_server_is_told_whose_the_store_is() {
    let sqlite = Sqlite::new();
    let store = sqlite.open().await;
    let link = sqlite.path().with_file_name("link.db");
    std::os::unix::fs::symlink(sqlite.path(), &link).expect("a link");
    for path in [sqlite.path(), link] {
        let OpenError::Locked { pid, .. } = refused(&path).await else {
            panic!("not locked: {path:?}");
        };
        assert_eq!(pid, Some(std::process::id()));
    }
    drop(store);
    sqlite.open().await;
}

#[tokio::test]
async fn what_is_not_ours_is_left_as_it_is() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::write(
        path("text"),
        "not a database, and longer than a header: ".repeat(9),
    )
    .expect("a file");
    unusable(&path("text"), "is not an SQLite database").await;
    fs::write(path("short"), "SQLite format 3\0").expect("a file");
    unusable(&path("short"), "is not an SQLite database").await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().create_if_missing(true);
    let mut other = sqlx::SqliteConnection::connect_with(&options.filename(path("other")))
        .await
        .expect("a database");
    let foreign = sqlx::raw_sql("create table t (x); pragma application_id = 7");
    foreign.execute(&mut other).await.expect("foreign");
    other.close().await.expect("closed");
    unusable(&path("other"), "is a database of another program").await;
}

#[tokio::test]
async fn a_newer_schema_is_left_as_it_is() {
    let dir = folder();
    let path = closed_store(dir.path()).await;
    let mut connection = bench::connect(path.clone()).await;
    let newer = "insert into _sqlx_migrations values (9999, 'newer', '2030-01-01', 1, x'00', 1)";
    let newer = sqlx::query(newer).execute(&mut connection).await;
    newer.expect("a row");
    connection.close().await.expect("closed");
    unusable(&path, "newer version of pacenote").await;
}

/// Goal: FAULTS F9. Method: bytes of the header, the schema and the rest of a good store are overwritten,
/// or the file is cut.
#[tokio::test]
async fn a_damaged_store_is_refused_and_left_as_it_is() {
    let dir = folder();
    let good = fs::read(closed_store(dir.path()).await).expect("the store");
    let damaged = dir.path().join("damaged.db");
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 6] = [
        ("the page size", |bytes| bytes[16..18].fill(0x33)),
        ("the file format", |bytes| bytes[18..20].fill(9)),
        ("the schema's page", |bytes| bytes[100..120].fill(0xff)),
        ("the schema's text", |bytes| bytes[1000..4096].fill(0xff)),
        ("the second half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("all but a page", |bytes| bytes.truncate(4096)),
    ];
    for (what, damage) in damages {
        let mut bytes = good.clone();
        damage(&mut bytes);
        fs::write(&damaged, bytes).expect("a file");
        eprintln!("{what}");
        unusable(&damaged, "cannot be opened").await;
        for companion in ["-wal", "-shm"] {
            // It may not have got that far: fine.
            let _ = fs::remove_file(format!("{}{companion}", damaged.display()));
        }
    }
}

#[tokio::test]
async fn a_path_that_cannot_be_used_is_named() {
    let dir = folder();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).expect("a folder");
    let dangling = dir.path().join("dangling");
    std::os::unix::fs::symlink(dir.path().join("nowhere/jobs.db"), &dangling).expect("a link");
    let paths = [
        folder.clone(),
        dir.path().join("missing/jobs.db"),
        PathBuf::from("/proc/jobs.db"),
        dangling,
    ];
    for path in paths {
        let OpenError::Path(text) = refused(&path).await else {
            panic!("{path:?}");
        };
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
    assert!(
        !dir.path().join("folder.lock").exists(),
        "nothing is left behind"
    );
}

/// Goal: a store in a file system that cannot be written is refused, by its path. Method: bits of the file
/// mode where they bind us; root needs no bits and is told apart.
#[tokio::test]
async fn a_store_that_cannot_be_written_is_refused() {
    let dir = folder();
    let path = closed_store(dir.path()).await;
    let before = hash(&path);
    fs::set_permissions(&path, Permissions::from_mode(0o400)).expect("the mode");
    if nix::unistd::geteuid().is_root() {
        eprintln!("root may write whatever the mode says: the mode is not tested");
        return;
    }
    assert!(matches!(refused(&path).await, OpenError::Path(_)));
    assert!(before == hash(&path));
}

#[tokio::test]
async fn a_store_is_its_owners_alone_and_one_file_once_it_is_closed() {
    let sqlite = Sqlite::new();
    let store = sqlite.open().await;
    let file = |companion: &str| PathBuf::from(format!("{}{companion}", sqlite.path().display()));
    for companion in ["", "-wal", "-shm", ".lock"] {
        let found = fs::metadata(file(companion)).expect("it is there");
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{companion}");
    }
    store.close().await;
    assert!(!file("-wal").exists(), "all of it is in the database");
}

/// Goal: a server that was killed before the first checkpoint finds its own store again. Method: the files
/// of a new store are copied while it is open, with what stands in the log alone.
#[tokio::test]
async fn a_new_store_that_was_never_checkpointed_opens_again() {
    let sqlite = Sqlite::new();
    let bench = Bench::new(sqlite).await;
    let dir = folder();
    let copy = dir.path().join("jobs.db");
    let new = Sqlite::new();
    let store = new.open().await;
    let job = bench.new_job().entry();
    store
        .commit(bench.group(vec![job], vec![]))
        .await
        .expect("stored");
    for companion in ["", "-wal"] {
        let from = format!("{}{companion}", new.path().display());
        fs::copy(from, format!("{}{companion}", copy.display())).expect("a copy");
    }
    let found = SqliteStore::open(&copy).await.expect("it opens");
    assert_eq!(
        found
            .list(&query("default"))
            .await
            .expect("a read")
            .jobs
            .len(),
        1
    );
    assert_eq!(found.secret(), store.secret());
}

/// Positions order the events of all jobs: one that was given is never given again, purged or not.
#[tokio::test]
async fn a_position_is_never_given_twice() {
    use pacenote::store::Purge;
    let sqlite = Sqlite::new();
    let (path, bench) = (sqlite.path(), Bench::new(Sqlite::new()).await);
    let mut store = SqliteStore::open(&path).await.expect("a store");
    let mut highest = 0;
    for round in 0..4 {
        let group = bench.group(vec![bench.new_job().hand_over()], vec![]);
        let job = store
            .commit(group)
            .await
            .expect("stored")
            .claimed
            .remove(0)
            .job;
        let over = bench::finish(1, pacenote::job::Outcome::Succeeded(None));
        let group = bench.group(vec![bench::changed(&job.key, over)], vec![]);
        store.commit(group).await.expect("stored");
        let mut connection = bench::connect(path.clone()).await;
        let positions = "select min(first_position), max(first_position) from segments";
        let (lowest, last): (i64, i64) = sqlx::query_as(positions)
            .fetch_one(&mut connection)
            .await
            .expect("positions");
        assert!(lowest > highest, "{lowest} after {highest}");
        highest = last;
        let purged = store.purge(vec![Purge::Job(job.key.clone())]).await;
        assert_eq!(purged.expect("purged").len(), 1);
        if round % 2 == 0 {
            drop(store);
            store = SqliteStore::open(&path).await.expect("a store");
        }
    }
}
