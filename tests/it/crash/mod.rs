//! The real binary is killed under load, again and again, and everything that was acknowledged holds.

mod history;
mod load;
mod poison;
pub(crate) mod process;
mod ready;
mod storm;

use std::path::Path;
use std::time::Duration;

use pacenote::job::JobState;
use pacenote::pb;
use pacenote::pb::job_event::Event;
use pacenote::store::sqlite::SqliteStore;
use pacenote::store::{JobStore, ListQuery, LogRange};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::history::{History, Line, Stored};
use self::load::Load;
use self::process::Start;
use crate::harness::{folder, soon};

/// Says when it starts, that it is alive, and when it ends: each line is one write at the file's end, so
/// the order of the lines is the order of what happened, across all processes and deaths.
const SCRIPT: &str = r#"
log="$1"
say() { echo "$1 $PACENOTE_JOB_ID $PACENOTE_ATTEMPT" >> "$log"; }
say start
for beat in 1 2 3 4; do sleep 0.05; say beat; done
say end
"#;

/// Goal: FAULTS F1 and F53. Method: load that never stops, a kill after a random time, a start on the same
/// store, and so on; then everything is left to end, and the history is held against the rules.
/// `PACENOTE_TEST_KILLS` says how often (10), `PACENOTE_TEST_SEED` repeats a run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed_under_load() {
    let kills = number("PACENOTE_TEST_KILLS").unwrap_or(10);
    let seed = number("PACENOTE_TEST_SEED").unwrap_or_else(rand::random);
    eprintln!("PACENOTE_TEST_KILLS={kills} PACENOTE_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let dir = folder();
    configure(dir.path());
    let mut start = Start::on(dir.path()).flag("--workers", "16");
    let mut server = start.start();
    start.listen.clone_from(&server.address);
    let load = Load::begin(&server.address, seed).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1500))).await;
        server.kill().await;
        server = start.start();
        slowest = slowest.max(server.ready_after().await);
    }
    let mut history = load.end().await;
    all_over(&server.client().await).await;
    server.stop().await;
    read_store(&dir.path().join("pacenote.db"), &mut history).await;
    read_lines(&dir.path().join("signs"), &mut history);
    eprintln!(
        "{} jobs, {} submits, {} cancels and {} watches answered, {} signs of life; slowest start {slowest:?}",
        history.jobs.len(),
        history.submits.len(),
        history.cancels.len(),
        history.watches.len(),
        history.lines.len(),
    );
    let violations = history.violations();
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
    let enough = [
        history.submits.len(),
        history.cancels.len(),
        history.watches.len(),
        history.lines.len(),
    ];
    assert!(
        enough.iter().all(|count| *count >= 5),
        "too little happened"
    );
}

/// Goal: FAULTS F79, the store's side: what a drain hands back is charged nothing and runs again.
#[tokio::test]
async fn an_orderly_stop_hands_back_what_runs_and_charges_nothing() {
    let dir = folder();
    let start = Start::on(dir.path()).flag("--drain-timeout", "200ms");
    let server = start.start();
    let client = server.client().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let request = sleep_request(1.0);
        let answer = client.submit(request).await.expect("it is stored");
        ids.push(answer.job.expect("a job").job_id);
    }
    for id in &ids {
        until(&client, id, pb::job::State::Running).await;
    }
    server.stop().await;
    let mut history = History::default();
    read_store(&dir.path().join("pacenote.db"), &mut history).await;
    assert_eq!(history.depths, [(JobState::Queued, 4)].into());
    let server = start.start();
    let client = server.client().await;
    for id in &ids {
        let job = client.wait(id.as_str(), None).await.expect("it ends").job;
        let job = job.expect("a job");
        assert_eq!(job.state(), pb::job::State::Succeeded);
        assert_eq!((job.attempt, job.attempts_charged), (2, 1));
    }
    server.stop().await;
}

/// Goal: a checkpoint that a program has saved is there for its next attempt, although the server was
/// killed in between.
#[tokio::test]
async fn a_checkpoint_outlives_the_server_and_is_handed_to_the_next_attempt() {
    let dir = folder();
    let script = r#"
        if [ -n "$PACENOTE_CHECKPOINT" ]; then exec cat "$PACENOTE_CHECKPOINT"; fi
        echo '{"checkpoint":{"page":4}}' >> "$PACENOTE_EVENTS"
        exec sleep 600
    "#;
    std::fs::write(dir.path().join("script.sh"), script).expect("a file");
    let config = "[job_types.script]\ncommand = [\"/bin/sh\", \"script.sh\"]\n";
    std::fs::write(dir.path().join("pacenote.toml"), config).expect("a file");
    let start = Start::on(dir.path());
    let server = start.start();
    let client = server.client().await;
    let request = pb::SubmitRequest {
        r#type: "script".to_owned(),
        ..pb::SubmitRequest::default()
    };
    let job = client
        .submit(request)
        .await
        .expect("stored")
        .job
        .expect("a job");
    // Saving one is no event: nothing announces it.
    soon(async {
        while client
            .get(job.job_id.as_str())
            .await
            .expect("there")
            .checkpoint
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    server.kill().await;
    let server = start.start();
    let client = server.client().await;
    let end = client
        .wait(job.job_id.as_str(), None)
        .await
        .expect("it ends")
        .job;
    let end = end.expect("a job");
    assert_eq!((end.state(), end.attempt), (pb::job::State::Succeeded, 2));
    let result = end.result.and_then(|result| result.content);
    let page = pb::payload::Content::Text("{\"page\":4}".to_owned());
    assert_eq!(result, Some(page));
    server.stop().await;
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn configure(dir: &Path) {
    std::fs::write(dir.join("script.sh"), SCRIPT).expect("a file");
    let config = r#"
        [job_types.script]
        command = ["/bin/sh", "script.sh", "signs"]
        max_attempts = 100
        initial_backoff = "10ms"
        max_backoff = "20ms"
        "#;
    std::fs::write(dir.join("pacenote.toml"), config).expect("a file");
}

pub(crate) fn sleep_request(seconds: f64) -> pb::SubmitRequest {
    pb::SubmitRequest {
        r#type: "sleep".to_owned(),
        input: Some(pb::Payload {
            content: Some(pb::payload::Content::Text(format!(
                "{{\"seconds\":{seconds}}}"
            ))),
            media_type: "application/json".to_owned(),
        }),
        ..pb::SubmitRequest::default()
    }
}

/// Waits until nothing is left to do.
pub(crate) async fn all_over(client: &pacenote::client::Client) {
    use pb::job::State;
    let live = [
        State::Scheduled,
        State::Queued,
        State::Running,
        State::Cancelling,
    ];
    soon(async {
        loop {
            let request = pb::ListRequest {
                states: live.iter().map(|state| i32::from(*state)).collect(),
                page_size: 1,
                ..pb::ListRequest::default()
            };
            let page = client.list(request).await.expect("it answers");
            let Some(job) = page.jobs.first() else { return };
            client
                .wait(job.job_id.as_str(), Some(Duration::from_secs(20)))
                .await
                .expect("it answers");
        }
    })
    .await;
}

async fn until(client: &pacenote::client::Client, id: &str, state: pb::job::State) {
    soon(async {
        while client.get(id).await.expect("it is there").state() != state {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Reads everything from a store that no server has open.
pub(crate) async fn read_store(path: &Path, history: &mut History) {
    let store = SqliteStore::open(path).await.expect("it opens");
    let query = ListQuery::all(pacenote::job::name::Name::of("default"));
    for job in store.list(&query).await.expect("a read").jobs {
        let range = LogRange {
            after: 0,
            events: usize::MAX,
            bytes: usize::MAX,
        };
        let part = store.log(&job.key, range).await.expect("a read");
        let part = part.expect("it is there");
        let events = part.segments.iter().flat_map(|s| s.events_after(0));
        let log = events.map(|event| {
            let decoded: pb::JobEvent = prost::Message::decode(event.bytes).expect("an event");
            assert_eq!(decoded.sequence, event.sequence);
            let to = match decoded.event {
                Some(Event::StateChange(change)) => Some(load::state(change.to_state())),
                _ => None,
            };
            (event.sequence, to)
        });
        let stored = Stored {
            key: job.spec.idempotency_key.clone().unwrap_or_default(),
            state: job.state,
            last_sequence: job.last_sequence,
            log: log.collect(),
        };
        history.jobs.insert(job.key.id.to_string(), stored);
    }
    for (_, state, jobs) in store.depths().await.expect("a read") {
        *history.depths.entry(state).or_default() += jobs;
    }
    store.close().await;
}

fn read_lines(path: &Path, history: &mut History) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [word, job, attempt] = words[..] else {
            panic!("no sign of life: {line:?}");
        };
        history.lines.push(Line {
            word: word.to_owned(),
            job: job.to_owned(),
            attempt: attempt.parse().expect("a number"),
        });
    }
}
