//! Layout of the store's keys.
//!
//! Every key begins with the user and a zero byte, which no identifier contains. The entries that
//! are loaded when a user is first used (the mailbox's head, pending messages, cancel marks) form
//! one contiguous range.

use super::codec::damaged_entry_error;
use crate::fanout::FanoutError;
use crate::protocol::ids::{ConversationId, MessageId, UserId};

/// Kind of an entry in [`crate::store::Table::Users`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    /// The mailbox's bounds and end.
    MailboxHead = b'a',
    /// A pending message, by its sequence number.
    Pending = b'b',
    /// A cancel mark, by message.
    CancelMark = b'c',
    /// A mailbox frame, by offset.
    MailboxFrame = b'm',
    /// An outcome or tombstone, by message.
    Outcome = b'o',
    /// State of the rate limit.
    RateLimit = b'r',
    /// The stored token.
    Token = b't',
    /// Number of model tokens used today.
    TokensToday = b'u',
    /// When the tokens were revoked.
    Revocation = b'v',
}

const TAGS: [Tag; 9] = [
    Tag::MailboxHead,
    Tag::Pending,
    Tag::CancelMark,
    Tag::MailboxFrame,
    Tag::Outcome,
    Tag::RateLimit,
    Tag::Token,
    Tag::TokensToday,
    Tag::Revocation,
];

/// Key of the layout's version; sorts before every user.
pub(super) const VERSION: &[u8] = b"\0version";

/// Lower bound of all users' keys.
pub(super) const USERS_FROM: &[u8] = b"\x02";

/// Upper bound of all users' keys.
pub(super) const USERS_TO: &[u8] = b"\x7f";

/// Key of the marker of a partition of `responses`.
pub(super) fn marker(epoch: &str) -> Vec<u8> {
    [b"\x01marker.", epoch.as_bytes()].concat()
}

/// Key in the users' table.
pub(super) fn user(user: &UserId, tag: Tag, suffix: &[u8]) -> Vec<u8> {
    let name = user.as_str().as_bytes();
    let mut key = Vec::with_capacity(name.len() + 2 + suffix.len());
    key.extend_from_slice(name);
    key.push(0);
    key.push(tag as u8);
    key.extend_from_slice(suffix);
    key
}

/// Range of all keys from tag `first` to tag `last`, both included.
pub(super) fn range(user_id: &UserId, first: Tag, last: Tag) -> (Vec<u8>, Vec<u8>) {
    let from = user(user_id, first, b"");
    let mut to = user(user_id, last, b"");
    if let Some(tag) = to.last_mut() {
        *tag += 1;
    }
    (from, to)
}

/// Key of an outcome or tombstone.
pub(super) fn outcome(user_id: &UserId, message: &MessageId) -> Vec<u8> {
    user(user_id, Tag::Outcome, message.as_str().as_bytes())
}

/// Key of a cancel mark.
pub(super) fn cancel_mark(user_id: &UserId, message: &MessageId) -> Vec<u8> {
    user(user_id, Tag::CancelMark, message.as_str().as_bytes())
}

/// Key of a pending message.
pub(super) fn pending(user_id: &UserId, sequence: u64) -> Vec<u8> {
    user(user_id, Tag::Pending, &sequence.to_be_bytes())
}

/// Key of a mailbox frame. Offsets are never negative.
pub(super) fn frame(user_id: &UserId, offset: i64) -> Vec<u8> {
    user(user_id, Tag::MailboxFrame, &(offset as u64).to_be_bytes())
}

/// Splits a key of the users' table into user, tag and suffix.
pub(super) fn parse(key: &[u8]) -> Option<(UserId, Tag, &[u8])> {
    let end = key.iter().position(|byte| *byte == 0)?;
    let user = UserId::parse(std::str::from_utf8(&key[..end]).ok()?).ok()?;
    let (tag, suffix) = key[end + 1..].split_first()?;
    let tag = TAGS.into_iter().find(|known| *known as u8 == *tag)?;
    Some((user, tag, suffix))
}

/// Decodes a key's suffix as a number.
pub(super) fn parse_number(suffix: &[u8]) -> Option<u64> {
    suffix.try_into().ok().map(u64::from_be_bytes)
}

/// Decodes a key's suffix as a message id.
pub(super) fn parse_message(suffix: &[u8]) -> Result<MessageId, FanoutError> {
    let text = std::str::from_utf8(suffix).map_err(|_| damaged_entry_error())?;
    MessageId::parse(text).map_err(|_| damaged_entry_error())
}

/// The key that follows `key` directly.
pub(super) fn successor(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}

fn history(user: &UserId, conversation: &ConversationId, kind: u8, suffix: &[u8]) -> Vec<u8> {
    let (user, conversation) = (user.as_str(), conversation.as_str());
    let mut key = Vec::with_capacity(user.len() + conversation.len() + 3 + suffix.len());
    key.extend_from_slice(user.as_bytes());
    key.push(0);
    key.extend_from_slice(conversation.as_bytes());
    key.push(0);
    key.push(kind);
    key.extend_from_slice(suffix);
    key
}

/// Key of a turn in the history's table, by its sequence number in the conversation.
pub(super) fn turn(user: &UserId, conversation: &ConversationId, sequence: u64) -> Vec<u8> {
    history(user, conversation, b't', &sequence.to_be_bytes())
}

/// Range of all turns of a conversation.
pub(super) fn turns(user: &UserId, conversation: &ConversationId) -> (Vec<u8>, Vec<u8>) {
    (
        history(user, conversation, b't', b""),
        history(user, conversation, b'u', b""),
    )
}

/// Key of the index entry that has the sequence number of a message's turn.
pub(super) fn turn_index(
    user: &UserId,
    conversation: &ConversationId,
    message: &MessageId,
) -> Vec<u8> {
    history(user, conversation, b'i', message.as_str().as_bytes())
}

/// Range of all conversations of a user, beginning behind `after` where it is given.
pub(super) fn conversations(user: &UserId, after: Option<&ConversationId>) -> (Vec<u8>, Vec<u8>) {
    let name = user.as_str().as_bytes();
    let from = match after {
        // In the keys of a conversation, its name is followed by a zero byte.
        Some(after) => [name, b"\0", after.as_str().as_bytes(), b"\x01"].concat(),
        None => [name, b"\0"].concat(),
    };
    (from, [name, b"\x01"].concat())
}

/// The conversation in a key of the history's table.
pub(super) fn parse_conversation(key: &[u8]) -> Option<ConversationId> {
    let name = key.splitn(3, |byte| *byte == 0).nth(1)?;
    ConversationId::parse(std::str::from_utf8(name).ok()?).ok()
}

/// User, conversation and sequence number in a turn's key; `None` for an index entry.
pub(super) fn parse_turn(key: &[u8]) -> Option<(UserId, ConversationId, u64)> {
    let mut parts = key.splitn(3, |byte| *byte == 0);
    let user = UserId::parse(std::str::from_utf8(parts.next()?).ok()?).ok()?;
    let conversation = ConversationId::parse(std::str::from_utf8(parts.next()?).ok()?).ok()?;
    let (kind, suffix) = parts.next()?.split_first()?;
    (*kind == b't')
        .then(|| parse_number(suffix))?
        .map(|sequence| (user, conversation, sequence))
}
