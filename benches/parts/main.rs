//! Micro-benchmarks of the steps of a message that cost processor time. Run them with `just bench`.
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
    frames::run_benchmarks,
    offsets::run_benchmarks,
    lanes::run_benchmarks,
    registry::run_benchmarks,
    embedded_log::run_benchmarks
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
