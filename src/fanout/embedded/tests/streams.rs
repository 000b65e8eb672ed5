//! Tests of the parts of an answer in flight, by the situations in which a worker and the fan-out
//! disagree about them.

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::fanout::{Channel, Feed, LEASE};
use crate::protocol::open_message::InFlightPart;
use crate::protocol::parts::MAX_PARTS;
use crate::protocol::v1::{DeltaHead, DeltaTarget, PartOpening, delta_frame};

/// A subscription to the user's live channel.
struct LiveChannel {
    _feed: Arc<dyn Feed>,
    events: mpsc::Receiver<FeedEvent>,
}

impl LiveChannel {
    async fn subscribe(system: &TestFanout) -> Self {
        let (feed, events) = system.fanout.open_feed(1024).await.unwrap();
        feed.subscribe(&user(), Channel::Live).await.unwrap();
        Self {
            _feed: feed,
            events,
        }
    }

    /// The frames that were published since the last call.
    fn published(&mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            let FeedEvent::Frame { payload, .. } = event else {
                panic!("no frame: {event:?}");
            };
            frames.push(String::from_utf8(payload.to_vec()).unwrap());
        }
        frames
    }
}

/// Attempt 1 of this owner at the message `m`, as the target of a `delta`.
fn with_target<T>(owner: &Owner, encode: impl FnOnce(DeltaTarget<'_>) -> T) -> T {
    encode(DeltaTarget {
        message_id: &message_id("m"),
        id: None,
        conversation: &ConversationId::default_conversation(),
        stream: &owner.stream(1),
        attempt: 1,
    })
}

fn part_with_text(kind: PartKind, meta: Option<&str>, text: &str) -> InFlightPart {
    InFlightPart {
        kind: kind.as_str().into(),
        meta: meta.map(str::to_owned),
        length: utf16_len(text),
        text: text.into(),
    }
}

#[tokio::test]
async fn opening_is_published_with_a_number_and_a_later_piece_as_clients_receive_it() {
    let system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    let mut live = LiveChannel::subscribe(&system).await;
    system.attempt("m", &owner, 0).await;
    system.open("m", &owner, 1, "th").await;
    system.append("m", &owner, 1, 2, "ink}").await;
    let meta = r#"{"id":"c1","name":"weather"}"#;
    let call = OpenPartRequest {
        kind: PartKind::ToolCall,
        meta: Some(meta.into()),
        previous_end: Some(6),
        ..opening("m", &owner, 1, 1, "{")
    };
    let response = system.fanout.open_part(call.clone()).await.unwrap();
    assert_eq!(response, StreamResponse::Confirmed(3));

    let counter = system.read(None).await.number.counter.to_string();
    let raw_meta = serde_json::from_str(meta).unwrap();
    let opening = |kind, meta, previous_end| PartOpening {
        kind,
        meta,
        previous_end,
    };
    let numbered = |frame: String, n: u64| {
        let body = frame.strip_suffix('}').unwrap();
        format!(r#"{body},"n":{n},"n_id":"{counter}"}}"#)
    };
    let [first, piece, second] = &*live.published() else {
        panic!("not three frames");
    };
    with_target(&owner, |target| {
        let text = opening("text", None, None);
        let range = super::piece(0, 0, "th").range;
        let frame = delta_frame(target, range, Some(text), "th");
        assert_eq!(*first, numbered(frame, 1));
        let range = super::piece(0, 2, "ink}").range;
        assert_eq!(*piece, delta_frame(target, range, None, "ink}"));
        let tool_call = opening("tool_call", Some(raw_meta), Some(6));
        let range = super::piece(1, 0, "{").range;
        let frame = delta_frame(target, range, Some(tool_call), "{");
        assert_eq!(*second, numbered(frame, 2));
    });
    assert!(DeltaHead::parse(piece).is_some());

    let view = system.read(None).await;
    let expected = [
        part_with_text(PartKind::Text, None, "think}"),
        part_with_text(PartKind::ToolCall, Some(meta), "{"),
    ];
    assert_eq!(view.in_flight[0].parts, expected);

    // Repeated openings change nothing, and publish nothing.
    let response = system.fanout.open_part(call).await.unwrap();
    assert_eq!(response, StreamResponse::Confirmed(3));
    assert_eq!(
        system.open("m", &owner, 1, "th").await,
        StreamResponse::Confirmed(3)
    );
    assert!(live.published().is_empty());
    assert_eq!(system.read(None).await.in_flight[0].parts, expected);
}

#[tokio::test]
async fn part_after_a_missing_part_is_data_loss() {
    let system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    let mut live = LiveChannel::subscribe(&system).await;
    system.attempt("m", &owner, 0).await;
    let call = opening("m", &owner, 1, 1, "text");
    assert_eq!(
        system.fanout.open_part(call).await.unwrap(),
        StreamResponse::DataLost
    );
    assert_eq!(
        system.append("m", &owner, 1, 0, "a").await,
        0,
        "no part is open"
    );
    assert_eq!(
        system.renew("m", &owner, 1, 1).await,
        StreamResponse::DataLost
    );
    system.open("m", &owner, 1, "ab").await;
    assert_eq!(
        system.renew("m", &owner, 1, 3).await,
        StreamResponse::DataLost
    );
    live.published();
    assert_eq!(
        system.append("m", &owner, 1, 3, "d").await,
        1,
        "the piece before is missing"
    );
    assert!(live.published().is_empty());
    assert_eq!(in_flight_texts(&system.read(None).await), ["ab"]);
}

#[tokio::test]
async fn lease_is_extended_by_renew_only() {
    let system = TestFanout::new(Bounds::default());
    let (owner, other_owner) = (Owner::random(), Owner::random());
    system.attempt("m", &owner, 0).await;
    system.advance_clock(2_000);
    assert_eq!(
        system.renew("m", &owner, 1, 0).await,
        StreamResponse::Confirmed(0)
    );
    assert_eq!(
        system.begin("m", &other_owner, 0).await,
        BeginResponse::Busy(LEASE)
    );
    system.advance_clock(2_999);
    system.open("m", &owner, 1, "a").await;
    system.append("m", &owner, 1, 1, "b").await;
    assert_eq!(
        system.begin("m", &other_owner, 0).await,
        BeginResponse::Busy(Duration::from_millis(1))
    );
    assert_eq!(
        system.renew("m", &owner, 1, 3).await,
        StreamResponse::DataLost
    );
    system.advance_clock(1);
    assert_eq!(system.attempt("m", &other_owner, 0).await, 2);
}

/// Trap L1 of the live path.
#[tokio::test]
async fn text_of_a_worker_that_lost_its_lease_is_ignored() {
    let system = TestFanout::new(Bounds::default());
    let (paused, successor) = (Owner::random(), Owner::random());
    system.attempt("m", &paused, 0).await;
    system.open("m", &paused, 1, "").await;
    system.advance_clock(3_000);
    let mut live = LiveChannel::subscribe(&system).await;
    assert_eq!(system.attempt("m", &successor, 0).await, 2);
    let [restarted] = &*live.published() else {
        panic!("no restarted frame");
    };
    let frame: serde_json::Value = serde_json::from_str(restarted).unwrap();
    assert_eq!(frame["type"], "restarted");
    assert_eq!(frame["stream"], successor.stream(2).as_str());
    assert!(system.read(None).await.in_flight[0].parts.is_empty());

    // Once before and once after the successor opens a part at the same place.
    for _ in 0..2 {
        live.published();
        assert_eq!(system.append("m", &paused, 1, 0, "stale").await, 0);
        assert_eq!(
            system.open("m", &paused, 1, "").await,
            StreamResponse::Fenced
        );
        assert!(live.published().is_empty());
        system.open("m", &successor, 2, "").await;
    }
    assert_eq!(
        system.renew("m", &paused, 1, 0).await,
        StreamResponse::Fenced
    );
    assert_eq!(system.append("m", &successor, 2, 0, "new").await, 2);
    let view = system.read(None).await;
    assert_eq!(in_flight_texts(&view), ["new"]);
    assert_eq!(view.in_flight[0].stream, successor.stream(2));
    // The outcome of the successor ends the message for the paused worker too.
    system.keep("m", &successor, 2, "new").await;
    assert_eq!(system.append("m", &paused, 1, 0, "stale").await, 0);
}

/// Trap L2 of the live path.
#[tokio::test]
async fn appending_after_a_loss_creates_nothing() {
    enum Loss {
        Emptied,
        Expired,
        Forgotten,
    }
    for (loss, expected) in [
        (Loss::Emptied, StreamResponse::DataLost),
        (Loss::Expired, StreamResponse::DataLost),
        (Loss::Forgotten, StreamResponse::Cancelled),
    ] {
        let mut system = TestFanout::new(Bounds::default());
        let owner = Owner::random();
        system.admit("m").await;
        system.attempt("m", &owner, 0).await;
        system.open("m", &owner, 1, "a").await;
        match loss {
            Loss::Emptied => system.lose_data(),
            Loss::Expired => system.advance_clock(DAY_MS / 2),
            Loss::Forgotten => assert!(system.fanout.forget(&user(), None).await.unwrap()),
        }
        let mut live = LiveChannel::subscribe(&system).await;
        for offset in [0, 1] {
            assert_eq!(system.append("m", &owner, 1, offset, "b").await, 0);
        }
        assert_eq!(system.renew("m", &owner, 1, 1).await, expected);
        assert_eq!(system.open("m", &owner, 1, "a").await, expected);
        assert!(live.published().is_empty());
        assert!(system.read(None).await.in_flight.is_empty());

        if expected == StreamResponse::DataLost {
            // The worker begins again, in a stream that it has never used.
            assert_eq!(system.attempt("m", &owner, 1).await, 2);
            assert_eq!(
                system.open("m", &owner, 2, "ab").await,
                StreamResponse::Confirmed(1)
            );
            let view = system.read(None).await;
            assert_eq!(view.in_flight[0].stream, owner.stream(2));
            assert_eq!(in_flight_texts(&view), ["ab"]);
        }
    }
}

/// Trap L6 of the live path.
#[tokio::test]
async fn repeated_or_late_piece_is_not_published() {
    let system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    system.attempt("m", &owner, 0).await;
    system.open("m", &owner, 1, "a").await;
    let mut live = LiveChannel::subscribe(&system).await;
    assert_eq!(system.append("m", &owner, 1, 1, "bc").await, 2);
    assert_eq!(live.published().len(), 1);
    assert_eq!(in_flight_texts(&system.read(None).await), ["abc"]);
    for (offset, text) in [(1, "bc"), (0, "a")] {
        assert_eq!(system.append("m", &owner, 1, offset, text).await, 2);
    }
    assert!(live.published().is_empty());
    assert_eq!(in_flight_texts(&system.read(None).await), ["abc"]);

    // A piece of a part that is complete, after the next part was opened.
    let call = OpenPartRequest {
        previous_end: Some(3),
        ..opening("m", &owner, 1, 1, "d")
    };
    system.fanout.open_part(call).await.unwrap();
    live.published();
    for (offset, text) in [(1, "bc"), (3, "x")] {
        assert_eq!(system.append("m", &owner, 1, offset, text).await, 3);
    }
    assert!(live.published().is_empty());

    // `keep` keeps the answer in flight, so that a device that joins gets a snapshot.
    system.keep("m", &owner, 1, "abcd").await;
    assert_eq!(in_flight_texts(&system.read(None).await), ["abc", "d"]);
    assert_eq!(
        system.open("m", &owner, 1, "a").await,
        StreamResponse::Fenced
    );
    assert_eq!(
        system.renew("m", &owner, 1, 1).await,
        StreamResponse::Fenced
    );
    system.deliver("m", 0, None).await;
    live.published();
    assert_eq!(system.append("m", &owner, 1, 3, "late").await, 0);
    assert_eq!(system.append("m", &owner, 1, 1, "bc").await, 0);
    assert!(live.published().is_empty());
    assert!(system.read(None).await.in_flight.is_empty());
}

/// Trap L8 of the live path.
#[tokio::test]
async fn answer_of_256_parts_stays_whole() {
    let system = TestFanout::new(Bounds::default());
    let owner = Owner::random();
    system.attempt("m", &owner, 0).await;
    // Pairs of surrogates, a combining character, a sequence of joined emoji, and nothing.
    let texts = ["a😀b", "e\u{301}", "👩\u{200d}👧", ""];
    let mut expected = Vec::new();
    let mut pieces = 0;
    let mut previous_end = None;
    for number in 0..MAX_PARTS {
        let text = texts[number % texts.len()];
        let part = u32::try_from(number).unwrap();
        let call = OpenPartRequest {
            previous_end,
            ..opening("m", &owner, 1, part, "")
        };
        pieces += 1;
        assert_eq!(
            system.fanout.open_part(call).await.unwrap(),
            StreamResponse::Confirmed(pieces)
        );
        let mut offset = 0;
        for character in text.chars() {
            let piece = piece(part, offset, &character.to_string());
            offset = piece.range.end;
            let call = AppendRequest {
                message: message_ref("m"),
                owner: owner.clone(),
                attempt: 1,
                piece,
            };
            pieces += 1;
            assert_eq!(system.fanout.append(call).await.unwrap(), pieces);
        }
        previous_end = Some(offset);
        expected.push(part_with_text(PartKind::Text, None, text));
    }
    assert_eq!(system.read(None).await.in_flight[0].parts, expected);
    let call = RenewRequest {
        message: message_ref("m"),
        owner,
        attempt: 1,
        parts: u32::try_from(MAX_PARTS).unwrap(),
        last_length: previous_end.unwrap(),
        pieces: u64::MAX,
    };
    assert_eq!(
        system.fanout.renew(call).await.unwrap(),
        StreamResponse::Confirmed(pieces)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A device that joins at any moment reads what was published until then.
    #[test]
    fn parts_are_those_that_were_published(
        texts in prop::collection::vec(prop::collection::vec("\\PC{0,3}", 1..5), 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let system = TestFanout::new(Bounds::default());
            let owner = Owner::random();
            let mut live = LiveChannel::subscribe(&system).await;
            system.attempt("m", &owner, 0).await;
            let mut published: Vec<String> = Vec::new();
            let mut previous_end = None;
            for (part, texts) in (0..).zip(&texts) {
                let mut offset = 0;
                for (number, text) in texts.iter().enumerate() {
                    let piece = piece(part, offset, text);
                    offset = piece.range.end;
                    if number == 0 {
                        let call = OpenPartRequest {
                            previous_end,
                            ..opening("m", &owner, 1, part, text)
                        };
                        system.fanout.open_part(call).await.unwrap();
                    } else {
                        let call = AppendRequest {
                            message: message_ref("m"),
                            owner: owner.clone(),
                            attempt: 1,
                            piece,
                        };
                        system.fanout.append(call).await.unwrap();
                    }
                    for frame in live.published() {
                        let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
                        if frame["part"] == published.len() {
                            published.push(String::new());
                        }
                        let text = published.last_mut().unwrap();
                        assert_eq!(frame["offset"], utf16_len(text));
                        text.push_str(frame["content"].as_str().unwrap());
                        assert_eq!(frame["end"], utf16_len(text));
                    }
                    assert_eq!(in_flight_texts(&system.read(None).await), published);
                }
                previous_end = Some(offset);
            }
            assert_eq!(published.len(), texts.len());
        });
    }
}
