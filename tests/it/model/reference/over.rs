//! What ends without having run, and what goes when it is over.

use pacenote::job::JobState::{Cancelled, Cancelling, Expired, Queued, Running, Scheduled};
use pacenote::job::name::JobKey;
use pacenote::job::time::Timestamp;

use super::{Reference, Refused, Reply};

impl Reference {
    pub(in crate::model) fn cancel(&mut self, key: &JobKey, now: Timestamp) -> Reply {
        let Some(job) = self.jobs.get_mut(key) else {
            return Reply::Refused(Refused::NotFound);
        };
        if job.state == Running {
            job.state = Cancelling;
        } else if job.state.is_waiting() {
            job.end(Cancelled, now);
        }
        Reply::Job(key.clone(), job.state)
    }

    pub(in crate::model) fn become_due(&mut self, now: Timestamp) {
        let jobs = self.jobs.values_mut();
        for job in jobs.filter(|job| job.state == Scheduled && job.run_at <= now) {
            job.state = Queued;
        }
    }

    /// Whatever waits beyond its deadline is over.
    pub(in crate::model) fn expire(&mut self, now: Timestamp) {
        let waiting = self.jobs.values_mut().filter(|job| job.state.is_waiting());
        for job in waiting.filter(|job| job.deadline_at.is_some_and(|at| at <= now)) {
            job.end(Expired, now);
        }
    }

    /// Answers whether it is gone.
    pub(in crate::model) fn delete(&mut self, key: &JobKey) -> bool {
        let over = self.is_over(key);
        if over && let Some(job) = self.jobs.remove(key) {
            let text = job.idempotency_key.unwrap_or_default();
            self.keys.remove(&(key.tenant.clone(), text));
        }
        over
    }

    /// Everything whose time to go has come.
    pub(in crate::model) fn to_go(&self, now: Timestamp) -> Vec<JobKey> {
        let jobs = self.jobs.iter();
        let to_go = jobs.filter(|(_, job)| job.purge_at.is_some_and(|at| at <= now));
        to_go.map(|(key, _)| key.clone()).collect()
    }

    /// When the next one may be removed.
    pub(in crate::model) fn next_to_go(&self) -> Option<Timestamp> {
        self.jobs.values().filter_map(|job| job.purge_at).min()
    }

    pub(in crate::model) fn is_over(&self, key: &JobKey) -> bool {
        let job = self.jobs.get(key);
        job.is_some_and(|job| job.state.is_terminal())
    }
}
