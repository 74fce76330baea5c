//! How SQLite goes about the hot statements: by the index that is meant for each, whatever waits.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use crate::store::sqlite::{SqliteStore, know, list, purge, queues, read, write};

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
    (0, 'blocked'), (1, 'scheduled'), (2, 'queued'), (3, 'running'), (4, 'cancelling'), (5, 'succeeded'),
    (6, 'failed');
with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000)
insert into jobs
select 'default', randomblob(16), 'work', 'default', state, 0, i, 1, 1, 0,
    iif(state in ('running', 'cancelling'), i, null), null, null, iif(state in ('blocked', 'scheduled', 'queued'), i, null), 1, 1, i, i,
    iif(state = 'succeeded', i, null), iif(state = 'succeeded', i, null),
    iif(state = 'succeeded', i, null), null, 'key',
    cast(i as blob), cast(state || i as blob), 1, x'7b7d', x'7b7d'
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

const CASES: &[Case] = &[
    (
        read::LOG_AFTER,
        &[
            "SEARCH segments USING INTEGER PRIMARY KEY (rowid>?)",
            "SEARCH segments USING INTEGER PRIMARY KEY (rowid<?)",
            "SEARCH s USING INTEGER PRIMARY KEY (rowid=?)",
            "SEARCH j USING PRIMARY KEY (tenant=? AND id=?)",
            "SEARCH purged USING PRIMARY KEY (tenant=?)",
        ],
        &[],
    ),
    (
        read::HEAD,
        &[
            "SEARCH segments USING INTEGER PRIMARY KEY (rowid=?)",
            "SEARCH meta USING PRIMARY KEY (name=?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        read::SCAN,
        &[
            "SEARCH jobs USING PRIMARY KEY (tenant=? AND id>?)",
            "SEARCH j USING PRIMARY KEY (tenant=? AND id>? AND id<?)",
            "SEARCH j USING PRIMARY KEY (tenant=? AND id=?)",
            "SEARCH s USING COVERING INDEX segments_of_job (tenant=? AND job_id=?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        read::SCAN_BATCH,
        &[
            "SEARCH jobs USING COVERING INDEX jobs_batch (tenant=? AND batch_id=? AND id>?)",
            "SEARCH j USING INDEX jobs_batch (tenant=? AND batch_id=? AND id>? AND id<?)",
            "SEARCH j USING PRIMARY KEY (tenant=? AND id=?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        purge::LAST_POSITION,
        &["SEARCH segments USING INDEX segments_of_job (tenant=? AND job_id=?)"],
        &["TEMP B-TREE"],
    ),
    (
        purge::MOVE_PURGED,
        &["SEARCH purged USING PRIMARY KEY (tenant=?)"],
        &[],
    ),
    (
        read::JOB,
        &["SEARCH j USING PRIMARY KEY (tenant=? AND id=?)"],
        &["TEMP B-TREE"],
    ),
    (
        write::UPDATE_JOB,
        &["SEARCH jobs USING PRIMARY KEY (tenant=? AND id=?)"],
        &[],
    ),
    (
        write::UPDATE_PAYLOAD,
        &["SEARCH payloads USING PRIMARY KEY (tenant=? AND job_id=? AND role=?)"],
        &[],
    ),
    (
        write::MOVE_DEPTH,
        &["SEARCH depths USING PRIMARY KEY (tenant=? AND queue=? AND job_type=? AND state=?)"],
        &[],
    ),
    (
        write::DROP_DEPTH,
        &["SEARCH depths USING PRIMARY KEY (tenant=? AND queue=? AND job_type=? AND state=?)"],
        &[],
    ),
    (
        read::JOB_WITH_PAYLOADS,
        &[
            "SEARCH j USING PRIMARY KEY (tenant=? AND id=?)",
            "SEARCH i USING PRIMARY KEY (tenant=? AND job_id=? AND role=?)",
            "SEARCH r USING PRIMARY KEY (tenant=? AND job_id=? AND role=?)",
            "SEARCH c USING PRIMARY KEY (tenant=? AND job_id=? AND role=?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        read::JOB_OF_KEY,
        &["SEARCH j USING INDEX jobs_key (tenant=? AND idempotency_key=?)"],
        &["TEMP B-TREE"],
    ),
    (
        list::ALL,
        &["SEARCH j USING PRIMARY KEY (tenant=? AND id>? AND id<?)"],
        &["TEMP B-TREE"],
    ),
    (
        list::ALL_END,
        &["SEARCH j USING PRIMARY KEY (tenant=? AND id<?)"],
        &["TEMP B-TREE"],
    ),
    (
        list::BATCH,
        &["SEARCH j USING INDEX jobs_batch (tenant=? AND batch_id=? AND id>? AND id<?)"],
        &["TEMP B-TREE"],
    ),
    (
        list::BATCH_END,
        &["SEARCH j USING COVERING INDEX jobs_batch (tenant=? AND batch_id=? AND id<?)"],
        &["TEMP B-TREE"],
    ),
    (
        list::RETRYABLE,
        &["SEARCH j USING INDEX jobs_retryable (tenant=? AND state=? AND id>? AND id<?)"],
        &["TEMP B-TREE"],
    ),
    (
        list::RETRYABLE_END,
        &["SEARCH j USING COVERING INDEX jobs_retryable (tenant=? AND state=? AND id<?)"],
        &["TEMP B-TREE"],
    ),
    // There are few, in another order.
    (list::LEASED, &["USING INDEX jobs_leased"], &[]),
    (
        read::LOG,
        &[
            "SEARCH j USING PRIMARY KEY (tenant=? AND id=?)",
            "SEARCH segments USING INDEX segments_of_job (tenant=? AND job_id=? AND first_sequence>? AND first_sequence<?)",
        ],
        &[],
    ),
    (
        read::DUE_TO_START,
        &["USING COVERING INDEX jobs_scheduled"],
        &["TEMP B-TREE"],
    ),
    (
        read::DUE_TO_EXPIRE,
        &["USING COVERING INDEX jobs_deadline"],
        &["TEMP B-TREE"],
    ),
    (
        read::DUE_TO_PURGE,
        &["USING COVERING INDEX jobs_purge"],
        &["TEMP B-TREE"],
    ),
    (
        read::DUE_TO_PURGE_EVENTS,
        &["USING COVERING INDEX jobs_events_purge"],
        &["TEMP B-TREE"],
    ),
    (read::SILENT, &["USING INDEX jobs_leased"], &["TEMP B-TREE"]),
    (
        read::JOBS_IN_PLACE,
        &["SEARCH j USING INDEX jobs_in_place (tenant=? AND job_type=? AND unique_key=?)"],
        &["TEMP B-TREE"],
    ),
    (
        read::JOB_OF_PLACE,
        &["SEARCH j USING INDEX jobs_unique (tenant=? AND job_type=? AND unique_key=?)"],
        &["TEMP B-TREE"],
    ),
    (
        read::AHEAD,
        &[
            "SEARCH jobs USING COVERING INDEX jobs_ready (queue=? AND job_type=? AND tenant=? AND priority>?)",
            "SEARCH jobs USING COVERING INDEX jobs_ready (queue=? AND job_type=? AND tenant=? AND priority=? AND (run_at_us,id)<(?,?))",
        ],
        &["TEMP B-TREE"],
    ),
    (
        read::BLOCKED_HEADS,
        &[
            "SEARCH j USING INDEX jobs_blocked (queue=? AND tenant=? AND concurrency_key=? AND job_type=?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        read::NEXT_BLOCKED_TYPE,
        &[
            "SEARCH jobs USING COVERING INDEX jobs_blocked (queue=? AND tenant=? AND concurrency_key=? AND job_type>?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        read::NEXT_BLOCKED_LINE,
        &[
            "SEARCH jobs USING COVERING INDEX jobs_blocked (queue=? AND (tenant,concurrency_key,job_type)>(?,?,?))",
        ],
        &["TEMP B-TREE"],
    ),
    (
        read::BLOCKED_LINE,
        &[
            "SEARCH jobs USING COVERING INDEX jobs_blocked (queue=? AND tenant=? AND concurrency_key=? AND job_type=?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        know::LANE_HEADS,
        &["SEARCH jobs USING COVERING INDEX jobs_ready (queue=? AND job_type=? AND tenant=?)"],
        &["TEMP B-TREE"],
    ),
    (
        read::LEASES_ENDED,
        &["SEARCH jobs USING INDEX jobs_leased (lease_expires_at_us<?)"],
        &["TEMP B-TREE"],
    ),
    (
        queues::DEPTHS_OF,
        &[
            "SEARCH depths USING PRIMARY KEY (tenant=? AND queue=?)",
            "SEARCH depths USING PRIMARY KEY (tenant=? AND queue>?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        queues::DEPTHS_IN,
        &["SEARCH depths USING PRIMARY KEY (tenant=? AND queue=?)"],
        &["TEMP B-TREE"],
    ),
    (
        queues::DUE_LONGEST,
        &[
            "SEARCH jobs USING COVERING INDEX jobs_ready (queue=? AND job_type=? AND tenant=? AND priority<?)",
            "SEARCH jobs USING COVERING INDEX jobs_ready (queue=? AND job_type=? AND tenant=? AND priority=?)",
        ],
        &["TEMP B-TREE", "SCAN jobs"],
    ),
    (
        queues::READY,
        &["SEARCH jobs USING COVERING INDEX jobs_ready (queue=? AND job_type=? AND tenant=?)"],
        &["TEMP B-TREE"],
    ),
    (
        queues::SET_ASIDE,
        &[
            "SEARCH jobs USING COVERING INDEX jobs_set_aside (tenant=? AND queue=? AND job_type=? AND state=? AND id<?)",
        ],
        &["TEMP B-TREE"],
    ),
    (
        queues::UPDATE_SETTING,
        &["SEARCH settings USING PRIMARY KEY (kind=? AND name=?)"],
        &[],
    ),
    (
        queues::DELETE_SETTING,
        &["SEARCH settings USING PRIMARY KEY (kind=? AND name=?)"],
        &[],
    ),
    (
        purge::COUNTED_IN,
        &["SEARCH jobs USING PRIMARY KEY (tenant=? AND id=?)"],
        &[],
    ),
    (
        purge::DELETE_JOB,
        &["SEARCH jobs USING PRIMARY KEY (tenant=? AND id=?)"],
        &[],
    ),
    (
        purge::DELETE_PAYLOADS,
        &["SEARCH payloads USING PRIMARY KEY (tenant=? AND job_id=?)"],
        &[],
    ),
    (
        purge::SEGMENT_SIZES,
        &["SEARCH segments USING INDEX segments_of_job (tenant=? AND job_id=?)"],
        &["TEMP B-TREE"],
    ),
    (
        purge::DELETE_SEGMENTS,
        &[
            "SEARCH segments USING INDEX segments_of_job (tenant=? AND job_id=? AND first_sequence<?)",
        ],
        &[],
    ),
    (
        purge::SET_FIRST_SEQUENCE,
        &["SEARCH jobs USING PRIMARY KEY (tenant=? AND id=?)"],
        &[],
    ),
    (
        purge::SET_NO_EVENTS_DUE,
        &["SEARCH jobs USING PRIMARY KEY (tenant=? AND id=?)"],
        &[],
    ),
];

#[tokio::test]
async fn every_hot_statement_goes_by_its_index() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut connection = populated(dir.path()).await;
    for &(sql, wanted, unwanted) in CASES {
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

/// The heads of a lane come out of the index in the order of the claims: nothing is sorted.
#[tokio::test]
async fn a_claim_reads_the_heads_of_its_lane_and_sorts_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut connection = populated(dir.path()).await;
    let steps = steps(&mut connection, know::LANE_HEADS).await;
    let index = "SEARCH jobs USING COVERING INDEX jobs_ready (queue=? AND job_type=? AND tenant=?)";
    assert_eq!(steps, [index]);
}

/// A row that is written costs no table of its own: SQLite makes one, with a b-tree, for a list of values
/// that a column is checked against, and for an upsert.
#[tokio::test]
async fn no_row_that_is_written_needs_a_table_of_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut connection = populated(dir.path()).await;
    for sql in write::ROW_BY_ROW {
        let program = sqlx::query(AssertSqlSafe(format!("explain {sql}")))
            .fetch_all(&mut connection)
            .await
            .expect("a program");
        let opcode = |row: &sqlx::sqlite::SqliteRow| row.try_get::<String, _>(1).expect("a text");
        let opcodes: Vec<String> = program.iter().map(opcode).collect();
        assert!(
            !opcodes.iter().any(|o| o == "OpenEphemeral"),
            "{sql}\n{opcodes:?}"
        );
    }
}
