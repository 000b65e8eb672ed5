//! What a client that was away can be told.

use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{DeliverResponse, DeliveredOutcome, MessageRef, ReadRequest};
use chatmesh::protocol::position::{Epoch, Position};

use super::case::{Backend, Case, published, terminal, unique};

pub(crate) async fn s1_a_repeated_deliver_before_the_rewind_is_lost(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let (r0, r1) = (case.message(), case.message());
    assert!(published(case.deliver(&r0, 0, "r0").await));
    case.lose_data().await;
    let mut repeated = case.delivery(&r1, 1, "r1");
    repeated.known_end = Some(case.at(0));
    assert_eq!(
        case.deliver_call(repeated.clone()).await,
        DeliverResponse::DataLost
    );
    // Also where a gateway has made the empty mailbox in the meantime.
    let empty = case.read(None).await.end;
    assert_eq!(
        case.deliver_call(repeated.clone()).await,
        DeliverResponse::DataLost
    );
    assert_eq!(
        case.read(None).await.end,
        empty,
        "lost, yet something was done"
    );

    let mut rewound = case.delivery(&r0, 0, "r0");
    rewound.is_rewind = true;
    assert!(published(case.deliver_call(rewound).await));
    assert!(published(case.deliver_call(repeated).await));
    let frames = case.after(&case.at(0)).await.unwrap();
    assert_eq!(frames, [(1, terminal("r1"))]);
}

pub(crate) async fn s3_a_rewind_brings_back_what_was_rolled_back(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let (r0, r1) = (case.message(), case.message());
    case.deliver(&r0, 0, "r0").await;
    case.deliver(&r1, 1, "r1").await;
    case.lose_data().await;
    // Another relay starts at the commit and goes back on assignment; it knows nothing of the user.
    for (message, offset, text) in [(&r0, 0, "r0"), (&r1, 1, "r1")] {
        let mut rewound = case.delivery(message, offset, text);
        rewound.is_rewind = true;
        assert!(published(case.deliver_call(rewound).await));
    }
    let frames = case.after(&case.at(0)).await.unwrap();
    assert_eq!(frames, [(1, terminal("r1"))]);
    assert_eq!(case.read(None).await.end, case.at(1));
}

pub(crate) async fn a_look_tells_what_a_rewind_has_brought_from_what_is_new(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    assert_eq!(case.read(None).await.rebuilt_up_to, None);
    for (offset, rewind, expected) in [(3, true, Some(3)), (5, true, Some(5)), (6, false, Some(5))]
    {
        let mut call = case.delivery(&case.message(), offset, "x");
        call.is_rewind = rewind;
        assert!(published(case.deliver_call(call).await));
        let rebuilt = case.read(None).await.rebuilt_up_to;
        assert_eq!(rebuilt, expected.map(|offset| case.at(offset)));
    }
    // What is there already is not put there again.
    let mut call = case.delivery(&case.message(), 6, "x");
    call.is_rewind = true;
    assert!(!published(case.deliver_call(call).await));
    // Another process opens what is kept.
    let other = Case::of(backend, Bounds::default(), case.user.clone()).await;
    assert_eq!(other.read(None).await.rebuilt_up_to, Some(case.at(5)));
    // A mailbox that has moved began anew.
    let mut call = case.delivery(&case.message(), 1, "x");
    call.position.epoch = Epoch::new("moved", "0", 4);
    assert!(published(case.deliver_call(call).await));
    assert_eq!(case.read(None).await.rebuilt_up_to, None);
}

pub(crate) async fn s12_a_mailbox_rebuilt_from_the_middle_does_not_pretend(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    case.deliver(&case.message(), 4, "old").await;
    case.lose_data().await;
    case.deliver(&case.message(), 8, "new").await;
    assert_eq!(case.after(&case.at(4)).await, None);
    assert_eq!(case.after(&case.at(7)).await, None);
    assert_eq!(case.after(&case.at(8)).await, Some(vec![]));
}

pub(crate) async fn an_empty_mailbox_has_a_good_position(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let first = case.read(None).await;
    assert!(!first.recovered, "nothing was asked for");
    assert_eq!((first.n, first.frames.len()), (0, 0));
    assert_eq!(case.read(None).await.end, first.end);
    assert_eq!(case.after(&first.end).await, Some(vec![]));

    case.deliver(&case.message(), 40, "a").await;
    case.deliver(&case.message(), 41, "b").await;
    let frames = case.after(&first.end).await.unwrap();
    assert_eq!(frames, [(40, terminal("a")), (41, terminal("b"))]);
    // Nobody was given a position between; it may have missed something.
    assert_eq!(case.after(&case.at(39)).await, None);
    // Another mailbox's position is none of this one's.
    case.lose_data().await;
    assert_eq!(case.after(&first.end).await, None);
}

pub(crate) async fn a_mailbox_made_by_deliver_begins_at_its_first_frame(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 10, "a").await;
    case.deliver(&case.message(), 12, "b").await;
    assert_eq!(case.after(&case.at(9)).await, None);
    let frames = case.after(&case.at(10)).await.unwrap();
    assert_eq!(frames, [(12, terminal("b"))]);
    assert_eq!(case.after(&case.at(12)).await, Some(vec![]));
    assert_eq!(case.after(&case.at(13)).await, None, "beyond the end");
}

pub(crate) async fn a_mailbox_is_bounded_in_frames(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_frames: 3,
        ..Bounds::default()
    };
    let case = Case::with(backend, bounds).await;
    let empty = case.read(None).await.end;
    for offset in 0..5 {
        case.deliver(&case.message(), offset, "x").await;
    }
    assert_eq!(case.after(&empty).await, None);
    assert_eq!(case.after(&case.at(0)).await, None);
    assert_eq!(case.after(&case.at(1)).await.unwrap().len(), 3);
    assert_eq!(case.after(&case.at(4)).await, Some(vec![]));
}

pub(crate) async fn a_mailbox_is_bounded_in_bytes(backend: &dyn Backend) {
    let text = "x".repeat(1000);
    let bounds = Bounds {
        mailbox_bytes: 2500,
        ..Bounds::default()
    };
    let case = Case::with(backend, bounds).await;
    for offset in 0..5 {
        case.deliver(&case.message(), offset, &text).await;
    }
    assert_eq!(case.after(&case.at(1)).await, None);
    assert_eq!(case.after(&case.at(2)).await.unwrap().len(), 2);
}

pub(crate) async fn a_mailbox_is_bounded_in_age(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_ttl: Duration::from_millis(1500),
        ..Bounds::default()
    };
    let case = Case::with(backend, bounds).await;
    case.deliver(&case.message(), 0, "a").await;
    case.deliver(&case.message(), 1, "b").await;
    assert_eq!(case.after(&case.at(0)).await.unwrap().len(), 1);
    // Reading keeps the mailbox, but not its old frames.
    let started = tokio::time::Instant::now();
    while case.after(&case.at(0)).await.is_some() {
        assert!(started.elapsed() < Duration::from_secs(20), "frames stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let look = case.read(Some(&case.at(1))).await;
    assert_eq!(look.end, case.at(1), "the end survives the bounds");
    assert!(look.recovered && look.frames.is_empty());
    let mut next = case.delivery(&case.message(), 2, "c");
    next.known_end = Some(case.at(1));
    assert!(published(case.deliver_call(next).await));
}

pub(crate) async fn positions_of_other_sequences_are_not_recovered(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 5, "a").await;
    let mut other = case.at(5);
    other.epoch = Epoch::new(&unique(), "0", 3);
    assert_eq!(case.after(&other).await, None);
    other.epoch = Epoch::of_empty_mailbox(&unique());
    other.offset = 0;
    assert_eq!(case.after(&other).await, None);
}

pub(crate) async fn a_mailbox_is_read_in_pages(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let mut after = case.read(None).await.end;
    for offset in 0..7 {
        case.deliver(&case.message(), offset, &"x".repeat(100))
            .await;
    }
    let mut seen = Vec::new();
    loop {
        let call = ReadRequest {
            user: case.user.clone(),
            after: Some(after.clone()),
            from_start: false,
            max_bytes: 300,
        };
        let look = case.fanout.read(call).await.unwrap();
        assert!(look.recovered && look.frames.len() <= 2);
        seen.extend(look.frames.iter().map(|(at, _)| at.offset));
        after = look.frames.last().map_or(after, |(at, _)| at.clone());
        if !look.has_more {
            break;
        }
    }
    assert_eq!(seen, (0..7).collect::<Vec<i64>>());
    // One frame comes even where it alone is larger.
    let call = ReadRequest {
        user: case.user.clone(),
        after: Some(case.at(4)),
        from_start: false,
        max_bytes: 1,
    };
    let look = case.fanout.read(call).await.unwrap();
    assert_eq!((look.frames.len(), look.has_more), (1, true));
}

pub(crate) async fn a_mailbox_rebuilt_from_the_middle_is_read_from_its_oldest(
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
    let mut seen = Vec::new();
    let mut look = case.fanout.read(call(None)).await.unwrap();
    assert!(!look.recovered);
    loop {
        seen.extend(look.frames.iter().map(|(at, _)| at.offset));
        if !look.has_more {
            break;
        }
        let last = look.frames.last().map(|(at, _)| at.clone());
        look = case.fanout.read(call(last)).await.unwrap();
    }
    assert_eq!(seen, [40, 41, 42, 43]);
}

pub(crate) async fn a_topic_made_anew_begins_a_new_mailbox(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    case.deliver(&case.message(), 500, "old").await;
    let old = case.at(500);
    case.epoch = Epoch::new(&unique(), "1", 3);
    let mut first = case.delivery(&case.message(), 0, "new");
    first.known_end = Some(old.clone());
    assert!(published(case.deliver_call(first).await));
    assert_eq!(case.after(&old).await, None);
    assert_eq!(case.after(&case.at(0)).await, Some(vec![]));
    assert_eq!(case.read(None).await.end, case.at(0));
}

pub(crate) async fn the_ends_in_sixteen_other_partitions_are_remembered(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let cluster = unique();
    let mut rewound = Vec::new();
    for partition in 0..=17 {
        case.epoch = Epoch::new(&cluster, "0", partition);
        let mut delivery = case.delivery(&case.message(), 7, "x");
        assert!(published(case.deliver_call(delivery.clone()).await));
        delivery.known_end = Some(case.at(7));
        delivery.is_rewind = true;
        rewound.push(delivery);
    }
    // The first is forgotten: what its relay knows is lost, as where Redis lost it.
    let first = rewound.remove(0);
    assert_eq!(case.deliver_call(first).await, DeliverResponse::DataLost);
    for delivery in rewound {
        assert_eq!(
            case.deliver_call(delivery).await,
            DeliverResponse::AlreadyDelivered
        );
    }
    assert_eq!(case.read(None).await.end, case.at(7), "nothing moved");
}

pub(crate) async fn delivered_ends_outlive_the_mailbox(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_frames: 1,
        ..Bounds::default()
    };
    let mut case = Case::with(backend, bounds).await;
    let [first, second, kept, open] = [(); 4].map(|()| case.message());
    case.deliver(&first, 3, "first").await;
    let at_first = case.at(3);
    case.epoch = Epoch::new(&unique(), "0", 1);
    case.deliver(&second, 1, "second").await;
    case.answer(&kept, "kept").await;
    // In the order asked; what was not delivered is left out.
    let asked = [&open, &second, &kept, &first].map(|one| one.message_id.clone());
    let found = case
        .fanout
        .delivered_outcomes(&case.user, &asked)
        .await
        .unwrap();
    let end = |of: &MessageRef, position: &Position, frame: Option<&str>| DeliveredOutcome {
        message_id: of.message_id.clone(),
        position: position.clone(),
        frame: frame.map(terminal),
    };
    let at_second = case.at(1);
    let expected = [
        end(&second, &at_second, Some("second")),
        end(&first, &at_first, Some("first")),
    ];
    assert_eq!(found, expected);
    assert_eq!(
        case.fanout
            .delivered_outcomes(&case.user, &[])
            .await
            .unwrap(),
        []
    );
    // Nothing is left of what was forgotten but that it has ended.
    case.fanout.forget(&case.user, None).await.unwrap();
    let found = case
        .fanout
        .delivered_outcomes(&case.user, &asked)
        .await
        .unwrap();
    let expected = [end(&second, &at_second, None), end(&first, &at_first, None)];
    assert_eq!(found, expected);
}

pub(crate) async fn a_message_delivered_elsewhere_still_moves_the_end(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let message = case.message();
    case.deliver(&message, 1, "once").await;
    // The relay takes the second record for delivered and names it as known from then on.
    assert_eq!(
        case.deliver(&message, 2, "twice").await,
        DeliverResponse::AlreadyDelivered
    );
    let mut next = case.delivery(&case.message(), 3, "next");
    next.known_end = Some(case.at(2));
    assert!(published(case.deliver_call(next).await));
    let frames = case.after(&case.at(1)).await.unwrap();
    assert_eq!(frames, [(3, terminal("next"))]);
}

pub(crate) async fn pending_is_listed_until_delivered(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let messages = [case.message(), case.message(), case.message()];
    for message in &messages {
        case.admit(message).await;
    }
    let look = case.read(None).await;
    let listed: Vec<_> = look.pending.iter().map(|entry| &entry.message_id).collect();
    let expected: Vec<_> = messages.iter().map(|message| &message.message_id).collect();
    assert_eq!(listed, expected);
    assert_eq!(look.pending[0].content, "question");

    case.answer(&messages[0], "a").await;
    case.deliver(&messages[0], 0, "a").await;
    let cleared = case
        .fanout
        .clear_pending(&case.user, &messages[1].message_id);
    cleared.await.unwrap();
    let look = case.read(None).await;
    assert_eq!(look.pending.len(), 1);
    assert_eq!(look.pending[0].message_id, messages[2].message_id);
}

pub(crate) async fn s9_a_socket_that_dies_in_its_replay_misses_nothing(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 1, "seen").await;
    for offset in 2..6 {
        case.deliver(&case.message(), offset, "missed").await;
    }
    let since = case.at(1);
    let offsets = |frames: Vec<(i64, String)>| -> Vec<i64> {
        frames.into_iter().map(|(offset, _)| offset).collect()
    };
    // It dies before any frame of the replay, and after some of them; others follow meanwhile.
    assert_eq!(offsets(case.after(&since).await.unwrap()), [2, 3, 4, 5]);
    case.deliver(&case.message(), 6, "later").await;
    assert_eq!(offsets(case.after(&since).await.unwrap()), [2, 3, 4, 5, 6]);
    assert_eq!(offsets(case.after(&case.at(3)).await.unwrap()), [4, 5, 6]);
}
