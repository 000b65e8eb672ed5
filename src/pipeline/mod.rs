//! The pipeline core, used by worker and relay: partition order in, lanes, contiguous commits.
//!
//! One task ([`driver`]) owns the consumer and never waits for work. Each record goes into the
//! lane of its key inside its partition; lanes run side by side, `MAX_WORKERS` records at once;
//! inside a lane one record follows the other (I3). An offset is stored only when everything
//! before it is finished (I1). What waits is bounded in bytes: over the bound the consumer is
//! paused (I6). A record that can't be worked on ends in the dead-letter topic (I7); a
//! dependency that is away is waited for (I10). A partition that is taken away, or goes back,
//! begins another generation: what is left of the old one stores nothing (I11).

use async_trait::async_trait;

use crate::protocol::log_record::Record;

pub mod dead_letter;
pub mod driver;
mod lanes;
pub mod letters;
pub mod metrics;
pub mod offsets;
#[cfg(test)]
mod tests;
mod traced;
mod work;

pub use work::{Stopped, Work};

/// A record, with what its reader has to know of how it came.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The record.
    pub record: std::sync::Arc<Record>,
    /// It was finished before: below the group's commit as it was, or by this process before the
    /// partition went back.
    pub replay: bool,
    /// Generation of its partition; grows whenever the partition is assigned or goes back.
    pub generation: u64,
    /// When it came from the log.
    pub received: std::time::SystemTime,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Finished: its offset may be committed.
    Done,
    /// Its own fault, and what its user is told is already on its way: put it into the
    /// dead-letter topic with this reason.
    Dead(String),
    /// It failed and may succeed when tried again, at most `MAX_DELIVERIES` times in all.
    Failed(String),
    /// The partition has to go back (the relay, when the fan-out has lost data).
    GoBack,
    /// Not finished, and not by its own fault: it will be read again, here or elsewhere.
    Left,
}

impl From<Stopped> for Verdict {
    fn from(_: Stopped) -> Self {
        Self::Left
    }
}

/// What a role does with records.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Records of one partition with the same lane are worked on one after the other.
    fn lane(&self, record: &Record) -> String;

    /// Works on a record. Dependencies that are away are waited for inside, by [`Work::until`].
    async fn handle(&self, delivery: &Delivery, work: &mut Work) -> Verdict;

    /// The record has failed `MAX_DELIVERIES` times for `reason` and will be a dead letter: tell
    /// its user first.
    async fn give_up(
        &self,
        delivery: &Delivery,
        reason: &str,
        work: &mut Work,
    ) -> Result<(), Stopped>;
}

/// Where a partition begins again, for a role that reads back (the relay).
#[async_trait]
pub trait GoBack: Send + Sync + 'static {
    /// The offset from which to read, at most `committed`. Waits for what it needs without limit;
    /// dropped when the partition is taken away meanwhile. `oldest_open_ms` is the log's time of
    /// the oldest record that is known not to be finished.
    async fn start(&self, partition: i32, committed: i64, oldest_open_ms: Option<i64>) -> i64;

    /// Everything that was read back has been worked on.
    async fn reached(&self, partition: i32);
}
