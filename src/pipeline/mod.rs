//! Consumes one topic for the worker or the relay: calls the role's [`Handler`] for each record,
//! and stores the offset below which all records are finished. The worker and the relay each run
//! one pipeline, with [`driver::run`].
//!
//! One task (the [`driver`]) owns the consumer and never waits for a record to be processed. Each
//! record joins a lane of its partition, which the handler chooses. Lanes run in parallel, at most
//! `max_workers` records at once; within a lane, records are processed one after the other (I3).
//!
//! - An offset is stored only when every earlier offset of its partition is finished (I1).
//! - Buffered records are bounded in bytes; above the bound the consumer is paused (I6).
//! - A record that cannot be processed is written to the dead-letter topic (I7).
//! - An unavailable dependency is waited for and never counts against a record (I10).
//! - Each assignment and each rewind of a partition starts a new generation of it. A task that was
//!   started under an earlier assignment stores no offset (I11).
//!
//! I1 to I11 are the invariants in ARCHITECTURE.md.

mod dead_letter_writer;
pub mod driver;
mod handler;
pub mod metrics;
pub mod offsets;
mod partition;
mod record_worker;
mod rewind;
mod slot;
#[cfg(test)]
mod tests;
mod trace;

pub use dead_letter_writer::DeadLetterWriter;
pub use handler::{Delivery, Handler, Verdict};
pub use rewind::{RewindPolicy, RewindRequest};
pub use slot::{StopRequested, WorkSlot};
