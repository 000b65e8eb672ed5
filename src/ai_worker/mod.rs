//! The worker: takes messages from the log, asks the model, writes the answer.

pub mod provider;
