//! Tests of the scenarios in `docs/consistency.md`, by their numbers.

use super::*;
use crate::fanout::{LEASE, StoredOutcome};

#[tokio::test]
async fn message_passes_from_admission_to_the_mailbox() {
    let system = TestFanout::new(Bounds::default());
    let (owner, other_owner) = (Owner::random(), Owner::random());
    assert_eq!(system.admit("m").await, AdmissionDecision::New);
    assert_eq!(system.attempt("m", &owner, 0).await, 1);
    assert_eq!(
        system.begin("m", &other_owner, 0).await,
        BeginResponse::Busy(LEASE)
    );
    assert_eq!(
        system.open("m", &owner, 1, "a").await,
        StreamResponse::Confirmed(1)
    );
    assert_eq!(system.append("m", &owner, 1, 1, "b").await, 2);
    let start = system.read(None).await;
    assert_eq!(in_flight_texts(&start), ["ab"]);
    assert_eq!(start.in_flight[0].stream, owner.stream(1));
    assert_eq!(start.pending[0].content, "hi?");
    system.keep("m", &owner, 1, "delivered").await;
    assert_eq!(system.admit("m").await, AdmissionDecision::OutcomeStored);
    assert_eq!(
        system.deliver("m", 7, None).await,
        DeliverResponse::Published(0)
    );
    let view = system.read(Some(start.end)).await;
    assert!(view.recovered && view.in_flight.is_empty() && view.pending.is_empty());
    assert_eq!(view.frames, [(position_at(7), frame("m", "delivered"))]);
    assert_eq!(view.end, position_at(7));
    assert_eq!(
        system.admit("m").await,
        AdmissionDecision::Delivered(frame("m", "delivered"), position_at(7))
    );
    let turns = system.context().await;
    assert_eq!(turns, [(Some("hi?".to_owned()), "delivered".to_owned())]);
}

#[tokio::test]
async fn scenario_2_message_answered_twice_is_delivered_once() {
    let mut system = TestFanout::new(Bounds::default());
    let (first_owner, second_owner) = (Owner::random(), Owner::random());
    system.attempt("m", &first_owner, 0).await;
    system.keep("m", &first_owner, 1, "first").await;
    system.lose_data();
    assert_eq!(system.attempt("m", &second_owner, 0).await, 1);
    system.keep("m", &second_owner, 1, "second").await;
    let first = DeliverRequest {
        frame: frame("m", "first"),
        answer: "first".into(),
        ..delivery("m", position_at(0), None)
    };
    let second = delivery("m", position_at(1), Some(position_at(0)));
    assert_eq!(
        system.fanout.deliver(first).await.unwrap(),
        DeliverResponse::Published(0)
    );
    assert_eq!(
        system.fanout.deliver(second).await.unwrap(),
        DeliverResponse::AlreadyDelivered
    );
    // The history has the answer that the client received, not the second answer.
    assert_eq!(system.context().await[0].1, "first");
    // The mailbox's end advanced to the second record, so a delivery with that known end succeeds.
    assert_eq!(
        system.deliver("n", 2, Some(1)).await,
        DeliverResponse::Published(0)
    );
    assert_eq!(offsets(&system.read(Some(position_at(0))).await), [2]);
}

#[tokio::test]
async fn scenario_3_mailbox_that_ends_below_the_known_end_is_rewound_first() {
    let mut system = TestFanout::new(Bounds::default());
    system.deliver("r0", 10, None).await;
    system.lose_data();
    assert_eq!(
        system.deliver("r1", 11, Some(10)).await,
        DeliverResponse::DataLost
    );
    let view = system.read(None).await;
    assert_eq!(
        system.deliver("r1", 11, Some(10)).await,
        DeliverResponse::DataLost,
        "an empty mailbox that a read created has lost the data too"
    );
    assert_eq!(
        system.deliver("r0", 10, None).await,
        DeliverResponse::Published(0)
    );
    assert_eq!(
        system.deliver("r1", 11, Some(10)).await,
        DeliverResponse::Published(0)
    );
    assert_eq!(offsets(&system.read(Some(view.end)).await), [10, 11]);
}

#[tokio::test]
async fn scenario_5_stale_text_of_a_fenced_attempt_is_refused() {
    let mut system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    assert_eq!(system.attempt("m", &owner, 0).await, 1);
    assert_eq!(system.attempt("m", &owner, 1).await, 2);
    system.lose_data();
    assert_eq!(
        system.open("m", &owner, 2, "stale").await,
        StreamResponse::DataLost
    );
    assert_eq!(system.attempt("m", &owner, 2).await, 3);
    assert_eq!(
        system.open("m", &owner, 2, "stale").await,
        StreamResponse::Fenced
    );
    assert_eq!(
        system.open("m", &owner, 3, "a").await,
        StreamResponse::Confirmed(1)
    );
    assert_eq!(system.append("m", &owner, 2, 1, "stale").await, 0);
    assert_eq!(in_flight_texts(&system.read(None).await), ["a"]);
}

#[tokio::test]
async fn scenario_6_repeated_begin_keeps_the_text() {
    let system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    assert_eq!(system.attempt("m", &owner, 0).await, 1);
    system.open("m", &owner, 1, "a").await;
    assert_eq!(system.attempt("m", &owner, 0).await, 1);
    assert_eq!(
        system.open("m", &owner, 1, "a").await,
        StreamResponse::Confirmed(1)
    );
    assert_eq!(system.append("m", &owner, 1, 1, "b").await, 2);
    assert_eq!(in_flight_texts(&system.read(None).await), ["ab"]);
}

#[tokio::test]
async fn scenario_7_redelivered_message_gets_its_delivered_outcome() {
    let mut system = TestFanout::new(Bounds::default());
    system.lose_data();
    system.deliver("m", 3, None).await;
    let expected = StoredOutcome {
        frame: frame("m", "delivered"),
        delivered_at: Some(position_at(3)),
    };
    let response = system.begin("m", &Owner::random(), 0).await;
    assert_eq!(response, BeginResponse::Ended(expected));
    assert!(system.read(None).await.in_flight.is_empty());
    assert_eq!(system.context().await, [(None, "delivered".to_owned())]);
}

#[tokio::test]
async fn scenario_13_stalled_worker_gets_the_outcome_of_its_successor() {
    let system = TestFanout::new(Bounds::default());
    let (stalled_owner, other_owner) = (Owner::random(), Owner::random());
    system.attempt("m", &stalled_owner, 0).await;
    system.open("m", &stalled_owner, 1, "a").await;
    system.advance_clock(3_000);
    assert_eq!(system.attempt("m", &other_owner, 0).await, 2);
    assert_eq!(
        system.renew("m", &stalled_owner, 1, 1).await,
        StreamResponse::Fenced
    );
    assert_eq!(
        system.keep("m", &stalled_owner, 1, "mine").await,
        KeepResponse::Fenced
    );
    system.keep("m", &other_owner, 2, "theirs").await;
    let response = system.keep("m", &stalled_owner, 1, "mine").await;
    assert_eq!(outcome_frame(response), frame("m", "theirs"));
    assert_eq!(
        system.open("m", &other_owner, 2, "a").await,
        StreamResponse::Fenced
    );
    assert_eq!(system.context().await.len(), 1);
    assert_eq!(system.context().await[0].1, "theirs");
}

#[tokio::test]
async fn scenario_14_cancel_takes_effect_before_during_and_after_the_answer() {
    let system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    let cancel = async |name| {
        let cancelled = system.fanout.cancel(&user(), &message_id(name)).await;
        cancelled.unwrap()
    };

    system.admit("before").await;
    assert_eq!(cancel("before").await, CancelResult::Cancelling);
    let BeginResponse::Ended(outcome) = system.begin("before", &owner, 0).await else {
        panic!("no outcome");
    };
    assert_eq!(outcome.frame, frame("before", "stopped"));

    system.admit("during").await;
    system.attempt("during", &owner, 0).await;
    system.open("during", &owner, 1, "a").await;
    assert_eq!(cancel("during").await, CancelResult::Cancelling);
    assert_eq!(
        system.renew("during", &owner, 1, 1).await,
        StreamResponse::Cancelled
    );
    let response = system.keep("during", &owner, 1, "whole").await;
    assert_eq!(outcome_frame(response), frame("during", "stopped"));
    assert_eq!(cancel("during").await, CancelResult::AlreadyDone);

    system.admit("late").await;
    system.attempt("late", &owner, 0).await;
    cancel("late").await;
    let response = system.keep("late", &owner, 1, "whole").await;
    assert_eq!(outcome_frame(response), frame("late", "stopped"));

    assert_eq!(cancel("unseen").await, CancelResult::Unknown);
    assert_eq!(system.context().await.len(), 3);
}

#[tokio::test]
async fn scenario_15_message_admitted_twice_is_answered_once() {
    let system = TestFanout::new(Bounds::default());
    let (first_owner, second_owner) = (Owner::random(), Owner::random());
    assert_eq!(system.admit("m").await, AdmissionDecision::New);
    assert_eq!(system.admit("m").await, AdmissionDecision::New);
    assert_eq!(system.read(None).await.pending.len(), 1);
    system.attempt("m", &first_owner, 0).await;
    assert!(matches!(
        system.begin("m", &second_owner, 0).await,
        BeginResponse::Busy(_)
    ));
    system.keep("m", &first_owner, 1, "only").await;
    let BeginResponse::Ended(outcome) = system.begin("m", &second_owner, 0).await else {
        panic!("no outcome");
    };
    assert_eq!(outcome.frame, frame("m", "only"));
    // Each admission appended a record to the log, and both workers append the same outcome. The
    // relay delivers the first terminal record only.
    assert_eq!(
        system.deliver("m", 0, None).await,
        DeliverResponse::Published(0)
    );
    assert_eq!(
        system.deliver("m", 1, Some(0)).await,
        DeliverResponse::AlreadyDelivered
    );
    assert_eq!(system.context().await.len(), 1);
}

#[tokio::test]
async fn scenario_12_mailbox_started_in_the_middle_does_not_cover_earlier_positions() {
    let system = TestFanout::new(Bounds::default());
    system.deliver("m5", 5, None).await;
    system.deliver("m6", 6, Some(5)).await;
    assert!(!system.read(Some(position_at(4))).await.recovered);
    assert_eq!(offsets(&system.read(Some(position_at(5))).await), [6]);
}
