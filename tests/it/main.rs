//! Integration tests.

mod log_contract;
mod log_embedded;
