//! Ending what waits in a queue: in groups, so that it holds up nobody else's submits, and so many a call.

use crate::error::Error;
use crate::job::name::{JobId, Lane, Name};
use crate::job::{CancelCause, Change, JobState};
use crate::queue::JobQueue;
use crate::queue::writer::Answer;
use crate::store::{Entry, Reply};

/// Jobs that are ended in one commit. Chosen: half of a group, so that others fit beside it.
const CLEAR_GROUP: usize = 256;

/// What is to be ended of a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Whose jobs.
    pub tenant: Name,
    /// Where they wait.
    pub queue: Name,
    /// Only those of a type.
    pub job_type: Option<Name>,
    /// In which states: of those that wait.
    pub states: Vec<JobState>,
    /// Most jobs to end.
    pub limit: usize,
    /// Stored with each job.
    pub reason: String,
}

/// What was ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cleared {
    /// How many jobs.
    pub jobs: usize,
    /// Whether nothing is left of what waited when it began.
    pub is_complete: bool,
}

/// What became of a group.
struct Ended {
    jobs: usize,
    /// The first of those that stay because they cannot be read.
    unreadable: Option<JobId>,
}

impl JobQueue {
    /// Ends what waits in a queue as CANCELLED, reason `QUEUE_PURGED`. What comes meanwhile stays, and so
    /// does what is started before its turn has come; what another job's end lets wait for a worker goes,
    /// if that is asked for.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Unavailable`]: what was ended until then stays so. [`Error::Internal`]
    /// where all was ended but for what cannot be read.
    ///
    /// # Cancel safety
    /// Dropped, it ends nothing beyond the group that is under way.
    pub async fn clear(&self, what: &Waiting) -> Result<Cleared, Error> {
        let before = self.new_id();
        let mut cleared = Cleared::default();
        let mut stays = None;
        // What waits for others goes first: the end of one lets the next go on into QUEUED.
        let order = [JobState::Blocked, JobState::Scheduled, JobState::Queued];
        for state in order {
            if !what.states.contains(&state) {
                continue;
            }
            for lane in self.lanes_of(what).await? {
                loop {
                    let left = what.limit - cleared.jobs;
                    if left == 0 {
                        return Ok(cleared);
                    }
                    let group = left.min(CLEAR_GROUP);
                    let Some(ended) = self.clear_group(what, &lane, state, before, group).await?
                    else {
                        break;
                    };
                    cleared.jobs += ended.jobs;
                    if ended.jobs == 0 && ended.unreadable.is_some() {
                        // The next group would be the same one. Other lanes do not wait for it.
                        stays = stays.or(ended.unreadable);
                        break;
                    }
                }
            }
        }
        if let Some(job) = stays {
            let ended = cleared.jobs;
            let problem = format!("job {job} waits and cannot be read; {ended} others were ended");
            return Err(Error::internal(&problem));
        }
        cleared.is_complete = true;
        Ok(cleared)
    }

    /// Ends some jobs of a lane. `None` where none wait any more.
    async fn clear_group(
        &self,
        what: &Waiting,
        lane: &Lane,
        state: JobState,
        before: JobId,
        limit: usize,
    ) -> Result<Option<Ended>, Error> {
        let keys = self.shared.store.waiting(lane, state, before, limit);
        let keys = keys.await?;
        if keys.is_empty() {
            return Ok(None);
        }
        let entries = keys
            .iter()
            .map(|key| Entry::Change {
                change: Change::Cancel {
                    cause: CancelCause::QueuePurged,
                    reason: what.reason.clone(),
                    requested_by: what.tenant.to_string(),
                },
                key: key.clone(),
            })
            .collect();
        let answers = self.change(entries, 0).await?;
        let unreadable = |answer: &Answer| matches!(answer, Answer::Stored(Reply::Unreadable));
        let first = answers.iter().position(unreadable);
        Ok(Some(Ended {
            // One that was started or ended in between refuses: fine.
            jobs: answers.iter().filter(|answer| answer.is_done()).count(),
            unreadable: first.map(|index| keys[index].id),
        }))
    }

    /// The lanes of the queue that have jobs of the tenant.
    async fn lanes_of(&self, what: &Waiting) -> Result<Vec<Lane>, Error> {
        let counters = self.counters_of(&what.tenant, &what.queue).await?;
        let mut lanes: Vec<Lane> = counters.into_iter().map(|(lane, ..)| lane).collect();
        lanes.dedup();
        lanes.retain(|lane| {
            let only = what.job_type.as_ref();
            only.is_none_or(|only| lane.job_type == *only)
        });
        Ok(lanes)
    }
}
