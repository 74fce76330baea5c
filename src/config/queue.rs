//! `[queues.x]` and `[tenants.x]` of the file: what bounds a queue, how large a tenant's share is and how long
//! its jobs are kept.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use crate::config::TenantSettings;
use crate::config::file::named_tables;
use crate::config::job_type::retention;
use crate::config::key::Form;
use crate::config::problem::{Problem, SourceText};
use crate::config::section::Section;
use crate::config::value::{self, duration_text};
use crate::job::limits::{KEY_CONCURRENCY_MAX, QUEUE_CONCURRENCY_MAX, WEIGHT_DEFAULT, WEIGHT_MAX};
use crate::job::name::Name;
use crate::job::queue::{Given, GivenLimits, RateLimit, check_period, check_starts};

/// Key of the tables of queues.
pub const QUEUES: &str = "queues";
/// Key of the tables of tenants.
pub const TENANTS: &str = "tenants";
/// The keys of a queue, in the order in which they are listed and printed.
pub const QUEUE_KEYS: [&str; 3] = ["concurrency", "rate_limit", "key_concurrency"];
/// The keys of a tenant.
pub const TENANT_KEYS: [&str; 3] = ["weight", "retention", "dead_letter_retention"];

const PAUSED: &str =
    "a queue is paused while the server runs, with `pacenote queues pause`, and stays so";

/// Reads the queues.
pub(super) fn queues(
    source: &SourceText,
    table: &DeTable<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<Name, GivenLimits> {
    named_tables(source, table, QUEUES, name, problems, |section| {
        section.refuse_unknown(&QUEUE_KEYS, |key, value| {
            let paused = (key == "paused").then(|| PAUSED.to_owned());
            paused.or_else(|| quote_the_dot(value, "queue"))
        });
        let concurrency = count(section, "concurrency", QUEUE_CONCURRENCY_MAX);
        let rate = section.take("rate_limit", Form::Text, rate_limit);
        Some(GivenLimits {
            concurrency: concurrency.map(Given::Most),
            rate: rate.map(|(rate, _)| Given::Most(rate)),
            key_concurrency: count(section, "key_concurrency", KEY_CONCURRENCY_MAX),
        })
    })
}

/// Reads the tenants.
pub(super) fn tenants(
    source: &SourceText,
    table: &DeTable<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<Name, TenantSettings> {
    named_tables(source, table, TENANTS, name, problems, |section| {
        section.refuse_unknown(&TENANT_KEYS, |_, value| quote_the_dot(value, "tenant"));
        Some(TenantSettings {
            weight: count(section, "weight", WEIGHT_MAX).unwrap_or(WEIGHT_DEFAULT),
            retention: retention(section),
        })
    })
}

/// A rate such as `100/1s`: so many starts in a duration.
///
/// # Errors
/// What is wrong with it.
pub fn rate_limit(text: &str) -> Result<RateLimit, String> {
    let wrong = || format!("is {text:?}; expected STARTS/DURATION, such as \"100/1s\"");
    let (starts, period) = text.split_once('/').ok_or_else(wrong)?;
    let starts: i64 = starts.trim().parse().map_err(|_| wrong())?;
    let period = value::duration(period).map_err(|_| wrong())?;
    let in_rate = |part: &str, why: String| format!("is {text:?}, of which the {part} {why}");
    Ok(RateLimit {
        starts: check_starts(starts).map_err(|why| in_rate("number of starts", why))?,
        period: check_period(period).map_err(|why| in_rate("duration", why))?,
    })
}

/// A rate as [`rate_limit`] reads it.
pub fn rate_text(rate: RateLimit) -> String {
    format!("{}/{}", rate.starts, duration_text(rate.period))
}

fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|why| format!("the name {why}"))
}

fn count(section: &mut Section<'_>, key: &str, most: u32) -> Option<u32> {
    let parse = |text: &str| value::count(text, 1..=u64::from(most));
    let (number, _) = section.take(key, Form::Count, parse)?;
    u32::try_from(number).ok()
}

fn quote_the_dot(value: &DeValue<'_>, what: &str) -> Option<String> {
    matches!(value, DeValue::Table(_)).then(|| format!("a {what}'s name with a dot is quoted"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::file::ConfigFile;
    use crate::config::problem::ConfigError;
    use crate::job::limits::{DURATION_MAX, RATE_STARTS_MAX};
    use crate::job::policy::GivenRetention;

    #[test]
    fn a_rate_is_read_as_it_is_written() {
        for (text, starts, period) in [
            ("100/1s", 100, Duration::from_secs(1)),
            ("1/1ms", 1, Duration::from_millis(1)),
            ("1000000/1d", RATE_STARTS_MAX, Duration::from_secs(86_400)),
            (" 5 / 1h 30m ", 5, Duration::from_secs(5_400)),
        ] {
            let rate = rate_limit(text).expect(text);
            assert_eq!(rate, RateLimit { starts, period });
            assert_eq!(rate_limit(&rate_text(rate)), Ok(rate));
        }
    }

    #[test]
    fn a_rate_past_its_bounds_names_the_part_and_the_bound() {
        for (bad, why) in [
            ("0/1s", "number of starts is 0; 1 to 1000000"),
            ("1000001/1s", "number of starts is 1000001"),
            ("1/999us", "1ms to 86400s"),
            ("1/1d 1s", "1ms to 86400s"),
            ("100", "\"100/1s\""),
            ("x/1s", "\"100/1s\""),
            ("1/x", "\"100/1s\""),
            ("", "\"100/1s\""),
        ] {
            let error = rate_limit(bad).expect_err(bad);
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    fn parse(text: &str) -> Result<ConfigFile, String> {
        let source = SourceText {
            name: "p.toml".to_owned(),
            text: text.to_owned(),
        };
        match ConfigFile::parse(source, "/".into()) {
            Ok((file, problems)) if problems.is_empty() => Ok(file),
            Ok((_, problems)) => Err(ConfigError::new(problems).to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn queues_and_tenants_are_read_with_every_key_they_have() {
        let file = parse(
            "[queues.images]\nconcurrency = 100000\nrate_limit = \"2/500ms\"\nkey_concurrency = 10000
             [queues.\"v1/a.b\"]\n[tenants.acme]\nweight = 100\nretention = \"365d\"
             dead_letter_retention = \"0s\"\n[tenants.other]",
        );
        let file = file.expect("it is right");
        let rate = RateLimit {
            starts: 2,
            period: Duration::from_millis(500),
        };
        let images = GivenLimits {
            concurrency: Some(Given::Most(100_000)),
            rate: Some(Given::Most(rate)),
            key_concurrency: Some(10_000),
        };
        assert_eq!(file.queues[&Name::of("images")], images);
        assert_eq!(file.queues[&Name::of("v1/a.b")], GivenLimits::default());
        let acme = TenantSettings {
            weight: 100,
            retention: GivenRetention {
                finished: Some(DURATION_MAX),
                failed: Some(Duration::ZERO),
            },
        };
        assert_eq!(file.tenants[&Name::of("acme")], acme);
        let other = &file.tenants[&Name::of("other")];
        assert_eq!((other.weight, other), (1, &TenantSettings::default()));
    }

    #[test]
    fn everything_wrong_with_queues_and_tenants_is_told_at_once_with_its_bound() {
        let told = parse(
            "[queues.a]\nconcurrency = 0\nkey_concurrency = 10001\nrate_limit = \"0/1s\"\npaused = true
             [queues.\"a b\"]\nconcurrency = 100001\n[tenants.t]\nweight = 101\nwieght = 1
             retention = \"365d 1us\"\ndead_letter_retention = 30\ndead_letter_retentoin = \"1d\"",
        )
        .expect_err("nothing of it is right");
        for what in [
            "queues.a.concurrency: is 0; 1 to 100000 are accepted",
            "queues.a.key_concurrency: is 10001; 1 to 10000 are accepted",
            "queues.a.rate_limit: is \"0/1s\", of which the number of starts is 0; 1 to 1000000",
            "pacenote queues pause",
            "queues.\"a b\": the name has the character ' '",
            "queues.\"a b\".concurrency: is 100001",
            "tenants.t.weight: is 101; 1 to 100 are accepted",
            "did you mean `weight`?",
            "tenants.t.retention: is \"365d 1us\"; at most \"365d\" are accepted",
            "tenants.t.dead_letter_retention: expected a duration",
            "did you mean `dead_letter_retention`?",
        ] {
            assert!(told.contains(what), "{what}\n{told}");
        }
        for (text, what) in [
            ("queues = 3", "queues: expected a table, found"),
            ("[queues]\na = 3", "queues.a: expected a table"),
            ("weight = 3", "put it below its [tenants.…]"),
            ("rate_limit = 3", "put it below its [queues.…]"),
            (
                "retention = \"1d\"",
                "a job type or a tenant: put it below its [job_types.…] or [tenants.…]",
            ),
            ("[tenants.t]\nweight = 0", "is 0; 1 to 100"),
        ] {
            let told = parse(text).expect_err(text);
            assert!(told.contains(what), "{text}\n{told}");
        }
    }
}
