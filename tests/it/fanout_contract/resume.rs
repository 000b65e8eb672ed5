//! Random answers: at every moment a reader sees exactly the text so far. A reader that joins at
//! any moment, or that misses or repeats frames, ends with the same parts.

use chatmesh::fanout::{Channel, FeedEvent, StreamResponse};
use chatmesh::protocol::open_message::InFlightAnswer;
use chatmesh::protocol::parts::PartKind;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::sync::mpsc::Receiver as Events;

use super::case::{Backend, Case};
use super::feeds::{next_event, open_subscribed_feed};
use super::receiver::{ReceivedPart, Receiver, Reception, is_prefix, received_parts};
use super::writer::StreamWriter;
use crate::seeds::Seeds;

const KINDS: [PartKind; 6] = [
    PartKind::Text,
    PartKind::Refusal,
    PartKind::Reasoning,
    PartKind::ToolCall,
    PartKind::Source,
    PartKind::Data,
];
const METAS: [Option<&str>; 4] = [
    None,
    Some("{}"),
    Some(r#"{"id":"call:1+2","name":"f\"\\\u00e9😀"}"#),
    Some(r#"{"url":"https://a.example/?b=c","title":"{\"a\":[1]}"}"#),
];
/// Texts that are written as one piece: characters of one to four bytes, combining sequences, and
/// the characters of the storage format.
const FRAGMENTS: [&str; 16] = [
    "",
    "a",
    "word ",
    "\n",
    "é",
    "e\u{301}",
    "漢字",
    "😀",
    "👩‍👩‍👧",
    "\u{10ffff}",
    "0:1:2:",
    "+1:2:",
    "\"\\",
    "\u{1}\u{7f}",
    "\u{301}",
    "}",
];

/// What a reader could see after one call.
struct Moment {
    /// What a `read` returned.
    answer: InFlightAnswer,
    /// The number of published frames whose text the answer contains.
    frames: usize,
}

pub(crate) async fn reader_that_joins_at_any_moment_ends_with_the_same_parts(
    backend: &dyn Backend,
) {
    let seeds = Seeds::new("resume", "RESUME_RUNS", 4);
    seeds
        .run(async |seed| {
            check_random_answer(backend, &mut StdRng::seed_from_u64(seed)).await;
            Ok(())
        })
        .await;
}

async fn check_random_answer(backend: &dyn Backend, random: &mut StdRng) {
    let case = Case::new(backend).await;
    let (_feed, mut events) = open_subscribed_feed(&case, &[Channel::Live]).await;
    let mut writer = StreamWriter::begin(&case).await;
    let (mut moments, mut frames) = (Vec::new(), Vec::new());
    for _ in 0..random.random_range(1..8) {
        write_part(
            &case,
            &mut writer,
            random,
            &mut moments,
            &mut frames,
            &mut events,
        )
        .await;
    }
    let expected = received_parts(&writer.parts);
    assert_every_cut_resumes(&moments, &frames, &expected, random);
    for _ in 0..20 {
        assert_damaged_feed_resumes(&moments, &frames, &expected, random);
    }
}

/// Writes one part in pieces of random size. After each call, records what a read returns and which
/// frames were published.
async fn write_part(
    case: &Case<'_>,
    writer: &mut StreamWriter,
    random: &mut StdRng,
    moments: &mut Vec<Moment>,
    frames: &mut Vec<Value>,
    events: &mut Events<FeedEvent>,
) {
    let text = random_text(random);
    let meta = *METAS.choose(random).unwrap();
    let call = writer.next_opening(*KINDS.choose(random).unwrap(), meta, &text);
    for _ in 0..random.random_range(1..3) {
        let response = case.fanout.open_part(call.clone()).await.unwrap();
        assert!(
            matches!(response, StreamResponse::Confirmed(_)),
            "{response:?}"
        );
    }
    writer.record_opening(&call);
    let published = writer.opening_frame(&call);
    record_moment(case, writer, &published, moments, frames, events).await;
    for _ in 0..random.random_range(0..12) {
        let call = writer.next_append(&random_text(random));
        for _ in 0..random.random_range(1..3) {
            assert!(case.fanout.append(call.clone()).await.unwrap() > 0);
        }
        writer.record_append(&call);
        let published = writer.delta_frame(&call);
        record_moment(case, writer, &published, moments, frames, events).await;
        if random.random_range(0..8) == 0 {
            let renewed = writer.renew(&*case.fanout).await.unwrap();
            assert!(
                matches!(renewed, StreamResponse::Confirmed(_)),
                "{renewed:?}"
            );
        }
    }
}

fn random_text(random: &mut StdRng) -> String {
    let count = random.random_range(0..4);
    (0..count)
        .map(|_| *FRAGMENTS.choose(random).unwrap())
        .collect()
}

/// Asserts that a read returns exactly what was written, and receives frames up to the one with the
/// last text.
async fn record_moment(
    case: &Case<'_>,
    writer: &StreamWriter,
    published: &str,
    moments: &mut Vec<Moment>,
    frames: &mut Vec<Value>,
    events: &mut Events<FeedEvent>,
) {
    let answer = case.answer_in_flight().await;
    assert_eq!(answer.stream, writer.stream());
    assert_eq!(answer.parts, writer.parts);
    loop {
        let FeedEvent::Frame { payload, .. } = next_event(events).await else {
            panic!("expected a frame, got a gap");
        };
        let text = std::str::from_utf8(&payload).unwrap();
        frames.push(serde_json::from_str(text).unwrap());
        if text.starts_with(&published[..published.len() - 1]) {
            break;
        }
    }
    let frames = frames.len();
    moments.push(Moment { answer, frames });
}

/// A reader takes the snapshot of one moment, and receives the frames from then on. Some of them
/// may have been published before the snapshot.
fn assert_every_cut_resumes(
    moments: &[Moment],
    frames: &[Value],
    expected: &[ReceivedPart],
    random: &mut StdRng,
) {
    for moment in moments {
        for start in [0, random.random_range(0..=moment.frames), moment.frames] {
            let mut receiver = Receiver::default();
            receiver.take_snapshot(&moment.answer);
            for frame in &frames[start..] {
                assert_eq!(receiver.receive(frame), Reception::Accepted, "{frame}");
            }
            assert_eq!(receiver.parts, expected);
        }
    }
}

/// A reader loses and repeats frames. When it notices that something is missing, it takes a
/// snapshot of that moment. The last check of open messages finds what was lost at the end.
fn assert_damaged_feed_resumes(
    moments: &[Moment],
    frames: &[Value],
    expected: &[ReceivedPart],
    random: &mut StdRng,
) {
    let mut receiver = Receiver::default();
    for (index, frame) in frames.iter().enumerate() {
        if random.random_range(0..6) == 0 {
            continue;
        }
        let repeated = &frames[random.random_range(0..=index)];
        let is_repeated = random.random_range(0..4) == 0 && !receiver.parts.is_empty();
        for frame in [Some(frame), is_repeated.then_some(repeated)]
            .into_iter()
            .flatten()
        {
            let reception = receiver.receive(frame);
            if reception != Reception::Accepted {
                let moment = moments.iter().find(|moment| moment.frames > index);
                receiver.take_snapshot(&moment.expect("a later moment").answer);
            }
        }
    }
    if receiver.parts != expected {
        assert!(is_prefix(&receiver.parts, expected), "{:?}", receiver.parts);
        receiver.take_snapshot(&moments.last().expect("a moment").answer);
    }
    assert_eq!(receiver.parts, expected);
}
