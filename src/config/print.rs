//! Settings as a file: what `pacenote config print` shows.
//!
//! Every key is written, with a comment that says where its value came from, and the text read as a
//! file gives the same settings again: a default that would bind submits, were it set, is a comment. Values of a type's `env` are printed as they are.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::config::CommandConfig;
use crate::config::file::JOB_TYPES;
use crate::config::job_type::{CAPPED_KEYS, JOB_TYPE_KEYS, PROGRESS_MODES, RESULT_MODES};
use crate::config::key::KEYS;
use crate::config::queue::{QUEUE_KEYS, QUEUES, TENANT_KEYS, TENANTS, rate_text};
use crate::config::section::bare_or_quoted;
use crate::config::settings::{Origin, Settings};
use crate::config::value::{LOG_FORMATS, duration_text, size_text};
use crate::config::{JobType, TenantSettings};
use crate::job::limits::{
    DEAD_LETTER_RETENTION_DEFAULT, KEY_CONCURRENCY_DEFAULT, RETENTION_DEFAULT,
};
use crate::job::name::Name;
use crate::job::queue::GivenLimits;

/// Column at which comments begin where the value leaves room.
const COMMENT_COLUMN: usize = 44;

/// The settings as TOML with a comment behind each value.
pub fn to_toml(settings: &Settings) -> String {
    let mut text = String::new();
    for key in KEYS {
        let value = server_value(settings, key.name);
        let what = match settings.origin(key.name) {
            Origin::Default => format!("default; {} or {}", key.flag(), key.variable()),
            origin => origin.to_string(),
        };
        line(&mut text, &format!("{} = {value}", key.name), &what);
    }
    let config = &settings.config;
    for (name, job_type) in &config.job_types {
        let value = |key| type_value(job_type, key);
        table(&mut text, settings, JOB_TYPES, name, &JOB_TYPE_KEYS, value);
    }
    for (name, given) in &config.queues {
        let value = |key| queue_value(given, key);
        table(&mut text, settings, QUEUES, name, &QUEUE_KEYS, value);
    }
    for (name, tenant) in &config.tenants {
        let value = |key| tenant_value(tenant, key);
        table(&mut text, settings, TENANTS, name, &TENANT_KEYS, value);
    }
    text
}

/// A table of its own, as `[job_types.NAME]`, with every key it may have.
fn table(
    text: &mut String,
    settings: &Settings,
    tables: &str,
    name: &Name,
    keys: &[&'static str],
    value: impl Fn(&'static str) -> Option<String>,
) {
    let path = format!("{tables}.{}", bare_or_quoted(name.as_str()));
    text.push('\n');
    let origin = settings.origin(&path).to_string();
    line(text, &format!("[{path}]"), &origin);
    for key in keys {
        let from = settings.origin(&format!("{path}.{key}"));
        let origin = from.to_string();
        match value(key) {
            // Read back, it would be set by the file, and so the most that a submit may ask for.
            Some(value) if *from == Origin::Default && CAPPED_KEYS.contains(key) => {
                line(text, &format!("#{key} = {value}"), &origin);
            }
            Some(value) => line(text, &format!("{key} = {value}"), &origin),
            None => line(text, &format!("#{key} ="), &absent(tables, key)),
        }
    }
}

/// What holds where a key is left out and has no value to show.
fn absent(tables: &str, key: &str) -> String {
    let kept = |default: Duration| {
        let before = if tables == JOB_TYPES {
            "the tenant's, or "
        } else {
            ""
        };
        format!("default: {before}{}", duration_text(default))
    };
    match key {
        "key_concurrency" => format!("default: {KEY_CONCURRENCY_DEFAULT}"),
        "retention" => kept(RETENTION_DEFAULT),
        "dead_letter_retention" => kept(DEAD_LETTER_RETENTION_DEFAULT),
        "event_retention" => "default: as long as the job".to_owned(),
        _ => "default: no limit of its own".to_owned(),
    }
}

fn line(text: &mut String, entry: &str, comment: &str) {
    // A path may hold anything, and a line break would end the comment.
    let comment: String = comment
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    writeln!(text, "{entry:<COMMENT_COLUMN$} # {comment}")
        .expect("writing to a string cannot fail");
}

fn server_value(settings: &Settings, key: &str) -> String {
    let config = &settings.config;
    match key {
        "listen" => quoted(&settings.listen),
        "insecure" => settings.insecure.to_string(),
        "store" => quoted(&format!("sqlite:{}", config.store.display())),
        "workers" => config.workers.to_string(),
        "checksum_root" => path(&config.checksum_root),
        "log_bytes_max" => quoted(&size_text(config.log_bytes_max)),
        "watchers_max" => config.watchers_max.to_string(),
        "waiting_max" => config.waiting_max.to_string(),
        "drain_timeout" => quoted(&duration_text(config.drain_timeout)),
        "log" => quoted(&settings.log),
        "log_format" => word(settings.log_format, &LOG_FORMATS),
        _ => unreachable!("every key of KEYS is printed: a test prints them all"),
    }
}

/// `None` for what has no value of its own.
fn type_value(job_type: &JobType, key: &str) -> Option<String> {
    let settings = &job_type.settings;
    let of_command = |value: fn(&CommandConfig) -> String| job_type.command.as_ref().map(value);
    let retry = &settings.retry_policy;
    Some(match key {
        "command" => {
            return of_command(|of| toml::Value::from(of.command.clone()).to_string());
        }
        "dir" => return of_command(|of| path(&of.dir)),
        "env" => return of_command(|of| inline_table(of.env.iter())),
        "allow_dash" => return of_command(|of| of.allow_dash.to_string()),
        "queue" => quoted(settings.queue.as_str()),
        "concurrency" => return settings.concurrency.map(|places| places.to_string()),
        "queue_timeout" => return settings.timeouts.queue_timeout.map(span),
        "run_timeout" => return settings.timeouts.run_timeout.map(span),
        "total_timeout" => return settings.timeouts.total_timeout.map(span),
        "heartbeat_timeout" => return settings.timeouts.heartbeat_timeout.map(span),
        "stall_time" => span(settings.timeouts.stall_time),
        "cancel_grace" => span(settings.timeouts.cancel_grace),
        "max_attempts" => retry.max_attempts.to_string(),
        "initial_backoff" => span(retry.initial_backoff),
        "max_backoff" => span(retry.max_backoff),
        "backoff_multiplier" => retry.backoff_multiplier.to_string(),
        "non_retryable_reasons" => {
            toml::Value::from(retry.non_retryable_reasons.clone()).to_string()
        }
        "retention" => return settings.retention.finished.map(span),
        "dead_letter_retention" => return settings.retention.failed.map(span),
        "event_retention" => return settings.event_retention.map(span),
        "result" => return of_command(|of| word(of.result, &RESULT_MODES)),
        "progress" => return of_command(|of| word(of.progress, &PROGRESS_MODES)),
        "progress_interval" => span(settings.progress_interval),
        _ => unreachable!("every key of JOB_TYPE_KEYS is printed: a test prints them all"),
    })
}

/// `None` for what the file leaves as it is by default.
fn queue_value(given: &GivenLimits, key: &str) -> Option<String> {
    match key {
        "concurrency" => Some(given.limits().concurrency?.to_string()),
        "rate_limit" => Some(quoted(&rate_text(given.limits().rate?))),
        "key_concurrency" => Some(given.key_concurrency?.to_string()),
        _ => unreachable!("every key of QUEUE_KEYS is printed: a test prints them all"),
    }
}

/// `None` for what the file leaves as it is by default.
fn tenant_value(tenant: &TenantSettings, key: &str) -> Option<String> {
    match key {
        "weight" => Some(tenant.weight.to_string()),
        "retention" => tenant.retention.finished.map(span),
        "dead_letter_retention" => tenant.retention.failed.map(span),
        _ => unreachable!("every key of TENANT_KEYS is printed: a test prints them all"),
    }
}

fn inline_table<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let entries: Vec<String> = entries
        .map(|(name, value)| format!("{} = {}", bare_or_quoted(name), quoted(value)))
        .collect();
    if entries.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{ {} }}", entries.join(", "))
    }
}

fn span(duration: Duration) -> String {
    quoted(&duration_text(duration))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

fn word<T: PartialEq>(value: T, words: &[(&str, T)]) -> String {
    let word = words.iter().find(|(_, known)| *known == value);
    quoted(
        word.map(|(word, _)| *word)
            .expect("every variant has its word"),
    )
}
