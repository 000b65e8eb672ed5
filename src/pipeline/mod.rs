//! Consumes one topic for the worker or the relay: ordered per lane, parallel across lanes, with
//! contiguous commits.
//!
//! One task (the [`driver`]) owns the consumer and never waits for a record to be processed. Each
//! record joins the lane of its key within its partition. Lanes run in parallel, at most
//! `MAX_WORKERS` records at once; within a lane, records are processed one after the other (I3).
//!
//! - An offset is stored only when every earlier offset of its partition is finished (I1).
//! - Buffered records are bounded in bytes; above the bound the consumer is paused (I6).
//! - A record that cannot be processed is written to the dead-letter topic (I7).
//! - Unavailable dependencies are waited for and never count against a record (I10).
//! - Each assignment and each rewind of a partition starts a new generation; tasks of an earlier
//!   assignment store no offsets (I11).

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
