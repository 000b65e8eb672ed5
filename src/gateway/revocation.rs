//! Closes the connections of users whose tokens were revoked (docs/consistency.md, `revoke`).
//!
//! A revocation is published to all gateways, and the fan-out stores its time. A gateway looks the
//! time up after a connection has subscribed, and for all connected users after a gap in the feed,
//! so that it also applies a revocation whose publication it has not received.

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

/// A connection that is closed when the tokens of its user are revoked.
struct RevocableConnection {
    /// When the connection's grant began, in milliseconds since the Unix epoch. Revocations before
    /// this time don't affect the connection.
    granted_at_ms: i64,
    client: Client,
}

/// The connections of this gateway that a revocation can close, by user.
pub(super) struct Revocations {
    /// Whether the gateway checks tokens. If not (`AUTH_MODE=open`), no revocation is looked up.
    checks_tokens: bool,
    connections: DashMap<UserId, Vec<RevocableConnection>>,
    /// Notified when published revocations may have been lost.
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

    /// Adds a connection until the returned guard is dropped. `granted_at_ms` is the time at which
    /// its signed token was issued, or any other token was checked.
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

    /// Closes the user's connections whose grant began at `revoked_at_ms` or before.
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

    /// Applies a published frame of type `revoked`, and ignores any other frame.
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

    /// Looks up the last revocation of the user's tokens and applies it. A call that fails is
    /// repeated as long as the user has connections.
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

    /// Requests a look-up for all users, because published revocations may have been lost.
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
