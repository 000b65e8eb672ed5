//! What an operator does beside the roles.

pub(crate) mod token;
