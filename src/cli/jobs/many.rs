//! `pacenote retry` and `pacenote delete`: jobs by their ids, or all that a filter finds, page by page to the
//! end.

use crate::cli::jobs::{DeleteArgs, Exit, FilterArgs, Output, RetryArgs, StateArg, Stop, escape};
use crate::client::Client;
use crate::pb;
use crate::pb::job::State;

/// What a command is about.
pub(super) enum What<Q> {
    Jobs(Vec<String>),
    Found(Q),
}

pub(super) fn retry_of(args: RetryArgs) -> Result<What<pb::RetryManyRequest>, String> {
    if !args.job_ids.is_empty() {
        return Ok(What::Jobs(args.job_ids));
    }
    if !args.failed && args.states.is_empty() && is_empty(&args.filter) {
        return Err("say which jobs: by id, or by --failed and other options".to_owned());
    }
    let filter = args.filter;
    Ok(What::Found(pb::RetryManyRequest {
        states: states(args.states),
        created_after: filter.created_after.map(Into::into),
        created_before: filter.created_before.map(Into::into),
        ended_after: filter.ended_after.map(Into::into),
        ended_before: filter.ended_before.map(Into::into),
        types: filter.types,
        queues: filter.queues,
        labels: filter.labels.into_iter().collect(),
        batch_id: filter.batch_id.unwrap_or_default(),
        idempotency_key: filter.idempotency_key.unwrap_or_default(),
        reasons: filter.reasons,
        ..pb::RetryManyRequest::default()
    }))
}

pub(super) fn delete_of(args: DeleteArgs) -> Result<What<pb::DeleteManyRequest>, String> {
    if !args.job_ids.is_empty() {
        return Ok(What::Jobs(args.job_ids));
    }
    if !args.all && args.states.is_empty() && is_empty(&args.filter) {
        return Err("say which jobs: by id, by --state and other options, or --all".to_owned());
    }
    let filter = args.filter;
    Ok(What::Found(pb::DeleteManyRequest {
        all: args.all,
        states: states(args.states),
        created_after: filter.created_after.map(Into::into),
        created_before: filter.created_before.map(Into::into),
        ended_after: filter.ended_after.map(Into::into),
        ended_before: filter.ended_before.map(Into::into),
        types: filter.types,
        queues: filter.queues,
        labels: filter.labels.into_iter().collect(),
        batch_id: filter.batch_id.unwrap_or_default(),
        idempotency_key: filter.idempotency_key.unwrap_or_default(),
        reasons: filter.reasons,
        ..pb::DeleteManyRequest::default()
    }))
}

fn is_empty(filter: &FilterArgs) -> bool {
    let times = [
        filter.created_after,
        filter.created_before,
        filter.ended_after,
        filter.ended_before,
    ];
    filter.types.is_empty()
        && filter.queues.is_empty()
        && filter.labels.is_empty()
        && filter.reasons.is_empty()
        && filter.batch_id.is_none()
        && filter.idempotency_key.is_none()
        && times.iter().all(Option::is_none)
}

fn states(states: Vec<StateArg>) -> Vec<i32> {
    let states = states.into_iter();
    states.map(|state| State::from(state).into()).collect()
}

/// Prints the ids of the new jobs, one a line.
pub(super) async fn retry(
    client: Client,
    what: What<pb::RetryManyRequest>,
    output: Output,
) -> Result<Exit, Stop> {
    let mut request = match what {
        What::Jobs(ids) => {
            for id in ids {
                let job = client.retry(id).await?.job.unwrap_or_default();
                if output.json {
                    output.message(&job)?;
                } else {
                    output.line(&escape(&job.job_id))?;
                }
            }
            return Ok(Exit::Success);
        }
        What::Found(request) => request,
    };
    let (mut retried, mut skipped) = (0, 0);
    loop {
        let page = client.retry_many(request.clone()).await?;
        retried += page.retried.len();
        skipped += page.skipped.len();
        for one in &page.retried {
            if output.json {
                output.message(one)?;
            } else {
                output.line(&escape(&one.new_job_id))?;
            }
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            output.note(&format!(
                "{retried} retried; {skipped} were retried before, or are gone"
            ));
            return Ok(Exit::Success);
        }
    }
}

/// Prints how many jobs are gone.
pub(super) async fn delete(
    client: Client,
    what: What<pb::DeleteManyRequest>,
    output: Output,
) -> Result<Exit, Stop> {
    let mut deleted = 0;
    match what {
        What::Jobs(ids) => {
            for id in ids {
                client.delete(id).await?;
                deleted += 1;
            }
        }
        What::Found(mut request) => loop {
            let page = client.delete_many(request.clone()).await?;
            deleted += page.deleted_count;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        },
    }
    if output.json {
        output.message(&pb::DeleteManyResponse {
            deleted_count: deleted,
            ..pb::DeleteManyResponse::default()
        })?;
    } else {
        output.line(&format!("{deleted} deleted"))?;
    }
    Ok(Exit::Success)
}
