//! The interface between the pipeline and a role: the worker and the relay implement [`Handler`],
//! and the pipeline calls it for each record.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use super::slot::{StopRequested, WorkSlot};
use crate::protocol::log_record::Record;

/// One record as the pipeline passes it to a handler.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The record as it was read from the log.
    pub record: Arc<Record>,
    /// Whether the record was finished before this delivery, which is a repetition by a rewind: the
    /// record's offset was below the group's committed offset at the assignment, or this process
    /// finished the record before the partition was rewound.
    pub already_finished: bool,
    /// Generation of the partition when the record was read. Each assignment and each rewind of a
    /// partition gives it a higher generation.
    pub generation: u64,
    /// When this process received the record from the log.
    pub received_at: SystemTime,
}

/// What a handler returns for a record, by which the pipeline decides how to proceed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The record was processed: its offset may be committed.
    Done,
    /// The record cannot be processed, and the handler has informed the user if it could. The
    /// pipeline writes the record to the dead-letter topic with this reason.
    DeadLetter(String),
    /// Processing failed for this reason and may succeed later. The pipeline tries the record
    /// again, up to `MAX_DELIVERIES` tries in total; then it calls [`Handler::report_failure`] and
    /// writes the record to the dead-letter topic.
    Failed(String),
    /// The fan-out lost data: the pipeline rewinds the partition. Only the relay returns this.
    Rewind,
    /// The record was not processed, through no fault of its own. It will be read again by this
    /// process or by the partition's next owner.
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
    /// The lane of a record: records of one partition and one lane are processed one after the
    /// other. The worker returns the conversation, the relay the user.
    fn lane(&self, record: &Record) -> String;

    /// Processes a record. The handler itself waits for unavailable dependencies, with
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
