//! The messages of a watch of many jobs.

use futures_util::stream;

use crate::grpc::Messages;
use crate::grpc::status::status;
use crate::job::JobSnapshot;
use crate::pb;
use crate::pb::watch_jobs_response::Content;
use crate::queue::{JobsContent, JobsGap, JobsMessage, JobsWatch, RollUp};
use crate::wire;

/// Pulled one by one: while the connection has no room, nothing is read.
pub(super) fn messages(watch: JobsWatch) -> Messages<pb::WatchJobsResponse> {
    let messages = stream::unfold(Some(watch), |open| async {
        let mut watch = open?;
        match watch.next().await {
            Ok(Some(message)) => Some((Ok(to_message(message)), Some(watch))),
            Ok(None) => None,
            Err(error) => Some((Err(status(error)), None)),
        }
    });
    Box::pin(messages)
}

fn to_message(message: JobsMessage) -> pb::WatchJobsResponse {
    let content = match message.content {
        JobsContent::Snapshot(jobs) => Content::Snapshot(to_jobs(jobs)),
        JobsContent::Events(events) => Content::Events(pb::EventBatch {
            events: events.into_iter().map(|event| event.bytes).collect(),
        }),
        JobsContent::Finished(jobs) => Content::Finished(to_jobs(jobs)),
        JobsContent::RollUp(roll_up) => Content::RollUp(to_roll_up(roll_up)),
        JobsContent::Gap(gap) => Content::Gap(to_gap(gap)),
        JobsContent::Heartbeat(now) => Content::Heartbeat(pb::Heartbeat {
            server_time: Some(wire::to_timestamp(now)),
        }),
    };
    pb::WatchJobsResponse {
        cursor: message.cursor,
        content: Some(content),
    }
}

fn to_jobs(jobs: Vec<JobSnapshot>) -> pb::Jobs {
    pb::Jobs {
        jobs: jobs.into_iter().map(wire::to_job).collect(),
    }
}

fn to_roll_up(roll_up: RollUp) -> pb::RollUp {
    let count = |jobs| i64::try_from(jobs).unwrap_or(i64::MAX);
    pb::RollUp {
        waiting: count(roll_up.waiting),
        running: count(roll_up.running),
        succeeded: count(roll_up.succeeded),
        failed: count(roll_up.failed),
        cancelled: count(roll_up.cancelled),
        expired: count(roll_up.expired),
        fraction: roll_up.fraction,
        estimated_end_time: roll_up.estimated_end_at.map(wire::to_timestamp),
    }
}

fn to_gap(gap: JobsGap) -> pb::EventGap {
    let (first, last) = gap.sequences.unwrap_or_default();
    pb::EventGap {
        cause: pb::event_gap::Cause::Retention as i32,
        job_id: gap.job.map(|id| id.to_string()).unwrap_or_default(),
        first_missing_sequence: first,
        last_missing_sequence: last,
    }
}
