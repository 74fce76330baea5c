//! New jobs: alone, in a batch, or made of one that is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::job::name::{JobId, JobKey};
use crate::job::policy::OnConflict;
use crate::job::segment::SegmentBuilder;
use crate::job::{CancelCause, Change, Job, JobSpec, NewJob, Payloads, Refusal};
use crate::store::plan::keys::Room;
use crate::store::plan::{Pending, Planner, Touched, UniquePlace, small};
use crate::store::{NotTaken, Reply};

/// What becomes of a new job, as things are.
enum Standing {
    /// It is stored.
    New,
    /// It is stored, and these make way. Never empty.
    Replaces(Vec<JobKey>),
    /// This one is answered in its place.
    Existing(JobKey),
    NotTaken(NotTaken),
}

impl Planner<'_> {
    pub(super) fn submit(&mut self, new: NewJob, hand_over: Option<usize>) -> Pending {
        let standing = self.standing(&new);
        // One that has to wait for others with its concurrency key stays QUEUED, and is set aside by the
        // next group: who ends later in this one would not find it. And whoever waited with the key already,
        // and could go on now, was there before.
        let key = new.concurrency_key();
        let is_contested = key.as_ref().is_some_and(|key| self.contested.contains(key));
        let hand_over = hand_over.filter(|_| {
            new.run_at(self.now) <= self.now
                && !is_contested
                && self.gate.room(key.as_ref()) == Room::Free
        });
        // What is handed over does not wait.
        let waits = usize::from(hand_over.is_none());
        let more = match &standing {
            Standing::New => waits,
            Standing::Replaces(keys) => waits.saturating_sub(self.waiting_of(keys)),
            Standing::Existing(_) | Standing::NotTaken(_) => 0,
        };
        match self.no_room(&new.key, more) {
            Some(refused) => Pending::Ready(Reply::NotTaken(refused)),
            None => self.take(new, standing, hand_over),
        }
    }

    /// All of it, or nothing: looks at every item first.
    pub(super) fn batch(&mut self, jobs: Vec<NewJob>) -> Pending {
        let mut survey = Survey::default();
        for (index, new) in jobs.iter().enumerate() {
            self.survey(index, new, &mut survey);
        }
        if survey.refused.is_empty()
            && let Some(first) = jobs.first()
            && let Some(refused) = self.no_room(&first.key, survey.waiting())
        {
            survey.refused.push((0, refused));
        }
        if !survey.refused.is_empty() {
            return Pending::Ready(Reply::BatchNotTaken(survey.refused));
        }
        let items = jobs.into_iter().map(|new| {
            let standing = self.standing(&new);
            self.take(new, standing, None)
        });
        Pending::Batch(items.collect())
    }

    /// What would become of one item of a batch, behind those before it.
    fn survey<'a>(&self, index: usize, new: &'a NewJob, survey: &mut Survey<'a>) {
        if let Some(key) = &new.spec.idempotency_key
            && let Some(before) = survey.keys.get(key.as_str())
        {
            if before.spec.fingerprint != new.spec.fingerprint {
                let reused = NotTaken::KeyReused(before.key.id);
                survey.refused.push((index, reused));
            }
            return;
        }
        let place = place_of(new);
        let before = place.as_ref().and_then(|place| survey.places.get(place));
        let before = before.cloned();
        let standing = self.of_key(new).unwrap_or_else(|| match &before {
            // Another item will have the place, and waits.
            Some(before) => match new.on_conflict {
                OnConflict::ReturnExisting => Standing::Existing(before.clone()),
                OnConflict::Reject => Standing::NotTaken(NotTaken::UniqueTaken(before.id)),
                OnConflict::ReplaceWaiting | OnConflict::CancelRunning => {
                    Standing::Replaces(vec![before.clone()])
                }
            },
            None => self.of_place(new),
        });
        match standing {
            Standing::NotTaken(why) => return survey.refused.push((index, why)),
            Standing::Existing(_) => return,
            Standing::Replaces(_) if before.is_some() => survey.replaced += 1,
            Standing::Replaces(keys) => survey.replaced += self.waiting_of(&keys),
            Standing::New => {}
        }
        survey.stored += 1;
        if let Some(key) = &new.spec.idempotency_key {
            survey.keys.insert(key, new);
        }
        if let Some(place) = place {
            survey.places.insert(place, new.key.clone());
        }
    }

    /// What would become of a new job.
    pub(super) fn check(&self, new: &NewJob) -> Pending {
        Pending::Ready(match self.standing(new) {
            Standing::NotTaken(why) => Reply::NotTaken(why),
            Standing::Existing(_) => Reply::Checked { deduplicated: true },
            Standing::New | Standing::Replaces(_) => Reply::Checked {
                deduplicated: false,
            },
        })
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
        if let Some(refused) = self.no_room(key, 1) {
            return Pending::Ready(Reply::NotTaken(refused));
        }
        let new = NewJob {
            key: JobKey {
                tenant: key.tenant.clone(),
                id: new_id,
            },
            spec: Arc::new(spec),
            input: self.inputs.remove(key),
            start_at: None,
            delay: Duration::ZERO,
            on_conflict: OnConflict::default(),
        };
        let told = self.change(key, Change::Retried { by: new_id });
        if let Pending::Ready(_) = told {
            return told;
        }
        self.take(new, Standing::New, None)
    }

    fn standing(&self, new: &NewJob) -> Standing {
        self.of_key(new).unwrap_or_else(|| self.of_place(new))
    }

    /// What its idempotency key makes of it, where that is used.
    fn of_key(&self, new: &NewJob) -> Option<Standing> {
        let key = new.spec.idempotency_key.clone()?;
        let found = self.keys.get(&(new.key.tenant.clone(), key))?;
        let job = self.current(found)?;
        Some(if job.spec.fingerprint == new.spec.fingerprint {
            Standing::Existing(found.clone())
        } else {
            Standing::NotTaken(NotTaken::KeyReused(found.id))
        })
    }

    /// What its unique place makes of it.
    fn of_place(&self, new: &NewJob) -> Standing {
        let in_the_way: Vec<&Job> = place_of(new)
            .and_then(|place| self.uniques.get(&place))
            .into_iter()
            .flatten()
            .filter_map(|key| self.current(key))
            .filter(|job| job.is_in_the_way(self.now))
            .collect();
        match in_the_way.first() {
            Some(newest) => in_place_of(newest, &in_the_way, new.on_conflict),
            None => Standing::New,
        }
    }

    /// Why so many more jobs of a tenant may not wait, where they may not.
    fn no_room(&self, key: &JobKey, asked: usize) -> Option<NotTaken> {
        let room = *self.room.get(&key.tenant)?;
        (!room.has(asked)).then_some(NotTaken::NoRoom { room, asked })
    }

    fn waiting_of(&self, keys: &[JobKey]) -> usize {
        let jobs = keys.iter().filter_map(|key| self.current(key));
        jobs.filter(|job| job.state.is_waiting()).count()
    }

    fn take(&mut self, new: NewJob, standing: Standing, hand_over: Option<usize>) -> Pending {
        match standing {
            Standing::NotTaken(why) => return Pending::Ready(Reply::NotTaken(why)),
            Standing::Existing(key) => return self.existing(&key),
            Standing::Replaces(keys) => {
                for key in keys {
                    let cancel = Change::Cancel {
                        cause: CancelCause::Replaced,
                        reason: format!("replaced by {}", new.key.id),
                        requested_by: key.tenant.to_string(),
                    };
                    // One that is cancelling already goes on doing so.
                    self.change(&key, cancel);
                }
            }
            Standing::New => {}
        }
        let index = self.insert(new);
        if let Some(claimant) = hand_over {
            let payloads = self.touched[index].payloads.clone();
            self.claim_one(index, claimant, payloads);
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
        if let Some(place) = place_of(&new) {
            let holders = self.uniques.entry(place).or_default();
            holders.insert(0, new.key.clone());
        }
        if let Some(room) = self.room.get_mut(tenant) {
            room.moved(false, true);
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

/// What the items of a batch come to.
#[derive(Default)]
struct Survey<'a> {
    refused: Vec<(usize, NotTaken)>,
    /// Items that will be stored, by their idempotency keys and in their unique places.
    keys: HashMap<&'a str, &'a NewJob>,
    places: HashMap<UniquePlace, JobKey>,
    stored: usize,
    /// Waiting jobs that will make way.
    replaced: usize,
}

impl Survey<'_> {
    /// How many more jobs will wait.
    fn waiting(&self) -> usize {
        self.stored.saturating_sub(self.replaced)
    }
}

fn place_of(new: &NewJob) -> Option<UniquePlace> {
    let unique = new.spec.unique.as_ref()?;
    let (tenant, job_type) = (&new.key.tenant, &new.spec.job_type);
    Some((tenant.clone(), job_type.clone(), unique.key.clone()))
}

fn in_place_of(newest: &Job, in_the_way: &[&Job], on_conflict: OnConflict) -> Standing {
    let makes_way = |is_one: fn(&Job) -> bool| {
        let jobs = in_the_way.iter().filter(|job| is_one(job));
        let keys: Vec<JobKey> = jobs.map(|job| job.key.clone()).collect();
        match keys.is_empty() {
            true => Standing::New,
            false => Standing::Replaces(keys),
        }
    };
    match on_conflict {
        OnConflict::ReturnExisting => Standing::Existing(newest.key.clone()),
        OnConflict::Reject => Standing::NotTaken(NotTaken::UniqueTaken(newest.key.id)),
        OnConflict::ReplaceWaiting => makes_way(|job| job.state.is_waiting()),
        OnConflict::CancelRunning => makes_way(|job| !job.state.is_terminal()),
    }
}
