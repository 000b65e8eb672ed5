//! Why Redis can't be reached: what the connection last failed of, for people.

use std::sync::{Arc, Mutex, PoisonError};

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::EventInterface;

use crate::fanout::FanoutError;

/// The last failure of a client's connection, forgotten once it is connected. While it is not, a
/// call only sees that nothing answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// Watches a client until it ends; begin before it connects.
    pub(super) fn watch(client: &Client) -> Self {
        let trouble = Self::default();
        let (failed, connected) = (trouble.clone(), trouble.clone());
        client.on_error(move |(error, _)| {
            let failed = failed.clone();
            async move {
                failed.set(Some(describe(&error)));
                Ok(())
            }
        });
        client.on_reconnect(move |_| {
            let connected = connected.clone();
            async move {
                connected.set(None);
                Ok(())
            }
        });
        trouble
    }

    fn set(&self, trouble: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Adds the cause to a call's error, where one is known.
    pub(super) fn explain(&self, error: FanoutError) -> FanoutError {
        let cause = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match (error, cause) {
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
