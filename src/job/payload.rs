//! Bytes in or out of a job: JSON, text or data, each with a media type.
//!
//! JSON is kept as normalised text (RFC 8785), so that equal values are equal bytes: for fingerprints,
//! for programs that read it, and for whoever reads the store.

use bytes::Bytes;
use serde::Serialize;

use crate::job::limits::{EXACT_INTEGER_MAX, JSON_DEPTH_MAX, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX};

/// What a payload holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Normalised JSON text. Only [`Payload::json`] makes it.
    Json(String),
    /// Text, as given.
    Text(String),
    /// Bytes, as given.
    Data(Bytes),
}

/// An input, result, checkpoint or output chunk. At most 1 MiB as encoded protobuf.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    content: Content,
    media_type: Option<String>,
}

impl Payload {
    /// A JSON value, normalised: sorted keys, integral numbers printed as integers.
    ///
    /// # Errors
    /// Where it nests deeper than 30, or has an integer beyond ±2^53, which no JSON number holds exactly.
    pub fn json(value: &serde_json::Value) -> Result<Self, String> {
        let depth = depth(value);
        if depth > JSON_DEPTH_MAX {
            return Err(format!(
                "nests {depth} deep; at most {JSON_DEPTH_MAX} are accepted: send text with media type application/json"
            ));
        }
        check_integers(value)?;
        let text = serde_json_canonicalizer::to_string(value)
            .map_err(|error| format!("is not JSON that can be normalised: {error}"))?;
        Ok(Self::new(Content::Json(text)))
    }

    /// Any value that serde can write as JSON.
    ///
    /// # Errors
    /// Where it cannot be written, and as [`Payload::json`].
    pub fn from_serialize(value: &impl Serialize) -> Result<Self, String> {
        let value = serde_json::to_value(value).map_err(|error| error.to_string())?;
        Self::json(&value)
    }

    /// Text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Content::Text(text.into()))
    }

    /// Bytes.
    pub fn data(data: impl Into<Bytes>) -> Self {
        Self::new(Content::Data(data.into()))
    }

    /// Text where the bytes are UTF-8, data where they are not.
    pub fn text_or_data(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::text(text),
            Err(error) => Self::data(error.into_bytes()),
        }
    }

    /// From what a store kept: JSON is taken as it is, because it was normalised on the way in.
    pub fn from_parts(content: Content, media_type: Option<String>) -> Self {
        Self {
            content,
            media_type,
        }
    }

    /// With a media type in place of the content's default.
    ///
    /// # Errors
    /// Where it is longer than 1 KiB or has other than visible ASCII and spaces.
    pub fn with_media_type(mut self, media_type: impl Into<String>) -> Result<Self, String> {
        let media_type = media_type.into();
        if media_type.len() > STRING_BYTES_MAX {
            return Err(format!(
                "is {} bytes; at most {STRING_BYTES_MAX} are accepted",
                media_type.len()
            ));
        }
        if let Some(c) = media_type.chars().find(|c| !matches!(c, ' '..='~')) {
            return Err(format!(
                "has the character {c:?}; only visible ASCII is accepted"
            ));
        }
        self.media_type = (!media_type.is_empty()).then_some(media_type);
        Ok(self)
    }

    /// A copy that keeps nothing else in memory: bytes are a part of the request that they came in.
    pub fn detached(&self) -> Self {
        let content = match &self.content {
            Content::Data(data) => Content::Data(Bytes::copy_from_slice(data)),
            text => text.clone(),
        };
        Self::from_parts(content, self.media_type.clone())
    }

    fn new(content: Content) -> Self {
        Self::from_parts(content, None)
    }

    /// What it holds.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The media type given, if any.
    pub fn given_media_type(&self) -> Option<&str> {
        self.media_type.as_deref()
    }

    /// The media type: as given, or the content's default.
    pub fn media_type(&self) -> &str {
        match (&self.media_type, &self.content) {
            (Some(given), _) => given,
            (None, Content::Json(_)) => "application/json",
            (None, Content::Text(_)) => "text/plain",
            (None, Content::Data(_)) => "application/octet-stream",
        }
    }

    /// The bytes: normalised JSON text, text, or data.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.content {
            Content::Json(text) | Content::Text(text) => text.as_bytes(),
            Content::Data(data) => data,
        }
    }

    /// The JSON value, where it is JSON: as such, or as text with media type application/json.
    pub fn to_json(&self) -> Option<serde_json::Value> {
        match &self.content {
            Content::Json(text) => serde_json::from_str(text).ok(),
            Content::Text(text) if self.media_type() == "application/json" => {
                serde_json::from_str(text).ok()
            }
            Content::Text(_) | Content::Data(_) => None,
        }
    }

    /// Its size as an encoded `pacenote.v1.Payload`. Bytes.
    pub fn encoded_len(&self) -> usize {
        let media_type = self.media_type.as_deref().map_or(0, |m| field_len(m.len()));
        let content = match &self.content {
            Content::Text(text) => field_len(text.len()),
            Content::Data(data) => field_len(data.len()),
            Content::Json(text) => {
                let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
                field_len(value_len(&value))
            }
        };
        content + media_type
    }

    /// Checks the size.
    ///
    /// # Errors
    /// A sentence that names the size and the bound.
    pub fn check_size(&self) -> Result<(), String> {
        // Most payloads are far below: a JSON text grows at most eightfold as protobuf.
        if self.as_bytes().len() < PAYLOAD_BYTES_MAX / 16 {
            return Ok(());
        }
        let bytes = self.encoded_len();
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(format!(
                "is {bytes} bytes; at most {PAYLOAD_BYTES_MAX} are accepted: keep large data elsewhere and pass a reference"
            ));
        }
        Ok(())
    }
}

/// Nesting: a scalar is 0, an array or object one more than what is in it.
pub(super) fn depth(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        serde_json::Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Refuses integers that normalising would round: better an error than another number.
fn check_integers(value: &serde_json::Value) -> Result<(), String> {
    match value {
        serde_json::Value::Number(number) => {
            let negative = number.as_i64().map(i64::unsigned_abs);
            match negative.or_else(|| number.as_u64()) {
                Some(magnitude) if magnitude > EXACT_INTEGER_MAX => Err(format!(
                    "has the integer {number}; at most 2^53 ({EXACT_INTEGER_MAX}) either way is accepted, because JSON numbers beyond lose digits: write it as a string, or send text with media type application/json"
                )),
                _ => Ok(()),
            }
        }
        serde_json::Value::Array(items) => items.iter().try_for_each(check_integers),
        serde_json::Value::Object(fields) => fields.values().try_for_each(check_integers),
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::String(_) => {
            Ok(())
        }
    }
}

/// Encoded length of `google.protobuf.Value`, which every JSON value travels as.
fn value_len(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Null | serde_json::Value::Bool(_) => 2,
        serde_json::Value::Number(_) => 9,
        serde_json::Value::String(text) => field_len(text.len()),
        serde_json::Value::Array(items) => {
            field_len(items.iter().map(|item| field_len(value_len(item))).sum())
        }
        serde_json::Value::Object(fields) => {
            let entry = |(key, item): (&String, &serde_json::Value)| {
                // Protobuf leaves an empty key out.
                let key = if key.is_empty() {
                    0
                } else {
                    field_len(key.len())
                };
                field_len(key + field_len(value_len(item)))
            };
            field_len(fields.iter().map(entry).sum())
        }
    }
}

/// A length-delimited field with a one-byte tag.
fn field_len(len: usize) -> usize {
    let varint = (usize::BITS - (len | 1).leading_zeros()).div_ceil(7) as usize;
    1 + varint + len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> serde_json::Value {
        (0..depth).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]))
    }

    #[test]
    fn json_is_normalised() {
        let value = serde_json::json!({"b": 1.0, "a": [true, null, "é\u{0}"], "": 1e21});
        let payload = Payload::json(&value).expect("valid");
        assert_eq!(
            payload.content(),
            &Content::Json("{\"\":1e+21,\"a\":[true,null,\"é\\u0000\"],\"b\":1}".to_owned())
        );
    }

    #[test]
    fn json_deeper_than_the_bound_is_refused() {
        assert!(Payload::json(&nested(JSON_DEPTH_MAX)).is_ok());
        let error = Payload::json(&nested(JSON_DEPTH_MAX + 1)).expect_err("too deep");
        assert!(error.contains("31") && error.contains("30"), "{error}");
    }

    #[test]
    fn an_integer_that_would_be_rounded_is_refused_wherever_it_stands() {
        let most = EXACT_INTEGER_MAX as i64;
        for exact in [most, -most] {
            assert!(Payload::json(&serde_json::json!({ "ids": [exact] })).is_ok());
        }
        let beyond = [
            serde_json::json!(most + 1),
            serde_json::json!([-most - 1]),
            serde_json::json!({"a": {"b": [i64::MIN]}}),
            serde_json::json!({ "a": u64::MAX }),
        ];
        for value in beyond {
            let error = Payload::json(&value).expect_err("rounds");
            assert!(
                error.contains("2^53") && error.contains("application/json"),
                "{error}"
            );
        }
        assert!(
            Payload::json(&serde_json::json!(1e300)).is_ok(),
            "no integer"
        );
    }

    #[test]
    fn a_payload_beyond_the_bound_is_refused_with_size_and_bound() {
        // Tag and a three-byte length stand before the text.
        assert!(
            Payload::text("x".repeat(PAYLOAD_BYTES_MAX - 4))
                .check_size()
                .is_ok()
        );
        let error = Payload::text("x".repeat(PAYLOAD_BYTES_MAX - 3))
            .check_size()
            .expect_err("one byte too many");
        assert!(
            error.contains("1048577") && error.contains("1048576"),
            "{error}"
        );
    }
}
