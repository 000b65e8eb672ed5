//! The worker: takes messages from the log, asks the model, writes the answer.

pub mod coalesce;
pub mod prompt;
pub mod provider;
