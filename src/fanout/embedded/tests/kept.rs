//! What is kept, how long, and what a restart leaves of it.

use super::*;

#[tokio::test]
async fn a_restart_loses_the_text_and_nothing_else() {
    for bench in Bench::both(&Bounds::default()) {
        restart(bench).await;
    }
}

async fn restart(mut bench: Bench) {
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
    assert!(bench.fanout.has_marker(&at(0).epoch).await.unwrap());
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
    for mut bench in [number, size].iter().flat_map(Bench::both) {
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
            from_start: false,
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
async fn users_whose_names_begin_alike_share_nothing() {
    let bench = Bench::new(Bounds::default());
    bench.deliver("m", 0, None).await;
    for name in ["alic", "alicea", "alice.b"] {
        let look = bench
            .fanout
            .read(Read {
                user: UserId::parse(name).unwrap(),
                after: Some(at(0)),
                from_start: false,
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

#[tokio::test]
async fn after_a_failed_call_nothing_in_memory_is_believed() {
    let bench = Bench::new(Bounds::default());
    let owner = Owner::random();
    let failure = || FanoutError::Unavailable("disk".into());
    let users = &bench.fanout.users;
    let fail = |panics: bool| {
        users.with(&user(), |state, _| {
            // What the store never got.
            state.marks.insert(message("m"), i64::MAX);
            assert!(!panics, "a fault of a rule");
            Err::<(), _>(failure())
        })
    };
    for panics in [false, true] {
        bench.attempt("m", &owner, 0).await;
        let before = bench.read(None).await;
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fail(panics)));
        assert_eq!(failed.is_err(), panics);
        assert_eq!(bench.live("m", &owner, 1, 0).await, LiveReply::Lost);
        let after = bench.read(None).await;
        assert_eq!(after.end, before.end);
        assert_ne!(after.n_id, before.n_id);
    }
}

#[tokio::test]
async fn a_restart_forgets_nothing_that_was_forgotten() {
    for mut bench in Bench::both(&Bounds::default()) {
        let owner = Owner::random();
        bench.attempt("told", &owner, 0).await;
        bench.keep("told", &owner, 1, "answer").await;
        bench.deliver("told", 0, None).await;
        bench.admit("open").await;
        bench.attempt("open", &owner, 0).await;
        bench.live("open", &owner, 1, 0).await;
        assert!(bench.fanout.forget(&user(), None).await.unwrap());

        bench.restart();

        assert_eq!(bench.admit("told").await, Admitted::Forgotten);
        assert_eq!(bench.live("open", &owner, 1, 1).await, LiveReply::Cancelled);
        let kept = bench.keep("open", &owner, 1, "answer").await;
        assert_eq!(outcome_frame(kept), frame("open", "stopped"));
        bench.deliver("open", 1, Some(0)).await;
        assert!(bench.context().await.is_empty());
        let look = bench.read(Some(at(0))).await;
        assert!(look.recovered && look.frames.is_empty() && look.pending.is_empty());
        assert_eq!(look.end, at(1));

        // The notes go with their time.
        bench.pass(3 * DAY_MS);
        bench.sweep();
        assert_eq!(bench.entries(), 0);
        assert_eq!(bench.admit("told").await, Admitted::New);
    }
}
