//! Integration tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this is tests, but clippy only knows the functions that say so"
)]

mod fanout_contract;
mod fanout_redis;
