//! Parses the chunks of a streamed answer. Servers differ, so every field is optional, unusable
//! values are skipped, and unknown fields (such as log probabilities) are ignored.

use serde::Deserialize;
use serde_json::Value;

use super::PartDelta;
use super::error::ApiError;
use super::message::{Message, prefix_of_bytes};
use super::sse::SseEvent;
use crate::protocol::record::Usage;

/// An event of the answer stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ParsedEvent {
    /// `[DONE]`, the end of the stream.
    Done,
    /// Pieces of the answer; there may be none.
    Chunk(Chunk),
    /// The API reports an error.
    Error(ApiError),
    /// The event is not JSON, or its JSON is not a chunk.
    Malformed,
}

/// The relevant fields of a chunk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The pieces of parts, in the order in which they become model events.
    pub(super) deltas: Vec<PartDelta>,
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Option<Usage>,
    pub(super) model: Option<String>,
}

#[derive(Deserialize)]
struct ChunkObject {
    choices: Option<Vec<Choice>>,
    usage: Option<Value>,
    model: Option<Value>,
    error: Option<Value>,
    object: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<Value>,
    delta: Option<Message>,
    /// The whole answer, in place of `delta` where the server does not stream.
    message: Option<Message>,
    finish_reason: Option<Value>,
}

impl ParsedEvent {
    /// Parses an event of the answer stream. Never fails, because an unusable event is `Malformed`.
    pub(super) fn parse(event: &SseEvent) -> Self {
        let data = event.data.trim();
        if event.is_error {
            return Self::Error(ApiError::from_body(data.as_bytes()));
        }
        if data == "[DONE]" {
            return Self::Done;
        }
        let Ok(object) = serde_json::from_str::<ChunkObject>(data) else {
            return Self::Malformed;
        };
        let is_error = object.error.as_ref().is_some_and(is_error_value)
            || object.object.as_ref().and_then(Value::as_str) == Some("error")
            || (object.choices.is_none() && is_flat_error(data));
        if is_error {
            return Self::Error(ApiError::from_body(data.as_bytes()));
        }

        let mut chunk = Chunk {
            usage: object.usage.as_ref().and_then(parse_usage),
            model: object.model.and_then(|model| truncated(&model, 200)),
            ..Chunk::default()
        };
        // Only one answer is requested, so choices with an index above 0 are ignored.
        let mut choices = object.choices.into_iter().flatten();
        let is_first =
            |choice: &Choice| choice.index.as_ref().is_none_or(|i| i.as_u64() == Some(0));
        if let Some(choice) = choices.find(is_first) {
            let message = choice.delta.or(choice.message);
            chunk.deltas = message.map(Message::into_deltas).unwrap_or_default();
            chunk.finish_reason = choice
                .finish_reason
                .and_then(|reason| truncated(&reason, 64));
        }
        if chunk.finish_reason.as_deref() == Some("error") {
            return Self::Error(ApiError::default());
        }
        Self::Chunk(chunk)
    }
}

/// Whether the value of the field `error` reports an error. Some servers send `null`, `false` or an
/// empty string there in successful chunks.
fn is_error_value(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

/// Whether the object itself is an error: it has `detail`, or `message` with `code` or `type`.
fn is_flat_error(data: &str) -> bool {
    #[derive(Deserialize)]
    struct FlatError {
        message: Option<Value>,
        detail: Option<Value>,
        code: Option<Value>,
        r#type: Option<Value>,
    }
    serde_json::from_str::<FlatError>(data).is_ok_and(|flat| {
        flat.detail.is_some()
            || (flat.message.is_some() && (flat.code.is_some() || flat.r#type.is_some()))
    })
}

/// Returns the string, cut to at most `max_bytes` so that it fits into a frame. `None` where the
/// value is no string, or empty.
fn truncated(value: &Value, max_bytes: usize) -> Option<String> {
    let text = value.as_str().filter(|text| !text.is_empty())?;
    Some(prefix_of_bytes(text, max_bytes).to_owned())
}

/// Returns the usage; missing counts are derived or 0. `None` where the value has no count.
fn parse_usage(value: &Value) -> Option<Usage> {
    let count = |name| value.get(name).and_then(Value::as_u64);
    let (prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
    let total = count("total_tokens");
    prompt.or(completion).or(total)?;
    let (prompt_tokens, completion_tokens) = (prompt.unwrap_or(0), completion.unwrap_or(0));
    Some(Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: total.unwrap_or(prompt_tokens.saturating_add(completion_tokens)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ai_worker::provider::PartKey;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<u64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".{0,100}".prop_map(Into::into),
            Just(json!("error")),
            Just(json!([{"type": "text", "text": "a"}, {"text": 7}, "b"])),
            Just(json!([{"type": "data", "name": "a", "data": [0]}])),
            Just(json!([{"id": "a", "function": {"name": "f", "arguments": "{}"}}, {"index": 7}])),
            "https://.{0,2100}".prop_map(|url| json!([{"url": url, "title": url}])),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            let names = [
                "content",
                "delta",
                "message",
                "index",
                "error",
                "total_tokens",
                "reasoning",
                "refusal",
                "tool_calls",
                "annotations",
            ];
            prop::collection::hash_map(prop::sample::select(names.to_vec()), inner, 0..4)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
        })
    }

    fn parse(data: String, is_error: bool) -> ParsedEvent {
        ParsedEvent::parse(&SseEvent { data, is_error })
    }

    proptest! {
        #[test]
        fn chunks_of_any_form_are_parsed_without_panic_and_within_limits(
            data in ".{0,100}",
            (choices, usage, model, error) in (value(), value(), value(), value()),
            (delta, reason) in (value(), value()),
            is_error in any::<bool>(),
        ) {
            parse(data, is_error);
            for choices in [choices, json!([{"index": 0, "delta": delta, "finish_reason": reason}])] {
                let object = json!({"choices": choices, "usage": usage, "model": model});
                if let ParsedEvent::Chunk(chunk) = parse(object.to_string(), false) {
                    prop_assert!(chunk.finish_reason.is_none_or(|reason| reason.len() <= 64));
                    prop_assert!(chunk.model.is_none_or(|model| model.len() <= 200));
                    for delta in chunk.deltas {
                        prop_assert!(!delta.text.contains('\0'));
                        prop_assert!(!delta.text.is_empty() || delta.meta.is_some());
                        let meta = delta.meta.unwrap_or_default();
                        prop_assert!(meta.url.is_none_or(|url| url.len() <= 2000));
                        for text in [meta.id, meta.name, meta.title].into_iter().flatten() {
                            prop_assert!(text.len() <= 200 && !text.contains('\0'));
                        }
                    }
                }
                let with_error = json!({"choices": choices, "error": error});
                parse(with_error.to_string(), is_error);
            }
        }

        #[test]
        fn only_nul_is_removed_from_a_text(text in ".{0,100}|[\0a]{0,4}") {
            let object = json!({"choices": [{"delta": {"content": text.clone()}}]});
            let text = text.replace('\0', "");
            let delta = PartDelta::new(PartKey::Text, text.clone());
            let expected: Vec<_> = Some(delta).filter(|_| !text.is_empty()).into_iter().collect();
            match parse(object.to_string(), false) {
                ParsedEvent::Chunk(chunk) => prop_assert_eq!(chunk.deltas, expected),
                other => panic!("{other:?}"),
            }
        }
    }
}
