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
use crate::config::{CommandConfig, JobType, ProgressMode, ResultMode, TypeSettings};
use crate::job::limits::{ATTEMPTS_MAX, DETAIL_BYTES_MAX, LIST_MAX};
use crate::job::name::Name;
use crate::job::policy::{RetryPolicy, Timeouts};

/// The keys of a job type, in the order in which they are listed and printed.
pub const JOB_TYPE_KEYS: [&str; 14] = [
    "command",
    "dir",
    "env",
    "allow_dash",
    "queue",
    "concurrency",
    "run_timeout",
    "cancel_grace",
    "max_attempts",
    "initial_backoff",
    "max_backoff",
    "result",
    "progress",
    "progress_interval",
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

const COMMAND_EXAMPLE: &str = r#"["python3", "thumbnail.py", "{input.path}"]; there is no shell"#;
const ENV_EXAMPLE: &str = r#"env = { LANG = "C.UTF-8" }"#;

/// Reads one type, or collects why not. `folder` is the file's: relative paths start there.
pub(super) fn read(section: &mut Section<'_>, folder: &Path) -> Option<JobType> {
    let before = section.problems.len();
    section.refuse_unknown(&JOB_TYPE_KEYS, advise);
    let settings = settings(section);
    let command = command(section, folder);
    // A type with any problem is none: the file is refused anyway.
    (section.problems.len() == before).then_some(JobType {
        settings,
        command: command?,
    })
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
    TypeSettings {
        queue: queue.map_or(default.queue, |(queue, _)| queue),
        concurrency: concurrency.map(|(places, _)| places),
        retry_policy: retry_policy(section),
        timeouts: timeouts(section),
        progress_interval: duration(section, "progress_interval")
            .unwrap_or(default.progress_interval),
    }
}

fn retry_policy(section: &mut Section<'_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let attempts = section.take("max_attempts", Form::Count, |text| {
        value::count(text, 1..=u64::from(ATTEMPTS_MAX))
    });
    let attempts = attempts.and_then(|(attempts, _)| u32::try_from(attempts).ok());
    let initial = section.take("initial_backoff", Form::Duration, value::duration);
    let longest = section.take("max_backoff", Form::Duration, value::duration);
    let policy = RetryPolicy {
        max_attempts: attempts.unwrap_or(default.max_attempts),
        initial_backoff: initial
            .as_ref()
            .map_or(default.initial_backoff, |(wait, _)| *wait),
        max_backoff: longest
            .as_ref()
            .map_or(default.max_backoff, |(wait, _)| *wait),
        ..default
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

fn timeouts(section: &mut Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    let run_timeout = section.take("run_timeout", Form::Duration, |text| match value::duration(
        text,
    )? {
        Duration::ZERO => {
            Err("is 0, so that every attempt would fail; leave it out for no limit".to_owned())
        }
        limit => Ok(limit),
    });
    Timeouts {
        run_timeout: run_timeout.map(|(limit, _)| limit),
        cancel_grace: duration(section, "cancel_grace").unwrap_or(default.cancel_grace),
        ..default
    }
}

fn duration(section: &mut Section<'_>, key: &str) -> Option<Duration> {
    section
        .take(key, Form::Duration, value::duration)
        .map(|(value, _)| value)
}

fn command(section: &mut Section<'_>, folder: &Path) -> Option<CommandConfig> {
    if !section.table.contains_key("command") {
        let (path, span) = (section.path.clone(), section.span.clone());
        let message = format!(
            "{path}: has no `command`; a type without one is for remote workers, which come in a later release"
        );
        let help = Some(format!("command = {COMMAND_EXAMPLE}"));
        section.problems.push(
            crate::config::problem::Problem::at(section.source, span, message).with_help(help),
        );
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
