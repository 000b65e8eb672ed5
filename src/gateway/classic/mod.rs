//! The classic protocol (protocol.md section 1.1): what the gateway does for clients that know
//! neither positions nor sequence numbers.
//!
//! A classic client can't say what it has received, so the gateway remembers it: [`duplicates`]
//! filters frames that were already delivered, [`pending`] knows which messages still wait for
//! their answers, and in which order the answers must arrive. [`encoder`] writes the frames.
//!
//! Architecture invariant: nothing in here imports `v1`, and `v1` imports nothing of it.

pub(super) mod duplicates;
pub(super) mod encoder;
pub(super) mod pending;
pub(super) mod state;
