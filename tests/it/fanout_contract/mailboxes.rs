//! Mailboxes: the frames that a reconnecting client receives.

use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{DeliverResponse, DeliveredOutcome, MessageRef, ReadRequest};
use chatmesh::protocol::position::{Epoch, Position};

use super::case::{Backend, Case, is_published, terminal_frame, unique_id};

pub(crate) async fn scenario_1_deliver_repeated_before_the_rewind_reports_data_loss(
    backend: &dyn Backend,
) {
    let mut case = Case::new(backend).await;
    let (r0, r1) = (case.message(), case.message());
    assert!(is_published(case.deliver(&r0, 0, "r0").await));
    case.lose_data().await;
    let mut repeated = case.delivery(&r1, 1, "r1");
    repeated.known_end = Some(case.position(0));
    assert_eq!(
        case.deliver_call(repeated.clone()).await,
        DeliverResponse::DataLost
    );
    // The response is the same after a gateway has created the empty mailbox.
    let empty_end = case.read(None).await.end;
    assert_eq!(
        case.deliver_call(repeated.clone()).await,
        DeliverResponse::DataLost
    );
    assert_eq!(
        case.read(None).await.end,
        empty_end,
        "a call that reports data loss must change nothing"
    );

    let mut rewind_delivery = case.delivery(&r0, 0, "r0");
    rewind_delivery.is_rewind = true;
    assert!(is_published(case.deliver_call(rewind_delivery).await));
    assert!(is_published(case.deliver_call(repeated).await));
    let frames = case.frames_after(&case.position(0)).await.unwrap();
    assert_eq!(frames, [(1, terminal_frame("r1"))]);
}

pub(crate) async fn scenario_3_rewind_restores_rolled_back_frames(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let (r0, r1) = (case.message(), case.message());
    case.deliver(&r0, 0, "r0").await;
    case.deliver(&r1, 1, "r1").await;
    case.lose_data().await;
    // Another relay rewinds after its assignment; it has no known end of the user.
    for (message, offset, text) in [(&r0, 0, "r0"), (&r1, 1, "r1")] {
        let mut rewind_delivery = case.delivery(message, offset, text);
        rewind_delivery.is_rewind = true;
        assert!(is_published(case.deliver_call(rewind_delivery).await));
    }
    let frames = case.frames_after(&case.position(0)).await.unwrap();
    assert_eq!(frames, [(1, terminal_frame("r1"))]);
    assert_eq!(case.read(None).await.end, case.position(1));
}

pub(crate) async fn read_reports_up_to_where_a_rewind_rebuilt_the_mailbox(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    assert_eq!(case.read(None).await.rebuilt_up_to, None);
    for (offset, is_rewind, expected) in
        [(3, true, Some(3)), (5, true, Some(5)), (6, false, Some(5))]
    {
        let mut delivery = case.delivery(&case.message(), offset, "x");
        delivery.is_rewind = is_rewind;
        assert!(is_published(case.deliver_call(delivery).await));
        let rebuilt_up_to = case.read(None).await.rebuilt_up_to;
        assert_eq!(rebuilt_up_to, expected.map(|offset| case.position(offset)));
    }
    // A frame that is present is not appended again.
    let mut delivery = case.delivery(&case.message(), 6, "x");
    delivery.is_rewind = true;
    assert!(!is_published(case.deliver_call(delivery).await));
    // Another process reads the same position.
    let other_case = Case::for_user(backend, Bounds::default(), case.user.clone()).await;
    assert_eq!(
        other_case.read(None).await.rebuilt_up_to,
        Some(case.position(5))
    );
    // A record of another epoch starts a new mailbox.
    let mut delivery = case.delivery(&case.message(), 1, "x");
    delivery.position.epoch = Epoch::new("moved", "0", 4);
    assert!(is_published(case.deliver_call(delivery).await));
    assert_eq!(case.read(None).await.rebuilt_up_to, None);
}

pub(crate) async fn scenario_12_mailbox_rebuilt_from_the_middle_is_not_recovered_before_its_start(
    backend: &dyn Backend,
) {
    let mut case = Case::new(backend).await;
    case.deliver(&case.message(), 4, "old").await;
    case.lose_data().await;
    case.deliver(&case.message(), 8, "new").await;
    assert_eq!(case.frames_after(&case.position(4)).await, None);
    assert_eq!(case.frames_after(&case.position(7)).await, None);
    assert_eq!(case.frames_after(&case.position(8)).await, Some(vec![]));
}

pub(crate) async fn empty_mailbox_has_a_valid_position(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let first = case.read(None).await;
    assert!(!first.recovered, "expected no recovery without a position");
    assert_eq!((first.number.n, first.frames.len()), (0, 0));
    assert_eq!(case.read(None).await.end, first.end);
    assert_eq!(case.frames_after(&first.end).await, Some(vec![]));

    case.deliver(&case.message(), 40, "a").await;
    case.deliver(&case.message(), 41, "b").await;
    let frames = case.frames_after(&first.end).await.unwrap();
    assert_eq!(
        frames,
        [(40, terminal_frame("a")), (41, terminal_frame("b"))]
    );
    // No client has received position 39, so a client that sends it may have missed frames.
    assert_eq!(case.frames_after(&case.position(39)).await, None);
    // The position of a lost mailbox is invalid in the new one.
    case.lose_data().await;
    assert_eq!(case.frames_after(&first.end).await, None);
}

pub(crate) async fn mailbox_created_by_deliver_starts_at_its_first_frame(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 10, "a").await;
    case.deliver(&case.message(), 12, "b").await;
    assert_eq!(case.frames_after(&case.position(9)).await, None);
    let frames = case.frames_after(&case.position(10)).await.unwrap();
    assert_eq!(frames, [(12, terminal_frame("b"))]);
    assert_eq!(case.frames_after(&case.position(12)).await, Some(vec![]));
    assert_eq!(
        case.frames_after(&case.position(13)).await,
        None,
        "expected no recovery from a position beyond the end"
    );
}

pub(crate) async fn mailbox_is_bounded_in_frames(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_frames: 3,
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    let empty_position = case.read(None).await.end;
    for offset in 0..5 {
        case.deliver(&case.message(), offset, "x").await;
    }
    assert_eq!(case.frames_after(&empty_position).await, None);
    assert_eq!(case.frames_after(&case.position(0)).await, None);
    assert_eq!(case.frames_after(&case.position(1)).await.unwrap().len(), 3);
    assert_eq!(case.frames_after(&case.position(4)).await, Some(vec![]));
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
    assert_eq!(case.frames_after(&case.position(1)).await, None);
    assert_eq!(case.frames_after(&case.position(2)).await.unwrap().len(), 2);
}

pub(crate) async fn mailbox_is_bounded_in_age(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_ttl: Duration::from_millis(1500),
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    case.deliver(&case.message(), 0, "a").await;
    case.deliver(&case.message(), 1, "b").await;
    assert_eq!(case.frames_after(&case.position(0)).await.unwrap().len(), 1);
    // Reads keep the mailbox alive, but not its expired frames.
    let started = tokio::time::Instant::now();
    while case.frames_after(&case.position(0)).await.is_some() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "expected the frames to expire"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let view = case.read(Some(&case.position(1))).await;
    assert_eq!(
        view.end,
        case.position(1),
        "expected that the end outlives the frames"
    );
    assert!(view.recovered && view.frames.is_empty());
    let mut next_delivery = case.delivery(&case.message(), 2, "c");
    next_delivery.known_end = Some(case.position(1));
    assert!(is_published(case.deliver_call(next_delivery).await));
}

pub(crate) async fn positions_of_other_epochs_are_not_recovered(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    case.deliver(&case.message(), 5, "a").await;
    let mut other_position = case.position(5);
    other_position.epoch = Epoch::new(&unique_id(), "0", 3);
    assert_eq!(case.frames_after(&other_position).await, None);
    other_position.epoch = Epoch::for_empty_mailbox(&unique_id());
    other_position.offset = 0;
    assert_eq!(case.frames_after(&other_position).await, None);
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
        let request = ReadRequest {
            user: case.user.clone(),
            after: Some(after.clone()),
            from_start: false,
            max_bytes: 300,
        };
        let view = case.fanout.read(request).await.unwrap();
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
    let request = ReadRequest {
        user: case.user.clone(),
        after: Some(case.position(4)),
        from_start: false,
        max_bytes: 1,
    };
    let view = case.fanout.read(request).await.unwrap();
    assert_eq!((view.frames.len(), view.has_more), (1, true));
}

pub(crate) async fn mailbox_rebuilt_from_the_middle_can_be_read_from_its_oldest_frame(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    for offset in 40..44 {
        case.deliver(&case.message(), offset, "x").await;
    }
    assert_eq!(case.frames_after(&case.position(30)).await, None);
    let request = |after: Option<Position>| ReadRequest {
        user: case.user.clone(),
        from_start: after.is_none(),
        after,
        max_bytes: 1,
    };
    let mut offsets = Vec::new();
    let mut view = case.fanout.read(request(None)).await.unwrap();
    assert!(!view.recovered);
    loop {
        offsets.extend(view.frames.iter().map(|(position, _)| position.offset));
        if !view.has_more {
            break;
        }
        let last_position = view.frames.last().map(|(position, _)| position.clone());
        view = case.fanout.read(request(last_position)).await.unwrap();
    }
    assert_eq!(offsets, [40, 41, 42, 43]);
}

pub(crate) async fn recreated_topic_starts_an_empty_mailbox(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    case.deliver(&case.message(), 500, "old").await;
    let old_position = case.position(500);
    case.epoch = Epoch::new(&unique_id(), "1", 3);
    let mut first_delivery = case.delivery(&case.message(), 0, "new");
    first_delivery.known_end = Some(old_position.clone());
    assert!(is_published(case.deliver_call(first_delivery).await));
    assert_eq!(case.frames_after(&old_position).await, None);
    assert_eq!(case.frames_after(&case.position(0)).await, Some(vec![]));
    assert_eq!(case.read(None).await.end, case.position(0));
}

pub(crate) async fn ends_in_sixteen_other_partitions_are_remembered(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let cluster = unique_id();
    let mut rewind_deliveries = Vec::new();
    for partition in 0..=17 {
        case.epoch = Epoch::new(&cluster, "0", partition);
        let mut delivery = case.delivery(&case.message(), 7, "x");
        assert!(is_published(case.deliver_call(delivery.clone()).await));
        delivery.known_end = Some(case.position(7));
        delivery.is_rewind = true;
        rewind_deliveries.push(delivery);
    }
    // The end in the first partition is forgotten, so the data there counts as lost.
    let first = rewind_deliveries.remove(0);
    assert_eq!(case.deliver_call(first).await, DeliverResponse::DataLost);
    for delivery in rewind_deliveries {
        assert_eq!(
            case.deliver_call(delivery).await,
            DeliverResponse::AlreadyDelivered
        );
    }
    assert_eq!(
        case.read(None).await.end,
        case.position(7),
        "expected that the end stays the same"
    );
}

pub(crate) async fn delivered_outcomes_outlive_the_mailbox(backend: &dyn Backend) {
    let bounds = Bounds {
        mailbox_frames: 1,
        ..Bounds::default()
    };
    let mut case = Case::with_bounds(backend, bounds).await;
    let [first, second, undelivered, open] = [(); 4].map(|()| case.message());
    case.deliver(&first, 3, "first").await;
    let first_position = case.position(3);
    case.epoch = Epoch::new(&unique_id(), "0", 1);
    case.deliver(&second, 1, "second").await;
    case.answer(&undelivered, "undelivered").await;
    // The outcomes have the order of the request. Messages without a delivery are omitted.
    let requested =
        [&open, &second, &undelivered, &first].map(|message| message.message_id.clone());
    let outcomes = case
        .fanout
        .delivered_outcomes(&case.user, &requested)
        .await
        .unwrap();
    let delivered_outcome =
        |message: &MessageRef, position: &Position, frame: Option<&str>| DeliveredOutcome {
            message_id: message.message_id.clone(),
            position: position.clone(),
            frame: frame.map(terminal_frame),
        };
    let second_position = case.position(1);
    let expected = [
        delivered_outcome(&second, &second_position, Some("second")),
        delivered_outcome(&first, &first_position, Some("first")),
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(
        case.fanout
            .delivered_outcomes(&case.user, &[])
            .await
            .unwrap(),
        []
    );
    // Of a forgotten message only the position of its delivery remains.
    case.fanout.forget(&case.user, None).await.unwrap();
    let outcomes = case
        .fanout
        .delivered_outcomes(&case.user, &requested)
        .await
        .unwrap();
    let expected = [
        delivered_outcome(&second, &second_position, None),
        delivered_outcome(&first, &first_position, None),
    ];
    assert_eq!(outcomes, expected);
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
    let mut next_delivery = case.delivery(&case.message(), 3, "next");
    next_delivery.known_end = Some(case.position(2));
    assert!(is_published(case.deliver_call(next_delivery).await));
    let frames = case.frames_after(&case.position(1)).await.unwrap();
    assert_eq!(frames, [(3, terminal_frame("next"))]);
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
    let position = case.position(1);
    let offsets = |frames: Vec<(i64, String)>| -> Vec<i64> {
        frames.into_iter().map(|(offset, _)| offset).collect()
    };
    // The connection is lost before the first frame of the replay, and again after some frames,
    // while more are delivered.
    assert_eq!(
        offsets(case.frames_after(&position).await.unwrap()),
        [2, 3, 4, 5]
    );
    case.deliver(&case.message(), 6, "later").await;
    assert_eq!(
        offsets(case.frames_after(&position).await.unwrap()),
        [2, 3, 4, 5, 6]
    );
    assert_eq!(
        offsets(case.frames_after(&case.position(3)).await.unwrap()),
        [4, 5, 6]
    );
}
