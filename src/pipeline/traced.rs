//! A record's part of its trace: what it waited for, and the span of the work on it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Delivery;
use crate::protocol::record::{header, trace_of};
use crate::telemetry::traces::{self, Kind, Span};

/// Begins the span of the work on a record that has its slot now; the waiting until here is
/// recorded beside and in it. A record that is read again is not told of twice.
pub(super) fn begin(delivery: &Delivery, group: &str) -> Span {
    let record = &delivery.record;
    let sender = trace_of(record);
    if delivery.replay || !traces::are_on() {
        return Span::passing(sender);
    }
    let (topic, received) = (&record.topic, delivery.received);
    let name = format_args!("process {topic}");
    let mut span = Span::begin_at(sender.clone(), Kind::Consumer, name, received);
    if !span.is_recorded() {
        return span;
    }
    span.text("messaging.system", traces::log_system());
    span.text("messaging.operation.name", "process");
    span.text("messaging.operation.type", "process");
    span.text("messaging.destination.name", topic);
    span.text("messaging.consumer.group.name", group);
    let partition = record.partition.to_string();
    span.text("messaging.destination.partition.id", &partition);
    span.number("messaging.kafka.offset", record.offset);
    if let Some(id) = record.header_text(header::MESSAGE_ID) {
        span.text("messaging.message.id", id);
    }
    if let Some(id) = record.header_text(header::CORRELATION_ID) {
        span.text("correlation_id", id);
    }
    // By the log's clock, which may be ahead of ours.
    let appended = Duration::from_millis(record.timestamp_ms.try_into().unwrap_or_default());
    let appended = (UNIX_EPOCH + appended).min(received);
    // Before the work began, so it stands beside it; of a record without a trace in it.
    let around = sender.or_else(|| span.context().cloned());
    let name = format_args!("log wait {topic}");
    Span::begin_at(around, Kind::Internal, name, appended).end_at(received);
    span.child_at(Kind::Internal, format_args!("lane wait"), received)
        .end_at(SystemTime::now());
    span
}
