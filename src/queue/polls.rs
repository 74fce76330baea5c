//! Workers of other programs that wait for work: what each asks for, and how it gets it.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::job::limits::LEASE;
use crate::job::name::Lane;
use crate::job::time::Timestamp;
use crate::job::{Change, Outcome};
use crate::queue::lease::Lease;
use crate::queue::schedule::{Offer, Schedule, Wanted};
use crate::queue::writer::{Handed, Pool};
use crate::store::{ClaimTerms, Entry};

/// Polls that are kept although their callers may have gone. Chosen: forgetting looks at all of them.
const KEPT_MIN: usize = 8;

/// Somebody who waits for work.
pub(super) struct Poll {
    pub(super) wanted: Wanted,
    /// Most jobs to claim.
    pub(super) places: usize,
    pub(super) worker_id: String,
    /// How long each renewal of a lease holds.
    pub(super) term: Duration,
    pub(super) reply: oneshot::Sender<HandedOut>,
}

/// Those who wait, in the order in which they came. As a claimant each has the number of its place, counted
/// from 1: it holds for one round.
#[derive(Default)]
pub(super) struct Polls {
    waiting: Vec<Waiting>,
    /// How many there were when those who had gone were last forgotten.
    kept: usize,
}

struct Waiting {
    poll: Poll,
    /// Places that this round has not offered yet.
    left: usize,
}

impl Waiting {
    fn has_gone(&self) -> bool {
        self.poll.reply.is_closed()
    }
}

impl Polls {
    pub(super) fn add(&mut self, poll: Poll) {
        // Nothing else looks at them while nothing is written.
        if self.waiting.len() >= 2 * self.kept.max(KEPT_MIN) {
            self.waiting.retain(|waiting| !waiting.has_gone());
            self.kept = self.waiting.len();
        }
        self.waiting.push(Waiting { poll, left: 0 });
    }

    /// Who claims in this round, the pool first.
    pub(super) fn claimants(&self, pool: Option<&Pool>, now: Timestamp) -> Vec<ClaimTerms> {
        let of_pool = ClaimTerms {
            worker_id: pool.map_or_else(String::new, |pool| pool.worker_id.clone()),
            heard_at: now,
            lease_until: now.after(LEASE),
            term: None,
        };
        let of_polls = self.waiting.iter().map(|Waiting { poll, .. }| ClaimTerms {
            worker_id: poll.worker_id.clone(),
            heard_at: now,
            lease_until: now.after(poll.term),
            term: Some(poll.term),
        });
        std::iter::once(of_pool).chain(of_polls).collect()
    }

    /// Begins a round: offers them what waits, a job each in turn.
    pub(super) fn take_part(&mut self, schedule: &mut Schedule, offer: &mut Offer, now: Timestamp) {
        self.waiting.retain(|waiting| !waiting.has_gone());
        for waiting in &mut self.waiting {
            waiting.left = waiting.poll.places;
        }
        let mut hungry: Vec<usize> = (0..self.waiting.len()).collect();
        while !hungry.is_empty() {
            hungry.retain(|index| {
                let Waiting { poll, left } = &mut self.waiting[*index];
                let served = schedule.offer_to(&poll.wanted, index + 1, offer, now);
                *left -= usize::from(served);
                served && *left > 0
            });
        }
    }

    /// Whether anybody has a place left in this round.
    pub(super) fn any_free(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.left > 0)
    }

    /// Who takes a new job of a lane in the commit that stores it.
    pub(super) fn hand_over(
        &mut self,
        lane: &Lane,
        schedule: &mut Schedule,
        offer: &mut Offer,
        now: Timestamp,
    ) -> Option<usize> {
        let mut waiting = self.waiting.iter();
        let index = waiting.position(|one| one.left > 0 && one.poll.wanted.has(lane))?;
        let claimant = index + 1;
        let takes = schedule.hand_over_to(lane, claimant, offer, now);
        self.waiting[index].left -= usize::from(takes);
        takes.then_some(claimant)
    }

    /// Ends a round: answers whoever got something.
    pub(super) fn answer(
        &mut self,
        mut claimed: BTreeMap<usize, Vec<Handed>>,
        unclaimed: &Arc<Unclaimed>,
    ) {
        if claimed.is_empty() {
            return;
        }
        let waiting = mem::take(&mut self.waiting);
        for (index, waiting) in waiting.into_iter().enumerate() {
            match claimed.remove(&(index + 1)) {
                Some(handed) => {
                    let unclaimed = Arc::clone(unclaimed);
                    // Whoever has gone: dropped, it goes back.
                    let _ = waiting.poll.reply.send(HandedOut { handed, unclaimed });
                }
                None => self.waiting.push(waiting),
            }
        }
    }
}

/// Claimed jobs on their way to a worker. Those that nobody takes out go back, uncharged.
#[derive(Debug)]
pub(super) struct HandedOut {
    handed: Vec<Handed>,
    unclaimed: Arc<Unclaimed>,
}

impl HandedOut {
    /// Those that fit, one after the other: from here on they are the caller's.
    pub(super) fn take_while(mut self, mut fits: impl FnMut(&Handed) -> bool) -> Vec<Handed> {
        let handed = &mut self.handed;
        let taken = handed.iter().take_while(|one| fits(one)).count();
        handed.drain(..taken).collect()
    }
}

impl Drop for HandedOut {
    fn drop(&mut self) {
        let leases = self.handed.drain(..).map(|Handed { claimed, .. }| Lease {
            key: claimed.job.key.clone(),
            attempt: claimed.job.attempt,
        });
        self.unclaimed.put(leases.collect());
    }
}

/// Leases that were given to somebody who had gone.
#[derive(Debug, Default)]
pub(super) struct Unclaimed {
    leases: Mutex<Vec<Lease>>,
    /// There are some.
    pub(super) changed: Notify,
}

impl Unclaimed {
    fn put(&self, leases: Vec<Lease>) {
        if leases.is_empty() {
            return;
        }
        self.lock().extend(leases);
        self.changed.notify_one();
    }

    /// The changes that hand them back.
    pub(super) fn hand_backs(&self) -> Vec<Entry> {
        let leases = mem::take(&mut *self.lock());
        let entry = |lease: Lease| Entry::Change {
            key: lease.key,
            change: Change::Finish {
                attempt: lease.attempt,
                outcome: Outcome::HandedBack,
                // What is handed back waits for nothing.
                chance: 0.0,
                fingerprint: None,
            },
        };
        leases.into_iter().map(entry).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Lease>> {
        // Nothing in here can be left half done by a panic.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
