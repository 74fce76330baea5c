//! Clients that submit, cancel and watch whatever happens, and write down what they were told and when.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pacenote::client::{Client, ClientError, Update, WatchOptions};
use pacenote::pb;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::journal::steady;
use crate::harness::job_key;
use crate::invariants::history::{Entry, Seen, state};

/// Clients at once.
const CLIENTS: u64 = 3;
/// Between two of a client's submits. Chosen: the workers that are left in a fault have room to spare, so that
/// what others lose is begun again at once, and the late meet it there.
const PAUSE: Duration = Duration::from_millis(900);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(150);
/// Before another try.
const AGAIN: Duration = Duration::from_millis(50);

/// What clients were told.
#[derive(Default)]
pub(super) struct Heard {
    /// Idempotency key and job of every submit that was answered.
    pub(super) submits: Vec<(String, Answer)>,
    pub(super) cancels: Vec<Answer>,
    pub(super) looks: Vec<Answer>,
    /// Every watch that came to its end: the job, its events, and its last state.
    pub(super) watches: Vec<(Seen, Vec<Entry>)>,
    /// What was refused that should not have been.
    pub(super) refusals: Vec<String>,
}

/// A job in an answer, and when it was asked for and answered, by the machine's monotonic clock.
#[derive(Clone)]
pub(super) struct Answer {
    pub(super) seen: Seen,
    pub(super) asked: i64,
    pub(super) answered: i64,
}

/// Load on a server, until it is told to end.
pub(super) struct Load {
    heard: Arc<Mutex<Heard>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Load {
    pub(super) async fn begin(address: &str, seed: u64) -> Self {
        let load = Self {
            heard: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        for number in 0..CLIENTS {
            let one = One {
                client: crate::crash::process::client(address).await,
                heard: Arc::clone(&load.heard),
                tasks: load.tasks.clone(),
                random: SmallRng::seed_from_u64(seed ^ number),
                number,
            };
            load.tasks.spawn(one.run(load.stop.clone()));
        }
        load
    }

    /// Submits nothing more.
    pub(super) fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    /// Waits for what was begun: the watches end with their jobs.
    pub(super) async fn end(self) -> Heard {
        self.stop();
        self.tasks.wait().await;
        std::mem::take(&mut *self.heard.lock().expect("no panic"))
    }
}

struct One {
    client: Client,
    heard: Arc<Mutex<Heard>>,
    tasks: TaskTracker,
    random: SmallRng,
    number: u64,
}

impl One {
    async fn run(mut self, stop: CancellationToken) {
        // At first as much as all workers can hold, and long enough to be hit by what comes.
        for count in 0..8 {
            let key = format!("{} first {count}", self.number);
            self.one(key, 3_000..5_000).await;
        }
        for count in 0.. {
            if stop.is_cancelled() {
                return;
            }
            let millis = if self.random.random_ratio(1, 4) {
                2_000..5_000
            } else {
                100..900
            };
            let key = format!("{} then {count}", self.number);
            self.one(key, millis).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn one(&mut self, key: String, millis: Range<u32>) {
        let id = self.submit(key, millis).await;
        if self.random.random_ratio(1, 3) {
            let pause = Duration::from_millis(self.random.random_range(0..10_000));
            let client = self.client.clone();
            self.tasks
                .spawn(cancel(client, id.clone(), pause, Arc::clone(&self.heard)));
        }
        if self.random.random_ratio(1, 3) {
            let client = self.client.clone();
            self.tasks
                .spawn(watch(client, id.clone(), Arc::clone(&self.heard)));
        }
        if self.random.random_ratio(1, 3) {
            let client = self.client.clone();
            self.tasks.spawn(look(client, id, Arc::clone(&self.heard)));
        }
    }

    async fn submit(&mut self, key: String, millis: Range<u32>) -> String {
        let millis = self.random.random_range(millis);
        let request = pb::SubmitRequest {
            r#type: "work".to_owned(),
            idempotency_key: key.clone(),
            input: Some(pb::Payload {
                content: Some(pb::payload::Content::Text(millis.to_string())),
                ..pb::Payload::default()
            }),
            ..pb::SubmitRequest::default()
        };
        let client = self.client.clone();
        let submitted = until_told(Arc::clone(&self.heard), "a submit", move || {
            let (client, request) = (client.clone(), request.clone());
            async move {
                let answer = client.submit(request).await?;
                Ok(answer.job.expect("a job"))
            }
        });
        let answer = submitted.await.expect("it is refused by nobody");
        let id = answer.seen.key.id.to_string();
        let mut heard = self.heard.lock().expect("no panic");
        heard.submits.push((key, answer));
        id
    }
}

async fn cancel(client: Client, id: String, pause: Duration, heard: Arc<Mutex<Heard>>) {
    tokio::time::sleep(pause).await;
    let told = until_told(Arc::clone(&heard), "a cancel", move || {
        let (client, id) = (client.clone(), id.clone());
        async move { client.cancel(id, "enough").await }
    });
    let told = told.await;
    heard.lock().expect("no panic").cancels.extend(told);
}

/// Looks at a job until it is over.
async fn look(client: Client, id: String, heard: Arc<Mutex<Heard>>) {
    loop {
        let told = until_told(Arc::clone(&heard), "a look", || {
            let (client, id) = (client.clone(), id.clone());
            async move { client.get(id).await }
        });
        let told = told.await;
        let is_over = told
            .as_ref()
            .is_none_or(|told| told.seen.state.is_terminal());
        heard.lock().expect("no panic").looks.extend(told);
        if is_over {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn watch(client: Client, id: String, heard: Arc<Mutex<Heard>>) {
    let options = WatchOptions {
        after_sequence: Some(0),
        ..WatchOptions::default()
    };
    let mut watch = client.watch(&id, options);
    let mut events = Vec::new();
    while let Some(update) = watch.next().await {
        match update {
            Ok(Update::Event(event)) => events.push(Entry::of(&event)),
            Ok(Update::Finished(job)) => {
                let mut heard = heard.lock().expect("no panic");
                return heard.watches.push((seen(&job), events));
            }
            Ok(_) => {}
            Err(error) => {
                let mut heard = heard.lock().expect("no panic");
                return heard.refusals.push(format!("a watch: {error}"));
            }
        }
    }
}

/// Asks until it is answered, however often the server dies. `None` where it is refused, which no fault excuses.
async fn until_told<F: Future<Output = Result<pb::Job, ClientError>>>(
    heard: Arc<Mutex<Heard>>,
    what: &'static str,
    ask: impl Fn() -> F,
) -> Option<Answer> {
    loop {
        let asked = steady();
        match ask().await {
            Ok(job) => {
                return Some(Answer {
                    seen: seen(&job),
                    asked,
                    answered: steady(),
                });
            }
            Err(error @ ClientError::Refused(_)) => {
                let mut heard = heard.lock().expect("no panic");
                heard.refusals.push(format!("{what}: {error}"));
                return None;
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn seen(job: &pb::Job) -> Seen {
    Seen {
        key: job_key(&job.job_id),
        state: state(job.state()).expect("a state"),
        attempt: u32::try_from(job.attempt).expect("an attempt"),
        last_sequence: job.last_sequence,
    }
}
