//! A client of `chatmesh.v1` (protocol.md section 1.2), for the terminal, for tests and for other
//! tools. It keeps what the protocol asks of a good client: it comes back by itself after a lost
//! connection, later each time and never all at once with others; it obeys close codes and
//! `closing`; it goes on from its position, and sends again, by the same `id`, what was not
//! `accepted`. So every question ends exactly once, whatever happens to the connection.
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
mod asked;
mod error;
mod history;
mod link;
mod open;
mod options;
pub(crate) mod retry_hint;
mod session;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use answer::{Answer, End, Event};
pub use error::ClientError;
pub use options::{Options, Question, Token};

use link::Link;
use session::{Command, Session};

/// A server that does not take a goodbye is left without one.
const GOODBYE: Duration = Duration::from_secs(1);

/// Questions and cancels that wait for the session's task.
const COMMANDS: usize = 64;

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There, and its `welcome` has come.
    Connected,
    /// Lost; it is being made again, for the reason given.
    Lost(String),
    /// It will not come back, for the reason given. Everything open has ended.
    Over(String),
}

/// A user's connection, kept up until it is dropped.
#[derive(Debug)]
pub struct Client {
    link: Arc<Link>,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Client {
    /// Connects. After that the connection comes back by itself.
    ///
    /// # Errors
    /// The first connection could not be made.
    pub async fn connect(options: Options) -> Result<Self, ClientError> {
        let link = Arc::new(Link::new(options)?);
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (session, state) = Session::open(link.clone(), inbox).await?;
        Ok(Self {
            link,
            commands,
            state,
            task: tokio::spawn(session.run()),
        })
    }

    /// Sends a question. Its answer's events can be read at leisure: what is not read is put
    /// together, so it takes no more memory than the answer.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn ask(&self, question: Question) -> Result<Answer, ClientError> {
        let (writer, answer) = answer::pair(question.id.clone(), self.commands.clone());
        let command = Command::Ask(question, writer);
        match self.commands.send(command).await {
            Ok(()) => Ok(answer),
            Err(_) => Err(self.over()),
        }
    }

    /// Says goodbye. Whoever just drops the client looks to the server like a broken connection.
    pub async fn close(mut self) {
        if self.commands.send(Command::Close).await.is_ok() {
            let _ = tokio::time::timeout(GOODBYE, &mut self.task).await;
        }
    }

    /// How the connection is, and every change of it.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    fn over(&self) -> ClientError {
        let why = match &*self.state.borrow() {
            State::Over(why) => why.clone(),
            State::Connected | State::Lost(_) => "it was closed".into(),
        };
        ClientError::Over(why)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}
