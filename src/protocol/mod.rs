//! The types of everything that other programs see: identifiers, positions, frames and log
//! records, with their encoding and validation. The module does no I/O.
//!
//! `docs/protocol.md` specifies these types; section numbers in this module refer to it. The
//! complete shapes of all frames, for clients and for the published schemas, are in [`wire`].
//! The gateway encodes its frames with [`classic`] and [`v1`], which copy the fields of a published
//! frame without decoding them.
//!
//! Every layer may import this module, and it imports nothing else of the crate.

pub mod classic;
pub mod close;
pub mod error_code;
pub mod ids;
pub mod log_record;
pub mod open_message;
pub mod parts;
pub mod position;
pub mod published;
pub mod record;
pub mod sequence_number;
pub mod timestamp;
pub mod trace_context;
pub mod v1;
pub mod validation;
pub mod wire;

/// Encodes a frame as JSON text.
fn encode_json(frame: &impl serde::Serialize) -> String {
    // The default is never returned: serialization fails only for maps whose keys are not strings,
    // and frames have no such maps.
    serde_json::to_string(frame).unwrap_or_default()
}
