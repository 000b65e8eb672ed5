//! The answers of the scripted model.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::ModelRequest;

/// The answer to one request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A status and a body without a stream.
    Status {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// No response at all; the connection stays open.
    Hang,
    /// Status 200 and server-sent events.
    Stream(Script),
}

impl Answer {
    /// An error with a body in OpenAI's format.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::Status {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: json!({"error": {"message": message, "type": code, "code": code, "param": null}})
                .to_string(),
        }
    }

    /// A 429 after which a retry may succeed.
    pub(crate) fn rate_limited() -> Self {
        Self::error(429, "rate_limit_exceeded", "slow down")
    }

    /// A 429 after which no retry succeeds, because the quota is used up.
    pub(crate) fn out_of_quota() -> Self {
        Self::error(429, "insufficient_quota", "you exceeded your current quota")
    }

    /// Adds a header such as `retry-after-ms`, `Retry-After` or `x-should-retry`.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        match &mut self {
            Self::Status { headers, .. } => headers.push((name.to_owned(), value.to_owned())),
            _ => panic!("only Answer::Status has headers"),
        }
        self
    }
}

impl From<Script> for Answer {
    fn from(script: Script) -> Self {
        Self::Stream(script)
    }
}

/// The format of an error within a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StreamErrorFormat {
    /// `data: {"error": {"message": …}}`
    Nested,
    /// `data: {"object": "error", "message": …}`
    Flat,
    /// `error: {"message": …}`, as in older llama.cpp servers.
    Line,
}

/// Holds a stream back at one place until a test opens it.
#[derive(Debug, Clone)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets the stream continue.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn wait_until_open(&self) {
        let mut is_open = self.0.subscribe();
        let _ = is_open.wait_for(|is_open| *is_open).await;
    }
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Bytes(Bytes),
    Wait(Duration),
    WaitFor(Gate),
    Disconnect,
    Hang,
}

/// The steps of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    steps: Vec<Step>,
    has_crlf_line_ends: bool,
    chunk_size: Option<usize>,
    chunk_interval: Option<Duration>,
}

const MODEL: &str = "scripted-model";

/// A chunk of a stream with one choice.
fn chunk(delta: &Value, finish_reason: Option<&str>) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    })
}

impl Script {
    /// An empty stream that ends without a `finish_reason`.
    pub(crate) fn new() -> Self {
        Self {
            steps: Vec::new(),
            has_crlf_line_ends: false,
            chunk_size: None,
            chunk_interval: None,
        }
    }

    /// A complete answer: the text in several chunks, `stop`, usage and `[DONE]`.
    pub(crate) fn complete(text: &str) -> Self {
        Self::new().role().text(text).finish("stop").usage().done()
    }

    /// A complete answer with `echo: ` followed by the prompt.
    pub(crate) fn echo(request: &ModelRequest) -> Self {
        Self::complete(&format!("echo: {}", request.prompt))
    }

    /// Adds the usual first delta, which names the role.
    pub(crate) fn role(self) -> Self {
        self.event(&chunk(&json!({"role": "assistant", "content": ""}), None))
    }

    /// Adds the first delta of older llama.cpp servers, whose content is null.
    pub(crate) fn null_role(self) -> Self {
        self.event(&chunk(&json!({"role": "assistant", "content": null}), None))
    }

    /// Adds one delta with this text.
    pub(crate) fn token(self, text: &str) -> Self {
        self.event(&chunk(&json!({"content": text}), None))
    }

    /// Adds a chunk with each `delta`.
    pub(crate) fn deltas(self, deltas: &[Value]) -> Self {
        let add = |script: Self, delta: &Value| script.event(&chunk(delta, None));
        deltas.iter().fold(self, add)
    }

    /// Adds the text in deltas of one word each.
    pub(crate) fn text(mut self, text: &str) -> Self {
        for word in text.split_inclusive(' ') {
            self = self.token(word);
        }
        self
    }

    /// Adds the last delta, which has the `finish_reason`.
    pub(crate) fn finish(self, reason: &str) -> Self {
        self.event(&chunk(&json!({}), Some(reason)))
    }

    /// Adds the usage chunk, whose `choices` are empty.
    pub(crate) fn usage(self) -> Self {
        self.event(&json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
            "choices": [],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        }))
    }

    /// Adds `data: [DONE]`.
    pub(crate) fn done(self) -> Self {
        self.raw("data: [DONE]\n\n")
    }

    /// Adds an error.
    pub(crate) fn error(self, format: StreamErrorFormat, message: &str) -> Self {
        match format {
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

    /// Adds a comment line, which clients ignore.
    pub(crate) fn comment(self, text: &str) -> Self {
        self.raw(&format!(": {text}\n\n"))
    }

    /// Adds a `data:` event.
    pub(crate) fn event(self, value: &Value) -> Self {
        self.raw(&format!("data: {value}\n\n"))
    }

    /// Adds text as it is, without the form of an event.
    pub(crate) fn raw(mut self, text: &str) -> Self {
        self.steps
            .push(Step::Bytes(Bytes::copy_from_slice(text.as_bytes())));
        self
    }

    /// Adds a pause.
    pub(crate) fn wait(mut self, time: Duration) -> Self {
        self.steps.push(Step::Wait(time));
        self
    }

    /// Holds back what follows until the returned gate is opened.
    pub(crate) fn gate(mut self) -> (Self, Gate) {
        let gate = Gate::new();
        self.steps.push(Step::WaitFor(gate.clone()));
        (self, gate)
    }

    /// Inserts a pause between the status and the first event.
    pub(crate) fn initial_delay(mut self, time: Duration) -> Self {
        self.steps.insert(0, Step::Wait(time));
        self
    }

    /// Closes the connection after the events so far.
    pub(crate) fn disconnect(mut self) -> Self {
        self.steps.push(Step::Disconnect);
        self
    }

    /// Sends nothing after the events so far; the connection stays open.
    pub(crate) fn hang(mut self) -> Self {
        self.steps.push(Step::Hang);
        self
    }

    /// Pauses between any two events.
    pub(crate) fn chunk_interval(mut self, time: Duration) -> Self {
        self.chunk_interval = Some(time);
        self
    }

    /// Ends lines with CR LF.
    pub(crate) fn crlf(mut self) -> Self {
        self.has_crlf_line_ends = true;
        self
    }

    /// Sends chunks of this many bytes. Their boundaries may lie within a character.
    pub(crate) fn split_every(mut self, size: usize) -> Self {
        self.chunk_size = Some(size);
        self
    }

    /// Applies the line ends, the chunk size and the interval, and returns the resulting steps.
    pub(super) fn steps(self) -> Vec<Step> {
        let mut steps = Vec::new();
        for step in self.steps {
            let Step::Bytes(mut bytes) = step else {
                steps.push(step);
                continue;
            };
            if self.has_crlf_line_ends {
                let text = String::from_utf8_lossy(&bytes).replace('\n', "\r\n");
                bytes = text.into();
            }
            if let (Some(interval), false) = (self.chunk_interval, steps.is_empty()) {
                steps.push(Step::Wait(interval));
            }
            let size = self.chunk_size.unwrap_or(bytes.len()).max(1);
            while !bytes.is_empty() {
                let piece = bytes.split_to(size.min(bytes.len()));
                steps.push(Step::Bytes(piece));
                if self.chunk_size.is_some() {
                    // Without a pause, several chunks would be sent together.
                    steps.push(Step::Wait(Duration::from_micros(200)));
                }
            }
        }
        steps
    }
}
