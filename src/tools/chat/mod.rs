//! `chatmesh chat`: a conversation in the terminal, or one question through a pipe.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;
use clap::Args;
use secrecy::SecretString;

use super::Misused;
use crate::client::{Client, ClientError, Options, Question, Token};
use crate::protocol::ids::ConversationId;

mod lines;
mod screen;
mod terminal;
mod text;
mod words;

use screen::Screen;

/// Of standard input; far above what a server takes.
const MOST_INPUT: u64 = 4 << 20;

/// What `chat` is told.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The server: http://, https://, ws:// or wss://.
    #[arg(long, env = "CHATMESH_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Who talks.
    #[arg(long, env = "CHATMESH_USER", default_value = "me")]
    user: String,
    /// The user's token; without one it is fetched from the server's /token. Better in the
    /// environment, where other users of this machine don't see it.
    #[arg(
        long,
        env = "CHATMESH_TOKEN",
        hide_env_values = true,
        hide_default_value = true
    )]
    token: Option<SecretString>,
    /// Which conversation; an unknown name begins one.
    #[arg(long, value_name = "NAME", default_value = "default")]
    conversation: String,
    /// Begin a conversation with a new name.
    #[arg(long, conflicts_with = "conversation")]
    new: bool,
    /// List the user's conversations, with their turns and the time of the newest, and end.
    #[arg(long, conflicts_with_all = ["new", "conversation"])]
    list: bool,
}

fn misused(error: impl std::fmt::Display) -> anyhow::Error {
    Misused(error.to_string()).into()
}

/// Carries it out.
pub(crate) fn run(args: ChatArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    runtime.block_on(chat(args))
}

async fn chat(args: ChatArgs) -> anyhow::Result<()> {
    let mut options = Options::new(&args.url, &args.user).map_err(misused)?;
    if let Some(token) = args.token {
        options = options.token(Token::Given(token));
    }
    let conversation = if args.new {
        ConversationId::random()
    } else {
        ConversationId::parse(&args.conversation).map_err(misused)?
    };
    let piped = !std::io::stdin().is_terminal();
    // Before the server is troubled.
    let question = if piped && !args.list {
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .take(MOST_INPUT)
            .read_to_string(&mut text)
            .map_err(|_| misused("standard input is not UTF-8 text"))?;
        let text = text.trim();
        if text.is_empty() {
            return Err(misused("standard input is empty: there is nothing to ask"));
        }
        Some(text.to_owned())
    } else {
        None
    };
    let client = Client::connect(options).await.map_err(explained)?;
    let mut screen = Screen::new();
    let done = match question {
        _ if args.list => list(&client, &mut screen).await,
        Some(text) => {
            if args.new {
                // Nobody could go on with it otherwise.
                screen.notice(&format!("conversation {conversation}"));
            }
            let question = Question::new(text).in_conversation(conversation);
            terminal::once(&client, question, &mut screen).await
        }
        None => terminal::talk(&client, conversation, screen).await,
    };
    client.close().await;
    done
}

fn explained(error: ClientError) -> anyhow::Error {
    let hint = match &error {
        ClientError::Unauthorized(_) => {
            "give one by --token or CHATMESH_TOKEN; who runs the server can make one for this --user"
        }
        ClientError::Unreachable { .. } => {
            "is it running? `chatmesh all-in-one` starts one here; --url names another"
        }
        _ => return error.into(),
    };
    anyhow::anyhow!("{error}\n{hint}")
}

async fn list(client: &Client, screen: &mut Screen) -> anyhow::Result<()> {
    let mut after = None;
    let mut none = true;
    loop {
        let page = client.conversations(after.as_ref()).await?;
        for one in &page.conversations {
            none = false;
            let turns = if one.turns == 1 { "turn" } else { "turns" };
            screen.line(&format!(
                "{}\t{} {turns}\t{}",
                one.conversation_id, one.turns, one.updated_at
            ))?;
        }
        after = page.next;
        if after.is_none() {
            if none {
                screen.notice("no conversations yet");
            }
            return Ok(());
        }
    }
}
