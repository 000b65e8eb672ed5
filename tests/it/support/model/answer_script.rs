//! Answers of several parts: the chunks that the scripted model sends, and the parts that clients
//! must receive.

use std::ops::Range;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Gate, Script};
use crate::support::parts::{Part, content_of};

/// An answer of several parts. Neighbouring parts must be of different kinds, except tool calls and
/// sources, because the pieces of one kind are one part.
#[derive(Debug, Clone, Default)]
pub(crate) struct AnswerScript {
    /// The parts that clients must receive.
    pub(crate) parts: Vec<Part>,
    /// The `delta`s of the chunks that the model sends.
    deltas: Vec<Value>,
    /// Number of tool calls so far.
    tool_calls: usize,
}

impl AnswerScript {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// An answer with parts of every kind, each of which grows in `words` pieces. Its text has a
    /// character outside the basic plane and a combining one in each piece. The words contain
    /// `name`, so that a test detects a mixture of two answers.
    pub(crate) fn of_every_kind(name: &str, words: usize) -> Self {
        let text = |kind: &str| -> String {
            let words = (0..words).map(|n| format!("{name}-{kind}{n} 𝄞e\u{301} "));
            words.collect()
        };
        let arguments = |call: &str| json!({"call": text(call)}).to_string();
        Self::new()
            .reasoning(&text("thought"))
            .text(&text("first"))
            .tool_calls(&[("search", &arguments("a")), ("fetch", &arguments("b"))])
            .reasoning(&text("doubt"))
            .source("https://source.test/1", &format!("{name} 1"))
            .source("https://source.test/2", &format!("{name} 2"))
            .data("rows", &json!({"name": name, "rows": [1, 2.5, null]}))
            .text(&text("second"))
            .refusal(&text("refusal"))
    }

    fn add(mut self, kind: &str, meta: Value, text: &str, deltas: Vec<Value>) -> Self {
        self.parts.push(Part::new(kind, meta, text));
        self.deltas.extend(deltas);
        self
    }

    /// Adds a part whose text is sent in pieces of one word each, in the field `field`.
    fn add_words(self, kind: &str, field: &str, text: &str) -> Self {
        let words = text.split_inclusive(' ');
        let deltas = words.map(|word| json!({field: word})).collect();
        self.add(kind, Value::Null, text, deltas)
    }

    pub(crate) fn reasoning(self, text: &str) -> Self {
        self.add_words("reasoning", "reasoning_content", text)
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.add_words("text", "content", text)
    }

    pub(crate) fn refusal(self, text: &str) -> Self {
        self.add_words("refusal", "refusal", text)
    }

    /// Adds calls of tools, each with its name and its arguments as JSON. The model sends the
    /// pieces of all calls alternately.
    pub(crate) fn tool_calls(mut self, calls: &[(&str, &str)]) -> Self {
        let first = self.tool_calls;
        self.tool_calls += calls.len();
        let mut pieces = Vec::new();
        for (n, (name, arguments)) in calls.iter().enumerate() {
            let (index, id) = (first + n, format!("call_{}", first + n));
            let function = json!({"name": name, "arguments": ""});
            let start = json!({"index": index, "id": id, "type": "function", "function": function});
            let meta = json!({"id": id, "name": name});
            self = self.add("tool_call", meta, arguments, vec![tool_delta(start)]);
            let words = arguments.split_inclusive(' ');
            pieces.push(words.map(move |piece| {
                tool_delta(json!({"index": index, "function": {"arguments": piece}}))
            }));
        }
        loop {
            let round: Vec<Value> = pieces.iter_mut().filter_map(Iterator::next).collect();
            if round.is_empty() {
                return self;
            }
            self.deltas.extend(round);
        }
    }

    pub(crate) fn source(self, url: &str, title: &str) -> Self {
        let meta = json!({"url": url, "title": title});
        let annotation = json!({"type": "url_citation", "url_citation": meta});
        let delta = json!({"annotations": [annotation]});
        self.add("source", meta, "", vec![delta])
    }

    pub(crate) fn data(self, name: &str, value: &Value) -> Self {
        let content = json!([{"type": "data", "name": name, "data": value}]);
        let delta = json!({"content": content});
        self.add(
            "data",
            json!({"name": name}),
            &value.to_string(),
            vec![delta],
        )
    }

    /// The parts without reasoning, as clients receive them under `REASONING=drop`.
    pub(crate) fn parts_without_reasoning(&self) -> Vec<Part> {
        let parts = self.parts.iter().filter(|part| part.kind != "reasoning");
        parts.cloned().collect()
    }

    /// The text of the answer.
    pub(crate) fn content(&self) -> String {
        content_of(&self.parts)
    }

    /// The `delta`s of these chunks with pieces.
    pub(crate) fn chunks(&self, range: Range<usize>) -> &[Value] {
        &self.deltas[range]
    }

    /// Number of chunks with pieces.
    pub(crate) fn chunk_count(&self) -> usize {
        self.deltas.len()
    }

    /// A stream with the role and the first `chunks` chunks with pieces, and no end.
    pub(crate) fn beginning(&self, chunks: usize) -> Script {
        let deltas = &self.deltas[..chunks.min(self.deltas.len())];
        Script::new().role().deltas(deltas)
    }

    /// The complete answer.
    pub(crate) fn complete(&self) -> Script {
        self.beginning(usize::MAX).finish("stop").usage().done()
    }

    /// The complete answer, which is held back after the first chunk with each of these texts until
    /// the gate of the text is opened. The texts must be in the order of the chunks.
    pub(crate) fn complete_with_gates(&self, texts: &[&str]) -> (Script, Vec<Gate>) {
        let (mut script, mut gates) = (Script::new().role(), Vec::new());
        let mut texts = texts.iter().peekable();
        for delta in &self.deltas {
            script = script.deltas(std::slice::from_ref(delta));
            let chunk = delta.to_string();
            if texts.next_if(|text| chunk.contains(**text)).is_some() {
                let (gated, gate) = script.gate();
                script = gated;
                gates.push(gate);
            }
        }
        assert_eq!(texts.next(), None, "no chunk has this text");
        (script.finish("stop").usage().done(), gates)
    }

    /// The complete answer, with a pause before its last chunk with a piece.
    pub(crate) fn complete_with_pause(&self, pause: Duration) -> Script {
        let last = self.deltas.len() - 1;
        let beginning = self.beginning(last).wait(pause);
        let all = beginning.deltas(&self.deltas[last..]);
        all.finish("stop").usage().done()
    }
}

fn tool_delta(call: Value) -> Value {
    json!({"tool_calls": [call]})
}
