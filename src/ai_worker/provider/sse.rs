//! Parses a response body into server-sent events of bounded size.
//!
//! The crate `sse-stream` does the parsing. It has no size limit, drops unknown fields, and ignores
//! a last event without its empty line. Therefore the bytes are rewritten before the crate parses
//! them: an event above the size limit becomes an error, `error:` lines of old llama.cpp servers
//! become events, and the end of the body completes the last event.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use sse_stream::SseByteStream;

use super::error::error_chain;

/// Maximum size of one event in bytes.
pub(super) const MAX_EVENT_BYTES: usize = 1 << 20;

/// A server-sent event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// The event's data; never blank.
    pub(super) data: String,
    /// Whether the server marked the event as an error.
    pub(super) is_error: bool,
}

/// Why the events of a body could not be read to its end.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum StreamError {
    /// The connection failed.
    #[error("{0}")]
    Connection(String),
    /// The body is not an event stream, or an event is too large.
    #[error("{0}")]
    Malformed(String),
}

/// Parses a body into its events. The pieces of the body may be cut anywhere. Events without data
/// are omitted.
pub(super) fn events<E>(
    body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> BoxStream<'static, Result<SseEvent, StreamError>>
where
    E: Error + Send + Sync + 'static,
{
    let rewriter = LineRewriter {
        body: body.boxed(),
        state: LineState::default(),
        is_ended: false,
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

/// Returns the [`StreamError`] of the [`LineRewriter`], which `sse-stream` has wrapped. Any other
/// error counts as a failed connection.
fn body_error(error: Box<dyn Error + Send + Sync>) -> StreamError {
    match error.downcast::<StreamError>() {
        Ok(stream_error) => *stream_error,
        Err(other_error) => StreamError::Connection(error_chain(&*other_error)),
    }
}

fn too_large_error() -> StreamError {
    StreamError::Malformed(format!("an event of more than {MAX_EVENT_BYTES} bytes"))
}

/// A body whose lines are rewritten by a [`LineState`].
struct LineRewriter<E> {
    body: BoxStream<'static, Result<Bytes, E>>,
    state: LineState,
    is_ended: bool,
}

impl<E> Stream for LineRewriter<E>
where
    E: Error + Send + Sync + 'static,
{
    type Item = Result<Bytes, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let item = match ready!(self.body.poll_next_unpin(cx)) {
            Some(Ok(bytes)) => self.state.rewrite(&bytes),
            Some(Err(error)) => Err(StreamError::Connection(error_chain(&error))),
            None => {
                self.is_ended = true;
                Ok(self.state.finish())
            }
        };
        Poll::Ready(Some(item))
    }
}

/// Start of the lines in which old llama.cpp servers report errors.
const ERROR_FIELD: &[u8] = b"error:";
/// Replacement of [`ERROR_FIELD`], which makes the line an event named `error`.
const ERROR_EVENT: &[u8] = b"event:error\ndata:";

/// Rewrites the lines of a body, and counts their bytes.
#[derive(Debug, Default)]
struct LineState {
    /// Number of bytes at the start of the current line that match the start of [`ERROR_FIELD`].
    /// They are not emitted until it is clear whether the line begins with the whole field.
    withheld_bytes: usize,
    /// Length of the current line in bytes.
    line_bytes: usize,
    /// Number of bytes since the last empty line, which ends an event. Line ends are not counted.
    event_bytes: usize,
    /// Whether the previous byte was a CR.
    is_after_cr: bool,
}

impl LineState {
    /// Rewrites the next bytes of the body. Fails if an event exceeds [`MAX_EVENT_BYTES`].
    fn rewrite(&mut self, bytes: &[u8]) -> Result<Bytes, StreamError> {
        let mut out = Vec::with_capacity(bytes.len() + ERROR_EVENT.len());
        for &byte in bytes {
            let is_line_end = byte == b'\n' || byte == b'\r';
            if byte == b'\n' && self.is_after_cr {
                // The LF belongs to the line end that began with the CR, so no new line begins.
                self.is_after_cr = false;
                out.push(byte);
                continue;
            }
            self.is_after_cr = byte == b'\r';

            // `withheld_bytes` equals `line_bytes` while the line so far matches the field's start.
            if self.withheld_bytes == self.line_bytes
                && ERROR_FIELD.get(self.withheld_bytes) == Some(&byte)
            {
                self.withheld_bytes += 1;
                self.line_bytes += 1;
                self.event_bytes += 1;
                if self.withheld_bytes == ERROR_FIELD.len() {
                    out.extend_from_slice(ERROR_EVENT);
                }
                continue;
            }
            self.release_withheld(&mut out);
            out.push(byte);
            if is_line_end {
                if self.line_bytes == 0 {
                    self.event_bytes = 0;
                }
                self.line_bytes = 0;
                self.withheld_bytes = 0;
            } else {
                self.line_bytes += 1;
                self.event_bytes += 1;
                if self.event_bytes > MAX_EVENT_BYTES {
                    return Err(too_large_error());
                }
            }
        }
        Ok(out.into())
    }

    /// Emits the withheld bytes, because the line does not begin with the error field. Does nothing
    /// after the whole field, which was replaced.
    fn release_withheld(&mut self, out: &mut Vec<u8>) {
        if self.withheld_bytes < ERROR_FIELD.len() {
            out.extend_from_slice(&ERROR_FIELD[..self.withheld_bytes]);
            self.withheld_bytes = 0;
        }
    }

    /// Returns the bytes that complete the last line and the last event at the end of the body.
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
