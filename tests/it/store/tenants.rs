//! Rules: all jobs of a tenant at once: its log in the order of commits, and its jobs in the order of ids.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pacenote::job::name::{JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::{Job, Outcome};
use pacenote::store::{JobFilter, Purge, ScanQuery, TenantLog, TenantRange};

use super::bench::{Bench, batch_id, output};

fn range(tenant: &str, after: i64) -> TenantRange {
    TenantRange {
        tenant: Name::new(tenant).expect("a name"),
        after,
        events: 1_000,
        bytes: 1 << 20,
        segments: 1_000,
    }
}

async fn read(bench: &Bench, range: TenantRange) -> TenantLog {
    let log = bench.store().log_after(&range).await.expect("a read");
    for segment in &log.segments {
        assert_eq!(segment.job.key.tenant, range.tenant);
        let last = segment.position + segment.segment.len() as i64 - 1;
        assert!(
            last > range.after && last <= log.through,
            "{range:?}: {log:?}"
        );
    }
    assert!(log.segments.is_sorted_by(|a, b| a.position < b.position));
    log
}

/// Everything of a tenant, read part by part: position, job and sequence of each event.
async fn events(bench: &Bench, part: TenantRange) -> Vec<(i64, JobKey, i64)> {
    let mut events = Vec::new();
    let mut after = part.after;
    loop {
        let log = read(
            bench,
            TenantRange {
                after,
                ..part.clone()
            },
        )
        .await;
        for placed in &log.segments {
            let first = placed.segment.first_sequence();
            for event in placed.segment.events_after(0) {
                let position = placed.position + event.sequence - first;
                if position > after {
                    events.push((position, placed.job.key.clone(), event.sequence));
                }
            }
        }
        assert!(log.through > after || !log.more, "it goes on: {log:?}");
        after = log.through;
        if !log.more {
            return events;
        }
    }
}

/// Jobs of two tenants by turns, each with a few segments.
async fn fill(bench: &Bench) -> Vec<JobKey> {
    let mut jobs = Vec::new();
    for index in 0..6 {
        let new = bench.new_job().tenant(["default", "other"][index % 2]);
        let committed = bench.commit(vec![new.hand_over()], vec![]).await;
        jobs.push(committed.claimed[0].job.clone());
    }
    for _ in 0..2 {
        for job in &jobs {
            let lines = (0..3).map(|_| output(Payload::text("x".repeat(100))));
            bench.report(job, lines.collect()).await;
        }
    }
    jobs.into_iter().map(|job| job.key.clone()).collect()
}

/// Goal: however small the parts, together they are the whole, and no position comes twice. Method: every
/// bound in turn, from every position.
pub(crate) async fn the_log_of_a_tenant_is_read_part_by_part(bench: Bench) {
    assert_eq!(bench.store().head().await, Ok(0));
    fill(&bench).await;
    let head = bench.store().head().await.expect("a read");
    assert_eq!(head, 6 * 8);
    for tenant in ["default", "other"] {
        let whole = events(&bench, range(tenant, 0)).await;
        assert_eq!(whole.len(), 3 * 8);
        for after in 0..=head + 1 {
            let expected: Vec<_> = whole
                .iter()
                .filter(|(at, ..)| *at > after)
                .cloned()
                .collect();
            let all = range(tenant, after);
            let parts = [
                TenantRange {
                    events: 1,
                    ..all.clone()
                },
                TenantRange {
                    bytes: 1,
                    ..all.clone()
                },
                TenantRange {
                    segments: 2,
                    ..all.clone()
                },
                TenantRange {
                    events: 7,
                    segments: 5,
                    ..all
                },
            ];
            for part in parts {
                assert_eq!(
                    events(&bench, part).await,
                    expected,
                    "{tenant} after {after}"
                );
            }
        }
    }
    let nobody = read(&bench, range("nobody", 0)).await;
    assert_eq!((nobody.segments.len(), nobody.more), (0, false));
    assert!(nobody.through >= head, "it need not look at that again");
}

pub(crate) async fn what_was_purged_is_said_and_the_head_never_falls(mut bench: Bench) {
    let keys = fill(&bench).await;
    let mut over = Vec::new();
    for key in &keys {
        let job = bench.get(key).await.job;
        over.push(bench.finish(&job, Outcome::Succeeded(None)).await);
    }
    let head = bench.store().head().await.expect("a read");
    let before = read(&bench, range("default", 0)).await;
    assert_eq!((before.purged_through, before.through), (0, head));
    // The front of the first job's log: its first segment, at positions 1 and 2.
    bench.purge(vec![Purge::Events(keys[0].clone(), 4)]).await;
    let log = read(&bench, range("default", 0)).await;
    assert_eq!(log.purged_through, 2);
    assert_eq!(read(&bench, range("other", 0)).await.purged_through, 0);
    // The newest of all.
    bench.purge(vec![Purge::Job(keys[5].clone())]).await;
    for _ in 0..2 {
        assert_eq!(bench.store().head().await, Ok(head));
        let log = read(&bench, range("other", 0)).await;
        assert_eq!((log.purged_through, log.through), (head, head));
        assert!(log.segments.iter().all(|placed| placed.job.key != keys[5]));
        assert_eq!(read(&bench, range("default", 0)).await.purged_through, 2);
        bench.crash().await;
    }
    bench.submit(bench.new_job()).await;
    assert_eq!(bench.store().head().await, Ok(head + 1));
    assert_eq!(events(&bench, range("default", head)).await.len(), 1);
}

/// A scan from part to part: each job with its position.
async fn scan(bench: &Bench, query: &ScanQuery) -> Vec<(Arc<Job>, i64)> {
    let mut found = Vec::new();
    let mut query = query.clone();
    loop {
        let scan = bench.store().scan(&query).await.expect("a read");
        assert!(scan.jobs.len() <= query.limit);
        for scanned in scan.jobs {
            let id = scanned.job.key.id;
            assert!(query.after.is_none_or(|after| after < id));
            assert!(scan.through.is_some_and(|through| id <= through));
            found.push((scanned.job, scanned.position));
        }
        match scan.through {
            None => return found,
            Some(through) => query.after = Some(through),
        }
    }
}

/// Goal: a scan in parts of any size gives what a look at every job gives. Method: all filters, alone and
/// together with others.
pub(crate) async fn a_scan_finds_every_job_that_is_asked_for(bench: Bench) {
    for index in 0..24 {
        let new = bench
            .new_job()
            .tenant(["default", "other"][usize::from(index % 5 == 0)])
            .job_type(["work", "play"][index % 2])
            .queue(["default", "q2"][index / 2 % 2])
            .batch(1 + index as u128 % 3)
            .spec(|spec| {
                let color = ["red", "blue"][index / 4 % 2].to_owned();
                spec.labels.insert("color".to_owned(), color);
            });
        let committed = bench.commit(vec![new.hand_over()], vec![]).await;
        if index % 3 == 0 {
            let job = committed.claimed[0].job.clone();
            bench.finish(&job, Outcome::Succeeded(None)).await;
        }
    }
    let all = bench.all().await;
    let log = read(&bench, range("default", 0)).await.segments;
    // The newest segment of each job is the last one that is put in.
    let newest = log.into_iter().map(|s| (s.job.key.clone(), s.position));
    let newest: BTreeMap<JobKey, i64> = newest.collect();
    let some_ids: BTreeSet<_> = all.iter().take(9).map(|job| job.key.id).collect();
    for case in 0..2_usize.pow(6) {
        let on = |bit: u32| case >> bit & 1 == 1;
        let mut filter = JobFilter::all_of(Name::of("default"));
        if on(0) {
            filter.types = [Name::of("work"), Name::of("none")].into();
        }
        if on(1) {
            filter.queues = [Name::of("q2")].into();
        }
        if on(2) {
            filter.batch_id = Some(batch_id(2));
        }
        if on(3) {
            filter.labels = [("color".to_owned(), "red".to_owned())].into();
        }
        if on(4) {
            filter.ids.clone_from(&some_ids);
        }
        let unfinished = on(5);
        let mut expected: Vec<_> = all
            .iter()
            .filter(|job| filter.admits(job) && !(unfinished && job.state.is_terminal()))
            .map(|job| (Arc::clone(job), newest[&job.key]))
            .collect();
        expected.sort_by_key(|(job, _)| job.key.id);
        for (look_at, limit) in [(1, 1), (5, 2), (100, 3), (3, 100), (100, 100)] {
            let query = ScanQuery {
                filter: filter.clone(),
                unfinished,
                after: None,
                look_at,
                limit,
            };
            assert_eq!(scan(&bench, &query).await, expected, "{query:?}");
        }
    }
}
