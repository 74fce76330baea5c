//! Jobs that share a concurrency key, in a pool: no more of them at once than may, and each comes to run.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::time::{Clock, SystemClock, Timestamp};
use pacenote::job::{JobSpec, NewJob, Outcome};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::queue::default_tenant;
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{ClaimTerms, Entry, Group, JobStore};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::harness::{Puppet, Puppets, Setup, TestServer, folder, soon};
use crate::life::{check_finished, key, settings, states};

/// Puts jobs into a store that no server has open. Answers their ids.
async fn fill(dir: &Path, specs: impl IntoIterator<Item = JobSpec>) -> Vec<String> {
    let clock = SystemClock::new();
    let store = SqliteStore::open(&dir.join("pacenote.db"))
        .await
        .expect("a store");
    let mut ids = Vec::new();
    let mut entries = Vec::new();
    for spec in specs {
        let id = JobId::new(clock.new_id());
        ids.push(id.to_string());
        let key = JobKey {
            tenant: default_tenant(),
            id,
        };
        entries.push(Entry::Submit {
            new: Box::new(NewJob::new(key, spec, None)),
            hand_over: None,
        });
    }
    let group = Group {
        entries,
        demand: vec![],
        room: HashMap::new(),
        key_limits: Arc::default(),
        claimants: [(
            0,
            ClaimTerms {
                worker_id: String::new(),
                heard_at: clock.steady(),
                lease_until: clock.steady(),
                term: None,
            },
        )]
        .into(),
        now: clock.now(),
    };
    store.commit(group).await.expect("stored");
    store.close().await;
    ids
}

fn spec(job_type: &'static str, concurrency_key: Option<&'static str>) -> JobSpec {
    let mut spec = JobSpec {
        concurrency_key: concurrency_key.map(Name::of),
        ..JobSpec::of(Name::of(job_type))
    };
    spec.retry_policy.initial_backoff = Duration::from_millis(2);
    spec.retry_policy.max_attempts = 100;
    spec
}

/// How an attempt ends, by chance; in the end all of them succeed.
fn end(puppet: Puppet, random: &mut StdRng) {
    let again = JobError::retryable("BROKEN", "again");
    let outcome = match random.random_range(0..7) {
        _ if puppet.attempt.number > 4 => Outcome::Succeeded(None),
        0 => Outcome::Failed(JobError::permanent("BROKEN", "no use")),
        1 => Outcome::Failed(again),
        2 => Outcome::Failed(again.with_retry_after(Duration::ZERO)),
        3 => Outcome::Snoozed(Duration::from_millis(2)),
        4 => Outcome::HandedBack,
        _ => Outcome::Succeeded(None),
    };
    puppet.end(outcome);
}

/// How many jobs of each key run.
async fn running(
    server: &TestServer,
    keys: &HashMap<String, Option<&'static str>>,
) -> BTreeMap<&'static str, usize> {
    let request = pb::ListRequest {
        page_size: 1_000,
        states: vec![State::Running as i32, State::Cancelling as i32],
        ..pb::ListRequest::default()
    };
    let mut running = BTreeMap::new();
    for job in server.all_jobs(request).await {
        if let Some(key) = keys[&job.job_id] {
            *running.entry(key).or_default() += 1;
        }
    }
    running
}

/// Goal: under load, with ends of every kind, cancels, lost leases and a server that is stopped in between,
/// one job of a key runs at a time, and all of them come to their end.
#[tokio::test]
async fn one_job_of_a_key_runs_at_a_time_and_all_come_to_their_end() {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = folder();
    let kinds = [
        ("puppet", Some("k")),
        ("puppet", None),
        ("other", Some("k")),
        ("other", Some("l")),
    ];
    let kinds: Vec<_> = kinds.iter().cycle().take(40).copied().collect();
    let ids = fill(
        dir.path(),
        kinds.iter().map(|(job_type, key)| spec(job_type, *key)),
    )
    .await;
    let keys: HashMap<_, _> = ids
        .iter()
        .cloned()
        .zip(kinds.iter().map(|(_, key)| *key))
        .collect();
    for round in 0..2 {
        let puppets = Puppets::default();
        let server = Setup::on(dir.path())
            .job_type("puppet", puppets.clone())
            .job_type("other", puppets.clone())
            .start()
            .await;
        let moves = if round == 0 { 25 } else { usize::MAX };
        let mut held: Vec<Puppet> = Vec::new();
        for _ in 0..moves {
            server.queue.settle().await;
            while !puppets.is_idle().await {
                held.push(puppets.next().await);
            }
            let running = running(&server, &keys).await;
            assert!(running.values().all(|running| *running <= 1), "{running:?}");
            if held.is_empty() {
                let all = server.all_jobs(pb::ListRequest::default()).await;
                if all.iter().all(|job| job.end_time.is_some()) {
                    break;
                }
                // Somebody is on the way, or will be once its time has come.
                held.push(puppets.next().await);
                continue;
            }
            if random.random_bool(0.05) {
                let all = Timestamp::from_micros(i64::MAX);
                server
                    .queue
                    .sweep_leases(all)
                    .await
                    .expect("the store works");
                for lost in held.drain(..) {
                    soon(lost.attempt.stop.cancelled()).await;
                    lost.succeed();
                }
                continue;
            }
            let puppet = held.swap_remove(random.random_range(0..held.len()));
            let job = puppet.attempt.key.id.to_string();
            match random.random_range(0..8) {
                0 => drop(server.cancel(&job).await),
                1 => drop(server.cancel(&ids[random.random_range(0..ids.len())]).await),
                _ => {}
            }
            let number = puppet.attempt.number;
            end(puppet, &mut random);
            // Its place is free again once its end is stored.
            soon(async {
                loop {
                    let seen = server.get(&job).await;
                    let ended = seen.attempt != i32::try_from(number).expect("few")
                        || !matches!(seen.state(), State::Running | State::Cancelling);
                    if ended {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        if round == 1 {
            for id in &ids {
                check_finished(&server.log(id).await);
            }
        }
        // Nothing begins from here on; what has begun is handed back.
        server.begin_stop();
        soon(server.queue.drained()).await;
        server.queue.settle().await;
        while !puppets.is_idle().await {
            held.push(puppets.next().await);
        }
        for puppet in held {
            puppet.end(Outcome::HandedBack);
        }
        server.stop().await.expect("a clean end");
    }
}

/// Goal: ten thousand jobs whose key is full, at the head of their lane, do not hold up the one behind
/// them; and cost nothing from then on.
#[tokio::test]
async fn ten_thousand_jobs_of_a_full_key_do_not_hold_up_others() {
    const JOBS: usize = 10_000;
    let dir = folder();
    let full = (0..JOBS).map(|_| JobSpec {
        priority: 1,
        ..spec("puppet", Some("k"))
    });
    let ids = fill(dir.path(), full.chain([spec("puppet", None)])).await;
    let puppets = Puppets::default();
    let two = settings(|settings| settings.concurrency = Some(2));
    let setup = Setup::on(dir.path()).job_type_with("puppet", two, puppets.clone());
    let server = setup.start().await;
    let (first, second) = (puppets.next().await, puppets.next().await);
    assert_eq!(first.attempt.key, key(&ids[0]));
    assert_eq!(second.attempt.key, key(&ids[JOBS]), "the one without a key");
    // More room that is none: each waits again, and no more run.
    let queue = Name::of("default");
    let unblocked = server.queue.unblock(&queue, 3).await;
    assert_eq!(unblocked.expect("the store works"), 3);
    for (ended, puppet) in [(1, first), (2, second)] {
        puppet.succeed();
        let next = if ended == 1 {
            Some(puppets.next().await)
        } else {
            None
        };
        server.queue.settle().await;
        assert!(puppets.is_idle().await, "one of the key runs");
        if let Some(next) = next {
            assert_eq!(next.attempt.key, key(&ids[1]), "in their order");
            next.succeed();
            assert_eq!(puppets.next().await.attempt.key, key(&ids[2]));
        }
    }
    let waits = server.get(&ids[JOBS - 1]).await;
    assert_eq!(waits.state(), State::Blocked);
    let log = server.log(&ids[JOBS - 1]).await;
    let held = (State::Blocked, "CONCURRENCY_KEY");
    assert_eq!(states(&log), [(State::Queued, ""), held]);
    let request = pb::ListRequest {
        page_size: 10,
        states: vec![State::Running as i32],
        ..pb::ListRequest::default()
    };
    let listed = server.client.clone().list(request).await.expect("good");
    assert_eq!(listed.into_inner().jobs.len(), 1);
    server.stop().await.expect("a clean end");
}
