//! What a watch of many jobs can no longer show, said out loud.
//!
//! The store knows up to which position a tenant's events were ever purged, and how often, not whose they
//! were. So who is ahead of that, or has looked since the last time, has missed nothing, and who is not may
//! have: of jobs asked for by their ids it is found out, of others it is said as it is.

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
        // Whatever was purged since it was last looked for, also further back than other things before.
        if log.purges > self.gaps_seen && log.purged_through > before {
            if !self.has_given_all() {
                // It goes before the gap, which is found again.
                return Ok(());
            }
            self.look_for_purged = self.pending.is_some();
            if self.feed.filter.ids.is_empty() {
                // One gap, which goes before what was read: so that a purge that goes on holds nothing up.
                self.gaps.push_back((JobsGap::UNKNOWN, log.purges));
            } else {
                self.find_gaps(log.purges).await?;
                if !self.gaps.is_empty() {
                    return Ok(());
                }
                self.gaps_seen = log.purges;
            }
        }
        self.feed.absorb(log);
        Ok(())
    }

    /// Of jobs that are asked for by their ids: which are gone, or have lost the front of their logs.
    async fn find_gaps(&mut self, purges: i64) -> Result<(), Error> {
        let filter = Arc::clone(&self.feed.filter);
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
            let seen = if index == last { purges } else { 0 };
            self.tell_gap_of(id, sequences, seen);
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
    pub(super) fn tell_gap_of(&mut self, id: JobId, sequences: Option<(i64, i64)>, seen: i64) {
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
        self.gaps.push_back((gap, seen));
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
            self.tell_gap_of(id, None, self.gaps_seen);
        }
        Ok(())
    }
}
