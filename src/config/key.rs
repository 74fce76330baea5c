//! The settings a server knows, each once: its key in the file, its flag, its variable, its form.
//!
//! The flag and the variable follow from the key, so that whoever knows one knows all three. What a
//! value means is the business of `value` and `settings`.

use toml::de::DeValue;

/// A setting of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// How it is written there.
    pub form: Form,
    /// What it is for, in one line.
    pub summary: &'static str,
}

impl Key {
    /// Its flag: `--log-bytes-max`.
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// Its variable: `PACENOTE_LOG_BYTES_MAX`.
    pub fn variable(&self) -> String {
        format!("PACENOTE_{}", self.name.to_uppercase())
    }
}

/// The variable that names the file; its flag is `--config`.
pub const CONFIG_VARIABLE: &str = "PACENOTE_CONFIG";
/// What many Rust programs read for their log filter: counts where `PACENOTE_LOG` is not set.
pub const RUST_LOG: &str = "RUST_LOG";

/// The address to serve on.
pub const LISTEN: Key = key(
    "listen",
    Form::Text,
    "address to serve on; port 0 picks a free one",
);
/// Beyond loopback without keys and TLS.
pub const INSECURE: Key = key(
    "insecure",
    Form::Switch,
    "allow an address beyond loopback although there are no keys and no TLS",
);
/// Where jobs are kept.
pub const STORE: Key = key("store", Form::Text, "where jobs are kept");
/// Places of the pool.
pub const WORKERS: Key = key(
    "workers",
    Form::Count,
    "most jobs running at once in this process",
);
/// The folder of the built-in `checksum`.
pub const CHECKSUM_ROOT: Key = key(
    "checksum_root",
    Form::Text,
    "the only folder that the built-in job type checksum may walk",
);
/// Bound of a job's log.
pub const LOG_BYTES_MAX: Key = key(
    "log_bytes_max",
    Form::Size,
    "output and log lines kept of one job, in bytes",
);
/// Bound of open watches.
pub const WATCHERS_MAX: Key = key("watchers_max", Form::Count, "open watches of one tenant");
/// Bound of jobs that wait.
pub const WAITING_MAX: Key = key(
    "waiting_max",
    Form::Count,
    "jobs of one tenant that may wait",
);
/// Bound of a drain.
pub const DRAIN_TIMEOUT: Key = key("drain_timeout", Form::Duration, "how long a drain may take");
/// The server's own log: which records.
pub const LOG: Key = key("log", Form::Text, "which records the server logs");
/// The server's own log: how they are written.
pub const LOG_FORMAT: Key = key(
    "log_format",
    Form::Text,
    "how they are written: auto, text or json",
);

/// All of them, in the order in which they are listed and printed.
pub const KEYS: [Key; 11] = [
    LISTEN,
    INSECURE,
    STORE,
    WORKERS,
    CHECKSUM_ROOT,
    LOG_BYTES_MAX,
    WATCHERS_MAX,
    WAITING_MAX,
    DRAIN_TIMEOUT,
    LOG,
    LOG_FORMAT,
];

const fn key(name: &'static str, form: Form, summary: &'static str) -> Key {
    Key {
        name,
        form,
        summary,
    }
}

/// How a value is written in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A string.
    Text,
    /// A string with a unit of time.
    Duration,
    /// An integer.
    Count,
    /// A number, with or without a fraction.
    Number,
    /// An integer, or a string with a unit of bytes.
    Size,
    /// `true` or `false`.
    Switch,
}

impl Form {
    /// The value as the text that a flag would have, or nothing where it has another type.
    pub(super) fn text(self, value: &DeValue<'_>) -> Option<String> {
        match (self, value) {
            (Self::Text | Self::Duration | Self::Size, DeValue::String(text)) => {
                Some(text.to_string())
            }
            (Self::Count | Self::Size, DeValue::Integer(number)) => {
                // Beyond i128 the text itself is refused by whoever reads it as a number.
                let decimal = i128::from_str_radix(number.as_str(), number.radix());
                Some(
                    decimal
                        .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
                )
            }
            (Self::Number, DeValue::Integer(number)) if number.radix() == 10 => {
                Some(number.as_str().to_owned())
            }
            (Self::Number, DeValue::Float(number)) => Some(number.as_str().to_owned()),
            (Self::Switch, DeValue::Boolean(fact)) => Some(fact.to_string()),
            _ => None,
        }
    }

    /// For a message: what was expected.
    pub(super) const fn expected(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Duration => "a duration such as \"10m\" or \"1h 30m\"",
            Self::Count => "a whole number",
            Self::Number => "a number",
            Self::Size => "bytes such as 1048576 or \"16 MiB\"",
            Self::Switch => "true or false",
        }
    }

    /// For a message: how a value of another type is most likely meant.
    pub(super) fn advice(self, value: &DeValue<'_>) -> Option<String> {
        match (self, value) {
            (Self::Duration, DeValue::Integer(number)) => {
                Some(format!("write \"{number}s\" for seconds"))
            }
            (Self::Count, DeValue::String(text)) if text.trim().parse::<i64>().is_ok() => {
                Some(format!("leave out the quotes: {}", text.trim()))
            }
            (Self::Switch, DeValue::String(text)) if matches!(&**text, "true" | "false") => {
                Some(format!("leave out the quotes: {text}"))
            }
            (Self::Text, DeValue::Integer(_) | DeValue::Boolean(_)) => {
                Some("put it in double quotes".to_owned())
            }
            _ => None,
        }
    }
}

/// For a message: what a value of the file is.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.chars().count() <= 40 => format!("the string {text:?}"),
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Integer(number) => format!("the integer {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(fact) => fact.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
