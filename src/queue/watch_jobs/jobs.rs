//! Reads every job that a filter admits, part by part, as each is when its part is read.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Error;
use crate::job::Job;
use crate::job::limits::BATCH_EVENTS_MAX;
use crate::job::name::{JobId, JobKey};
use crate::store::{JobFilter, JobStore, ScanQuery, View};

/// Jobs that one read looks at. Chosen: a few milliseconds of work.
const LOOK_AT_MAX: usize = 4096;
/// Jobs that one part has. Chosen: as many as one message.
const PART_MAX: usize = BATCH_EVENTS_MAX;
/// Ids that are looked up for one part. Chosen: a few milliseconds of work.
const IDS_AT_ONCE: usize = 64;

/// A job, or that there is none.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// The job, and the position at which its newest segment begins, at most.
    Job(Arc<Job>, i64),
    /// No job has an id that was asked for.
    Missing(JobId),
}

/// The jobs that were not read yet, the oldest first.
#[derive(Debug)]
pub(super) struct Jobs {
    filter: Arc<JobFilter>,
    unfinished: bool,
    rest: Rest,
}

#[derive(Debug)]
enum Rest {
    /// Those of the ids.
    Ids(VecDeque<JobId>),
    /// Those with a higher id.
    After(Option<JobId>),
    None,
}

impl Jobs {
    /// All of them, or only those that are not over.
    pub(super) fn new(filter: Arc<JobFilter>, unfinished: bool) -> Self {
        let rest = if filter.ids.is_empty() {
            Rest::After(None)
        } else {
            Rest::Ids(filter.ids.iter().copied().collect())
        };
        Self {
            filter,
            unfinished,
            rest,
        }
    }

    /// The next part, which may be empty; `None` where there is no more.
    ///
    /// # Cancel safety
    /// Safe: a part that was not returned is read again.
    pub(super) async fn next(&mut self, store: &dyn JobStore) -> Result<Option<Vec<Found>>, Error> {
        match &self.rest {
            Rest::Ids(ids) => {
                let part: Vec<JobId> = ids.iter().take(IDS_AT_ONCE).copied().collect();
                let found = self.look_up(&part, store).await?;
                if let Rest::Ids(ids) = &mut self.rest {
                    ids.drain(..part.len());
                    if ids.is_empty() {
                        self.rest = Rest::None;
                    }
                }
                Ok(Some(found))
            }
            Rest::After(after) => {
                let query = ScanQuery {
                    filter: JobFilter::clone(&self.filter),
                    unfinished: self.unfinished,
                    after: *after,
                    look_at: LOOK_AT_MAX,
                    limit: PART_MAX,
                };
                let scan = store.scan(&query).await?;
                self.rest = match scan.through {
                    Some(through) => Rest::After(Some(through)),
                    None => Rest::None,
                };
                let found = scan.jobs.into_iter();
                let found = found.map(|found| Found::Job(found.job, found.position));
                Ok(Some(found.collect()))
            }
            Rest::None => Ok(None),
        }
    }

    async fn look_up(&self, ids: &[JobId], store: &dyn JobStore) -> Result<Vec<Found>, Error> {
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let key = JobKey {
                tenant: self.filter.tenant.clone(),
                id: *id,
            };
            match store.job(&key, View::Basic).await? {
                // How new it is was not read: as new as can be.
                Some(read) if self.wants(&read.job) => found.push(Found::Job(read.job, i64::MAX)),
                Some(_) => {}
                None => found.push(Found::Missing(*id)),
            }
        }
        Ok(found)
    }

    fn wants(&self, job: &Job) -> bool {
        self.filter.admits(job) && !(self.unfinished && job.state.is_terminal())
    }
}
