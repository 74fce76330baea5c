//! Many jobs over one stream: the snapshot, what happens after it, the jobs that are over, the filters and
//! the end.

use std::collections::BTreeMap;

use pacenote::job::Outcome;
use pacenote::job::event::JobError;
use pacenote::pb;
use pacenote::pb::job::State;
use pacenote::pb::watch_jobs_response::Content;
use tonic::{Code, Status, Streaming};

use crate::harness::{
    Puppet, Puppets, Setup, TestServer, folder, log_line, output, progress, reason_of, soon,
    submit_request,
};

/// A watch of many jobs, read message by message.
pub(crate) struct JobsWatched(pub(crate) Streaming<pb::WatchJobsResponse>);

/// What a watch of many jobs gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobsTold {
    pub(crate) snapshot: Vec<pb::Job>,
    pub(crate) events: Vec<pb::JobEvent>,
    pub(crate) finished: Vec<pb::Job>,
    pub(crate) roll_ups: Vec<pb::RollUp>,
    pub(crate) gaps: Vec<pb::EventGap>,
    pub(crate) cursor: String,
    pub(crate) messages: usize,
}

pub(crate) async fn watch_jobs(server: &TestServer, request: pb::WatchJobsRequest) -> JobsWatched {
    try_watch_jobs(server, request).await.expect("a watch")
}

pub(crate) async fn try_watch_jobs(
    server: &TestServer,
    request: pb::WatchJobsRequest,
) -> Result<JobsWatched, Status> {
    let stream = soon(server.client.clone().watch_jobs(request)).await?;
    Ok(JobsWatched(stream.into_inner()))
}

/// A watch that is refused.
pub(crate) async fn refused(server: &TestServer, request: pb::WatchJobsRequest) -> Status {
    match try_watch_jobs(server, request).await {
        Err(status) => status,
        Ok(mut watch) => watch.next().await.expect_err("it is refused"),
    }
}

impl JobsWatched {
    pub(crate) async fn next(&mut self) -> Result<Option<pb::WatchJobsResponse>, Status> {
        soon(self.0.message()).await
    }

    /// Reads until something was told.
    pub(crate) async fn until(&mut self, is_so: impl Fn(&JobsTold) -> bool) -> JobsTold {
        let mut told = JobsTold::default();
        while !is_so(&told) {
            told.add(self.next().await.expect("no error").expect("no end yet"));
        }
        told
    }

    /// Reads until a cursor was given: the snapshot is whole.
    pub(crate) async fn opened(&mut self) -> JobsTold {
        self.until(|told| !told.cursor.is_empty()).await
    }

    /// Reads until the end, which must be OK.
    pub(crate) async fn to_end(&mut self) -> JobsTold {
        let mut told = JobsTold::default();
        while let Some(message) = self.next().await.expect("the watch ends with OK") {
            told.add(message);
        }
        told
    }
}

impl JobsTold {
    pub(crate) fn add(&mut self, message: pb::WatchJobsResponse) {
        assert!(self.cursor.is_empty() || !message.cursor.is_empty());
        self.cursor = message.cursor;
        self.messages += 1;
        match message.content.expect("every message says something") {
            Content::Snapshot(jobs) => self.snapshot.extend(jobs.jobs),
            Content::Events(batch) => {
                let events = batch.decoded().expect("events");
                assert!(!events.is_empty() && events.len() <= 256);
                self.events.extend(events);
            }
            Content::Finished(jobs) => {
                assert!(!jobs.jobs.is_empty() && jobs.jobs.len() <= 256);
                self.finished.extend(jobs.jobs);
            }
            Content::RollUp(roll_up) => self.roll_ups.push(roll_up),
            Content::Gap(gap) => self.gaps.push(gap),
            Content::Heartbeat(_) => {}
        }
    }

    /// Job and sequence of each event.
    pub(crate) fn places(&self) -> Vec<(String, i64)> {
        let events = self.events.iter();
        events
            .map(|event| (event.job_id.clone(), event.sequence))
            .collect()
    }

    pub(crate) fn sequences_of(&self, id: &str) -> Vec<i64> {
        let events = self.events.iter().filter(|event| event.job_id == id);
        events.map(|event| event.sequence).collect()
    }

    pub(crate) fn finished_ids(&self) -> Vec<String> {
        self.finished.iter().map(|job| job.job_id.clone()).collect()
    }
}

pub(crate) fn labelled(job_type: &str, team: &str) -> pb::SubmitRequest {
    pb::SubmitRequest {
        labels: [("team".to_owned(), team.to_owned())].into(),
        ..submit_request(job_type)
    }
}

/// The jobs with a label.
pub(crate) fn team(team: &str) -> pb::WatchJobsRequest {
    pb::WatchJobsRequest {
        labels: [("team".to_owned(), team.to_owned())].into(),
        ..pb::WatchJobsRequest::default()
    }
}

pub(crate) fn ids(ids: &[&str]) -> pb::WatchJobsRequest {
    pb::WatchJobsRequest {
        job_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..pb::WatchJobsRequest::default()
    }
}

/// A job with a label, and its first attempt.
pub(crate) async fn begin(server: &TestServer, puppets: &Puppets, team: &str) -> (String, Puppet) {
    let job = server.submit(labelled("puppet", team)).await;
    (job.job_id, puppets.next().await)
}

#[tokio::test]
async fn a_watch_begins_with_the_jobs_that_are_not_over_and_goes_on_with_what_happens() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (over, puppet) = begin(&server, &puppets, "a").await;
    puppet.succeed();
    server.end_of(&over).await;
    let (first, one) = begin(&server, &puppets, "a").await;
    one.store(&server.queue, vec![output("x")]).await;
    let (second, two) = begin(&server, &puppets, "b").await;
    let mut watch = watch_jobs(&server, pb::WatchJobsRequest::default()).await;
    let told = watch.opened().await;
    let shown: Vec<(&str, i64)> = told
        .snapshot
        .iter()
        .map(|job| (job.job_id.as_str(), job.last_sequence))
        .collect();
    assert_eq!(shown, [(first.as_str(), 3), (second.as_str(), 2)]);
    assert!(told.events.is_empty() && told.finished.is_empty());
    assert!(told.snapshot.iter().all(|job| job.input.is_none()));
    two.store(&server.queue, vec![log_line("hello")]).await;
    one.succeed();
    server.end_of(&first).await;
    two.end(Outcome::Failed(JobError::permanent("BROKEN", "no")));
    let told = watch.until(|told| told.finished.len() == 2).await;
    let places = [(&second, 3), (&first, 4), (&second, 4)];
    let places = places.map(|(id, sequence)| (id.clone(), sequence));
    assert_eq!(told.places(), places);
    assert_eq!(told.finished_ids(), [first, second]);
    assert_eq!(told.finished[0].state(), State::Succeeded);
    assert_eq!(told.finished[0].result, None, "BASIC unless asked for");
    assert_eq!(
        told.finished[1].error.as_ref().expect("why").reason,
        "BROKEN"
    );
    drop(watch);
    server.stop().await.expect("a clean end");
}

#[tokio::test]
async fn a_watch_of_nothing_says_at_once_from_where_it_can_be_resumed() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let mut watch = watch_jobs(&server, team("a")).await;
    let told = watch.opened().await;
    assert_eq!((told.messages, told.snapshot.len()), (1, 0));
    drop(watch);
    let (id, puppet) = begin(&server, &puppets, "a").await;
    puppet.succeed();
    server.end_of(&id).await;
    let request = pb::WatchJobsRequest {
        after_cursor: told.cursor,
        ..team("a")
    };
    let mut watch = watch_jobs(&server, request).await;
    let told = watch.until(|told| told.finished.len() == 1).await;
    assert_eq!(told.sequences_of(&id), [1, 2, 3]);
    assert!(told.snapshot.is_empty(), "none where it resumes");
}

/// Labels must all be there; of queues and types one is enough; all filters together.
#[tokio::test]
async fn filters_hold_together() {
    let dir = folder();
    let puppets = Puppets::default();
    let server = Setup::on(dir.path())
        .job_type("puppet", puppets.clone())
        .job_type("other", puppets.clone())
        .start()
        .await;
    let mut ids = BTreeMap::new();
    for (name, job_type, queue, labels) in [
        ("plain", "puppet", "", &[][..]),
        ("other", "other", "", &[]),
        ("queue", "puppet", "slow", &[]),
        ("one", "puppet", "", &[("x", "1")]),
        ("both", "puppet", "", &[("x", "1"), ("y", "2")]),
        ("wrong", "puppet", "", &[("x", "2"), ("y", "2")]),
        ("all", "other", "slow", &[("x", "1"), ("y", "2"), ("z", "")]),
    ] {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let request = pb::SubmitRequest {
            queue: queue.to_owned(),
            labels: labels.collect(),
            ..submit_request(job_type)
        };
        ids.insert(server.submit(request).await.job_id, name);
    }
    let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let labels = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        pairs
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    };
    let none = pb::WatchJobsRequest::default;
    for (request, expected) in [
        (none(), "plain other queue one both wrong all"),
        (
            pb::WatchJobsRequest {
                types: text(&["other"]),
                ..none()
            },
            "other all",
        ),
        (
            pb::WatchJobsRequest {
                types: text(&["other", "puppet", "none"]),
                ..none()
            },
            "plain other queue one both wrong all",
        ),
        (
            pb::WatchJobsRequest {
                queues: text(&["slow"]),
                ..none()
            },
            "queue all",
        ),
        (
            pb::WatchJobsRequest {
                labels: labels(&[("x", "1")]),
                ..none()
            },
            "one both all",
        ),
        (
            pb::WatchJobsRequest {
                labels: labels(&[("x", "1"), ("y", "2")]),
                ..none()
            },
            "both all",
        ),
        (
            pb::WatchJobsRequest {
                labels: labels(&[("z", "")]),
                ..none()
            },
            "all",
        ),
        (
            pb::WatchJobsRequest {
                labels: labels(&[("none", "")]),
                ..none()
            },
            "",
        ),
        (
            pb::WatchJobsRequest {
                types: text(&["puppet"]),
                queues: text(&["default"]),
                labels: labels(&[("y", "2")]),
                ..none()
            },
            "both wrong",
        ),
        (
            pb::WatchJobsRequest {
                job_ids: ids.keys().cloned().collect(),
                labels: labels(&[("x", "1")]),
                ..none()
            },
            "one both all",
        ),
    ] {
        let mut watch = watch_jobs(&server, request.clone()).await;
        let told = if expected.is_empty() {
            watch.opened().await
        } else {
            let count = expected.split(' ').count();
            watch
                .until(|told| told.snapshot.len() >= count && !told.cursor.is_empty())
                .await
        };
        let shown: Vec<&str> = told.snapshot.iter().map(|job| ids[&job.job_id]).collect();
        assert_eq!(shown.join(" "), expected, "{request:?}");
    }
}

/// What a filter lets through live is what it lets through in the log.
#[tokio::test]
async fn other_jobs_and_hidden_events_move_the_cursor_and_nothing_else() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let request = pb::WatchJobsRequest {
        event_types: vec![pb::EventType::Log.into()],
        heartbeat_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..team("a")
    };
    let mut watch = watch_jobs(&server, request.clone()).await;
    let begun = watch.opened().await.cursor;
    let (theirs, other) = begin(&server, &puppets, "b").await;
    other
        .store(&server.queue, vec![log_line("x"), output("y")])
        .await;
    let (ours, puppet) = begin(&server, &puppets, "a").await;
    puppet.store(&server.queue, vec![output("hidden")]).await;
    // A sign of life carries the cursor past all that.
    let told = watch.until(|told| told.messages == 1).await;
    assert!(told.events.is_empty() && told.finished.is_empty());
    assert_ne!(told.cursor, begun);
    puppet.store(&server.queue, vec![log_line("shown")]).await;
    puppet.succeed();
    other.succeed();
    for after_cursor in [begun, told.cursor] {
        let request = pb::WatchJobsRequest {
            after_cursor,
            ..request.clone()
        };
        let mut watch = watch_jobs(&server, request).await;
        let told = watch.until(|told| !told.finished.is_empty()).await;
        assert_eq!(told.places(), [(ours.clone(), 4)]);
        assert_eq!(
            told.finished_ids(),
            [ours.as_str()],
            "{theirs} is none of ours"
        );
    }
    let told = watch.until(|told| !told.finished.is_empty()).await;
    assert_eq!(told.places(), [(ours, 4)]);
}

#[tokio::test]
async fn a_watch_by_ids_ends_with_the_last_of_them_and_shows_their_results() {
    let dir = folder();
    let (server, puppets) = TestServer::with_puppets(&dir).await;
    let (over, puppet) = server.begin(&puppets).await;
    puppet.succeed();
    server.end_of(&over).await;
    let (running, puppet) = server.begin(&puppets).await;
    let (unasked, _other) = server.begin(&puppets).await;
    let unknown = "0198c0de-0000-7000-8000-000000000001";
    let request = pb::WatchJobsRequest {
        finished_view: pb::JobView::Full.into(),
        ..ids(&[&over, &running, unknown])
    };
    let mut watch = watch_jobs(&server, request.clone()).await;
    let told = watch.opened().await;
    let shown: Vec<&str> = told
        .snapshot
        .iter()
        .map(|job| job.job_id.as_str())
        .collect();
    assert_eq!(shown, [running.as_str()]);
    assert_eq!(told.finished_ids(), [over.as_str()]);
    assert!(told.finished[0].result.is_some());
    let [gap] = &told.gaps[..] else {
        panic!("{told:?}");
    };
    assert_eq!(
        (gap.job_id.as_str(), gap.last_missing_sequence),
        (unknown, 0)
    );
    puppet.succeed();
    let rest = watch.to_end().await;
    assert_eq!(rest.sequences_of(&running), [3]);
    assert_eq!(rest.events.len(), 1, "nothing of {unasked}");
    assert_eq!(rest.finished, [server.get(&running).await]);
    // All of it once more, now that it is over, and from the cursor before the end.
    let told_again = watch_jobs(&server, request.clone()).await.to_end().await;
    assert_eq!(told_again.finished_ids(), [over, running.clone()]);
    assert!(told_again.events.is_empty());
    let request = pb::WatchJobsRequest {
        after_cursor: told.cursor,
        ..request
    };
    let again = watch_jobs(&server, request).await.to_end().await;
    assert_eq!(again.places(), rest.places());
    assert_eq!(again.finished_ids(), [running]);
    assert!(again.gaps.is_empty(), "it was said before the cursor");
}

/// Progress of many jobs: the newest of each, all together once in the interval, and before anything else.
#[tokio::test]
async fn progress_is_merged_by_job_and_goes_before_the_next_other_event() {
    let dir = folder();
    let puppets = Puppets::default();
    let settings = pacenote::config::TypeSettings {
        progress_interval: std::time::Duration::ZERO,
        ..Default::default()
    };
    let server = Setup::on(dir.path())
        .job_type_with("puppet", settings, puppets.clone())
        .start()
        .await;
    let request = pb::WatchJobsRequest {
        min_progress_interval: Some(prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        }),
        ..team("a")
    };
    let (one, first) = begin(&server, &puppets, "a").await;
    let (two, second) = begin(&server, &puppets, "a").await;
    let mut watch = watch_jobs(&server, request.clone()).await;
    watch.opened().await;
    // The first after a quiet time goes at once.
    first.store(&server.queue, vec![progress(0.1)]).await;
    let told = watch.until(|told| !told.events.is_empty()).await;
    let cursor = told.cursor.clone();
    assert_eq!(told.places(), [(one.clone(), 3)]);
    for step in 2..6 {
        first
            .store(&server.queue, vec![progress(0.1 * f64::from(step))])
            .await;
        second
            .store(&server.queue, vec![progress(0.1 * f64::from(step))])
            .await;
    }
    second.store(&server.queue, vec![log_line("now")]).await;
    let told = watch.until(|told| told.events.len() >= 3).await;
    let expected = [(one.clone(), 7), (two.clone(), 6), (two.clone(), 7)];
    assert_eq!(told.places(), expected);
    // Resumed from before, what was held back is there again: the newest, or all, in order, once.
    let request = pb::WatchJobsRequest {
        after_cursor: cursor,
        ..request
    };
    let mut watch = watch_jobs(&server, request).await;
    let told = watch
        .until(|told| told.sequences_of(&two).contains(&7))
        .await;
    assert_eq!(told.sequences_of(&one).last(), Some(&7));
    assert!(told.sequences_of(&one).is_sorted_by(|a, b| a < b));
    (first.succeed(), second.succeed());
}

#[tokio::test]
async fn a_drain_sends_watchers_away_and_their_cursor_is_good_on_the_next_server() {
    let dir = folder();
    let puppets = Puppets::default();
    let setup = || Setup::on(dir.path()).job_type("puppet", puppets.clone());
    let server = setup().start().await;
    let (id, puppet) = begin(&server, &puppets, "a").await;
    let mut watch = watch_jobs(&server, team("a")).await;
    let cursor = watch.opened().await.cursor;
    server.begin_stop();
    let status = loop {
        match watch.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no OK in a drain"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        reason_of(&status),
        (Code::Unavailable, "SERVER_DRAINING".to_owned())
    );
    let details = tonic_types::StatusExt::get_error_details(&status);
    assert!(details.retry_info().is_some());
    puppet.succeed();
    server.stop().await.expect("a clean end");
    let server = setup().start().await;
    let request = pb::WatchJobsRequest {
        after_cursor: cursor,
        ..team("a")
    };
    let mut watch = watch_jobs(&server, request).await;
    let told = watch.until(|told| !told.finished.is_empty()).await;
    assert_eq!(told.sequences_of(&id), [3]);
}
