//! Integration tests, in one binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod config;
//! Integration tests: one binary, on real services. `tests/run` starts them and runs it.
    clippy::print_stderr,
    reason = "a test that can't go on panics, and says what it saw"
mod log_contract;
mod log_embedded;
//! Integration tests.
    reason = "a test fails by panicking"
mod kafka_broker;
mod log_kafka;
mod support;
