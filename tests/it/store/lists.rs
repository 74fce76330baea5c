//! Rules: pages and filters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pacenote::job::event::JobError;
use pacenote::job::name::{BatchId, JobId, Name};
use pacenote::job::{Change, Job, JobState, Outcome};
use pacenote::store::{ListQuery, Purge};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::bench::{Bench, NewJobBuilder, cancel, demand, query};

pub(crate) async fn a_list_is_newest_first_in_pages(bench: Bench) {
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(bench.submit(bench.new_job()).await.key.id);
        bench.submit(bench.new_job().tenant("other")).await;
    }
    ids.reverse();
    assert_eq!(bench.list(query("default")).await, ids);
    assert_eq!(bench.list(query("nobody")).await, []);
    let mut paged = Vec::new();
    loop {
        let page = ListQuery {
            before_id: paged.last().copied(),
            limit: 3,
            ..query("default")
        };
        let page = bench.list(page).await;
        if page.is_empty() {
            break;
        }
        // What comes meanwhile is newer than any page that follows.
        bench.submit(bench.new_job()).await;
        paged.extend(page);
    }
    assert_eq!(paged, ids);
}

/// Goal: every filter, alone and together with others, gives what a filter over everything gives.
pub(crate) async fn filters_hold_together(bench: Bench) {
    for index in 0..24 {
        bench.pass(Duration::from_secs(1));
        let new = bench
            .new_job()
            .job_type(["work", "play"][index % 2])
            .queue(["default", "q2", "q3"][index % 3])
            .idempotent(&format!("key {index}"), "print");
        let committed = bench.commit(vec![new.hand_over()], vec![]).await;
        if index % 4 != 0 {
            bench
                .finish(&committed.claimed[0].job, Outcome::Succeeded(None))
                .await;
        }
    }
    let all = bench.all().await;
    let times = [None, Some(all[12].created_at)];
    let states = [
        vec![],
        vec![JobState::Running],
        vec![JobState::Running, JobState::Succeeded],
    ];
    let types = [vec![], vec![Name::of("work")], vec![Name::of("none")]];
    let queues = [vec![], vec![Name::of("q2"), Name::of("q3")]];
    let keys = [None, Some("key 7".to_owned()), Some("key".to_owned())];
    for case in 0..3 * 3 * 2 * 2 * 2 * 2 * 3 {
        let query = ListQuery {
            states: states[case % 3].clone(),
            types: types[case / 3 % 3].clone(),
            queues: queues[case / 9 % 2].clone(),
            created_after: times[case / 18 % 2],
            created_before: times[case / 36 % 2],
            before_id: [None, Some(all[5].key.id)][case / 72 % 2],
            idempotency_key: keys[case / 144 % 3].clone(),
            ..query("default")
        };
        let expected: Vec<_> = all
            .iter()
            .filter(|job| {
                let key = &query.idempotency_key;
                query.admits(job) && (key.is_none() || job.spec.idempotency_key == *key)
            })
            .map(|job| job.key.id)
            .collect();
        assert_eq!(bench.list(query.clone()).await, expected, "{query:?}");
    }
}

/// What a job may be like: labels and reasons that look like other members of the stored JSON, too.
const LABELS: [(&str, &str); 6] = [
    ("team", "docs"),
    ("team", "docs2"),
    ("reason", "BROKEN"),
    ("fingerprint", "print"),
    ("odd", "a\"b\\c\u{0}d\u{e9}"),
    ("empty", ""),
];
const REASONS: [&str; 3] = ["BROKEN", "BAD", "B"];

fn batch(number: u32) -> BatchId {
    BatchId::new(Uuid::from_u128(u128::from(number)))
}

fn some_job(bench: &Bench, random: &mut SmallRng) -> NewJobBuilder {
    bench.new_job().spec(|spec| {
        for (name, value) in LABELS {
            if random.random_bool(0.4) {
                spec.labels.insert(name.to_owned(), value.to_owned());
            }
        }
        if random.random_bool(0.5) {
            spec.batch_id = Some(batch(random.random_range(0..3)));
        }
        spec.retry_policy.max_attempts = random.random_range(1..3);
        spec.timeouts.total_timeout = Some(Duration::from_secs(3600));
    })
}

/// Takes the oldest waiting jobs a step on, each in a way of its own.
async fn live_on(bench: &Bench, random: &mut SmallRng) {
    let places = random.random_range(0..4);
    let claimed = bench.commit(vec![], vec![demand("work", places)]).await;
    for claimed in claimed.claimed {
        let job = claimed.job;
        let reason = REASONS[random.random_range(0..REASONS.len())];
        let mut error = JobError::retryable(reason, "\"reason\":\"BAD\"");
        error.metadata = [("reason".to_owned(), "BAD".to_owned())].into();
        match random.random_range(0..6) {
            0 => drop(bench.finish(&job, Outcome::Succeeded(None)).await),
            1 | 2 => drop(bench.finish(&job, Outcome::Failed(error)).await),
            3 => drop(bench.change(&job.key, cancel()).await),
            4 => {
                let steady_now = job.stall_at.expect("it runs");
                let stall = Change::Stall {
                    attempt: job.attempt,
                    steady_now,
                };
                bench.change(&job.key, stall).await;
            }
            _ => {}
        }
    }
}

/// A query that wants something of everything, now and then.
fn some_query(all: &[Arc<Job>], random: &mut SmallRng) -> ListQuery {
    let mut query = query("default");
    if random.random_bool(0.5) {
        let states = JobState::ALL.into_iter();
        query.states = states.filter(|_| random.random_bool(0.3)).collect();
    }
    if random.random_bool(0.3) {
        let (name, value) = LABELS[random.random_range(0..LABELS.len())];
        query.labels.insert(name.to_owned(), value.to_owned());
    }
    if random.random_bool(0.2) {
        query.labels.insert("empty".to_owned(), String::new());
    }
    if random.random_bool(0.2) {
        query.batch_id = Some(batch(random.random_range(0..4)));
    }
    if random.random_bool(0.2) {
        query.reasons = vec![REASONS[random.random_range(0..REASONS.len())].to_owned()];
    }
    query.stalled_only = random.random_bool(0.1);
    let times = [
        &mut query.created_after,
        &mut query.created_before,
        &mut query.ended_after,
        &mut query.ended_before,
    ];
    for time in times {
        if random.random_bool(0.1)
            && let Some(job) = all.get(random.random_range(0..all.len().max(1)))
        {
            *time = Some(job.ended_at.unwrap_or(job.created_at));
        }
    }
    query.limit = random.random_range(1..6);
    query.rows = random.random_range(1..12);
    query
}

/// What a query means, in words of its own.
fn is_meant(query: &ListQuery, job: &Job) -> bool {
    let one_of = |empty: bool, holds: bool| empty || holds;
    let ended = job.ended_at.map(|at| at.as_micros());
    let micros = |at: pacenote::job::time::Timestamp| at.as_micros();
    let created = micros(job.created_at);
    let reason = job.detail.error.as_ref().map(|error| error.reason.clone());
    let labels: BTreeMap<_, _> = job.spec.labels.clone();
    one_of(query.states.is_empty(), query.states.contains(&job.state))
        && query
            .labels
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
        && (query.batch_id.is_none() || query.batch_id == job.spec.batch_id)
        && one_of(
            query.reasons.is_empty(),
            reason.is_some_and(|reason| query.reasons.contains(&reason)),
        )
        && (!query.stalled_only || job.stalled_since.is_some())
        && query.created_after.is_none_or(|at| created >= micros(at))
        && query.created_before.is_none_or(|at| created < micros(at))
        && query
            .ended_after
            .is_none_or(|at| ended.is_some_and(|ended| ended >= micros(at)))
        && query
            .ended_before
            .is_none_or(|at| ended.is_some_and(|ended| ended < micros(at)))
}

/// Goal: whatever is asked for, in pages of whatever size, however few jobs each may look at, the pages
/// together are what a look at every job gives. Method: random lives, random queries.
pub(crate) async fn pages_together_are_what_a_look_at_every_job_gives(bench: Bench) {
    let seed: u64 = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..40 {
        bench.pass(Duration::from_secs(1));
        bench.submit(some_job(&bench, &mut random)).await;
        live_on(&bench, &mut random).await;
    }
    let all = bench.all().await;
    let mut found_some = 0;
    for _ in 0..150 {
        let asked = some_query(&all, &mut random);
        let meant = all.iter().filter(|job| is_meant(&asked, job));
        let meant: Vec<JobId> = meant.map(|job| job.key.id).collect();
        found_some += usize::from(!meant.is_empty());
        let mut next = asked.clone();
        let mut found = Vec::new();
        loop {
            let part = bench.store().list(&next).await.expect("a read");
            assert!(part.jobs.len() <= next.limit);
            found.extend(part.jobs.iter().map(|job| job.key.id));
            let Some(through) = part.through else { break };
            let on = next.before_id.is_none_or(|before| through < before);
            assert!(on, "seed {seed}: it does not go on: {asked:?}");
            next.before_id = Some(through);
        }
        assert_eq!(found, meant, "seed {seed}: {asked:?}");
    }
    assert!(found_some > 20, "seed {seed}: {found_some}");
}

/// Goal: a job that is there and matches from the first page to the last is shown once, and nothing is
/// shown twice. Method: between pages, jobs are submitted, move on and are removed, at random.
pub(crate) async fn a_job_that_is_there_throughout_is_listed_once(bench: Bench) {
    let seed: u64 = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..30 {
        bench.submit(some_job(&bench, &mut random)).await;
    }
    for round in 0..40 {
        let first = bench.all().await;
        let asked = some_query(&first, &mut random);
        let matching = |jobs: &[Arc<Job>]| -> BTreeSet<JobId> {
            let meant = jobs.iter().filter(|job| is_meant(&asked, job));
            meant.map(|job| job.key.id).collect()
        };
        let mut throughout = matching(&first);
        let mut next = asked.clone();
        let mut shown = Vec::new();
        loop {
            let part = bench.store().list(&next).await.expect("a read");
            shown.extend(part.jobs.iter().map(|job| job.key.id));
            next.before_id = part.through;
            if next.before_id.is_none() {
                break;
            }
            bench.pass(Duration::from_secs(1));
            match random.random_range(0..3) {
                0 => drop(bench.submit(some_job(&bench, &mut random)).await),
                1 => live_on(&bench, &mut random).await,
                _ => {
                    let all = bench.all().await;
                    let over = all.iter().filter(|job| job.state.is_terminal());
                    let over: Vec<_> = over.collect();
                    if over.len() > 5 {
                        let job = over[random.random_range(0..over.len())];
                        bench.purge(vec![Purge::Job(job.key.clone())]).await;
                    }
                }
            }
            let now = matching(&bench.all().await);
            throughout = throughout.intersection(&now).copied().collect();
        }
        let once: BTreeSet<JobId> = shown.iter().copied().collect();
        assert_eq!(once.len(), shown.len(), "seed {seed}, round {round}: twice");
        let missed: Vec<_> = throughout.difference(&once).collect();
        assert!(
            missed.is_empty(),
            "seed {seed}, round {round}: {missed:?} of {asked:?}"
        );
    }
}

pub(crate) async fn a_list_looks_at_no_more_jobs_than_it_may(bench: Bench) {
    let news = (0..10).map(|_| bench.new_job().entry()).collect();
    bench.commit(news, vec![]).await;
    let rare = ListQuery {
        types: vec![Name::of("rare")],
        rows: 4,
        ..query("default")
    };
    let all = bench.all().await;
    let part = bench.store().list(&rare).await.expect("a read");
    assert_eq!((part.jobs.len(), part.through), (0, Some(all[3].key.id)));
    let next = ListQuery {
        before_id: part.through,
        rows: 7,
        ..rare
    };
    let part = bench.store().list(&next).await.expect("a read");
    assert_eq!(
        (part.jobs.len(), part.through),
        (0, None),
        "six are no seven"
    );
}
