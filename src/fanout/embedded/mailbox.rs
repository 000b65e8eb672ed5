//! A user's terminal frames by position, within their bounds.

use std::collections::VecDeque;
use std::time::Duration;

use super::codec::{Reader, Writer, damaged};
use super::forget::Which;
use super::keys::{self, Tag};
use super::user::{UserState, expired};
use super::users::World;
use crate::fanout::Result;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::position::{Epoch, Position};
use crate::store::{Batch, Table};

/// What is known of one kept frame without reading it.
#[derive(Debug, Clone, Copy)]
struct Kept {
    offset: i64,
    at_ms: i64,
    bytes: usize,
}

/// Other epochs whose end is remembered.
const OTHER_EPOCHS: usize = 16;

/// Above every offset.
const NONE_IS_GOOD: i64 = i64::MAX;

/// A mailbox without its frames.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// When it was last of use, to within a sixteenth of its time to live.
    pub(super) used_ms: i64,
    /// With this id it was made empty by a `read`, and nothing has been trimmed since: its first
    /// position is still good.
    empty_id: Option<String>,
    /// Position of the last frame apart from the bounds; `None` before the first.
    pub(super) last: Option<Position>,
    /// Every frame after this offset is here (in the epoch of `last`).
    floor: i64,
    /// Frames that are here.
    count: usize,
    /// Their bytes.
    bytes: usize,
    /// When the oldest of them came.
    oldest_ms: i64,
    /// The frames, oldest first, once somebody needed to know: it is known from the beginning of
    /// a new mailbox, and otherwise from the first trimming.
    frames: Option<VecDeque<Kept>>,
    /// Where it ended in other epochs, the latest first: partitions were added and its user moved,
    /// and a relay that takes the old partition goes back in it.
    was: Vec<Position>,
    /// No position below this offset is good. Two partitions are brought back at once after a
    /// loss, in any order: until something new comes, a position in one says nothing about the
    /// other.
    good_from: i64,
    /// The last frame that a rewind has put here.
    pub(super) rebuilt: Option<i64>,
}

/// A frame as it is stored.
pub(super) struct StoredFrame<'a> {
    pub(super) at_ms: i64,
    pub(super) message: MessageId,
    pub(super) conversation: Option<ConversationId>,
    pub(super) json: &'a str,
}

impl<'a> StoredFrame<'a> {
    fn encode(&self) -> Vec<u8> {
        Writer::with_capacity(self.json.len() + 128)
            .number(self.at_ms)
            .text(self.message.as_str())
            .optional(self.conversation.as_ref().map(ConversationId::as_str))
            .rest(self.json)
    }

    pub(super) fn decode(value: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(value);
        Ok(Self {
            at_ms: reader.number()?,
            message: MessageId::parse(reader.text()?).map_err(|_| damaged())?,
            conversation: reader.conversation()?,
            json: reader.rest()?,
        })
    }
}

impl Mailbox {
    pub(super) fn empty(id: Option<String>, now_ms: i64) -> Self {
        Self {
            used_ms: now_ms,
            empty_id: id,
            last: None,
            floor: 0,
            count: 0,
            bytes: 0,
            oldest_ms: 0,
            frames: Some(VecDeque::new()),
            was: Vec::new(),
            good_from: 0,
            rebuilt: None,
        }
    }

    /// Position of the last frame that a rewind has put here.
    pub(super) fn rebuilt(&self) -> Option<Position> {
        let last = self.last.as_ref()?;
        Some(Position {
            epoch: last.epoch.clone(),
            offset: self.rebuilt?,
        })
    }

    /// What comes after this one for a user who has moved to another epoch.
    pub(super) fn moved(&mut self, to: &Epoch, rewind: bool, now_ms: i64) -> Self {
        let mut was = std::mem::take(&mut self.was);
        was.retain(|position| position.epoch != *to);
        if let Some(last) = self.last.take() {
            was.retain(|position| position.epoch != last.epoch);
            was.insert(0, last);
        }
        was.truncate(OTHER_EPOCHS);
        Self {
            was,
            good_from: if rewind { NONE_IS_GOOD } else { 0 },
            ..Self::empty(None, now_ms)
        }
    }

    /// A frame comes that is delivered for the first time: from here on positions are good.
    pub(super) fn comes_new(&mut self, offset: i64) {
        if self.good_from == NONE_IS_GOOD {
            self.good_from = offset;
        }
    }

    /// Where it ended in this epoch.
    pub(super) fn end_in(&self, epoch: &Epoch) -> Option<i64> {
        let last = self.last.iter().chain(&self.was);
        let mut last = last.filter(|last| last.epoch == *epoch);
        last.next().map(|last| last.offset)
    }

    /// What is known of rewinds and of other epochs, as text: mostly nothing.
    fn others(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.rebuilt.map(|offset| format!("r{offset}")));
        if !self.was.is_empty() {
            words.push(self.good_from.to_string());
            words.extend(self.was.iter().map(ToString::to_string));
        }
        words.join(" ")
    }

    fn encode(&self) -> Vec<u8> {
        let last = self.last.as_ref().map(ToString::to_string);
        Writer::with_capacity(256)
            .number(self.used_ms)
            .optional(self.empty_id.as_deref())
            .optional(last.as_deref())
            .number(self.floor)
            .number(self.count as i64)
            .number(self.bytes as i64)
            .number(self.oldest_ms)
            .rest(&self.others())
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(value);
        let used_ms = reader.number()?;
        let empty_id = reader.optional()?.map(str::to_owned);
        let last = match reader.optional()? {
            Some(position) => Some(position.parse().map_err(|_| damaged())?),
            None => None,
        };
        let mut mailbox = Self {
            used_ms,
            last,
            floor: reader.number()?,
            count: usize::try_from(reader.number()?).map_err(|_| damaged())?,
            bytes: usize::try_from(reader.number()?).map_err(|_| damaged())?,
            oldest_ms: reader.number()?,
            frames: None,
            ..Self::empty(empty_id, used_ms)
        };
        let mut others = reader.rest()?.split_terminator(' ').peekable();
        if let Some(offset) = others.next_if(|word| word.starts_with('r')) {
            mailbox.rebuilt = Some(offset[1..].parse().map_err(|_| damaged())?);
        }
        if let Some(good_from) = others.next() {
            mailbox.good_from = good_from.parse().map_err(|_| damaged())?;
        }
        for position in others {
            let position = position.parse().map_err(|_| damaged())?;
            mailbox.was.push(position);
        }
        Ok(mailbox)
    }

    /// Of no use for twice its frames' time to live: its end has to outlive them.
    fn is_unused(&self, ttl: Duration, now_ms: i64) -> bool {
        expired(self.used_ms, ttl.saturating_mul(2), now_ms)
    }

    /// Whether it, or its oldest frame, is too old.
    pub(super) fn is_due(&self, ttl: Duration, now_ms: i64) -> bool {
        self.is_unused(ttl, now_ms) || self.count > 0 && expired(self.oldest_ms, ttl, now_ms)
    }

    pub(super) fn put(&self, batch: &mut Batch, user: &UserId) {
        let key = keys::user(user, Tag::Head, b"");
        batch.put(Table::Users, key, self.encode());
    }

    pub(super) fn end(&self) -> Position {
        self.last.clone().unwrap_or_else(|| Position {
            epoch: Epoch::of_empty_mailbox(self.empty_id.as_deref().unwrap_or_default()),
            offset: 0,
        })
    }

    /// The lowest offset after which frames are to be read, if every frame after `after` is here.
    pub(super) fn covers(&self, after: &Position) -> Option<i64> {
        if let Some(id) = after.epoch.empty_mailbox() {
            let same = self.empty_id.as_deref() == Some(id) && after.offset == 0;
            // Nothing was trimmed: everything that is here comes after it.
            return same.then_some(-1);
        }
        let last = self.last.as_ref()?;
        let good = self.floor.max(self.good_from);
        (last.epoch == after.epoch && (good..=last.offset).contains(&after.offset))
            .then_some(after.offset)
    }

    /// The kept frames, read from the store where that was not done yet.
    fn frames(&mut self, user: &UserId, world: &World<'_>) -> Result<&mut VecDeque<Kept>> {
        let frames = if let Some(frames) = self.frames.take() {
            frames
        } else {
            let from = keys::frame(user, self.floor);
            let (_, to) = keys::range(user, Tag::Frame, Tag::Frame);
            world
                .store
                .scan(Table::Users, &from, &to, self.count, false)?
                .iter()
                .map(|(key, value)| {
                    let (.., rest) = keys::parse(key).ok_or_else(damaged)?;
                    let frame = StoredFrame::decode(value)?;
                    Ok(Kept {
                        offset: keys::number(rest).ok_or_else(damaged)? as i64,
                        at_ms: frame.at_ms,
                        bytes: frame.json.len(),
                    })
                })
                .collect::<Result<_>>()?
        };
        Ok(self.frames.insert(frames))
    }

    /// Removes the oldest frames until one of `bytes` more fits (`None`: until what is here is
    /// within the bounds). True where any was removed.
    pub(super) fn make_room(
        &mut self,
        batch: &mut Batch,
        user: &UserId,
        bytes: Option<usize>,
        world: &World<'_>,
    ) -> Result<bool> {
        let bounds = world.bounds;
        let more = usize::from(bytes.is_some());
        let mut removed = false;
        while self.count > 0
            && (self.count + more > bounds.mailbox_frames
                || self.bytes + bytes.unwrap_or(0) > bounds.mailbox_bytes
                || expired(self.oldest_ms, bounds.mailbox_ttl, world.now_ms))
        {
            let frames = self.frames(user, world)?;
            let out = frames.pop_front().ok_or_else(damaged)?;
            let next = frames.front().copied();
            batch.delete(Table::Users, keys::frame(user, out.offset));
            self.count -= 1;
            self.bytes = self.bytes.saturating_sub(out.bytes);
            self.floor = out.offset;
            self.oldest_ms = next.map_or(0, |next| next.at_ms);
            self.empty_id = None;
            removed = true;
        }
        Ok(removed)
    }

    /// Moves the end to a position above everything that is here.
    pub(super) fn pass(&mut self, position: &Position, world: &World<'_>) {
        if self.last.is_none() {
            self.floor = position.offset;
        }
        self.last = Some(position.clone());
        self.used_ms = world.now_ms;
    }

    /// Puts a frame at the end, above everything that is here.
    pub(super) fn push(
        &mut self,
        batch: &mut Batch,
        user: &UserId,
        position: &Position,
        frame: &StoredFrame<'_>,
        world: &World<'_>,
    ) -> Result<()> {
        let bytes = frame.json.len();
        self.make_room(batch, user, Some(bytes), world)?;
        self.pass(position, world);
        if world.bounds.mailbox_frames == 0 || bytes > world.bounds.mailbox_bytes {
            // Too large ever to fit: as if it had been trimmed at once.
            self.floor = position.offset;
            self.empty_id = None;
            return Ok(());
        }
        if self.count == 0 {
            self.oldest_ms = world.now_ms;
        }
        self.count += 1;
        self.bytes += bytes;
        if let Some(frames) = &mut self.frames {
            frames.push_back(Kept {
                offset: position.offset,
                at_ms: world.now_ms,
                bytes,
            });
        }
        let key = keys::frame(user, position.offset);
        batch.put(Table::Users, key, frame.encode());
        Ok(())
    }

    /// Removes the frames of these conversations, and says whose they were and where. No floor is
    /// raised: it is as if they had never been.
    pub(super) fn forget(
        &mut self,
        batch: &mut Batch,
        user: &UserId,
        which: &Which<'_>,
        world: &World<'_>,
    ) -> Result<Vec<(MessageId, Position)>> {
        let mut gone = Vec::new();
        let mut stay = VecDeque::new();
        for kept in std::mem::take(self.frames(user, world)?) {
            let key = keys::frame(user, kept.offset);
            let value = world.store.get(Table::Users, &key)?.ok_or_else(damaged)?;
            let frame = StoredFrame::decode(&value)?;
            if !which.has(frame.conversation.as_ref()) {
                stay.push_back(kept);
                continue;
            }
            batch.delete(Table::Users, key);
            self.count -= 1;
            self.bytes = self.bytes.saturating_sub(kept.bytes);
            let position = Position {
                epoch: self.end().epoch,
                offset: kept.offset,
            };
            gone.push((frame.message, position));
        }
        self.oldest_ms = stay.front().map_or(0, |oldest| oldest.at_ms);
        self.frames = Some(stay);
        if !gone.is_empty() {
            self.put(batch, user);
        }
        Ok(gone)
    }
}

impl UserState {
    /// Removes the mailbox. A commit of its own, for no key may stand in one batch twice.
    pub(super) fn drop_mailbox(&mut self, world: &World<'_>) -> Result<()> {
        if let Some(mut mailbox) = self.mailbox.take() {
            let mut batch = Batch::default();
            for frame in mailbox.frames(&self.user, world)?.iter() {
                batch.delete(Table::Users, keys::frame(&self.user, frame.offset));
            }
            batch.delete(Table::Users, keys::user(&self.user, Tag::Head, b""));
            world.store.commit(batch)?;
        }
        Ok(())
    }

    /// Removes the mailbox where it has been of no use for long.
    pub(super) fn drop_unused_mailbox(&mut self, world: &World<'_>) -> Result<()> {
        let ttl = world.bounds.mailbox_ttl;
        match &self.mailbox {
            Some(mailbox) if mailbox.is_unused(ttl, world.now_ms) => self.drop_mailbox(world),
            _ => Ok(()),
        }
    }

    /// Removes what is too old from the mailbox, or the mailbox.
    pub(super) fn expire_mailbox(&mut self, world: &World<'_>) -> Result<()> {
        self.drop_unused_mailbox(world)?;
        let mut batch = Batch::default();
        if let Some(mailbox) = &mut self.mailbox
            && mailbox.make_room(&mut batch, &self.user, None, world)?
        {
            mailbox.put(&mut batch, &self.user);
        }
        if !batch.is_empty() {
            world.store.commit(batch)?;
        }
        Ok(())
    }
}
