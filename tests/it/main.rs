//! Integration tests: one binary, on real services. `tests/run` starts them and runs it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that can't go on panics, and says what it saw"
)]

mod config;
#[allow(clippy::unused_self, reason = "a case is what its helpers hang on")]
mod fanout_contract;
mod fanout_embedded;
mod log_contract;
mod log_embedded;
mod log_kafka;
mod support;
//! Integration tests.
    reason = "all of this is tests, but clippy only knows the functions that say so"
mod fanout_contract;
mod fanout_redis;
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod gateway_classic;
