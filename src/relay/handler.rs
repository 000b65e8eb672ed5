//! One terminal record: checked, given its position, delivered.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use moka::sync::Cache;
use tracing::Instrument;

use super::metrics::RelayMetrics;
use super::rewind::Rewind;
use crate::config::settings::RelaySettings;
use crate::fanout::{DeliverRequest, DeliverResponse, Deliveries, TurnStatus};
use crate::pipeline::{Delivery, Handler, Stopped, Verdict, Work};
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::log_record::Record;
use crate::protocol::position::{Epoch, Position};
use crate::protocol::record::{Terminal, TerminalKind, UnreadableRecord, header};
use crate::protocol::timestamp::now_rfc3339;
use crate::protocol::trace_context::TraceContext;
use crate::telemetry::traces::{self, Kind};

/// Last positions that are remembered; of other users a loss is found by the marker alone.
const REMEMBERED: u64 = 200_000;

pub(super) struct RelayHandler {
    fanout: Arc<dyn Deliveries>,
    cluster: String,
    log_epoch: String,
    rewind: Arc<Rewind>,
    metrics: RelayMetrics,
    /// The last position of a user in a partition that is known to be in the mailbox, and the
    /// generation of the partition in which it was learnt: after going back nothing is known. Who has
    /// moved to another partition has one in each: a loss between two of either has to be seen.
    known: Cache<(UserId, i32), (u64, Position)>,
}

/// A terminal frame as it goes to clients, and what the fan-out has to know of it.
struct Bring {
    terminal: Terminal,
    message_id: MessageId,
    frame: String,
}

impl RelayHandler {
    pub(super) fn new(
        fanout: Arc<dyn Deliveries>,
        cluster: String,
        settings: &RelaySettings,
        rewind: Arc<Rewind>,
        metrics: RelayMetrics,
    ) -> Self {
        Self {
            fanout,
            cluster,
            log_epoch: settings.log_epoch.clone(),
            rewind,
            metrics,
            known: Cache::new(REMEMBERED),
        }
    }

    fn position(&self, record: &Record) -> Position {
        Position {
            epoch: Epoch::new(&self.cluster, &self.log_epoch, record.partition),
            offset: record.offset,
        }
    }

    async fn deliver(
        &self,
        delivery: &Delivery,
        bring: &Bring,
        work: &mut Work,
    ) -> Result<Verdict, Stopped> {
        let record = &delivery.record;
        let terminal = &bring.terminal;
        let position = self.position(record);
        let user = &terminal.userid;
        let whose = (user.clone(), record.partition);
        let known = self
            .known
            .get(&whose)
            .filter(|(generation, _)| *generation == delivery.generation)
            .map(|(_, position)| position);
        let mut publishing = work.span().child(Kind::Producer, format_args!("publish"));
        publishing.text("messaging.system", traces::fanout_system());
        publishing.text("messaging.operation.name", "publish");
        publishing.text("messaging.operation.type", "send");
        publishing.text("messaging.message.id", bring.message_id.as_str());
        let call = DeliverRequest {
            user: user.clone(),
            message_id: bring.message_id.clone(),
            conversation: terminal.conversation_id.clone(),
            position: position.clone(),
            known_end: known,
            // A record without a time has -1.
            logged_at_ms: Some(record.timestamp_ms).filter(|ms| *ms > 0),
            is_rewind: delivery.replay,
            frame: with_trace(bring.frame.clone(), publishing.context()),
            answer: answer(terminal),
            status: status(terminal),
        };
        let begun = Instant::now();
        let delivered = work
            .until("deliver", || {
                // What was known when the call was made may be gone: go back before it is repeated.
                let lost = self.rewind.is_disrupted(record.partition);
                let call = self.fanout.deliver(call.clone());
                async move {
                    if lost {
                        return Ok(DeliverResponse::DataLost);
                    }
                    call.await
                        .inspect_err(|_| self.metrics.record_publish_error())
                }
            })
            .await?;
        self.metrics.record_publish(begun.elapsed());
        match delivered {
            DeliverResponse::Published(receivers) => {
                publishing.number("chatmesh.receivers", receivers);
                self.known.insert(whose, (delivery.generation, position));
                if receivers == 0 && !delivery.replay {
                    self.metrics.zero_subscribers.increment(1);
                }
                // A rebuild delivers everything of ten minutes again, and is told of as a whole.
                if delivery.replay {
                    tracing::debug!(receivers, replay = true, "delivered");
                } else {
                    tracing::info!(receivers, replay = false, "delivered");
                }
                Ok(Verdict::Done)
            }
            DeliverResponse::AlreadyDelivered => {
                // The mailbox ends here or above.
                self.known.insert(whose, (delivery.generation, position));
                Ok(Verdict::Done)
            }
            DeliverResponse::DataLost => Ok(Verdict::GoBack),
        }
    }

    /// Tells the user of a record that can't be read, where its headers say whose it is.
    async fn apologise(
        &self,
        delivery: &Delivery,
        code: ErrorCode,
        work: &mut Work,
    ) -> Result<Option<Verdict>, Stopped> {
        let Some(terminal) = failure_from_headers(&delivery.record, code) else {
            return Ok(None);
        };
        let Some(message_id) = terminal.message_id.clone() else {
            return Ok(None);
        };
        let frame = with_position(&terminal.to_json(), &self.position(&delivery.record));
        let verdict = self
            .deliver(
                delivery,
                &Bring {
                    terminal,
                    message_id,
                    frame,
                },
                work,
            )
            .await?;
        Ok((verdict == Verdict::GoBack).then_some(verdict))
    }

    async fn bring(&self, delivery: &Delivery, work: &mut Work) -> Result<Verdict, Stopped> {
        let record = &delivery.record;
        // Nothing new overtakes what was lost: the order to go back may still be on its way.
        if self.rewind.is_disrupted(record.partition)
            || !delivery.replay
                && self
                    .rewind
                    .is_too_near(record.partition, record.timestamp_ms)
        {
            return Ok(Verdict::GoBack);
        }
        match read(record, &self.position(record)) {
            Ok(bring) => {
                let span = tracing::info_span!(
                    "relay",
                    correlation_id = %bring.terminal.correlation_id,
                    message_id = %bring.message_id,
                    trace_id = work.span().trace_id(),
                );
                self.deliver(delivery, &bring, work).instrument(span).await
            }
            Err(reason) => match self.apologise(delivery, ErrorCode::Internal, work).await? {
                Some(verdict) => Ok(verdict),
                // It became a dead letter when it came first.
                None if delivery.replay => Ok(Verdict::Done),
                None => Ok(Verdict::Dead(reason.to_string())),
            },
        }
    }
}

#[async_trait]
impl Handler for RelayHandler {
    fn lane(&self, record: &Record) -> String {
        // The key is the user; an original worker writes none, and then the value has to say.
        if let Some(key) = &record.key {
            return String::from_utf8_lossy(key).into_owned();
        }
        Terminal::parse(&record.value).map_or_else(|_| String::new(), |t| t.userid.to_string())
    }

    async fn handle(&self, delivery: &Delivery, work: &mut Work) -> Verdict {
        let begun = Instant::now();
        if !delivery.replay {
            self.metrics.record_log_wait(delivery.record.timestamp_ms);
        }
        let verdict = self
            .bring(delivery, work)
            .await
            .unwrap_or_else(Verdict::from);
        self.metrics.record_processed(&verdict, begun.elapsed());
        verdict
    }

    async fn give_up(
        &self,
        delivery: &Delivery,
        _reason: &str,
        work: &mut Work,
    ) -> Result<(), Stopped> {
        self.apologise(delivery, ErrorCode::Internal, work)
            .await
            .map(|_| ())
    }
}

/// Reads a record and makes the frame that clients get of it.
fn read(record: &Record, position: &Position) -> Result<Bring, UnreadableRecord> {
    let value = record.value.trim_ascii();
    if value.first() != Some(&b'{') {
        return Err(UnreadableRecord("not a JSON object".into()));
    }
    let mut terminal = Terminal::parse(value)?;
    let message_id = terminal
        .message_id
        .clone()
        .unwrap_or_else(|| record.derived_message_id());
    let foreign = terminal.position.is_some()
        || terminal.names_trace
        || terminal.n.is_some()
        || terminal.n_id.is_some();
    let frame = if foreign || terminal.correlation_id.is_empty() {
        // An original gateway stops delivering after a frame without a correlation id, and what
        // only the relay and the fan-out may say is not taken from a record.
        terminal.position = None;
        if terminal.correlation_id.is_empty() {
            let known = record.header_text(header::CORRELATION_ID);
            terminal.correlation_id = known.unwrap_or(message_id.as_str()).to_string();
        }
        terminal.to_json()
    } else {
        // Fields that we don't know go on to the client.
        String::from_utf8(value.to_vec()).map_err(|_| UnreadableRecord("not UTF-8".into()))?
    };
    let frame = with_position(&frame, position);
    Ok(Bring {
        terminal,
        message_id,
        frame,
    })
}

fn with_position(object: &str, position: &Position) -> String {
    let open = object.trim_end().strip_suffix('}').unwrap_or(object);
    format!("{open},\"position\":\"{position}\"}}")
}

/// The trace as the client, and the gateway that hands the frame to it, is to see it.
fn with_trace(mut object: String, trace: Option<&TraceContext>) -> String {
    if let Some(trace) = trace
        && object.ends_with('}')
    {
        object.pop();
        object.push_str(",\"traceparent\":\"");
        object.push_str(&trace.traceparent());
        object.push_str("\"}");
    }
    object
}

fn failure_from_headers(record: &Record, code: ErrorCode) -> Option<Terminal> {
    let user = std::str::from_utf8(record.key.as_deref()?).ok()?;
    let message_id = MessageId::parse(record.header_text(header::MESSAGE_ID)?).ok()?;
    Some(Terminal {
        v: 1,
        kind: TerminalKind::Error,
        content: None,
        message: Some(code.text().to_owned()),
        userid: UserId::parse(user).ok()?,
        timestamp: Some(now_rfc3339()),
        processing_time_ms: None,
        correlation_id: record
            .header_text(header::CORRELATION_ID)
            .unwrap_or(message_id.as_str())
            .to_owned(),
        message_id: Some(message_id),
        id: None,
        conversation_id: None,
        code: Some(code),
        retryable: Some(code.retryable()),
        retry_after_ms: None,
        finish_reason: None,
        model: None,
        usage: None,
        attempt: None,
        position: None,
        names_trace: false,
        n: None,
        n_id: None,
    })
}

fn answer(terminal: &Terminal) -> String {
    terminal
        .content
        .clone()
        .or_else(|| terminal.message.clone())
        .unwrap_or_default()
}

fn status(terminal: &Terminal) -> TurnStatus {
    match (terminal.kind, terminal.code) {
        (TerminalKind::Response, _) => TurnStatus::Answered,
        (TerminalKind::Error, Some(ErrorCode::Cancelled)) => TurnStatus::Cancelled,
        (TerminalKind::Error, _) => TurnStatus::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::super::rewind::tests::{SlowLog, settings};
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
                partition,
                offset,
                ..record(&value)
            }),
            replay: false,
            generation: 1,
            received: SystemTime::now(),
        }
    }

    #[tokio::test]
    async fn a_loss_is_seen_in_every_partition_that_its_user_had() {
        let empty = || EmbeddedFanout::open(Store::in_memory(), Bounds::default()).unwrap();
        let mut handler = {
            let (log, fanout) = (Arc::new(SlowLog), Arc::new(empty()));
            let rewind = Rewind::new(log, fanout.clone(), "c".into(), &settings());
            let rewind = Arc::new(rewind);
            RelayHandler::new(fanout, "c".into(), &settings(), rewind, RelayMetrics::new())
        };
        let slots = Arc::new(Semaphore::new(1));
        let mut work = Work::begin(slots, CancellationToken::new()).await.unwrap();
        for partition in [2, 3] {
            let verdict = handler.handle(&answer_at(partition, 7), &mut work).await;
            assert_eq!(verdict, Verdict::Done);
        }
        handler.fanout = Arc::new(empty());
        for partition in [2, 3] {
            let verdict = handler.handle(&answer_at(partition, 8), &mut work).await;
            assert_eq!(verdict, Verdict::GoBack, "{partition}");
        }
        let mut gone_back = answer_at(2, 7);
        gone_back.generation = 2;
        let verdict = handler.handle(&gone_back, &mut work).await;
        assert_eq!(verdict, Verdict::Done, "nothing is known after going back");
    }

    fn record(value: &str) -> Record {
        Record {
            topic: "responses".into(),
            partition: 2,
            offset: 7,
            timestamp_ms: 1,
            key: Some(Bytes::from_static(b"alice")),
            value: Bytes::from(value.to_owned()),
            null_value: false,
            headers: vec![],
        }
    }

    fn position() -> Position {
        Position {
            epoch: Epoch::new("c", "0", 2),
            offset: 7,
        }
    }

    #[test]
    fn unknown_fields_reach_the_client_and_the_position_is_added() {
        let value = r#"{"type":"response","content":"hi","userid":"alice","correlation_id":"c","new":[1]} "#;
        let bring = read(&record(value), &position()).unwrap();
        let frame: serde_json::Value = serde_json::from_str(&bring.frame).unwrap();
        assert_eq!(frame["new"][0], 1);
        assert_eq!(frame["position"], position().to_string());
    }

    #[test]
    fn a_record_does_not_choose_its_own_position() {
        let value = r#"{"type":"response","content":"hi","userid":"alice","correlation_id":"c","position":"x.9","n":4,"traceparent":null}"#;
        let bring = read(&record(value), &position()).unwrap();
        let frame: serde_json::Value = serde_json::from_str(&bring.frame).unwrap();
        assert_eq!(frame.get("traceparent"), None);
        assert_eq!(frame["position"], position().to_string());
        assert_eq!(frame.get("n"), None);
    }

    #[test]
    fn a_frame_always_has_a_correlation_id() {
        let value = r#"{"type":"response","content":"hi","userid":"alice"}"#;
        let bring = read(&record(value), &position()).unwrap();
        let frame: serde_json::Value = serde_json::from_str(&bring.frame).unwrap();
        assert_eq!(frame["correlation_id"], bring.message_id.as_str());
    }

    #[test]
    fn what_is_no_object_is_unreadable() {
        for bad in [
            "",
            "[]",
            "7",
            "{",
            r#"{"type":"delta","userid":"alice"}"#,
            r#"{"type":"error"}"#,
        ] {
            assert!(read(&record(bad), &position()).is_err(), "{bad}");
        }
    }
}
