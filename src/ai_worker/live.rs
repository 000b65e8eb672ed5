//! The live road of one attempt: renews the lease and writes the text so far, beside the reader
//! of the model, which never waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::cancels::Watcher;
use super::coalesce::{Coalescer, Piece};
use super::ending::Endings;
use crate::fanout::{
    Answers, BeginRequest, BeginResponse, DeferredOutcome, LiveRequest, LiveResponse, MessageRef,
    Owner,
};

/// A third of the lease, so that one lost renewal costs nothing.
const RENEW_EVERY: Duration = Duration::from_secs(1);
const REPEAT_AFTER: Duration = Duration::from_millis(100);

/// Word from the fan-out for who writes the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Go on.
    Go,
    /// Stop: another worker has taken over, or the message has ended.
    Fenced,
    /// Stop: its user wants no more.
    Cancelled,
}

struct Shared {
    text: Mutex<Coalescer>,
    more: Notify,
    /// The message may have been cancelled: ask at once.
    look: Arc<Notify>,
    signal: watch::Sender<Signal>,
    number: AtomicU32,
    /// Calls of the fan-out begun, and the last of them that said that the attempt is still ours.
    asked: AtomicU64,
    ours: watch::Sender<u64>,
}

/// What an attempt is about.
pub(super) struct Subjects {
    pub(super) subject: MessageRef,
    pub(super) owner: Owner,
    pub(super) number: u32,
    /// Whether anybody watches; otherwise only the lease is renewed.
    pub(super) stream: bool,
}

/// Writes one attempt's text until it is dropped.
pub(super) struct LiveWriter {
    shared: Arc<Shared>,
    signal: watch::Receiver<Signal>,
    task: JoinHandle<()>,
}

impl LiveWriter {
    /// `cancelled` is the ending that `begin` needs when the fan-out has lost its data.
    pub(super) fn start(
        fanout: Arc<dyn Answers>,
        subjects: Subjects,
        cancelled: DeferredOutcome,
        coalescer: Coalescer,
        watcher: Watcher,
    ) -> Self {
        let (sender, signal) = watch::channel(Signal::Go);
        let shared = Arc::new(Shared {
            text: Mutex::new(coalescer),
            more: Notify::new(),
            look: Arc::default(),
            signal: sender,
            number: AtomicU32::new(subjects.number),
            asked: AtomicU64::new(0),
            ours: watch::Sender::new(0),
        });
        let begin = BeginRequest {
            message: subjects.subject,
            owner: subjects.owner,
            last_attempt: subjects.number,
            cancelled_outcome: cancelled,
            history: None,
        };
        let writing = Writing {
            fanout,
            begin,
            stream: subjects.stream,
            shared: Arc::clone(&shared),
        };
        let watching = watcher.watch(
            writing.begin.message.user.clone(),
            writing.begin.message.message_id.clone(),
            Arc::clone(&shared.look),
        );
        let both = async move {
            tokio::select! {
                () = writing.run() => {}
                () = watching => {}
            }
        };
        let task = tokio::spawn(tracing::Instrument::in_current_span(both));
        Self {
            shared,
            signal,
            task,
        }
    }

    fn text_of(&self) -> MutexGuard<'_, Coalescer> {
        self.shared.text.lock()
    }

    /// Adds what the model said. Never waits.
    pub(super) fn push(&self, text: &str) {
        self.text_of().push(text);
        self.shared.more.notify_one();
    }

    /// The whole text so far.
    pub(super) fn text(&self) -> String {
        self.text_of().text().to_owned()
    }

    /// Whether there is any text.
    pub(super) fn has_text(&self) -> bool {
        !self.text_of().text().is_empty()
    }

    /// The attempt's number as it now is: it grows when the fan-out lost its data meanwhile.
    pub(super) fn number(&self) -> u32 {
        self.shared.number.load(Ordering::Acquire)
    }

    /// Waits for a reason to stop.
    pub(super) async fn stopped(&self) -> Signal {
        let mut signal = self.signal.clone();
        let said = signal
            .wait_for(|signal| *signal != Signal::Go)
            .await
            .map(|signal| *signal);
        match said {
            Ok(signal) => signal,
            // The writing task ends only after it said why.
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks the fan-out, for as long as it is away, and waits for a reason to stop or word that there
    /// is none: for who has slept for longer than the lease and does not know it.
    pub(super) async fn still_ours(&self) -> Result<(), Signal> {
        let asked = self.shared.asked.load(Ordering::Acquire);
        let mut ours = self.shared.ours.subscribe();
        self.shared.look.notify_one();
        tokio::select! {
            biased;
            signal = self.stopped() => Err(signal),
            // It can't fail: the sender is held here.
            _ = ours.wait_for(|at| *at > asked) => Ok(()),
        }
    }
}

impl Drop for LiveWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Writing {
    fanout: Arc<dyn Answers>,
    begin: BeginRequest,
    stream: bool,
    shared: Arc<Shared>,
}

impl Writing {
    async fn run(mut self) {
        let mut renew_at = Instant::now() + RENEW_EVERY;
        loop {
            let delta = self.next_piece(renew_at).await;
            if let Err(signal) = self.write(delta).await {
                self.shared.signal.send_replace(signal);
                return;
            }
            renew_at = Instant::now() + RENEW_EVERY;
        }
    }

    /// The next piece that is due, or `None` when the lease has to be renewed first.
    async fn next_piece(&self, renew_at: Instant) -> Option<Piece> {
        loop {
            let now = Instant::now();
            let due = {
                let mut text = self.shared.text.lock();
                if self.stream
                    && let Some(piece) = text.take(now)
                {
                    return Some(piece);
                }
                text.due(now).filter(|_| self.stream)
            };
            if now >= renew_at {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due.unwrap_or(renew_at).min(renew_at)) => {}
                () = self.shared.more.notified(), if self.stream => {}
                () = self.shared.look.notified() => return None,
            }
        }
    }

    /// Writes one piece, again and again while the fan-out is away.
    async fn write(&mut self, piece: Option<Piece>) -> Result<(), Signal> {
        let next = piece.as_ref().map(|piece| piece.index + 1);
        let delta = piece.map(|piece| (piece.index, piece.text));
        loop {
            let asked = self.shared.asked.fetch_add(1, Ordering::AcqRel) + 1;
            let call = LiveRequest {
                message: self.begin.message.clone(),
                owner: self.begin.owner.clone(),
                attempt: self.begin.last_attempt,
                delta: delta.clone(),
            };
            match self.fanout.live(call).await {
                Ok(LiveResponse::Written) => {}
                // A repeat of a piece that had arrived.
                Ok(LiveResponse::Expected(index)) if next.is_none_or(|next| next == index) => {}
                Ok(LiveResponse::Fenced) => return Err(Signal::Fenced),
                Ok(LiveResponse::Cancelled) => return Err(Signal::Cancelled),
                Ok(LiveResponse::DataLost | LiveResponse::Expected(_)) => {
                    self.begin_again().await?
                }
                Err(error) => {
                    tracing::debug!(%error, "live text waits");
                    tokio::time::sleep(REPEAT_AFTER).await;
                    continue;
                }
            }
            self.shared.ours.send_replace(asked);
            return Ok(());
        }
    }

    /// The whole text so far.
    fn said(&self) -> String {
        let text = &self.shared.text;
        let text = text.lock();
        text.text().to_owned()
    }

    /// The fan-out no longer has the text: take the message again under a higher number, and
    /// write the whole text again from index 0.
    async fn begin_again(&mut self) -> Result<(), Signal> {
        tracing::warn!(
            attempt = self.begin.last_attempt,
            "the fan-out lost the text so far: begun again"
        );
        loop {
            // Cancelled meanwhile, the message ends with what was said until now.
            let begin = BeginRequest {
                cancelled_outcome: Endings::cancelled_at(
                    &self.begin.cancelled_outcome,
                    self.said(),
                ),
                ..self.begin.clone()
            };
            match self.fanout.begin(begin).await {
                Ok(BeginResponse::Attempt { number, .. }) => {
                    self.begin.last_attempt = number;
                    self.shared.number.store(number, Ordering::Release);
                    self.shared.text.lock().restart();
                    return Ok(());
                }
                Ok(BeginResponse::Ended(_) | BeginResponse::Busy(_)) => return Err(Signal::Fenced),
                Err(_) => tokio::time::sleep(REPEAT_AFTER).await,
            }
        }
    }
}
