//! How a watch begins: of a job that is there, or with the submit that makes it.

use std::time::Duration;

use crate::error::{Error, Limit};
use crate::events::Listener;
use crate::job::name::JobKey;
use crate::queue::read::{ahead, check_sequence};
use crate::queue::watch::{Watch, WatchOptions, snapshot_message};
use crate::queue::{JobQueue, Submission};
use crate::store::View;

impl JobQueue {
    /// Opens a watch of a job.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`], [`crate::error::Precondition::SequenceAhead`],
    /// [`Error::Exhausted`] where the tenant has too many open, [`Error::Unavailable`] in a drain.
    pub async fn watch(&self, key: &JobKey, options: WatchOptions) -> Result<Watch, Error> {
        if self.shared.draining.is_cancelled() {
            return Err(Error::draining());
        }
        if let Some(after) = options.after_sequence {
            check_sequence(after).map_err(|problem| Error::invalid("after_sequence", problem))?;
        }
        let listener = self.listen(key)?;
        let job = self.get(key, View::Basic).await?.job;
        let mut watch = Watch::new(self.clone(), key.clone(), options, listener);
        match watch.options.after_sequence {
            None if job.state.is_terminal() => watch.over_at = Some(job.last_sequence),
            None => watch.first.push(snapshot_message(&job, job.last_sequence)),
            Some(after) if after > job.last_sequence => {
                return Err(ahead(after, job.last_sequence));
            }
            Some(_) => {}
        }
        watch.taken = watch.options.after_sequence.unwrap_or(job.last_sequence);
        watch.behind = watch.taken < job.last_sequence;
        if job.state.is_terminal() && !watch.behind {
            watch.over_at = Some(job.last_sequence);
        }
        Ok(watch)
    }

    /// Stores a job and watches it from the beginning: the first message is a snapshot, with sequence
    /// 0. Answers also whether an earlier request with its key had made the job.
    ///
    /// # Errors
    /// Those of [`JobQueue::submit`] and [`JobQueue::watch`].
    pub async fn run(
        &self,
        submission: Submission,
        options: WatchOptions,
    ) -> Result<(Watch, bool), Error> {
        let options = WatchOptions {
            after_sequence: Some(0),
            ..options
        };
        let id = self.new_id();
        let key = JobKey {
            tenant: submission.tenant.clone(),
            id,
        };
        // Listens before the job exists: then the hub has all of it, and the log need not be read.
        let listener = self.listen(&key)?;
        let (job, deduplicated) = self.submit_as(id, submission, "submit.").await?;
        let mut watch = if job.key == key {
            Watch::new(self.clone(), key, options, listener)
        } else {
            drop(listener);
            self.watch(&job.key, options).await?
        };
        watch.first.insert(0, snapshot_message(&job, 0));
        Ok((watch, deduplicated))
    }

    pub(in crate::queue) fn listen(&self, key: &JobKey) -> Result<Listener, Error> {
        let max = self.shared.settings.watchers_max;
        let listener = self.shared.hub.listen(key, max);
        listener.map_err(|open| Error::Exhausted {
            limit: Limit::Watchers { open, max },
            retry_after: Duration::from_secs(5),
        })
    }
}
