//! Keeps what running work hands over within the bounds that a job's error and payloads have: errors
//! are cut, payloads are refused with a sentence that says how large they are.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::executor::reporter::truncate;
use crate::job::event::JobError;
use crate::job::limits::{DETAIL_BYTES_MAX, ERROR_METADATA_MAX, STRING_BYTES_MAX};
use crate::job::payload::Payload;

/// The integers that a double holds exactly: 2^53, the range that JSON normalised by RFC 8785 keeps.
const EXACT_INTEGER_MAX: u64 = 1 << 53;

/// Cuts every part of an error to its bound, at character boundaries.
pub(super) fn cut(mut error: JobError) -> JobError {
    truncate(&mut error.reason, STRING_BYTES_MAX);
    truncate(&mut error.message, STRING_BYTES_MAX);
    truncate(&mut error.detail, DETAIL_BYTES_MAX);
    let short = |mut text: String| {
        truncate(&mut text, STRING_BYTES_MAX);
        text
    };
    let metadata: BTreeMap<_, _> = std::mem::take(&mut error.metadata)
        .into_iter()
        .take(ERROR_METADATA_MAX)
        .map(|(key, value)| (short(key), short(value)))
        .collect();
    error.metadata = metadata;
    error
}

/// A JSON payload that is as exact as the value and not too large.
///
/// # Errors
/// A sentence that names the bound: its size, its depth, or an integer that would lose digits.
pub(super) fn json_payload(value: &Value) -> Result<Payload, String> {
    check_integers(value)?;
    let payload = Payload::json(value)?;
    payload.check_size()?;
    Ok(payload)
}

/// Refuses integers that normalising would round: better an error than another number.
fn check_integers(value: &Value) -> Result<(), String> {
    match value {
        Value::Number(number) => {
            let magnitude = number
                .as_i64()
                .map(i64::unsigned_abs)
                .or_else(|| number.as_u64());
            match magnitude {
                Some(magnitude) if magnitude > EXACT_INTEGER_MAX => Err(format!(
                    "has the integer {number}, which JSON numbers cannot hold exactly; at most 2^53 is accepted: write it as a string"
                )),
                _ => Ok(()),
            }
        }
        Value::Array(items) => items.iter().try_for_each(check_integers),
        Value::Object(fields) => fields.values().try_for_each(check_integers),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_error_is_cut_to_its_bound() {
        let mut error = JobError::retryable("R", "é".repeat(STRING_BYTES_MAX))
            .with_detail("d".repeat(DETAIL_BYTES_MAX + 1));
        for i in 0..=ERROR_METADATA_MAX {
            error = error.with_metadata(&format!("k{i:02}"), "v".repeat(STRING_BYTES_MAX + 1));
        }
        let error = cut(error);
        assert_eq!(error.message.len(), STRING_BYTES_MAX);
        assert_eq!(error.detail.len(), DETAIL_BYTES_MAX);
        assert_eq!(error.metadata.len(), ERROR_METADATA_MAX);
        assert!(error.metadata.values().all(|v| v.len() == STRING_BYTES_MAX));
    }

    #[test]
    fn an_integer_that_would_be_rounded_is_refused() {
        let at = |n: u64| json_payload(&serde_json::json!({ "ids": [n] }));
        assert!(at(EXACT_INTEGER_MAX).is_ok());
        let problem = at(EXACT_INTEGER_MAX + 1).expect_err("rounds");
        assert!(problem.contains("9007199254740993"), "{problem}");
    }
}
