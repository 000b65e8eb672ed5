//! One `chatmesh.v1` connection among its user's subscribers: whether it receives live frames, up
//! to which position it has received terminal frames, and which text of the answers in flight it
//! was sent.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::live_buffer::BufferedFrame;
use super::live_frame::{LiveFrame, LiveFrameKind};
use super::logical_time::LogicalTime;
use super::received::ReceivedPositions;
use super::state::V1State;
use super::stream_progress::{Continuity, StreamProgress};
use super::stream_reads::StreamReads;
use crate::fanout::UserView;
use crate::protocol::ids::MessageId;
use crate::protocol::sequence_number::SequenceNumber;
use crate::protocol::v1::DeltaHead;

/// Size in bytes of the resend replies that wait for one connection's next read. When they exceed
/// it, no further reply is added.
const MAX_RESEND_REPLY_BYTES: usize = 1 << 20;

/// Whether a connection receives live frames.
#[derive(Debug)]
pub(super) enum SubscriberState {
    /// The connection has a gap since this time, and has to read the mailbox.
    Stale { since: LogicalTime },
    /// A read for the connection is in progress. Live frames that were published after this time
    /// are buffered.
    Reading { buffered_since: LogicalTime },
    /// The connection receives live frames.
    Live {
        /// The connection has received every published frame up to this number.
        number: SequenceNumber,
        /// Whether the connection waits for the user's next stream read, because text of an answer
        /// is missing. It receives all other frames and text while it waits.
        needs_stream_read: bool,
    },
}

/// The result of passing a published frame to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reception {
    /// The frame was queued, or the connection does not need it.
    Complete,
    /// Text of an answer is missing, or the frame's stream is unknown. The frame was not queued;
    /// the next stream read returns its text.
    NeedsStreamRead,
    /// An earlier frame is missing, or the queue has no room. The connection has to read the
    /// mailbox.
    NeedsCatchUp,
}

/// The terminal frame of a message that the client sent again before it had received the frame.
struct ResendReply {
    /// When the client sent the message again.
    resent_at: LogicalTime,
    text: Utf8Bytes,
}

/// One connection's place in the sequence of live frames, and its position in the mailbox.
pub(super) struct Subscriber {
    pub(super) client: Arc<V1State>,
    pub(super) state: SubscriberState,
    pub(super) received: ReceivedPositions,
    /// The text of the answers in flight that the connection was sent. A stale connection keeps it,
    /// so that the next read sends it only what is missing.
    pub(super) progress: StreamProgress,
    /// The resend replies that are sent after the next read unless that read returns their frames.
    resend_replies: HashMap<MessageId, ResendReply>,
}

impl Subscriber {
    /// A stale subscriber: `now` is the time at which the connection was added.
    pub(super) fn new(client: Arc<V1State>, received: ReceivedPositions, now: LogicalTime) -> Self {
        Self {
            client,
            state: SubscriberState::Stale { since: now },
            received,
            progress: StreamProgress::default(),
            resend_replies: HashMap::new(),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, SubscriberState::Live { .. })
    }

    pub(super) fn is_stale(&self) -> bool {
        matches!(self.state, SubscriberState::Stale { .. })
    }

    pub(super) fn is_reading(&self) -> bool {
        matches!(self.state, SubscriberState::Reading { .. })
    }

    /// The number of the last frame that a live connection received; `None` for a connection that
    /// is not live.
    pub(super) fn last_received(&self) -> Option<&SequenceNumber> {
        match &self.state {
            SubscriberState::Live { number, .. } => Some(number),
            _ => None,
        }
    }

    /// Marks the connection stale since `now`, and wakes its catch-up, which reads the mailbox.
    pub(super) fn mark_stale(&mut self, now: LogicalTime) {
        self.state = SubscriberState::Stale { since: now };
        self.client.catch_up_needed.notify_one();
    }

    /// Whether the connection is live and waits for the user's next stream read.
    pub(super) fn needs_stream_read(&self) -> bool {
        matches!(
            self.state,
            SubscriberState::Live {
                needs_stream_read: true,
                ..
            }
        )
    }

    /// Records that a live connection waits for the user's next stream read. Returns whether it did
    /// not wait before.
    pub(super) fn request_stream_read(&mut self) -> bool {
        match &mut self.state {
            SubscriberState::Live {
                needs_stream_read, ..
            } => !std::mem::replace(needs_stream_read, true),
            _ => false,
        }
    }

    /// Whether the connection is live, and has not received everything that a user view contains.
    /// It may have received more.
    pub(super) fn is_behind(&self, view: &UserView, streams: &StreamReads) -> bool {
        let SubscriberState::Live { number, .. } = &self.state else {
            return false;
        };
        !number.is_at_or_after(&view.number)
            || view.in_flight.iter().any(|answer| {
                self.progress.lacks(answer, view.number.n)
                    && !streams.has_ended_since(answer, &view.number)
            })
    }

    /// Passes a frame from the buffer to the connection, as it would have been passed when it was
    /// published.
    pub(super) fn receive_buffered(
        &mut self,
        frame: &BufferedFrame,
        streams: &mut StreamReads,
        now: LogicalTime,
    ) -> Reception {
        match frame {
            BufferedFrame::Other(frame) => self.receive(frame, streams, now),
            BufferedFrame::Delta(text) => match DeltaHead::parse(text.as_str()) {
                Some(head) => self.receive_delta(&head, text, streams, now),
                None => Reception::Complete,
            },
        }
    }

    /// Sends a `delta` that is no opening to the connection, if the connection is live and the
    /// piece continues the text that it was sent. `text` is the frame.
    pub(super) fn receive_delta(
        &mut self,
        head: &DeltaHead<'_>,
        text: &Utf8Bytes,
        streams: &mut StreamReads,
        now: LogicalTime,
    ) -> Reception {
        if !self.is_live() {
            return Reception::Complete;
        }
        match self.progress.check_delta(head) {
            Continuity::Next(length) => {
                if !self.client.outbound.try_push(text.clone()) {
                    return Reception::NeedsCatchUp;
                }
                *length = head.range.end;
                Reception::Complete
            }
            Continuity::Repeat => Reception::Complete,
            Continuity::Gap => Reception::NeedsStreamRead,
            Continuity::UnknownStream if streams.is_ignored(head.message_id, head.stream) => {
                Reception::Complete
            }
            Continuity::UnknownStream => {
                streams.record_unknown(head.message_id, head.stream, now);
                Reception::NeedsStreamRead
            }
        }
    }

    /// Sends the next published frame to the connection if it is live and needs the frame.
    pub(super) fn receive(
        &mut self,
        frame: &LiveFrame,
        streams: &mut StreamReads,
        now: LogicalTime,
    ) -> Reception {
        let SubscriberState::Live { number: last, .. } = &mut self.state else {
            return Reception::Complete;
        };
        if let Some(number) = &frame.number {
            if last.counter != number.counter || number.n > last.n + 1 {
                return Reception::NeedsCatchUp;
            }
            if number.n <= last.n {
                // The user view that the connection has read contains this frame.
                return Reception::Complete;
            }
            last.n = number.n;
        }
        let number = last.clone();
        match &frame.kind {
            LiveFrameKind::Terminal => {
                if !self.push_terminal(frame) {
                    return Reception::NeedsCatchUp;
                }
                let message_id = frame.message_id.as_ref().map(MessageId::as_str);
                if let Some(stream) = message_id.and_then(|id| self.progress.end(id)) {
                    streams.ignore(stream, &number);
                }
            }
            LiveFrameKind::Opening {
                stream,
                range,
                previous_end,
            } => match self.progress.check_opening(stream, *range, *previous_end) {
                Continuity::Next(()) => {
                    if !self.push(frame) {
                        return Reception::NeedsCatchUp;
                    }
                    self.progress.record_opening(stream, *range, number.n);
                }
                Continuity::Repeat => {}
                Continuity::Gap => return Reception::NeedsStreamRead,
                Continuity::UnknownStream => {
                    streams.record_unknown(&stream.message_id, &stream.stream, now);
                    return Reception::NeedsStreamRead;
                }
            },
            LiveFrameKind::Restarted { stream } => {
                if !self.push(frame) {
                    return Reception::NeedsCatchUp;
                }
                self.progress.restart(stream, number.n);
            }
            LiveFrameKind::Other => {
                if !self.push(frame) {
                    return Reception::NeedsCatchUp;
                }
            }
        }
        Reception::Complete
    }

    /// Queues a frame that is not terminal, except the `accepted` frame of a message that the
    /// connection itself sent. Returns false where the queue has no room.
    fn push(&self, frame: &LiveFrame) -> bool {
        let is_sender = frame.sender_connection.as_ref() == Some(&self.client.connection_id);
        match &frame.text {
            Some(text) if !is_sender => self.client.outbound.try_push(text.clone()),
            _ => true,
        }
    }

    /// Queues a terminal frame, unless the connection has received it. Returns false where the
    /// queue has no room.
    fn push_terminal(&mut self, frame: &LiveFrame) -> bool {
        let Some(text) = &frame.text else {
            return true;
        };
        let position = frame.position.as_ref();
        if position.is_some_and(|position| self.received.contains(position)) {
            return true;
        }
        let outbound = &self.client.outbound;
        if !outbound.try_push_traced(text.clone(), frame.trace.as_ref()) {
            return false;
        }
        if let Some(position) = position {
            self.received.advance(position.clone());
        }
        if let Some(id) = &frame.message_id {
            self.resend_replies.remove(id);
        }
        true
    }

    /// Adds the terminal frame `text` of a message that the client sent again at `resent_at`.
    /// Returns false where the replies that wait already exceed [`MAX_RESEND_REPLY_BYTES`].
    pub(super) fn add_resend_reply(
        &mut self,
        id: MessageId,
        text: Utf8Bytes,
        resent_at: LogicalTime,
    ) -> bool {
        let replies = self.resend_replies.values();
        let bytes: usize = replies.map(|reply| reply.text.as_str().len()).sum();
        if bytes > MAX_RESEND_REPLY_BYTES {
            return false;
        }
        self.resend_replies
            .insert(id, ResendReply { resent_at, text });
        true
    }

    /// Removes the reply to a resent message, because the connection has received its frame.
    pub(super) fn remove_resend_reply(&mut self, id: &MessageId) {
        self.resend_replies.remove(id);
    }

    /// Removes and returns the replies to messages that were resent up to `read_began_at`. The read
    /// that began then did not return their frames, so the mailbox no longer has them.
    pub(super) fn take_resend_replies_up_to(
        &mut self,
        read_began_at: LogicalTime,
    ) -> Vec<Utf8Bytes> {
        let mut texts = Vec::new();
        self.resend_replies.retain(|_, reply| {
            let is_later = reply.resent_at > read_began_at;
            if !is_later {
                texts.push(reply.text.clone());
            }
            is_later
        });
        texts
    }

    pub(super) fn has_resend_replies(&self) -> bool {
        !self.resend_replies.is_empty()
    }
}
