//! A client of `chatmesh.v1` (protocol.md section 1.2), for the terminal, for tests and for other
//! tools.
//!
//! [`Client`] follows the rules of the protocol for clients: it reconnects with exponential backoff
//! and jitter, obeys close codes and `closing`, resumes from its last position, and resends
//! messages that were not accepted, with the same `id`. So every question has exactly one outcome,
//! even if connections fail.
//!
//! ```no_run
//! # async fn example() -> Result<(), chatmesh::client::ClientError> {
//! use chatmesh::client::{Client, Event, Options, Question};
//!
//! let client = Client::connect(Options::new("http://127.0.0.1:8000", "me")?).await?;
//! let mut answer = client.ask(Question::new("Hello, how are you?")).await?;
//! while let Some(event) = answer.next().await {
//!     match event {
//!         Event::Delta(delta) if delta.is_content() => print!("{}", delta.text),
//!         Event::Ended(outcome) => println!("\n{outcome:?}"),
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
mod parts;
mod pending_question;
mod received_parts;
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
pub use parts::{Part, PartDelta, content_of};

use command::Command;
use events::event_queue;
use server_api::ServerApi;
use session::Session;

/// Maximum time that [`Client::close`] waits for the session to close the connection and to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of commands that wait for the session.
const MAX_QUEUED_COMMANDS: usize = 64;

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
        let (commands, receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let (session, state) = Session::open(server.clone(), receiver).await?;
        Ok(Self {
            server,
            commands,
            state,
            task: tokio::spawn(session.run()),
        })
    }

    /// Sends a question. The caller may read the events of the answer at any pace: unread text is
    /// merged, so that unread events need no more memory than twice the complete answer. The client
    /// itself holds the answer once more until it ends.
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

    /// Closes the connection with a close frame. If the client is only dropped, the connection
    /// breaks without a close frame.
    pub async fn close(mut self) {
        if self.commands.send(Command::Close).await.is_ok() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.task).await;
        }
    }

    /// Returns a receiver of the connection's current state and of its changes.
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
