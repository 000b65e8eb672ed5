//! Random traces, and the reference's response to each call as text.

use std::fmt::Write as _;

use chatmesh::fanout::TurnStatus;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{CALLS_PER_TRACE, CONVERSATIONS, Call, MAILBOX_FRAMES};
use crate::reference::{
    AdmissionDecision, BeginResponse, CancelResult, DeliverResponse, KeepResponse, Message, Offset,
    Outcome, OutcomeKind, Owner, PARTITION_SIZE, Piece, Position, SharedState, StreamResponse,
};

const PARTITIONS: usize = 6;

/// The outcome that a worker stores for a cancelled message.
pub(super) const CANCELLED: Outcome = Outcome {
    call: 0,
    pieces: 0,
    kind: OutcomeKind::Cancelled,
};

fn offset_in(partition: usize, offset: Offset) -> Offset {
    partition as Offset * PARTITION_SIZE + offset
}

/// Generates a trace. Most calls are possible in the state that the earlier calls led to.
pub(super) fn random_calls(seed: u64) -> Vec<Call> {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut shared = SharedState::new(CONVERSATIONS, MAILBOX_FRAMES, None);
    // The last offset of each partition, and the partition of the user's records.
    let mut last_offsets = [0; PARTITIONS].map(|_: Offset| rng.random_range(0..4));
    let mut user_partition = 0;
    let user_moves = rng.random_bool(0.5);
    let mut positions = vec![None];
    let mut calls = Vec::new();
    for number in 0..CALLS_PER_TRACE as u8 {
        let message = rng.random_range(0..CONVERSATIONS.len() as u8);
        let owner = rng.random_range(1..4);
        let in_flight = shared.messages[usize::from(message)].in_flight.clone();
        // Most calls of workers come from the owner of the lease.
        let (owner, attempt) = match &in_flight {
            Some(current) if rng.random_bool(0.8) => (current.owner, current.attempt),
            _ => (owner, rng.random_range(1..4)),
        };
        let kinds = [
            OutcomeKind::Answered,
            OutcomeKind::Failed,
            OutcomeKind::Cancelled,
        ];
        let outcome = Outcome {
            call: number + 1,
            pieces: 1,
            kind: kinds[rng.random_range(0..3)],
        };
        let call = match rng.random_range(0..100) {
            0..10 => Call::Admit(message),
            10..14 => Call::Accept(message),
            14..28 => Call::Begin(message, owner, rng.random_range(0..=attempt)),
            28..44 => stream_call(rng, &shared, number, message, owner, attempt),
            44..54 => Call::Keep(message, owner, attempt, outcome),
            54..70 => {
                if user_moves && rng.random_bool(0.6) {
                    user_partition = (user_partition + 1) % PARTITIONS;
                }
                let is_late = user_moves && rng.random_bool(0.3);
                let partition = if is_late {
                    rng.random_range(0..PARTITIONS)
                } else {
                    user_partition
                };
                let last = &mut last_offsets[partition];
                let is_old =
                    rng.random_bool(if is_late { 0.6 } else { 0.3 }) || *last + 1 == PARTITION_SIZE;
                let offset = if is_old {
                    rng.random_range(0..=*last)
                } else {
                    *last + 1
                };
                *last = (*last).max(offset);
                let known_end = rng
                    .random_bool(0.6)
                    .then(|| offset_in(partition, offset.saturating_sub(1)));
                let offset = offset_in(partition, offset);
                Call::Deliver(message, offset, known_end, outcome, rng.random())
            }
            70..74 => Call::Cancel(message),
            74..86 => {
                let earlier_position = positions[rng.random_range(0..positions.len())];
                let last = (last_offsets[user_partition] + 1).min(PARTITION_SIZE - 1);
                let any_position =
                    Position::At(offset_in(user_partition, rng.random_range(0..=last)));
                Call::Read(if rng.random_bool(0.6) {
                    earlier_position
                } else {
                    Some(any_position)
                })
            }
            86..91 => Call::History(rng.random_range(0..2)),
            91..93 => Call::Forget(rng.random_bool(0.7).then(|| rng.random_range(0..2))),
            93..94 => Call::ClearPending(message),
            94..98 => Call::AdvanceTime(rng.random_range(1..=3) * 1000),
            98 => Call::LoseData,
            _ => Call::Restart,
        };
        calls.push(call);
        let _ = reference_response(&mut shared, call);
        if let Call::Read(_) = call {
            positions.push(Some(shared.read(None).end));
        }
    }
    calls
}

/// Generates a call of a worker that streams an answer. Most calls continue the owner's stream; some
/// repeat an earlier call, and some come too early.
fn stream_call(
    rng: &mut StdRng,
    shared: &SharedState,
    number: u8,
    message: Message,
    owner: Owner,
    attempt: u8,
) -> Call {
    let parts = shared.parts(message, shared.stream_of(owner, attempt));
    let count = parts.len() as u8;
    let last_length = parts.last().map_or(0, |part| part.len() as u8);
    let is_regular = rng.random_bool(0.8);
    match rng.random_range(0..4) {
        0 => {
            let known_length = if is_regular { last_length } else { 3 };
            Call::Renew(message, owner, attempt, count, known_length)
        }
        1 => {
            let part = if is_regular {
                count
            } else {
                rng.random_range(0..3)
            };
            let previous = usize::from(part).checked_sub(1);
            let previous_end = previous.and_then(|previous| parts.get(previous));
            Call::OpenPart(
                message,
                owner,
                attempt,
                Piece {
                    part,
                    offset: 0,
                    end: rng.random_range(0..3),
                    call: number,
                    opening: Some(previous_end.map_or(0, |part| part.len() as u8)),
                },
            )
        }
        _ => {
            // A piece that repeats an earlier one ends within the text.
            let offset = if is_regular {
                last_length
            } else {
                last_length.saturating_sub(1)
            };
            Call::Append(
                message,
                owner,
                attempt,
                Piece {
                    part: count.saturating_sub(1),
                    offset,
                    end: offset + 1,
                    call: number,
                    opening: None,
                },
            )
        }
    }
}

/// Applies a call to the reference and returns its response as text. Reads are compared by the
/// runner.
pub(super) fn reference_response(shared: &mut SharedState, call: Call) -> String {
    match call {
        Call::Admit(message) => match shared.admit(message) {
            AdmissionDecision::New => "new".into(),
            AdmissionDecision::OutcomeStored => "outcome stored".into(),
            AdmissionDecision::Delivered(outcome, offset) => {
                format!("{} at {offset}", frame(message, outcome))
            }
            AdmissionDecision::Forgotten => "forgotten".into(),
        },
        Call::Accept(message) => {
            shared.accept(message);
            String::new()
        }
        Call::Begin(message, owner, last_attempt) => {
            match shared.begin(message, owner, last_attempt, CANCELLED) {
                BeginResponse::Ended(outcome, offset) => {
                    format!("{} {offset:?}", frame(message, outcome))
                }
                BeginResponse::Busy(_) => "busy".into(),
                BeginResponse::Attempt {
                    number,
                    delivery_count,
                } => format!("attempt {number}, delivery {delivery_count}"),
            }
        }
        Call::OpenPart(message, owner, attempt, piece) => {
            stream_response(shared.open_part(message, owner, attempt, piece))
        }
        Call::Append(message, owner, attempt, piece) => {
            let stream = shared.stream_of(owner, attempt);
            let parts_before = shared.parts(message, stream);
            let stored = shared.push_piece(message, stream, piece);
            // The embedded fan-out, whose published frames are compared, publishes no repeat.
            if shared.parts(message, stream) != parts_before {
                shared.publish_piece(message, stream, piece);
            }
            append_response(u64::from(stored))
        }
        Call::Renew(message, owner, attempt, parts, last_length) => {
            stream_response(shared.renew(message, owner, attempt, parts, last_length))
        }
        Call::Keep(message, owner, attempt, outcome) => {
            match shared.keep(message, owner, attempt, outcome, CANCELLED) {
                KeepResponse::Outcome(outcome, offset) => {
                    format!("{} {offset:?}", frame(message, outcome))
                }
                KeepResponse::Fenced => "fenced".into(),
            }
        }
        Call::Deliver(message, offset, known_end, outcome, is_rewind) => {
            match shared.deliver(message, offset, known_end, outcome, is_rewind) {
                DeliverResponse::Published => "published".into(),
                DeliverResponse::AlreadyDelivered => "alreadydelivered".into(),
                DeliverResponse::DataLost => "datalost".into(),
            }
        }
        Call::Cancel(message) => match shared.cancel(message) {
            CancelResult::Cancelling => "cancelling".into(),
            CancelResult::AlreadyDone => "already done".into(),
            CancelResult::Unknown => "unknown".into(),
        },
        Call::Read(_) => String::new(),
        Call::History(conversation) => {
            let turns = shared.history.iter().rev();
            let turns = turns.filter(|turn| shared.conversation(turn.message) == conversation);
            turns.fold(String::new(), |mut text, turn| {
                let (outcome, has_question) = (turn.outcome, turn.has_question);
                let answer = answer_text(outcome);
                let _ = write!(
                    text,
                    "m{} {has_question} {answer} {:?}; ",
                    turn.message, outcome.kind
                );
                text
            })
        }
        Call::Forget(conversation) => shared.forget(conversation).to_string(),
        Call::ClearPending(message) => {
            shared.clear_pending(message);
            String::new()
        }
        Call::AdvanceTime(ms) => {
            shared.advance_time(ms);
            String::new()
        }
        Call::LoseData => {
            shared.lose_data();
            String::new()
        }
        Call::Restart => {
            shared.restart();
            String::new()
        }
    }
}

/// The response to `open_part` and `renew`. The number of pieces is left out: only Redis counts
/// repeated pieces.
fn stream_response(response: StreamResponse) -> String {
    match response {
        StreamResponse::Confirmed(_) => "confirmed".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The response to `append`.
pub(super) fn append_response(pieces: u64) -> String {
    let has_stream = pieces > 0;
    format!("has stream: {has_stream}")
}

/// The text of an answer.
pub(super) fn answer_text(outcome: Outcome) -> String {
    format!("{}x{}", outcome.call, outcome.pieces)
}

/// The terminal frame of an outcome.
pub(super) fn frame(message: Message, outcome: Outcome) -> String {
    let kind = match outcome.kind {
        OutcomeKind::Answered => "response",
        OutcomeKind::Cancelled | OutcomeKind::Failed => "error",
    };
    format!(
        r#"{{"type":"{kind}","message_id":"m{message}","content":"{} {:?}"}}"#,
        answer_text(outcome),
        outcome.kind
    )
}

pub(super) fn status(kind: OutcomeKind) -> TurnStatus {
    match kind {
        OutcomeKind::Answered => TurnStatus::Answered,
        OutcomeKind::Cancelled => TurnStatus::Cancelled,
        OutcomeKind::Failed => TurnStatus::Failed,
    }
}
