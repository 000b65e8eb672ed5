//! What the scripted model answers.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::ModelRequest;

/// How one request is answered.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A status and a body, no stream.
    Status {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// Nothing, not even a status, for ever.
    Hang,
    /// Status 200 and server-sent events.
    Stream(Script),
}

impl Answer {
    /// An error in OpenAI's form.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::Status {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: json!({"error": {"message": message, "type": code, "code": code, "param": null}})
                .to_string(),
        }
    }

    /// 429 that goes away by waiting.
    pub(crate) fn rate_limited() -> Self {
        Self::error(429, "rate_limit_exceeded", "slow down")
    }

    /// 429 that does not: nobody pays any more.
    pub(crate) fn out_of_quota() -> Self {
        Self::error(429, "insufficient_quota", "you exceeded your current quota")
    }

    /// Adds a header: `retry-after-ms`, `Retry-After`, `x-should-retry`.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        match &mut self {
            Self::Status { headers, .. } => headers.push((name.to_owned(), value.to_owned())),
            _ => panic!("only a status has headers of its own"),
        }
        self
    }
}

impl From<Script> for Answer {
    fn from(script: Script) -> Self {
        Self::Stream(script)
    }
}

/// How an error object in the middle of a stream looks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StreamErrorFormat {
    /// `data: {"error": {"message": …}}`
    Nested,
    /// `data: {"object": "error", "message": …}`
    Flat,
    /// `error: {"message": …}`, as older llama.cpp servers
    Line,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Bytes(Bytes),
    Wait(Duration),
    Cut,
    Hang,
}

/// A stream, step by step.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    steps: Vec<Step>,
    crlf: bool,
    split: Option<usize>,
    pace: Option<Duration>,
}

const MODEL: &str = "scripted-model";

fn chunk(delta: &Value, finish_reason: Option<&str>) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    })
}

impl Script {
    /// An empty stream: an end without a `finish_reason`.
    pub(crate) fn new() -> Self {
        Self {
            steps: Vec::new(),
            crlf: false,
            split: None,
            pace: None,
        }
    }

    /// A whole answer: the text in some chunks, `stop`, usage, `[DONE]`.
    pub(crate) fn complete(text: &str) -> Self {
        Self::new().role().text(text).finish("stop").usage().done()
    }

    /// `echo: ` and the prompt.
    pub(crate) fn echo(asked: &ModelRequest) -> Self {
        Self::complete(&format!("echo: {}", asked.prompt))
    }

    /// The usual first delta, that names the role.
    pub(crate) fn role(self) -> Self {
        self.event(&chunk(&json!({"role": "assistant", "content": ""}), None))
    }

    /// The first delta of older llama.cpp servers.
    pub(crate) fn null_role(self) -> Self {
        self.event(&chunk(&json!({"role": "assistant", "content": null}), None))
    }

    /// One delta.
    pub(crate) fn token(self, text: &str) -> Self {
        self.event(&chunk(&json!({"content": text}), None))
    }

    /// The text in deltas of about a word.
    pub(crate) fn text(mut self, text: &str) -> Self {
        for word in text.split_inclusive(' ') {
            self = self.token(word);
        }
        self
    }

    /// The last delta.
    pub(crate) fn finish(self, reason: &str) -> Self {
        self.event(&chunk(&json!({}), Some(reason)))
    }

    /// The usage chunk, whose `choices` are empty.
    pub(crate) fn usage(self) -> Self {
        self.event(&json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
            "choices": [],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        }))
    }

    /// `data: [DONE]`.
    pub(crate) fn done(self) -> Self {
        self.raw("data: [DONE]\n\n")
    }

    /// An error object.
    pub(crate) fn error(self, form: StreamErrorFormat, message: &str) -> Self {
        match form {
            StreamErrorFormat::Nested => {
                self.event(&json!({"error": {"message": message, "type": "server_error"}}))
            }
            StreamErrorFormat::Flat => {
                self.event(&json!({"object": "error", "message": message, "code": 500}))
            }
            StreamErrorFormat::Line => {
                let body = json!({"message": message, "code": 500});
                self.raw(&format!("error: {body}\n\n"))
            }
        }
    }

    /// A line that readers pass over.
    pub(crate) fn comment(self, text: &str) -> Self {
        self.raw(&format!(": {text}\n\n"))
    }

    /// A `data:` event.
    pub(crate) fn event(self, value: &Value) -> Self {
        self.raw(&format!("data: {value}\n\n"))
    }

    /// Any bytes.
    pub(crate) fn raw(mut self, text: &str) -> Self {
        self.steps
            .push(Step::Bytes(Bytes::copy_from_slice(text.as_bytes())));
        self
    }

    /// Silence, here.
    pub(crate) fn wait(mut self, time: Duration) -> Self {
        self.steps.push(Step::Wait(time));
        self
    }

    /// Silence before everything: after the status, before the first byte.
    pub(crate) fn initial_delay(mut self, time: Duration) -> Self {
        self.steps.insert(0, Step::Wait(time));
        self
    }

    /// The connection breaks here.
    pub(crate) fn cut(mut self) -> Self {
        self.steps.push(Step::Cut);
        self
    }

    /// Silence for ever, here.
    pub(crate) fn hang(mut self) -> Self {
        self.steps.push(Step::Hang);
        self
    }

    /// This long between any two events.
    pub(crate) fn chunk_interval(mut self, time: Duration) -> Self {
        self.pace = Some(time);
        self
    }

    /// Lines end with CR LF.
    pub(crate) fn crlf(mut self) -> Self {
        self.crlf = true;
        self
    }

    /// In pieces of this many bytes, cut wherever that falls: in the middle of a character, too.
    pub(crate) fn split(mut self, size: usize) -> Self {
        self.split = Some(size);
        self
    }

    pub(super) fn steps(self) -> Vec<Step> {
        let mut steps = Vec::new();
        for step in self.steps {
            let Step::Bytes(mut bytes) = step else {
                steps.push(step);
                continue;
            };
            if self.crlf {
                let text = String::from_utf8_lossy(&bytes).replace('\n', "\r\n");
                bytes = text.into();
            }
            if let (Some(pace), false) = (self.pace, steps.is_empty()) {
                steps.push(Step::Wait(pace));
            }
            let size = self.split.unwrap_or(bytes.len()).max(1);
            while !bytes.is_empty() {
                let piece = bytes.split_to(size.min(bytes.len()));
                steps.push(Step::Bytes(piece));
                if self.split.is_some() {
                    // Without a pause the pieces leave together and nothing is split.
                    steps.push(Step::Wait(Duration::from_micros(200)));
                }
            }
        }
        steps
    }
}
