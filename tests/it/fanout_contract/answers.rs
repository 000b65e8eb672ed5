//! Who may write an answer, and which answer counts.

use chatmesh::fanout::{
    AdmissionDecision, BeginResponse, DeliverResponse, KeepResponse, LiveResponse, Owner,
};
use chatmesh::protocol::open_message::CancelResult;

use super::case::{Backend, Case, attempt, kept, outcome, published, terminal};

pub(crate) async fn s2_the_answer_that_was_seen_first_wins(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    case.answer(&message, "first").await;
    assert!(published(case.deliver(&message, 10, "first").await));
    case.lose_data().await;

    // Another worker answers again before the relay has rewound.
    case.answer(&message, "second").await;
    let mut rewound = case.delivery(&message, 10, "first");
    rewound.is_rewind = true;
    assert!(published(case.deliver_call(rewound).await));
    let mut second = case.delivery(&message, 11, "second");
    second.known_end = Some(case.at(10));
    assert_eq!(
        case.deliver_call(second).await,
        DeliverResponse::AlreadyDelivered
    );

    let frames = case.after(&case.at(10)).await.unwrap();
    assert!(frames.is_empty(), "a second terminal frame: {frames:?}");
    let known = outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(known.frame, terminal("first"));
    assert_eq!(known.delivered_at, Some(case.at(10)));
    assert_eq!(case.context(&message.conversation).await[0].answer, "first");
}

pub(crate) async fn s4_after_data_loss_the_text_begins_anew(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    let (first, second) = (Owner::random(), Owner::random());
    assert_eq!(attempt(&case.begin(&message, &first, 0).await), 1);
    case.live(&message, &first, 1, Some((0, "old"))).await;
    case.lose_data().await;
    assert_eq!(attempt(&case.begin(&message, &second, 0).await), 1);
    let reply = case.live(&message, &second, 1, Some((0, "new"))).await;
    assert_eq!(reply, LiveResponse::Written);
    // The one that had attempt 1 before can't write into this one.
    let reply = case.live(&message, &first, 1, Some((1, "er"))).await;
    assert_eq!(reply, LiveResponse::Fenced);
    assert_eq!(case.read(None).await.in_flight[0].text, "new");
}

pub(crate) async fn s5_a_stale_piece_is_refused_after_beginning_again(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let first = attempt(&case.begin(&message, &owner, 0).await);
    case.live(&message, &owner, first, Some((0, "old"))).await;
    case.lose_data().await;
    assert_eq!(
        case.live(&message, &owner, first, Some((1, "er"))).await,
        LiveResponse::DataLost
    );

    let second = attempt(&case.begin(&message, &owner, first).await);
    assert!(second > first);
    let stale = case.live(&message, &owner, first, Some((0, "old"))).await;
    assert_eq!(stale, LiveResponse::Fenced);
    let reply = case.live(&message, &owner, second, Some((0, "new"))).await;
    assert_eq!(reply, LiveResponse::Written);
    // A stale copy of the first `begin` changes nothing either.
    assert_eq!(attempt(&case.begin(&message, &owner, 0).await), second);
    assert_eq!(case.read(None).await.in_flight[0].text, "new");
}

pub(crate) async fn s6_a_repeated_begin_keeps_attempt_and_text(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let number = attempt(&case.begin(&message, &owner, 0).await);
    case.live(&message, &owner, number, Some((0, "text"))).await;
    assert_eq!(attempt(&case.begin(&message, &owner, 0).await), number);
    let answer = &case.read(None).await.in_flight[0];
    assert_eq!((answer.text.as_str(), answer.index), ("text", 1));
    // Naming it as had asks for another one.
    let next = attempt(&case.begin(&message, &owner, number).await);
    assert_eq!(next, number + 1);
    let answer = &case.read(None).await.in_flight[0];
    assert_eq!((answer.text.as_str(), answer.index), ("", 0));
}

pub(crate) async fn s7_a_rebuilt_outcome_spares_the_model(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    case.answer(&message, "paid").await;
    case.deliver(&message, 5, "paid").await;
    case.lose_data().await;
    let mut rewound = case.delivery(&message, 5, "paid");
    rewound.is_rewind = true;
    assert!(published(case.deliver_call(rewound).await));

    let known = outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(known.frame, terminal("paid"));
    assert_eq!(known.delivered_at, Some(case.at(5)));
    assert!(case.read(None).await.in_flight.is_empty());
}

pub(crate) async fn s8_a_resent_message_is_told_what_is_known(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    assert_eq!(case.admit(&message).await, AdmissionDecision::New);
    case.answer(&message, "text").await;
    assert_eq!(case.admit(&message).await, AdmissionDecision::OutcomeStored);
    case.deliver(&message, 7, "text").await;
    assert_eq!(
        case.admit(&message).await,
        AdmissionDecision::Delivered(terminal("text"), case.at(7))
    );
    assert!(case.read(None).await.pending.is_empty());
}

pub(crate) async fn s13_a_worker_that_wakes_up_gets_the_other_ones_outcome(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (asleep, other) = (Owner::random(), Owner::random());
    let first = attempt(&case.begin(&message, &asleep, 0).await);
    case.live(&message, &asleep, first, Some((0, "mine"))).await;
    let second = attempt(&case.begin_when_free(&message, &other, 0).await);
    assert_eq!(second, first + 1);
    // Awake, but not the owner any more.
    assert_eq!(
        case.keep(&message, &asleep, first, "mine").await,
        KeepResponse::Fenced
    );
    kept(case.keep(&message, &other, second, "theirs").await);
    let known = kept(case.keep(&message, &asleep, first, "mine").await);
    assert_eq!(known.frame, terminal("theirs"));
    let turns = case.context(&message.conversation).await;
    assert_eq!(turns.len(), 1);
    assert_eq!(turns[0].answer, "theirs");
}

pub(crate) async fn s14_cancel_before_begin(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::Unknown);
    assert_eq!(case.admit(&message).await, AdmissionDecision::New);
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::Cancelling);
    let known = outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(known.frame, terminal("stopped early"));
    assert_eq!(known.delivered_at, None);
}

pub(crate) async fn s14_cancel_while_it_streams(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.admit(&message).await;
    let owner = Owner::random();
    let number = attempt(&case.begin(&message, &owner, 0).await);
    case.live(&message, &owner, number, Some((0, "a"))).await;
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::Cancelling);
    let reply = case.live(&message, &owner, number, Some((1, "b"))).await;
    assert_eq!(reply, LiveResponse::Cancelled);
    assert_eq!(
        case.live(&message, &owner, number, None).await,
        LiveResponse::Cancelled
    );
    let known = kept(case.keep(&message, &owner, number, "a").await);
    assert_eq!(known.frame, terminal("stopped"));
}

pub(crate) async fn s14_cancel_between_last_piece_and_keep(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.admit(&message).await;
    let owner = Owner::random();
    let number = attempt(&case.begin(&message, &owner, 0).await);
    case.live(&message, &owner, number, Some((0, "all"))).await;
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::Cancelling);
    let known = kept(case.keep(&message, &owner, number, "all").await);
    assert_eq!(known.frame, terminal("stopped"));
    let turns = case.context(&message.conversation).await;
    assert_eq!(turns[0].answer, "stopped");
}

pub(crate) async fn s14_cancel_after_the_end(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.admit(&message).await;
    case.answer(&message, "all").await;
    let result = case.fanout.cancel(&case.user, &message.message_id).await;
    assert_eq!(result.unwrap(), CancelResult::AlreadyDone);
    let known = outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(known.frame, terminal("all"));
}

pub(crate) async fn s15_two_gateways_admit_one_message(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (one, other) = tokio::join!(case.admit(&message), case.admit(&message));
    assert_eq!(
        (one, other),
        (AdmissionDecision::New, AdmissionDecision::New)
    );
    assert_eq!(case.read(None).await.pending.len(), 1);
    // Two records: the first one is answered, the second gets that answer and pays nothing.
    case.answer(&message, "once").await;
    let known = outcome(case.begin(&message, &Owner::random(), 0).await);
    assert_eq!(known.frame, terminal("once"));
    assert!(published(case.deliver(&message, 1, "once").await));
    assert_eq!(
        case.deliver(&message, 2, "once").await,
        DeliverResponse::AlreadyDelivered
    );
    assert_eq!(case.context(&message.conversation).await.len(), 1);
}

pub(crate) async fn a_lease_keeps_others_out_until_it_runs_out(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (one, other) = (Owner::random(), Owner::random());
    case.begin(&message, &one, 0).await;
    let BeginResponse::Busy(first) = case.begin(&message, &other, 0).await else {
        panic!("the lease did not hold");
    };
    assert!(first <= chatmesh::fanout::LEASE, "{first:?}");
    tokio::time::sleep(first / 2).await;
    let renewed = case.live(&message, &one, 1, None).await;
    assert_eq!(renewed, LiveResponse::Written);
    tokio::time::sleep(first / 2 + std::time::Duration::from_millis(50)).await;
    assert!(matches!(
        case.begin(&message, &other, 0).await,
        BeginResponse::Busy(_)
    ));
    assert_eq!(attempt(&case.begin_when_free(&message, &other, 0).await), 2);
    assert_eq!(
        case.live(&message, &one, 1, None).await,
        LiveResponse::Fenced
    );
}

pub(crate) async fn live_tells_fenced_lost_and_expected_apart(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let early = case.live(&message, &owner, 1, Some((0, "a"))).await;
    assert_eq!(early, LiveResponse::DataLost);
    case.begin(&message, &owner, 0).await;
    let written = case.live(&message, &owner, 1, Some((0, "a"))).await;
    assert_eq!(written, LiveResponse::Written);
    for (index, expected) in [(0, 1), (5, 1)] {
        let reply = case.live(&message, &owner, 1, Some((index, "x"))).await;
        assert_eq!(reply, LiveResponse::Expected(expected));
    }
    for (who, number) in [(&owner, 2), (&Owner::random(), 1)] {
        let reply = case.live(&message, who, number, Some((1, "x"))).await;
        assert_eq!(reply, LiveResponse::Fenced);
    }
    assert_eq!(case.read(None).await.in_flight[0].text, "a");
    kept(case.keep(&message, &owner, 1, "a").await);
    let late = case.live(&message, &owner, 1, Some((1, "b"))).await;
    assert_eq!(late, LiveResponse::Fenced);
}

pub(crate) async fn keep_without_anything_in_flight_stores(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let number = attempt(&case.begin(&message, &owner, 0).await);
    case.lose_data().await;
    let known = kept(case.keep(&message, &owner, number, "saved").await);
    assert_eq!(known.frame, terminal("saved"));
    assert_eq!(case.context(&message.conversation).await.len(), 1);
}

pub(crate) async fn keep_of_another_attempt_is_fenced(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    case.begin(&message, &owner, 0).await;
    let number = attempt(&case.begin(&message, &owner, 1).await);
    let stale = case.keep(&message, &owner, number - 1, "stale").await;
    assert_eq!(stale, KeepResponse::Fenced);
    assert!(case.context(&message.conversation).await.is_empty());
}

pub(crate) async fn repeats_of_every_call_change_nothing(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    for _ in 0..2 {
        assert_eq!(case.admit(&message).await, AdmissionDecision::New);
    }
    for _ in 0..2 {
        assert_eq!(attempt(&case.begin(&message, &owner, 0).await), 1);
    }
    let written = case.live(&message, &owner, 1, Some((0, "a"))).await;
    assert_eq!(written, LiveResponse::Written);
    let again = case.live(&message, &owner, 1, Some((0, "a"))).await;
    assert_eq!(again, LiveResponse::Expected(1));
    for _ in 0..2 {
        let known = kept(case.keep(&message, &owner, 1, "a").await);
        assert_eq!(known.frame, terminal("a"));
    }
    let numbered = case.read(None).await.n;
    assert!(published(case.deliver(&message, 3, "a").await));
    for _ in 0..2 {
        assert_eq!(
            case.deliver(&message, 3, "a").await,
            DeliverResponse::AlreadyDelivered
        );
    }
    let look = case.read(None).await;
    assert_eq!(look.n, numbered + 1, "a repeat was published");
    assert_eq!(look.end, case.at(3));
    assert!(look.in_flight.is_empty() && look.pending.is_empty());
    assert_eq!(case.context(&message.conversation).await.len(), 1);
    // Late copies of what came before the delivery open nothing again.
    assert_eq!(
        outcome(case.begin(&message, &owner, 0).await).delivered_at,
        Some(case.at(3))
    );
    let known = kept(case.keep(&message, &owner, 1, "b").await);
    assert_eq!(known.frame, terminal("a"));
    assert!(case.read(None).await.in_flight.is_empty());
}

pub(crate) async fn the_text_is_shown_until_it_is_delivered(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let owner = Owner::random();
    let number = attempt(&case.begin(&message, &owner, 0).await);
    case.live(&message, &owner, number, Some((0, "text"))).await;
    kept(case.keep(&message, &owner, number, "text").await);
    let shown = &case.read(None).await.in_flight[0];
    assert_eq!(shown.message_id, message.message_id);
    assert_eq!((shown.text.as_str(), shown.index), ("text", 1));
    case.deliver(&message, 0, "text").await;
    assert!(case.read(None).await.in_flight.is_empty());
}

pub(crate) async fn takings_count_owners_and_not_their_repeats(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    let (one, other) = (Owner::random(), Owner::random());
    let taken = |begun: BeginResponse| match begun {
        BeginResponse::Attempt { number, taking, .. } => (number, taking),
        begun => panic!("expected an attempt, got {begun:?}"),
    };
    assert_eq!(taken(case.begin(&message, &one, 0).await), (1, 1));
    assert_eq!(taken(case.begin(&message, &one, 0).await), (1, 1));
    assert_eq!(taken(case.begin(&message, &one, 1).await), (2, 1));
    assert_eq!(
        taken(case.begin_when_free(&message, &other, 0).await),
        (3, 2)
    );
    assert_eq!(taken(case.begin(&message, &other, 3).await), (4, 2));
    // The first one again, after the second has stalled.
    assert_eq!(taken(case.begin_when_free(&message, &one, 2).await), (5, 2));
    let next = case.message();
    assert_eq!(taken(case.begin(&next, &one, 0).await), (1, 1));
}
