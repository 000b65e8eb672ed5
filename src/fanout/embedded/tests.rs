//! What only this implementation has: its clock, its memory, its sweep, its restart. And the
//! interleavings of `docs/scenarios.md`, by their numbers.

use std::sync::atomic::AtomicU64;

use super::sweep::Sweep;
use super::*;
use crate::fanout::{Channel, Ending, LEASE, Outcome, Owner, TurnStatus};
use crate::protocol::position::Position;

const DAY_MS: i64 = 24 * 3600 * 1000;

struct Bench {
    fanout: EmbeddedFanout,
    store: Store,
    clock: Arc<AtomicI64>,
    random: Arc<AtomicU64>,
    bounds: Bounds,
}

impl Bench {
    fn new(bounds: Bounds) -> Self {
        Self::on(Store::in_memory(), bounds)
    }

    fn on(store: Store, bounds: Bounds) -> Self {
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000));
        let random = Arc::new(AtomicU64::new(1));
        Self {
            fanout: open(&store, &bounds, &clock, &random),
            store,
            clock,
            random,
            bounds,
        }
    }

    fn pass(&self, ms: i64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }

    /// As after the process's death: what was in memory only is gone.
    fn restart(&mut self) {
        self.fanout = open(&self.store, &self.bounds, &self.clock, &self.random);
    }

    /// As a fan-out that lost everything.
    fn empty(&mut self) {
        self.store = Store::in_memory();
        self.restart();
    }

    fn sweep(&self) {
        let mut sweep = Sweep::new(Arc::clone(&self.fanout.users));
        while !sweep.step().unwrap() {}
    }

    fn entries(&self) -> usize {
        [Table::Users, Table::History]
            .into_iter()
            .map(|table| {
                let all = self.store.scan(table, b"\x01", b"\xff", usize::MAX, false);
                all.unwrap().len()
            })
            .sum()
    }

    async fn admit(&self, message: &str) -> Admitted {
        self.fanout.admit(&subject(message), "hi?").await.unwrap()
    }

    async fn begin(&self, message: &str, owner: &Owner, had: u32) -> Begun {
        let call = Begin {
            subject: subject(message),
            owner: owner.clone(),
            had,
            cancelled: ending(message, "stopped", TurnStatus::Cancelled),
        };
        self.fanout.begin(call).await.unwrap()
    }

    async fn attempt(&self, message: &str, owner: &Owner, had: u32) -> u32 {
        match self.begin(message, owner, had).await {
            Begun::Attempt { number, .. } => number,
            other => panic!("no attempt: {other:?}"),
        }
    }

    async fn live(&self, message: &str, owner: &Owner, attempt: u32, delta: u32) -> LiveReply {
        let call = Live {
            subject: subject(message),
            owner: owner.clone(),
            attempt,
            delta: Some((delta, format!("[{attempt}.{delta}]"))),
        };
        self.fanout.live(call).await.unwrap()
    }

    async fn keep(&self, message: &str, owner: &Owner, attempt: u32, answer: &str) -> Kept {
        let call = Keep {
            subject: subject(message),
            owner: owner.clone(),
            attempt,
            ending: ending(message, answer, TurnStatus::Answered),
            cancelled: ending(message, "stopped", TurnStatus::Cancelled),
        };
        self.fanout.keep(call).await.unwrap()
    }

    async fn deliver(&self, message: &str, offset: i64, known: Option<i64>) -> Delivered {
        self.fanout
            .deliver(delivery(message, at(offset), known.map(at)))
            .await
            .unwrap()
    }

    async fn read(&self, after: Option<Position>) -> Look {
        let call = Read {
            user: user(),
            after,
            max_bytes: usize::MAX,
        };
        self.fanout.read(call).await.unwrap()
    }

    async fn context(&self) -> Vec<(Option<String>, String)> {
        self.fanout
            .context(
                &user(),
                &ConversationId::default_conversation(),
                50,
                Duration::from_secs(3600),
            )
            .await
            .unwrap()
            .into_iter()
            .map(|turn| (turn.question, turn.answer))
            .collect()
    }
}

fn open(
    store: &Store,
    bounds: &Bounds,
    clock: &Arc<AtomicI64>,
    random: &Arc<AtomicU64>,
) -> EmbeddedFanout {
    let (clock, random) = (Arc::clone(clock), Arc::clone(random));
    let environment = Environment {
        clock: Box::new(move || clock.load(Ordering::Relaxed)),
        random: Box::new(move || random.fetch_add(1, Ordering::Relaxed)),
    };
    EmbeddedFanout::with_environment(store.clone(), bounds.clone(), environment).unwrap()
}

fn user() -> UserId {
    UserId::parse("alice").unwrap()
}

fn message(name: &str) -> MessageId {
    MessageId::parse(name).unwrap()
}

fn subject(name: &str) -> Subject {
    Subject {
        user: user(),
        message_id: message(name),
        id: None,
        conversation: ConversationId::default_conversation(),
    }
}

fn frame(name: &str, answer: &str) -> String {
    format!(r#"{{"type":"response","message_id":"{name}","content":"{answer}"}}"#)
}

fn ending(name: &str, answer: &str, status: TurnStatus) -> Ending {
    Ending {
        frame: frame(name, answer),
        turn: Turn {
            message_id: message(name),
            question: Some("hi?".into()),
            answer: answer.into(),
            status,
            at_ms: 0,
        },
    }
}

fn at(offset: i64) -> Position {
    Position {
        epoch: Epoch::new("cluster", "0", 0),
        offset,
    }
}

fn delivery(name: &str, position: Position, known: Option<Position>) -> Deliver {
    Deliver {
        user: user(),
        message_id: message(name),
        conversation: Some(ConversationId::default_conversation()),
        frame: frame(name, "delivered"),
        position,
        known,
        rewind: false,
        answer: "delivered".into(),
        status: TurnStatus::Answered,
    }
}

fn offsets(look: &Look) -> Vec<i64> {
    look.frames.iter().map(|(at, _)| at.offset).collect()
}

fn outcome_frame(kept: Kept) -> String {
    match kept {
        Kept::Outcome(outcome) => outcome.frame,
        Kept::Fenced => panic!("fenced"),
    }
}

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
    let expected = Outcome {
        frame: frame("m", "delivered"),
        delivered: Some(at(3)),
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
async fn a_restart_loses_the_text_and_nothing_else() {
    let mut bench = Bench::new(Bounds::default());
    let owner = Owner::random();
    let start = bench.read(None).await;
    bench.admit("open").await;
    bench.attempt("open", &owner, 0).await;
    bench.live("open", &owner, 1, 0).await;
    bench.admit("kept").await;
    bench.attempt("kept", &owner, 0).await;
    bench.keep("kept", &owner, 1, "answer").await;
    bench.deliver("delivered", 0, None).await;
    bench
        .fanout
        .cancel(&user(), &message("stop"))
        .await
        .unwrap();
    let ttl = Duration::from_secs(60);
    bench.fanout.issue_token(&user(), "t", ttl).await.unwrap();
    bench.fanout.set_marker(&at(0).epoch).await.unwrap();

    bench.restart();

    assert_eq!(bench.admit("kept").await, Admitted::Kept);
    assert_eq!(bench.live("open", &owner, 1, 1).await, LiveReply::Lost);
    let look = bench.read(Some(start.end)).await;
    assert_eq!(offsets(&look), [0]);
    assert_ne!(look.n_id, start.n_id);
    let pending: Vec<_> = look.pending.iter().map(|one| &one.message_id).collect();
    assert_eq!(pending, [&message("open"), &message("kept")]);
    assert!(matches!(
        bench.begin("stop", &owner, 0).await,
        Begun::Ended(_)
    ));
    assert_eq!(bench.context().await.len(), 3);
    let token = bench.fanout.issue_token(&user(), "u", ttl).await.unwrap();
    assert_eq!(token, ("t".to_owned(), 60));
    assert!(bench.fanout.marker_present(&at(0).epoch).await.unwrap());
    assert_eq!(
        bench.deliver("delivered", 0, None).await,
        Delivered::Already
    );
}

#[tokio::test]
async fn a_mailbox_says_when_it_was_trimmed_by_number_bytes_or_age() {
    let bytes = frame("m0", "delivered").len();
    let number = Bounds {
        mailbox_frames: 2,
        ..Bounds::default()
    };
    let size = Bounds {
        mailbox_bytes: 2 * bytes + 1,
        ..Bounds::default()
    };
    for bounds in [number, size] {
        let mut bench = Bench::new(bounds);
        let empty = bench.read(None).await.end;
        for offset in 0..2 {
            bench.deliver(&format!("m{offset}"), offset, None).await;
        }
        assert_eq!(offsets(&bench.read(Some(empty.clone())).await), [0, 1]);
        // The frames' sizes have to be read again after this.
        bench.restart();
        for offset in 2..4 {
            bench.deliver(&format!("m{offset}"), offset, None).await;
        }
        assert!(!bench.read(Some(empty)).await.recovered);
        assert!(!bench.read(Some(at(0))).await.recovered);
        assert_eq!(offsets(&bench.read(Some(at(1))).await), [2, 3]);
        assert!(!bench.read(Some(at(4))).await.recovered, "beyond the end");
        // So far only what was removed is known to be gone; with age goes the rest.
        bench.pass(DAY_MS);
        let look = bench.read(Some(at(1))).await;
        assert!(!look.recovered);
        assert_eq!(look.end, at(3));
        let look = bench.read(Some(at(3))).await;
        assert!(look.recovered && look.frames.is_empty());
        assert_eq!(
            bench.deliver("m9", 9, Some(3)).await,
            Delivered::Published(0)
        );
    }
}

#[tokio::test]
async fn s12_a_mailbox_made_from_the_middle_covers_nothing_older() {
    let bench = Bench::new(Bounds::default());
    bench.deliver("m5", 5, None).await;
    bench.deliver("m6", 6, Some(5)).await;
    assert!(!bench.read(Some(at(4))).await.recovered);
    assert_eq!(offsets(&bench.read(Some(at(5))).await), [6]);
}

#[tokio::test]
async fn a_topic_made_anew_begins_the_mailbox_anew() {
    let bench = Bench::new(Bounds::default());
    bench.deliver("m5", 5, None).await;
    let other = Position {
        epoch: Epoch::new("cluster", "1", 0),
        offset: 5,
    };
    let call = delivery("m0", other.clone(), Some(at(5)));
    assert_eq!(
        bench.fanout.deliver(call).await.unwrap(),
        Delivered::Published(0)
    );
    let look = bench.read(Some(at(5))).await;
    assert!(!look.recovered);
    assert_eq!(look.end, other);
    assert!(bench.read(Some(other)).await.recovered);
}

#[tokio::test]
async fn a_read_in_pieces_brings_every_frame_once() {
    let bench = Bench::new(Bounds::default());
    let mut after = bench.read(None).await.end;
    for offset in 0..40 {
        bench.deliver(&format!("m{offset}"), offset, None).await;
    }
    let mut seen = Vec::new();
    loop {
        let call = Read {
            user: user(),
            after: Some(after.clone()),
            max_bytes: 500,
        };
        let look = bench.fanout.read(call).await.unwrap();
        seen.extend(offsets(&look));
        after.clone_from(&look.frames.last().unwrap().0);
        if !look.more {
            break;
        }
    }
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_history_is_bounded_and_leaves_failed_turns_out_of_the_context() {
    let bench = Bench::new(Bounds {
        history_turns: 3,
        ..Bounds::default()
    });
    for offset in 0..5 {
        let call = Deliver {
            answer: offset.to_string(),
            status: if offset == 3 {
                TurnStatus::Failed
            } else {
                TurnStatus::Answered
            },
            ..delivery(&format!("m{offset}"), at(offset), None)
        };
        bench.fanout.deliver(call).await.unwrap();
    }
    let answers: Vec<_> = bench.context().await.into_iter().map(|one| one.1).collect();
    assert_eq!(answers, ["2", "4"]);
    let turns = bench.store.scan(Table::History, b"", b"\xff", 99, false);
    assert_eq!(turns.unwrap().len(), 6, "three turns and their index");
    bench.pass(3_600_000);
    assert!(bench.context().await.is_empty(), "nobody spoke for so long");
}

#[tokio::test]
async fn what_is_too_old_is_gone_at_once_and_then_removed() {
    let bench = Bench::new(Bounds::default());
    let owner = Owner::random();
    bench.admit("open").await;
    bench.attempt("kept", &owner, 0).await;
    bench.keep("kept", &owner, 1, "answer").await;
    bench.deliver("delivered", 0, None).await;
    bench
        .fanout
        .cancel(&user(), &message("stop"))
        .await
        .unwrap();
    let ttl = Duration::from_secs(60);
    bench.fanout.issue_token(&user(), "t", ttl).await.unwrap();

    bench.pass(DAY_MS - 1);
    assert!(bench.read(None).await.pending.is_empty());
    assert!(bench.read(None).await.in_flight.is_empty());
    let token = bench.fanout.stored_token(&user()).await.unwrap();
    assert_eq!(token, None);
    bench.sweep();
    assert_eq!(bench.admit("kept").await, Admitted::Kept);
    assert!(
        bench
            .store
            .get(Table::Users, b"alice\0t")
            .unwrap()
            .is_none()
    );

    bench.pass(1);
    assert_eq!(bench.admit("kept").await, Admitted::New);
    assert_eq!(bench.attempt("stop", &owner, 0).await, 1);
    bench.pass(3 * DAY_MS);
    bench.sweep();
    assert_eq!(bench.entries(), 4, "two turns and their index");
    bench.pass(30 * DAY_MS);
    bench.sweep();
    assert_eq!(bench.entries(), 0);
    assert_eq!(bench.fanout.users.loaded(), 1);
    bench.pass(60_000);
    bench.sweep();
    assert_eq!(bench.fanout.users.loaded(), 0);
}

#[tokio::test]
async fn frames_come_numbered_in_order_by_their_channel() {
    let bench = Bench::new(Bounds::default());
    let (feed, mut events) = bench.fanout.feed(16).await.unwrap();
    for channel in [Channel::Terminal, Channel::Live, Channel::Live] {
        feed.subscribe(&user(), channel).await.unwrap();
    }
    let owner = Owner::random();
    bench.attempt("m", &owner, 0).await;
    bench.live("m", &owner, 1, 0).await;
    bench.attempt("m", &owner, 1).await;
    assert_eq!(bench.deliver("m", 0, None).await, Delivered::Published(1));
    let rewound = Deliver {
        rewind: true,
        ..delivery("r", at(1), None)
    };
    bench.fanout.deliver(rewound).await.unwrap();
    let look = bench.read(None).await;

    let expected = [
        (Channel::Live, "delta"),
        (Channel::Live, "restarted"),
        (Channel::Terminal, "response"),
        (Channel::Live, "response"),
    ];
    for (n, expected) in (1..).zip(expected) {
        let Some(FeedEvent::Frame {
            channel, payload, ..
        }) = events.recv().await
        else {
            panic!("no frame");
        };
        let frame: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((channel, frame["type"].as_str().unwrap()), expected);
        assert_eq!(frame["n"], n);
        assert_eq!(frame["n_id"], look.n_id);
    }
    assert_eq!(look.n, 4);

    feed.unsubscribe(&user(), Channel::Terminal).await.unwrap();
    assert_eq!(bench.deliver("s", 2, None).await, Delivered::Published(0));
    drop(feed);
    bench
        .fanout
        .deliver(Deliver {
            rewind: true,
            ..delivery("t", at(3), None)
        })
        .await
        .unwrap();
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_reader_that_falls_behind_is_told_of_the_gap_after_what_it_has() {
    let bench = Bench::new(Bounds::default());
    let (feed, mut events) = bench.fanout.feed(2).await.unwrap();
    feed.subscribe(&user(), Channel::Terminal).await.unwrap();
    for offset in 0..5 {
        bench.deliver(&format!("m{offset}"), offset, None).await;
    }
    // Nothing more is published: the gap has to come by itself.
    for _ in 0..2 {
        assert!(matches!(events.recv().await, Some(FeedEvent::Frame { .. })));
    }
    assert!(matches!(events.recv().await, Some(FeedEvent::Gap)));
    bench.deliver("m5", 5, None).await;
    assert!(matches!(events.recv().await, Some(FeedEvent::Frame { .. })));
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn users_whose_names_begin_alike_share_nothing() {
    let bench = Bench::new(Bounds::default());
    bench.deliver("m", 0, None).await;
    for name in ["alic", "alicea", "alice.b"] {
        let look = bench
            .fanout
            .read(Read {
                user: UserId::parse(name).unwrap(),
                after: Some(at(0)),
                max_bytes: 1000,
            })
            .await
            .unwrap();
        assert!(!look.recovered && look.frames.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_store_of_another_version_is_refused() {
    let store = Store::in_memory();
    let mut batch = Batch::default();
    batch.put(Table::Users, keys::VERSION, b"2");
    store.commit(batch).unwrap();
    let error = EmbeddedFanout::open(store, Bounds::default()).unwrap_err();
    assert!(error.to_string().contains("another version"), "{error}");
}

#[tokio::test]
async fn dropping_the_fanout_lets_go_of_the_store() {
    let fanout = EmbeddedFanout::open(Store::in_memory(), Bounds::default()).unwrap();
    let users = Arc::downgrade(&fanout.users);
    drop(fanout);
    assert!(users.upgrade().is_none());
}
