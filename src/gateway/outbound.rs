//! The outbound queue of one connection: text frames bounded in bytes, a ping and a close frame,
//! written to the socket by one task.

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
use crate::telemetry::traces::{self, Kind, Span};

/// A client that takes longer to accept one frame counts as a slow consumer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long writing the close frame may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes charged for a queued frame in addition to its text.
const FRAME_OVERHEAD: usize = 64;

/// Bytes above the limit that are reserved for the gateway's own short replies, which cannot wait
/// for room.
const CONTROL_RESERVE: usize = 64 << 10;

/// The bounded queue of frames for one client.
///
/// Text frames keep their order. A ping overtakes them, and the close frame follows them. A frame
/// that exceeds the limit in [`push`](Self::push) makes the client a slow consumer: the queue is
/// discarded and the socket is closed. [`try_push`](Self::try_push) leaves that decision to the
/// caller.
pub(super) struct OutboundQueue {
    limit: usize,
    state: Mutex<QueueState>,
    /// Wakes the writer: a frame was queued, or the socket is to be closed.
    changed: Notify,
    /// Wakes a caller that waits for room: a frame was dequeued.
    dequeued: Notify,
    closing: CancellationToken,
    /// Cancels a write in progress: the client will not receive the queued frames.
    discarded: CancellationToken,
}

#[derive(Default)]
struct QueueState {
    frames: VecDeque<QueuedFrame>,
    bytes: usize,
    ping_requested: bool,
    close_reason: Option<CloseReason>,
    /// The client can't receive a close frame any more, or has sent its own.
    is_disconnected: bool,
}

struct QueuedFrame {
    text: Utf8Bytes,
    /// The delivery span, from queueing to writing; `None` where the trace is not recorded.
    delivery: Option<Box<Span>>,
}

impl QueuedFrame {
    fn new(text: Utf8Bytes, trace: Option<&TraceContext>) -> Self {
        let delivery = trace.filter(|_| traces::are_enabled()).map(|trace| {
            let name = format_args!("deliver to socket");
            Box::new(Span::begin(Some(trace.clone()), Kind::Consumer, name))
        });
        Self {
            text,
            delivery: delivery.filter(|span| span.is_recorded()),
        }
    }
}

/// Removes all frames and marks their delivery spans as failed.
fn discard_undelivered(frames: &mut VecDeque<QueuedFrame>) {
    for frame in frames.drain(..) {
        if let Some(mut delivery) = frame.delivery {
            delivery.fail("socket_closed");
        }
    }
}

/// What the writer does next.
enum WriterAction {
    Write(Message, Option<Box<Span>>),
    Close(CloseReason),
    /// End without a close frame.
    Stop,
}

impl OutboundQueue {
    /// `limit` is in bytes, including [`FRAME_OVERHEAD`] for each frame.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
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

    /// Queues a text frame without waiting, and closes the socket as a slow consumer where it does
    /// not fit. Ignored while the socket is closing.
    pub(super) fn push(&self, frame: Utf8Bytes) {
        self.push_traced(frame, None);
    }

    /// Like [`Self::push`], with a span for the delivery of a frame that belongs to a trace.
    pub(super) fn push_traced(&self, frame: Utf8Bytes, trace: Option<&TraceContext>) {
        if !self.enqueue(frame, self.limit, trace) {
            self.close(CloseReason::SlowConsumer);
        }
    }

    /// Like [`Self::push`], for the gateway's own short replies: they may use the reserve.
    pub(super) fn push_control(&self, frame: Utf8Bytes) {
        if !self.enqueue(frame, self.limit + CONTROL_RESERVE, None) {
            self.close(CloseReason::SlowConsumer);
        }
    }

    /// Queues a text frame without waiting where there is room for it; returns whether there was.
    /// An empty queue accepts a frame of any size. A socket that is closing ignores the frame and
    /// returns true.
    pub(super) fn try_push(&self, frame: Utf8Bytes) -> bool {
        self.try_push_traced(frame, None)
    }

    /// Like [`Self::try_push`], with a span for the delivery of a frame that belongs to a trace.
    pub(super) fn try_push_traced(&self, frame: Utf8Bytes, trace: Option<&TraceContext>) -> bool {
        let limit = if self.state().frames.is_empty() {
            usize::MAX
        } else {
            self.limit
        };
        self.enqueue(frame, limit, trace)
    }

    fn enqueue(&self, frame: Utf8Bytes, limit: usize, trace: Option<&TraceContext>) -> bool {
        let mut state = self.state();
        if state.close_reason.is_some() {
            return true;
        }
        let bytes = state.bytes + frame.as_str().len() + FRAME_OVERHEAD;
        if bytes > limit {
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

    /// Removes all queued frames and returns how many there were. For benchmarks, which have no
    /// socket to write to.
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

    /// Ends the socket with a close frame after the queued frames; a slow consumer's frames are
    /// discarded. Only the first reason counts.
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

    /// Ends the socket at once without a close frame: the client is disconnected, or has sent its
    /// own close frame. The first reason of [`Self::close`] and this counts.
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
                    state.bytes -= frame.text.as_str().len() + FRAME_OVERHEAD;
                    self.dequeued.notify_one();
                    return WriterAction::Write(Message::Text(frame.text), frame.delivery);
                }
                if let Some(reason) = state.close_reason {
                    return WriterAction::Close(reason);
                }
            }
            self.changed.notified().await;
        }
    }

    /// Writes to `sink` until the socket ends. `frames_sent` counts text frames.
    pub(super) async fn write_to<S>(&self, sink: &mut S, frames_sent: &Counter)
    where
        S: Sink<Message, Error = WsError> + Unpin,
    {
        loop {
            let (message, mut delivery) = match self.next_action().await {
                WriterAction::Write(message, delivery) => (message, delivery),
                WriterAction::Stop => return,
                WriterAction::Close(reason) => {
                    let frame = CloseFrame {
                        code: reason.code().into(),
                        reason: Utf8Bytes::from_static(reason.name()),
                    };
                    // A client that accepts no close frame sees the connection closed all the same.
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
                    if let Some(delivery) = &mut delivery {
                        delivery.fail("socket_closed");
                    }
                    continue;
                }
            };
            let Some(reason) = failure else {
                frames_sent.increment(u64::from(is_text));
                continue;
            };
            if let Some(delivery) = &mut delivery {
                delivery.fail(reason.name());
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
        let queue = OutboundQueue::new(3 * (FRAME_OVERHEAD + 1));
        for _ in 0..3 {
            queue.push("x".into());
        }
        assert_eq!(queue.close_reason(), None);
        queue.push("x".into());
        assert_eq!(queue.close_reason(), Some(CloseReason::SlowConsumer));
        assert_eq!(describe(queue.next_action().await), "slow_consumer");
    }
}
