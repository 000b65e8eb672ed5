//! What an operator does beside the roles.

pub(crate) mod descriptors;
pub(crate) mod load_test;
pub(crate) mod mock_openai;
pub(crate) mod span;
pub(crate) mod token;
