//! The stream of an attempt: the rules of `open_part`, `append` and `renew`, and which calls delete
//! a stream.

use std::time::{Duration, Instant};

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{Channel, FeedEvent, Owner, StreamResponse};
use chatmesh::protocol::parts::{MAX_PARTS, PartKind};

use super::case::{
    Backend, Case, attempt_number, is_confirmed, is_published, piece, stored_outcome, texts,
};
use super::feeds::{next_event, next_frame, open_subscribed_feed};
use super::receiver::{Receiver, Reception, received_parts};
use super::writer::StreamWriter;

/// Number of pieces above which a renewal joins them.
const JOINED_PIECES: usize = 256;

/// Asserts that both fenced calls of this owner and attempt get this response.
async fn assert_refused(
    case: &Case<'_>,
    writer: &StreamWriter,
    (owner, attempt): (&Owner, u32),
    expected: StreamResponse,
) {
    let message = &writer.message;
    let opened = case.open_text(message, owner, attempt, "x").await;
    let renewed = case.renew(message, owner, attempt, (0, 0)).await;
    assert_eq!((opened, renewed), (expected, expected));
}

pub(crate) async fn outcome_precedes_cancel_loss_and_fence(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let never_begun = StreamWriter::new(case.message(), Owner::random(), 1);
    let lost = StreamResponse::DataLost;
    assert_refused(&case, &never_begun, (&never_begun.owner, 1), lost).await;

    let mut writer = StreamWriter::begin(&case).await;
    let (owner, other_owner) = (writer.owner.clone(), Owner::random());
    let callers = [(&owner, 1), (&owner, 2), (&other_owner, 1)];
    writer
        .open(&*case.fanout, PartKind::Text, None, "a")
        .await
        .unwrap();
    for caller in &callers[1..] {
        assert_refused(&case, &writer, *caller, StreamResponse::Fenced).await;
    }
    let mut ahead = writer.next_opening(PartKind::Text, None, "c");
    ahead.piece.range.part = 2;
    let response = case.fanout.open_part(ahead).await.unwrap();
    assert_eq!(response, StreamResponse::DataLost);

    let message = &writer.message;
    for message in [message, &never_begun.message] {
        let cancelling = case.fanout.cancel(&case.user, &message.message_id);
        cancelling.await.unwrap();
    }
    for caller in callers {
        assert_refused(&case, &writer, caller, StreamResponse::Cancelled).await;
        assert_refused(&case, &never_begun, caller, StreamResponse::Cancelled).await;
    }
    assert_eq!(texts(&case.answer_in_flight().await), ["a"]);

    stored_outcome(case.keep(message, &owner, 1, "a").await);
    for caller in callers {
        assert_refused(&case, &writer, caller, StreamResponse::Fenced).await;
    }
    case.deliver(message, 0, "a").await;
    for caller in callers {
        assert_refused(&case, &writer, caller, StreamResponse::Fenced).await;
    }
}

pub(crate) async fn repeated_pieces_change_nothing_that_readers_see(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (_feed, mut events) = open_subscribed_feed(&case, &[Channel::Live]).await;
    let mut writer = StreamWriter::begin(&case).await;
    let (mut openings, mut appends) = (Vec::new(), Vec::new());
    for text in ["first", ""] {
        let call = writer.next_opening(PartKind::Text, None, text);
        for _ in 0..2 {
            let response = case.fanout.open_part(call.clone()).await.unwrap();
            assert!(is_confirmed(response), "{response:?}");
        }
        writer.record_opening(&call);
        openings.push(call);
        for _ in 0..2 {
            let call = writer.next_append(" piece");
            for _ in 0..3 {
                assert!(case.fanout.append(call.clone()).await.unwrap() > 0);
            }
            writer.record_append(&call);
            appends.push(call);
        }
    }
    // The repeats of a worker that was paused arrive after everything else.
    for call in &openings {
        let response = case.fanout.open_part(call.clone()).await.unwrap();
        assert!(is_confirmed(response), "{response:?}");
    }
    for call in &appends {
        assert!(case.fanout.append(call.clone()).await.unwrap() > 0);
    }
    assert_eq!(case.answer_in_flight().await.parts, writer.parts);
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert!(is_confirmed(renewed), "{renewed:?}");
    assert_eq!(
        case.read(None).await.number.n,
        2,
        "expected one publication of each opening"
    );

    let mut receiver = Receiver::default();
    let accepted = r#"{"type":"accepted"}"#.to_owned();
    case.fanout.accept(&case.message(), accepted).await.unwrap();
    loop {
        let (_, frame) = next_frame(&case, &mut events).await;
        if frame["type"] == "accepted" {
            break;
        }
        assert_eq!(receiver.receive(&frame), Reception::Accepted, "{frame}");
    }
    assert_eq!(receiver.parts, received_parts(&writer.parts));
}

pub(crate) async fn repeats_after_a_join_change_nothing_that_readers_see(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    let mut calls = Vec::new();
    for part in 0..2 {
        let opened = writer
            .open(&*case.fanout, PartKind::Text, None, &format!("{part}"))
            .await;
        assert!(is_confirmed(opened.unwrap()));
        for number in 0..JOINED_PIECES {
            let call = writer.next_append(&format!(" {number}"));
            case.fanout.append(call.clone()).await.unwrap();
            writer.record_append(&call);
            calls.push(call);
        }
    }
    for _ in 0..2 {
        let renewed = writer.renew(&*case.fanout).await.unwrap();
        assert!(is_confirmed(renewed), "{renewed:?}");
        for call in [
            &calls[0],
            &calls[3],
            &calls[JOINED_PIECES],
            calls.last().unwrap(),
        ] {
            assert!(case.fanout.append(call.clone()).await.unwrap() > 0);
        }
        assert_eq!(case.answer_in_flight().await.parts, writer.parts);
    }
    writer.append(&*case.fanout, " end").await.unwrap();
    let renewed = writer.renew(&*case.fanout).await.unwrap();
    assert!(is_confirmed(renewed), "{renewed:?}");
    assert_eq!(case.answer_in_flight().await.parts, writer.parts);
}

/// Appends to a stream that does not exist, and asserts that this creates nothing.
async fn assert_append_creates_nothing(case: &Case<'_>, writer: &StreamWriter) {
    let keys = case.backend.key_names(&case.user).await;
    for (part, offset) in [(0, 0), (0, 1), (1, 0)] {
        let call = writer.append_call(piece(part, offset, "late"));
        assert_eq!(case.fanout.append(call).await.unwrap(), 0);
    }
    assert_eq!(case.backend.key_names(&case.user).await, keys);
}

pub(crate) async fn append_to_a_stream_that_does_not_exist_creates_nothing(backend: &dyn Backend) {
    let mut case = Case::new(backend).await;
    let never_begun = StreamWriter::new(case.message(), Owner::random(), 1);
    assert_append_creates_nothing(&case, &never_begun).await;
    assert!(case.read(None).await.in_flight.is_empty());

    let mut writer = StreamWriter::begin(&case).await;
    assert_append_creates_nothing(&case, &writer).await;
    assert!(case.answer_in_flight().await.parts.is_empty());
    let open = async |case: &Case<'_>, writer: &mut StreamWriter| {
        let fanout = &*case.fanout;
        let opened = writer.open(fanout, PartKind::Text, None, "a").await;
        assert!(is_confirmed(opened.unwrap()));
    };
    open(&case, &mut writer).await;
    let other_owner = StreamWriter::new(writer.message.clone(), Owner::random(), 1);
    assert_append_creates_nothing(&case, &other_owner).await;

    let earlier = writer.clone();
    writer.begin_again(&case).await;
    assert_append_creates_nothing(&case, &earlier).await;
    assert!(case.answer_in_flight().await.parts.is_empty());
    open(&case, &mut writer).await;
    assert_append_creates_nothing(&case, &earlier).await;
    assert_eq!(texts(&case.answer_in_flight().await), ["a"]);

    let (message, attempt) = (writer.message.clone(), writer.attempt);
    stored_outcome(case.keep(&message, &writer.owner, attempt, "a").await);
    assert!(is_published(case.deliver(&message, 0, "a").await));
    assert_append_creates_nothing(&case, &writer).await;

    let mut forgotten = StreamWriter::begin(&case).await;
    open(&case, &mut forgotten).await;
    assert!(case.fanout.forget(&case.user, None).await.unwrap());
    assert_append_creates_nothing(&case, &forgotten).await;

    let mut lost = StreamWriter::begin(&case).await;
    open(&case, &mut lost).await;
    case.lose_data().await;
    assert_append_creates_nothing(&case, &lost).await;
    assert!(case.read(None).await.in_flight.is_empty());
}

pub(crate) async fn renewal_reports_text_that_is_missing(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let mut writer = StreamWriter::begin(&case).await;
    let (message, owner) = (writer.message.clone(), writer.owner.clone());
    let renew = async |known| case.renew(&message, &owner, 1, known).await;
    assert_eq!(renew((0, 0)).await, StreamResponse::Confirmed(0));
    assert_eq!(renew((1, 0)).await, StreamResponse::DataLost);

    let fanout = &*case.fanout;
    let opened = writer.open(fanout, PartKind::Reasoning, None, "a😀").await;
    assert_eq!(opened.unwrap(), StreamResponse::Confirmed(1));
    let opened = writer.open(fanout, PartKind::Text, None, "").await;
    assert_eq!(opened.unwrap(), StreamResponse::Confirmed(2));
    assert_eq!(writer.append(fanout, "b").await.unwrap(), 3);
    for known in [(0, 0), (1, 0), (1, 3), (2, 0), (2, 1)] {
        let renewed = renew(known).await;
        assert!(is_confirmed(renewed), "{known:?}: {renewed:?}");
    }
    for known in [(1, 4), (2, 2), (3, 0)] {
        assert_eq!(renew(known).await, StreamResponse::DataLost, "{known:?}");
    }
    assert_eq!(texts(&case.answer_in_flight().await), ["a😀", "b"]);
}

/// A text and properties with every character that has a meaning in JSON or in the storage format.
fn difficult_texts() -> (Vec<String>, String) {
    let control: String = ('\u{1}'..='\u{9f}').collect();
    let texts = [
        "",
        "+0:5:3:text:0:",
        "0:3:7:",
        ":::+++12345",
        "12",
        "line\nnext\r\n\tend\u{2028}\u{2029}",
        "\"quoted\" \\ / \\u0041 {\"a\":[1]}",
        "😀👩‍👩‍👧‍👦🏳️‍🌈\u{10ffff}",
        "e\u{301}o\u{308}\u{302}\u{feff}क्षि",
        "%s %d %% \u{ffff}\u{fffd}",
        &control,
    ];
    let value = serde_json::json!({
        "id": texts.concat(), "name": texts, "url": null, "title": { "a": [1, -2.5, true, "}"] },
    });
    (texts.map(str::to_owned).to_vec(), value.to_string())
}

pub(crate) async fn joined_pieces_are_the_same_answer(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let fanout = &*case.fanout;
    let mut writer = StreamWriter::begin(&case).await;
    let (difficult_texts, difficult_meta) = difficult_texts();
    let kinds = [
        PartKind::Text,
        PartKind::Refusal,
        PartKind::Reasoning,
        PartKind::ToolCall,
        PartKind::Source,
        PartKind::Data,
    ];
    let metas = [
        None,
        Some("{}"),
        Some(r#"{ "name" : "a\u0000\u00e9:+1" }"#),
        Some(&difficult_meta),
    ];
    for number in 0..MAX_PARTS {
        let meta = metas[number % metas.len()];
        let text = &difficult_texts[number % difficult_texts.len()];
        let opened = writer
            .open(fanout, kinds[number % kinds.len()], meta, text)
            .await;
        assert!(is_confirmed(opened.unwrap()));
        if number % 16 == 0 {
            for text in &difficult_texts {
                assert!(writer.append(fanout, text).await.unwrap() > 0);
            }
        }
        if number % 100 == 0 || number + 1 == MAX_PARTS {
            let before = case.answer_in_flight().await;
            assert_eq!(before.parts, writer.parts);
            let StreamResponse::Confirmed(pieces) = writer.renew(fanout).await.unwrap() else {
                panic!("expected the renewal of a stored answer to be confirmed");
            };
            assert!(pieces > number as u64, "{pieces}");
            assert_eq!(case.answer_in_flight().await, before);
        }
    }
    for text in &difficult_texts {
        assert!(writer.append(fanout, text).await.unwrap() > 0);
    }
    assert_eq!(case.answer_in_flight().await.parts, writer.parts);
}

/// Asserts whether the stream is stored. Of a fan-out with keys, also whether a key contains it.
async fn assert_stream_exists(case: &Case<'_>, writer: &StreamWriter, exists: bool) {
    let keys = case.backend.key_names(&case.user).await;
    let stream = writer.stream();
    let has_key = keys.iter().any(|key| key.ends_with(stream.as_str()));
    assert_eq!(has_key, exists && !keys.is_empty(), "{keys:?}");
    let answers = case.read(None).await.in_flight;
    let answer = answers.iter().find(|answer| answer.stream == stream);
    assert_eq!(answer.is_some(), exists, "{answers:?}");
    if let Some(answer) = answer {
        assert_eq!(answer.parts, writer.parts);
    }
}

pub(crate) async fn begin_deliver_and_forget_delete_a_stream_and_keep_does_not(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let fanout = &*case.fanout;
    let open = async |writer: &mut StreamWriter| {
        let opened = writer.open(fanout, PartKind::Text, None, "a").await;
        assert!(is_confirmed(opened.unwrap()));
        assert!(writer.append(fanout, "b").await.unwrap() > 0);
        assert_stream_exists(&case, writer, true).await;
    };
    let mut writer = StreamWriter::begin(&case).await;
    open(&mut writer).await;
    let earlier = writer.clone();
    writer.begin_again(&case).await;
    assert_stream_exists(&case, &earlier, false).await;
    open(&mut writer).await;

    let successor = Owner::random();
    let response = case.begin_when_free(&writer.message, &successor, 0).await;
    let number = attempt_number(&response);
    assert_stream_exists(&case, &writer, false).await;
    let mut writer = StreamWriter::new(writer.message.clone(), successor, number);
    open(&mut writer).await;

    let message = &writer.message;
    stored_outcome(case.keep(message, &writer.owner, number, "ab").await);
    assert_stream_exists(&case, &writer, true).await;
    assert!(is_published(case.deliver(message, 0, "ab").await));
    assert_stream_exists(&case, &writer, false).await;

    let mut forgotten = StreamWriter::begin(&case).await;
    open(&mut forgotten).await;
    assert!(fanout.forget(&case.user, None).await.unwrap());
    assert_stream_exists(&case, &forgotten, false).await;
}

pub(crate) async fn openings_are_numbered_and_later_deltas_published_verbatim(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let (_feed, mut events) = open_subscribed_feed(&case, &[Channel::Live]).await;
    let fanout = &*case.fanout;
    let mut writer = StreamWriter::begin(&case).await;
    let counter = case.read(None).await.number.counter;
    let (mut expected, mut n) = (Vec::new(), 0);
    for (kind, meta) in [
        (PartKind::Reasoning, None),
        (PartKind::ToolCall, Some(r#"{"id":"1","name":"f\"é"}"#)),
        (PartKind::Text, None),
    ] {
        let call = writer.next_opening(kind, meta, "a\"😀");
        assert!(is_confirmed(fanout.open_part(call.clone()).await.unwrap()));
        n += 1;
        let frame = writer.opening_frame(&call);
        let body = &frame[..frame.len() - 1];
        expected.push(format!("{body},\"n\":{n},\"n_id\":\"{counter}\"}}"));
        writer.record_opening(&call);
        for text in ["", "\n", "e\u{301}"] {
            let call = writer.next_append(text);
            fanout.append(call.clone()).await.unwrap();
            expected.push(writer.delta_frame(&call));
            writer.record_append(&call);
        }
    }
    for frame in expected {
        let FeedEvent::Frame { payload, .. } = next_event(&mut events).await else {
            panic!("expected a frame, got a gap");
        };
        assert_eq!(std::str::from_utf8(&payload).unwrap(), frame);
    }
    assert_eq!(case.read(None).await.number.n, n);

    let stale = writer.next_append("stale");
    writer.begin_again(&case).await;
    let (_, frame) = next_frame(&case, &mut events).await;
    assert_eq!(frame["type"], "restarted");
    assert_eq!(frame["stream"], writer.stream().as_str());
    assert_eq!(
        (&frame["attempt"], &frame["n"]),
        (&2.into(), &(n + 1).into())
    );
    // Whether the text of the earlier stream is published or not, it is no text of the new one.
    assert_eq!(fanout.append(stale).await.unwrap(), 0);
    let call = writer.next_opening(PartKind::Text, None, "new");
    fanout.open_part(call).await.unwrap();
    let mut receiver = Receiver::default();
    assert_eq!(receiver.receive(&frame), Reception::Accepted);
    while receiver.parts.is_empty() {
        let (_, frame) = next_frame(&case, &mut events).await;
        let is_new = frame["stream"] == writer.stream().as_str();
        let reception = receiver.receive(&frame);
        assert_eq!(reception == Reception::Accepted, is_new, "{reception:?}");
    }
    assert_eq!(
        receiver.parts,
        received_parts(&case.answer_in_flight().await.parts)
    );
}

pub(crate) async fn stalled_worker_writes_only_to_its_own_stream(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (_feed, mut events) = open_subscribed_feed(&case, &[Channel::Live]).await;
    let fanout = &*case.fanout;
    let mut stalled = StreamWriter::begin(&case).await;
    let opened = stalled.open(fanout, PartKind::Text, None, "").await;
    assert!(is_confirmed(opened.unwrap()));
    let owner = Owner::random();
    let response = case.begin_when_free(&stalled.message, &owner, 0).await;
    let number = attempt_number(&response);
    let mut successor = StreamWriter::new(stalled.message.clone(), owner, number);
    let opened = successor.open(fanout, PartKind::Text, None, "theirs").await;
    assert!(is_confirmed(opened.unwrap()));

    assert_eq!(stalled.append(fanout, "mine").await.unwrap(), 0);
    let renewed = stalled.renew(fanout).await.unwrap();
    assert_eq!(renewed, StreamResponse::Fenced);
    assert!(successor.append(fanout, ", too").await.unwrap() > 0);
    assert_eq!(case.answer_in_flight().await.parts, successor.parts);
    let mut receiver = Receiver::default();
    while receiver.parts != received_parts(&successor.parts) {
        let (_, frame) = next_frame(&case, &mut events).await;
        receiver.receive(&frame);
    }
}

pub(crate) async fn answer_in_flight_expires_after_its_last_renewal(backend: &dyn Backend) {
    let bounds = Bounds {
        pending_ttl: Duration::from_secs(2),
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    let fanout = &*case.fanout;
    let mut writer = StreamWriter::begin(&case).await;
    let opened = writer.open(fanout, PartKind::Text, None, "a").await;
    assert!(is_confirmed(opened.unwrap()));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let renewed = writer.renew(fanout).await.unwrap();
        assert!(is_confirmed(renewed), "{renewed:?}");
    }
    assert_eq!(case.answer_in_flight().await.parts, writer.parts);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(writer.append(fanout, "b").await.unwrap(), 0);
    assert!(case.read(None).await.in_flight.is_empty());
    let renewed = writer.renew(fanout).await.unwrap();
    assert_eq!(renewed, StreamResponse::DataLost);
}
