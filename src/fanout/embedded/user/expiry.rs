//! Removes a user's expired entries from the store, for the sweep.

use super::UserState;
use super::mailbox::Mailbox;
use crate::config::bounds::Bounds;
use crate::fanout::Result;
use crate::fanout::embedded::codec::{Reader, damaged_entry_error};
use crate::fanout::embedded::context::{StoreContext, is_expired};
use crate::fanout::embedded::keys::{self, Tag};
use crate::store::{Batch, Table};

/// Whether an entry has expired. For a mailbox's head: whether the mailbox or one of its frames has
/// expired.
pub(in crate::fanout::embedded) fn needs_expiry(
    bounds: &Bounds,
    tag: Tag,
    value: &[u8],
    now_ms: i64,
) -> Result<bool> {
    Ok(match tag {
        Tag::MailboxHead => Mailbox::decode(value)?.needs_expiry(bounds.mailbox_ttl, now_ms),
        _ => is_entry_expired(bounds, tag, Reader::new(value).number()?, now_ms),
    })
}

/// Whether an entry has expired whose value begins with the time `at_ms`.
fn is_entry_expired(bounds: &Bounds, tag: Tag, at_ms: i64, now_ms: i64) -> bool {
    match tag {
        // The head and the frames of a mailbox are handled together. A revocation never expires,
        // because only the issuer of a signed token knows how long the token is valid.
        Tag::MailboxHead | Tag::MailboxFrame | Tag::Revocation => false,
        Tag::Pending => is_expired(at_ms, bounds.pending_ttl, now_ms),
        Tag::CancelMark | Tag::Outcome => is_expired(at_ms, bounds.dedup_ttl, now_ms),
        // The value of these entries begins with the time at which they expire.
        Tag::Token | Tag::RateLimit | Tag::TokensToday => at_ms <= now_ms,
    }
}

impl UserState {
    /// Removes the entries with these keys if they have expired. The caller found them expired, but
    /// without the user's lock, so they are checked again.
    pub(in crate::fanout::embedded) fn expire(
        &mut self,
        entries: &[&[u8]],
        context: &StoreContext<'_>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        let mut has_mailbox = false;
        for key in entries {
            let (_, tag, suffix) = keys::parse(key).ok_or_else(damaged_entry_error)?;
            if tag == Tag::MailboxHead {
                has_mailbox = true;
                continue;
            }
            let Some(value) = context.store.get(Table::Users, key)? else {
                continue;
            };
            let at_ms = Reader::new(&value).number()?;
            if !is_entry_expired(context.bounds, tag, at_ms, context.now_ms) {
                continue;
            }
            batch.delete(Table::Users, *key);
            if tag == Tag::Pending {
                self.remove_expired_pending(
                    keys::parse_number(suffix).ok_or_else(damaged_entry_error)?,
                );
            }
            if tag == Tag::CancelMark {
                self.cancel_marks.remove(&keys::parse_message(suffix)?);
            }
        }
        if !batch.is_empty() {
            context.store.commit(batch)?;
        }
        if has_mailbox {
            self.remove_expired_frames(context)?;
        }
        Ok(())
    }
}
