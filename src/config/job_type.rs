//! A `[job_types.x]` of the file: a program that becomes a job.
//!
//! It promises that a type that was read can be started: its folder exists, its placeholders are well
//! formed, its bounds are kept. Whether the program itself exists is seen when a job runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use crate::config::key::{Form, KEYS, describe};
use crate::config::section::Section;
use crate::config::template::Template;
use crate::config::value::{self, duration_text};
use crate::config::{Caps, CommandConfig, JobType, ProgressMode, ResultMode, TypeSettings};
use crate::job::limits::{ATTEMPTS_MAX, DETAIL_BYTES_MAX, LIST_MAX, TIMEOUTS};
use crate::job::name::Name;
use crate::job::policy::{GivenRetention, RetryPolicy, Timeouts, check_reason};

/// The keys of a job type, in the order in which they are listed and printed.
pub const JOB_TYPE_KEYS: [&str; 23] = [
    "command",
    "dir",
    "env",
    "allow_dash",
    "queue",
    "concurrency",
    "queue_timeout",
    "run_timeout",
    "total_timeout",
    "heartbeat_timeout",
    "stall_time",
    "cancel_grace",
    "max_attempts",
    "initial_backoff",
    "max_backoff",
    "backoff_multiplier",
    "non_retryable_reasons",
    "retention",
    "dead_letter_retention",
    "event_retention",
    "result",
    "progress",
    "progress_interval",
];

/// The keys whose value, where the type sets it, is the most that a submit may ask for.
pub const CAPPED_KEYS: [&str; 12] = [
    "queue_timeout",
    "run_timeout",
    "total_timeout",
    "heartbeat_timeout",
    "stall_time",
    "cancel_grace",
    "max_attempts",
    "initial_backoff",
    "max_backoff",
    "backoff_multiplier",
    "retention",
    "dead_letter_retention",
];

/// How [`ResultMode`] is written.
pub const RESULT_MODES: [(&str, ResultMode); 3] = [
    ("stdout-text", ResultMode::StdoutText),
    ("stdout-json", ResultMode::StdoutJson),
    ("events", ResultMode::Events),
];

/// How [`ProgressMode`] is written.
pub const PROGRESS_MODES: [(&str, ProgressMode); 3] = [
    ("auto", ProgressMode::Auto),
    ("events", ProgressMode::Events),
    ("off", ProgressMode::Off),
];

/// What only says something beside a command.
const COMMAND_KEYS: [&str; 6] = [
    "dir",
    "env",
    "allow_dash",
    "concurrency",
    "result",
    "progress",
];

const COMMAND_EXAMPLE: &str = r#"["python3", "thumbnail.py", "{input.path}"]; there is no shell"#;
const REASONS_EXAMPLE: &str = r#"["EXIT_CODE", "SIGNAL"]"#;
const ENV_EXAMPLE: &str = r#"env = { LANG = "C.UTF-8" }"#;

/// Reads one type, or collects why not. `folder` is the file's: relative paths start there.
pub(super) fn read(section: &mut Section<'_>, folder: &Path) -> Option<JobType> {
    let before = section.problems.len();
    section.refuse_unknown(&JOB_TYPE_KEYS, advise);
    let settings = settings(section);
    let command = command(section, folder);
    // A type with any problem is none: the file is refused anyway.
    (section.problems.len() == before).then_some(JobType { settings, command })
}

/// What a key that is not known was most likely meant to be.
fn advise(name: &str, value: &DeValue<'_>) -> Option<String> {
    if KEYS.iter().any(|key| key.name == name) {
        return Some(format!(
            "`{name}` is a setting of the server: put it above the first [job_types.…]"
        ));
    }
    // [job_types.v1.thumbnail] is a table within v1.
    matches!(value, DeValue::Table(_))
        .then(|| "a job type's name with a dot is quoted: [job_types.\"a.b\"]".to_owned())
}

fn settings(section: &mut Section<'_>) -> TypeSettings {
    let default = TypeSettings::default();
    let queue = section.take("queue", Form::Text, |text| Name::new(text));
    let concurrency = section.take("concurrency", Form::Count, |text| {
        value::count(text, value::WORKERS)
    });
    let retention = retention(section);
    let mut caps = Caps {
        // A submit has one time for both.
        retention: retention.shortest(),
        ..Caps::default()
    };
    TypeSettings {
        queue: queue.map_or(default.queue, |(queue, _)| queue),
        concurrency: concurrency.map(|(places, _)| places),
        retry_policy: retry_policy(section, &mut caps),
        timeouts: timeouts(section, &mut caps),
        retention,
        event_retention: duration(section, "event_retention"),
        caps,
        progress_interval: duration(section, "progress_interval")
            .unwrap_or(default.progress_interval),
    }
}

fn retry_policy(section: &mut Section<'_>, caps: &mut Caps) -> RetryPolicy {
    let default = RetryPolicy::default();
    let attempts = section.take("max_attempts", Form::Count, |text| {
        value::count(text, 1..=u64::from(ATTEMPTS_MAX))
    });
    let attempts = attempts.and_then(|(attempts, _)| u32::try_from(attempts).ok());
    let initial = section.take("initial_backoff", Form::Duration, value::duration);
    let longest = section.take("max_backoff", Form::Duration, value::duration);
    let multiplier = section.take("backoff_multiplier", Form::Number, value::multiplier);
    let multiplier = multiplier.map(|(multiplier, _)| multiplier);
    caps.max_attempts = attempts;
    caps.initial_backoff = initial.as_ref().map(|(wait, _)| *wait);
    caps.max_backoff = longest.as_ref().map(|(wait, _)| *wait);
    caps.backoff_multiplier = multiplier;
    let policy = RetryPolicy {
        max_attempts: attempts.unwrap_or(default.max_attempts),
        initial_backoff: initial
            .as_ref()
            .map_or(default.initial_backoff, |(wait, _)| *wait),
        max_backoff: longest
            .as_ref()
            .map_or(default.max_backoff, |(wait, _)| *wait),
        backoff_multiplier: multiplier.unwrap_or(default.backoff_multiplier),
        non_retryable_reasons: reasons(section),
    };
    if policy.initial_backoff > policy.max_backoff {
        let (first, most) = (
            duration_text(policy.initial_backoff),
            duration_text(policy.max_backoff),
        );
        let given = initial.map(|(_, span)| ("initial_backoff", span));
        if let Some((key, span)) = given.or(longest.map(|(_, span)| ("max_backoff", span))) {
            let why = format!("initial_backoff ({first}) is longer than max_backoff ({most})");
            section.problem(key, span, &why, None);
        }
    }
    policy
}

/// Reasons of errors, checked one by one.
fn reasons(section: &mut Section<'_>) -> Vec<String> {
    const KEY: &str = "non_retryable_reasons";
    let reasons = section.strings(KEY, REASONS_EXAMPLE).unwrap_or_default();
    if let Some(value) = section.table.get(KEY)
        && reasons.len() > LIST_MAX
    {
        let len = reasons.len();
        let why = format!("has {len} entries; at most {LIST_MAX} are accepted");
        section.problem(KEY, value.span(), &why, None);
    }
    for (reason, span) in &reasons {
        if let Err(why) = check_reason(reason) {
            section.problem(KEY, span.clone(), &why, None);
        }
    }
    reasons.into_iter().map(|(reason, _)| reason).collect()
}

fn timeouts(section: &mut Section<'_>, caps: &mut Caps) -> Timeouts {
    let default = Timeouts::default();
    caps.queue_timeout = timeout(section, "queue_timeout");
    caps.run_timeout = timeout(section, "run_timeout");
    caps.total_timeout = timeout(section, "total_timeout");
    caps.heartbeat_timeout = timeout(section, "heartbeat_timeout");
    caps.stall_time = timeout(section, "stall_time");
    caps.cancel_grace = duration(section, "cancel_grace");
    Timeouts {
        queue_timeout: caps.queue_timeout,
        run_timeout: caps.run_timeout,
        total_timeout: caps.total_timeout,
        heartbeat_timeout: caps.heartbeat_timeout,
        stall_time: caps.stall_time.unwrap_or(default.stall_time),
        cancel_grace: caps.cancel_grace.unwrap_or(default.cancel_grace),
    }
}

/// How long jobs are kept, as far as this table of a type or of a tenant says.
pub(super) fn retention(section: &mut Section<'_>) -> GivenRetention {
    GivenRetention {
        finished: duration(section, "retention"),
        failed: duration(section, "dead_letter_retention"),
    }
}

/// A time after which something ends.
fn timeout(section: &mut Section<'_>, key: &str) -> Option<Duration> {
    let taken = section.take(key, Form::Duration, |text| {
        let limit = value::duration(text)?;
        if limit < *TIMEOUTS.start() {
            let least = duration_text(*TIMEOUTS.start());
            return Err(format!(
                "is {text:?}; at least {least:?} is accepted; leave it out for the default"
            ));
        }
        Ok(limit)
    });
    taken.map(|(limit, _)| limit)
}

fn duration(section: &mut Section<'_>, key: &str) -> Option<Duration> {
    section
        .take(key, Form::Duration, value::duration)
        .map(|(value, _)| value)
}

fn command(section: &mut Section<'_>, folder: &Path) -> Option<CommandConfig> {
    if !section.table.contains_key("command") {
        refuse_what_a_command_needs(section);
        return None;
    }
    let command = arguments(section);
    let dir = section.take("dir", Form::Text, |text| existing_folder(text, folder));
    let allow_dash = section.take("allow_dash", Form::Switch, value::switch);
    let result = section.take("result", Form::Text, |text| {
        value::choice(text, &RESULT_MODES)
    });
    let progress = section.take("progress", Form::Text, |text| {
        value::choice(text, &PROGRESS_MODES)
    });
    Some(CommandConfig {
        env: environment(section),
        command: command?,
        dir: dir.map_or_else(|| folder.to_owned(), |(dir, _)| dir),
        allow_dash: allow_dash.is_some_and(|(fact, _)| fact),
        result: result.map_or_else(ResultMode::default, |(mode, _)| mode),
        progress: progress.map_or_else(ProgressMode::default, |(mode, _)| mode),
    })
}

/// A type without a command is for workers of other programs: what says how the pool runs it says nothing.
fn refuse_what_a_command_needs(section: &mut Section<'_>) {
    for key in COMMAND_KEYS {
        if let Some(value) = section.table.get(key) {
            let span = value.span();
            let why =
                "is about a `command`, which this type does not have: its jobs are for workers";
            let help = Some(format!("command = {COMMAND_EXAMPLE}"));
            section.problem(key, span, why, help);
        }
    }
}

/// The program and its arguments, checked one by one.
fn arguments(section: &mut Section<'_>) -> Option<Vec<String>> {
    let arguments = section.strings("command", COMMAND_EXAMPLE)?;
    let whole = section.table.get("command")?.span();
    if arguments.is_empty() || arguments[0].0.is_empty() {
        section.problem("command", whole, "names no program", None);
        return None;
    }
    if arguments.len() > LIST_MAX {
        let why = format!(
            "has {} arguments; at most {LIST_MAX} are accepted",
            arguments.len()
        );
        section.problem("command", whole, &why, None);
        return None;
    }
    for (index, (argument, span)) in arguments.iter().enumerate() {
        let parsed = bounded(argument).and_then(|()| Template::parse(argument));
        let checked = parsed.and_then(|template| {
            if index == 0 && !template.is_fixed() {
                return Err("the program itself is not for the input to choose".to_owned());
            }
            Ok(())
        });
        if let Err(why) = checked {
            section.problem("command", span.clone(), &why, None);
        }
    }
    Some(
        arguments
            .into_iter()
            .map(|(argument, _)| argument)
            .collect(),
    )
}

/// What a program may be handed as an argument or a variable.
fn bounded(text: &str) -> Result<(), String> {
    if text.len() > DETAIL_BYTES_MAX {
        return Err(format!(
            "is {} bytes; at most {DETAIL_BYTES_MAX} are accepted",
            text.len()
        ));
    }
    if text.contains('\0') {
        return Err("has a NUL byte".to_owned());
    }
    Ok(())
}

/// A path relative to the file that leads to a folder.
fn existing_folder(text: &str, folder: &Path) -> Result<PathBuf, String> {
    // Collected from its parts: `/srv/.` is `/srv`.
    let dir: PathBuf = folder.join(value::path(text)?).components().collect();
    match std::fs::metadata(&dir) {
        Ok(found) if found.is_dir() => Ok(dir),
        Ok(_) => Err(format!("{} is no folder", dir.display())),
        Err(error) => Err(format!("{}: {error}", dir.display())),
    }
}

fn environment(section: &mut Section<'_>) -> BTreeMap<String, String> {
    let mut wrong = Vec::new();
    let mut environment = BTreeMap::new();
    let entries = section.entries("env", ENV_EXAMPLE);
    let count = entries.len();
    for entry in entries {
        let name = entry.name.get_ref().to_string();
        let span = entry.value.span();
        match (variable_name(&name), entry.value.get_ref()) {
            (Err(why), _) => wrong.push((entry.name.span(), format!("{name:?} {why}"))),
            (Ok(()), DeValue::String(text)) => match bounded(text) {
                Ok(()) => drop(environment.insert(name, text.to_string())),
                Err(why) => wrong.push((span, format!("{name} {why}"))),
            },
            (Ok(()), other) => {
                let found = describe(other);
                wrong.push((span, format!("{name}: expected a string, found {found}")));
            }
        }
    }
    for (span, why) in wrong {
        section.problem("env", span, &why, None);
    }
    if let Some(value) = section.table.get("env").filter(|_| count > LIST_MAX) {
        let why = format!("has {count} variables; at most {LIST_MAX} are accepted");
        section.problem("env", value.span(), &why, None);
    }
    environment
}

fn variable_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains('=') || name.chars().any(char::is_control) {
        return Err("is no name for a variable".to_owned());
    }
    if name.starts_with("PACENOTE_") {
        return Err("is taken: names with PACENOTE_ are set by the server".to_owned());
    }
    bounded(name)
}
