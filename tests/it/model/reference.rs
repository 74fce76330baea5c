//! The rules of a job's life once more, as small as they can be written: what every job should be after
//! every step. It has no log, no store and no group, so that it cannot be wrong in the same way.

use std::collections::BTreeMap;
use std::time::Duration;

use pacenote::job::JobState;
use pacenote::job::JobState::{
    Cancelled, Cancelling, Expired, Failed, Queued, Running, Scheduled, Succeeded,
};
use pacenote::job::limits::{ATTEMPTS_LOST_MAX, LEASE};
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::policy::{OnConflict, RetryPolicy};
use pacenote::job::time::Timestamp;
use pacenote::queue::Lease;

use super::steps::{End, Submit, Type};

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
    pub(super) run_at: Timestamp,
    pub(super) attempt: u32,
    pub(super) charged: u32,
    pub(super) lost: u32,
    /// By the steady clock; of a job that is leased.
    lease_until: Timestamp,
    /// Of a job that waits: when it expires.
    deadline_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    idempotency_key: Option<String>,
    /// What was asked for.
    pub(super) request: Submit,
}

/// What a call should be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// With the job in this state.
    Job(JobKey, JobState),
    /// With the job that the key made before.
    Deduplicated(JobKey, JobState),
    /// With all of them.
    Batch(Vec<Reply>),
    /// With nothing but that it is done.
    Done,
    Refused(Refused),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    NotFound,
    KeyReused(JobId),
    UniqueTaken(JobId),
    BatchTaken,
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

/// What becomes of a new job.
enum Standing {
    New,
    Instead(JobKey),
    /// These, none of which may be left.
    Replaces(Vec<JobKey>),
    Refused(Refused),
}

impl Reference {
    pub(super) fn submit(&mut self, key: JobKey, submit: &Submit, now: Timestamp) -> Reply {
        match self.standing(&key.tenant, submit) {
            Standing::Refused(refused) => return Reply::Refused(refused),
            Standing::Instead(made) => {
                let state = self.jobs[&made].state;
                return Reply::Deduplicated(made, state);
            }
            Standing::Replaces(before) => {
                for key in before {
                    self.cancel(&key);
                }
            }
            Standing::New => {}
        }
        let idempotency_key = submit.idempotency_key.map(text_of);
        if let Some(text) = &idempotency_key {
            let of_tenant = (key.tenant.clone(), text.clone());
            self.keys.insert(of_tenant, key.clone());
        }
        let run_at = now.after(seconds(submit.delay).unwrap_or_default());
        let in_time = |timeout| seconds(timeout).map(|timeout| run_at.after(timeout));
        let expires_at = in_time(submit.total_timeout);
        let state = if run_at > now { Scheduled } else { Queued };
        let job = Expected {
            state,
            run_at,
            attempt: 0,
            charged: 0,
            lost: 0,
            lease_until: Timestamp::default(),
            deadline_at: expires_at
                .into_iter()
                .chain(in_time(submit.queue_timeout))
                .min(),
            expires_at,
            idempotency_key,
            request: submit.request(),
        };
        self.jobs.insert(key.clone(), job);
        Reply::Job(key, state)
    }

    /// All of them, or none.
    pub(super) fn submit_batch(&mut self, jobs: &[(JobKey, Submit)], now: Timestamp) -> Reply {
        let refused = jobs.iter().any(|(key, submit)| {
            let standing = self.standing(&key.tenant, submit);
            matches!(standing, Standing::Refused(_))
        });
        if refused {
            return Reply::Refused(Refused::BatchTaken);
        }
        let jobs = jobs.iter();
        Reply::Batch(
            jobs.map(|(key, submit)| self.submit(key.clone(), submit, now))
                .collect(),
        )
    }

    fn standing(&self, tenant: &Name, submit: &Submit) -> Standing {
        let text = submit.idempotency_key.map(text_of);
        let made = text.and_then(|text| self.keys.get(&(tenant.clone(), text)));
        if let Some(made) = made {
            return if self.jobs[made].request == submit.request() {
                Standing::Instead(made.clone())
            } else {
                Standing::Refused(Refused::KeyReused(made.id))
            };
        }
        let Some((place, choice)) = submit.unique else {
            return Standing::New;
        };
        // The newest first.
        let rivals: Vec<(&JobKey, &Expected)> = self
            .jobs
            .iter()
            .rev()
            .filter(|(key, job)| {
                let its = job.request.unique.map(|(place, _)| place);
                let of_type = job.request.job_type == submit.job_type;
                let open = !job.state.is_terminal();
                key.tenant == *tenant && of_type && its == Some(place) && open
            })
            .collect();
        let Some((newest, _)) = rivals.first() else {
            return Standing::New;
        };
        let waiting = rivals.iter().filter(|(_, job)| job.state.is_waiting());
        match choice {
            OnConflict::ReturnExisting => Standing::Instead((*newest).clone()),
            OnConflict::Reject => Standing::Refused(Refused::UniqueTaken(newest.id)),
            OnConflict::ReplaceWaiting => {
                Standing::Replaces(waiting.map(|(key, _)| (*key).clone()).collect())
            }
            OnConflict::CancelRunning => {
                Standing::Replaces(rivals.iter().map(|(key, _)| (*key).clone()).collect())
            }
        }
    }

    /// Whether a job has to wait for another one with its concurrency key.
    fn is_held_up(&self, key: &JobKey, job: &Expected) -> bool {
        let shared = job.request.concurrency_key;
        shared.is_some()
            && self.jobs.iter().any(|(other_key, other)| {
                let same = other_key.tenant == key.tenant;
                same && other.request.concurrency_key == shared && other.state.is_leased()
            })
    }

    /// Whether a job may be claimed before all others of its tenant and type. What came in the same commit
    /// as the claim is no rival, and may be claimed itself only if nothing of its type waits.
    pub(super) fn is_next(&self, key: &JobKey, newcomer: Option<&JobKey>) -> bool {
        let Some(job) = self.jobs.get(key) else {
            return false;
        };
        let order = |key: &JobKey, job: &Expected| (-job.request.priority, job.run_at, key.id);
        let mut rivals = self.jobs.iter().filter(|(rival, other)| {
            let waits = other.state == Queued && other.request.job_type == job.request.job_type;
            let can_run = waits && !self.is_held_up(rival, other);
            can_run && *rival != key && Some(*rival) != newcomer
        });
        let first = if newcomer == Some(key) {
            rivals.next().is_none()
        } else {
            rivals.all(|(rival, other)| {
                rival.tenant != key.tenant || order(rival, other) > order(key, job)
            })
        };
        job.state == Queued && !self.is_held_up(key, job) && first
    }

    /// Whether a job could run, if there were a place for it.
    pub(super) fn any_waits(&self, job_type: Type) -> bool {
        self.jobs.iter().any(|(key, job)| {
            let waits = job.request.job_type == job_type && job.state == Queued;
            waits && !self.is_held_up(key, job)
        })
    }

    pub(super) fn claim(&mut self, key: &JobKey, steady: Timestamp) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.state = Running;
            job.attempt += 1;
            job.lease_until = steady.after(LEASE);
            job.deadline_at = None;
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
        let uncharged = matches!(end, End::HandsBack | End::Snoozes(_));
        job.lost = 0;
        job.charged += u32::from(!uncharged);
        job.deadline_at = job.expires_at;
        let policy = job.request.job_type.policy();
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
            End::HandsBack => {
                job.run_at = job.run_at.min(now);
                Queued
            }
            End::Snoozes(for_) => {
                job.run_at = now.after(Duration::from_secs(u64::from(for_)));
                Scheduled
            }
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

    /// Whatever waits beyond its deadline is over.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let waiting = self.jobs.values_mut().filter(|job| job.state.is_waiting());
        for job in waiting.filter(|job| job.deadline_at.is_some_and(|at| at <= now)) {
            job.state = Expired;
        }
    }

    /// Every attempt whose lease ended before `before` is lost.
    pub(super) fn lose(&mut self, before: Timestamp, now: Timestamp) {
        let jobs = self.jobs.values_mut();
        for job in jobs.filter(|job| job.state.is_leased() && job.lease_until < before) {
            job.charged += 1;
            job.lost += 1;
            let spent = job.lost >= ATTEMPTS_LOST_MAX
                || job.charged >= job.request.job_type.policy().max_attempts;
            job.state = match job.state {
                Cancelling => Cancelled,
                _ if spent => Failed,
                _ => {
                    job.run_at = now;
                    job.deadline_at = job.expires_at;
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

/// An idempotency key as it is sent.
pub(super) fn text_of(key: u8) -> String {
    format!("key {key}")
}

pub(super) fn seconds(given: Option<u8>) -> Option<Duration> {
    given.map(|seconds| Duration::from_secs(u64::from(seconds)))
}
