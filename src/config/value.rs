//! How a value is written: the same words for a flag, a variable and the file.
//!
//! Each parser takes text and answers with a checked value or with a phrase that says what is wrong
//! and what is allowed, to be put behind the name of the key. Nothing here knows where text came from.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::config::problem::nearest;
use crate::job::limits::{BACKOFF_MULTIPLIERS, DURATION_MAX, LINE_BYTES_MAX};

/// Jobs running at once in one process. Chosen: far beyond what one machine runs, and each place costs
/// memory whether it is used or not.
pub const WORKERS: RangeInclusive<u64> = 1..=10_000;
/// Open watches of one tenant. Chosen: a million idle streams are 3 to 8 GiB.
pub const WATCHERS: RangeInclusive<u64> = 1..=1_000_000;
/// Jobs of one tenant that may wait. Chosen: a hundred million rows fill a large disk.
pub const WAITING: RangeInclusive<u64> = 1..=100_000_000;
/// Output and log lines kept of one job. Bytes. At least one longest line; at most 16 GiB, chosen: what
/// is larger belongs into a file.
pub const LOG_BYTES: RangeInclusive<u64> = LINE_BYTES_MAX as u64..=16 << 30;

const SIZE_UNITS: [(&str, u64); 8] = [
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
    ("", 1),
];

const DURATION_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// How log records are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// Text where stderr is a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// How [`LogFormat`] is written.
pub const LOG_FORMATS: [(&str, LogFormat); 3] = [
    ("auto", LogFormat::Auto),
    ("text", LogFormat::Text),
    ("json", LogFormat::Json),
];

/// A duration such as `10m` or `1h 30m`, 0 to 1 year.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text.trim()).map_err(|_| {
        format!("is {text:?}; expected a duration such as \"500ms\", \"10m\" or \"1h 30m\"")
    })?;
    if parsed > DURATION_MAX {
        let longest = duration_text(DURATION_MAX);
        return Err(format!("is {text:?}; at most \"{longest}\" are accepted"));
    }
    Ok(parsed)
}

/// A duration as [`duration`] reads it, without losing anything: `1h 30m`.
pub fn duration_text(value: Duration) -> String {
    let mut rest = value.as_nanos();
    let mut parts = Vec::new();
    for (unit, nanos) in DURATION_UNITS {
        if rest >= nanos {
            parts.push(format!("{}{unit}", rest / nanos));
            rest %= nanos;
        }
    }
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.join(" ")
    }
}

/// A number of bytes: `65536`, `16 MiB`, `2GB`.
///
/// # Errors
/// What is wrong with it.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("is {text:?}; expected bytes such as 1048576, \"512 KiB\" or \"16 MiB\"");
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(*factor).ok_or_else(wrong)
}

/// Bytes as [`size`] reads them, in the largest unit that divides them: `16 MiB`.
pub fn size_text(bytes: u64) -> String {
    match [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
    {
        Some((unit, factor)) => format!("{} {unit}", bytes / factor),
        None => format!("{bytes} B"),
    }
}

/// Bytes kept of one job's log, within [`LOG_BYTES`].
///
/// # Errors
/// What is wrong with it.
pub fn log_bytes(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    let (least, most) = (size_text(*LOG_BYTES.start()), size_text(*LOG_BYTES.end()));
    if LOG_BYTES.contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("is {bytes} bytes; {least} to {most} are accepted"))
    }
}

/// A whole number within `range`.
///
/// # Errors
/// What is wrong with it.
pub fn count(text: &str, range: RangeInclusive<u64>) -> Result<usize, String> {
    let number: i128 = text
        .trim()
        .parse()
        .map_err(|_| format!("is {text:?}; expected a whole number"))?;
    u64::try_from(number)
        .ok()
        .filter(|number| range.contains(number))
        .and_then(|number| usize::try_from(number).ok())
        .ok_or_else(|| {
            format!(
                "is {number}; {} to {} are accepted",
                range.start(),
                range.end()
            )
        })
}

/// How much a retry's longest wait grows, within [`BACKOFF_MULTIPLIERS`].
///
/// # Errors
/// What is wrong with it.
pub fn multiplier(text: &str) -> Result<f64, String> {
    let (least, most) = (BACKOFF_MULTIPLIERS.start(), BACKOFF_MULTIPLIERS.end());
    let number = text.trim().parse().ok();
    number
        .filter(|number| BACKOFF_MULTIPLIERS.contains(number))
        .ok_or_else(|| format!("is {text}; {least} to {most} is accepted"))
}

/// Yes or no: `true`, `false`, `1`, `0`, `yes`, `no`, `on`, `off`.
///
/// # Errors
/// What is wrong with it.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("is {text:?}; expected true or false")),
    }
}

/// One of a few words.
///
/// # Errors
/// What is wrong with it, with the nearest word.
pub fn choice<T: Copy>(text: &str, words: &[(&'static str, T)]) -> Result<T, String> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let meant = nearest(text, known.iter().copied());
    let hint = meant.map_or_else(String::new, |word| format!("; did you mean {word:?}?"));
    Err(format!(
        "is {text:?}; expected one of {}{hint}",
        known.join(", ")
    ))
}

/// Where the store is: `sqlite:` and a path.
///
/// # Errors
/// What is wrong with it.
pub fn store(text: &str) -> Result<PathBuf, String> {
    let Some(rest) = text.strip_prefix("sqlite:") else {
        if text.starts_with("postgres:") || text.starts_with("postgresql:") {
            return Err(
                "is on PostgreSQL, which a later release brings; expected \"sqlite:pacenote.db\""
                    .to_owned(),
            );
        }
        return Err(format!(
            "is {text:?}; expected \"sqlite:\" and a path, such as \"sqlite:pacenote.db\""
        ));
    };
    // `sqlite://path` is how URLs elsewhere spell the same.
    let file = rest.strip_prefix("//").unwrap_or(rest);
    if file == ":memory:" {
        return Err(
            "is in memory; a job that was accepted has to survive a restart, so a file is needed"
                .to_owned(),
        );
    }
    if file.contains('?') {
        return Err(format!(
            "is {text:?}; options after a question mark are not accepted"
        ));
    }
    path(file)
}

/// A path on this machine.
///
/// # Errors
/// What is wrong with it.
pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("names no path".to_owned());
    }
    if text.contains('\0') {
        return Err("has a NUL byte".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// Which log records are written: `info`, or directives such as `info,pacenote=debug`.
///
/// # Errors
/// What is wrong with it.
pub fn log_filter(text: &str) -> Result<String, String> {
    let help = "expected a level (error, warn, info, debug, trace) or directives such as \"info,pacenote=debug\"";
    if text.trim().is_empty() {
        return Err(format!("is empty; {help}"));
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("is {text:?}: {error}; {help}")),
    }
}

/// An address as given; what it resolves to is checked where it is used.
///
/// # Errors
/// What is wrong with it.
pub fn listen(text: &str) -> Result<String, String> {
    let wrong = || format!("is {text:?}; expected HOST:PORT, such as 127.0.0.1:7430 or [::1]:7430");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let is_bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || is_bare_v6 || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_accepted_at_the_limit_and_refused_one_past_it() {
        assert_eq!(duration("365d"), Ok(DURATION_MAX));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        for past in ["365d 1ns", "366d", "1y"] {
            let error = duration(past).expect_err(past);
            assert!(error.contains("at most \"365d\""), "{error}");
        }
        for bad in ["", "10", "-1s", "ten minutes", "1e3s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_and_sizes_are_read_as_they_are_written() {
        for nanos in [0, 1, 999, 50_000_000, 5_400_000_000_000, 86_399_999_999_999] {
            let value = Duration::from_nanos(nanos);
            assert_eq!(duration(&duration_text(value)), Ok(value));
        }
        assert_eq!(duration_text(Duration::from_secs(600)), "10m");
        for bytes in [0, 1, 1_000, 1_024, 65_537, 16 << 20, u64::MAX] {
            assert_eq!(size(&size_text(bytes)), Ok(bytes));
        }
        assert_eq!(size_text(16 << 20), "16 MiB");
    }

    #[test]
    fn sizes_take_units_and_nothing_else() {
        for (text, bytes) in [
            ("7", 7),
            ("7 B", 7),
            ("2KiB", 2_048),
            ("2 kB", 2_000),
            ("3 mib", 3 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "MiB",
            "1.5 MiB",
            "16M",
            "-1",
            "18446744073709551616",
            "99999999999 GiB",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_accepted_at_their_limits_and_refused_one_past_them() {
        assert_eq!(count("1", WORKERS), Ok(1));
        assert_eq!(count("10000", WORKERS), Ok(10_000));
        for past in ["0", "10001", "-1", "99999999999999999999999"] {
            let error = count(past, WORKERS).expect_err(past);
            assert!(error.contains("1 to 10000"), "{error}");
        }
        assert_eq!(log_bytes("64 KiB"), Ok(65_536));
        assert_eq!(log_bytes("16 GiB"), Ok(16 << 30));
        assert!(
            log_bytes("65535")
                .expect_err("one less")
                .contains("64 KiB to 16 GiB")
        );
        assert!(log_bytes("17179869185").is_err());
        assert_eq!(count("1000000", WATCHERS), Ok(1_000_000));
        assert!(count("1000001", WATCHERS).is_err());
    }

    #[test]
    fn a_store_is_a_file_of_sqlite() {
        assert_eq!(store("sqlite:a.db"), Ok(PathBuf::from("a.db")));
        assert_eq!(store("sqlite:/var/a.db"), Ok(PathBuf::from("/var/a.db")));
        assert_eq!(store("sqlite:///var/a.db"), Ok(PathBuf::from("/var/a.db")));
        for (bad, why) in [
            ("a.db", "sqlite:pacenote.db"),
            ("sqlite:", "no path"),
            ("sqlite::memory:", "in memory"),
            ("sqlite:a.db?mode=rwc", "question mark"),
            ("postgres://h/d", "later release"),
        ] {
            let error = store(bad).expect_err(bad);
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn words_switches_filters_and_addresses_say_what_they_expect() {
        assert_eq!(choice("json", &LOG_FORMATS), Ok(LogFormat::Json));
        assert!(
            choice("jsno", &LOG_FORMATS)
                .expect_err("no word")
                .contains("did you mean \"json\"")
        );
        assert_eq!(switch("On"), Ok(true));
        assert!(switch("maybe").is_err());
        assert!(log_filter("info,pacenote=debug").is_ok());
        assert!(log_filter("pacenote=loud").is_err() && log_filter(" ").is_err());
        for good in ["127.0.0.1:0", "[::1]:7430", "localhost:65535"] {
            assert!(listen(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "7430",
            ":7430",
            "localhost",
            "::1:7430",
            "localhost:65536",
            "h:x",
        ] {
            assert!(listen(bad).expect_err(bad).contains("HOST:PORT"), "{bad}");
        }
    }
}
