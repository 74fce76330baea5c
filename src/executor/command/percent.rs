//! Percentages in the output of programs that know nothing of us.
//!
//! Only where it can be told for sure: in text that ends with a carriage return, which is how a bar is
//! redrawn, or in a line of the same shape as the one before it. A line with two percentages says
//! nothing. One of these reads one stream.

use crate::job::limits::{LINE_BYTES_MAX, STRING_BYTES_MAX};
use crate::job::progress::Progress;

/// Finds percentages in what one stream says. Holds at most one line of 64 KiB; longer ones are skipped.
#[derive(Debug, Default)]
pub(super) struct Percentages {
    line: Vec<u8>,
    is_too_long: bool,
    /// A line feed here would belong to the carriage return that ended the chunk before.
    skips_line_feed: bool,
    /// The shape of the line before, where it had a percentage.
    shape_before: Option<String>,
    percent_before: Option<f64>,
}

impl Percentages {
    /// Reads on, and gives the newest progress where it has changed.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Option<Progress> {
        let mut newest = None;
        if std::mem::take(&mut self.skips_line_feed) {
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(at) = memchr::memchr2(b'\n', b'\r', bytes) {
            self.push(&bytes[..at]);
            let mut is_redrawn = bytes[at] == b'\r';
            bytes = &bytes[at + 1..];
            if is_redrawn {
                match bytes.first() {
                    Some(b'\n') => {
                        bytes = &bytes[1..];
                        is_redrawn = false;
                    }
                    Some(_) => {}
                    None => self.skips_line_feed = true,
                }
            }
            newest = self.end_line(is_redrawn).or(newest);
        }
        self.push(bytes);
        newest
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.line.len() + bytes.len() > LINE_BYTES_MAX {
            self.is_too_long = true;
            self.line.clear();
        }
        if !self.is_too_long {
            self.line.extend_from_slice(bytes);
        }
    }

    fn end_line(&mut self, is_redrawn: bool) -> Option<Progress> {
        let is_too_long = std::mem::take(&mut self.is_too_long);
        if self.line.is_empty() && !is_too_long {
            return None;
        }
        if is_too_long || memchr::memchr(b'%', &self.line).is_none() {
            self.line.clear();
            self.shape_before = None;
            return None;
        }
        let line = plain_text(&self.line);
        self.line.clear();
        let Some(percent) = only_percentage(&line) else {
            self.shape_before = None;
            return None;
        };
        let shape = shape(&line);
        let is_sure = is_redrawn || self.shape_before.as_ref() == Some(&shape);
        self.shape_before = Some(shape);
        if !is_sure || self.percent_before == Some(percent) {
            return None;
        }
        self.percent_before = Some(percent);
        let mut message = line.split_whitespace().collect::<Vec<_>>().join(" ");
        crate::job::event::truncate(&mut message, STRING_BYTES_MAX);
        Some(Progress::fraction(percent / 100.0).with_message(message))
    }
}

/// Text without the sequences that move a terminal's cursor or colour it (ECMA-48, CSI), and without
/// control characters.
fn plain_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            if characters.next() == Some('[') {
                characters.find(|c| ('@'..='~').contains(c));
            }
        } else if c == '\t' {
            plain.push(' ');
        } else if !c.is_control() {
            plain.push(c);
        }
    }
    plain
}

/// The percentage of a line that has exactly one, from 0 to 100.
fn only_percentage(line: &str) -> Option<f64> {
    let mut found = None;
    for (at, _) in line.match_indices('%') {
        if let Some(percent) = percentage_before(&line[..at], &line[at + 1..]) {
            if found.is_some() {
                return None;
            }
            found = Some(percent);
        }
    }
    found.filter(|percent| (0.0..=100.0).contains(percent))
}

/// The number that ends `before`, where it stands alone and the sign is not part of a word (`%20`).
fn percentage_before(before: &str, after: &str) -> Option<f64> {
    if after.starts_with(|c: char| c.is_alphanumeric() || c == '%') {
        return None;
    }
    let before = before.strip_suffix(' ').unwrap_or(before);
    let digits = before.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ',');
    let number = &before[digits.len()..];
    // A comma before three digits groups thousands.
    if number
        .split_once(',')
        .is_some_and(|(_, after)| after.len() >= 3)
    {
        return None;
    }
    let number = number.replace(',', ".");
    let stands_alone = !digits.ends_with(|c: char| c.is_alphanumeric() || c == '-' || c == '_');
    if !stands_alone || !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    number.parse().ok()
}

/// What two lines of one kind have in common: every number is `#`, and a run of one character that is
/// neither letter nor digit (blanks, a bar) is one of it.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let mut characters = line.trim().chars().peekable();
    while let Some(c) = characters.next() {
        if c.is_ascii_digit() {
            while characters
                .next_if(|c| c.is_ascii_digit() || matches!(c, '.' | ','))
                .is_some()
            {}
            shape.push('#');
        } else {
            if !c.is_alphanumeric() {
                while characters.next_if_eq(&c).is_some() {}
            }
            shape.push(c);
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every percentage found when the text comes in pieces of this many bytes.
    fn found(text: &str, piece: usize) -> Vec<f64> {
        let mut percentages = Percentages::default();
        text.as_bytes()
            .chunks(piece)
            .filter_map(|chunk| percentages.read(chunk))
            .filter_map(|progress| progress.fraction)
            .map(|fraction| (fraction * 1000.0).round() / 10.0)
            .collect()
    }

    #[test]
    fn percentages_are_found_only_where_they_can_be_told_for_sure() {
        for (text, expected) in [
            (" 45%\r", vec![45.0]),
            ("\r10%\r20 %\r30.5%\r", vec![10.0, 20.0, 30.5]),
            ("\u{1b}[2K\u{1b}[32m 45%\u{1b}[0m\r", vec![45.0]),
            ("[=>  ] 45,5% eta 3s\r", vec![45.5]),
            ("(100%)\r", vec![100.0]),
            // Twice the same shape; the first alone could be anything.
            ("page 1: 10%\npage 2: 20%\n", vec![20.0]),
            ("[>    ]  9%\n[==>  ] 10%\n[===> ] 11%\n", vec![11.0]),
            ("  9%\r\n 10%\r\n", vec![10.0]),
            ("disk 81%\nfine\ndisk 82%\n", vec![]),
            ("disk 81%\n", vec![]),
            ("a 10%\nb 20%\n", vec![]),
            ("10%\n10%\n10%\n", vec![10.0]),
            // Two in a line, none, and what only looks like one.
            ("10% of 50%\r", vec![]),
            ("150%\r", vec![]),
            ("1,234%\r", vec![]),
            ("-5%\r", vec![]),
            ("x5%\r", vec![]),
            ("/a%20b\r", vec![]),
            ("100%20\r", vec![]),
            ("%\r", vec![]),
            ("1.2.3%\r", vec![]),
            (" 45%", vec![]),
        ] {
            assert_eq!(found(text, 1024), all_in_one(&expected), "{text:?}");
            if !text.contains("\r\n") {
                assert_eq!(found(text, 1), expected, "{text:?} byte by byte");
            }
        }
    }

    /// One chunk gives the newest of its percentages.
    fn all_in_one(expected: &[f64]) -> Vec<f64> {
        expected.last().copied().into_iter().collect()
    }

    #[test]
    fn a_stream_as_rsync_redraws_it_is_followed() {
        let stream = "sending incremental file list\n\r         32,768   0%    0.00kB/s    0:00:00  \r     12,345,678  45%   11.77MB/s    0:00:01  \r     27,000,000 100%   12.00MB/s    0:00:02 (xfr#1, to-chk=0/1)\n\nsent 27,006,677 bytes\n";
        assert_eq!(found(stream, 7), [0.0, 45.0]);
        let mut percentages = Percentages::default();
        let half_way = stream.find("\r     27").expect("is there");
        let progress = percentages
            .read(&stream.as_bytes()[..=half_way])
            .expect("45 %");
        assert_eq!(progress.message, "12,345,678 45% 11.77MB/s 0:00:01");
    }

    #[test]
    fn a_line_beyond_the_bound_is_skipped_and_the_next_is_read() {
        let fits = format!("{}45%\r", " ".repeat(LINE_BYTES_MAX - 3));
        assert_eq!(found(&fits, 4096), [45.0]);
        let too_long = format!("{}45%\r50%\r", " ".repeat(LINE_BYTES_MAX - 2));
        assert_eq!(found(&too_long, 4096), [50.0]);
    }
}
