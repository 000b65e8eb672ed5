//! Tests of `chatmesh chat`, in a terminal and in a pipe, and of the client library below it.

use crate::support::model::ScriptedModel;
use crate::support::process::ProcessSpec;

mod client;
mod pipe;
mod proxy;
mod pty;
mod terminal;

/// An all-in-one with this model.
fn server(model: &ScriptedModel) -> ProcessSpec {
    with_model(ProcessSpec::ephemeral(), model)
}

fn with_model(spec: ProcessSpec, model: &ScriptedModel) -> ProcessSpec {
    spec.env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "20000")
        .env("OPENAI_IDLE_TIMEOUT_MS", "20000")
}

/// `chatmesh chat` with the server on this port.
fn chat(port: u16) -> ProcessSpec {
    ProcessSpec::new(&["chat", "--url", &format!("http://127.0.0.1:{port}")])
        .env("TERM", "xterm-256color")
}
