//! Exports finished spans through a bounded queue and one task. Ending a span never waits: if the
//! queue is full, the span is dropped and counted. The SDK's batch processor is not used, because
//! it exports from a thread of its own and reports only at the end how many spans it dropped.

use std::time::Duration;

use metrics::Counter;
use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::metrics::{DROPPED, EXPORTED, reason};

/// Maximum number of spans in the queue. One message creates about a dozen spans.
const QUEUE_CAPACITY: usize = 8192;

/// Maximum number of spans in one export request.
const MAX_BATCH: usize = 512;

/// Maximum time to collect a batch after its first span.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// Minimum time between two warnings about dropped spans.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The span processor: puts finished spans into the queue.
#[derive(Debug)]
pub(super) struct SpanQueue {
    spans: mpsc::Sender<SpanData>,
    /// Counts spans dropped because the queue was full.
    dropped: Counter,
}

/// Creates the queue: the processor that fills it, and the receiver from which spans are exported.
pub(super) fn create_queue() -> (SpanQueue, mpsc::Receiver<SpanData>) {
    let (spans, queued) = mpsc::channel(QUEUE_CAPACITY);
    let dropped = DROPPED.counter(&[reason::QUEUE_FULL]);
    (SpanQueue { spans, dropped }, queued)
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Exports batches until `stop` is cancelled, and then the spans that are still in the queue.
pub(super) async fn run_export(
    mut spans: mpsc::Receiver<SpanData>,
    exporter: impl SpanExporter,
    stop: CancellationToken,
) {
    let mut sender = BatchSender {
        exporter,
        exported: EXPORTED.counter(&[]),
        dropped: DROPPED.counter(&[reason::EXPORT_FAILED]),
        dropped_since_warning: 0,
        last_warning: None,
    };
    let mut batch = Vec::new();
    while stop
        .run_until_cancelled(collect_batch(&mut spans, &mut batch))
        .await
        .is_some()
    {
        sender.send(std::mem::take(&mut batch)).await;
    }
    spans.close();
    loop {
        // The batch may already hold spans from the collection that was cancelled.
        let room = MAX_BATCH.saturating_sub(batch.len());
        spans.recv_many(&mut batch, room).await;
        if batch.is_empty() {
            return;
        }
        sender.send(std::mem::take(&mut batch)).await;
    }
}

/// Waits for a span, then collects spans until the batch is full or [`BATCH_DELAY`] has passed.
/// Cancel-safe: spans that were received before the cancellation are in `batch`.
async fn collect_batch(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if spans.recv_many(batch, MAX_BATCH).await == 0 {
        // The channel is closed, so no span will arrive: wait until the caller cancels this future.
        std::future::pending::<()>().await;
    }
    let deadline = Instant::now() + BATCH_DELAY;
    while batch.len() < MAX_BATCH {
        tokio::select! {
            received = spans.recv_many(batch, MAX_BATCH - batch.len()) => if received == 0 { return },
            () = sleep_until(deadline) => return,
        }
    }
}

/// Sends batches to the collector, and limits the warnings about failures.
struct BatchSender<E> {
    exporter: E,
    /// Counts the spans that the collector accepted.
    exported: Counter,
    /// Counts the spans whose export failed.
    dropped: Counter,
    /// Number of spans whose export failed since the last warning.
    dropped_since_warning: u64,
    last_warning: Option<Instant>,
}

impl<E: SpanExporter> BatchSender<E> {
    async fn send(&mut self, batch: Vec<SpanData>) {
        let span_count = batch.len() as u64;
        let Err(error) = self.exporter.export(batch).await else {
            self.exported.increment(span_count);
            return;
        };
        self.dropped.increment(span_count);
        self.dropped_since_warning += span_count;
        let is_warning_due = self
            .last_warning
            .is_none_or(|warning| warning.elapsed() >= WARNING_INTERVAL);
        if is_warning_due {
            self.last_warning = Some(Instant::now());
            tracing::warn!(
                spans = self.dropped_since_warning, %error,
                "spans dropped: the collector rejects them or does not respond; messages are not \
                 affected"
            );
            self.dropped_since_warning = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Collected(Arc<Mutex<Vec<usize>>>);

    impl SpanExporter for Collected {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().push(batch.len());
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Hanging;

    impl SpanExporter for Hanging {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            std::future::pending().await
        }
    }

    fn end_spans(queue: SpanQueue, count: usize) -> SdkTracerProvider {
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer("test");
        for _ in 0..count {
            tracer.start("x").end();
        }
        provider
    }

    #[tokio::test(start_paused = true)]
    async fn queued_spans_are_exported_at_shutdown() {
        let (queue, spans) = create_queue();
        let _provider = end_spans(queue, 3 * MAX_BATCH + 1);
        let collected = Collected::default();
        let stop = CancellationToken::new();
        stop.cancel();
        run_export(spans, collected.clone(), stop).await;
        let batches = collected.0.lock().unwrap().clone();
        assert_eq!(batches.iter().sum::<usize>(), 3 * MAX_BATCH + 1);
        assert!(
            batches.iter().all(|spans| *spans <= MAX_BATCH),
            "{batches:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_collector_blocks_nothing_and_uses_bounded_memory() {
        let (queue, spans) = create_queue();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run_export(spans, Hanging, stop.clone()));
        let sender = queue.spans.clone();
        let _provider = end_spans(queue, 2 * QUEUE_CAPACITY);
        assert_eq!(sender.capacity(), 0);
        stop.cancel();
        let result = tokio::time::timeout(Duration::from_secs(3), task).await;
        assert!(result.is_err(), "the caller has to bound its wait");
    }
}
