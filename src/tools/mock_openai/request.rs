//! Parses the fields of a chat completion request that the answer depends on.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct RequestBody<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// A chat completion request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ChatRequest {
    /// The content of the last user message.
    pub(super) prompt: String,
    /// Number of tokens of all messages, estimated at four bytes per token, because the mock has no
    /// tokenizer.
    pub(super) prompt_tokens: u64,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// `max_completion_tokens` of the request, otherwise its `max_tokens`.
    pub(super) max_tokens: Option<u64>,
}

impl ChatRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let body: RequestBody = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let contents = body.messages.iter().filter_map(|message| message.content);
        let content_bytes: usize = contents.map(|content| content.get().len()).sum();
        let last_user_message = body.messages.iter().rev().find(|m| m.role == "user");
        let content = last_user_message.and_then(|message| message.content);
        Ok(Self {
            prompt: content.map(content_text).transpose()?.unwrap_or_default(),
            prompt_tokens: content_bytes as u64 / 4 + 1,
            stream: body.stream,
            include_usage: body.stream_options.is_some_and(|o| o.include_usage),
            max_tokens: body.max_completion_tokens.or(body.max_tokens),
        })
    }
}

/// Returns the text of a message's content. The content is a string, a list of parts of which only
/// the text is used, or null; otherwise the result is an error.
fn content_text(content: &RawValue) -> Result<String, String> {
    match serde_json::from_str(content.get()).map_err(|error| error.to_string())? {
        Value::String(text) => Ok(text),
        Value::Array(parts) => Ok(parts
            .iter()
            .filter_map(|part| part.get("text")?.as_str())
            .collect()),
        Value::Null => Ok(String::new()),
        _ => Err("a message's content must be a string or a list of parts".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_user_message_is_the_prompt() {
        let body = br#"{"model":"m","temperature":0.5,"stream":true,
            "stream_options":{"include_usage":true},"max_completion_tokens":9,"messages":[
            {"role":"user","content":"one"},{"role":"assistant","content":"two"},
            {"role":"user","content":[{"type":"text","text":"th\u0072ee"},{"type":"image_url"}]},
            {"role":"assistant","content":null}]}"#;
        let request = ChatRequest::parse(body).unwrap();
        assert_eq!(request.prompt, "three");
        assert!(request.stream && request.include_usage);
        assert_eq!(request.max_tokens, Some(9));
        assert!(ChatRequest::parse(b"{}").is_err());
        assert!(ChatRequest::parse(br#"{"messages":[{"role":"user","content":5}]}"#).is_err());
    }
}
