//! `pacenote.toml`: reading it, with every problem told at once and in its place.
//!
//! The file is refused as a whole or taken as a whole. Relative paths in it start at the file's own
//! folder, whatever folder the server was started in. What flags and variables say against it is the
//! business of `settings`. `pacenote.example.toml` lists every key.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::config::job_type;
use crate::config::key::{KEYS, Key, describe};
use crate::config::problem::{ConfigError, Problem, SourceText};
use crate::config::queue::{self, QUEUE_KEYS, QUEUES, TENANT_KEYS, TENANTS};
use crate::config::section::{Section, bare_or_quoted};
use crate::config::{JobType, TenantSettings};
use crate::job::name::Name;
use crate::job::queue::GivenLimits;

/// Largest file. Bytes. Chosen: thousands of job types; a mistaken path to a large file is refused.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Job types that the server brings itself.
const BUILT_IN: [&str; 2] = ["checksum", "sleep"];
const QUOTES: &str = "if this is meant as text, put it in double quotes";
/// Key of the tables of job types.
pub(super) const JOB_TYPES: &str = "job_types";

/// A file that was read: its job types checked, its other keys as text for [`super::settings`].
#[derive(Clone, PartialEq, Debug)]
pub struct ConfigFile {
    /// Name and text, for messages.
    pub(super) source: SourceText,
    /// Where its relative paths start. Absolute.
    pub(super) folder: PathBuf,
    /// The top-level keys that are present.
    pub(super) values: BTreeMap<&'static str, (String, Range<usize>)>,
    /// The configured job types.
    pub(super) job_types: BTreeMap<Name, JobType>,
    /// What bounds queues.
    pub(super) queues: BTreeMap<Name, GivenLimits>,
    /// How tenants are treated.
    pub(super) tenants: BTreeMap<Name, TenantSettings>,
    /// The line of every key that is present, by its path.
    pub(super) lines: BTreeMap<String, usize>,
}

impl ConfigFile {
    /// Reads a file. What can be read is returned beside the problems, so that a caller can go on to
    /// find more.
    ///
    /// # Errors
    /// Where there is nothing to go on with: no such file, not text, not TOML.
    pub fn read(path: &Path) -> Result<(Self, Vec<Problem>), ConfigError> {
        let name = path.display().to_string();
        let refuse = |why: String| ConfigError::from(Problem::new(&name, why));
        let text = read_bounded(path).map_err(refuse)?;
        let absolute = std::path::absolute(path).map_err(|error| refuse(error.to_string()))?;
        let folder = absolute.parent().unwrap_or(Path::new("/")).to_owned();
        Self::parse(SourceText { name, text }, folder)
    }

    /// Reads text as if it were a file in `folder`. As [`ConfigFile::read`].
    ///
    /// # Errors
    /// Where it is no TOML.
    pub fn parse(source: SourceText, folder: PathBuf) -> Result<(Self, Vec<Problem>), ConfigError> {
        let (document, errors) = DeTable::parse_recoverable(&source.text);
        if !errors.is_empty() {
            let place = |error: &toml::de::Error| {
                let end = source.text.len();
                // `listen = 127.0.0.1:80` is an "invalid float" to the parser.
                let help = error.message().starts_with("invalid").then_some(QUOTES);
                Problem::at(&source, error.span().unwrap_or(end..end), error.message())
                    .with_help(help.map(str::to_owned))
            };
            return Err(ConfigError::new(errors.iter().map(place).collect()));
        }
        let table = document.get_ref();
        let mut problems = Vec::new();
        let mut lines = BTreeMap::new();
        note_lines(&source, table, "", &mut lines);
        let mut top = Section {
            source: &source,
            path: String::new(),
            table,
            problems: &mut problems,
        };
        let mut known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        known.extend([JOB_TYPES, QUEUES, TENANTS]);
        top.refuse_unknown(&known, |name, _| {
            let owners: [(&[&str], _, _); 3] = [
                (&job_type::JOB_TYPE_KEYS, "a job type", JOB_TYPES),
                (&QUEUE_KEYS, "a queue", QUEUES),
                (&TENANT_KEYS, "a tenant", TENANTS),
            ];
            let owners = owners.iter().filter(|(keys, ..)| keys.contains(&name));
            let (owners, tables): (Vec<_>, Vec<_>) = owners
                .map(|(_, owner, table)| (*owner, format!("[{table}.…]")))
                .unzip();
            let (owners, tables) = (owners.join(" or "), tables.join(" or "));
            (!owners.is_empty())
                .then(|| format!("`{name}` belongs to {owners}: put it below its {tables}"))
        });
        let values = KEYS
            .iter()
            .filter_map(|key| Some((key.name, top_level(&mut top, key)?)))
            .collect();
        let job_types = job_types(&source, table, &folder, &mut problems);
        let file = Self {
            source: source.clone(),
            folder,
            values,
            job_types,
            queues: queue::queues(&source, table, &mut problems),
            tenants: queue::tenants(&source, table, &mut problems),
            lines,
        };
        Ok((file, problems))
    }
}

/// The file's text, if it is one and not too large.
fn read_bounded(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("is not UTF-8 text (byte {at})")
    })
}

/// A top-level value as text; what it means is checked where all sources meet.
fn top_level(top: &mut Section<'_>, key: &Key) -> Option<(String, Range<usize>)> {
    top.take(key.name, key.form, |text| Ok(text.to_owned()))
}

/// The line of every top-level key and of every key of a job type.
fn note_lines(
    source: &SourceText,
    table: &DeTable<'_>,
    path: &str,
    lines: &mut BTreeMap<String, usize>,
) {
    for (key, value) in table {
        let path = format!("{path}{}", bare_or_quoted(key.get_ref()));
        if let DeValue::Table(inner) = value.get_ref() {
            note_lines(source, inner, &format!("{path}."), lines);
        }
        lines.insert(path, source.line_and_column(key.span().start).0);
    }
}

fn job_types(
    source: &SourceText,
    table: &DeTable<'_>,
    folder: &Path,
    problems: &mut Vec<Problem>,
) -> BTreeMap<Name, JobType> {
    named_tables(source, table, JOB_TYPES, type_name, problems, |section| {
        job_type::read(section, folder)
    })
}

/// A table of tables with a name each, as `[job_types.NAME]`; what cannot be read is collected.
pub(super) fn named_tables<T>(
    source: &SourceText,
    table: &DeTable<'_>,
    key: &'static str,
    parse_name: impl Fn(&str) -> Result<Name, String>,
    problems: &mut Vec<Problem>,
    read: impl Fn(&mut Section<'_>) -> Option<T>,
) -> BTreeMap<Name, T> {
    let mut all = BTreeMap::new();
    let Some(value) = table.get(key) else {
        return all;
    };
    let DeValue::Table(tables) = value.get_ref() else {
        let found = describe(value.get_ref());
        let message = format!("{key}: expected a table, found {found}");
        let help = Some(format!("give each its own [{key}.NAME]"));
        problems.push(Problem::at(source, value.span(), message).with_help(help));
        return all;
    };
    for (name, value) in tables {
        let path = format!("{key}.{}", bare_or_quoted(name.get_ref()));
        let mut refuse =
            |span, why: &str| problems.push(Problem::at(source, span, format!("{path}: {why}")));
        let parsed = match parse_name(name.get_ref()) {
            Ok(parsed) => Some(parsed),
            Err(why) => {
                refuse(name.span(), &why);
                None
            }
        };
        let DeValue::Table(table) = value.get_ref() else {
            let found = describe(value.get_ref());
            refuse(value.span(), &format!("expected a table, found {found}"));
            continue;
        };
        let mut section = Section {
            source,
            path,
            table,
            problems,
        };
        let read = read(&mut section);
        all.extend(parsed.zip(read));
    }
    all
}

fn type_name(text: &str) -> Result<Name, String> {
    if BUILT_IN.contains(&text) {
        return Err("is built in and cannot be configured; choose another name".to_owned());
    }
    Name::new(text).map_err(|why| format!("the name {why}"))
}
