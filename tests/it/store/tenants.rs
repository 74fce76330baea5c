//! Rules: the log of all jobs of a tenant, and its jobs, part by part.

use std::collections::BTreeSet;

use pacenote::job::name::{BatchId, JobId, Name};
use pacenote::job::payload::Payload;
use pacenote::job::{JobSpec, Outcome};
use pacenote::store::{JobFilter, Purge, ScanQuery, TenantLog, TenantRange};

use super::bench::{Bench, output};

fn tenant() -> Name {
    Name::of("default")
}

async fn part(
    bench: &Bench,
    after: i64,
    events: usize,
    bytes: usize,
    segments: usize,
) -> TenantLog {
    let range = TenantRange {
        tenant: tenant(),
        after,
        events,
        bytes,
        segments,
    };
    bench.store().log_after(&range).await.expect("a read")
}

/// Position, id and first and last sequence of each segment.
fn places(log: &TenantLog) -> Vec<(i64, JobId, i64, i64)> {
    let segments = log.segments.iter();
    segments
        .map(|placed| {
            let segment = &placed.segment;
            let id = placed.job.key.id;
            (
                placed.position,
                id,
                segment.first_sequence(),
                segment.last_sequence(),
            )
        })
        .collect()
}

async fn head(bench: &Bench) -> i64 {
    bench.store().head().await.expect("a read")
}

/// Two jobs that talk in turn, and one of another tenant between them. Positions 1 to 16.
async fn talked(bench: &Bench) -> [JobId; 2] {
    let committed = bench
        .commit(
            vec![bench.new_job().hand_over(), bench.new_job().hand_over()],
            vec![],
        )
        .await;
    let [one, two] = [0, 1].map(|n| committed.claimed[n].job.clone());
    bench.submit(bench.new_job().tenant("other")).await;
    for job in [&one, &two, &one] {
        let lines = (0..3).map(|_| output(Payload::text("x".repeat(1_000))));
        bench.report(job, lines.collect()).await;
    }
    bench.finish(&two, Outcome::Succeeded(None)).await;
    bench.submit(bench.new_job().tenant("other")).await;
    [one.key.id, two.key.id]
}

pub(crate) async fn positions_order_the_events_of_all_jobs(bench: Bench) {
    assert_eq!(head(&bench).await, 0);
    let nothing = part(&bench, 0, 10, 10, 10).await;
    assert_eq!(
        (nothing.segments.len(), nothing.through, nothing.more),
        (0, 0, false)
    );
    let [one, two] = talked(&bench).await;
    assert_eq!(head(&bench).await, 16);
    let all = [
        (1, one, 1, 2),
        (3, two, 1, 2),
        (6, one, 3, 5),
        (9, two, 3, 5),
        (12, one, 6, 8),
        (15, two, 6, 6),
    ];
    let log = part(&bench, 0, 1_000, 1 << 20, 1_000).await;
    assert_eq!(places(&log), all);
    assert_eq!((log.through, log.more, log.purged_through), (16, false, 0));
    for placed in &log.segments {
        assert_eq!(placed.job, bench.get(&placed.job.key).await.job);
    }
    // From any place: the segment that holds the next position is among them.
    for after in 0..20 {
        let log = part(&bench, after, 1_000, 1 << 20, 1_000).await;
        let rest = all
            .iter()
            .filter(|(position, _, first, last)| position + last - first > after);
        assert_eq!(
            places(&log),
            rest.copied().collect::<Vec<_>>(),
            "after {after}"
        );
        assert_eq!((log.through, log.more), (after.max(16), false));
    }
    let far = part(&bench, i64::MAX, 10, 10, 10).await;
    assert_eq!((far.segments.len(), far.through), (0, i64::MAX));
}

/// Whatever the bounds, the parts together are the whole.
pub(crate) async fn parts_of_a_tenants_log_go_on_where_the_one_before_ended(bench: Bench) {
    talked(&bench).await;
    let whole = part(&bench, 0, 1_000, 1 << 20, 1_000).await;
    for (events, bytes, segments, first) in [
        (1, 1 << 20, 1_000, 1),
        (2, 1 << 20, 1_000, 1),
        (3, 1 << 20, 1_000, 2),
        (1_000, 1, 1_000, 1),
        (1_000, 3_000, 1_000, 3),
        (1_000, 1 << 20, 1, 1),
        (1_000, 1 << 20, 2, 2),
        (1_000, 1 << 20, 3, 2),
        (0, 0, 0, 1),
    ] {
        let mut after = 0;
        let mut found = Vec::new();
        loop {
            let log = part(&bench, after, events, bytes, segments).await;
            if after == 0 {
                assert_eq!(log.segments.len(), first, "{events} {bytes} {segments}");
            }
            found.extend(places(&log));
            assert!(log.through > after || !log.more, "it gets on");
            after = log.through;
            if !log.more {
                break;
            }
        }
        assert_eq!(
            (found, after),
            (places(&whole), 16),
            "{events} {bytes} {segments}"
        );
    }
}

/// Goal: a hole behind the position that is asked for is passed over. Method: the segment before it is full,
/// whatever full means, and the bounds are as small as they may be.
pub(crate) async fn a_log_is_read_on_behind_a_hole(bench: Bench) {
    let key = |id| pacenote::job::name::JobKey {
        tenant: tenant(),
        id,
    };
    let [_, two] = talked(&bench).await;
    // Positions 3 and 4 go; 1 and 2, and 6 to 8, are another job's.
    bench.purge(vec![Purge::Events(key(two), 2)]).await;
    let log = part(&bench, 2, 1, 1, 1).await;
    assert!(log.through > 2 || !log.segments.is_empty(), "{log:?}");
    let mut after = 2;
    let mut found = 0;
    for _ in 0..20 {
        let log = part(&bench, after, 1, 1, 1).await;
        found += log.segments.len();
        after = log.through;
        if !log.more {
            break;
        }
    }
    assert_eq!((found, after), (4, 16));
}

/// Goal: whoever has looked once hears of every purge after that, also of one further back.
pub(crate) async fn every_purge_is_counted(mut bench: Bench) {
    let purges = async |bench: &Bench| part(bench, 0, 1, 1, 1).await.purges;
    let older = bench.finished(bench.new_job()).await;
    let newer = bench.finished(bench.new_job()).await;
    assert_eq!(purges(&bench).await, 0);
    bench.purge(vec![Purge::Job(newer.key.clone())]).await;
    assert_eq!(purges(&bench).await, 1);
    bench.purge(vec![Purge::Job(older.key.clone())]).await;
    assert_eq!(purges(&bench).await, 2);
    bench.crash().await;
    assert_eq!(purges(&bench).await, 2);
}

pub(crate) async fn what_was_purged_is_noted_by_position(mut bench: Bench) {
    let [one, two] = talked(&bench).await;
    let key = |id| pacenote::job::name::JobKey {
        tenant: tenant(),
        id,
    };
    let purged = async |bench: &Bench| part(bench, 0, 1, 1, 1).await.purged_through;
    // What is not finished is left alone.
    bench
        .purge(vec![Purge::Job(key(one)), Purge::Events(key(one), 5)])
        .await;
    assert_eq!(purged(&bench).await, 0);
    bench.purge(vec![Purge::Events(key(two), 2)]).await;
    assert_eq!(purged(&bench).await, 4);
    bench.purge(vec![Purge::Job(key(two))]).await;
    assert_eq!(purged(&bench).await, 15, "its last event");
    let older = bench.finished(bench.new_job()).await;
    let newer = bench.finished(bench.new_job()).await;
    bench.purge(vec![Purge::Job(newer.key.clone())]).await;
    let newest = purged(&bench).await;
    assert_eq!(newest, head(&bench).await);
    bench.purge(vec![Purge::Job(older.key.clone())]).await;
    assert_eq!(purged(&bench).await, newest, "it never falls");
    let other = TenantRange {
        tenant: Name::of("other"),
        after: 0,
        events: 10,
        bytes: 10,
        segments: 10,
    };
    let other = bench.store().log_after(&other).await.expect("a read");
    assert_eq!(other.purged_through, 0, "a tenant's own");
    bench.crash().await;
    assert_eq!((purged(&bench).await, head(&bench).await), (newest, newest));
    let next = bench.submit(bench.new_job()).await;
    let log = part(&bench, newest, 10, 1 << 20, 10).await;
    assert_eq!(
        places(&log),
        [(newest + 1, next.key.id, 1, 1)],
        "none is given twice"
    );
}

fn scan(filter: JobFilter) -> ScanQuery {
    ScanQuery {
        filter,
        unfinished: false,
        after: None,
        look_at: 1_000,
        limit: 1_000,
    }
}

/// Scans to the end, in parts.
async fn scanned(bench: &Bench, mut query: ScanQuery) -> Vec<JobId> {
    let mut found = Vec::new();
    loop {
        let part = bench.store().scan(&query).await.expect("a read");
        assert!(part.jobs.len() <= query.limit.max(1));
        for one in &part.jobs {
            let job = bench.get(&one.job.key).await.job;
            assert_eq!(one.job, job);
            let log = self::part(bench, one.position - 1, 1, 1, 1).await;
            let segment = &log.segments[0];
            assert_eq!(
                (segment.position, &segment.job.key),
                (one.position, &job.key)
            );
            assert_eq!(segment.segment.last_sequence(), job.last_sequence);
            found.push(one.job.key.id);
        }
        if part.through.is_none() {
            assert!(found.is_sorted(), "by id");
            return found;
        }
        assert!(part.through > query.after, "it gets on");
        query.after = part.through;
    }
}

pub(crate) async fn jobs_are_scanned_by_id_in_parts_of_any_size(bench: Bench) {
    let all = JobFilter::all_of(tenant());
    assert_eq!(scanned(&bench, scan(all.clone())).await, []);
    let mut jobs = Vec::new();
    let mut unfinished = Vec::new();
    for number in 0..7 {
        bench.submit(bench.new_job().tenant("other")).await;
        if number % 2 == 0 {
            jobs.push(bench.finished(bench.new_job()).await.key.id);
        } else {
            jobs.push(bench.submit(bench.new_job().job_type("idle")).await.key.id);
            unfinished.extend(jobs.last().copied());
        }
    }
    for (look_at, limit) in [(1, 1), (2, 1), (1, 2), (3, 2), (7, 7), (8, 8), (0, 0)] {
        let query = ScanQuery {
            look_at,
            limit,
            ..scan(all.clone())
        };
        assert_eq!(
            scanned(&bench, query.clone()).await,
            jobs,
            "{look_at} {limit}"
        );
        let query = ScanQuery {
            unfinished: true,
            ..query
        };
        assert_eq!(
            scanned(&bench, query).await,
            unfinished,
            "{look_at} {limit}"
        );
    }
}

pub(crate) async fn a_scan_answers_what_its_filter_admits(bench: Bench) {
    let batch = BatchId::new(uuid::Uuid::from_u128(9));
    let label = |name: &str, value: &str| {
        let (name, value) = (name.to_owned(), value.to_owned());
        move |spec: &mut JobSpec| drop(spec.labels.insert(name.clone(), value.clone()))
    };
    let mut submit = Vec::new();
    for new in [
        bench.new_job(),
        bench.new_job().job_type("x"),
        bench.new_job().queue("q"),
        bench.new_job().spec(label("a", "1")),
        bench
            .new_job()
            .spec(label("a", "1"))
            .spec(label("b", "\u{0}")),
        bench.new_job().spec(|spec| spec.batch_id = Some(batch)),
    ] {
        submit.push(bench.submit(new).await);
    }
    let all = || JobFilter::all_of(tenant());
    let labels = |pairs: &[(&str, &str)]| JobFilter {
        labels: pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        ..all()
    };
    let names = |names: &[&'static str]| {
        names
            .iter()
            .map(|name| Name::of(name))
            .collect::<BTreeSet<_>>()
    };
    for (filter, expected) in [
        (all(), &[0, 1, 2, 3, 4, 5][..]),
        (
            JobFilter {
                types: names(&["x"]),
                ..all()
            },
            &[1],
        ),
        (
            JobFilter {
                types: names(&["x", "work"]),
                queues: names(&["q", "r"]),
                ..all()
            },
            &[2],
        ),
        (labels(&[("a", "1")]), &[3, 4]),
        (labels(&[("a", "1"), ("b", "\u{0}")]), &[4]),
        (labels(&[("a", "2")]), &[]),
        (
            JobFilter {
                batch_id: Some(batch),
                ..all()
            },
            &[5],
        ),
        (
            JobFilter {
                batch_id: Some(batch),
                types: names(&["x"]),
                ..all()
            },
            &[],
        ),
        (
            JobFilter {
                ids: [submit[0].key.id, submit[5].key.id].into(),
                ..all()
            },
            &[0, 5],
        ),
        (JobFilter::all_of(Name::of("nobody")), &[]),
    ] {
        let expected: Vec<JobId> = expected.iter().map(|n| submit[*n].key.id).collect();
        let query = ScanQuery {
            look_at: 2,
            ..scan(filter.clone())
        };
        assert_eq!(scanned(&bench, query).await, expected, "{filter:?}");
        let admitted = submit.iter().filter(|job| filter.admits(job));
        assert_eq!(admitted.map(|job| job.key.id).collect::<Vec<_>>(), expected);
    }
}
