//! The shapes of everything that clients and other programs see, as types: our own client reads
//! and writes them, and the schemas of `docs/asyncapi.yaml` and `docs/openapi.yaml` come from
//! them. The gateway writes its frames from parts it does not decode (see [`super::v1`]); tests
//! hold what it sends against these schemas.

pub mod classic;
pub mod http;
mod schema;
pub mod v1;

pub use schema::schemas;
