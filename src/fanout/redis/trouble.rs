//! Why Redis can't be reached, for people, and when that was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::EventInterface;
use parking_lot::{Mutex, MutexGuard};

use crate::fanout::{FanoutError, Result};

/// The last failure of a client's connection, forgotten once it is connected. While it is not, a
/// call only sees that nothing answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    cause: Option<String>,
    /// When Redis was last seen to be away, or to have come back.
    away: Option<Instant>,
}

impl Trouble {
    /// Watches a client until it ends; begin before it connects.
    pub(super) fn watch(client: &Client) -> Self {
        let trouble = Self::default();
        let (failed, connected) = (trouble.clone(), trouble.clone());
        client.on_error(move |(error, _)| {
            let failed = failed.clone();
            async move {
                failed.noted(Some(describe(&error)));
                Ok(())
            }
        });
        client.on_reconnect(move |_| {
            let connected = connected.clone();
            async move {
                let cause = connected.state().cause.take();
                // The first connection is announced like all others.
                if cause.is_some() {
                    connected.noted(None);
                }
                Ok(())
            }
        });
        trouble
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Redis is away, or came back just now.
    fn noted(&self, cause: Option<String>) {
        let mut state = self.state();
        state.away = Some(Instant::now());
        state.cause = cause.or(state.cause.take());
    }

    /// Takes note where a call failed since nobody answered.
    pub(super) fn see<T>(&self, result: Result<T>) -> Result<T> {
        if matches!(result, Err(FanoutError::Unavailable(_))) {
            self.noted(None);
        }
        result
    }

    /// What is left of `time` since Redis was last seen to be away.
    pub(super) fn left_of(&self, time: Duration) -> Duration {
        let away = self.state().away;
        away.map_or(Duration::ZERO, |at| time.saturating_sub(at.elapsed()))
    }

    /// Adds the cause to a call's error, where one is known.
    pub(super) fn explain(&self, error: FanoutError) -> FanoutError {
        match (error, self.state().cause.clone()) {
            (FanoutError::Unavailable(text), Some(cause)) => {
                FanoutError::Unavailable(format!("{text}: {cause}"))
            }
            (error, _) => error,
        }
    }
}

/// What failed, without what Redis may quote of a command.
fn describe(error: &Error) -> String {
    let details: String = error.details().chars().take(120).collect();
    format!("{} ({details})", error.kind().to_str())
}
