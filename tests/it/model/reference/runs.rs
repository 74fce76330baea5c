//! Whose turn it is, and what becomes of an attempt.

use std::time::Duration;

use pacenote::job::JobState::{
    Cancelled, Cancelling, Failed, Queued, Running, Scheduled, Succeeded,
};
use pacenote::job::limits::{ATTEMPTS_LOST_MAX, LEASE};
use pacenote::job::name::JobKey;
use pacenote::job::time::Timestamp;
use pacenote::queue::Lease;

use super::{Expected, Reference, Refused, Reply};
use crate::model::steps::{End, Type};

impl Reference {
    /// Whether a job has to wait for others with its concurrency key.
    fn is_held_up(&self, key: &JobKey, job: &Expected) -> bool {
        let (shared, queue) = (job.request.concurrency_key, job.request.queue);
        let with_key = self.jobs.iter().filter(|(other_key, other)| {
            let same = other_key.tenant == key.tenant && other.request.queue == queue;
            same && other.request.concurrency_key == shared && other.state.is_leased()
        });
        shared.is_some() && with_key.count() >= self.rules.most_of_key(queue)
    }

    /// Whether a place would do for a job, as it is.
    fn can_run(&self, key: &JobKey, job: &Expected) -> bool {
        job.state == Queued && !self.is_held_up(key, job) && !self.is_stopped(job)
    }

    /// Whether a job may be claimed before all others of its tenant, queue and type. What came in the same
    /// commit as the claim is no rival, and may be claimed itself only if nothing of its type waits.
    pub(in crate::model) fn is_next(&self, key: &JobKey, newcomer: Option<&JobKey>) -> bool {
        let Some(job) = self.jobs.get(key) else {
            return false;
        };
        let order = |key: &JobKey, job: &Expected| (-job.request.priority, job.run_at, key.id);
        let mut rivals = self.jobs.iter().filter(|(rival, other)| {
            let of_type = other.request.job_type == job.request.job_type;
            let is_other = *rival != key && Some(*rival) != newcomer;
            of_type && is_other && self.can_run(rival, other)
        });
        let first = if newcomer == Some(key) {
            rivals.next().is_none()
        } else {
            rivals.all(|(rival, other)| {
                rival.tenant != key.tenant
                    || other.request.queue != job.request.queue
                    || order(rival, other) > order(key, job)
            })
        };
        self.can_run(key, job) && first
    }

    /// Whether a job could run, if there were a place for it.
    pub(in crate::model) fn any_waits(&self, job_type: Type) -> bool {
        let mut jobs = self.jobs.iter();
        jobs.any(|(key, job)| job.request.job_type == job_type && self.can_run(key, job))
    }

    pub(in crate::model) fn claim(&mut self, key: &JobKey, steady: Timestamp) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.state = Running;
            job.attempt += 1;
            job.lease_until = steady.after(LEASE);
            job.deadline_at = None;
        }
    }

    pub(in crate::model) fn report(&mut self, lease: &Lease, steady: Timestamp) -> Reply {
        match self.leased(lease) {
            Err(refused) => Reply::Refused(refused),
            Ok(job) => {
                job.lease_until = job.lease_until.max(steady.after(LEASE));
                Reply::Done
            }
        }
    }

    pub(in crate::model) fn finish(
        &mut self,
        lease: &Lease,
        end: End,
        chance: f64,
        now: Timestamp,
    ) -> Reply {
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
        match end {
            _ if job.state == Cancelling => job.end(Cancelled, now),
            End::Succeeds => job.end(Succeeded, now),
            End::Fails(_) if job.charged < policy.max_attempts => {
                let wait = policy.backoff(job.charged, chance);
                job.run_at = now.after(wait);
                job.state = if wait.is_zero() { Queued } else { Scheduled };
            }
            End::Fails(_) | End::FailsForGood => job.end(Failed, now),
            // Refused above unless it was asked for.
            End::IsCancelled => {}
            End::HandsBack => {
                job.run_at = job.run_at.min(now);
                job.state = Queued;
            }
            End::Snoozes(for_) => {
                job.run_at = now.after(Duration::from_secs(u64::from(for_)));
                job.state = Scheduled;
            }
        }
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

    /// Every attempt whose lease ended before `before` is lost.
    pub(in crate::model) fn lose(&mut self, before: Timestamp, now: Timestamp) {
        let jobs = self.jobs.values_mut();
        for job in jobs.filter(|job| job.state.is_leased() && job.lease_until < before) {
            job.charged += 1;
            job.lost += 1;
            let spent = job.lost >= ATTEMPTS_LOST_MAX
                || job.charged >= job.request.job_type.policy().max_attempts;
            if job.state == Cancelling {
                job.end(Cancelled, now);
            } else if spent {
                job.end(Failed, now);
            } else {
                job.state = Queued;
                job.run_at = now;
                job.deadline_at = job.expires_at;
            }
        }
    }
}
