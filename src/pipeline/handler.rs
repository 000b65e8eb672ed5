//! The interface between the pipeline and a role: what a handler receives and what it returns.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use super::slot::{StopRequested, WorkSlot};
use crate::protocol::log_record::Record;

/// One record handed to a handler, with its delivery state.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The record as it was read from the log.
    pub record: Arc<Record>,
    /// The record was finished before this delivery: its offset was below the group's commit at
    /// assignment, or this process finished it before the partition was rewound.
    pub already_finished: bool,
    /// Generation of the partition; increases with every assignment and every rewind.
    pub generation: u64,
    /// When this process received the record from the log.
    pub received_at: SystemTime,
}

/// The result of processing a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Processed: the offset may be committed.
    Done,
    /// The record itself is at fault and its user has been informed: write it to the dead-letter
    /// topic with this reason.
    DeadLetter(String),
    /// Processing failed and may succeed later: retry, at most `MAX_DELIVERIES` times in total.
    Failed(String),
    /// The fan-out lost data: rewind the partition. Only the relay returns this.
    Rewind,
    /// Not processed, for no fault of the record: it will be read again by this process or another.
    Unfinished,
}

impl From<StopRequested> for Verdict {
    fn from(_: StopRequested) -> Self {
        Self::Unfinished
    }
}

/// Processes the records of one role.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The ordering key of a record: records of one partition with equal keys are processed one
    /// after the other.
    fn lane(&self, record: &Record) -> String;

    /// Processes a record. Unavailable dependencies are waited for inside, with
    /// [`WorkSlot::retry`].
    async fn handle(&self, delivery: &Delivery, slot: &mut WorkSlot) -> Verdict;

    /// Informs the user that processing failed `MAX_DELIVERIES` times because of `reason`. The
    /// record becomes a dead letter afterwards.
    async fn report_failure(
        &self,
        delivery: &Delivery,
        reason: &str,
        slot: &mut WorkSlot,
    ) -> Result<(), StopRequested>;
}
