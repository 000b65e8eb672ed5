//! From a response body to the data of its server-sent events, bounded.
//!
//! `sse-stream` does the parsing; before it the bytes are made what it takes: events over a
//! bound end the stream (it has none), `error:` lines of old llama.cpp servers become events (it
//! drops unknown fields), and a last event without its empty line still counts.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use sse_stream::SseByteStream;

use super::error::chain;

/// The most that one event may hold, in bytes.
pub(super) const MAX_EVENT_BYTES: usize = 1 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Its data, never empty.
    pub(super) data: String,
    /// The server says that it is an error.
    pub(super) is_error: bool,
}

/// Why there are no further events.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Broken {
    /// The connection broke.
    #[error("{0}")]
    Connection(String),
    /// What came is no event stream.
    #[error("{0}")]
    Malformed(String),
}

/// The events of a body that comes in pieces, cut anywhere.
pub(super) fn events<E>(
    body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> BoxStream<'static, Result<Event, Broken>>
where
    E: Error + Send + Sync + 'static,
{
    let lines = Lines {
        body: body.boxed(),
        state: LineState::default(),
        ended: false,
    };
    SseByteStream::new(lines)
        .filter_map(|event| {
            let event = match event {
                Ok(event) => {
                    let is_error = event.event.as_deref() == Some("error");
                    let data = event.data.filter(|data| !data.trim().is_empty());
                    data.map(|data| Ok(Event { data, is_error }))
                }
                Err(sse_stream::Error::Body(error)) => Some(Err(body_error(error))),
                Err(error) => Some(Err(Broken::Malformed(error.to_string()))),
            };
            std::future::ready(event)
        })
        .boxed()
}

fn body_error(error: Box<dyn Error + Send + Sync>) -> Broken {
    match error.downcast::<Broken>() {
        Ok(broken) => *broken,
        Err(other) => Broken::Connection(chain(&*other)),
    }
}

fn too_large() -> Broken {
    Broken::Malformed(format!("an event of more than {MAX_EVENT_BYTES} bytes"))
}

struct Lines<E> {
    body: BoxStream<'static, Result<Bytes, E>>,
    state: LineState,
    ended: bool,
}

impl<E> Stream for Lines<E>
where
    E: Error + Send + Sync + 'static,
{
    type Item = Result<Bytes, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match ready!(self.body.poll_next_unpin(cx)) {
            Some(Ok(bytes)) => self.state.rewrite(&bytes),
            Some(Err(error)) => Err(Broken::Connection(chain(&error))),
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
    /// Bytes of this line that were the beginning of [`ERROR_FIELD`] and are held back.
    held: usize,
    /// Bytes of this line so far.
    line: usize,
    /// Bytes since the last empty line.
    event: usize,
    after_cr: bool,
}

impl LineState {
    fn rewrite(&mut self, bytes: &[u8]) -> Result<Bytes, Broken> {
        let mut out = Vec::with_capacity(bytes.len() + ERROR_EVENT.len());
        for &byte in bytes {
            let is_end = byte == b'\n' || byte == b'\r';
            if byte == b'\n' && self.after_cr {
                // The second half of one line end.
                self.after_cr = false;
                out.push(byte);
                continue;
            }
            self.after_cr = byte == b'\r';

            // `held` equals `line` for as long as the line may become the field.
            if self.held == self.line && ERROR_FIELD.get(self.held) == Some(&byte) {
                self.held += 1;
                self.line += 1;
                self.event += 1;
                if self.held == ERROR_FIELD.len() {
                    out.extend_from_slice(ERROR_EVENT);
                }
                continue;
            }
            self.let_go(&mut out);
            out.push(byte);
            if is_end {
                if self.line == 0 {
                    self.event = 0;
                }
                self.line = 0;
                self.held = 0;
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

    /// Gives out what was held back and is no error field.
    fn let_go(&mut self, out: &mut Vec<u8>) {
        if self.held < ERROR_FIELD.len() {
            out.extend_from_slice(&ERROR_FIELD[..self.held]);
            self.held = 0;
        }
    }

    /// The end of the body ends the last line and the last event.
    fn finish(&mut self) -> Bytes {
        let mut out = Vec::new();
        self.let_go(&mut out);
        out.extend_from_slice(b"\n\n");
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(pieces: Vec<Bytes>) -> Vec<Result<Event, String>> {
        let pieces = futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        let events = events(pieces).map(|event| event.map_err(|e| e.to_string()));
        futures_util::FutureExt::now_or_never(events.collect()).unwrap()
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_events(
            cuts in prop::collection::vec(0_usize..400, 0..30),
            line_end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
        ) {
            let text = [
                ": comment", "", "data: {\"a\":\"Grüße 👋\"}", "", "event: error", "data: x", "",
                "error: {\"code\":500}", "", "err: no", "error", "data:a", "data: b", "", "e", "",
                "id: error:", "data: error: data", "", "data: [DONE]",
            ].join(line_end);
            let event = |data: &str, is_error| Ok(Event { data: data.to_owned(), is_error });
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
    fn every_single_byte_apart_and_a_bound_on_events_not_on_streams() {
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
