//! Reads dead-letter topics, and settles dead letters by replaying or dropping them, for
//! `chatmesh dlq` and the HTTP route `/dead-letters`. Worker and relay build dead letters with the
//! functions of `format`.
//!
//! A log cannot delete a record from the middle of a partition. Settling therefore appends a
//! *settlement*: a record of the dead-letter topic whose headers name the settled dead letter and
//! its duplicates. The settlement is appended to the partition of its dead letter, because
//! retention removes the oldest records first and so never removes a settlement before its dead
//! letter. No other state is stored.

mod address;
mod dead_letter;
pub mod format;
mod original;
mod queue;
mod replay;
mod resolution;
#[cfg(test)]
mod tests;

pub use address::{Address, Source};
pub use dead_letter::{DeadLetter, Filter};
pub use queue::{DeadLetterDetail, DeadLetterError, DeadLetterQueue};
pub use resolution::{Resolution, SettleAction, SettleError, SettleResult};
