//! Delivers terminal records to the fan-out.

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
use crate::telemetry::traces::{self, Kind, Span};

/// Number of last positions that are remembered. For all other users, data loss is detected by the
/// partition's marker only.
const MAX_POSITIONS: u64 = 200_000;

/// A position that is known to be in a user's mailbox.
#[derive(Clone)]
struct KnownPosition {
    /// Generation of the partition in which it was learnt. A rewind invalidates it.
    generation: u64,
    position: Position,
}

/// Processes the records of `responses`: parse, add the position, deliver once.
pub(super) struct RelayHandler {
    fanout: Arc<dyn Deliveries>,
    cluster: String,
    log_epoch: String,
    rewind: Arc<RewindController>,
    metrics: RelayMetrics,
    /// The last delivered position by user and partition. A user who moved between partitions has
    /// one in each, so that a loss between two frames of either is detected.
    last_positions: Cache<(UserId, i32), KnownPosition>,
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
            last_positions: Cache::new(MAX_POSITIONS),
        }
    }

    fn position(&self, record: &Record) -> Position {
        Position {
            epoch: Epoch::new(&self.cluster, &self.log_epoch, record.partition),
            offset: record.offset,
        }
    }

    async fn process(
        &self,
        delivery: &Delivery,
        slot: &mut WorkSlot,
    ) -> Result<Verdict, StopRequested> {
        let record = &delivery.record;
        // New records must not overtake lost ones. The rewind request may still be queued, so this
        // is checked for every record.
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

    /// Delivers an error to the user of an unreadable record, where its headers name the user.
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

    async fn deliver(
        &self,
        delivery: &Delivery,
        frame: &TerminalFrame,
        slot: &mut WorkSlot,
    ) -> Result<Verdict, StopRequested> {
        let record = &delivery.record;
        let user_partition = (frame.terminal.userid.clone(), record.partition);
        let known = self
            .last_positions
            .get(&user_partition)
            .filter(|known| known.generation == delivery.generation)
            .map(|known| known.position);
        let mut span = publish_span(slot, frame);
        let request = self.deliver_request(delivery, frame, known, &span);
        let position = request.position.clone();
        let started = Instant::now();
        let delivered = slot
            .retry("deliver", || {
                // The known position may be lost by the time of a retry, so disruptions are checked
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
        let known = KnownPosition {
            generation: delivery.generation,
            position,
        };
        match delivered {
            DeliverResponse::Published(receivers) => {
                span.set_number("chatmesh.receivers", receivers);
                self.last_positions.insert(user_partition, known);
                let already_finished = delivery.already_finished;
                if receivers == 0 && !already_finished {
                    self.metrics.zero_subscribers.increment(1);
                }
                // A rewind delivers minutes of records again; the pipeline logs it as a whole.
                if already_finished {
                    tracing::debug!(receivers, already_finished, "delivered");
                } else {
                    tracing::info!(receivers, already_finished, "delivered");
                }
                Ok(Verdict::Done)
            }
            DeliverResponse::AlreadyDelivered => {
                // The mailbox ends at this position or above it.
                self.last_positions.insert(user_partition, known);
                Ok(Verdict::Done)
            }
            DeliverResponse::DataLost => Ok(Verdict::Rewind),
        }
    }

    fn deliver_request(
        &self,
        delivery: &Delivery,
        frame: &TerminalFrame,
        known: Option<Position>,
        span: &Span,
    ) -> DeliverRequest {
        let (record, terminal) = (&delivery.record, &frame.terminal);
        DeliverRequest {
            user: terminal.userid.clone(),
            message_id: frame.message_id.clone(),
            conversation: terminal.conversation_id.clone(),
            position: self.position(record),
            known_end: known,
            // The timestamp is -1 where the log has none.
            logged_at_ms: Some(record.timestamp_ms).filter(|ms| *ms > 0),
            is_rewind: delivery.already_finished,
            frame: frame::append_trace(frame.json.clone(), span.context()),
            answer: frame::turn_text(terminal),
            status: frame::turn_status(terminal),
        }
    }
}

fn publish_span(slot: &WorkSlot, frame: &TerminalFrame) -> Span {
    let mut span = slot.span().child(Kind::Producer, format_args!("publish"));
    span.set_text("messaging.system", traces::fanout_system());
    span.set_text("messaging.operation.name", "publish");
    span.set_text("messaging.operation.type", "send");
    span.set_text("messaging.message.id", frame.message_id.as_str());
    span
}

#[async_trait]
impl Handler for RelayHandler {
    fn lane(&self, record: &Record) -> String {
        // The key is the user. An original worker writes no key, so the value is parsed there.
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
            "a rewind invalidates known positions"
        );
    }
}
