//! Closes the connections of users whose tokens were revoked (docs/consistency.md, `revoke`).
//!
//! A revocation is published to all gateways and stored by the fan-out. A connection looks it up
//! after it has subscribed, and all connections look it up again after a gap in the feed, so no
//! connection survives a revocation that it missed.

use std::time::Duration;

use dashmap::DashMap;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::client::Client;
use super::metrics::GatewayMetrics;
use crate::backoff::Backoff;
use crate::config::settings::AuthMode;
use crate::fanout::{REVOKED_FRAME, Tokens};
use crate::protocol::close::CloseReason;
use crate::protocol::ids::UserId;

struct RevocableConnection {
    /// Milliseconds since the Unix epoch. Revocations up to this time don't concern the connection.
    granted_at_ms: i64,
    client: Client,
}

/// The connections of this gateway that a revocation can close, by user.
pub(super) struct Revocations {
    /// False where no tokens are checked, so that there is nothing to revoke.
    checks_tokens: bool,
    connections: DashMap<UserId, Vec<RevocableConnection>>,
    gap_detected: Notify,
}

/// Removes a connection from [`Revocations`] when it is dropped.
pub(super) struct RevocationGuard<'a> {
    revocations: &'a Revocations,
    user: UserId,
    client: Client,
}

impl Drop for RevocationGuard<'_> {
    fn drop(&mut self) {
        let all = &self.revocations.connections;
        all.remove_if_mut(&self.user, |_, connections| {
            connections.retain(|other| !other.client.is_same(&self.client));
            connections.is_empty()
        });
    }
}

impl Revocations {
    pub(super) fn new(auth: AuthMode) -> Self {
        Self {
            checks_tokens: auth != AuthMode::Open,
            connections: DashMap::new(),
            gap_detected: Notify::new(),
        }
    }

    /// Adds a connection until the guard is dropped. `granted_at_ms` is when its token was issued,
    /// or when it was looked up.
    pub(super) fn register(
        &self,
        user: &UserId,
        granted_at_ms: i64,
        client: &Client,
    ) -> RevocationGuard<'_> {
        let mut connections = self.connections.entry(user.clone()).or_default();
        // Most users have one connection, and a vector would begin with room for four.
        if connections.capacity() == 0 {
            connections.reserve_exact(1);
        }
        connections.push(RevocableConnection {
            granted_at_ms,
            client: client.clone(),
        });
        drop(connections);
        RevocationGuard {
            revocations: self,
            user: user.clone(),
            client: client.clone(),
        }
    }

    /// Closes the user's connections with tokens that were granted up to `revoked_at_ms`.
    fn close_revoked(&self, user: &UserId, revoked_at_ms: i64) {
        let Some(connections) = self.connections.get(user) else {
            return;
        };
        let revoked = connections
            .iter()
            .filter(|connection| connection.granted_at_ms <= revoked_at_ms);
        for connection in revoked {
            let outbound = connection.client.outbound();
            outbound.close(CloseReason::Unauthorized);
        }
    }

    /// Applies a published frame, if it is a revocation.
    pub(super) fn handle_published(&self, metrics: &GatewayMetrics, user: &UserId, payload: &[u8]) {
        #[derive(Deserialize)]
        struct RevokedFrame<'a> {
            userid: &'a str,
            at_ms: i64,
        }
        if !payload.starts_with(REVOKED_FRAME.as_bytes()) {
            return;
        }
        match serde_json::from_slice::<RevokedFrame<'_>>(payload) {
            Ok(frame) if frame.userid == user.as_str() => self.close_revoked(user, frame.at_ms),
            _ => metrics.count_message_error("unreadable_frame"),
        }
    }

    /// Looks up the last revocation of the user's tokens and applies it. Repeats the call while the
    /// fan-out is unavailable and the user has connections.
    pub(super) async fn check(&self, fanout: &dyn Tokens, metrics: &GatewayMetrics, user: &UserId) {
        if !self.checks_tokens {
            return;
        }
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match fanout.revoked_at(user).await {
                Ok(Some(at_ms)) => return self.close_revoked(user, at_ms),
                Ok(None) => return,
                Err(error) => {
                    metrics.count_fanout_error("revoked_at");
                    tracing::debug!(%error, "revocation could not be looked up, trying again");
                }
            }
            if !self.connections.contains_key(user) {
                return;
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Requests a look-up for all users: published revocations may have been lost.
    pub(super) fn record_gap(&self) {
        self.gap_detected.notify_one();
    }

    /// Looks up the revocations of all connected users after each gap. Never returns.
    pub(super) async fn check_after_gaps(&self, fanout: &dyn Tokens, metrics: &GatewayMetrics) {
        loop {
            self.gap_detected.notified().await;
            let users = self.connections.iter().map(|entry| entry.key().clone());
            let users: Vec<UserId> = users.collect();
            for user in users {
                self.check(fanout, metrics, &user).await;
            }
        }
    }
}
