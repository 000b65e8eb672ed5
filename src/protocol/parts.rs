//! The parts of an answer: what a model writes (text, reasoning, tool calls, …), in order. The
//! worker creates them, the fan-out stores them while the answer is in flight, and terminal frames
//! carry them (protocol.md section 1.2).

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Maximum number of parts of one answer. An answer that would have more ends with `finish_reason`
/// `length`.
pub const MAX_PARTS: usize = 256;

/// What a part of an answer contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// Text of the answer.
    Text,
    /// The model's refusal, in its own words.
    Refusal,
    /// What the model thought before it answered. Never part of a later prompt.
    Reasoning,
    /// A call of a tool; the text is the arguments as JSON.
    ToolCall,
    /// A source that the model names; it has no text.
    Source,
    /// Other data as JSON.
    Data,
}

impl PartKind {
    const ALL: [Self; 6] = [
        Self::Text,
        Self::Refusal,
        Self::Reasoning,
        Self::ToolCall,
        Self::Source,
        Self::Data,
    ];

    /// The kind with this name; `None` for a kind that only a later version has. Receivers keep the
    /// place of such a part among the parts, and show nothing of it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The kind's name in frames and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Refusal => "refusal",
            Self::Reasoning => "reasoning",
            Self::ToolCall => "tool_call",
            Self::Source => "source",
            Self::Data => "data",
        }
    }

    /// Whether the part's text belongs to the `content` of the terminal frame.
    pub fn is_content(self) -> bool {
        matches!(self, Self::Text | Self::Refusal)
    }
}

/// Properties of a part, fixed when the part begins. Which fields a part has depends on its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PartMeta {
    /// Of a `tool_call`: the identifier that the model gave the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Of a `tool_call`: the name of the tool. Of `data`: the name of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of a `source`: its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Of a `source`: its title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

impl PartMeta {
    /// Encodes the properties as JSON.
    pub fn to_json(&self) -> String {
        super::encode_json(self)
    }
}

/// Where a piece of text lies in its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextRange {
    /// Number of the part, from 0.
    pub part: u32,
    /// Where the piece begins in the part's text, in UTF-16 code units.
    pub offset: u32,
    /// Where the piece ends in the part's text, in UTF-16 code units.
    pub end: u32,
}

/// A part in a terminal frame and in the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Part")]
pub struct FinishedPart {
    /// What the part contains. Later versions may have other kinds. A receiver counts
    /// such a part, and shows nothing of it.
    // The name of a `PartKind`. A text, so that a part of a later version can be decoded.
    #[schemars(with = "PartKind")]
    pub kind: String,
    /// Properties of the part. Absent if the part has none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "known_meta"
    )]
    pub meta: Option<PartMeta>,
    /// Of `text`, `refusal` and `reasoning`: length of the part's text in UTF-16 code units. The
    /// texts of the `text` and `refusal` parts, in order, are the `content` of the frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
    /// Text of the part. Absent for `text` and `refusal`, whose text is in `content`, and for
    /// `reasoning` unless it is kept (`REASONING=keep`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Decodes the properties of a part. Returns `None` for properties that do not have the form of
/// [`PartMeta`], as those of a later version's kind may not: they must not make the frame
/// unreadable.
pub(super) fn known_meta<'de, D: Deserializer<'de>>(
    field: D,
) -> Result<Option<PartMeta>, D::Error> {
    let meta = Option::<serde_json::Value>::deserialize(field)?;
    Ok(meta.and_then(|meta| serde_json::from_value(meta).ok()))
}

/// Length of `text` in UTF-16 code units, in which offsets and lengths of parts are counted.
pub fn utf16_len(text: &str) -> u32 {
    // The length of a text fits: an answer is bounded by MAX_ANSWER_BYTES, a record's size.
    u32::try_from(text.encode_utf16().count()).unwrap_or(u32::MAX)
}

/// The byte index of the UTF-16 offset `offset` in `text`; `None` if the text is shorter, or if the
/// offset lies inside a character.
pub fn byte_index_of_utf16(text: &str, offset: u32) -> Option<usize> {
    let mut remaining = offset as usize;
    for (index, character) in text.char_indices() {
        if remaining == 0 {
            return Some(index);
        }
        remaining = remaining.checked_sub(character.len_utf16())?;
    }
    (remaining == 0).then_some(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kind_is_found_by_its_name_in_json() {
        for kind in PartKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(PartKind::from_name(kind.as_str()), Some(kind));
        }
        assert_eq!(PartKind::from_name("Text"), None);
    }

    #[test]
    fn part_of_a_later_version_is_decoded() {
        let json = r#"{"kind":"image","meta":{"id":7},"length":3,"width":640}"#;
        let part: FinishedPart = serde_json::from_str(json).unwrap();
        assert_eq!((part.kind.as_str(), part.length), ("image", Some(3)));
        assert_eq!((part.meta, part.content), (None, None));

        let json = r#"{"kind":"tool_call","meta":{"id":"1","name":"f"},"content":"{}"}"#;
        let part: FinishedPart = serde_json::from_str(json).unwrap();
        assert_eq!(part.meta.as_ref().unwrap().name.as_deref(), Some("f"));
        assert_eq!(serde_json::to_string(&part).unwrap(), json);
    }

    proptest! {
        #[test]
        fn byte_index_is_the_inverse_of_the_length(text in any::<String>()) {
            for (index, character) in text.char_indices() {
                let offset = utf16_len(&text[..index]);
                prop_assert_eq!(byte_index_of_utf16(&text, offset), Some(index));
                if character.len_utf16() == 2 {
                    prop_assert_eq!(byte_index_of_utf16(&text, offset + 1), None);
                }
            }
            let length = utf16_len(&text);
            prop_assert_eq!(byte_index_of_utf16(&text, length), Some(text.len()));
            prop_assert_eq!(byte_index_of_utf16(&text, length + 1), None);
        }
    }
}
