//! What people do beside the roles.

pub(crate) mod chat;
pub(crate) mod token;
