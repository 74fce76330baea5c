//! A page of a job's log.

use crate::error::{Error, Precondition, Violations};
use crate::job::event::EventTag;
use crate::job::limits::{PAGE_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX};
use crate::job::name::JobKey;
use crate::job::segment::EncodedEvent;
use crate::queue::JobQueue;
use crate::queue::read::check_page_size;
use crate::store::LogRange;

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

impl JobQueue {
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

pub(in crate::queue) fn ahead(after_sequence: i64, last_sequence: i64) -> Error {
    Error::Precondition(Precondition::SequenceAhead {
        after_sequence,
        last_sequence,
    })
}
