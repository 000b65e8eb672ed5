//! `chatmesh chat`: a conversation in the terminal, or a single question from a pipe.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;
use clap::Args;
use secrecy::SecretString;

use super::UsageError;
use crate::client::{Client, ClientError, Options, Question, Token};
use crate::protocol::ids::ConversationId;

mod answer_text;
mod connection_notices;
mod error_text;
mod line_editor;
mod sanitize;
mod screen;
mod terminal;

use screen::Screen;

/// Maximum number of bytes that are read from standard input. It is above the largest message that
/// a server can be configured to accept.
const MAX_INPUT_BYTES: u64 = 4 << 20;

/// Arguments of `chatmesh chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The server: http://, https://, ws:// or wss://.
    #[arg(long, env = "CHATMESH_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// The user's id.
    #[arg(long, env = "CHATMESH_USER", default_value = "me")]
    user: String,
    /// The user's token; by default it is requested from the server's /token. Set it in the
    /// environment, where other users of this machine don't see it.
    #[arg(
        long,
        env = "CHATMESH_TOKEN",
        hide_env_values = true,
        hide_default_value = true
    )]
    token: Option<SecretString>,
    /// Name of the conversation; a new name starts a new conversation.
    #[arg(long, value_name = "NAME", default_value = "default")]
    conversation: String,
    /// Begin a conversation with a new name.
    #[arg(long, conflicts_with = "conversation")]
    new: bool,
    /// List the user's conversations, each with the number of its turns and the time of the newest
    /// turn, and exit.
    #[arg(long, conflicts_with_all = ["new", "conversation"])]
    list: bool,
}

fn usage_error(error: impl std::fmt::Display) -> anyhow::Error {
    UsageError(error.to_string()).into()
}

/// Runs the chat.
///
/// # Errors
/// The arguments are invalid, the server cannot be used, or the answer failed.
pub(crate) fn run(args: ChatArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    runtime.block_on(chat(args))
}

async fn chat(args: ChatArgs) -> anyhow::Result<()> {
    let mut options = Options::new(&args.url, &args.user).map_err(usage_error)?;
    if let Some(token) = args.token {
        options = options.token(Token::Fixed(token));
    }
    let conversation = if args.new {
        ConversationId::random()
    } else {
        ConversationId::parse(&args.conversation).map_err(usage_error)?
    };
    let is_piped = !std::io::stdin().is_terminal();
    // Standard input is read before connecting, so that invalid input is reported without a server.
    let question = if is_piped && !args.list {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .take(MAX_INPUT_BYTES)
            .read_to_string(&mut text)
            .map_err(|_| usage_error("standard input is not UTF-8 text"))?;
        let text = text.trim();
        if text.is_empty() {
            return Err(usage_error(
                "standard input is empty: there is nothing to ask",
            ));
        }
        Some(text.to_owned())
    } else {
        None
    };
    let client = Client::connect(options).await.map_err(with_hint)?;
    let mut screen = Screen::new();
    let result = match question {
        _ if args.list => list_conversations(&client, &mut screen).await,
        Some(text) => {
            if args.new {
                // The person needs the random name to continue the conversation later.
                screen.print_notice(&format!("conversation {conversation}"));
            }
            let question = Question::new(text).in_conversation(conversation);
            terminal::ask_once(&client, question, &mut screen).await
        }
        None => terminal::converse(&client, conversation, screen).await,
    };
    client.close().await;
    result
}

/// Adds to a connection error what the person can do about it.
fn with_hint(error: ClientError) -> anyhow::Error {
    let hint = match &error {
        ClientError::Unauthorized(_) => {
            "set --token or CHATMESH_TOKEN; the server's operator can issue one for this --user"
        }
        ClientError::Unreachable { .. } => {
            "is it running? `chatmesh all-in-one` starts one here; --url names another"
        }
        _ => return error.into(),
    };
    anyhow::anyhow!("{error}\n{hint}")
}

async fn list_conversations(client: &Client, screen: &mut Screen) -> anyhow::Result<()> {
    let mut after = None;
    let mut is_empty = true;
    loop {
        let page = client.conversations(after.as_ref()).await?;
        for entry in &page.conversations {
            is_empty = false;
            let turns = if entry.turns == 1 { "turn" } else { "turns" };
            screen.print_line(&format!(
                "{}\t{} {turns}\t{}",
                entry.conversation_id, entry.turns, entry.updated_at
            ))?;
        }
        after = page.next;
        if after.is_none() {
            if is_empty {
                screen.print_notice("no conversations yet");
            }
            return Ok(());
        }
    }
}
