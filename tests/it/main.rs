//! Integration tests.

mod kafka_broker;
mod log_contract;
mod log_kafka;
