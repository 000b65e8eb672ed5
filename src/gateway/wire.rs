//! The bytes of one WebSocket.
//!
//! The WebSocket library keeps a buffer of the size that it reads at a time for as long as the
//! connection lives, and most connections are idle. So it gets a small one, and what it has no
//! room for is read here at once and kept until it asks: as few reads as with a large buffer.
//!
//! The library's buffers also stay as large as the longest frame that ever passed. What is known
//! here of the frames that pass tells when they hold nothing, so that they can be made anew.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of the library's own buffer. It asks for so many at a time, so that a smaller one makes
/// long messages slow.
pub(super) const READ_BUFFER: usize = 128;

/// Bytes that are read at once.
const CHUNK: usize = 4096;

/// A library that had a longer frame than this is worth making anew.
const LONG: u64 = READ_BUFFER as u64;

/// See the module.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// Read and not asked for yet.
    ahead: Bytes,
    taken: Edges,
    /// The library was last told to wait for more to read.
    starved: bool,
    /// The library could not write all that it wanted to.
    blocked: bool,
    /// The longest write since the library was made.
    longest: u64,
}

/// Where frames end in the bytes that pass (RFC 6455, section 5.2).
#[derive(Debug, Default)]
struct Edges {
    /// Bytes of a frame's head that have passed, of how many.
    head: (u8, u8),
    /// Bytes of its length in the head, beside the first.
    wide: u8,
    length: u64,
    /// Bytes of its content still to pass.
    left: u64,
    /// More frames of the same message are to come.
    unfinished: bool,
    /// The longest frame.
    longest: u64,
}

impl Edges {
    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.left > 0 {
                let length =
                    usize::try_from(self.left).map_or(bytes.len(), |it| it.min(bytes.len()));
                self.left -= length as u64;
                bytes = &bytes[length..];
                continue;
            }
            bytes = rest;
            match self.head.0 {
                0 => {
                    let is_control = byte & 0x08 != 0;
                    if !is_control {
                        self.unfinished = byte & 0x80 == 0;
                    }
                    self.head.1 = 2;
                }
                1 => {
                    (self.wide, self.length) = match byte & 0x7f {
                        126 => (2, 0),
                        127 => (8, 0),
                        length => (0, u64::from(length)),
                    };
                    let mask = if byte & 0x80 == 0 { 0 } else { 4 };
                    self.head.1 = 2 + self.wide + mask;
                }
                passed if passed < 2 + self.wide => {
                    self.length = self.length << 8 | u64::from(byte);
                }
                _ => {}
            }
            self.head.0 += 1;
            if self.head.0 == self.head.1 {
                self.head = (0, 0);
                self.left = self.length;
                self.longest = self.longest.max(self.length);
            }
        }
    }

    /// Whether all messages that have begun have ended.
    fn is_between(&self) -> bool {
        self.head.0 == 0 && self.left == 0 && !self.unfinished
    }
}

impl Wire {
    /// `None` where the connection was not accepted by this gateway, which none is.
    pub(super) fn of(upgraded: Upgraded) -> Option<Self> {
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
        Some(Self {
            stream: parts.io.into_inner(),
            // A copy: it would hold all of the buffer that the request was read into.
            ahead: Bytes::copy_from_slice(&parts.read_buf),
            taken: Edges::default(),
            starved: false,
            blocked: false,
            longest: 0,
        })
    }

    /// Whether the library holds nothing, and more memory than it needs.
    ///
    /// It asks for bytes only when it has handed over all messages that it has and written its own
    /// answers to them, and then waits; where what it took ends with a message it has kept nothing
    /// of it. What it has to write it keeps only when it can't be written.
    pub(super) fn is_worth_anew(&self) -> bool {
        self.longest.max(self.taken.longest) > LONG
            && self.starved
            && !self.blocked
            && self.ahead.is_empty()
            && self.taken.is_between()
    }

    /// For a library that is made anew.
    pub(super) fn begin_anew(&mut self) {
        self.starved = false;
        self.longest = 0;
        self.taken = Edges::default();
    }

    /// Hands over what was read ahead.
    fn take_ahead(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.ahead.len().min(buf.remaining());
        let bytes = &self.ahead[..length];
        self.taken.pass(bytes);
        buf.put_slice(bytes);
        self.ahead.advance(length);
        if self.ahead.is_empty() {
            self.ahead = Bytes::new();
        }
    }

    /// Reads where nothing is left that was read before.
    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = Pin::new(&mut self.stream);
        if buf.remaining() >= CHUNK {
            let before = buf.filled().len();
            ready!(stream.poll_read(cx, buf))?;
            self.taken.pass(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        let mut space = [MaybeUninit::uninit(); CHUNK];
        let mut chunk = ReadBuf::uninit(&mut space);
        ready!(stream.poll_read(cx, &mut chunk))?;
        let chunk = chunk.filled();
        let (now, later) = chunk.split_at(chunk.len().min(buf.remaining()));
        self.taken.pass(now);
        buf.put_slice(now);
        self.ahead = Bytes::copy_from_slice(later);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &mut *self;
        if !wire.ahead.is_empty() {
            wire.starved = false;
            wire.take_ahead(buf);
            return Poll::Ready(Ok(()));
        }
        let read = wire.read(cx, buf);
        wire.starved = read.is_pending();
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.blocked = !matches!(&written, Poll::Ready(Ok(length)) if *length == buf.len());
        self.longest = self.longest.max(buf.len() as u64);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, last: bool, masked: bool, length: usize) -> Vec<u8> {
        let mut bytes = vec![opcode | if last { 0x80 } else { 0 }];
        let mask = if masked { 0x80 } else { 0 };
        match length {
            0..126 => bytes.push(mask | length as u8),
            126..65536 => {
                bytes.push(mask | 0x7e);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 0x7f);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if masked {
            bytes.extend([0xff; 4]);
        }
        // Content that would be a head too.
        bytes.extend(std::iter::repeat_n(0x01, length));
        bytes
    }

    proptest! {
        #[test]
        fn the_end_of_a_message_is_found_wherever_the_bytes_are_cut(
            frames in prop::collection::vec(
                (0..3_u8, any::<bool>(), any::<bool>(), prop_oneof![0..200_usize, 65_000..66_000_usize]),
                1..6,
            ),
            step in 1..200_usize,
        ) {
            let mut edges = Edges::default();
            let mut open = false;
            for (kind, last, masked, length) in frames {
                // A ping may come between the frames of a message.
                let opcode = if kind == 0 { 0x9 } else { kind };
                let length = if kind == 0 { length % 126 } else { length };
                let last = last || kind == 0;
                if kind != 0 {
                    open = !last;
                }
                let bytes = frame(opcode, last, masked, length);
                let mut passed = 0;
                for part in bytes.chunks(step) {
                    edges.pass(part);
                    passed += part.len();
                    prop_assert_eq!(edges.is_between(), passed == bytes.len() && !open);
                }
            }
        }
    }
}
