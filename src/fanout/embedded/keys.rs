//! Layout of the store's keys, used by all calls: functions that build a key or a range of keys,
//! and functions that parse a key.
//!
//! Every key of a user begins with the user and a zero byte, which no identifier contains. The
//! entries that are loaded at a user's first call (the mailbox's head, pending messages, cancel
//! marks) form one contiguous range.

use super::codec::damaged_entry_error;
use crate::fanout::FanoutError;
use crate::protocol::ids::{ConversationId, MessageId, UserId};

/// Kind of an entry in [`crate::store::Table::Users`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    /// The mailbox's head: everything about the mailbox but its frames.
    MailboxHead = b'a',
    /// A pending message. The suffix is its sequence number.
    Pending = b'b',
    /// A cancel mark. The suffix is the message id.
    CancelMark = b'c',
    /// A frame in the mailbox. The suffix is its offset.
    MailboxFrame = b'm',
    /// An outcome or tombstone. The suffix is the message id.
    Outcome = b'o',
    /// The state of the user's rate limit.
    RateLimit = b'r',
    /// The user's stored access token.
    Token = b't',
    /// The number of model tokens that the user has used today.
    TokensToday = b'u',
    /// When the user's access tokens were last revoked.
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

/// Key of the entry with the version of the store's layout. It sorts before the keys of all users.
pub(super) const LAYOUT_VERSION_KEY: &[u8] = b"\0version";

/// Lower bound, inclusive, of the keys of all users.
pub(super) const USERS_FROM: &[u8] = b"\x02";

/// Upper bound, exclusive, of the keys of all users.
pub(super) const USERS_TO: &[u8] = b"\x7f";

/// Key of the marker of a partition of `responses`.
pub(super) fn marker(epoch: &str) -> Vec<u8> {
    [b"\x01marker.", epoch.as_bytes()].concat()
}

/// Key of a user's entry in [`crate::store::Table::Users`].
pub(super) fn user_entry(user: &UserId, tag: Tag, suffix: &[u8]) -> Vec<u8> {
    let name = user.as_str().as_bytes();
    let mut key = Vec::with_capacity(name.len() + 2 + suffix.len());
    key.extend_from_slice(name);
    key.push(0);
    key.push(tag as u8);
    key.extend_from_slice(suffix);
    key
}

/// Range of all keys of a user from tag `first` to tag `last`, both included. The range's upper
/// bound is exclusive.
pub(super) fn tag_range(user_id: &UserId, first: Tag, last: Tag) -> (Vec<u8>, Vec<u8>) {
    let from = user_entry(user_id, first, b"");
    let mut to = user_entry(user_id, last, b"");
    if let Some(tag) = to.last_mut() {
        *tag += 1;
    }
    (from, to)
}

/// Key of an outcome or tombstone.
pub(super) fn outcome(user_id: &UserId, message: &MessageId) -> Vec<u8> {
    user_entry(user_id, Tag::Outcome, message.as_str().as_bytes())
}

/// Key of a cancel mark.
pub(super) fn cancel_mark(user_id: &UserId, message: &MessageId) -> Vec<u8> {
    user_entry(user_id, Tag::CancelMark, message.as_str().as_bytes())
}

/// Key of a pending message.
pub(super) fn pending(user_id: &UserId, sequence: u64) -> Vec<u8> {
    user_entry(user_id, Tag::Pending, &sequence.to_be_bytes())
}

/// Key of a mailbox frame. Offsets are never negative.
pub(super) fn frame(user_id: &UserId, offset: i64) -> Vec<u8> {
    user_entry(user_id, Tag::MailboxFrame, &(offset as u64).to_be_bytes())
}

/// Splits a key of [`crate::store::Table::Users`] into user, tag and suffix. Returns `None` if it
/// is not the key of a user's entry.
pub(super) fn parse(key: &[u8]) -> Option<(UserId, Tag, &[u8])> {
    let end = key.iter().position(|byte| *byte == 0)?;
    let user = UserId::parse(std::str::from_utf8(&key[..end]).ok()?).ok()?;
    let (tag, suffix) = key[end + 1..].split_first()?;
    let tag = TAGS
        .into_iter()
        .find(|candidate| *candidate as u8 == *tag)?;
    Some((user, tag, suffix))
}

/// Decodes a suffix, or the value of an index entry, as a number. Returns `None` if it does not
/// have eight bytes.
pub(super) fn parse_number(suffix: &[u8]) -> Option<u64> {
    suffix.try_into().ok().map(u64::from_be_bytes)
}

/// Decodes a suffix as a message id.
pub(super) fn parse_message(suffix: &[u8]) -> Result<MessageId, FanoutError> {
    let text = std::str::from_utf8(suffix).map_err(|_| damaged_entry_error())?;
    MessageId::parse(text).map_err(|_| damaged_entry_error())
}

/// The smallest key that sorts after `key`.
pub(super) fn successor(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}

/// Key in [`crate::store::Table::History`].
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

/// Key of a turn. `sequence` is the turn's sequence number in the conversation.
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

/// Key of the index entry whose value is the sequence number of a message's turn.
pub(super) fn turn_index(
    user: &UserId,
    conversation: &ConversationId,
    message: &MessageId,
) -> Vec<u8> {
    history(user, conversation, b'i', message.as_str().as_bytes())
}

/// Range of the keys of all conversations of a user, or of the conversations that sort after the
/// name `after`.
pub(super) fn conversations(user: &UserId, after: Option<&ConversationId>) -> (Vec<u8>, Vec<u8>) {
    let name = user.as_str().as_bytes();
    let from = match after {
        // In the keys of a conversation, a zero byte follows the name. With the byte 1 instead, the
        // range begins after all keys of the conversation.
        Some(after) => [name, b"\0", after.as_str().as_bytes(), b"\x01"].concat(),
        None => [name, b"\0"].concat(),
    };
    (from, [name, b"\x01"].concat())
}

/// Returns the conversation in a key of [`crate::store::Table::History`]; `None` if the key has
/// none.
pub(super) fn parse_conversation(key: &[u8]) -> Option<ConversationId> {
    let name = key.splitn(3, |byte| *byte == 0).nth(1)?;
    ConversationId::parse(std::str::from_utf8(name).ok()?).ok()
}

/// Returns user, conversation and sequence number in a turn's key; `None` for the key of an index
/// entry.
pub(super) fn parse_turn(key: &[u8]) -> Option<(UserId, ConversationId, u64)> {
    let mut parts = key.splitn(3, |byte| *byte == 0);
    let user = UserId::parse(std::str::from_utf8(parts.next()?).ok()?).ok()?;
    let conversation = ConversationId::parse(std::str::from_utf8(parts.next()?).ok()?).ok()?;
    let (kind, suffix) = parts.next()?.split_first()?;
    (*kind == b't')
        .then(|| parse_number(suffix))?
        .map(|sequence| (user, conversation, sequence))
}
