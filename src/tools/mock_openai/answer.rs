//! The text of an answer, and the chunks that carry it.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::MockArgs;
use super::request::Asked;
use crate::tools::span::{Span, fnv, mix};

/// Words of the texts. Each is a token.
const WORDS: [&str; 16] = [
    "and ", "the ", "answer ", "goes ", "on ", "with ", "words ", "that ", "mean ", "nothing ",
    "at ", "all ", "but ", "fill ", "a ", "line ",
];

/// What is written for every answer, made once.
#[derive(Debug)]
pub(super) struct Chunks {
    tokens: Span,
    seed: u64,
    echo: bool,
    stamp: bool,
    model: String,
    plain: Wrap,
    /// With `usage: null` in each chunk, as the API does where it was asked for.
    with_usage: Wrap,
}

/// The constant bytes around a token.
#[derive(Debug)]
struct Wrap {
    first: Vec<u8>,
    before: Vec<u8>,
    after: Vec<u8>,
    words: Vec<Vec<u8>>,
}

/// The tokens of one answer.
#[derive(Debug)]
pub(super) struct Tokens {
    kind: Kind,
    next: u64,
    end: u64,
    /// The request's limit is less than what there was to say.
    limited: bool,
}

#[derive(Debug)]
enum Kind {
    Words(u64),
    Stamps,
    Echo(String, Vec<usize>),
}

impl Tokens {
    pub(super) fn count(&self) -> u64 {
        self.end
    }

    pub(super) fn left(&self) -> u64 {
        self.end - self.next
    }

    fn finish_reason(&self) -> &'static str {
        if self.limited { "length" } else { "stop" }
    }
}

impl Wrap {
    fn new(model: &str, with_usage: bool) -> Self {
        let chunk = |delta: Value| {
            let mut chunk = chunk(model);
            chunk["choices"] = json!([{"index": 0, "delta": delta, "finish_reason": null}]);
            if with_usage {
                chunk["usage"] = Value::Null;
            }
            event(&chunk)
        };
        let around = chunk(json!({"content": "\u{1}"}));
        // Written as JSON, the mark is six characters that nothing else in a chunk is.
        let at = around.find("\\u0001").unwrap_or(0);
        let (before, after) = (&around.as_bytes()[..at], &around.as_bytes()[at + 6..]);
        let words = WORDS.iter();
        Self {
            first: chunk(json!({"role": "assistant", "content": ""})).into_bytes(),
            words: words
                .map(|word| [before, word.as_bytes(), after].concat())
                .collect(),
            before: before.to_vec(),
            after: after.to_vec(),
        }
    }
}

fn chunk(model: &str) -> Value {
    json!({
        "id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 0, "model": model,
    })
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn usage(asked: &Asked, tokens: &Tokens) -> Value {
    let (prompt, completion) = (asked.prompt_tokens, tokens.count());
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    })
}

impl Chunks {
    pub(super) fn new(args: &MockArgs) -> Self {
        Self {
            tokens: args.tokens,
            seed: args.seed,
            echo: args.echo,
            stamp: args.stamp,
            plain: Wrap::new(&args.model, false),
            with_usage: Wrap::new(&args.model, true),
            model: args.model.clone(),
        }
    }

    /// The answer to a request.
    pub(super) fn tokens(&self, asked: &Asked) -> Tokens {
        let mut hash = fnv(asked.prompt.as_bytes());
        if self.seed != 0 {
            hash = fnv(&[&self.seed.to_be_bytes(), asked.prompt.as_bytes()].concat());
        }
        let (kind, tokens) = if self.echo {
            let text = format!("echo: {}", asked.prompt);
            let mut ends = Vec::new();
            for word in text.split_inclusive(char::is_whitespace) {
                ends.push(ends.last().unwrap_or(&0) + word.len());
            }
            let tokens = ends.len() as u64;
            (Kind::Echo(text, ends), tokens)
        } else {
            let tokens = self.tokens.pick(mix(hash));
            let kind = if self.stamp {
                Kind::Stamps
            } else {
                Kind::Words(hash)
            };
            (kind, tokens)
        };
        let end = tokens.min(asked.max_tokens.unwrap_or(u64::MAX));
        Tokens {
            kind,
            next: 0,
            end,
            limited: end < tokens,
        }
    }

    fn wrap(&self, asked: &Asked) -> &Wrap {
        if asked.include_usage {
            &self.with_usage
        } else {
            &self.plain
        }
    }

    /// The chunk before the tokens.
    pub(super) fn begin(&self, asked: &Asked, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.wrap(asked).first);
    }

    /// The next token's chunk; nothing after the last one.
    pub(super) fn token(&self, asked: &Asked, tokens: &mut Tokens, out: &mut Vec<u8>) {
        if tokens.left() == 0 {
            return;
        }
        let wrap = self.wrap(asked);
        let n = tokens.next;
        tokens.next += 1;
        match &tokens.kind {
            Kind::Words(hash) if n > 0 => {
                out.extend_from_slice(&wrap.words[word(*hash, n)]);
            }
            kind => {
                out.extend_from_slice(&wrap.before);
                match kind {
                    Kind::Words(hash) => out.extend_from_slice(format!("{hash:016x} ").as_bytes()),
                    Kind::Stamps => out.extend_from_slice(stamp().as_bytes()),
                    Kind::Echo(text, ends) => {
                        let quoted = Value::from(piece(text, ends, n)).to_string();
                        out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
                    }
                }
                out.extend_from_slice(&wrap.after);
            }
        }
    }

    /// What follows the tokens.
    pub(super) fn end(&self, asked: &Asked, tokens: &Tokens, out: &mut Vec<u8>) {
        let mut last = chunk(&self.model);
        last["choices"] =
            json!([{"index": 0, "delta": {}, "finish_reason": tokens.finish_reason()}]);
        if asked.include_usage {
            last["usage"] = Value::Null;
        }
        out.extend_from_slice(event(&last).as_bytes());
        if asked.include_usage {
            let mut totals = chunk(&self.model);
            totals["choices"] = json!([]);
            totals["usage"] = usage(asked, tokens);
            out.extend_from_slice(event(&totals).as_bytes());
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// A whole stream in one piece.
    pub(super) fn all(&self, asked: &Asked, tokens: &mut Tokens) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.room(tokens));
        self.begin(asked, &mut out);
        while tokens.left() > 0 {
            self.token(asked, tokens, &mut out);
        }
        self.end(asked, tokens, &mut out);
        out
    }

    /// About the bytes that are left to write.
    fn room(&self, tokens: &Tokens) -> usize {
        let chunk = self.with_usage.first.len() + 24;
        chunk * (tokens.left() as usize + 4)
    }

    /// The answer to a request that doesn't stream.
    pub(super) fn whole(&self, asked: &Asked, tokens: &Tokens) -> Value {
        let content: String = (0..tokens.count())
            .map(|n| match &tokens.kind {
                Kind::Words(hash) if n == 0 => format!("{hash:016x} "),
                Kind::Words(hash) => WORDS[word(*hash, n)].to_owned(),
                Kind::Stamps => stamp(),
                Kind::Echo(text, ends) => piece(text, ends, n).to_owned(),
            })
            .collect();
        json!({
            "id": "chatcmpl-mock", "object": "chat.completion", "created": 0, "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": tokens.finish_reason(),
            }],
            "usage": usage(asked, tokens),
        })
    }
}

/// The `n`th word's number in an answer.
fn word(hash: u64, n: u64) -> usize {
    (hash.wrapping_add(n) % WORDS.len() as u64) as usize
}

fn piece<'a>(text: &'a str, ends: &[usize], n: u64) -> &'a str {
    let n = n as usize;
    let begin = n.checked_sub(1).map_or(0, |before| ends[before]);
    &text[begin..ends[n]]
}

fn stamp() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("@{} ", now.as_micros())
}
