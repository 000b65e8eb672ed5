//! The searches of the default run. Each goes through everything that its faults can do, in every
//! order; `SIM_FAULTS` (2 by default) and `SIM_PIECES` make them deeper.

use crate::explore::explore;
use crate::reference::Rule;
use crate::world::{Bounds, Fault};

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
        without: None,
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
    trace.iter().map(|step| format!("    {step:?}\n")).collect()
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
    (Fault::CrashWorker, 2),
    (Fault::CrashRelay, 2),
    (Fault::CrashGateway, 1),
    (Fault::MoveWorker, 2),
    (Fault::MoveRelay, 2),
    (Fault::Pause, 2),
    (Fault::Repeat, 2),
    (Fault::LosePublish, 2),
    (Fault::DropSocket, 2),
    (Fault::Empty, 2),
    (Fault::Cancel, 1),
    (Fault::Resend, 2),
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
    any_one_fault_of_two_messages: Bounds { faults: 1, ..two(&[0, 0], EACH) };
    two_conversations: Bounds { faults: 1, ..two(&[0, 1], &[(Fault::CrashWorker, 1), (Fault::MoveWorker, 1), (Fault::CrashRelay, 1)]) };
    redis_emptied_under_a_worker: one(&[(Fault::Empty, 1), (Fault::CrashWorker, 1), (Fault::MoveWorker, 1), (Fault::Pause, 1)]);
    redis_emptied_and_a_call_repeated: one(&[(Fault::Empty, 1), (Fault::Repeat, 1)]);
    redis_emptied_under_a_relay: one(&[(Fault::Empty, 2), (Fault::CrashRelay, 1), (Fault::MoveRelay, 1)]);
    redis_rolled_back: Bounds { faults: 1, ..one(&[(Fault::RollBack, 1)]) };
    a_paused_worker_and_another: one(&[(Fault::Pause, 2), (Fault::MoveWorker, 1), (Fault::Repeat, 1)]);
    cancelled_and_worse: one(&[(Fault::Cancel, 1), (Fault::CrashWorker, 1), (Fault::Empty, 1), (Fault::Repeat, 1)]);
    sent_again_and_worse: one(&[(Fault::Resend, 2), (Fault::CrashGateway, 1), (Fault::Empty, 1)]);
    the_socket_dies_and_worse: one(&[(Fault::DropSocket, 2), (Fault::LosePublish, 1), (Fault::Empty, 1)]);
}

/// Where a rule is left out, a search finds what it was for.
#[test]
fn every_rule_is_needed() {
    use Fault::{Cancel, DropSocket, Empty, LosePublish, MoveRelay, MoveWorker, Pause, Repeat, Resend, CrashWorker, RollBack, CrashRelay};
    let rules: &[(Rule, Bounds)] = &[
        (Rule::Known, Bounds { faults: 2, ..two(&[0, 0], &[(Empty, 1), (Repeat, 1)]) }),
        (Rule::Had, one(&[(Empty, 1), (Repeat, 1), (RollBack, 1)])),
        (Rule::Busy, one(&[(MoveWorker, 1)])),
        (Rule::Repeat, one(&[(Repeat, 1)])),
        (Rule::Fenced, one(&[(MoveWorker, 1), (Pause, 1)])),
        (Rule::Index, one(&[(Repeat, 1)])),
        (Rule::FirstOutcome, one(&[(MoveWorker, 1), (Pause, 1)])),
        (Rule::KeepFenced, one(&[(MoveWorker, 1), (Pause, 1)])),
        (Rule::Told, one(&[(Empty, 1), (CrashWorker, 1)])),
        (Rule::Once, one(&[(Resend, 1), (MoveWorker, 1)])),
        (Rule::Mark, one(&[(Cancel, 1)])),
        (Rule::Gap, one(&[(LosePublish, 1)])),
        (Rule::Filter, one(&[(Empty, 1)])),
        (Rule::Since, one(&[(DropSocket, 1)])),
        (Rule::Rewind, one(&[(RollBack, 1), (CrashRelay, 1)])),
        (Rule::KeptOnly, one(&[(CrashWorker, 1)])),
        (Rule::Lane, two(&[0, 0], &[(MoveWorker, 1)])),
        (Rule::Contiguous, two(&[0, 1], &[(CrashWorker, 1)])),
        (Rule::MarkerToken, Bounds { faults: 2, ..two(&[0, 0], &[(Empty, 1), (Repeat, 1), (MoveRelay, 1)]) }),
    ];
    let mut missed = Vec::new();
    for (rule, bounds) in rules {
        let bounds = Bounds { without: Some(*rule), ..bounds.clone() };
        let report = explore(&bounds);
        match report.violation {
            Some((violation, trace)) => eprintln!("without {rule:?}, {} states, {} steps: {violation}", report.states, trace.len()),
            None => missed.push((*rule, report.states)),
        }
    }
    assert!(missed.is_empty(), "left out and not missed: {missed:?}");
}
