//! Looking at jobs: one, a page of them, a page of a log, or waiting for something to happen.

mod events;
mod list;
mod wait;

pub use events::{EventPage, EventQuery, check_sequence};
pub use list::{JobPage, check_page_size};
pub use wait::Waited;

pub(super) use events::ahead;
pub(super) use list::snapshot_bytes;

use crate::error::Error;
use crate::job::JobSnapshot;
use crate::job::name::JobKey;
use crate::queue::JobQueue;
use crate::store::View;

impl JobQueue {
    /// One job as it is now.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get(&self, key: &JobKey, view: View) -> Result<JobSnapshot, Error> {
        let found = self.shared.store.job(key, view).await?;
        found.ok_or(Error::NotFound { id: key.id })
    }
}
