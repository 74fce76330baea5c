//! Messages as canonical proto JSON, one a line, safe to look at on a terminal.
//!
//! Integral doubles are printed as integers, as the server stores them (RFC 8785), so that an input
//! comes back as it was typed.

use std::io::{self, Write};

use prost_reflect::{DynamicMessage, ReflectMessage};
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::cli::jobs::escape::drives_a_terminal;
use crate::pb;

/// 2^53: up to it a double tells neighbouring integers apart.
pub(super) const INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

/// A message as one line, without its line feed.
///
/// # Errors
/// Where it nests deeper than prost decodes (100 messages), or holds a number JSON has no word for.
pub(super) fn line(message: &impl ReflectMessage) -> io::Result<String> {
    plain(&dynamic(message)?)
}

/// The answer to a submit as one line: the job, and whether an earlier one had made it. Beside
/// the job's own fields, and not around them, so that every command's job is read in the same way.
///
/// # Errors
/// As [`line`].
pub(super) fn submitted(job: &pb::Job, deduplicated: bool) -> io::Result<String> {
    #[derive(Serialize)]
    struct Submitted {
        #[serde(flatten)]
        job: DynamicMessage,
        deduplicated: bool,
    }
    plain(&Submitted {
        job: dynamic(job)?,
        deduplicated,
    })
}

fn dynamic(message: &impl ReflectMessage) -> io::Result<DynamicMessage> {
    // Not transcode_to_dynamic(), which panics on a value that nests deeper than prost decodes.
    DynamicMessage::decode(message.descriptor(), message.encode_to_vec().as_slice())
        .map_err(io::Error::other)
}

fn plain(value: &impl Serialize) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Plain);
    value.serialize(&mut serializer).map_err(io::Error::other)?;
    Ok(String::from_utf8(bytes).expect("serde_json writes UTF-8"))
}

struct Plain;

impl Formatter for Plain {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        if value.fract() == 0.0 && value.abs() <= INTEGER_MAX {
            // Adding 0.0 turns -0 into 0.
            write!(writer, "{:.0}", value + 0.0)
        } else {
            write!(writer, "{}", serde_json::Value::from(value))
        }
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // serde_json escapes C0 alone. All others that drive a terminal are below U+10000: one unit.
        for c in fragment.chars() {
            if drives_a_terminal(c) {
                write!(writer, "\\u{:04x}", u32::from(c))?;
            } else {
                write!(writer, "{c}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_canonical_proto_json() {
        let event = pb::JobEvent {
            job_id: "j".to_owned(),
            sequence: 7,
            event: Some(pb::job_event::Event::Progress(pb::Progress {
                fraction: Some(1.0),
                completed_units: Some(4),
                message: "a\u{9b}b\x1b".to_owned(),
                ..pb::Progress::default()
            })),
            ..pb::JobEvent::default()
        };
        assert_eq!(
            line(&event).expect("serialises"),
            r#"{"jobId":"j","sequence":"7","progress":{"fraction":1,"completedUnits":"4","message":"a\u009bb\u001b"}}"#
        );
    }
}
