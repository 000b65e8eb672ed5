//! The state that one user's connections on this gateway share: which clients are connected, which
//! frames they have received, which answers are pending, and whether the mailbox has to be read.
//!
//! Three facts decide about a published terminal frame for classic clients ([`decision`]): whether
//! the frame was delivered already; whether its position is newer than the positions of all
//! delivered frames of its epoch; and whether its message is pending here. The answer of a pending
//! message is delivered at any position, because positions can't be compared after Redis lost its
//! data.
//!
//! A published frame may be lost on its way to the gateway, and is then only in the mailbox. Later
//! frames must not overtake it. While a frame may be missing, published frames are therefore
//! deferred to the mailbox read, which returns all frames in order.

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
    /// The `chatmesh.v1` connections, and which frames each connection has received.
    pub(super) subscribers: Subscribers,
    pub(super) pending: PendingAnswers,
    duplicates: DuplicateFilter,
    mailbox_read: MailboxRead,
    /// Whether published frames may have been lost since the mailbox was last read to its end. Not
    /// part of [`MailboxRead`]: the request is served as soon as a pass begins, but the gap remains
    /// until that pass has reached the mailbox's end.
    has_gap: bool,
}

impl UserState {
    /// Adds a connection. `resume_after` is the position from which a `chatmesh.v1` client resumes.
    pub(super) fn add(&mut self, client: &Client, resume_after: Option<Position>) {
        match client {
            Client::Classic(classic) => self.classic.push(classic.clone()),
            Client::V1(v1) => self.subscribers.add(v1.clone(), resume_after),
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

    /// Sets the position after which mailbox reads begin to the mailbox's end, as a new connection
    /// has read it. Does nothing where an earlier connection has set the position.
    pub(super) fn set_mailbox_start(&mut self, mailbox_end: &Position) {
        self.duplicates.start_at(mailbox_end);
    }

    /// The position after which the next mailbox read begins; `None` until it was set.
    pub(super) fn mailbox_read_up_to(&self) -> Option<Position> {
        self.duplicates.mailbox_read_up_to()
    }

    pub(super) fn set_mailbox_read_up_to(&mut self, position: Position) {
        self.duplicates.set_mailbox_read_up_to(position);
    }

    /// Claims the mailbox read for the calling task. Returns false where another task is reading.
    pub(super) fn begin_mailbox_read(&mut self) -> bool {
        self.mailbox_read.begin()
    }

    /// Begins a pass over the mailbox. Returns whether a pass was requested.
    pub(super) fn begin_pass(&mut self) -> bool {
        self.mailbox_read.begin_pass()
    }

    /// Records that the pass has read the mailbox to its end. No frame is missing any more, unless
    /// another pass was requested since this pass began.
    pub(super) fn set_read_to_end(&mut self) {
        self.has_gap &= self.mailbox_read.is_requested();
    }

    /// Ends a pass. Returns whether the mailbox read is finished, so that no pass follows at once.
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

    /// Whether the mailbox has to be read: a pass was requested, or an answer is pending.
    pub(super) fn needs_mailbox_read(&mut self) -> bool {
        self.pending.remove_expired();
        self.mailbox_read.is_requested() || !self.pending.is_empty()
    }

    /// Adds the messages that are pending or in flight in a user view, whichever gateway admitted
    /// them.
    pub(super) fn add_pending_from_view(&mut self, view: &UserView) {
        for pending in &view.pending {
            self.add_pending(&pending.message_id, Some(&pending.conversation));
        }
        // These messages are in the log, because a worker has read them from it.
        for answer in &view.in_flight {
            self.add_pending(&answer.message_id, Some(&answer.conversation));
            self.pending.set_in_log(&answer.message_id);
        }
    }

    /// Adds a pending message, unless its answer was already delivered here.
    pub(super) fn add_pending(&mut self, id: &MessageId, conversation: Option<&ConversationId>) {
        if !self.pending.contains(id) && !self.duplicates.contains_message(id.as_str()) {
            self.pending
                .add_unordered(id.clone(), "".into(), conversation.cloned());
        }
    }

    /// The pending message that this frame answers, found by the message id or, where an original
    /// worker omitted that id, by the correlation id. `None` if no such message is pending.
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
