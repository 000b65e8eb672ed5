//! A client of `chatmesh.v1` (protocol.md section 1.2), for the terminal, for tests and for other
//! tools.
//!
//! It follows the rules of the protocol for clients: it reconnects with exponential backoff and
//! jitter, obeys close codes and `closing`, resumes from its last position, and resends messages that
//! were not accepted, with the same `id`. So every question has exactly one outcome, even if
//! connections fail.
//!
//! ```no_run
//! # async fn example() -> Result<(), chatmesh::client::ClientError> {
//! use chatmesh::client::{Client, Event, Options, Question};
//!
//! let client = Client::connect(Options::new("http://127.0.0.1:8000", "me")?).await?;
//! let mut answer = client.ask(Question::new("Hello, how are you?")).await?;
//! while let Some(event) = answer.next().await {
//!     match event {
//!         Event::Delta(text) => print!("{text}"),
//!         Event::Ended(end) => println!("\n{end:?}"),
//!         _ => {}
//!     }
//! }
//! # Ok(()) }
//! ```

mod answer;
mod command;
mod error;
mod events;
mod handshake;
mod history;
mod options;
mod pending_question;
pub(crate) mod retry_hint;
mod server_api;
mod session;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use answer::Answer;
pub use error::ClientError;
pub use events::{Event, Outcome, State};
pub use options::{Options, Question, Token};

use command::Command;
use events::event_queue;
use server_api::ServerApi;
use session::Session;

/// Limit for the WebSocket close handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Size of the queue of commands to the session.
const COMMAND_QUEUE: usize = 64;

/// A connection of one user. It is re-established after failures until the client is closed or
/// dropped.
#[derive(Debug)]
pub struct Client {
    server: Arc<ServerApi>,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Client {
    /// Connects to the server. If the connection is lost later, the client reconnects by itself.
    ///
    /// # Errors
    /// The first connection cannot be opened.
    pub async fn connect(options: Options) -> Result<Self, ClientError> {
        let server = Arc::new(ServerApi::new(options)?);
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let (session, state) = Session::open(server.clone(), receiver).await?;
        Ok(Self {
            server,
            commands,
            state,
            task: tokio::spawn(session.run()),
        })
    }

    /// Sends a question. The events of its answer may be read at any pace: unread text is merged, so
    /// that it needs no more memory than the complete answer.
    ///
    /// # Errors
    /// The client is closed.
    pub async fn ask(&self, question: Question) -> Result<Answer, ClientError> {
        let (writer, reader) = event_queue();
        let answer = Answer::new(question.id.clone(), reader, self.commands.clone());
        let command = Command::Ask(question, writer);
        match self.commands.send(command).await {
            Ok(()) => Ok(answer),
            Err(_) => Err(self.closed_error()),
        }
    }

    /// Closes the connection. For the server, a client that is only dropped has lost its connection.
    pub async fn close(mut self) {
        if self.commands.send(Command::Close).await.is_ok() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.task).await;
        }
    }

    /// The state of the connection, and its changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    fn closed_error(&self) -> ClientError {
        let reason = match &*self.state.borrow() {
            State::Closed(reason) => reason.clone(),
            State::Connected | State::Reconnecting(_) => "it was closed".into(),
        };
        ClientError::Closed(reason)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}
