//! Runs a trace against a real fan-out and the reference, and compares them after each call.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::sync::OnceLock;

use chatmesh::fanout::{self as real, MessageRef, StreamResponse};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::open_message::CancelResult;
use chatmesh::protocol::parts::{PartKind, TextRange};
use chatmesh::protocol::position::{self, Epoch};

use super::backends::FanoutUnderTest;
use super::calls::{CANCELLED, answer_text, append_response, frame, reference_response, status};
use super::{CONVERSATIONS, Call, MAILBOX_FRAMES};
use crate::reference::{
    Frame, Message, Offset, Outcome, Owner, PARTITION_SIZE, Piece, Position, PublishedFrame,
    SharedState,
};

/// The real ids that stand for the reference's counters and mailboxes.
#[derive(Default)]
struct RealIds {
    counters: HashMap<u8, String>,
    mailboxes: HashMap<u8, position::Position>,
}

/// Checks that a real id always stands for the same reference id, and for no other.
fn check_id<T: PartialEq + Clone + Debug>(
    ids: &mut HashMap<u8, T>,
    reference: u8,
    real: &T,
) -> Result<(), String> {
    let first_real = ids.entry(reference).or_insert_with(|| real.clone());
    if first_real != real {
        return Err(format!("the id is {real:?}, and was {first_real:?} before"));
    }
    let mut others = ids.iter().filter(|(other, _)| **other != reference);
    if others.any(|(_, id)| id == real) {
        return Err(format!(
            "the id {real:?} stands for two ids of the reference"
        ));
    }
    Ok(())
}

/// Translates the reference's calls for a real fan-out.
pub(super) struct Runner<'a> {
    real: &'a mut dyn FanoutUnderTest,
    user: UserId,
    ids: RealIds,
}

fn message_id(message: Message) -> MessageId {
    MessageId::parse(&format!("m{message}")).unwrap()
}

fn conversation_id(number: u8) -> ConversationId {
    ConversationId::parse(if number == 0 { "default" } else { "other" }).unwrap()
}

fn real_owner(owner: Owner) -> real::Owner {
    static OWNERS: OnceLock<[real::Owner; 5]> = OnceLock::new();
    let owners = OWNERS.get_or_init(|| std::array::from_fn(|_| real::Owner::random()));
    owners[usize::from(owner)].clone()
}

/// A unit of text from a model call, which is one UTF-16 code unit and several bytes.
fn unit(call: u8) -> char {
    char::from_u32(0x3000 + u32::from(call)).unwrap()
}

fn real_piece(piece: Piece) -> real::Piece {
    real::Piece {
        range: TextRange {
            part: u32::from(piece.part),
            offset: u32::from(piece.offset),
            end: u32::from(piece.end),
        },
        text: (piece.offset..piece.end)
            .map(|_| unit(piece.call))
            .collect(),
    }
}

/// The response to `open_part` and `renew` as the reference's is written.
fn stream_response(response: StreamResponse) -> String {
    match response {
        StreamResponse::Confirmed(_) => "confirmed".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn real_position(offset: Offset) -> position::Position {
    position::Position {
        epoch: Epoch::new("c", "0", i32::from(offset / PARTITION_SIZE)),
        offset: i64::from(offset % PARTITION_SIZE),
    }
}

fn reference_offset(position: &position::Position) -> Offset {
    let mut offsets = 0..=Offset::MAX;
    offsets
        .find(|offset| real_position(*offset) == *position)
        .unwrap()
}

impl<'a> Runner<'a> {
    pub(super) fn new(real: &'a mut dyn FanoutUnderTest, user: UserId) -> Self {
        Self {
            real,
            user,
            ids: RealIds::default(),
        }
    }

    /// Runs a trace. Returns the first difference.
    pub(super) async fn run(&mut self, calls: &[Call]) -> Result<(), String> {
        let mut shared = SharedState::new(CONVERSATIONS, MAILBOX_FRAMES, None);
        for (number, call) in calls.iter().enumerate() {
            let violation = |difference: String| format!("call {number}, {call:?}: {difference}");
            if matches!(call, Call::Restart) && !self.real.restart().await {
                continue;
            }
            shared.published.clear();
            let real = self
                .real_response(*call)
                .await
                .map_err(|e| violation(e.to_string()))?;
            let reference = reference_response(&mut shared, *call);
            if real != reference {
                return Err(violation(format!(
                    "the response is {real:?}, not {reference:?}"
                )));
            }
            let is_rewind = matches!(call, Call::Deliver(.., true));
            self.compare_published(&shared.published.clone(), is_rewind)
                .map_err(violation)?;
            let after = match call {
                Call::Read(after) => *after,
                _ => None,
            };
            self.compare_view(&mut shared, after)
                .await
                .map_err(violation)?;
        }
        for conversation in 0..2 {
            let call = Call::History(conversation);
            let real = self.real_response(call).await.map_err(|e| e.to_string())?;
            let reference = reference_response(&mut shared, call);
            if real != reference {
                return Err(format!(
                    "after the last call the history is {real:?}, not {reference:?}"
                ));
            }
        }
        Ok(())
    }

    fn message_ref(&self, message: Message) -> MessageRef {
        MessageRef {
            user: self.user.clone(),
            message_id: message_id(message),
            id: None,
            conversation: conversation_id(CONVERSATIONS[usize::from(message)]),
        }
    }

    fn new_outcome(message: Message, outcome: Outcome) -> real::NewOutcome {
        real::NewOutcome {
            frame: frame(message, outcome),
            turn: real::Turn {
                message_id: message_id(message),
                question: Some(format!("question {message}")),
                answer: answer_text(outcome),
                parts: None,
                status: status(outcome.kind),
                at_ms: 0,
            },
        }
    }

    /// Sends a call to the real fan-out and returns its response as text.
    async fn real_response(&mut self, call: Call) -> Result<String, real::FanoutError> {
        let fanout = self.real.fanout();
        let outcome_text = |outcome: real::StoredOutcome| {
            let delivered = outcome
                .delivered_at
                .map(|position| reference_offset(&position));
            format!("{} {delivered:?}", outcome.frame)
        };
        Ok(match call {
            Call::Admit(message) => {
                match fanout
                    .admit(&self.message_ref(message), "?")
                    .await?
                    .decision
                {
                    real::AdmissionDecision::New => "new".into(),
                    real::AdmissionDecision::OutcomeStored => "outcome stored".into(),
                    real::AdmissionDecision::Delivered(frame, position) => {
                        format!("{frame} at {}", reference_offset(&position))
                    }
                    real::AdmissionDecision::Forgotten => "forgotten".into(),
                    real::AdmissionDecision::Refused(limit) => format!("{limit:?}"),
                }
            }
            Call::Accept(message) => {
                let frame = format!(r#"{{"type":"accepted","message_id":"m{message}"}}"#);
                fanout.accept(&self.message_ref(message), frame).await?;
                String::new()
            }
            Call::Begin(message, owner, last_attempt) => {
                let request = real::BeginRequest {
                    message: self.message_ref(message),
                    owner: real_owner(owner),
                    last_attempt: u32::from(last_attempt),
                    cancelled_outcome: Self::new_outcome(message, CANCELLED).into(),
                    history: None,
                };
                match fanout.begin(request).await? {
                    real::BeginResponse::Ended(outcome) => outcome_text(outcome),
                    real::BeginResponse::Busy(_) => "busy".into(),
                    real::BeginResponse::Attempt {
                        number,
                        delivery_count,
                        ..
                    } => {
                        format!("attempt {number}, delivery {delivery_count}")
                    }
                }
            }
            Call::OpenPart(message, owner, attempt, piece) => {
                let request = real::OpenPartRequest {
                    message: self.message_ref(message),
                    owner: real_owner(owner),
                    attempt: u32::from(attempt),
                    kind: PartKind::Text,
                    meta: None,
                    previous_end: piece.opening.filter(|_| piece.part > 0).map(u32::from),
                    piece: real_piece(piece),
                };
                stream_response(fanout.open_part(request).await?)
            }
            Call::Append(message, owner, attempt, piece) => {
                let request = real::AppendRequest {
                    message: self.message_ref(message),
                    owner: real_owner(owner),
                    attempt: u32::from(attempt),
                    piece: real_piece(piece),
                };
                append_response(fanout.append(request).await?)
            }
            Call::Renew(message, owner, attempt, parts, last_length) => {
                let request = real::RenewRequest {
                    message: self.message_ref(message),
                    owner: real_owner(owner),
                    attempt: u32::from(attempt),
                    parts: u32::from(parts),
                    last_length: u32::from(last_length),
                    pieces: u64::MAX,
                };
                stream_response(fanout.renew(request).await?)
            }
            Call::Keep(message, owner, attempt, outcome) => {
                let request = real::KeepRequest {
                    message: self.message_ref(message),
                    owner: real_owner(owner),
                    attempt: u32::from(attempt),
                    outcome: Self::new_outcome(message, outcome).into(),
                    cancelled_outcome: Self::new_outcome(message, CANCELLED).into(),
                };
                match fanout.keep(request).await? {
                    real::KeepResponse::Outcome(outcome)
                    | real::KeepResponse::Appended(outcome, _) => outcome_text(outcome),
                    real::KeepResponse::Fenced => "fenced".into(),
                }
            }
            Call::Deliver(message, offset, known_end, outcome, is_rewind) => {
                let request = real::DeliverRequest {
                    user: self.user.clone(),
                    message_id: message_id(message),
                    conversation: Some(self.message_ref(message).conversation),
                    position: real_position(offset),
                    known_end: known_end.map(real_position),
                    logged_at_ms: None,
                    is_rewind,
                    frame: frame(message, outcome),
                    answer: answer_text(outcome),
                    parts: None,
                    status: status(outcome.kind),
                };
                match fanout.deliver(request).await? {
                    real::DeliverResponse::Published(_) => "published".into(),
                    other => format!("{other:?}").to_lowercase(),
                }
            }
            Call::Cancel(message) => match fanout.cancel(&self.user, &message_id(message)).await? {
                CancelResult::Cancelling => "cancelling".into(),
                CancelResult::AlreadyDone => "already done".into(),
                CancelResult::Unknown => "unknown".into(),
            },
            Call::Read(_) | Call::Restart => String::new(),
            Call::History(number) => self.real_history(&conversation_id(number)).await?,
            Call::Forget(number) => {
                let conversation = number.map(conversation_id);
                let forgotten = fanout.forget(&self.user, conversation.as_ref()).await?;
                forgotten.to_string()
            }
            Call::ClearPending(message) => {
                fanout
                    .clear_pending(&self.user, &message_id(message))
                    .await?;
                String::new()
            }
            Call::AdvanceTime(ms) => {
                self.real.advance_time(ms).await;
                String::new()
            }
            Call::LoseData => {
                self.real.lose_data().await;
                String::new()
            }
        })
    }

    async fn real_history(
        &self,
        conversation: &ConversationId,
    ) -> Result<String, real::FanoutError> {
        let fanout = self.real.fanout();
        let turns = fanout.history(&self.user, conversation, None, 100).await?;
        let turns = turns.unwrap_or_default();
        Ok(turns.iter().fold(String::new(), |mut text, turn| {
            let has_question = turn.question.is_some();
            let (message, answer) = (&turn.message_id, &turn.answer);
            let _ = write!(
                text,
                "{message} {has_question} {answer} {:?}; ",
                turn.status
            );
            text
        }))
    }

    /// Compares what `read` returns.
    async fn compare_view(
        &mut self,
        shared: &mut SharedState,
        after: Option<Position>,
    ) -> Result<(), String> {
        let real_after = match after {
            Some(Position::At(offset)) => Some(real_position(offset)),
            Some(Position::Empty(id)) => self.ids.mailboxes.get(&id).cloned(),
            None => None,
        };
        let request = real::ReadRequest {
            user: self.user.clone(),
            after: real_after.clone(),
            from_start: false,
            max_bytes: 1 << 20,
        };
        let view = self.real.fanout().read(request).await;
        let view = view.map_err(|e| e.to_string())?;
        // An empty mailbox that this fan-out never had has no real position.
        let reference = shared.read(after.filter(|_| real_after.is_some()));
        check_id(
            &mut self.ids.counters,
            reference.counter_id,
            &view.number.counter.to_string(),
        )?;
        match reference.end {
            Position::At(offset) if view.end == real_position(offset) => {}
            Position::Empty(id) => check_id(&mut self.ids.mailboxes, id, &view.end)?,
            Position::At(_) => {
                return Err(format!(
                    "the end is {:?}, not {:?}",
                    view.end, reference.end
                ));
            }
        }
        let frames = reference
            .frames
            .iter()
            .map(|(offset, message, outcome)| (real_position(*offset), frame(*message, *outcome)));
        let in_flight = reference.in_flight.iter().map(|answer| {
            let texts = answer.parts.iter().map(|part| {
                (
                    part.len(),
                    part.iter().copied().map(unit).collect::<String>(),
                )
            });
            let texts: Vec<_> = texts.collect();
            let (message, attempt) = (answer.message, answer.attempt);
            format!("m{message} {attempt} {texts:?}")
        });
        let pending = reference
            .pending
            .iter()
            .map(|message| format!("m{message}"));
        let reference = (
            u64::from(reference.n),
            reference.recovered,
            reference.rebuilt_up_to.map(real_position),
            frames.collect::<Vec<_>>(),
            in_flight.collect::<Vec<_>>(),
            pending.collect::<Vec<_>>(),
        );
        let in_flight = view.in_flight.iter().map(|answer| {
            let texts = answer.parts.iter();
            let texts: Vec<_> = texts
                .map(|part| (part.length as usize, part.text.clone()))
                .collect();
            format!("{} {} {texts:?}", answer.message_id, answer.attempt)
        });
        let pending = view
            .pending
            .iter()
            .map(|message| message.message_id.to_string());
        let real = (
            view.number.n,
            view.recovered,
            view.rebuilt_up_to,
            view.frames,
            in_flight.collect::<Vec<_>>(),
            pending.collect::<Vec<_>>(),
        );
        if reference == real {
            Ok(())
        } else {
            Err(format!("the view is\n    {real:?}, not\n    {reference:?}"))
        }
    }

    /// Compares the frames that the last call published.
    fn compare_published(
        &mut self,
        published: &[PublishedFrame],
        is_rewind: bool,
    ) -> Result<(), String> {
        let Some(real) = self.real.published() else {
            return Ok(());
        };
        let real = real.iter().map(|(channel, frame)| {
            let text_field = |name: &str| frame[name].as_str().unwrap_or_default().to_owned();
            let number_field = |name: &str| frame[name].as_u64();
            let kind = match frame["type"].as_str() {
                Some(kind @ ("accepted" | "restarted" | "delta")) => kind.to_owned(),
                _ => "terminal".to_owned(),
            };
            let range = ["part", "offset", "end", "previous_end"].map(number_field);
            let is_opening = frame["kind"].is_string();
            format!(
                "{channel:?} {kind} {} {:?} {range:?} {is_opening}",
                text_field("message_id"),
                number_field("n"),
            )
        });
        let reference = published.iter().map(|published| {
            let mut range = [None; 4];
            let mut is_opening = false;
            let (channel, kind, message) = match published.frame {
                Frame::Accepted(message) => ("Live", "accepted", message),
                Frame::Restarted(message, ..) => ("Live", "restarted", message),
                Frame::Delta(message, _, piece) => {
                    is_opening = piece.opening.is_some();
                    let previous_end = piece.opening.filter(|_| piece.part > 0);
                    let numbers = [piece.part, piece.offset, piece.end].map(Some);
                    range = [numbers[0], numbers[1], numbers[2], previous_end];
                    ("Live", "delta", message)
                }
                Frame::Terminal(message, ..) => {
                    let channel = if is_rewind { "Live" } else { "Terminal" };
                    (channel, "terminal", message)
                }
            };
            let n = published.number.map(|number| u64::from(number.n));
            let range = range.map(|number| number.map(u64::from));
            format!("{channel} {kind} m{message} {n:?} {range:?} {is_opening}")
        });
        let (reference, real) = (reference.collect::<Vec<_>>(), real.collect::<Vec<_>>());
        if reference == real {
            Ok(())
        } else {
            Err(format!("published was {real:?}, not {reference:?}"))
        }
    }
}
