//! Workers of other programs that wait for work: what each asks for, and how it gets it.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::job::Change;
use crate::job::limits::LEASE;
use crate::job::name::{Lane, Name};
use crate::job::time::Timestamp;
use crate::queue::lease::Lease;
use crate::queue::schedule::{Offer, Schedule, Wanted};
use crate::queue::writer::{Handed, Pool};
use crate::store::{ClaimTerms, Entry};

/// Jobs that polls are offered in one round. Chosen: a commit with them is short, and what an attempt needs of
/// all of them has room in memory.
const OFFERED_MAX: usize = 64;

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
    /// The places in `waiting` of those who ask for a type; `None` where somebody came or went since.
    by_type: Option<HashMap<Name, Vec<usize>>>,
    /// Places that this round has not offered yet, of all of them.
    free: usize,
    /// How many there were when those who had gone were last forgotten.
    kept: usize,
}

struct Waiting {
    poll: Poll,
    /// Places that this round has not offered yet.
    left: usize,
}

impl Waiting {
    /// Whether it has a place left for a new job of a lane.
    fn takes(&self, lane: &Lane) -> bool {
        self.left > 0 && self.poll.wanted.has(lane)
    }

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
        self.by_type = None;
    }

    /// Who claims in this round, each at its number.
    pub(super) fn claimants(
        &self,
        pool: Option<&Pool>,
        offer: &Offer,
        now: Timestamp,
    ) -> BTreeMap<usize, ClaimTerms> {
        let terms = |claimant: usize| {
            let poll = claimant.checked_sub(1).and_then(|at| self.waiting.get(at));
            match poll {
                Some(Waiting { poll, .. }) => ClaimTerms {
                    worker_id: poll.worker_id.clone(),
                    heard_at: now,
                    lease_until: now.after(poll.term),
                    term: Some(poll.term),
                },
                None => ClaimTerms {
                    worker_id: pool.map_or_else(String::new, |pool| pool.worker_id.clone()),
                    heard_at: now,
                    lease_until: now.after(LEASE),
                    term: None,
                },
            }
        };
        let claimants = offer.claimants();
        claimants
            .map(|claimant| (claimant, terms(claimant)))
            .collect()
    }

    /// Begins a round: offers them what waits, a job each in turn.
    pub(super) fn take_part(&mut self, schedule: &mut Schedule, offer: &mut Offer, now: Timestamp) {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| !waiting.has_gone());
        if self.waiting.len() < before {
            self.by_type = None;
        }
        self.free = 0;
        for waiting in &mut self.waiting {
            waiting.left = waiting.poll.places.min(OFFERED_MAX);
            self.free += waiting.left;
        }
        let mut offered = 0;
        let mut hungry: Vec<usize> = if schedule.anything_waits() {
            (0..self.waiting.len()).collect()
        } else {
            Vec::new()
        };
        while !hungry.is_empty() {
            hungry.retain(|index| {
                let Waiting { poll, left } = &mut self.waiting[*index];
                let served =
                    offered < OFFERED_MAX && schedule.offer_to(&poll.wanted, index + 1, offer, now);
                *left -= usize::from(served);
                offered += usize::from(served);
                served && *left > 0
            });
        }
        self.free -= offered;
        if offered == OFFERED_MAX {
            // More may wait: nobody who comes now may be handed a job before it.
            self.free = 0;
        }
    }

    /// Whether anybody has a place left in this round.
    pub(super) fn any_free(&self) -> bool {
        self.free > 0
    }

    /// Who takes a new job of a lane in the commit that stores it.
    pub(super) fn hand_over(
        &mut self,
        lane: &Lane,
        schedule: &mut Schedule,
        offer: &mut Offer,
        now: Timestamp,
    ) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let waiting = &mut self.waiting;
        let by_type = self.by_type.get_or_insert_with(|| index(waiting));
        let mut asking = by_type.get(&lane.job_type)?.iter();
        let index = *asking.find(|at| waiting[**at].takes(lane))?;
        let claimant = index + 1;
        let takes = schedule.hand_over_to(lane, claimant, offer, now);
        waiting[index].left -= usize::from(takes);
        self.free -= usize::from(takes);
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
        self.by_type = None;
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

fn index(waiting: &[Waiting]) -> HashMap<Name, Vec<usize>> {
    let mut by_type: HashMap<Name, Vec<usize>> = HashMap::new();
    for (at, Waiting { poll, .. }) in waiting.iter().enumerate() {
        for job_type in &poll.wanted.types {
            by_type.entry(job_type.clone()).or_default().push(at);
        }
    }
    by_type
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

    /// Their hand-back could not be stored: it is tried again when the writer looks.
    pub(super) fn put_back(&self, lease: Lease) {
        self.lock().push(lease);
    }

    /// The changes that hand them back.
    pub(super) fn hand_backs(&self) -> Vec<Entry> {
        let leases = mem::take(&mut *self.lock());
        let entry = |lease: Lease| Entry::Change {
            key: lease.key,
            change: Change::Undelivered {
                attempt: lease.attempt,
            },
        };
        leases.into_iter().map(entry).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Lease>> {
        // Nothing in here can be left half done by a panic.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
