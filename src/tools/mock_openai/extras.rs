//! What follows the text of an answer by option: sources and the call of a tool.

use serde_json::{Value, json};

use super::args::MockArgs;

/// Name of the tool that `--tool-call` calls.
const TOOL: &str = "search";

/// Number of characters of the prompt that a tool call repeats, at most.
const MAX_QUERY_CHARS: usize = 200;

/// Number of characters of the arguments of a tool call that one chunk has.
const ARGUMENT_CHARS_PER_CHUNK: usize = 8;

/// What follows the text of each answer.
#[derive(Debug)]
pub(super) struct Extras {
    /// Number of sources (`--sources`).
    sources: u16,
    /// Whether a tool is called (`--tool-call`).
    calls_tool: bool,
}

impl Extras {
    pub(super) fn new(args: &MockArgs) -> Self {
        Self {
            sources: args.sources,
            calls_tool: args.tool_call,
        }
    }

    /// The finish reason of a complete answer.
    pub(super) fn finish_reason(&self) -> &'static str {
        if self.calls_tool {
            "tool_calls"
        } else {
            "stop"
        }
    }

    /// Returns the deltas of the chunks after the text: all sources in one, and the tool call in
    /// several, as models stream its arguments.
    pub(super) fn deltas(&self, prompt: &str, hash: u64) -> Vec<Value> {
        let mut deltas = Vec::new();
        if self.sources > 0 {
            deltas.push(json!({"annotations": self.annotations()}));
        }
        if self.calls_tool {
            let mut call = tool_call(hash, "");
            call["index"] = json!(0);
            deltas.push(json!({"tool_calls": [call]}));
            let arguments: Vec<char> = arguments(prompt).chars().collect();
            for piece in arguments.chunks(ARGUMENT_CHARS_PER_CHUNK) {
                let function = json!({"arguments": piece.iter().collect::<String>()});
                deltas.push(json!({"tool_calls": [{"index": 0, "function": function}]}));
            }
        }
        deltas
    }

    /// Adds sources and tool call to the message of a response without `stream`.
    pub(super) fn add_to_message(&self, prompt: &str, hash: u64, message: &mut Value) {
        if self.sources > 0 {
            message["annotations"] = json!(self.annotations());
        }
        if self.calls_tool {
            message["tool_calls"] = json!([tool_call(hash, &arguments(prompt))]);
        }
    }

    fn annotations(&self) -> Vec<Value> {
        let annotation = |number: u16| {
            let url = format!("https://example.org/source/{number}");
            let title = format!("Source {number}");
            let citation = json!({"start_index": 0, "end_index": 0, "url": url, "title": title});
            json!({"type": "url_citation", "url_citation": citation})
        };
        (1..=self.sources).map(annotation).collect()
    }
}

fn tool_call(hash: u64, arguments: &str) -> Value {
    json!({
        "id": format!("call_{hash:016x}"),
        "type": "function",
        "function": {"name": TOOL, "arguments": arguments},
    })
}

/// The arguments of the tool call as JSON text: the beginning of the prompt.
fn arguments(prompt: &str) -> String {
    let query: String = prompt.chars().take(MAX_QUERY_CHARS).collect();
    json!({"query": query}).to_string()
}
