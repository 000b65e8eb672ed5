//! Writes records that cannot be processed to the dead-letter topic (protocol.md section 2).

use std::sync::Arc;

use super::slot::{StopRequested, WorkSlot};
use crate::dead_letters::format;
use crate::log::{AppendError, Log};
use crate::protocol::log_record::Record;

/// Writes records that cannot be processed to one dead-letter topic.
#[derive(Clone)]
pub struct DeadLetterWriter {
    log: Arc<dyn Log>,
    topic: String,
}

impl DeadLetterWriter {
    /// Creates a writer to `topic`, the dead-letter topic (`incoming_messages.dlq`, for example).
    pub fn new(log: Arc<dyn Log>, topic: String) -> Self {
        Self { log, topic }
    }

    /// Appends `record` as a dead letter with `reason` and the number of attempts, and waits for
    /// the log's acknowledgement without a time limit. An append whose result is unknown is
    /// repeated: a duplicate is better than a lost dead letter.
    pub(super) async fn write(
        &self,
        record: &Record,
        reason: &str,
        attempts: u32,
        slot: &mut WorkSlot,
    ) -> Result<(), StopRequested> {
        let dead_letter = &format::dead_letter(record, reason, attempts);
        slot.retry("write dead letter", || async move {
            match self.log.append(&self.topic, dead_letter.clone()).await {
                // A record of the topic's maximum size exceeds that size with the headers of a dead
                // letter. Repeating the append would fail forever and block the commit of all later
                // records, so the dead letter is written without its value.
                Err(AppendError::Refused(_)) if !dead_letter.value.is_empty() => {
                    let reduced = format::dead_letter_without_value(dead_letter);
                    self.log.append(&self.topic, reduced).await
                }
                result => result,
            }
        })
        .await?;
        tracing::warn!(
            topic = %record.topic,
            partition = record.partition,
            offset = record.offset,
            message_id = record.header_text("message_id"),
            correlation_id = record.header_text("correlation_id"),
            reason,
            tries = attempts,
            dead_letter_topic = %self.topic,
            "record written to the dead-letter topic; inspect it with `chatmesh dlq list`"
        );
        Ok(())
    }
}
