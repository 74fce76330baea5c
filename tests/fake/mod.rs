//! A JobService whose answers are scripted, on a port of its own, behind a connection that can be cut.
//! It keeps no jobs and checks nothing: whatever a test says, it says.

#![expect(dead_code, reason = "each test program uses its own part of it")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use pacenote::client::{Backoff, Client, Settings};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::job_service_server::{JobService, JobServiceServer};
use pacenote::pb::watch_job_response::Content;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub(crate) const JOB_ID: &str = "0198c0de-0000-7000-8000-000000000001";

/// One step of a scripted stream.
#[derive(Clone)]
pub(crate) enum Step<M = pb::WatchJobResponse> {
    Send(Box<M>),
    Fail(Status),
    /// Says nothing more.
    Silence,
    /// Cuts every connection, as a power cut would.
    Cut,
    /// Ends the server in good order: GOAWAY to every connection, no new ones until all of its streams
    /// have ended; then there is another one on its port.
    Goaway,
}

type Unary<Q, R> = Box<dyn Fn(&Q, usize) -> Result<R, Status> + Send + Sync>;
type Script<Q, M = pb::WatchJobResponse> =
    Box<dyn Fn(&Q, usize) -> Result<Vec<Step<M>>, Status> + Send + Sync>;

/// What the fake answers, and what it was asked. The number is how often the call came before.
pub(crate) struct Answers {
    pub(crate) submit: Unary<pb::SubmitRequest, pb::SubmitResponse>,
    pub(crate) batch_submit: Unary<pb::BatchSubmitRequest, pb::BatchSubmitResponse>,
    pub(crate) get: Unary<pb::GetRequest, pb::GetResponse>,
    pub(crate) list: Unary<pb::ListRequest, pb::ListResponse>,
    pub(crate) wait: Unary<pb::WaitRequest, pb::WaitResponse>,
    pub(crate) cancel: Unary<pb::CancelRequest, pb::CancelResponse>,
    pub(crate) list_events: Unary<pb::ListEventsRequest, pb::ListEventsResponse>,
    pub(crate) watch: Script<pb::WatchJobRequest>,
    pub(crate) watch_jobs: Script<pb::WatchJobsRequest, pb::WatchJobsResponse>,
    /// Its messages are wrapped as those of Run; the flag is `deduplicated` of the first.
    pub(crate) run: Script<pb::RunRequest>,
    pub(crate) run_deduplicated: bool,
}

impl Default for Answers {
    fn default() -> Self {
        fn no<Q, R>(_: &Q, _: usize) -> Result<R, Status> {
            Err(Status::unimplemented("not scripted"))
        }
        Self {
            submit: Box::new(no),
            batch_submit: Box::new(no),
            get: Box::new(no),
            list: Box::new(no),
            wait: Box::new(no),
            cancel: Box::new(no),
            list_events: Box::new(no),
            watch: Box::new(no),
            watch_jobs: Box::new(no),
            run: Box::new(no),
            run_deduplicated: false,
        }
    }
}

/// What the fake was asked, in order.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) submit: Vec<pb::SubmitRequest>,
    pub(crate) batch_submit: Vec<pb::BatchSubmitRequest>,
    pub(crate) get: Vec<pb::GetRequest>,
    pub(crate) list: Vec<pb::ListRequest>,
    pub(crate) wait: Vec<pb::WaitRequest>,
    pub(crate) cancel: Vec<pb::CancelRequest>,
    pub(crate) list_events: Vec<pb::ListEventsRequest>,
    pub(crate) watch: Vec<pb::WatchJobRequest>,
    pub(crate) watch_jobs: Vec<pb::WatchJobsRequest>,
    pub(crate) run: Vec<pb::RunRequest>,
}

#[derive(Clone)]
struct Service {
    answers: Arc<Answers>,
    asked: Arc<Mutex<Asked>>,
    cut: watch::Sender<u64>,
    goaway: watch::Sender<u64>,
}

/// A running fake. Dropping it ends it and all its connections.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<Mutex<Asked>>,
    cut: watch::Sender<u64>,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub(crate) async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::start_on(listener, answers).await
    }

    /// Serves on a listener: the address of a server that went away, for one that comes back.
    pub(crate) async fn start_on(front: TcpListener, answers: Answers) -> Self {
        let back = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, behind) = (front.local_addr(), back.local_addr());
        let behind = behind.expect("a bound listener has an address");
        let cut = watch::Sender::new(0);
        let asked = Arc::new(Mutex::new(Asked::default()));
        let service = Service {
            answers: Arc::new(answers),
            asked: asked.clone(),
            cut: cut.clone(),
            goaway: watch::Sender::new(0),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(back, behind, service));
        tasks.spawn(forward(front, behind, cut.clone()));
        Self {
            address: address.expect("a bound listener has an address"),
            asked,
            cut,
            _tasks: tasks,
        }
    }

    /// A client that waits milliseconds where a real one waits seconds.
    pub(crate) async fn client(&self) -> Client {
        Client::connect_with(self.address.to_string(), hasty())
            .await
            .expect("the fake is there")
    }

    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    pub(crate) fn asked<T>(&self, read: impl Fn(&Asked) -> T) -> T {
        read(&self.asked.lock().expect("no panic while it was held"))
    }
}

/// Serves, one server after the other on one port.
async fn serve(mut listener: TcpListener, address: SocketAddr, service: Service) {
    loop {
        let mut goaway = service.goaway.subscribe();
        tonic::transport::Server::builder()
            .add_service(JobServiceServer::new(service.clone()))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
                // The sender lives in the service: it does not go away before this server.
                goaway.changed().await.expect("a sender");
            })
            .await
            .expect("the fake serves");
        listener = TcpListener::bind(address).await.expect("its own port");
    }
}

/// Carries bytes to the server until it is told to cut.
async fn forward(front: TcpListener, behind: SocketAddr, cut: watch::Sender<u64>) {
    let mut pairs = JoinSet::new();
    while let Ok((mut near, _)) = front.accept().await {
        let mut cut = cut.subscribe();
        pairs.spawn(async move {
            // Between two servers: refused, as far as the client can tell.
            let Ok(mut far) = TcpStream::connect(behind).await else {
                return;
            };
            tokio::select! {
                // A connection that ended, however it ended, is what the tests want to see.
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = cut.changed() => drain(&mut far, &mut near).await,
            }
        });
    }
}

/// Lets through what the server had written before the cut: it goes from its stream to its socket in a
/// task of its own, so "nothing for a moment" is the only sign that all of it is there.
async fn drain(far: &mut TcpStream, near: &mut TcpStream) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(Ok(count @ 1..)) =
        tokio::time::timeout(Duration::from_millis(50), far.read(&mut bytes)).await
    {
        if near.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

pub(crate) fn hasty() -> Settings {
    Settings {
        backoff: Backoff {
            initial: Duration::from_millis(1),
            max: Duration::from_millis(5),
        },
        ..Settings::default()
    }
}

/// Notes a request and answers how often its call came before.
macro_rules! note {
    ($service:ident, $call:ident, $request:ident) => {{
        let mut asked = $service.asked.lock().expect("no panic while it was held");
        asked.$call.push($request.clone());
        asked.$call.len() - 1
    }};
}

macro_rules! unary {
    ($service:ident, $call:ident, $request:ident) => {{
        let request = $request.into_inner();
        let before = note!($service, $call, request);
        ($service.answers.$call)(&request, before).map(Response::new)
    }};
}

#[tonic::async_trait]
impl JobService for Service {
    type WatchJobStream = BoxStream<'static, Result<pb::WatchJobResponse, Status>>;
    type RunStream = BoxStream<'static, Result<pb::RunResponse, Status>>;

    async fn submit(
        &self,
        request: Request<pb::SubmitRequest>,
    ) -> Result<Response<pb::SubmitResponse>, Status> {
        unary!(self, submit, request)
    }
    async fn batch_submit(
        &self,
        request: Request<pb::BatchSubmitRequest>,
    ) -> Result<Response<pb::BatchSubmitResponse>, Status> {
        unary!(self, batch_submit, request)
    }
    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetResponse>, Status> {
        unary!(self, get, request)
    }
    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
        unary!(self, list, request)
    }
    async fn wait(
        &self,
        request: Request<pb::WaitRequest>,
    ) -> Result<Response<pb::WaitResponse>, Status> {
        unary!(self, wait, request)
    }
    async fn cancel(
        &self,
        request: Request<pb::CancelRequest>,
    ) -> Result<Response<pb::CancelResponse>, Status> {
        unary!(self, cancel, request)
    }
    type WatchJobsStream = BoxStream<'static, Result<pb::WatchJobsResponse, Status>>;

    async fn watch_jobs(
        &self,
        request: Request<pb::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let request = request.into_inner();
        let before = note!(self, watch_jobs, request);
        let steps = (self.answers.watch_jobs)(&request, before)?;
        Ok(Response::new(play(steps, self)))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        unary!(self, list_events, request)
    }

    async fn watch_job(
        &self,
        request: Request<pb::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let before = note!(self, watch, request);
        let steps = (self.answers.watch)(&request, before)?;
        Ok(Response::new(play(steps, self)))
    }

    async fn run(
        &self,
        request: Request<pb::RunRequest>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let request = request.into_inner();
        let before = note!(self, run, request);
        let steps = (self.answers.run)(&request, before)?;
        let flag = self.answers.run_deduplicated;
        let messages = play(steps, self).enumerate();
        let wrapped = messages.map(move |(n, message)| {
            message.map(|update| pb::RunResponse {
                deduplicated: flag && n == 0,
                update: Some(update),
            })
        });
        Ok(Response::new(wrapped.boxed()))
    }
}

fn play<M: Send + 'static>(
    steps: Vec<Step<M>>,
    service: &Service,
) -> BoxStream<'static, Result<M, Status>> {
    let (cut, goaway) = (service.cut.clone(), service.goaway.clone());
    futures_util::stream::iter(steps)
        .then(move |step| {
            let (cut, goaway) = (cut.clone(), goaway.clone());
            async move {
                match step {
                    Step::Send(message) => Ok(*message),
                    Step::Fail(status) => Err(status),
                    Step::Goaway => {
                        goaway.send_modify(|ends| *ends += 1);
                        Err(Status::unavailable("ended after GOAWAY"))
                    }
                    Step::Silence => std::future::pending().await,
                    Step::Cut => {
                        cut.send_modify(|cuts| *cuts += 1);
                        std::future::pending().await
                    }
                }
            }
        })
        .boxed()
}

pub(crate) fn job(state: State, last_sequence: i64) -> pb::Job {
    pb::Job {
        job_id: JOB_ID.to_owned(),
        r#type: "pages".to_owned(),
        queue: "default".to_owned(),
        state: state.into(),
        last_sequence,
        first_sequence: 1,
        attempt: 1,
        ..pb::Job::default()
    }
}

pub(crate) fn snapshot(job: pb::Job, through_sequence: i64) -> Step {
    Step::Send(Box::new(pb::WatchJobResponse {
        through_sequence,
        content: Some(Content::Snapshot(job)),
    }))
}

pub(crate) fn heartbeat(through_sequence: i64) -> Step {
    Step::Send(Box::new(pb::WatchJobResponse {
        through_sequence,
        content: Some(Content::Heartbeat(pb::Heartbeat::default())),
    }))
}

pub(crate) fn gap(first: i64, last: i64) -> Step {
    Step::Send(Box::new(pb::WatchJobResponse {
        through_sequence: last,
        content: Some(Content::Gap(pb::EventGap {
            cause: pb::event_gap::Cause::Retention.into(),
            job_id: JOB_ID.to_owned(),
            first_missing_sequence: first,
            last_missing_sequence: last,
        })),
    }))
}

/// An event about nothing in particular.
pub(crate) fn event(sequence: i64) -> pb::JobEvent {
    event_of(
        sequence,
        pb::job_event::Event::Log(pb::LogLine {
            level: pb::log_line::Level::Info.into(),
            message: format!("line {sequence}"),
            fields: None,
        }),
    )
}

pub(crate) fn event_of(sequence: i64, event: pb::job_event::Event) -> pb::JobEvent {
    pb::JobEvent {
        job_id: JOB_ID.to_owned(),
        sequence,
        event_time: None,
        attempt: 1,
        event: Some(event),
    }
}

pub(crate) fn batch(events: &[pb::JobEvent], through_sequence: i64) -> Step {
    let events = events.iter().map(|e| e.encode_to_vec().into()).collect();
    Step::Send(Box::new(pb::WatchJobResponse {
        through_sequence,
        content: Some(Content::Events(pb::EventBatch { events })),
    }))
}

/// The whole rest of a log of `last` events in batches of `size`, with its end, as an honest server
/// would send it after `after`.
pub(crate) fn honest_rest(after: i64, last: i64, size: usize) -> Vec<Step> {
    let rest: Vec<pb::JobEvent> = (after + 1..=last).map(event).collect();
    let mut steps: Vec<Step> = rest
        .chunks(size)
        .map(|chunk| batch(chunk, chunk.last().map_or(after, |event| event.sequence)))
        .collect();
    steps.push(snapshot(job(State::Succeeded, last), last));
    steps
}

/// A status as the server sends it: with ErrorInfo, and RetryInfo if asked.
pub(crate) fn status(code: Code, reason: &str, retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, "pacenote.dev", []);
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, format!("{reason} happened"), details)
}
