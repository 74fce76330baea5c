//! `pacenote.v1.QueueService`: how queues and job types stand, and what bounds them.

use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::error::{Error, Violations};
use crate::grpc::requests::check_string;
use crate::grpc::status::status;
use crate::grpc::{checked, opened};
use crate::job::JobState;
use crate::job::limits::{LIST_MAX, PURGE_JOBS_DEFAULT, PURGE_JOBS_MAX};
use crate::job::name::Name;
use crate::job::queue::{
    Given, QueueLimits, RateLimit, check_concurrency, check_key_concurrency, check_period,
    check_starts, within,
};
use crate::pb;
use crate::pb::queue_service_server::QueueService;
use crate::queue::{
    Depths, Edit, JobQueue, LastMinute, LimitSources, LimitsEdit, QueueStatus, Source, TypeStatus,
    Waiting, check_page_size, default_tenant,
};
use crate::wire;

/// Name of the queue service, as health checks ask for it.
pub const QUEUE_SERVICE: &str = "pacenote.v1.QueueService";

/// `pacenote.v1.QueueService`.
pub(super) struct Queues {
    pub(super) queue: JobQueue,
}

impl Queues {
    fn known_type(&self, name: &str, violations: &mut Violations) -> Option<Name> {
        let tenant = default_tenant();
        self.queue.known_type(&tenant, name, "job_type", violations)
    }

    async fn pause_queue(&self, name: &str, paused: bool) -> Result<pb::Queue, Status> {
        let mut violations = Violations::default();
        let name = violations.check("queue", Name::new(name));
        let name = checked(name, violations)?;
        let done = self.queue.pause_queue(&name, paused).await;
        done.map_err(status)?;
        self.queue_as_it_is(&name).await
    }

    async fn pause_type(&self, name: &str, paused: bool) -> Result<pb::JobType, Status> {
        let mut violations = Violations::default();
        let name = self.known_type(name, &mut violations);
        let name = checked(name, violations)?;
        let done = self.queue.pause_type(&name, paused).await;
        done.map_err(status)?;
        let found = self.queue.job_type(&default_tenant(), &name).await;
        let found = found.map_err(status)?;
        let found = found.ok_or_else(|| status(Error::internal(&"a served type is not known")))?;
        Ok(to_job_type(found))
    }

    async fn queue_as_it_is(&self, name: &Name) -> Result<pb::Queue, Status> {
        let found = self.queue.queue(&default_tenant(), name).await;
        Ok(to_queue(found.map_err(status)?))
    }

    /// What is to be ended, as far as it can be read.
    fn waiting(
        &self,
        request: pb::PurgeQueueRequest,
        violations: &mut Violations,
    ) -> Option<Waiting> {
        let queue = violations.check("queue", Name::new(&request.queue));
        let job_type = match request.job_type.as_str() {
            "" => None,
            name => self.known_type(name, violations),
        };
        let states = waiting_states(&request.states, violations);
        let limit = match request.limit {
            0 => Some(PURGE_JOBS_DEFAULT),
            limit => violations.check("limit", within(limit.into(), 1, PURGE_JOBS_MAX)),
        };
        check_string("reason", &request.reason, violations);
        Some(Waiting {
            tenant: default_tenant(),
            queue: queue?,
            job_type,
            states,
            limit: limit? as usize,
            reason: request.reason,
        })
    }
}

#[tonic::async_trait]
impl QueueService for Queues {
    async fn list_queues(
        &self,
        request: Request<pb::ListQueuesRequest>,
    ) -> Result<Response<pb::ListQueuesResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let size = violations.check("page_size", check_page_size(request.page_size));
        let size = checked(size, violations)?;
        let tenant = default_tenant();
        let list = self.queue.queues(&tenant, size, &request.page_token).await;
        let list = list.map_err(status)?;
        Ok(Response::new(pb::ListQueuesResponse {
            queues: list.queues.into_iter().map(to_queue).collect(),
            next_page_token: list.next_page_token,
        }))
    }

    async fn list_job_types(
        &self,
        request: Request<pb::ListJobTypesRequest>,
    ) -> Result<Response<pb::ListJobTypesResponse>, Status> {
        let pb::ListJobTypesRequest {} = opened(request)?;
        let types = self.queue.job_types(&default_tenant()).await;
        let types = types.map_err(status)?;
        Ok(Response::new(pb::ListJobTypesResponse {
            job_types: types.into_iter().map(to_job_type).collect(),
        }))
    }

    async fn pause_queue(
        &self,
        request: Request<pb::PauseQueueRequest>,
    ) -> Result<Response<pb::PauseQueueResponse>, Status> {
        let request = opened(request)?;
        let queue = Some(self.pause_queue(&request.queue, true).await?);
        Ok(Response::new(pb::PauseQueueResponse { queue }))
    }

    async fn resume_queue(
        &self,
        request: Request<pb::ResumeQueueRequest>,
    ) -> Result<Response<pb::ResumeQueueResponse>, Status> {
        let request = opened(request)?;
        let queue = Some(self.pause_queue(&request.queue, false).await?);
        Ok(Response::new(pb::ResumeQueueResponse { queue }))
    }

    async fn set_queue_limits(
        &self,
        request: Request<pb::SetQueueLimitsRequest>,
    ) -> Result<Response<pb::SetQueueLimitsResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let name = violations.check("queue", Name::new(&request.queue));
        let edit = limits_edit(&request, &mut violations);
        let name = checked(name, violations)?;
        let done = self.queue.set_limits(&name, edit).await;
        done.map_err(status)?;
        let queue = Some(self.queue_as_it_is(&name).await?);
        Ok(Response::new(pb::SetQueueLimitsResponse { queue }))
    }

    async fn pause_job_type(
        &self,
        request: Request<pb::PauseJobTypeRequest>,
    ) -> Result<Response<pb::PauseJobTypeResponse>, Status> {
        let request = opened(request)?;
        let job_type = Some(self.pause_type(&request.job_type, true).await?);
        Ok(Response::new(pb::PauseJobTypeResponse { job_type }))
    }

    async fn resume_job_type(
        &self,
        request: Request<pb::ResumeJobTypeRequest>,
    ) -> Result<Response<pb::ResumeJobTypeResponse>, Status> {
        let request = opened(request)?;
        let job_type = Some(self.pause_type(&request.job_type, false).await?);
        Ok(Response::new(pb::ResumeJobTypeResponse { job_type }))
    }

    async fn purge_queue(
        &self,
        request: Request<pb::PurgeQueueRequest>,
    ) -> Result<Response<pb::PurgeQueueResponse>, Status> {
        let request = opened(request)?;
        let mut violations = Violations::default();
        let waiting = self.waiting(request, &mut violations);
        let waiting = checked(waiting, violations)?;
        let cleared = self.queue.clear(&waiting).await.map_err(status)?;
        Ok(Response::new(pb::PurgeQueueResponse {
            purged_count: i32::try_from(cleared.jobs).unwrap_or(i32::MAX),
            is_complete: cleared.is_complete,
        }))
    }
}

/// The states of a purge. Empty: those that wait for a worker.
fn waiting_states(given: &[i32], violations: &mut Violations) -> Vec<JobState> {
    if given.len() > LIST_MAX {
        let len = given.len();
        let problem = format!("has {len} entries; at most {LIST_MAX} are accepted");
        violations.add("states", problem);
    }
    if given.is_empty() {
        return vec![JobState::Queued];
    }
    let mut states = Vec::new();
    for (index, number) in given.iter().enumerate().take(LIST_MAX) {
        match wire::from_state(*number).filter(|state| state.is_waiting()) {
            Some(state) => states.push(state),
            None => violations.add(
                format!("states[{index}]"),
                format!("is {number}, which is none of QUEUED, SCHEDULED and BLOCKED"),
            ),
        }
    }
    states
}

fn limits_edit(request: &pb::SetQueueLimitsRequest, violations: &mut Violations) -> LimitsEdit {
    let mut edit = LimitsEdit {
        concurrency: concurrency_edit(request.concurrency, violations),
        rate: rate_edit(request.rate_limit.as_ref(), violations),
        key_concurrency: key_edit(request.key_concurrency, violations),
    };
    if request.reset.len() > LIST_MAX {
        let len = request.reset.len();
        let problem = format!("has {len} entries; at most {LIST_MAX} are accepted");
        violations.add("reset", problem);
    }
    for (index, limit) in request.reset.iter().enumerate().take(LIST_MAX) {
        let field = format!("reset[{index}]");
        let is_set = match pb::QueueLimit::try_from(*limit) {
            Ok(pb::QueueLimit::Concurrency) => reset(&mut edit.concurrency),
            Ok(pb::QueueLimit::Rate) => reset(&mut edit.rate),
            Ok(pb::QueueLimit::KeyConcurrency) => reset(&mut edit.key_concurrency),
            Ok(pb::QueueLimit::Unspecified) | Err(_) => {
                violations.add(field, format!("is {limit}, which is no QueueLimit"));
                continue;
            }
        };
        if is_set {
            violations.add(field, "is a limit that this request sets");
        }
    }
    edit
}

/// Resets a limit; whether the request sets it, too.
fn reset<T>(edit: &mut Edit<T>) -> bool {
    let is_set = matches!(edit, Edit::To(_));
    *edit = Edit::Reset;
    is_set
}

fn concurrency_edit(given: Option<i32>, violations: &mut Violations) -> Edit<Given<u32>> {
    match given {
        None => Edit::Keep,
        Some(0) => Edit::To(Given::Unlimited),
        Some(most) => violations
            .check("concurrency", check_concurrency(most.into()))
            .map_or(Edit::Keep, |most| Edit::To(Given::Most(most))),
    }
}

fn key_edit(given: Option<i32>, violations: &mut Violations) -> Edit<u32> {
    given.map_or(Edit::Keep, |most| {
        violations
            .check("key_concurrency", check_key_concurrency(most.into()))
            .map_or(Edit::Keep, Edit::To)
    })
}

fn rate_edit(given: Option<&pb::RateLimit>, violations: &mut Violations) -> Edit<Given<RateLimit>> {
    let Some(given) = given else {
        return Edit::Keep;
    };
    if given.starts == 0 && given.period.is_none() {
        return Edit::To(Given::Unlimited);
    }
    let starts = violations.check("rate_limit.starts", check_starts(given.starts.into()));
    let period = match given.period {
        None => Err("is required".to_owned()),
        Some(period) => Duration::try_from(period)
            .map_err(|_| "is less than 0, or no duration".to_owned())
            .and_then(check_period),
    };
    let period = violations.check("rate_limit.period", period);
    match starts.zip(period) {
        Some((starts, period)) => Edit::To(Given::Most(RateLimit { starts, period })),
        None => Edit::Keep,
    }
}

fn to_queue(queue: QueueStatus) -> pb::Queue {
    let status = queue.status;
    pb::Queue {
        name: status.name.to_string(),
        counts: Some(to_counts(&status.depths, status.stalled)),
        oldest_waiting_age: status.oldest_waiting.map(wire::to_duration),
        last_minute: status.last_minute.map(to_minute),
        paused: status.paused_at.is_some(),
        pause_time: status.paused_at.map(wire::to_timestamp),
        limits: Some(to_limits(&queue.limits, queue.sources)),
    }
}

fn to_job_type(job_type: TypeStatus) -> pb::JobType {
    let status = job_type.status;
    pb::JobType {
        name: status.name.to_string(),
        counts: Some(to_counts(&status.depths, status.stalled)),
        oldest_waiting_age: status.oldest_waiting.map(wire::to_duration),
        last_minute: status.last_minute.map(to_minute),
        paused: status.paused_at.is_some(),
        pause_time: status.paused_at.map(wire::to_timestamp),
        queue: job_type.queue.to_string(),
        concurrency: job_type
            .concurrency
            .map(|most| i32::try_from(most).unwrap_or(i32::MAX)),
    }
}

fn to_counts(depths: &Depths, stalled: u64) -> pb::JobCounts {
    let of = |state| number(depths.of(state));
    pb::JobCounts {
        scheduled: of(JobState::Scheduled),
        blocked: of(JobState::Blocked),
        queued: of(JobState::Queued),
        running: of(JobState::Running),
        cancelling: of(JobState::Cancelling),
        succeeded: of(JobState::Succeeded),
        failed: of(JobState::Failed),
        cancelled: of(JobState::Cancelled),
        expired: of(JobState::Expired),
        stalled: number(stalled),
    }
}

fn to_minute(minute: LastMinute) -> pb::MinuteCounts {
    pb::MinuteCounts {
        submitted: number(minute.submitted),
        started: number(minute.started),
        succeeded: number(minute.succeeded),
        failed: number(minute.failed),
        cancelled: number(minute.cancelled),
        expired: number(minute.expired),
    }
}

fn to_limits(limits: &QueueLimits, sources: LimitSources) -> pb::QueueLimits {
    let most = |most: u32| i32::try_from(most).unwrap_or(i32::MAX);
    pb::QueueLimits {
        concurrency: limits.concurrency.map(most),
        concurrency_source: to_source(sources.concurrency),
        rate_limit: limits.rate.map(|rate| pb::RateLimit {
            starts: most(rate.starts),
            period: Some(wire::to_duration(rate.period)),
        }),
        rate_limit_source: to_source(sources.rate),
        key_concurrency: i32::try_from(limits.key_concurrency).unwrap_or(i32::MAX),
        key_concurrency_source: to_source(sources.key_concurrency),
    }
}

fn to_source(source: Source) -> i32 {
    let source = match source {
        Source::Default => pb::queue_limits::Source::Default,
        Source::File => pb::queue_limits::Source::File,
        Source::Runtime => pb::queue_limits::Source::Runtime,
    };
    source.into()
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
