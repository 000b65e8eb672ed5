//! What an answer depends on in a request.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Wire<'a> {
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

/// A readable request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The last user message.
    pub(super) prompt: String,
    /// Roughly, as nobody's tokeniser is at hand: four characters each.
    pub(super) prompt_tokens: u64,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) max_tokens: Option<u64>,
}

impl Asked {
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let content = wire.messages.iter().filter_map(|message| message.content);
        let characters: usize = content.map(|content| content.get().len()).sum();
        let asked = wire.messages.iter().rev().find(|m| m.role == "user");
        let asked = asked.and_then(|message| message.content);
        Ok(Self {
            prompt: asked.map(text).transpose()?.unwrap_or_default(),
            prompt_tokens: characters as u64 / 4 + 1,
            stream: wire.stream,
            include_usage: wire.stream_options.is_some_and(|o| o.include_usage),
            max_tokens: wire.max_completion_tokens.or(wire.max_tokens),
        })
    }
}

/// Content is a string, or parts of which some are text.
fn text(content: &RawValue) -> Result<String, String> {
    match serde_json::from_str(content.get()).map_err(|error| error.to_string())? {
        Value::String(text) => Ok(text),
        Value::Array(parts) => Ok(parts
            .iter()
            .filter_map(|part| part.get("text")?.as_str())
            .collect()),
        Value::Null => Ok(String::new()),
        _ => Err("a content is neither text nor parts".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_message_is_the_prompt() {
        let body = br#"{"model":"m","temperature":0.5,"stream":true,
            "stream_options":{"include_usage":true},"max_completion_tokens":9,"messages":[
            {"role":"user","content":"one"},{"role":"assistant","content":"two"},
            {"role":"user","content":[{"type":"text","text":"th\u0072ee"},{"type":"image_url"}]},
            {"role":"assistant","content":null}]}"#;
        let asked = Asked::parse(body).unwrap();
        assert_eq!(asked.prompt, "three");
        assert!(asked.stream && asked.include_usage);
        assert_eq!(asked.max_tokens, Some(9));
        assert!(Asked::parse(b"{}").is_err());
        assert!(Asked::parse(br#"{"messages":[{"role":"user","content":5}]}"#).is_err());
    }
}
