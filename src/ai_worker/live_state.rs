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
}

impl LiveAnswer {
    /// Creates an answer without parts.
    pub(super) fn new(parts: AnswerParts, coalescer: Coalescer) -> Self {
        Self { parts, coalescer }
    }

    /// The time at which the next flush is due, at the earliest `now`. `None` while everything was
    /// returned in flushes.
    pub(super) fn due_at(&self, now: Instant) -> Option<Instant> {
        self.coalescer.due_at(self.parts.parts(), now)
    }

    /// Returns the next flush if it is due; otherwise `None`.
    pub(super) fn flush_if_due(&mut self, now: Instant) -> Option<Flush> {
        self.coalescer.flush_if_due(self.parts.parts(), now)
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

/// State that a [`LiveWriter`](super::live::LiveWriter) shares with its task.
pub(super) struct Shared {
    answer: Mutex<LiveAnswer>,
    /// Wakes the task after the parts have changed.
    pub(super) parts_changed: Notify,
    /// Wakes the task to check lease and cancel mark at once.
    pub(super) check_now: Arc<Notify>,
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
            stop_reason: watch::Sender::new(None),
            attempt: AtomicU32::new(attempt),
            renewals_started: AtomicU64::new(0),
            confirmed_renewal: watch::Sender::new(0),
        }
    }

    pub(super) fn answer(&self) -> MutexGuard<'_, LiveAnswer> {
        self.answer.lock()
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
