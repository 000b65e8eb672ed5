//! What other programs can see: identifiers, positions, client frames and log records. No I/O.
//!
//! The rules are those of the wire contracts (`docs/protocol.md`); section numbers in the
//! documentation of these types point there.

pub mod close;
pub mod error_code;
pub mod frame;
pub mod ids;
pub mod log_record;
pub mod open_message;
pub mod position;
pub mod record;
pub mod timestamp;
pub mod trace_context;
pub mod v1;
pub mod wire;
