//! Deterministic simulation: a reference model of protocol.md section 3 that is searched
//! exhaustively, and the real implementations against it. docs/reliability.md tells what is covered.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that can't go on panics, and says what it saw"
)]

mod client;
mod conformance;
mod cuts;
mod explore;
mod reference;
mod scenarios;
mod searches;
mod world;
