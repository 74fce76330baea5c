//! Keeps what running work hands over within the bounds that a job's error and payloads have: errors
//! are cut, payloads are refused with a sentence that says how large they are.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::executor::reporter::truncate;
use crate::job::event::JobError;
use crate::job::limits::{DETAIL_BYTES_MAX, DURATION_MAX, ERROR_METADATA_MAX, STRING_BYTES_MAX};
use crate::job::payload::Payload;

/// Cuts every part of an error to its bound, texts at character boundaries.
pub(super) fn cut(mut error: JobError) -> JobError {
    truncate(&mut error.reason, STRING_BYTES_MAX);
    truncate(&mut error.message, STRING_BYTES_MAX);
    truncate(&mut error.detail, DETAIL_BYTES_MAX);
    error.retry_after = error.retry_after.map(|wait| wait.min(DURATION_MAX));
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
    let payload = Payload::json(value)?;
    payload.check_size()?;
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_part_of_an_error_is_cut_to_its_bound() {
        let mut error = JobError::retryable("R", "é".repeat(STRING_BYTES_MAX))
            .with_detail("d".repeat(DETAIL_BYTES_MAX + 1));
        for i in 0..=ERROR_METADATA_MAX {
            error = error.with_metadata(&format!("k{i:02}"), "v".repeat(STRING_BYTES_MAX + 1));
        }
        let error = cut(error.with_retry_after(DURATION_MAX + Duration::from_secs(1)));
        assert_eq!(error.retry_after, Some(DURATION_MAX));
        assert_eq!(error.message.len(), STRING_BYTES_MAX);
        assert_eq!(error.detail.len(), DETAIL_BYTES_MAX);
        assert_eq!(error.metadata.len(), ERROR_METADATA_MAX);
        assert!(error.metadata.values().all(|v| v.len() == STRING_BYTES_MAX));
    }
}
