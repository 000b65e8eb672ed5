//! A `chatmesh.v1` client and the gateway's side of its socket, and what it must never see.

use crate::reference::{End, Frame, How, Message, Offset, Position, Published, Shared};
use crate::world::{Violation, World};

/// What comes over the socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    Welcome {
        position: Position,
        recovered: bool,
        /// What the history said when the gateway looked; for who has to reload it.
        history: Vec<(Message, End)>,
    },
    Snapshot(Message, u8, Vec<u8>),
    Frame(Frame),
    /// The terminal frame of a message that was sent again.
    Again(Message, End),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Off,
    Stale,
    Following { id: u8, n: u8 },
}

/// How a client knows of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Seen {
    No,
    History(End),
    Frame(End),
}

/// The text of an answer as the client shows it: for each piece the call of the model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Text {
    attempt: u8,
    pieces: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    // The gateway's side.
    phase: Phase,
    welcomed: bool,
    cursor: Option<Position>,
    had: Option<Position>,
    feed: Vec<Published>,
    wire: Vec<Wire>,
    // The client's.
    position: Option<Position>,
    seen: Vec<Seen>,
    texts: Vec<Text>,
}

fn up_to(at: Offset, bound: Option<Position>) -> bool {
    matches!(bound, Some(Position::At(bound)) if at <= bound)
}

impl Client {
    pub(crate) fn new(messages: usize) -> Self {
        Self {
            phase: Phase::Off,
            welcomed: false,
            cursor: None,
            had: None,
            feed: Vec::new(),
            wire: Vec::new(),
            position: None,
            seen: vec![Seen::No; messages],
            texts: vec![Text::default(); messages],
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.phase == Phase::Off
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.phase == Phase::Stale
    }

    fn follows(&self) -> bool {
        matches!(self.phase, Phase::Following { .. })
    }

    pub(crate) fn can_feed(&self) -> bool {
        self.follows() && !self.feed.is_empty()
    }

    pub(crate) fn can_receive(&self) -> bool {
        !self.wire.is_empty()
    }

    /// The check of every few seconds would find something: a lost frame had no successor.
    pub(crate) fn misses(&self, shared: &Shared) -> bool {
        match self.phase {
            Phase::Following { id, n } => {
                self.feed.is_empty() && (shared.n_id, shared.n) != (Some(id), n)
            }
            _ => false,
        }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }

    pub(crate) fn seen(&self, message: Message) -> Option<End> {
        match self.seen[usize::from(message)] {
            Seen::No => None,
            Seen::History(end) | Seen::Frame(end) => Some(end),
        }
    }

    /// The text of a message as it is shown, before its end.
    pub(crate) fn text(&self, message: Message) -> &[u8] {
        &self.texts[usize::from(message)].pieces
    }

    pub(crate) fn connect(&mut self) {
        self.phase = Phase::Stale;
        self.welcomed = false;
        self.cursor = self.position;
        self.had = self.cursor;
    }

    pub(crate) fn drop_socket(&mut self) {
        self.phase = Phase::Off;
        self.feed.clear();
        self.wire.clear();
    }

    /// The gateway's subscription is lost; it reads after it has subscribed again.
    pub(crate) fn disrupt(&mut self) {
        self.feed.clear();
        self.set_stale();
    }

    pub(crate) fn set_stale(&mut self) {
        if self.follows() {
            self.phase = Phase::Stale;
            self.feed.clear();
        }
    }

    pub(crate) fn lose(&mut self) {
        self.feed.remove(0);
    }

    pub(crate) fn published(&mut self, frames: &[Published]) {
        if self.follows() {
            self.feed.extend_from_slice(frames);
        }
    }

    fn has_had(&self, at: Offset) -> bool {
        up_to(at, self.cursor) || up_to(at, self.had)
    }

    /// The socket resent a message whose end was delivered. What it has not had yet comes by a
    /// read.
    pub(crate) fn tell_again(&mut self, message: Message, at: Offset, end: End) {
        if self.is_off() {
            return;
        }
        if self.has_had(at) {
            self.wire.push(Wire::Again(message, end));
        } else {
            self.set_stale();
        }
    }

    pub(crate) fn read(&mut self, shared: &mut Shared) {
        let look = shared.read(self.cursor);
        if look.recovered {
            if !self.welcomed {
                self.wire.push(Wire::Welcome {
                    position: self.cursor.unwrap_or(look.end),
                    recovered: true,
                    history: Vec::new(),
                });
            }
            for (at, message, end) in &look.frames {
                if !self.has_had(*at) {
                    let frame = Frame::Terminal(*message, *at, *end);
                    self.wire.push(Wire::Frame(frame));
                }
                self.cursor = Some(Position::At(*at));
            }
        } else {
            if let Some(Position::At(at)) = self.cursor
                && !up_to(at, self.had)
            {
                self.had = self.cursor;
            }
            self.cursor = Some(look.end);
            let position = match (self.had, look.end) {
                (Some(Position::At(had)), Position::At(end)) if end <= had => Position::At(had),
                (Some(Position::At(had)), Position::Empty(_)) => Position::At(had),
                _ => look.end,
            };
            let turns = shared.history.iter();
            self.wire.push(Wire::Welcome {
                position,
                recovered: false,
                history: turns.map(|turn| (turn.message, turn.end)).collect(),
            });
        }
        self.welcomed = true;
        for (message, attempt, text) in look.in_flight {
            self.wire.push(Wire::Snapshot(message, attempt, text));
        }
        self.phase = Phase::Following {
            id: look.id,
            n: look.n,
        };
    }

    /// The gateway takes the next published frame.
    pub(crate) fn feed(&mut self, sees_gaps: bool, filters: bool) {
        let Phase::Following { id, n } = self.phase else {
            return;
        };
        let Published {
            id: of,
            n: number,
            frame,
        } = self.feed.remove(0);
        if sees_gaps && (of != id || number > n + 1) {
            self.set_stale();
            return;
        }
        if of == id && number <= n {
            return;
        }
        self.phase = Phase::Following { id: of, n: number };
        if let Frame::Terminal(_, at, _) = frame {
            if filters && self.has_had(at) {
                return;
            }
            self.cursor = Some(Position::At(at));
        }
        self.wire.push(Wire::Frame(frame));
    }

    pub(crate) fn wire_front(&self) -> Option<Wire> {
        self.wire.first().cloned()
    }

    /// The client takes what came; says what should not have come.
    pub(crate) fn receive(&mut self, frame: Wire, world: &World) -> Result<(), Violation> {
        self.wire.remove(0);
        match frame {
            Wire::Welcome {
                position,
                recovered,
                history,
            } => {
                self.position = Some(position);
                if !recovered {
                    for (message, end) in history {
                        let seen = &mut self.seen[usize::from(message)];
                        if !matches!(seen, Seen::Frame(_)) {
                            *seen = Seen::History(end);
                        }
                    }
                }
                Ok(())
            }
            Wire::Snapshot(message, attempt, pieces) => {
                self.texts[usize::from(message)] = Text { attempt, pieces };
                self.one_voice(message)
            }
            Wire::Again(message, end) => match self.seen(message) {
                Some(seen) if seen == end => Ok(()),
                seen => Err(format!("told again {end:?}, after {seen:?}")),
            },
            Wire::Frame(Frame::Accepted(_)) => Ok(()),
            Wire::Frame(Frame::Restarted(message, attempt)) => {
                self.texts[usize::from(message)] = Text {
                    attempt,
                    pieces: Vec::new(),
                };
                Ok(())
            }
            Wire::Frame(Frame::Delta {
                message,
                attempt,
                index,
                call,
            }) => {
                let text = &mut self.texts[usize::from(message)];
                if index == 0 {
                    text.attempt = attempt;
                    text.pieces.clear();
                }
                if usize::from(index) != text.pieces.len() || text.attempt != attempt {
                    return Err(format!(
                        "piece {index} of attempt {attempt} after {} of attempt {}",
                        text.pieces.len(),
                        text.attempt
                    ));
                }
                text.pieces.push(call);
                self.one_voice(message)
            }
            Wire::Frame(Frame::Terminal(message, at, end)) => {
                self.take_end(message, at, end, world)
            }
        }
    }

    fn take_end(
        &mut self,
        message: Message,
        at: Offset,
        end: End,
        world: &World,
    ) -> Result<(), Violation> {
        if let Seen::Frame(first) = self.seen[usize::from(message)] {
            return Err(format!("message {message} ended twice: {first:?}, {end:?}"));
        }
        if let Some(before) = world.before(message).find(|one| self.seen(*one).is_none()) {
            return Err(format!("message {message} ended before message {before}"));
        }
        if up_to(at, self.position) {
            return Err(format!(
                "a frame at {at}, and the position is {:?}",
                self.position
            ));
        }
        if world.first_end(message) != Some(end) {
            return Err(format!(
                "message {message} ended as {end:?}, not its first record"
            ));
        }
        if end.how == How::Answered && end.call == 0 {
            return Err(format!("message {message} is answered without words"));
        }
        self.position = Some(Position::At(at));
        self.seen[usize::from(message)] = Seen::Frame(end);
        Ok(())
    }

    /// Text of two calls is never mixed.
    fn one_voice(&self, message: Message) -> Result<(), Violation> {
        let pieces = self.text(message);
        if pieces.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(format!("text of several calls is mixed: {pieces:?}"));
        }
        Ok(())
    }
}
