//! The mailbox of a user: stores the terminal frames by position, and removes the oldest frames
//! when their number, size or age exceeds the limits. `deliver`, `read`, `forget` and the sweep use
//! it.

use std::collections::VecDeque;
use std::time::Duration;

use super::UserState;
use super::forget::ForgetScope;
use crate::fanout::Result;
use crate::fanout::embedded::codec::{Reader, Writer, damaged_entry_error};
use crate::fanout::embedded::context::{StoreContext, is_expired, millis};
use crate::fanout::embedded::keys::{self, Tag};
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::position::{Epoch, Position};
use crate::store::{Batch, Table};

/// Maximum number of other epochs of which the mailbox's end is stored.
const MAX_OTHER_EPOCHS: usize = 16;

/// Value of [`Mailbox::first_valid_offset`] while no position is valid. It is above every offset.
const NO_VALID_POSITION: i64 = i64::MAX;

/// Offset, time and size of a stored frame. They are in memory, so that trimming does not have to
/// read the frame.
#[derive(Debug, Clone, Copy)]
struct FrameInfo {
    offset: i64,
    /// When the frame was stored, in milliseconds since the Unix epoch.
    at_ms: i64,
    /// Size of the frame's JSON in bytes.
    bytes: usize,
}

/// The part of a mailbox that is in memory: everything but the content of its frames.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// When the mailbox was last used. A later use may be missing, if it was within a sixteenth of
    /// `mailbox_ttl`.
    last_used_ms: i64,
    /// The random id with which a `read` created the mailbox. `None` if a `deliver` created it, or
    /// once a frame was trimmed, because the position of the empty mailbox is no longer valid then.
    empty_id: Option<String>,
    /// Position of the last record that reached the mailbox, even if its frame was trimmed,
    /// forgotten or not stored; `None` before the first record. This is the mailbox's end.
    pub(super) last_position: Option<Position>,
    /// Offset after which no frame was trimmed, in the epoch of `last_position`.
    floor: i64,
    /// Number of stored frames.
    frame_count: usize,
    /// Size of all stored frames in bytes.
    frame_bytes: usize,
    /// When the oldest stored frame was stored; 0 if there is none.
    oldest_frame_ms: i64,
    /// Offset, time and size of each stored frame, oldest first. `None` in a mailbox that was
    /// loaded from the store, until [`Mailbox::frame_infos`] reads them.
    frame_infos: Option<VecDeque<FrameInfo>>,
    /// Ends of the mailbox in other epochs, the latest first. They are needed because a user moves
    /// to another partition when partitions are added, and a relay that takes over the old
    /// partition rewinds it.
    other_ends: Vec<Position>,
    /// Offset below which no position is valid. After a data loss, the rewinds of two partitions
    /// can move the mailbox between their epochs in any order. No position in it is valid until the
    /// first delivery that is not part of a rewind.
    first_valid_offset: i64,
    /// Offset of the last frame that a rewind appended; `None` if no rewind appended a frame.
    pub(super) rebuilt_up_to: Option<i64>,
}

/// A frame in its stored form.
pub(super) struct StoredFrame<'a> {
    /// When the frame was stored, in milliseconds since the Unix epoch.
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
            .optional_text(self.conversation.as_ref().map(ConversationId::as_str))
            .finish_with(self.json)
    }

    pub(super) fn decode(value: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(value);
        Ok(Self {
            at_ms: reader.number()?,
            message: MessageId::parse(reader.text()?).map_err(|_| damaged_entry_error())?,
            conversation: reader.conversation()?,
            json: reader.remainder()?,
        })
    }
}

impl Mailbox {
    /// A mailbox without frames. `id` is the random id if a `read` creates the mailbox.
    pub(super) fn empty(id: Option<String>, now_ms: i64) -> Self {
        Self {
            last_used_ms: now_ms,
            empty_id: id,
            last_position: None,
            floor: 0,
            frame_count: 0,
            frame_bytes: 0,
            oldest_frame_ms: 0,
            frame_infos: Some(VecDeque::new()),
            other_ends: Vec::new(),
            first_valid_offset: 0,
            rebuilt_up_to: None,
        }
    }

    /// Position of the last frame that a rewind appended; `None` if no rewind appended a frame.
    pub(super) fn rebuilt_position(&self) -> Option<Position> {
        let last = self.last_position.as_ref()?;
        Some(Position {
            epoch: last.epoch.clone(),
            offset: self.rebuilt_up_to?,
        })
    }

    /// The empty mailbox that replaces this mailbox when the user moves to another epoch.
    pub(super) fn successor_in(&mut self, epoch: &Epoch, is_rewind: bool, now_ms: i64) -> Self {
        let mut other_ends = std::mem::take(&mut self.other_ends);
        other_ends.retain(|position| position.epoch != *epoch);
        if let Some(last) = self.last_position.take() {
            other_ends.retain(|position| position.epoch != last.epoch);
            other_ends.insert(0, last);
        }
        other_ends.truncate(MAX_OTHER_EPOCHS);
        Self {
            other_ends,
            first_valid_offset: if is_rewind { NO_VALID_POSITION } else { 0 },
            ..Self::empty(None, now_ms)
        }
    }

    /// Makes positions from `offset` on valid, if no position was valid. Called for the first
    /// delivery that is not part of a rewind.
    pub(super) fn validate_positions_from(&mut self, offset: i64) {
        if self.first_valid_offset == NO_VALID_POSITION {
            self.first_valid_offset = offset;
        }
    }

    /// The offset at which the mailbox ends in an epoch; `None` if no end in this epoch is stored.
    pub(super) fn end_in(&self, epoch: &Epoch) -> Option<i64> {
        let mut ends = self.last_position.iter().chain(&self.other_ends);
        ends.find(|end| end.epoch == *epoch).map(|end| end.offset)
    }

    /// Encodes `rebuilt_up_to`, `first_valid_offset` and `other_ends`. Most mailboxes have none of
    /// them, and the text is empty.
    fn encode_rebuild(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.rebuilt_up_to.map(|offset| format!("r{offset}")));
        if !self.other_ends.is_empty() {
            words.push(self.first_valid_offset.to_string());
            words.extend(self.other_ends.iter().map(ToString::to_string));
        }
        words.join(" ")
    }

    fn encode(&self) -> Vec<u8> {
        let last = self.last_position.as_ref().map(ToString::to_string);
        Writer::with_capacity(256)
            .number(self.last_used_ms)
            .optional_text(self.empty_id.as_deref())
            .optional_text(last.as_deref())
            .number(self.floor)
            .number(self.frame_count as i64)
            .number(self.frame_bytes as i64)
            .number(self.oldest_frame_ms)
            .finish_with(&self.encode_rebuild())
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(value);
        let last_used_ms = reader.number()?;
        let empty_id = reader.optional_text()?.map(str::to_owned);
        let last_position = match reader.optional_text()? {
            Some(position) => Some(position.parse().map_err(|_| damaged_entry_error())?),
            None => None,
        };
        let mut mailbox = Self {
            last_used_ms,
            last_position,
            floor: reader.number()?,
            frame_count: usize::try_from(reader.number()?).map_err(|_| damaged_entry_error())?,
            frame_bytes: usize::try_from(reader.number()?).map_err(|_| damaged_entry_error())?,
            oldest_frame_ms: reader.number()?,
            frame_infos: None,
            ..Self::empty(empty_id, last_used_ms)
        };
        let mut words = reader.remainder()?.split_terminator(' ').peekable();
        if let Some(offset) = words.next_if(|word| word.starts_with('r')) {
            mailbox.rebuilt_up_to = Some(offset[1..].parse().map_err(|_| damaged_entry_error())?);
        }
        if let Some(first_valid_offset) = words.next() {
            mailbox.first_valid_offset = first_valid_offset
                .parse()
                .map_err(|_| damaged_entry_error())?;
        }
        for position in words {
            let position = position.parse().map_err(|_| damaged_entry_error())?;
            mailbox.other_ends.push(position);
        }
        Ok(mailbox)
    }

    /// Whether the mailbox was unused for twice the time to live of a frame (`ttl`). It is stored
    /// that long because its end has to outlive its frames.
    fn is_unused(&self, ttl: Duration, now_ms: i64) -> bool {
        is_expired(self.last_used_ms, ttl.saturating_mul(2), now_ms)
    }

    /// Whether the mailbox was unused for too long, or its oldest frame has expired.
    pub(super) fn needs_expiry(&self, ttl: Duration, now_ms: i64) -> bool {
        self.is_unused(ttl, now_ms)
            || self.frame_count > 0 && is_expired(self.oldest_frame_ms, ttl, now_ms)
    }

    /// Writes everything about the mailbox but its frames.
    pub(super) fn put(&self, batch: &mut Batch, user: &UserId) {
        let key = keys::user_entry(user, Tag::MailboxHead, b"");
        batch.put(Table::Users, key, self.encode());
    }

    /// Whether this use of the mailbox has to be recorded. It is recorded once in each sixteenth of
    /// `mailbox_ttl`, because a `read` that is repeated every few seconds must not cost a write
    /// each time.
    pub(super) fn needs_touch(&self, context: &StoreContext<'_>) -> bool {
        let interval_ms = millis(context.bounds.mailbox_ttl) / 16;
        context.now_ms - self.last_used_ms >= interval_ms
    }

    /// Records in memory that the mailbox is used now.
    pub(super) fn touch(&mut self, now_ms: i64) {
        self.last_used_ms = now_ms;
    }

    /// Position of the mailbox's end. Before the first record, the position of the empty mailbox.
    pub(super) fn end(&self) -> Position {
        self.last_position.clone().unwrap_or_else(|| Position {
            epoch: Epoch::for_empty_mailbox(self.empty_id.as_deref().unwrap_or_default()),
            offset: 0,
        })
    }

    /// The offset after which to read the frames that follow the position `after`; `None` if the
    /// mailbox may lack some of these frames.
    pub(super) fn resume_offset(&self, after: &Position) -> Option<i64> {
        if let Some(id) = after.epoch.empty_mailbox_id() {
            let is_same = self.empty_id.as_deref() == Some(id) && after.offset == 0;
            // No frame was trimmed since the mailbox was created, so all frames follow the
            // position. -1 is below every offset.
            return is_same.then_some(-1);
        }
        let last = self.last_position.as_ref()?;
        let first_valid_offset = self.floor.max(self.first_valid_offset);
        (last.epoch == after.epoch && (first_valid_offset..=last.offset).contains(&after.offset))
            .then_some(after.offset)
    }

    /// Offset, time and size of each stored frame, oldest first. They are read from the store at
    /// the first call, and kept in memory from then on.
    fn frame_infos(
        &mut self,
        user: &UserId,
        context: &StoreContext<'_>,
    ) -> Result<&mut VecDeque<FrameInfo>> {
        let infos = if let Some(infos) = self.frame_infos.take() {
            infos
        } else {
            let from = keys::frame(user, self.floor);
            let (_, to) = keys::tag_range(user, Tag::MailboxFrame, Tag::MailboxFrame);
            context
                .store
                .scan(Table::Users, &from, &to, self.frame_count, false)?
                .iter()
                .map(|(key, value)| {
                    let (.., suffix) = keys::parse(key).ok_or_else(damaged_entry_error)?;
                    let frame = StoredFrame::decode(value)?;
                    Ok(FrameInfo {
                        offset: keys::parse_number(suffix).ok_or_else(damaged_entry_error)? as i64,
                        at_ms: frame.at_ms,
                        bytes: frame.json.len(),
                    })
                })
                .collect::<Result<_>>()?
        };
        Ok(self.frame_infos.insert(infos))
    }

    /// Removes the oldest frames until the number, size and age of the frames are within the
    /// limits. With `new_bytes`, until there is also room for a new frame of this size. Returns
    /// whether a frame was removed.
    pub(super) fn trim(
        &mut self,
        batch: &mut Batch,
        user: &UserId,
        new_bytes: Option<usize>,
        context: &StoreContext<'_>,
    ) -> Result<bool> {
        let bounds = context.bounds;
        let new_count = usize::from(new_bytes.is_some());
        let mut is_trimmed = false;
        while self.frame_count > 0
            && (self.frame_count + new_count > bounds.mailbox_frames
                || self.frame_bytes + new_bytes.unwrap_or(0) > bounds.mailbox_bytes
                || context.is_expired(self.oldest_frame_ms, bounds.mailbox_ttl))
        {
            let infos = self.frame_infos(user, context)?;
            let removed = infos.pop_front().ok_or_else(damaged_entry_error)?;
            let oldest = infos.front().copied();
            batch.delete(Table::Users, keys::frame(user, removed.offset));
            self.frame_count -= 1;
            self.frame_bytes = self.frame_bytes.saturating_sub(removed.bytes);
            self.floor = removed.offset;
            self.oldest_frame_ms = oldest.map_or(0, |oldest| oldest.at_ms);
            self.empty_id = None;
            is_trimmed = true;
        }
        Ok(is_trimmed)
    }

    /// Moves the mailbox's end to `position`, which must be above the current end.
    pub(super) fn advance_end(&mut self, position: &Position, context: &StoreContext<'_>) {
        if self.last_position.is_none() {
            self.floor = position.offset;
        }
        self.last_position = Some(position.clone());
        self.last_used_ms = context.now_ms;
    }

    /// Appends a frame at `position`, which must be above the mailbox's end.
    pub(super) fn append(
        &mut self,
        batch: &mut Batch,
        user: &UserId,
        position: &Position,
        frame: &StoredFrame<'_>,
        context: &StoreContext<'_>,
    ) -> Result<()> {
        let bytes = frame.json.len();
        self.trim(batch, user, Some(bytes), context)?;
        self.advance_end(position, context);
        if context.bounds.mailbox_frames == 0 || bytes > context.bounds.mailbox_bytes {
            // The frame alone exceeds the limits. It is not stored, as if it was trimmed at once.
            self.floor = position.offset;
            self.empty_id = None;
            return Ok(());
        }
        if self.frame_count == 0 {
            self.oldest_frame_ms = context.now_ms;
        }
        self.frame_count += 1;
        self.frame_bytes += bytes;
        if let Some(infos) = &mut self.frame_infos {
            infos.push_back(FrameInfo {
                offset: position.offset,
                at_ms: context.now_ms,
                bytes,
            });
        }
        let key = keys::frame(user, position.offset);
        batch.put(Table::Users, key, frame.encode());
        Ok(())
    }

    /// Removes the frames in `scope`, and returns their messages and positions. The floor stays, so
    /// positions of clients remain valid, and a client that resumes just does not receive these
    /// frames.
    pub(super) fn forget(
        &mut self,
        batch: &mut Batch,
        user: &UserId,
        scope: &ForgetScope<'_>,
        context: &StoreContext<'_>,
    ) -> Result<Vec<(MessageId, Position)>> {
        let mut forgotten = Vec::new();
        let mut remaining = VecDeque::new();
        for info in std::mem::take(self.frame_infos(user, context)?) {
            let key = keys::frame(user, info.offset);
            let value = context
                .store
                .get(Table::Users, &key)?
                .ok_or_else(damaged_entry_error)?;
            let frame = StoredFrame::decode(&value)?;
            if !scope.includes(frame.conversation.as_ref()) {
                remaining.push_back(info);
                continue;
            }
            batch.delete(Table::Users, key);
            self.frame_count -= 1;
            self.frame_bytes = self.frame_bytes.saturating_sub(info.bytes);
            let position = Position {
                epoch: self.end().epoch,
                offset: info.offset,
            };
            forgotten.push((frame.message, position));
        }
        self.oldest_frame_ms = remaining.front().map_or(0, |oldest| oldest.at_ms);
        self.frame_infos = Some(remaining);
        if !forgotten.is_empty() {
            self.put(batch, user);
        }
        Ok(forgotten)
    }
}

impl UserState {
    /// Removes the mailbox from memory and store. It has a commit of its own, because the caller
    /// may write a new mailbox under the same key, and a batch may contain a key only once.
    pub(super) fn drop_mailbox(&mut self, context: &StoreContext<'_>) -> Result<()> {
        if let Some(mut mailbox) = self.mailbox.take() {
            let mut batch = Batch::default();
            for info in mailbox.frame_infos(&self.user, context)?.iter() {
                batch.delete(Table::Users, keys::frame(&self.user, info.offset));
            }
            batch.delete(
                Table::Users,
                keys::user_entry(&self.user, Tag::MailboxHead, b""),
            );
            context.store.commit(batch)?;
        }
        Ok(())
    }

    /// Removes the mailbox if it was unused for twice the time to live of a frame.
    pub(super) fn drop_unused_mailbox(&mut self, context: &StoreContext<'_>) -> Result<()> {
        let ttl = context.bounds.mailbox_ttl;
        match &self.mailbox {
            Some(mailbox) if mailbox.is_unused(ttl, context.now_ms) => self.drop_mailbox(context),
            _ => Ok(()),
        }
    }

    /// Removes the mailbox if it was unused for too long, otherwise its expired frames.
    pub(super) fn remove_expired_frames(&mut self, context: &StoreContext<'_>) -> Result<()> {
        self.drop_unused_mailbox(context)?;
        let mut batch = Batch::default();
        if let Some(mailbox) = &mut self.mailbox
            && mailbox.trim(&mut batch, &self.user, None, context)?
        {
            mailbox.put(&mut batch, &self.user);
        }
        if !batch.is_empty() {
            context.store.commit(batch)?;
        }
        Ok(())
    }
}
