//! A new job made of one that is over.

use std::sync::Arc;

use crate::error::Error;
use crate::job::Job;
use crate::job::limits::PAYLOAD_BYTES_MAX;
use crate::job::name::JobKey;
use crate::queue::JobQueue;
use crate::queue::writer::Answer;
use crate::store::{Entry, Reply};

/// What the input of a job that is retried may weigh, which nobody knows before it is read: it counts
/// against what may wait for the writer, and against what one group may hold. Bytes.
const BYTES: usize = PAYLOAD_BYTES_MAX;

impl JobQueue {
    /// Makes a new job of one that failed, was cancelled or has expired, due at once: the same but for
    /// idempotency key, unique place, start time and batch. Answers the new one, and whether it had been
    /// made before. What its type accepts is not asked again: a job whose type nobody serves any more
    /// waits until somebody does.
    ///
    /// A job whose retry has been removed cannot be retried once more: that one may have succeeded, and
    /// nothing is to run twice because nobody knows any more.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Precondition::NotRetryable`](crate::error::Precondition::NotRetryable),
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    ///
    /// # Cancel safety
    /// Once it has begun, the job may be made although nobody hears of it: ask again to hear of it.
    pub async fn retry(&self, key: &JobKey) -> Result<(Arc<Job>, bool), Error> {
        let mut answers = self.retry_each(std::slice::from_ref(key)).await?;
        let answer = answers.pop().ok_or_else(Error::outcome_unknown)?;
        answer?.ok_or_else(|| Error::internal(&format!("job {} cannot be read", key.id)))
    }

    /// The same for a few jobs in one commit, each a decision of its own. `None` for one that cannot be
    /// read.
    pub(super) async fn retry_each(
        &self,
        keys: &[JobKey],
    ) -> Result<Vec<Result<Option<(Arc<Job>, bool)>, Error>>, Error> {
        if self.shared.draining.is_cancelled() {
            return Err(Error::draining());
        }
        let entries = keys.iter().map(|key| Entry::Retry {
            key: key.clone(),
            new_id: self.new_id(),
        });
        let answers = self.change(entries.collect(), keys.len() * BYTES).await?;
        let of_key = |(key, answer)| match answer {
            Answer::Stored(Reply::Done { job, deduplicated }) => Ok(Some((job, deduplicated))),
            Answer::Stored(Reply::Unreadable) => Ok(None),
            other => Err(match self.job_of(key, other) {
                Err(error) => error,
                Ok(_) => Error::internal(&"a retry was held back"),
            }),
        };
        Ok(keys.iter().zip(answers).map(of_key).collect())
    }
}
