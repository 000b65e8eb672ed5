//! Mailboxes: what a client that reconnects receives.

use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{DeliverResponse, DeliveredOutcome, MessageRef, ReadRequest};
use chatmesh::protocol::position::{Epoch, Position};

use super::case::{Backend, Case, is_published, terminal, unique};

pub(crate) async fn scenario_1_deliver_repeated_before_the_rewind_reports_data_loss(
    backend: &dyn Backend,
) {
    let mut case = Case::new(backend).await;
    let (r0, r1) = (case.message(), case.message());
    assert!(is_published(case.deliver(&r0, 0, "r0").await));
    case.lose_data().await;
    let mut repeated = case.delivery(&r1, 1, "r1");
    repeated.known_end = Some(case.at(0));
    assert_eq!(
        case.deliver_call(repeated.clone()).await,
        DeliverResponse::DataLost
    );
    // The same where a gateway has created the empty mailbox since.
    let empty = case.read(None).await.end;
    assert_eq!(
        case.deliver_call(repeated.clone()).await,
        DeliverResponse::DataLost
    );
    assert_eq!(
        case.read(None).await.end,
        empty,
        "a call that reports data loss must change nothing"
    );

    let mut rewound = case.delivery(&r0, 0, "r0");
    rewound.is_rewind = true;
    assert!(is_published(case.deliver_call(rewound).await));
    assert!(is_published(case.deliver_call(repeated).await));
    let frames = case.after(&case.at(0)).await.unwrap();
    assert_eq!(frames, [(1, terminal("r1"))]);
}

pub(crate) async fn scenario_3_rewind_restores_rolled_back_frames(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let (r0, r1) = (case.message(), case.message());
    case.deliver(&r0, 0, "r0").await;
    case.deliver(&r1, 1, "r1").await;
    case.lose_data().await;
    // Another relay rewinds after its assignment; it has no known end of the user.
    for (message, offset, text) in [(&r0, 0, "r0"), (&r1, 1, "r1")] {
        let mut rewound = case.delivery(message, offset, text);
        rewound.is_rewind = true;
        assert!(is_published(case.deliver_call(rewound).await));
    }
    let frames = case.after(&case.at(0)).await.unwrap();
    assert_eq!(frames, [(1, terminal("r1"))]);
    assert_eq!(case.read(None).await.end, case.at(1));
}

pub(crate) async fn read_reports_up_to_where_a_rewind_rebuilt_the_mailbox(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    assert_eq!(case.read(None).await.rebuilt_up_to, None);
    for (offset, is_rewind, expected) in
        [(3, true, Some(3)), (5, true, Some(5)), (6, false, Some(5))]
    {
        let mut call = case.delivery(&case.message(), offset, "x");
        call.is_rewind = is_rewind;
        assert!(is_published(case.deliver_call(call).await));
        let rebuilt = case.read(None).await.rebuilt_up_to;
        assert_eq!(rebuilt, expected.map(|offset| case.at(offset)));
    }
    // A frame that is present is not appended again.
    let mut call = case.delivery(&case.message(), 6, "x");
    call.is_rewind = true;
    assert!(!is_published(case.deliver_call(call).await));
    // Another process reads the same.
    let other = Case::for_user(backend, Bounds::default(), case.user.clone()).await;
    assert_eq!(other.read(None).await.rebuilt_up_to, Some(case.at(5)));
    // The mailbox in another epoch is a new one.
    let mut call = case.delivery(&case.message(), 1, "x");
    call.position.epoch = Epoch::new("moved", "0", 4);
    assert!(is_published(case.deliver_call(call).await));
    assert_eq!(case.read(None).await.rebuilt_up_to, None);
}

pub(crate) async fn scenario_12_mailbox_rebuilt_from_the_middle_is_not_recovered_before_its_start(
    backend: &dyn Backend,
) {
    let mut case = Case::new(backend).await;
    case.deliver(&case.message(), 4, "old").await;
    case.lose_data().await;
    case.deliver(&case.message(), 8, "new").await;
    assert_eq!(case.after(&case.at(4)).await, None);
    assert_eq!(case.after(&case.at(7)).await, None);
    assert_eq!(case.after(&case.at(8)).await, Some(vec![]));
}

pub(crate) async fn empty_mailbox_has_a_valid_position(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let first = case.read(None).await;
    assert!(!first.recovered, "no position was given");
    assert_eq!((first.number.n, first.frames.len()), (0, 0));
    assert_eq!(case.read(None).await.end, first.end);
    assert_eq!(case.after(&first.end).await, Some(vec![]));

    case.deliver(&case.message(), 40, "a").await;
    case.deliver(&case.message(), 41, "b").await;
    let frames = case.after(&first.end).await.unwrap();
    assert_eq!(frames, [(40, terminal("a")), (41, terminal("b"))]);
    // No client was given a position in between, so frames before it may have been missed.
    assert_eq!(case.after(&case.at(39)).await, None);
    // The position of a lost mailbox is invalid in the new one.
    case.lose_data().await;
    assert_eq!(case.after(&first.end).await, None);
}

pub(crate) async fn mailbox_created_by_deliver_starts_at_its_first_frame(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 10, "a").await;
    case.deliver(&case.message(), 12, "b").await;
    assert_eq!(case.after(&case.at(9)).await, None);
    let frames = case.after(&case.at(10)).await.unwrap();
    assert_eq!(frames, [(12, terminal("b"))]);
    assert_eq!(case.after(&case.at(12)).await, Some(vec![]));
    assert_eq!(case.after(&case.at(13)).await, None, "beyond the end");
}

pub(crate) async fn mailbox_is_bounded_in_frames(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_frames: 3,
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    let empty = case.read(None).await.end;
    for offset in 0..5 {
        case.deliver(&case.message(), offset, "x").await;
    }
    assert_eq!(case.after(&empty).await, None);
    assert_eq!(case.after(&case.at(0)).await, None);
    assert_eq!(case.after(&case.at(1)).await.unwrap().len(), 3);
    assert_eq!(case.after(&case.at(4)).await, Some(vec![]));
}

pub(crate) async fn mailbox_is_bounded_in_bytes(backend: &dyn Backend) {
    let text = "x".repeat(1000);
    let bounds = Bounds {
        mailbox_bytes: 2500,
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    for offset in 0..5 {
        case.deliver(&case.message(), offset, &text).await;
    }
    assert_eq!(case.after(&case.at(1)).await, None);
    assert_eq!(case.after(&case.at(2)).await.unwrap().len(), 2);
}

pub(crate) async fn mailbox_is_bounded_in_age(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_ttl: Duration::from_millis(1500),
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    case.deliver(&case.message(), 0, "a").await;
    case.deliver(&case.message(), 1, "b").await;
    assert_eq!(case.after(&case.at(0)).await.unwrap().len(), 1);
    // Reads keep the mailbox alive, but not its expired frames.
    let started = tokio::time::Instant::now();
    while case.after(&case.at(0)).await.is_some() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "frames never expire"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let view = case.read(Some(&case.at(1))).await;
    assert_eq!(view.end, case.at(1), "the end outlives the frames");
    assert!(view.recovered && view.frames.is_empty());
    let mut next = case.delivery(&case.message(), 2, "c");
    next.known_end = Some(case.at(1));
    assert!(is_published(case.deliver_call(next).await));
}

pub(crate) async fn positions_of_other_epochs_are_not_recovered(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 5, "a").await;
    let mut other = case.at(5);
    other.epoch = Epoch::new(&unique(), "0", 3);
    assert_eq!(case.after(&other).await, None);
    other.epoch = Epoch::for_empty_mailbox(&unique());
    other.offset = 0;
    assert_eq!(case.after(&other).await, None);
}

pub(crate) async fn mailbox_is_read_in_pages(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let mut after = case.read(None).await.end;
    for offset in 0..7 {
        case.deliver(&case.message(), offset, &"x".repeat(100))
            .await;
    }
    let mut offsets = Vec::new();
    loop {
        let call = ReadRequest {
            user: case.user.clone(),
            after: Some(after.clone()),
            from_start: false,
            max_bytes: 300,
        };
        let view = case.fanout.read(call).await.unwrap();
        assert!(view.recovered && view.frames.len() <= 2);
        offsets.extend(view.frames.iter().map(|(position, _)| position.offset));
        after = view
            .frames
            .last()
            .map_or(after, |(position, _)| position.clone());
        if !view.has_more {
            break;
        }
    }
    assert_eq!(offsets, (0..7).collect::<Vec<i64>>());
    // One frame is returned even if it alone exceeds the maximum.
    let call = ReadRequest {
        user: case.user.clone(),
        after: Some(case.at(4)),
        from_start: false,
        max_bytes: 1,
    };
    let view = case.fanout.read(call).await.unwrap();
    assert_eq!((view.frames.len(), view.has_more), (1, true));
}

pub(crate) async fn mailbox_rebuilt_from_the_middle_can_be_read_from_its_oldest_frame(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    for offset in 40..44 {
        case.deliver(&case.message(), offset, "x").await;
    }
    assert_eq!(case.after(&case.at(30)).await, None);
    let call = |after: Option<Position>| ReadRequest {
        user: case.user.clone(),
        from_start: after.is_none(),
        after,
        max_bytes: 1,
    };
    let mut offsets = Vec::new();
    let mut view = case.fanout.read(call(None)).await.unwrap();
    assert!(!view.recovered);
    loop {
        offsets.extend(view.frames.iter().map(|(position, _)| position.offset));
        if !view.has_more {
            break;
        }
        let last = view.frames.last().map(|(position, _)| position.clone());
        view = case.fanout.read(call(last)).await.unwrap();
    }
    assert_eq!(offsets, [40, 41, 42, 43]);
}

pub(crate) async fn recreated_topic_starts_an_empty_mailbox(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    case.deliver(&case.message(), 500, "old").await;
    let old = case.at(500);
    case.epoch = Epoch::new(&unique(), "1", 3);
    let mut first = case.delivery(&case.message(), 0, "new");
    first.known_end = Some(old.clone());
    assert!(is_published(case.deliver_call(first).await));
    assert_eq!(case.after(&old).await, None);
    assert_eq!(case.after(&case.at(0)).await, Some(vec![]));
    assert_eq!(case.read(None).await.end, case.at(0));
}

pub(crate) async fn ends_in_sixteen_other_partitions_are_remembered(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let cluster = unique();
    let mut rewound = Vec::new();
    for partition in 0..=17 {
        case.epoch = Epoch::new(&cluster, "0", partition);
        let mut delivery = case.delivery(&case.message(), 7, "x");
        assert!(is_published(case.deliver_call(delivery.clone()).await));
        delivery.known_end = Some(case.at(7));
        delivery.is_rewind = true;
        rewound.push(delivery);
    }
    // The first end is forgotten, so its relay's known end counts as lost.
    let first = rewound.remove(0);
    assert_eq!(case.deliver_call(first).await, DeliverResponse::DataLost);
    for delivery in rewound {
        assert_eq!(
            case.deliver_call(delivery).await,
            DeliverResponse::AlreadyDelivered
        );
    }
    assert_eq!(case.read(None).await.end, case.at(7), "the end changed");
}

pub(crate) async fn delivered_outcomes_outlive_the_mailbox(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_frames: 1,
        ..Bounds::default()
    };
    let mut case = Case::with_bounds(backend, bounds).await;
    let [first, second, kept, open] = [(); 4].map(|()| case.message());
    case.deliver(&first, 3, "first").await;
    let at_first = case.at(3);
    case.epoch = Epoch::new(&unique(), "0", 1);
    case.deliver(&second, 1, "second").await;
    case.answer(&kept, "kept").await;
    // In the order of the request, without messages that were not delivered.
    let requested = [&open, &second, &kept, &first].map(|message| message.message_id.clone());
    let found = case
        .fanout
        .delivered_outcomes(&case.user, &requested)
        .await
        .unwrap();
    let delivered =
        |message: &MessageRef, position: &Position, frame: Option<&str>| DeliveredOutcome {
            message_id: message.message_id.clone(),
            position: position.clone(),
            frame: frame.map(terminal),
        };
    let at_second = case.at(1);
    let expected = [
        delivered(&second, &at_second, Some("second")),
        delivered(&first, &at_first, Some("first")),
    ];
    assert_eq!(found, expected);
    assert_eq!(
        case.fanout
            .delivered_outcomes(&case.user, &[])
            .await
            .unwrap(),
        []
    );
    // Of forgotten messages only the fact remains that they were delivered.
    case.fanout.forget(&case.user, None).await.unwrap();
    let found = case
        .fanout
        .delivered_outcomes(&case.user, &requested)
        .await
        .unwrap();
    let expected = [
        delivered(&second, &at_second, None),
        delivered(&first, &at_first, None),
    ];
    assert_eq!(found, expected);
}

pub(crate) async fn message_delivered_elsewhere_still_advances_the_end(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.deliver(&message, 1, "once").await;
    // The relay regards the second record as delivered, and names it as the known end next.
    assert_eq!(
        case.deliver(&message, 2, "twice").await,
        DeliverResponse::AlreadyDelivered
    );
    let mut next = case.delivery(&case.message(), 3, "next");
    next.known_end = Some(case.at(2));
    assert!(is_published(case.deliver_call(next).await));
    let frames = case.after(&case.at(1)).await.unwrap();
    assert_eq!(frames, [(3, terminal("next"))]);
}

pub(crate) async fn message_is_pending_until_its_delivery(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let messages = [case.message(), case.message(), case.message()];
    for message in &messages {
        case.admit(message).await;
    }
    let view = case.read(None).await;
    let pending: Vec<_> = view.pending.iter().map(|entry| &entry.message_id).collect();
    let expected: Vec<_> = messages.iter().map(|message| &message.message_id).collect();
    assert_eq!(pending, expected);
    assert_eq!(view.pending[0].content, "question");

    case.answer(&messages[0], "a").await;
    case.deliver(&messages[0], 0, "a").await;
    let cleared = case
        .fanout
        .clear_pending(&case.user, &messages[1].message_id);
    cleared.await.unwrap();
    let view = case.read(None).await;
    assert_eq!(view.pending.len(), 1);
    assert_eq!(view.pending[0].message_id, messages[2].message_id);
}

pub(crate) async fn scenario_9_connection_lost_during_its_replay_misses_nothing(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 1, "seen").await;
    for offset in 2..6 {
        case.deliver(&case.message(), offset, "missed").await;
    }
    let since = case.at(1);
    let offsets = |frames: Vec<(i64, String)>| -> Vec<i64> {
        frames.into_iter().map(|(offset, _)| offset).collect()
    };
    // The connection is lost before the first frame of the replay, and again after some frames,
    // while more are delivered.
    assert_eq!(offsets(case.after(&since).await.unwrap()), [2, 3, 4, 5]);
    case.deliver(&case.message(), 6, "later").await;
    assert_eq!(offsets(case.after(&since).await.unwrap()), [2, 3, 4, 5, 6]);
    assert_eq!(offsets(case.after(&case.at(3)).await.unwrap()), [4, 5, 6]);
}
