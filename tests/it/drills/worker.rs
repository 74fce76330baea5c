//! A worker as docs/protocol.md wants it: it counts its terms from when it asked, by a clock that is never
//! set, numbers its reports and sends again what was not answered. It runs in a process of its own, so that it
//! can be stopped and killed.
//!
//! Every other attempt whose term is over is stubborn: it stops its work as all do, but goes on to tell of it.
//! What it says then has to be refused, unless the lease was not lost.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pacenote::pb;
use pacenote::pb::finish_request::Outcome;
use pacenote::pb::job::State;
use pacenote::pb::worker_service_client::WorkerServiceClient;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::journal::{Journal, Word, steady};

/// Jobs of a worker at once.
const ROOM: usize = 3;
/// A handler looks at the clock so often.
const BEAT: Duration = Duration::from_millis(100);
/// The longest that a call may take, beside what it waits for.
const CALL: Duration = Duration::from_secs(1);
/// How long a worker waits for work.
const WAIT: Duration = Duration::from_millis(500);
/// Before another try.
const PAUSE: Duration = Duration::from_millis(100);
/// How much sooner than its lease ends an attempt stops.
const MARGIN: Duration = Duration::from_secs(1);

/// What a worker has to know.
#[derive(Clone, Debug)]
pub(super) struct Orders {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) term: Duration,
    pub(super) journal: PathBuf,
}

const NAME: &str = "PACENOTE_DRILL_WORKER";
const ADDRESS: &str = "PACENOTE_DRILL_ADDRESS";
const TERM: &str = "PACENOTE_DRILL_TERM_SECS";
const JOURNAL: &str = "PACENOTE_DRILL_JOURNAL";

/// Not a test but what a process of a worker does: the drills start it.
#[test]
#[ignore = "a worker's process, which the drills start"]
fn a_worker_works_until_it_is_killed() {
    let Ok(name) = std::env::var(NAME) else {
        return;
    };
    let given = |name: &str| std::env::var(name).expect("the drills give it");
    let orders = Orders {
        name,
        address: given(ADDRESS),
        term: Duration::from_secs(given(TERM).parse().expect("a number")),
        journal: PathBuf::from(given(JOURNAL)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(run(orders));
}

/// A worker's process, which ends with its test.
pub(super) struct Process(Child);

impl Process {
    pub(super) fn start(orders: &Orders) -> Self {
        let this = std::env::current_exe().expect("a path");
        let child = Command::new(this)
            .args([
                "--exact",
                "drills::worker::a_worker_works_until_it_is_killed",
            ])
            .args(["--ignored", "--nocapture"])
            .env(NAME, &orders.name)
            .env(ADDRESS, &orders.address)
            .env(TERM, orders.term.as_secs().to_string())
            .env(JOURNAL, &orders.journal)
            .stdout(Stdio::null())
            .process_group(0)
            .spawn();
        Self(child.expect("it starts"))
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it lives");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself: fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Works for ever.
pub(super) async fn run(orders: Orders) {
    let worker = Arc::new(Worker {
        journal: Journal::of(&orders.name, Path::new(&orders.journal)),
        line: Mutex::new(line(&orders.address)),
        orders,
    });
    let mut attempts = JoinSet::new();
    loop {
        while attempts.len() >= ROOM {
            attempts.join_next().await;
        }
        while attempts.try_join_next().is_some() {}
        let (asked, room) = (steady(), ROOM - attempts.len());
        let request = pb::LeaseRequest {
            worker_id: worker.orders.name.clone(),
            types: vec!["work".to_owned()],
            max_jobs: i32::try_from(room).expect("a few"),
            lease: Some(worker.orders.term.try_into().expect("a short time")),
            wait: Some(WAIT.try_into().expect("a short time")),
            ..pb::LeaseRequest::default()
        };
        let leased = worker.call(WAIT + CALL, async |mut line| line.lease(request).await);
        match leased.await {
            Ok(work) => {
                for leased in work.leased_jobs {
                    let attempt = Attempt::new(Arc::clone(&worker), leased, asked);
                    attempts.spawn(attempt.run());
                }
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

type Line = WorkerServiceClient<Channel>;

fn line(address: &str) -> Line {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    WorkerServiceClient::new(endpoint.connect_timeout(CALL).connect_lazy())
}

struct Worker {
    orders: Orders,
    journal: Journal,
    line: Mutex<Line>,
}

impl Worker {
    /// A call with a deadline. After one that was not answered the next one has a line of its own: nobody
    /// knows what became of the old one.
    async fn call<T>(
        &self,
        deadline: Duration,
        call: impl AsyncFnOnce(Line) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let now = self.line.lock().await.clone();
        let answered = timeout(deadline, call(now)).await;
        let answered = answered.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
        if answered.as_ref().is_err_and(|status| !is_stale(status)) {
            *self.line.lock().await = line(&self.orders.address);
        }
        answered.map(tonic::Response::into_inner)
    }
}

fn is_stale(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::NotFound)
}

/// The attempt is not its worker's any more.
struct Lost;

struct Attempt {
    worker: Arc<Worker>,
    job: String,
    number: u32,
    token: String,
    /// When the newest call was made that was answered: what its term is counted from.
    asked: i64,
    work: Duration,
    cancelled: bool,
}

impl Attempt {
    fn new(worker: Arc<Worker>, leased: pb::LeasedJob, asked: i64) -> Self {
        let job = leased.job.expect("a job");
        let number = u32::try_from(job.attempt).expect("an attempt");
        worker.journal.write(Word::Begun, &job.job_id, number, "-");
        let millis = match job.input.and_then(|input| input.content) {
            Some(pb::payload::Content::Text(text)) => text.parse().expect("a number"),
            _ => 0,
        };
        Self {
            worker,
            job: job.job_id,
            number,
            token: leased.lease_token,
            asked,
            work: Duration::from_millis(millis),
            cancelled: false,
        }
    }

    fn left(&self) -> Duration {
        let ends = self.worker.orders.term - MARGIN;
        let since = u64::try_from(steady() - self.asked).unwrap_or(0);
        ends.saturating_sub(Duration::from_micros(since))
    }

    fn write(&self, word: Word, what: &str) {
        let journal = &self.worker.journal;
        journal.write(word, &self.job, self.number, what);
    }

    async fn run(mut self) {
        if self.do_work().await.is_err() {
            return;
        }
        let is_over = self.left().is_zero();
        if is_over {
            self.write(Word::Stopped, "-");
            if !self.is_stubborn() {
                return;
            }
        }
        let end = if is_over { "late" } else { "done" };
        let patience = if is_over {
            self.worker.orders.term * 4
        } else {
            self.worker.orders.term
        };
        // Lost or not, there is nothing more to do.
        let _ = timeout(patience, self.finish(end)).await;
    }

    fn is_stubborn(&self) -> bool {
        self.job.as_bytes().last().is_some_and(|last| last % 2 == 0)
    }

    /// Until its work is done, or its term is over.
    async fn do_work(&mut self) -> Result<(), Lost> {
        let beats = self.work.as_millis() / BEAT.as_millis();
        let mut reports = 0;
        for beat in 0..beats {
            let now = steady();
            if self.left().is_zero() || self.cancelled {
                return Ok(());
            }
            let (journal, job) = (&self.worker.journal, &self.job);
            journal.write_at(now, Word::Alive, job, self.number, "-");
            if beat % 3 == 0 {
                reports += 1;
                self.report(reports).await?;
            }
            sleep(BEAT).await;
        }
        Ok(())
    }

    /// Until it is answered, or its term is over.
    async fn report(&mut self, number: i64) -> Result<(), Lost> {
        let text = format!("{}.{number}", self.number);
        let event = pb::worker_event::Event::Output(pb::OutputChunk {
            stream: "stdout".to_owned(),
            offset: 0,
            chunk: Some(self::text(&text)),
        });
        let request = pb::ReportRequest {
            lease_token: self.token.clone(),
            events: vec![pb::WorkerEvent { event: Some(event) }],
            report_number: number,
            checkpoint: None,
        };
        while !self.left().is_zero() {
            self.write(Word::Says, &text);
            let asked = steady();
            let (request, deadline) = (request.clone(), CALL.min(self.left()));
            let told = self
                .worker
                .call(deadline, async |mut line| line.report(request).await);
            match told.await {
                Ok(standing) => {
                    self.asked = asked;
                    self.cancelled |= standing.cancel_requested;
                    self.write(Word::Told, &text);
                    return Ok(());
                }
                Err(status) if is_stale(&status) => {
                    self.write(Word::Stale, &text);
                    return Err(Lost);
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
        Ok(())
    }

    /// Until it is answered.
    async fn finish(&self, end: &str) -> Result<(), Lost> {
        let result = format!("{end} {}", self.number);
        let outcome = if self.cancelled {
            Outcome::Cancelled(pb::Cancelled {})
        } else {
            Outcome::Result(text(&result))
        };
        let request = pb::FinishRequest {
            lease_token: self.token.clone(),
            outcome: Some(outcome),
            retry_delay: None,
        };
        loop {
            self.write(Word::Says, "end");
            let request = request.clone();
            let ended = self
                .worker
                .call(CALL, async |mut line| line.finish(request).await);
            match ended.await {
                Ok(answer) => {
                    let state = answer.job.expect("a job").state();
                    self.write(Word::Ended, state.as_str_name());
                    return Ok(());
                }
                Err(status) if is_stale(&status) => {
                    self.write(Word::Stale, "end");
                    return Err(Lost);
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

fn text(text: &str) -> pb::Payload {
    pb::Payload {
        content: Some(pb::payload::Content::Text(text.to_owned())),
        ..pb::Payload::default()
    }
}

/// How a job ended whose result was taken.
pub(super) fn succeeded() -> &'static str {
    State::Succeeded.as_str_name()
}
