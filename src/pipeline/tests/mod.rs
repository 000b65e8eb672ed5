//! Tests of the pipeline with paused time: tests of single behaviours in `processing` and
//! `rewinds`, and a seeded simulation in `sim`.

mod harness;
mod processing;
mod rewinds;
mod sim;
