//! The `chatmesh.v1` protocol (protocol.md section 1.2; docs/consistency.md, "Subscribing and
//! catching up"): what the gateway does for clients that resume from a position and follow answers
//! while they are written.
//!
//! [`subscribers`] tracks, for each connection of a user, the last live frame it received.
//! [`catch_up`] serves the connections with a gap, which are new, slow, or missed a frame: it
//! buffers live frames, reads a snapshot, and replays the buffer. [`requests`] are the client's
//! cancels and interrupts, [`encoder`] writes the frames.
//!
//! Architecture invariant: nothing in here imports `classic`, and `classic` imports nothing of it.

pub(super) mod catch_up;
pub(super) mod encoder;
mod live_buffer;
pub(super) mod live_frame;
mod received;
pub(super) mod requests;
pub(super) mod shared_read;
#[cfg(test)]
mod sim;
pub(super) mod state;
mod subscriber;
pub(super) mod subscribers;
