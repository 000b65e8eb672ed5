//! Encodes the chunks of a stream. What is the same in all streams is encoded once at the start.

use serde_json::{Value, json};

/// Words that answers consist of. Each word counts as one token.
pub(super) const WORDS: [&str; 16] = [
    "and ", "the ", "answer ", "goes ", "on ", "with ", "words ", "that ", "mean ", "nothing ",
    "at ", "all ", "but ", "fill ", "a ", "line ",
];

/// The encoded chunks of a stream.
#[derive(Debug)]
pub(super) struct ChunkTemplate {
    model: String,
    with_usage: bool,
    /// The first chunk of a stream, which has the role and no token.
    pub(super) role_chunk: Vec<u8>,
    /// Chunks with a token of reasoning.
    pub(super) reasoning: TokenTemplate,
    /// Chunks with a token of the text, or of the refusal (`--refusal`).
    pub(super) text: TokenTemplate,
}

/// The encoded chunks of tokens in one field of the delta. The chunk of a token is `prefix`, the
/// token as JSON text without quotation marks, and `suffix`.
#[derive(Debug)]
pub(super) struct TokenTemplate {
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    /// The complete chunk of each word, in the order of [`WORDS`].
    word_chunks: Vec<Vec<u8>>,
}

impl ChunkTemplate {
    /// Encodes the chunks of the model whose text is in the field `text_field`. As in OpenAI's API,
    /// each chunk of a stream with usage has `usage: null`.
    pub(super) fn new(model: &str, text_field: &str, with_usage: bool) -> Self {
        let role = json!({"role": "assistant", "content": ""});
        let token_template = |field: &str| {
            TokenTemplate::new(&delta_chunk(model, with_usage, &json!({field: "\u{1}"})))
        };
        Self {
            role_chunk: delta_chunk(model, with_usage, &role).into_bytes(),
            reasoning: token_template("reasoning_content"),
            text: token_template(text_field),
            model: model.to_owned(),
            with_usage,
        }
    }

    /// Writes a chunk with this delta.
    pub(super) fn write_delta(&self, delta: &Value, out: &mut Vec<u8>) {
        let chunk = delta_chunk(&self.model, self.with_usage, delta);
        out.extend_from_slice(chunk.as_bytes());
    }

    /// Writes the chunks after the last delta: the finish reason, the usage if the stream has it,
    /// and `[DONE]`.
    pub(super) fn write_end(&self, finish_reason: &str, usage: Value, out: &mut Vec<u8>) {
        let mut chunk = new_chunk(&self.model);
        chunk["choices"] = json!([{"index": 0, "delta": {}, "finish_reason": finish_reason}]);
        if self.with_usage {
            chunk["usage"] = Value::Null;
        }
        out.extend_from_slice(to_event(&chunk).as_bytes());
        if self.with_usage {
            let mut usage_chunk = new_chunk(&self.model);
            usage_chunk["choices"] = json!([]);
            usage_chunk["usage"] = usage;
            out.extend_from_slice(to_event(&usage_chunk).as_bytes());
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}

impl TokenTemplate {
    fn new(with_placeholder: &str) -> Self {
        // JSON escapes the placeholder to six characters that occur nowhere else in a chunk.
        let placeholder_start = with_placeholder.find("\\u0001").unwrap_or(0);
        let bytes = with_placeholder.as_bytes();
        let (prefix, suffix) = (&bytes[..placeholder_start], &bytes[placeholder_start + 6..]);
        let words = WORDS.iter();
        Self {
            word_chunks: words
                .map(|word| [prefix, word.as_bytes(), suffix].concat())
                .collect(),
            prefix: prefix.to_vec(),
            suffix: suffix.to_vec(),
        }
    }

    /// Writes the chunk of one of the [`WORDS`].
    pub(super) fn write_word(&self, word_index: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.word_chunks[word_index]);
    }

    /// Writes the chunk of a token that needs no escapes in JSON.
    pub(super) fn write_plain(&self, token: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(token.as_bytes());
        out.extend_from_slice(&self.suffix);
    }

    /// Writes the chunk of any token.
    pub(super) fn write_escaped(&self, token: &str, out: &mut Vec<u8>) {
        let json = Value::from(token).to_string();
        // The prefix and the suffix already have the quotation marks.
        self.write_plain(&json[1..json.len() - 1], out);
    }
}

fn delta_chunk(model: &str, with_usage: bool, delta: &Value) -> String {
    let mut chunk = new_chunk(model);
    chunk["choices"] = json!([{"index": 0, "delta": delta, "finish_reason": null}]);
    if with_usage {
        chunk["usage"] = Value::Null;
    }
    to_event(&chunk)
}

fn new_chunk(model: &str) -> Value {
    json!({
        "id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 0, "model": model,
    })
}

fn to_event(data: &Value) -> String {
    format!("data: {data}\n\n")
}
