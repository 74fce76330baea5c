//! Requests as they come in, turned into what the queue is asked for. Everything that is wrong with a
//! request is collected and told at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::time::Duration;

use prost::Message;

use crate::error::{Error, Violations};
use crate::job::JobState;
use crate::job::event::EventTag;
use crate::job::limits::{
    DURATION_MAX, HEARTBEAT_DEFAULT, HEARTBEAT_MAX, HEARTBEAT_MIN, IDEMPOTENCY_KEY_BYTES_MAX,
    LABEL_VALUE_BYTES_MAX, LABELS_MAX, LIST_MAX, POLL_DEFAULT, POLL_MAX, REQUEST_BYTES_MAX,
    ROLL_UP_INTERVAL_DEFAULT, STRING_BYTES_MAX, WATCH_JOB_IDS_MAX,
};
use crate::job::name::{BatchId, JobId, JobKey, Name};
use crate::pb;
use crate::queue::{
    EventQuery, JobsWatchOptions, WatchOptions, check_page_size, check_sequence, default_tenant,
};
use crate::store::{JobFilter, ListQuery, View};
use crate::wire;

/// Refuses a request that is larger than any may be.
pub(super) fn check_request(request: &impl Message) -> Result<(), Error> {
    let bytes = request.encoded_len();
    if bytes > REQUEST_BYTES_MAX {
        let problem = format!("is {bytes} bytes; at most {REQUEST_BYTES_MAX} are accepted");
        return Err(Error::invalid("request", problem));
    }
    Ok(())
}

/// The key of a job.
pub(super) fn job_key(job_id: &str, violations: &mut Violations) -> Option<JobKey> {
    let id = violations.check("job_id", JobId::parse(job_id))?;
    Some(JobKey {
        tenant: default_tenant(),
        id,
    })
}

/// How much of a job to answer.
pub(super) fn view(view: i32, default: View, violations: &mut Violations) -> View {
    named_view("view", view, default, violations)
}

fn named_view(field: &str, view: i32, default: View, violations: &mut Violations) -> View {
    match pb::JobView::try_from(view) {
        Ok(pb::JobView::Unspecified) => default,
        Ok(pb::JobView::Basic) => View::Basic,
        Ok(pb::JobView::Full) => View::Full,
        Err(_) => {
            violations.add(field, format!("is {view}, which is no JobView"));
            default
        }
    }
}

/// How long a Wait may take.
pub(super) fn wait_timeout(
    timeout: Option<prost_types::Duration>,
    violations: &mut Violations,
) -> Duration {
    duration(
        "timeout",
        timeout,
        Duration::ZERO..=POLL_MAX,
        POLL_DEFAULT,
        violations,
    )
}

/// How a job is watched.
pub(super) fn watch_options(
    after_sequence: Option<i64>,
    event_types: &[i32],
    min_progress_interval: Option<prost_types::Duration>,
    heartbeat_interval: Option<prost_types::Duration>,
    violations: &mut Violations,
) -> WatchOptions {
    check_cursor(after_sequence, violations);
    WatchOptions {
        after_sequence,
        tags: tags(event_types, violations),
        min_progress_interval: duration(
            "min_progress_interval",
            min_progress_interval,
            Duration::ZERO..=DURATION_MAX,
            Duration::ZERO,
            violations,
        ),
        heartbeat_interval: duration(
            "heartbeat_interval",
            heartbeat_interval,
            HEARTBEAT_MIN..=HEARTBEAT_MAX,
            HEARTBEAT_DEFAULT,
            violations,
        ),
    }
}

/// Which jobs are watched.
pub(super) fn job_filter(request: &pb::WatchJobsRequest, violations: &mut Violations) -> JobFilter {
    JobFilter {
        tenant: default_tenant(),
        labels: labels(&request.labels, violations),
        queues: names("queues", &request.queues, violations)
            .into_iter()
            .collect(),
        types: names("types", &request.types, violations)
            .into_iter()
            .collect(),
        batch_id: batch_id(&request.batch_id, violations),
        ids: job_ids(&request.job_ids, violations),
    }
}

/// How many jobs are watched.
pub(super) fn jobs_watch_options(
    request: &pb::WatchJobsRequest,
    violations: &mut Violations,
) -> JobsWatchOptions {
    let interval_default = if request.roll_up {
        ROLL_UP_INTERVAL_DEFAULT
    } else {
        Duration::ZERO
    };
    JobsWatchOptions {
        after_cursor: request.after_cursor.clone(),
        tags: tags(&request.event_types, violations),
        min_progress_interval: duration(
            "min_progress_interval",
            request.min_progress_interval,
            Duration::ZERO..=DURATION_MAX,
            interval_default,
            violations,
        ),
        heartbeat_interval: duration(
            "heartbeat_interval",
            request.heartbeat_interval,
            HEARTBEAT_MIN..=HEARTBEAT_MAX,
            HEARTBEAT_DEFAULT,
            violations,
        ),
        finished_view: named_view(
            "finished_view",
            request.finished_view,
            View::Basic,
            violations,
        ),
        roll_up: request.roll_up,
    }
}

fn batch_id(given: &str, violations: &mut Violations) -> Option<BatchId> {
    if given.is_empty() {
        return None;
    }
    violations.check("batch_id", BatchId::parse(given))
}

fn job_ids(given: &[String], violations: &mut Violations) -> BTreeSet<JobId> {
    let len = given.len();
    if len > WATCH_JOB_IDS_MAX {
        let problem = format!("has {len} entries; at most {WATCH_JOB_IDS_MAX} are accepted");
        violations.add("job_ids", problem);
    }
    let numbered = given.iter().enumerate().take(WATCH_JOB_IDS_MAX);
    numbered
        .filter_map(|(index, id)| violations.check(&format!("job_ids[{index}]"), JobId::parse(id)))
        .collect()
}

/// Which events of a job.
pub(super) fn event_query(
    request: &pb::ListEventsRequest,
    violations: &mut Violations,
) -> EventQuery {
    check_cursor(Some(request.after_sequence), violations);
    violations.check("page_size", check_page_size(request.page_size));
    EventQuery {
        after: request.after_sequence,
        page_size: request.page_size,
        tags: tags(&request.event_types, violations),
    }
}

/// What the requests that find jobs have in common, under the names of their fields.
pub(super) struct Filter<'a> {
    states: &'a [i32],
    types: &'a [String],
    queues: &'a [String],
    labels: &'a HashMap<String, String>,
    batch_id: &'a str,
    idempotency_key: &'a str,
    reasons: &'a [String],
    created_after: Option<prost_types::Timestamp>,
    created_before: Option<prost_types::Timestamp>,
    ended_after: Option<prost_types::Timestamp>,
    ended_before: Option<prost_types::Timestamp>,
}

macro_rules! filter_of {
    ($request:ty) => {
        impl<'a> From<&'a $request> for Filter<'a> {
            fn from(request: &'a $request) -> Self {
                Self {
                    states: &request.states,
                    types: &request.types,
                    queues: &request.queues,
                    labels: &request.labels,
                    batch_id: &request.batch_id,
                    idempotency_key: &request.idempotency_key,
                    reasons: &request.reasons,
                    created_after: request.created_after,
                    created_before: request.created_before,
                    ended_after: request.ended_after,
                    ended_before: request.ended_before,
                }
            }
        }
    };
}

filter_of!(pb::ListRequest);
filter_of!(pb::RetryManyRequest);
filter_of!(pb::DeleteManyRequest);

/// Which jobs. Which page of them is checked by the queue, which made the token.
pub(super) fn list_query(request: &pb::ListRequest, violations: &mut Violations) -> ListQuery {
    let mut query = query(request.into(), |_| true, "a job", violations);
    // All of them is no filter at all.
    if query.states.len() == JobState::ALL.len() {
        query.states.clear();
    }
    query.stalled_only = request.stalled_only;
    query
}

/// Which jobs are to be retried.
pub(super) fn retry_query(
    request: &pb::RetryManyRequest,
    violations: &mut Violations,
) -> ListQuery {
    let wanted = "a job that can be retried";
    let mut query = query(request.into(), JobState::is_retryable, wanted, violations);
    if query.states.is_empty() {
        query.states.push(JobState::Failed);
    }
    query
}

/// Which jobs are to be removed.
pub(super) fn delete_query(
    request: &pb::DeleteManyRequest,
    violations: &mut Violations,
) -> ListQuery {
    let wanted = "a job that is over";
    let mut query = query(request.into(), JobState::is_terminal, wanted, violations);
    let is_bound = query != ListQuery::all(query.tenant.clone()) || !request.states.is_empty();
    if request.all && is_bound {
        violations.add("all", "is set beside a filter; leave one of them out");
    }
    if !request.all && !is_bound && violations.is_empty() {
        violations.add("all", "is required where no filter is given");
    }
    if query.states.is_empty() {
        let over = JobState::ALL
            .into_iter()
            .filter(|state| state.is_terminal());
        query.states.extend(over);
    }
    query
}

/// The jobs that a filter finds, in states of which it has only those that are `wanted`.
fn query(
    filter: Filter<'_>,
    is_wanted: fn(JobState) -> bool,
    wanted: &str,
    violations: &mut Violations,
) -> ListQuery {
    let key = filter.idempotency_key;
    if key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let len = key.len();
        let problem = format!("is {len} bytes; at most {IDEMPOTENCY_KEY_BYTES_MAX} are accepted");
        violations.add("idempotency_key", problem);
    }
    let batch_id = (!filter.batch_id.is_empty())
        .then(|| violations.check("batch_id", BatchId::parse(filter.batch_id)));
    let mut time = |field: &str, at: Option<prost_types::Timestamp>| {
        at.and_then(|at| violations.check(field, wire::from_timestamp(at)))
    };
    ListQuery {
        created_after: time("created_after", filter.created_after),
        created_before: time("created_before", filter.created_before),
        ended_after: time("ended_after", filter.ended_after),
        ended_before: time("ended_before", filter.ended_before),
        states: states(filter.states, is_wanted, wanted, violations),
        types: names("types", filter.types, violations),
        queues: names("queues", filter.queues, violations),
        labels: labels(filter.labels, violations),
        batch_id: batch_id.flatten(),
        idempotency_key: (!key.is_empty()).then(|| key.to_owned()),
        reasons: reasons(filter.reasons, violations),
        ..ListQuery::all(default_tenant())
    }
}

fn states(
    given: &[i32],
    is_wanted: fn(JobState) -> bool,
    wanted: &str,
    violations: &mut Violations,
) -> Vec<JobState> {
    check_list("states", given.len(), violations);
    let mut states = Vec::new();
    for (index, state) in given.iter().enumerate().take(LIST_MAX) {
        match wire::from_state(*state) {
            Some(state) if is_wanted(state) => states.push(state),
            Some(state) => violations.add(
                format!("states[{index}]"),
                format!(
                    "is {}, which is no state of {wanted}",
                    wire::to_state(state).as_str_name()
                ),
            ),
            None => violations.add(
                format!("states[{index}]"),
                format!("is {state}, which is no state of a job"),
            ),
        }
    }
    states.sort();
    states.dedup();
    states
}

/// Labels that a job has to have: as those of a submit.
fn labels(
    given: &HashMap<String, String>,
    violations: &mut Violations,
) -> BTreeMap<String, String> {
    if given.len() > LABELS_MAX {
        let len = given.len();
        let problem = format!("has {len} entries; at most {LABELS_MAX} are accepted");
        violations.add("labels", problem);
    }
    let labels: BTreeMap<String, String> = given.clone().into_iter().collect();
    for (name, value) in labels.iter().take(LABELS_MAX + 1) {
        let field = format!("labels[{name:?}]");
        if let Err(problem) = Name::new(name) {
            violations.add(field.clone(), format!("has a key that {problem}"));
        }
        if value.len() > LABEL_VALUE_BYTES_MAX {
            let len = value.len();
            let problem = format!("is {len} bytes; at most {LABEL_VALUE_BYTES_MAX} are accepted");
            violations.add(field, problem);
        }
    }
    labels
}

fn reasons(given: &[String], violations: &mut Violations) -> Vec<String> {
    check_list("reasons", given.len(), violations);
    for (index, reason) in given.iter().enumerate().take(LIST_MAX) {
        check_string(&format!("reasons[{index}]"), reason, violations);
    }
    given.to_vec()
}

pub(super) fn names(field: &str, names: &[String], violations: &mut Violations) -> Vec<Name> {
    check_list(field, names.len(), violations);
    let numbered = names.iter().enumerate().take(LIST_MAX);
    numbered
        .filter_map(|(index, name)| violations.check(&format!("{field}[{index}]"), Name::new(name)))
        .collect()
}

fn tags(event_types: &[i32], violations: &mut Violations) -> Vec<EventTag> {
    check_list("event_types", event_types.len(), violations);
    let mut tags = Vec::new();
    for (index, event_type) in event_types.iter().enumerate().take(LIST_MAX) {
        match wire::from_event_type(*event_type) {
            Some(tag) => tags.push(tag),
            None => violations.add(
                format!("event_types[{index}]"),
                format!("is {event_type}, which is no type of event"),
            ),
        }
    }
    tags
}

/// Checks where to go on from, if anywhere.
pub(super) fn check_cursor(after_sequence: Option<i64>, violations: &mut Violations) {
    if let Some(after) = after_sequence {
        violations.check("after_sequence", check_sequence(after));
    }
}

/// Checks a string that has no bound of its own.
pub(super) fn check_string(field: &str, text: &str, violations: &mut Violations) {
    if text.len() > STRING_BYTES_MAX {
        let len = text.len();
        let problem = format!("is {len} bytes; at most {STRING_BYTES_MAX} are accepted");
        violations.add(field, problem);
    }
}

fn check_list(field: &str, len: usize, violations: &mut Violations) {
    if len > LIST_MAX {
        let problem = format!("has {len} entries; at most {LIST_MAX} are accepted");
        violations.add(field, problem);
    }
}

pub(super) fn duration(
    field: &str,
    given: Option<prost_types::Duration>,
    range: RangeInclusive<Duration>,
    default: Duration,
    violations: &mut Violations,
) -> Duration {
    given.map_or(default, |given| {
        violations
            .check(field, wire::from_duration(given, range))
            .unwrap_or(default)
    })
}
