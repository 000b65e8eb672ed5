//! The runner of seeded simulations. The unit tests of the library and both integration test
//! binaries include this file.
//!
//! The environment variable `SIM_SEED` selects one seed. Another variable, usually `SIM_RUNS`, sets
//! the number of seeds.
#![allow(dead_code, reason = "no crate uses all of the helpers")]
#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::expect_used,
    reason = "a test that fails panics, and reports how much it ran"
)]

use std::ops::Range;
use std::time::Instant;

/// The number in an environment variable, or `None` if the variable is not set. Panics if the value
/// is not a number.
pub(crate) fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|error| panic!("{name}={text} is not a number: {error}")))
}

/// The seeds of a test: the one in `SIM_SEED`, or the first ones from 0 on. Their number is the
/// value of the variable `count_variable`, or `default_count` if that is not set.
pub(crate) struct Seeds {
    /// The name of the test.
    name: &'static str,
    seeds: Range<u64>,
}

impl Seeds {
    pub(crate) fn new(name: &'static str, count_variable: &str, default_count: u64) -> Self {
        let seeds = match number_from_env("SIM_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number_from_env(count_variable).unwrap_or(default_count),
        };
        Self { name, seeds }
    }

    /// Runs the simulation once for each seed. At the first run that returns a violation, it panics
    /// with the seed and the violation.
    pub(crate) async fn run(self, mut simulation: impl AsyncFnMut(u64) -> Result<(), String>) {
        let started = Instant::now();
        let count = self.seeds.end - self.seeds.start;
        for seed in self.seeds {
            if let Err(violation) = simulation(seed).await {
                panic!("{}, SIM_SEED={seed}: {violation}", self.name);
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{}: {count} seeds in {seconds:.1} s", self.name);
    }

    /// Runs the simulation like [`Seeds::run`], but each seed on a runtime of its own, with paused
    /// time.
    pub(crate) fn run_with_paused_time(
        self,
        mut simulation: impl AsyncFnMut(u64) -> Result<(), String>,
    ) {
        let started = Instant::now();
        let count = self.seeds.end - self.seeds.start;
        for seed in self.seeds {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            if let Err(violation) = runtime.block_on(simulation(seed)) {
                panic!("{}, SIM_SEED={seed}: {violation}", self.name);
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        eprintln!("{}: {count} seeds in {seconds:.1} s", self.name);
    }
}
