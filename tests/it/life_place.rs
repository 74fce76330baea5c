//! Where a waiting job stands, and about when it begins.

use std::sync::Arc;
use std::time::Duration;

use pacenote::job::name::Name;
use pacenote::job::queue::{Given, RateLimit};
use pacenote::job::time::Clock;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::queue::{Edit, LimitsEdit};

use crate::harness::{Puppets, Setup, TestClock, TestServer, folder, submit_request};

async fn submit(server: &TestServer, priority: i32) -> String {
    let request = pb::SubmitRequest {
        priority,
        ..submit_request("puppet")
    };
    server.submit(request).await.job_id
}

async fn position(server: &TestServer, job_id: &str) -> Option<i64> {
    server.get(job_id).await.queue_position
}

/// Goal: the position is the order of claims, and moves as others begin, end, or jump the line.
#[tokio::test]
async fn a_waiting_job_says_how_many_stand_before_it() {
    let dir = folder();
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path()).config(|config| config.workers = 1);
    let server = setup.job_type("puppet", puppets.clone()).start().await;
    let running = submit(&server, 0).await;
    let puppet = puppets.next().await;
    let first = submit(&server, 0).await;
    let second = submit(&server, 0).await;
    assert_eq!(position(&server, &running).await, None, "it runs");
    assert_eq!(position(&server, &first).await, Some(1));
    assert_eq!(position(&server, &second).await, Some(2));
    let urgent = submit(&server, 1).await;
    let late = submit(&server, -1).await;
    assert_eq!(position(&server, &urgent).await, Some(1));
    assert_eq!(position(&server, &second).await, Some(3));
    assert_eq!(position(&server, &late).await, Some(4));
    server.cancel(&first).await;
    assert_eq!(position(&server, &first).await, None, "it is over");
    assert_eq!(position(&server, &second).await, Some(2));
    puppet.succeed();
    let next = puppets.next().await;
    assert_eq!(next.attempt.key.id.to_string(), urgent);
    assert_eq!(position(&server, &second).await, Some(1));
    next.succeed();
    for _ in [&second, &late] {
        puppets.next().await.succeed();
    }
    server.end_of(&late).await;
    server.stop().await.expect("a clean end");
}

/// Goal: the estimate is what attempts took lately, over how many run; and absent while that is not known.
#[tokio::test]
async fn a_waiting_job_says_about_when_it_begins_once_that_is_known() {
    let dir = folder();
    let clock = TestClock::new();
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path())
        .config(|config| config.workers = 1)
        .clock(Arc::new(clock.clone()));
    let server = setup.job_type("puppet", puppets.clone()).start().await;
    submit(&server, 0).await;
    let puppet = puppets.next().await;
    let second = submit(&server, 0).await;
    let third = submit(&server, 0).await;
    let job = server.get(&third).await;
    assert_eq!(job.estimated_start_time, None, "no attempt has ended yet");
    clock.pass(Duration::from_secs(600));
    puppet.succeed();
    let puppet = puppets.next().await;
    assert_eq!(puppet.attempt.key.id.to_string(), second);
    let job = server.get(&third).await;
    assert_eq!((job.state(), job.queue_position), (State::Queued, Some(1)));
    let estimate = job.estimated_start_time.expect("it is known by now");
    let now = clock.now().as_micros() / 1_000_000;
    let wait = estimate.seconds - now;
    assert!((590..=610).contains(&wait), "{wait}");
    let queue = Name::of("default");
    for paused in [true, false] {
        let set = server.queue.pause_queue(&queue, paused).await;
        set.expect("it is set");
        let job = server.get(&third).await;
        assert_eq!(job.queue_position, Some(1));
        assert_eq!(job.estimated_start_time.is_none(), paused, "nobody knows");
    }
    let puppet_type = Name::of("puppet");
    for paused in [true, false] {
        let set = server.queue.pause_type(&puppet_type, paused).await;
        set.expect("it is set");
        let job = server.get(&third).await;
        assert_eq!(job.queue_position, Some(1));
        assert_eq!(job.estimated_start_time.is_none(), paused, "nobody knows");
    }
    let with_key = pb::SubmitRequest {
        concurrency_key: "key".to_owned(),
        priority: -1,
        ..submit_request("puppet")
    };
    let with_key = server.submit(with_key).await.job_id;
    let job = server.get(&with_key).await;
    assert_eq!((job.state(), job.queue_position), (State::Queued, Some(2)));
    assert_eq!(job.estimated_start_time, None, "others may have its key");
    server.cancel(&with_key).await;
    let wait = pb::WaitRequest {
        job_id: third.clone(),
        timeout: Some(prost_types::Duration::default()),
        ..pb::WaitRequest::default()
    };
    let waited = server.client.clone().wait(wait).await.expect("a wait");
    let job = waited.into_inner().job.expect("the job");
    assert_eq!(job.queue_position, Some(1));
    assert!(job.estimated_start_time.is_some());
    puppet.succeed();
    puppets.next().await.succeed();
    let job = server.end_of(&third).await;
    assert_eq!((job.queue_position, job.estimated_start_time), (None, None));
    server.stop().await.expect("a clean end");
}

/// Goal: the estimate knows that others share the places, and is absent where it cannot know how many starts
/// there will be. Method: two queues with two places each of one type, of which one has only one job running;
/// then a rate limit.
#[tokio::test]
async fn an_estimate_counts_only_what_runs_of_the_same_queue() {
    let dir = folder();
    let clock = TestClock::new();
    let puppets = Puppets::default();
    let setup = Setup::on(dir.path())
        .config(|config| config.workers = 3)
        .clock(Arc::new(clock.clone()));
    let server = setup.job_type("puppet", puppets.clone()).start().await;
    let submit_to = async |queue: &str| {
        let request = pb::SubmitRequest {
            queue: queue.to_owned(),
            ..submit_request("puppet")
        };
        server.submit(request).await.job_id
    };
    submit_to("left").await;
    let puppet = puppets.next().await;
    clock.pass(Duration::from_secs(600));
    puppet.succeed();
    let narrow = Name::of("narrow");
    let one = LimitsEdit {
        concurrency: Edit::To(Given::Most(1)),
        ..LimitsEdit::default()
    };
    server.queue.set_limits(&narrow, one).await.expect("set");
    let mut running = Vec::new();
    for queue in ["narrow", "left", "left"] {
        submit_to(queue).await;
        running.push(puppets.next().await);
    }
    let (in_narrow, in_left) = (submit_to("narrow").await, submit_to("left").await);
    let wait_of = async |job_id: &str| {
        let estimate = server.get(job_id).await.estimated_start_time;
        estimate.map(|at| at.seconds - clock.now().as_micros() / 1_000_000)
    };
    let wait = wait_of(&in_narrow).await.expect("it is known");
    assert!((590..=610).contains(&wait), "{wait}");
    let wait = wait_of(&in_left).await.expect("it is known");
    assert!((290..=310).contains(&wait), "{wait}");
    let rate = LimitsEdit {
        rate: Edit::To(Given::Most(RateLimit {
            starts: 1,
            period: Duration::from_secs(3600),
        })),
        ..LimitsEdit::default()
    };
    let left = Name::of("left");
    server.queue.set_limits(&left, rate).await.expect("set");
    assert_eq!(wait_of(&in_left).await, None, "nobody knows");
    assert!(wait_of(&in_narrow).await.is_some());
    for puppet in running {
        puppet.succeed();
    }
    for _ in [&in_narrow, &in_left] {
        puppets.next().await.succeed();
    }
    server.stop().await.expect("a clean end");
}
