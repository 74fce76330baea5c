//! One table of the file while it is read: takes values out by key and collects what is wrong.
//!
//! Every value keeps its place in the text, so that each problem can point at it, and reading goes on
//! after a problem, so that all are found at once. (serde stops at the first.)

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::key::{Form, describe};
use crate::config::problem::{Problem, SourceText, nearest};

/// A table of the file, the path that leads to it, and the problems found so far.
pub(super) struct Section<'a> {
    pub(super) source: &'a SourceText,
    /// As in the file: `job_types.thumbnail`; empty for the top.
    pub(super) path: String,
    pub(super) table: &'a DeTable<'a>,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl<'a> Section<'a> {
    /// The path of a key: `job_types.thumbnail.queue`.
    pub(super) fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() {
            bare_or_quoted(key)
        } else {
            format!("{}.{}", self.path, bare_or_quoted(key))
        }
    }

    /// Collects a problem with the value of `key`.
    pub(super) fn problem(
        &mut self,
        key: &str,
        span: Range<usize>,
        why: &str,
        help: Option<String>,
    ) {
        let message = format!("{}: {why}", self.key_path(key));
        self.problems
            .push(Problem::at(self.source, span, message).with_help(help));
    }

    /// A value that `parse` reads from its text, and its place. `None` where the key is absent, or
    /// refused and collected.
    pub(super) fn take<T>(
        &mut self,
        key: &str,
        form: Form,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<(T, Range<usize>)> {
        let value = self.table.get(key)?;
        let span = value.span();
        let Some(text) = form.text(value.get_ref()) else {
            let found = describe(value.get_ref());
            let why = format!("expected {}, found {found}", form.expected());
            self.problem(key, span, &why, form.advice(value.get_ref()));
            return None;
        };
        match parse(&text) {
            Ok(parsed) => Some((parsed, span)),
            Err(why) => {
                self.problem(key, span, &why, None);
                None
            }
        }
    }

    /// An array of strings, each with its place.
    pub(super) fn strings(
        &mut self,
        key: &str,
        example: &str,
    ) -> Option<Vec<(String, Range<usize>)>> {
        let value = self.table.get(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            let why = format!(
                "expected an array of strings, found {}",
                describe(value.get_ref())
            );
            self.problem(
                key,
                value.span(),
                &why,
                Some(format!("write it as {example}")),
            );
            return None;
        };
        let mut strings = Vec::new();
        for element in array.iter() {
            match element.get_ref() {
                DeValue::String(text) => strings.push((text.to_string(), element.span())),
                other => {
                    let why = format!("expected only strings, found {}", describe(other));
                    let help = Some("put it in double quotes".to_owned());
                    self.problem(key, element.span(), &why, help);
                }
            }
        }
        (strings.len() == array.len()).then_some(strings)
    }

    /// A table within this one: its entries in the order of their names, and their places.
    pub(super) fn entries(&mut self, key: &str, example: &str) -> Vec<Entry<'a>> {
        let Some(value) = self.table.get(key) else {
            return Vec::new();
        };
        if let DeValue::Table(table) = value.get_ref() {
            return table
                .iter()
                .map(|(name, value)| Entry { name, value })
                .collect();
        }
        let why = format!("expected a table, found {}", describe(value.get_ref()));
        self.problem(
            key,
            value.span(),
            &why,
            Some(format!("write it as {example}")),
        );
        Vec::new()
    }

    /// Refuses the keys that are not known here; `advise` may know better than the nearest one.
    pub(super) fn refuse_unknown(
        &mut self,
        known: &[&str],
        advise: impl Fn(&str, &DeValue<'_>) -> Option<String>,
    ) {
        for (key, value) in self.table {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let help = advise(name, value.get_ref())
                .or_else(|| {
                    nearest(name, known.iter().copied()).map(|key| format!("did you mean `{key}`?"))
                })
                .unwrap_or_else(|| format!("known here: {}", known.join(", ")));
            let message = format!("{}: unknown key", self.key_path(name));
            self.problems
                .push(Problem::at(self.source, key.span(), message).with_help(Some(help)));
        }
    }
}

/// A key and its value.
pub(super) struct Entry<'a> {
    pub(super) name: &'a Spanned<std::borrow::Cow<'a, str>>,
    pub(super) value: &'a Spanned<DeValue<'a>>,
}

/// A key as the file would have it.
pub(super) fn bare_or_quoted(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(is_bare) {
        key.to_owned()
    } else {
        // JSON's escapes are among TOML's for everything that a name may hold.
        format!("{key:?}")
    }
}
