//! What a program that serves jobs of its own, or talks to a server, starts from: names that lead to
//! where things are defined, and one shortcut.

use serde::Serialize;
use serde::ser::Error as _;

pub use crate::client::{Client, ClientError, RunOptions, Update, WatchOptions};
pub use crate::config::{Caps, Config, TenantSettings, TypeSettings};
pub use crate::executor::handler::{Context, HandlerError, HandlerExecutor};
pub use crate::job::event::LogLevel;
pub use crate::job::name::Name;
pub use crate::job::payload::Payload;
pub use crate::job::policy::GivenRetention;
pub use crate::job::progress::Progress;
pub use crate::server::{ServeError, Server};

use crate::pb;
use crate::wire;

/// A request for a job of this type, with this input as JSON; everything else is as the type has it.
///
/// # Errors
/// Where the input cannot be written as JSON, or is nested deeper than 30.
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
