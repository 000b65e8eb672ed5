//! The parts of an answer, as a client reports them.

use crate::protocol::parts::{FinishedPart, PartKind, PartMeta, byte_index_of_utf16};

/// A part of an answer: text, reasoning, a tool call and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What the part contains. `None` for a kind that only later versions of the protocol have;
    /// such a part is not shown.
    pub kind: Option<PartKind>,
    /// Properties of the part, which do not change.
    pub meta: Option<PartMeta>,
    /// The text so far. Empty for reasoning that neither the client has received nor the history
    /// has stored.
    pub text: String,
}

impl Part {
    /// Whether the part's text belongs to the answer's text.
    pub fn is_content(&self) -> bool {
        self.kind.is_some_and(PartKind::is_content)
    }

    /// Returns the parts of an ended answer. `content` is the text of the answer, and `finished`
    /// describes its parts; `None` if the answer is one text part.
    pub fn from_finished(content: &str, finished: Option<&[FinishedPart]>) -> Vec<Self> {
        let mut rest = content;
        let mut parts: Vec<Self> = finished
            .unwrap_or_default()
            .iter()
            .map(|part| {
                let kind = PartKind::from_name(&part.kind);
                let text = if kind.is_some_and(PartKind::is_content) {
                    let share = byte_index_of_utf16(rest, part.length.unwrap_or(0));
                    let (text, following) = rest.split_at(share.unwrap_or(rest.len()));
                    rest = following;
                    text.to_owned()
                } else {
                    part.content.clone().unwrap_or_default()
                };
                Self {
                    kind,
                    meta: part.meta.clone(),
                    text,
                }
            })
            .collect();
        if rest.is_empty() {
            return parts;
        }
        // The parts of a valid frame share the whole content. Of an invalid frame, no text is lost.
        let mut content_parts = parts.iter_mut().rev();
        match content_parts.find(|part| part.is_content()) {
            Some(part) => part.text.push_str(rest),
            None => parts.push(Self {
                kind: Some(PartKind::Text),
                meta: None,
                text: rest.to_owned(),
            }),
        }
        parts
    }
}

/// Text that a part of an answer gains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartDelta {
    /// Number of the part, from 0. It is the last part of the answer so far, or the next part,
    /// which begins with this text.
    pub part: usize,
    /// What the part contains; `None` for an unknown kind.
    pub kind: Option<PartKind>,
    /// Properties of the part. Only in the delta with which the part begins.
    pub meta: Option<PartMeta>,
    /// The text to append. Empty if the part begins without text.
    pub text: String,
}

impl PartDelta {
    /// Whether the text belongs to the answer's text, and not to its reasoning or to a tool call.
    pub fn is_content(&self) -> bool {
        self.kind.is_some_and(PartKind::is_content)
    }

    /// Appends the text to the parts of the answer so far.
    pub fn apply_to(self, parts: &mut Vec<Part>) {
        match parts.get_mut(self.part) {
            Some(part) => part.text.push_str(&self.text),
            None => parts.push(Part {
                kind: self.kind,
                meta: self.meta,
                text: self.text,
            }),
        }
    }
}

/// Returns the text of an answer: the text of its text and refusal parts.
pub fn content_of(parts: &[Part]) -> String {
    let content = parts.iter().filter(|part| part.is_content());
    content.map(|part| part.text.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(json: &str) -> Vec<FinishedPart> {
        serde_json::from_str(json).unwrap()
    }

    fn texts(parts: &[Part]) -> Vec<(Option<PartKind>, &str)> {
        let described = parts.iter().map(|part| (part.kind, part.text.as_str()));
        described.collect()
    }

    #[test]
    fn ended_answer_is_divided_into_its_parts() {
        let described = finished(
            r#"[{"kind":"reasoning","length":7},{"kind":"text","length":3},
                {"kind":"tool_call","meta":{"id":"1","name":"f"},"content":"{}"},
                {"kind":"text","length":0},{"kind":"refusal","length":2}]"#,
        );
        let parts = Part::from_finished("a😀no", Some(&described));
        assert_eq!(
            texts(&parts),
            [
                (Some(PartKind::Reasoning), ""),
                (Some(PartKind::Text), "a😀"),
                (Some(PartKind::ToolCall), "{}"),
                (Some(PartKind::Text), ""),
                (Some(PartKind::Refusal), "no"),
            ]
        );
        assert_eq!(parts[2].meta.as_ref().unwrap().name.as_deref(), Some("f"));
        assert_eq!(content_of(&parts), "a😀no");
    }

    #[test]
    fn answer_without_described_parts_is_one_text_part() {
        let parts = Part::from_finished("all", None);
        assert_eq!(texts(&parts), [(Some(PartKind::Text), "all")]);
        assert_eq!(Part::from_finished("", None), []);
    }

    #[test]
    fn text_beyond_the_described_lengths_is_not_lost() {
        for described in [
            r#"[{"kind":"text","length":2},{"kind":"source","content":""}]"#,
            // This length ends inside a surrogate pair.
            r#"[{"kind":"text","length":4}]"#,
            r#"[{"kind":"reasoning","length":2}]"#,
        ] {
            let parts = Part::from_finished("abc😀", Some(&finished(described)));
            assert_eq!(content_of(&parts), "abc😀", "{described}");
        }
    }
}
