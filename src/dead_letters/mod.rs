//! Reads dead-letter topics, and settles dead letters by replaying or dropping them.
//!
//! A log cannot delete a record from the middle of a partition. Settling therefore appends a
//! *settlement*: a record of the dead-letter topic whose headers name the settled dead letters. It
//! goes into the partition of its dead letter, because retention removes the oldest records first
//! and so never removes a settlement before its dead letter. No other state is stored.

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
