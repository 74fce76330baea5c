//! What a watch of many jobs can no longer show, said out loud.
//!
//! The store knows up to which position a tenant's events were ever purged, not whose they were. So who is
//! ahead of that has missed nothing, and who is not may have: of jobs asked for by their ids it is found out,
//! of others it is said as it is.

use std::sync::Arc;

use crate::error::Error;
use crate::job::name::{JobId, JobKey};
use crate::queue::watch_jobs::JobsGap;
use crate::queue::watch_jobs::stream::EventStream;
use crate::store::View;

impl EventStream {
    /// Reads the next part of the log, unless something is to be said before it.
    pub(super) async fn read_log(&mut self) -> Result<(), Error> {
        let before = self.feed.taken();
        let log = self.feed.read().await?;
        let purged_through = log.purged_through;
        if purged_through > before.max(self.gaps_through) {
            if !self.has_given_all() {
                // It goes before the gap, which is found again.
                return Ok(());
            }
            self.look_for_purged = self.pending.is_some();
            self.find_gaps(purged_through).await?;
            if !self.gaps.is_empty() {
                return Ok(());
            }
            self.gaps_through = purged_through;
        }
        self.feed.absorb(log);
        Ok(())
    }

    async fn find_gaps(&mut self, purged_through: i64) -> Result<(), Error> {
        let filter = Arc::clone(&self.feed.filter);
        if filter.ids.is_empty() {
            self.gaps.push_back((JobsGap::UNKNOWN, purged_through));
            return Ok(());
        }
        let mut found = Vec::new();
        for id in &filter.ids {
            match self.first_sequence(*id).await? {
                None => found.push((*id, None)),
                Some(first) if first > 1 => found.push((*id, Some((1, first - 1)))),
                Some(_) => {}
            }
        }
        found.retain(|(id, sequences)| {
            let through = sequences.map_or(i64::MAX, |(_, last)| last);
            self.fronts
                .insert(*id, through)
                .is_none_or(|told| told < through)
        });
        let last = found.len().saturating_sub(1);
        for (index, (id, sequences)) in found.into_iter().enumerate() {
            // Who is cut between two of them hears of all again.
            let through = if index == last { purged_through } else { 0 };
            self.tell_gap_of(id, sequences, through);
        }
        Ok(())
    }

    /// `None` where there is no such job.
    async fn first_sequence(&self, id: JobId) -> Result<Option<i64>, Error> {
        let key = JobKey {
            tenant: self.feed.filter.tenant.clone(),
            id,
        };
        let found = self.feed.queue.shared.store.job(&key, View::Basic).await?;
        Ok(found.map(|found| found.job.first_sequence))
    }

    /// Says that events of a job are missing: those with these sequences, or, without them, all that were
    /// not given, because it was purged.
    pub(super) fn tell_gap_of(&mut self, id: JobId, sequences: Option<(i64, i64)>, through: i64) {
        if sequences.is_none() {
            self.fronts.insert(id, i64::MAX);
            if let Some(pending) = &mut self.pending {
                pending.remove(&id);
            }
        }
        let gap = JobsGap {
            job: Some(id),
            sequences,
        };
        self.gaps.push_back((gap, through));
    }

    /// Finds out which of the jobs that are not over are gone: their ends will not come any more.
    pub(super) async fn tell_purged(&mut self) -> Result<(), Error> {
        let pending: Vec<JobId> = self.pending.iter().flatten().copied().collect();
        let mut gone = Vec::new();
        for id in pending {
            if self.first_sequence(id).await?.is_none() {
                gone.push(id);
            }
        }
        if !gone.is_empty() && !self.has_given_all() {
            return Ok(());
        }
        self.look_for_purged = false;
        for id in gone {
            self.tell_gap_of(id, None, self.gaps_through);
        }
        Ok(())
    }
}
