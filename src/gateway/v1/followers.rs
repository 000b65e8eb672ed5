//! Which of a user's `chatmesh.v1` sockets have had everything up to which published frame.
//!
//! A socket follows: it gets every published frame, and the number of the next one is the last
//! plus one. Where that does not hold, or its queue has no room for a frame, it is stale until a
//! `read` has told what it is to know. While one is read, what is published meanwhile is held
//! back here, for all sockets of the user at once, within a bound; over it they read again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::gateway::user::{Socket, up_to};
use crate::protocol::ids::MessageId;
use crate::protocol::position::Position;
use crate::protocol::trace_context::TraceContext;

/// Bytes that are published to one user during a read and held back.
const HELD_BYTES: usize = 512 << 10;

/// Partitions in which one socket's last position is remembered beside the current one.
const OTHER_EPOCHS: usize = 16;

/// Bytes of terminal frames that one socket's resent messages wait for.
const AWAITED_BYTES: usize = 1 << 20;

/// What a held frame costs beside its text.
const HELD_COST: usize = 128;

/// The number of a published frame and the random id of its counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::gateway) struct Mark {
    pub(in crate::gateway) n_id: Arc<str>,
    pub(in crate::gateway) n: u64,
}

impl Mark {
    pub(in crate::gateway) fn new(n_id: &str, n: u64) -> Self {
        let n_id = n_id.into();
        Self { n_id, n }
    }
}

/// A published frame, ready for sockets.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct Live {
    /// `None` where an original relay published it.
    pub(in crate::gateway) mark: Option<Mark>,
    pub(in crate::gateway) terminal: bool,
    pub(in crate::gateway) message_id: Option<MessageId>,
    /// Of a terminal frame.
    pub(in crate::gateway) position: Option<Position>,
    /// The socket that is not to get it.
    pub(in crate::gateway) origin: Option<Arc<str>>,
    /// `None` where it is not for clients, and only its number counts.
    pub(in crate::gateway) text: Option<Utf8Bytes>,
    /// Of a terminal frame.
    pub(in crate::gateway) trace: Option<TraceContext>,
}

#[derive(Debug)]
enum Phase {
    /// Has to read. Since this event.
    Stale(u64),
    /// Reads. Everything held since this event is to be looked at afterwards.
    Reading(u64),
    /// Has had everything up to here.
    Following(Mark),
}

struct Follower {
    socket: Arc<Socket>,
    phase: Phase,
    /// Up to here it has had every terminal frame: where a read goes on.
    cursor: Option<Position>,
    /// Up to these positions it has had what it is to have, the latest first: before the client
    /// had to reload its history, or before its user moved to another partition. One per epoch.
    had: Vec<Position>,
    /// Resent messages whose terminal frame it had not had by an event: the frames.
    awaited: HashMap<MessageId, (u64, Utf8Bytes)>,
}

/// Where a follower's next read begins.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct Begun {
    pub(in crate::gateway) after: Option<Position>,
    /// The event at which it became stale.
    pub(in crate::gateway) stale: u64,
    /// The event at which it began to read.
    pub(in crate::gateway) from: u64,
}

/// See the module.
#[derive(Default)]
pub(in crate::gateway) struct Followers {
    list: Vec<Follower>,
    /// The last frame that was published to us.
    fed: Option<Mark>,
    /// Counts what happens here.
    event: u64,
    held: VecDeque<(u64, Live)>,
    held_bytes: usize,
    /// Everything published after this event is in `held`.
    held_since: u64,
}

impl Follower {
    fn wake(&self) {
        if let Some(line) = &self.socket.line {
            line.wake.notify_one();
        }
    }

    fn has_had(&self, position: &Position) -> bool {
        up_to(position, self.cursor.as_ref()) || self.has_had_before(position)
    }

    /// It goes on from here.
    fn go_on(&mut self, position: Position) {
        let before = self.cursor.replace(position);
        if let (Some(before), Some(now)) = (before, &self.cursor)
            && before.epoch != now.epoch
        {
            self.remember(before);
        }
    }

    /// It has been here.
    fn remember(&mut self, position: Position) {
        if position.epoch.empty_mailbox().is_some() || self.has_had_before(&position) {
            return;
        }
        self.had.retain(|had| had.epoch != position.epoch);
        self.had.truncate(OTHER_EPOCHS - 1);
        self.had.insert(0, position);
    }

    fn has_had_before(&self, position: &Position) -> bool {
        self.had.iter().any(|had| up_to(position, Some(had)))
    }

    /// Hands it a frame; false where there is no room.
    fn take(&mut self, live: &Live) -> bool {
        let Some(text) = &live.text else {
            return true;
        };
        if live.terminal {
            if live.position.as_ref().is_some_and(|at| self.has_had(at)) {
                return true;
            }
            let outbound = &self.socket.outbound;
            if !outbound.offer_traced(text.clone(), live.trace.as_ref()) {
                return false;
            }
            if let Some(position) = &live.position {
                self.go_on(position.clone());
            }
            if let Some(id) = &live.message_id {
                self.awaited.remove(id);
            }
            return true;
        }
        let own = self.socket.line.as_ref().map(|line| &line.origin);
        if live.origin.is_some() && live.origin.as_ref() == own {
            return true;
        }
        self.socket.outbound.offer(text.clone())
    }

    /// Hands a following socket the next frame; false where it can't follow.
    fn step(&mut self, live: &Live) -> bool {
        let Phase::Following(at) = &mut self.phase else {
            return true;
        };
        if let Some(mark) = &live.mark {
            if at.n_id != mark.n_id || mark.n > at.n + 1 {
                return false;
            }
            if mark.n <= at.n {
                // The read that it began with had it.
                return true;
            }
            at.n = mark.n;
        }
        self.take(live)
    }
}

impl Followers {
    pub(in crate::gateway) fn add(&mut self, socket: Arc<Socket>, since: Option<Position>) {
        self.event += 1;
        // Most users have one: a vector would begin with room for four.
        if self.list.capacity() == 0 {
            self.list.reserve_exact(1);
        }
        self.list.push(Follower {
            socket,
            phase: Phase::Stale(self.event),
            had: Vec::new(),
            cursor: since,
            awaited: HashMap::new(),
        });
    }

    pub(in crate::gateway) fn remove(&mut self, socket: &Arc<Socket>) {
        self.list.retain(|one| !Arc::ptr_eq(&one.socket, socket));
        self.let_go();
        if self.list.is_empty() {
            self.fed = None;
        }
    }

    /// How many there are.
    pub(in crate::gateway) fn count(&self) -> usize {
        self.list.len()
    }

    pub(in crate::gateway) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn get(&mut self, socket: &Arc<Socket>) -> Option<&mut Follower> {
        self.list
            .iter_mut()
            .find(|one| Arc::ptr_eq(&one.socket, socket))
    }

    fn is_reading(&self) -> bool {
        self.list
            .iter()
            .any(|one| matches!(one.phase, Phase::Reading(_)))
    }

    /// Drops what is held when nobody reads.
    fn let_go(&mut self) {
        if !self.is_reading() && !self.held.is_empty() {
            self.drop_held();
        }
    }

    fn drop_held(&mut self) {
        self.held = VecDeque::new();
        self.held_bytes = 0;
        self.held_since = self.event;
    }

    /// A frame was published.
    pub(in crate::gateway) fn publish(&mut self, mut live: Live) {
        if self.list.is_empty() {
            return;
        }
        self.event += 1;
        if let Some(mark) = &mut live.mark {
            if let Some(fed) = &self.fed
                && fed.n_id == mark.n_id
            {
                mark.n_id = fed.n_id.clone();
                if mark.n <= fed.n {
                    // The counter went back: the fan-out has lost what came after it.
                    self.fed = Some(mark.clone());
                    self.all_stale();
                    return;
                }
            }
            self.fed = Some(mark.clone());
        }
        for follower in &mut self.list {
            if !follower.step(&live) {
                follower.phase = Phase::Stale(self.event);
                follower.wake();
            }
        }
        if self.is_reading() {
            let cost = live.text.as_ref().map_or(0, |text| text.as_str().len()) + HELD_COST;
            if self.held_bytes + cost > HELD_BYTES {
                self.drop_held();
            } else {
                self.held_bytes += cost;
                self.held.push_back((self.event, live));
            }
        } else {
            self.held_since = self.event;
        }
    }

    /// Nothing is known to be complete: all have to read.
    pub(in crate::gateway) fn all_stale(&mut self) {
        self.event += 1;
        self.drop_held();
        for follower in &mut self.list {
            if matches!(follower.phase, Phase::Following(_)) {
                follower.phase = Phase::Stale(self.event);
                follower.wake();
            }
        }
    }

    /// One socket has to read.
    pub(in crate::gateway) fn set_stale(&mut self, socket: &Arc<Socket>) {
        self.event += 1;
        let event = self.event;
        if let Some(follower) = self.get(socket)
            && matches!(follower.phase, Phase::Following(_))
        {
            follower.phase = Phase::Stale(event);
            follower.wake();
        }
    }

    pub(in crate::gateway) fn is_stale(&mut self, socket: &Arc<Socket>) -> bool {
        self.get(socket)
            .is_some_and(|one| matches!(one.phase, Phase::Stale(_)))
    }

    /// The highest number that a socket follows, and the last that was published to us.
    pub(in crate::gateway) fn newest(&self) -> (Option<Mark>, Option<Mark>) {
        let following = self.list.iter().filter_map(|one| match &one.phase {
            Phase::Following(at) => Some(at),
            _ => None,
        });
        (following.max_by_key(|at| at.n).cloned(), self.fed.clone())
    }

    /// Whether every socket that follows has had everything up to there.
    pub(in crate::gateway) fn reached(&self, mark: &Mark) -> bool {
        self.list.iter().all(|one| match &one.phase {
            Phase::Following(at) => at.n_id == mark.n_id && at.n >= mark.n,
            _ => true,
        })
    }

    /// Makes those read that have not had everything up to there.
    pub(in crate::gateway) fn behind(&mut self, mark: &Mark) {
        self.event += 1;
        for follower in &mut self.list {
            if let Phase::Following(at) = &follower.phase
                && (at.n_id != mark.n_id || at.n < mark.n)
            {
                follower.phase = Phase::Stale(self.event);
                follower.wake();
            }
        }
    }

    /// A read for this socket begins now: what is published from here on is held.
    pub(in crate::gateway) fn begin(&mut self, socket: &Arc<Socket>) -> Begun {
        self.let_go();
        let from = self.event;
        let Some(follower) = self.get(socket) else {
            return Begun {
                after: None,
                stale: from,
                from,
            };
        };
        let stale = match follower.phase {
            Phase::Stale(event) | Phase::Reading(event) => event,
            Phase::Following(_) => from,
        };
        follower.phase = Phase::Reading(from);
        Begun {
            after: follower.cursor.clone(),
            stale,
            from,
        }
    }

    /// Whether another socket of the user has to read too.
    pub(in crate::gateway) fn others_wait(&self, socket: &Arc<Socket>) -> bool {
        self.list
            .iter()
            .any(|one| matches!(one.phase, Phase::Stale(_)) && !Arc::ptr_eq(&one.socket, socket))
    }

    /// Whether what was published since this event is held.
    pub(in crate::gateway) fn holds_since(&self, from: u64) -> bool {
        self.held_since <= from
    }

    /// The read failed, or its result could not be handed over.
    pub(in crate::gateway) fn give_up(&mut self, socket: &Arc<Socket>) {
        let event = self.event;
        if let Some(follower) = self.get(socket) {
            follower.phase = Phase::Stale(event);
        }
        self.let_go();
    }

    /// The mailbox does not have what came after the socket's position: the client reloads. It
    /// goes on from `end`. Returns what the client is told as its position: it should not name
    /// less than it has had.
    pub(in crate::gateway) fn not_recovered(
        &mut self,
        socket: &Arc<Socket>,
        end: &Position,
    ) -> Position {
        let Some(follower) = self.get(socket) else {
            return end.clone();
        };
        if let Some(cursor) = follower.cursor.replace(end.clone()) {
            follower.remember(cursor);
        }
        let lost = end.epoch.empty_mailbox().is_some();
        let mut had = follower.had.iter();
        had.find(|had| lost || up_to(end, Some(had)))
            .unwrap_or(end)
            .clone()
    }

    /// Whether the socket is still to get the terminal frame of this position.
    pub(in crate::gateway) fn wants(&mut self, socket: &Arc<Socket>, position: &Position) -> bool {
        self.get(socket).is_some_and(|one| !one.has_had(position))
    }

    /// Whether the socket's position has reached this one.
    pub(in crate::gateway) fn has_reached(
        &mut self,
        socket: &Arc<Socket>,
        position: &Position,
    ) -> bool {
        self.get(socket).is_some_and(|one| one.has_had(position))
    }

    /// The socket was told, or passed over, the terminal frame of this position.
    pub(in crate::gateway) fn advance(
        &mut self,
        socket: &Arc<Socket>,
        position: Position,
        message_id: Option<&MessageId>,
    ) {
        if let Some(follower) = self.get(socket) {
            follower.go_on(position);
            if let Some(id) = message_id {
                follower.awaited.remove(id);
            }
        }
    }

    /// The terminal frame of a resent message is to come by a read, or after it. False where too
    /// many wait already.
    pub(in crate::gateway) fn await_terminal(
        &mut self,
        socket: &Arc<Socket>,
        id: MessageId,
        text: Utf8Bytes,
    ) -> bool {
        self.set_stale(socket);
        let event = self.event;
        let Some(follower) = self.get(socket) else {
            return true;
        };
        let waiting = follower.awaited.values();
        let bytes: usize = waiting.map(|(_, text)| text.as_str().len()).sum();
        if bytes > AWAITED_BYTES {
            return false;
        }
        follower.awaited.insert(id, (event, text));
        true
    }

    /// Everything up to `mark` was handed over: hands over what was held since the read began,
    /// and follows from there. Where it can't, it has to read again. Returns the awaited frames
    /// that the read would have brought, but the mailbox does not have any more.
    pub(in crate::gateway) fn follow(
        &mut self,
        socket: &Arc<Socket>,
        mark: Mark,
    ) -> Vec<Utf8Bytes> {
        self.event += 1;
        let (event, held_since) = (self.event, self.held_since);
        let this = |one: &Follower| Arc::ptr_eq(&one.socket, socket);
        let Some(index) = self.list.iter().position(this) else {
            return Vec::new();
        };
        let follower = &mut self.list[index];
        let Phase::Reading(from) = follower.phase else {
            return Vec::new();
        };
        let mut follows = held_since <= from;
        follower.phase = Phase::Following(mark);
        if follows {
            let mut held = self.held.iter().filter(|(event, _)| *event > from);
            follows = held.all(|(_, live)| follower.step(live));
        }
        let mut ripe = Vec::new();
        follower.awaited.retain(|_, (since, text)| {
            let wait = *since > from;
            if !wait {
                ripe.push(text.clone());
            }
            wait
        });
        if !follows || !follower.awaited.is_empty() {
            follower.phase = Phase::Stale(event);
            follower.wake();
        }
        self.let_go();
        ripe
    }

    /// A read that another socket of this user began at `from` serves this one too.
    pub(in crate::gateway) fn share(&mut self, socket: &Arc<Socket>, from: u64) {
        if let Some(follower) = self.get(socket) {
            follower.phase = Phase::Reading(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::v1::Line;
    use crate::protocol::position::Epoch;

    const QUEUE: usize = 4096;

    fn socket() -> Arc<Socket> {
        Arc::new(Socket::new(QUEUE, Some(Line::new())))
    }

    fn at(offset: i64) -> Position {
        let epoch = Epoch::new("c", "0", 0);
        Position { epoch, offset }
    }

    fn delta(n: u64) -> Live {
        Live {
            mark: Some(Mark::new("a", n)),
            terminal: false,
            message_id: MessageId::parse("m").ok(),
            position: None,
            origin: None,
            text: Some(format!("d{n}").into()),
            trace: None,
        }
    }

    fn end(n: u64, offset: i64) -> Live {
        Live {
            terminal: true,
            message_id: MessageId::parse(&offset.to_string()).ok(),
            position: Some(at(offset)),
            text: Some(format!("t{offset}").into()),
            ..delta(n)
        }
    }

    /// A socket that has read up to `n` and position 0.
    fn following(followers: &mut Followers, n: u64) -> Arc<Socket> {
        let socket = socket();
        followers.add(socket.clone(), Some(at(0)));
        assert!(followers.is_stale(&socket));
        followers.begin(&socket);
        followers.follow(&socket, Mark::new("a", n));
        socket
    }

    #[test]
    fn what_a_read_already_had_is_dropped_and_the_rest_follows_in_order() {
        let mut followers = Followers::default();
        let socket = socket();
        followers.add(socket.clone(), None);
        followers.begin(&socket);
        for n in 1..=4 {
            followers.publish(delta(n));
        }
        assert!(
            socket.outbound.queued().is_empty(),
            "held until the read is told"
        );
        followers.follow(&socket, Mark::new("a", 2));
        followers.publish(delta(5));
        assert_eq!(socket.outbound.queued(), ["d3", "d4", "d5"]);
    }

    #[test]
    fn anything_but_the_next_number_has_to_be_read() {
        let other = |n| Live {
            mark: Some(Mark::new("b", n)),
            ..delta(n)
        };
        for wrong in [delta(7), delta(5), delta(2), other(6)] {
            let mut followers = Followers::default();
            let socket = following(&mut followers, 4);
            followers.publish(delta(5));
            assert!(!followers.is_stale(&socket));
            followers.publish(wrong);
            assert!(followers.is_stale(&socket));
            assert_eq!(socket.outbound.queued(), ["d5"], "nothing of it was told");
        }
    }

    #[test]
    fn a_terminal_frame_at_or_below_the_position_is_never_told() {
        let mut followers = Followers::default();
        let socket = following(&mut followers, 0);
        followers.publish(end(1, 5));
        followers.publish(end(2, 5));
        followers.publish(end(3, 4));
        followers.publish(end(4, 6));
        assert_eq!(socket.outbound.queued(), ["t5", "t6"]);
        assert_eq!(followers.begin(&socket).after, Some(at(6)));
    }

    #[test]
    fn a_mailbox_that_was_emptied_brings_nothing_back_that_was_had() {
        let mut followers = Followers::default();
        let socket = following(&mut followers, 0);
        followers.publish(end(1, 5));
        followers.all_stale();
        followers.begin(&socket);
        let empty = Position {
            epoch: Epoch::of_empty_mailbox("x"),
            offset: 0,
        };
        assert_eq!(followers.not_recovered(&socket, &empty), at(5));
        followers.follow(&socket, Mark::new("b", 0));
        let rebuilt = |n, offset| Live {
            mark: Some(Mark::new("b", n)),
            ..end(n, offset)
        };
        followers.publish(rebuilt(1, 4));
        followers.publish(rebuilt(2, 5));
        followers.publish(rebuilt(3, 6));
        assert_eq!(socket.outbound.queued(), ["t5", "t6"]);
    }

    #[test]
    fn what_was_had_before_the_user_moved_to_another_partition_is_not_told_again() {
        let mut followers = Followers::default();
        let socket = following(&mut followers, 0);
        let moved = |offset| Position {
            epoch: Epoch::new("c", "0", 1),
            offset,
        };
        let elsewhere = |n, offset| Live {
            position: Some(moved(offset)),
            text: Some(format!("m{offset}").into()),
            ..end(n, offset)
        };
        followers.publish(end(1, 5));
        followers.publish(elsewhere(2, 0));
        // What was written late to the old one, and what a relay brings back of both.
        followers.publish(end(3, 6));
        followers.publish(end(4, 5));
        followers.publish(elsewhere(5, 0));
        followers.publish(elsewhere(6, 1));
        followers.publish(end(7, 6));
        assert_eq!(socket.outbound.queued(), ["t5", "m0", "t6", "m1"]);
        // Redis was emptied, and the old partition is brought back first.
        followers.all_stale();
        assert_eq!(followers.begin(&socket).after, Some(moved(1)));
        assert_eq!(followers.not_recovered(&socket, &at(2)), at(6));
        followers.follow(&socket, Mark::new("b", 0));
        let rebuilt = |n, live| Live {
            mark: Some(Mark::new("b", n)),
            ..live
        };
        followers.publish(rebuilt(1, end(1, 3)));
        followers.publish(rebuilt(2, elsewhere(2, 1)));
        followers.publish(rebuilt(3, elsewhere(3, 2)));
        assert_eq!(socket.outbound.queued(), ["t5", "m0", "t6", "m1", "m2"]);
    }

    #[test]
    fn a_full_queue_costs_deltas_and_moves_no_position() {
        let mut followers = Followers::default();
        let socket = following(&mut followers, 0);
        let mut n = 0;
        while !followers.is_stale(&socket) {
            n += 1;
            followers.publish(delta(n));
        }
        assert_eq!(socket.outbound.queued().len() as u64, n - 1);
        followers.publish(end(n + 1, 5));
        assert_eq!(socket.outbound.ended_by(), None);
        assert_eq!(followers.begin(&socket).after, Some(at(0)), "read again");
    }

    #[test]
    fn what_is_held_is_bounded_and_over_it_is_read_again() {
        let mut followers = Followers::default();
        let socket = socket();
        followers.add(socket.clone(), None);
        followers.begin(&socket);
        let big = |n| Live {
            text: Some("x".repeat(HELD_BYTES / 2).into()),
            ..delta(n)
        };
        for n in 1..=3 {
            followers.publish(big(n));
            assert!(followers.held_bytes <= HELD_BYTES);
        }
        followers.follow(&socket, Mark::new("a", 0));
        assert!(followers.is_stale(&socket));
        assert!(socket.outbound.queued().is_empty());
    }

    #[test]
    fn one_read_serves_the_sockets_that_had_lost_something_before_it() {
        let mut followers = Followers::default();
        let (one, other) = (following(&mut followers, 4), following(&mut followers, 4));
        followers.publish(delta(6));
        let read = followers.begin(&one);
        followers.publish(delta(7));
        let begun = followers.begin(&other);
        assert!(read.from >= begun.stale && followers.holds_since(read.from));
        followers.share(&other, read.from);
        for socket in [&one, &other] {
            followers.follow(socket, Mark::new("a", 6));
            assert_eq!(socket.outbound.queued(), ["d7"]);
        }
    }

    #[test]
    fn a_resent_messages_frame_comes_by_the_read_or_after_it_and_once() {
        let mut followers = Followers::default();
        let socket = following(&mut followers, 0);
        let id = |text: &str| MessageId::parse(text).unwrap();
        assert!(followers.await_terminal(&socket, id("5"), "t5".into()));
        assert!(followers.await_terminal(&socket, id("9"), "t9".into()));
        assert!(followers.is_stale(&socket));
        followers.begin(&socket);
        followers.advance(&socket, at(5), Some(&id("5")));
        assert_eq!(followers.follow(&socket, Mark::new("a", 1)), ["t9"]);
        assert!(!followers.is_stale(&socket));
    }
}
