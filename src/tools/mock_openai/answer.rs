//! Chooses the tokens of an answer, and encodes them as the server-sent events of a stream or as
//! one JSON response.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::args::MockArgs;
use super::random::{NumberRange, fnv1a, splitmix64};
use super::request::ChatRequest;

/// Words that answers consist of. Each word counts as one token.
const WORDS: [&str; 16] = [
    "and ", "the ", "answer ", "goes ", "on ", "with ", "words ", "that ", "mean ", "nothing ",
    "at ", "all ", "but ", "fill ", "a ", "line ",
];

/// Chooses the text of an answer and encodes it. Everything that is the same in all answers is
/// encoded once at the start.
#[derive(Debug)]
pub(super) struct AnswerEncoder {
    /// Range of the number of tokens of an answer.
    token_count: NumberRange,
    seed: u64,
    /// Whether an answer repeats the prompt (`--echo`).
    echoes_prompt: bool,
    /// Whether each token is the time when it is written (`--stamp`).
    writes_timestamps: bool,
    model: String,
    /// Chunks for requests that do not ask for usage.
    without_usage: ChunkTemplate,
    /// Chunks for requests that ask for usage. As in OpenAI's API, each has `usage: null`.
    with_usage: ChunkTemplate,
}

/// The encoded chunks of a stream. The chunk of a token is `prefix`, the token as JSON text without
/// quotation marks, and `suffix`.
#[derive(Debug)]
struct ChunkTemplate {
    /// The first chunk of a stream, which has the role and no token.
    role_chunk: Vec<u8>,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    /// The complete chunk of each word, in the order of [`WORDS`].
    word_chunks: Vec<Vec<u8>>,
}

/// The tokens of one answer, and how many of them have been written.
#[derive(Debug)]
pub(super) struct AnswerTokens {
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
    /// The first token is this hash of the seed and the prompt. The other tokens are words that the
    /// hash selects.
    Words(u64),
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

    fn finish_reason(&self) -> &'static str {
        if self.is_truncated { "length" } else { "stop" }
    }
}

impl ChunkTemplate {
    fn new(model: &str, with_usage: bool) -> Self {
        let chunk = |delta: Value| {
            let mut chunk = new_chunk(model);
            chunk["choices"] = json!([{"index": 0, "delta": delta, "finish_reason": null}]);
            if with_usage {
                chunk["usage"] = Value::Null;
            }
            to_event(&chunk)
        };
        let with_placeholder = chunk(json!({"content": "\u{1}"}));
        // JSON escapes the placeholder to six characters that occur nowhere else in a chunk.
        let placeholder_start = with_placeholder.find("\\u0001").unwrap_or(0);
        let bytes = with_placeholder.as_bytes();
        let (prefix, suffix) = (&bytes[..placeholder_start], &bytes[placeholder_start + 6..]);
        let words = WORDS.iter();
        Self {
            role_chunk: chunk(json!({"role": "assistant", "content": ""})).into_bytes(),
            word_chunks: words
                .map(|word| [prefix, word.as_bytes(), suffix].concat())
                .collect(),
            prefix: prefix.to_vec(),
            suffix: suffix.to_vec(),
        }
    }
}

fn new_chunk(model: &str) -> Value {
    json!({
        "id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 0, "model": model,
    })
}

fn to_event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn usage(request: &ChatRequest, tokens: &AnswerTokens) -> Value {
    let (prompt, completion) = (request.prompt_tokens, tokens.total());
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    })
}

impl AnswerEncoder {
    pub(super) fn new(args: &MockArgs) -> Self {
        Self {
            token_count: args.tokens,
            seed: args.seed,
            echoes_prompt: args.echo,
            writes_timestamps: args.stamp,
            without_usage: ChunkTemplate::new(&args.model, false),
            with_usage: ChunkTemplate::new(&args.model, true),
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
                AnswerText::Words(hash)
            };
            (text, length)
        };
        let total = length.min(request.max_tokens.unwrap_or(u64::MAX));
        AnswerTokens {
            text,
            written: 0,
            total,
            is_truncated: total < length,
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
        match &tokens.text {
            AnswerText::Words(hash) if index > 0 => {
                out.extend_from_slice(&template.word_chunks[word_index(*hash, index)]);
            }
            text => {
                out.extend_from_slice(&template.prefix);
                match text {
                    AnswerText::Words(hash) => {
                        out.extend_from_slice(format!("{hash:016x} ").as_bytes());
                    }
                    AnswerText::Timestamps => out.extend_from_slice(timestamp().as_bytes()),
                    AnswerText::Echo(text, token_ends) => {
                        let json = Value::from(echo_token(text, token_ends, index)).to_string();
                        // The prefix and the suffix already have the quotation marks.
                        out.extend_from_slice(&json.as_bytes()[1..json.len() - 1]);
                    }
                }
                out.extend_from_slice(&template.suffix);
            }
        }
    }

    /// Writes the chunks after the last token: the finish reason, the usage if the request asks for
    /// it, and `[DONE]`.
    pub(super) fn write_end(
        &self,
        request: &ChatRequest,
        tokens: &AnswerTokens,
        out: &mut Vec<u8>,
    ) {
        let mut finish_chunk = new_chunk(&self.model);
        finish_chunk["choices"] =
            json!([{"index": 0, "delta": {}, "finish_reason": tokens.finish_reason()}]);
        if request.include_usage {
            finish_chunk["usage"] = Value::Null;
        }
        out.extend_from_slice(to_event(&finish_chunk).as_bytes());
        if request.include_usage {
            let mut usage_chunk = new_chunk(&self.model);
            usage_chunk["choices"] = json!([]);
            usage_chunk["usage"] = usage(request, tokens);
            out.extend_from_slice(to_event(&usage_chunk).as_bytes());
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
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
        let content: String = (0..tokens.total())
            .map(|index| match &tokens.text {
                AnswerText::Words(hash) if index == 0 => format!("{hash:016x} "),
                AnswerText::Words(hash) => WORDS[word_index(*hash, index)].to_owned(),
                AnswerText::Timestamps => timestamp(),
                AnswerText::Echo(text, token_ends) => {
                    echo_token(text, token_ends, index).to_owned()
                }
            })
            .collect();
        json!({
            "id": "chatcmpl-mock", "object": "chat.completion", "created": 0, "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": tokens.finish_reason(),
            }],
            "usage": usage(request, tokens),
        })
    }
}

/// Returns which of the [`WORDS`] is the token with this index, in the answer that has this hash.
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
