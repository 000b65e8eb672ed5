//! The HTTP side of the gateway. [`server`] accepts connections within the limits that [`slots`]
//! enforces; [`routes`] dispatches requests to the handlers in the other files. A request for a
//! WebSocket goes through [`handshake`](super::handshake) and continues in
//! [`connection`](super::connection).
//!
//! Architecture invariant: nothing here reads or writes WebSocket frames.

mod dead_letters;
mod history;
pub(super) mod origin;
pub(super) mod page;
pub(super) mod query;
pub(super) mod response;
mod routes;
pub(super) mod server;
pub(super) mod slots;
mod tokens;
