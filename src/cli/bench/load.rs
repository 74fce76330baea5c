//! Calls at a constant number in flight, and what came of them: how many, how long each took, and what
//! the server's processor time was.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

use crate::cli::bench::subject::Subject;

/// What came of one stretch of calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// How long it was. Seconds.
    pub(super) seconds: f64,
    /// How long each call took, ascending. Microseconds.
    pub(super) latencies: Vec<u32>,
    /// The server's processor time. Seconds.
    pub(super) cpu: f64,
}

impl Sample {
    /// Calls a second.
    pub(super) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }

    /// A latency that `share` of the calls did not exceed. Microseconds.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        self.latencies.get(index).copied().map_or(0.0, f64::from)
    }

    /// The server's processor time of one call. Microseconds.
    pub(super) fn cpu_micros(&self) -> f64 {
        self.cpu * 1e6 / self.latencies.len().max(1) as f64
    }

    /// Several stretches as one.
    pub(super) fn joined<'a>(samples: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut joined = Self::default();
        for sample in samples {
            joined.seconds += sample.seconds;
            joined.cpu += sample.cpu;
            joined.latencies.extend(&sample.latencies);
        }
        joined.latencies.sort_unstable();
        joined
    }
}

/// Makes calls for a while, so many at a time; what is under way at the end is waited for. Each caller
/// knows its number.
pub(super) async fn drive<F, C>(
    subject: &Subject,
    in_flight: usize,
    how_long: Duration,
    call: F,
) -> anyhow::Result<Sample>
where
    F: Fn(usize) -> C,
    C: Future<Output = anyhow::Result<()>> + Send + 'static,
    F: Clone + Send + 'static,
{
    let (cpu, start) = (subject.cpu()?, Instant::now());
    let mut callers = JoinSet::new();
    for number in 0..in_flight {
        let call = call.clone();
        callers.spawn(async move {
            let mut latencies = Vec::with_capacity(1 << 12);
            while start.elapsed() < how_long {
                let began = Instant::now();
                call(number).await?;
                latencies.push(micros(began.elapsed()));
            }
            anyhow::Ok(latencies)
        });
    }
    let mut sample = Sample::default();
    while let Some(done) = callers.join_next().await {
        sample.latencies.extend(done.context("a caller panicked")??);
    }
    sample.seconds = start.elapsed().as_secs_f64();
    sample.cpu = subject.cpu()? - cpu;
    sample.latencies.sort_unstable();
    Ok(sample)
}

/// As a latency is kept.
pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// The middle one.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_medians_are_those_of_the_values() {
        let sample = Sample {
            seconds: 2.0,
            latencies: (0..=100).collect(),
            cpu: 0.001,
        };
        assert_eq!((sample.quantile(0.5), sample.quantile(0.99)), (50.0, 99.0));
        assert_eq!(sample.rate(), 50.5);
        assert_eq!(Sample::default().quantile(0.5), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
