//! The call `read` on a user's state: returns a consistent user view.

use super::UserState;
use super::mailbox::{Mailbox, StoredFrame};
use crate::fanout::embedded::codec::damaged_entry_error;
use crate::fanout::embedded::context::StoreContext;
use crate::fanout::embedded::keys::{self, Tag};
use crate::fanout::{ReadRequest, Result, UserView};
use crate::protocol::ids::UserId;
use crate::protocol::position::{Epoch, Position};
use crate::protocol::sequence_number::SequenceNumber;
use crate::store::{Batch, Table};

/// Maximum number of frames per scan of the store.
const PAGE_FRAMES: usize = 16;

impl UserState {
    pub(in crate::fanout::embedded) fn read(
        &mut self,
        call: &ReadRequest,
        context: &StoreContext<'_>,
    ) -> Result<UserView> {
        self.drop_unused_mailbox(context)?;
        let mut batch = Batch::default();
        let is_new = self.mailbox.is_none();
        let mailbox = self
            .mailbox
            .get_or_insert_with(|| Mailbox::empty(Some(context.random_id()), context.now_ms));
        let is_trimmed = mailbox.trim(&mut batch, &self.user, None, context)?;
        if is_new || is_trimmed || mailbox.needs_touch(context) {
            mailbox.touch(context.now_ms);
            mailbox.put(&mut batch, &self.user);
        }
        if !batch.is_empty() {
            context.store.commit(batch)?;
        }

        let end = mailbox.end();
        let rebuilt_up_to = mailbox.rebuilt_position();
        let resume_offset = call
            .after
            .as_ref()
            .and_then(|after| mailbox.resume_offset(after));
        // To read from the start is to read after -1, which is below every offset.
        let start_offset = (call.from_start && call.after.is_none()).then_some(-1);
        let (frames, has_more) = match (resume_offset.or(start_offset), &mailbox.last_position) {
            (Some(after), Some(last)) => {
                frames_after(&self.user, after, &last.epoch, call.max_bytes, context)?
            }
            _ => (Vec::new(), false),
        };
        Ok(UserView {
            number: SequenceNumber::new(&self.n_id, self.n),
            end,
            recovered: resume_offset.is_some(),
            frames,
            has_more,
            rebuilt_up_to,
            in_flight: self.in_flight_answers(context),
            pending: self.pending_messages(context)?,
        })
    }
}

/// Returns the frames after an offset, of together at most `max_bytes` bytes but at least one
/// frame, and whether the mailbox has more frames after them.
fn frames_after(
    user: &UserId,
    after_offset: i64,
    epoch: &Epoch,
    max_bytes: usize,
    context: &StoreContext<'_>,
) -> Result<(Vec<(Position, String)>, bool)> {
    let mut frames = Vec::new();
    let mut bytes = 0;
    let mut from = keys::frame(user, after_offset + 1);
    let (_, to) = keys::tag_range(user, Tag::MailboxFrame, Tag::MailboxFrame);
    loop {
        let page = context
            .store
            .scan(Table::Users, &from, &to, PAGE_FRAMES, false)?;
        for (key, value) in &page {
            let (.., suffix) = keys::parse(key).ok_or_else(damaged_entry_error)?;
            let offset = keys::parse_number(suffix).ok_or_else(damaged_entry_error)? as i64;
            let frame = StoredFrame::decode(value)?.json;
            if !frames.is_empty() && bytes + frame.len() > max_bytes {
                return Ok((frames, true));
            }
            bytes += frame.len();
            let epoch = epoch.clone();
            frames.push((Position { epoch, offset }, frame.to_owned()));
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE_FRAMES => from = keys::successor(key),
            _ => return Ok((frames, false)),
        }
    }
}
