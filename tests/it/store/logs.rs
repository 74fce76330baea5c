//! Rules: any part of a log, whole segments at a time.

use pacenote::job::event::{LogLevel, LogLine};
use pacenote::job::name::JobKey;
use pacenote::job::payload::Payload;
use pacenote::job::{Outcome, Report};
use pacenote::store::{LogRange, Purge};

use super::bench::{Bench, output};

/// A job whose log has segments of 2, 3, 3, 3 and 3 events.
async fn job_with_log(bench: &Bench) -> JobKey {
    let committed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let job = &committed.claimed[0].job;
    for part in 0..4 {
        let line = |index| {
            let text = format!("line {part} {index} {}", "x".repeat(1000));
            Report::Log(LogLine::new(LogLevel::Info, text))
        };
        bench.report(job, (0..3).map(line).collect()).await;
    }
    job.key.clone()
}

async fn read(
    bench: &Bench,
    key: &JobKey,
    after: i64,
    events: usize,
    bytes: usize,
) -> Vec<(i64, i64)> {
    let range = LogRange {
        after,
        events,
        bytes,
    };
    let part = bench.store().log(key, range).await.expect("a read");
    let part = part.expect("the job is there");
    assert_eq!(part.job, bench.get(key).await.job);
    let segments = part.segments.iter();
    segments
        .map(|segment| (segment.first_sequence(), segment.last_sequence()))
        .collect()
}

const ALL: [(i64, i64); 5] = [(1, 2), (3, 5), (6, 8), (9, 11), (12, 14)];

pub(crate) async fn a_log_is_read_from_any_place(bench: Bench) {
    let key = job_with_log(&bench).await;
    for after in 0..14 {
        let whole = read(&bench, &key, after, 1000, 1 << 20).await;
        let skipped = ALL.iter().filter(|(_, last)| *last <= after).count();
        assert_eq!(whole, ALL[skipped..], "after {after}");
    }
    for after in [14, 15, 1 << 40, i64::MAX] {
        assert_eq!(read(&bench, &key, after, 10, 1 << 20).await, []);
    }
    let range = LogRange {
        after: 0,
        events: 1,
        bytes: 1,
    };
    let unknown = bench.new_job().new.key;
    assert_eq!(bench.store().log(&unknown, range).await, Ok(None));
}

pub(crate) async fn a_log_is_read_within_limits_of_events_and_bytes(bench: Bench) {
    let key = job_with_log(&bench).await;
    let whole = 1 << 20;
    for (events, segments) in [(0, 1), (1, 1), (2, 1), (3, 2), (5, 2), (6, 3), (14, 5)] {
        let part = read(&bench, &key, 0, events, whole).await;
        assert_eq!(part, ALL[..segments], "{events} events");
    }
    // The first segment holds two small events, each other one three lines of a thousand bytes.
    for (bytes, segments) in [(0, 1), (1, 1), (1000, 2), (4000, 3), (100_000, 5)] {
        let part = read(&bench, &key, 0, 1000, bytes).await;
        assert_eq!(part, ALL[..segments], "{bytes} bytes");
    }
    assert_eq!(read(&bench, &key, 7, 1, whole).await, [(6, 8)]);
    assert_eq!(read(&bench, &key, 8, 1, 1).await, [(9, 11)]);
}

/// Limits count from what is kept, not from what was asked for.
pub(crate) async fn a_log_without_its_front_is_read_from_what_is_left(bench: Bench) {
    let key = job_with_log(&bench).await;
    let job = bench.get(&key).await.job;
    bench.finish(&job, Outcome::Succeeded(None)).await;
    bench.purge(vec![Purge::Events(key.clone(), 6)]).await;
    let left = [(6, 8), (9, 11), (12, 14), (15, 15)];
    for after in [0, 1, 4, 5, 6, 7] {
        assert_eq!(read(&bench, &key, after, 1, 1 << 20).await, left[..1]);
        assert_eq!(read(&bench, &key, after, 100, 1).await, left[..1]);
    }
    assert_eq!(read(&bench, &key, 0, 4, 1 << 20).await, left[..2]);
    assert_eq!(read(&bench, &key, 8, 4, 1 << 20).await, left[1..3]);
    assert_eq!(read(&bench, &key, 0, 100, 1 << 20).await, left);
}

/// Goal: one commit of more events than a segment takes, and of more bytes, gives several segments
/// without a hole. Method: the bench reads the whole log after each commit.
pub(crate) async fn a_log_stays_dense_across_segments(bench: Bench) {
    let committed = bench
        .commit(vec![bench.new_job().hand_over()], vec![])
        .await;
    let job = &committed.claimed[0].job;
    let lines = (0..700).map(|line| output(Payload::text(format!("{line}\n"))));
    bench.report(job, lines.collect()).await;
    let chunks = (0..5).map(|_| output(Payload::data(vec![7; 200_000])));
    bench.report(job, chunks.collect()).await;
    let log = bench.log(&job.key).await;
    assert_eq!(log.len(), 2 + 700 + 5);
    let segments = read(&bench, &job.key, 0, 10_000, 1 << 30).await;
    assert_eq!(segments[..4], [(1, 2), (3, 258), (259, 514), (515, 702)]);
    assert_eq!(segments.len(), 4 + 5);
}
