//! Integration tests, in one binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod config;
mod log_contract;
mod log_embedded;
//! Integration tests.
    reason = "a test fails by panicking"
mod kafka_broker;
mod log_kafka;
