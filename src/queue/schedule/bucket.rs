//! A token bucket in whole numbers: what a rate limit still lets start.

use std::time::Duration;

use crate::job::queue::RateLimit;
use crate::job::time::Timestamp;

/// Tokens for the starts of one queue. Full at first: a restart gives the burst again.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    /// In parts of a token, of which a microsecond brings `starts` and a start takes one for each
    /// microsecond of the period: so nothing is ever rounded.
    level: u128,
    /// When the level was right.
    at: Timestamp,
}

impl Bucket {
    pub(super) fn new(limit: RateLimit, now: Timestamp) -> Self {
        let mut bucket = Self {
            limit,
            level: 0,
            at: now,
        };
        bucket.level = bucket.full();
        bucket
    }

    /// With another limit. What was left stays left: a change gives no burst.
    pub(super) fn changed(&self, limit: RateLimit, now: Timestamp) -> Self {
        let mut changed = Self::new(limit, now);
        let left = self.level_at(now) * changed.token() / self.token();
        changed.level = changed.level.min(left);
        changed
    }

    pub(super) fn limit(&self) -> RateLimit {
        self.limit
    }

    /// How many may start now.
    pub(super) fn tokens(&self, now: Timestamp) -> usize {
        usize::try_from(self.level_at(now) / self.token()).unwrap_or(usize::MAX)
    }

    /// Takes tokens for what was started.
    pub(super) fn take(&mut self, tokens: usize, now: Timestamp) {
        let level = self.level_at(now);
        self.level = level.saturating_sub(self.token() * tokens as u128);
        self.at = self.at.max(now);
    }

    /// When there are so many tokens, at most the burst.
    pub(super) fn has_at(&self, tokens: usize) -> Timestamp {
        let wanted = (self.token() * tokens as u128).min(self.full());
        let missing = wanted.saturating_sub(self.level);
        let micros = missing.div_ceil(u128::from(self.limit.starts));
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        self.at.after(Duration::from_micros(micros))
    }

    fn level_at(&self, now: Timestamp) -> u128 {
        let gained = now.since(self.at).as_micros() * u128::from(self.limit.starts);
        (self.level + gained).min(self.full())
    }

    fn token(&self) -> u128 {
        self.limit.period.as_micros()
    }

    fn full(&self) -> u128 {
        self.token() * u128::from(self.limit.starts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(starts: u32, period: Duration) -> Bucket {
        Bucket::new(RateLimit { starts, period }, Timestamp::default())
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn a_quiet_queue_has_its_burst_and_gets_it_back_evenly() {
        let mut bucket = bucket(4, Duration::from_secs(1));
        assert_eq!(bucket.tokens(at(0)), 4);
        bucket.take(4, at(0));
        assert_eq!(bucket.tokens(at(249_999)), 0);
        assert_eq!(bucket.has_at(1), at(250_000));
        assert_eq!(bucket.tokens(at(250_000)), 1);
        assert_eq!(bucket.tokens(at(60_000_000)), 4);
    }

    #[test]
    fn a_changed_limit_gives_no_burst() {
        let second = Duration::from_secs(1);
        let mut bucket = bucket(10, second);
        bucket.take(8, at(0));
        let limit = |starts, period| RateLimit { starts, period };
        assert_eq!(bucket.changed(limit(100, second), at(0)).tokens(at(0)), 2);
        assert_eq!(bucket.changed(limit(1, second), at(0)).tokens(at(0)), 1);
        let slower = bucket.changed(limit(100, 60 * second), at(0));
        assert_eq!(slower.tokens(at(0)), 2);
    }

    #[test]
    fn thirds_of_a_second_lose_nothing() {
        let mut bucket = bucket(3, Duration::from_secs(1));
        bucket.take(3, at(0));
        let mut started = 0;
        for micros in 1..=1_000_000 {
            let tokens = bucket.tokens(at(micros));
            bucket.take(tokens, at(micros));
            started += tokens;
        }
        assert_eq!(started, 3);
    }

    proptest! {
        /// Whoever takes all there is, whenever it looks, never gets more than the burst and what a
        /// time brings, and gets the next one exactly when it was told.
        #[test]
        fn no_time_has_more_than_the_burst_and_its_share(
            starts in 1u32..50,
            period_us in 1_000u64..3_000_000,
            steps in prop::collection::vec(0u64..2_000_000, 1..60),
        ) {
            let period = Duration::from_micros(period_us);
            let mut bucket = bucket(starts, period);
            let mut now = at(0);
            let mut taken: Vec<(Timestamp, u128)> = Vec::new();
            for step in steps {
                now = now.after(Duration::from_micros(step));
                let tokens = bucket.tokens(now);
                bucket.take(tokens, now);
                taken.push((now, tokens as u128));
                let next = bucket.has_at(1);
                prop_assert!(bucket.tokens(next) >= 1);
                if next > now {
                    let before = at(next.as_micros() - 1);
                    prop_assert_eq!(bucket.tokens(before), 0);
                }
            }
            for (from, (start, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (end, tokens) in &taken[from..] {
                    sum += tokens;
                    let brought = end.since(*start).as_micros() * u128::from(starts);
                    let most = u128::from(starts) + brought / u128::from(period_us);
                    prop_assert!(sum <= most, "{sum} in {start:?} to {end:?}, at most {most}");
                }
            }
        }
    }
}
