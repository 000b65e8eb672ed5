//! An answer's body: whole, paced, or cut off.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::answer::Tokens;
use super::request::Asked;
use super::server::Call;
use super::stats::add;

/// The connection is closed without the body's end, on purpose.
#[derive(Debug, thiserror::Error)]
#[error("cut off as asked")]
pub(super) struct Cut;

/// What hyper writes.
pub(super) enum Answer {
    Whole(Option<Bytes>),
    Stream(Box<Stream>),
}

/// Chunks one after the other.
pub(super) struct Stream {
    call: Call,
    asked: Asked,
    tokens: Tokens,
    /// The stream breaks off when so many tokens are left.
    cut_at: Option<u64>,
    began: Option<Instant>,
    due: Pin<Box<Sleep>>,
    ended: bool,
}

impl Answer {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    pub(super) fn stream(call: Call, asked: Asked, tokens: Tokens, cut: bool) -> Self {
        Self::Stream(Box::new(Stream {
            cut_at: cut.then_some(tokens.count() / 2),
            call,
            asked,
            tokens,
            began: None,
            due: Box::pin(sleep(Duration::ZERO)),
            ended: false,
        }))
    }
}

impl Stream {
    /// Everything that is due, in one piece.
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        let pace = self.call.mock.tokens_per_second;
        let Some(began) = self.began else {
            self.began = Some(Instant::now());
            self.call.mock.chunks.begin(&self.asked, &mut out);
            if pace == 0.0 {
                let stop = self.cut_at.unwrap_or(0);
                while self.tokens.left() > stop {
                    self.write_token(&mut out);
                }
            } else {
                self.write_token(&mut out);
            }
            return Poll::Ready(Some(Ok(self.finish(out))));
        };
        ready!(self.due.as_mut().poll(cx));
        if self.cut_at.is_some_and(|at| self.tokens.left() <= at) {
            self.ended = true;
            self.call.end(|stats| &stats.cut);
            return Poll::Ready(Some(Err(Cut)));
        }
        // One is due, and those that a busy machine let wait.
        let due = 1 + (began.elapsed().as_secs_f64() * pace) as u64;
        let stop = self.cut_at.unwrap_or(0);
        loop {
            self.write_token(&mut out);
            let written = self.tokens.count() - self.tokens.left();
            if self.tokens.left() <= stop || written >= due {
                return Poll::Ready(Some(Ok(self.finish(out))));
            }
        }
    }

    fn write_token(&mut self, out: &mut Vec<u8>) {
        let mock = &self.call.mock;
        mock.chunks.token(&self.asked, &mut self.tokens, out);
    }

    /// Adds the end if there is nothing left to say, or says when it goes on.
    fn finish(&mut self, mut out: Vec<u8>) -> Bytes {
        let left = self.tokens.left();
        if self.cut_at.is_some_and(|at| left <= at) {
            // What was written goes out before the connection ends.
            let soon = Instant::now() + Duration::from_millis(2);
            self.due.as_mut().reset(soon);
        } else if left == 0 {
            self.call
                .mock
                .chunks
                .end(&self.asked, &self.tokens, &mut out);
            self.ended = true;
            self.call.end(|stats| &stats.answered);
        } else {
            let written = self.tokens.count() - left;
            let after = Duration::from_secs_f64(written as f64 / self.call.mock.tokens_per_second);
            let began = self.began.unwrap_or_else(Instant::now);
            self.due = Box::pin(sleep_until(began + after));
        }
        out.into()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let tokens = self.tokens.count() - self.tokens.left();
        add(&self.call.mock.stats.tokens, tokens);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let piece = match self.get_mut() {
            Self::Whole(bytes) => bytes.take().map(Ok),
            Self::Stream(stream) => ready!(stream.next(cx)),
        };
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(stream) => stream.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
