//! What becomes a command's result: its stdout as text, its stdout as JSON, or what it told.

use serde_json::Value;

use crate::config::ResultMode;
use crate::executor::bounds;
use crate::executor::command::streams::Tail;
use crate::job::event::JobError;
use crate::job::limits::PAYLOAD_BYTES_MAX;
use crate::job::payload::Payload;

/// The most text that fits a payload: its tag and a length of three bytes stand before it.
const TEXT_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 4;
/// The most JSON text that is read. Chosen: a payload of the largest size, with blanks and escapes.
const JSON_BYTES_MAX: usize = 4 * PAYLOAD_BYTES_MAX;
/// Bytes of a character beyond its first, at most, in UTF-8.
const CONTINUATION_BYTES_MAX: usize = 3;

/// A result, and what is to be said about it in the job's log.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) result: Option<Payload>,
    pub(super) note: Option<String>,
}

/// How much of the end of stdout has to be kept. Bytes.
pub(super) fn stdout_bytes_kept(mode: ResultMode) -> usize {
    match mode {
        ResultMode::StdoutText => TEXT_BYTES_MAX,
        ResultMode::StdoutJson => JSON_BYTES_MAX,
        ResultMode::Events => 0,
    }
}

/// The result of a program that has succeeded.
///
/// # Errors
/// `RESULT_INVALID`, not retried: it would write the same again.
pub(super) fn find(
    mode: ResultMode,
    stdout: Tail,
    told: Option<Result<Payload, String>>,
) -> Result<Found, JobError> {
    let invalid = |what: &str, problem: String| {
        JobError::permanent("RESULT_INVALID", format!("{what} {problem}"))
    };
    match mode {
        ResultMode::StdoutText => Ok(text(stdout)),
        ResultMode::StdoutJson => {
            let result = json(stdout).map_err(|problem| invalid("stdout", problem))?;
            Ok(Found {
                result: Some(result),
                note: None,
            })
        }
        ResultMode::Events => {
            let result = told
                .transpose()
                .map_err(|problem| invalid("the result", problem))?;
            Ok(Found { result, note: None })
        }
    }
}

fn text(stdout: Tail) -> Found {
    let total = stdout.total();
    let (mut bytes, is_cut) = stdout.into_bytes();
    if is_cut {
        // The cut may have hit a character: what is left of it goes, too.
        let is_continuation = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
        let left = bytes
            .iter()
            .take(CONTINUATION_BYTES_MAX)
            .take_while(is_continuation);
        let left = left.count();
        if std::str::from_utf8(&bytes[left..]).is_ok() {
            bytes.drain(..left);
        }
    }
    let note = is_cut.then(|| {
        format!(
            "the result is truncated: stdout was {total} bytes, and only the last {} fit",
            bytes.len()
        )
    });
    Found {
        result: Some(Payload::text_or_data(bytes)),
        note,
    }
}

fn json(stdout: Tail) -> Result<Payload, String> {
    let total = stdout.total();
    let (bytes, is_cut) = stdout.into_bytes();
    if is_cut {
        return Err(format!(
            "is {total} bytes; at most {JSON_BYTES_MAX} are read as JSON: keep large data elsewhere and print a reference"
        ));
    }
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|error| format!("is not JSON: {error}"))?;
    bounds::json_payload(&value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::payload::Content;

    fn find_in(mode: ResultMode, stdout: &[u8]) -> Result<Found, JobError> {
        let mut tail = Tail::new(stdout_bytes_kept(mode));
        for chunk in stdout.chunks(64 * 1024) {
            tail.push(chunk);
        }
        find(mode, tail, None)
    }

    #[test]
    fn text_at_the_limit_is_whole_and_one_byte_past_it_is_cut_and_said() {
        let at = |stdout: &[u8]| {
            let found = find_in(ResultMode::StdoutText, stdout).expect("text always is");
            let result = found.result.expect("given");
            result.check_size().expect("fits");
            (result.content().clone(), found.note)
        };
        let whole = "x".repeat(TEXT_BYTES_MAX);
        assert_eq!(at(whole.as_bytes()), (Content::Text(whole.clone()), None));
        let (content, note) = at(format!("y{whole}").as_bytes());
        assert_eq!(content, Content::Text(whole));
        assert!(note.expect("said").contains("1048573"));
        // An odd limit would cut these in two; this one is made odd by the byte at the end.
        let (content, _) = at(format!("{}x", "é".repeat(TEXT_BYTES_MAX / 2)).as_bytes());
        assert_eq!(
            content,
            Content::Text(format!("{}x", "é".repeat(TEXT_BYTES_MAX / 2 - 1)))
        );
        assert_eq!(at(b"").0, Content::Text(String::new()));
        assert_eq!(at(b"a\xff").0, Content::Data(b"a\xff".as_slice().into()));
    }

    #[test]
    fn json_that_does_not_parse_or_is_too_large_is_refused() {
        let at = |stdout: &str| find_in(ResultMode::StdoutJson, stdout.as_bytes());
        let found = at(" {\"b\": 1.0, \"a\": []}\n").expect("valid");
        assert_eq!(
            found.result.expect("given").as_bytes(),
            br#"{"a":[],"b":1}"#
        );
        let string = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
        assert!(at(&string(PAYLOAD_BYTES_MAX - 8)).is_ok());
        let blank = format!("{}1", " ".repeat(JSON_BYTES_MAX - 1));
        assert!(at(&blank).is_ok());
        for (bad, why) in [
            (String::new(), "not JSON"),
            ("{} {}".to_owned(), "not JSON"),
            (string(PAYLOAD_BYTES_MAX - 7), "at most"),
            (format!(" {blank}"), "at most"),
            ("[".repeat(100), "not JSON"),
            ("9007199254740993".to_owned(), "2^53"),
        ] {
            let error = at(&bad).expect_err("refused");
            assert_eq!(
                (error.reason.as_str(), error.retryable),
                ("RESULT_INVALID", false)
            );
            assert!(error.message.contains(why), "{}", error.message);
        }
    }
}
