//! Looking at jobs: one, a page of them, a page of a log, or waiting for something to happen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Precondition, Violations};
use crate::events::{Heard, Listener, News};
use crate::job::event::EventTag;
use crate::job::limits::{PAGE_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, POLL_MAX};
use crate::job::name::{JobId, JobKey};
use crate::job::segment::EncodedEvent;
use crate::job::{Job, JobSnapshot, Payloads};
use crate::queue::{JobQueue, page};
use crate::store::{ListQuery, LogRange, View};

/// A page of jobs.
#[derive(Clone, Debug)]
pub struct JobPage {
    /// Newest first.
    pub jobs: Vec<JobSnapshot>,
    /// Goes on behind the page; `None` on the last one.
    pub next_token: Option<String>,
}

/// Which events of a job.
#[derive(Clone, Debug)]
pub struct EventQuery {
    /// Those with a higher sequence.
    pub after: i64,
    /// How many; 0 for the default of 50.
    pub page_size: i32,
    /// Empty: all.
    pub tags: Vec<EventTag>,
}

/// A page of a job's log.
#[derive(Clone, Debug)]
pub struct EventPage {
    /// Ascending.
    pub events: Vec<EncodedEvent>,
    /// Everything up to it is in the page or was filtered out.
    pub through: i64,
    /// The job is over, and the page reaches the end of its log.
    pub finished: bool,
    /// First and last missing sequence, where part of what was asked for was purged.
    pub gap: Option<(i64, i64)>,
}

/// The end of a wait.
#[derive(Clone, Debug)]
pub struct Waited {
    /// The job as it is then.
    pub snapshot: JobSnapshot,
    /// The time ran out, or the server drains, before what was waited for.
    pub timed_out: bool,
}

impl JobQueue {
    /// One job as it is now.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get(&self, key: &JobKey, view: View) -> Result<JobSnapshot, Error> {
        let found = self.shared.store.job(key, view).await?;
        found.ok_or(Error::NotFound { id: key.id })
    }

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

    /// A page of jobs, newest first. Ends early at 3 MiB.
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
        let secret = self.shared.store.secret();
        let size = size.unwrap_or(PAGE_SIZE_DEFAULT);
        // One more than asked for says whether there is another page.
        query.limit = size + 1;
        let found = self.shared.store.list(&query).await?;
        let mut page = JobPage {
            jobs: Vec::with_capacity(found.len().min(size)),
            next_token: None,
        };
        let mut bytes = 0;
        for job in found {
            let last: Option<JobId> = page.jobs.last().map(|last| last.job.key.id);
            if let Some(last) = last
                && (page.jobs.len() == size || bytes >= PAGE_BYTES_MAX)
            {
                page.next_token = Some(page::token(&secret, &query, last));
                break;
            }
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
            let more = snapshot_bytes(&snapshot);
            if let Some(last) = last
                && bytes + more > PAGE_BYTES_MAX
            {
                page.next_token = Some(page::token(&secret, &query, last));
                break;
            }
            bytes += more;
            page.jobs.push(snapshot);
        }
        Ok(page)
    }

    /// A page of a job's log. Ends early at 3 MiB.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotFound`], [`Precondition::SequenceAhead`].
    pub async fn events(&self, key: &JobKey, query: &EventQuery) -> Result<EventPage, Error> {
        let mut violations = Violations::default();
        let size = violations.check("page_size", check_page_size(query.page_size));
        violations.check("after_sequence", check_sequence(query.after));
        violations.into_result()?;
        let size = size.unwrap_or(PAGE_SIZE_DEFAULT);
        let mut page = EventPage {
            events: Vec::new(),
            through: query.after,
            finished: false,
            gap: None,
        };
        let mut bytes = 0;
        loop {
            let range = LogRange {
                after: page.through,
                events: PAGE_SIZE_MAX,
                bytes: PAGE_BYTES_MAX,
            };
            let part = self.shared.store.log(key, range).await?;
            let part = part.ok_or(Error::NotFound { id: key.id })?;
            let last = part.job.last_sequence;
            if query.after > last {
                return Err(ahead(query.after, last));
            }
            if page.gap.is_none() && part.job.first_sequence > page.through + 1 {
                page.gap = Some((page.through + 1, part.job.first_sequence - 1));
                page.through = part.job.first_sequence - 1;
            }
            let from = page.through;
            let new = part
                .segments
                .iter()
                .flat_map(|segment| segment.events_after(from));
            for event in new {
                let shown = query.tags.is_empty() || query.tags.contains(&event.tag);
                if shown {
                    let full = page.events.len() == size
                        || (bytes + event.bytes.len() > PAGE_BYTES_MAX && bytes > 0);
                    if full {
                        return Ok(page);
                    }
                    bytes += event.bytes.len();
                }
                page.through = event.sequence;
                if shown {
                    page.events.push(event);
                }
            }
            if page.through >= last {
                page.finished = part.job.state.is_terminal();
                return Ok(page);
            }
        }
    }

    /// Waits for the end of a job, or for any newer event if asked, or until the time is up.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotFound`], [`Precondition::SequenceAhead`], [`Error::Exhausted`].
    pub async fn wait(
        &self,
        key: &JobKey,
        timeout: Duration,
        after: Option<i64>,
        view: View,
    ) -> Result<Waited, Error> {
        if let Some(after) = after {
            check_sequence(after).map_err(|problem| Error::invalid("after_sequence", problem))?;
        }
        let deadline = tokio::time::Instant::now() + timeout.min(POLL_MAX);
        // Listens first and reads second, so that nothing falls in between.
        let mut listener = self.listen(key)?;
        let mut timed_out = false;
        loop {
            let snapshot = self.get(key, View::Basic).await?;
            let last = snapshot.job.last_sequence;
            if let Some(after) = after
                && after > last
            {
                return Err(ahead(after, last));
            }
            let over = is_over(&snapshot.job, after);
            if over || timed_out {
                let snapshot = match view {
                    View::Basic => snapshot,
                    View::Full => self.get(key, view).await?,
                };
                return Ok(Waited {
                    snapshot,
                    timed_out: !over,
                });
            }
            tokio::select! {
                // next() is cancel safe, and what it says is in the store as well.
                heard = heard_of_the_end(&mut listener, after) => {
                    if let Some(mut snapshot) = heard {
                        if view == View::Basic {
                            snapshot.payloads = Payloads::default();
                        }
                        return Ok(Waited { snapshot, timed_out: false });
                    }
                }
                () = tokio::time::sleep_until(deadline) => timed_out = true,
                () = self.shared.draining.cancelled() => timed_out = true,
                () = self.shared.failed.cancelled() => return Err(Error::outcome_unknown()),
            }
        }
    }
}

/// Whether a wait has what it waits for.
fn is_over(job: &Job, after: Option<i64>) -> bool {
    job.state.is_terminal() || after.is_some_and(|after| job.last_sequence > after)
}

/// Listens until there is a reason to read the store: a job may commit a thousand times before its end,
/// and what is heard of each commit says whether it was the one. Answers the job where it is over and
/// need not be read at all.
async fn heard_of_the_end(listener: &mut Listener, after: Option<i64>) -> Option<JobSnapshot> {
    loop {
        match listener.next().await {
            Heard::News(News::Events(job, _)) if !is_over(&job, after) => {}
            Heard::News(News::Over(job, payloads, _)) => {
                let payloads = Arc::unwrap_or_clone(payloads);
                return Some(JobSnapshot { job, payloads });
            }
            Heard::News(News::Events(..) | News::Stored | News::Purged) | Heard::Lagged => {
                return None;
            }
        }
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

/// Checks a cursor.
///
/// # Errors
/// A sentence that names the value and the bound.
pub fn check_sequence(after: i64) -> Result<(), String> {
    if after < 0 {
        return Err(format!("is {after}; 0 or more is accepted"));
    }
    Ok(())
}

pub(super) fn ahead(after_sequence: i64, last_sequence: i64) -> Error {
    Error::Precondition(Precondition::SequenceAhead {
        after_sequence,
        last_sequence,
    })
}

/// How much of a page a job takes at most.
pub(super) fn snapshot_bytes(snapshot: &JobSnapshot) -> usize {
    /// Its id, times and numbers, and what stands before each field and its length.
    const FIXED: usize = 600;
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
    let key = spec.idempotency_key.as_ref().map_or(0, String::len);
    let cancel = detail.cancel_reason.len() + detail.worker_id.len();
    let progress = detail.progress.as_ref().map_or(0, |progress| {
        progress.unit.len() + progress.phase.len() + progress.message.len()
    });
    let error = detail.error.as_ref().map_or(0, |error| {
        let texts = error.reason.len() + error.message.len() + error.detail.len();
        texts + entries(&error.metadata)
    });
    FIXED + payloads + entries(&spec.labels) + names + key + cancel + progress + error
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;
    use uuid::Uuid;

    use super::*;
    use crate::job::event::JobError;
    use crate::job::limits::STRING_BYTES_MAX;
    use crate::job::name::Name;
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
            },
            Change::Report {
                attempt: 1,
                reports: vec![Report::Progress(progress)],
                heard_at: now,
                lease_until: now,
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
