//! The outbound queue of one connection: text frames up to a limit in bytes, a ping and a close
//! frame. Any task adds frames; the connection's writer takes them and writes them to the socket.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{Sink, SinkExt as _};
use metrics::Counter;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::tungstenite::{Error as WsError, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use crate::protocol::close::CloseReason;
use crate::protocol::trace_context::TraceContext;
use crate::telemetry::traces::{self, Span, SpanKind};

/// Time after which a client counts as a slow consumer because writing one frame is not finished.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which writing the close frame is abandoned.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Size in bytes that is charged for a queued frame in addition to its text.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Size in bytes above the limit that is reserved for the gateway's own short replies, which can't
/// wait for room.
const CONTROL_RESERVE_BYTES: usize = 64 << 10;

/// The bounded queue of frames for one client.
///
/// Text frames keep their order. A ping overtakes them, and the close frame follows them. If
/// [`push`](Self::push) finds no room for a frame, the client is a slow consumer: the queue is
/// discarded and the socket is closed. [`try_push`](Self::try_push) leaves that decision to the
/// caller.
pub(super) struct OutboundQueue {
    limit_bytes: usize,
    state: Mutex<QueueState>,
    /// Wakes the writer, because a frame was queued or the socket is to be closed.
    changed: Notify,
    /// Wakes a caller that waits for room, because a frame was dequeued.
    dequeued: Notify,
    /// Cancelled when a close reason is set.
    closing: CancellationToken,
    /// Cancelled when the queued frames are discarded because the client will not receive them.
    /// Ends a write in progress.
    discarded: CancellationToken,
}

#[derive(Default)]
struct QueueState {
    frames: VecDeque<QueuedFrame>,
    /// Size of the queued frames in bytes, including [`FRAME_OVERHEAD_BYTES`] for each frame.
    bytes: usize,
    ping_requested: bool,
    /// Why the socket is closing; `None` while it is open.
    close_reason: Option<CloseReason>,
    /// Whether the writer ends without writing a close frame, because the client can't receive it
    /// any more or has sent its own close frame.
    is_disconnected: bool,
}

struct QueuedFrame {
    text: Utf8Bytes,
    /// The span from queueing to writing the frame; `None` where the trace is not recorded.
    delivery_span: Option<Box<Span>>,
}

impl QueuedFrame {
    fn new(text: Utf8Bytes, trace: Option<&TraceContext>) -> Self {
        let delivery_span = trace.filter(|_| traces::are_enabled()).map(|trace| {
            let name = format_args!("deliver to socket");
            Box::new(Span::begin(Some(trace.clone()), SpanKind::Consumer, name))
        });
        Self {
            text,
            delivery_span: delivery_span.filter(|span| span.is_recorded()),
        }
    }
}

/// Removes all frames and marks their delivery spans as failed.
fn discard_undelivered(frames: &mut VecDeque<QueuedFrame>) {
    for frame in frames.drain(..) {
        if let Some(mut span) = frame.delivery_span {
            span.fail("socket_closed");
        }
    }
}

/// What the writer does next.
enum WriterAction {
    /// Write a text frame or a ping. The span covers the delivery of a traced text frame.
    Write(Message, Option<Box<Span>>),
    /// Write a close frame with this reason, and end.
    Close(CloseReason),
    /// End without a close frame.
    Stop,
}

impl OutboundQueue {
    /// Creates an empty queue. `limit_bytes` includes [`FRAME_OVERHEAD_BYTES`] for each frame.
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            state: Mutex::default(),
            changed: Notify::new(),
            dequeued: Notify::new(),
            closing: CancellationToken::new(),
            discarded: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    /// Queues a text frame without waiting. If there is no room for the frame, closes the socket as
    /// that of a slow consumer. Ignores the frame while the socket is closing.
    pub(super) fn push(&self, frame: Utf8Bytes) {
        self.push_traced(frame, None);
    }

    /// Like [`Self::push`], with a span for the delivery of a frame that belongs to a trace.
    pub(super) fn push_traced(&self, frame: Utf8Bytes, trace: Option<&TraceContext>) {
        if !self.enqueue(frame, self.limit_bytes, trace) {
            self.close(CloseReason::SlowConsumer);
        }
    }

    /// Like [`Self::push`], for the gateway's own short replies, which may use
    /// [`CONTROL_RESERVE_BYTES`] above the limit.
    pub(super) fn push_control(&self, frame: Utf8Bytes) {
        if !self.enqueue(frame, self.limit_bytes + CONTROL_RESERVE_BYTES, None) {
            self.close(CloseReason::SlowConsumer);
        }
    }

    /// Queues a text frame without waiting if there is room for it. Returns whether the frame was
    /// queued. An empty queue accepts a frame of any size. While the socket is closing, the frame
    /// is ignored and the result is true.
    pub(super) fn try_push(&self, frame: Utf8Bytes) -> bool {
        self.try_push_traced(frame, None)
    }

    /// Like [`Self::try_push`], with a span for the delivery of a frame that belongs to a trace.
    pub(super) fn try_push_traced(&self, frame: Utf8Bytes, trace: Option<&TraceContext>) -> bool {
        let limit_bytes = if self.state().frames.is_empty() {
            usize::MAX
        } else {
            self.limit_bytes
        };
        self.enqueue(frame, limit_bytes, trace)
    }

    /// Queues a text frame unless the queue would exceed `limit_bytes`. Returns false where it
    /// would. While the socket is closing, ignores the frame and returns true.
    fn enqueue(&self, frame: Utf8Bytes, limit_bytes: usize, trace: Option<&TraceContext>) -> bool {
        let mut state = self.state();
        if state.close_reason.is_some() {
            return true;
        }
        let bytes = state.bytes + frame.as_str().len() + FRAME_OVERHEAD_BYTES;
        if bytes > limit_bytes {
            return false;
        }
        state.bytes = bytes;
        state.frames.push_back(QueuedFrame::new(frame, trace));
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Queues a text frame as soon as there is room. Only one caller may wait at a time.
    pub(super) async fn push_when_room(&self, frame: Utf8Bytes, trace: Option<&TraceContext>) {
        while !self.try_push_traced(frame.clone(), trace) {
            self.dequeued.notified().await;
        }
    }

    /// Returns once the queue is empty. Only one caller may wait at a time.
    pub(super) async fn wait_until_empty(&self) {
        while !self.state().frames.is_empty() {
            self.dequeued.notified().await;
        }
    }

    /// Removes all queued frames and returns their number. For benchmarks, whose connections have
    /// no socket.
    pub(super) fn discard(&self) -> usize {
        let mut state = self.state();
        state.bytes = 0;
        state.frames.drain(..).count()
    }

    /// The texts of all queued frames.
    #[cfg(test)]
    pub(super) fn queued(&self) -> Vec<String> {
        let state = self.state();
        let texts = state.frames.iter().map(|frame| frame.text.to_string());
        texts.collect()
    }

    /// Sends a ping before the queued frames.
    pub(super) fn ping(&self) {
        self.state().ping_requested = true;
        self.changed.notify_one();
    }

    /// Closes the socket with a close frame after the queued frames. The queued frames of a slow
    /// consumer are discarded. Does nothing where a close reason is already set.
    pub(super) fn close(&self, reason: CloseReason) {
        let mut state = self.state();
        if state.close_reason.is_some() {
            return;
        }
        state.close_reason = Some(reason);
        if reason == CloseReason::SlowConsumer {
            discard_undelivered(&mut state.frames);
            self.discarded.cancel();
        }
        drop(state);
        self.closing.cancel();
        self.changed.notify_one();
    }

    /// Discards the queued frames and ends the writer at once without a close frame, because the
    /// client is disconnected or has sent its own close frame. Keeps a close reason that is already
    /// set.
    pub(super) fn disconnect(&self, reason: CloseReason) {
        let mut state = self.state();
        state.close_reason.get_or_insert(reason);
        state.is_disconnected = true;
        discard_undelivered(&mut state.frames);
        drop(state);
        self.discarded.cancel();
        self.closing.cancel();
        self.changed.notify_one();
    }

    /// Returns once the socket is closing.
    pub(super) async fn wait_until_closing(&self) {
        self.closing.cancelled().await;
    }

    /// Why the socket is closing; `None` while it is open.
    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        self.state().close_reason
    }

    async fn next_action(&self) -> WriterAction {
        loop {
            {
                let mut state = self.state();
                if state.is_disconnected {
                    return WriterAction::Stop;
                }
                if std::mem::take(&mut state.ping_requested) {
                    return WriterAction::Write(Message::Ping(bytes::Bytes::new()), None);
                }
                if let Some(frame) = state.frames.pop_front() {
                    state.bytes -= frame.text.as_str().len() + FRAME_OVERHEAD_BYTES;
                    self.dequeued.notify_one();
                    return WriterAction::Write(Message::Text(frame.text), frame.delivery_span);
                }
                if let Some(reason) = state.close_reason {
                    return WriterAction::Close(reason);
                }
            }
            self.changed.notified().await;
        }
    }

    /// Writes the queued frames to `sink` until the close frame was written or the client is
    /// disconnected. `frames_sent` counts the text frames.
    pub(super) async fn write_to<S>(&self, sink: &mut S, frames_sent: &Counter)
    where
        S: Sink<Message, Error = WsError> + Unpin,
    {
        loop {
            let (message, mut delivery_span) = match self.next_action().await {
                WriterAction::Write(message, delivery_span) => (message, delivery_span),
                WriterAction::Stop => return,
                WriterAction::Close(reason) => {
                    let frame = CloseFrame {
                        code: reason.code().into(),
                        reason: Utf8Bytes::from_static(reason.name()),
                    };
                    // The result is ignored: the connection is closed afterwards in any case.
                    let _ = timeout(CLOSE_TIMEOUT, sink.send(Message::Close(Some(frame)))).await;
                    return;
                }
            };
            let is_text = message.is_text();
            let failure = tokio::select! {
                biased;
                written = timeout(WRITE_TIMEOUT, sink.send(message)) => match written {
                    Ok(Ok(())) => None,
                    Ok(Err(_)) => Some(CloseReason::ConnectionLost),
                    Err(_) => Some(CloseReason::SlowConsumer),
                },
                () = self.discarded.cancelled() => {
                    if let Some(span) = &mut delivery_span {
                        span.fail("socket_closed");
                    }
                    continue;
                }
            };
            let Some(reason) = failure else {
                frames_sent.increment(u64::from(is_text));
                continue;
            };
            if let Some(span) = &mut delivery_span {
                span.fail(reason.name());
            }
            if reason == CloseReason::ConnectionLost {
                self.disconnect(reason);
                return;
            }
            self.close(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(action: WriterAction) -> String {
        match action {
            WriterAction::Write(message, _) => message.into_text().unwrap().to_string(),
            WriterAction::Close(reason) => reason.name().to_owned(),
            WriterAction::Stop => "stop".to_owned(),
        }
    }

    #[tokio::test]
    async fn queued_frames_precede_the_close_frame_and_later_ones_are_ignored() {
        let queue = OutboundQueue::new(1000);
        queue.push("a".into());
        queue.push("b".into());
        queue.close(CloseReason::GoingAway);
        queue.push("c".into());
        for expected in ["a", "b", "going_away"] {
            assert_eq!(describe(queue.next_action().await), expected);
        }
    }

    #[tokio::test]
    async fn frame_over_the_limit_discards_the_queue_and_closes_the_socket() {
        let queue = OutboundQueue::new(3 * (FRAME_OVERHEAD_BYTES + 1));
        for _ in 0..3 {
            queue.push("x".into());
        }
        assert_eq!(queue.close_reason(), None);
        queue.push("x".into());
        assert_eq!(queue.close_reason(), Some(CloseReason::SlowConsumer));
        assert_eq!(describe(queue.next_action().await), "slow_consumer");
    }
}
