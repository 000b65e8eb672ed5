//! The complete shapes of all frames and HTTP bodies, as types. The Rust client encodes and decodes
//! them, and the schemas in `docs/asyncapi.yaml` and `docs/openapi.yaml` are generated from them.
//!
//! The gateway does not use these types: it encodes its frames from undecoded parts (see
//! [`super::v1`]). Tests validate the frames that it sends against the schemas, so the types and
//! the encoders cannot diverge.

pub mod classic;
pub mod http;
mod schema;
pub mod v1;

pub use schema::{http_schemas, message_schemas};
