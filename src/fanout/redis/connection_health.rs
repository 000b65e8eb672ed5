//! Records why the connection to Redis failed, for error texts, and when Redis was last
//! unavailable, for the grace period of leases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::EventInterface;
use parking_lot::Mutex;

use crate::fanout::{FanoutError, Result};

/// The last failure of a client's connection. The error of a call that fails while the connection
/// is down says only that Redis did not answer; [`ConnectionHealth::explain`] adds the cause.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionHealth(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Why the connection failed; `None` if it has not failed since it was last established.
    cause: Option<String>,
    /// When a call last found Redis unavailable, or the connection last failed or was established
    /// again; `None` if that never happened.
    unavailable_at: Option<Instant>,
}

impl ConnectionHealth {
    /// Records the failures and reconnects of a client until it closes. Must be called before the
    /// client connects.
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
                // The client library announces the first connection too. No failure preceded it, so
                // there is no cause, and nothing is recorded.
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

    /// Records whether a call found Redis unavailable, and returns the call's result unchanged.
    pub(super) fn record<T>(&self, result: Result<T>) -> Result<T> {
        if matches!(result, Err(FanoutError::Unavailable(_))) {
            self.record_unavailable(None);
        }
        result
    }

    /// The remaining time of a grace period of this length that began when Redis was last
    /// unavailable; zero if the period is over or Redis was never unavailable.
    pub(super) fn remaining_grace(&self, period: Duration) -> Duration {
        let unavailable_at = self.0.lock().unavailable_at;
        unavailable_at.map_or(Duration::ZERO, |at| period.saturating_sub(at.elapsed()))
    }

    /// Adds the cause of the connection's failure to the error of a call, if the connection is
    /// down.
    pub(super) fn explain(&self, error: FanoutError) -> FanoutError {
        match (error, self.0.lock().cause.clone()) {
            (FanoutError::Unavailable(text), Some(cause)) => {
                FanoutError::Unavailable(format!("{text}: {cause}"))
            }
            (error, _) => error,
        }
    }
}

/// Describes an error of the client library. Its details are cut after 120 characters, because
/// Redis may quote a command's arguments in them.
fn describe(error: &Error) -> String {
    let details: String = error.details().chars().take(120).collect();
    format!("{} ({details})", error.kind().to_str())
}
