//! What the last minute brought, by queue and by type: in memory, from committed changes. A restart begins
//! anew, and says so by counting from there.

use std::collections::{HashMap, VecDeque};

use crate::job::JobState;
use crate::job::name::{Lane, Name};
use crate::job::time::Timestamp;
use crate::store::Claimed;

/// How far back counts reach. Seconds.
const SECONDS: i64 = 60;
/// Queues and types of tenants that are counted. Chosen: about 10 MiB; callers make up the names of queues.
const FOLLOWED_MAX: usize = 10_000;

/// How many jobs of a queue or a type did what in the last minute.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastMinute {
    /// Stored.
    pub submitted: u64,
    /// Claimed: attempts, not jobs.
    pub started: u64,
    /// Ended in SUCCEEDED.
    pub succeeded: u64,
    /// Ended in FAILED.
    pub failed: u64,
    /// Ended in CANCELLED.
    pub cancelled: u64,
    /// Ended in EXPIRED.
    pub expired: u64,
}

/// What is counted by itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Of {
    Queue(Name),
    Type(Name),
}

/// The counts of everything that moved in the last minute.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// By tenant.
    rings: HashMap<(Name, Of), Ring>,
    swept_at: i64,
}

/// The seconds in which something happened, the oldest first.
#[derive(Debug, Default)]
struct Ring(VecDeque<(i64, LastMinute)>);

impl Rates {
    /// Counts what a commit did.
    pub(super) fn moved(
        &mut self,
        depths: &[(Lane, JobState, i64)],
        claimed: &[Claimed],
        now: Timestamp,
    ) {
        let mut counts: HashMap<&Lane, (LastMinute, i64)> = HashMap::new();
        for (lane, state, by) in depths {
            let (count, born) = counts.entry(lane).or_default();
            // A commit removes no job: what all states gained together is new.
            *born += by;
            let ended = u64::try_from(*by).unwrap_or(0);
            match state {
                JobState::Succeeded => count.succeeded += ended,
                JobState::Failed => count.failed += ended,
                JobState::Cancelled => count.cancelled += ended,
                JobState::Expired => count.expired += ended,
                JobState::Scheduled
                | JobState::Blocked
                | JobState::Queued
                | JobState::Running
                | JobState::Cancelling => {}
            }
        }
        let lanes: Vec<Lane> = claimed.iter().map(|claimed| claimed.job.lane()).collect();
        for lane in &lanes {
            counts.entry(lane).or_default().0.started += 1;
        }
        let second = second_of(now);
        for (lane, (mut count, born)) in counts {
            count.submitted = u64::try_from(born).unwrap_or(0);
            if count != LastMinute::default() {
                self.count(lane, Of::Queue(lane.queue.clone()), count, second);
                self.count(lane, Of::Type(lane.job_type.clone()), count, second);
            }
        }
    }

    /// What the last minute brought; `None` where it was not counted, because too much else was.
    pub(super) fn of(&self, tenant: &Name, of: Of, now: Timestamp) -> Option<LastMinute> {
        match self.rings.get(&(tenant.clone(), of)) {
            Some(ring) => Some(ring.sum(second_of(now))),
            None => (self.rings.len() < FOLLOWED_MAX).then(LastMinute::default),
        }
    }

    fn count(&mut self, lane: &Lane, of: Of, count: LastMinute, second: i64) {
        let key = (lane.tenant.clone(), of);
        if !self.rings.contains_key(&key) && self.rings.len() >= FOLLOWED_MAX {
            self.sweep(second);
            if self.rings.len() >= FOLLOWED_MAX {
                return;
            }
        }
        self.rings.entry(key).or_default().add(count, second);
    }

    /// Forgets what was quiet for a minute; once a second at most, because it looks at all of them.
    fn sweep(&mut self, second: i64) {
        if self.swept_at != second {
            self.swept_at = second;
            self.rings
                .retain(|_, ring| ring.0.back().is_some_and(|(at, _)| at + SECONDS > second));
        }
    }
}

impl Ring {
    fn add(&mut self, count: LastMinute, second: i64) {
        while self.0.front().is_some_and(|(at, _)| at + SECONDS <= second) {
            self.0.pop_front();
        }
        match self.0.back_mut() {
            Some((at, sum)) if *at == second => sum.add(count),
            Some(_) | None => self.0.push_back((second, count)),
        }
    }

    fn sum(&self, second: i64) -> LastMinute {
        let mut sum = LastMinute::default();
        for (_, count) in self.0.iter().filter(|(at, _)| at + SECONDS > second) {
            sum.add(*count);
        }
        sum
    }
}

impl LastMinute {
    fn add(&mut self, other: Self) {
        self.submitted += other.submitted;
        self.started += other.started;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.expired += other.expired;
    }
}

fn second_of(now: Timestamp) -> i64 {
    now.as_micros().div_euclid(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(queue: &str) -> Lane {
        Lane {
            queue: Name::new(queue).expect("a name"),
            job_type: Name::of("x"),
            tenant: Name::of("t"),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000 + 999_999)
    }

    fn of_queue(rates: &Rates, queue: &str, second: i64) -> Option<LastMinute> {
        let queue = Of::Queue(Name::new(queue).expect("a name"));
        rates.of(&Name::of("t"), queue, at(second))
    }

    #[test]
    fn a_minute_is_counted_by_second_and_what_is_older_falls_out() {
        let mut rates = Rates::default();
        let q = lane("q");
        // Three are new, of which one was cancelled at once; then two of them end.
        let new = [
            (q.clone(), JobState::Queued, 2),
            (q.clone(), JobState::Cancelled, 1),
        ];
        rates.moved(&new, &[], at(0));
        let end = [
            (q.clone(), JobState::Queued, -2),
            (q.clone(), JobState::Succeeded, 1),
            (q.clone(), JobState::Failed, 1),
        ];
        rates.moved(&end, &[], at(30));
        let all = LastMinute {
            submitted: 3,
            succeeded: 1,
            failed: 1,
            cancelled: 1,
            ..LastMinute::default()
        };
        assert_eq!(of_queue(&rates, "q", 59), Some(all));
        let of_type = Of::Type(Name::of("x"));
        assert_eq!(rates.of(&Name::of("t"), of_type.clone(), at(59)), Some(all));
        let nothing = Some(LastMinute::default());
        assert_eq!(rates.of(&Name::of("other"), of_type, at(59)), nothing);
        let later = LastMinute {
            submitted: 0,
            cancelled: 0,
            ..all
        };
        assert_eq!(of_queue(&rates, "q", 60), Some(later));
        assert_eq!(of_queue(&rates, "q", 90), nothing);
    }

    #[test]
    fn more_names_than_are_followed_are_left_out_and_said_to_be() {
        let mut rates = Rates::default();
        let submit = |rates: &mut Rates, queue: usize, second| {
            let moves = [(lane(&format!("q{queue}")), JobState::Queued, 1)];
            rates.moved(&moves, &[], at(second));
        };
        // The type takes one place.
        for queue in 0..FOLLOWED_MAX {
            submit(&mut rates, queue, 0);
        }
        assert_eq!(rates.rings.len(), FOLLOWED_MAX);
        assert!(of_queue(&rates, "q0", 0).is_some_and(|count| count.submitted == 1));
        let last = format!("q{}", FOLLOWED_MAX - 1);
        assert_eq!(of_queue(&rates, &last, 0), None);
        submit(&mut rates, FOLLOWED_MAX - 1, 60);
        assert!(of_queue(&rates, &last, 60).is_some_and(|count| count.submitted == 1));
        assert_eq!(rates.rings.len(), 2, "what was quiet is forgotten");
    }
}
