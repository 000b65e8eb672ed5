//! What a user's sockets here have been told, and what they still wait for.
//!
//! Every socket of the user gets every frame that is published while it is connected, so what was
//! told is kept once per user, not per socket. Three things decide about a terminal frame: whether
//! it was told already (by `message_id`, or by position where an original worker left that out);
//! where it stands to the positions, which only grow within an epoch; and whether its message is
//! awaited here. An awaited message's answer is told whatever the positions say: after Redis lost
//! its data they may say nothing.
//!
//! A frame may be published and not arrive, or be brought back by a relay's rewind, which is not
//! published to classic sockets. It is found in the mailbox then, and what was published after it
//! must not be told before it: so while that may be so, a published frame is left to the reading of
//! the mailbox, which has both, in order.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::awaited::Awaited;
use super::outbound::Outbound;
use super::v1::Line;
use super::v1::followers::Followers;
use crate::fanout::UserView;
use crate::protocol::frame::Published;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::position::Position;

/// Frames remembered as told; above the mailbox's default bound, so that reading a whole mailbox
/// tells nothing twice.
const TOLD: usize = 256;

/// After so many frames since the mailbox was last read it is read again, so that what is
/// remembered reaches back to where a read begins.
const UNVERIFIED: usize = 128;

/// One connection, as its user's other parts see it.
pub(super) struct Socket {
    /// What goes out to it.
    pub(super) outbound: Outbound,
    /// Where the mailbox ended when it connected: nothing up to there is for it. Of a classic one.
    pub(super) start: OnceLock<Position>,
    /// Of a `chatmesh.v1` one.
    pub(super) line: Option<Line>,
}

impl Socket {
    pub(super) fn new(queue_bytes: usize, line: Option<Line>) -> Self {
        Self {
            outbound: Outbound::new(queue_bytes),
            start: OnceLock::new(),
            line,
        }
    }
}

/// How a terminal frame came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Published.
    Live,
    /// Read from the mailbox, where it was put as it was delivered first: it is news.
    Mailbox,
    /// Published by a rewind: only what is owed is news.
    Rewind,
    /// Put into the mailbox again by a rewind, or known by its message alone: only what is owed is
    /// news.
    Rebuilt,
}

/// What became of a terminal frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// It was new to this user's sockets.
    pub(super) told: bool,
    /// The message that waited for it.
    pub(super) ended: Option<MessageId>,
    /// Left to a reading of the mailbox, at once; the first one since the last look.
    pub(super) left: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct UserState {
    /// Classic ones.
    sockets: Vec<Arc<Socket>>,
    /// The others.
    pub(super) followers: Followers,
    pub(super) awaited: Awaited,
    told: HashSet<Arc<str>>,
    told_in_order: VecDeque<(Arc<str>, Option<Position>)>,
    unverified: usize,
    /// Up to here the mailbox was read.
    verified: Option<Position>,
    /// The highest position told.
    seen: Option<Position>,
    /// The mailbox must be read although nothing is awaited.
    due: bool,
    /// Published frames may have been lost, and the mailbox was not read to its end since.
    gap: bool,
    /// A published frame was left to a reading of the mailbox.
    left: bool,
    /// It is being read.
    reading: bool,
}

pub(super) fn up_to(position: &Position, bound: Option<&Position>) -> bool {
    bound.is_some_and(|bound| bound.epoch == position.epoch && position.offset <= bound.offset)
}

impl UserState {
    /// `since` is the position that a `chatmesh.v1` socket came with.
    pub(super) fn add(&mut self, socket: Arc<Socket>, since: Option<Position>) {
        if socket.line.is_some() {
            self.followers.add(socket, since);
        } else {
            self.sockets.push(socket);
        }
    }

    pub(super) fn remove(&mut self, socket: &Arc<Socket>) {
        if socket.line.is_some() {
            self.followers.remove(socket);
        } else {
            self.sockets.retain(|other| !Arc::ptr_eq(other, socket));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty() && self.followers.is_empty()
    }

    /// A socket has connected and the mailbox ends here.
    pub(super) fn started(&mut self, end: &Position) {
        if self.verified.is_none() {
            self.verified = Some(end.clone());
            self.seen.get_or_insert_with(|| end.clone());
        }
    }

    /// Up to where the mailbox was read.
    pub(super) fn verified(&self) -> Option<Position> {
        self.verified.clone()
    }

    /// The mailbox was read up to here.
    pub(super) fn set_verified(&mut self, position: Position) {
        self.verified = Some(position);
        self.unverified = 0;
    }

    /// A reading is to begin. False where another one is at work: that one looks again then.
    pub(super) fn begin_reading(&mut self) -> bool {
        let begins = !self.reading;
        self.due |= !begins;
        self.reading = true;
        begins
    }

    /// One look at the mailbox begins. Says whether it was asked for.
    pub(super) fn looking(&mut self) -> bool {
        self.left = false;
        std::mem::take(&mut self.due)
    }

    /// It has seen all. Nothing is known to be missing, unless another look was asked for meanwhile.
    pub(super) fn saw_all(&mut self) {
        self.gap &= self.due;
    }

    /// The look is over. Whether the reading is too: it is not where a frame waits for another look.
    pub(super) fn end_look(&mut self, failed: bool) -> bool {
        self.due |= failed;
        self.left &= !failed;
        self.reading = self.left;
        !self.reading
    }

    pub(super) fn set_due(&mut self) {
        self.due = true;
    }

    /// Published frames may have been lost.
    pub(super) fn lost_frames(&mut self) {
        self.due = true;
        self.gap = true;
    }

    /// Whether the mailbox has to be read.
    pub(super) fn wants_check(&mut self) -> bool {
        self.awaited.forget_old();
        self.due || !self.awaited.is_empty()
    }

    /// What another connection or gateway left open is waited for too.
    pub(super) fn looked(&mut self, look: &UserView) {
        for one in &look.pending {
            self.under_way(&one.message_id, Some(&one.conversation));
        }
        // A worker has taken it from the log.
        for answer in &look.in_flight {
            self.under_way(&answer.message_id, Some(&answer.conversation));
            self.awaited.is_in_log(&answer.message_id);
        }
    }

    /// This message has not ended.
    pub(super) fn under_way(&mut self, id: &MessageId, conversation: Option<&ConversationId>) {
        if !self.awaited.has(id) && !self.told.contains(id.as_str()) {
            self.awaited
                .open(id.clone(), "".into(), conversation.cloned());
        }
    }

    fn awaited_message(&self, frame: &Published<'_>) -> Option<MessageId> {
        if let Some(id) = &frame.message_id
            && self.awaited.has(id)
        {
            return Some(id.clone());
        }
        let correlation_id = frame.correlation_id.as_deref();
        let correlation_id = correlation_id.filter(|id| !id.is_empty())?;
        self.awaited.by_correlation(correlation_id).cloned()
    }

    /// Whether a published frame is left to a reading of the mailbox: what comes before it may have
    /// been missed. It is awaited from then on, so that the reading tells it whatever became of the
    /// mailbox meanwhile.
    fn leave(&mut self, frame: &Published<'_>) -> bool {
        let (Some(id), false) = (&frame.message_id, self.sockets.is_empty()) else {
            return false;
        };
        if !self.gap && self.awaited.is_empty() {
            return false;
        }
        let conversation = frame.conversation();
        let early = |of: &ConversationId| self.awaited.is_early(id, of);
        if !self.gap && !conversation.as_ref().is_some_and(early) {
            return false;
        }
        self.under_way(id, conversation.as_ref());
        self.awaited.is_in_log(id);
        self.awaited.is_owed_too(id);
        self.due = true;
        true
    }

    /// Tells a terminal frame to the sockets that have not had it.
    pub(super) fn take(
        &mut self,
        user: &UserId,
        frame: &Published<'_>,
        position: Option<Position>,
        source: Source,
    ) -> Taken {
        let ended = self.awaited_message(frame);
        let key: Option<Arc<str>> = match (&frame.message_id, &position) {
            (Some(id), _) => Some(id.as_str().into()),
            (None, Some(position)) => Some(position.to_string().into()),
            (None, None) => None,
        };
        let known = key.as_ref().is_some_and(|key| self.told.contains(key));
        let news = !known
            && match (source, &position) {
                (Source::Live, Some(position)) => {
                    ended.is_some() || !up_to(position, self.seen.as_ref())
                }
                (Source::Live, None) | (Source::Mailbox, _) => true,
                (Source::Rewind | Source::Rebuilt, _) => {
                    ended.as_ref().is_some_and(|id| self.awaited.is_owed(id))
                }
            };
        let published = matches!(source, Source::Live | Source::Rewind);
        if news {
            // The mailbox has only what has a position.
            if published && position.is_some() && self.leave(frame) {
                return Taken {
                    left: !std::mem::replace(&mut self.left, true),
                    ..Taken::default()
                };
            }
            if !self.sockets.is_empty() {
                let Some(classic) = frame.to_classic(user) else {
                    return Taken::default();
                };
                let classic = Utf8Bytes::from(classic);
                let trace = frame.trace();
                for socket in &self.sockets {
                    let before = |position| up_to(position, socket.start.get());
                    if !position.as_ref().is_some_and(before) {
                        let outbound = &socket.outbound;
                        outbound.push_traced(classic.clone(), trace.as_ref());
                    }
                }
            }
            if let Some(key) = key {
                self.remember(key, position);
            }
        }
        if let Some(id) = &ended {
            if !published {
                self.awaited.was_read(id);
            }
            self.awaited.remove(id);
        }
        Taken {
            told: news,
            ended,
            left: false,
        }
    }

    fn remember(&mut self, key: Arc<str>, position: Option<Position>) {
        if let Some(position) = &position
            && !up_to(position, self.seen.as_ref())
        {
            self.seen = Some(position.clone());
        }
        self.told.insert(key.clone());
        self.told_in_order.push_back((key, position));
        self.unverified += 1;
        if self.unverified >= UNVERIFIED {
            self.due = true;
        }
        if self.told_in_order.len() > TOLD
            && let Some((key, position)) = self.told_in_order.pop_front()
        {
            self.told.remove(&key);
            // What is forgotten as told must not be read again.
            if let (Some(position), Some(verified)) = (position, &self.verified)
                && position.epoch == verified.epoch
                && position.offset > verified.offset
            {
                self.verified = Some(position);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::position::Epoch;

    fn at(offset: i64) -> Position {
        Position {
            epoch: Epoch::new("c", "0", 0),
            offset,
        }
    }

    fn tell(state: &mut UserState, id: &str, offset: i64, source: Source) -> bool {
        tell_at(state, id, at(offset), source)
    }

    fn tell_at(state: &mut UserState, id: &str, position: Position, source: Source) -> bool {
        let user = UserId::parse("alice").unwrap();
        let json = format!(r#"{{"type":"response","content":"x","message_id":"{id}"}}"#);
        let frame = Published::parse(json.as_bytes()).unwrap();
        state.take(&user, &frame, Some(position), source).told
    }

    #[test]
    fn what_is_forgotten_as_told_is_never_read_again() {
        let mut state = UserState::default();
        state.started(&at(0));
        for offset in 1..=1000 {
            assert!(tell(&mut state, &offset.to_string(), offset, Source::Live));
        }
        assert!(state.wants_check(), "many frames since the last read");
        assert_eq!(state.told.len(), TOLD);
        let verified = state.verified().unwrap().offset;
        for offset in verified + 1..=1000 {
            let id = offset.to_string();
            assert!(!tell(&mut state, &id, offset, Source::Mailbox), "{offset}");
        }
    }

    #[test]
    fn what_is_published_after_a_loss_waits_for_what_was_lost() {
        let mut state = UserState::default();
        state.add(Arc::new(Socket::new(1 << 20, None)), None);
        state.started(&at(0));
        state.lost_frames();
        assert!(state.begin_reading());
        assert!(state.looking());
        // Published after the look was asked for, before its result is here.
        assert!(!tell(&mut state, "m2", 2, Source::Live));
        assert!(tell(&mut state, "m1", 1, Source::Mailbox));
        state.saw_all();
        assert!(!state.end_look(false), "m2 waits for another look");
        assert!(!tell(&mut state, "m3", 3, Source::Live), "m2 is missing");
        assert!(state.looking());
        for (id, offset) in [("m2", 2), ("m3", 3)] {
            // Whatever became of the mailbox meanwhile.
            assert!(tell(&mut state, id, offset, Source::Rebuilt));
        }
        state.saw_all();
        assert!(state.end_look(false));
        assert!(tell(&mut state, "m4", 4, Source::Live));
        assert!(!state.wants_check());
    }

    #[test]
    fn what_is_published_after_a_frame_that_was_left_is_left_too() {
        let mut state = UserState::default();
        state.add(Arc::new(Socket::new(1 << 20, None)), None);
        state.started(&at(0));
        // Admitted here; m1 elsewhere, and Redis has lost that it is open.
        let default = Some(ConversationId::default_conversation());
        let m2 = MessageId::parse("m2").unwrap();
        state.awaited.admitted(m2, "c-2".into(), default);
        assert!(!tell(&mut state, "m1", 1, Source::Live), "is m2 missing?");
        assert!(!tell(&mut state, "m2", 2, Source::Live), "m1 is not told");
        assert!(state.begin_reading());
        state.looking();
        assert!(tell(&mut state, "m1", 1, Source::Mailbox));
        assert!(tell(&mut state, "m2", 2, Source::Mailbox));
        state.saw_all();
        assert!(state.end_look(false));
        assert!(tell(&mut state, "m3", 3, Source::Live));
    }

    #[test]
    fn what_a_rewind_brings_is_told_of_what_was_asked_for_or_published_here_alone() {
        let mut state = UserState::default();
        state.add(Arc::new(Socket::new(1 << 20, None)), None);
        state.started(&at(0));
        let default = Some(ConversationId::default_conversation());
        let [asked, elsewhere] = ["asked", "elsewhere"].map(|id| MessageId::parse(id).unwrap());
        // Redis has lost that it had ended, and a worker answers it again.
        state.under_way(&elsewhere, default.as_ref());
        assert!(!tell(&mut state, "elsewhere", 1, Source::Rebuilt));
        assert!(!state.wants_check(), "it has ended all the same");
        state.under_way(&elsewhere, default.as_ref());
        state.awaited.admitted(asked, "c".into(), default);
        assert!(!tell(&mut state, "published", 9, Source::Live), "early");
        for (id, offset, told) in [
            ("elsewhere", 1, false),
            ("asked", 8, true),
            ("published", 9, true),
        ] {
            assert_eq!(tell(&mut state, id, offset, Source::Rebuilt), told, "{id}");
        }
        // What was delivered since it connected is told, whoever asked for it.
        state.under_way(&MessageId::parse("later").unwrap(), None);
        assert!(tell(&mut state, "later", 10, Source::Mailbox));
    }

    #[test]
    fn what_a_rewind_publishes_waits_for_what_was_lost() {
        let mut state = UserState::default();
        state.add(Arc::new(Socket::new(1 << 20, None)), None);
        state.started(&at(0));
        let default = Some(ConversationId::default_conversation());
        for id in ["m1", "m2"] {
            let message = MessageId::parse(id).unwrap();
            state.awaited.admitted(message, id.into(), default.clone());
        }
        assert!(!tell(&mut state, "m2", 2, Source::Rewind), "m1 is missing");
        for (id, offset) in [("m1", 1), ("m2", 2)] {
            assert!(tell(&mut state, id, offset, Source::Rebuilt));
        }
        assert!(!tell(&mut state, "old", 3, Source::Rewind), "not awaited");
    }

    #[test]
    fn a_reading_that_failed_is_due_and_not_at_work() {
        let mut state = UserState::default();
        state.add(Arc::new(Socket::new(1 << 20, None)), None);
        state.lost_frames();
        assert!(state.begin_reading());
        assert!(!state.begin_reading(), "one at a time");
        assert!(state.looking());
        assert!(!tell(&mut state, "m1", 1, Source::Live));
        assert!(state.end_look(true));
        assert!(state.wants_check());
        assert!(state.begin_reading());
    }

    #[test]
    fn an_open_message_is_told_whatever_its_position_and_once() {
        let mut state = UserState::default();
        state.started(&at(10));
        let id = MessageId::parse("m").unwrap();
        state.awaited.admitted(id.clone(), "c-1".into(), None);
        assert!(!tell(&mut state, "other", 4, Source::Rebuilt));
        assert!(!tell(&mut state, "other", 4, Source::Live));
        assert!(tell(&mut state, "m", 5, Source::Rebuilt));
        assert!(!tell(&mut state, "m", 5, Source::Live));
        assert!(!tell(&mut state, "m", 50, Source::Live));
        assert!(!state.wants_check());
        // Told already: a look that still says pending opens it no more.
        state.under_way(&id, None);
        assert!(!state.wants_check());
    }
}
