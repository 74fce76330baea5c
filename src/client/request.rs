//! Requests made from what a program has.

use serde::Serialize;
use serde::ser::Error as _;

use crate::job::payload::Payload;
use crate::{pb, wire};

/// A request for a job of this type, with this input as JSON; everything else is as the type has it.
///
/// # Errors
/// Where the input cannot be written as JSON, or is nested deeper than 30.
///
/// ```
/// let request = pacenote::client::request("sum", &[1, 2, 3]).expect("numbers are JSON");
/// assert_eq!(request.r#type, "sum");
/// ```
pub fn request(
    job_type: &str,
    input: &impl Serialize,
) -> Result<pb::SubmitRequest, serde_json::Error> {
    let input = Payload::from_serialize(input).map_err(serde_json::Error::custom)?;
    Ok(pb::SubmitRequest {
        r#type: job_type.to_owned(),
        input: Some(wire::to_payload(input)),
        ..pb::SubmitRequest::default()
    })
}
