//! The bodies of responses. A body is sent in one piece, as a stream with a fixed token rate, or as
//! a stream that is cut off.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::answer::AnswerTokens;
use super::call::Call;
use super::request::ChatRequest;
use super::stats::add_to_counter;

/// Time for which a stream that is to be cut off stays open after its last token, so that hyper
/// flushes the token before it closes the connection.
const FLUSH_DELAY: Duration = Duration::from_millis(2);

/// Error of a body that is cut off because of `--cut-share`. It makes hyper close the connection
/// without the end of the body.
#[derive(Debug, thiserror::Error)]
#[error("stream cut off by --cut-share")]
pub(super) struct StreamCut;

/// The body of a response.
pub(super) enum ResponseBody {
    /// A body that is sent in one piece; `None` after it was sent.
    Whole(Option<Bytes>),
    /// A streamed answer.
    Stream(Box<AnswerStream>),
}

/// An answer that is written token by token.
pub(super) struct AnswerStream {
    call: Call,
    request: ChatRequest,
    tokens: AnswerTokens,
    /// Number of remaining tokens at which the stream is cut off; `None` if it is not cut off.
    cut_at: Option<u64>,
    /// When the first piece was written; `None` before that.
    started: Option<Instant>,
    /// Expires when the next piece is due, or when the stream is to be cut off.
    write_timer: Pin<Box<Sleep>>,
    is_finished: bool,
}

impl ResponseBody {
    /// Creates a body that is sent in one piece.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// Creates the body of a streamed answer, which is cut off in the middle if `is_cut`.
    pub(super) fn stream(
        call: Call,
        request: ChatRequest,
        tokens: AnswerTokens,
        is_cut: bool,
    ) -> Self {
        Self::Stream(Box::new(AnswerStream {
            cut_at: is_cut.then_some(tokens.total() / 2),
            call,
            request,
            tokens,
            started: None,
            write_timer: Box::pin(sleep(Duration::ZERO)),
            is_finished: false,
        }))
    }
}

impl AnswerStream {
    /// Polls for the next piece of the stream, which has all tokens that are due. Returns `None`
    /// after the end, and an error where the stream is cut off.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamCut>>> {
        if self.is_finished {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        let rate = self.call.state.tokens_per_second;
        let Some(started) = self.started else {
            self.started = Some(Instant::now());
            self.call.state.encoder.write_role(&self.request, &mut out);
            if rate == 0.0 {
                let stop_at = self.cut_at.unwrap_or(0);
                while self.tokens.remaining() > stop_at {
                    self.write_token(&mut out);
                }
            } else {
                self.write_token(&mut out);
            }
            return Poll::Ready(Some(Ok(self.finish_piece(out))));
        };
        ready!(self.write_timer.as_mut().poll(cx));
        if self
            .cut_at
            .is_some_and(|cut_at| self.tokens.remaining() <= cut_at)
        {
            self.is_finished = true;
            self.call.record_outcome(|stats| &stats.cut);
            return Poll::Ready(Some(Err(StreamCut)));
        }
        // On a busy machine the timer is polled late, so several tokens can be due.
        let tokens_due = 1 + (started.elapsed().as_secs_f64() * rate) as u64;
        let stop_at = self.cut_at.unwrap_or(0);
        loop {
            self.write_token(&mut out);
            let written = self.tokens.total() - self.tokens.remaining();
            if self.tokens.remaining() <= stop_at || written >= tokens_due {
                return Poll::Ready(Some(Ok(self.finish_piece(out))));
            }
        }
    }

    fn write_token(&mut self, out: &mut Vec<u8>) {
        let encoder = &self.call.state.encoder;
        encoder.write_token(&self.request, &mut self.tokens, out);
    }

    /// Completes a piece. Appends the end of the stream if all tokens are written; otherwise
    /// schedules the next piece, or the time at which the stream is cut off.
    fn finish_piece(&mut self, mut out: Vec<u8>) -> Bytes {
        let remaining = self.tokens.remaining();
        if self.cut_at.is_some_and(|cut_at| remaining <= cut_at) {
            self.write_timer
                .as_mut()
                .reset(Instant::now() + FLUSH_DELAY);
        } else if remaining == 0 {
            let encoder = &self.call.state.encoder;
            encoder.write_end(&self.request, &self.tokens, &mut out);
            self.is_finished = true;
            self.call.record_outcome(|stats| &stats.answered);
        } else {
            let written = self.tokens.total() - remaining;
            let rate = self.call.state.tokens_per_second;
            let offset = Duration::from_secs_f64(written as f64 / rate);
            let started = self.started.unwrap_or_else(Instant::now);
            self.write_timer = Box::pin(sleep_until(started + offset));
        }
        out.into()
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        let written = self.tokens.total() - self.tokens.remaining();
        add_to_counter(&self.call.state.stats.tokens, written);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StreamCut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamCut>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) => bytes.take().map(Ok),
            Self::Stream(stream) => ready!(stream.poll_next(cx)),
        };
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.is_finished,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
