//! Tests of the receiver's rules.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::parts::PartMeta;
use crate::protocol::wire::v1::SnapshotPart;

/// The kinds that this version knows, and a kind of a later version.
const KINDS: [&str; 7] = [
    "text",
    "refusal",
    "reasoning",
    "tool_call",
    "source",
    "data",
    "hologram",
];

/// A part as a worker generates it: its kind, and the pieces in which its text is sent.
type GeneratedPart = (&'static str, Vec<String>);

fn stream(number: u32) -> StreamId {
    StreamId::parse(&format!("owner.{number}")).unwrap()
}

/// A delta of the stream 1. It is an opening if `kind` is not empty.
fn delta(part: u32, offset: u32, content: &str, kind: &str) -> Delta {
    Delta {
        message_id: MessageId::parse("m").unwrap(),
        id: None,
        conversation_id: None,
        stream: stream(1),
        part,
        offset,
        end: offset + utf16_len(content),
        kind: (!kind.is_empty()).then(|| kind.to_owned()),
        meta: None,
        previous_end: None,
        attempt: 1,
        content: content.to_owned(),
    }
}

fn opening_after(previous_end: u32, part: u32, content: &str, kind: &str) -> Delta {
    Delta {
        previous_end: Some(previous_end),
        ..delta(part, 0, content, kind)
    }
}

fn of_stream(number: u32, frame: Delta) -> Delta {
    Delta {
        stream: stream(number),
        attempt: number,
        ..frame
    }
}

fn snapshot(number: u32, parts: &[Part], names: &[&str]) -> Snapshot {
    let parts = parts.iter().zip(names);
    Snapshot {
        userid: UserId::parse("u").unwrap(),
        message_id: MessageId::parse("m").unwrap(),
        id: None,
        conversation_id: ConversationId::default_conversation(),
        stream: stream(number),
        attempt: number,
        parts: parts
            .map(|(part, kind)| SnapshotPart {
                kind: (*kind).to_owned(),
                meta: part.meta.clone(),
                content: part.text.clone(),
            })
            .collect(),
    }
}

fn part(kind: &str, text: &str) -> Part {
    Part {
        kind: PartKind::from_name(kind),
        meta: None,
        text: text.to_owned(),
    }
}

/// A receiver, and the parts that a reader of its events has.
#[derive(Default)]
struct Device {
    received: ReceivedParts,
    shown: Vec<Part>,
    /// Number of events that replaced the parts.
    replacements: usize,
}

impl Device {
    fn report(&mut self, event: Event) {
        match event {
            Event::Delta(delta) => delta.apply_to(&mut self.shown),
            Event::Snapshot(parts) => {
                self.shown = parts;
                self.replacements += 1;
            }
            Event::Restarted => {
                self.shown.clear();
                self.replacements += 1;
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Applies a delta and returns whether it was reported.
    fn delta(&mut self, frame: Delta) -> bool {
        let event = self.received.apply_delta(frame);
        let is_reported = event.is_some();
        if let Some(event) = event {
            self.report(event);
        }
        assert_eq!(self.shown, self.received.to_parts());
        is_reported
    }

    fn snapshot(&mut self, number: u32, parts: &[Part], names: &[&str]) {
        let event = self.received.apply_snapshot(snapshot(number, parts, names));
        self.report(event);
    }
}

#[test]
fn delta_is_appended_from_the_length_on() {
    let mut device = Device::default();
    assert!(device.delta(delta(0, 0, "a😀", "text")));
    assert!(!device.delta(delta(0, 0, "a😀", "text")), "a repeat");
    assert!(!device.delta(delta(0, 1, "😀", "")), "a repeat");
    assert!(device.delta(delta(0, 1, "😀b", "")));
    assert!(device.delta(delta(0, 4, "e\u{301}", "")));
    assert_eq!(device.shown, [part("text", "a😀be\u{301}")]);
    assert_eq!(device.replacements, 0);
}

#[test]
fn part_may_begin_without_text() {
    let mut device = Device::default();
    assert!(device.delta(delta(0, 0, "", "reasoning")));
    assert!(!device.delta(delta(0, 0, "", "reasoning")), "a repeat");
    assert!(device.delta(opening_after(0, 1, "", "source")));
    assert!(device.delta(opening_after(0, 2, "", "text")));
    assert!(device.delta(delta(2, 0, "x", "")));
    let expected = [part("reasoning", ""), part("source", ""), part("text", "x")];
    assert_eq!(device.shown, expected);
}

#[test]
fn after_a_gap_everything_is_ignored_until_a_snapshot() {
    let gaps = [
        delta(0, 4, "x", ""),
        delta(1, 0, "x", ""),
        delta(2, 0, "x", ""),
        opening_after(3, 2, "x", "text"),
        opening_after(4, 1, "x", "text"),
        opening_after(2, 1, "x", "text"),
        delta(1, 0, "x", "text"),
        // This piece begins inside a surrogate pair of what the device has.
        delta(0, 2, "😀", ""),
    ];
    for gap in gaps {
        let mut device = Device::default();
        device.delta(delta(0, 0, "abc", "text"));
        assert!(!device.delta(gap.clone()), "{gap:?}");
        assert!(!device.delta(delta(0, 3, "d", "")), "{gap:?}");
        assert!(!device.delta(opening_after(3, 1, "e", "text")), "{gap:?}");
        assert_eq!(device.shown, [part("text", "abc")]);
        device.snapshot(1, &[part("text", "abcd")], &["text"]);
        assert!(device.delta(delta(0, 4, "e", "")));
        assert_eq!(device.shown, [part("text", "abcde")]);
    }
}

#[test]
fn opening_of_another_stream_replaces_the_parts() {
    let mut device = Device::default();
    device.delta(delta(0, 0, "old", "reasoning"));
    assert!(
        !device.delta(of_stream(2, delta(0, 0, "x", ""))),
        "no opening"
    );
    let later_part = of_stream(2, opening_after(3, 1, "x", "text"));
    assert!(!device.delta(later_part), "not the first part");
    assert!(device.delta(of_stream(2, delta(0, 0, "new", "text"))));
    assert_eq!(device.replacements, 1);
    assert!(!device.delta(delta(0, 3, " older", "")), "a late delta");
    assert_eq!(device.shown, [part("text", "new")]);
}

#[test]
fn opening_of_another_stream_ends_a_gap() {
    let mut device = Device::default();
    device.delta(delta(0, 0, "old", "text"));
    device.delta(delta(0, 9, "gap", ""));
    assert!(device.delta(of_stream(2, delta(0, 0, "new", "text"))));
    assert_eq!(device.shown, [part("text", "new")]);
}

#[test]
fn restart_makes_its_stream_current() {
    let mut device = Device::default();
    device.delta(delta(0, 0, "old", "text"));
    device.received.restart(stream(2));
    device.report(Event::Restarted);
    assert!(!device.delta(delta(0, 3, " late", "")));
    assert!(device.delta(of_stream(2, delta(0, 0, "new", "text"))));
    assert_eq!(device.shown, [part("text", "new")]);
    assert_eq!(
        device.replacements, 1,
        "the opening extends what was cleared"
    );
}

#[test]
fn delta_without_opening_creates_nothing() {
    let mut device = Device::default();
    assert!(!device.delta(delta(0, 0, "x", "")));
    assert!(!device.delta(opening_after(1, 1, "x", "text")));
    assert!(!device.delta(delta(0, 3, "x", "text")));
    assert_eq!(device.shown, []);
}

#[test]
fn more_parts_than_an_answer_may_have_are_ignored() {
    let mut device = Device::default();
    device.delta(delta(0, 0, "", "source"));
    for number in 1..MAX_PARTS as u32 {
        assert!(device.delta(opening_after(0, number, "", "source")));
    }
    assert!(!device.delta(opening_after(0, MAX_PARTS as u32, "", "source")));
    assert_eq!(device.shown.len(), MAX_PARTS);
}

#[test]
fn received_reasoning_stays_when_the_terminal_frame_has_only_its_length() {
    let finished: Vec<FinishedPart> = serde_json::from_str(
        r#"[{"kind":"reasoning","length":4},{"kind":"text","length":2},
            {"kind":"reasoning","length":2,"content":"as"}]"#,
    )
    .unwrap();
    let mut device = Device::default();
    device.delta(delta(0, 0, "hm", "reasoning"));
    let parts = device.received.finish("ok", Some(&finished));
    let expected = [
        part("reasoning", "hm"),
        part("text", "ok"),
        part("reasoning", "as"),
    ];
    assert_eq!(parts, expected);
    // A part of another kind at this place is not the reasoning.
    let mut device = Device::default();
    device.delta(delta(0, 0, "{}", "tool_call"));
    let parts = device.received.finish("ok", Some(&finished));
    assert_eq!(parts[0], part("reasoning", ""));
}

/// A piece of a part's text, which may be empty.
fn piece() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        Just("a".to_owned()),
        Just("é".to_owned()),
        Just("\u{301}".to_owned()),
        Just("日".to_owned()),
        Just("😀".to_owned()),
        Just("👩‍👩‍👧".to_owned()),
        any::<char>().prop_map(String::from),
    ];
    vec(character, 0..4).prop_map(|characters| characters.concat())
}

fn generated_parts() -> impl Strategy<Value = Vec<GeneratedPart>> {
    vec((select(KINDS.to_vec()), vec(piece(), 1..4)), 1..6)
}

/// All deltas of an answer. The first one of each part is its opening.
fn deltas_of(parts: &[GeneratedPart]) -> Vec<Delta> {
    let mut deltas = Vec::new();
    let mut previous_end = None;
    for (number, (kind, pieces)) in (0..).zip(parts) {
        let mut offset = 0;
        for (index, text) in pieces.iter().enumerate() {
            let mut frame = delta(number, offset, text, if index == 0 { kind } else { "" });
            if index == 0 {
                frame.previous_end = previous_end;
                frame.meta = (*kind == "tool_call").then(|| PartMeta {
                    name: Some(format!("tool {number}")),
                    ..PartMeta::default()
                });
            }
            offset = frame.end;
            deltas.push(frame);
        }
        previous_end = Some(offset);
    }
    deltas
}

fn parts_after(deltas: &[Delta]) -> Vec<Part> {
    let mut device = Device::default();
    for frame in deltas {
        assert!(device.delta(frame.clone()) || frame.content.is_empty());
    }
    assert_eq!(device.replacements, 0);
    device.shown
}

proptest! {
    /// At every cut, a device that missed deltas or received them twice ends with the same parts.
    #[test]
    fn every_cut_resumes_to_the_same_parts(
        generated in generated_parts(),
        repeated in 0_usize..4,
    ) {
        let deltas = deltas_of(&generated);
        let names: Vec<&str> = generated.iter().map(|(kind, _)| *kind).collect();
        let expected: Vec<Part> = generated
            .iter()
            .zip(0..)
            .map(|((kind, pieces), number)| Part {
                meta: (*kind == "tool_call").then(|| PartMeta {
                    name: Some(format!("tool {number}")),
                    ..PartMeta::default()
                }),
                ..part(kind, &pieces.concat())
            })
            .collect();
        prop_assert_eq!(parts_after(&deltas), expected.clone());

        for cut in 0..=deltas.len() {
            let repeats_from = cut.saturating_sub(repeated);
            let at_cut = parts_after(&deltas[..cut]);

            // A device that joins at the cut receives a snapshot, and deltas that it has.
            let mut joined = Device::default();
            joined.snapshot(1, &at_cut, &names);
            // A device that lost what precedes the cut receives the rest, which it ignores.
            let mut behind = Device::default();
            for frame in &deltas[..repeats_from] {
                behind.delta(frame.clone());
            }
            for frame in &deltas[cut..] {
                behind.delta(frame.clone());
            }
            behind.snapshot(1, &at_cut, &names);
            // A device of an earlier attempt missed that this one began.
            let mut earlier = Device::default();
            earlier.delta(of_stream(7, delta(0, 0, "earlier", "text")));
            for frame in &deltas[..cut] {
                earlier.delta(frame.clone());
                earlier.delta(of_stream(7, delta(0, 7, " late", "")));
            }
            for frame in &deltas[repeats_from..] {
                joined.delta(frame.clone());
                behind.delta(frame.clone());
                earlier.delta(frame.clone());
            }
            prop_assert_eq!(&joined.shown, &expected);
            prop_assert_eq!(&behind.shown, &expected);
            prop_assert_eq!(&earlier.shown, &expected);
        }
    }

    /// A device that fell behind receives the rest of each part in one delta from its length on.
    #[test]
    fn rest_of_each_part_continues_at_every_cut(generated in generated_parts()) {
        let deltas = deltas_of(&generated);
        let expected = parts_after(&deltas);
        for cut in 0..=deltas.len() {
            let mut device = Device::default();
            for frame in &deltas[..cut] {
                device.delta(frame.clone());
            }
            let known: Vec<u32> = device.shown.iter().map(|part| utf16_len(&part.text)).collect();
            let mut previous_end = None;
            for (number, (whole, (kind, _))) in expected.iter().zip(&generated).enumerate() {
                let mut frame = match known.get(number) {
                    Some(length) => {
                        let start = byte_index_of_utf16(&whole.text, *length).unwrap();
                        delta(number as u32, *length, &whole.text[start..], "")
                    }
                    None => delta(number as u32, 0, &whole.text, kind),
                };
                if frame.kind.is_some() {
                    frame.previous_end = previous_end;
                    frame.meta.clone_from(&whole.meta);
                }
                previous_end = Some(frame.end);
                device.delta(frame);
            }
            prop_assert_eq!(&device.shown, &expected);
        }
    }
}
