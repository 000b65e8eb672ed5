//! The complete shapes of all frames and HTTP bodies, as types. The Rust client encodes and decodes
//! them, and the schemas in `docs/asyncapi.yaml` and `docs/openapi.yaml` are generated from them.
//!
//! The gateway encodes its frames from undecoded parts (see [`super::v1`]). Tests compare what it sends
//! with these schemas, so the two cannot diverge.

pub mod classic;
pub mod http;
mod schema;
pub mod v1;

pub use schema::{http_schemas, message_schemas};
