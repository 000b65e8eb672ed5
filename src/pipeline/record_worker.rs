//! Processes one record: takes a slot, calls the handler, retries, writes dead letters.

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

/// The delays between tries. The first one is twice the base.
const RETRY_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(200), Duration::from_millis(6400));

/// How the processing of a record ended, as the driver needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordResult {
    /// Processed or dead-lettered: the offset may be committed.
    Finished,
    /// The partition must be rewound.
    Rewind,
    /// Not processed; the offset stays open.
    Unfinished,
}

/// Processes records with one handler; shared by all tasks of a pipeline.
pub(super) struct RecordWorker {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) dead_letters: DeadLetterWriter,
    pub(super) slots: Arc<Semaphore>,
    pub(super) max_deliveries: u32,
    pub(super) group: String,
}

impl RecordWorker {
    /// Processes one record to its end, or until `stop` fires.
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

    /// Informs the user of a record that failed too often, then writes the dead letter.
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
            // The cause of the handler's panic may make the report panic too.
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
