//! The classic protocol (protocol.md section 1.1): what the gateway does for clients whose protocol
//! has neither positions nor sequence numbers.
//!
//! A classic client can't report what it has received, so the gateway remembers it: [`duplicates`]
//! filters frames that were already delivered, [`pending`] tracks which messages still wait for
//! their answers, and in which order the answers must arrive. [`encoder`] encodes the frames.
//!
//! Architecture invariant: neither `classic` nor `v1` imports anything of the other module.

pub(super) mod duplicates;
pub(super) mod encoder;
pub(super) mod pending;
pub(super) mod state;
