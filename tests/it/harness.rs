//! What the tests stand on: a server in this process, clients, and job types whose moves the test makes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use pacenote::config::{Config, TypeSettings};
use pacenote::executor::{Attempt, Executor};
use pacenote::job::event::{LogLevel, LogLine};
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::payload::Payload;
use pacenote::job::progress::Progress;
use pacenote::job::time::{Clock, SystemClock, Timestamp};
use pacenote::job::{Outcome, Report};
use pacenote::pb;
use pacenote::pb::job_service_client::JobServiceClient;
use pacenote::queue::{Handed, JobQueue, Lease, Places, default_tenant};
use pacenote::server::{ServeError, Server};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

/// Nothing that a test waits for takes this long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) type Client = JobServiceClient<Channel>;

/// Waits for something that will surely happen.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what)
        .await
        .expect("it happens long before the deadline")
}

/// A server in this process, on a store of its own.
pub(crate) struct TestServer {
    pub(crate) client: Client,
    pub(crate) queue: JobQueue,
    pub(crate) address: String,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), ServeError>>,
}

/// The machine's clock, and the time on top of it that a test lets pass.
#[derive(Clone)]
pub(crate) struct TestClock {
    clock: Arc<SystemClock>,
    ahead: Arc<AtomicI64>,
    /// Of the wall clock, which may be set to any time.
    set: Arc<AtomicI64>,
}

impl TestClock {
    pub(crate) fn new() -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            ahead: Arc::default(),
            set: Arc::default(),
        }
    }

    /// Lets time pass at once.
    pub(crate) fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).expect("a short time");
        self.ahead.fetch_add(micros, Ordering::Relaxed);
    }

    /// Sets the wall clock, so many seconds from where it would be.
    pub(crate) fn set_wall(&self, seconds: i64) {
        self.set.store(seconds * 1_000_000, Ordering::Relaxed);
    }

    fn later(&self, at: Timestamp) -> Timestamp {
        let ahead = self.ahead.load(Ordering::Relaxed);
        Timestamp::from_micros(at.as_micros() + ahead)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let set = self.set.load(Ordering::Relaxed);
        Timestamp::from_micros(self.later(self.clock.now()).as_micros() + set)
    }

    fn steady(&self) -> Timestamp {
        self.later(self.clock.steady())
    }

    fn new_id(&self) -> uuid::Uuid {
        self.clock.new_id()
    }

    fn chance(&self) -> f64 {
        self.clock.chance()
    }
}

/// How a test server is made.
pub(crate) struct Setup {
    config: Config,
    types: Vec<(Name, TypeSettings, AddType)>,
    clock: Option<Arc<dyn Clock>>,
}

type AddType = Box<dyn FnOnce(Server) -> Server + Send>;

impl Setup {
    /// On a store in the folder.
    pub(crate) fn on(dir: &Path) -> Self {
        let config = Config {
            store: dir.join("pacenote.db"),
            workers: 8,
            checksum_root: dir.to_owned(),
            drain_timeout: Duration::from_secs(5),
            ..Config::default()
        };
        Self {
            config,
            types: Vec::new(),
            clock: None,
        }
    }

    pub(crate) fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// By a clock that is not the machine's.
    pub(crate) fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// With a job type.
    pub(crate) fn job_type(self, name: &'static str, executor: impl Executor) -> Self {
        self.job_type_with(name, TypeSettings::default(), executor)
    }

    pub(crate) fn job_type_with(
        mut self,
        name: &'static str,
        settings: TypeSettings,
        executor: impl Executor,
    ) -> Self {
        let with = {
            let settings = settings.clone();
            move |server: Server| server.executor(Name::of(name), settings, executor)
        };
        self.types.push((Name::of(name), settings, Box::new(with)));
        self
    }

    pub(crate) async fn start(self) -> TestServer {
        self.try_start().await.expect("the server starts")
    }

    pub(crate) async fn try_start(self) -> Result<TestServer, ServeError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let shutdown = CancellationToken::new();
        let (ready, queue) = oneshot::channel();
        let mut server = Server::new(self.config).on_queue(move |queue| {
            let _ = ready.send(queue);
        });
        for (_, _, with) in self.types {
            server = with(server);
        }
        if let Some(clock) = self.clock {
            server = server.clock(clock);
        }
        let mut serving = tokio::spawn(server.serve(listener, shutdown.clone().cancelled_owned()));
        let queue = tokio::select! {
            // A server that ends early drops the sender, and then says why.
            Ok(queue) = queue => queue,
            ended = &mut serving => return Err(ended.expect("no panic").expect_err("it ended early")),
        };
        Ok(TestServer {
            client: connect(&address).await,
            queue,
            address,
            shutdown,
            serving,
        })
    }
}

impl TestServer {
    /// A server with scripted jobs on the folder's store.
    pub(crate) async fn with_puppets(dir: &TempDir) -> (Self, Puppets) {
        let puppets = Puppets::default();
        let server = Setup::on(dir.path()).job_type("puppet", puppets.clone());
        (server.start().await, puppets)
    }

    /// Drains it and waits for its end. Attempts that the test still holds in its hands never end: end
    /// or drop them before. A server that is only dropped ends with the test.
    pub(crate) async fn stop(self) -> Result<(), ServeError> {
        self.shutdown.cancel();
        drop(self.client);
        soon(self.serving).await.expect("no panic")
    }

    /// Asks it to drain, and does not wait.
    pub(crate) fn begin_stop(&self) {
        self.shutdown.cancel();
    }

    pub(crate) async fn submit(&self, request: pb::SubmitRequest) -> pb::Job {
        let submitted = self.client.clone().submit(request).await;
        submitted
            .expect("the submit is good")
            .into_inner()
            .job
            .expect("a job")
    }

    pub(crate) async fn get(&self, job_id: &str) -> pb::Job {
        let request = pb::GetRequest {
            job_id: job_id.to_owned(),
            view: 0,
        };
        let got = self.client.clone().get(request).await;
        got.expect("the job is there")
            .into_inner()
            .job
            .expect("a job")
    }

    pub(crate) async fn cancel(&self, job_id: &str) -> pb::Job {
        let request = pb::CancelRequest {
            job_id: job_id.to_owned(),
            reason: "enough".to_owned(),
        };
        let cancelled = self.client.clone().cancel(request).await;
        cancelled
            .expect("a cancel never fails")
            .into_inner()
            .job
            .expect("a job")
    }

    /// Waits for the end of a job.
    pub(crate) async fn end_of(&self, job_id: &str) -> pb::Job {
        let request = pb::WaitRequest {
            job_id: job_id.to_owned(),
            timeout: Some(prost_types::Duration {
                seconds: 30,
                nanos: 0,
            }),
            after_sequence: None,
            view: 0,
        };
        let waited = soon(self.client.clone().wait(request)).await;
        let waited = waited.expect("the job is there").into_inner();
        assert!(!waited.timed_out, "the job does not end: {:?}", waited.job);
        waited.job.expect("a job")
    }

    pub(crate) async fn watch(&self, job_id: &str, after: Option<i64>) -> Watched {
        let request = pb::WatchJobRequest {
            after_sequence: after,
            ..watch_request(job_id)
        };
        self.try_watch(request).await.expect("a watch")
    }

    pub(crate) async fn try_watch(&self, request: pb::WatchJobRequest) -> Result<Watched, Status> {
        let stream = self.client.clone().watch_job(request).await?;
        Ok(Watched(stream.into_inner()))
    }

    /// A job of a puppet, and its first attempt.
    pub(crate) async fn begin(&self, puppets: &Puppets) -> (String, Puppet) {
        let job = self.submit(submit_request("puppet")).await;
        (job.job_id, puppets.next().await)
    }

    /// A watch that ends before it has begun.
    pub(crate) async fn refused_watch(&self, request: pb::WatchJobRequest) -> Status {
        match self.try_watch(request).await {
            Err(status) => status,
            // A stream may also begin and end with its error.
            Ok(watch) => {
                let (told, status) = watch.to_error().await;
                assert_eq!(told.messages, 0, "{told:?}");
                status
            }
        }
    }

    /// The whole log, by pages.
    pub(crate) async fn log(&self, job_id: &str) -> Vec<pb::JobEvent> {
        let mut events = Vec::new();
        let mut after_sequence = 0;
        loop {
            let request = pb::ListEventsRequest {
                job_id: job_id.to_owned(),
                after_sequence,
                page_size: 1000,
                event_types: vec![],
            };
            let page = self.client.clone().list_events(request).await;
            let page = page.expect("the job is there").into_inner();
            let done = page.events.is_empty();
            events.extend(page.events);
            after_sequence = page.through_sequence;
            if done || page.job_finished {
                return events;
            }
        }
    }
}

pub(crate) async fn connect(address: &str) -> Client {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    JobServiceClient::new(endpoint.connect().await.expect("the server accepts"))
        .max_decoding_message_size(64 * 1024 * 1024)
}

pub(crate) fn submit_request(job_type: &str) -> pb::SubmitRequest {
    pb::SubmitRequest {
        r#type: job_type.to_owned(),
        ..pb::SubmitRequest::default()
    }
}

pub(crate) fn watch_request(job_id: &str) -> pb::WatchJobRequest {
    pb::WatchJobRequest {
        job_id: job_id.to_owned(),
        ..pb::WatchJobRequest::default()
    }
}

/// A watch, read message by message.
pub(crate) struct Watched(pub(crate) Streaming<pb::WatchJobResponse>);

/// What a watch gave from its beginning to its end.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) events: Vec<pb::JobEvent>,
    pub(crate) snapshots: Vec<pb::Job>,
    pub(crate) gaps: Vec<pb::EventGap>,
    pub(crate) through: i64,
    pub(crate) messages: usize,
}

#[expect(
    clippy::wrong_self_convention,
    reason = "to the end, not into another type: it reads a watch until it is used up"
)]
impl Watched {
    pub(crate) async fn next(&mut self) -> Result<Option<pb::WatchJobResponse>, Status> {
        soon(self.0.message()).await
    }

    /// The next message that is no heartbeat.
    pub(crate) async fn next_content(&mut self) -> pb::WatchJobResponse {
        loop {
            let message = self.next().await.expect("no error").expect("no end");
            if !matches!(
                message.content,
                Some(pb::watch_job_response::Content::Heartbeat(_))
            ) {
                return message;
            }
        }
    }

    /// Reads until the end, which must be OK.
    pub(crate) async fn to_end(mut self) -> Told {
        let mut told = Told::default();
        while let Some(message) = self.next().await.expect("the watch ends with OK") {
            told.add(message);
        }
        told
    }

    /// Reads until the end, which must be an error.
    pub(crate) async fn to_error(mut self) -> (Told, Status) {
        let mut told = Told::default();
        loop {
            match self.next().await {
                Ok(Some(message)) => told.add(message),
                Ok(None) => panic!("the watch ended with OK: {told:?}"),
                Err(status) => return (told, status),
            }
        }
    }

    /// Reads until an event with the sequence has come.
    pub(crate) async fn until(&mut self, sequence: i64) -> Told {
        let mut told = Told::default();
        while told
            .events
            .last()
            .is_none_or(|last| last.sequence < sequence)
        {
            let message = self.next().await.expect("no error").expect("no end yet");
            told.add(message);
        }
        told
    }
}

impl Told {
    pub(crate) fn add(&mut self, message: pb::WatchJobResponse) {
        use pb::watch_job_response::Content;
        assert!(message.through_sequence >= self.through, "{message:?}");
        self.through = message.through_sequence;
        self.messages += 1;
        match message.content.expect("every message says something") {
            Content::Snapshot(job) => self.snapshots.push(job),
            Content::Events(batch) => {
                let events = batch.decoded().expect("events");
                assert!(!events.is_empty() && events.len() <= 256);
                let last = events.last().map_or(0, |last| last.sequence);
                assert!(
                    message.through_sequence >= last,
                    "events travel ahead of through"
                );
                self.events.extend(events);
            }
            Content::Gap(gap) => self.gaps.push(gap),
            Content::Heartbeat(_) => {}
        }
    }

    pub(crate) fn sequences(&self) -> Vec<i64> {
        self.events.iter().map(|event| event.sequence).collect()
    }
}

/// The reason and metadata that an error carries, and its bad fields.
pub(crate) fn reason_of(status: &Status) -> (Code, String) {
    let details = status.get_error_details();
    let info = details.error_info().expect("every error has an ErrorInfo");
    assert_eq!(info.domain, "pacenote.dev");
    (status.code(), info.reason.clone())
}

pub(crate) fn bad_fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let bad = details.bad_request().expect("a BadRequest");
    bad.field_violations
        .iter()
        .map(|v| v.field.clone())
        .collect()
}

/// A job type whose attempts do what the test tells them to, and nothing else.
#[derive(Clone)]
pub(crate) struct Puppets {
    begun: mpsc::UnboundedSender<Puppet>,
    waiting: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Puppet>>>,
}

/// One attempt in the test's hands.
pub(crate) struct Puppet {
    pub(crate) attempt: Attempt,
    end: oneshot::Sender<Outcome>,
}

impl Default for Puppets {
    fn default() -> Self {
        let (begun, waiting) = mpsc::unbounded_channel();
        Self {
            begun,
            waiting: Arc::new(tokio::sync::Mutex::new(waiting)),
        }
    }
}

impl Executor for Puppets {
    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Outcome> {
        let (end, ended) = oneshot::channel();
        let stop = attempt.stop.clone();
        let begun = self.begun.send(Puppet { attempt, end });
        Box::pin(async move {
            begun.expect("the test is there");
            match ended.await {
                Ok(outcome) => outcome,
                // The test has let go of it: it does what every attempt should.
                Err(_) => {
                    stop.cancelled().await;
                    Outcome::Cancelled
                }
            }
        })
    }
}

impl Puppets {
    /// The next attempt that begins.
    pub(crate) async fn next(&self) -> Puppet {
        soon(async { self.waiting.lock().await.recv().await })
            .await
            .expect("an attempt")
    }

    /// Whether an attempt has begun that nobody took.
    pub(crate) async fn is_idle(&self) -> bool {
        self.waiting.lock().await.is_empty()
    }
}

impl Puppet {
    pub(crate) fn end(self, outcome: Outcome) {
        self.end
            .send(outcome)
            .expect("the attempt waits for its end");
    }

    pub(crate) fn succeed(self) {
        self.end(Outcome::Succeeded(Some(Payload::text("done"))));
    }

    /// The right to tell of this attempt through the queue's own door, which answers after the commit.
    pub(crate) fn lease(&self) -> Lease {
        Lease {
            key: self.attempt.key.clone(),
            attempt: self.attempt.number,
        }
    }

    /// Stores reports in one commit, and comes back after it.
    pub(crate) async fn store(&self, queue: &JobQueue, reports: Vec<Report>) {
        let stored = soon(queue.report(&self.lease(), reports)).await;
        stored.expect("the attempt is alive");
    }

    pub(crate) async fn say(&self, text: &str) {
        let chunk = Payload::text(text);
        let said = self.attempt.reporter.output("stdout", chunk).await;
        said.expect("the attempt is alive");
    }
}

/// A piece of output as an attempt reports it.
pub(crate) fn output(text: impl Into<String>) -> Report {
    Report::Output {
        stream: "stdout".to_owned(),
        chunk: Payload::text(text),
    }
}

pub(crate) fn log_line(text: &str) -> Report {
    Report::Log(LogLine::new(LogLevel::Info, text))
}

pub(crate) fn progress(fraction: f64) -> Report {
    Report::Progress(Progress::fraction(fraction))
}

/// A pool with one place for a type, in the hands of the test: what is claimed comes out of the receiver.
pub(crate) async fn one_place(
    queue: &JobQueue,
    job_type: &'static str,
) -> (Places, mpsc::UnboundedReceiver<Handed>) {
    let places = Places::new(1, [(Name::of(job_type), 1)]);
    let (claimed, handed) = mpsc::unbounded_channel();
    let begin = Box::new(move |job| {
        // The test is over: nobody runs it.
        let _ = claimed.send(job);
    });
    queue
        .attach_pool("test".to_owned(), places.clone(), begin)
        .await;
    (places, handed)
}

pub(crate) fn job_key(job_id: &str) -> JobKey {
    JobKey {
        tenant: default_tenant(),
        id: JobId::parse(job_id).expect("a job id"),
    }
}

pub(crate) fn proto_duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().expect("a short time")
}

/// Waits until something is so that nothing announces.
pub(crate) async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + DEADLINE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A number that a longer run may raise.
pub(crate) fn count_of(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A folder that goes with the test.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_pacenote"))
}
