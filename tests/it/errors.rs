//! The table of docs/errors.md: it has every reason that the code has and no other, and every reason of a
//! call is reached by a call, with the code and the details that the table promises.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pacenote::job::payload::Payload;
use pacenote::pb;
use pacenote::pb::finish_request::Outcome as Told;
use pacenote::store::{Purge, ReadError, StoreError};
use tonic::Status;
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::errors_store::{FaultyServer, fault};
use crate::harness::{
    Puppets, Setup, TestServer, folder, reason_of, soon, submit_request, watch_request,
};
use crate::life::key;
use crate::workers::{Scene, id_of};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    std::fs::read_to_string(path).expect("the page")
}

/// The rows of the table under a heading: the reason, and what stands in its other columns.
pub(crate) fn rows(heading: &str) -> BTreeMap<String, Vec<String>> {
    let page = page();
    let (_, rest) = page.split_once(heading).expect("the heading");
    let part = rest.split("\n## ").next().unwrap_or_default();
    part.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| {
            let mut cells = row.split('|').map(str::trim);
            let reason = cells.next().unwrap_or_default().trim_end_matches('`');
            (reason.to_owned(), cells.map(str::to_owned).collect())
        })
        .collect()
}

/// The rows of the table under a heading: the reason, and what stands in its second column.
fn table(heading: &str) -> BTreeMap<String, String> {
    let rows = rows(heading).into_iter();
    rows.map(|(reason, cells)| (reason, cells[0].trim_matches('`').to_owned()))
        .collect()
}

/// Every `"UPPER_SNAKE"` of the sources that can be a reason, test modules left out.
fn reasons_in(places: &[&str]) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut reasons = BTreeSet::new();
    let mut paths: Vec<_> = places.iter().map(|place| root.join(place)).collect();
    while let Some(path) = paths.pop() {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.expect("a name");
        if path.is_dir() && name != "tests" {
            let entries = std::fs::read_dir(&path).expect("a folder");
            paths.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && name != "environment.rs" {
            let text = std::fs::read_to_string(&path).expect("a source");
            let code = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default();
            let lines = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            for line in lines {
                reasons.extend(
                    line.split('"')
                        .filter(|text| is_reason(text))
                        .map(str::to_owned),
                );
            }
        }
    }
    reasons
}

fn is_reason(text: &str) -> bool {
    let upper = |c: char| c.is_ascii_uppercase() || c == '_';
    let is_upper = text.len() >= 4 && text.chars().all(upper) && !text.starts_with('_');
    // Names of variables, and serde's word for a way to write names.
    is_upper && !text.starts_with("PACENOTE") && text != "SCREAMING_SNAKE_CASE"
}

#[test]
fn the_page_has_every_reason_of_the_code_and_no_other() {
    let keys = |heading| table(heading).into_keys().collect::<BTreeSet<_>>();
    let mut calls = keys("## Of calls");
    // Why `RetryMany` passed over a job: in its answer, not in an error.
    assert!(page().contains("`UNREADABLE`"));
    calls.insert("UNREADABLE".to_owned());
    assert_eq!(calls, reasons_in(&["grpc", "queue", "error.rs"]));
    let mut jobs = keys("## Of jobs");
    jobs.extend(keys("## Of changes of state"));
    assert_eq!(jobs, reasons_in(&["job", "worker", "executor"]));
}

/// Collects the refusals of calls, and holds each against its row.
struct Reached {
    table: BTreeMap<String, String>,
    seen: BTreeSet<String>,
}

impl Reached {
    fn add(&mut self, refused: &Status) {
        let (code, reason) = reason_of(refused);
        let row = self.table.get(&reason);
        let row = row.unwrap_or_else(|| panic!("{reason} is not in the table"));
        let name = format!("{code:?}");
        let squeezed = row.replace('_', "");
        assert!(
            squeezed.eq_ignore_ascii_case(&name),
            "{reason}: {row}, {name}"
        );
        let details = refused.get_error_details();
        let comes_back = matches!(row.as_str(), "UNAVAILABLE" | "RESOURCE_EXHAUSTED");
        assert_eq!(details.retry_info().is_some(), comes_back, "{reason}");
        self.seen.insert(reason);
    }
}

/// Goal: each reason of a call is reached through gRPC, with the code of its row. Method: one call each;
/// what a store does when it fails comes from a store that fails on demand.
#[tokio::test]
async fn every_reason_of_a_call_is_reached_by_a_call() {
    let mut reached = Reached {
        table: table("## Of calls"),
        seen: BTreeSet::new(),
    };
    let dir = folder();
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path())
        .config(|config| {
            config.watchers_max = 1;
            config.waiting_max = 1;
        })
        .job_type("puppet", puppets.clone());
    let server = setup.start().await;
    from_a_healthy_server(&server, &puppets, &mut reached).await;
    server.stop().await.expect("a clean end");
    from_a_failing_store(&mut reached).await;
    from_a_worker(&mut reached).await;
    let expected: BTreeSet<String> = reached.table.keys().cloned().collect();
    assert_eq!(reached.seen, expected);
}

fn metadata_of(status: &Status, name: &str) -> String {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has an ErrorInfo");
    info.metadata.get(name).cloned().unwrap_or_default()
}

async fn from_a_worker(reached: &mut Reached) {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let leased = scene.begin().await;
    let token = &leased.lease_token;
    let cancelled = scene.finish(token, Told::Cancelled(pb::Cancelled {})).await;
    reached.add(&cancelled.expect_err("nobody asked"));
    let ended = scene.finish(token, Told::HandBack(pb::HandBack {})).await;
    ended.expect("its end");
    let late = scene.finish(token, Told::Cancelled(pb::Cancelled {})).await;
    reached.add(&late.expect_err("the lease is gone"));
    // Who waits for work must not get it.
    scene.server.cancel(&id_of(&leased)).await;
    reached.add(&scene.one_worker_too_many().await);
    scene.stop().await;
}

async fn from_a_healthy_server(server: &TestServer, puppets: &Puppets, reached: &mut Reached) {
    let mut client = server.client.clone();
    let bad = pb::SubmitRequest {
        priority: 9_999,
        ..submit_request("puppet")
    };
    reached.add(&client.submit(bad).await.expect_err("out of bounds"));
    let unknown = client.submit(submit_request("pupet")).await;
    reached.add(&unknown.expect_err("unknown"));
    let nobody = Uuid::from_u128(1).to_string();
    let watch = server.try_watch(watch_request(&nobody)).await;
    reached.add(&watch.err().expect("no such job"));
    let keyed = pb::SubmitRequest {
        idempotency_key: "k".to_owned(),
        ..submit_request("puppet")
    };
    let job = server.submit(keyed.clone()).await;
    let other = pb::SubmitRequest {
        priority: 1,
        ..keyed
    };
    reached.add(&client.submit(other).await.expect_err("another request"));
    beyond_the_waiting_quota(server, reached).await;
    let puppet = puppets.next().await;
    let (of_retry, of_delete) = (job.job_id.clone(), job.job_id.clone());
    let retry = client.retry(pb::RetryRequest { job_id: of_retry }).await;
    let refused = retry.expect_err("it is not over");
    assert_eq!(metadata_of(&refused, "state"), "STATE_RUNNING");
    reached.add(&refused);
    let delete = client.delete(pb::DeleteRequest { job_id: of_delete });
    let refused = delete.await.expect_err("it is not over");
    assert_eq!(metadata_of(&refused, "state"), "STATE_RUNNING");
    reached.add(&refused);
    let ahead = pb::WatchJobRequest {
        after_sequence: Some(99),
        ..watch_request(&job.job_id)
    };
    reached.add(&server.try_watch(ahead).await.err().expect("ahead"));

    // More than any window holds, so that the watch still has to read when the job is gone.
    let watch = server.watch(&job.job_id, Some(0)).await;
    let second = server.try_watch(watch_request(&job.job_id)).await;
    reached.add(&second.err().expect("one too many"));
    for _ in 0..14 {
        let chunk = Payload::text("x".repeat(1_000_000));
        puppet
            .attempt
            .reporter
            .output("stdout", chunk)
            .await
            .expect("it is alive");
    }
    puppet.succeed();
    soon(async {
        while !crate::life::is_terminal(server.get(&job.job_id).await.state()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let purge = vec![Purge::Job(key(&job.job_id))];
    server.queue.purge(purge).await.expect("the store works");
    reached.add(&watch.to_error().await.1);

    let huge = pb::GetRequest {
        job_id: "x".repeat(9 * 1024 * 1024),
        view: 0,
    };
    reached.add(&client.get(huge).await.expect_err("beyond the codec"));
    server.queue.drain();
    let refused = client.submit(submit_request("puppet")).await;
    reached.add(&refused.expect_err("it drains"));
}

/// With room for one job that waits: it has a unique place, and is cancelled in the end.
async fn beyond_the_waiting_quota(server: &TestServer, reached: &mut Reached) {
    let mut client = server.client.clone();
    let later = prost_types::Duration {
        seconds: 3_600,
        nanos: 0,
    };
    let waits = pb::SubmitRequest {
        unique: Some(pb::UniquePolicy {
            key: "u".to_owned(),
            on_conflict: pb::unique_policy::OnConflict::Reject.into(),
            window: None,
        }),
        start: Some(pb::submit_request::Start::Delay(later)),
        ..submit_request("puppet")
    };
    let waiting = server.submit(waits.clone()).await;
    reached.add(&client.submit(waits.clone()).await.expect_err("taken"));
    let another = pb::SubmitRequest {
        unique: None,
        ..waits
    };
    reached.add(&client.submit(another).await.expect_err("full"));
    server.cancel(&waiting.job_id).await;
}

async fn from_a_failing_store(reached: &mut Reached) {
    let dir = folder();
    let server = FaultyServer::start(dir.path()).await;
    let mut client = server.client.clone();
    server.fail_next_list(ReadError::TooLong);
    let refused = client.list(pb::ListRequest::default()).await;
    reached.add(&refused.expect_err("it takes too long"));
    let listed = client.list(pb::ListRequest::default()).await;
    listed.expect("it is quicker now");
    for error in [
        StoreError::DiskFull,
        StoreError::Busy,
        StoreError::Internal("this test's fault".to_owned()),
        StoreError::Failed("this test's fault".to_owned()),
    ] {
        server.fail_next_commit(error.clone());
        let refused = client.submit(submit_request("any")).await;
        reached.add(&refused.expect_err("the store fails"));
        if error != fault() {
            client
                .submit(submit_request("any"))
                .await
                .expect("it works again");
        }
    }
}
