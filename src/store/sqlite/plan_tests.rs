//! How SQLite goes about the hot statements: by the index that is meant for each, whatever waits.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use crate::store::sqlite::{SqliteStore, purge, read, write};

/// A store with a thousand jobs in each of the states that an index serves.
async fn populated(dir: &Path) -> SqliteConnection {
    let path = dir.join("jobs.db");
    drop(SqliteStore::open(&path).await.expect("a store"));
    let options = SqliteConnectOptions::new().filename(&path);
    let mut connection = options.connect().await.expect("a connection");
    sqlx::raw_sql(FILL)
        .execute(&mut connection)
        .await
        .expect("rows");
    connection
}

const FILL: &str = "
create temp table guard (ok integer);
create temp table states (number integer, state text);
insert into states values
    (1, 'scheduled'), (2, 'queued'), (3, 'running'), (4, 'cancelling'), (5, 'succeeded');
with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000)
insert into jobs
select 'default', randomblob(16), 'work', 'default', state, 0, i, 1, 1, 0,
    iif(state in ('running', 'cancelling'), i, null), 1, 1, i, i,
    iif(state = 'succeeded', i, null), cast(state || i as blob), 1, x'7b7d', x'7b7d'
from n, states;
insert into segments (tenant, job_id, first_sequence, last_sequence, tags, body)
select tenant, id, 1, 1, x'01', x'0a00' from jobs";

/// The steps of a statement's plan, a line each.
async fn steps(connection: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let rows = sqlx::query(AssertSqlSafe(format!("explain query plan {sql}")))
        .fetch_all(connection)
        .await
        .expect("a plan");
    let detail = |row: &sqlx::sqlite::SqliteRow| row.try_get::<String, _>(3).expect("a text");
    rows.iter().map(detail).collect()
}

/// A statement, the step that has to be in its plan, and the words that must not be.
type Case = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const SCANS: [&str; 3] = ["SCAN j", "SCAN segments", "SCAN payloads"];

const CASES: [Case; 10] = [
    (
        write::JOBS_BY_ID,
        &["SEARCH j USING PRIMARY KEY (tenant=? AND id=?)"],
        &["TEMP B-TREE"],
    ),
    (
        write::JOBS_BY_KEY,
        &["SEARCH j USING INDEX jobs_key (tenant=? AND idempotency_key=?)"],
        &["TEMP B-TREE"],
    ),
    (
        read::JOB_WITH_PAYLOADS,
        &[
            "SEARCH j USING PRIMARY KEY (tenant=? AND id=?)",
            "SEARCH i USING PRIMARY KEY (tenant=? AND job_id=? AND role=?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        read::JOB_OF_KEY,
        &["SEARCH j USING INDEX jobs_key (tenant=? AND idempotency_key=?)"],
        &["TEMP B-TREE"],
    ),
    (
        read::LIST,
        &["SEARCH j USING PRIMARY KEY (tenant=? AND id<?)"],
        &["TEMP B-TREE"],
    ),
    (
        read::LOG,
        &[
            "SEARCH j USING PRIMARY KEY (tenant=? AND id=?)",
            "SEARCH segments USING INDEX segments_of_job (tenant=? AND job_id=? AND first_sequence>? AND first_sequence<?)",
        ],
        &[],
    ),
    (
        read::DUE,
        &["USING COVERING INDEX jobs_scheduled"],
        &["TEMP B-TREE"],
    ),
    (
        read::LEASES_ENDED,
        &["SEARCH jobs USING INDEX jobs_leased (lease_expires_at_us<?)"],
        &["TEMP B-TREE"],
    ),
    (
        purge::DELETE_JOB,
        &["SEARCH jobs USING PRIMARY KEY (tenant=? AND id=?)"],
        &[],
    ),
    (
        purge::DELETE_SEGMENTS,
        &["SEARCH segments USING INDEX segments_of_job (tenant=? AND job_id=?)"],
        &[],
    ),
];

#[tokio::test]
async fn every_hot_statement_goes_by_its_index() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut connection = populated(dir.path()).await;
    for (sql, wanted, unwanted) in CASES {
        let steps = steps(&mut connection, sql).await;
        let plan = format!("{sql}\n{steps:#?}");
        for wanted in wanted {
            assert!(steps.iter().any(|step| step.contains(wanted)), "{plan}");
        }
        for unwanted in unwanted.iter().chain(&SCANS) {
            let step = steps.iter().find(|step| {
                step.contains(unwanted) && !step.contains("USING") && !step.contains("VIRTUAL")
            });
            assert_eq!(step, None, "{plan}");
        }
    }
}

/// The heads of a lane come out of the index in the order of the claims: only the heads themselves, a
/// few rows, are put in order at the end.
#[tokio::test]
async fn a_claim_reads_the_heads_of_its_lane_and_sorts_nothing_that_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut connection = populated(dir.path()).await;
    let steps = steps(&mut connection, write::LANE_HEADS).await;
    let heads = steps
        .iter()
        .position(|step| step.contains("LIST SUBQUERY"))
        .expect("the heads of a lane");
    let index = "SEARCH jobs USING COVERING INDEX jobs_ready (queue=? AND job_type=? AND tenant=?)";
    assert_eq!(steps[heads + 1], index, "{steps:#?}");
    let sorts = steps.iter().filter(|step| step.contains("TEMP B-TREE"));
    assert_eq!(sorts.count(), 1, "{steps:#?}");
    assert!(
        steps
            .last()
            .is_some_and(|step| step == "USE TEMP B-TREE FOR ORDER BY")
    );
    assert!(
        !steps.iter().any(|step| step.contains("SCAN j")),
        "{steps:#?}"
    );
    let by_key = "USING PRIMARY KEY (tenant=? AND job_id=? AND role=?)";
    let payloads = steps.iter().filter(|step| step.contains(by_key));
    assert_eq!(payloads.count(), 2, "{steps:#?}");
}

#[tokio::test]
async fn a_group_is_written_by_primary_keys() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut connection = populated(dir.path()).await;
    // What the trigger does, each statement by itself, with something in place of what is inserted.
    let (_, body) = write::MAKE_GROUP.split_once("begin\n").expect("a trigger");
    let statements: Vec<String> = body.split(';').map(alone).collect();
    let update = statements.iter().find(|sql| sql.contains("update jobs"));
    let steps = steps(&mut connection, update.expect("the update")).await;
    let by_key = "SEARCH jobs USING PRIMARY KEY (tenant=? AND id=?)";
    assert!(steps.iter().any(|step| step == by_key), "{steps:#?}");
    for sql in &statements {
        if sql.contains("raise(") || sql.trim() == "end" {
            continue;
        }
        let steps = self::steps(&mut connection, sql).await;
        let tables = ["SCAN jobs", "SCAN segments", "SCAN payloads", "SCAN depths"];
        let scans = |step: &String| tables.iter().any(|table| step.starts_with(table));
        assert!(!steps.iter().any(scans), "{sql}\n{steps:#?}");
    }
}

/// A statement of a trigger with `null` for each `new.column`.
fn alone(sql: &str) -> String {
    let mut parts = sql.split("new.");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let column = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        text.push_str("null");
        text.push_str(&part[column.unwrap_or(part.len())..]);
    }
    text
}
