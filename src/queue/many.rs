//! What is done to all jobs that a filter finds, a page at a time: each job is a decision of its own, and
//! other callers' changes come in between.

use std::sync::Arc;

use crate::error::{Error, Violations};
use crate::job::Job;
use crate::job::limits::PAGE_SIZE_MAX;
use crate::job::name::{JobId, JobKey};
use crate::queue::JobQueue;
use crate::store::{ListQuery, Listed, Purge, Purged};

/// Jobs retried in one commit. Chosen: with the largest inputs as much as a commit may hold.
const RETRIES: usize = 8;
/// Jobs removed before it is seen whether to go on.
const REMOVALS: usize = 64;

/// A page of jobs that were retried.
#[derive(Clone, Debug, Default)]
pub struct RetriedPage {
    /// Each with the job that was made of it, newest first.
    pub retried: Vec<(JobId, JobId)>,
    /// Those that were found and not retried, newest first.
    pub skipped: Vec<(JobId, Skipped)>,
    /// Goes on behind the page; `None` on the last one.
    pub next_token: Option<String>,
}

/// Why a job that was found was not retried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Skipped {
    /// It was retried before, and made this job.
    RetriedBefore(JobId),
    /// It cannot be retried any more.
    NotRetryable,
    /// It was removed meanwhile.
    Gone,
    /// What is stored of it cannot be read.
    Unreadable,
}

/// A page of jobs that were removed.
#[derive(Clone, Debug, Default)]
pub struct DeletedPage {
    /// How many.
    pub deleted: usize,
    /// Goes on behind the page; `None` on the last one.
    pub next_token: Option<String>,
}

impl JobQueue {
    /// Retries the jobs that a query finds, newest first, a page of them. Where it cannot go on in the
    /// middle of a page (no more jobs may wait, the server drains), it answers what was done, and the next
    /// page begins there.
    ///
    /// # Errors
    /// [`Error::Invalid`], where the size is out of bounds or the token was not made for this query;
    /// [`Error::Exhausted`], [`Error::Unavailable`] before the first job.
    ///
    /// # Cancel safety
    /// What was done until then stays done.
    pub async fn retry_many(
        &self,
        mut query: ListQuery,
        page_size: i32,
        token: &str,
    ) -> Result<RetriedPage, Error> {
        let found = self.find_many(&mut query, page_size, token).await?;
        let mut page = RetriedPage::default();
        let mut last = None;
        let mut through = found.through;
        for jobs in found.jobs.chunks(RETRIES) {
            if let Err(error) = self.retry_some(jobs, &mut page, &mut last).await {
                through = Some(last.ok_or(error)?);
                break;
            }
        }
        page.next_token = through.map(|last| self.token(&query, last));
        Ok(page)
    }

    /// Retries a few jobs in one commit. `last` is the last one that is done with.
    async fn retry_some(
        &self,
        jobs: &[Arc<Job>],
        page: &mut RetriedPage,
        last: &mut Option<JobId>,
    ) -> Result<(), Error> {
        let new = jobs.iter().filter(|job| job.detail.retried_by.is_none());
        let keys: Vec<JobKey> = new.map(|job| job.key.clone()).collect();
        let mut answers = match keys.as_slice() {
            [] => Vec::new(),
            keys => self.retry_each(keys).await?,
        }
        .into_iter();
        for job in jobs {
            let id = job.key.id;
            let answer = match job.detail.retried_by {
                Some(by) => Err(Skipped::RetriedBefore(by)),
                None => outcome_of(answers.next().ok_or_else(Error::outcome_unknown)?)?,
            };
            match answer {
                Ok(by) => page.retried.push((id, by)),
                Err(why) => page.skipped.push((id, why)),
            }
            *last = Some(id);
        }
        Ok(())
    }

    /// Removes the finished jobs that a query finds, newest first, a page of them. The query's states are
    /// all final. Where it cannot go on in the middle of a page, it answers what was done, and the next page
    /// begins there.
    ///
    /// # Errors
    /// [`Error::Invalid`], where the size is out of bounds or the token was not made for this query;
    /// [`Error::Exhausted`], [`Error::Unavailable`] before the first job.
    ///
    /// # Cancel safety
    /// What was done until then stays done.
    pub async fn delete_many(
        &self,
        mut query: ListQuery,
        page_size: i32,
        token: &str,
    ) -> Result<DeletedPage, Error> {
        let found = self.find_many(&mut query, page_size, token).await?;
        let mut page = DeletedPage::default();
        let mut last = None;
        let mut through = found.through;
        for jobs in found.jobs.chunks(REMOVALS) {
            let purge = jobs.iter().map(|job| Purge::Job(job.key.clone()));
            match self.purge(purge.collect()).await {
                Ok(purged) => {
                    let gone = purged.iter().filter(|one| matches!(one, Purged::Job(_)));
                    page.deleted += gone.count();
                    last = jobs[..purged.len()].last().map(|job| job.key.id).or(last);
                    if purged.len() < jobs.len() {
                        // It could not go on: the next call says why.
                        through = last;
                        break;
                    }
                }
                Err(error) => {
                    through = Some(last.ok_or(error)?);
                    break;
                }
            }
        }
        page.next_token = through.map(|last| self.token(&query, last));
        Ok(page)
    }

    /// The jobs of a page, which is as large as one may be where nobody says.
    async fn find_many(
        &self,
        query: &mut ListQuery,
        page_size: i32,
        token: &str,
    ) -> Result<Listed, Error> {
        let mut violations = Violations::default();
        let (after, size) = self.check_page(query, page_size, token, &mut violations);
        violations.into_result()?;
        query.before_id = after;
        let size = size.filter(|_| page_size != 0).unwrap_or(PAGE_SIZE_MAX);
        self.find(query, size).await
    }
}

/// The new job; or why the old one was passed over.
///
/// # Errors
/// What would keep the next one from being retried, too.
fn outcome_of(
    answer: Result<Option<(Arc<Job>, bool)>, Error>,
) -> Result<Result<JobId, Skipped>, Error> {
    match answer {
        Ok(Some((new, false))) => Ok(Ok(new.key.id)),
        Ok(Some((new, true))) => Ok(Err(Skipped::RetriedBefore(new.key.id))),
        Ok(None) => Ok(Err(Skipped::Unreadable)),
        Err(Error::Precondition(_)) => Ok(Err(Skipped::NotRetryable)),
        Err(Error::NotFound { .. }) => Ok(Err(Skipped::Gone)),
        Err(error) => Err(error),
    }
}
