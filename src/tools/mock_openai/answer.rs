//! Chooses the tokens of an answer, and writes them as the server-sent events of a stream or as one
//! JSON response.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::args::MockArgs;
use super::chunk::{ChunkTemplate, WORDS};
use super::extras::Extras;
use super::random::{NumberRange, fnv1a, splitmix64};
use super::request::ChatRequest;

/// Number that makes the length of the reasoning independent of the length of the text.
const REASONING_SALT: u64 = 0x7265_6173_6f6e;

/// Chooses the tokens of an answer and encodes them.
#[derive(Debug)]
pub(super) struct AnswerEncoder {
    /// Range of the number of tokens of an answer's text.
    token_count: NumberRange,
    /// Range of the number of tokens of reasoning before the text.
    reasoning_count: NumberRange,
    seed: u64,
    /// Whether an answer repeats the prompt (`--echo`).
    echoes_prompt: bool,
    /// Whether each token is the time when it is written (`--stamp`).
    writes_timestamps: bool,
    /// Field of the text in deltas and messages: `content`, or `refusal` (`--refusal`).
    text_field: &'static str,
    extras: Extras,
    model: String,
    /// Chunks for requests that do not ask for usage.
    without_usage: ChunkTemplate,
    /// Chunks for requests that ask for usage.
    with_usage: ChunkTemplate,
}

/// The tokens of one answer, and how many of them have been written.
#[derive(Debug)]
pub(super) struct AnswerTokens {
    /// Hash of the seed and the prompt.
    hash: u64,
    /// Number of tokens of reasoning, which precede the text.
    reasoning: u64,
    text: AnswerText,
    /// Number of tokens that have been written.
    written: u64,
    /// Number of tokens of the whole answer.
    total: u64,
    /// Whether the request's `max_tokens` cut the answer short.
    is_truncated: bool,
}

#[derive(Debug)]
enum AnswerText {
    /// The first token is the hash. The other tokens are words that the hash selects.
    Words,
    /// Each token is the time when it is written.
    Timestamps,
    /// The text of the whole answer, and the byte offset in it at which each token ends.
    Echo(String, Vec<usize>),
}

impl AnswerTokens {
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn remaining(&self) -> u64 {
        self.total - self.written
    }

    /// Number of tokens of reasoning that fit into the answer.
    fn reasoning_total(&self) -> u64 {
        self.reasoning.min(self.total)
    }
}

fn usage(request: &ChatRequest, tokens: &AnswerTokens) -> Value {
    let (prompt, completion) = (request.prompt_tokens, tokens.total());
    let mut usage = json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    });
    if tokens.reasoning_total() > 0 {
        usage["completion_tokens_details"] = json!({"reasoning_tokens": tokens.reasoning_total()});
    }
    usage
}

impl AnswerEncoder {
    pub(super) fn new(args: &MockArgs) -> Self {
        let text_field = if args.refusal { "refusal" } else { "content" };
        Self {
            token_count: args.tokens,
            reasoning_count: args.reasoning_tokens,
            seed: args.seed,
            echoes_prompt: args.echo,
            writes_timestamps: args.stamp,
            text_field,
            extras: Extras::new(args),
            without_usage: ChunkTemplate::new(&args.model, text_field, false),
            with_usage: ChunkTemplate::new(&args.model, text_field, true),
            model: args.model.clone(),
        }
    }

    /// Chooses the tokens of the answer to a request. Their number depends only on the options of
    /// the mock, the prompt and the request's `max_tokens`, so equal requests get equally long
    /// answers.
    pub(super) fn choose_tokens(&self, request: &ChatRequest) -> AnswerTokens {
        let mut hash = fnv1a(request.prompt.as_bytes());
        if self.seed != 0 {
            hash = fnv1a(&[&self.seed.to_be_bytes(), request.prompt.as_bytes()].concat());
        }
        let (text, length) = if self.echoes_prompt {
            let text = format!("echo: {}", request.prompt);
            let mut token_ends = Vec::new();
            for word in text.split_inclusive(char::is_whitespace) {
                token_ends.push(token_ends.last().unwrap_or(&0) + word.len());
            }
            let length = token_ends.len() as u64;
            (AnswerText::Echo(text, token_ends), length)
        } else {
            let length = self.token_count.pick(splitmix64(hash));
            let text = if self.writes_timestamps {
                AnswerText::Timestamps
            } else {
                AnswerText::Words
            };
            (text, length)
        };
        let reasoning = self.reasoning_count.pick(splitmix64(hash ^ REASONING_SALT));
        let whole = reasoning + length;
        let total = whole.min(request.max_tokens.unwrap_or(u64::MAX));
        AnswerTokens {
            hash,
            reasoning,
            text,
            written: 0,
            total,
            is_truncated: total < whole,
        }
    }

    fn template(&self, request: &ChatRequest) -> &ChunkTemplate {
        if request.include_usage {
            &self.with_usage
        } else {
            &self.without_usage
        }
    }

    /// Writes the first chunk of a stream, which has the role of the author and no token.
    pub(super) fn write_role(&self, request: &ChatRequest, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.template(request).role_chunk);
    }

    /// Writes the chunk of the next token. Writes nothing if all tokens have been written.
    pub(super) fn write_token(
        &self,
        request: &ChatRequest,
        tokens: &mut AnswerTokens,
        out: &mut Vec<u8>,
    ) {
        if tokens.remaining() == 0 {
            return;
        }
        let template = self.template(request);
        let index = tokens.written;
        tokens.written += 1;
        let Some(text_index) = index.checked_sub(tokens.reasoning) else {
            if self.writes_timestamps {
                template.reasoning.write_plain(&timestamp(), out);
            } else {
                let word = word_index(tokens.hash, index);
                template.reasoning.write_word(word, out);
            }
            return;
        };
        match &tokens.text {
            AnswerText::Words if text_index == 0 => {
                template.text.write_plain(&hash_token(tokens.hash), out);
            }
            AnswerText::Words => {
                let word = word_index(tokens.hash, text_index);
                template.text.write_word(word, out);
            }
            AnswerText::Timestamps => template.text.write_plain(&timestamp(), out),
            AnswerText::Echo(text, token_ends) => {
                let token = echo_token(text, token_ends, text_index);
                template.text.write_escaped(token, out);
            }
        }
    }

    /// Writes the chunks after the last token: sources and tool call of a complete answer, the
    /// finish reason, the usage if the request asks for it, and `[DONE]`.
    pub(super) fn write_end(
        &self,
        request: &ChatRequest,
        tokens: &AnswerTokens,
        out: &mut Vec<u8>,
    ) {
        let template = self.template(request);
        if !tokens.is_truncated {
            for delta in self.extras.deltas(&request.prompt, tokens.hash) {
                template.write_delta(&delta, out);
            }
        }
        template.write_end(self.finish_reason(tokens), usage(request, tokens), out);
    }

    fn finish_reason(&self, tokens: &AnswerTokens) -> &'static str {
        if tokens.is_truncated {
            "length"
        } else {
            self.extras.finish_reason()
        }
    }

    /// Encodes all chunks of a stream into one buffer.
    pub(super) fn encode_stream(
        &self,
        request: &ChatRequest,
        tokens: &mut AnswerTokens,
    ) -> Vec<u8> {
        let chunk_size = self.with_usage.role_chunk.len() + 24;
        let mut out = Vec::with_capacity(chunk_size * (tokens.remaining() as usize + 4));
        self.write_role(request, &mut out);
        while tokens.remaining() > 0 {
            self.write_token(request, tokens, &mut out);
        }
        self.write_end(request, tokens, &mut out);
        out
    }

    /// Returns the body of the response to a request without `stream`.
    pub(super) fn completion(&self, request: &ChatRequest, tokens: &AnswerTokens) -> Value {
        let reasoning_total = tokens.reasoning_total();
        let text = (reasoning_total..tokens.total()).map(|index| {
            let text_index = index - reasoning_total;
            match &tokens.text {
                AnswerText::Words if text_index == 0 => hash_token(tokens.hash),
                AnswerText::Words => WORDS[word_index(tokens.hash, text_index)].to_owned(),
                AnswerText::Timestamps => timestamp(),
                AnswerText::Echo(text, token_ends) => {
                    echo_token(text, token_ends, text_index).to_owned()
                }
            }
        });
        let mut message = json!({"role": "assistant", "content": null});
        message[self.text_field] = text.collect::<String>().into();
        if reasoning_total > 0 {
            let reasoning = (0..reasoning_total).map(|index| {
                if self.writes_timestamps {
                    timestamp()
                } else {
                    WORDS[word_index(tokens.hash, index)].to_owned()
                }
            });
            message["reasoning_content"] = reasoning.collect::<String>().into();
        }
        if !tokens.is_truncated {
            let prompt = &request.prompt;
            self.extras
                .add_to_message(prompt, tokens.hash, &mut message);
        }
        json!({
            "id": "chatcmpl-mock", "object": "chat.completion", "created": 0, "model": self.model,
            "choices": [{
                "index": 0,
                "message": message,
                "finish_reason": self.finish_reason(tokens),
            }],
            "usage": usage(request, tokens),
        })
    }
}

/// The first token of an answer that consists of words.
fn hash_token(hash: u64) -> String {
    format!("{hash:016x} ")
}

/// Returns which of the [`WORDS`] is the token with this index, in the reasoning or the text of the
/// answer that has this hash.
fn word_index(hash: u64, token_index: u64) -> usize {
    (hash.wrapping_add(token_index) % WORDS.len() as u64) as usize
}

fn echo_token<'a>(text: &'a str, token_ends: &[usize], index: u64) -> &'a str {
    let index = index as usize;
    let start = index
        .checked_sub(1)
        .map_or(0, |previous| token_ends[previous]);
    &text[start..token_ends[index]]
}

/// Returns the current time as a token: `@`, the microseconds since 1970, and a space.
fn timestamp() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("@{} ", now.as_micros())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: MockArgs,
    }

    fn encoder(flags: &[&str]) -> AnswerEncoder {
        let command = Command::parse_from([&["mock-openai"], flags].concat());
        AnswerEncoder::new(&command.args)
    }

    fn request(max_tokens: Option<u64>) -> ChatRequest {
        ChatRequest {
            prompt: "a \"😀\" prompt".to_owned(),
            prompt_tokens: 3,
            stream: true,
            include_usage: true,
            max_tokens,
        }
    }

    /// The fields of the deltas of a stream, with their texts joined, and the finish reason.
    fn stream(encoder: &AnswerEncoder, request: &ChatRequest) -> (Value, Value) {
        let mut tokens = encoder.choose_tokens(request);
        let stream = encoder.encode_stream(request, &mut tokens);
        let stream = String::from_utf8(stream).unwrap();
        let mut message = json!({"content": "", "refusal": "", "reasoning_content": ""});
        let mut arguments = String::new();
        let mut finish_reason = Value::Null;
        for event in stream.split_terminator("\n\n") {
            let data = event.strip_prefix("data: ").unwrap();
            let Ok(chunk) = serde_json::from_str::<Value>(data) else {
                assert_eq!(data, "[DONE]");
                continue;
            };
            let choice = &chunk["choices"][0];
            if choice["finish_reason"].is_string() {
                finish_reason = choice["finish_reason"].clone();
            }
            let delta = &choice["delta"];
            for field in ["content", "refusal", "reasoning_content"] {
                if let Some(text) = delta[field].as_str() {
                    let joined = format!("{}{text}", message[field].as_str().unwrap());
                    message[field] = joined.into();
                }
            }
            if delta["annotations"].is_array() {
                message["annotations"] = delta["annotations"].clone();
            }
            let function = &delta["tool_calls"][0]["function"];
            if let Some(name) = function["name"].as_str() {
                message["tool"] = name.into();
            }
            arguments += function["arguments"].as_str().unwrap_or_default();
        }
        message["arguments"] = arguments.into();
        (message, finish_reason)
    }

    #[test]
    fn answer_has_only_text_unless_options_ask_for_more() {
        let (message, finish_reason) = stream(&encoder(&[]), &request(None));
        let text = message["content"].as_str().unwrap();
        assert_eq!(text.split_inclusive(' ').count(), 20);
        let expected = json!({
            "content": text, "refusal": "", "reasoning_content": "", "arguments": "",
        });
        assert_eq!((message, finish_reason), (expected, json!("stop")));
    }

    #[test]
    fn stream_has_reasoning_sources_and_a_tool_call_by_option() {
        let flags = ["--reasoning-tokens", "7", "--sources", "2", "--tool-call"];
        let encoder = encoder(&flags);
        let request = request(None);
        let (message, finish_reason) = stream(&encoder, &request);
        let count = |field: &str| {
            let text = message[field].as_str().unwrap();
            text.split_inclusive(' ').count()
        };
        assert_eq!((count("reasoning_content"), count("content")), (7, 20));
        assert_eq!(message["tool"], "search");
        let arguments = message["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert_eq!(arguments, json!({"query": request.prompt}));
        let citation = &message["annotations"][1]["url_citation"];
        assert_eq!(citation["url"], "https://example.org/source/2");
        assert_eq!(finish_reason, "tool_calls");

        let tokens = encoder.choose_tokens(&request);
        let completion = encoder.completion(&request, &tokens);
        let whole = &completion["choices"][0]["message"];
        for field in ["content", "reasoning_content", "annotations"] {
            assert_eq!(whole[field], message[field], "{field}");
        }
        let function = &whole["tool_calls"][0]["function"];
        assert_eq!(function["arguments"], message["arguments"]);
        let usage = &completion["usage"];
        assert_eq!(usage["completion_tokens"], 27);
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 7);
    }

    #[test]
    fn refusal_replaces_the_text() {
        let encoder = encoder(&["--refusal", "--echo"]);
        let request = request(None);
        let (message, _) = stream(&encoder, &request);
        assert_eq!(message["content"], "");
        assert_eq!(message["refusal"], format!("echo: {}", request.prompt));
        let tokens = encoder.choose_tokens(&request);
        let completion = encoder.completion(&request, &tokens);
        let whole = &completion["choices"][0]["message"];
        assert_eq!(whole["content"], Value::Null);
        assert_eq!(whole["refusal"], message["refusal"]);
    }

    #[test]
    fn answer_that_max_tokens_cuts_in_its_reasoning_has_no_text() {
        let encoder = encoder(&["--reasoning-tokens", "7", "--tool-call"]);
        let (message, finish_reason) = stream(&encoder, &request(Some(4)));
        let reasoning = message["reasoning_content"].as_str().unwrap();
        assert_eq!(reasoning.split_inclusive(' ').count(), 4);
        assert_eq!(
            (&message["content"], &message["arguments"]),
            (&json!(""), &json!(""))
        );
        assert_eq!(finish_reason, "length");
    }

    #[test]
    fn reasoning_tokens_are_timestamps_if_the_text_is() {
        let encoder = encoder(&["--reasoning-tokens", "2", "--stamp"]);
        let (message, _) = stream(&encoder, &request(None));
        let reasoning = message["reasoning_content"].as_str().unwrap();
        assert_eq!(reasoning.matches('@').count(), 2);
    }
}
