//! Processes one record, in a task that the driver starts: acquires a slot, calls the handler,
//! repeats the call after a failure, and writes a record that cannot be processed to the
//! dead-letter topic.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::dead_letter_writer::DeadLetterWriter;
use super::handler::{Delivery, Handler, Verdict};
use super::slot::{StopRequested, WorkSlot};
use super::trace;
use crate::backoff::Backoff;

/// Delays between the tries of one record: 400 ms after the first try, then twice the delay before,
/// at most 6.4 s.
const RETRY_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(200), Duration::from_millis(6400));

/// The result of processing a record, by which the driver decides about the record's offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordResult {
    /// The record was processed, or is in the dead-letter topic: its offset may be committed.
    Finished,
    /// The fan-out lost data: the record's partition must be rewound. The record is not finished.
    Rewind,
    /// The record was not processed. Its offset is not finished, so the record is read again.
    Unfinished,
}

/// Processes records with the role's handler. All tasks of a pipeline share one `RecordWorker`.
pub(super) struct RecordWorker {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) dead_letters: DeadLetterWriter,
    /// The concurrency slots of the pipeline, `max_workers` in number.
    pub(super) slots: Arc<Semaphore>,
    /// Maximum number of times that this process tries a record whose processing fails
    /// (`MAX_DELIVERIES`). The worker applies the same setting once more, to the number of owners
    /// that may begin a message.
    pub(super) max_deliveries: u32,
    /// The consumer group, for traces.
    pub(super) group: String,
}

impl RecordWorker {
    /// Processes one record until it is finished, or until `stop` fires.
    pub(super) async fn process(
        &self,
        delivery: &Delivery,
        stop: CancellationToken,
    ) -> RecordResult {
        self.try_process(delivery, stop)
            .await
            .unwrap_or(RecordResult::Unfinished)
    }

    async fn try_process(
        &self,
        delivery: &Delivery,
        stop: CancellationToken,
    ) -> Result<RecordResult, StopRequested> {
        let mut slot = WorkSlot::acquire(Arc::clone(&self.slots), stop).await?;
        *slot.span_mut() = trace::start_span(delivery, &self.group);
        let mut tries = 0;
        loop {
            tries += 1;
            let handling = AssertUnwindSafe(self.handler.handle(delivery, &mut slot));
            let verdict = handling
                .catch_unwind()
                .await
                .unwrap_or_else(|_| Verdict::Failed("the handler panicked".to_owned()));
            let reason = match verdict {
                Verdict::Done => return Ok(RecordResult::Finished),
                Verdict::Rewind => {
                    slot.span_mut().add_event("rewind");
                    return Ok(RecordResult::Rewind);
                }
                Verdict::Unfinished => {
                    slot.span_mut().add_event("unfinished");
                    return Ok(RecordResult::Unfinished);
                }
                Verdict::DeadLetter(reason) => {
                    slot.span_mut().fail("dead_letter");
                    self.dead_letters
                        .write(&delivery.record, &reason, tries, &mut slot)
                        .await?;
                    return Ok(RecordResult::Finished);
                }
                Verdict::Failed(reason) => reason,
            };
            warn_about_failure(delivery, &slot, tries, &reason);
            slot.span_mut().add_event("failed");
            if tries >= self.max_deliveries {
                self.give_up(delivery, &reason, tries, &mut slot).await?;
                return Ok(RecordResult::Finished);
            }
            slot.sleep(RETRY_BACKOFF.delay(tries, 1.0)).await?;
        }
    }

    /// Informs the user that processing the record failed too often, then writes the dead letter.
    async fn give_up(
        &self,
        delivery: &Delivery,
        reason: &str,
        tries: u32,
        slot: &mut WorkSlot,
    ) -> Result<(), StopRequested> {
        let reporting = AssertUnwindSafe(self.handler.report_failure(delivery, reason, slot));
        if let Ok(result) = reporting.catch_unwind().await {
            result?;
        } else {
            // What makes the handler panic on this record may make the report panic too. The panic
            // is not repeated: the record becomes a dead letter without a report.
            tracing::error!(
                partition = delivery.record.partition,
                offset = delivery.record.offset,
                "panic while reporting the failure to the user; the record becomes a dead letter \
                 without a report"
            );
        }
        self.dead_letters
            .write(&delivery.record, reason, tries, slot)
            .await?;
        slot.span_mut().fail("dead_letter");
        Ok(())
    }
}

fn warn_about_failure(delivery: &Delivery, slot: &WorkSlot, tries: u32, reason: &str) {
    let record = &delivery.record;
    tracing::warn!(
        topic = %record.topic,
        partition = record.partition,
        offset = record.offset,
        message_id = record.header_text("message_id"),
        correlation_id = record.header_text("correlation_id"),
        trace_id = slot.span().trace_id(),
        tries,
        reason,
        "processing a record failed; it is retried, and becomes a dead letter after MAX_DELIVERIES \
         tries"
    );
}
