//! Progress: merged before it is stored, never going back, and merged again for who asks: lines 4, 12
//! and 13 of the watch contract. The rules alone are tested where they live.

use std::sync::Arc;
use std::time::Duration;

use pacenote::config::TypeSettings;
use pacenote::job::event::JobError;
use pacenote::job::policy::RetryPolicy;
use pacenote::job::progress::Progress;
use pacenote::job::time::Clock;
use pacenote::job::{Outcome, Report};
use pacenote::pb;
use pacenote::pb::job_event::Event;
use tokio::time::Instant;

use crate::harness::{
    Puppets, Setup, TestClock, TestServer, Watched, folder, log_line, output, progress,
    proto_duration, watch_request,
};

async fn server_with(dir: &tempfile::TempDir, interval: Duration) -> (TestServer, Puppets) {
    let puppets = Puppets::default();
    let settings = TypeSettings {
        progress_interval: interval,
        retry_policy: RetryPolicy {
            initial_backoff: Duration::ZERO,
            max_backoff: Duration::ZERO,
            ..RetryPolicy::default()
        },
        ..TypeSettings::default()
    };
    let server = Setup::on(dir.path()).job_type_with("puppet", settings, puppets.clone());
    (server.start().await, puppets)
}

/// The progress events, as hundredths.
fn percents(events: &[pb::JobEvent]) -> Vec<i64> {
    let percent = |event: &pb::JobEvent| match &event.event {
        Some(Event::Progress(progress)) => {
            Some((progress.fraction.unwrap_or(-1.0) * 100.0).round() as i64)
        }
        _ => None,
    };
    events.iter().filter_map(percent).collect()
}

/// Line 12.
#[tokio::test]
async fn progress_is_stored_at_most_once_in_50_ms_and_the_newest_before_the_end() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let began = Instant::now();
    for step in 1..=3000 {
        let report = Progress::fraction(f64::from(step) / 3000.0);
        puppet
            .attempt
            .reporter
            .progress(report)
            .await
            .expect("alive");
    }
    puppet.succeed();
    let end = server.end_of(&id).await;
    let windows = began.elapsed().as_millis() / 50;
    let log = server.log(&id).await;
    let stored = percents(&log);
    // One at once, one a window, and the last one before the end.
    assert!(
        stored.len() as u128 <= windows + 2,
        "{} in {windows}",
        stored.len()
    );
    assert_eq!(stored.last(), Some(&100));
    let last_but_one = &log[log.len() - 2];
    assert!(
        matches!(last_but_one.event, Some(Event::Progress(_))),
        "{last_but_one:?}"
    );
    assert_eq!(
        end.progress.and_then(|progress| progress.fraction),
        Some(1.0)
    );
    server.stop().await.expect("a clean end");
}

/// Line 12.
#[tokio::test]
async fn pending_progress_is_stored_before_any_other_event() {
    let dir = folder();
    let (server, puppets) = server_with(&dir, Duration::from_secs(3600)).await;
    let (id, puppet) = server.begin(&puppets).await;
    puppet.store(&server.queue, vec![progress(0.1)]).await;
    puppet.store(&server.queue, vec![progress(0.2)]).await;
    puppet.store(&server.queue, vec![progress(0.3)]).await;
    assert_eq!(server.get(&id).await.last_sequence, 3, "the first at once");
    puppet.store(&server.queue, vec![output("x")]).await;
    puppet.store(&server.queue, vec![progress(0.4)]).await;
    puppet
        .store(&server.queue, vec![progress(0.5), log_line("x")])
        .await;
    puppet.store(&server.queue, vec![progress(0.6)]).await;
    server.cancel(&id).await;
    puppet.store(&server.queue, vec![progress(0.7)]).await;
    puppet.end(Outcome::Cancelled);
    server.end_of(&id).await;
    let log = server.log(&id).await;
    let kinds: Vec<String> = log.iter().map(kind).collect();
    let expected = [
        "state", "state", "10%", "30%", "output", "50%", "log", "60%", "cancel", "state", "70%",
        "state",
    ];
    assert_eq!(kinds, expected);
    server.stop().await.expect("a clean end");
}

fn kind(event: &pb::JobEvent) -> String {
    let kind = match event.event.as_ref().expect("an event") {
        Event::StateChange(_) => "state",
        Event::Progress(_) => return format!("{}%", percents(std::slice::from_ref(event))[0]),
        Event::Output(_) => "output",
        Event::Log(_) => "log",
        Event::AttemptEnd(_) => "end",
        Event::CancelRequested(_) => "cancel",
        Event::Stalled(_) => "stalled",
    };
    kind.to_owned()
}

/// Line 12: held progress is stored when its interval ends, although nobody says anything more.
#[tokio::test]
async fn held_progress_is_stored_when_its_interval_ends() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut watch = server.watch(&id, Some(2)).await;
    puppet.store(&server.queue, vec![progress(0.1)]).await;
    puppet.store(&server.queue, vec![progress(0.2)]).await;
    let told = watch.until(4).await;
    assert_eq!(percents(&told.events), [10, 20]);
}

/// Line 12.
#[tokio::test]
async fn an_interval_of_zero_stores_one_progress_a_commit() {
    let dir = folder();
    let (server, puppets) = server_with(&dir, Duration::ZERO).await;
    let (id, puppet) = server.begin(&puppets).await;
    for step in 1..=20 {
        let newest = f64::from(step) / 100.0;
        puppet
            .store(&server.queue, vec![progress(0.0), progress(newest)])
            .await;
    }
    puppet.succeed();
    server.end_of(&id).await;
    assert_eq!(
        percents(&server.log(&id).await),
        (1..=20).collect::<Vec<_>>()
    );
    server.stop().await.expect("a clean end");
}

/// Line 13: within one attempt it never goes back; the next one begins anew.
#[tokio::test]
async fn progress_never_goes_back_within_an_attempt_and_begins_anew_in_the_next() {
    let dir = folder();
    let (server, puppets) = server_with(&dir, Duration::ZERO).await;
    let (id, puppet) = server.begin(&puppets).await;
    let report = |fraction: f64, message: &str| {
        vec![Report::Progress(
            Progress::fraction(fraction).with_message(message),
        )]
    };
    puppet.store(&server.queue, report(0.6, "forth")).await;
    puppet.store(&server.queue, report(0.3, "back")).await;
    puppet
        .store(
            &server.queue,
            vec![Report::Progress(Progress::units(9, Some(10), "rows"))],
        )
        .await;
    puppet
        .store(
            &server.queue,
            vec![Report::Progress(Progress::units(4, Some(10), "rows"))],
        )
        .await;
    puppet
        .store(
            &server.queue,
            vec![Report::Progress(Progress::units(5, None, "rows"))],
        )
        .await;
    puppet
        .store(
            &server.queue,
            vec![Report::Progress(Progress::units(5, Some(0), "rows"))],
        )
        .await;
    puppet.end(Outcome::Failed(JobError::retryable("BROKEN", "again")));
    let puppet = puppets.next().await;
    assert_eq!(
        server.get(&id).await.progress,
        None,
        "nothing known of this attempt"
    );
    puppet.store(&server.queue, report(0.1, "anew")).await;
    puppet.succeed();
    server.end_of(&id).await;
    let log = server.log(&id).await;
    let told: Vec<&pb::Progress> = log
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Progress(progress)) => Some(progress),
            _ => None,
        })
        .collect();
    let fractions: Vec<Option<f64>> = told.iter().map(|progress| progress.fraction).collect();
    let known = [0.6, 0.6, 0.9, 0.9].map(Some);
    assert_eq!(fractions[..4], known);
    assert_eq!(fractions[6], Some(0.1));
    let messages: Vec<&str> = told.iter().map(|progress| &*progress.message).collect();
    assert_eq!(messages, ["forth", "back", "", "", "", "", "anew"]);
    let units: Vec<_> = told
        .iter()
        .map(|p| (p.completed_units, p.total_units))
        .collect();
    assert_eq!(
        units[1..4],
        [(None, None), (Some(9), Some(10)), (Some(4), Some(10))]
    );
    assert_eq!(units[4..6], [(Some(5), None), (Some(5), Some(0))]);
    assert!(told.iter().all(|progress| progress.update_time.is_some()));
    server.stop().await.expect("a clean end");
}

async fn merged_watch(server: &TestServer, id: &str, after: i64, interval: Duration) -> Watched {
    let request = pb::WatchJobRequest {
        after_sequence: Some(after),
        min_progress_interval: Some(proto_duration(interval)),
        ..watch_request(id)
    };
    server.try_watch(request).await.expect("a watch")
}

/// Line 4: held back until the next other event, and the cursor stays below it.
#[tokio::test]
async fn a_watcher_that_asks_for_less_progress_gets_the_newest_before_the_next_other_event() {
    let dir = folder();
    let (server, puppets) = server_with(&dir, Duration::ZERO).await;
    let (id, puppet) = server.begin(&puppets).await;
    let mut watch = merged_watch(&server, &id, 2, Duration::from_secs(3600)).await;
    puppet.store(&server.queue, vec![progress(0.1)]).await;
    let told = watch.until(3).await;
    assert_eq!((percents(&told.events), told.through), (vec![10], 3));
    for fraction in [0.2, 0.3, 0.4] {
        puppet.store(&server.queue, vec![progress(fraction)]).await;
    }
    puppet.store(&server.queue, vec![output("x")]).await;
    let told = watch.until(7).await;
    assert_eq!(told.sequences(), [6, 7]);
    assert_eq!(percents(&told.events), [40]);
    for fraction in [0.5, 0.6] {
        puppet.store(&server.queue, vec![progress(fraction)]).await;
    }
    // Cut here, whoever comes again from the last cursor gets what was held back.
    let again = merged_watch(&server, &id, told.through, Duration::from_secs(3600)).await;
    puppet.succeed();
    let told = watch.to_end().await;
    assert_eq!((told.sequences(), told.through), (vec![9, 10], 10));
    assert_eq!(percents(&told.events), [60], "before the end");
    assert_eq!(percents(&again.to_end().await.events).last(), Some(&60));
    server.stop().await.expect("a clean end");
}

/// Line 4: or until the interval ends.
#[tokio::test]
async fn a_watcher_that_asks_for_less_progress_gets_the_newest_when_its_interval_ends() {
    let dir = folder();
    let (server, puppets) = server_with(&dir, Duration::ZERO).await;
    let (id, puppet) = server.begin(&puppets).await;
    let interval = Duration::from_millis(200);
    let mut watch = merged_watch(&server, &id, 2, interval).await;
    let began = Instant::now();
    let reading = tokio::spawn(async move { watch.until(102).await });
    for step in 1..=100 {
        puppet
            .store(&server.queue, vec![progress(f64::from(step) / 100.0)])
            .await;
    }
    let told = reading.await.expect("no panic");
    let windows = began.elapsed().as_millis() / interval.as_millis();
    assert!(
        told.events.len() as u128 <= windows + 2,
        "{}",
        told.events.len()
    );
    assert!(told.events.len() >= 2);
    assert_eq!(percents(&told.events).last(), Some(&100));
    puppet.succeed();
    server.stop().await.expect("a clean end");
}

/// Line 12, and the lease: a long interval holds progress back, and never the heartbeat in it.
/// How long a lease lasts is tested with a clock of the test's own, where the gate lives.
#[tokio::test]
async fn a_long_interval_merges_nothing_but_progress() {
    let dir = folder();
    let (server, puppets) = server_with(&dir, Duration::from_secs(3600)).await;
    let (id, puppet) = server.begin(&puppets).await;
    for step in 1..=50 {
        puppet
            .store(&server.queue, vec![progress(f64::from(step) / 50.0)])
            .await;
    }
    for n in 0..5 {
        puppet
            .store(&server.queue, vec![output(n.to_string())])
            .await;
    }
    puppet.succeed();
    server.end_of(&id).await;
    let log = server.log(&id).await;
    assert_eq!(percents(&log), [2, 100]);
    assert_eq!(log.len(), 2 + 2 + 5 + 1);
    server.stop().await.expect("a clean end");
}

/// Goal: what a running job shows of its progress says how fast it goes and about when it ends, in a look at
/// it and in its log. Method: a clock that the test moves; a fifth of the work in ten seconds.
#[tokio::test]
async fn a_running_job_says_how_fast_it_goes_and_about_when_it_ends() {
    let dir = folder();
    let clock = TestClock::new();
    let puppets = Puppets::default();
    let every = TypeSettings {
        progress_interval: Duration::ZERO,
        ..TypeSettings::default()
    };
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let server = setup.job_type_with("puppet", every, puppets.clone());
    let server = server.start().await;
    let (id, puppet) = server.begin(&puppets).await;
    let rows = |done| vec![Report::Progress(Progress::units(done, Some(100), "rows"))];
    puppet.store(&server.queue, rows(0)).await;
    clock.pass(Duration::from_secs(10));
    puppet.store(&server.queue, rows(20)).await;
    let progress = server.get(&id).await.progress.expect("it was told");
    let now = clock.now().as_micros() / 1_000_000;
    assert_eq!(progress.completed_units, Some(20));
    let rate = progress.units_per_second.expect("a pace is known");
    assert!((1.5..=2.0).contains(&rate), "{rate}");
    let end = progress.estimated_end_time;
    let left = end.expect("a pace is known").seconds - now;
    assert!((35..=55).contains(&left), "{left}");
    let log = server.log(&id).await;
    let told = log.iter().rev().find_map(|event| match &event.event {
        Some(Event::Progress(progress)) => Some(progress.clone()),
        _ => None,
    });
    assert_eq!(told, Some(progress));
    puppet.succeed();
    server.end_of(&id).await;
    server.stop().await.expect("a clean end");
}
