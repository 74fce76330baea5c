//! New jobs: alone, in a batch, or made of one that is over.

use std::collections::HashSet;
use std::sync::Arc;

use crate::job::name::{JobId, JobKey};
use crate::job::policy::OnConflict;
use crate::job::segment::SegmentBuilder;
use crate::job::{CancelCause, Change, Job, JobSpec, NewJob, Payloads, Refusal};
use crate::store::plan::{Pending, Planner, Touched, small};
use crate::store::{NotTaken, Reply};

/// What becomes of a new job, as things are.
enum Standing {
    /// It is stored.
    New,
    /// It is stored, and this one makes way.
    Replaces(JobKey),
    /// This one is answered in its place.
    Existing(JobKey),
    NotTaken(NotTaken),
}

impl Planner<'_> {
    pub(super) fn submit(&mut self, new: NewJob, hand_over: bool) -> Pending {
        let standing = self.standing(&new);
        // What is handed over does not wait.
        if matches!(standing, Standing::New) && !hand_over && !self.has_room(&new.key, 1) {
            return Pending::Ready(Reply::NotTaken(NotTaken::NoRoom));
        }
        self.take(new, standing, hand_over)
    }

    /// All of it, or nothing: looks at every item first. What stands in the way within the batch itself
    /// was refused before it came here.
    pub(super) fn batch(&mut self, jobs: Vec<NewJob>) -> Pending {
        let mut refused = Vec::new();
        let mut keys = HashSet::new();
        let mut wait = 0;
        for (index, new) in jobs.iter().enumerate() {
            match self.standing(new) {
                Standing::NotTaken(why) => refused.push((index, why)),
                Standing::New => {
                    let key = new.spec.idempotency_key.as_ref();
                    wait += usize::from(key.is_none_or(|key| keys.insert(key.clone())));
                }
                Standing::Replaces(_) | Standing::Existing(_) => {}
            }
        }
        if refused.is_empty()
            && let Some(first) = jobs.first()
            && !self.has_room(&first.key, wait)
        {
            refused.push((0, NotTaken::NoRoom));
        }
        if !refused.is_empty() {
            return Pending::Ready(Reply::BatchNotTaken(refused));
        }
        let items = jobs.into_iter().map(|new| {
            let standing = self.standing(&new);
            self.take(new, standing, false)
        });
        Pending::Batch(items.collect())
    }

    /// Makes a new job of one that is over; or answers the one that was made of it before.
    pub(super) fn retry(&mut self, key: &JobKey, new_id: JobId) -> Pending {
        let Some(old) = self.current(key) else {
            return Pending::Ready(Reply::Missing);
        };
        if let Some(by) = old.detail.retried_by {
            let by = JobKey {
                tenant: key.tenant.clone(),
                id: by,
            };
            return match self.current(&by) {
                Some(_) => self.existing(&by),
                // It may have succeeded before it was removed: nothing is run a second time.
                None => Pending::Ready(Reply::Refused(Refusal::NotRetryable {
                    state: old.state,
                    retried_by: Some(by.id),
                })),
            };
        }
        if let Err(refusal) = old.check_retry() {
            return Pending::Ready(Reply::Refused(refusal));
        }
        let spec = JobSpec {
            idempotency_key: None,
            fingerprint: String::new(),
            unique: None,
            batch_id: None,
            retry_of: Some(key.id),
            ..JobSpec::clone(&old.spec)
        };
        if !self.has_room(key, 1) {
            return Pending::Ready(Reply::NotTaken(NotTaken::NoRoom));
        }
        let new = NewJob {
            key: JobKey {
                tenant: key.tenant.clone(),
                id: new_id,
            },
            spec: Arc::new(spec),
            input: self.inputs.remove(key),
            start_at: None,
            on_conflict: OnConflict::default(),
        };
        let told = self.change(key, Change::Retried { by: new_id });
        if let Pending::Ready(_) = told {
            return told;
        }
        self.take(new, Standing::New, false)
    }

    fn standing(&self, new: &NewJob) -> Standing {
        let tenant = &new.key.tenant;
        if let Some(key) = &new.spec.idempotency_key
            && let Some(found) = self.keys.get(&(tenant.clone(), key.clone()))
            && let Some(job) = self.current(found)
        {
            return if job.spec.fingerprint == new.spec.fingerprint {
                Standing::Existing(found.clone())
            } else {
                Standing::NotTaken(NotTaken::KeyReused(found.id))
            };
        }
        let Some(unique) = &new.spec.unique else {
            return Standing::New;
        };
        let place = (
            tenant.clone(),
            new.spec.job_type.clone(),
            unique.key.clone(),
        );
        let found = self.uniques.get(&place).and_then(|key| self.current(key));
        match found {
            Some(job) if job.is_in_the_way(self.now) => in_the_way(job, new.on_conflict),
            Some(_) | None => Standing::New,
        }
    }

    /// Whether so many more jobs of a tenant may wait.
    fn has_room(&self, key: &JobKey, jobs: usize) -> bool {
        let room = self.room.get(&key.tenant);
        room.is_none_or(|room| *room >= jobs)
    }

    fn take(&mut self, new: NewJob, standing: Standing, hand_over: bool) -> Pending {
        match standing {
            Standing::NotTaken(why) => return Pending::Ready(Reply::NotTaken(why)),
            Standing::Existing(key) => return self.existing(&key),
            Standing::Replaces(key) => {
                let cancel = Change::Cancel {
                    cause: CancelCause::Replaced,
                    reason: format!("replaced by {}", new.key.id),
                    requested_by: key.tenant.to_string(),
                };
                // One that is cancelling already goes on doing so.
                self.change(&key, cancel);
            }
            Standing::New => {}
        }
        let tenant = new.key.tenant.clone();
        let index = self.insert(new);
        if !hand_over {
            if let Some(room) = self.room.get_mut(&tenant) {
                *room = room.saturating_sub(1);
            }
        } else {
            let payloads = self.touched[index].payloads.clone();
            self.claim_one(index, payloads);
        }
        Pending::Touched {
            index,
            deduplicated: false,
        }
    }

    fn existing(&self, key: &JobKey) -> Pending {
        if let Some(index) = self.index.get(key) {
            return Pending::Touched {
                index: *index,
                deduplicated: true,
            };
        }
        Pending::Ready(match self.jobs.get(key) {
            Some(job) => Reply::Done {
                job: Arc::clone(job),
                deduplicated: true,
            },
            None => Reply::Missing,
        })
    }

    fn insert(&mut self, new: NewJob) -> usize {
        let (job, applied) = Job::submit(&new, self.now);
        let index = self.touched.len();
        let (tenant, spec) = (&new.key.tenant, &new.spec);
        if let Some(key) = &spec.idempotency_key {
            let key = (tenant.clone(), key.clone());
            self.keys.insert(key, new.key.clone());
        }
        if let Some(unique) = &spec.unique {
            let place = (tenant.clone(), spec.job_type.clone(), unique.key.clone());
            self.uniques.insert(place, new.key.clone());
        }
        self.index.insert(new.key, index);
        let payloads = Payloads {
            input: new.input,
            ..Payloads::default()
        };
        self.touched.push(Touched {
            job,
            before: None,
            events: SegmentBuilder::default(),
            beside: small(&payloads),
            payloads,
            claimed: None,
        });
        self.absorb(index, applied);
        index
    }
}

fn in_the_way(job: &Job, on_conflict: OnConflict) -> Standing {
    match on_conflict {
        OnConflict::ReturnExisting => Standing::Existing(job.key.clone()),
        OnConflict::Reject => Standing::NotTaken(NotTaken::UniqueTaken(job.key.id)),
        OnConflict::ReplaceWaiting if job.state.is_waiting() => Standing::Replaces(job.key.clone()),
        OnConflict::CancelRunning if !job.state.is_terminal() => {
            Standing::Replaces(job.key.clone())
        }
        OnConflict::ReplaceWaiting | OnConflict::CancelRunning => Standing::New,
    }
}
