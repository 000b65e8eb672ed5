//! Prints the addresses, the model and the data directory of an `all-in-one` that has started.
#![expect(
    clippy::print_stdout,
    reason = "it is output for the person at the terminal, not a log line"
)]

use std::net::SocketAddr;

use super::reachable_address;
use crate::config::Config;
use crate::config::settings::AuthMode;

/// Prints the addresses, the model and the data directory: as text for a terminal, otherwise as one
/// log line.
pub(super) fn print(address: SocketAddr, config: &Config, for_terminal: bool) {
    let address = reachable_address(address);
    let worker = config.worker();
    let model = worker.model.as_ref().map_or_else(
        || "the built-in demo model (set OPENAI_API_KEY or OPENAI_BASE_URL for a real one)".into(),
        |api| format!("{} at {}", worker.prompt.model, api.base_url),
    );
    let data = config.embedded().data_dir.map_or_else(
        || "in memory only, lost when the process exits".into(),
        |folder| folder.display().to_string(),
    );
    let gateway = config.gateway();
    let token = match gateway.auth {
        AuthMode::Open => "any",
        AuthMode::Stored | AuthMode::Jwt => "TOKEN",
    };
    let url = format!("ws://{address}/ws?token={token}&userid=me");
    let page = if gateway.chat_page {
        format!("http://{address}/")
    } else {
        "off (CHAT_PAGE)".to_owned()
    };
    if !for_terminal {
        tracing::info!(page, %url, model, data, "open the page, or connect a WebSocket client, to try it");
        return;
    }
    println!(
        "\n  chatmesh {version}\n\n  \
         chat      {page}\n  \
         connect   {url}\n  \
         health    http://{address}/health\n  \
         answers   {model}\n  \
         data      {data}\n\n  \
         Open the chat in a browser to try it. Ctrl-C stops the server.\n",
        version = env!("CARGO_PKG_VERSION"),
    );
}
