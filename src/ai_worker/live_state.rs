//! What a [`LiveWriter`](super::live::LiveWriter) and its task share: the answer, the attempt, and
//! the requests to each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use futures_util::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::answer_parts::{AnswerParts, LimitReached, Part};
use super::coalesce::{Coalescer, Flush};
use super::provider::PartDelta;
use crate::fanout::{MessageRef, Owner};

/// Why an attempt must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// Another worker has taken over the message, or the message has an outcome.
    Fenced,
    /// The user cancelled the message.
    Cancelled,
}

/// The parts of an attempt, and up to where they were published.
pub(super) struct LiveAnswer {
    parts: AnswerParts,
    coalescer: Coalescer,
    /// Whether all pending text is due at once, because the model has finished.
    is_pending_due: bool,
}

impl LiveAnswer {
    /// Creates an answer without parts.
    pub(super) fn new(parts: AnswerParts, coalescer: Coalescer) -> Self {
        Self {
            parts,
            coalescer,
            is_pending_due: false,
        }
    }

    /// The time at which the next flush is due, at the earliest `now`. `None` while everything was
    /// returned in flushes.
    pub(super) fn due_at(&self, now: Instant) -> Option<Instant> {
        let due_at = self.coalescer.due_at(self.parts.parts(), now)?;
        Some(if self.is_pending_due { now } else { due_at })
    }

    /// Returns the next flush if it is due; otherwise `None`.
    pub(super) fn flush_if_due(&mut self, now: Instant) -> Option<Flush> {
        if self.due_at(now)? > now {
            return None;
        }
        self.coalescer.flush(self.parts.parts(), now)
    }

    /// Makes everything due at once that is still pending.
    pub(super) fn make_pending_due(&mut self) {
        self.is_pending_due = true;
    }

    /// Number and length of the last part that is reasoning which clients receive only while it is
    /// published; `None` if there is none.
    pub(super) fn last_unstored_reasoning(&self) -> Option<(u32, u32)> {
        self.parts.last_unstored_reasoning()
    }

    /// Makes all parts pending again, because a new stream has begun.
    pub(super) fn restart(&mut self) {
        self.coalescer.restart();
    }

    /// Adds a piece of the model's answer.
    pub(super) fn push(&mut self, delta: PartDelta) -> Result<(), LimitReached> {
        self.parts.push(delta)
    }

    /// Adds the pieces that wait for the end of the model's answer, and returns a copy of all
    /// parts.
    pub(super) fn finish(&mut self) -> Arc<[Part]> {
        self.parts.finish();
        self.parts()
    }

    /// Whether the answer has any part.
    pub(super) fn has_parts(&self) -> bool {
        !self.parts.parts().is_empty()
    }

    /// A copy of the parts so far.
    pub(super) fn parts(&self) -> Arc<[Part]> {
        self.parts.parts().into()
    }
}

/// Up to where the fan-out has confirmed the parts of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ConfirmedParts {
    /// Number of parts that are open.
    pub(super) parts: u32,
    /// Length of the last of these parts in UTF-16 code units.
    pub(super) last_length: u32,
}

impl ConfirmedParts {
    /// Whether the part with this number was published up to this length.
    fn includes(self, part: u32, length: u32) -> bool {
        self.parts > part + 1 || (self.parts == part + 1 && self.last_length >= length)
    }
}

/// State that a [`LiveWriter`](super::live::LiveWriter) shares with its task.
pub(super) struct Shared {
    answer: Mutex<LiveAnswer>,
    /// Wakes the task after the parts have changed.
    pub(super) parts_changed: Notify,
    /// Wakes the task to check lease and cancel mark at once.
    pub(super) check_now: Arc<Notify>,
    /// Up to where the fan-out has confirmed the parts.
    pub(super) confirmed_parts: watch::Sender<ConfirmedParts>,
    /// Why the attempt must stop; `None` until the task has found a reason.
    pub(super) stop_reason: watch::Sender<Option<StopReason>>,
    /// Number of the current attempt.
    pub(super) attempt: AtomicU32,
    /// Number of `renew` calls that were started.
    pub(super) renewals_started: AtomicU64,
    /// Number of the last `renew` call that confirmed the lease, where calls are numbered from 1 in
    /// the order in which they are started; 0 before the first.
    pub(super) confirmed_renewal: watch::Sender<u64>,
}

impl Shared {
    /// The state at the start of a task for the attempt with this number.
    pub(super) fn new(answer: LiveAnswer, attempt: u32) -> Self {
        Self {
            answer: Mutex::new(answer),
            parts_changed: Notify::new(),
            check_now: Arc::default(),
            confirmed_parts: watch::Sender::default(),
            stop_reason: watch::Sender::new(None),
            attempt: AtomicU32::new(attempt),
            renewals_started: AtomicU64::new(0),
            confirmed_renewal: watch::Sender::new(0),
        }
    }

    pub(super) fn answer(&self) -> MutexGuard<'_, LiveAnswer> {
        self.answer.lock()
    }

    /// Whether the part with this number was published up to this length.
    pub(super) fn is_published(&self, part: u32, length: u32) -> bool {
        self.confirmed_parts.borrow().includes(part, length)
    }

    /// Waits until the part with this number was published up to this length.
    pub(super) async fn wait_until_published(&self, part: u32, length: u32) {
        let mut confirmed = self.confirmed_parts.subscribe();
        // `wait_for` cannot fail, because `self` holds the sender.
        let _ = confirmed
            .wait_for(|confirmed| confirmed.includes(part, length))
            .await;
    }

    /// Whether the lease must be checked at once. Resets the request.
    pub(super) fn take_check_request(&self) -> bool {
        self.check_now.notified().now_or_never().is_some()
    }
}

/// Identifies the attempt whose parts are written, and says whether to publish them.
pub(super) struct LiveTarget {
    pub(super) message: MessageRef,
    pub(super) owner: Owner,
    pub(super) attempt: u32,
    /// When the `begin` that started the attempt was called.
    pub(super) begun_at: Instant,
    /// Whether the parts are published while they grow. Otherwise only the lease is renewed.
    pub(super) publishes_parts: bool,
}
