//! The text of an answer, and the server-sent events that carry it.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::args::MockArgs;
use super::random::{NumberRange, fnv1a, splitmix64};
use super::request::ChatRequest;

/// Words that answers consist of; each counts as one token.
const WORDS: [&str; 16] = [
    "and ", "the ", "answer ", "goes ", "on ", "with ", "words ", "that ", "mean ", "nothing ",
    "at ", "all ", "but ", "fill ", "a ", "line ",
];

/// Chooses the text of an answer and encodes it. Everything that is the same in all answers is
/// encoded once at the start.
#[derive(Debug)]
pub(super) struct AnswerEncoder {
    tokens: NumberRange,
    seed: u64,
    echo: bool,
    stamp: bool,
    model: String,
    plain: ChunkTemplate,
    /// With `usage: null` in each chunk, as the API sends it when the request asks for usage.
    with_usage: ChunkTemplate,
}

/// The encoded chunks of a stream; only the token between `prefix` and `suffix` varies.
#[derive(Debug)]
struct ChunkTemplate {
    role_chunk: Vec<u8>,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    word_chunks: Vec<Vec<u8>>,
}

/// The tokens of one answer, and how many of them have been written.
#[derive(Debug)]
pub(super) struct AnswerTokens {
    text: AnswerText,
    written: u64,
    total: u64,
    /// The request's `max_tokens` cut the answer short.
    is_truncated: bool,
}

#[derive(Debug)]
enum AnswerText {
    /// Words that this hash of the prompt selects; the first token is the hash itself.
    Words(u64),
    Timestamps,
    /// The text, and the end of each token in it.
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
        let at = with_placeholder.find("\\u0001").unwrap_or(0);
        let bytes = with_placeholder.as_bytes();
        let (prefix, suffix) = (&bytes[..at], &bytes[at + 6..]);
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
            tokens: args.tokens,
            seed: args.seed,
            echo: args.echo,
            stamp: args.stamp,
            plain: ChunkTemplate::new(&args.model, false),
            with_usage: ChunkTemplate::new(&args.model, true),
            model: args.model.clone(),
        }
    }

    /// Chooses the answer to a request; its length depends only on the prompt and the seed.
    pub(super) fn choose_tokens(&self, request: &ChatRequest) -> AnswerTokens {
        let mut hash = fnv1a(request.prompt.as_bytes());
        if self.seed != 0 {
            hash = fnv1a(&[&self.seed.to_be_bytes(), request.prompt.as_bytes()].concat());
        }
        let (text, length) = if self.echo {
            let text = format!("echo: {}", request.prompt);
            let mut ends = Vec::new();
            for word in text.split_inclusive(char::is_whitespace) {
                ends.push(ends.last().unwrap_or(&0) + word.len());
            }
            let length = ends.len() as u64;
            (AnswerText::Echo(text, ends), length)
        } else {
            let length = self.tokens.pick(splitmix64(hash));
            let text = if self.stamp {
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
            &self.plain
        }
    }

    /// Writes the chunk with the role, which precedes the tokens.
    pub(super) fn write_role(&self, request: &ChatRequest, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.template(request).role_chunk);
    }

    /// Writes the chunk of the next token; nothing after the last one.
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
                    AnswerText::Echo(text, ends) => {
                        let quoted = Value::from(echo_token(text, ends, index)).to_string();
                        out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
                    }
                }
                out.extend_from_slice(&template.suffix);
            }
        }
    }

    /// Writes what follows the tokens: the finish reason, the usage if requested, and `[DONE]`.
    pub(super) fn write_end(
        &self,
        request: &ChatRequest,
        tokens: &AnswerTokens,
        out: &mut Vec<u8>,
    ) {
        let mut last = new_chunk(&self.model);
        last["choices"] =
            json!([{"index": 0, "delta": {}, "finish_reason": tokens.finish_reason()}]);
        if request.include_usage {
            last["usage"] = Value::Null;
        }
        out.extend_from_slice(to_event(&last).as_bytes());
        if request.include_usage {
            let mut totals = new_chunk(&self.model);
            totals["choices"] = json!([]);
            totals["usage"] = usage(request, tokens);
            out.extend_from_slice(to_event(&totals).as_bytes());
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// Encodes a whole stream as one piece.
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

    /// The answer to a request without `stream`.
    pub(super) fn completion(&self, request: &ChatRequest, tokens: &AnswerTokens) -> Value {
        let content: String = (0..tokens.total())
            .map(|index| match &tokens.text {
                AnswerText::Words(hash) if index == 0 => format!("{hash:016x} "),
                AnswerText::Words(hash) => WORDS[word_index(*hash, index)].to_owned(),
                AnswerText::Timestamps => timestamp(),
                AnswerText::Echo(text, ends) => echo_token(text, ends, index).to_owned(),
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

/// Position in [`WORDS`] of an answer's token with this index.
fn word_index(hash: u64, index: u64) -> usize {
    (hash.wrapping_add(index) % WORDS.len() as u64) as usize
}

fn echo_token<'a>(text: &'a str, ends: &[usize], index: u64) -> &'a str {
    let index = index as usize;
    let start = index.checked_sub(1).map_or(0, |previous| ends[previous]);
    &text[start..ends[index]]
}

fn timestamp() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("@{} ", now.as_micros())
}
