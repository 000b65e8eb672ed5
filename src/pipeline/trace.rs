//! Creates the trace span of a record's processing, and the spans of the waits before it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::handler::Delivery;
use crate::protocol::record::{header, trace_from_headers};
use crate::telemetry::traces::{self, Kind, Span};

/// Starts the span of a record that has just acquired its slot, and records the preceding waits: in
/// the log as a sibling of the span, in the lane as a child. A record that was already finished
/// gets no second span.
pub(super) fn start_span(delivery: &Delivery, group: &str) -> Span {
    let record = &delivery.record;
    let sender = trace_from_headers(record);
    if delivery.already_finished || !traces::are_enabled() {
        return Span::unrecorded(sender);
    }
    let (topic, received) = (&record.topic, delivery.received_at);
    let name = format_args!("process {topic}");
    let mut span = Span::begin_at(sender.clone(), Kind::Consumer, name, received);
    if !span.is_recorded() {
        return span;
    }
    span.set_text("messaging.system", traces::log_system());
    span.set_text("messaging.operation.name", "process");
    span.set_text("messaging.operation.type", "process");
    span.set_text("messaging.destination.name", topic);
    span.set_text("messaging.consumer.group.name", group);
    let partition = record.partition.to_string();
    span.set_text("messaging.destination.partition.id", &partition);
    span.set_number("messaging.kafka.offset", record.offset);
    if let Some(id) = record.header_text(header::MESSAGE_ID) {
        span.set_text("messaging.message.id", id);
    }
    if let Some(id) = record.header_text(header::CORRELATION_ID) {
        span.set_text("correlation_id", id);
    }
    // The timestamp is from the log's clock, which may be ahead of ours.
    let appended = Duration::from_millis(record.timestamp_ms.try_into().unwrap_or_default());
    let appended = (UNIX_EPOCH + appended).min(received);
    // The wait precedes the processing, so both have the sender's span as parent. Where the record
    // carries no trace, the wait becomes a child of the processing span.
    let parent = sender.or_else(|| span.context().cloned());
    let name = format_args!("log wait {topic}");
    Span::begin_at(parent, Kind::Internal, name, appended).end_at(received);
    span.child_at(Kind::Internal, format_args!("lane wait"), received)
        .end_at(SystemTime::now());
    span
}
