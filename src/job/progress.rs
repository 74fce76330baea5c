//! How far an attempt has come, and the rules that keep the picture steady: within one attempt the
//! fraction never goes back, it is computed from the units where it is absent, and the server adds what
//! it alone can measure, the rate and the estimated end.

use serde::{Deserialize, Serialize};

use crate::job::limits::STRING_BYTES_MAX;
use crate::job::time::Timestamp;

/// How far an attempt has come. Everything is optional; absent means "not known".
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Done so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_units: Option<i64>,
    /// All there is to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_units: Option<i64>,
    /// What is counted: "rows", "bytes".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// Which part of the work.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Measured over this attempt. Set by [`Progress::merged`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units_per_second: Option<f64>,
    /// Estimated from this attempt's pace. Set by [`Progress::merged`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_end_at: Option<Timestamp>,
    /// When it was taken in. Set by [`Progress::merged`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// Where an attempt's progress began, which its pace is measured from, and how far it ever came.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressOrigin {
    /// Of the first report with a fraction.
    fraction: Option<Mark<f64>>,
    /// Of the first report with units: not always the same one.
    units: Option<Mark<i64>>,
    /// The highest fraction so far: the report before this one may have had none.
    highest: Option<f64>,
}

/// How far something had come, and when.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
struct Mark<T> {
    at: Timestamp,
    value: T,
}

impl Progress {
    /// Progress known as a fraction of 0 to 1.
    pub fn fraction(fraction: f64) -> Self {
        Self {
            fraction: Some(fraction),
            ..Self::default()
        }
    }

    /// Progress counted in units, with a total where it is known.
    pub fn units(completed: i64, total: Option<i64>, unit: impl Into<String>) -> Self {
        Self {
            completed_units: Some(completed),
            total_units: total,
            unit: unit.into(),
            ..Self::default()
        }
    }

    /// With a message for people.
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The field and a sentence that says what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(fraction) = self.fraction
            && !(0.0..=1.0).contains(&fraction)
        {
            return Err(("fraction", format!("is {fraction}; 0 to 1 is accepted")));
        }
        for (field, units) in [
            ("completed_units", self.completed_units),
            ("total_units", self.total_units),
        ] {
            if let Some(units) = units
                && units < 0
            {
                return Err((field, format!("is {units}; 0 or more is accepted")));
            }
        }
        for (field, text) in [
            ("unit", &self.unit),
            ("phase", &self.phase),
            ("message", &self.message),
        ] {
            if text.len() > STRING_BYTES_MAX {
                let len = text.len();
                return Err((
                    field,
                    format!("is {len} bytes; at most {STRING_BYTES_MAX} are accepted"),
                ));
            }
        }
        Ok(())
    }

    /// What is stored of this report: the fraction computed where it is absent and never lower than
    /// `origin` has seen in this attempt, rate and estimated end measured from there.
    pub fn merged(mut self, origin: &mut Option<ProgressOrigin>, now: Timestamp) -> Self {
        if self.fraction.is_none()
            && let (Some(done), Some(total)) = (self.completed_units, self.total_units)
            && total > 0
        {
            self.fraction = Some((done as f64 / total as f64).clamp(0.0, 1.0));
        }
        let origin = origin.get_or_insert_default();
        if let Some(fraction) = &mut self.fraction {
            *fraction = fraction.max(origin.highest.unwrap_or(0.0));
            origin.highest = Some(*fraction);
        }
        self.units_per_second = self.completed_units.and_then(|done| {
            let first = *origin.units.get_or_insert(Mark {
                at: now,
                value: done,
            });
            let seconds = now.since(first.at).as_secs_f64();
            (seconds > 0.0 && done >= first.value).then(|| (done - first.value) as f64 / seconds)
        });
        self.estimated_end_at = self.fraction.and_then(|fraction| {
            let first = *origin.fraction.get_or_insert(Mark {
                at: now,
                value: fraction,
            });
            let seconds = now.since(first.at).as_secs_f64();
            if seconds <= 0.0 || fraction <= first.value {
                return None;
            }
            let left = (1.0 - fraction) / (fraction - first.value) * seconds;
            let left = std::time::Duration::try_from_secs_f64(left).ok()?;
            Some(now.after(left))
        });
        self.updated_at = Some(now);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: Timestamp = Timestamp::from_micros(1_000_000);

    #[test]
    fn a_lower_fraction_is_stored_as_the_highest_so_far() {
        let mut origin = None;
        let first = Progress::fraction(0.6).merged(&mut origin, START);
        assert_eq!(first.fraction, Some(0.6));
        let second = Progress::fraction(0.4)
            .with_message("again")
            .merged(&mut origin, START);
        assert_eq!(second.fraction, Some(0.6));
        assert_eq!(second.message, "again");
    }

    #[test]
    fn a_report_without_a_fraction_does_not_let_the_next_one_go_back() {
        let mut origin = None;
        for (report, stored) in [
            (Progress::fraction(0.6), Some(0.6)),
            (Progress::default().with_message("x"), None),
            (Progress::fraction(0.4), Some(0.6)),
        ] {
            let merged = report.merged(&mut origin, START);
            assert_eq!(merged.fraction, stored);
        }
    }

    #[test]
    fn rate_and_end_are_known_though_the_first_report_had_neither_units_nor_fraction() {
        let mut origin = None;
        let at = |seconds| START.after(Duration::from_secs(seconds));
        let mut stored = Progress::default()
            .with_message("connecting")
            .merged(&mut origin, at(0));
        for report in [
            (5, Progress::units(100, None, "rows")),
            (10, Progress::units(200, Some(1_000), "rows")),
            (20, Progress::units(400, Some(1_000), "rows")),
        ] {
            stored = report.1.merged(&mut origin, at(report.0));
        }
        assert_eq!(stored.units_per_second, Some(20.0), "of 15 seconds");
        let end = stored.estimated_end_at.expect("a pace is known");
        assert_eq!(end.since(at(20)).as_secs_f64().round(), 30.0, "of 10");
    }

    #[test]
    fn the_fraction_comes_from_the_units_only_where_it_is_absent_and_a_total_is_known() {
        let merged = |progress: Progress| progress.merged(&mut None, START).fraction;
        assert_eq!(merged(Progress::units(1, Some(4), "pages")), Some(0.25));
        assert_eq!(merged(Progress::units(9, Some(4), "pages")), Some(1.0));
        assert_eq!(merged(Progress::units(1, None, "pages")), None);
        assert_eq!(merged(Progress::units(1, Some(0), "pages")), None);
        let both = Progress {
            fraction: Some(0.5),
            ..Progress::units(1, Some(4), "pages")
        };
        assert_eq!(merged(both), Some(0.5));
    }

    #[test]
    fn rate_and_end_are_measured_from_the_attempts_first_report() {
        let mut origin = None;
        let first = Progress::units(100, Some(1_100), "rows").merged(&mut origin, START);
        assert_eq!(
            (first.units_per_second, first.estimated_end_at),
            (None, None)
        );
        let later = START.after(Duration::from_secs(10));
        let second = Progress::units(600, Some(1_100), "rows").merged(&mut origin, later);
        assert_eq!(second.units_per_second, Some(50.0));
        let end = second.estimated_end_at.expect("a pace is known");
        assert_eq!(end.since(later).as_secs_f64().round(), 10.0);
    }

    #[test]
    fn bounds_are_checked_at_the_limit_and_one_past_it() {
        assert!(Progress::fraction(1.0).check().is_ok());
        assert_eq!(
            Progress::fraction(1.000001).check().expect_err("above").0,
            "fraction"
        );
        assert_eq!(
            Progress::fraction(f64::NAN).check().expect_err("nan").0,
            "fraction"
        );
        assert_eq!(
            Progress::units(-1, None, "").check().expect_err("below").0,
            "completed_units"
        );
        let message = |len| Progress::default().with_message("m".repeat(len)).check();
        assert!(message(STRING_BYTES_MAX).is_ok());
        assert_eq!(
            message(STRING_BYTES_MAX + 1).expect_err("long").0,
            "message"
        );
    }
}
