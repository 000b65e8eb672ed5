//! The commands that [`Client`](super::Client) and [`Answer`](super::Answer) send to the session.

use super::events::EventWriter;
use super::options::Question;
use crate::protocol::ids::ClientMessageId;

/// A command that the session executes.
#[derive(Debug)]
pub(super) enum Command {
    /// Send the question, and push its events to the writer.
    Ask(Question, EventWriter),
    /// Ask the server to cancel the question with this `id`.
    Cancel(ClientMessageId),
    /// Close the connection and end the session.
    Close,
}
