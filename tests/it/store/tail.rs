//! The write-ahead log: torn and flipped tails, and when it is cut back.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use pacenote::job::payload::Payload;
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobStore, OpenError, Purge, View};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::bench::{Backend, Bench, Sqlite, query};
use crate::harness::folder;

/// Source: sqlite.org/fileformat.html, the WAL file format.
const WAL_HEADER: usize = 32;
const FRAME: usize = 24 + 4096;
const COMMITS: usize = 12;

/// Goal: FAULTS F4: a store whose log was torn or damaged at its end opens to a prefix of its commits, or is
/// refused; it never shows half a job. Method: twelve commits of one job each stand in the log alone; copies
/// of the files are cut, or have bytes flipped, in the last frames. `PACENOTE_TEST_SEED` repeats a run.
#[tokio::test]
async fn a_damaged_tail_of_the_log_gives_a_prefix_of_the_commits() {
    let text = std::env::var("PACENOTE_TEST_SEED").ok();
    let seed = text.map_or_else(rand::random, |text| text.parse().expect("a number"));
    eprintln!("PACENOTE_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let sqlite = Sqlite::new();
    let path = sqlite.path();
    let bench = Bench::new(sqlite).await;
    let mut ids = Vec::new();
    for number in 0..COMMITS {
        let input = Payload::text(format!("input {number} ").repeat(300));
        ids.push(bench.submit(bench.new_job().input(input)).await.key.clone());
    }
    let database = fs::read(&path).expect("the database");
    let log = fs::read(format!("{}-wal", path.display())).expect("the log");
    let (mut whole, mut cut, mut refused) = (0, 0, 0);
    for case in 0..100 {
        let mut log = log.clone();
        // In the last three frames mostly, anywhere in the log sometimes.
        let span = if case % 4 == 0 { log.len() } else { 3 * FRAME };
        let from = log.len() - span.min(log.len() - WAL_HEADER);
        let at = random.random_range(from..log.len());
        match case % 3 {
            0 => log.truncate(at),
            1 => log[at] ^= 1 << random.random_range(0..8),
            _ => {
                let end = (at + random.random_range(1..600)).min(log.len());
                log[at..end].fill(random.random());
            }
        }
        let dir = folder();
        let copy = dir.path().join("jobs.db");
        fs::write(&copy, &database).expect("a file");
        fs::write(format!("{}-wal", copy.display()), &log).expect("a file");
        let store = match SqliteStore::open(&copy).await {
            Ok(store) => store,
            Err(OpenError::Unusable(_)) => {
                refused += 1;
                continue;
            }
            Err(other) => panic!("case {case}: {other:?}"),
        };
        let jobs = store.list(&query("default")).await.expect("a read").jobs;
        let found: Vec<_> = jobs.iter().rev().map(|job| job.key.clone()).collect();
        assert_eq!(found, ids[..found.len()], "case {case}: no prefix");
        for (number, key) in found.iter().enumerate() {
            let job = store.job(key, View::Full).await.expect("a read");
            let input = Payload::text(format!("input {number} ").repeat(300));
            assert_eq!(job.expect("it is there").payloads.input, Some(input));
            let range = pacenote::store::LogRange {
                after: 0,
                events: 10,
                bytes: 1 << 20,
            };
            let part = store.log(key, range).await.expect("a read");
            assert_eq!(part.expect("a log").segments.len(), 1);
        }
        let counted: i64 = store
            .depths()
            .await
            .expect("a read")
            .iter()
            .map(|d| d.2)
            .sum();
        assert_eq!(counted, i64::try_from(found.len()).expect("few"));
        if found.len() == COMMITS {
            whole += 1;
        } else {
            cut += 1;
        }
    }
    eprintln!("{whole} whole, {cut} cut, {refused} refused");
    assert!(cut > 20, "the damage bites");
}

/// Goal: the log is cut back when it is over 64 MiB and nothing is written. Method: a reader beside the
/// store holds the log while it grows, and lets go.
#[tokio::test]
async fn a_log_that_has_grown_is_cut_back_in_a_quiet_moment() {
    let sqlite = Sqlite::new();
    let mut reader = {
        sqlite.open().await.close().await;
        sqlite.connect().await
    };
    let store: Arc<dyn JobStore> = sqlite.open().await;
    let bench = Bench::new(Sqlite::new()).await;
    let held = sqlx::raw_sql("begin; select count(*) from jobs");
    held.execute(&mut reader).await.expect("a snapshot");
    let big = Payload::data(vec![7; 1_000_000]);
    let mut keys = Vec::new();
    for _ in 0..9 {
        let news = (0..8).map(|_| bench.new_job().input(big.clone()));
        let news: Vec<_> = news.collect();
        keys.extend(news.iter().map(|new| new.new.key.clone()));
        let entries = news.into_iter().map(|new| new.entry()).collect();
        store
            .commit(bench.group(entries, vec![]))
            .await
            .expect("stored");
    }
    let limit = 64 << 20;
    assert!(
        store.tidy().await.expect("tidied") > limit,
        "not while it is written"
    );
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let released = sqlx::query("rollback").execute(&mut reader).await;
    released.expect("released");
    assert_eq!(store.tidy().await.expect("tidied"), 0);
    // It goes on as before, and a small log is left as it is.
    let purge = keys.into_iter().map(Purge::Job).collect();
    store.purge(purge).await.expect("nothing is finished");
    let entry = bench.new_job().entry();
    store
        .commit(bench.group(vec![entry], vec![]))
        .await
        .expect("stored");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!((1..limit).contains(&store.tidy().await.expect("tidied")));
}
