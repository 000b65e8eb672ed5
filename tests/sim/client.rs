//! A `chatmesh.v1` client, its gateway's side of the socket, and the checks on every frame that the
//! client receives.

use crate::model::{Model, PIECES_PER_PART, Violation};
use crate::reference::{
    Frame, Message, Offset, Outcome, OutcomeKind, Parts, Piece, Position, PublishedFrame, Rule,
    SharedState, Stream,
};
use crate::stream_progress::{DeltaDecision, StreamProgress};

/// A frame that the gateway sends to the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ServerFrame {
    Welcome {
        position: Position,
        recovered: bool,
        /// The history at the moment of the gateway's read, for a client that must reload it.
        history: Vec<(Message, Outcome)>,
    },
    Snapshot(Message, Stream, Parts),
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

/// The parts of an answer as the client shows them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct ShownAnswer {
    /// The current stream; `None` before the first.
    stream: Option<Stream>,
    parts: Parts,
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
    progress: StreamProgress,
    socket: Vec<ServerFrame>,
    // The client's own state.
    position: Option<Position>,
    outcomes: Vec<KnownOutcome>,
    answers: Vec<ShownAnswer>,
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
            progress: StreamProgress::new(messages),
            socket: Vec::new(),
            position: None,
            outcomes: vec![KnownOutcome::Unknown; messages],
            answers: vec![ShownAnswer::default(); messages],
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

    /// Number of published frames that the gateway has not handled.
    pub(crate) fn published_frames(&self) -> usize {
        self.feed.len()
    }

    pub(crate) fn can_receive(&self) -> bool {
        !self.socket.is_empty()
    }

    /// Whether the periodic check would find lost frames that no later frame has revealed.
    pub(crate) fn has_undetected_gap(&self, shared: &SharedState) -> bool {
        match self.subscription {
            Subscription::Live { counter_id, n } => {
                let is_behind = (shared.counter_id, shared.n) != (Some(counter_id), n)
                    || !self.progress.covers(&shared.in_flight_answers());
                self.feed.is_empty() && is_behind
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

    /// The parts of a message's answer as the client shows them before the outcome.
    pub(crate) fn parts(&self, message: Message) -> &Parts {
        &self.answers[usize::from(message)].parts
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
        self.progress.clear();
        self.socket.clear();
    }

    /// Breaks the gateway's subscription. The gateway reads the mailbox after it has subscribed
    /// again.
    pub(crate) fn break_subscription(&mut self) {
        self.feed.clear();
        self.require_read();
    }

    /// The gateway must read the mailbox. It buffers the frames that are published until then.
    pub(crate) fn require_read(&mut self) {
        if self.is_live() {
            self.subscription = Subscription::NeedsRead;
        }
    }

    pub(crate) fn lose_publish(&mut self) {
        self.feed.remove(0);
    }

    pub(crate) fn publish(&mut self, frames: &[PublishedFrame]) {
        if !self.is_disconnected() {
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
        self.progress.set_from_view(&view.in_flight);
        for answer in view.in_flight {
            let snapshot = ServerFrame::Snapshot(answer.message, answer.stream, answer.parts);
            self.socket.push(snapshot);
        }
        self.subscription = Subscription::Live {
            counter_id: view.counter_id,
            n: view.n,
        };
    }

    /// The gateway handles the next published frame.
    pub(crate) fn handle_published_frame(&mut self, shared: &SharedState) {
        let Subscription::Live { counter_id, n } = self.subscription else {
            return;
        };
        let next = self.feed.remove(0);
        if let Some(number) = next.number {
            let is_gap = number.counter_id != counter_id || number.n > n + 1;
            if shared.enforces(Rule::GapTriggersRead) && is_gap {
                self.require_read();
                return;
            }
            if number.counter_id == counter_id && number.n <= n {
                return;
            }
            self.subscription = Subscription::Live {
                counter_id: number.counter_id,
                n: number.n,
            };
        }
        match next.frame {
            Frame::Accepted(_) => {}
            Frame::Restarted(message, _, stream) => self.progress.start(message, stream),
            Frame::Delta(message, stream, piece) => {
                match self.progress.decide(message, stream, piece, shared) {
                    DeltaDecision::Forward => {}
                    DeltaDecision::Skip => return,
                    DeltaDecision::Read => {
                        self.require_read();
                        return;
                    }
                }
            }
            Frame::Terminal(message, offset, _) => {
                self.progress.end(message);
                if shared.enforces(Rule::PositionFilter) && self.has_received(offset) {
                    return;
                }
                self.sent_up_to = Some(Position::At(offset));
            }
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
            ServerFrame::Snapshot(message, stream, parts) => {
                self.answers[usize::from(message)] = ShownAnswer {
                    stream: Some(stream),
                    parts,
                };
                self.check_text(message)
            }
            ServerFrame::ResendReply(message, outcome) => match self.known_outcome(message) {
                Some(known) if known == outcome => Ok(()),
                known => Err(format!(
                    "the resend reply has {outcome:?}, and the client knows {known:?}"
                )),
            },
            ServerFrame::Live(Frame::Accepted(_)) => Ok(()),
            ServerFrame::Live(Frame::Restarted(message, _, stream)) => {
                self.answers[usize::from(message)] = ShownAnswer {
                    stream: Some(stream),
                    parts: Parts::new(),
                };
                Ok(())
            }
            ServerFrame::Live(Frame::Delta(message, stream, piece)) => {
                if model.data_losses > 0 && self.has_ended(message) {
                    // The fan-out lost the outcome, so a worker answers the message again. The
                    // client ignores the answer.
                    return Ok(());
                }
                self.receive_delta(message, stream, piece)?;
                self.check_text(message)
            }
            ServerFrame::Live(Frame::Terminal(message, offset, outcome)) => {
                self.receive_outcome(message, offset, outcome, model)
            }
        }
    }

    fn has_ended(&self, message: Message) -> bool {
        matches!(
            self.outcomes[usize::from(message)],
            KnownOutcome::FromFrame(_)
        )
    }

    /// Appends a delta. The gateway sends a client no delta that does not continue what it has.
    fn receive_delta(
        &mut self,
        message: Message,
        stream: Stream,
        piece: Piece,
    ) -> Result<(), Violation> {
        let index = usize::from(message);
        if self.has_ended(message) {
            return Err(format!(
                "message {message} has ended, and {piece:?} follows"
            ));
        }
        let answer = &mut self.answers[index];
        if answer.stream != Some(stream) && piece.part == 0 && piece.opening.is_some() {
            *answer = ShownAnswer {
                stream: Some(stream),
                parts: Parts::new(),
            };
        }
        let count = answer.parts.len();
        let last_length = answer.parts.last().map_or(0, |part| part.len() as u8);
        let continues = match piece.opening {
            Some(previous_end) => usize::from(piece.part) == count && previous_end == last_length,
            None => usize::from(piece.part) + 1 == count && piece.offset == last_length,
        };
        if answer.stream != Some(stream) || !continues {
            return Err(format!("{piece:?} of stream {stream} follows {answer:?}"));
        }
        if piece.opening.is_some() {
            answer.parts.push(Vec::new());
        }
        let units = (piece.offset..piece.end).map(|_| piece.call);
        answer.parts[usize::from(piece.part)].extend(units);
        Ok(())
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
        self.answers[usize::from(message)] = ShownAnswer::default();
        Ok(())
    }

    /// Checks that the text of two model calls is never mixed, and that no text is repeated.
    fn check_text(&self, message: Message) -> Result<(), Violation> {
        let parts = self.parts(message);
        let mut calls = parts.iter().flatten();
        let first = calls.next();
        if calls.any(|call| Some(call) != first) {
            return Err(format!("text of several calls is mixed: {parts:?}"));
        }
        if parts
            .iter()
            .any(|part| part.len() > usize::from(PIECES_PER_PART))
        {
            return Err(format!("a piece of text is repeated: {parts:?}"));
        }
        Ok(())
    }
}
