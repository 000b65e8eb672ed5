//! The `chatmesh.v1` protocol (protocol.md section 1.2; docs/consistency.md, "Subscribing and
//! catching up"): what the gateway does for clients that resume from a position and follow answers
//! while they are written.
//!
//! [`subscribers`] tracks, for each connection of a user, the last live frame it received and, with
//! [`stream_progress`], the text that it was sent of the answers in flight. [`stream_reads`]
//! decides when missing text is read. [`catch_up`] serves the stale connections, which are new,
//! slow, or have missed a frame: it buffers live frames, reads the user view, sends it, and replays
//! the buffer. [`requests`] calls the fan-out for the client's cancels and interrupts, [`encoder`]
//! encodes the frames.
//!
//! Architecture invariant: neither `v1` nor `classic` imports anything of the other module.

pub(super) mod catch_up;
pub(super) mod encoder;
mod live_buffer;
pub(super) mod live_frame;
mod logical_time;
mod missing_text;
mod received;
pub(super) mod requests;
pub(super) mod shared_read;
#[cfg(test)]
mod sim;
pub(super) mod state;
pub(super) mod stream_key;
mod stream_progress;
mod stream_reads;
mod subscriber;
pub(super) mod subscribers;
