//! What one socket still has to be sent: bounded in bytes, and written by one task.

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

/// A write that takes longer is a client that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the close frame may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a queued frame costs beside its text.
const FRAME_COST: usize = 64;

/// What the gateway's own answers may take beyond the limit: they can't wait for room.
const CONTROL_BYTES: usize = 64 << 10;

/// The queue. Frames keep their order; a ping overtakes them, the close frame comes after them.
/// Over its limit a classic client counts as slow: the frames are dropped and the socket is
/// closed. For `chatmesh.v1` frames are only offered, and what finds no room comes later.
pub(super) struct Outbound {
    limit: usize,
    state: Mutex<State>,
    wake: Notify,
    /// Something was taken out.
    taken: Notify,
    closing: CancellationToken,
    abandoned: CancellationToken,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Queued>,
    bytes: usize,
    ping: bool,
    ended_by: Option<CloseReason>,
    /// Nobody is there to be told.
    gone: bool,
}

struct Queued {
    text: Utf8Bytes,
    /// Until it is written; of a frame whose trace is recorded.
    delivery: Option<Box<Span>>,
}

impl Queued {
    /// Where the frame's trace is recorded here, its delivery begins.
    fn new(text: Utf8Bytes, trace: Option<&TraceContext>) -> Self {
        let delivery = trace.filter(|_| traces::are_on()).map(|trace| {
            let name = format_args!("deliver to socket");
            Box::new(Span::begin(Some(trace.clone()), Kind::Consumer, name))
        });
        Self {
            text,
            delivery: delivery.filter(|span| span.is_recorded()),
        }
    }
}

/// Frames that nobody will get.
fn lose(frames: &mut VecDeque<Queued>) {
    for frame in frames.drain(..) {
        if let Some(mut delivery) = frame.delivery {
            delivery.fail("socket_closed");
        }
    }
}

enum Next {
    Write(Message, Option<Box<Span>>),
    Close(CloseReason),
    Gone,
}

impl Outbound {
    /// Holds at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            wake: Notify::new(),
            taken: Notify::new(),
            closing: CancellationToken::new(),
            abandoned: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Queues a text frame; nothing where the socket is closing. Never waits.
    pub(super) fn push(&self, frame: Utf8Bytes) {
        self.push_traced(frame, None);
    }

    /// As [`Self::push`], of a frame that belongs to a trace.
    pub(super) fn push_traced(&self, frame: Utf8Bytes, trace: Option<&TraceContext>) {
        if !self.enqueue(frame, self.limit, trace) {
            self.close(CloseReason::SlowConsumer);
        }
    }

    /// As [`Self::push`], for the gateway's own short answers: they have room of their own.
    pub(super) fn push_control(&self, frame: Utf8Bytes) {
        if !self.enqueue(frame, self.limit + CONTROL_BYTES, None) {
            self.close(CloseReason::SlowConsumer);
        }
    }

    /// Queues a text frame where there is room for it, and says whether there was. An empty queue
    /// takes any frame. A socket that is closing takes none and says yes.
    pub(super) fn offer(&self, frame: Utf8Bytes) -> bool {
        self.offer_traced(frame, None)
    }

    /// As [`Self::offer`], of a frame that belongs to a trace.
    pub(super) fn offer_traced(&self, frame: Utf8Bytes, trace: Option<&TraceContext>) -> bool {
        let limit = if self.state().frames.is_empty() {
            usize::MAX
        } else {
            self.limit
        };
        self.enqueue(frame, limit, trace)
    }

    fn enqueue(&self, frame: Utf8Bytes, limit: usize, trace: Option<&TraceContext>) -> bool {
        let mut state = self.state();
        if state.ended_by.is_some() {
            return true;
        }
        let bytes = state.bytes + frame.as_str().len() + FRAME_COST;
        if bytes > limit {
            return false;
        }
        state.bytes = bytes;
        state.frames.push_back(Queued::new(frame, trace));
        drop(state);
        self.wake.notify_one();
        true
    }

    /// Queues a text frame as soon as there is room; for one caller at a time.
    pub(super) async fn push_when_room(&self, frame: Utf8Bytes, trace: Option<&TraceContext>) {
        while !self.offer_traced(frame.clone(), trace) {
            self.taken.notified().await;
        }
    }

    /// Returns once nothing is queued; for one caller at a time.
    pub(super) async fn drained(&self) {
        while !self.state().frames.is_empty() {
            self.taken.notified().await;
        }
    }

    /// Takes out everything that is queued, and says how many frames that were. For benchmarks,
    /// which have nobody to write to.
    pub(super) fn discard(&self) -> usize {
        let mut state = self.state();
        state.bytes = 0;
        state.frames.drain(..).count()
    }

    /// What is queued.
    #[cfg(test)]
    pub(super) fn queued(&self) -> Vec<String> {
        let state = self.state();
        let texts = state.frames.iter().map(|frame| frame.text.to_string());
        texts.collect()
    }

    /// Asks the client whether it is there.
    pub(super) fn ping(&self) {
        self.state().ping = true;
        self.wake.notify_one();
    }

    /// Ends the socket with a close frame after what is queued. The first reason counts.
    pub(super) fn close(&self, reason: CloseReason) {
        let mut state = self.state();
        if state.ended_by.is_some() {
            return;
        }
        state.ended_by = Some(reason);
        if reason == CloseReason::SlowConsumer {
            lose(&mut state.frames);
            self.abandoned.cancel();
        }
        drop(state);
        self.closing.cancel();
        self.wake.notify_one();
    }

    /// Ends the socket without a word: the client is gone, or said goodbye first.
    pub(super) fn stop(&self, reason: CloseReason) {
        let mut state = self.state();
        state.ended_by.get_or_insert(reason);
        state.gone = true;
        lose(&mut state.frames);
        drop(state);
        self.abandoned.cancel();
        self.closing.cancel();
        self.wake.notify_one();
    }

    /// Returns once the socket is to end.
    pub(super) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Why the socket ends, once that is decided.
    pub(super) fn ended_by(&self) -> Option<CloseReason> {
        self.state().ended_by
    }

    async fn next(&self) -> Next {
        loop {
            {
                let mut state = self.state();
                if state.gone {
                    return Next::Gone;
                }
                if std::mem::take(&mut state.ping) {
                    return Next::Write(Message::Ping(bytes::Bytes::new()), None);
                }
                if let Some(frame) = state.frames.pop_front() {
                    state.bytes -= frame.text.as_str().len() + FRAME_COST;
                    self.taken.notify_one();
                    return Next::Write(Message::Text(frame.text), frame.delivery);
                }
                if let Some(reason) = state.ended_by {
                    return Next::Close(reason);
                }
            }
            self.wake.notified().await;
        }
    }

    /// Writes until the socket ends. `sent` counts text frames.
    pub(super) async fn write_to<S>(&self, sink: &mut S, sent: &Counter)
    where
        S: Sink<Message, Error = WsError> + Unpin,
    {
        loop {
            let (message, mut delivery) = match self.next().await {
                Next::Write(message, delivery) => (message, delivery),
                Next::Gone => return,
                Next::Close(reason) => {
                    let frame = CloseFrame {
                        code: reason.code().into(),
                        reason: Utf8Bytes::from_static(reason.name()),
                    };
                    // A client that does not take even this learns it from the closed connection.
                    let _ = timeout(CLOSE_TIMEOUT, sink.send(Message::Close(Some(frame)))).await;
                    return;
                }
            };
            let text = message.is_text();
            let trouble = tokio::select! {
                biased;
                written = timeout(WRITE_TIMEOUT, sink.send(message)) => match written {
                    Ok(Ok(())) => None,
                    Ok(Err(_)) => Some(CloseReason::Lost),
                    Err(_) => Some(CloseReason::SlowConsumer),
                },
                () = self.abandoned.cancelled() => {
                    if let Some(delivery) = &mut delivery {
                        delivery.fail("socket_closed");
                    }
                    continue;
                }
            };
            let Some(trouble) = trouble else {
                sent.increment(u64::from(text));
                continue;
            };
            if let Some(delivery) = &mut delivery {
                delivery.fail(trouble.name());
            }
            if trouble == CloseReason::Lost {
                self.stop(trouble);
                return;
            }
            self.close(trouble);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(next: Next) -> String {
        match next {
            Next::Write(message, _) => message.into_text().unwrap().to_string(),
            Next::Close(reason) => reason.name().to_owned(),
            Next::Gone => "gone".to_owned(),
        }
    }

    #[tokio::test]
    async fn what_was_queued_goes_out_before_the_goodbye_and_nothing_after_it() {
        let outbound = Outbound::new(1000);
        outbound.push("a".into());
        outbound.push("b".into());
        outbound.close(CloseReason::GoingAway);
        outbound.push("c".into());
        for expected in ["a", "b", "going_away"] {
            assert_eq!(text(outbound.next().await), expected);
        }
    }

    #[tokio::test]
    async fn a_full_queue_closes_the_socket_and_holds_nothing_back() {
        let outbound = Outbound::new(3 * (FRAME_COST + 1));
        for _ in 0..3 {
            outbound.push("x".into());
        }
        assert_eq!(outbound.ended_by(), None);
        outbound.push("x".into());
        assert_eq!(outbound.ended_by(), Some(CloseReason::SlowConsumer));
        assert_eq!(text(outbound.next().await), "slow_consumer");
    }
}
