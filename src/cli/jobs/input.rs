//! What a person gives as input, made into a payload: JSON where it is JSON, with its digits kept.

use std::io::Read;
use std::path::Path;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde::de::IgnoredAny;

use crate::pb;
use crate::pb::payload::Content;

/// 2^53 in digits: longer or greater integers lose some in a double.
const INTEGER_MAX_DIGITS: &str = "9007199254740992";

/// Reads a file, or stdin for `-`.
///
/// # Errors
/// A sentence with the name of the file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|error| format!("cannot read stdin: {error}"))?;
        return Ok(bytes);
    }
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// A payload of JSON text. Where a double would lose digits of an integer, the text is sent as it is,
/// with media type application/json.
///
/// # Errors
/// What is wrong, where, and the line with a mark under it.
pub(super) fn json(source: &str, text: &str) -> Result<pb::Payload, String> {
    let wrong = |error: serde_json::Error| not_json(source, text, &error);
    // Syntax first, without a look at the numbers: too long an integer is no mistake.
    serde_json::from_str::<IgnoredAny>(text).map_err(wrong)?;
    if has_wide_integer(text) {
        return Ok(as_is(text.as_bytes().to_vec(), "application/json"));
    }
    let value = serde_json::from_str(text).map_err(wrong)?;
    Ok(pb::Payload {
        content: Some(Content::Json(to_value(value))),
        media_type: String::new(),
    })
}

/// A payload of text, or of bytes where it is no UTF-8, with a media type.
pub(super) fn as_is(bytes: Vec<u8>, media_type: &str) -> pb::Payload {
    let content = match String::from_utf8(bytes) {
        Ok(text) => Content::Text(text),
        Err(error) => Content::Data(error.into_bytes().into()),
    };
    pb::Payload {
        content: Some(content),
        media_type: media_type.to_owned(),
    }
}

fn not_json(source: &str, text: &str, error: &serde_json::Error) -> String {
    let mut message = format!("{source} is not JSON: {error}");
    let wrong_line = text.lines().nth(error.line().saturating_sub(1));
    // A mark under a line that is wider than a screen helps nobody.
    if let Some(line) = wrong_line.filter(|line| line.len() <= 160) {
        let column = error.column().saturating_sub(1).min(line.len());
        let before = String::from_utf8_lossy(&line.as_bytes()[..column]);
        let indent = " ".repeat(before.chars().count());
        let line = super::escape::escape(line);
        message.push_str(&format!("\n  {line}\n  {indent}^"));
    }
    message
}

/// Whether an integer in valid JSON text is beyond ±2^53.
pub(super) fn has_wide_integer(text: &str) -> bool {
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c == '"' || c.is_ascii_digit()) {
        rest = &rest[start..];
        if let Some(string) = rest.strip_prefix('"') {
            rest = after_string(string);
            continue;
        }
        let number = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
        let end = rest.find(|c| !number(c)).unwrap_or(rest.len());
        let (token, after) = rest.split_at(end);
        let is_integer = token.bytes().all(|byte| byte.is_ascii_digit());
        let max = INTEGER_MAX_DIGITS;
        // JSON has no leading zeros: the longer one is the greater.
        if is_integer && (token.len(), token) > (max.len(), max) {
            return true;
        }
        rest = after;
    }
    false
}

/// What follows a string's closing quote.
fn after_string(text: &str) -> &str {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

fn to_value(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(number) => Kind::NumberValue(
            number
                .as_f64()
                .expect("without arbitrary precision every number is a double"),
        ),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(items) => Kind::ListValue(ListValue {
            values: items.into_iter().map(to_value).collect(),
        }),
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .into_iter()
                .map(|(name, value)| (name, to_value(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_text(text: &str) -> bool {
        let payload = json("--input", text).expect(text);
        match payload.content.expect("some content") {
            Content::Json(_) => false,
            Content::Text(sent) => {
                assert_eq!(
                    (sent.as_str(), payload.media_type.as_str()),
                    (text, "application/json")
                );
                true
            }
            Content::Data(_) => panic!("{text} became bytes"),
        }
    }

    #[test]
    fn integers_that_would_lose_digits_are_sent_as_text() {
        for text in [
            "9007199254740993",
            "[-9007199254740993]",
            r#"{"a":[1,{"id":123456789012345678901234567890}]}"#,
            &format!("1{}", "0".repeat(400)),
        ] {
            assert!(is_text(text), "{text}");
        }
        for text in [
            "9007199254740992",
            "-9007199254740992",
            "1e300",
            "0.12345678901234567890",
            r#"{"9007199254740993":"9007199254740993 \" 9007199254740993"}"#,
            "null",
        ] {
            assert!(!is_text(text), "{text}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        let error = json("--input", "{\"a\": 1,\n \"b\" 2}").expect_err("a missing colon");
        assert!(error.contains("line 2 column 6"), "{error}");
        assert!(error.ends_with("\n   \"b\" 2}\n       ^"), "{error}");
        assert!(json("--input", "").is_err());
    }

    #[test]
    fn bytes_that_are_no_text_stay_bytes() {
        let payload = as_is(vec![0xff, 0x00], "image/png");
        assert!(matches!(payload.content, Some(Content::Data(_))));
        assert_eq!(payload.media_type, "image/png");
    }
}
