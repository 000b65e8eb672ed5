//! One consistent look at a user.

use super::codec::{Reader, damaged};
use super::keys::{self, Tag};
use super::mailbox::{Mailbox, StoredFrame};
use super::user::{UserState, expired, millis};
use super::users::World;
use crate::fanout::{ReadRequest, Result, UserView};
use crate::protocol::ids::{ClientMessageId, ConversationId, MessageId, UserId};
use crate::protocol::open_message::{InFlightAnswer, PendingMessage};
use crate::protocol::position::{Epoch, Position};
use crate::store::{Batch, Table};

/// Frames that are read from the store at once.
const PAGE: usize = 16;

impl UserState {
    pub(super) fn read(&mut self, call: &ReadRequest, world: &World<'_>) -> Result<UserView> {
        self.drop_unused_mailbox(world)?;
        let mut batch = Batch::default();
        let made = self.mailbox.is_none();
        let mailbox = self
            .mailbox
            .get_or_insert_with(|| Mailbox::empty(Some(world.random_id()), world.now_ms));
        let trimmed = mailbox.make_room(&mut batch, &self.user, None, world)?;
        // Written seldom: a look that is repeated every few seconds must not cost a write.
        let used_long_ago = world.now_ms - mailbox.used_ms >= millis(world.bounds.mailbox_ttl) / 16;
        if made || trimmed || used_long_ago {
            mailbox.used_ms = world.now_ms;
            mailbox.put(&mut batch, &self.user);
        }
        if !batch.is_empty() {
            world.store.commit(batch)?;
        }

        let end = mailbox.end();
        let rebuilt = mailbox.rebuilt();
        let from = call.after.as_ref().and_then(|after| mailbox.covers(after));
        // Before every offset.
        let oldest = (call.from_start && call.after.is_none()).then_some(-1);
        let (frames, more) = match (from.or(oldest), &mailbox.last) {
            (Some(from), Some(last)) => {
                frames_after(&self.user, from, &last.epoch, call.max_bytes, world)?
            }
            _ => (Vec::new(), false),
        };
        let (n, n_id) = self.n();
        Ok(UserView {
            n,
            n_id: n_id.to_owned(),
            end,
            recovered: from.is_some(),
            frames,
            has_more: more,
            rebuilt_up_to: rebuilt,
            in_flight: self.in_flight(world),
            pending: self.pending(world)?,
        })
    }

    fn in_flight(&self, world: &World<'_>) -> Vec<InFlightAnswer> {
        let ttl = world.bounds.pending_ttl;
        let mut flights: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, flight)| !expired(flight.touched_ms, ttl, world.now_ms))
            .map(|(message_id, flight)| InFlightAnswer {
                message_id: message_id.clone(),
                id: flight.id.clone(),
                conversation: flight.conversation.clone(),
                attempt: flight.attempt,
                index: flight.index,
                text: flight.text.clone(),
            })
            .collect();
        flights.sort_by(|one, other| one.message_id.cmp(&other.message_id));
        flights
    }

    pub(super) fn pending(&self, world: &World<'_>) -> Result<Vec<PendingMessage>> {
        let mut entries: Vec<_> = self
            .pending
            .values()
            .filter(|one| !expired(one.at_ms, world.bounds.pending_ttl, world.now_ms))
            .collect();
        entries.sort_by_key(|entry| entry.sequence);
        // Looked up one by one: the range they are in is full of removed ones.
        let mut pending = Vec::with_capacity(entries.len());
        for entry in entries {
            let key = keys::pending(&self.user, entry.sequence);
            if let Some(value) = world.store.get(Table::Users, &key)? {
                pending.push(decode_pending(&value)?);
            }
        }
        Ok(pending)
    }
}

/// A pending message's value, as `UserState::put_pending` writes it.
fn decode_pending(value: &[u8]) -> Result<PendingMessage> {
    let mut reader = Reader::new(value);
    reader.number()?;
    let message_id = MessageId::parse(reader.text()?).map_err(|_| damaged())?;
    let id = match reader.optional()? {
        Some(id) => Some(ClientMessageId::parse(id).map_err(|_| damaged())?),
        None => None,
    };
    Ok(PendingMessage {
        message_id,
        id,
        conversation: ConversationId::parse(reader.text()?).map_err(|_| damaged())?,
        content: reader.rest()?.to_owned(),
    })
}

/// The frames after an offset, as many as `max_bytes` allow but at least one, and whether there
/// are more.
fn frames_after(
    user: &UserId,
    after: i64,
    epoch: &Epoch,
    max_bytes: usize,
    world: &World<'_>,
) -> Result<(Vec<(Position, String)>, bool)> {
    let mut frames = Vec::new();
    let mut bytes = 0;
    let mut from = keys::frame(user, after + 1);
    let (_, to) = keys::range(user, Tag::Frame, Tag::Frame);
    loop {
        let page = world.store.scan(Table::Users, &from, &to, PAGE, false)?;
        for (key, value) in &page {
            let (.., rest) = keys::parse(key).ok_or_else(damaged)?;
            let offset = keys::number(rest).ok_or_else(damaged)? as i64;
            let frame = StoredFrame::decode(value)?.json;
            if !frames.is_empty() && bytes + frame.len() > max_bytes {
                return Ok((frames, true));
            }
            bytes += frame.len();
            let epoch = epoch.clone();
            frames.push((Position { epoch, offset }, frame.to_owned()));
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => {
                from.clone_from(key);
                from.push(0);
            }
            _ => return Ok((frames, false)),
        }
    }
}
