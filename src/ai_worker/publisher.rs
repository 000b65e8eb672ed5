//! The task of a [`LiveWriter`](super::live::LiveWriter): publishes the parts of one attempt with
//! `open_part` and `append`, and renews the lease with `renew`.
//!
//! At most one call is in progress, so that pieces are stored in their order. An `append` is not
//! fenced: it succeeds also after another worker has taken over. Therefore the task sends nothing
//! once its last successful renewal is older than [`MAX_RENEWAL_AGE`], and only the response to a
//! renewal decides whether text was lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::coalesce::Flush;
use super::live_state::{ConfirmedParts, LiveTarget, Shared, StopReason};
use super::outcome::OutcomeBuilder;
use crate::fanout::{
    self, Answers, AppendRequest, BeginRequest, BeginResponse, OpenPartRequest, RenewRequest,
    StreamResponse,
};

/// Time between the starts of two renewals: a third of the lease's duration, so that one lost
/// renewal does not end the lease.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// Age of the last successful renewal, counted from its start, from which on the task calls only
/// `renew`. It is shorter than the lease, after which another worker may take over.
const MAX_RENEWAL_AGE: Duration = Duration::from_secs(2);
/// Delay before a failed call to the fan-out is repeated.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The call that the task makes next.
enum NextCall {
    Renew,
    Send,
}

/// What the fan-out has confirmed of the attempt's stream.
#[derive(Debug, Clone, Copy, Default)]
struct ConfirmedStream {
    parts_end: ConfirmedParts,
    /// Number of pieces that the fan-out has of the stream.
    pieces: u64,
}

/// A flush that was sent and is not confirmed.
struct Unconfirmed {
    flush: Flush,
    /// Whether the fan-out has stored the flush, but has fewer pieces than expected. The next
    /// renewal shows whether text before the flush was lost.
    is_stored: bool,
}

/// The state of a [`LiveWriter`](super::live::LiveWriter)'s task.
pub(super) struct Publisher {
    fanout: Arc<dyn Answers>,
    /// Its `attempt` is the current attempt.
    target: LiveTarget,
    outcomes: OutcomeBuilder,
    shared: Arc<Shared>,
    confirmed: ConfirmedStream,
    /// Sent again unchanged, before another flush, until it is confirmed.
    unconfirmed: Option<Unconfirmed>,
    /// Earliest time at which `unconfirmed` is sent again.
    retry_at: Instant,
    /// When the last successful renewal was started. `begin` counts as a renewal.
    renewed_at: Instant,
    /// When the next renewal is due.
    renew_at: Instant,
}

impl Publisher {
    pub(super) fn new(
        fanout: Arc<dyn Answers>,
        target: LiveTarget,
        outcomes: OutcomeBuilder,
        shared: Arc<Shared>,
    ) -> Self {
        let renewed_at = target.begun_at;
        Self {
            fanout,
            target,
            outcomes,
            shared,
            confirmed: ConfirmedStream::default(),
            unconfirmed: None,
            retry_at: renewed_at,
            renewed_at,
            renew_at: renewed_at + RENEW_INTERVAL,
        }
    }

    /// Publishes the parts and renews the lease until the attempt must stop, and stores the reason.
    pub(super) async fn run(mut self) {
        loop {
            let result = match self.next_call().await {
                NextCall::Renew => self.renew().await,
                NextCall::Send => self.send().await,
            };
            if let Err(reason) = result {
                self.shared.stop_reason.send_replace(Some(reason));
                return;
            }
        }
    }

    /// Waits until a call is due.
    async fn next_call(&self) -> NextCall {
        loop {
            let now = Instant::now();
            // The request is consumed also where a renewal is due anyway.
            if self.shared.take_check_request() || now >= self.renew_at {
                return NextCall::Renew;
            }
            let send_at = self.send_at(now);
            if send_at.is_some_and(|send_at| send_at <= now) {
                return NextCall::Send;
            }
            let wake_at = send_at.unwrap_or(self.renew_at).min(self.renew_at);
            let can_send_more = self.target.publishes_parts && self.unconfirmed.is_none();
            tokio::select! {
                () = tokio::time::sleep_until(wake_at) => {}
                () = self.shared.parts_changed.notified(), if can_send_more => {}
                () = self.shared.check_now.notified() => return NextCall::Renew,
            }
        }
    }

    /// When the next flush is due, at the earliest `now`. `None` while there is none, or nothing
    /// may be sent before the next renewal.
    fn send_at(&self, now: Instant) -> Option<Instant> {
        if !self.target.publishes_parts || now > self.renewed_at + MAX_RENEWAL_AGE {
            return None;
        }
        match &self.unconfirmed {
            Some(_) => Some(self.retry_at),
            None => self.shared.answer().due_at(now),
        }
    }

    /// Sends the unconfirmed flush again, or else the next one that is due. Fails if the attempt
    /// must stop.
    async fn send(&mut self) -> Result<(), StopReason> {
        if self.unconfirmed.is_none() {
            let flush = self.shared.answer().flush_if_due(Instant::now());
            self.unconfirmed = flush.map(|flush| Unconfirmed {
                flush,
                is_stored: false,
            });
        }
        let Some(unconfirmed) = &self.unconfirmed else {
            return Ok(());
        };
        match self.send_flush(&unconfirmed.flush).await {
            Ok(StreamResponse::Confirmed(pieces)) => {
                if pieces > self.confirmed.pieces {
                    self.confirm_flush(pieces);
                } else {
                    self.schedule_stream_check(pieces);
                }
            }
            Ok(StreamResponse::Fenced) => return Err(StopReason::Fenced),
            Ok(StreamResponse::Cancelled) => return Err(StopReason::Cancelled),
            Ok(StreamResponse::DataLost) => self.begin_again().await?,
            Err(error) => {
                tracing::debug!(%error, "publishing a piece of an answer failed, it is retried");
                self.retry_at = Instant::now() + RETRY_DELAY;
            }
        }
        Ok(())
    }

    /// Calls `open_part` or `append`.
    async fn send_flush(&self, flush: &Flush) -> fanout::Result<StreamResponse> {
        let (message, owner) = (self.target.message.clone(), self.target.owner.clone());
        let (attempt, piece) = (self.target.attempt, flush.piece.clone());
        let Some(opening) = &flush.opening else {
            let request = AppendRequest {
                message,
                owner,
                attempt,
                piece,
            };
            let pieces = self.fanout.append(request).await?;
            return Ok(StreamResponse::Confirmed(pieces));
        };
        let request = OpenPartRequest {
            message,
            owner,
            attempt,
            kind: opening.kind,
            meta: opening.meta.clone(),
            previous_end: opening.previous_end,
            piece,
        };
        self.fanout.open_part(request).await
    }

    /// Notes that the fan-out has the unconfirmed flush and everything before it.
    fn confirm_flush(&mut self, pieces: u64) {
        if let Some(Unconfirmed { flush, .. }) = self.unconfirmed.take() {
            let parts_end = ConfirmedParts {
                parts: flush.piece.range.part + 1,
                last_length: flush.piece.range.end,
            };
            self.set_confirmed(ConfirmedStream { parts_end, pieces });
        }
    }

    fn set_confirmed(&mut self, confirmed: ConfirmedStream) {
        self.confirmed = confirmed;
        self.shared
            .confirmed_parts
            .send_replace(confirmed.parts_end);
    }

    /// Schedules a renewal at once, because the fan-out returned no more pieces than before. If it
    /// returned none, it did not store the unconfirmed flush.
    fn schedule_stream_check(&mut self, pieces: u64) {
        if let Some(unconfirmed) = &mut self.unconfirmed {
            unconfirmed.is_stored = pieces > 0;
        }
        let now = Instant::now();
        self.renew_at = now;
        self.retry_at = now + RETRY_DELAY;
    }

    /// Renews the lease, and learns whether the fan-out has lost any of the confirmed text. Fails
    /// if the attempt must stop.
    async fn renew(&mut self) -> Result<(), StopReason> {
        let started = Instant::now();
        let number = self.shared.renewals_started.fetch_add(1, Ordering::AcqRel) + 1;
        let request = RenewRequest {
            message: self.target.message.clone(),
            owner: self.target.owner.clone(),
            attempt: self.target.attempt,
            parts: self.confirmed.parts_end.parts,
            last_length: self.confirmed.parts_end.last_length,
            pieces: self.confirmed.pieces,
        };
        match self.fanout.renew(request).await {
            // Each part has a piece, so the fan-out has lost the text of all parts.
            Ok(StreamResponse::Confirmed(0)) if self.confirmed.parts_end.parts > 0 => {
                self.begin_again().await?;
            }
            Ok(StreamResponse::Confirmed(pieces)) => {
                self.set_renewed(started);
                self.confirmed.pieces = pieces;
                if self.unconfirmed.as_ref().is_some_and(|sent| sent.is_stored) {
                    self.confirm_flush(pieces);
                }
            }
            Ok(StreamResponse::Fenced) => return Err(StopReason::Fenced),
            Ok(StreamResponse::Cancelled) => return Err(StopReason::Cancelled),
            Ok(StreamResponse::DataLost) => self.begin_again().await?,
            Err(error) => {
                tracing::debug!(%error, "renewing the lease of an answer failed, it is retried");
                self.renew_at = Instant::now() + RETRY_DELAY;
                return Ok(());
            }
        }
        self.shared.confirmed_renewal.send_replace(number);
        Ok(())
    }

    fn set_renewed(&mut self, started: Instant) {
        self.renewed_at = started;
        self.renew_at = started + RENEW_INTERVAL;
    }

    /// Begins a new attempt after the fan-out lost text, and schedules all parts again for its
    /// stream.
    async fn begin_again(&mut self) -> Result<(), StopReason> {
        tracing::warn!(
            attempt = self.target.attempt,
            "the fan-out lost the text of an answer in progress: publishing it again, no action \
             is needed"
        );
        loop {
            // If the message was cancelled, `begin` stores an outcome with the parts so far.
            let parts = self.shared.answer().parts();
            let started = Instant::now();
            let request = BeginRequest {
                message: self.target.message.clone(),
                owner: self.target.owner.clone(),
                last_attempt: self.target.attempt,
                cancelled_outcome: self.outcomes.lazy_cancelled_outcome(&parts),
                history: None,
            };
            match self.fanout.begin(request).await {
                Ok(BeginResponse::Attempt { number, .. }) => {
                    self.target.attempt = number;
                    self.shared.attempt.store(number, Ordering::Release);
                    self.shared.answer().restart();
                    self.set_confirmed(ConfirmedStream::default());
                    self.unconfirmed = None;
                    self.set_renewed(started);
                    return Ok(());
                }
                Ok(BeginResponse::Ended(_) | BeginResponse::Busy(_)) => {
                    return Err(StopReason::Fenced);
                }
                Err(_) => tokio::time::sleep(RETRY_DELAY).await,
            }
        }
    }
}
