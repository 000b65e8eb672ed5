//! The `chatmesh.v1` connections of one user: for each, the last live frame it received, the text
//! that it was sent of the answers in flight, and whether it is live, stale or reading; and the
//! buffer of live frames that all of them share.
//!
//! `catch_up` serves the stale connections. It begins a read ([`Subscribers::begin_read`]), so that
//! live frames are buffered from then on. It reads the user view, sends it, and finishes the read
//! ([`Subscribers::finish_read`]), which replays the buffer.
//!
//! A live connection receives every published frame with a number, and the number of each of them
//! is the previous number plus one. It receives a `delta` without a number where that continues the
//! text that the connection was sent. A new connection is stale. A live connection becomes stale
//! when a number is skipped or its queue has no room for a frame, and stays stale until a read has
//! delivered what is missing.
//!
//! A `delta` before which text is missing, or whose stream is unknown, is not sent and requests a
//! stream read: all connections that need one become stale, at once or one second after the user's
//! last stream read began. Until then they stay live.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::live_buffer::{BufferedFrame, LiveBuffer};
use super::live_frame::{LiveFrame, LiveFrameKind};
use super::logical_time::LogicalTime;
use super::received::ReceivedPositions;
use super::state::V1State;
use super::stream_progress::StreamProgress;
use super::stream_reads::StreamReads;
use super::subscriber::{Reception, Subscriber, SubscriberState};
use crate::fanout::UserView;
use crate::protocol::ids::MessageId;
use crate::protocol::open_message::InFlightAnswer;
use crate::protocol::position::Position;
use crate::protocol::sequence_number::SequenceNumber;
use crate::protocol::v1::DeltaHead;

#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

/// When a connection's next catch-up begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum NextCatchUp {
    /// The connection is stale.
    Now,
    /// The connection is live, and waits until this time for the user's next stream read.
    At(Instant),
    /// The connection is live and misses nothing.
    NotNeeded,
}

/// The state in which a connection begins a read.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct ReadStart {
    /// The position after which the mailbox is read.
    pub(in crate::gateway) after: Option<Position>,
    /// When the connection became stale, or when its previous read began if this read continues
    /// it. Only a read of another connection that began at this time or later can serve this
    /// connection too.
    pub(in crate::gateway) stale_since: LogicalTime,
    /// When the read begins: live frames that are published after this time are buffered.
    pub(in crate::gateway) buffered_since: LogicalTime,
}

/// The `chatmesh.v1` connections of one user on this gateway.
#[derive(Default)]
pub(in crate::gateway) struct Subscribers {
    list: Vec<Subscriber>,
    /// The number of the last published frame; `None` where no frame with a number was published
    /// since the first connection was added.
    last_published: Option<SequenceNumber>,
    /// The time of the last event: a frame was published, or a connection became stale or live.
    logical_clock: LogicalTime,
    buffer: LiveBuffer,
    stream_reads: StreamReads,
}

impl Subscribers {
    /// Adds a connection whose client resumes after `resume_after`. The connection is stale, so it
    /// has to read the mailbox first.
    pub(in crate::gateway) fn add(&mut self, client: Arc<V1State>, resume_after: Option<Position>) {
        self.logical_clock.advance();
        // Most users have one connection, and a vector would begin with room for four.
        if self.list.capacity() == 0 {
            self.list.reserve_exact(1);
        }
        let received = ReceivedPositions::from_cursor(resume_after);
        self.list
            .push(Subscriber::new(client, received, self.logical_clock));
    }

    pub(in crate::gateway) fn remove(&mut self, client: &Arc<V1State>) {
        self.list
            .retain(|subscriber| !Arc::ptr_eq(&subscriber.client, client));
        self.clear_unused_buffer();
        if self.list.is_empty() {
            self.last_published = None;
        }
    }

    pub(in crate::gateway) fn len(&self) -> usize {
        self.list.len()
    }

    pub(in crate::gateway) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn get(&self, client: &Arc<V1State>) -> Option<&Subscriber> {
        self.list
            .iter()
            .find(|subscriber| Arc::ptr_eq(&subscriber.client, client))
    }

    fn get_mut(&mut self, client: &Arc<V1State>) -> Option<&mut Subscriber> {
        self.list
            .iter_mut()
            .find(|subscriber| Arc::ptr_eq(&subscriber.client, client))
    }

    /// Whether a read is in progress for any connection.
    fn is_any_reading(&self) -> bool {
        self.list.iter().any(Subscriber::is_reading)
    }

    /// Clears the buffer unless a read is in progress.
    fn clear_unused_buffer(&mut self) {
        if !self.is_any_reading() && !self.buffer.is_empty() {
            self.buffer.clear(self.logical_clock);
        }
    }

    /// Sends a published frame other than a later `delta` of a part to the live connections, and
    /// buffers it for the reading connections.
    pub(in crate::gateway) fn publish(&mut self, mut frame: LiveFrame) {
        if self.list.is_empty() {
            return;
        }
        self.logical_clock.advance();
        if let Some(number) = &mut frame.number {
            if let Some(last) = &self.last_published
                && last.counter == number.counter
            {
                // All frames of a counter share one allocation of its id.
                number.counter = last.counter.clone();
                if number.n <= last.n {
                    // The counter went back: the fan-out has lost the frames after this number.
                    self.last_published = Some(number.clone());
                    self.mark_all_stale();
                    return;
                }
            }
            self.last_published = Some(number.clone());
        }
        if let LiveFrameKind::Opening { stream, .. } | LiveFrameKind::Restarted { stream } =
            &frame.kind
        {
            self.stream_reads.record_current(stream);
        }
        self.send_to_live(|subscriber, streams, now| subscriber.receive(&frame, streams, now));
        self.buffer_for_reading(|| BufferedFrame::Other(Box::new(frame)));
    }

    /// Sends a published `delta` that is no opening to the live connections whose text it
    /// continues, and buffers it for the reading connections. `text` is the frame.
    pub(in crate::gateway) fn publish_delta(&mut self, head: &DeltaHead<'_>, text: &Utf8Bytes) {
        if self.list.is_empty() {
            return;
        }
        self.logical_clock.advance();
        self.send_to_live(|subscriber, streams, now| {
            subscriber.receive_delta(head, text, streams, now)
        });
        self.buffer_for_reading(|| BufferedFrame::Delta(text.clone()));
    }

    /// Passes a published frame to every connection with `receive`.
    fn send_to_live(
        &mut self,
        receive: impl Fn(&mut Subscriber, &mut StreamReads, LogicalTime) -> Reception,
    ) {
        let now = self.logical_clock;
        let mut is_read_requested = false;
        for subscriber in &mut self.list {
            match receive(subscriber, &mut self.stream_reads, now) {
                Reception::Complete => {}
                Reception::NeedsStreamRead => {
                    is_read_requested |= subscriber.request_stream_read();
                }
                Reception::NeedsCatchUp => subscriber.mark_stale(now),
            }
        }
        if is_read_requested {
            self.schedule_stream_read();
        }
    }

    /// Buffers a published frame if a read is in progress.
    fn buffer_for_reading(&mut self, frame: impl FnOnce() -> BufferedFrame) {
        if self.is_any_reading() {
            self.buffer.push(self.logical_clock, frame());
        } else {
            self.buffer.skip(self.logical_clock);
        }
    }

    /// Begins the stream read that connections need, or wakes their catch-ups, which wait until it
    /// may begin.
    fn schedule_stream_read(&mut self) {
        if self.begin_stream_read(Instant::now()) {
            return;
        }
        let needing = self.list.iter().filter(|other| other.needs_stream_read());
        for subscriber in needing {
            subscriber.client.catch_up_needed.notify_one();
        }
    }

    /// Marks all connections stale that need a stream read, so that they share one read, if the
    /// user's next stream read may begin now. Returns whether it may.
    fn begin_stream_read(&mut self, now: Instant) -> bool {
        if !self.stream_reads.try_begin(now) {
            return false;
        }
        for subscriber in &mut self.list {
            if subscriber.needs_stream_read() {
                subscriber.mark_stale(self.logical_clock);
            }
        }
        true
    }

    /// When the connection's next catch-up begins. Begins the stream read that the connection needs
    /// where that may begin now.
    pub(in crate::gateway) fn next_catch_up(&mut self, client: &Arc<V1State>) -> NextCatchUp {
        let Some(subscriber) = self.get(client) else {
            return NextCatchUp::NotNeeded;
        };
        if subscriber.is_stale() {
            return NextCatchUp::Now;
        }
        if !subscriber.needs_stream_read() {
            return NextCatchUp::NotNeeded;
        }
        let now = Instant::now();
        if self.begin_stream_read(now) {
            NextCatchUp::Now
        } else {
            NextCatchUp::At(self.stream_reads.next_at(now))
        }
    }

    /// Marks all live connections stale, because any frame may be missing. Clears the buffer, so
    /// that reads in progress are repeated.
    pub(in crate::gateway) fn mark_all_stale(&mut self) {
        self.logical_clock.advance();
        self.buffer.clear(self.logical_clock);
        for subscriber in &mut self.list {
            if subscriber.is_live() {
                subscriber.mark_stale(self.logical_clock);
            }
        }
    }

    /// Marks one live connection stale. A stale or reading connection stays as it is.
    fn mark_stale(&mut self, client: &Arc<V1State>) {
        self.logical_clock.advance();
        let now = self.logical_clock;
        if let Some(subscriber) = self.get_mut(client)
            && subscriber.is_live()
        {
            subscriber.mark_stale(now);
        }
    }

    /// Marks the live connections stale that have not received everything that a user view
    /// contains.
    pub(in crate::gateway) fn mark_stale_behind(&mut self, view: &UserView) {
        self.logical_clock.advance();
        for subscriber in &mut self.list {
            if subscriber.is_behind(view, &self.stream_reads) {
                subscriber.mark_stale(self.logical_clock);
            }
        }
    }

    /// Whether every live connection has received everything that a user view contains.
    pub(in crate::gateway) fn have_received(&self, view: &UserView) -> bool {
        let mut list = self.list.iter();
        !list.any(|subscriber| subscriber.is_behind(view, &self.stream_reads))
    }

    /// The length of each part that the connection was sent of this answer; `None` if the
    /// connection has another stream as the answer's current one, or knows no stream of it.
    pub(in crate::gateway) fn sent_lengths(
        &self,
        client: &Arc<V1State>,
        answer: &InFlightAnswer,
    ) -> Option<Vec<u32>> {
        let lengths = self.get(client)?.progress.sent_lengths(answer)?;
        Some(lengths.to_vec())
    }

    #[cfg(test)]
    fn is_stale(&self, client: &Arc<V1State>) -> bool {
        self.get(client).is_some_and(Subscriber::is_stale)
    }

    /// The highest number of a frame that a live connection has received; `None` if no connection
    /// is live.
    pub(in crate::gateway) fn highest_received(&self) -> Option<SequenceNumber> {
        let received = self.list.iter().filter_map(Subscriber::last_received);
        received.max_by_key(|number| number.n).cloned()
    }

    /// The number of the last published frame that this gateway has received for the user.
    pub(in crate::gateway) fn last_published(&self) -> Option<SequenceNumber> {
        self.last_published.clone()
    }

    /// Begins a read for this connection: live frames that are published from now on are buffered.
    pub(in crate::gateway) fn begin_read(&mut self, client: &Arc<V1State>) -> ReadStart {
        self.clear_unused_buffer();
        let now = self.logical_clock;
        let Some(subscriber) = self.get_mut(client) else {
            return ReadStart {
                after: None,
                stale_since: now,
                buffered_since: now,
            };
        };
        let stale_since = match subscriber.state {
            SubscriberState::Stale { since } => since,
            SubscriberState::Reading { buffered_since } => buffered_since,
            SubscriberState::Live { .. } => now,
        };
        subscriber.state = SubscriberState::Reading {
            buffered_since: now,
        };
        ReadStart {
            after: subscriber.received.cursor().cloned(),
            stale_since,
            buffered_since: now,
        }
    }

    /// Lets this connection use the result of a read that another connection of the user began at
    /// `buffered_since`.
    pub(in crate::gateway) fn join_read(
        &mut self,
        client: &Arc<V1State>,
        buffered_since: LogicalTime,
    ) {
        if let Some(subscriber) = self.get_mut(client) {
            subscriber.state = SubscriberState::Reading { buffered_since };
        }
    }

    /// Whether a connection of the user other than `client` is stale.
    pub(in crate::gateway) fn has_other_stale(&self, client: &Arc<V1State>) -> bool {
        self.list
            .iter()
            .any(|subscriber| subscriber.is_stale() && !Arc::ptr_eq(&subscriber.client, client))
    }

    /// Whether every frame that was published after `time` is buffered.
    pub(in crate::gateway) fn is_buffered_since(&self, time: LogicalTime) -> bool {
        self.buffer.is_complete_since(time)
    }

    /// Ends a read that failed. The connection is stale, so it reads again.
    pub(in crate::gateway) fn abandon_read(&mut self, client: &Arc<V1State>) {
        let now = self.logical_clock;
        if let Some(subscriber) = self.get_mut(client) {
            subscriber.state = SubscriberState::Stale { since: now };
        }
        self.clear_unused_buffer();
    }

    /// Ends a read after its user view was sent: replays the buffer and makes the connection live,
    /// or stale where it has to read again. Returns the terminal frames of resent messages that the
    /// read should have returned but the mailbox no longer has; the caller sends them.
    pub(in crate::gateway) fn finish_read(
        &mut self,
        client: &Arc<V1State>,
        view: &UserView,
    ) -> Vec<Utf8Bytes> {
        self.logical_clock.advance();
        let now = self.logical_clock;
        let Some(subscriber) = self
            .list
            .iter_mut()
            .find(|subscriber| Arc::ptr_eq(&subscriber.client, client))
        else {
            return Vec::new();
        };
        let SubscriberState::Reading { buffered_since } = subscriber.state else {
            return Vec::new();
        };
        subscriber.state = SubscriberState::Live {
            number: view.number.clone(),
            needs_stream_read: false,
        };
        let progress = StreamProgress::from_view(&view.in_flight, view.number.n);
        let known_before = std::mem::replace(&mut subscriber.progress, progress);
        self.stream_reads
            .finish_read(view, buffered_since, known_before.into_streams());
        let mut is_complete = self.buffer.is_complete_since(buffered_since);
        let mut is_read_requested = false;
        for frame in self.buffer.frames_after(buffered_since) {
            if !is_complete {
                break;
            }
            match subscriber.receive_buffered(frame, &mut self.stream_reads, now) {
                Reception::Complete => {}
                Reception::NeedsStreamRead => {
                    is_read_requested |= subscriber.request_stream_read();
                }
                Reception::NeedsCatchUp => is_complete = false,
            }
        }
        let resend_replies = subscriber.take_resend_replies_up_to(buffered_since);
        if !is_complete || subscriber.has_resend_replies() {
            subscriber.mark_stale(now);
        } else if is_read_requested {
            self.schedule_stream_read();
        }
        self.clear_unused_buffer();
        resend_replies
    }

    /// Moves the connection to the mailbox's end, because the mailbox does not have what follows
    /// the connection's position and the client reloads its history. Returns the position to report
    /// to the client.
    pub(in crate::gateway) fn skip_to_mailbox_end(
        &mut self,
        client: &Arc<V1State>,
        mailbox_end: &Position,
    ) -> Position {
        match self.get_mut(client) {
            Some(subscriber) => subscriber.received.skip_to_mailbox_end(mailbox_end),
            None => mailbox_end.clone(),
        }
    }

    /// Whether the connection needs the terminal frame at `position` and has not received it.
    pub(in crate::gateway) fn needs(&self, client: &Arc<V1State>, position: &Position) -> bool {
        self.get(client)
            .is_some_and(|subscriber| !subscriber.received.contains(position))
    }

    /// Whether the connection has received the terminal frame at `position`.
    pub(in crate::gateway) fn has_received(
        &self,
        client: &Arc<V1State>,
        position: &Position,
    ) -> bool {
        self.get(client)
            .is_some_and(|subscriber| subscriber.received.contains(position))
    }

    /// Records that the terminal frame at `position` was sent to the connection, or skipped because
    /// the connection does not need it.
    pub(in crate::gateway) fn record_received(
        &mut self,
        client: &Arc<V1State>,
        position: Position,
        message_id: Option<&MessageId>,
    ) {
        if let Some(subscriber) = self.get_mut(client) {
            subscriber.received.advance(position);
            if let Some(id) = message_id {
                subscriber.remove_resend_reply(id);
            }
        }
    }

    /// Marks a live connection stale, so that it reads the mailbox, and stores the terminal frame
    /// `text` of a resent message, which is sent after the read unless the read returns it. Returns
    /// false where too many such frames wait already.
    pub(in crate::gateway) fn send_after_read(
        &mut self,
        client: &Arc<V1State>,
        id: MessageId,
        text: Utf8Bytes,
    ) -> bool {
        self.mark_stale(client);
        let now = self.logical_clock;
        match self.get_mut(client) {
            Some(subscriber) => subscriber.add_resend_reply(id, text, now),
            None => true,
        }
    }
}
