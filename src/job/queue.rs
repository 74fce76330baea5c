//! What bounds the jobs of a queue: pure words, the same for the file, the API and the store.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::limits::{
    KEY_CONCURRENCY_DEFAULT, KEY_CONCURRENCY_MAX, QUEUE_CONCURRENCY_MAX, RATE_PERIOD_MAX,
    RATE_PERIOD_MIN, RATE_STARTS_MAX,
};

/// What bounds the jobs of a queue, over all types and tenants. The default bounds nothing but keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueueLimits {
    /// Most of its jobs running at once, cancelling ones included. 1 to 100,000. `None`: no bound.
    pub concurrency: Option<u32>,
    /// Most of its jobs started in a time. `None`: no bound.
    pub rate: Option<RateLimit>,
    /// Most of its jobs with one tenant's concurrency key running at once. 1 to 10,000; default 1.
    pub key_concurrency: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            concurrency: None,
            rate: None,
            key_concurrency: KEY_CONCURRENCY_DEFAULT,
        }
    }
}

/// So many starts in a time, as a token bucket: a queue that was quiet may start `starts` at once, and
/// gets them back evenly over the period. So no period has more than twice as many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RateLimit {
    /// Starts in one period, and the burst. 1 to 1,000,000.
    pub starts: u32,
    /// The period. 1 ms to 1 day.
    pub period: Duration,
}

/// A limit that somebody gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Given<T> {
    /// There is to be none, whatever others say.
    Unlimited,
    /// So much.
    Most(T),
}

/// What one source (the file, or a caller at run time) says about a queue's limits; `None` where it says
/// nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GivenLimits {
    /// Jobs running at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Given<u32>>,
    /// Starts in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Given<RateLimit>>,
    /// Jobs with one key running at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_concurrency: Option<u32>,
}

impl GivenLimits {
    /// What holds: what this source says, and where it says nothing what `other` says.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            concurrency: self.concurrency.or(other.concurrency),
            rate: self.rate.or(other.rate),
            key_concurrency: self.key_concurrency.or(other.key_concurrency),
        }
    }

    /// The same with the defaults filled in.
    pub fn limits(&self) -> QueueLimits {
        QueueLimits {
            concurrency: self.concurrency.and_then(Given::most),
            rate: self.rate.and_then(Given::most),
            key_concurrency: self
                .key_concurrency
                .map_or(KEY_CONCURRENCY_DEFAULT, |most| most as usize),
        }
    }
}

impl<T> Given<T> {
    /// The limit, where there is one.
    pub fn most(self) -> Option<T> {
        match self {
            Self::Unlimited => None,
            Self::Most(most) => Some(most),
        }
    }
}

/// Checks a concurrency limit of a queue.
///
/// # Errors
/// A sentence with the value and the bound.
pub fn check_concurrency(most: i64) -> Result<u32, String> {
    within(most, 1, QUEUE_CONCURRENCY_MAX)
}

/// Checks a limit of jobs with one key.
///
/// # Errors
/// A sentence with the value and the bound.
pub fn check_key_concurrency(most: i64) -> Result<u32, String> {
    within(most, 1, KEY_CONCURRENCY_MAX)
}

/// Checks how many starts a period may have.
///
/// # Errors
/// A sentence with the value and the bound.
pub fn check_starts(starts: i64) -> Result<u32, String> {
    within(starts, 1, RATE_STARTS_MAX)
}

/// Checks the period of a rate limit.
///
/// # Errors
/// A sentence with the value and the bound.
pub fn check_period(period: Duration) -> Result<Duration, String> {
    if (RATE_PERIOD_MIN..=RATE_PERIOD_MAX).contains(&period) {
        return Ok(period);
    }
    Err(format!(
        "is {period:?}; {RATE_PERIOD_MIN:?} to {RATE_PERIOD_MAX:?} are accepted"
    ))
}

/// Checks a whole number from `least` to `most`.
///
/// # Errors
/// A sentence with the value and the bound.
pub fn within(number: i64, least: u32, most: u32) -> Result<u32, String> {
    u32::try_from(number)
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("is {number}; {least} to {most} are accepted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_taken_at_its_bounds_and_refused_one_past_them() {
        type Check = fn(i64) -> Result<u32, String>;
        let checks: [(Check, u32); 3] = [
            (check_concurrency, QUEUE_CONCURRENCY_MAX),
            (check_key_concurrency, KEY_CONCURRENCY_MAX),
            (check_starts, RATE_STARTS_MAX),
        ];
        for (check, most) in checks {
            assert_eq!(check(1), Ok(1));
            assert_eq!(check(i64::from(most)), Ok(most));
            for past in [0, -1, i64::from(most) + 1, i64::MAX] {
                let error = check(past).expect_err("past the bound");
                assert!(error.contains(&format!("1 to {most}")), "{error}");
                assert!(error.contains(&past.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn the_nearer_source_wins_limit_by_limit() {
        let rate = RateLimit {
            starts: 5,
            period: Duration::from_secs(1),
        };
        let file = GivenLimits {
            concurrency: Some(Given::Most(8)),
            rate: Some(Given::Most(rate)),
            key_concurrency: Some(3),
        };
        assert_eq!(GivenLimits::default().or(&file), file);
        let runtime = GivenLimits {
            rate: Some(Given::Unlimited),
            key_concurrency: Some(1),
            ..GivenLimits::default()
        };
        let limits = runtime.or(&file).limits();
        assert_eq!((limits.concurrency, limits.rate), (Some(8), None));
        assert_eq!(limits.key_concurrency, 1);
        assert_eq!(GivenLimits::default().limits(), QueueLimits::default());
    }

    #[test]
    fn a_period_is_taken_at_its_bounds_and_refused_one_past_them() {
        let nano = Duration::from_nanos(1);
        for good in [RATE_PERIOD_MIN, RATE_PERIOD_MAX] {
            assert_eq!(check_period(good), Ok(good));
        }
        for past in [RATE_PERIOD_MIN - nano, RATE_PERIOD_MAX + nano] {
            let error = check_period(past).expect_err("past the bound");
            assert!(error.contains("1ms to 86400s"), "{error}");
        }
    }
}
