//! Queues with limits and pauses, and tenants that share them: what is started when, through the public
//! door.

use std::sync::Arc;
use std::time::Duration;

use pacenote::config::TenantSettings;
use pacenote::config::queue::rate_limit;
use pacenote::job::Outcome;
use pacenote::job::name::Name;
use pacenote::job::queue::{Given, GivenLimits};
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::queue_service_client::QueueServiceClient;
use pacenote::queue::Submission;
use tonic::transport::Channel;

use crate::crash::process::Start;
use crate::harness::{Puppets, Setup, TestClock, TestServer, folder, soon, submit_request};

pub(crate) type QueueClient = QueueServiceClient<Channel>;

pub(crate) async fn queues_at(address: &str) -> QueueClient {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    QueueServiceClient::new(endpoint.connect().await.expect("the server accepts"))
}

/// A server with scripted jobs, the client of its queues, and the scripts.
pub(crate) async fn start(setup: Setup) -> (TestServer, QueueClient, Puppets) {
    let puppets = Puppets::default();
    let server = setup.job_type("puppet", puppets.clone()).start().await;
    let queues = queues_at(&server.address).await;
    (server, queues, puppets)
}

pub(crate) async fn submit_to(server: &TestServer, job_type: &str, queue: &str) -> String {
    let request = pb::SubmitRequest {
        queue: queue.to_owned(),
        ..submit_request(job_type)
    };
    server.submit(request).await.job_id
}

/// An input of the built-in type `sleep`.
pub(crate) fn seconds(seconds: f64) -> pb::Payload {
    let number = prost_types::Value {
        kind: Some(prost_types::value::Kind::NumberValue(seconds)),
    };
    let fields = prost_types::Struct {
        fields: [("seconds".to_owned(), number)].into(),
    };
    let value = prost_types::Value {
        kind: Some(prost_types::value::Kind::StructValue(fields)),
    };
    pb::Payload {
        content: Some(pb::payload::Content::Json(value)),
        ..pb::Payload::default()
    }
}

/// A queue as the service shows it, once everything that was asked for is done.
pub(crate) async fn look(queues: &mut QueueClient, name: &str) -> pb::Queue {
    let request = pb::ListQueuesRequest {
        page_size: 1_000,
        page_token: String::new(),
    };
    let list = queues.list_queues(request).await.expect("a list");
    let list = list.into_inner().queues;
    let found = list.into_iter().find(|queue| queue.name == name);
    found.unwrap_or_default()
}

/// How many jobs of a queue wait for a worker, and run, once the writer has nothing more to do.
async fn standing(server: &TestServer, queues: &mut QueueClient, name: &str) -> (i64, i64) {
    for _ in 0..3 {
        server.queue.settle().await;
    }
    let counts = look(queues, name).await.counts.unwrap_or_default();
    (counts.queued, counts.running + counts.cancelling)
}

pub(crate) async fn pause(queues: &mut QueueClient, queue: &str, paused: bool) -> pb::Queue {
    let queue = queue.to_owned();
    let after = if paused {
        let done = queues.pause_queue(pb::PauseQueueRequest { queue }).await;
        done.expect("it is paused").into_inner().queue
    } else {
        let done = queues.resume_queue(pb::ResumeQueueRequest { queue }).await;
        done.expect("it is resumed").into_inner().queue
    };
    after.expect("a queue")
}

fn at_most(concurrency: u32) -> GivenLimits {
    GivenLimits {
        concurrency: Some(Given::Most(concurrency)),
        ..GivenLimits::default()
    }
}

/// Goal: a queue never runs more than it may, over all its types, and a job that is being cancelled counts
/// until it is over. Others are not held up.
#[tokio::test]
async fn a_queue_runs_no_more_than_its_limit_and_holds_up_nobody_else() {
    let dir = folder();
    let others = Puppets::default();
    let setup = Setup::on(dir.path())
        .config(|config| {
            config.queues.insert(Name::of("narrow"), at_most(2));
        })
        .job_type("other", others.clone());
    let (server, mut queues, puppets) = start(setup).await;
    submit_to(&server, "other", "narrow").await;
    for _ in 0..4 {
        submit_to(&server, "puppet", "narrow").await;
    }
    let other = others.next().await;
    let first = puppets.next().await;
    assert_eq!(standing(&server, &mut queues, "narrow").await, (3, 2));
    let free = submit_to(&server, "puppet", "wide").await;
    let wide = puppets.next().await;
    assert_eq!(wide.attempt.key.id.to_string(), free);
    wide.succeed();

    let id = other.attempt.key.id.to_string();
    assert_eq!(server.cancel(&id).await.state(), State::Cancelling);
    assert_eq!(standing(&server, &mut queues, "narrow").await, (3, 2));
    other.end(Outcome::Cancelled);
    let second = puppets.next().await;
    assert_eq!(standing(&server, &mut queues, "narrow").await, (2, 2));
    first.succeed();
    second.succeed();
    puppets.next().await.succeed();
    puppets.next().await.succeed();
    server.end_of(&id).await;
    server.stop().await.expect("a clean end");
}

/// Goal: many jobs through a narrow queue, each end racing the next start. Method: the executors themselves
/// count how many of them run.
#[tokio::test]
async fn the_limit_holds_under_load() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::BoxFuture;
    use pacenote::executor::{Attempt, Executor};

    #[derive(Clone, Default)]
    struct Counting {
        running: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
    }

    impl Executor for Counting {
        fn run(&self, _: Attempt) -> BoxFuture<'static, Outcome> {
            let this = self.clone();
            Box::pin(async move {
                let running = this.running.fetch_add(1, Ordering::SeqCst) + 1;
                this.most.fetch_max(running, Ordering::SeqCst);
                tokio::task::yield_now().await;
                this.running.fetch_sub(1, Ordering::SeqCst);
                Outcome::Succeeded(None)
            })
        }
    }

    let dir = folder();
    let counting = Counting::default();
    let setup = Setup::on(dir.path())
        .config(|config| {
            config.queues.insert(Name::of("narrow"), at_most(3));
        })
        .job_type("count", counting.clone());
    let (server, mut queues, _) = start(setup).await;
    let submits = (0..300).map(|_| submit_to(&server, "count", "narrow"));
    let ids = futures_util::future::join_all(submits).await;
    for id in &ids {
        assert_eq!(server.end_of(id).await.state(), State::Succeeded);
    }
    let most = counting.most.load(Ordering::SeqCst);
    assert!((1..=3).contains(&most), "{most} ran at once");
    let narrow = look(&mut queues, "narrow").await;
    let counts = narrow.counts.expect("counts");
    assert_eq!(
        (counts.succeeded, counts.queued, counts.running),
        (300, 0, 0)
    );
    let minute = narrow.last_minute.expect("it is counted");
    assert_eq!(
        (minute.submitted, minute.started, minute.succeeded),
        (300, 300, 300)
    );
    server.stop().await.expect("a clean end");
}

/// Goal: a paused queue starts nothing, neither what waits nor what comes, and takes jobs all the same; its
/// backlog keeps no other queue's job of the same type from being started at once.
#[tokio::test]
async fn a_paused_queue_starts_nothing_and_holds_up_no_hand_over() {
    let dir = folder();
    let (server, mut queues, puppets) = start(Setup::on(dir.path())).await;
    let paused = pause(&mut queues, "held", true).await;
    assert!(paused.paused && paused.pause_time.is_some());
    let again = pause(&mut queues, "held", true).await;
    assert_eq!(again.pause_time, paused.pause_time, "the first time stands");
    let held = submit_to(&server, "puppet", "held").await;
    assert_eq!(standing(&server, &mut queues, "held").await, (1, 0));

    let free = submit_to(&server, "puppet", "free").await;
    puppets.next().await.succeed();
    server.end_of(&free).await;
    let log = server.log(&free).await;
    assert_eq!(
        log[0].event_time, log[1].event_time,
        "it was stored and claimed in one commit"
    );
    assert_eq!(standing(&server, &mut queues, "held").await, (1, 0));
    assert!(!pause(&mut queues, "held", false).await.paused);
    let puppet = puppets.next().await;
    assert_eq!(puppet.attempt.key.id.to_string(), held);
    puppet.succeed();
    server.end_of(&held).await;
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_paused_type_starts_nothing_in_any_queue_and_what_runs_goes_on() {
    let dir = folder();
    let (server, mut queues, puppets) = start(Setup::on(dir.path())).await;
    let running = submit_to(&server, "puppet", "a").await;
    let puppet = puppets.next().await;
    let request = pb::PauseJobTypeRequest {
        job_type: "puppet".to_owned(),
    };
    let paused = queues.pause_job_type(request).await.expect("it is paused");
    let paused = paused.into_inner().job_type.expect("a type");
    assert!(paused.paused && paused.pause_time.is_some());
    for queue in ["a", "b"] {
        submit_to(&server, "puppet", queue).await;
    }
    puppet.succeed();
    assert_eq!(server.end_of(&running).await.state(), State::Succeeded);
    assert_eq!(standing(&server, &mut queues, "a").await, (1, 0));
    assert_eq!(standing(&server, &mut queues, "b").await, (1, 0));
    let request = pb::ResumeJobTypeRequest {
        job_type: "puppet".to_owned(),
    };
    let resumed = queues.resume_job_type(request).await.expect("it goes on");
    assert!(!resumed.into_inner().job_type.expect("a type").paused);
    for _ in 0..2 {
        puppets.next().await.succeed();
    }
    server.stop().await.expect("a clean end");
}

/// Goal: a burst, then one start each time a token has come back, and the writer looks by itself. Method:
/// the clock is the test's.
#[tokio::test]
async fn a_rate_limit_starts_its_burst_and_then_goes_by_the_clock() {
    let dir = folder();
    let clock = TestClock::new();
    let setup = Setup::on(dir.path())
        .clock(Arc::new(clock.clone()))
        .config(|config| {
            let rate = rate_limit("2/10h").expect("a rate");
            let limits = GivenLimits {
                rate: Some(Given::Most(rate)),
                ..GivenLimits::default()
            };
            config.queues.insert(Name::of("slow"), limits);
        });
    let (server, mut queues, puppets) = start(setup).await;
    for _ in 0..4 {
        submit_to(&server, "puppet", "slow").await;
    }
    puppets.next().await.succeed();
    puppets.next().await.succeed();
    assert_eq!(standing(&server, &mut queues, "slow").await.0, 2);
    clock.pass(Duration::from_secs(4 * 3600));
    server.queue.wake().await;
    assert_eq!(standing(&server, &mut queues, "slow").await.0, 2, "not yet");
    clock.pass(Duration::from_secs(3600));
    server.queue.wake().await;
    puppets.next().await.succeed();
    assert_eq!(standing(&server, &mut queues, "slow").await.0, 1);

    // Without a limit the rest goes; with one of a few milliseconds it goes by itself, too.
    for (starts, nanos) in [(1, 20_000_000), (1, 1_000_000)] {
        let request = pb::SetQueueLimitsRequest {
            queue: "slow".to_owned(),
            rate_limit: Some(pb::RateLimit {
                starts,
                period: Some(prost_types::Duration { seconds: 0, nanos }),
            }),
            ..pb::SetQueueLimitsRequest::default()
        };
        queues.set_queue_limits(request).await.expect("it is set");
    }
    puppets.next().await.succeed();
    for _ in 0..5 {
        submit_to(&server, "puppet", "slow").await;
    }
    for _ in 0..5 {
        puppets.next().await.succeed();
    }
    server.stop().await.expect("a clean end");
}

/// Jobs that share a concurrency key.
async fn submit_keyed(server: &TestServer, jobs: usize) {
    for _ in 0..jobs {
        let request = pb::SubmitRequest {
            queue: "keyed".to_owned(),
            concurrency_key: "one".to_owned(),
            ..submit_request("puppet")
        };
        server.submit(request).await;
    }
}

/// Goal: jobs with one key run one after the other; a higher limit lets those go on that wait already.
#[tokio::test]
async fn a_higher_limit_of_keys_lets_go_on_what_waits() {
    let dir = folder();
    let (server, mut queues, puppets) = start(Setup::on(dir.path())).await;
    submit_keyed(&server, 4).await;
    let first = puppets.next().await;
    assert_eq!(standing(&server, &mut queues, "keyed").await.1, 1);
    let request = pb::SetQueueLimitsRequest {
        queue: "keyed".to_owned(),
        key_concurrency: Some(3),
        ..pb::SetQueueLimitsRequest::default()
    };
    queues.set_queue_limits(request).await.expect("it is set");
    let (second, third) = (puppets.next().await, puppets.next().await);
    assert_eq!(standing(&server, &mut queues, "keyed").await.1, 3);
    let blocked = look(&mut queues, "keyed").await.counts.expect("counts");
    assert_eq!(blocked.blocked + blocked.queued, 1);
    for puppet in [first, second, third] {
        puppet.succeed();
    }
    puppets.next().await.succeed();
    server.stop().await.expect("a clean end");
}

/// The same where the file is changed between two starts.
#[tokio::test]
async fn a_higher_limit_of_keys_in_the_file_lets_go_on_what_waits_at_the_next_start() {
    let dir = folder();
    let (server, mut queues, puppets) = start(Setup::on(dir.path())).await;
    submit_keyed(&server, 4).await;
    let first = puppets.next().await;
    let counts = look(&mut queues, "keyed").await.counts.expect("counts");
    assert_eq!((counts.running, counts.blocked + counts.queued), (1, 3));
    server.begin_stop();
    first.end(Outcome::HandedBack);
    server.stop().await.expect("a clean end");
    let setup = Setup::on(dir.path()).config(|config| {
        let limits = GivenLimits {
            key_concurrency: Some(3),
            ..GivenLimits::default()
        };
        config.queues.insert(Name::of("keyed"), limits);
    });
    let (server, mut queues, puppets) = start(setup).await;
    let first_three = [
        puppets.next().await,
        puppets.next().await,
        puppets.next().await,
    ];
    assert_eq!(standing(&server, &mut queues, "keyed").await.1, 3);
    for puppet in first_three {
        puppet.succeed();
    }
    puppets.next().await.succeed();
    server.stop().await.expect("a clean end");
}

/// Goal: places go to tenants by their weights, however much of one waits; priority orders only a tenant's
/// own jobs.
#[tokio::test]
async fn tenants_share_a_queue_by_their_weights() {
    let dir = folder();
    let setup = Setup::on(dir.path()).config(|config| {
        config.workers = 1;
        let heavy = TenantSettings {
            weight: 3,
            ..TenantSettings::default()
        };
        config.tenants.insert(Name::of("heavy"), heavy);
    });
    let (server, _, puppets) = start(setup).await;
    let submit = async |tenant: &'static str, priority: i32| {
        let submission = Submission {
            tenant: Name::of(tenant),
            priority,
            ..Submission::new("puppet", None)
        };
        let (job, _) = server.queue.submit(submission).await.expect("it is taken");
        job.key.id
    };
    submit("first", 0).await;
    let first = puppets.next().await;
    for _ in 0..40 {
        submit("heavy", 1_000).await;
    }
    submit("light", -1_000).await;
    let urgent = submit("light", 5).await;
    for _ in 0..10 {
        submit("light", 0).await;
    }
    first.succeed();
    let mut tenants = Vec::new();
    for _ in 0..16 {
        let puppet = puppets.next().await;
        let key = &puppet.attempt.key;
        if key.tenant.as_str() == "light" && !tenants.contains(&"light".to_owned()) {
            assert_eq!(key.id, urgent, "the most urgent of its own");
        }
        tenants.push(key.tenant.to_string());
        puppet.succeed();
    }
    for round in tenants.chunks(4) {
        let heavy = round.iter().filter(|tenant| *tenant == "heavy").count();
        assert_eq!(heavy, 3, "{tenants:?}");
    }
    drop(puppets);
    server.begin_stop();
}

/// Goal: limits and pauses that were set outlive a kill -9, and what runs is counted exactly after it: the
/// attempts of the dead server do not count, those of the next one do.
#[tokio::test]
async fn limits_and_counts_are_exact_after_a_kill() {
    let dir = folder();
    let start = Start::on(dir.path());
    let process = start.start();
    let mut queues = queues_at(&process.address).await;
    let request = pb::SetQueueLimitsRequest {
        queue: "narrow".to_owned(),
        concurrency: Some(2),
        ..pb::SetQueueLimitsRequest::default()
    };
    queues.set_queue_limits(request).await.expect("it is set");
    pause(&mut queues, "held", true).await;
    let client = process.client().await;
    for queue in ["narrow", "narrow", "narrow", "narrow", "held"] {
        let request = pb::SubmitRequest {
            queue: queue.to_owned(),
            input: Some(seconds(3_600.0)),
            ..submit_request("sleep")
        };
        client.clone().submit(request).await.expect("it is stored");
    }
    soon(settled(&mut queues, 2)).await;
    process.kill().await;

    let process = start.start();
    let mut queues = queues_at(&process.address).await;
    soon(settled(&mut queues, 2)).await;
    let narrow = look(&mut queues, "narrow").await;
    assert_eq!(narrow.limits.expect("limits").concurrency, Some(2));
    let held = look(&mut queues, "held").await;
    assert!(held.paused);
    assert_eq!(held.counts.expect("counts").queued, 1);
    process.kill().await;
}

/// Waits until so many of four jobs run, with never more.
async fn settled(queues: &mut QueueClient, running: i64) {
    loop {
        let counts = look(queues, "narrow").await.counts.unwrap_or_default();
        assert!(counts.running <= running, "{counts:?}");
        assert_eq!(counts.running + counts.queued, 4, "{counts:?}");
        if counts.running == running {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
