//! Tests of the pipeline with paused time: single behaviours, and a seeded simulation.

mod harness;
mod processing;
mod rewinds;
mod sim;
