//! The gateway role: receives messages over clients' WebSockets and appends them to the log, and
//! delivers to a user's connections what workers and relays publish on the fan-out.
//!
//! The inbound path of a message: [`http`] accepts the TCP connection and routes its request,
//! [`handshake`] authenticates the upgrade, [`connection`] runs the WebSocket ([`websocket`] and
//! [`buffered_stream`] are below it, [`drain`] decides when it closes while the gateway stops), and
//! [`inbound`] admits the message, appends it to the log and waits for the acknowledgement.
//!
//! The outbound path of an answer: [`feed`] receives published frames, [`sessions`] finds the
//! user's connections, [`delivery`] and [`user`] decide which connections receive a frame, and
//! [`outbound`] is the bounded queue of one connection. [`mailbox_sync`] finds frames that were
//! published and not received.
//!
//! [`client`] is one connection in either protocol. The code for only one of the protocols is in
//! [`classic`] and [`v1`]. [`context`] is the state that all connections share, and [`lifecycle`]
//! runs a gateway from its start to the end of its drain.
//!
//! Architecture invariant: neither [`classic`] nor [`v1`] imports anything of the other module.
//! When the last classic client is gone, `classic` is deleted.

pub(crate) mod auth;
#[doc(hidden)]
pub mod bench;
mod buffered_stream;
mod classic;
mod client;
mod connection;
mod context;
mod delivery;
mod drain;
mod encoder;
mod feed;
mod handshake;
mod http;
mod inbound;
mod lifecycle;
mod limits;
mod mailbox_sync;
pub(crate) mod metrics;
mod outbound;
mod retry;
mod revocation;
mod session;
mod sessions;
mod user;
mod v1;
mod websocket;

pub use auth::KeyError;
pub use auth::TokenError;
pub use auth::jwt::{JwtVerifier, VerifiedToken};
pub use context::{AdminRoutes, DeadLetterAccess, Dependencies, GatewayError};
pub use lifecycle::serve;
