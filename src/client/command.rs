//! Commands from a client's handles to its session.

use super::events::EventWriter;
use super::options::Question;
use crate::protocol::ids::ClientMessageId;

/// A command to the session.
#[derive(Debug)]
pub(super) enum Command {
    /// Send a question, and write its events there.
    Ask(Question, EventWriter),
    /// Ask the server to cancel a question.
    Cancel(ClientMessageId),
    /// Close the connection and end.
    Close,
}
