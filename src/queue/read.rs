//! Looking at jobs: one, a page of them, a page of a log, or waiting for something to happen.

use std::time::Duration;

use crate::error::{Error, Precondition, Violations};
use crate::job::event::EventTag;
use crate::job::limits::{PAGE_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, POLL_MAX};
use crate::job::name::{JobId, JobKey};
use crate::job::segment::EncodedEvent;
use crate::job::{JobSnapshot, Payloads};
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
        let size = violations.check("page_size", check_page_size(page_size));
        let secret = self.shared.store.secret();
        if !token.is_empty() {
            query.before_id = violations.check("page_token", page::parse(&secret, &query, token));
        }
        violations.into_result()?;
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
            let over = snapshot.job.state.is_terminal() || after.is_some_and(|after| last > after);
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
                // next() is cancel safe, and what it says is read from the store anyway.
                _ = listener.next() => {}
                () = tokio::time::sleep_until(deadline) => timed_out = true,
                () = self.shared.draining.cancelled() => timed_out = true,
                () = self.shared.failed.cancelled() => return Err(Error::outcome_unknown()),
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

/// About how much of a page a job takes.
fn snapshot_bytes(snapshot: &JobSnapshot) -> usize {
    /// Ids, times and numbers.
    const FIXED: usize = 400;
    let payloads = &snapshot.payloads;
    let payloads = [&payloads.input, &payloads.result, &payloads.checkpoint];
    let payloads = payloads
        .into_iter()
        .flatten()
        .map(|payload| payload.encoded_len());
    let labels = snapshot.job.spec.labels.iter();
    let labels: usize = labels
        .map(|(name, value)| name.len() + value.len() + 8)
        .sum();
    let error = snapshot.job.detail.error.as_ref();
    let error = error.map_or(0, |error| {
        let metadata = error.metadata.iter();
        let metadata: usize = metadata.map(|(name, value)| name.len() + value.len()).sum();
        error.message.len() + error.detail.len() + metadata
    });
    FIXED + payloads.sum::<usize>() + labels + error
}
