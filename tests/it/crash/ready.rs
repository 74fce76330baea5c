//! How soon a server is there again with much in its store.

use std::time::Duration;

use pacenote::store::JobStore;
use pacenote::store::sqlite::SqliteStore;
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use super::process::Start;
use crate::harness::folder;

/// What a store is asked to hold while it starts.
const JOBS: i64 = 100_000;
/// The bar of FAULTS F1.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// Goal: ready within 2 s of the start with 100,000 jobs stored, after a kill. Method: one job of each
/// state that a start has to look at is made by a server, and copied in the store itself.
#[tokio::test]
async fn a_server_with_100_000_jobs_is_ready_within_two_seconds() {
    let dir = folder();
    let start = Start::on(dir.path()).flag("--workers", "16");
    let server = start.start();
    let client = server.client().await;
    for _ in 0..20 {
        let request = super::sleep_request(300.0);
        client.submit(request).await.expect("it is stored");
    }
    server.kill().await;
    let path = dir.path().join("pacenote.db");
    let mut connection = SqliteConnectOptions::new()
        .filename(&path)
        .connect()
        .await
        .expect("a connection");
    let copies = sqlx::raw_sql(COPY);
    copies.execute(&mut connection).await.expect("copies");
    drop(connection);
    let server = start.start();
    let ready = server.ready_after().await;
    eprintln!("ready after {ready:?} with {JOBS} jobs");
    server.kill().await;
    let store = SqliteStore::open(&path).await.expect("a store");
    let depths = store.depths().await.expect("a read");
    assert_eq!(depths.iter().map(|depth| depth.2).sum::<i64>(), JOBS);
    store.close().await;
    assert!(ready <= READY_WITHIN, "{ready:?}");
}

/// Four waiting jobs and sixteen running ones become a hundred thousand: most waiting, the rest as they
/// were.
const COPY: &str = "
begin immediate;
create temp table copies as
    with recursive n(i) as (select 1 union all select i + 1 from n where i < 99980)
    select i, randomblob(16) as id from n;
insert into segments
    select (select max(first_position) + 100 from segments) + 2 * i, s.tenant, c.id,
        s.first_sequence, s.last_sequence, s.tags, s.body
    from copies c, (
        select * from segments where job_id = (select id from jobs where state = 'queued' limit 1)) s;
insert into jobs
    select tenant, c.id, job_type, queue, state, priority, run_at_us, attempt, attempts_charged,
        attempts_lost, lease_expires_at_us, stall_at_us, stalled_since_us, deadline_at_us,
        first_sequence, last_sequence, created_at_us, updated_at_us, ended_at_us, purge_at_us,
        events_purge_at_us, batch_id, concurrency_key, unique_key, idempotency_key, version, spec, detail
    from copies c, (select * from jobs where state = 'queued' limit 1);
update depths set jobs = jobs + 99980 where state = 'queued';
commit";
