//! The client's watch of many jobs against a scripted server: whatever is cut, a caller sees everything
//! once, in order, or is told that it begins anew.

mod fake;

use std::time::Duration;

use fake::{Answers, Fake, Step, status};
use pacenote::client::{ClientError, JobsUpdate, JobsWatch, JobsWatchOptions};
use pacenote::pb;
use pacenote::pb::watch_jobs_response::Content;
use prost::Message;
use tonic::{Code, Status};

type JobsStep = Step<pb::WatchJobsResponse>;

fn say(cursor: usize, content: Content) -> JobsStep {
    let cursor = if cursor == 0 {
        String::new()
    } else {
        format!("c{cursor}")
    };
    Step::Send(Box::new(pb::WatchJobsResponse {
        cursor,
        content: Some(content),
    }))
}

fn jobs(ids: &[&str]) -> pb::Jobs {
    let job = |id: &&str| pb::Job {
        job_id: (*id).to_owned(),
        ..pb::Job::default()
    };
    pb::Jobs {
        jobs: ids.iter().map(job).collect(),
    }
}

fn events(places: &[(&str, i64)]) -> Content {
    let event = |(id, sequence): &(&str, i64)| pb::JobEvent {
        job_id: (*id).to_owned(),
        sequence: *sequence,
        ..pb::JobEvent::default()
    };
    let events = places
        .iter()
        .map(|place| event(place).encode_to_vec().into());
    Content::Events(pb::EventBatch {
        events: events.collect(),
    })
}

/// A whole watch, a cursor behind each message from the third on. What it says is `WHOLE`.
fn honest() -> Vec<JobsStep> {
    let gap = pb::EventGap {
        job_id: "z".to_owned(),
        ..pb::EventGap::default()
    };
    vec![
        say(0, Content::Snapshot(jobs(&["a", "b"]))),
        say(0, events(&[("a", 3)])),
        say(1, Content::Heartbeat(pb::Heartbeat::default())),
        say(2, events(&[("a", 4), ("b", 3), ("a", 5)])),
        say(3, Content::Finished(jobs(&["a"]))),
        say(4, Content::Gap(gap)),
        say(5, events(&[("b", 4)])),
        say(6, Content::Finished(jobs(&["b"]))),
    ]
}

const WHOLE: [&str; 12] = [
    "shown a", "shown b", "a 3", "alive", "a 4", "b 3", "a 5", "end a", "gap z", "b 4", "end b",
    "over",
];

/// What an honest server says after a cursor.
fn rest(cursor: &str) -> Vec<JobsStep> {
    match cursor.strip_prefix('c') {
        None => honest(),
        Some(number) => honest().split_off(number.parse::<usize>().expect("ours") + 2),
    }
}

fn scripted(
    script: impl Fn(&pb::WatchJobsRequest, usize) -> Result<Vec<JobsStep>, Status>
    + Send
    + Sync
    + 'static,
) -> Answers {
    Answers {
        watch_jobs: Box::new(script),
        ..Answers::default()
    }
}

fn by_ids() -> JobsWatchOptions {
    JobsWatchOptions {
        job_ids: vec!["a".to_owned(), "b".to_owned()],
        ..JobsWatchOptions::default()
    }
}

fn in_short(update: &JobsUpdate) -> String {
    match update {
        JobsUpdate::Anew => "anew".to_owned(),
        JobsUpdate::Snapshot(job) => format!("shown {}", job.job_id),
        JobsUpdate::Event(event) => format!("{} {}", event.job_id, event.sequence),
        JobsUpdate::Finished(job) => format!("end {}", job.job_id),
        JobsUpdate::RollUp(_) => "roll-up".to_owned(),
        JobsUpdate::Gap(gap) => format!("gap {}", gap.job_id),
        JobsUpdate::Heartbeat => "alive".to_owned(),
        JobsUpdate::Reconnecting { .. } => "cut".to_owned(),
        other => panic!("{other:?} is new here"),
    }
}

/// Everything that it tells, but for cuts; a watch that never ends fails the test.
async fn read(watch: &mut JobsWatch) -> Vec<String> {
    let mut told = Vec::new();
    let reading = async {
        while let Some(update) = watch.next().await {
            match update {
                Ok(JobsUpdate::Reconnecting { .. }) => {}
                Ok(update) => told.push(in_short(&update)),
                Err(error) => {
                    told.push(error.reason().to_owned());
                    return;
                }
            }
        }
        told.push("over".to_owned());
    };
    let read = tokio::time::timeout(Duration::from_secs(30), reading);
    read.await.expect("the watch ends");
    told
}

/// Goal: cut anywhere, nothing is lost or doubled. Method: the first stream is cut after every count of
/// messages, by a status and by the network in turn. Before the first cursor it begins anew, and says so.
#[tokio::test]
async fn a_watch_that_is_cut_anywhere_tells_everything_once() {
    for cut_after in 0..=honest().len() {
        let fake = Fake::start(scripted(move |request, before| {
            let mut steps = rest(&request.after_cursor);
            if before == 0 {
                steps.truncate(cut_after);
                steps.push(match cut_after % 2 {
                    0 => Step::Cut,
                    _ => Step::Fail(status(Code::Unavailable, "SERVER_DRAINING", None)),
                });
            }
            Ok(steps)
        }))
        .await;
        let mut watch = fake.client().await.watch_jobs(by_ids());
        let mut told = read(&mut watch).await;
        if let Some(anew) = told.iter().position(|told| told == "anew") {
            assert!((1..3).contains(&cut_after), "only before the first cursor");
            told.drain(..=anew);
        }
        assert_eq!(told, WHOLE, "cut after {cut_after}");
        assert_eq!(watch.delivered_cursor(), "c6");
        let asked = fake.asked(|asked| asked.watch_jobs.clone());
        assert_eq!(asked.len(), 2);
        assert!(asked.iter().all(|request| request.job_ids == ["a", "b"]));
    }
}

/// A cursor counts once all of its message was handed out: one that is stored in the middle repeats, and
/// never skips.
#[tokio::test]
async fn the_cursor_follows_what_was_handed_out() {
    let fake = Fake::start(scripted(|request, _| Ok(rest(&request.after_cursor)))).await;
    let client = fake.client().await;
    let mut watch = client.watch_jobs(by_ids());
    let mut told = Vec::new();
    let mut cursors = Vec::new();
    while let Some(update) = watch.next().await {
        told.push(in_short(&update.expect("no error")));
        cursors.push(watch.delivered_cursor().to_owned());
    }
    let expected = ["", "", "", "c1", "c1", "c1", "c2", "c3", "c4", "c5", "c6"];
    assert_eq!(cursors, expected);
    for (number, after_cursor) in cursors.into_iter().enumerate() {
        if after_cursor.is_empty() {
            continue;
        }
        let options = JobsWatchOptions {
            after_cursor,
            ..by_ids()
        };
        let again = read(&mut client.watch_jobs(options)).await;
        let rest = &WHOLE[WHOLE.len() - again.len()..];
        assert_eq!(again, rest);
        assert!(told.len() - number <= again.len(), "nothing is skipped");
    }
}

/// OK is the end of a watch of ids or a batch, and a proxy's doing for any other.
#[tokio::test]
async fn only_a_watch_that_can_end_ends_with_ok() {
    let fake = Fake::start(scripted(|request, before| match before {
        0 => Ok(rest(&request.after_cursor)),
        _ => Err(status(Code::InvalidArgument, "INVALID_FIELD", None)),
    }))
    .await;
    let options = JobsWatchOptions {
        labels: [("team".to_owned(), "a".to_owned())].into(),
        ..JobsWatchOptions::default()
    };
    let mut watch = fake.client().await.watch_jobs(options);
    let told = read(&mut watch).await;
    assert_eq!(told.last().expect("something"), "INVALID_FIELD");
    let asked = fake.asked(|asked| asked.watch_jobs.clone());
    assert_eq!(asked[1].after_cursor, "c6", "it came back");
    assert_eq!(asked[1].labels["team"], "a");
    assert!(watch.next().await.is_none(), "and stays ended");
}

#[tokio::test]
async fn an_event_that_does_not_decode_ends_the_watch_behind_what_came_before() {
    let fake = Fake::start(scripted(|_, _| {
        let broken = pb::EventBatch {
            events: vec![vec![0xff].into()],
        };
        Ok(vec![
            say(1, events(&[("a", 1)])),
            say(2, Content::Events(broken)),
        ])
    }))
    .await;
    let mut watch = fake.client().await.watch_jobs(by_ids());
    let first = watch.next().await.expect("the good one").expect("no error");
    assert_eq!(in_short(&first), "a 1");
    let error = watch.next().await.expect("the end").expect_err("broken");
    assert!(matches!(error, ClientError::Contract { .. }), "{error}");
    assert_eq!(watch.delivered_cursor(), "c1");
}
