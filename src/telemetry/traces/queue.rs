//! Between the spans' ends and the collector: a bounded queue that is never waited for, and one
//! task that sends what is in it.

use std::time::Duration;

use metrics::Counter;
use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::metrics::{DROPPED, EXPORTED, reason};

/// Spans that wait; about a dozen a message.
const QUEUE: usize = 8192;

/// Spans of one request.
const BATCH: usize = 512;

/// How long spans are gathered.
const GATHER: Duration = Duration::from_secs(1);

/// How often lost spans are spoken of.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Where spans go when they end.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    full: Counter,
}

pub(super) fn new() -> (Queue, mpsc::Receiver<SpanData>) {
    let (spans, queued) = mpsc::channel(QUEUE);
    let full = DROPPED.counter(&[reason::QUEUE_FULL]);
    (Queue { spans, full }, queued)
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.full.increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Exports until `stop` fires, and then what is left.
pub(super) async fn export(
    mut spans: mpsc::Receiver<SpanData>,
    exporter: impl SpanExporter,
    stop: CancellationToken,
) {
    let mut sender = Sender {
        exporter,
        exported: EXPORTED.counter(&[]),
        lost: DROPPED.counter(&[reason::EXPORT_FAILED]),
        unsaid: 0,
        said: None,
    };
    let mut batch = Vec::new();
    while stop
        .run_until_cancelled(gather(&mut spans, &mut batch))
        .await
        .is_some()
    {
        sender.send(std::mem::take(&mut batch)).await;
    }
    spans.close();
    loop {
        // What was being gathered is in it already.
        let room = BATCH.saturating_sub(batch.len());
        spans.recv_many(&mut batch, room).await;
        if batch.is_empty() {
            return;
        }
        sender.send(std::mem::take(&mut batch)).await;
    }
}

/// Waits for spans, and a little for more. Cancel-safe: what came is in `batch`.
async fn gather(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if spans.recv_many(batch, BATCH).await == 0 {
        // Nobody can send any more: wait to be told to stop.
        std::future::pending::<()>().await;
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH {
        tokio::select! {
            more = spans.recv_many(batch, BATCH - batch.len()) => if more == 0 { return },
            () = sleep_until(until) => return,
        }
    }
}

struct Sender<E> {
    exporter: E,
    exported: Counter,
    lost: Counter,
    /// Lost since it was last said.
    unsaid: u64,
    said: Option<Instant>,
}

impl<E: SpanExporter> Sender<E> {
    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        let Err(error) = self.exporter.export(batch).await else {
            self.exported.increment(spans);
            return;
        };
        self.lost.increment(spans);
        self.unsaid += spans;
        if self.said.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
            self.said = Some(Instant::now());
            tracing::warn!(
                spans = self.unsaid, %error,
                "spans are lost, the collector does not take them; messages are not affected"
            );
            self.unsaid = 0;
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

    fn end_spans(queue: Queue, count: usize) -> SdkTracerProvider {
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
    async fn what_is_queued_at_the_end_is_still_exported() {
        let (queue, spans) = new();
        let _provider = end_spans(queue, 3 * BATCH + 1);
        let collected = Collected::default();
        let stop = CancellationToken::new();
        stop.cancel();
        export(spans, collected.clone(), stop).await;
        let batches = collected.0.lock().unwrap().clone();
        assert_eq!(batches.iter().sum::<usize>(), 3 * BATCH + 1);
        assert!(batches.iter().all(|spans| *spans <= BATCH), "{batches:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_collector_holds_up_nobody_and_costs_a_bounded_memory() {
        let (queue, spans) = new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(export(spans, Hanging, stop.clone()));
        let sender = queue.spans.clone();
        let _provider = end_spans(queue, 2 * QUEUE);
        assert_eq!(sender.capacity(), 0);
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(3), task).await;
        assert!(ended.is_err(), "who finishes has to bound its wait");
    }
}
