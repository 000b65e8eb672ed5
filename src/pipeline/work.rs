//! What a handler holds while it works on a record: a slot, and word of whether to go on.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::telemetry::traces::Span;

const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A dependency that stays away is spoken of this often for each record that waits for it.
const REMIND_EVERY: Duration = Duration::from_secs(30);

/// The record is not to be worked on any more: its partition was taken away or goes back, or the
/// process drains. It was not finished, and will be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// One of `MAX_WORKERS` slots, given back on drop and while waiting.
#[derive(Debug)]
pub struct Work {
    slots: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    stop: CancellationToken,
    span: Span,
}

impl Work {
    /// Waits for a slot.
    pub(crate) async fn begin(
        slots: Arc<Semaphore>,
        stop: CancellationToken,
    ) -> Result<Self, Stopped> {
        let mut work = Self {
            slots,
            held: None,
            stop,
            span: Span::default(),
        };
        work.take_slot().await?;
        Ok(work)
    }

    async fn take_slot(&mut self) -> Result<(), Stopped> {
        if self.held.is_some() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            permit = Arc::clone(&self.slots).acquire_owned() => {
                self.held = Some(permit.map_err(|_| Stopped)?);
                Ok(())
            }
        }
    }

    /// The record's part of its trace, from its coming to its end.
    pub fn span(&self) -> &Span {
        &self.span
    }

    pub(super) fn span_mut(&mut self) -> &mut Span {
        &mut self.span
    }

    /// Whether waiting is still worth it.
    pub fn stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Fires when the record is not to be begun any more. An answer that is being written may
    /// still be finished.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Waits without holding the slot, then takes one again.
    pub async fn wait(&mut self, time: Duration) -> Result<(), Stopped> {
        self.held = None;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Stopped),
            () = tokio::time::sleep(time) => {}
        }
        self.take_slot().await
    }

    /// Repeats `call` until it succeeds: a dependency that is away is waited for without limit,
    /// and never counted against the record (I10). The slot is free while waiting.
    pub async fn until<T, E, F, Fut>(&mut self, what: &str, mut call: F) -> Result<T, Stopped>
    where
        E: Display,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let mut patience = Patience::new(what);
        loop {
            match call().await {
                Ok(value) => {
                    patience.rewarded();
                    return Ok(value);
                }
                Err(error) => {
                    let pause = patience.next_pause(&error);
                    self.wait(pause).await?;
                }
            }
        }
    }

    /// As [`Work::until`], but goes on when the record is not to be begun any more: for the last
    /// steps of work that would otherwise be done and paid again. Holds its slot; ended only by
    /// the drain's deadline.
    pub async fn finish<T, E, F, Fut>(&mut self, what: &str, mut call: F) -> T
    where
        E: Display,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let mut patience = Patience::new(what);
        loop {
            match call().await {
                Ok(value) => {
                    patience.rewarded();
                    return value;
                }
                Err(error) => {
                    let pause = patience.next_pause(&error);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// Growing pauses between repetitions, and what is logged of them.
struct Patience<'a> {
    what: &'a str,
    backoff: Backoff,
    since: Instant,
    reminded: Option<Instant>,
}

impl<'a> Patience<'a> {
    fn new(what: &'a str) -> Self {
        Self {
            what,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT).with_jitter(),
            since: Instant::now(),
            reminded: None,
        }
    }

    fn next_pause(&mut self, error: &impl Display) -> Duration {
        if self.reminded.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
            self.reminded = Some(Instant::now());
            tracing::warn!(what = self.what, %error, "waiting, repeated until it succeeds");
        }
        self.backoff.next_delay()
    }

    fn rewarded(&self) {
        if self.reminded.is_some() {
            let waited_ms = self.since.elapsed().as_millis() as u64;
            tracing::info!(what = self.what, waited_ms, "goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn work(slots: &Arc<Semaphore>, stop: &CancellationToken) -> Work {
        Work::begin(Arc::clone(slots), stop.clone()).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_dependency_that_is_away_holds_no_slot() {
        let slots = Arc::new(Semaphore::new(1));
        let stop = CancellationToken::new();
        let mut waiting = work(&slots, &stop).await;
        let other = {
            let (slots, stop) = (Arc::clone(&slots), stop.clone());
            tokio::spawn(async move { drop(work(&slots, &stop).await) })
        };
        let result = waiting
            .until("test", || {
                let done = other.is_finished();
                async move { if done { Ok(7) } else { Err("away") } }
            })
            .await;
        assert_eq!(result, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_when_the_partition_is_taken_away() {
        let slots = Arc::new(Semaphore::new(1));
        let stop = CancellationToken::new();
        let mut waiting = work(&slots, &stop).await;
        let stopper = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            stopper.cancel();
        });
        let result: Result<(), Stopped> = waiting.until("test", || async { Err("away") }).await;
        assert_eq!(result, Err(Stopped));
    }
}
