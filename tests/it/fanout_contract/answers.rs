//! Ownership of answers, and which outcome is final.

use std::time::Duration;

use chatmesh::fanout::{
    AdmissionDecision, BeginResponse, DeliverResponse, KeepResponse, Owner, StreamResponse,
};
use chatmesh::protocol::open_message::CancelResult;

use super::case::{
    Backend, Case, attempt_number, ended_outcome, is_confirmed, is_published, piece,
    stored_outcome, terminal_frame, texts,
};

pub(crate) async fn scenario_2_first_delivered_answer_wins(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    case.answer(&message, "first").await;
    assert!(is_published(case.deliver(&message, 10, "first").await));
    case.lose_data().await;

    // Another worker answers again before the relay has rewound.
    case.answer(&message, "second").await;
    let mut rewind_delivery = case.delivery(&message, 10, "first");
    rewind_delivery.is_rewind = true;
    assert!(is_published(case.deliver_call(rewind_delivery).await));
    let mut second_delivery = case.delivery(&message, 11, "second");
    second_delivery.known_end = Some(case.position(10));
    assert_eq!(
        case.deliver_call(second_delivery).await,
        DeliverResponse::AlreadyDelivered
    );

    let frames = case.frames_after(&case.position(10)).await.unwrap();
    assert!(
        frames.is_empty(),
        "expected no second terminal frame, got {frames:?}"
    );
    let stored = ended_outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(stored.frame, terminal_frame("first"));
    assert_eq!(stored.delivered_at, Some(case.position(10)));
    assert_eq!(case.context(&message.conversation).await[0].answer, "first");
}

pub(crate) async fn scenario_4_text_starts_over_after_data_loss(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    let (first, second) = (Owner::random(), Owner::random());
    assert_eq!(attempt_number(&case.begin(&message, &first, 0).await), 1);
    case.open_text(&message, &first, 1, "old").await;
    case.lose_data().await;
    assert_eq!(attempt_number(&case.begin(&message, &second, 0).await), 1);
    let response = case.open_text(&message, &second, 1, "new").await;
    assert_eq!(response, StreamResponse::Confirmed(1));
    // The owner of the lost attempt 1 is fenced off from the new attempt 1.
    let late = case.append(&message, &first, 1, piece(0, 3, "er")).await;
    assert_eq!(late, 0);
    let response = case.renew(&message, &first, 1, (1, 3)).await;
    assert_eq!(response, StreamResponse::Fenced);
    assert_eq!(texts(&case.answer_in_flight().await), ["new"]);
}

pub(crate) async fn scenario_5_stale_text_is_ignored_after_a_new_begin(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let first = attempt_number(&case.begin(&message, &owner, 0).await);
    case.open_text(&message, &owner, first, "old").await;
    case.lose_data().await;
    let late = case.append(&message, &owner, first, piece(0, 3, "er"));
    assert_eq!(late.await, 0);
    for (parts, length) in [(1, 3), (0, 0)] {
        let response = case.renew(&message, &owner, first, (parts, length)).await;
        assert_eq!(response, StreamResponse::DataLost);
    }
    let response = case.open_text(&message, &owner, first, "old").await;
    assert_eq!(response, StreamResponse::DataLost);

    let second = attempt_number(&case.begin(&message, &owner, first).await);
    assert!(second > first);
    let stale = case.open_text(&message, &owner, first, "old").await;
    assert_eq!(stale, StreamResponse::Fenced);
    let response = case.open_text(&message, &owner, second, "new").await;
    assert_eq!(response, StreamResponse::Confirmed(1));
    let late = case.append(&message, &owner, first, piece(0, 3, "er"));
    assert_eq!(late.await, 0);
    // A stale repeat of the first `begin` changes nothing either.
    assert_eq!(
        attempt_number(&case.begin(&message, &owner, 0).await),
        second
    );
    assert_eq!(texts(&case.answer_in_flight().await), ["new"]);
}

pub(crate) async fn scenario_6_repeated_begin_keeps_attempt_and_text(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let number = attempt_number(&case.begin(&message, &owner, 0).await);
    case.open_text(&message, &owner, number, "text").await;
    assert_eq!(
        attempt_number(&case.begin(&message, &owner, 0).await),
        number
    );
    let answer = case.answer_in_flight().await;
    assert_eq!(answer.stream, owner.stream(number));
    assert_eq!(texts(&answer), ["text"]);
    // A `begin` that names the current attempt as its last one requests a new attempt.
    let next = attempt_number(&case.begin(&message, &owner, number).await);
    assert_eq!(next, number + 1);
    let answer = case.answer_in_flight().await;
    assert_eq!(answer.stream, owner.stream(next));
    assert!(answer.parts.is_empty());
}

pub(crate) async fn scenario_7_rebuilt_outcome_makes_a_model_call_unnecessary(
    backend: &dyn Backend,
) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    case.answer(&message, "text").await;
    case.deliver(&message, 5, "text").await;
    case.lose_data().await;
    let mut rewind_delivery = case.delivery(&message, 5, "text");
    rewind_delivery.is_rewind = true;
    assert!(is_published(case.deliver_call(rewind_delivery).await));

    let stored = ended_outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(stored.frame, terminal_frame("text"));
    assert_eq!(stored.delivered_at, Some(case.position(5)));
    assert!(case.read(None).await.in_flight.is_empty());
}

pub(crate) async fn scenario_8_resent_message_gets_its_known_outcome(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    assert_eq!(case.admit(&message).await, AdmissionDecision::New);
    case.answer(&message, "text").await;
    assert_eq!(case.admit(&message).await, AdmissionDecision::OutcomeStored);
    case.deliver(&message, 7, "text").await;
    assert_eq!(
        case.admit(&message).await,
        AdmissionDecision::Delivered(terminal_frame("text"), case.position(7))
    );
    assert!(case.read(None).await.pending.is_empty());
}

pub(crate) async fn scenario_13_stalled_worker_gets_the_outcome_of_its_successor(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (stalled, successor) = (Owner::random(), Owner::random());
    let first = attempt_number(&case.begin(&message, &stalled, 0).await);
    case.open_text(&message, &stalled, first, "mine").await;
    let second = attempt_number(&case.begin_when_free(&message, &successor, 0).await);
    assert_eq!(second, first + 1);
    // The stalled worker continues, but no longer owns the answer.
    assert_eq!(
        case.keep(&message, &stalled, first, "mine").await,
        KeepResponse::Fenced
    );
    stored_outcome(case.keep(&message, &successor, second, "theirs").await);
    let stored = stored_outcome(case.keep(&message, &stalled, first, "mine").await);
    assert_eq!(stored.frame, terminal_frame("theirs"));
    let turns = case.context(&message.conversation).await;
    assert_eq!(turns.len(), 1);
    assert_eq!(turns[0].answer, "theirs");
}

pub(crate) async fn scenario_14_cancel_before_begin(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::Unknown);
    assert_eq!(case.admit(&message).await, AdmissionDecision::New);
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::Cancelling);
    let stored = ended_outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(stored.frame, terminal_frame("stopped early"));
    assert_eq!(stored.delivered_at, None);
}

pub(crate) async fn scenario_14_cancel_while_streaming(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.admit(&message).await;
    let owner = Owner::random();
    let number = attempt_number(&case.begin(&message, &owner, 0).await);
    case.open_text(&message, &owner, number, "a").await;
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::Cancelling);
    let response = case.renew(&message, &owner, number, (1, 1)).await;
    assert_eq!(response, StreamResponse::Cancelled);
    let response = case.open_text(&message, &owner, number, "a").await;
    assert_eq!(response, StreamResponse::Cancelled);
    let stored = stored_outcome(case.keep(&message, &owner, number, "a").await);
    assert_eq!(stored.frame, terminal_frame("stopped"));
}

pub(crate) async fn scenario_14_cancel_between_the_last_delta_and_keep(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.admit(&message).await;
    let owner = Owner::random();
    let number = attempt_number(&case.begin(&message, &owner, 0).await);
    case.open_text(&message, &owner, number, "all").await;
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::Cancelling);
    let stored = stored_outcome(case.keep(&message, &owner, number, "all").await);
    assert_eq!(stored.frame, terminal_frame("stopped"));
    let turns = case.context(&message.conversation).await;
    assert_eq!(turns[0].answer, "stopped");
}

pub(crate) async fn scenario_14_cancel_after_the_outcome(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.admit(&message).await;
    case.answer(&message, "all").await;
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::AlreadyDone);
    let stored = ended_outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(stored.frame, terminal_frame("all"));
}

pub(crate) async fn scenario_15_message_admitted_by_two_gateways_is_answered_once(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (first, second) = tokio::join!(case.admit(&message), case.admit(&message));
    assert_eq!(
        (first, second),
        (AdmissionDecision::New, AdmissionDecision::New)
    );
    assert_eq!(case.read(None).await.pending.len(), 1);
    // The log has two records: the first one is answered, and the second gets the same outcome
    // without a model call.
    case.answer(&message, "once").await;
    let stored = ended_outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(stored.frame, terminal_frame("once"));
    assert!(is_published(case.deliver(&message, 1, "once").await));
    assert_eq!(
        case.deliver(&message, 2, "once").await,
        DeliverResponse::AlreadyDelivered
    );
    assert_eq!(case.context(&message.conversation).await.len(), 1);
}

pub(crate) async fn lease_excludes_other_owners_until_it_expires(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (first_owner, other_owner) = (Owner::random(), Owner::random());
    case.begin(&message, &first_owner, 0).await;
    let BeginResponse::Busy(remaining) = case.begin(&message, &other_owner, 0).await else {
        panic!("expected the lease to exclude another owner");
    };
    assert!(remaining <= chatmesh::fanout::LEASE, "{remaining:?}");
    tokio::time::sleep(remaining / 2).await;
    let renewed = case.renew(&message, &first_owner, 1, (0, 0)).await;
    assert!(is_confirmed(renewed), "{renewed:?}");
    tokio::time::sleep(remaining / 2 + Duration::from_millis(50)).await;
    assert!(matches!(
        case.begin(&message, &other_owner, 0).await,
        BeginResponse::Busy(_)
    ));
    assert_eq!(
        attempt_number(&case.begin_when_free(&message, &other_owner, 0).await),
        2
    );
    let response = case.renew(&message, &first_owner, 1, (0, 0)).await;
    assert_eq!(response, StreamResponse::Fenced);
}

pub(crate) async fn only_a_renewal_extends_the_lease(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (owner, other_owner) = (Owner::random(), Owner::random());
    case.begin(&message, &owner, 0).await;
    let remaining = async || match case.begin(&message, &other_owner, 0).await {
        BeginResponse::Busy(remaining) => remaining,
        response => panic!("expected a lease, got {response:?}"),
    };
    let at_the_beginning = remaining().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    case.open_text(&message, &owner, 1, "a").await;
    case.append(&message, &owner, 1, piece(0, 1, "b")).await;
    let after_two_pieces = remaining().await;
    assert!(after_two_pieces + Duration::from_millis(90) <= at_the_beginning);
    case.renew(&message, &owner, 1, (1, 2)).await;
    assert!(remaining().await > after_two_pieces);
}

pub(crate) async fn keep_without_an_answer_in_flight_stores_the_outcome(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let number = attempt_number(&case.begin(&message, &owner, 0).await);
    case.lose_data().await;
    let stored = stored_outcome(case.keep(&message, &owner, number, "saved").await);
    assert_eq!(stored.frame, terminal_frame("saved"));
    assert_eq!(case.context(&message.conversation).await.len(), 1);
}

pub(crate) async fn keep_of_another_attempt_is_fenced(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    case.begin(&message, &owner, 0).await;
    let number = attempt_number(&case.begin(&message, &owner, 1).await);
    let stale = case.keep(&message, &owner, number - 1, "stale").await;
    assert_eq!(stale, KeepResponse::Fenced);
    assert!(case.context(&message.conversation).await.is_empty());
}

pub(crate) async fn repeated_calls_change_nothing(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    for _ in 0..2 {
        assert_eq!(case.admit(&message).await, AdmissionDecision::New);
    }
    for _ in 0..2 {
        assert_eq!(attempt_number(&case.begin(&message, &owner, 0).await), 1);
    }
    for _ in 0..2 {
        let response = case.open_text(&message, &owner, 1, "a").await;
        assert_eq!(response, StreamResponse::Confirmed(1));
    }
    for _ in 0..2 {
        let stored = stored_outcome(case.keep(&message, &owner, 1, "a").await);
        assert_eq!(stored.frame, terminal_frame("a"));
    }
    let number_before = case.read(None).await.number.n;
    assert!(is_published(case.deliver(&message, 3, "a").await));
    for _ in 0..2 {
        assert_eq!(
            case.deliver(&message, 3, "a").await,
            DeliverResponse::AlreadyDelivered
        );
    }
    let view = case.read(None).await;
    assert_eq!(
        view.number.n,
        number_before + 1,
        "expected no publication of a repeated call"
    );
    assert_eq!(view.end, case.position(3));
    assert!(view.in_flight.is_empty() && view.pending.is_empty());
    assert_eq!(case.context(&message.conversation).await.len(), 1);
    // Calls that are repeated after the delivery do not open the message again.
    assert_eq!(
        ended_outcome(case.begin(&message, &owner, 0).await).delivered_at,
        Some(case.position(3))
    );
    let stored = stored_outcome(case.keep(&message, &owner, 1, "b").await);
    assert_eq!(stored.frame, terminal_frame("a"));
    assert!(case.read(None).await.in_flight.is_empty());
}

pub(crate) async fn text_in_flight_is_returned_until_the_delivery(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let number = attempt_number(&case.begin(&message, &owner, 0).await);
    case.open_text(&message, &owner, number, "text").await;
    stored_outcome(case.keep(&message, &owner, number, "text").await);
    let answer = case.answer_in_flight().await;
    assert_eq!(answer.message_id, message.message_id);
    assert_eq!(texts(&answer), ["text"]);
    case.deliver(&message, 0, "text").await;
    assert!(case.read(None).await.in_flight.is_empty());
}

pub(crate) async fn delivery_count_counts_owners_and_not_their_repeats(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (first_owner, second_owner) = (Owner::random(), Owner::random());
    let attempt_and_count = |response: BeginResponse| match response {
        BeginResponse::Attempt {
            number,
            delivery_count,
            ..
        } => (number, delivery_count),
        response => panic!("expected an attempt, got {response:?}"),
    };
    assert_eq!(
        attempt_and_count(case.begin(&message, &first_owner, 0).await),
        (1, 1)
    );
    assert_eq!(
        attempt_and_count(case.begin(&message, &first_owner, 0).await),
        (1, 1)
    );
    assert_eq!(
        attempt_and_count(case.begin(&message, &first_owner, 1).await),
        (2, 1)
    );
    assert_eq!(
        attempt_and_count(case.begin_when_free(&message, &second_owner, 0).await),
        (3, 2)
    );
    assert_eq!(
        attempt_and_count(case.begin(&message, &second_owner, 3).await),
        (4, 2)
    );
    // The first owner begins again, after the second owner has stalled.
    assert_eq!(
        attempt_and_count(case.begin_when_free(&message, &first_owner, 2).await),
        (5, 2)
    );
    let next_message = case.message();
    assert_eq!(
        attempt_and_count(case.begin(&next_message, &first_owner, 0).await),
        (1, 1)
    );
}
