//! Submitting: one job, or a batch of them, or only asking whether it would be taken.

use std::sync::Arc;

use crate::error::{Error, Violations};
use crate::job::name::{BatchId, JobId, Name};
use crate::job::{Job, NewJob};
use crate::queue::JobQueue;
use crate::queue::submission::{Against, KnownTypes, Submission, check_batch};
use crate::queue::writer::Answer;
use crate::store::{Entry, NotTaken, Reply};

/// What a job of a batch takes beside its input while it waits for the writer. Bytes. Chosen: its row.
/// So eight full batches fill a group.
const BATCHED_JOB_BYTES: usize = 1024;

/// The jobs of a batch, on disk.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the new ones among the jobs, or all of them, came in. `None` where all were there before, and
    /// not in one batch.
    pub id: Option<BatchId>,
    /// In the order of the requests, each with whether it was there before.
    pub jobs: Vec<(Arc<Job>, bool)>,
}

impl JobQueue {
    /// Stores a job, and answers once it is on disk: the job, and whether an earlier request with its
    /// key had made it, or it has the unique place that was asked for.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::KeyReused`], [`Error::UniqueTaken`], [`Error::Exhausted`],
    /// [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, the job may be stored although nobody hears of it.
    pub async fn submit(&self, submission: Submission) -> Result<(Arc<Job>, bool), Error> {
        self.submit_as(self.new_id(), submission, "").await
    }

    /// Whether a submission would be taken, without storing anything: answers whether a job that is
    /// there would be answered in its place. Does not look at how many jobs wait, which the next moment
    /// changes.
    ///
    /// # Errors
    /// Those of [`JobQueue::submit`].
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn validate(&self, submission: Submission) -> Result<bool, Error> {
        self.check_open()?;
        let tenant = submission.tenant.clone();
        let new = submission.check("", self.new_id(), self.against())?;
        let bytes = input_bytes(&new);
        let answer = self.change_one(Entry::Check(Box::new(new)), bytes).await?;
        match answer {
            Answer::Stored(Reply::Checked { deduplicated }) => Ok(deduplicated),
            Answer::Stored(Reply::NotTaken(why)) => Err(not_taken(&tenant, why)),
            other => Err(Error::internal(&format!("a check was answered {other:?}"))),
        }
    }

    /// Stores 1 to 1,000 jobs of one tenant, all or none of them, and answers once they are on disk.
    /// Those that were there before keep the batch they came in; where that is so of all, and they came
    /// in one, the answer is of that one.
    ///
    /// # Errors
    /// [`Error::Invalid`] with everything that is wrong with any of them, [`Error::BatchTaken`],
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, the jobs may be stored although nobody hears of it.
    pub async fn submit_batch(&self, submissions: Vec<Submission>) -> Result<Batch, Error> {
        self.check_open()?;
        let id = BatchId::new(self.shared.clock.new_id());
        let tenant = submissions.first().map(|first| first.tenant.clone());
        let jobs = check_batch(submissions, id, || self.new_id(), self.against())?;
        let tenant = tenant.ok_or_else(|| Error::internal(&"a batch without a job was taken"))?;
        let bytes = jobs
            .iter()
            .map(|new| input_bytes(new) + BATCHED_JOB_BYTES)
            .sum();
        match self.change_one(Entry::Batch(jobs), bytes).await? {
            Answer::Stored(Reply::Batch(jobs)) => Ok(Batch {
                id: batch_of(&jobs, id),
                jobs,
            }),
            Answer::Stored(Reply::BatchNotTaken(items)) => Err(batch_not_taken(&tenant, items)),
            other => Err(Error::internal(&format!("a batch was answered {other:?}"))),
        }
    }

    /// What is wrong with a submission, and nothing else: neither whether its key was used nor whether
    /// jobs are taken now. `prefix` is what stands before the fields' names in the request.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self, submission: Submission, prefix: &str) -> Result<(), Error> {
        let checked = submission.check(prefix, self.new_id(), self.against());
        checked.map(drop)
    }

    pub(super) fn new_id(&self) -> JobId {
        JobId::new(self.shared.clock.new_id())
    }

    pub(super) async fn submit_as(
        &self,
        id: JobId,
        submission: Submission,
        prefix: &str,
    ) -> Result<(Arc<Job>, bool), Error> {
        self.check_open()?;
        let tenant = submission.tenant.clone();
        let new = submission.check(prefix, id, self.against())?;
        let bytes = input_bytes(&new);
        let entry = Entry::Submit {
            new: Box::new(new),
            hand_over: None,
        };
        match self.change_one(entry, bytes).await? {
            Answer::Stored(Reply::Done { job, deduplicated }) => Ok((job, deduplicated)),
            Answer::Stored(Reply::NotTaken(why)) => Err(not_taken(&tenant, why)),
            other => Err(Error::internal(&format!("a submit was answered {other:?}"))),
        }
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.shared.draining.is_cancelled() {
            return Err(Error::draining());
        }
        Ok(())
    }

    pub(super) fn known_types(&self) -> KnownTypes<'_> {
        let shared = &self.shared;
        KnownTypes {
            configured: &shared.settings.types,
            other: &shared.other_types,
            live: &shared.live,
        }
    }

    fn against(&self) -> Against<'_> {
        let settings = &self.shared.settings;
        Against {
            types: self.known_types(),
            tenants: &settings.tenants,
            log_bytes_max: settings.log_bytes_max,
            now: self.shared.clock.now(),
        }
    }
}

fn input_bytes(new: &NewJob) -> usize {
    new.input.as_ref().map_or(0, |input| input.as_bytes().len())
}

/// The batch that an answer is of, where it was to be `new`.
fn batch_of(jobs: &[(Arc<Job>, bool)], new: BatchId) -> Option<BatchId> {
    if jobs.iter().any(|(_, deduplicated)| !deduplicated) {
        return Some(new);
    }
    let mut batches = jobs.iter().map(|(job, _)| job.spec.batch_id);
    let first = batches.next().flatten()?;
    batches.all(|other| other == Some(first)).then_some(first)
}

/// Why a new job was not stored.
pub(super) fn not_taken(tenant: &Name, why: NotTaken) -> Error {
    match why {
        NotTaken::KeyReused(id) => Error::KeyReused { id },
        NotTaken::UniqueTaken(id) => Error::UniqueTaken { id },
        NotTaken::NoRoom { room, asked } if asked > room.max => {
            let max = room.max;
            let problem = format!("has {asked} new jobs; at most {max} of a tenant may wait");
            Error::invalid("requests", problem)
        }
        NotTaken::NoRoom { room, asked } => {
            Error::waiting_full(tenant.clone(), room.waiting, asked, room.max)
        }
    }
}

/// Why no job of a batch was.
fn batch_not_taken(tenant: &Name, items: Vec<(usize, NotTaken)>) -> Error {
    let mut violations = Violations::default();
    let mut first = None;
    for (index, why) in items {
        let (id, field, problem, reason) = match why {
            NotTaken::KeyReused(id) => (
                id,
                "idempotency_key",
                format!("was used for another request, which made job {id}"),
                "IDEMPOTENCY_KEY_REUSED",
            ),
            NotTaken::UniqueTaken(id) => (
                id,
                "unique",
                format!("is the place of job {id}"),
                "UNIQUE_CONFLICT",
            ),
            // For the whole batch, and then alone.
            NotTaken::NoRoom { .. } => return not_taken(tenant, why),
        };
        first.get_or_insert(id);
        violations.add_with_reason(format!("requests[{index}].{field}"), problem, reason);
    }
    match first {
        Some(id) => Error::BatchTaken {
            violations: violations.into_told(),
            id,
        },
        None => Error::internal(&"a batch was refused for no item"),
    }
}
