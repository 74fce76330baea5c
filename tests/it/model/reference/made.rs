//! New jobs: submitted, alone or in a batch, or made of one that is over.

use pacenote::job::JobState::{Queued, Scheduled};
use pacenote::job::name::{JobId, JobKey, Name};
use pacenote::job::policy::OnConflict;
use pacenote::job::time::Timestamp;
use pacenote::queue::Skipped;

use super::{Expected, Reference, Refused, Reply, WAITING_MAX, seconds, text_of};
use crate::model::steps::{Submit, Which};

/// What becomes of a new job.
enum Standing {
    New,
    Instead(JobKey),
    /// These, none of which may be left.
    Replaces(Vec<JobKey>),
    Refused(Refused),
}

impl Reference {
    pub(in crate::model) fn submit(
        &mut self,
        key: JobKey,
        submit: &Submit,
        now: Timestamp,
    ) -> Reply {
        let standing = self.standing(&key.tenant, submit);
        let more = match &standing {
            Standing::New => 1,
            Standing::Replaces(before) => {
                let waiting = before
                    .iter()
                    .filter(|key| self.jobs[*key].state.is_waiting());
                1_usize.saturating_sub(waiting.count())
            }
            Standing::Instead(_) | Standing::Refused(_) => 0,
        };
        if let Some(refused) = self.no_room(&key.tenant, more) {
            return Reply::Refused(refused);
        }
        match standing {
            Standing::Refused(refused) => return Reply::Refused(refused),
            Standing::Instead(made) => {
                let state = self.jobs[&made].state;
                return Reply::Deduplicated(made, state);
            }
            Standing::Replaces(before) => {
                for key in before {
                    self.cancel(&key, now);
                }
            }
            Standing::New => {}
        }
        let idempotency_key = submit.idempotency_key.map(text_of);
        if let Some(text) = &idempotency_key {
            let of_tenant = (key.tenant.clone(), text.clone());
            self.keys.insert(of_tenant, key.clone());
        }
        let mut job = Expected::new(submit.request(), now);
        job.idempotency_key = idempotency_key;
        let state = job.state;
        self.jobs.insert(key.clone(), job);
        Reply::Job(key, state)
    }

    /// All of them, or none.
    pub(in crate::model) fn submit_batch(
        &mut self,
        jobs: &[(JobKey, Submit)],
        now: Timestamp,
    ) -> Reply {
        let (mut new, mut refused) = (0, false);
        for (key, submit) in jobs {
            match self.standing(&key.tenant, submit) {
                Standing::New | Standing::Replaces(_) => new += 1,
                Standing::Instead(_) => {}
                Standing::Refused(_) => refused = true,
            }
        }
        if refused {
            return Reply::Refused(Refused::BatchTaken);
        }
        if let Some((first, _)) = jobs.first()
            && let Some(refused) = self.no_room(&first.tenant, new)
        {
            return Reply::Refused(refused);
        }
        let jobs = jobs.iter();
        Reply::Batch(
            jobs.map(|(key, submit)| self.submit(key.clone(), submit, now))
                .collect(),
        )
    }

    /// Whether one more job of a tenant may wait.
    pub(in crate::model) fn has_room(&self, tenant: &Name) -> bool {
        self.no_room(tenant, 1).is_none()
    }

    fn no_room(&self, tenant: &Name, more: usize) -> Option<Refused> {
        let of_tenant = self.jobs.iter().filter(|(key, _)| key.tenant == *tenant);
        let waiting = of_tenant.filter(|(_, job)| job.state.is_waiting()).count();
        let full = more > 0 && waiting + more > WAITING_MAX;
        full.then_some(Refused::NoRoom(waiting, more))
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

    /// A new job of one that is over, once: due now, and neither the only one of its place nor found by
    /// its key.
    pub(in crate::model) fn retry(&mut self, key: &JobKey, new: JobId, now: Timestamp) -> Reply {
        let Some(old) = self.jobs.get(key) else {
            return Reply::Refused(Refused::NotFound);
        };
        let of_tenant = |id| JobKey {
            tenant: key.tenant.clone(),
            id,
        };
        if let Some(by) = old.retried_by {
            return match self.jobs.get(&of_tenant(by)) {
                Some(made) => Reply::Deduplicated(of_tenant(by), made.state),
                None => Reply::Refused(Refused::NotRetryable(old.state, Some(by))),
            };
        }
        if !old.state.is_retryable() {
            return Reply::Refused(Refused::NotRetryable(old.state, None));
        }
        if let Some(refused) = self.no_room(&key.tenant, 1) {
            return Reply::Refused(refused);
        }
        let request = Submit {
            idempotency_key: None,
            delay: None,
            unique: None,
            ..old.request.clone()
        };
        let mut made = Expected::new(request, now);
        made.retry_of = Some(key.id);
        let state = made.state;
        self.jobs.insert(of_tenant(new), made);
        self.jobs
            .entry(key.clone())
            .and_modify(|old| old.retried_by = Some(new));
        Reply::Job(of_tenant(new), state)
    }

    /// Retries the jobs that are found, the newest first, until one has no room; at most so many. `ids`
    /// are those of the new ones, in order.
    pub(in crate::model) fn retry_many(
        &mut self,
        tenant: &Name,
        which: &Which,
        most: usize,
        ids: impl Fn(u64) -> JobId,
        now: Timestamp,
    ) -> Reply {
        let (mut retried, mut skipped, mut asked) = (Vec::new(), Vec::new(), 0);
        let mut refused = None;
        for key in self.found(tenant, which, most) {
            if let Some(by) = self.jobs[&key].retried_by {
                skipped.push((key.id, Skipped::RetriedBefore(by)));
                continue;
            }
            let new = ids(asked);
            asked += 1;
            match self.retry(&key, new, now) {
                Reply::Refused(Refused::NotRetryable(..)) => {
                    skipped.push((key.id, Skipped::NotRetryable));
                }
                Reply::Refused(why) => {
                    refused = Some(why);
                    break;
                }
                _ => retried.push((key.id, new)),
            }
        }
        Reply::Retried {
            retried,
            skipped,
            refused,
        }
    }

    /// Whether any of them has not been retried yet.
    pub(in crate::model) fn any_to_retry(&self, tenant: &Name, which: &Which, most: usize) -> bool {
        let found = self.found(tenant, which, most);
        found.iter().any(|key| self.jobs[key].retried_by.is_none())
    }

    /// The jobs of a tenant that a filter finds, the newest first.
    pub(in crate::model) fn found(&self, tenant: &Name, which: &Which, most: usize) -> Vec<JobKey> {
        let jobs = self.jobs.iter().rev();
        let found = jobs.filter(|(key, job)| which.finds(key, job, tenant));
        found.map(|(key, _)| key.clone()).take(most).collect()
    }
}

impl Expected {
    /// A job as it is stored.
    fn new(request: Submit, now: Timestamp) -> Self {
        let run_at = now.after(seconds(request.delay).unwrap_or_default());
        let in_time = |timeout| seconds(timeout).map(|timeout| run_at.after(timeout));
        let expires_at = in_time(request.total_timeout);
        let starts_by = in_time(request.queue_timeout);
        Self {
            state: if run_at > now { Scheduled } else { Queued },
            run_at,
            attempt: 0,
            charged: 0,
            lost: 0,
            lease_until: Timestamp::default(),
            deadline_at: expires_at.into_iter().chain(starts_by).min(),
            expires_at,
            created_at: now,
            purge_at: None,
            idempotency_key: None,
            retry_of: None,
            retried_by: None,
            request,
        }
    }
}
