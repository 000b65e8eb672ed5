//! Integration tests.

mod log_contract;
