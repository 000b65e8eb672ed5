//! `chatmesh chat` as its user sees it: in a terminal, and in a pipe.

use crate::support::model::ScriptedModel;
use crate::support::process::ProcessSpec;

mod client;
mod door;
mod pipe;
mod pty;
mod terminal;

/// A server with this model.
fn server(model: &ScriptedModel) -> ProcessSpec {
    on(ProcessSpec::ephemeral(), model)
}

fn on(spec: ProcessSpec, model: &ScriptedModel) -> ProcessSpec {
    spec.env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "20000")
        .env("OPENAI_IDLE_TIMEOUT_MS", "20000")
}

/// `chatmesh chat` for a server on this port.
fn chat(port: u16) -> ProcessSpec {
    ProcessSpec::new(&["chat", "--url", &format!("http://127.0.0.1:{port}")])
        .env("TERM", "xterm-256color")
}
