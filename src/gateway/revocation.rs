//! Closes the sockets of users whose tokens were revoked (protocol.md section 3, `revoke`).
//!
//! A revocation is published to the gateways, and remembered by the fan-out. A socket that came
//! while it was made looks after it has subscribed, and all look again after a gap: so none stays.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::Gateway;
use super::user::Socket;
use crate::backoff::Backoff;
use crate::config::settings::AuthMode;
use crate::fanout::REVOKED_FRAME;
use crate::protocol::close::CloseReason;
use crate::protocol::ids::UserId;

struct Listed {
    /// Milliseconds since the Unix epoch: revocations before it don't concern this socket.
    granted_ms: i64,
    socket: Arc<Socket>,
}

/// The sockets of this gateway, by user.
#[derive(Default)]
pub(super) struct Revocations {
    users: DashMap<UserId, Vec<Listed>>,
    /// Published frames may have been lost.
    pub(super) gap: Notify,
}

/// Takes a socket out of the list when it is dropped.
pub(super) struct Guard<'a> {
    list: &'a Revocations,
    user: UserId,
    socket: Arc<Socket>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.list.users.remove_if_mut(&self.user, |_, sockets| {
            sockets.retain(|other| !Arc::ptr_eq(&other.socket, &self.socket));
            sockets.is_empty()
        });
    }
}

impl Revocations {
    pub(super) fn list(&self, user: &UserId, granted_ms: i64, socket: &Arc<Socket>) -> Guard<'_> {
        let mut sockets = self.users.entry(user.clone()).or_default();
        // Mostly there is one: a vector would begin with room for four.
        if sockets.capacity() == 0 {
            sockets.reserve_exact(1);
        }
        sockets.push(Listed {
            granted_ms,
            socket: socket.clone(),
        });
        drop(sockets);
        Guard {
            list: self,
            user: user.clone(),
            socket: socket.clone(),
        }
    }

    /// The user's tokens of up to `at_ms` are no longer good.
    fn revoked(&self, user: &UserId, at_ms: i64) {
        let Some(sockets) = self.users.get(user) else {
            return;
        };
        for listed in sockets.iter().filter(|it| it.granted_ms <= at_ms) {
            listed.socket.outbound.close(CloseReason::Unauthorized);
        }
    }
}

/// Looks at what was published.
pub(super) fn published(gateway: &Gateway, user: &UserId, payload: &[u8]) {
    #[derive(Deserialize)]
    struct Revoked<'a> {
        userid: &'a str,
        at_ms: i64,
    }
    if !payload.starts_with(REVOKED_FRAME.as_bytes()) {
        return;
    }
    match serde_json::from_slice::<Revoked<'_>>(payload) {
        Ok(it) if it.userid == user.as_str() => gateway.revocations.revoked(user, it.at_ms),
        _ => gateway.counters.message_error("unreadable_frame"),
    }
}

/// A socket that has subscribed looks whether it came too late.
pub(super) async fn look(gateway: &Gateway, user: &UserId) {
    if gateway.settings.auth == AuthMode::Open {
        return;
    }
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match gateway.fanout.revoked_at(user).await {
            Ok(Some(at_ms)) => return gateway.revocations.revoked(user, at_ms),
            Ok(None) => return,
            Err(error) => {
                gateway.counters.redis_error("revoked_at");
                tracing::debug!(%error, "revocations can't be looked up, trying again");
            }
        }
        if !gateway.revocations.users.contains_key(user) {
            return;
        }
        sleep(backoff.next_delay()).await;
    }
}

/// Looks for everybody again after each gap. Never returns.
pub(super) async fn after_gaps(gateway: &Gateway) {
    loop {
        gateway.revocations.gap.notified().await;
        let users = gateway.revocations.users.iter();
        let users: Vec<UserId> = users.map(|entry| entry.key().clone()).collect();
        for user in users {
            look(gateway, &user).await;
        }
    }
}
