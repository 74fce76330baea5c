//! What is wrong with a configuration, said so that it can be mended without opening the manual.
//!
//! A problem names its place (file, line and column with the line itself, or the flag or variable), the
//! key and what was expected. All problems that can be found at once are told at once. Nothing here
//! knows the keys or the command line.

use std::fmt;
use std::ops::Range;

/// Problems shown in full; chosen: a screenful, the rest is counted.
const SHOWN_MAX: usize = 20;
/// Longest part of a line that an excerpt shows. Characters; chosen: a wide terminal.
const EXCERPT_CHARS_MAX: usize = 120;

/// A refused configuration: every problem that was found, in the order of the file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct ConfigError(Vec<Problem>);

impl ConfigError {
    /// A refusal for these problems; those with a place in the file come first, in its order.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.offset);
        Self(problems)
    }

    /// The problems, at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the configuration was refused\n")?,
            count => writeln!(f, "the configuration was refused: {count} problems")?,
        }
        for problem in self.0.iter().take(SHOWN_MAX) {
            write!(f, "\n{problem}")?;
        }
        match self.0.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where in the file; past everything for what is not from the file.
    offset: usize,
    place: String,
    message: String,
    excerpt: String,
    help: Option<String>,
}

impl Problem {
    /// A problem that no file explains: `place` is the flag, the variable or the file's name.
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            offset: usize::MAX,
            place: place.into(),
            message: message.into(),
            excerpt: String::new(),
            help: None,
        }
    }

    /// A problem at a place in a file.
    pub fn at(source: &SourceText, span: Range<usize>, message: impl Into<String>) -> Self {
        let (line, column) = source.line_and_column(span.start);
        Self {
            offset: span.start,
            place: format!("{}:{line}:{column}", source.name),
            message: message.into(),
            excerpt: source.excerpt(span),
            help: None,
        }
    }

    /// The same with advice, where there is some.
    #[must_use]
    pub fn with_help(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.place, self.message)?;
        f.write_str(&self.excerpt)?;
        match &self.help {
            Some(help) => writeln!(f, "  help: {help}"),
            None => Ok(()),
        }
    }
}

/// A file's text and the name it goes by in messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceText {
    /// As the user named it.
    pub name: String,
    /// All of it.
    pub text: String,
}

impl SourceText {
    /// The line and the column of a byte, both from 1; columns count characters.
    pub fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }

    /// The line with carets under `span`, cut to what fits. A span of several lines is marked to the
    /// end of its first.
    fn excerpt(&self, span: Range<usize>) -> String {
        let (number, column) = self.line_and_column(span.start);
        let line = self.text.lines().nth(number - 1).unwrap_or_default();
        let marked = self
            .text
            .get(span)
            .and_then(|text| text.lines().next())
            .map_or(1, |text| text.chars().count())
            .max(1);
        // Where the line is long, a third of the window shows what stands before the place.
        let skipped = (column - 1).saturating_sub(EXCERPT_CHARS_MAX / 3);
        let skipped = if line.chars().count() > EXCERPT_CHARS_MAX {
            skipped
        } else {
            0
        };
        let shown: String = line
            .chars()
            .skip(skipped)
            .take(EXCERPT_CHARS_MAX)
            .map(printable)
            .collect();
        let indent = column - 1 - skipped;
        let marked = marked.min(EXCERPT_CHARS_MAX - indent.min(EXCERPT_CHARS_MAX - 1));
        let (gutter, margin) = (number.to_string(), " ".repeat(number.to_string().len()));
        let (pad, carets) = (" ".repeat(indent), "^".repeat(marked));
        format!(" {margin} |\n {gutter} | {shown}\n {margin} | {pad}{carets}\n")
    }
}

/// One column wide, and nothing that steers a terminal.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

/// The candidate that a mistyped word most likely meant: the same but for case and `-` or `_`, at most
/// a third of its letters away, or one part of the other.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let distance = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let letters = word.chars().count().max(candidate.chars().count());
        let edits = strsim::damerau_levenshtein(&word, &candidate);
        let is_part = word.len() >= 4 && (candidate.contains(&word) || word.contains(&candidate));
        (edits * 3 <= letters || is_part).then_some(edits)
    };
    candidates
        .into_iter()
        .filter_map(|candidate| Some((distance(candidate)?, candidate)))
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> SourceText {
        SourceText {
            name: "p.toml".to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_problem_shows_its_line_with_carets_under_the_place() {
        let source = source("a = 1\n\tworkers = \"ü\"\n");
        let start = source.text.find("\"ü\"").expect("it is there");
        let problem = Problem::at(
            &source,
            start..start + 4,
            "workers: expected a whole number",
        )
        .with_help(Some("leave out the quotes".to_owned()));
        assert_eq!(
            problem.to_string(),
            "p.toml:2:12: workers: expected a whole number\n   |\n 2 |  workers = \"ü\"\n   \
             |            ^^^\n  help: leave out the quotes\n"
        );
    }

    #[test]
    fn an_excerpt_of_any_place_in_an_ugly_file_is_one_short_clean_line() {
        let text = format!("{}\u{1b}[31m{}\r\nx", "é".repeat(300), "b".repeat(300));
        let source = source(&text);
        for offset in 0..=text.len() {
            let shown = Problem::at(&source, offset..text.len(), "m").to_string();
            assert!(
                !shown.contains('\u{1b}') && !shown.contains('\r'),
                "{offset}: {shown:?}"
            );
            assert!(
                shown.lines().all(|line| line.chars().count() < 140),
                "{offset}: {shown}"
            );
            assert!(shown.contains('^'), "{offset}: {shown}");
        }
    }

    #[test]
    fn the_nearest_word_is_found_for_typing_errors_and_for_nothing_else() {
        let known = ["workers", "log_format", "run_timeout", "cancel_grace"];
        for (word, meant) in [
            ("worker", Some("workers")),
            ("wrokers", Some("workers")),
            ("log-format", Some("log_format")),
            ("LogFormat", Some("log_format")),
            ("timeout", Some("run_timeout")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
    }

    #[test]
    fn many_problems_are_counted_and_the_first_of_the_file_come_first() {
        let source = source("a\nb\n");
        let mut problems = vec![
            Problem::new("flag --x", "late"),
            Problem::at(&source, 2..3, "second"),
        ];
        problems.push(Problem::at(&source, 0..1, "first"));
        problems.extend((0..20).map(|n| Problem::new("flag", n.to_string())));
        let text = ConfigError::new(problems).to_string();
        assert!(
            text.contains("23 problems") && text.ends_with("and 3 more"),
            "{text}"
        );
        assert!(
            text.find("first") < text.find("second") && text.find("second") < text.find("late")
        );
    }
}
