//! Assembles the parts of an answer from the pieces that the model sends, within the limits of an
//! answer.
//!
//! Only the last part grows, but a model may write several parts at the same time: tool calls in
//! parallel, or text between the pieces of a call. While the last part is a tool call whose
//! arguments are incomplete, the pieces of other parts are therefore buffered. A call may have no
//! arguments at all.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::de::IgnoredAny;

use super::json_len::{json_len, prefix_of_json_len};
use super::provider::{PartDelta, PartKey};
use crate::config::settings::Reasoning;
use crate::protocol::parts::{MAX_PARTS, PartKind, PartMeta, utf16_len};

/// What a part costs of `MAX_ANSWER_BYTES` in addition to its text, kind and properties. It is at
/// least the size of the other JSON of a part in a terminal record.
const PART_COST_BYTES: usize = 64;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) kind: PartKind,
    /// The part's properties; `None` if it has none.
    pub(super) meta: Option<Meta>,
    pub(super) text: String,
    /// Length of the text in UTF-16 code units.
    pub(super) length: u32,
}

/// The properties of a part.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Meta {
    pub(super) fields: PartMeta,
    /// The properties as JSON.
    pub(super) json: Arc<str>,
}

/// The answer has reached `MAX_ANSWER_BYTES` or [`MAX_PARTS`], and ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LimitReached;

/// The parts of an answer, while the model writes it.
#[derive(Debug)]
pub(super) struct AnswerParts {
    reasoning: Reasoning,
    /// What remains of `MAX_ANSWER_BYTES`.
    remaining_bytes: usize,
    parts: Vec<Part>,
    /// The key of the last part; `None` before the first part, and while the last part can't grow.
    open_key: Option<PartKey>,
    /// Pieces of parts that follow the last one, in the order of the parts. Not empty only while
    /// the last part is a tool call with incomplete arguments. Each element is a part of its own:
    /// later pieces are merged into it.
    buffered: VecDeque<PartDelta>,
    /// The numbers of the tool calls that another part follows, so that they can't grow.
    closed_calls: Vec<u32>,
    /// Number of pieces that were ignored, because their tool calls were closed.
    ignored_pieces: usize,
}

impl AnswerParts {
    /// Creates an answer without parts, of at most `max_bytes` as JSON.
    pub(super) fn new(max_bytes: usize, reasoning: Reasoning) -> Self {
        Self {
            reasoning,
            remaining_bytes: max_bytes,
            parts: Vec::new(),
            open_key: None,
            buffered: VecDeque::new(),
            closed_calls: Vec::new(),
            ignored_pieces: 0,
        }
    }

    /// The parts so far, without the buffered pieces. Only the last part can still grow.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Number and length of the last part that is reasoning of which the terminal record has only
    /// the length; `None` if there is none.
    pub(super) fn last_unstored_reasoning(&self) -> Option<(u32, u32)> {
        if self.reasoning != Reasoning::Show {
            return None;
        }
        let is_reasoning = |part: &Part| part.kind == PartKind::Reasoning;
        let index = self.parts.iter().rposition(is_reasoning)?;
        Some((u32::try_from(index).ok()?, self.parts[index].length))
    }

    /// Adds a piece. Where the answer reaches a limit, as much of the piece is added as fits.
    pub(super) fn push(&mut self, mut delta: PartDelta) -> Result<(), LimitReached> {
        if self.is_ignored(&delta) {
            return Ok(());
        }
        let accepted_bytes = self.charge(&delta)?;
        let is_cut = accepted_bytes < delta.text.len();
        delta.text.truncate(accepted_bytes);
        if self.open_key == Some(delta.key) {
            self.apply(delta);
        } else {
            self.buffer(delta);
        }
        self.release_buffered();
        if is_cut { Err(LimitReached) } else { Ok(()) }
    }

    /// Releases all buffered pieces, because the model has finished.
    pub(super) fn finish(&mut self) {
        while let Some(delta) = self.buffered.pop_front() {
            self.apply(delta);
        }
        if self.ignored_pieces > 0 {
            tracing::warn!(
                pieces = self.ignored_pieces,
                "arguments of tool calls arrived after another part and were ignored: report it to \
                 the operator of the model's API"
            );
        }
    }

    /// Whether a piece adds nothing to the answer. Counts the pieces that come too late.
    fn is_ignored(&mut self, delta: &PartDelta) -> bool {
        match delta.key {
            PartKey::Reasoning if self.reasoning == Reasoning::Drop => true,
            PartKey::ToolCall(number) if self.closed_calls.contains(&number) => {
                self.ignored_pieces += usize::from(!delta.text.trim().is_empty());
                true
            }
            PartKey::Source | PartKey::Data => false,
            _ => delta.text.is_empty() && delta.meta.is_none(),
        }
    }

    /// Charges a piece to the answer's limits. Returns the number of bytes of its text that fit.
    fn charge(&mut self, delta: &PartDelta) -> Result<usize, LimitReached> {
        let is_new_part = !self.has_growing_part(delta.key);
        let part_cost = if is_new_part {
            if self.parts.len() + self.buffered.len() >= MAX_PARTS {
                return Err(LimitReached);
            }
            let meta_bytes = delta.meta.as_ref().map_or(0, |meta| meta.to_json().len());
            PART_COST_BYTES + delta.key.kind().as_str().len() + meta_bytes
        } else {
            0
        };
        let text_limit = self
            .remaining_bytes
            .checked_sub(part_cost)
            .ok_or(LimitReached)?;
        let accepted = prefix_of_json_len(&delta.text, text_limit);
        let is_cut = accepted.len() < delta.text.len();
        // A part of which nothing fits is not opened, and neither is data that would be cut,
        // because it would not be JSON.
        if is_new_part && is_cut && (accepted.is_empty() || delta.key == PartKey::Data) {
            return Err(LimitReached);
        }
        self.remaining_bytes = text_limit - json_len(accepted);
        Ok(accepted.len())
    }

    /// Whether pieces with this key continue a part.
    fn has_growing_part(&self, key: PartKey) -> bool {
        self.open_key == Some(key) || self.buffered_index(key).is_some()
    }

    fn buffered_index(&self, key: PartKey) -> Option<usize> {
        if key.is_complete_at_once() {
            return None;
        }
        self.buffered.iter().position(|delta| delta.key == key)
    }

    /// Whether the last part is a tool call whose arguments are incomplete, so that other parts must
    /// wait. Empty arguments are complete once the model has sent a piece of a part that is no tool
    /// call, or the complete arguments of another call.
    fn is_call_incomplete(&self) -> bool {
        if !matches!(self.open_key, Some(PartKey::ToolCall(_))) {
            return false;
        }
        let arguments = self.parts.last().map_or("", |part| part.text.as_str());
        if !arguments.trim().is_empty() {
            return !is_complete_json(arguments);
        }
        let follows_the_call = |delta: &PartDelta| {
            !matches!(delta.key, PartKey::ToolCall(_)) || is_complete_json(&delta.text)
        };
        !self.buffered.iter().any(follows_the_call)
    }

    fn buffer(&mut self, delta: PartDelta) {
        match self.buffered_index(delta.key) {
            Some(index) => self.buffered[index].text.push_str(&delta.text),
            None => self.buffered.push_back(delta),
        }
    }

    /// Applies the buffered pieces up to and including the next incomplete tool call.
    fn release_buffered(&mut self) {
        while !self.buffered.is_empty() && !self.is_call_incomplete() {
            if let Some(delta) = self.buffered.pop_front() {
                self.apply(delta);
            }
        }
    }

    /// Appends a piece to the last part, or opens the next part with it.
    fn apply(&mut self, delta: PartDelta) {
        let length = utf16_len(&delta.text);
        if self.open_key == Some(delta.key)
            && let Some(part) = self.parts.last_mut()
        {
            part.text.push_str(&delta.text);
            part.length += length;
            return;
        }
        if let Some(PartKey::ToolCall(number)) = self.open_key {
            self.closed_calls.push(number);
        }
        self.open_key = Some(delta.key).filter(|key| !key.is_complete_at_once());
        self.parts.push(Part {
            kind: delta.key.kind(),
            meta: delta.meta.map(|fields| Meta {
                json: fields.to_json().into(),
                fields,
            }),
            text: delta.text,
            length,
        });
    }
}

fn is_complete_json(text: &str) -> bool {
    let text = text.trim();
    // Arguments are an object, so most incomplete texts are recognised without parsing them again.
    (!text.starts_with('{') || text.ends_with('}'))
        && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNLIMITED: usize = 1 << 20;

    fn call(number: u32, name: &str, text: &str) -> PartDelta {
        PartDelta {
            meta: Some(PartMeta {
                name: Some(name.to_owned()),
                ..PartMeta::default()
            }),
            ..PartDelta::new(PartKey::ToolCall(number), text)
        }
    }

    fn call_piece(number: u32, text: &str) -> PartDelta {
        PartDelta::new(PartKey::ToolCall(number), text)
    }

    fn text(text: &str) -> PartDelta {
        PartDelta::new(PartKey::Text, text)
    }

    fn reasoning(text: &str) -> PartDelta {
        PartDelta::new(PartKey::Reasoning, text)
    }

    fn source(url: &str) -> PartDelta {
        PartDelta {
            meta: Some(PartMeta {
                url: Some(url.to_owned()),
                ..PartMeta::default()
            }),
            ..PartDelta::new(PartKey::Source, "")
        }
    }

    fn new_answer(max_bytes: usize) -> AnswerParts {
        AnswerParts::new(max_bytes, Reasoning::Show)
    }

    /// Kind and text of each part. Checks the lengths.
    fn contents(answer: &AnswerParts) -> Vec<(PartKind, &str)> {
        let check = |part: &Part| assert_eq!(part.length, utf16_len(&part.text));
        answer.parts().iter().for_each(check);
        let parts = answer.parts().iter();
        parts.map(|part| (part.kind, part.text.as_str())).collect()
    }

    #[test]
    fn a_piece_of_another_kind_opens_the_next_part() {
        let mut answer = new_answer(UNLIMITED);
        for delta in [
            reasoning("h"),
            reasoning("m 👋"),
            text("Hel"),
            text("lo"),
            reasoning("again"),
            source("https://a"),
            source("https://b"),
            PartDelta::new(PartKey::Data, "{}"),
            PartDelta::new(PartKey::Data, "[]"),
            text("end"),
            PartDelta::new(PartKey::Refusal, "no"),
            text(""),
        ] {
            assert_eq!(answer.push(delta), Ok(()));
        }
        let expected = [
            (PartKind::Reasoning, "hm 👋"),
            (PartKind::Text, "Hello"),
            (PartKind::Reasoning, "again"),
            (PartKind::Source, ""),
            (PartKind::Source, ""),
            (PartKind::Data, "{}"),
            (PartKind::Data, "[]"),
            (PartKind::Text, "end"),
            (PartKind::Refusal, "no"),
        ];
        assert_eq!(contents(&answer), expected);
        let meta = answer.parts()[4].meta.as_ref().unwrap();
        assert_eq!(&*meta.json, r#"{"url":"https://b"}"#);
    }

    #[test]
    fn pieces_of_interleaved_tool_calls_are_buffered_until_the_call_is_complete() {
        let mut answer = new_answer(UNLIMITED);
        for delta in [
            call(0, "f", ""),
            call(1, "g", ""),
            call_piece(0, r#"{"x":"#),
            call_piece(1, "{"),
            text("a"),
            call_piece(1, "}"),
            source("https://a"),
            text("b"),
            call(2, "h", "["),
        ] {
            answer.push(delta).unwrap();
        }
        assert_eq!(contents(&answer), [(PartKind::ToolCall, r#"{"x":"#)]);
        answer.push(call_piece(0, "1}")).unwrap();
        let released = [
            (PartKind::ToolCall, r#"{"x":1}"#),
            (PartKind::ToolCall, "{}"),
            (PartKind::Text, "ab"),
            (PartKind::Source, ""),
            (PartKind::ToolCall, "["),
        ];
        assert_eq!(contents(&answer), released);
        let meta = answer.parts()[1].meta.as_ref().unwrap();
        assert_eq!(&*meta.json, r#"{"name":"g"}"#);
        // The third call stays incomplete, so the text waits for the end of the answer.
        answer.push(text("c")).unwrap();
        assert_eq!(answer.parts().len(), 5);
        answer.finish();
        assert_eq!(contents(&answer)[5..], [(PartKind::Text, "c")]);
    }

    #[test]
    fn call_without_arguments_holds_nothing_back_once_the_model_has_gone_on() {
        let mut answer = new_answer(UNLIMITED);
        answer.push(call(0, "f", "")).unwrap();
        answer.push(call(1, "g", "{")).unwrap();
        assert_eq!(contents(&answer), [(PartKind::ToolCall, "")]);
        answer.push(call_piece(1, "}")).unwrap();
        let calls = [(PartKind::ToolCall, ""), (PartKind::ToolCall, "{}")];
        assert_eq!(contents(&answer), calls);
        answer.push(call(2, "h", "")).unwrap();
        answer.push(call(3, "i", " ")).unwrap();
        answer.push(text("a")).unwrap();
        let rest = [
            (PartKind::ToolCall, ""),
            (PartKind::ToolCall, " "),
            (PartKind::Text, "a"),
        ];
        assert_eq!(contents(&answer)[2..], rest);
    }

    #[test]
    fn a_released_call_that_is_incomplete_keeps_the_rest_buffered() {
        let mut answer = new_answer(UNLIMITED);
        for delta in [
            call(0, "f", "{"),
            call(1, "g", "{"),
            text("a"),
            call_piece(0, "}"),
            reasoning("b"),
        ] {
            answer.push(delta).unwrap();
        }
        let calls = [(PartKind::ToolCall, "{}"), (PartKind::ToolCall, "{")];
        assert_eq!(contents(&answer), calls);
        answer.push(call_piece(1, "}")).unwrap();
        let rest = [(PartKind::Text, "a"), (PartKind::Reasoning, "b")];
        assert_eq!(contents(&answer)[2..], rest);
    }

    #[test]
    fn pieces_of_a_closed_tool_call_are_ignored() {
        let mut answer = new_answer(UNLIMITED);
        for delta in [call(0, "f", "{}"), text("a"), call_piece(0, "\n")] {
            answer.push(delta).unwrap();
        }
        assert_eq!(answer.ignored_pieces, 0);
        answer.push(call_piece(0, "{}")).unwrap();
        answer.push(text("b")).unwrap();
        answer.finish();
        assert_eq!(answer.ignored_pieces, 1);
        let expected = [(PartKind::ToolCall, "{}"), (PartKind::Text, "ab")];
        assert_eq!(contents(&answer), expected);
    }

    #[test]
    fn the_part_after_the_last_allowed_one_ends_the_answer() {
        let mut answer = new_answer(UNLIMITED);
        answer.push(text("a")).unwrap();
        for _ in 0..MAX_PARTS - 2 {
            answer.push(source("https://a")).unwrap();
        }
        answer.push(text("b")).unwrap();
        answer.push(text("c")).unwrap();
        assert_eq!(answer.parts().len(), MAX_PARTS);
        assert_eq!(answer.push(reasoning("d")), Err(LimitReached));
        assert_eq!(answer.parts().len(), MAX_PARTS);
        assert_eq!(answer.parts().last().unwrap().text, "bc");
    }

    #[test]
    fn buffered_parts_count_among_the_parts() {
        let mut answer = new_answer(UNLIMITED);
        answer.push(call(0, "f", "{")).unwrap();
        for _ in 0..MAX_PARTS - 1 {
            answer.push(source("https://a")).unwrap();
        }
        assert_eq!(answer.push(source("https://a")), Err(LimitReached));
        answer.finish();
        assert_eq!(answer.parts().len(), MAX_PARTS);
    }

    #[test]
    fn reasoning_and_buffered_text_count_in_the_limit_and_are_cut_at_a_character() {
        let part_cost = |kind: &str| PART_COST_BYTES + kind.len();
        let mut answer = new_answer(part_cost("reasoning") + 9);
        answer.push(reasoning("12\n")).unwrap();
        assert_eq!(answer.push(reasoning("34üö")), Err(LimitReached));
        assert_eq!(contents(&answer), [(PartKind::Reasoning, "12\n34ü")]);

        let limit = part_cost("tool_call") + r#"{"name":"f"}"#.len() + 1 + part_cost("text") + 3;
        let mut answer = new_answer(limit);
        answer.push(call(0, "f", "{")).unwrap();
        answer.push(text("a")).unwrap();
        assert_eq!(answer.push(text("👋")), Err(LimitReached));
        answer.finish();
        let expected = [(PartKind::ToolCall, "{"), (PartKind::Text, "a")];
        assert_eq!(contents(&answer), expected);
    }

    #[test]
    fn a_part_that_does_not_fit_is_not_opened() {
        for limit in [0, PART_COST_BYTES + 4] {
            let mut answer = new_answer(limit);
            assert_eq!(answer.push(text("a")), Err(LimitReached));
            assert_eq!(answer.parts(), []);
        }
        let mut answer = new_answer(PART_COST_BYTES + 4 + 5);
        let data = PartDelta::new(PartKey::Data, "[1, 2]");
        assert_eq!(answer.push(data), Err(LimitReached));
        assert_eq!(answer.parts(), []);
    }

    #[test]
    fn dropped_reasoning_neither_counts_nor_becomes_a_part() {
        let mut answer = AnswerParts::new(PART_COST_BYTES + 4 + 2, Reasoning::Drop);
        answer.push(reasoning(&"x".repeat(1000))).unwrap();
        answer.push(text("a")).unwrap();
        answer.push(reasoning("x")).unwrap();
        answer.push(text("b")).unwrap();
        assert_eq!(contents(&answer), [(PartKind::Text, "ab")]);
    }

    fn delta() -> impl Strategy<Value = PartDelta> {
        let key = prop_oneof![
            3 => Just(PartKey::Text),
            2 => Just(PartKey::Reasoning),
            1 => Just(PartKey::Refusal),
            3 => (0_u32..3).prop_map(PartKey::ToolCall),
            1 => Just(PartKey::Source),
            1 => Just(PartKey::Data),
        ];
        (key, "[{}\"a\n👋é]{0,3}").prop_map(|(key, text)| PartDelta::new(key, text))
    }

    proptest! {
        #[test]
        fn an_answer_stays_within_its_limit_and_only_its_last_part_grows(
            deltas in prop::collection::vec(delta(), 0..60),
            limit in 0_usize..3000,
        ) {
            let mut answer = new_answer(limit);
            let mut before: Vec<Part> = Vec::new();
            for delta in deltas {
                let is_limit_reached = answer.push(delta).is_err();
                let parts = answer.parts();
                prop_assert!(parts.len() >= before.len());
                if let Some((last, finished)) = before.split_last() {
                    prop_assert_eq!(&parts[..finished.len()], finished);
                    prop_assert!(parts[finished.len()].text.starts_with(&last.text));
                }
                before = parts.to_vec();
                if is_limit_reached {
                    break;
                }
            }
            answer.finish();
            let cost = |part: &Part| {
                PART_COST_BYTES + part.kind.as_str().len() + json_len(&part.text)
            };
            let total: usize = answer.parts().iter().map(cost).sum();
            prop_assert!(total <= limit);
            prop_assert_eq!(limit - total, answer.remaining_bytes);
            prop_assert!(answer.buffered.is_empty());
            contents(&answer);
        }
    }
}
