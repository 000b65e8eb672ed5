//! Creates the trace span of a record's processing, and the spans of the record's waits in the log
//! and in its lane. [`RecordWorker`](super::record_worker::RecordWorker) calls it for each record.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::handler::Delivery;
use crate::protocol::record::{header, trace_from_headers};
use crate::telemetry::traces::{self, Span, SpanKind};

/// Starts the span of a record that has just acquired its slot, and records two spans for the
/// record's waits: `log wait` as a sibling of the record's span, and `lane wait` as its child. A
/// record that was already finished gets no second span: the returned span is not recorded.
pub(super) fn start_span(delivery: &Delivery, group: &str) -> Span {
    let record = &delivery.record;
    let sender = trace_from_headers(record);
    if delivery.already_finished || !traces::are_enabled() {
        return Span::unrecorded(sender);
    }
    let (topic, received) = (&record.topic, delivery.received_at);
    let name = format_args!("process {topic}");
    let mut span = Span::begin_at(sender.clone(), SpanKind::Consumer, name, received);
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
    // The timestamp is from the log's clock, which may be ahead of this process's clock. Then the
    // wait in the log counts as 0.
    let appended = Duration::from_millis(record.timestamp_ms.try_into().unwrap_or_default());
    let appended = (UNIX_EPOCH + appended).min(received);
    // The wait in the log precedes the processing, so both spans have the sender's span as parent.
    // If the record carries no trace, the wait becomes a child of the processing span.
    let parent = sender.or_else(|| span.context().cloned());
    let name = format_args!("log wait {topic}");
    Span::begin_at(parent, SpanKind::Internal, name, appended).end_at(received);
    span.child_at(SpanKind::Internal, format_args!("lane wait"), received)
        .end_at(SystemTime::now());
    span
}
