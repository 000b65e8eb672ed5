//! Where everything of a user is in the store.
//!
//! Every key begins with the user and a zero byte, which no identifier holds. What is loaded when
//! a user is first seen (the mailbox's head, pending messages, cancel marks) is one range.

use crate::protocol::ids::{ConversationId, MessageId, UserId};

/// Which entry of a user a key of [`crate::store::Table::Users`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    /// The mailbox's bounds and end.
    Head = b'a',
    /// A pending message, by the order in which they came.
    Pending = b'b',
    /// A cancel mark, by message.
    Mark = b'c',
    /// A mailbox frame, by offset.
    Frame = b'm',
    /// An outcome, by message.
    Outcome = b'o',
    /// From when on another message is free.
    Rate = b'r',
    /// The stored token.
    Token = b't',
    /// What the model cost today.
    Cost = b'u',
    /// When the tokens were revoked.
    Revoked = b'v',
}

const TAGS: [Tag; 9] = [
    Tag::Head,
    Tag::Pending,
    Tag::Mark,
    Tag::Frame,
    Tag::Outcome,
    Tag::Rate,
    Tag::Token,
    Tag::Cost,
    Tag::Revoked,
];

/// The version of these layouts; sorts before every user.
pub(super) const VERSION: &[u8] = b"\0version";

/// The first key that can be a user's.
pub(super) const USERS_FROM: &[u8] = b"\x02";

/// Above every user.
pub(super) const USERS_TO: &[u8] = b"\x7f";

/// The marker of a partition of `responses`.
pub(super) fn marker(epoch: &str) -> Vec<u8> {
    [b"\x01marker.", epoch.as_bytes()].concat()
}

/// A key of the users' table.
pub(super) fn user(user: &UserId, tag: Tag, rest: &[u8]) -> Vec<u8> {
    let name = user.as_str().as_bytes();
    let mut key = Vec::with_capacity(name.len() + 2 + rest.len());
    key.extend_from_slice(name);
    key.push(0);
    key.push(tag as u8);
    key.extend_from_slice(rest);
    key
}

/// From the first key of a tag to the first one above it.
pub(super) fn range(user_id: &UserId, first: Tag, last: Tag) -> (Vec<u8>, Vec<u8>) {
    let from = user(user_id, first, b"");
    let mut to = user(user_id, last, b"");
    if let Some(tag) = to.last_mut() {
        *tag += 1;
    }
    (from, to)
}

/// An outcome's key.
pub(super) fn outcome(user_id: &UserId, message: &MessageId) -> Vec<u8> {
    user(user_id, Tag::Outcome, message.as_str().as_bytes())
}

/// A cancel mark's key.
pub(super) fn mark(user_id: &UserId, message: &MessageId) -> Vec<u8> {
    user(user_id, Tag::Mark, message.as_str().as_bytes())
}

/// A pending message's key.
pub(super) fn pending(user_id: &UserId, sequence: u64) -> Vec<u8> {
    user(user_id, Tag::Pending, &sequence.to_be_bytes())
}

/// A mailbox frame's key. Offsets are never negative.
pub(super) fn frame(user_id: &UserId, offset: i64) -> Vec<u8> {
    user(user_id, Tag::Frame, &(offset as u64).to_be_bytes())
}

/// User, tag and the rest of a key of the users' table.
pub(super) fn parse(key: &[u8]) -> Option<(UserId, Tag, &[u8])> {
    let end = key.iter().position(|byte| *byte == 0)?;
    let user = UserId::parse(std::str::from_utf8(&key[..end]).ok()?).ok()?;
    let (tag, rest) = key[end + 1..].split_first()?;
    let tag = TAGS.into_iter().find(|known| *known as u8 == *tag)?;
    Some((user, tag, rest))
}

/// The number in a key's rest.
pub(super) fn number(rest: &[u8]) -> Option<u64> {
    rest.try_into().ok().map(u64::from_be_bytes)
}

fn conversation(user: &UserId, conversation: &ConversationId, kind: u8, rest: &[u8]) -> Vec<u8> {
    let (user, conversation) = (user.as_str(), conversation.as_str());
    let mut key = Vec::with_capacity(user.len() + conversation.len() + 3 + rest.len());
    key.extend_from_slice(user.as_bytes());
    key.push(0);
    key.extend_from_slice(conversation.as_bytes());
    key.push(0);
    key.push(kind);
    key.extend_from_slice(rest);
    key
}

/// A turn of the history's table, by the order in which they came.
pub(super) fn turn(user: &UserId, of: &ConversationId, sequence: u64) -> Vec<u8> {
    conversation(user, of, b't', &sequence.to_be_bytes())
}

/// All turns of a conversation.
pub(super) fn turns(user: &UserId, of: &ConversationId) -> (Vec<u8>, Vec<u8>) {
    (
        conversation(user, of, b't', b""),
        conversation(user, of, b'u', b""),
    )
}

/// All conversations of a user, beginning after this one where there is one.
pub(super) fn conversations(user: &UserId, after: Option<&ConversationId>) -> (Vec<u8>, Vec<u8>) {
    let name = user.as_str().as_bytes();
    let from = match after {
        // A conversation's keys go on with a zero byte.
        Some(after) => [name, b"\0", after.as_str().as_bytes(), b"\x01"].concat(),
        None => [name, b"\0"].concat(),
    };
    (from, [name, b"\x01"].concat())
}

/// The conversation of a key of the history's table.
pub(super) fn conversation_of(key: &[u8]) -> Option<ConversationId> {
    let name = key.splitn(3, |byte| *byte == 0).nth(1)?;
    ConversationId::parse(std::str::from_utf8(name).ok()?).ok()
}

/// Where a message's turn is: the index of the history's table.
pub(super) fn turn_of(user: &UserId, of: &ConversationId, message: &MessageId) -> Vec<u8> {
    conversation(user, of, b'i', message.as_str().as_bytes())
}

/// User, conversation and sequence of a turn's key; `None` for the index.
pub(super) fn parse_turn(key: &[u8]) -> Option<(UserId, ConversationId, u64)> {
    let mut parts = key.splitn(3, |byte| *byte == 0);
    let user = UserId::parse(std::str::from_utf8(parts.next()?).ok()?).ok()?;
    let of = ConversationId::parse(std::str::from_utf8(parts.next()?).ok()?).ok()?;
    let (kind, rest) = parts.next()?.split_first()?;
    (*kind == b't')
        .then(|| number(rest))?
        .map(|n| (user, of, n))
}
