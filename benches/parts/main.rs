//! Micro-benchmarks of the steps of a message that cost processor time: `just bench`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a benchmark that fails panics with the cause"
)]

use criterion::{Criterion, criterion_group};

mod embedded_log;
mod frames;
mod lanes;
mod offsets;
mod registry;

criterion_group!(
    parts,
    frames::all,
    offsets::all,
    lanes::all,
    registry::all,
    embedded_log::all
);

fn main() {
    // `cargo test --all-targets` also runs this executable, and would wait for the benchmarks.
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("benchmarks run by: just bench");
        return;
    }
    parts();
    Criterion::default().configure_from_args().final_summary();
}
