//! Random calls, and what the reference says to them.

use super::*;

const PARTITIONS: usize = 6;

fn place_in(partition: usize, at: Offset) -> Offset {
    partition as Offset * PARTITION + at
}

/// Random calls, most of which can happen in the state that the ones before led to.
pub(super) fn random_calls(seed: u64) -> Vec<Op> {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut shared = Shared::new(CONVERSATIONS, FRAMES, None);
    // Where the records of each partition end, and which one is the user's.
    let mut ends = [0; PARTITIONS].map(|_: Offset| rng.random_range(0..4));
    let mut home = 0;
    let moves = rng.random_bool(0.5);
    let mut positions = vec![None];
    let mut calls = Vec::new();
    for number in 0..CALLS as u8 {
        let message = rng.random_range(0..CONVERSATIONS.len() as u8);
        let owner = rng.random_range(1..4);
        let flight = shared.messages[usize::from(message)].flight.clone();
        // Most calls of a worker are those of the one that writes.
        let (owner, attempt, next) = match &flight {
            Some(one) if rng.random_bool(0.8) => (one.owner, one.attempt, one.text.len() as u8),
            _ => (owner, rng.random_range(1..4), rng.random_range(0..3)),
        };
        let how = [How::Answered, How::Failed, How::Cancelled][rng.random_range(0..3)];
        let end = End {
            call: number + 1,
            pieces: 1,
            how,
        };
        let op = match rng.random_range(0..100) {
            0..10 => Op::Admit(message),
            10..14 => Op::Accept(message),
            14..28 => Op::Begin(message, owner, rng.random_range(0..=attempt)),
            28..44 => {
                let piece = rng.random_bool(0.9).then_some((next, number));
                Op::Live(message, owner, attempt, piece)
            }
            44..54 => Op::Keep(message, owner, attempt, end),
            54..70 => {
                if moves && rng.random_bool(0.6) {
                    home = (home + 1) % PARTITIONS;
                }
                let late = moves && rng.random_bool(0.3);
                let of = if late {
                    rng.random_range(0..PARTITIONS)
                } else {
                    home
                };
                let back =
                    rng.random_bool(if late { 0.6 } else { 0.3 }) || ends[of] + 1 == PARTITION;
                let at = if back {
                    rng.random_range(0..=ends[of])
                } else {
                    ends[of] + 1
                };
                ends[of] = ends[of].max(at);
                let known = rng
                    .random_bool(0.6)
                    .then(|| place_in(of, at.saturating_sub(1)));
                Op::Deliver(message, place_in(of, at), known, end, rng.random())
            }
            70..74 => Op::Cancel(message),
            74..86 => {
                let learnt = positions[rng.random_range(0..positions.len())];
                let any = rng.random_range(0..=(ends[home] + 1).min(PARTITION - 1));
                let any = Some(Position::At(place_in(home, any)));
                Op::Read(if rng.random_bool(0.6) { learnt } else { any })
            }
            86..91 => Op::History(rng.random_range(0..2)),
            91..93 => Op::Forget(rng.random_bool(0.7).then(|| rng.random_range(0..2))),
            93..94 => Op::Clear(message),
            94..98 => Op::Pass(rng.random_range(1..=3) * 1000),
            98 => Op::Empty,
            _ => Op::Restart,
        };
        calls.push(op);
        let _ = answer(&mut shared, op);
        if let Op::Read(_) = op {
            positions.push(Some(shared.read(None).end));
        }
    }
    calls
}

/// What the reference says, as text.
pub(super) fn answer(shared: &mut Shared, op: Op) -> String {
    match op {
        Op::Admit(message) => match shared.admit(message) {
            Admitted::New => "new".into(),
            Admitted::Kept => "kept".into(),
            Admitted::Delivered(end, at) => format!("{} at {at}", frame(message, end)),
            Admitted::Forgotten => "forgotten".into(),
        },
        Op::Accept(message) => {
            shared.accept(message);
            String::new()
        }
        Op::Begin(message, owner, had) => match shared.begin(message, owner, had, STOPPED) {
            Begun::Ended(end, at) => format!("{} {at:?}", frame(message, end)),
            Begun::Busy(_) => "busy".into(),
            Begun::Attempt { number, taking } => format!("attempt {number}, taking {taking}"),
        },
        Op::Live(message, owner, attempt, piece) => {
            match shared.live(message, owner, attempt, piece) {
                Lived::Expected(next) => format!("expected {next}"),
                other => format!("{other:?}").to_lowercase(),
            }
        }
        Op::Keep(message, owner, attempt, end) => {
            match shared.keep(message, owner, attempt, end, STOPPED) {
                Keeping::Outcome(end, at) => format!("{} {at:?}", frame(message, end)),
                Keeping::Fenced => "fenced".into(),
            }
        }
        Op::Deliver(message, at, known, end, rewind) => {
            match shared.deliver(message, at, known, end, rewind) {
                Delivered::Published => "published".into(),
                Delivered::Already => "already".into(),
                Delivered::Lost => "lost".into(),
            }
        }
        Op::Cancel(message) => match shared.cancel(message) {
            Cancelled::Cancelling => "cancelling".into(),
            Cancelled::AlreadyDone => "already done".into(),
            Cancelled::Unknown => "unknown".into(),
        },
        // Compared by `looks`.
        Op::Read(_) => String::new(),
        Op::History(conversation) => {
            let turns = shared.history.iter().rev();
            let turns = turns.filter(|turn| shared.conversation(turn.message) == conversation);
            turns.fold(String::new(), |mut text, turn| {
                let (end, question) = (turn.end, turn.question);
                let answer = words(end);
                let _ = write!(
                    text,
                    "m{} {question} {answer} {:?}; ",
                    turn.message, end.how
                );
                text
            })
        }
        Op::Forget(only) => shared.forget(only).to_string(),
        Op::Clear(message) => {
            shared.pending.retain(|one| *one != message);
            String::new()
        }
        Op::Pass(ms) => {
            shared.pass(ms);
            String::new()
        }
        Op::Empty => {
            shared.empty();
            String::new()
        }
        Op::Restart => {
            for kept in &mut shared.messages {
                kept.flight = None;
            }
            shared.n = 0;
            shared.n_id = None;
            String::new()
        }
    }
}

pub(super) fn words(end: End) -> String {
    format!("{}x{}", end.call, end.pieces)
}

pub(super) fn frame(message: Message, end: End) -> String {
    let kind = match end.how {
        How::Answered => "response",
        How::Cancelled | How::Failed => "error",
    };
    format!(
        r#"{{"type":"{kind}","message_id":"m{message}","content":"{} {:?}"}}"#,
        words(end),
        end.how
    )
}

pub(super) fn status(how: How) -> TurnStatus {
    match how {
        How::Answered => TurnStatus::Answered,
        How::Cancelled => TurnStatus::Cancelled,
        How::Failed => TurnStatus::Failed,
    }
}
