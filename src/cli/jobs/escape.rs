//! Text from elsewhere made harmless: a job's message must not move the cursor, clear the screen or
//! turn the reading direction of a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// Every character that drives a terminal as a visible escape; text without any is not copied.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    escape_but(text, &[])
}

/// The same for a job's own output on a terminal: its lines, tabs and carriage returns stay.
pub(super) fn escape_output(text: &str) -> Cow<'_, str> {
    escape_but(text, &['\n', '\t', '\r'])
}

/// Controls (C0, DEL, C1), line and paragraph separators, and the marks that reorder what is read
/// ("Trojan Source", CVE-2021-42574).
pub(super) fn drives_a_terminal(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape_but<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let bad = |c: char| drives_a_terminal(c) && !kept.contains(&c);
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if !bad(c) {
            escaped.push(c);
            continue;
        }
        match c {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c if u32::from(c) < 0x100 => {
                write!(escaped, "\\x{:02x}", u32::from(c)).expect("a String takes all");
            }
            c => write!(escaped, "\\u{{{:04x}}}", u32::from(c)).expect("a String takes all"),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drives_a_terminal_becomes_visible_and_the_rest_stays() {
        assert_eq!(
            escape("\x1b[2J\u{9b}1m\x07 é ✔ 漢"),
            "\\x1b[2J\\x9b1m\\x07 é ✔ 漢"
        );
        assert_eq!(escape("a\nb\tc\rd"), "a\\nb\\tc\\rd");
        assert_eq!(escape("x\u{202e}y\u{2028}"), "x\\u{202e}y\\u{2028}");
        assert!(matches!(escape("plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn a_jobs_output_keeps_its_lines_and_loses_its_escapes() {
        assert_eq!(
            escape_output("10%\r20%\n\x1b]0;t\x07"),
            "10%\r20%\n\\x1b]0;t\\x07"
        );
    }
}
