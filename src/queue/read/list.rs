//! A page of jobs.

use std::collections::BTreeMap;

use crate::error::{Error, Violations};
use crate::job::limits::{LIST_ROWS_MAX, PAGE_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX};
use crate::job::name::JobId;
use crate::job::{JobSnapshot, Payloads};
use crate::queue::{JobQueue, page};
use crate::store::{ListQuery, Listed, View};

/// A page of jobs.
#[derive(Clone, Debug)]
pub struct JobPage {
    /// Newest first.
    pub jobs: Vec<JobSnapshot>,
    /// Goes on behind the page; `None` on the last one.
    pub next_token: Option<String>,
}

impl JobQueue {
    /// Checks which page of a query is asked for, and answers what it has to be made of: after which job,
    /// and how many. A token was made for one filter, so that it is wrong for one that has faults, too.
    pub fn check_page(
        &self,
        query: &ListQuery,
        page_size: i32,
        token: &str,
        violations: &mut Violations,
    ) -> (Option<JobId>, Option<usize>) {
        let size = violations.check("page_size", check_page_size(page_size));
        let after = (!token.is_empty()).then(|| {
            let secret = self.shared.store.secret();
            violations.check("page_token", page::parse(&secret, query, token))
        });
        (after.flatten(), size)
    }

    /// A page of jobs, newest first. Ends early at 3 MiB, and once 10,000 jobs were looked at: it may be
    /// empty and have a token all the same.
    ///
    /// # Errors
    /// [`Error::Invalid`], where the size is out of bounds or the token was not made for this query.
    pub async fn list(
        &self,
        mut query: ListQuery,
        page_size: i32,
        token: &str,
        view: View,
    ) -> Result<JobPage, Error> {
        let mut violations = Violations::default();
        let (after, size) = self.check_page(&query, page_size, token, &mut violations);
        violations.into_result()?;
        query.before_id = after;
        let found = self.find(&query, size.unwrap_or(PAGE_SIZE_DEFAULT)).await?;
        let mut page = JobPage {
            jobs: Vec::with_capacity(found.jobs.len()),
            next_token: None,
        };
        let mut through = found.through;
        let (mut bytes, mut last) = (0, None);
        for job in found.jobs {
            let id = job.key.id;
            let snapshot = match view {
                View::Basic => JobSnapshot {
                    job,
                    payloads: Payloads::default(),
                },
                View::Full => match self.shared.store.job(&job.key, view).await? {
                    Some(snapshot) => snapshot,
                    // Purged since the page was read.
                    None => continue,
                },
            };
            bytes += snapshot_bytes(&snapshot);
            if last.is_some() && bytes > PAGE_BYTES_MAX {
                through = last;
                break;
            }
            page.jobs.push(snapshot);
            last = Some(id);
        }
        page.next_token = through.map(|last| self.token(&query, last));
        Ok(page)
    }

    /// The jobs of a page, and, unless it is the last one, where the next one begins.
    pub(in crate::queue) async fn find(
        &self,
        query: &ListQuery,
        size: usize,
    ) -> Result<Listed, Error> {
        let query = ListQuery {
            // One more than asked for says whether there is another page.
            limit: size + 1,
            rows: LIST_ROWS_MAX,
            ..query.clone()
        };
        let mut found = self.shared.store.list(&query).await?;
        if found.jobs.len() > size {
            found.jobs.truncate(size);
            found.through = found.jobs.last().map(|last| last.key.id);
        }
        Ok(found)
    }

    /// The token of the page that begins behind a job.
    pub(in crate::queue) fn token(&self, query: &ListQuery, last: JobId) -> String {
        page::token(&self.shared.store.secret(), query, last)
    }
}

/// Checks a page's size; 0 stands for the default.
///
/// # Errors
/// A sentence that names the value and the bound.
pub fn check_page_size(size: i32) -> Result<usize, String> {
    match usize::try_from(size) {
        Ok(0) => Ok(PAGE_SIZE_DEFAULT),
        Ok(size) if size <= PAGE_SIZE_MAX => Ok(size),
        _ => Err(format!("is {size}; 0 to {PAGE_SIZE_MAX} is accepted")),
    }
}

/// How much of a page a job takes at most.
pub(in crate::queue) fn snapshot_bytes(snapshot: &JobSnapshot) -> usize {
    /// Its id, times and numbers, and what stands before each field and its length.
    const FIXED: usize = 800;
    /// What stands before a label or a piece of metadata, its name and its value.
    const ENTRY: usize = 16;
    let job = &snapshot.job;
    let (spec, detail) = (&job.spec, &job.detail);
    let payloads = &snapshot.payloads;
    let payloads = [&payloads.input, &payloads.result, &payloads.checkpoint];
    let payloads: usize = payloads
        .into_iter()
        .flatten()
        .map(|payload| payload.encoded_len() + ENTRY)
        .sum();
    let entries = |entries: &BTreeMap<String, String>| -> usize {
        let entries = entries.iter();
        entries
            .map(|(name, value)| name.len() + value.len() + ENTRY)
            .sum()
    };
    let names = [&job.key.tenant, &spec.job_type, &spec.queue];
    let names: usize = names.into_iter().map(|name| name.as_str().len()).sum();
    let key = spec.idempotency_key.as_ref().map_or(0, String::len)
        + spec
            .concurrency_key
            .as_ref()
            .map_or(0, |key| key.as_str().len());
    let reasons = spec.retry_policy.non_retryable_reasons.iter();
    let reasons: usize = reasons.map(|reason| reason.len() + ENTRY).sum();
    let cancel = detail.cancel_reason.len() + detail.worker_id.len();
    let progress = detail.progress.as_ref().map_or(0, |progress| {
        progress.unit.len() + progress.phase.len() + progress.message.len()
    });
    let error = detail.error.as_ref().map_or(0, |error| {
        let texts = error.reason.len() + error.message.len() + error.detail.len();
        texts + entries(&error.metadata)
    });
    FIXED + payloads + entries(&spec.labels) + names + key + reasons + cancel + progress + error
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;
    use uuid::Uuid;

    use super::*;
    use crate::job::event::JobError;
    use crate::job::limits::STRING_BYTES_MAX;
    use crate::job::name::{JobKey, Name};
    use crate::job::payload::Payload;
    use crate::job::progress::Progress;
    use crate::job::time::Timestamp;
    use crate::job::{CancelCause, Change, Job, JobSpec, NewJob, Outcome, Report};
    use crate::wire;

    /// Goal: no page is longer than was counted. Method: every text of a job is as long as it may be.
    #[test]
    fn a_job_takes_no_more_of_a_page_than_is_counted() {
        let long = "t".repeat(STRING_BYTES_MAX);
        let name = || Name::new("n".repeat(64)).expect("a name");
        let spec = JobSpec {
            queue: name(),
            priority: i32::MIN,
            labels: (0..32)
                .map(|n| (format!("{n:064}"), long.clone()))
                .collect(),
            idempotency_key: Some(long.clone()),
            log_bytes_max: 4000,
            ..JobSpec::of(name())
        };
        let key = JobKey {
            tenant: name(),
            id: JobId::new(Uuid::max()),
        };
        let new = NewJob::new(key, spec, None);
        let now = Timestamp::from_micros(1_999_999_999_999_999);
        let progress = Progress {
            phase: long.clone(),
            message: long.clone(),
            ..Progress::units(i64::MAX, Some(i64::MAX), long.clone())
        };
        let mut error = JobError::permanent(&long, long.clone());
        error.detail = "d".repeat(16 * 1024);
        error.metadata = (0..32)
            .map(|n| (format!("{n:064}"), long.clone()))
            .collect();
        let (mut job, _) = Job::submit(&new, now);
        for change in [
            Change::Claim {
                worker_id: long.clone(),
                heard_at: now,
                lease_until: now,
                term: None,
            },
            Change::Report {
                attempt: 1,
                reports: vec![Report::Progress(progress)],
                heard_at: now,
                lease_until: now,
                number: 0,
            },
            Change::Cancel {
                cause: CancelCause::Requested,
                reason: long.clone(),
                requested_by: long.clone(),
            },
            Change::Finish {
                attempt: 1,
                outcome: Outcome::Failed(error),
                chance: 0.5,
                fingerprint: None,
            },
        ] {
            job.apply(change, now).expect("it is allowed");
        }
        let snapshot = JobSnapshot {
            job: Arc::new(job),
            payloads: Payloads {
                input: Some(Payload::text(long.clone())),
                result: Some(Payload::text(long.clone())),
                checkpoint: Some(Payload::text(long)),
            },
        };
        let counted = snapshot_bytes(&snapshot);
        let sent = wire::to_job(snapshot).encoded_len();
        assert!(sent <= counted, "{sent} sent, {counted} counted");
    }
}
