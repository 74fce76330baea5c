//! Jobs that are over, on their way out behind their last events.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Error;
use crate::job::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use crate::job::name::JobId;
use crate::job::{Job, JobSnapshot, Payloads};
use crate::queue::read::snapshot_bytes;
use crate::store::{JobStore, View};

/// A job that is over, for ever as it is here.
#[derive(Debug)]
struct EndedJob {
    /// Of its last event; 0 where the watch began behind it.
    position: i64,
    job: Arc<Job>,
    /// What stands beside it, where that was heard.
    payloads: Option<Arc<Payloads>>,
}

/// What of it was made ready to be given.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) jobs: Vec<JobSnapshot>,
    /// Jobs that were purged in the meantime.
    pub(super) purged: Option<JobId>,
}

/// Those that were not given, in the order of their ends.
#[derive(Debug)]
pub(super) struct Ended {
    view: View,
    waiting: VecDeque<EndedJob>,
    /// Of payloads that are kept because they were heard.
    payload_bytes: usize,
    /// Taken from those that wait. Kept here, so that a caller that goes away loses none.
    part: Part,
    part_bytes: usize,
    part_len: usize,
}

impl Ended {
    pub(super) fn new(view: View) -> Self {
        Self {
            view,
            waiting: VecDeque::new(),
            payload_bytes: 0,
            part: Part::default(),
            part_bytes: 0,
            part_len: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// As many as one message takes.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= BATCH_EVENTS_MAX
    }

    /// Position of the first one's last event.
    pub(super) fn first(&self) -> Option<i64> {
        self.waiting.front().map(|ended| ended.position)
    }

    pub(super) fn push(&mut self, position: i64, job: Arc<Job>, payloads: Option<Arc<Payloads>>) {
        let payloads = payloads.filter(|payloads| {
            self.view == View::Full && self.payload_bytes + payloads.bytes() <= BATCH_BYTES_MAX
        });
        self.payload_bytes += payloads.as_ref().map_or(0, |payloads| payloads.bytes());
        self.waiting.push_back(EndedJob {
            position,
            job,
            payloads,
        });
    }

    /// The next message's worth, at least one job.
    ///
    /// # Cancel safety
    /// Safe: a part that was not returned goes on where it was.
    pub(super) async fn next_part(&mut self, store: &dyn JobStore) -> Result<Part, Error> {
        while let Some(ended) = self.waiting.get(self.part_len) {
            let snapshot = read(ended, self.view, store).await?;
            let bytes = snapshot.as_ref().map_or(0, snapshot_bytes);
            let full = self.part_len >= BATCH_EVENTS_MAX
                || (self.part_len > 0 && self.part_bytes + bytes > BATCH_BYTES_MAX);
            if full {
                break;
            }
            match snapshot {
                Some(snapshot) => self.part.jobs.push(snapshot),
                // Alone, so that no cursor is beyond it before it is said.
                None if self.part_len > 0 => break,
                None => {
                    self.part.purged = Some(ended.job.key.id);
                    self.part_len = 1;
                    break;
                }
            }
            self.part_len += 1;
            self.part_bytes += bytes;
        }
        for given in self.waiting.drain(..self.part_len) {
            self.payload_bytes -= given.payloads.map_or(0, |payloads| payloads.bytes());
        }
        (self.part_len, self.part_bytes) = (0, 0);
        Ok(std::mem::take(&mut self.part))
    }
}

/// `None` where it was purged.
async fn read(
    ended: &EndedJob,
    view: View,
    store: &dyn JobStore,
) -> Result<Option<JobSnapshot>, Error> {
    let known = match (view, &ended.payloads) {
        (View::Basic, _) => Some(Payloads::default()),
        (View::Full, Some(payloads)) => Some(Payloads::clone(payloads)),
        (View::Full, None) => None,
    };
    match known {
        Some(payloads) => Ok(Some(JobSnapshot {
            job: Arc::clone(&ended.job),
            payloads,
        })),
        None => Ok(store.job(&ended.job.key, view).await?),
    }
}
