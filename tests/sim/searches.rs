//! The searches of the default run. Each visits everything that its faults can cause, in every
//! order. `SIM_FAULTS` (default 2) and `SIM_PIECES` (default 2) make them deeper.

use crate::model::Fault::{
    self, Cancel, CrashGateway, CrashRelay, CrashWorker, DropSocket, DuplicateCall, EmptyRedis,
    LosePublish, PausePastLease, ReassignMessages, ReassignResponses, Resend, RollBackRedis,
};
use crate::model::{SearchBounds, Step};
use crate::reference::Rule;
use crate::search::search;
use crate::seeds::number_from_env;

fn max_faults() -> u8 {
    number_from_env("SIM_FAULTS").unwrap_or(2) as u8
}

/// One message, from the initial state.
fn from_start(faults: &'static [(Fault, u8)]) -> SearchBounds {
    SearchBounds {
        conversations: &[0],
        pieces: number_from_env("SIM_PIECES").unwrap_or(2) as u8,
        rewind_window: 1,
        max_faults: max_faults(),
        faults,
        prefix: &[],
        omitted_rule: None,
    }
}

/// The client is live, the relay has set the marker, and the message is in the log.
const MESSAGE_IN_LOG: &[Step] = &[
    Step::Connect,
    Step::Read,
    Step::Receive,
    Step::Relay(0),
    Step::Relay(0),
    Step::Send(0, 0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::HandlePublishedFrame,
    Step::Receive,
];

/// Like [`MESSAGE_IN_LOG`], but with two messages whose answers are in the log.
const ANSWERS_IN_LOG: &[Step] = &[
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
    Step::Worker(0, 0),
    Step::Worker(0, 0),
    Step::Worker(0, 0),
    Step::Worker(0, 0),
    Step::Worker(0, 0),
    Step::Worker(0, 1),
    Step::Worker(0, 1),
    Step::Worker(0, 1),
    Step::Worker(0, 1),
    Step::Worker(0, 1),
    Step::CommitWorker(0),
];

/// Two messages are in the log, and the client has received no frame about them.
const TWO_MESSAGES_IN_LOG: &[Step] = ANSWERS_IN_LOG.split_at(13).0;

/// A worker has begun and crashed, and its lease has expired; after a snapshot of Redis another one
/// has begun.
const LEASE_TAKEN_OVER: &[Step] = &[
    Step::Connect,
    Step::Read,
    Step::Receive,
    Step::Relay(0),
    Step::Relay(0),
    Step::Send(0, 0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Gateway(0),
    Step::Worker(0, 0),
    Step::Worker(0, 0),
    Step::Fault(CrashWorker, 0),
    Step::ExpireLease(0),
    Step::SaveSnapshot,
    Step::Worker(0, 0),
    Step::Worker(0, 0),
];

/// One message, from the moment when it is in the log.
fn from_message_in_log(faults: &'static [(Fault, u8)]) -> SearchBounds {
    SearchBounds {
        prefix: MESSAGE_IN_LOG,
        ..from_start(faults)
    }
}

/// Two messages of one conversation, from the moment when both answers are in the log and none is
/// delivered.
fn from_answers_in_log(faults: &'static [(Fault, u8)]) -> SearchBounds {
    SearchBounds {
        prefix: ANSWERS_IN_LOG,
        max_faults: max_faults(),
        ..two_messages(&[0, 0], faults)
    }
}

/// Two messages, with one fault less because there are more states.
fn two_messages(conversations: &'static [u8], faults: &'static [(Fault, u8)]) -> SearchBounds {
    SearchBounds {
        conversations,
        pieces: 1,
        max_faults: max_faults() - 1,
        ..from_start(faults)
    }
}

fn format_trace(trace: &[impl std::fmt::Debug]) -> String {
    let lines: Vec<_> = trace.iter().map(|step| format!("    {step:?}\n")).collect();
    lines.concat()
}

/// Runs a search that must find no violation.
fn assert_no_violation(name: &str, bounds: &SearchBounds) {
    let report = search(bounds);
    eprintln!(
        "{name}: {} states, {} steps, {} final states, depth {}, {:.1} s",
        report.states,
        report.steps,
        report.final_states,
        report.depth,
        report.duration.as_secs_f64()
    );
    if let Some((violation, trace)) = &report.violation {
        panic!("{name}: {violation}\n{}", format_trace(trace));
    }
    assert!(report.final_states > 0, "no final state was reached");
}

/// Every fault except the rollback, which multiplies the states by the possible snapshots.
const ALL_BUT_ROLLBACK: &[(Fault, u8)] = &[
    (CrashWorker, 2),
    (CrashRelay, 2),
    (CrashGateway, 1),
    (ReassignMessages, 2),
    (ReassignResponses, 2),
    (PausePastLease, 2),
    (DuplicateCall, 2),
    (LosePublish, 2),
    (DropSocket, 2),
    (EmptyRedis, 2),
    (Cancel, 1),
    (Resend, 2),
];

macro_rules! search {
    ($($name:ident: $bounds:expr;)*) => {
        $(
            #[test]
            fn $name() {
                assert_no_violation(stringify!($name), &$bounds);
            }
        )*
    };
}

search! {
    no_fault: SearchBounds { max_faults: 0, ..two_messages(&[0, 0], &[]) };
    any_single_fault: SearchBounds { max_faults: 1, ..from_start(ALL_BUT_ROLLBACK) };
    two_conversations_and_a_worker_crash: SearchBounds { max_faults: 1, prefix: TWO_MESSAGES_IN_LOG, ..two_messages(&[0, 1], &[(CrashWorker, 1)]) };
    redis_emptied_under_a_worker: from_message_in_log(&[(EmptyRedis, 1), (CrashWorker, 1), (ReassignMessages, 1), (PausePastLease, 1)]);
    redis_emptied_and_a_call_duplicated: from_message_in_log(&[(EmptyRedis, 1), (DuplicateCall, 1)]);
    redis_emptied_under_a_relay: from_answers_in_log(&[(EmptyRedis, 2), (CrashRelay, 1), (ReassignResponses, 1)]);
    redis_emptied_and_a_deliver_duplicated: from_answers_in_log(&[(EmptyRedis, 1), (DuplicateCall, 1), (DropSocket, 1)]);
    redis_rolled_back: SearchBounds { max_faults: 1, ..from_message_in_log(&[(RollBackRedis, 1)]) };
    redis_rolled_back_under_a_relay: from_answers_in_log(&[(RollBackRedis, 1), (CrashRelay, 1), (LosePublish, 1)]);
    paused_worker_and_its_successor: from_message_in_log(&[(PausePastLease, 2), (ReassignMessages, 1), (DuplicateCall, 1)]);
    cancel_with_other_faults: from_message_in_log(&[(Cancel, 1), (CrashWorker, 1), (EmptyRedis, 1), (DuplicateCall, 1)]);
    resend_with_other_faults: from_message_in_log(&[(Resend, 1), (CrashWorker, 1), (EmptyRedis, 1)]);
    two_parts_and_a_stale_worker: SearchBounds { pieces: 3, ..from_message_in_log(&[(PausePastLease, 1), (ReassignMessages, 1), (DuplicateCall, 1)]) };
    two_parts_and_lost_publishes: SearchBounds { pieces: 3, ..from_message_in_log(&[(LosePublish, 2), (DuplicateCall, 1), (DropSocket, 1), (CrashWorker, 1)]) };
    two_parts_and_lost_data: SearchBounds { pieces: 3, ..from_message_in_log(&[(EmptyRedis, 1), (PausePastLease, 1), (DuplicateCall, 1), (LosePublish, 1)]) };
    two_parts_and_a_rollback: SearchBounds { pieces: 3, ..from_message_in_log(&[(RollBackRedis, 1), (DuplicateCall, 1), (LosePublish, 1)]) };
    dropped_socket_with_other_faults: from_message_in_log(&[(DropSocket, 2), (LosePublish, 1), (EmptyRedis, 1)]);
}

#[test]
fn leaving_out_any_rule_causes_a_violation() {
    let rules: &[(Rule, SearchBounds)] = &[
        (
            Rule::LostMailboxDetected,
            from_answers_in_log(&[(EmptyRedis, 1), (DuplicateCall, 1)]),
        ),
        (
            Rule::AttemptAboveLast,
            SearchBounds {
                max_faults: 3,
                prefix: LEASE_TAKEN_OVER,
                ..from_start(&[(CrashWorker, 1), (RollBackRedis, 1), (DuplicateCall, 1)])
            },
        ),
        (
            Rule::LeaseExcludesOthers,
            from_message_in_log(&[(ReassignMessages, 1)]),
        ),
        (
            Rule::BeginIdempotent,
            from_message_in_log(&[(DuplicateCall, 1)]),
        ),
        (
            Rule::OpeningFenced,
            SearchBounds {
                pieces: 3,
                ..from_message_in_log(&[(ReassignMessages, 1), (PausePastLease, 1)])
            },
        ),
        (
            Rule::SeparateStreams,
            from_message_in_log(&[(ReassignMessages, 1), (PausePastLease, 1)]),
        ),
        (
            Rule::UniqueStreams,
            SearchBounds {
                max_faults: 3,
                ..from_message_in_log(&[
                    (ReassignMessages, 1),
                    (PausePastLease, 1),
                    (EmptyRedis, 1),
                ])
            },
        ),
        (
            Rule::RepeatsDropped,
            from_message_in_log(&[(DuplicateCall, 1), (DropSocket, 1)]),
        ),
        (
            Rule::PreviousEndChecked,
            SearchBounds {
                pieces: 3,
                ..from_message_in_log(&[(LosePublish, 1)])
            },
        ),
        (
            Rule::OnlyCurrentStreamForwarded,
            from_message_in_log(&[(ReassignMessages, 1), (PausePastLease, 1)]),
        ),
        (
            Rule::KeepRetainsParts,
            from_message_in_log(&[(DropSocket, 1)]),
        ),
        (
            Rule::FirstOutcomeWins,
            from_message_in_log(&[(ReassignMessages, 1), (PausePastLease, 1)]),
        ),
        (
            Rule::DeliveredOutcomeWins,
            from_message_in_log(&[(EmptyRedis, 1), (CrashWorker, 1)]),
        ),
        (
            Rule::DeliveredOnce,
            from_message_in_log(&[(Resend, 1), (ReassignMessages, 1)]),
        ),
        (Rule::KeepChecksCancel, from_message_in_log(&[(Cancel, 1)])),
        (
            Rule::GapTriggersRead,
            SearchBounds {
                max_faults: 1,
                ..from_answers_in_log(&[(LosePublish, 1)])
            },
        ),
        (
            Rule::PositionFilter,
            from_message_in_log(&[(EmptyRedis, 1)]),
        ),
        (
            Rule::RewindOnAssignment,
            from_answers_in_log(&[(RollBackRedis, 1), (CrashRelay, 1)]),
        ),
        (
            Rule::OnlyStoredOutcomeProduced,
            from_message_in_log(&[(Cancel, 1)]),
        ),
        (
            Rule::LaneWaitsForLog,
            SearchBounds {
                prefix: TWO_MESSAGES_IN_LOG,
                ..two_messages(&[0, 0], &[(ReassignMessages, 1)])
            },
        ),
        (
            Rule::ContiguousCommit,
            SearchBounds {
                prefix: TWO_MESSAGES_IN_LOG,
                ..two_messages(&[0, 1], &[(CrashWorker, 1)])
            },
        ),
        (
            Rule::MarkerToken,
            SearchBounds {
                max_faults: 3,
                ..from_answers_in_log(&[
                    (EmptyRedis, 1),
                    (DuplicateCall, 1),
                    (ReassignResponses, 1),
                ])
            },
        ),
    ];
    let mut not_needed = Vec::new();
    for (rule, bounds) in rules {
        let bounds = SearchBounds {
            omitted_rule: Some(*rule),
            ..bounds.clone()
        };
        let report = search(&bounds);
        match report.violation {
            Some((violation, trace)) => eprintln!(
                "without {rule:?}, {} states, {} steps: {violation}",
                report.states,
                trace.len()
            ),
            None => not_needed.push((*rule, report.states)),
        }
    }
    assert!(
        not_needed.is_empty(),
        "no violation without: {not_needed:?}"
    );
}
