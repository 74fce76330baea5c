//! Workers that are other programs: leases, reports and ends through `WorkerService`.

use std::sync::Arc;
use std::time::Duration;

use pacenote::job::name::Name;
use pacenote::job::time::Clock;
use pacenote::pb;
use pacenote::pb::finish_request::Outcome;
use pacenote::pb::job::State;
use pacenote::pb::job_event::Event;
use pacenote::pb::queue_service_client::QueueServiceClient;
use pacenote::pb::worker_service_client::WorkerServiceClient;
use pacenote::queue::{Submission, WorkRequest, default_tenant};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::harness::{
    Puppets, Setup, TestClock, TestServer, bad_fields, eventually, folder, reason_of, soon,
    submit_request,
};

type WorkerClient = WorkerServiceClient<Channel>;

/// A server, and a worker of another program that has leased for the type `work` once.
pub(crate) struct Scene {
    server: TestServer,
    worker: WorkerClient,
}

async fn worker_of(server: &TestServer) -> WorkerClient {
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).expect("an address");
    let channel = endpoint.connect().await.expect("the server accepts");
    WorkerServiceClient::new(channel).max_decoding_message_size(64 * 1024 * 1024)
}

impl Scene {
    async fn new(setup: Setup) -> Self {
        let server = setup.start().await;
        let worker = worker_of(&server).await;
        let scene = Self { server, worker };
        // From here on its type is known.
        assert_eq!(scene.lease(at_once(1)).await, []);
        scene
    }

    pub(crate) async fn on(dir: &TempDir) -> Self {
        Self::new(Setup::on(dir.path())).await
    }

    async fn lease(&self, request: pb::LeaseRequest) -> Vec<pb::LeasedJob> {
        let leased = soon(self.worker.clone().lease(request)).await;
        leased.expect("a good request").into_inner().leased_jobs
    }

    /// One job that waits already, or comes soon.
    async fn lease_one(&self) -> pb::LeasedJob {
        let mut leased = self.lease(lease_request(1)).await;
        assert_eq!(leased.len(), 1);
        leased.remove(0)
    }

    async fn submit(&self) -> String {
        self.server.submit(submit_request("work")).await.job_id
    }

    /// A job that a worker holds.
    pub(crate) async fn begin(&self) -> pb::LeasedJob {
        let job_id = self.submit().await;
        let leased = self.lease_one().await;
        assert_eq!(id_of(&leased), job_id);
        leased
    }

    async fn report(&self, request: pb::ReportRequest) -> Result<pb::ReportResponse, Status> {
        let reported = soon(self.worker.clone().report(request)).await;
        reported.map(tonic::Response::into_inner)
    }

    pub(crate) async fn finish(&self, token: &str, outcome: Outcome) -> Result<pb::Job, Status> {
        let request = pb::FinishRequest {
            lease_token: token.to_owned(),
            outcome: Some(outcome),
            retry_delay: None,
        };
        let finished = soon(self.worker.clone().finish(request)).await?;
        Ok(finished.into_inner().job.expect("the job"))
    }

    async fn extend(&self, tokens: &[&str]) -> Vec<pb::LeaseStatus> {
        let request = pb::ExtendLeasesRequest {
            lease_tokens: tokens.iter().map(ToString::to_string).collect(),
        };
        let extended = soon(self.worker.clone().extend_leases(request)).await;
        extended.expect("good tokens").into_inner().leases
    }

    /// Waits until a worker waits for work.
    async fn somebody_waits(&self) {
        let queue = &self.server.queue;
        eventually("a worker waits", || queue.waiting_workers() > 0).await;
        queue.settle().await;
    }

    pub(crate) async fn stop(self) {
        drop(self.worker);
        self.server.stop().await.expect("a clean end");
    }
}

fn lease_request(max_jobs: i32) -> pb::LeaseRequest {
    pb::LeaseRequest {
        worker_id: "worker-1".to_owned(),
        types: vec!["work".to_owned()],
        max_jobs,
        ..pb::LeaseRequest::default()
    }
}

/// Looks once, and does not wait.
fn at_once(max_jobs: i32) -> pb::LeaseRequest {
    pb::LeaseRequest {
        wait: Some(prost_types::Duration::default()),
        ..lease_request(max_jobs)
    }
}

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn text(text: &str) -> pb::Payload {
    pb::Payload {
        content: Some(pb::payload::Content::Text(text.to_owned())),
        ..pb::Payload::default()
    }
}

fn done(result: &str) -> Outcome {
    Outcome::Result(text(result))
}

fn failed(retryable: bool) -> Outcome {
    Outcome::Error(pb::JobError {
        reason: "BROKEN".to_owned(),
        message: "it broke".to_owned(),
        retryable,
        ..pb::JobError::default()
    })
}

fn output(text_of: &str) -> pb::WorkerEvent {
    pb::WorkerEvent {
        event: Some(pb::worker_event::Event::Output(pb::OutputChunk {
            stream: "stdout".to_owned(),
            offset: 0,
            chunk: Some(text(text_of)),
        })),
    }
}

fn outputs(log: &[pb::JobEvent]) -> Vec<(i64, String)> {
    let output = |event: &pb::JobEvent| match &event.event {
        Some(Event::Output(output)) => {
            let chunk = output.chunk.clone().expect("a chunk").content;
            let Some(pb::payload::Content::Text(text)) = chunk else {
                panic!("no text: {chunk:?}");
            };
            Some((output.offset, text))
        }
        _ => None,
    };
    log.iter().filter_map(output).collect()
}

fn id_of(leased: &pb::LeasedJob) -> String {
    leased.job.clone().expect("a job").job_id
}

fn heartbeat(token: &str) -> pb::ReportRequest {
    pb::ReportRequest {
        lease_token: token.to_owned(),
        ..pb::ReportRequest::default()
    }
}

fn assert_stale<T: std::fmt::Debug>(refused: Result<T, Status>) {
    let refused = refused.expect_err("the lease is lost");
    let stale = (Code::FailedPrecondition, "STALE_LEASE".to_owned());
    assert_eq!(reason_of(&refused), stale, "{refused:?}");
}

/// Goal: a worker in another program does a job from its claim to its result, and everybody sees all of it.
#[tokio::test]
async fn a_worker_of_another_program_does_a_job() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let request = pb::SubmitRequest {
        input: Some(text("the input")),
        ..submit_request("work")
    };
    let job_id = scene.server.submit(request).await.job_id;
    let leased = scene.lease_one().await;
    let job = leased.job.clone().expect("a job");
    assert_eq!(job.state(), State::Running);
    assert_eq!((job.attempt, job.worker_id.as_str()), (1, "worker-1"));
    assert_eq!(job.input, Some(text("the input")));
    assert!(leased.lease_expire_time.is_some());
    let progress = pb::Progress {
        completed_units: Some(3),
        total_units: Some(4),
        unit: "rows".to_owned(),
        ..pb::Progress::default()
    };
    let line = pb::LogLine {
        message: "half way".to_owned(),
        ..pb::LogLine::default()
    };
    let report = pb::ReportRequest {
        events: vec![
            output("one "),
            output("two"),
            pb::WorkerEvent {
                event: Some(pb::worker_event::Event::Log(line)),
            },
            pb::WorkerEvent {
                event: Some(pb::worker_event::Event::Progress(progress)),
            },
        ],
        report_number: 1,
        checkpoint: Some(text("here")),
        ..heartbeat(&leased.lease_token)
    };
    let standing = scene.report(report).await.expect("it holds the lease");
    assert!(!standing.cancel_requested);
    let finished = scene.finish(&leased.lease_token, done("the result")).await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    let job = scene.server.get(&job_id).await;
    assert_eq!(job.result, Some(text("the result")));
    assert_eq!(job.checkpoint, Some(text("here")));
    let progress = job.progress.expect("its progress");
    assert_eq!(progress.fraction, Some(0.75));
    let log = scene.server.log(&job_id).await;
    let told = [(0, "one ".to_owned()), (4, "two".to_owned())];
    assert_eq!(outputs(&log), told);
    scene.stop().await;
}

/// Goal: whoever waits for work has it as soon as it comes, in the commit that stores it, and where none
/// comes an empty answer in time.
#[tokio::test]
async fn a_waiting_worker_gets_a_job_as_it_comes() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let worker = scene.worker.clone();
    let polling = tokio::spawn(async move { worker.clone().lease(lease_request(2)).await });
    scene.somebody_waits().await;
    let job_id = scene.submit().await;
    let leased = soon(polling).await.expect("no panic").expect("work");
    let leased = leased.into_inner();
    assert!(!leased.drain);
    let [leased] = leased.leased_jobs.try_into().expect("one job");
    assert_eq!(id_of(&leased), job_id);
    assert_eq!(scene.lease(at_once(1)).await, []);
    scene.stop().await;
}

/// Goal: nothing that comes with the token of a lost lease changes anything; and the job goes on in another
/// attempt, which has the checkpoint. Method: the lease runs out by a clock of the test's.
#[tokio::test]
async fn a_lost_lease_fences_its_holder_off() {
    let dir = folder();
    let clock = TestClock::new();
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let scene = Scene::new(setup).await;
    let old = scene.begin().await;
    let report = pb::ReportRequest {
        checkpoint: Some(text("so far")),
        ..heartbeat(&old.lease_token)
    };
    scene.report(report).await.expect("it holds the lease");
    let queue = &scene.server.queue;
    // A tick before its end nothing is lost.
    clock.pass(Duration::from_secs(14));
    assert_eq!(queue.sweep_leases(clock.steady()).await.expect("swept"), 0);
    clock.pass(Duration::from_secs(2));
    assert_eq!(queue.sweep_leases(clock.steady()).await.expect("swept"), 1);
    let new = scene.lease_one().await;
    let job = new.job.clone().expect("the job");
    assert_eq!((id_of(&new), job.attempt), (id_of(&old), 2));
    assert_eq!(job.checkpoint, Some(text("so far")));
    assert_eq!((job.attempts_charged, job.last_sequence), (1, 5));
    let late = pb::ReportRequest {
        events: vec![output("late")],
        ..heartbeat(&old.lease_token)
    };
    assert_stale(scene.report(late).await);
    assert_stale(scene.finish(&old.lease_token, done("late")).await);
    let [old_status, new_status] = scene
        .extend(&[&old.lease_token, &new.lease_token])
        .await
        .try_into()
        .expect("two");
    assert!(old_status.lost && old_status.lease_expire_time.is_none());
    assert!(!new_status.lost && new_status.lease_expire_time.is_some());
    assert_eq!(scene.server.get(&id_of(&new)).await.last_sequence, 5);
    let finished = scene.finish(&new.lease_token, done("in time")).await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    scene.stop().await;
}

/// Goal: a renewal holds for the term that the worker asked for, no less and no more.
#[tokio::test]
async fn a_lease_holds_for_the_term_that_was_asked_for() {
    let dir = folder();
    let clock = TestClock::new();
    let setup = Setup::on(dir.path()).clock(Arc::new(clock.clone()));
    let scene = Scene::new(setup).await;
    let queue = &scene.server.queue;
    for term in [5, 300] {
        scene.submit().await;
        let request = pb::LeaseRequest {
            lease: Some(seconds(term)),
            ..lease_request(1)
        };
        let leased = scene.lease(request).await.remove(0);
        for _ in 0..2 {
            clock.pass(Duration::from_secs(term as u64 - 1));
            assert_eq!(queue.sweep_leases(clock.steady()).await.expect("swept"), 0);
            let standing = scene.report(heartbeat(&leased.lease_token)).await;
            standing.expect("it holds the lease");
        }
        clock.pass(Duration::from_secs(term as u64 + 1));
        assert_eq!(queue.sweep_leases(clock.steady()).await.expect("swept"), 1);
        scene.server.cancel(&id_of(&leased)).await;
    }
    scene.stop().await;
}

/// Goal: what is sent again because its answer was lost has no second effect.
#[tokio::test]
async fn what_is_sent_twice_is_stored_once() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let leased = scene.begin().await;
    let token = &leased.lease_token;
    let report = |number: i64, text: &str| pb::ReportRequest {
        events: vec![output(text)],
        report_number: number,
        ..heartbeat(token)
    };
    for (number, text) in [
        (1, "a"),
        (1, "a"),
        (2, "b"),
        (1, "a"),
        (2, "b"),
        (4, "c"),
        (4, "c"),
    ] {
        scene.report(report(number, text)).await.expect("it holds");
    }
    // Those that are not counted are stored each time.
    for _ in 0..2 {
        scene.report(report(0, "d")).await.expect("it holds");
    }
    let log = scene.server.log(&id_of(&leased)).await;
    let texts: Vec<String> = outputs(&log).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts.concat(), "abcdd");
    let first = scene.finish(token, failed(true)).await.expect("its end");
    let again = scene.finish(token, failed(true)).await.expect("the same");
    assert_eq!(first, again);
    assert_eq!(first.attempts_charged, 1);
    // Another end is not the same one.
    assert_stale(scene.finish(token, failed(false)).await);
    assert_stale(scene.report(report(5, "late")).await);
    scene.stop().await;
}

/// Goal: the same over a restart of the server: tokens, numbers and ends are known to the next one, which
/// gives every lease a fresh term.
#[tokio::test]
async fn a_worker_outlives_its_server() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (one, two) = (scene.begin().await, scene.begin().await);
    let report = pb::ReportRequest {
        events: vec![output("a")],
        report_number: 1,
        ..heartbeat(&one.lease_token)
    };
    scene.report(report.clone()).await.expect("it holds");
    let ended = scene.finish(&two.lease_token, done("two")).await;
    ended.expect("its end");
    scene.stop().await;
    let server = Setup::on(dir.path()).start().await;
    let worker = worker_of(&server).await;
    let scene = Scene { server, worker };
    let job = scene.server.get(&id_of(&one)).await;
    assert_eq!((job.state(), job.attempt), (State::Running, 1));
    scene.report(report).await.expect("it holds");
    let log = scene.server.log(&id_of(&one)).await;
    assert_eq!(outputs(&log).len(), 1, "it was sent before");
    let again = scene.finish(&two.lease_token, done("two")).await;
    assert_eq!(again.expect("the same end").state(), State::Succeeded);
    let finished = scene.finish(&one.lease_token, done("one")).await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    // The type is known to the next server as well.
    scene.submit().await;
    assert_eq!(scene.lease(at_once(10)).await.len(), 1);
    scene.stop().await;
}

/// Goal: a worker hears of a cancel with its next word; whatever it says then, its job is CANCELLED; and
/// nobody can say that it was cancelled who was not asked.
#[tokio::test]
async fn a_cancel_reaches_the_worker_with_its_next_word() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let (one, two) = (scene.begin().await, scene.begin().await);
    let refused = scene.finish(&one.lease_token, Outcome::Cancelled(pb::Cancelled {}));
    let refused = refused.await.expect_err("nobody asked");
    let reason = (Code::FailedPrecondition, "NOT_CANCELLING".to_owned());
    assert_eq!(reason_of(&refused), reason);
    for leased in [&one, &two] {
        let job = scene.server.cancel(&id_of(leased)).await;
        assert_eq!(job.state(), State::Cancelling);
    }
    let standing = scene.report(heartbeat(&one.lease_token)).await;
    let standing = standing.expect("it holds the lease");
    let told = (standing.cancel_requested, standing.cancel_reason.as_str());
    assert_eq!(told, (true, "enough"));
    // Progress that is held back brings the news as well.
    let progress = pb::WorkerEvent {
        event: Some(pb::worker_event::Event::Progress(pb::Progress::default())),
    };
    for _ in 0..2 {
        let report = pb::ReportRequest {
            events: vec![progress.clone()],
            ..heartbeat(&one.lease_token)
        };
        let standing = scene.report(report).await.expect("it holds the lease");
        assert!(standing.cancel_requested);
    }
    let status = scene.extend(&[&two.lease_token]).await.remove(0);
    assert!(status.cancel_requested && !status.lost);
    assert_eq!(status.cancel_reason, "enough");
    let ended = scene.finish(&one.lease_token, Outcome::Cancelled(pb::Cancelled {}));
    assert_eq!(ended.await.expect("its end").state(), State::Cancelled);
    let ended = scene.finish(&two.lease_token, done("too late")).await;
    let ended = ended.expect("the end is told, with OK");
    assert_eq!((ended.state(), ended.result), (State::Cancelled, None));
    scene.stop().await;
}

/// Goal: each way in which an attempt may end has the effect that it has in the pool.
#[tokio::test]
async fn an_attempt_may_be_handed_back_snoozed_or_fail() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let leased = scene.begin().await;
    let ended = scene.finish(&leased.lease_token, Outcome::HandBack(pb::HandBack {}));
    let ended = ended.await.expect("its end");
    assert_eq!((ended.state(), ended.attempts_charged), (State::Queued, 0));
    let leased = scene.lease_one().await;
    assert_eq!(leased.job.as_ref().expect("a job").attempt, 2);
    let snooze = Outcome::Snooze(pb::Snooze {
        delay: Some(seconds(3600)),
    });
    let ended = scene.finish(&leased.lease_token, snooze).await;
    let ended = ended.expect("its end");
    assert_eq!(
        (ended.state(), ended.attempts_charged),
        (State::Scheduled, 0)
    );
    let leased = scene.begin().await;
    let request = pb::FinishRequest {
        lease_token: leased.lease_token.clone(),
        outcome: Some(failed(true)),
        retry_delay: Some(seconds(1800)),
    };
    let ended = scene.worker.clone().finish(request).await;
    let ended = ended.expect("its end").into_inner().job.expect("the job");
    assert_eq!(
        (ended.state(), ended.attempts_charged),
        (State::Scheduled, 1)
    );
    let wait = ended.schedule_time.expect("when").seconds - ended.update_time.expect("now").seconds;
    assert!((1799..=1801).contains(&wait), "{wait}");
    let leased = scene.begin().await;
    let ended = scene.finish(&leased.lease_token, failed(false)).await;
    let ended = ended.expect("its end");
    assert_eq!(ended.state(), State::Failed);
    assert_eq!(ended.error.expect("why").reason, "BROKEN");
    scene.stop().await;
}

/// Goal: what a worker does not end in time, the server ends: its lease is void from then on.
#[tokio::test]
async fn the_server_ends_an_attempt_that_has_reached_a_limit() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let millis = |millis: i32| prost_types::Duration {
        seconds: 0,
        nanos: millis * 1_000_000,
    };
    let once = pb::RetryPolicy {
        max_attempts: 1,
        ..pb::RetryPolicy::default()
    };
    let cases = [
        (
            pb::Timeouts {
                run_timeout: Some(millis(300)),
                ..pb::Timeouts::default()
            },
            (State::Failed, "RUN_TIMEOUT"),
        ),
        (
            pb::Timeouts {
                heartbeat_timeout: Some(millis(300)),
                ..pb::Timeouts::default()
            },
            (State::Failed, "HEARTBEAT_TIMEOUT"),
        ),
        (
            pb::Timeouts {
                total_timeout: Some(millis(300)),
                ..pb::Timeouts::default()
            },
            (State::Expired, "TOTAL_TIMEOUT"),
        ),
    ];
    for (timeouts, expected) in cases {
        let request = pb::SubmitRequest {
            timeouts: Some(timeouts),
            retry_policy: Some(once.clone()),
            ..submit_request("work")
        };
        let job_id = scene.server.submit(request).await.job_id;
        let leased = scene.lease_one().await;
        // A heartbeat renews the lease, and tells nothing.
        scene
            .report(heartbeat(&leased.lease_token))
            .await
            .expect("it holds");
        let job = scene.server.end_of(&job_id).await;
        let reason = job.error.clone().expect("why").reason;
        assert_eq!((job.state(), reason.as_str()), expected);
        assert_stale(scene.report(heartbeat(&leased.lease_token)).await);
        assert_stale(scene.finish(&leased.lease_token, done("late")).await);
    }
    scene.stop().await;
}

/// Goal: a caller that has gone gets nothing.
#[tokio::test]
async fn a_caller_that_has_gone_is_forgotten() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let mut worker = scene.worker.clone();
    let polling = tokio::spawn(async move { worker.lease(lease_request(1)).await });
    scene.somebody_waits().await;
    polling.abort();
    let queue = &scene.server.queue;
    eventually("nobody waits", || queue.waiting_workers() == 0).await;
    let leased = scene.begin().await;
    assert_eq!(leased.job.expect("a job").attempts_charged, 0);
    scene.stop().await;
}

/// Goal: what was claimed for a caller that went away at that very moment is handed back at once, and
/// charged to nobody. Method: callers that go before, while and after their job comes; not one job may be
/// lost, which only the end of a lease would give back.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_caller_went_away_is_handed_back() {
    const JOBS: usize = 500;
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let queue = &scene.server.queue;
    let request = || WorkRequest {
        tenant: default_tenant(),
        worker_id: "worker-1".to_owned(),
        types: vec![Name::of("work")],
        queues: Vec::new(),
        max_jobs: 1,
        term: Duration::from_secs(300),
        wait: Duration::from_secs(300),
    };
    let lease = || {
        let queue = queue.clone();
        tokio::spawn(async move { queue.lease(request(), |_| true).await })
    };
    let mut callers = Vec::new();
    for index in 0..JOBS {
        let caller = lease();
        let submitted = tokio::spawn({
            let queue = queue.clone();
            async move { queue.submit(Submission::new("work", None)).await }
        });
        for _ in 0..index % 50 {
            tokio::task::yield_now().await;
        }
        caller.abort();
        callers.push(caller);
        soon(submitted).await.expect("no panic").expect("stored");
    }
    let mut kept = 0;
    for caller in callers {
        if let Ok(work) = caller.await {
            kept += work.expect("a good request").jobs.len();
        }
    }
    assert!(kept < JOBS, "some went before their job came");
    let mut left = 0;
    while kept + left < JOBS {
        let work = soon(lease()).await.expect("no panic").expect("work");
        for one in &work.jobs {
            assert_eq!(one.snapshot.job.attempts_charged, 0);
        }
        left += work.jobs.len();
    }
    assert_eq!(scene.lease(at_once(1)).await, []);
    scene.stop().await;
}

/// Goal: an answer goes into a message that every client takes; what does not go into it is handed back,
/// uncharged and in its place.
#[tokio::test]
async fn an_answer_has_no_more_jobs_than_go_into_it() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let large = "x".repeat(1_000_000);
    let mut ids = Vec::new();
    for _ in 0..8 {
        let request = pb::SubmitRequest {
            input: Some(text(&large)),
            ..submit_request("work")
        };
        ids.push(scene.server.submit(request).await.job_id);
    }
    let mut leased: Vec<pb::LeasedJob> = Vec::new();
    while leased.len() < ids.len() {
        let endpoint = Channel::from_shared(format!("http://{}", scene.server.address));
        let channel = endpoint.expect("an address").connect().await;
        // With the bound that every client has.
        let mut worker = WorkerServiceClient::new(channel.expect("it accepts"));
        let work = worker.lease(lease_request(8)).await.expect("it fits");
        let work = work.into_inner().leased_jobs;
        assert!((1..=3).contains(&work.len()), "{}", work.len());
        leased.extend(work);
    }
    assert_eq!(leased.iter().map(id_of).collect::<Vec<_>>(), ids);
    for one in &leased {
        assert_eq!(one.job.as_ref().expect("a job").attempts_charged, 0);
    }
    scene.stop().await;
}

/// Goal: a type may be served by the pool, by workers, or by both; a worker gets jobs of its types and
/// queues alone; and limits and pauses of queues and types bind it as they bind the pool.
#[tokio::test]
async fn workers_stand_beside_the_pool_and_under_the_same_limits() {
    let dir = folder();
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path())
        .config(|config| config.workers = 1)
        .job_type("puppet", puppets.clone());
    let scene = Scene::new(setup).await;
    let in_queue = |job_type: &str, queue: &str| pb::SubmitRequest {
        queue: queue.to_owned(),
        ..submit_request(job_type)
    };
    let first = scene.server.submit(submit_request("puppet")).await.job_id;
    let puppet = puppets.next().await;
    assert_eq!(puppet.attempt.key.id.to_string(), first);
    let second = scene.server.submit(submit_request("puppet")).await.job_id;
    let of_both = pb::LeaseRequest {
        types: vec!["work".to_owned(), "puppet".to_owned()],
        ..at_once(10)
    };
    let leased = scene.lease(of_both.clone()).await;
    assert_eq!(leased.iter().map(id_of).collect::<Vec<_>>(), [second]);
    puppet.succeed();
    for queue in ["a", "b", "b"] {
        scene.server.submit(in_queue("work", queue)).await;
    }
    let of_b = pb::LeaseRequest {
        queues: vec!["b".to_owned()],
        ..at_once(1)
    };
    let leased = scene.lease(of_b.clone()).await;
    assert_eq!(leased[0].job.as_ref().expect("a job").queue, "b");
    let endpoint = Channel::from_shared(format!("http://{}", scene.server.address));
    let channel = endpoint.expect("an address").connect().await;
    let mut queues = QueueServiceClient::new(channel.expect("it accepts"));
    let limits = pb::SetQueueLimitsRequest {
        queue: "b".to_owned(),
        concurrency: Some(1),
        ..pb::SetQueueLimitsRequest::default()
    };
    queues.set_queue_limits(limits).await.expect("set");
    assert_eq!(scene.lease(of_b.clone()).await, [], "one of b runs");
    let ended = scene.finish(&leased[0].lease_token, done("b")).await;
    ended.expect("its end");
    let pause = |name: &str| pb::PauseJobTypeRequest {
        job_type: name.to_owned(),
    };
    queues.pause_job_type(pause("work")).await.expect("paused");
    assert_eq!(scene.lease(of_both.clone()).await, []);
    let resume = pb::ResumeJobTypeRequest {
        job_type: "work".to_owned(),
    };
    queues.resume_job_type(resume).await.expect("resumed");
    let leased = scene.lease(of_both).await;
    let names = leased
        .iter()
        .map(|one| one.job.clone().expect("a job").queue);
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, ["a", "b"]);
    scene.stop().await;
}

/// Goal: a type that nobody serves is refused until a worker has leased for it; from then on it is listed.
#[tokio::test]
async fn a_type_is_known_once_a_worker_has_leased_for_it() {
    let dir = folder();
    let server = Setup::on(dir.path()).start().await;
    let refused = server.client.clone().submit(submit_request("work")).await;
    let refused = refused.expect_err("nobody serves it");
    assert_eq!(bad_fields(&refused), ["type"]);
    let worker = worker_of(&server).await;
    let scene = Scene { server, worker };
    assert_eq!(scene.lease(at_once(1)).await, []);
    scene.submit().await;
    let endpoint = Channel::from_shared(format!("http://{}", scene.server.address));
    let channel = endpoint.expect("an address").connect().await;
    let mut queues = QueueServiceClient::new(channel.expect("it accepts"));
    let listed = queues.list_job_types(pb::ListJobTypesRequest {}).await;
    let listed = listed.expect("a list").into_inner().job_types;
    assert!(listed.iter().any(|one| one.name == "work"), "{listed:?}");
    // Another tenant knows nothing of it.
    let other = Name::of("other");
    let types = scene.server.queue.job_types(&other).await.expect("types");
    assert!(types.iter().all(|one| one.status.name.as_str() != "work"));
    scene.stop().await;
}

/// Goal: everything that is wrong with a request is told at once, with the field, the value and the bound.
#[tokio::test]
async fn a_bad_request_is_told_field_by_field() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let leased = scene.begin().await;
    let fields = |status: Status| -> Vec<String> {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        bad_fields(&status)
    };
    let request = pb::LeaseRequest {
        worker_id: String::new(),
        types: vec!["a b".to_owned()],
        queues: vec![String::new()],
        max_jobs: 1_001,
        lease: Some(seconds(4)),
        wait: Some(seconds(301)),
    };
    let refused = scene.worker.clone().lease(request).await;
    let refused = fields(refused.expect_err("all of it is wrong"));
    for field in [
        "types[0]",
        "queues[0]",
        "lease",
        "wait",
        "worker_id",
        "max_jobs",
    ] {
        assert!(
            refused.iter().any(|one| one == field),
            "{field}: {refused:?}"
        );
    }
    for (request, accepted) in [
        (
            pb::LeaseRequest {
                max_jobs: 1_000,
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                max_jobs: -1,
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                lease: Some(seconds(5)),
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                lease: Some(seconds(300)),
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                lease: Some(seconds(301)),
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                worker_id: "w".repeat(1024),
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                worker_id: "w".repeat(1025),
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                types: vec!["work".to_owned(); 100],
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                types: vec!["work".to_owned(); 101],
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                types: vec![],
                ..at_once(1)
            },
            false,
        ),
        (
            pb::LeaseRequest {
                queues: vec!["q".to_owned(); 100],
                ..at_once(1)
            },
            true,
        ),
        (
            pb::LeaseRequest {
                queues: vec!["q".to_owned(); 101],
                ..at_once(1)
            },
            false,
        ),
    ] {
        let answered = scene.worker.clone().lease(request.clone()).await;
        assert_eq!(answered.is_ok(), accepted, "{request:?}: {answered:?}");
    }
    let report = pb::ReportRequest {
        events: vec![
            pb::WorkerEvent { event: None },
            pb::WorkerEvent {
                event: Some(pb::worker_event::Event::Progress(pb::Progress {
                    fraction: Some(1.5),
                    ..pb::Progress::default()
                })),
            },
            pb::WorkerEvent {
                event: Some(pb::worker_event::Event::Output(pb::OutputChunk::default())),
            },
        ],
        report_number: -1,
        checkpoint: Some(text(&"x".repeat(1024 * 1024 + 1))),
        ..heartbeat(&leased.lease_token)
    };
    let refused = fields(scene.report(report).await.expect_err("all of it is wrong"));
    let expected = [
        "report_number",
        "events[0].event",
        "events[1].progress.fraction",
        "events[2].output.stream",
        "checkpoint",
    ];
    assert_eq!(refused, expected);
    for (events, accepted) in [(1_000, true), (1_001, false)] {
        let report = pb::ReportRequest {
            events: vec![output("x"); events],
            ..heartbeat(&leased.lease_token)
        };
        assert_eq!(scene.report(report).await.is_ok(), accepted, "{events}");
    }
    let nothing = pb::FinishRequest {
        lease_token: leased.lease_token.clone(),
        retry_delay: Some(seconds(1)),
        outcome: None,
    };
    let refused = scene.worker.clone().finish(nothing).await;
    let refused = fields(refused.expect_err("it says nothing"));
    assert_eq!(refused, ["retry_delay", "outcome"]);
    let bad = Outcome::Error(pb::JobError {
        code: 17,
        reason: "lower".to_owned(),
        metadata: (0..33).map(|n| (n.to_string(), String::new())).collect(),
        ..pb::JobError::default()
    });
    let refused = scene.finish(&leased.lease_token, bad).await;
    let refused = fields(refused.expect_err("all of it is wrong"));
    assert_eq!(refused, ["error.code", "error.reason", "error.metadata"]);
    for token in ["", "no token", &leased.lease_token[1..]] {
        let refused = scene.report(heartbeat(token)).await;
        assert_eq!(fields(refused.expect_err("no token")), ["lease_token"]);
    }
    let request = pb::ExtendLeasesRequest {
        lease_tokens: vec![leased.lease_token.clone(), "no token".to_owned()],
    };
    let refused = scene.worker.clone().extend_leases(request).await;
    let refused = fields(refused.expect_err("one is no token"));
    assert_eq!(refused, ["lease_tokens[1]"]);
    for (count, accepted) in [(0, false), (1_000, true), (1_001, false)] {
        let request = pb::ExtendLeasesRequest {
            lease_tokens: vec![leased.lease_token.clone(); count],
        };
        let extended = scene.worker.clone().extend_leases(request).await;
        assert_eq!(extended.is_ok(), accepted, "{count}");
    }
    // Nothing of it was charged, or stored.
    let finished = scene
        .finish(&leased.lease_token, done("all the same"))
        .await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    scene.stop().await;
}

/// Goal: a server that is about to stop says so to those who wait for work, and to those who come; what they
/// hold stays theirs.
#[tokio::test]
async fn a_draining_server_gives_no_more_work() {
    let dir = folder();
    let scene = Scene::on(&dir).await;
    let held = scene.begin().await;
    let worker = scene.worker.clone();
    let polling = tokio::spawn(async move { worker.clone().lease(lease_request(1)).await });
    scene.somebody_waits().await;
    scene.server.queue.drain();
    let work = soon(polling).await.expect("no panic").expect("an answer");
    let work = work.into_inner();
    assert_eq!((work.drain, work.leased_jobs.len()), (true, 0));
    let work = scene.worker.clone().lease(lease_request(1)).await;
    assert!(work.expect("an answer").into_inner().drain);
    let finished = scene.finish(&held.lease_token, done("in time")).await;
    assert_eq!(finished.expect("its end").state(), State::Succeeded);
    scene.stop().await;
}
