//! How long to wait before trying again: full jitter, so that clients that were cut together do not
//! come back together. It does not know what is tried.

use std::time::Duration;

/// The wait before try `n` is uniform in 0 to `min(max, initial * 2^n)`, and never shorter than what
/// the server asked for.
///
/// "Full jitter", as measured best in the AWS Architecture Blog's "Exponential Backoff And Jitter".
///
/// ```
/// use std::time::Duration;
/// use pacenote::client::Backoff;
///
/// let backoff = Backoff::default();
/// assert!(backoff.delay(0, None) <= Duration::from_millis(100));
/// assert!(backoff.delay(1_000, None) <= Duration::from_secs(30));
/// let asked = Duration::from_secs(2);
/// assert!(backoff.delay(0, Some(asked)) >= asked);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// Longest first wait. Default 100 ms.
    pub initial: Duration,
    /// Longest wait of all. Default 30 s.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(30),
        }
    }
}

impl Backoff {
    /// The wait after `failures` earlier failures in a row, on top of what the server asked for.
    pub fn delay(&self, failures: u32, asked: Option<Duration>) -> Duration {
        asked.unwrap_or_default()
            + self
                .ceiling(failures)
                .mul_f64(rand::random_range(0.0..=1.0))
    }

    /// `min(max, initial * 2^failures)`.
    fn ceiling(&self, failures: u32) -> Duration {
        let growth = 2_u32.checked_pow(failures).unwrap_or(u32::MAX);
        self.initial.saturating_mul(growth).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_doubles_until_the_cap() {
        let backoff = Backoff::default();
        let ceilings: Vec<u128> = (0..11).map(|n| backoff.ceiling(n).as_millis()).collect();
        assert_eq!(
            ceilings,
            [
                100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000
            ]
        );
        assert_eq!(backoff.ceiling(u32::MAX), backoff.max);
    }

    #[test]
    fn what_the_server_asked_for_comes_first_and_jitter_on_top() {
        let backoff = Backoff::default();
        let asked = Duration::from_secs(7);
        for _ in 0..1_000 {
            let delay = backoff.delay(3, Some(asked));
            assert!(delay >= asked && delay <= asked + Duration::from_millis(800));
        }
    }
}
