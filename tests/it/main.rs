//! Integration tests: one binary, on real services. `tests/run` starts them and runs it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that can't continue panics, and reports what it received"
)]

mod access;
mod architecture;
mod chaos;
mod chat;
mod config;
mod containers;
mod contracts;
mod documents;
mod e2e;
mod fanout_contract;
mod fanout_embedded;
mod fanout_redis;
mod gateway_classic;
mod gateway_v1;
mod kubernetes;
mod load_tools;
mod log_contract;
mod log_embedded;
mod log_kafka;
mod monitoring;
mod nginx;
mod operate;
mod parsers;
#[path = "../common/seeds.rs"]
mod seeds;
#[path = "../common/settings.rs"]
mod settings;
mod smoke;
mod support;
mod traces;
mod web;
