//! What a submit gives in place of its type's own settings: checked against the bounds and against what
//! the type allows, then merged with it, field by field.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::TypeSettings;
use crate::config::value::duration_text;
use crate::error::Violations;
use crate::job::limits::{ATTEMPTS_MAX, BACKOFF_MULTIPLIERS, DURATIONS, LIST_MAX, TIMEOUTS};
use crate::job::name::Name;
use crate::job::policy::{GivenRetention, Retention, RetryPolicy, Timeouts, check_reason};

/// In place of the type's retry policy. `None`, or empty: the type's.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RetryOverrides {
    /// 1 to 100. The first attempt counts.
    pub max_attempts: Option<i32>,
    /// 0 to a year.
    pub initial_backoff: Option<Duration>,
    /// 0 to a year. A shorter one than the type's `initial_backoff` is the longest first wait, too.
    pub max_backoff: Option<Duration>,
    /// 1 to 10.
    pub backoff_multiplier: Option<f64>,
    /// At most 100, each 1 to 64 of `[A-Z0-9_]`, beginning with a letter.
    pub non_retryable_reasons: Vec<String>,
}

/// In place of the type's timeouts. `None`: the type's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimeoutOverrides {
    /// 1 ms to a year.
    pub queue_timeout: Option<Duration>,
    /// 1 ms to a year.
    pub run_timeout: Option<Duration>,
    /// 1 ms to a year.
    pub total_timeout: Option<Duration>,
    /// 1 ms to a year.
    pub heartbeat_timeout: Option<Duration>,
    /// 0 to a year.
    pub cancel_grace: Option<Duration>,
    /// 1 ms to a year.
    pub stall_time: Option<Duration>,
}

/// A type and a tenant, and how they stand to what a submit asks of them.
pub(super) struct Merge<'a> {
    /// What stands before the fields' names in the request.
    pub(super) prefix: &'a str,
    pub(super) job_type: &'a str,
    /// What holds where the submit says nothing, and what it may ask for.
    pub(super) own: &'a TypeSettings,
    pub(super) tenant: &'a Name,
    /// What holds where neither the submit nor its type says how long the job is kept; and the most that
    /// the submit may ask for, whatever the type allows.
    pub(super) of_tenant: GivenRetention,
    pub(super) violations: &'a mut Violations,
}

impl Merge<'_> {
    pub(super) fn retry_policy(&mut self, given: &RetryOverrides) -> RetryPolicy {
        let (own, caps) = (&self.own.retry_policy, &self.own.caps);
        let attempts = given.max_attempts.and_then(|attempts| {
            let attempts = self.attempts(attempts)?;
            let cap = caps.max_attempts;
            self.capped("retry_policy.max_attempts", attempts, cap, u32::to_string)
        });
        let mut span = |field: &str, given, cap| self.span(field, given, &DURATIONS, cap);
        let (initial, longest) = ("retry_policy.initial_backoff", "retry_policy.max_backoff");
        let initial = span(initial, given.initial_backoff, caps.initial_backoff);
        let longest = span(longest, given.max_backoff, caps.max_backoff);
        let multiplier = given.backoff_multiplier.and_then(|multiplier| {
            let field = "retry_policy.backoff_multiplier";
            let multiplier = self.multiplier(field, multiplier)?;
            self.capped(field, multiplier, caps.backoff_multiplier, f64::to_string)
        });
        self.reasons(&given.non_retryable_reasons);
        let max_backoff = longest.unwrap_or(own.max_backoff);
        if let Some(initial) = initial
            && initial > max_backoff
        {
            let (initial, most) = (duration_text(initial), duration_text(max_backoff));
            let problem = format!("is {initial}; at most max_backoff, {most}, is accepted");
            self.refuse("retry_policy.initial_backoff", problem);
        }
        RetryPolicy {
            max_attempts: attempts.unwrap_or(own.max_attempts),
            // The wait is the shorter of both anyway.
            initial_backoff: initial.unwrap_or(own.initial_backoff.min(max_backoff)),
            max_backoff,
            backoff_multiplier: multiplier.unwrap_or(own.backoff_multiplier),
            non_retryable_reasons: if given.non_retryable_reasons.is_empty() {
                own.non_retryable_reasons.clone()
            } else {
                given.non_retryable_reasons.clone()
            },
        }
    }

    pub(super) fn timeouts(&mut self, given: &TimeoutOverrides) -> Timeouts {
        let (own, caps) = (&self.own.timeouts, &self.own.caps);
        let mut span = |name: &str, given, range, cap| {
            self.span(&format!("timeouts.{name}"), given, range, cap)
        };
        let mut limit = |name, given, cap| span(name, given, &TIMEOUTS, cap);
        let queue = limit("queue_timeout", given.queue_timeout, caps.queue_timeout);
        let run = limit("run_timeout", given.run_timeout, caps.run_timeout);
        let total = limit("total_timeout", given.total_timeout, caps.total_timeout);
        let heartbeat = limit(
            "heartbeat_timeout",
            given.heartbeat_timeout,
            caps.heartbeat_timeout,
        );
        let stall = limit("stall_time", given.stall_time, caps.stall_time);
        let grace = span(
            "cancel_grace",
            given.cancel_grace,
            &DURATIONS,
            caps.cancel_grace,
        );
        Timeouts {
            queue_timeout: queue.or(own.queue_timeout),
            run_timeout: run.or(own.run_timeout),
            total_timeout: total.or(own.total_timeout),
            heartbeat_timeout: heartbeat.or(own.heartbeat_timeout),
            stall_time: stall.unwrap_or(own.stall_time),
            cancel_grace: grace.unwrap_or(own.cancel_grace),
        }
    }

    /// How long a job is kept: as the submit says (one time, however it ends), else its type, else its
    /// tenant, else the default. Type and tenant both say how much a submit may ask for.
    pub(super) fn retention(&mut self, given: Option<Duration>) -> Retention {
        const FIELD: &str = "retention";
        let of_type = self.own.caps.retention;
        let tenants = self.of_tenant.shortest();
        let tenants = tenants.filter(|most| of_type.is_none_or(|of_type| *most < of_type));
        let kept = match tenants {
            None => self.span(FIELD, given, &DURATIONS, of_type),
            Some(most) => {
                let asked = self.span(FIELD, given, &DURATIONS, None);
                let by = ("tenant", self.tenant.as_str());
                let text = |span: &Duration| duration_text(*span);
                asked.and_then(|asked| self.capped_by(by, FIELD, asked, Some(most), text))
            }
        };
        let said = self.own.retention.or(self.of_tenant);
        kept.map_or(said.retention(), |kept| Retention {
            finished: kept,
            failed: kept,
        })
    }

    /// A duration within a range, and no longer than the type allows.
    pub(super) fn span(
        &mut self,
        field: &str,
        given: Option<Duration>,
        range: &RangeInclusive<Duration>,
        cap: Option<Duration>,
    ) -> Option<Duration> {
        let given = given?;
        if !range.contains(&given) {
            let problem = span_problem(&duration_text(given), range);
            self.refuse(field, problem);
            return None;
        }
        self.capped(field, given, cap, |span| duration_text(*span))
    }

    pub(super) fn refuse(&mut self, field: &str, problem: String) {
        self.violations
            .add(format!("{}{field}", self.prefix), problem);
    }

    fn attempts(&mut self, attempts: i32) -> Option<u32> {
        let checked = u32::try_from(attempts)
            .ok()
            .filter(|attempts| (1..=ATTEMPTS_MAX).contains(attempts));
        if checked.is_none() {
            let problem = format!("is {attempts}; 1 to {ATTEMPTS_MAX} is accepted");
            self.refuse("retry_policy.max_attempts", problem);
        }
        checked
    }

    fn multiplier(&mut self, field: &str, multiplier: f64) -> Option<f64> {
        if BACKOFF_MULTIPLIERS.contains(&multiplier) {
            return Some(multiplier);
        }
        let (least, most) = (BACKOFF_MULTIPLIERS.start(), BACKOFF_MULTIPLIERS.end());
        let problem = format!("is {multiplier}; {least} to {most} is accepted");
        self.refuse(field, problem);
        None
    }

    fn reasons(&mut self, reasons: &[String]) {
        let field = "retry_policy.non_retryable_reasons";
        if reasons.len() > LIST_MAX {
            let len = reasons.len();
            let problem = format!("has {len} entries; at most {LIST_MAX} are accepted");
            self.refuse(field, problem);
        }
        for (index, reason) in reasons.iter().enumerate().take(LIST_MAX) {
            if let Err(problem) = check_reason(reason) {
                self.refuse(&format!("{field}[{index}]"), problem);
            }
        }
    }

    fn capped<T: PartialOrd>(
        &mut self,
        field: &str,
        given: T,
        cap: Option<T>,
        text: impl Fn(&T) -> String,
    ) -> Option<T> {
        self.capped_by(("job type", self.job_type), field, given, cap, text)
    }

    /// `by`: what sets the cap, and its name.
    fn capped_by<T: PartialOrd>(
        &mut self,
        by: (&str, &str),
        field: &str,
        given: T,
        cap: Option<T>,
        text: impl Fn(&T) -> String,
    ) -> Option<T> {
        if let Some(cap) = cap
            && given > cap
        {
            let (given, cap, (what, name)) = (text(&given), text(&cap), by);
            let problem = format!("is {given}; {what} {name} sets {cap}, and no more is accepted");
            self.refuse(field, problem);
            return None;
        }
        Some(given)
    }
}

/// What is wrong with a duration that is out of its range.
fn span_problem(given: &str, range: &RangeInclusive<Duration>) -> String {
    let (least, most) = (duration_text(*range.start()), duration_text(*range.end()));
    format!("is {given}; {least} to {most} is accepted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Caps;

    fn settings() -> TypeSettings {
        TypeSettings {
            retry_policy: RetryPolicy {
                max_attempts: 5,
                non_retryable_reasons: vec!["POISON".to_owned()],
                ..RetryPolicy::default()
            },
            timeouts: Timeouts {
                run_timeout: Some(Duration::from_secs(60)),
                ..Timeouts::default()
            },
            caps: Caps {
                max_attempts: Some(5),
                run_timeout: Some(Duration::from_secs(60)),
                retention: Some(Duration::from_secs(10)),
                ..Caps::default()
            },
            ..TypeSettings::default()
        }
    }

    /// Merges, and answers the fields that were refused.
    fn merged<T>(merge: impl FnOnce(&mut Merge<'_>) -> T) -> (T, Vec<String>) {
        merged_with(&settings(), GivenRetention::default(), merge)
    }

    fn merged_with<T>(
        own: &TypeSettings,
        of_tenant: GivenRetention,
        merge: impl FnOnce(&mut Merge<'_>) -> T,
    ) -> (T, Vec<String>) {
        let mut violations = Violations::default();
        let merged = merge(&mut Merge {
            prefix: "submit.",
            job_type: "t",
            own,
            tenant: &Name::of("acme"),
            of_tenant,
            violations: &mut violations,
        });
        let told = violations.into_told().into_iter();
        let told = told.map(|told| format!("{} {}", told.field, told.description));
        (merged, told.collect())
    }

    #[test]
    fn what_is_not_given_is_the_types_own() {
        let (policy, told) = merged(|merge| merge.retry_policy(&RetryOverrides::default()));
        assert_eq!((policy, told), (settings().retry_policy, vec![]));
        let (timeouts, told) = merged(|merge| merge.timeouts(&TimeoutOverrides::default()));
        assert_eq!((timeouts, told), (settings().timeouts, vec![]));
        let (retention, told) = merged(|merge| merge.retention(None));
        assert_eq!((retention, told), (Retention::default(), vec![]));
    }

    #[test]
    fn what_the_type_sets_is_the_most_and_what_it_leaves_open_is_not() {
        let at_the_cap = RetryOverrides {
            max_attempts: Some(5),
            max_backoff: Some(Duration::from_secs(3_600)),
            non_retryable_reasons: vec!["OTHER_1".to_owned()],
            ..RetryOverrides::default()
        };
        let (policy, told) = merged(|merge| merge.retry_policy(&at_the_cap));
        assert_eq!(told, [] as [&str; 0]);
        assert_eq!(policy.max_backoff, Duration::from_secs(3_600));
        assert_eq!(policy.non_retryable_reasons, ["OTHER_1"]);
        let past = RetryOverrides {
            max_attempts: Some(6),
            ..RetryOverrides::default()
        };
        let (_, told) = merged(|merge| merge.retry_policy(&past));
        let sentence =
            "submit.retry_policy.max_attempts is 6; job type t sets 5, and no more is accepted";
        assert_eq!(told, [sentence]);
        let past = TimeoutOverrides {
            run_timeout: Some(Duration::from_millis(60_001)),
            queue_timeout: Some(Duration::from_secs(1)),
            ..TimeoutOverrides::default()
        };
        let (timeouts, told) = merged(|merge| merge.timeouts(&past));
        assert_eq!(timeouts.queue_timeout, Some(Duration::from_secs(1)));
        let sentence =
            "submit.timeouts.run_timeout is 1m 1ms; job type t sets 1m, and no more is accepted";
        assert_eq!(told, [sentence]);
        let (kept, told) = merged(|merge| merge.retention(Some(Duration::from_secs(10))));
        assert_eq!(kept.failed, Duration::from_secs(10));
        assert_eq!(told, [] as [&str; 0]);
        let (_, told) = merged(|merge| merge.retention(Some(Duration::from_secs(11))));
        assert_eq!(told.len(), 1);
    }

    fn said(finished: Option<u64>, failed: Option<u64>) -> GivenRetention {
        GivenRetention {
            finished: finished.map(Duration::from_secs),
            failed: failed.map(Duration::from_secs),
        }
    }

    /// Goal: the job's own, else the type's, else the tenant's, else the default, for each end by itself.
    #[test]
    fn how_long_a_job_is_kept_is_said_by_the_nearest_that_says_it() {
        let default = Retention::default();
        let (week, month) = (default.finished.as_secs(), default.failed.as_secs());
        for (of_type, of_tenant, finished, failed) in [
            (said(None, None), said(None, None), week, month),
            (said(None, None), said(Some(5), None), 5, month),
            (said(None, None), said(None, Some(6)), week, 6),
            (said(Some(1), None), said(Some(5), Some(6)), 1, 6),
            (said(None, Some(2)), said(Some(5), Some(6)), 5, 2),
            (said(Some(9), Some(9)), said(Some(5), Some(6)), 9, 9),
        ] {
            let own = TypeSettings {
                retention: of_type,
                ..TypeSettings::default()
            };
            let kept = merged_with(&own, of_tenant, |merge| merge.retention(None));
            let retention = said(Some(finished), Some(failed)).retention();
            assert_eq!(kept, (retention, vec![]), "{of_type:?} {of_tenant:?}");
            // The job's own stands above all of them.
            let four = Some(Duration::from_secs(4));
            let (kept, told) = merged_with(&own, of_tenant, |merge| merge.retention(four));
            let retention = said(Some(4), Some(4)).retention();
            assert_eq!((kept, told), (retention, vec![]));
        }
    }

    /// Goal: what is asked for is bound by the shorter of what type and tenant set, which is named. Method:
    /// at the bound and one past it.
    #[test]
    fn the_shorter_cap_of_type_and_tenant_holds_and_is_named() {
        let year = DURATIONS.end().as_secs();
        for (of_type, of_tenant, most, by) in [
            (Some(10), said(None, None), 10, "job type t sets 10s"),
            (
                Some(10),
                said(Some(20), Some(30)),
                10,
                "job type t sets 10s",
            ),
            (Some(10), said(Some(10), None), 10, "job type t sets 10s"),
            (Some(10), said(Some(20), Some(9)), 9, "tenant acme sets 9s"),
            (None, said(Some(8), Some(9)), 8, "tenant acme sets 8s"),
            (None, said(None, Some(0)), 0, "tenant acme sets 0s"),
            (None, said(Some(year), None), year, "0s to 365d is accepted"),
        ] {
            let mut own = TypeSettings::default();
            own.caps.retention = of_type.map(Duration::from_secs);
            let ask = |secs| {
                let given = Some(Duration::from_secs(secs));
                merged_with(&own, of_tenant, |merge| merge.retention(given))
            };
            let retention = said(Some(most), Some(most)).retention();
            assert_eq!(ask(most), (retention, vec![]), "{by}");
            let (_, told) = ask(most + 1);
            assert_eq!(told.len(), 1);
            assert!(told[0].contains(by), "{told:?}");
        }
    }

    #[test]
    fn the_first_wait_is_never_longer_than_the_longest() {
        let second = Duration::from_secs(1);
        let short = RetryOverrides {
            max_backoff: Some(second / 2),
            ..RetryOverrides::default()
        };
        let (policy, told) = merged(|merge| merge.retry_policy(&short));
        assert_eq!((policy.initial_backoff, told), (second / 2, vec![]));
        let long = RetryOverrides {
            initial_backoff: Some(601 * second),
            ..RetryOverrides::default()
        };
        let (_, told) = merged(|merge| merge.retry_policy(&long));
        let sentence =
            "submit.retry_policy.initial_backoff is 10m 1s; at most max_backoff, 10m, is accepted";
        assert_eq!(told, [sentence]);
    }
}
