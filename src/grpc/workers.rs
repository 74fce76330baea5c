//! `pacenote.v1.WorkerService`: work for programs in any language.

use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use crate::error::Violations;
use crate::grpc::requests::{duration, names};
use crate::grpc::status::status;
use crate::grpc::{checked, opened};
use crate::job::event::JobError;
use crate::job::limits::{
    DURATIONS, LEASE, LEASE_TERMS, LEASED_MAX, PAGE_BYTES_MAX, POLL_DEFAULT, POLL_MAX,
};
use crate::job::{JobSnapshot, Outcome, Payloads, Report};
use crate::pb;
use crate::pb::worker_service_server::WorkerService;
use crate::queue::{JobQueue, LeaseStanding, LeasedJob, Renewal, WorkRequest, default_tenant};
use crate::wire;
use crate::wire::reports::{from_error, from_event};

/// Name of the worker service, as health checks ask for it.
pub const WORKER_SERVICE: &str = "pacenote.v1.WorkerService";

/// What a leased job has beside its message: token, time and lengths. Bytes.
const LEASED_JOB_BYTES: usize = 2 * 1024;

/// `pacenote.v1.WorkerService`.
pub(super) struct Workers {
    pub(super) queue: JobQueue,
}

#[tonic::async_trait]
impl WorkerService for Workers {
    async fn lease(
        &self,
        request: Request<pb::LeaseRequest>,
    ) -> Result<Response<pb::LeaseResponse>, Status> {
        let request = work_request(opened(request)?)?;
        // A byte of it may take eight in a token.
        let beside = LEASED_JOB_BYTES + 8 * request.worker_id.len();
        let mut bytes = 0;
        let fits = |snapshot: &JobSnapshot| {
            let first = bytes == 0;
            bytes += wire::to_job(snapshot.clone()).encoded_len() + beside;
            // The first one goes by itself, whatever it is: its payloads have bounds of their own.
            first || bytes <= PAGE_BYTES_MAX
        };
        let work = self.queue.lease(request, fits).await.map_err(status)?;
        Ok(Response::new(pb::LeaseResponse {
            leased_jobs: work.jobs.into_iter().map(to_leased).collect(),
            drain: work.drain,
            waited: Some(wire::to_duration(work.waited)),
        }))
    }

    async fn report(
        &self,
        request: Request<pb::ReportRequest>,
    ) -> Result<Response<pb::ReportResponse>, Status> {
        let pb::ReportRequest {
            lease_token,
            events,
            report_number,
            checkpoint,
        } = opened(request)?;
        let mut violations = Violations::default();
        if report_number < 0 {
            violations.add(
                "report_number",
                format!("is {report_number}; 0 or more is accepted"),
            );
        }
        let reports = reports(events, checkpoint, &mut violations);
        let reports = checked(Some(reports), violations)?;
        let queue = &self.queue;
        let standing = queue
            .report_as(&default_tenant(), &lease_token, report_number, reports)
            .await
            .map_err(status)?;
        Ok(Response::new(pb::ReportResponse {
            lease_expire_time: Some(wire::to_timestamp(standing.expires_at)),
            cancel_requested: standing.cancel.is_some(),
            cancel_reason: standing.cancel.unwrap_or_default(),
        }))
    }

    async fn extend_leases(
        &self,
        request: Request<pb::ExtendLeasesRequest>,
    ) -> Result<Response<pb::ExtendLeasesResponse>, Status> {
        let request = opened(request)?;
        let tenant = default_tenant();
        let renewals = self.queue.extend_leases(&tenant, &request.lease_tokens);
        let renewals = renewals.await.map_err(status)?;
        Ok(Response::new(pb::ExtendLeasesResponse {
            leases: renewals.into_iter().map(to_status).collect(),
        }))
    }

    async fn finish(
        &self,
        request: Request<pb::FinishRequest>,
    ) -> Result<Response<pb::FinishResponse>, Status> {
        let mut request = opened(request)?;
        let lease_token = std::mem::take(&mut request.lease_token);
        let fingerprint = fingerprint(&request);
        let outcome = outcome(request)?;
        let finished = self
            .queue
            .finish_as(&default_tenant(), &lease_token, outcome, fingerprint)
            .await;
        let snapshot = JobSnapshot {
            job: finished.map_err(status)?,
            payloads: Payloads::default(),
        };
        Ok(Response::new(pb::FinishResponse {
            job: Some(wire::to_job(snapshot)),
        }))
    }
}

fn work_request(request: pb::LeaseRequest) -> Result<WorkRequest, Status> {
    let mut violations = Violations::default();
    let types = names("types", &request.types, &mut violations);
    let queues = names("queues", &request.queues, &mut violations);
    let term = duration("lease", request.lease, LEASE_TERMS, LEASE, &mut violations);
    let wait = duration(
        "wait",
        request.wait,
        Duration::ZERO..=POLL_MAX,
        POLL_DEFAULT,
        &mut violations,
    );
    let max_jobs = match request.max_jobs {
        0 => 1,
        // One that is negative is refused as what it is.
        max_jobs => usize::try_from(max_jobs).unwrap_or_else(|_| {
            let problem = format!("is {max_jobs}; 1 to {LEASED_MAX} are accepted");
            violations.add("max_jobs", problem);
            1
        }),
    };
    let request = WorkRequest {
        tenant: default_tenant(),
        worker_id: request.worker_id,
        types,
        queues,
        max_jobs,
        term,
        wait,
    };
    // What the queue finds is told together with what could not be read.
    request.check(&mut violations);
    checked(Some(request), violations)
}

fn to_leased(leased: LeasedJob) -> pb::LeasedJob {
    pb::LeasedJob {
        job: Some(wire::to_job(leased.snapshot)),
        lease_token: leased.token,
        lease_expire_time: Some(wire::to_timestamp(leased.expires_at)),
    }
}

fn to_status(renewal: Renewal) -> pb::LeaseStatus {
    match renewal {
        Renewal::Renewed(LeaseStanding { expires_at, cancel }) => pb::LeaseStatus {
            lease_expire_time: Some(wire::to_timestamp(expires_at)),
            lost: false,
            cancel_requested: cancel.is_some(),
            cancel_reason: cancel.unwrap_or_default(),
        },
        Renewal::Lost => pb::LeaseStatus {
            lost: true,
            ..pb::LeaseStatus::default()
        },
        Renewal::Unknown => pb::LeaseStatus::default(),
    }
}

fn reports(
    events: Vec<pb::WorkerEvent>,
    checkpoint: Option<pb::Payload>,
    violations: &mut Violations,
) -> Vec<Report> {
    let count = events.len();
    if count > LEASED_MAX {
        let problem = format!("has {count} entries; at most {LEASED_MAX} are accepted");
        violations.add("events", problem);
        return Vec::new();
    }
    let mut reports = Vec::with_capacity(count + 1);
    for (index, event) in events.into_iter().enumerate() {
        match from_event(event) {
            Ok(report) => reports.push(report),
            Err((field, problem)) => violations.add(format!("events[{index}].{field}"), problem),
        }
    }
    let checkpoint = checkpoint.map_or(Ok(None), wire::from_payload);
    let checkpoint = violations.check("checkpoint", checkpoint).flatten();
    reports.extend(checkpoint.map(Report::Checkpoint));
    reports
}

/// What tells one end of an attempt from another.
fn fingerprint(request: &pb::FinishRequest) -> String {
    let mut request = request.clone();
    // A map has no order on the wire: it is hashed by itself.
    let metadata = match &mut request.outcome {
        Some(pb::finish_request::Outcome::Error(error)) => std::mem::take(&mut error.metadata),
        _ => Default::default(),
    };
    let metadata: std::collections::BTreeMap<_, _> = metadata.into_iter().collect();
    let mut hash = Sha256::new();
    hash.update(request.encode_to_vec());
    hash.update(format!("{metadata:?}"));
    let digest = hash.finalize();
    // 128 bits: only the holder's own ends are compared.
    digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn outcome(request: pb::FinishRequest) -> Result<Outcome, Status> {
    use pb::finish_request::Outcome as Told;
    let mut violations = Violations::default();
    let retry_after = request.retry_delay.and_then(|delay| {
        let delay = wire::from_duration(delay, DURATIONS);
        violations.check("retry_delay", delay)
    });
    if request.retry_delay.is_some() && !matches!(request.outcome, Some(Told::Error(_))) {
        violations.add("retry_delay", "is for an error");
    }
    let outcome = match request.outcome {
        None => {
            violations.add("outcome", "is required");
            None
        }
        Some(Told::Result(result)) => violations
            .check("result", wire::from_payload(result))
            .map(Outcome::Succeeded),
        Some(Told::Error(error)) => match from_error(error) {
            Ok(error) => Some(Outcome::Failed(JobError {
                retry_after,
                ..error
            })),
            Err(problems) => {
                for (field, problem) in problems {
                    violations.add(format!("error.{field}"), problem);
                }
                None
            }
        },
        Some(Told::Cancelled(_)) => Some(Outcome::Cancelled),
        Some(Told::Snooze(snooze)) => match snooze.delay {
            None => {
                violations.add("snooze.delay", "is required");
                None
            }
            Some(delay) => {
                let delay = wire::from_duration(delay, DURATIONS);
                violations
                    .check("snooze.delay", delay)
                    .map(Outcome::Snoozed)
            }
        },
        Some(Told::HandBack(_)) => Some(Outcome::HandedBack),
    };
    checked(outcome, violations)
}
