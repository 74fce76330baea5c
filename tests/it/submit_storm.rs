//! Many more submits than may wait, of many tenants at once, over the death of the store: FAULTS F62.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use pacenote::error::{Error, Limit};
use pacenote::job::name::Name;
use pacenote::pb;
use pacenote::queue::{Submission, default_tenant};
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobStore, ListQuery};
use tokio::sync::Semaphore;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::errors_store::{Faulty, FaultyServer, fault};
use crate::harness::{count_of, folder, reason_of, soon, submit_request};

const TENANTS: usize = 20;
/// How many of them ask for ten times what they may have. The others ask for exactly that.
const STORMING: usize = 10;

/// What became of a submit.
enum Answer {
    Admitted(String),
    /// No more jobs may wait, and it was said when to come back.
    Full,
    /// The store died meanwhile.
    Unknown,
}

/// What was answered to a tenant.
#[derive(Default)]
struct Told {
    admitted: BTreeSet<String>,
    full: usize,
    unknown: usize,
}

/// A server, and fewer calls at once than its connection has streams.
struct Door {
    server: FaultyServer,
    calls: Semaphore,
}

impl Door {
    async fn open(store: &Faulty, quota: usize) -> Arc<Self> {
        Arc::new(Self {
            server: FaultyServer::on(store.clone(), quota).await,
            calls: Semaphore::new(100),
        })
    }

    async fn submit(&self, tenant: &Name) -> Answer {
        if *tenant == default_tenant() {
            let _call = self.calls.acquire().await.expect("it is never closed");
            let request = submit_request("any");
            let answer = self.server.client.clone().submit(request).await;
            return of_grpc(answer.map(tonic::Response::into_inner));
        }
        let submission = Submission {
            tenant: tenant.clone(),
            ..Submission::new("any", None)
        };
        match self.server.queue.submit(submission).await {
            Ok((job, _)) => Answer::Admitted(job.key.id.to_string()),
            Err(Error::Exhausted {
                limit: Limit::Waiting { .. },
                retry_after,
            }) if !retry_after.is_zero() => Answer::Full,
            Err(Error::Unavailable { .. }) => Answer::Unknown,
            Err(other) => panic!("{tenant}: {other:?}"),
        }
    }
}

/// The first one calls through gRPC, which knows no other before there are keys; the others come in through
/// the same door behind it.
fn tenants() -> Vec<Name> {
    let others = (1..TENANTS).map(|n| Name::new(format!("tenant-{n}")).expect("a name"));
    std::iter::once(default_tenant()).chain(others).collect()
}

fn of_grpc(answer: Result<pb::SubmitResponse, Status>) -> Answer {
    let status = match answer {
        Ok(answer) => return Answer::Admitted(answer.job.expect("a job").job_id),
        Err(status) => status,
    };
    match reason_of(&status) {
        (Code::ResourceExhausted, reason) => {
            assert_eq!(reason, "WAITING_LIMIT");
            let details = status.get_error_details();
            let retry = details.retry_info().expect("a RetryInfo");
            assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()));
            Answer::Full
        }
        (Code::Unavailable, _) => Answer::Unknown,
        other => panic!("{other:?}"),
    }
}

/// Lets all tenants submit at once, so many jobs each.
async fn storm(door: &Arc<Door>, asked: &[(Name, usize)]) -> Vec<Told> {
    let all = asked.iter().map(|(tenant, count)| {
        let each = (0..*count).map(|_| {
            let (door, tenant) = (Arc::clone(door), tenant.clone());
            tokio::spawn(async move { door.submit(&tenant).await })
        });
        join_all(each.collect::<Vec<_>>())
    });
    let answers = soon(join_all(all.collect::<Vec<_>>())).await;
    let told = answers.into_iter().map(|answers| {
        let mut told = Told::default();
        for answer in answers {
            match answer.expect("no panic") {
                Answer::Admitted(id) => assert!(told.admitted.insert(id), "given twice"),
                Answer::Full => told.full += 1,
                Answer::Unknown => told.unknown += 1,
            }
        }
        told
    });
    told.collect()
}

/// The jobs that each tenant has, by the rows; the counters must say the same.
async fn counted(dir: &Path) -> Vec<BTreeSet<String>> {
    let store = SqliteStore::open(&dir.join("faulty.db")).await;
    let store = store.expect("nobody else has it");
    let depths = store.depths().await.expect("a read");
    let mut rows = Vec::new();
    for tenant in tenants() {
        let listed = store.list(&ListQuery::all(tenant.clone())).await;
        let jobs = listed.expect("a read").jobs;
        assert!(jobs.iter().all(|job| job.state.is_waiting()));
        let counter = depths
            .iter()
            .filter(|(lane, state, _)| lane.tenant == tenant && state.is_waiting());
        let counter: i64 = counter.map(|(_, _, jobs)| jobs).sum();
        assert_eq!(usize::try_from(counter), Ok(jobs.len()), "{tenant}");
        rows.push(jobs.iter().map(|job| job.key.id.to_string()).collect());
    }
    store.close().await;
    rows
}

/// Goal: with ten times the quota asked for by half of twenty tenants, each of these gets exactly its quota,
/// everybody else all that they ask for, and the counters are those of the rows, also after the store has
/// died in the middle of it. Method: the store dies after the first few commits; what is there then is
/// counted, and the storm comes again upon what it left.
/// `PACENOTE_TEST_QUOTA` says how many jobs of a tenant may wait (20).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_submits_gets_exactly_the_quota_and_harms_no_other_tenant() {
    let quota = count_of("PACENOTE_TEST_QUOTA", 20);
    let dir = folder();
    let tenants = tenants();
    let ask = |tenant: usize, left: usize| if tenant < STORMING { 10 * quota } else { left };
    let store = Faulty::open(dir.path()).await;
    let door = Door::open(&store, quota).await;
    let asked: Vec<_> = tenants
        .iter()
        .enumerate()
        .map(|(n, tenant)| (tenant.clone(), ask(n, quota)))
        .collect();
    // However they fall, all these submits do not fit into so few commits.
    store.fail_every_commit_after(quota.div_ceil(10), fault());
    let before = storm(&door, &asked).await;
    // As with the death of a process, nothing is drained or closed.
    drop(door);
    store.let_go().await;
    let left = counted(dir.path()).await;
    let unknown: usize = before.iter().map(|told| told.unknown).sum();
    assert!(unknown > 0, "the store died too late");
    assert!(
        left.iter().any(|rows| !rows.is_empty()),
        "it died too early"
    );
    for (n, (told, rows)) in before.iter().zip(&left).enumerate() {
        assert!(n < STORMING || told.full == 0, "{} has room", tenants[n]);
        assert!(
            told.admitted.is_subset(rows),
            "one that was acknowledged is lost"
        );
        assert!(rows.len() <= quota);
        assert!(rows.len() - told.admitted.len() <= told.unknown);
    }

    let store = Faulty::open(dir.path()).await;
    let door = Door::open(&store, quota).await;
    let asked: Vec<_> = tenants
        .iter()
        .zip(&left)
        .enumerate()
        .map(|(n, (tenant, rows))| (tenant.clone(), ask(n, quota - rows.len())))
        .collect();
    let after = storm(&door, &asked).await;
    for (n, (told, rows)) in after.iter().zip(&left).enumerate() {
        assert_eq!(told.unknown, 0);
        assert_eq!(told.admitted.len(), quota - rows.len(), "{}", tenants[n]);
        assert_eq!(told.full, asked[n].1 - told.admitted.len());
    }
    // All are full now, however they got there.
    for tenant in &tenants {
        assert!(matches!(door.submit(tenant).await, Answer::Full));
    }
    drop(door);
    store.let_go().await;
    for ((rows, left), told) in counted(dir.path()).await.iter().zip(&left).zip(&after) {
        assert_eq!(rows.len(), quota);
        let expected: BTreeSet<_> = left.union(&told.admitted).cloned().collect();
        assert_eq!(*rows, expected);
    }
}
