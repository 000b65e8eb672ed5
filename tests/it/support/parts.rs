//! The parts of an answer as the tests compare them: those that a device shows, and those of a
//! terminal frame, a record and the history.

use serde_json::{Value, json};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) kind: String,
    /// The part's properties; null if it has none.
    pub(crate) meta: Value,
    /// The text. Empty if only its length is known.
    pub(crate) text: String,
    /// Length of the text in UTF-16 code units.
    pub(crate) length: u64,
}

impl Part {
    pub(crate) fn new(kind: &str, meta: Value, text: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            meta,
            text: text.to_owned(),
            length: utf16_length(text),
        }
    }

    /// Whether the part's text belongs to the answer's text.
    pub(crate) fn is_content(&self) -> bool {
        matches!(self.kind.as_str(), "text" | "refusal")
    }

    /// Whether only the length of the part's text is known, as of reasoning that is not kept.
    pub(crate) fn has_only_length(&self) -> bool {
        self.text.is_empty() && self.length > 0
    }

    /// Whether `self` and `other` may be the same part: equal in everything that is known of both.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        (&self.kind, &self.meta, self.length) == (&other.kind, &other.meta, other.length)
            && (self.text == other.text || self.has_only_length() || other.has_only_length())
    }

    /// Whether `self` may be the beginning of `whole`.
    pub(crate) fn is_beginning_of(&self, whole: &Self) -> bool {
        (&self.kind, &self.meta) == (&whole.kind, &whole.meta)
            && self.length <= whole.length
            && (whole.has_only_length()
                || self.has_only_length()
                || whole.text.starts_with(&self.text))
    }

    /// Reads a part that has its whole text, as in a snapshot.
    pub(crate) fn from_json(part: &Value) -> Result<Self, String> {
        let (Some(kind), Some(text)) = (part["kind"].as_str(), part["content"].as_str()) else {
            return Err(format!("kind or content is missing: {part}"));
        };
        let read = Self::new(kind, part["meta"].clone(), text);
        read.check()?;
        Ok(read)
    }

    /// Checks that the part has the properties of its kind, and text only where its kind has text.
    pub(crate) fn check(&self) -> Result<(), String> {
        let is_text = |name: &str| self.meta[name].is_string();
        let is_valid = match self.kind.as_str() {
            "text" | "refusal" | "reasoning" => self.meta.is_null(),
            "tool_call" => is_text("id") && is_text("name"),
            "source" => is_text("url") && self.length == 0,
            "data" => is_text("name"),
            _ => false,
        };
        if is_valid {
            Ok(())
        } else {
            Err(format!("not a valid part: {self:?}"))
        }
    }
}

pub(crate) fn utf16_length(text: &str) -> u64 {
    text.encode_utf16().count() as u64
}

/// The text of an answer: that of its text and refusal parts.
pub(crate) fn content_of(parts: &[Part]) -> String {
    let content = parts.iter().filter(|part| part.is_content());
    content.map(|part| part.text.as_str()).collect()
}

/// Whether `parts` may be the beginning of the answer `whole`: only the last part can still grow.
pub(crate) fn are_beginning_of(parts: &[Part], whole: &[Part]) -> bool {
    let Some((last, complete)) = parts.split_last() else {
        return true;
    };
    parts.len() <= whole.len()
        && complete
            .iter()
            .zip(whole)
            .all(|(part, whole)| part.matches(whole))
        && last.is_beginning_of(&whole[complete.len()])
}

/// Whether both are the same answer in everything that is known of both.
pub(crate) fn are_same(parts: &[Part], other: &[Part]) -> bool {
    parts.len() == other.len() && are_beginning_of(parts, other) && are_beginning_of(other, parts)
}

/// Reads the parts of a terminal frame, a record or a turn of the history, whose text is `content`.
/// `parts` is the field of that name, null if it is absent. Returns an error that describes how the
/// field breaks the protocol.
pub(crate) fn finished_parts(content: &str, parts: &Value) -> Result<Vec<Part>, String> {
    if parts.is_null() {
        let is_empty = content.is_empty();
        let part = (!is_empty).then(|| Part::new("text", Value::Null, content));
        return Ok(part.into_iter().collect());
    }
    let Some(described) = parts.as_array() else {
        return Err(format!("parts is not a list: {parts}"));
    };
    if matches!(&described[..], [only] if only["kind"] == "text") || described.is_empty() {
        return Err("parts is present although the answer is one text part, or empty".to_owned());
    }
    let units: Vec<u16> = content.encode_utf16().collect();
    let mut offset = 0;
    let mut finished = Vec::new();
    for part in described {
        let kind = part["kind"].as_str().unwrap_or_default();
        let (length, text) = (part["length"].as_u64(), part["content"].as_str());
        let mut read = Part::new(kind, part["meta"].clone(), text.unwrap_or_default());
        match (kind, length, text) {
            ("text" | "refusal", Some(length), None) => {
                let end = offset + usize::try_from(length).map_err(|error| error.to_string())?;
                let share = units.get(offset..end);
                let share = share.and_then(|share| String::from_utf16(share).ok());
                read.text = share.ok_or_else(|| format!("no share of the content: {part}"))?;
                read.length = length;
                offset = end;
            }
            ("reasoning", Some(length), _) => {
                if text.is_some() && length != read.length {
                    return Err(format!("the length is not that of the content: {part}"));
                }
                read.length = length;
            }
            ("tool_call" | "source" | "data", None, Some(_)) => {}
            _ => return Err(format!("fields of another kind: {part}")),
        }
        read.check()?;
        finished.push(read);
    }
    if offset != units.len() {
        return Err(format!(
            "the parts leave {} code units",
            units.len() - offset
        ));
    }
    Ok(finished)
}

/// The field `parts` of a terminal frame and of a turn of the history with these parts. Reasoning
/// has only its length unless it is kept.
pub(crate) fn finished_parts_field(parts: &[Part], is_reasoning_kept: bool) -> Value {
    let finished = parts.iter().map(|part| {
        let mut finished = json!({"kind": part.kind});
        if !part.meta.is_null() {
            finished["meta"] = part.meta.clone();
        }
        let is_reasoning = part.kind == "reasoning";
        if part.is_content() || is_reasoning {
            finished["length"] = part.length.into();
        }
        if !part.is_content() && (!is_reasoning || is_reasoning_kept) {
            finished["content"] = part.text.as_str().into();
        }
        finished
    });
    finished.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_terminal_frame_share_its_content() {
        let described = json!([
            {"kind": "reasoning", "length": 4},
            {"kind": "text", "length": 3},
            {"kind": "tool_call", "meta": {"id": "1", "name": "f"}, "content": "{}"},
            {"kind": "refusal", "length": 2},
        ]);
        let parts = finished_parts("a😀no", &described).unwrap();
        let texts: Vec<&str> = parts.iter().map(|part| part.text.as_str()).collect();
        assert_eq!(texts, ["", "a😀", "{}", "no"]);
        assert!(parts[0].has_only_length());
        assert_eq!(content_of(&parts), "a😀no");
        let whole = finished_parts("text", &Value::Null).unwrap();
        assert_eq!(whole, [Part::new("text", Value::Null, "text")]);
    }

    #[test]
    fn malformed_parts_of_a_terminal_frame_are_detected() {
        for (content, described) in [
            ("ab", json!([{"kind": "text", "length": 2}])),
            ("", json!([])),
            ("ab", json!([{"kind": "refusal", "length": 1}])),
            ("ab", json!([{"kind": "refusal", "length": 3}])),
            (
                "😀",
                json!([{"kind": "refusal", "length": 1}, {"kind": "text", "length": 1}]),
            ),
            ("", json!([{"kind": "reasoning"}])),
            (
                "",
                json!([{"kind": "reasoning", "length": 3, "content": "no"}]),
            ),
            (
                "a",
                json!([{"kind": "refusal", "length": 1, "content": "a"}]),
            ),
            ("", json!([{"kind": "tool_call", "content": "{}"}])),
            (
                "",
                json!([{"kind": "source", "meta": {"url": "u"}, "content": "text"}]),
            ),
        ] {
            let result = finished_parts(content, &described);
            assert!(result.is_err(), "{content:?} {described}: {result:?}");
        }
    }

    #[test]
    fn beginning_of_an_answer_is_told_from_a_mixture() {
        let part = |kind: &str, text: &str| Part::new(kind, Value::Null, text);
        let whole = [part("reasoning", "hm"), part("text", "Hello")];
        for beginning in [
            vec![],
            vec![part("reasoning", "h")],
            vec![part("reasoning", "hm"), part("text", "")],
            whole.to_vec(),
        ] {
            assert!(are_beginning_of(&beginning, &whole), "{beginning:?}");
        }
        for other in [
            vec![part("text", "h")],
            vec![part("reasoning", "h"), part("text", "")],
            vec![part("reasoning", "hm"), part("text", "Ha")],
            vec![part("reasoning", "hm"), part("text", "Hello!")],
        ] {
            assert!(!are_beginning_of(&other, &whole), "{other:?}");
        }
        let hidden = Part {
            text: String::new(),
            ..part("reasoning", "hm")
        };
        assert!(are_same(&[hidden, part("text", "Hello")], &whole));
        assert!(!are_same(&whole[..1], &whole));
    }
}
