//! Keeps what running work hands over within the bounds that payloads have: what is too large is refused
//! with a sentence that says how large it is.

use serde_json::Value;

use crate::job::payload::Payload;

/// A JSON payload that is as exact as the value and not too large.
///
/// # Errors
/// A sentence that names the bound: its size, its depth, or an integer that would lose digits.
pub(super) fn json_payload(value: &Value) -> Result<Payload, String> {
    let payload = Payload::json(value)?;
    payload.check_size()?;
    Ok(payload)
}
