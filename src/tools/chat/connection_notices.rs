//! Tells the person at the terminal about changes of the connection.

use std::future::pending;

use tokio::sync::watch;

use super::sanitize::sanitize;
use crate::client::State;

/// Turns the states of the connection into notices, without repeating a notice for each attempt to
/// connect that fails for the same reason.
pub(super) struct ConnectionNotices {
    state: watch::Receiver<State>,
    /// Why there is no connection, as the last notice said. `None` while there is a connection.
    shown_reason: Option<String>,
}

impl ConnectionNotices {
    pub(super) const fn new(state: watch::Receiver<State>) -> Self {
        Self {
            state,
            shown_reason: None,
        }
    }

    /// Waits until there is a notice to show, and returns it. Cancel-safe.
    pub(super) async fn next(&mut self) -> String {
        loop {
            if self.state.changed().await.is_err() {
                // The client has ended, so its state does not change any more.
                pending::<()>().await;
            }
            let state = self.state.borrow_and_update().clone();
            if let Some(notice) = self.notice(&state) {
                return sanitize(&notice);
            }
        }
    }

    fn notice(&mut self, state: &State) -> Option<String> {
        match state {
            State::Connected => {
                self.shown_reason = None;
                Some("connected again".to_owned())
            }
            State::Reconnecting(reason) => {
                let shown = self.shown_reason.replace(reason.clone());
                match shown {
                    None => Some(format!("connection lost ({reason}), reconnecting…")),
                    Some(shown) if shown == *reason => None,
                    Some(_) => Some(format!("not connected yet ({reason}), reconnecting…")),
                }
            }
            State::Closed(reason) => Some(format!("the connection is closed: {reason}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reason_of_failed_attempts_is_shown_once() {
        let (sender, receiver) = watch::channel(State::Connected);
        let mut notices = ConnectionNotices::new(receiver);
        let mut shown = Vec::new();
        let states = [
            State::Reconnecting("going away".into()),
            State::Reconnecting("refused".into()),
            State::Reconnecting("refused".into()),
            State::Connected,
            State::Reconnecting("refused".into()),
        ];
        for state in states {
            sender.send_replace(state);
            let next = tokio::time::timeout(std::time::Duration::from_secs(1), notices.next());
            shown.extend(next.await);
        }
        assert_eq!(
            shown,
            [
                "connection lost (going away), reconnecting…",
                "not connected yet (refused), reconnecting…",
                "connected again",
                "connection lost (refused), reconnecting…",
            ]
        );
    }
}
