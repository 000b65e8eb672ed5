//! Deterministic simulation: a reference model of docs/consistency.md that is searched
//! exhaustively, and the real implementations compared with it. docs/reliability.md says what is
//! covered.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that can't continue panics, and reports what it ran"
)]

mod client;
mod conformance;
mod model;
mod reference;
mod scenarios;
mod scenarios_streams;
mod search;
mod searches;
#[path = "../common/seeds.rs"]
mod seeds;
#[path = "../common/settings.rs"]
mod settings;
mod stream_progress;
mod torn_journals;
