//! Parses a response body into server-sent events of bounded size.
//!
//! `sse-stream` does the parsing. It has no size limit, drops unknown fields, and ignores a last
//! event without its empty line. The bytes are therefore rewritten before it: an event above the
//! limit ends the stream, `error:` lines of old llama.cpp servers become events, and the end of the
//! body completes the last event.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use sse_stream::SseByteStream;

use super::error::error_chain;

/// Size limit of one event, in bytes.
pub(super) const MAX_EVENT_BYTES: usize = 1 << 20;

/// A server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// The data; never empty.
    pub(super) data: String,
    /// Whether the server marked the event as an error.
    pub(super) is_error: bool,
}

/// Why a stream ended early.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum StreamError {
    /// The connection failed.
    #[error("{0}")]
    Connection(String),
    /// The body is not an event stream.
    #[error("{0}")]
    Malformed(String),
}

/// The events of a body whose pieces may be cut anywhere.
pub(super) fn events<E>(
    body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> BoxStream<'static, Result<SseEvent, StreamError>>
where
    E: Error + Send + Sync + 'static,
{
    let rewriter = LineRewriter {
        body: body.boxed(),
        state: LineState::default(),
        ended: false,
    };
    SseByteStream::new(rewriter)
        .filter_map(|event| {
            let event = match event {
                Ok(event) => {
                    let is_error = event.event.as_deref() == Some("error");
                    let data = event.data.filter(|data| !data.trim().is_empty());
                    data.map(|data| Ok(SseEvent { data, is_error }))
                }
                Err(sse_stream::Error::Body(error)) => Some(Err(body_error(error))),
                Err(error) => Some(Err(StreamError::Malformed(error.to_string()))),
            };
            std::future::ready(event)
        })
        .boxed()
}

fn body_error(error: Box<dyn Error + Send + Sync>) -> StreamError {
    match error.downcast::<StreamError>() {
        Ok(broken) => *broken,
        Err(other) => StreamError::Connection(error_chain(&*other)),
    }
}

fn too_large() -> StreamError {
    StreamError::Malformed(format!("an event of more than {MAX_EVENT_BYTES} bytes"))
}

struct LineRewriter<E> {
    body: BoxStream<'static, Result<Bytes, E>>,
    state: LineState,
    ended: bool,
}

impl<E> Stream for LineRewriter<E>
where
    E: Error + Send + Sync + 'static,
{
    type Item = Result<Bytes, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match ready!(self.body.poll_next_unpin(cx)) {
            Some(Ok(bytes)) => self.state.rewrite(&bytes),
            Some(Err(error)) => Err(StreamError::Connection(error_chain(&error))),
            None => {
                self.ended = true;
                Ok(self.state.finish())
            }
        };
        Poll::Ready(Some(item))
    }
}

const ERROR_FIELD: &[u8] = b"error:";
const ERROR_EVENT: &[u8] = b"event:error\ndata:";

#[derive(Debug, Default)]
struct LineState {
    /// Bytes of this line that match the start of [`ERROR_FIELD`] and are withheld.
    withheld: usize,
    /// Length of the current line.
    line: usize,
    /// Bytes since the last empty line, which ends an event.
    event: usize,
    after_cr: bool,
}

impl LineState {
    fn rewrite(&mut self, bytes: &[u8]) -> Result<Bytes, StreamError> {
        let mut out = Vec::with_capacity(bytes.len() + ERROR_EVENT.len());
        for &byte in bytes {
            let is_end = byte == b'\n' || byte == b'\r';
            if byte == b'\n' && self.after_cr {
                // The second byte of a CR LF.
                self.after_cr = false;
                out.push(byte);
                continue;
            }
            self.after_cr = byte == b'\r';

            // `withheld` equals `line` as long as the line may still become the field.
            if self.withheld == self.line && ERROR_FIELD.get(self.withheld) == Some(&byte) {
                self.withheld += 1;
                self.line += 1;
                self.event += 1;
                if self.withheld == ERROR_FIELD.len() {
                    out.extend_from_slice(ERROR_EVENT);
                }
                continue;
            }
            self.release_withheld(&mut out);
            out.push(byte);
            if is_end {
                if self.line == 0 {
                    self.event = 0;
                }
                self.line = 0;
                self.withheld = 0;
            } else {
                self.line += 1;
                self.event += 1;
                if self.event > MAX_EVENT_BYTES {
                    return Err(too_large());
                }
            }
        }
        Ok(out.into())
    }

    /// Emits withheld bytes that turned out not to be the error field.
    fn release_withheld(&mut self, out: &mut Vec<u8>) {
        if self.withheld < ERROR_FIELD.len() {
            out.extend_from_slice(&ERROR_FIELD[..self.withheld]);
            self.withheld = 0;
        }
    }

    /// The end of the body ends the last line and the last event.
    fn finish(&mut self) -> Bytes {
        let mut out = Vec::new();
        self.release_withheld(&mut out);
        out.extend_from_slice(b"\n\n");
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(pieces: Vec<Bytes>) -> Vec<Result<SseEvent, String>> {
        let pieces = futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        let events = events(pieces).map(|event| event.map_err(|e| e.to_string()));
        futures_util::FutureExt::now_or_never(events.collect()).unwrap()
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_parses_to_the_same_events(
            cuts in prop::collection::vec(0_usize..400, 0..30),
            line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        ) {
            let text = [
                ": comment", "", "data: {\"a\":\"Grüße 👋\"}", "", "event: error", "data: x", "",
                "error: {\"code\":500}", "", "err: no", "error", "data:a", "data: b", "", "e", "",
                "id: error:", "data: error: data", "", "data: [DONE]",
            ].join(line_end);
            let event = |data: &str, is_error| Ok(SseEvent { data: data.to_owned(), is_error });
            let expected = vec![
                event("{\"a\":\"Grüße 👋\"}", false),
                event("x", true),
                event("{\"code\":500}", true),
                event("a\nb", false),
                event("error: data", false),
                event("[DONE]", false),
            ];
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < text.len()).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push(Bytes::copy_from_slice(&text.as_bytes()[from..cut]));
                from = cut;
            }
            prop_assert_eq!(parsed(pieces), expected);
        }
    }

    #[test]
    fn single_bytes_are_parsed_and_the_size_limit_applies_to_events_only() {
        let line = format!("data: {}\n\n", "x".repeat(1000));
        let bytes = line.bytes().map(|byte| Bytes::copy_from_slice(&[byte]));
        assert_eq!(parsed(bytes.collect()).len(), 1);
        let many = vec![Bytes::from(line); MAX_EVENT_BYTES / 500];
        assert_eq!(parsed(many).len(), MAX_EVENT_BYTES / 500);
        let line = Bytes::from(format!("data: {}\r\n", "x".repeat(1000)));
        let events = parsed(vec![line; MAX_EVENT_BYTES / 500]);
        assert!(
            matches!(&events[..], [Err(text)] if text.contains("more than")),
            "{events:?}"
        );
    }
}
