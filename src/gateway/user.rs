//! What a user's sockets here have been told, and what they still wait for.
//!
//! Every socket of the user gets every frame that is published while it is connected, so what was
//! told is kept once per user, not per socket. Three things decide about a terminal frame: whether
//! it was told already (by `message_id`, or by position where an original worker left that out);
//! where it stands to the positions, which only grow within an epoch; and whether its message is
//! open, that is, somebody here waits for it. An open message's answer is told whatever the
//! positions say: after Redis lost its data they may say nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::outbound::Outbound;
use super::v1::Line;
use super::v1::followers::Followers;
use crate::fanout::Pending;
use crate::protocol::frame::Published;
use crate::protocol::ids::{MessageId, UserId};
use crate::protocol::position::Position;

/// Frames remembered as told; above the mailbox's default bound, so that reading a whole mailbox
/// tells nothing twice.
const TOLD: usize = 256;

/// After so many frames since the mailbox was last read it is read again, so that what is
/// remembered reaches back to where a read begins.
const UNVERIFIED: usize = 128;

/// Open messages of a user; the oldest give way.
const OPEN: usize = 256;

/// After that the worker answers `expired`, or has answered long ago (`MESSAGE_MAX_AGE`).
const OPEN_AGE: Duration = Duration::from_secs(12 * 3600);

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
    /// Read from the mailbox after a position that was told: all of it is news.
    Mailbox,
    /// Read from a mailbox that was rebuilt: only what is waited for is news.
    Rebuilt,
}

/// What became of a terminal frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// It was new to this user's sockets.
    pub(super) told: bool,
    /// The message that waited for it.
    pub(super) ended: Option<MessageId>,
}

struct Open {
    since: Instant,
    correlation_id: Arc<str>,
}

/// See the module.
#[derive(Default)]
pub(super) struct UserState {
    /// Classic ones.
    sockets: Vec<Arc<Socket>>,
    /// The others.
    pub(super) followers: Followers,
    open: HashMap<MessageId, Open>,
    /// Whether `open` holds anything, once somebody waits until it does not.
    any_open: Option<watch::Sender<bool>>,
    told: HashSet<Arc<str>>,
    told_in_order: VecDeque<(Arc<str>, Option<Position>)>,
    unverified: usize,
    /// Up to here the mailbox was read.
    verified: Option<Position>,
    /// The highest position told.
    seen: Option<Position>,
    /// The mailbox must be read although nothing is open.
    due: bool,
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

    /// The check begins. Says whether it was asked for.
    pub(super) fn checked(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    pub(super) fn set_due(&mut self) {
        self.due = true;
    }

    /// Whether an answer is waited for.
    pub(super) fn any_open(&mut self) -> watch::Receiver<bool> {
        let now = !self.open.is_empty();
        let any_open = &mut self.any_open;
        any_open
            .get_or_insert_with(|| watch::Sender::new(now))
            .subscribe()
    }

    /// Some of what is waited for, for a log.
    pub(super) fn some_open(&self) -> Vec<&MessageId> {
        self.open.keys().take(4).collect()
    }

    fn note_open(&self) {
        let now = !self.open.is_empty();
        if let Some(any_open) = &self.any_open {
            any_open.send_if_modified(|any| std::mem::replace(any, now) != now);
        }
    }

    /// Whether the mailbox has to be read.
    pub(super) fn wants_check(&mut self) -> bool {
        self.open.retain(|_, open| open.since.elapsed() < OPEN_AGE);
        self.note_open();
        self.due || !self.open.is_empty()
    }

    /// An answer to this message is waited for.
    pub(super) fn opened(&mut self, message_id: MessageId, correlation_id: Arc<str>) {
        if self.open.len() >= OPEN
            && let Some(oldest) = self.open.iter().min_by_key(|(_, open)| open.since)
        {
            let oldest = oldest.0.clone();
            self.open.remove(&oldest);
        }
        let since = Instant::now();
        self.open.insert(
            message_id,
            Open {
                since,
                correlation_id,
            },
        );
        self.note_open();
    }

    /// None will come.
    pub(super) fn refused(&mut self, message_id: &MessageId) {
        self.open.remove(message_id);
        self.note_open();
    }

    /// What another connection or gateway left pending is waited for too.
    pub(super) fn pending(&mut self, pending: &[Pending]) {
        for one in pending {
            let id = &one.message_id;
            self.under_way(id);
        }
    }

    /// A frame said that this message has not ended.
    pub(super) fn under_way(&mut self, id: &MessageId) {
        if !self.open.contains_key(id) && !self.told.contains(id.as_str()) {
            self.opened(id.clone(), "".into());
        }
    }

    fn open_message(&self, frame: &Published<'_>) -> Option<MessageId> {
        if let Some(id) = &frame.message_id
            && self.open.contains_key(id)
        {
            return Some(id.clone());
        }
        // An original worker knows only the correlation id, which is unique per message here.
        let correlation_id = frame
            .correlation_id
            .as_deref()
            .filter(|id| !id.is_empty())?;
        self.open
            .iter()
            .find(|(_, open)| &*open.correlation_id == correlation_id)
            .map(|(id, _)| id.clone())
    }

    /// Tells a terminal frame to the sockets that have not had it.
    pub(super) fn take(
        &mut self,
        user: &UserId,
        frame: &Published<'_>,
        position: Option<Position>,
        source: Source,
    ) -> Taken {
        let ended = self.open_message(frame);
        let key: Option<Arc<str>> = match (&frame.message_id, &position) {
            (Some(id), _) => Some(id.as_str().into()),
            (None, Some(position)) => Some(position.to_string().into()),
            (None, None) => None,
        };
        let known = key.as_ref().is_some_and(|key| self.told.contains(key));
        let news = !known
            && match (source, &position) {
                _ if ended.is_some() => true,
                (Source::Live, Some(position)) => !up_to(position, self.seen.as_ref()),
                (Source::Live, None) | (Source::Mailbox, _) => true,
                (Source::Rebuilt, _) => false,
            };
        if news {
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
            self.open.remove(id);
            self.note_open();
        }
        Taken { told: news, ended }
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
        let user = UserId::parse("alice").unwrap();
        let json = format!(r#"{{"type":"response","content":"x","message_id":"{id}"}}"#);
        let frame = Published::parse(json.as_bytes()).unwrap();
        state.take(&user, &frame, Some(at(offset)), source).told
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
    fn an_open_message_is_told_whatever_its_position_and_once() {
        let mut state = UserState::default();
        state.started(&at(10));
        let id = MessageId::parse("m").unwrap();
        state.opened(id.clone(), "c-1".into());
        assert!(!tell(&mut state, "other", 4, Source::Rebuilt));
        assert!(!tell(&mut state, "other", 4, Source::Live));
        assert!(tell(&mut state, "m", 5, Source::Rebuilt));
        assert!(!tell(&mut state, "m", 5, Source::Live));
        assert!(!tell(&mut state, "m", 50, Source::Live));
        assert!(!state.wants_check());
        // Told already: a look that still says pending opens it no more.
        state.pending(&[Pending {
            message_id: id,
            id: None,
            conversation: crate::protocol::ids::ConversationId::default_conversation(),
            content: String::new(),
        }]);
        assert!(!state.wants_check());
    }

    #[test]
    fn open_messages_are_bounded() {
        let mut state = UserState::default();
        for number in 0..2 * OPEN {
            let id = MessageId::parse(&number.to_string()).unwrap();
            state.opened(id, "c".into());
        }
        assert_eq!(state.open.len(), OPEN);
    }
}
