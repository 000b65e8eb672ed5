//! The searches of the default run. Each goes through everything that its faults can do, in every
//! order; `SIM_FAULTS` (2 by default) and `SIM_PIECES` make them deeper.

use crate::explore::explore;
use crate::reference::Rule;
use crate::world::Fault::{
    self, Cancel, CrashGateway, CrashRelay, CrashWorker, DropSocket, Empty, LosePublish, MoveRelay,
    MoveWorker, Pause, Repeat, Resend, RollBack,
};
use crate::world::{Bounds, Step};

fn setting(name: &str, otherwise: u8) -> u8 {
    let value = std::env::var(name).ok();
    value.map_or(otherwise, |text| text.parse().expect("a small number"))
}

fn one(each: &'static [(Fault, u8)]) -> Bounds {
    Bounds {
        conversations: &[0],
        pieces: setting("SIM_PIECES", 2),
        window: 1,
        faults: setting("SIM_FAULTS", 2),
        each,
        after: &[],
        without: None,
    }
}

/// The client follows, the relay has settled, the message is in the log.
const SENT: &[Step] = &[
    Step::Connect,
    Step::Read,
    Step::Receive,
    Step::Relay(0),
    Step::Relay(0),
    Step::Send(0, 0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Feed,
    Step::Receive,
];

/// And its answer is in the log too.
const ANSWERED: &[Step] = &[
    Step::Connect,
    Step::Read,
    Step::Receive,
    Step::Relay(0),
    Step::Relay(0),
    Step::Send(0, 0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Send(0, 1),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Work(0, 0),
    Step::Work(0, 0),
    Step::Work(0, 0),
    Step::Work(0, 0),
    Step::Work(0, 0),
    Step::Work(0, 1),
    Step::Work(0, 1),
    Step::Work(0, 1),
    Step::Work(0, 1),
    Step::Work(0, 1),
    Step::CommitWorker(0),
];

/// Two messages are in the log.
const BOTH: &[Step] = ANSWERED.split_at(13).0;

/// A worker has begun and crashed, its lease is over; another one has begun after a copy of
/// everything was saved.
const TAKEN_OVER: &[Step] = &[
    Step::Connect,
    Step::Read,
    Step::Receive,
    Step::Relay(0),
    Step::Relay(0),
    Step::Send(0, 0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Work(0, 0),
    Step::Work(0, 0),
    Step::Fault(CrashWorker, 0),
    Step::LeaseEnds(0),
    Step::Snapshot,
    Step::Work(0, 0),
    Step::Work(0, 0),
];

/// Begins when the message is in the log.
fn sent(each: &'static [(Fault, u8)]) -> Bounds {
    Bounds {
        after: SENT,
        ..one(each)
    }
}

/// Two messages whose answers are in the log, and not delivered.
fn answered(each: &'static [(Fault, u8)]) -> Bounds {
    Bounds {
        after: ANSWERED,
        faults: setting("SIM_FAULTS", 2),
        ..two(&[0, 0], each)
    }
}

fn two(conversations: &'static [u8], each: &'static [(Fault, u8)]) -> Bounds {
    Bounds {
        conversations,
        pieces: 1,
        faults: setting("SIM_FAULTS", 2) - 1,
        ..one(each)
    }
}

fn written(trace: &[impl std::fmt::Debug]) -> String {
    let lines: Vec<_> = trace.iter().map(|step| format!("    {step:?}\n")).collect();
    lines.concat()
}

fn holds(name: &str, bounds: &Bounds) {
    let report = explore(bounds);
    eprintln!(
        "{name}: {} states, {} steps, {} ends, up to {} steps deep, {:.1} s",
        report.states,
        report.steps,
        report.rests,
        report.depth,
        report.time.as_secs_f64()
    );
    if let Some((violation, trace)) = &report.violation {
        panic!("{name}: {violation}\n{}", written(trace));
    }
    assert!(report.rests > 0, "nothing ever came to its end");
}

/// Every fault but the rollback, which multiplies the states by all that could be saved.
const EACH: &[(Fault, u8)] = &[
    (CrashWorker, 2),
    (CrashRelay, 2),
    (CrashGateway, 1),
    (MoveWorker, 2),
    (MoveRelay, 2),
    (Pause, 2),
    (Repeat, 2),
    (LosePublish, 2),
    (DropSocket, 2),
    (Empty, 2),
    (Cancel, 1),
    (Resend, 2),
];

macro_rules! search {
    ($($name:ident: $bounds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                holds(stringify!($name), &$bounds);
            }
        )*
    };
}

search! {
    nothing_goes_wrong_where_nothing_goes_wrong: Bounds { faults: 0, ..two(&[0, 0], &[]) };
    any_one_fault: Bounds { faults: 1, ..one(EACH) };
    two_conversations_and_a_crash: Bounds { faults: 1, after: BOTH, ..two(&[0, 1], &[(CrashWorker, 1)]) };
    redis_emptied_under_a_worker: sent(&[(Empty, 1), (CrashWorker, 1), (MoveWorker, 1), (Pause, 1)]);
    redis_emptied_and_a_call_repeated: sent(&[(Empty, 1), (Repeat, 1)]);
    redis_emptied_under_a_relay: answered(&[(Empty, 2), (CrashRelay, 1), (MoveRelay, 1)]);
    redis_emptied_and_a_delivery_repeated: answered(&[(Empty, 1), (Repeat, 1), (DropSocket, 1)]);
    redis_rolled_back: Bounds { faults: 1, ..sent(&[(RollBack, 1)]) };
    redis_rolled_back_under_a_relay: answered(&[(RollBack, 1), (CrashRelay, 1), (LosePublish, 1)]);
    a_paused_worker_and_another: sent(&[(Pause, 2), (MoveWorker, 1), (Repeat, 1)]);
    cancelled_and_worse: sent(&[(Cancel, 1), (CrashWorker, 1), (Empty, 1), (Repeat, 1)]);
    sent_again_and_worse: sent(&[(Resend, 1), (CrashWorker, 1), (Empty, 1)]);
    the_socket_dies_and_worse: sent(&[(DropSocket, 2), (LosePublish, 1), (Empty, 1)]);
}

/// Where a rule is left out, a search finds what it was for.
#[test]
fn every_rule_is_needed() {
    let rules: &[(Rule, Bounds)] = &[
        (Rule::Known, answered(&[(Empty, 1), (Repeat, 1)])),
        (
            Rule::Had,
            Bounds {
                faults: 3,
                after: TAKEN_OVER,
                ..one(&[(CrashWorker, 1), (RollBack, 1), (Repeat, 1)])
            },
        ),
        (Rule::Busy, sent(&[(MoveWorker, 1)])),
        (Rule::Repeat, sent(&[(Repeat, 1)])),
        (Rule::Fenced, sent(&[(MoveWorker, 1), (Pause, 1)])),
        (Rule::Index, sent(&[(Repeat, 1)])),
        (Rule::FirstOutcome, sent(&[(MoveWorker, 1), (Pause, 1)])),
        (Rule::Told, sent(&[(Empty, 1), (CrashWorker, 1)])),
        (Rule::Once, sent(&[(Resend, 1), (MoveWorker, 1)])),
        (Rule::Mark, sent(&[(Cancel, 1)])),
        (Rule::Gap, sent(&[(LosePublish, 1)])),
        (Rule::Filter, sent(&[(Empty, 1)])),
        (Rule::Rewind, answered(&[(RollBack, 1), (CrashRelay, 1)])),
        (Rule::KeptOnly, sent(&[(Cancel, 1)])),
        (
            Rule::Lane,
            Bounds {
                after: BOTH,
                ..two(&[0, 0], &[(MoveWorker, 1)])
            },
        ),
        (
            Rule::Contiguous,
            Bounds {
                after: BOTH,
                ..two(&[0, 1], &[(CrashWorker, 1)])
            },
        ),
        (
            Rule::MarkerToken,
            Bounds {
                faults: 3,
                ..answered(&[(Empty, 1), (Repeat, 1), (MoveRelay, 1)])
            },
        ),
    ];
    let mut missed = Vec::new();
    for (rule, bounds) in rules {
        let bounds = Bounds {
            without: Some(*rule),
            ..bounds.clone()
        };
        let report = explore(&bounds);
        match report.violation {
            Some((violation, trace)) => eprintln!(
                "without {rule:?}, {} states, {} steps: {violation}",
                report.states,
                trace.len()
            ),
            None => missed.push((*rule, report.states)),
        }
    }
    assert!(missed.is_empty(), "left out and not missed: {missed:?}");
}
