//! The rules of a job's life once more, as small as they can be written: what every job should be after
//! every step. It has no log, no store and no group, so that it cannot be wrong in the same way.

use std::collections::BTreeMap;
use std::time::Duration;

use pacenote::job::JobState;
use pacenote::job::JobState::{
    Cancelled, Cancelling, Failed, Queued, Running, Scheduled, Succeeded,
};
use pacenote::job::limits::{ATTEMPTS_LOST_MAX, LEASE};
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::policy::RetryPolicy;
use pacenote::job::time::Timestamp;
use pacenote::queue::Lease;

use super::steps::{End, Type};

/// Every job as it should be.
#[derive(Clone, Default, Debug)]
pub(super) struct Reference {
    pub(super) jobs: BTreeMap<JobKey, Expected>,
    keys: BTreeMap<(Name, String), JobKey>,
}

/// A job as it should be.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Expected {
    pub(super) state: JobState,
    pub(super) job_type: Type,
    pub(super) priority: i32,
    pub(super) run_at: Timestamp,
    pub(super) attempt: u32,
    pub(super) charged: u32,
    pub(super) lost: u32,
    /// By the steady clock; of a job that is leased.
    lease_until: Timestamp,
    idempotency_key: Option<String>,
    input: u8,
}

/// What a call should be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// With the job in this state.
    Job(JobKey, JobState),
    /// With the job that the key made before.
    Deduplicated(JobKey, JobState),
    /// With nothing but that it is done.
    Done,
    Refused(Refused),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    NotFound,
    KeyReused(JobId),
    StaleLease,
    NotCancelling,
    /// The process died: nobody knows.
    Unknown,
    /// As it never should be.
    Otherwise(String),
}

pub(super) const POLICY_OF_WORK: RetryPolicy = RetryPolicy {
    max_attempts: 3,
    initial_backoff: Duration::from_secs(1),
    max_backoff: Duration::from_secs(600),
    backoff_multiplier: 2.0,
    non_retryable_reasons: Vec::new(),
};

impl Type {
    pub(super) fn name(self) -> Name {
        match self {
            Self::Work => Name::of("work"),
            Self::Once => Name::of("once"),
        }
    }

    pub(super) fn policy(self) -> RetryPolicy {
        match self {
            Self::Work => POLICY_OF_WORK,
            Self::Once => RetryPolicy {
                max_attempts: 1,
                ..POLICY_OF_WORK
            },
        }
    }
}

/// A submit that is well formed.
pub(super) struct Request {
    pub(super) key: JobKey,
    pub(super) job_type: Type,
    pub(super) priority: i32,
    pub(super) idempotency_key: Option<String>,
    pub(super) input: u8,
}

impl Reference {
    pub(super) fn submit(&mut self, request: Request, now: Timestamp) -> Reply {
        let tenant = request.key.tenant.clone();
        let of_tenant = request.idempotency_key.clone().map(|key| (tenant, key));
        if let Some(made) = of_tenant.as_ref().and_then(|key| self.keys.get(key)) {
            let job = &self.jobs[made];
            let same = (job.job_type, job.priority, job.input)
                == (request.job_type, request.priority, request.input);
            return if same {
                Reply::Deduplicated(made.clone(), job.state)
            } else {
                Reply::Refused(Refused::KeyReused(made.id))
            };
        }
        if let Some(of_tenant) = of_tenant {
            self.keys.insert(of_tenant, request.key.clone());
        }
        let job = Expected {
            state: Queued,
            job_type: request.job_type,
            priority: request.priority,
            run_at: now,
            attempt: 0,
            charged: 0,
            lost: 0,
            lease_until: Timestamp::default(),
            idempotency_key: request.idempotency_key,
            input: request.input,
        };
        self.jobs.insert(request.key.clone(), job);
        Reply::Job(request.key, Queued)
    }

    /// Whether a job may be claimed before all others of its tenant and type. What came in the same commit
    /// as the claim is no rival, and may be claimed itself only if nothing of its type waits.
    pub(super) fn is_next(&self, key: &JobKey, newcomer: Option<&JobKey>) -> bool {
        let Some(job) = self.jobs.get(key) else {
            return false;
        };
        let order = |key: &JobKey, job: &Expected| (-job.priority, job.run_at, key.id);
        let mut rivals = self.jobs.iter().filter(|(rival, other)| {
            let waits = other.state == Queued && other.job_type == job.job_type;
            waits && *rival != key && Some(*rival) != newcomer
        });
        let first = if newcomer == Some(key) {
            rivals.next().is_none()
        } else {
            rivals.all(|(rival, other)| {
                rival.tenant != key.tenant || order(rival, other) > order(key, job)
            })
        };
        job.state == Queued && first
    }

    pub(super) fn any_waits(&self, job_type: Type) -> bool {
        let mut jobs = self.jobs.values();
        jobs.any(|job| job.job_type == job_type && job.state == Queued)
    }

    pub(super) fn claim(&mut self, key: &JobKey, steady: Timestamp) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.state = Running;
            job.attempt += 1;
            job.lease_until = steady.after(LEASE);
        }
    }

    pub(super) fn report(&mut self, lease: &Lease, steady: Timestamp) -> Reply {
        match self.leased(lease) {
            Err(refused) => Reply::Refused(refused),
            Ok(job) => {
                job.lease_until = job.lease_until.max(steady.after(LEASE));
                Reply::Done
            }
        }
    }

    pub(super) fn finish(&mut self, lease: &Lease, end: End, chance: f64, now: Timestamp) -> Reply {
        let job = match self.leased(lease) {
            Err(refused) => return Reply::Refused(refused),
            Ok(job) => job,
        };
        if matches!(end, End::IsCancelled) && job.state != Cancelling {
            return Reply::Refused(Refused::NotCancelling);
        }
        let handed_back = matches!(end, End::HandsBack);
        job.lost = 0;
        job.charged += u32::from(!handed_back);
        let policy = job.job_type.policy();
        job.state = match end {
            _ if job.state == Cancelling => Cancelled,
            End::Succeeds => Succeeded,
            End::Fails(_) if job.charged < policy.max_attempts => {
                let wait = policy.backoff(job.charged, chance);
                job.run_at = now.after(wait);
                if wait.is_zero() { Queued } else { Scheduled }
            }
            End::Fails(_) | End::FailsForGood => Failed,
            End::IsCancelled => Cancelled,
            End::HandsBack => Queued,
        };
        Reply::Job(lease.key.clone(), job.state)
    }

    fn leased(&mut self, lease: &Lease) -> Result<&mut Expected, Refused> {
        let job = self.jobs.get_mut(&lease.key).ok_or(Refused::NotFound)?;
        if job.state.is_leased() && job.attempt == lease.attempt {
            Ok(job)
        } else {
            Err(Refused::StaleLease)
        }
    }

    pub(super) fn cancel(&mut self, key: &JobKey) -> Reply {
        let Some(job) = self.jobs.get_mut(key) else {
            return Reply::Refused(Refused::NotFound);
        };
        job.state = match job.state {
            Running => Cancelling,
            waits if !waits.is_terminal() && waits != Cancelling => Cancelled,
            as_it_is => as_it_is,
        };
        Reply::Job(key.clone(), job.state)
    }

    pub(super) fn become_due(&mut self, now: Timestamp) {
        let jobs = self.jobs.values_mut();
        for job in jobs.filter(|job| job.state == Scheduled && job.run_at <= now) {
            job.state = Queued;
        }
    }

    /// Every attempt whose lease ended before `before` is lost.
    pub(super) fn lose(&mut self, before: Timestamp, now: Timestamp) {
        let jobs = self.jobs.values_mut();
        for job in jobs.filter(|job| job.state.is_leased() && job.lease_until < before) {
            job.charged += 1;
            job.lost += 1;
            let spent =
                job.lost >= ATTEMPTS_LOST_MAX || job.charged >= job.job_type.policy().max_attempts;
            job.state = match job.state {
                Cancelling => Cancelled,
                _ if spent => Failed,
                _ => {
                    job.run_at = now;
                    Queued
                }
            };
        }
    }

    /// Answers whether it is gone.
    pub(super) fn delete(&mut self, key: &JobKey) -> bool {
        let over = self.is_over(key);
        if over && let Some(job) = self.jobs.remove(key) {
            let text = job.idempotency_key.unwrap_or_default();
            self.keys.remove(&(key.tenant.clone(), text));
        }
        over
    }

    pub(super) fn is_over(&self, key: &JobKey) -> bool {
        let job = self.jobs.get(key);
        job.is_some_and(|job| job.state.is_terminal())
    }
}
