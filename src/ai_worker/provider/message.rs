//! Parses the pieces of an answer's parts from the `delta` or `message` of a chunk. Unusable values
//! are skipped.

use serde::Deserialize;
use serde_json::Value;

use super::{PartDelta, PartKey};
use crate::protocol::parts::PartMeta;

/// Maximum size of the id and the name of a tool call, of the name of data, and of the title of a
/// source, in bytes.
const MAX_META_BYTES: usize = 200;
/// Maximum size of the address of a source, in bytes.
const MAX_URL_BYTES: usize = 2000;

/// The fields of a chunk's `delta` or `message` that contain parts.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    /// The text, or a list of content parts.
    content: Option<Value>,
    reasoning_content: Option<Value>,
    /// What other servers send in place of `reasoning_content`.
    reasoning: Option<Value>,
    refusal: Option<Value>,
    tool_calls: Option<Value>,
    annotations: Option<Value>,
}

impl Message {
    /// The pieces, in the order of reasoning, text, refusal, tool calls, sources, data.
    pub(super) fn into_deltas(self) -> Vec<PartDelta> {
        let mut deltas = Vec::new();
        // A server that sends both fields sends the same text in both.
        let reasoning =
            text_of(self.reasoning_content.as_ref()).or_else(|| text_of(self.reasoning.as_ref()));
        deltas.extend(reasoning.map(|text| PartDelta::new(PartKey::Reasoning, text)));
        let content = self.content.unwrap_or_default();
        let text = content_text(&content).filter(|text| !text.is_empty());
        deltas.extend(text.map(|text| PartDelta::new(PartKey::Text, text)));
        let refusal = text_of(self.refusal.as_ref());
        deltas.extend(refusal.map(|text| PartDelta::new(PartKey::Refusal, text)));
        let calls = elements(self.tool_calls.as_ref()).iter().enumerate();
        deltas.extend(calls.filter_map(|(position, call)| tool_call(position, call)));
        let annotations = elements(self.annotations.as_ref());
        deltas.extend(annotations.iter().filter_map(source));
        deltas.extend(elements(Some(&content)).iter().filter_map(data));
        deltas
    }
}

/// The longest prefix of `text` that has at most `max_bytes` bytes and ends with a character.
pub(super) fn prefix_of_bytes(text: &str, max_bytes: usize) -> &str {
    let mut end = max_bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The elements of a list; none of any other value.
fn elements(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The string without NUL, which the text columns of common databases refuse. `None` where the
/// value is no string, or nothing remains.
fn text_of(value: Option<&Value>) -> Option<String> {
    Some(value?.as_str()?.replace('\0', "")).filter(|text| !text.is_empty())
}

/// The string without NUL, cut to at most `max_bytes`.
fn meta_text(value: Option<&Value>, max_bytes: usize) -> Option<String> {
    text_of(value).map(|text| prefix_of_bytes(&text, max_bytes).to_owned())
}

/// The text of a `content` field: the string itself, or the joined texts of its parts where it is a
/// list.
fn content_text(content: &Value) -> Option<String> {
    if content.is_string() {
        return text_of(Some(content));
    }
    let parts = elements(Some(content)).iter();
    let texts = parts
        .filter(|part| part.get("type").is_none_or(|kind| kind == "text"))
        .filter_map(|part| text_of(part.get("text")));
    Some(texts.collect())
}

/// The piece of an element of `tool_calls`. Its key has the index that the server sent; a server
/// that does not stream sends none, so the call's position in the list replaces it. `None` where
/// the element has nothing usable.
fn tool_call(position: usize, call: &Value) -> Option<PartDelta> {
    let index = call
        .get("index")
        .and_then(Value::as_u64)
        .unwrap_or(position as u64);
    let function = call.get("function").unwrap_or(&Value::Null);
    let meta = PartMeta {
        id: meta_text(call.get("id"), MAX_META_BYTES),
        name: meta_text(function.get("name"), MAX_META_BYTES),
        ..PartMeta::default()
    };
    let meta = (meta != PartMeta::default()).then_some(meta);
    let text = match function.get("arguments") {
        // Some servers send the arguments as an object in place of its text.
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        arguments => text_of(arguments).unwrap_or_default(),
    };
    if meta.is_none() && text.is_empty() {
        return None;
    }
    Some(PartDelta {
        key: PartKey::ToolCall(u32::try_from(index).ok()?),
        meta,
        text,
    })
}

/// The source in an element of `annotations`: a citation with an HTTP address.
fn source(annotation: &Value) -> Option<PartDelta> {
    let kind = annotation.get("type");
    if kind.is_some_and(|kind| kind != "url_citation") {
        return None;
    }
    let citation = annotation.get("url_citation").unwrap_or(annotation);
    let url = meta_text(citation.get("url"), MAX_URL_BYTES)?;
    let (scheme, _) = url.split_once("://")?;
    let is_http = ["http", "https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known));
    is_http.then(|| PartDelta {
        key: PartKey::Source,
        meta: Some(PartMeta {
            url: Some(url),
            title: meta_text(citation.get("title"), MAX_META_BYTES),
            ..PartMeta::default()
        }),
        text: String::new(),
    })
}

/// The data in a content part of type `data`.
fn data(part: &Value) -> Option<PartDelta> {
    if part.get("type").is_none_or(|kind| kind != "data") {
        return None;
    }
    let name = meta_text(part.get("name"), MAX_META_BYTES);
    Some(PartDelta {
        key: PartKey::Data,
        meta: name.map(|name| PartMeta {
            name: Some(name),
            ..PartMeta::default()
        }),
        text: part.get("data")?.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deltas(message: Value) -> Vec<PartDelta> {
        serde_json::from_value::<Message>(message)
            .unwrap()
            .into_deltas()
    }

    fn call(index: u32, id: Option<&str>, name: Option<&str>, text: &str) -> PartDelta {
        let meta = PartMeta {
            id: id.map(str::to_owned),
            name: name.map(str::to_owned),
            ..PartMeta::default()
        };
        PartDelta {
            meta: (meta != PartMeta::default()).then_some(meta),
            ..PartDelta::new(PartKey::ToolCall(index), text)
        }
    }

    #[test]
    fn pieces_of_all_kinds_are_read_in_a_fixed_order() {
        let message = json!({
            "annotations": [{"type": "url_citation", "url_citation":
                {"url": "https://a.example/x", "title": "A", "start_index": 3}}],
            "content": [
                {"type": "data", "name": "chart", "data": {"x": [1, null]}},
                {"type": "text", "text": "Hel"},
                {"type": "thinking", "text": "no"},
                {"text": "lo"},
            ],
            "tool_calls": [{"index": 1, "id": "c1", "type": "function",
                "function": {"name": "get_weather", "arguments": "{\"ci"}}],
            "refusal": "I can't",
            "reasoning_content": "hm",
        });
        let source = PartMeta {
            url: Some("https://a.example/x".into()),
            title: Some("A".into()),
            ..PartMeta::default()
        };
        let chart = PartMeta {
            name: Some("chart".into()),
            ..PartMeta::default()
        };
        let expected = [
            PartDelta::new(PartKey::Reasoning, "hm"),
            PartDelta::new(PartKey::Text, "Hello"),
            PartDelta::new(PartKey::Refusal, "I can't"),
            call(1, Some("c1"), Some("get_weather"), "{\"ci"),
            PartDelta {
                meta: Some(source),
                ..PartDelta::new(PartKey::Source, "")
            },
            PartDelta {
                meta: Some(chart),
                ..PartDelta::new(PartKey::Data, r#"{"x":[1,null]}"#)
            },
        ];
        assert_eq!(deltas(message), expected);
    }

    #[test]
    fn reasoning_has_two_names_and_is_read_once() {
        let expected = [PartDelta::new(PartKey::Reasoning, "hm")];
        for message in [
            json!({"reasoning": "hm"}),
            json!({"reasoning": "hm", "reasoning_content": "hm"}),
            json!({"reasoning": "hm", "reasoning_content": null, "content": ""}),
            json!({"reasoning": "hm", "reasoning_content": ""}),
            json!({"reasoning": {"text": "no"}, "reasoning_content": "hm"}),
        ] {
            assert_eq!(deltas(message), expected);
        }
    }

    #[test]
    fn tool_calls_without_index_are_numbered_and_empty_ones_skipped() {
        let message = json!({"tool_calls": [
            {"id": "a", "function": {"name": "f", "arguments": {"x": 1}}},
            {"function": {"arguments": ""}},
            {"id": "", "function": {"name": null, "arguments": "{}"}},
            {"index": 4_294_967_296_u64, "id": "too large"},
            "no call",
        ]});
        let expected = [
            call(0, Some("a"), Some("f"), r#"{"x":1}"#),
            call(2, None, None, "{}"),
        ];
        assert_eq!(deltas(message), expected);
    }

    #[test]
    fn only_sources_with_an_http_address_are_read() {
        let message = json!({"annotations": [
            {"type": "url_citation", "url": "HTTP://flat.example"},
            {"url": "https://without-type.example", "title": 7},
            {"type": "url_citation", "url": "javascript:alert(1)"},
            {"type": "url_citation", "url": "javascript://x"},
            {"type": "url_citation", "url_citation": {"title": "no address"}},
            {"type": "file_citation", "url": "https://file.example"},
            null,
        ]});
        let urls: Vec<_> = deltas(message)
            .into_iter()
            .map(|delta| delta.meta.unwrap().url.unwrap())
            .collect();
        assert_eq!(
            urls,
            ["HTTP://flat.example", "https://without-type.example"]
        );
    }

    #[test]
    fn nul_is_removed_and_properties_are_cut_at_a_character() {
        let message = json!({
            "reasoning": "\0",
            "content": "a\0b",
            "refusal": "\0c",
            "tool_calls": [{"id": "ü".repeat(150), "function": {"name": "f\0", "arguments": "\0{}"}}],
            "annotations": [{"url": format!("https://{}", "€".repeat(1000)), "title": "t".repeat(201)}],
        });
        let deltas = deltas(message);
        assert_eq!(deltas[0], PartDelta::new(PartKey::Text, "ab"));
        assert_eq!(deltas[1], PartDelta::new(PartKey::Refusal, "c"));
        let id = "ü".repeat(100);
        assert_eq!(deltas[2], call(0, Some(&id), Some("f"), "{}"));
        let source = deltas[3].meta.as_ref().unwrap();
        assert_eq!(source.url.as_ref().unwrap().len(), 8 + 3 * 664);
        assert_eq!(source.title.as_ref().unwrap().len(), 200);
        assert_eq!(deltas.len(), 4);
    }
}
