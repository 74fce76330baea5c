//! What `bench` prints: a line a figure for people, or an object a line for programs.

use std::io::Write;

use serde::Serialize;

use crate::cli::bench::load::Sample;

/// One figure beside its ceiling.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Figure {
    /// What `--only` calls it.
    pub(super) name: &'static str,
    /// What was measured.
    pub(super) what: &'static str,
    /// What it is divided by.
    pub(super) ceiling: &'static str,
    /// A second: jobs, events, or claims of 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate: Option<f64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_ms: Option<f64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_ms: Option<f64>,
    /// The server's processor time for one. Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_us: Option<f64>,
    /// The median of the ratios to the ceiling, each taken within a few seconds.
    pub(super) ratio: f64,
    /// What the ratio has to be.
    pub(super) target: Target,
    /// The ratio of every round.
    pub(super) rounds: Vec<f64>,
}

/// A bound of a ratio.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    /// At least.
    AtLeast(f64),
    /// At most.
    AtMost(f64),
    /// Nothing was aimed for.
    Open,
}

impl Target {
    fn is_met_by(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
            Self::Open => true,
        }
    }
}

impl Figure {
    /// With what a sample says.
    pub(super) fn of(mut self, sample: &Sample) -> Self {
        self.rate = Some(sample.rate());
        self.p50_ms = Some(sample.quantile(0.5) / 1e3);
        self.p99_ms = Some(sample.quantile(0.99) / 1e3);
        self.cpu_us = (sample.cpu > 0.0).then(|| sample.cpu_micros());
        self
    }
}

/// Where figures go as they come.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) json: bool,
}

impl Report {
    pub(super) fn head(&self) -> std::io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(
            std::io::stdout(),
            "{:<14} {:>10} {:>9} {:>9} {:>9} {:>7}  {:<8} what / ceiling",
            "figure",
            "rate/s",
            "p50 ms",
            "p99 ms",
            "cpu µs",
            "ratio",
            "target"
        )
    }

    pub(super) fn figure(&self, figure: &Figure) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, figure)?;
            return writeln!(out);
        }
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(String::new, |value| format!("{value:.digits$}"))
        };
        let target = match figure.target {
            Target::AtLeast(bound) => format!("≥ {bound}"),
            Target::AtMost(bound) => format!("≤ {bound}"),
            Target::Open => String::new(),
        };
        let missed = if figure.target.is_met_by(figure.ratio) {
            ""
        } else {
            "  MISSED"
        };
        writeln!(
            out,
            "{:<14} {:>10} {:>9} {:>9} {:>9} {:>7.3}  {target:<8} {} / {}{missed}",
            figure.name,
            number(figure.rate, 0),
            number(figure.p50_ms, 3),
            number(figure.p99_ms, 3),
            number(figure.cpu_us, 1),
            figure.ratio,
            figure.what,
            figure.ceiling,
        )
    }

    /// A figure that has no ratio: a ceiling itself.
    pub(super) fn plain(&self, name: &str, sample: &Sample) -> std::io::Result<()> {
        let (rate, p50, p99) = (
            sample.rate(),
            sample.quantile(0.5) / 1e3,
            sample.quantile(0.99) / 1e3,
        );
        let cpu = sample.cpu_micros();
        let mut out = std::io::stdout().lock();
        if self.json {
            let line = serde_json::json!({
                "name": name, "rate": rate, "p50_ms": p50, "p99_ms": p99, "cpu_us": cpu,
            });
            return writeln!(out, "{line}");
        }
        writeln!(
            out,
            "{name:<14} {rate:>10.0} {p50:>9.3} {p99:>9.3} {cpu:>9.1}"
        )
    }
}
