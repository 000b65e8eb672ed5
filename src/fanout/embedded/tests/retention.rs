//! Tests of the retention: what the store holds and for how long, and what survives a restart.

use super::*;

#[tokio::test]
async fn restart_loses_only_the_text_in_flight() {
    for system in TestFanout::in_memory_and_on_disk(&Bounds::default()) {
        check_restart(system).await;
    }
}

async fn check_restart(mut system: TestFanout) {
    let owner = Owner::random();
    let start = system.read(None).await;
    system.admit("unanswered").await;
    system.attempt("unanswered", &owner, 0).await;
    system.open("unanswered", &owner, 1, "a").await;
    system.admit("kept").await;
    system.attempt("kept", &owner, 0).await;
    system.keep("kept", &owner, 1, "answer").await;
    system.deliver("delivered", 0, None).await;
    system
        .fanout
        .cancel(&user(), &message_id("stop"))
        .await
        .unwrap();
    let ttl = Duration::from_secs(60);
    system.fanout.issue_token(&user(), "t", ttl).await.unwrap();
    system
        .fanout
        .set_marker(&position_at(0).epoch)
        .await
        .unwrap();

    system.restart();

    assert_eq!(system.admit("kept").await, AdmissionDecision::OutcomeStored);
    assert_eq!(
        system.renew("unanswered", &owner, 1, 1).await,
        StreamResponse::DataLost
    );
    let view = system.read(Some(start.end)).await;
    assert_eq!(offsets(&view), [0]);
    assert_ne!(view.number.counter, start.number.counter);
    let pending: Vec<_> = view
        .pending
        .iter()
        .map(|pending| &pending.message_id)
        .collect();
    assert_eq!(pending, [&message_id("unanswered"), &message_id("kept")]);
    assert!(matches!(
        system.begin("stop", &owner, 0).await,
        BeginResponse::Ended(_)
    ));
    assert_eq!(system.context().await.len(), 3);
    let token = system.fanout.issue_token(&user(), "u", ttl).await.unwrap();
    assert_eq!(token, ("t".to_owned(), 60));
    assert!(
        system
            .fanout
            .has_marker(&position_at(0).epoch)
            .await
            .unwrap()
    );
    assert_eq!(
        system.deliver("delivered", 0, None).await,
        DeliverResponse::AlreadyDelivered
    );
}

#[tokio::test]
async fn mailbox_trimmed_by_count_size_or_age_is_not_recovered() {
    let bytes = frame("m0", "delivered").len();
    let two_frames = Bounds {
        mailbox_frames: 2,
        ..Bounds::default()
    };
    let two_frame_sizes = Bounds {
        mailbox_bytes: 2 * bytes + 1,
        ..Bounds::default()
    };
    for mut system in [two_frames, two_frame_sizes]
        .iter()
        .flat_map(TestFanout::in_memory_and_on_disk)
    {
        let empty = system.read(None).await.end;
        for offset in 0..2 {
            system.deliver(&format!("m{offset}"), offset, None).await;
        }
        assert_eq!(offsets(&system.read(Some(empty.clone())).await), [0, 1]);
        // The restart discards the sizes of the frames in memory, so trimming reads them from the
        // store.
        system.restart();
        for offset in 2..4 {
            system.deliver(&format!("m{offset}"), offset, None).await;
        }
        assert!(!system.read(Some(empty)).await.recovered);
        assert!(!system.read(Some(position_at(0))).await.recovered);
        assert_eq!(offsets(&system.read(Some(position_at(1))).await), [2, 3]);
        assert!(
            !system.read(Some(position_at(4))).await.recovered,
            "beyond the end"
        );
        // After `mailbox_ttl` the frames have expired, but the mailbox's end stays.
        system.advance_clock(DAY_MS);
        let view = system.read(Some(position_at(1))).await;
        assert!(!view.recovered);
        assert_eq!(view.end, position_at(3));
        let view = system.read(Some(position_at(3))).await;
        assert!(view.recovered && view.frames.is_empty());
        assert_eq!(
            system.deliver("m9", 9, Some(3)).await,
            DeliverResponse::Published(0)
        );
    }
}

#[tokio::test]
async fn recreated_topic_starts_an_empty_mailbox() {
    let system = TestFanout::new(Bounds::default());
    system.deliver("m5", 5, None).await;
    let other = Position {
        epoch: Epoch::new("cluster", "1", 0),
        offset: 5,
    };
    let call = delivery("m0", other.clone(), Some(position_at(5)));
    assert_eq!(
        system.fanout.deliver(call).await.unwrap(),
        DeliverResponse::Published(0)
    );
    let view = system.read(Some(position_at(5))).await;
    assert!(!view.recovered);
    assert_eq!(view.end, other);
    assert!(system.read(Some(other)).await.recovered);
}

#[tokio::test]
async fn paged_read_returns_every_frame_once() {
    let system = TestFanout::new(Bounds::default());
    let mut after = system.read(None).await.end;
    for offset in 0..40 {
        system.deliver(&format!("m{offset}"), offset, None).await;
    }
    let mut received = Vec::new();
    loop {
        let call = ReadRequest {
            user: user(),
            after: Some(after.clone()),
            from_start: false,
            max_bytes: 500,
        };
        let view = system.fanout.read(call).await.unwrap();
        received.extend(offsets(&view));
        after.clone_from(&view.frames.last().unwrap().0);
        if !view.has_more {
            break;
        }
    }
    assert_eq!(received, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn history_is_bounded_and_context_omits_failed_turns() {
    let system = TestFanout::new(Bounds {
        history_turns: 3,
        ..Bounds::default()
    });
    for offset in 0..5 {
        let call = DeliverRequest {
            answer: offset.to_string(),
            status: if offset == 3 {
                TurnStatus::Failed
            } else {
                TurnStatus::Answered
            },
            ..delivery(&format!("m{offset}"), position_at(offset), None)
        };
        system.fanout.deliver(call).await.unwrap();
    }
    let answers: Vec<_> = system
        .context()
        .await
        .into_iter()
        .map(|(_, answer)| answer)
        .collect();
    assert_eq!(answers, ["2", "4"]);
    let turns = system.store.scan(Table::History, b"", b"\xff", 99, false);
    assert_eq!(
        turns.unwrap().len(),
        6,
        "three turns and their index entries"
    );
    system.advance_clock(3_600_000);
    assert!(
        system.context().await.is_empty(),
        "the newest turn is too old"
    );
}

#[tokio::test]
async fn expired_entries_are_invisible_at_once_and_removed_later() {
    let system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    system.admit("unanswered").await;
    system.attempt("kept", &owner, 0).await;
    system.keep("kept", &owner, 1, "answer").await;
    system.deliver("delivered", 0, None).await;
    system
        .fanout
        .cancel(&user(), &message_id("stop"))
        .await
        .unwrap();
    let ttl = Duration::from_secs(60);
    system.fanout.issue_token(&user(), "t", ttl).await.unwrap();

    system.advance_clock(DAY_MS - 1);
    assert!(system.read(None).await.pending.is_empty());
    assert!(system.read(None).await.in_flight.is_empty());
    let token = system.fanout.stored_token(&user()).await.unwrap();
    assert_eq!(token, None);
    system.sweep();
    assert_eq!(system.admit("kept").await, AdmissionDecision::OutcomeStored);
    assert!(
        system
            .store
            .get(Table::Users, b"alice\0t")
            .unwrap()
            .is_none()
    );

    system.advance_clock(1);
    assert_eq!(system.admit("kept").await, AdmissionDecision::New);
    assert_eq!(system.attempt("stop", &owner, 0).await, 1);
    system.advance_clock(3 * DAY_MS);
    system.sweep();
    assert_eq!(system.entry_count(), 4, "two turns and their index entries");
    system.advance_clock(30 * DAY_MS);
    system.sweep();
    assert_eq!(system.entry_count(), 0);
    assert_eq!(system.fanout.users.loaded_count(), 1);
    system.advance_clock(60_000);
    system.sweep();
    assert_eq!(system.fanout.users.loaded_count(), 0);
}

#[tokio::test]
async fn users_with_a_common_name_prefix_share_nothing() {
    let system = TestFanout::new(Bounds::default());
    system.deliver("m", 0, None).await;
    for name in ["alic", "alicea", "alice.b"] {
        let view = system
            .fanout
            .read(ReadRequest {
                user: UserId::parse(name).unwrap(),
                after: Some(position_at(0)),
                from_start: false,
                max_bytes: 1000,
            })
            .await
            .unwrap();
        assert!(!view.recovered && view.frames.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn store_of_another_version_is_refused() {
    let store = Store::in_memory();
    let mut batch = Batch::default();
    batch.put(Table::Users, keys::LAYOUT_VERSION_KEY, b"3");
    store.commit(batch).unwrap();
    let error = EmbeddedFanout::open(store, Bounds::default()).unwrap_err();
    assert!(error.to_string().contains("another version"), "{error}");
}

#[tokio::test]
async fn store_of_layout_1_is_read_and_gets_the_current_version() {
    for mut system in TestFanout::in_memory_and_on_disk(&Bounds::default()) {
        system.deliver("m", 0, None).await;
        let mut batch = Batch::default();
        batch.put(Table::Users, keys::LAYOUT_VERSION_KEY, b"1");
        system.store.commit(batch).unwrap();

        system.restart();

        assert_eq!(system.context().await, [(None, "delivered".to_owned())]);
        let version = system.store.get(Table::Users, keys::LAYOUT_VERSION_KEY);
        assert_eq!(version.unwrap().as_deref(), Some(LAYOUT_VERSION));
    }
}

#[tokio::test]
async fn parts_of_an_answer_are_in_the_history() {
    for mut system in TestFanout::in_memory_and_on_disk(&Bounds::default()) {
        let owner = Owner::random();
        let parts: Arc<str> =
            r#"[{"kind":"reasoning","length":7},{"kind":"text","length":9}]"#.into();
        let kept = |parts: Option<&Arc<str>>| KeepRequest {
            message: message_ref("kept"),
            owner: owner.clone(),
            attempt: 1,
            outcome: Arc::new(NewOutcome {
                turn: Turn {
                    parts: parts.cloned(),
                    ..new_outcome("kept", "delivered", TurnStatus::Answered).turn
                },
                ..new_outcome("kept", "delivered", TurnStatus::Answered)
            }),
            cancelled_outcome: new_outcome("kept", "stopped", TurnStatus::Cancelled).into(),
        };
        system.attempt("kept", &owner, 0).await;
        system.fanout.keep(kept(Some(&parts))).await.unwrap();
        let rebuilt = DeliverRequest {
            parts: Some(parts.clone()),
            ..delivery("rebuilt", position_at(0), None)
        };
        system.fanout.deliver(rebuilt).await.unwrap();
        assert_eq!(
            turn_parts(&system).await,
            [Some(parts.clone()), Some(parts.clone())]
        );

        // The delivered record has other parts than the turn that was stored with the outcome.
        let other: Arc<str> = r#"[{"kind":"refusal","length":9}]"#.into();
        let delivered = DeliverRequest {
            parts: Some(other.clone()),
            ..delivery("kept", position_at(1), None)
        };
        system.fanout.deliver(delivered).await.unwrap();
        system.restart();
        assert_eq!(
            turn_parts(&system).await,
            [Some(parts.clone()), Some(other)]
        );
    }
}

/// The parts of each turn in the history, newest first.
async fn turn_parts(system: &TestFanout) -> Vec<Option<Arc<str>>> {
    let conversation = ConversationId::default_conversation();
    let turns = system
        .fanout
        .history(&user(), &conversation, None, 50)
        .await
        .unwrap()
        .unwrap();
    turns.into_iter().map(|turn| turn.parts).collect()
}

#[tokio::test]
async fn dropping_the_fanout_releases_the_store() {
    let fanout = EmbeddedFanout::open(Store::in_memory(), Bounds::default()).unwrap();
    let users = Arc::downgrade(&fanout.users);
    drop(fanout);
    assert!(users.upgrade().is_none());
}

#[tokio::test]
async fn failed_call_resets_the_state_in_memory() {
    let system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    let failure = || FanoutError::Unavailable("disk".into());
    let users = &system.fanout.users;
    let fail = |panics: bool| {
        users.with_state(&user(), |state, _| {
            // Change the state in memory only, so that the call fails before its commit.
            state.cancel_marks.insert(message_id("m"), i64::MAX);
            assert!(!panics, "a call that panics");
            Err::<(), _>(failure())
        })
    };
    for panics in [false, true] {
        system.attempt("m", &owner, 0).await;
        let before = system.read(None).await;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fail(panics)));
        assert_eq!(result.is_err(), panics);
        assert_eq!(
            system.open("m", &owner, 1, "a").await,
            StreamResponse::DataLost
        );
        let after = system.read(None).await;
        assert_eq!(after.end, before.end);
        assert_ne!(after.number.counter, before.number.counter);
    }
}

#[tokio::test]
async fn forgotten_messages_stay_forgotten_after_a_restart() {
    for mut system in TestFanout::in_memory_and_on_disk(&Bounds::default()) {
        let owner = Owner::random();
        system.attempt("delivered", &owner, 0).await;
        system.keep("delivered", &owner, 1, "answer").await;
        system.deliver("delivered", 0, None).await;
        system.admit("unanswered").await;
        system.attempt("unanswered", &owner, 0).await;
        system.open("unanswered", &owner, 1, "a").await;
        assert!(system.fanout.forget(&user(), None).await.unwrap());

        system.restart();

        assert_eq!(
            system.admit("delivered").await,
            AdmissionDecision::Forgotten
        );
        assert_eq!(
            system.renew("unanswered", &owner, 1, 1).await,
            StreamResponse::Cancelled
        );
        let response = system.keep("unanswered", &owner, 1, "answer").await;
        assert_eq!(outcome_frame(response), frame("unanswered", "stopped"));
        system.deliver("unanswered", 1, Some(0)).await;
        assert!(system.context().await.is_empty());
        let view = system.read(Some(position_at(0))).await;
        assert!(view.recovered && view.frames.is_empty() && view.pending.is_empty());
        assert_eq!(view.end, position_at(1));

        // The tombstones have expired, so the message is admitted like a new message.
        system.advance_clock(3 * DAY_MS);
        system.sweep();
        assert_eq!(system.entry_count(), 0);
        assert_eq!(system.admit("delivered").await, AdmissionDecision::New);
    }
}
