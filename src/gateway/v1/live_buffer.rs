//! Live frames buffered while connections of a user catch up.

use std::collections::VecDeque;

use super::live_frame::LiveFrame;

/// Bytes of frames that are buffered for one user.
pub(super) const MAX_BYTES: usize = 512 << 10;

/// Bytes charged for a buffered frame in addition to its text.
const FRAME_OVERHEAD: usize = 128;

/// The live frames that were published while a read was in progress, for all connections of a user.
/// Live frames must not overtake the snapshot that the read returns. Above the bound the buffer is
/// dropped, and the connections read again.
#[derive(Default)]
pub(super) struct LiveBuffer {
    frames: VecDeque<(u64, LiveFrame)>,
    bytes: usize,
    /// Every frame that was published after this event is in the buffer.
    complete_since: u64,
}

impl LiveBuffer {
    /// Whether every frame that was published after `event` is in the buffer.
    pub(super) fn is_complete_since(&self, event: u64) -> bool {
        self.complete_since <= event
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Drops all frames. The buffer is complete from `event` on.
    pub(super) fn clear(&mut self, event: u64) {
        self.frames = VecDeque::new();
        self.bytes = 0;
        self.complete_since = event;
    }

    /// Records that a frame was published at `event` and not buffered, as no connection needs it.
    pub(super) fn skip(&mut self, event: u64) {
        self.complete_since = event;
    }

    /// Buffers a frame that was published at `event`.
    pub(super) fn push(&mut self, event: u64, frame: LiveFrame) {
        let text_bytes = frame.text.as_ref().map_or(0, |text| text.as_str().len());
        let cost = text_bytes + FRAME_OVERHEAD;
        if self.bytes + cost > MAX_BYTES {
            self.clear(event);
        } else {
            self.bytes += cost;
            self.frames.push_back((event, frame));
        }
    }

    /// The buffered frames that were published after `event`.
    pub(super) fn frames_after(&self, event: u64) -> impl Iterator<Item = &LiveFrame> {
        self.frames
            .iter()
            .filter(move |(published, _)| *published > event)
            .map(|(_, frame)| frame)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
