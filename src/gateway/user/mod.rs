//! Everything that one user's connections on this gateway share: which clients are connected, what
//! they have received, what they wait for, and when the user's mailbox is read.
//!
//! Three facts decide about a terminal frame for classic clients ([`decision`]): whether it was
//! delivered already; whether its position is newer than all delivered ones of its epoch; and
//! whether its message is pending here. The answer of a pending message is delivered at any
//! position, because positions cannot be compared after Redis lost its data.
//!
//! A published frame may be lost, and is then only in the mailbox. Later frames must not overtake
//! it. While a frame may be missing, published frames are therefore deferred to the mailbox read,
//! which returns all frames in order.

use std::sync::Arc;

use super::classic::duplicates::DuplicateFilter;
use super::classic::pending::PendingAnswers;
use super::classic::state::ClassicState;
use super::client::Client;
use super::v1::subscribers::Subscribers;
use crate::fanout::UserView;
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::position::Position;
use crate::protocol::published::PublishedFrame;

mod decision;
mod mailbox_read;
#[cfg(test)]
mod tests;

pub(super) use decision::{Delivery, FrameSource};
use mailbox_read::MailboxRead;

/// The state that one user's connections share.
#[derive(Default)]
pub(super) struct UserState {
    classic: Vec<Arc<ClassicState>>,
    /// The `chatmesh.v1` connections, and what each of them has received.
    pub(super) subscribers: Subscribers,
    pub(super) pending: PendingAnswers,
    duplicates: DuplicateFilter,
    mailbox_read: MailboxRead,
    /// Live frames may have been lost, and the mailbox has not been read to its end since. Not part
    /// of [`MailboxRead`]: a pass that began after the loss serves its request, but the gap remains
    /// until that pass has reached the end.
    has_gap: bool,
}

impl UserState {
    /// `since` is the position from which a `chatmesh.v1` client resumes.
    pub(super) fn add(&mut self, client: &Client, since: Option<Position>) {
        match client {
            Client::Classic(classic) => self.classic.push(classic.clone()),
            Client::V1(v1) => self.subscribers.add(v1.clone(), since),
        }
    }

    pub(super) fn remove(&mut self, client: &Client) {
        match client {
            Client::Classic(classic) => self.classic.retain(|other| !Arc::ptr_eq(other, classic)),
            Client::V1(v1) => self.subscribers.remove(v1),
        }
    }

    /// Whether the user has no connection here.
    pub(super) fn is_empty(&self) -> bool {
        self.classic.is_empty() && self.subscribers.is_empty()
    }

    /// Records the mailbox's end as a new connection found it. The first one determines where
    /// mailbox reads begin.
    pub(super) fn set_mailbox_start(&mut self, end: &Position) {
        self.duplicates.start_at(end);
    }

    /// The position after which the next mailbox read begins.
    pub(super) fn mailbox_read_up_to(&self) -> Option<Position> {
        self.duplicates.mailbox_read_up_to()
    }

    pub(super) fn set_mailbox_read_up_to(&mut self, position: Position) {
        self.duplicates.set_mailbox_read_up_to(position);
    }

    /// Claims the mailbox read for the calling task; false where another task is reading.
    pub(super) fn begin_mailbox_read(&mut self) -> bool {
        self.mailbox_read.begin()
    }

    /// Begins a pass over the mailbox. Returns whether it was requested.
    pub(super) fn begin_pass(&mut self) -> bool {
        self.mailbox_read.begin_pass()
    }

    /// Records that the pass has read the mailbox to its end. No frame is missing any more, unless
    /// another read was requested since the pass began.
    pub(super) fn set_read_to_end(&mut self) {
        self.has_gap &= self.mailbox_read.is_requested();
    }

    /// Ends a pass. Returns whether the mailbox read is finished, too.
    pub(super) fn end_pass(&mut self, has_failed: bool) -> bool {
        self.mailbox_read.end_pass(has_failed)
    }

    pub(super) fn schedule_mailbox_read(&mut self) {
        self.mailbox_read.schedule();
    }

    /// Records that published frames may have been lost.
    pub(super) fn record_gap(&mut self) {
        self.mailbox_read.schedule();
        self.has_gap = true;
    }

    /// Whether the mailbox has to be read: a read was requested, or an answer is pending.
    pub(super) fn needs_mailbox_read(&mut self) -> bool {
        self.pending.remove_expired();
        self.mailbox_read.is_requested() || !self.pending.is_empty()
    }

    /// Adds the messages that other connections or gateways left unanswered.
    pub(super) fn add_pending_from_view(&mut self, view: &UserView) {
        for pending in &view.pending {
            self.add_pending(&pending.message_id, Some(&pending.conversation));
        }
        // A worker has read these from the log.
        for answer in &view.in_flight {
            self.add_pending(&answer.message_id, Some(&answer.conversation));
            self.pending.set_in_log(&answer.message_id);
        }
    }

    /// Adds a message without an answer, unless its answer was delivered here.
    pub(super) fn add_pending(&mut self, id: &MessageId, conversation: Option<&ConversationId>) {
        if !self.pending.contains(id) && !self.duplicates.contains_message(id.as_str()) {
            self.pending
                .add_admitted_elsewhere(id.clone(), "".into(), conversation.cloned());
        }
    }

    /// The pending message that this frame answers: by its id, or by the correlation id where an
    /// original worker omitted the id.
    fn pending_message(&self, frame: &PublishedFrame<'_>) -> Option<MessageId> {
        if let Some(id) = &frame.message_id
            && self.pending.contains(id)
        {
            return Some(id.clone());
        }
        let correlation_id = frame.correlation_id.as_deref();
        let correlation_id = correlation_id.filter(|id| !id.is_empty())?;
        self.pending.find_by_correlation_id(correlation_id).cloned()
    }
}
