//! Tracks, for each `chatmesh.v1` connection of a user, the last live frame it received, and runs
//! the catch-up protocol when it has a gap: buffer live frames, read a snapshot, replay the buffer.
//!
//! A live connection receives every published frame, and each frame's number is the last one plus
//! one. A connection for which that fails, or whose queue has no room for a frame, is stale until a
//! read has delivered what it is missing. The buffer is shared by all connections of the user.

use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::live_buffer::LiveBuffer;
use super::live_frame::LiveFrame;
use super::received::ReceivedPositions;
use super::state::V1State;
use super::subscriber::{Subscriber, SubscriberState};
use crate::protocol::ids::MessageId;
use crate::protocol::position::Position;
use crate::protocol::sequence_number::SequenceNumber;

#[cfg(test)]
mod tests;

/// Where a connection's read begins.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct ReadStart {
    /// The position after which the mailbox is read.
    pub(in crate::gateway) after: Option<Position>,
    /// The event at which the connection became stale.
    pub(in crate::gateway) stale_since: u64,
    /// The event after which live frames are buffered for it.
    pub(in crate::gateway) buffered_since: u64,
}

/// The `chatmesh.v1` connections of one user on this gateway.
#[derive(Default)]
pub(in crate::gateway) struct Subscribers {
    list: Vec<Subscriber>,
    /// The number of the last published frame.
    last_published: Option<SequenceNumber>,
    /// Counts published frames and changes of a subscriber's state, so that they can be ordered.
    logical_clock: u64,
    buffer: LiveBuffer,
}

impl Subscribers {
    /// Adds a connection that resumes after the position `since`; it has to read first.
    pub(in crate::gateway) fn add(&mut self, client: Arc<V1State>, since: Option<Position>) {
        self.logical_clock += 1;
        // Most users have one connection, and a vector would begin with room for four.
        if self.list.capacity() == 0 {
            self.list.reserve_exact(1);
        }
        let received = ReceivedPositions::from_cursor(since);
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

    fn is_reading(&self) -> bool {
        self.list.iter().any(Subscriber::is_reading)
    }

    /// Drops the buffer where no connection reads.
    fn clear_unused_buffer(&mut self) {
        if !self.is_reading() && !self.buffer.is_empty() {
            self.buffer.clear(self.logical_clock);
        }
    }

    /// Sends a published frame to the live connections, and buffers it for those that read.
    pub(in crate::gateway) fn publish(&mut self, mut frame: LiveFrame) {
        if self.list.is_empty() {
            return;
        }
        self.logical_clock += 1;
        if let Some(number) = &mut frame.number {
            if let Some(last) = &self.last_published
                && last.counter == number.counter
            {
                // Shares one allocation between all frames of a counter.
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
        for subscriber in &mut self.list {
            if !subscriber.receive(&frame) {
                subscriber.mark_stale(self.logical_clock);
            }
        }
        if self.is_reading() {
            self.buffer.push(self.logical_clock, frame);
        } else {
            self.buffer.skip(self.logical_clock);
        }
    }

    /// Marks all live connections stale, and drops the buffer so that reads in progress are
    /// repeated: any frame may be missing.
    pub(in crate::gateway) fn mark_all_stale(&mut self) {
        self.logical_clock += 1;
        self.buffer.clear(self.logical_clock);
        for subscriber in &mut self.list {
            if subscriber.is_live() {
                subscriber.mark_stale(self.logical_clock);
            }
        }
    }

    /// Marks one live connection stale. A stale or reading connection stays as it is.
    fn mark_stale(&mut self, client: &Arc<V1State>) {
        self.logical_clock += 1;
        let event = self.logical_clock;
        if let Some(subscriber) = self.get_mut(client)
            && subscriber.is_live()
        {
            subscriber.mark_stale(event);
        }
    }

    /// Makes the live connections read that have not received every frame up to `number`.
    pub(in crate::gateway) fn mark_stale_before(&mut self, number: &SequenceNumber) {
        self.logical_clock += 1;
        for subscriber in &mut self.list {
            let last = subscriber.last_received();
            if last.is_some_and(|last| !last.is_at_or_after(number)) {
                subscriber.mark_stale(self.logical_clock);
            }
        }
    }

    pub(in crate::gateway) fn is_stale(&self, client: &Arc<V1State>) -> bool {
        self.get(client).is_some_and(Subscriber::is_stale)
    }

    /// The highest number that a live connection has received.
    pub(in crate::gateway) fn highest_received(&self) -> Option<SequenceNumber> {
        let received = self.list.iter().filter_map(Subscriber::last_received);
        received.max_by_key(|number| number.n).cloned()
    }

    /// The number of the last frame that was published to this gateway.
    pub(in crate::gateway) fn last_published(&self) -> Option<SequenceNumber> {
        self.last_published.clone()
    }

    /// Whether every live connection has received every frame up to `number`.
    pub(in crate::gateway) fn have_all_received(&self, number: &SequenceNumber) -> bool {
        let mut received = self.list.iter().filter_map(Subscriber::last_received);
        received.all(|last| last.is_at_or_after(number))
    }

    /// Begins a read for this connection: live frames are buffered from now on.
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
            SubscriberState::Stale { since_event } | SubscriberState::Reading { since_event } => {
                since_event
            }
            SubscriberState::Live(_) => now,
        };
        subscriber.state = SubscriberState::Reading { since_event: now };
        ReadStart {
            after: subscriber.received.cursor().cloned(),
            stale_since,
            buffered_since: now,
        }
    }

    /// Lets this connection use the result of a read that another connection of the user began at
    /// the event `buffered_since`.
    pub(in crate::gateway) fn join_read(&mut self, client: &Arc<V1State>, buffered_since: u64) {
        if let Some(subscriber) = self.get_mut(client) {
            subscriber.state = SubscriberState::Reading {
                since_event: buffered_since,
            };
        }
    }

    /// Whether another connection of the user has to read, too.
    pub(in crate::gateway) fn has_other_stale(&self, client: &Arc<V1State>) -> bool {
        self.list
            .iter()
            .any(|subscriber| subscriber.is_stale() && !Arc::ptr_eq(&subscriber.client, client))
    }

    /// Whether every frame that was published after `event` is buffered.
    pub(in crate::gateway) fn is_buffered_since(&self, event: u64) -> bool {
        self.buffer.is_complete_since(event)
    }

    /// Ends a read that failed, or whose result could not be sent: the connection reads again.
    pub(in crate::gateway) fn abandon_read(&mut self, client: &Arc<V1State>) {
        let event = self.logical_clock;
        if let Some(subscriber) = self.get_mut(client) {
            subscriber.state = SubscriberState::Stale { since_event: event };
        }
        self.clear_unused_buffer();
    }

    /// Ends a read whose result, up to the frame `number`, was sent: replays the buffer, and makes
    /// the connection live. Where frames are missing it has to read again. Returns the answers of
    /// resent messages that the read should have returned, but the mailbox has lost.
    pub(in crate::gateway) fn finish_read(
        &mut self,
        client: &Arc<V1State>,
        number: SequenceNumber,
    ) -> Vec<Utf8Bytes> {
        self.logical_clock += 1;
        let event = self.logical_clock;
        let Some(index) = self
            .list
            .iter()
            .position(|subscriber| Arc::ptr_eq(&subscriber.client, client))
        else {
            return Vec::new();
        };
        let subscriber = &mut self.list[index];
        let SubscriberState::Reading { since_event } = subscriber.state else {
            return Vec::new();
        };
        subscriber.state = SubscriberState::Live(number);
        let is_live = self.buffer.is_complete_since(since_event)
            && self
                .buffer
                .frames_after(since_event)
                .all(|frame| subscriber.receive(frame));
        let lost = subscriber.take_resend_replies_up_to(since_event);
        if !is_live || subscriber.has_resent() {
            subscriber.mark_stale(event);
        }
        self.clear_unused_buffer();
        lost
    }

    /// Moves the connection to the mailbox's end because the mailbox does not have what follows its
    /// position; the client reloads its history. Returns the position to report to the client.
    pub(in crate::gateway) fn reset_position(
        &mut self,
        client: &Arc<V1State>,
        mailbox_end: &Position,
    ) -> Position {
        match self.get_mut(client) {
            Some(subscriber) => subscriber.received.reset(mailbox_end),
            None => mailbox_end.clone(),
        }
    }

    /// Whether the connection still has to receive the terminal frame at `position`.
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

    /// Records that the connection has received or skipped the terminal frame at `position`.
    pub(in crate::gateway) fn record_received(
        &mut self,
        client: &Arc<V1State>,
        position: Position,
        message_id: Option<&MessageId>,
    ) {
        if let Some(subscriber) = self.get_mut(client) {
            subscriber.received.advance(position);
            if let Some(id) = message_id {
                subscriber.remove_resent(id);
            }
        }
    }

    /// Makes the connection read, and sends it the answer of a resent message if that read does not
    /// return it. Returns false where too many answers wait already.
    pub(in crate::gateway) fn send_after_read(
        &mut self,
        client: &Arc<V1State>,
        id: MessageId,
        text: Utf8Bytes,
    ) -> bool {
        self.mark_stale(client);
        let event = self.logical_clock;
        match self.get_mut(client) {
            Some(subscriber) => subscriber.add_resent(id, text, event),
            None => true,
        }
    }
}
