//! Decoding of the values that a script returns, used by the calls in this folder.

use std::str::FromStr;

use fred::types::Value;

use crate::fanout::{FanoutError, Result};
use crate::protocol::ids::{ConversationId, MessageId};
use crate::protocol::position::Position;

/// The values of one reply or of a list in it. Each decoding method consumes the next value.
pub(super) struct Reply(std::vec::IntoIter<Value>);

/// The error for a value of a reply that can't be decoded. `what` names the value.
pub(super) fn unreadable_reply_error(what: &str) -> FanoutError {
    FanoutError::Unexpected(format!("redis holds no readable {what}"))
}

impl Reply {
    pub(super) fn new(value: Value) -> Self {
        Self(value.into_array().into_iter())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_slice().is_empty()
    }

    /// Whether the next value is `text`. Does not consume the value.
    pub(super) fn next_is(&self, text: &str) -> bool {
        let next = self.0.as_slice().first();
        next.and_then(Value::as_bytes)
            .is_some_and(|next| next == text.as_bytes())
    }

    /// Decodes the next value as a text; `None` if the script returned nil.
    pub(super) fn optional_text(&mut self) -> Result<Option<String>> {
        match self.0.next() {
            None => Err(unreadable_reply_error("answer: it is too short")),
            Some(value) if value.is_null() => Ok(None),
            Some(value) => value
                .into_bytes_str()
                .map(|text| Some(text.to_string()))
                .ok_or_else(|| unreadable_reply_error("text")),
        }
    }

    pub(super) fn text(&mut self) -> Result<String> {
        self.optional_text()?
            .ok_or_else(|| unreadable_reply_error("text"))
    }

    /// Decodes the next value as a text and parses it. `what` names the value in the error.
    pub(super) fn parse<T: FromStr>(&mut self, what: &str) -> Result<T> {
        self.text()?
            .parse()
            .map_err(|_| unreadable_reply_error(what))
    }

    pub(super) fn message_id(&mut self) -> Result<MessageId> {
        MessageId::parse(&self.text()?).map_err(|_| unreadable_reply_error("message id"))
    }

    pub(super) fn conversation(&mut self) -> Result<ConversationId> {
        ConversationId::parse(&self.text()?).map_err(|_| unreadable_reply_error("conversation"))
    }

    /// Decodes the next value as a position; `None` if the text is empty.
    pub(super) fn position(&mut self) -> Result<Option<Position>> {
        let text = self.text()?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| unreadable_reply_error("position"))
    }

    /// Decodes the next value as a list; an empty list if the script returned nil.
    pub(super) fn list(&mut self) -> Result<Reply> {
        match self.0.next() {
            Some(Value::Array(values)) => Ok(Self(values.into_iter())),
            Some(value) if value.is_null() => Ok(Self(Vec::new().into_iter())),
            _ => Err(unreadable_reply_error("list")),
        }
    }
}
