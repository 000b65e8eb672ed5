//! The scenarios S16 to S23 of docs/consistency.md, about the streams of answers in flight.

use crate::model::Fault::{
    CrashWorker, DropSocket, EmptyRedis, LosePublish, PausePastLease, ReassignMessages,
    RollBackRedis,
};
use crate::model::Step::{
    ArriveDuplicate, CheckForGap, Connect, DuplicateWorkerCall, HandlePublishedFrame, Read,
    Receive, RenewLease, SaveSnapshot, Worker,
};
use crate::model::{Model, Stage, Step};
use crate::reference::{BeginResponse, Outcome, OutcomeKind, Piece, SharedState, StreamResponse};
use crate::scenarios::{
    apply, begin_record, drain_client, first_task, run_to_end, send, start, start_with_pieces,
};

/// A model in which the first worker has opened the first part of an answer, which the client shows.
fn stream_answer(pieces: u8) -> Model {
    let mut model = start_with_pieces(1, pieces);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[Worker(0, 0)]);
    drain_client(&mut model);
    assert_eq!(*model.client.parts(0), [[1]]);
    model
}

/// The second worker takes over the message from the first one, which pauses past its lease.
fn take_over(model: &mut Model) {
    apply(
        model,
        &[
            Step::Fault(PausePastLease, 0),
            Step::Fault(ReassignMessages, 1),
        ],
    );
}

#[test]
fn scenario_16_stale_worker_writes_to_its_own_stream() {
    let mut model = stream_answer(2);
    model.apply(Step::Fault(PausePastLease, 0)).unwrap();
    model.assigned_worker = 1;
    begin_record(&mut model, 1, 0);
    apply(&mut model, &[Worker(1, 0)]);
    // The first worker wakes, and sends its second piece: to a list that was deleted.
    let answers = model.shared.in_flight_answers();
    apply(&mut model, &[Worker(0, 0), Worker(0, 0)]);
    assert_eq!(model.shared.in_flight_answers(), answers);
    drain_client(&mut model);
    assert_eq!(*model.client.parts(0), [[2]]);
    // Fewer pieces than it expects: it renews its lease, and stops.
    assert_eq!(
        first_task(&model).map(|task| task.stage),
        Some(Stage::Renew)
    );
    apply(&mut model, &[Worker(0, 0)]);
    assert_eq!(
        first_task(&model).map(|task| task.stage),
        Some(Stage::Begin)
    );
    run_to_end(model);
}

#[test]
fn scenario_17_append_after_a_data_loss_creates_nothing() {
    let mut model = stream_answer(2);
    apply(&mut model, &[Step::Fault(EmptyRedis, 0), Worker(0, 0)]);
    assert!(model.shared.lists.is_empty());
    // The worker publishes the piece, learns of the loss from its renewal, and begins again.
    apply(&mut model, &[Worker(0, 0), Worker(0, 0)]);
    assert_eq!(
        first_task(&model).map(|task| task.stage),
        Some(Stage::Begin)
    );
    apply(&mut model, &[Worker(0, 0)]);
    let task = first_task(&model).unwrap();
    assert_eq!((task.attempt, task.sent), (2, 0));
    assert_eq!(run_to_end(model).calls_by_message, [1]);
}

#[test]
fn scenario_18_rollback_is_revealed_by_lengths() {
    // Redis rolls back to a state before the first part, or before the second piece.
    for worker_steps in [2, 3] {
        let mut model = start_with_pieces(1, 3);
        send(&mut model, 0);
        apply(&mut model, &vec![Worker(0, 0); worker_steps]);
        drain_client(&mut model);
        apply(&mut model, &[SaveSnapshot]);
        let steps_to_third_piece = 5 - worker_steps;
        apply(&mut model, &vec![Worker(0, 0); steps_to_third_piece]);
        apply(
            &mut model,
            &[Step::Fault(RollBackRedis, 0), RenewLease(0, 0)],
        );
        apply(&mut model, &[Worker(0, 0)]);
        assert_eq!(
            first_task(&model).map(|task| task.stage),
            Some(Stage::Begin)
        );
        let model = run_to_end(model);
        assert_eq!(model.calls_by_message, [1], "{worker_steps} steps");
    }
}

#[test]
fn scenario_19_lost_restart_and_opening_lead_to_a_read() {
    let mut model = stream_answer(2);
    take_over(&mut model);
    begin_record(&mut model, 1, 0);
    apply(&mut model, &[Worker(1, 0), Worker(1, 0), Worker(1, 0)]);
    // `restarted` and the opening of the new stream are lost; its second piece arrives.
    apply(&mut model, &[Step::Fault(LosePublish, 0); 2]);
    apply(&mut model, &[HandlePublishedFrame]);
    assert!(model.client.needs_read());
    assert_eq!(*model.client.parts(0), [[1]]);
    apply(&mut model, &[Read, Receive]);
    assert_eq!(*model.client.parts(0), [[2, 2]]);
    run_to_end(model);
}

#[test]
fn scenario_20_lost_delta_is_found() {
    // The piece that is lost is followed by a piece of the same part, by the opening of the next
    // part, or by nothing.
    for (pieces_before, pieces_after) in [(0, 1), (1, 1), (1, 0)] {
        let mut model = start_with_pieces(1, 3);
        send(&mut model, 0);
        drain_client(&mut model);
        begin_record(&mut model, 0, 0);
        for _ in 0..pieces_before {
            apply(&mut model, &[Worker(0, 0)]);
            drain_client(&mut model);
        }
        while model.client.published_frames() == 0 {
            apply(&mut model, &[Worker(0, 0)]);
        }
        apply(&mut model, &[Step::Fault(LosePublish, 0)]);
        for _ in 0..pieces_after {
            while model.client.published_frames() == 0 {
                apply(&mut model, &[Worker(0, 0)]);
            }
            apply(&mut model, &[HandlePublishedFrame]);
        }
        if pieces_after == 0 {
            apply(&mut model, &[CheckForGap]);
        }
        assert!(model.client.needs_read(), "{pieces_before} {pieces_after}");
        apply(&mut model, &[Read]);
        drain_client(&mut model);
        let shown: usize = model.client.parts(0).iter().map(Vec::len).sum();
        assert_eq!(shown, pieces_before + pieces_after + 1);
        run_to_end(model);
    }
}

#[test]
fn scenario_21_repeated_and_late_deltas_are_dropped() {
    // The Redis client sends the command twice that publishes, or that stores, the second piece.
    for steps_before in [0, 1] {
        let mut model = stream_answer(2);
        apply(&mut model, &vec![Worker(0, 0); steps_before]);
        apply(&mut model, &[DuplicateWorkerCall(0, 0)]);
        apply(&mut model, &vec![Worker(0, 0); 2 - steps_before]);
        apply(&mut model, &[ArriveDuplicate]);
        drain_client(&mut model);
        assert_eq!(*model.client.parts(0), [[1, 1]]);
        apply(&mut model, &[Step::Fault(DropSocket, 0), Connect, Read]);
        drain_client(&mut model);
        assert_eq!(*model.client.parts(0), [[1, 1]]);
        run_to_end(model);
    }
    // The repeat of the command that publishes arrives after the terminal frame.
    let mut model = stream_answer(2);
    apply(&mut model, &[Worker(0, 0), DuplicateWorkerCall(0, 0)]);
    apply(&mut model, &[Worker(0, 0); 3]);
    apply(&mut model, &[Step::Relay(0)]);
    drain_client(&mut model);
    assert!(model.client.known_outcome(0).is_some());
    apply(&mut model, &[ArriveDuplicate, HandlePublishedFrame]);
    assert!(!model.client.needs_read() && !model.client.can_receive());
    run_to_end(model);
}

#[test]
fn scenario_22_device_that_joins_after_keep_sees_the_text() {
    let mut model = stream_answer(3);
    apply(&mut model, &[Step::Fault(DropSocket, 0)]);
    // The worker sends the rest and stores the outcome. The log does not have it yet.
    apply(&mut model, &[Worker(0, 0); 4]);
    assert!(matches!(
        first_task(&model).map(|task| task.stage),
        Some(Stage::Produce(_))
    ));
    apply(&mut model, &[Connect, Read]);
    drain_client(&mut model);
    assert_eq!(*model.client.parts(0), [vec![1, 1], vec![1]]);
    run_to_end(model);
}

#[test]
fn scenario_23_stale_deltas_lead_to_one_read() {
    let mut model = stream_answer(3);
    take_over(&mut model);
    model.workers[0] = crate::model::Worker::default();
    begin_record(&mut model, 1, 0);
    drain_client(&mut model);
    let stale = Piece {
        part: 0,
        offset: 1,
        end: 2,
        call: 1,
        opening: None,
    };
    let stale_stream = model.shared.stream_of(0x0f, 1);
    let mut reads = 0;
    for _ in 0..100 {
        model.shared.publish_piece(0, stale_stream, stale);
        let published = std::mem::take(&mut model.shared.published);
        model.client.publish(&published);
        apply(&mut model, &[HandlePublishedFrame]);
        if model.client.needs_read() {
            reads += 1;
            apply(&mut model, &[Read]);
            drain_client(&mut model);
        }
    }
    assert_eq!(reads, 1);
    assert!(model.client.parts(0).is_empty());
    run_to_end(model);
}

#[test]
fn begun_stream_without_a_part_is_taken_over_without_a_trace() {
    let mut model = start(1);
    send(&mut model, 0);
    begin_record(&mut model, 0, 0);
    apply(
        &mut model,
        &[Step::Fault(CrashWorker, 0), Step::ExpireLease(0)],
    );
    begin_record(&mut model, 0, 0);
    apply(&mut model, &[DuplicateWorkerCall(0, 0), Worker(0, 0)]);
    apply(&mut model, &[ArriveDuplicate]);
    drain_client(&mut model);
    assert_eq!(*model.client.parts(0), [[2]]);
    run_to_end(model);
}

#[test]
fn calls_distinguish_lost_repeated_and_fenced_streams() {
    let mut shared = SharedState::new(&[0], 200, None);
    let cancelled = Outcome {
        call: 0,
        pieces: 0,
        kind: OutcomeKind::Cancelled,
    };
    let opening = Piece {
        part: 0,
        offset: 0,
        end: 1,
        call: 1,
        opening: Some(0),
    };
    let second_part = Piece {
        part: 1,
        opening: Some(1),
        ..opening
    };
    let lost = StreamResponse::DataLost;
    assert_eq!(shared.renew(0, 1, 1, 0, 0), lost);
    assert_eq!(
        shared.begin(0, 1, 0, cancelled),
        BeginResponse::Attempt {
            number: 1,
            delivery_count: 1
        }
    );
    assert_eq!(shared.renew(0, 1, 1, 1, 1), lost);
    assert_eq!(shared.open_part(0, 1, 1, second_part), lost);
    let confirmed = StreamResponse::Confirmed(1);
    assert_eq!(shared.open_part(0, 1, 1, opening), confirmed);
    assert_eq!(shared.open_part(0, 1, 1, opening), confirmed);
    assert_eq!(shared.renew(0, 1, 1, 1, 1), confirmed);
    assert_eq!(shared.renew(0, 1, 1, 1, 2), lost);
    assert_eq!(shared.renew(0, 1, 1, 2, 0), lost);
    let fenced = StreamResponse::Fenced;
    assert_eq!(shared.open_part(0, 2, 1, second_part), fenced);
    assert_eq!(shared.renew(0, 2, 1, 0, 0), fenced);
    assert!(matches!(
        shared.begin(0, 2, 0, cancelled),
        BeginResponse::Busy(_)
    ));
}
