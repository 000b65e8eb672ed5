//! The TCP stream under one WebSocket. It saves memory of idle connections.
//!
//! The WebSocket library keeps a read buffer as long as the connection lives, of the size that it
//! reads at a time, and most connections are idle. Therefore the library gets a small buffer, and
//! this stream reads ahead from the socket. That needs as few system calls as a large buffer, and
//! the memory is freed as soon as the library has requested the bytes.
//!
//! The library's buffers also stay as large as the longest frame that ever passed. This stream
//! follows the frame boundaries in the passing bytes, so it can report when the library's buffers
//! are empty and its `WebSocketStream` can be replaced.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Size in bytes of the library's own read buffer. The library requests this many bytes at a time,
/// so a smaller buffer would make long messages slow.
pub(super) const READ_BUFFER_BYTES: usize = 128;

/// Minimum size in bytes of the buffer for one read from the socket.
const SOCKET_READ_BYTES: usize = 4096;

/// Length in bytes above which a frame enlarges the library's buffers, so that replacing its
/// `WebSocketStream` frees memory.
const LONG_FRAME_BYTES: u64 = READ_BUFFER_BYTES as u64;

/// A TCP stream with read-ahead that follows the WebSocket frames passing through it.
#[derive(Debug)]
pub(super) struct BufferedStream {
    stream: TcpStream,
    /// Bytes that were read from the socket and that the library has not requested yet.
    read_ahead: Bytes,
    boundaries: FrameBoundaries,
    /// Whether the library's last read returned `Pending`. The library has then processed every
    /// byte that it read before.
    is_reader_waiting: bool,
    /// Whether the library's last write was not written completely.
    is_write_blocked: bool,
    /// Length in bytes of the longest write since the library's `WebSocketStream` was created.
    longest_write: u64,
}

/// Finds the boundaries of frames in a stream of bytes (RFC 6455, section 5.2).
#[derive(Debug, Default)]
struct FrameBoundaries {
    /// Number of bytes of the current frame's header that have passed; 0 between frames and within
    /// a payload.
    header_bytes_passed: u8,
    /// Length in bytes of the current frame's header, as known from those of its bytes that have
    /// passed.
    header_length: u8,
    /// Number of bytes of the extended payload length in the current frame's header: 0, 2 or 8.
    extended_length_bytes: u8,
    /// Length in bytes of the current frame's payload, as known from those bytes of
    /// its header that have passed.
    payload_length: u64,
    /// Number of bytes of the current frame's payload that have not passed.
    payload_remaining: u64,
    /// Whether the current message continues with another frame.
    is_fragmented: bool,
    /// Length in bytes of the longest payload so far.
    longest_payload: u64,
}

impl FrameBoundaries {
    /// Follows the frame boundaries across the next bytes of the stream.
    fn advance(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.payload_remaining > 0 {
                let length = usize::try_from(self.payload_remaining)
                    .map_or(bytes.len(), |remaining| remaining.min(bytes.len()));
                self.payload_remaining -= length as u64;
                bytes = &bytes[length..];
                continue;
            }
            bytes = rest;
            self.advance_header(byte);
        }
    }

    /// Interprets the next byte of a frame's header.
    fn advance_header(&mut self, byte: u8) {
        match self.header_bytes_passed {
            0 => {
                let is_control = byte & 0x08 != 0;
                if !is_control {
                    self.is_fragmented = byte & 0x80 == 0;
                }
                self.header_length = 2;
            }
            1 => {
                (self.extended_length_bytes, self.payload_length) = match byte & 0x7f {
                    126 => (2, 0),
                    127 => (8, 0),
                    length => (0, u64::from(length)),
                };
                let mask_bytes = if byte & 0x80 == 0 { 0 } else { 4 };
                self.header_length = 2 + self.extended_length_bytes + mask_bytes;
            }
            passed if passed < 2 + self.extended_length_bytes => {
                self.payload_length = self.payload_length << 8 | u64::from(byte);
            }
            _ => {}
        }
        self.header_bytes_passed += 1;
        if self.header_bytes_passed == self.header_length {
            (self.header_bytes_passed, self.header_length) = (0, 0);
            self.payload_remaining = self.payload_length;
            self.longest_payload = self.longest_payload.max(self.payload_length);
        }
    }

    /// Whether the bytes so far end with a complete message.
    fn is_between_messages(&self) -> bool {
        self.header_bytes_passed == 0 && self.payload_remaining == 0 && !self.is_fragmented
    }
}

impl BufferedStream {
    /// The TCP stream under an upgraded HTTP connection. `None` where that connection is no TCP
    /// stream, which does not happen.
    pub(super) fn from_upgraded(upgraded: Upgraded) -> Option<Self> {
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
        Some(Self {
            stream: parts.io.into_inner(),
            // Copied, because a slice would keep the whole buffer of the HTTP request alive.
            read_ahead: Bytes::copy_from_slice(&parts.read_buf),
            boundaries: FrameBoundaries::default(),
            is_reader_waiting: false,
            is_write_blocked: false,
            longest_write: 0,
        })
    }

    /// Whether the library's buffers are empty and larger than needed.
    ///
    /// The library reads only after it has returned all messages in its read buffer and written its
    /// own replies to them. So when its last read is pending and the bytes that it has read end
    /// with a complete message, its read buffer is empty. Its write buffer is empty unless a write
    /// was incomplete.
    pub(super) fn can_release_buffers(&self) -> bool {
        self.longest_write.max(self.boundaries.longest_payload) > LONG_FRAME_BYTES
            && self.is_reader_waiting
            && !self.is_write_blocked
            && self.read_ahead.is_empty()
            && self.boundaries.is_between_messages()
    }

    /// Resets the frame tracking, for a new `WebSocketStream` over this stream.
    pub(super) fn reset_frame_tracking(&mut self) {
        self.is_reader_waiting = false;
        self.longest_write = 0;
        self.boundaries = FrameBoundaries::default();
    }

    /// Moves bytes that were read ahead into the library's buffer.
    fn fill_from_read_ahead(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.read_ahead.len().min(buf.remaining());
        let bytes = &self.read_ahead[..length];
        self.boundaries.advance(bytes);
        buf.put_slice(bytes);
        self.read_ahead.advance(length);
        if self.read_ahead.is_empty() {
            self.read_ahead = Bytes::new();
        }
    }

    /// Reads from the socket into the library's buffer. If that is smaller than
    /// [`SOCKET_READ_BYTES`], more bytes are read than fit, and `read_ahead` keeps the excess.
    fn poll_socket(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = Pin::new(&mut self.stream);
        if buf.remaining() >= SOCKET_READ_BYTES {
            let before = buf.filled().len();
            ready!(stream.poll_read(cx, buf))?;
            self.boundaries.advance(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        let mut space = [MaybeUninit::uninit(); SOCKET_READ_BYTES];
        let mut chunk = ReadBuf::uninit(&mut space);
        ready!(stream.poll_read(cx, &mut chunk))?;
        let chunk = chunk.filled();
        let (requested, read_ahead) = chunk.split_at(chunk.len().min(buf.remaining()));
        self.boundaries.advance(requested);
        buf.put_slice(requested);
        self.read_ahead = Bytes::copy_from_slice(read_ahead);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for BufferedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.read_ahead.is_empty() {
            this.is_reader_waiting = false;
            this.fill_from_read_ahead(buf);
            return Poll::Ready(Ok(()));
        }
        let read = this.poll_socket(cx, buf);
        this.is_reader_waiting = read.is_pending();
        read
    }
}

impl AsyncWrite for BufferedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.is_write_blocked =
            !matches!(&written, Poll::Ready(Ok(length)) if *length == buf.len());
        self.longest_write = self.longest_write.max(buf.len() as u64);
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

    /// The bytes of a WebSocket frame with a payload of `length` bytes.
    fn frame(opcode: u8, is_last: bool, is_masked: bool, length: usize) -> Vec<u8> {
        let mut bytes = vec![opcode | if is_last { 0x80 } else { 0 }];
        let mask = if is_masked { 0x80 } else { 0 };
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
        if is_masked {
            bytes.extend([0xff; 4]);
        }
        // Each payload byte is also a valid first byte of a header, so a misplaced boundary changes
        // the result.
        bytes.extend(std::iter::repeat_n(0x01, length));
        bytes
    }

    proptest! {
        #[test]
        fn end_of_a_message_is_found_however_the_bytes_are_split(
            frames in prop::collection::vec(
                (0..3_u8, any::<bool>(), any::<bool>(), prop_oneof![0..200_usize, 65_000..66_000_usize]),
                1..6,
            ),
            step in 1..200_usize,
        ) {
            let mut boundaries = FrameBoundaries::default();
            let mut is_within_message = false;
            for (kind, is_last, is_masked, length) in frames {
                // Kind 0 is a ping, which may be sent between the frames of a message.
                let opcode = if kind == 0 { 0x9 } else { kind };
                let length = if kind == 0 { length % 126 } else { length };
                let is_last = is_last || kind == 0;
                if kind != 0 {
                    is_within_message = !is_last;
                }
                let bytes = frame(opcode, is_last, is_masked, length);
                let mut passed = 0;
                for part in bytes.chunks(step) {
                    boundaries.advance(part);
                    passed += part.len();
                    let is_message_complete = passed == bytes.len() && !is_within_message;
                    prop_assert_eq!(boundaries.is_between_messages(), is_message_complete);
                }
            }
        }
    }
}
