//! Integration tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod kafka_broker;
mod log_contract;
mod log_kafka;
