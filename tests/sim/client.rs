//! A `chatmesh.v1` client, its gateway's side of the socket, and the checks on every frame that the
//! client receives.

use crate::model::{Model, Violation};
use crate::reference::{
    Frame, Message, Offset, Outcome, OutcomeKind, Position, PublishedFrame, SharedState,
};

/// A frame that the gateway sends to the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ServerFrame {
    Welcome {
        position: Position,
        recovered: bool,
        /// The history at the moment of the gateway's read, for a client that must reload it.
        history: Vec<(Message, Outcome)>,
    },
    Snapshot(Message, u8, Vec<u8>),
    Live(Frame),
    /// The terminal frame of a message that the client sent again.
    ResendReply(Message, Outcome),
}

/// The state of the gateway's subscription for this socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Subscription {
    Disconnected,
    /// Frames may be missing; the mailbox must be read first.
    NeedsRead,
    /// Every frame up to `n` of this counter was handled.
    Live {
        counter_id: u8,
        n: u8,
    },
}

/// The outcome of a message as the client knows it, and where the client has it from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum KnownOutcome {
    Unknown,
    FromHistory(Outcome),
    FromFrame(Outcome),
}

/// The text of an answer as the client shows it: for each piece the model call that it came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Text {
    attempt: u8,
    pieces: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    // The gateway's state of the connection.
    subscription: Subscription,
    is_welcomed: bool,
    /// The position up to which the gateway has sent terminal frames.
    sent_up_to: Option<Position>,
    /// A position up to which the client has received everything although `sent_up_to` is lower:
    /// the mailbox was rebuilt and its positions began again.
    received_before: Option<Position>,
    feed: Vec<PublishedFrame>,
    socket: Vec<ServerFrame>,
    // The client's own state.
    position: Option<Position>,
    outcomes: Vec<KnownOutcome>,
    texts: Vec<Text>,
}

fn is_covered(offset: Offset, position: Option<Position>) -> bool {
    matches!(position, Some(Position::At(covered)) if offset <= covered)
}

impl Client {
    pub(crate) fn new(messages: usize) -> Self {
        Self {
            subscription: Subscription::Disconnected,
            is_welcomed: false,
            sent_up_to: None,
            received_before: None,
            feed: Vec::new(),
            socket: Vec::new(),
            position: None,
            outcomes: vec![KnownOutcome::Unknown; messages],
            texts: vec![Text::default(); messages],
        }
    }

    pub(crate) fn is_disconnected(&self) -> bool {
        self.subscription == Subscription::Disconnected
    }

    pub(crate) fn needs_read(&self) -> bool {
        self.subscription == Subscription::NeedsRead
    }

    fn is_live(&self) -> bool {
        matches!(self.subscription, Subscription::Live { .. })
    }

    pub(crate) fn has_published_frame(&self) -> bool {
        self.is_live() && !self.feed.is_empty()
    }

    pub(crate) fn can_receive(&self) -> bool {
        !self.socket.is_empty()
    }

    /// Whether the periodic check would find lost frames that no later frame has revealed.
    pub(crate) fn has_undetected_gap(&self, shared: &SharedState) -> bool {
        match self.subscription {
            Subscription::Live { counter_id, n } => {
                self.feed.is_empty() && (shared.counter_id, shared.n) != (Some(counter_id), n)
            }
            Subscription::Disconnected | Subscription::NeedsRead => false,
        }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }

    pub(crate) fn known_outcome(&self, message: Message) -> Option<Outcome> {
        match self.outcomes[usize::from(message)] {
            KnownOutcome::Unknown => None,
            KnownOutcome::FromHistory(outcome) | KnownOutcome::FromFrame(outcome) => Some(outcome),
        }
    }

    /// The text of a message as the client shows it before the outcome.
    pub(crate) fn text(&self, message: Message) -> &[u8] {
        &self.texts[usize::from(message)].pieces
    }

    pub(crate) fn connect(&mut self) {
        self.subscription = Subscription::NeedsRead;
        self.is_welcomed = false;
        self.sent_up_to = self.position;
        self.received_before = self.position;
    }

    pub(crate) fn drop_socket(&mut self) {
        self.subscription = Subscription::Disconnected;
        self.feed.clear();
        self.socket.clear();
    }

    /// Breaks the gateway's subscription. The gateway reads the mailbox after it has subscribed
    /// again.
    pub(crate) fn break_subscription(&mut self) {
        self.feed.clear();
        self.require_read();
    }

    pub(crate) fn require_read(&mut self) {
        if self.is_live() {
            self.subscription = Subscription::NeedsRead;
            self.feed.clear();
        }
    }

    pub(crate) fn lose_publish(&mut self) {
        self.feed.remove(0);
    }

    pub(crate) fn publish(&mut self, frames: &[PublishedFrame]) {
        if self.is_live() {
            self.feed.extend_from_slice(frames);
        }
    }

    fn has_received(&self, offset: Offset) -> bool {
        is_covered(offset, self.sent_up_to) || is_covered(offset, self.received_before)
    }

    /// Answers a resent message whose outcome was already delivered. If the client has not received
    /// the terminal frame yet, the next read of the mailbox sends it.
    pub(crate) fn send_resend_reply(&mut self, message: Message, offset: Offset, outcome: Outcome) {
        if self.is_disconnected() {
            return;
        }
        if self.has_received(offset) {
            self.socket.push(ServerFrame::ResendReply(message, outcome));
        } else {
            self.require_read();
        }
    }

    /// The gateway reads the mailbox and sends the frames that the client has not received.
    pub(crate) fn read(&mut self, shared: &mut SharedState) {
        let view = shared.read(self.sent_up_to);
        if view.recovered {
            if !self.is_welcomed {
                self.socket.push(ServerFrame::Welcome {
                    position: self.sent_up_to.unwrap_or(view.end),
                    recovered: true,
                    history: Vec::new(),
                });
            }
            for (offset, message, outcome) in &view.frames {
                if !self.has_received(*offset) {
                    let frame = Frame::Terminal(*message, *offset, *outcome);
                    self.socket.push(ServerFrame::Live(frame));
                }
                self.sent_up_to = Some(Position::At(*offset));
            }
        } else {
            if let Some(Position::At(offset)) = self.sent_up_to
                && !is_covered(offset, self.received_before)
            {
                self.received_before = self.sent_up_to;
            }
            self.sent_up_to = Some(view.end);
            let position = match (self.received_before, view.end) {
                (Some(Position::At(before)), Position::At(end)) if end <= before => {
                    Position::At(before)
                }
                (Some(Position::At(before)), Position::Empty(_)) => Position::At(before),
                _ => view.end,
            };
            let turns = shared.history.iter();
            self.socket.push(ServerFrame::Welcome {
                position,
                recovered: false,
                history: turns.map(|turn| (turn.message, turn.outcome)).collect(),
            });
        }
        self.is_welcomed = true;
        for (message, attempt, text) in view.in_flight {
            self.socket
                .push(ServerFrame::Snapshot(message, attempt, text));
        }
        self.subscription = Subscription::Live {
            counter_id: view.counter_id,
            n: view.n,
        };
    }

    /// The gateway handles the next published frame.
    pub(crate) fn handle_published_frame(&mut self, detects_gaps: bool, filters_by_position: bool) {
        let Subscription::Live { counter_id, n } = self.subscription else {
            return;
        };
        let next = self.feed.remove(0);
        if detects_gaps && (next.counter_id != counter_id || next.n > n + 1) {
            self.require_read();
            return;
        }
        if next.counter_id == counter_id && next.n <= n {
            return;
        }
        self.subscription = Subscription::Live {
            counter_id: next.counter_id,
            n: next.n,
        };
        if let Frame::Terminal(_, offset, _) = next.frame {
            if filters_by_position && self.has_received(offset) {
                return;
            }
            self.sent_up_to = Some(Position::At(offset));
        }
        self.socket.push(ServerFrame::Live(next.frame));
    }

    pub(crate) fn next_frame(&self) -> Option<ServerFrame> {
        self.socket.first().cloned()
    }

    /// The client handles the next frame of its socket. Returns an error if the frame must not have
    /// been sent.
    pub(crate) fn receive(&mut self, frame: ServerFrame, model: &Model) -> Result<(), Violation> {
        self.socket.remove(0);
        match frame {
            ServerFrame::Welcome {
                position,
                recovered,
                history,
            } => {
                self.position = Some(position);
                if !recovered {
                    self.reload_history(history);
                }
                Ok(())
            }
            ServerFrame::Snapshot(message, attempt, pieces) => {
                self.texts[usize::from(message)] = Text { attempt, pieces };
                self.check_single_call(message)
            }
            ServerFrame::ResendReply(message, outcome) => match self.known_outcome(message) {
                Some(known) if known == outcome => Ok(()),
                known => Err(format!(
                    "the resend reply has {outcome:?}, and the client knows {known:?}"
                )),
            },
            ServerFrame::Live(Frame::Accepted(_)) => Ok(()),
            ServerFrame::Live(Frame::Restarted(message, attempt)) => {
                self.texts[usize::from(message)] = Text {
                    attempt,
                    pieces: Vec::new(),
                };
                Ok(())
            }
            ServerFrame::Live(Frame::Delta {
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
                self.check_single_call(message)
            }
            ServerFrame::Live(Frame::Terminal(message, offset, outcome)) => {
                self.receive_outcome(message, offset, outcome, model)
            }
        }
    }

    fn reload_history(&mut self, history: Vec<(Message, Outcome)>) {
        for (message, outcome) in history {
            let known = &mut self.outcomes[usize::from(message)];
            if !matches!(known, KnownOutcome::FromFrame(_)) {
                *known = KnownOutcome::FromHistory(outcome);
            }
        }
    }

    fn receive_outcome(
        &mut self,
        message: Message,
        offset: Offset,
        outcome: Outcome,
        model: &Model,
    ) -> Result<(), Violation> {
        if let KnownOutcome::FromFrame(first) = self.outcomes[usize::from(message)] {
            return Err(format!(
                "message {message} ended twice: {first:?}, {outcome:?}"
            ));
        }
        let mut predecessors = model.predecessors(message);
        if let Some(earlier) = predecessors.find(|earlier| self.known_outcome(*earlier).is_none()) {
            return Err(format!("message {message} ended before message {earlier}"));
        }
        if is_covered(offset, self.position) {
            return Err(format!(
                "received a frame at {offset}, and the position is already {:?}",
                self.position
            ));
        }
        if model.first_outcome(message) != Some(outcome) {
            return Err(format!(
                "message {message} ended as {outcome:?}, which is not its first record"
            ));
        }
        if outcome.kind == OutcomeKind::Answered && outcome.call == 0 {
            return Err(format!(
                "message {message} is answered without a model call"
            ));
        }
        self.position = Some(Position::At(offset));
        self.outcomes[usize::from(message)] = KnownOutcome::FromFrame(outcome);
        Ok(())
    }

    /// Checks that the text of two model calls is never mixed.
    fn check_single_call(&self, message: Message) -> Result<(), Violation> {
        let pieces = self.text(message);
        if pieces.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(format!("text of several calls is mixed: {pieces:?}"));
        }
        Ok(())
    }
}
