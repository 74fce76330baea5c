//! The wire: what `build.rs` generates from `proto/`, and nothing of our own but the one message that
//! is cheaper by hand.
//!
//! It promises to be exactly the published protobuf package `pacenote.v1`. It does not know what the
//! words mean: `wire` translates them.

#[cfg(feature = "server")]
use std::sync::LazyLock;

use bytes::Bytes;
#[cfg(feature = "server")]
use prost_reflect::{DescriptorPool, ReflectMessage};

#[expect(
    clippy::large_enum_variant,
    reason = "generated: a message is as big as its fields"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/pacenote.v1.rs"));
}

pub use generated::*;

/// The descriptor set of `pacenote.v1` and its imports, with comments: what reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/pacenote.fds.bin"));

/// The same, parsed: what the JSON form of messages is made with.
#[cfg(feature = "server")]
pub static DESCRIPTOR_POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("build.rs wrote a valid descriptor set")
});

/// `pacenote.v1.EventBatch`, with each event as its encoded bytes: on the wire `repeated bytes` and a
/// repeated message are the same. So an event is encoded once, when it is stored, and then read,
/// published and sent to any number of watchers as it is. Decode one with [`EventBatch::decoded`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventBatch {
    /// Encoded [`JobEvent`]s, ascending by sequence.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub events: Vec<Bytes>,
}

impl EventBatch {
    /// The events as messages.
    ///
    /// # Errors
    /// Where an event is no valid `JobEvent`.
    pub fn decoded(&self) -> Result<Vec<JobEvent>, prost::DecodeError> {
        self.events
            .iter()
            .map(|event| prost::Message::decode(event.clone()))
            .collect()
    }
}

#[cfg(feature = "server")]
impl ReflectMessage for EventBatch {
    fn descriptor(&self) -> prost_reflect::MessageDescriptor {
        DESCRIPTOR_POOL
            .get_message_by_name("pacenote.v1.EventBatch")
            .expect("the descriptor set holds EventBatch")
    }
}
