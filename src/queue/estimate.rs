//! What the server alone knows of a job that waits: how many stand before it, and about when it begins.
//!
//! An estimate comes from how long attempts of the type took lately and how many of the job's lane run at
//! once. Where either is not known, there is none: absent rather than invented.

use std::time::Duration;

use crate::error::Error;
use crate::job::time::Timestamp;
use crate::job::{Job, JobState};
use crate::queue::JobQueue;

/// Where a job stands that waits for a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// 1 for the next one of its queue, type and tenant. `None` beyond the bound that is counted to.
    pub position: Option<u64>,
    /// About when it begins, by the wall clock.
    pub estimated_start_at: Option<Timestamp>,
}

impl JobQueue {
    /// Where a job stands, if it waits for a worker.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn place_of(&self, job: &Job) -> Result<Option<Place>, Error> {
        if job.state != JobState::Queued {
            return Ok(None);
        }
        let ahead = self.shared.store.ahead_of(job).await?;
        Ok(Some(Place {
            position: ahead.map(|ahead| ahead + 1),
            estimated_start_at: ahead.and_then(|ahead| self.estimated_start(job, ahead)),
        }))
    }

    /// Attempts that run end evenly spread over their mean time, and each makes room for one of its lane:
    /// the job begins when one more of them has ended than stand before it. So whatever else shares the
    /// places has its part already. How many starts a rate limit leaves is not known, nor when those end that
    /// have the job's concurrency key: they may be of any type.
    fn estimated_start(&self, job: &Job, ahead: u64) -> Option<Timestamp> {
        let lane = job.lane();
        let held_up = {
            let live = self.shared.live();
            let of_type = live.types.get(&lane.job_type);
            let limits = live.limits(&lane.queue, &self.shared.settings.queues);
            job.spec.concurrency_key.is_some()
                || limits.rate.is_some()
                || live.queue(&lane.queue).paused_at.is_some()
                || of_type.is_some_and(|of_type| of_type.paused_at.is_some())
        };
        if held_up {
            return None;
        }
        let clock = &self.shared.clock;
        let (running, mean) = self.shared.attempts.pace(&lane, clock.steady())?;
        let wait = mean.as_secs_f64() * (ahead + 1) as f64 / running as f64;
        let wait = Duration::try_from_secs_f64(wait).ok()?;
        Some(clock.now().after(wait))
    }
}
