//! Health of the connection to Redis: why it failed, and when it was last unavailable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::EventInterface;
use parking_lot::Mutex;

use crate::fanout::{FanoutError, Result};

/// The last failure of a client's connection. A call that fails while the connection is down learns
/// only that there was no answer; this has the cause.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionHealth(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Why the connection failed; `None` once it is established again.
    cause: Option<String>,
    /// When Redis was last found unavailable, or became available again.
    unavailable_at: Option<Instant>,
}

impl ConnectionHealth {
    /// Observes a client until it ends. Call this before the client connects.
    pub(super) fn observe(client: &Client) -> Self {
        let health = Self::default();
        let (on_error, on_reconnect) = (health.clone(), health.clone());
        client.on_error(move |(error, _)| {
            let health = on_error.clone();
            async move {
                health.record_unavailable(Some(describe(&error)));
                Ok(())
            }
        });
        client.on_reconnect(move |_| {
            let health = on_reconnect.clone();
            async move {
                let cause = health.0.lock().cause.take();
                // The client library announces the first connection too; it has no cause.
                if cause.is_some() {
                    health.record_unavailable(None);
                }
                Ok(())
            }
        });
        health
    }

    fn record_unavailable(&self, cause: Option<String>) {
        let mut state = self.0.lock();
        state.unavailable_at = Some(Instant::now());
        state.cause = cause.or(state.cause.take());
    }

    /// Records a call's result and returns it unchanged.
    pub(super) fn record<T>(&self, result: Result<T>) -> Result<T> {
        if matches!(result, Err(FanoutError::Unavailable(_))) {
            self.record_unavailable(None);
        }
        result
    }

    /// The rest of a grace period that starts when Redis is last found unavailable.
    pub(super) fn remaining_grace(&self, period: Duration) -> Duration {
        let unavailable_at = self.0.lock().unavailable_at;
        unavailable_at.map_or(Duration::ZERO, |at| period.saturating_sub(at.elapsed()))
    }

    /// Adds the cause of the connection's failure to an error, where one is known.
    pub(super) fn explain(&self, error: FanoutError) -> FanoutError {
        match (error, self.0.lock().cause.clone()) {
            (FanoutError::Unavailable(text), Some(cause)) => {
                FanoutError::Unavailable(format!("{text}: {cause}"))
            }
            (error, _) => error,
        }
    }
}

/// Describes an error, shortened because Redis may quote a command's arguments in it.
fn describe(error: &Error) -> String {
    let details: String = error.details().chars().take(120).collect();
    format!("{} ({details})", error.kind().to_str())
}
