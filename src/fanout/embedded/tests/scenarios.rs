//! The interleavings of `docs/scenarios.md`, by their numbers.

use super::*;
use crate::fanout::{LEASE, StoredOutcome};

#[tokio::test]
async fn an_answer_goes_its_way_from_admission_to_the_mailbox() {
    let bench = Bench::new(Bounds::default());
    let (owner, other) = (Owner::random(), Owner::random());
    assert_eq!(bench.admit("m").await, Admitted::New);
    assert_eq!(bench.attempt("m", &owner, 0).await, 1);
    assert!(matches!(bench.begin("m", &other, 0).await, Begun::Busy(left) if left == LEASE));
    assert_eq!(bench.live("m", &owner, 1, 0).await, LiveReply::Written);
    let start = bench.read(None).await;
    assert_eq!(start.in_flight[0].text, "[1.0]");
    assert_eq!(start.pending[0].content, "hi?");
    bench.keep("m", &owner, 1, "delivered").await;
    assert_eq!(bench.admit("m").await, Admitted::Kept);
    assert_eq!(bench.deliver("m", 7, None).await, Delivered::Published(0));
    let look = bench.read(Some(start.end)).await;
    assert!(look.recovered && look.in_flight.is_empty() && look.pending.is_empty());
    assert_eq!(look.frames, [(at(7), frame("m", "delivered"))]);
    assert_eq!(look.end, at(7));
    assert_eq!(
        bench.admit("m").await,
        Admitted::Delivered(frame("m", "delivered"), at(7))
    );
    let turns = bench.context().await;
    assert_eq!(turns, [(Some("hi?".to_owned()), "delivered".to_owned())]);
}

#[tokio::test]
async fn s2_an_answer_given_twice_reaches_the_client_once() {
    let mut bench = Bench::new(Bounds::default());
    let (one, two) = (Owner::random(), Owner::random());
    bench.attempt("m", &one, 0).await;
    bench.keep("m", &one, 1, "first").await;
    bench.empty();
    assert_eq!(bench.attempt("m", &two, 0).await, 1);
    bench.keep("m", &two, 1, "second").await;
    let first = Deliver {
        frame: frame("m", "first"),
        answer: "first".into(),
        ..delivery("m", at(0), None)
    };
    let second = delivery("m", at(1), Some(at(0)));
    assert_eq!(
        bench.fanout.deliver(first).await.unwrap(),
        Delivered::Published(0)
    );
    assert_eq!(
        bench.fanout.deliver(second).await.unwrap(),
        Delivered::Already
    );
    // What the client is told is what counts, and the relay may name the second as known.
    assert_eq!(bench.context().await[0].1, "first");
    assert_eq!(
        bench.deliver("n", 2, Some(1)).await,
        Delivered::Published(0)
    );
    assert_eq!(offsets(&bench.read(Some(at(0))).await), [2]);
}

#[tokio::test]
async fn s3_a_mailbox_that_ends_below_what_is_known_is_rewound_first() {
    let mut bench = Bench::new(Bounds::default());
    bench.deliver("r0", 10, None).await;
    bench.empty();
    assert_eq!(bench.deliver("r1", 11, Some(10)).await, Delivered::Lost);
    let look = bench.read(None).await;
    assert_eq!(
        bench.deliver("r1", 11, Some(10)).await,
        Delivered::Lost,
        "the empty mailbox that a read made knows nothing either"
    );
    assert_eq!(bench.deliver("r0", 10, None).await, Delivered::Published(0));
    assert_eq!(
        bench.deliver("r1", 11, Some(10)).await,
        Delivered::Published(0)
    );
    assert_eq!(offsets(&bench.read(Some(look.end)).await), [10, 11]);
}

#[tokio::test]
async fn s5_a_stale_copy_of_a_fenced_workers_text_is_refused() {
    let mut bench = Bench::new(Bounds::default());
    let owner = Owner::random();
    assert_eq!(bench.attempt("m", &owner, 0).await, 1);
    assert_eq!(bench.attempt("m", &owner, 1).await, 2);
    bench.empty();
    assert_eq!(bench.live("m", &owner, 2, 0).await, LiveReply::Lost);
    assert_eq!(bench.attempt("m", &owner, 2).await, 3);
    assert_eq!(bench.live("m", &owner, 2, 0).await, LiveReply::Fenced);
    assert_eq!(bench.live("m", &owner, 3, 0).await, LiveReply::Written);
    assert_eq!(bench.read(None).await.in_flight[0].text, "[3.0]");
}

#[tokio::test]
async fn s6_a_repeated_begin_keeps_the_text() {
    let bench = Bench::new(Bounds::default());
    let owner = Owner::random();
    assert_eq!(bench.attempt("m", &owner, 0).await, 1);
    bench.live("m", &owner, 1, 0).await;
    assert_eq!(bench.attempt("m", &owner, 0).await, 1);
    assert_eq!(bench.live("m", &owner, 1, 0).await, LiveReply::Expected(1));
    assert_eq!(bench.live("m", &owner, 1, 1).await, LiveReply::Written);
    assert_eq!(bench.read(None).await.in_flight[0].text, "[1.0][1.1]");
}

#[tokio::test]
async fn s7_a_redelivered_message_is_answered_from_its_delivered_outcome() {
    let mut bench = Bench::new(Bounds::default());
    bench.empty();
    bench.deliver("m", 3, None).await;
    let expected = StoredOutcome {
        frame: frame("m", "delivered"),
        delivered_at: Some(at(3)),
    };
    let begun = bench.begin("m", &Owner::random(), 0).await;
    assert_eq!(begun, Begun::Ended(expected));
    assert!(bench.read(None).await.in_flight.is_empty());
    assert_eq!(bench.context().await, [(None, "delivered".to_owned())]);
}

#[tokio::test]
async fn s13_a_worker_that_wakes_after_another_ended_gets_the_others_outcome() {
    let bench = Bench::new(Bounds::default());
    let (stalled, other) = (Owner::random(), Owner::random());
    bench.attempt("m", &stalled, 0).await;
    bench.live("m", &stalled, 1, 0).await;
    bench.pass(3_000);
    assert_eq!(bench.attempt("m", &other, 0).await, 2);
    assert_eq!(bench.live("m", &stalled, 1, 1).await, LiveReply::Fenced);
    assert_eq!(bench.keep("m", &stalled, 1, "mine").await, Kept::Fenced);
    bench.keep("m", &other, 2, "theirs").await;
    let kept = bench.keep("m", &stalled, 1, "mine").await;
    assert_eq!(outcome_frame(kept), frame("m", "theirs"));
    assert_eq!(bench.live("m", &other, 2, 0).await, LiveReply::Fenced);
    assert_eq!(bench.context().await.len(), 1);
    assert_eq!(bench.context().await[0].1, "theirs");
}

#[tokio::test]
async fn s14_a_cancel_counts_whenever_it_comes() {
    let bench = Bench::new(Bounds::default());
    let owner = Owner::random();
    let cancel = async |name| {
        let cancelled = bench.fanout.cancel(&user(), &message(name)).await;
        cancelled.unwrap()
    };

    bench.admit("before").await;
    assert_eq!(cancel("before").await, CancelResult::Cancelling);
    assert!(
        matches!(bench.begin("before", &owner, 0).await, Begun::Ended(end) if end.frame == frame("before", "stopped"))
    );

    bench.admit("during").await;
    bench.attempt("during", &owner, 0).await;
    bench.live("during", &owner, 1, 0).await;
    assert_eq!(cancel("during").await, CancelResult::Cancelling);
    assert_eq!(
        bench.live("during", &owner, 1, 1).await,
        LiveReply::Cancelled
    );
    let kept = bench.keep("during", &owner, 1, "whole").await;
    assert_eq!(outcome_frame(kept), frame("during", "stopped"));
    assert_eq!(cancel("during").await, CancelResult::AlreadyDone);

    bench.admit("late").await;
    bench.attempt("late", &owner, 0).await;
    cancel("late").await;
    let kept = bench.keep("late", &owner, 1, "whole").await;
    assert_eq!(outcome_frame(kept), frame("late", "stopped"));

    assert_eq!(cancel("unseen").await, CancelResult::Unknown);
    assert_eq!(bench.context().await.len(), 3);
}

#[tokio::test]
async fn s15_an_id_admitted_twice_is_answered_once() {
    let bench = Bench::new(Bounds::default());
    let (one, two) = (Owner::random(), Owner::random());
    assert_eq!(bench.admit("m").await, Admitted::New);
    assert_eq!(bench.admit("m").await, Admitted::New);
    assert_eq!(bench.read(None).await.pending.len(), 1);
    bench.attempt("m", &one, 0).await;
    assert!(matches!(bench.begin("m", &two, 0).await, Begun::Busy(_)));
    bench.keep("m", &one, 1, "only").await;
    assert!(
        matches!(bench.begin("m", &two, 0).await, Begun::Ended(end) if end.frame == frame("m", "only"))
    );
    // Both records of it are produced.
    assert_eq!(bench.deliver("m", 0, None).await, Delivered::Published(0));
    assert_eq!(bench.deliver("m", 1, Some(0)).await, Delivered::Already);
    assert_eq!(bench.context().await.len(), 1);
}

#[tokio::test]
async fn s12_a_mailbox_made_from_the_middle_covers_nothing_older() {
    let bench = Bench::new(Bounds::default());
    bench.deliver("m5", 5, None).await;
    bench.deliver("m6", 6, Some(5)).await;
    assert!(!bench.read(Some(at(4))).await.recovered);
    assert_eq!(offsets(&bench.read(Some(at(5))).await), [6]);
}
