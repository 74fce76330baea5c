//! Clients that go on whatever happens to the server, and write down what they were told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pacenote::client::{Client, ClientError, Update, WatchOptions};
use pacenote::job::JobState;
use pacenote::pb;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::history::History;

/// Clients at once.
const CLIENTS: u64 = 4;
/// Pause between two of a client's submits. Chosen: about a hundred jobs a second in all, most of
/// them cheap, so that a busy machine keeps up.
const PAUSE: Duration = Duration::from_millis(30);

/// Load on a server, until it is told to end.
pub(crate) struct Load {
    told: Arc<Mutex<History>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Load {
    pub(crate) async fn begin(address: &str, seed: u64) -> Self {
        let load = Self {
            told: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        for number in 0..CLIENTS {
            let one = One {
                client: super::process::client(address).await,
                told: Arc::clone(&load.told),
                tasks: load.tasks.clone(),
                random: SmallRng::seed_from_u64(seed ^ number),
                number,
            };
            load.tasks.spawn(one.run(load.stop.clone()));
        }
        load
    }

    /// Submits nothing more, and waits for what was begun: the watches end with their jobs.
    pub(crate) async fn end(self) -> History {
        self.stop.cancel();
        self.tasks.close();
        crate::harness::soon(self.tasks.wait()).await;
        std::mem::take(&mut *self.told.lock().expect("no panic"))
    }
}

struct One {
    client: Client,
    told: Arc<Mutex<History>>,
    tasks: TaskTracker,
    random: SmallRng,
    number: u64,
}

impl One {
    async fn run(mut self, stop: CancellationToken) {
        for count in 0.. {
            if stop.is_cancelled() {
                return;
            }
            let key = format!("key {} {count}", self.number);
            let request = self.request(key.clone());
            let id = self.submit(&request).await;
            if self.random.random_ratio(1, 4) {
                // Once more, as a client that did not hear the answer: by its key it is the same job.
                self.submit(&request).await;
            }
            if self.random.random_ratio(1, 5) {
                let pause = Duration::from_millis(self.random.random_range(0..150));
                let (client, told) = (self.client.clone(), Arc::clone(&self.told));
                self.tasks.spawn(cancel(client, id.clone(), pause, told));
            }
            if self.random.random_ratio(1, 3) {
                let (client, told) = (self.client.clone(), Arc::clone(&self.told));
                self.tasks.spawn(watch(client, id, told));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn request(&mut self, key: String) -> pb::SubmitRequest {
        let (job_type, text) = if self.random.random_ratio(1, 6) {
            ("script", String::new())
        } else {
            let millis = self.random.random_range(0..120);
            ("sleep", format!(r#"{{"seconds":0.{millis:03}}}"#))
        };
        let input = (!text.is_empty()).then(|| pb::Payload {
            content: Some(pb::payload::Content::Text(text)),
            media_type: "application/json".to_owned(),
        });
        pb::SubmitRequest {
            r#type: job_type.to_owned(),
            input,
            idempotency_key: key,
            priority: self.random.random_range(-2..=2),
            ..pb::SubmitRequest::default()
        }
    }

    /// Until it is acknowledged, however often the server dies.
    async fn submit(&self, request: &pb::SubmitRequest) -> String {
        loop {
            let key = request.idempotency_key.clone();
            match self.client.submit(request.clone()).await {
                Ok(answer) => {
                    let id = answer.job.expect("a job").job_id;
                    let mut told = self.told.lock().expect("no panic");
                    told.submits.push((key, id.clone()));
                    return id;
                }
                Err(error) if is_refusal(&error) => note(&self.told, "submit", &key, &error),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn cancel(client: Client, id: String, pause: Duration, told: Arc<Mutex<History>>) {
    tokio::time::sleep(pause).await;
    loop {
        match client.cancel(&id, "enough").await {
            Ok(job) => {
                let state = state(job.state());
                told.lock().expect("no panic").cancels.push((id, state));
                return;
            }
            Err(error) if is_refusal(&error) => return note(&told, "cancel", &id, &error),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn watch(client: Client, id: String, told: Arc<Mutex<History>>) {
    let options = WatchOptions {
        after_sequence: Some(0),
        ..WatchOptions::default()
    };
    let mut watch = client.watch(&id, options);
    let mut sequences = Vec::new();
    while let Some(update) = watch.next().await {
        match update {
            Ok(Update::Event(event)) => sequences.push(event.sequence),
            Ok(Update::Finished(_)) => break,
            Ok(_) => {}
            Err(error) => return note(&told, "watch", &id, &error),
        }
    }
    let mut told = told.lock().expect("no panic");
    told.watches.push((id, sequences));
}

/// Whether the server said no, which no death of it excuses.
fn is_refusal(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(_))
}

fn note(told: &Mutex<History>, what: &str, of: &str, error: &ClientError) {
    let refusal = format!("{of}: {what}: {error}");
    told.lock().expect("no panic").refusals.push(refusal);
}

pub(crate) fn state(state: pb::job::State) -> JobState {
    use pb::job::State;
    match state {
        State::Unspecified => panic!("a job without a state"),
        State::Scheduled => JobState::Scheduled,
        State::Blocked => JobState::Blocked,
        State::Queued => JobState::Queued,
        State::Running => JobState::Running,
        State::Cancelling => JobState::Cancelling,
        State::Succeeded => JobState::Succeeded,
        State::Failed => JobState::Failed,
        State::Cancelled => JobState::Cancelled,
        State::Expired => JobState::Expired,
    }
}
