//! Integration tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its helpers too"
)]

#[allow(clippy::unused_self, reason = "a case is what its helpers hang on")]
mod fanout_contract;
mod fanout_embedded;
mod log_contract;
mod log_embedded;
