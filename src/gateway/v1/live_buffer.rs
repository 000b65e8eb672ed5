//! Buffers live frames while connections of a user read the mailbox.

use std::collections::VecDeque;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::live_frame::LiveFrame;
use super::logical_time::LogicalTime;

/// Maximum size in bytes of the frames that are buffered for one user.
pub(super) const MAX_BUFFERED_BYTES: usize = 512 << 10;

/// Size in bytes that is charged for a buffered frame in addition to its text.
const FRAME_OVERHEAD_BYTES: usize = 128;

/// A published frame in the buffer.
pub(super) enum BufferedFrame {
    /// A `delta` that is no opening, as it was published.
    Delta(Utf8Bytes),
    /// Any other frame.
    Other(Box<LiveFrame>),
}

impl BufferedFrame {
    /// The frame's size in bytes, as it is counted in the buffer.
    fn bytes(&self) -> usize {
        let text = match self {
            Self::Delta(text) => Some(text),
            Self::Other(frame) => frame.text.as_ref(),
        };
        text.map_or(0, |text| text.as_str().len()) + FRAME_OVERHEAD_BYTES
    }
}

/// The live frames that were published while a read was in progress, shared by all connections of a
/// user. Live frames must not overtake the user view that the read returns. When a frame would
/// exceed the maximum size, the buffer is dropped, and the connections read again.
#[derive(Default)]
pub(super) struct LiveBuffer {
    /// Each frame with the time at which it was published, oldest first.
    frames: VecDeque<(LogicalTime, BufferedFrame)>,
    bytes: usize,
    /// Every frame that was published after this time is in the buffer.
    complete_since: LogicalTime,
}

impl LiveBuffer {
    /// Whether every frame that was published after `time` is in the buffer.
    pub(super) fn is_complete_since(&self, time: LogicalTime) -> bool {
        self.complete_since <= time
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Drops all frames. The buffer is complete again for the time after `now`.
    pub(super) fn clear(&mut self, now: LogicalTime) {
        self.frames = VecDeque::new();
        self.bytes = 0;
        self.complete_since = now;
    }

    /// Records that the frame that was published at `now` is not buffered, because no connection is
    /// reading.
    pub(super) fn skip(&mut self, now: LogicalTime) {
        self.complete_since = now;
    }

    /// Buffers the frame that was published at `now`. Clears the buffer instead where the frame
    /// would exceed the maximum size.
    pub(super) fn push(&mut self, now: LogicalTime, frame: BufferedFrame) {
        let frame_bytes = frame.bytes();
        if self.bytes + frame_bytes > MAX_BUFFERED_BYTES {
            self.clear(now);
        } else {
            self.bytes += frame_bytes;
            self.frames.push_back((now, frame));
        }
    }

    /// The buffered frames that were published after `time`.
    pub(super) fn frames_after(&self, time: LogicalTime) -> impl Iterator<Item = &BufferedFrame> {
        self.frames
            .iter()
            .filter(move |(published_at, _)| *published_at > time)
            .map(|(_, frame)| frame)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
