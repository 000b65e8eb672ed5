//! The scenarios S1 to S15 of docs/consistency.md, and what all scenarios share. The model takes exactly their steps, then any
//! steps until it reaches a final state, which is checked as in a search.

use crate::model::Fault::{
    self, Cancel, CrashRelay, CrashWorker, DropSocket, DuplicateCall, EmptyRedis, LosePublish,
    PausePastLease, Resend, RollBackRedis,
};
use crate::model::Step::{
    ArriveDuplicate, CommitRelay, Connect, DuplicateRelayCall, DuplicateWorkerCall, ExpireLease,
    HandlePublishedFrame, NoticeDisruption, Read, Receive, SaveSnapshot, Send, Worker,
};
use crate::model::{Model, RecordTask, SearchBounds, Stage, Step};
use crate::reference::{
    AdmissionDecision, CancelResult, DeliverResponse, OutcomeKind, Position, SharedState,
    StoredOutcome,
};

const FAULTS: &[(Fault, u8)] = &[
    (CrashWorker, 2),
    (CrashRelay, 1),
    (Fault::ReassignMessages, 1),
    (PausePastLease, 1),
    (DuplicateCall, 2),
    (LosePublish, 2),
    (DropSocket, 1),
    (EmptyRedis, 1),
    (RollBackRedis, 1),
    (Cancel, 1),
    (Resend, 1),
];

const ONE_CONVERSATION: &[u8] = &[0, 0];

/// A model with a live client and a relay that has set the marker.
pub(crate) fn start(messages: usize) -> Model {
    start_with_pieces(messages, 2)
}

/// The same, with answers of this number of pieces.
pub(crate) fn start_with_pieces(messages: usize, pieces: u8) -> Model {
    let mut model = Model::new(&SearchBounds {
        conversations: &ONE_CONVERSATION[..messages],
        pieces,
        rewind_window: 1,
        max_faults: 10,
        faults: FAULTS,
        prefix: &[],
        omitted_rule: None,
    });
    apply(
        &mut model,
        &[Connect, Read, Receive, Step::Relay(0), Step::Relay(0)],
    );
    model
}

/// Applies steps that must be possible and without a violation.
pub(crate) fn apply(model: &mut Model, steps: &[Step]) {
    let mut possible = Vec::new();
    for step in steps {
        model.steps(&mut possible);
        model.fault_steps(&mut possible);
        assert!(
            possible.contains(step),
            "{step:?} is not possible in {model:#?}"
        );
        if let Err(violation) = model.apply(*step) {
            panic!("{step:?}: {violation}");
        }
    }
}

/// Sends a message through the first gateway until it is accepted.
pub(crate) fn send(model: &mut Model, message: u8) {
    let gateway = [Step::Gateway(0); 3];
    apply(model, &[&[Send(0, message)][..], &gateway].concat());
}

/// The worker takes the record and calls `begin`.
pub(crate) fn begin_record(model: &mut Model, worker: usize, record: usize) {
    apply(model, &[Worker(worker, record); 2]);
}

/// The first worker's task for the first record.
pub(crate) fn first_task(model: &Model) -> Option<RecordTask> {
    model.workers[0].tasks[0]
}

/// Handles all published frames and everything on the socket.
pub(crate) fn drain_client(model: &mut Model) {
    while model.client.has_published_frame() || model.client.can_receive() {
        let step = if model.client.can_receive() {
            Receive
        } else {
            HandlePublishedFrame
        };
        apply(model, &[step]);
    }
}

/// Takes any steps until the state is final, and checks it.
pub(crate) fn run_to_end(mut model: Model) -> Model {
    let mut steps = Vec::new();
    loop {
        model.steps(&mut steps);
        let Some(step) = steps.first().copied() else {
            break;
        };
        apply(&mut model, &[step]);
    }
    if let Err(violation) = model.check_final_state() {
        panic!("{violation}");
    }
    model
}

#[test]
fn scenario_1_duplicate_deliver_before_the_rewind_returns_lost() {
    let mut model = start(2);
    send(&mut model, 0);
    send(&mut model, 1);
    drain_client(&mut model);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 5]);
    begin_record(&mut model, 0, 1);
    apply(&mut model, &[Worker(0, 1); 5]);
    drain_client(&mut model);
    apply(
        &mut model,
        &[
            Step::Relay(0),
            DuplicateRelayCall(0),
            Step::Fault(EmptyRedis, 0),
            ArriveDuplicate,
        ],
    );
    assert_eq!(
        model.mailbox_end(),
        None,
        "expected no delivery of record 1 without record 0"
    );
    assert!(!matches!(model.position(), Some(Position::At(_))));
    apply(&mut model, &[NoticeDisruption(0)]);
    let model = run_to_end(model);
    assert_eq!(model.position(), Some(Position::At(1)));
}

#[test]
fn scenario_2_first_answer_in_the_log_is_the_only_one_sent() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 5]);
    apply(&mut model, &[Step::Relay(0)]);
    drain_client(&mut model);
    let received = model.client.known_outcome(0);
    apply(
        &mut model,
        &[Step::Fault(CrashWorker, 0), Step::Fault(EmptyRedis, 0)],
    );
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 5]);
    assert_eq!(model.responses.len(), 2);
    assert_ne!(model.responses[0], model.responses[1]);
    let model = run_to_end(model);
    assert_eq!(model.client.known_outcome(0), received);
}

#[test]
fn scenario_3_rolled_back_mailbox_is_rebuilt_by_another_relay() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 5]);
    apply(&mut model, &[SaveSnapshot, Step::Relay(0), CommitRelay(0)]);
    apply(
        &mut model,
        &[Step::Fault(CrashRelay, 0), Step::Fault(RollBackRedis, 0)],
    );
    assert_eq!((model.responses_committed, model.mailbox_end()), (1, None));
    let model = run_to_end(model);
    assert_eq!(model.mailbox_end(), Some(0));
}

#[test]
fn scenario_4_text_restarts_under_the_same_attempt_after_data_loss() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0)]);
    drain_client(&mut model);
    assert_eq!(*model.client.parts(0), [[1]]);
    apply(
        &mut model,
        &[Step::Fault(CrashWorker, 0), Step::Fault(EmptyRedis, 0)],
    );
    begin_record(&mut model, 0, 0);
    let attempt = first_task(&model).map(|task| task.attempt);
    assert_eq!(attempt, Some(1), "expected the same attempt number again");
    apply(&mut model, &[Read, Worker(0, 0)]);
    drain_client(&mut model);
    assert_eq!(*model.client.parts(0), [[2]]);
    run_to_end(model);
}

#[test]
fn scenario_5_stale_duplicate_of_a_fenced_workers_text_is_rejected() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(
        &mut model,
        &[Step::Fault(CrashWorker, 0), ExpireLease(0), SaveSnapshot],
    );
    begin_record(&mut model, 0, 0);
    apply(
        &mut model,
        &[
            DuplicateWorkerCall(0, 0),
            Worker(0, 0),
            Step::Fault(RollBackRedis, 0),
        ],
    );
    // The fan-out no longer has the worker's stream. The renewal finds the worker fenced, and it
    // begins again.
    apply(&mut model, &[Worker(0, 0); 3]);
    assert_eq!(
        first_task(&model).map(|task| task.stage),
        Some(Stage::Begin)
    );
    apply(&mut model, &[Worker(0, 0)]);
    assert_eq!(first_task(&model).map(|task| task.attempt), Some(3));
    apply(&mut model, &[ArriveDuplicate]);
    let answers = model.shared.in_flight_answers();
    assert!(
        answers[0].parts.is_empty(),
        "expected the stale duplicate to be refused"
    );
    run_to_end(model);
}

#[test]
fn scenario_6_duplicate_begin_keeps_attempt_and_text() {
    let mut model = start(1);
    send(&mut model, 0);
    apply(
        &mut model,
        &[
            Worker(0, 0),
            DuplicateWorkerCall(0, 0),
            Worker(0, 0),
            Worker(0, 0),
            ArriveDuplicate,
        ],
    );
    let answers = model.shared.in_flight_answers();
    assert_eq!(answers[0].attempt, 1);
    assert_eq!(answers[0].parts, [[1]]);
    assert_eq!(run_to_end(model).calls_by_message, [1]);
}

#[test]
fn scenario_7_redelivered_message_uses_the_delivered_outcome() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 5]);
    apply(
        &mut model,
        &[
            Step::Relay(0),
            Step::Fault(EmptyRedis, 0),
            NoticeDisruption(0),
            Step::Relay(0),
            Step::Relay(0),
        ],
    );
    apply(&mut model, &[Step::Fault(CrashWorker, 0)]);
    begin_record(&mut model, 0, 0);
    assert_eq!(first_task(&model).map(|task| task.stage), Some(Stage::Done));
    assert!(model.shared.messages[0].in_flight.is_none());
    let model = run_to_end(model);
    assert_eq!(
        (model.calls_by_message, model.responses.len()),
        (vec![1], 1)
    );
}

#[test]
fn scenario_8_resent_message_ends_once() {
    // The outcome is stored and not yet delivered.
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 4]);
    assert_eq!(
        model.shared.clone().admit(0),
        AdmissionDecision::OutcomeStored
    );
    apply(&mut model, &[Step::Fault(Resend, 0), Step::Gateway(1)]);
    assert_eq!(run_to_end(model).messages.len(), 1);
    // The outcome was delivered, and the live frame has not arrived yet.
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 5]);
    apply(
        &mut model,
        &[Step::Relay(0), Step::Fault(Resend, 0), Step::Gateway(1)],
    );
    assert_eq!(run_to_end(model).messages.len(), 1);
}

#[test]
fn scenario_9_socket_closed_during_replay_loses_no_frame() {
    let mut model = start(2);
    send(&mut model, 0);
    send(&mut model, 1);
    drain_client(&mut model);
    apply(&mut model, &[Step::Fault(DropSocket, 0)]);
    for record in 0..2 {
        begin_record(&mut model, 0, record);
        apply(&mut model, &[Worker(0, record); 5]);
        apply(&mut model, &[Step::Relay(0)]);
    }
    // The welcome and both records are on the socket. The client receives only the welcome.
    apply(&mut model, &[Connect, Read, Receive]);
    assert_eq!(model.client.known_outcome(0), None);
    let mut reconnected = model.clone();
    reconnected.client.drop_socket();
    let reconnected = run_to_end(reconnected);
    assert_eq!(reconnected.position(), Some(Position::At(1)));
    run_to_end(model);
}

#[test]
fn scenario_10_lost_publish_is_detected() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 5]);
    drain_client(&mut model);
    apply(&mut model, &[Step::Relay(0), Step::Fault(LosePublish, 0)]);
    assert_eq!(model.client.known_outcome(0), None);
    assert!(model.client.has_undetected_gap(&model.shared));
    run_to_end(model);
}

#[test]
fn scenario_11_other_counter_with_the_same_number_triggers_a_read() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0)]);
    drain_client(&mut model);
    let before = (model.shared.counter_id, model.shared.n);
    apply(&mut model, &[Step::Fault(EmptyRedis, 0)]);
    while model.shared.n < before.1 {
        apply(&mut model, &[Worker(0, 0)]);
    }
    assert_ne!(model.shared.counter_id, before.0);
    // A gateway that did not notice the broken subscription must read, too.
    assert!(model.client.needs_read());
    run_to_end(model);
}

#[test]
fn user_moved_to_another_partition_receives_no_frame_twice() {
    let mut shared = SharedState::new(&[0; 3], 200, None);
    let outcome = crate::reference::Outcome {
        call: 1,
        pieces: 1,
        kind: OutcomeKind::Answered,
    };
    let (old_offset, new_offset) = (5, crate::reference::PARTITION_SIZE);
    for (message, offset) in [(0, old_offset), (1, new_offset)] {
        let delivered = shared.deliver(message, offset, None, outcome, false);
        assert_eq!(delivered, DeliverResponse::Published);
    }
    // A relay is assigned the old partition and rewinds it, and then a late record of it follows.
    shared.published.clear();
    assert_eq!(
        shared.deliver(0, old_offset, None, outcome, true),
        DeliverResponse::AlreadyDelivered
    );
    assert!(shared.published.is_empty());
    let late = shared.deliver(2, old_offset + 1, Some(old_offset), outcome, false);
    assert_eq!(
        late,
        DeliverResponse::Published,
        "expected the late record to be delivered"
    );
    assert!(!shared.read(Some(Position::At(new_offset))).recovered);
    let repeated = shared.deliver(1, new_offset, Some(new_offset), outcome, true);
    assert_eq!(repeated, DeliverResponse::AlreadyDelivered);
}

#[test]
fn scenario_12_mailbox_rebuilt_from_the_middle_does_not_serve_earlier_positions() {
    let mut shared = SharedState::new(&[0; 3], 200, None);
    let outcome = crate::reference::Outcome {
        call: 1,
        pieces: 1,
        kind: OutcomeKind::Answered,
    };
    assert_eq!(
        shared.deliver(1, 5, None, outcome, false),
        DeliverResponse::Published
    );
    assert_eq!(
        shared.deliver(2, 6, Some(5), outcome, false),
        DeliverResponse::Published
    );
    assert!(!shared.read(Some(Position::At(4))).recovered);
    let view = shared.read(Some(Position::At(5)));
    assert!(view.recovered);
    assert_eq!(view.frames, [(6, 2, outcome)]);
    assert!(
        !shared.read(Some(Position::At(7))).recovered,
        "expected no recovery from a position beyond the end"
    );
}

#[test]
fn scenario_13_resumed_worker_gets_the_other_workers_outcome() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0); 3]);
    assert!(matches!(
        first_task(&model).map(|task| task.stage),
        Some(Stage::Keep(_))
    ));
    apply(
        &mut model,
        &[
            Step::Fault(PausePastLease, 0),
            Step::Fault(Fault::ReassignMessages, 1),
        ],
    );
    begin_record(&mut model, 1, 0);
    apply(&mut model, &[Worker(1, 0); 4]);
    let stored = model.shared.messages[0].outcome;
    // The first worker resumes with its complete answer.
    apply(&mut model, &[Worker(0, 0)]);
    let Some(StoredOutcome::Outcome(outcome, _)) = stored else {
        panic!("expected a stored outcome, got {stored:?}")
    };
    assert_eq!(
        first_task(&model).map(|task| task.stage),
        Some(Stage::Produce(outcome))
    );
    let model = run_to_end(model);
    assert_eq!(model.client.known_outcome(0), Some(outcome));
}

#[test]
fn scenario_14_cancel_works_at_every_stage() {
    // Steps of the worker before the cancel: none, begun, one piece, the second piece stored and not
    // published, all pieces, outcome stored.
    for (steps, kind) in [
        (0, OutcomeKind::Cancelled),
        (2, OutcomeKind::Cancelled),
        (3, OutcomeKind::Cancelled),
        (4, OutcomeKind::Cancelled),
        (5, OutcomeKind::Cancelled),
        (6, OutcomeKind::Answered),
    ] {
        let mut model = start(1);
        send(&mut model, 0);
        apply(&mut model, &vec![Worker(0, 0); steps]);
        let result = model.shared.clone().cancel(0);
        let expected = if kind == OutcomeKind::Cancelled {
            CancelResult::Cancelling
        } else {
            CancelResult::AlreadyDone
        };
        assert_eq!(result, expected, "{steps} steps");
        apply(&mut model, &[Step::Fault(Cancel, 0)]);
        let model = run_to_end(model);
        assert_eq!(
            model.client.known_outcome(0).map(|outcome| outcome.kind),
            Some(kind),
            "{steps} steps"
        );
    }
}

#[test]
fn scenario_15_message_admitted_by_two_gateways_is_answered_once() {
    let mut model = start(1);
    apply(&mut model, &[Send(0, 0), Step::Fault(Resend, 0)]);
    apply(
        &mut model,
        &[
            Step::Gateway(0),
            Step::Gateway(1),
            Step::Gateway(0),
            Step::Gateway(1),
        ],
    );
    assert_eq!(model.messages, [0, 0], "expected two records in the log");
    let model = run_to_end(model);
    assert_eq!(model.calls_by_message, [1]);
    // The worker of the second record may produce the outcome again; it must be the same.
    assert!(model.responses.windows(2).all(|pair| pair[0] == pair[1]));
}
