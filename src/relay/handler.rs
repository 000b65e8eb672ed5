//! Delivers terminal records to the fan-out. The pipeline calls it for each record of `responses`.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use moka::sync::Cache;
use tracing::Instrument;

use super::frame::{self, TerminalFrame};
use super::metrics::RelayMetrics;
use super::rewind::RewindController;
use crate::config::settings::RelaySettings;
use crate::fanout::{DeliverRequest, DeliverResponse, Deliveries};
use crate::pipeline::{Delivery, Handler, StopRequested, Verdict, WorkSlot};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::UserId;
use crate::protocol::log_record::Record;
use crate::protocol::position::{Epoch, Position};
use crate::protocol::record::TerminalRecord;
use crate::telemetry::traces::{self, Span, SpanKind};

/// Maximum number of mailbox ends that are cached. For users without a cached end, a loss of data
/// is detected by the partition's marker only.
const MAX_KNOWN_MAILBOX_ENDS: u64 = 200_000;

/// A position at or above which a user's mailbox is known to end.
#[derive(Clone)]
struct KnownMailboxEnd {
    /// Generation of the partition when the position was delivered. A rewind or another assignment
    /// increases the generation, which invalidates the position.
    generation: u64,
    position: Position,
}

/// The relay's [`Handler`]: parses each record, adds its position, and delivers the frame.
pub(super) struct RelayHandler {
    fanout: Arc<dyn Deliveries>,
    cluster: String,
    log_epoch: String,
    rewind: Arc<RewindController>,
    metrics: RelayMetrics,
    /// The last delivered positions by user and partition. A user whose records are in two
    /// partitions has an entry for each, so that a loss between two records of the same partition
    /// is detected.
    known_mailbox_ends: Cache<(UserId, i32), KnownMailboxEnd>,
}

impl RelayHandler {
    pub(super) fn new(
        fanout: Arc<dyn Deliveries>,
        cluster: String,
        settings: &RelaySettings,
        rewind: Arc<RewindController>,
        metrics: RelayMetrics,
    ) -> Self {
        Self {
            fanout,
            cluster,
            log_epoch: settings.log_epoch.clone(),
            rewind,
            metrics,
            known_mailbox_ends: Cache::new(MAX_KNOWN_MAILBOX_ENDS),
        }
    }

    fn position(&self, record: &Record) -> Position {
        Position {
            epoch: Epoch::new(&self.cluster, &self.log_epoch, record.partition),
            offset: record.offset,
        }
    }

    /// Parses and delivers a record, unless its partition must be rewound first.
    async fn process(
        &self,
        delivery: &Delivery,
        slot: &mut WorkSlot,
    ) -> Result<Verdict, StopRequested> {
        let record = &delivery.record;
        // A record must not be delivered before earlier records that the fan-out has lost. The
        // request for the rewind may still be queued, so the need for it is checked here.
        let needs_rewind = self.rewind.has_new_disruption(record.partition)
            || !delivery.already_finished
                && self
                    .rewind
                    .needs_earlier_start(record.partition, record.timestamp_ms);
        if needs_rewind {
            return Ok(Verdict::Rewind);
        }
        match frame::parse_record(record, &self.position(record)) {
            Ok(frame) => {
                let span = tracing::info_span!(
                    "relay",
                    correlation_id = %frame.terminal.correlation_id,
                    message_id = %frame.message_id,
                    trace_id = slot.span().trace_id(),
                );
                self.deliver(delivery, &frame, slot).instrument(span).await
            }
            Err(reason) => match self.deliver_error(delivery, slot).await? {
                Verdict::Rewind => Ok(Verdict::Rewind),
                // The dead letter was written when the record was processed for the first time.
                _ if delivery.already_finished => Ok(Verdict::Done),
                _ => Ok(Verdict::DeadLetter(reason.to_string())),
            },
        }
    }

    /// Delivers an error frame to the user of a record that cannot be delivered. Does nothing where
    /// key and headers do not name both user and message.
    async fn deliver_error(
        &self,
        delivery: &Delivery,
        slot: &mut WorkSlot,
    ) -> Result<Verdict, StopRequested> {
        let record = &delivery.record;
        match frame::error_frame(record, ErrorCode::Internal, &self.position(record)) {
            Some(frame) => self.deliver(delivery, &frame, slot).await,
            None => Ok(Verdict::Done),
        }
    }

    /// Delivers a frame and remembers the mailbox's end. Returns [`Verdict::Rewind`] where the
    /// fan-out has lost data.
    async fn deliver(
        &self,
        delivery: &Delivery,
        frame: &TerminalFrame,
        slot: &mut WorkSlot,
    ) -> Result<Verdict, StopRequested> {
        let record = &delivery.record;
        let user_partition = (frame.terminal.userid.clone(), record.partition);
        let known_end = self
            .known_mailbox_ends
            .get(&user_partition)
            .filter(|end| end.generation == delivery.generation)
            .map(|end| end.position);
        let mut span = publish_span(slot, frame);
        let request = self.deliver_request(delivery, frame, known_end, &span);
        let position = request.position.clone();
        let started = Instant::now();
        let response = slot
            .retry("deliver", || {
                // The fan-out may lose its data between two tries, so disruptions are checked
                // before each call.
                let is_disrupted = self.rewind.has_new_disruption(record.partition);
                let call = self.fanout.deliver(request.clone());
                async move {
                    if is_disrupted {
                        return Ok(DeliverResponse::DataLost);
                    }
                    call.await
                        .inspect_err(|_| self.metrics.record_publish_error())
                }
            })
            .await?;
        self.metrics.record_publish(started.elapsed());
        let mailbox_end = KnownMailboxEnd {
            generation: delivery.generation,
            position,
        };
        match response {
            DeliverResponse::Published(receivers) => {
                span.set_number("chatmesh.receivers", receivers);
                self.known_mailbox_ends.insert(user_partition, mailbox_end);
                let already_finished = delivery.already_finished;
                if receivers == 0 && !already_finished {
                    self.metrics.zero_subscribers.increment(1);
                }
                // A rewind delivers the records of minutes again, so each record is logged at level
                // debug only. The pipeline logs the rewind as a whole.
                if already_finished {
                    tracing::debug!(receivers, already_finished, "delivered");
                } else {
                    tracing::info!(receivers, already_finished, "delivered");
                }
                Ok(Verdict::Done)
            }
            DeliverResponse::AlreadyDelivered => {
                // The mailbox ends at this position or above, also if the record had been delivered
                // before.
                self.known_mailbox_ends.insert(user_partition, mailbox_end);
                Ok(Verdict::Done)
            }
            DeliverResponse::DataLost => Ok(Verdict::Rewind),
        }
    }

    fn deliver_request(
        &self,
        delivery: &Delivery,
        frame: &TerminalFrame,
        known_end: Option<Position>,
        span: &Span,
    ) -> DeliverRequest {
        let (record, terminal) = (&delivery.record, &frame.terminal);
        DeliverRequest {
            user: terminal.userid.clone(),
            message_id: frame.message_id.clone(),
            conversation: terminal.conversation_id.clone(),
            position: self.position(record),
            known_end,
            // A record without a timestamp has the timestamp -1.
            logged_at_ms: Some(record.timestamp_ms).filter(|ms| *ms > 0),
            is_rewind: delivery.already_finished,
            frame: frame::append_trace(frame.json.clone(), span.context()),
            answer: frame::turn_text(terminal),
            parts: frame::turn_parts(terminal),
            status: frame::turn_status(terminal),
        }
    }
}

fn publish_span(slot: &WorkSlot, frame: &TerminalFrame) -> Span {
    let mut span = slot
        .span()
        .child(SpanKind::Producer, format_args!("publish"));
    span.set_text("messaging.system", traces::fanout_system());
    span.set_text("messaging.operation.name", "publish");
    span.set_text("messaging.operation.type", "send");
    span.set_text("messaging.message.id", frame.message_id.as_str());
    span
}

#[async_trait]
impl Handler for RelayHandler {
    fn lane(&self, record: &Record) -> String {
        // The key is the user. A record of an original worker has no key, so its value is parsed.
        if let Some(key) = &record.key {
            return String::from_utf8_lossy(key).into_owned();
        }
        TerminalRecord::parse(&record.value)
            .map_or_else(|_| String::new(), |t| t.userid.to_string())
    }

    async fn handle(&self, delivery: &Delivery, slot: &mut WorkSlot) -> Verdict {
        let started = Instant::now();
        if !delivery.already_finished {
            self.metrics.record_log_wait(delivery.record.timestamp_ms);
        }
        let verdict = self
            .process(delivery, slot)
            .await
            .unwrap_or_else(Verdict::from);
        self.metrics.record_processed(&verdict, started.elapsed());
        verdict
    }

    async fn report_failure(
        &self,
        delivery: &Delivery,
        _reason: &str,
        slot: &mut WorkSlot,
    ) -> Result<(), StopRequested> {
        self.deliver_error(delivery, slot).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::super::rewind::tests::{StalledLog, settings};
    use super::*;
    use crate::config::bounds::Bounds;
    use crate::fanout::embedded::EmbeddedFanout;
    use crate::store::Store;

    fn answer_at(partition: i32, offset: i64) -> Delivery {
        let value = format!(
            r#"{{"type":"response","content":"hi","userid":"alice","correlation_id":"c{partition}.{offset}"}}"#
        );
        Delivery {
            record: Arc::new(Record {
                topic: "responses".into(),
                partition,
                offset,
                timestamp_ms: 1,
                key: Some(Bytes::from_static(b"alice")),
                value: Bytes::from(value),
                null_value: false,
                headers: vec![],
            }),
            already_finished: false,
            generation: 1,
            received_at: SystemTime::now(),
        }
    }

    #[tokio::test]
    async fn a_loss_is_detected_in_every_partition_that_had_frames_of_the_user() {
        let empty = || EmbeddedFanout::open(Store::in_memory(), Bounds::default()).unwrap();
        let mut handler = {
            let (log, fanout) = (Arc::new(StalledLog), Arc::new(empty()));
            let rewind = RewindController::new(log, fanout.clone(), "c".into(), &settings());
            let rewind = Arc::new(rewind);
            RelayHandler::new(fanout, "c".into(), &settings(), rewind, RelayMetrics::new())
        };
        let slots = Arc::new(Semaphore::new(1));
        let mut slot = WorkSlot::acquire(slots, CancellationToken::new())
            .await
            .unwrap();
        for partition in [2, 3] {
            let verdict = handler.handle(&answer_at(partition, 7), &mut slot).await;
            assert_eq!(verdict, Verdict::Done);
        }
        handler.fanout = Arc::new(empty());
        for partition in [2, 3] {
            let verdict = handler.handle(&answer_at(partition, 8), &mut slot).await;
            assert_eq!(verdict, Verdict::Rewind, "{partition}");
        }
        let mut reread = answer_at(2, 7);
        reread.generation = 2;
        let verdict = handler.handle(&reread, &mut slot).await;
        assert_eq!(
            verdict,
            Verdict::Done,
            "a rewind invalidates known mailbox ends"
        );
    }
}
