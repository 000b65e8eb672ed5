//! Adds a connection to its user's connections at its start, and removes it at its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::fanout::FanoutError;
use crate::gateway::client::Client;
use crate::gateway::context::Gateway;
use crate::gateway::mailbox_sync;
use crate::gateway::session::{Protocol, Session};
use crate::gateway::sessions::UserSessions;
use crate::protocol::close::CloseReason;

/// Subscribes to the user's channels and prepares the connection for delivery, with retries while
/// the fan-out is unavailable. Returns the reason for which the connection must be closed where
/// that fails.
pub(super) async fn join(
    gateway: &Gateway,
    session: &Session,
    client: &Client,
) -> Result<Arc<UserSessions>, CloseReason> {
    let deadline = Instant::now() + gateway.settings.produce_timeout;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    // Set after the connection was added, so that only its preparation is repeated.
    let mut joined = None;
    let resume_after = match &session.protocol {
        Protocol::Classic => None,
        Protocol::V1 { resume_after, .. } => resume_after.as_ref(),
    };
    loop {
        let sessions = match joined.take() {
            Some(sessions) => Ok(sessions),
            None => {
                gateway
                    .registry
                    .join(&session.user, client, resume_after)
                    .await
            }
        };
        let (error, operation) = match sessions {
            Ok(sessions) => match prepare_delivery(gateway, session, &sessions, client).await {
                Ok(()) => return Ok(sessions),
                Err(error) => {
                    joined = Some(sessions);
                    (error, "read")
                }
            },
            Err(error) => (error, "subscribe"),
        };
        gateway.metrics.count_fanout_error(operation);
        let pause = backoff.next_delay();
        let is_stopping =
            gateway.drain.is_cancelled() || client.outbound().close_reason().is_some();
        if is_stopping || Instant::now() + pause >= deadline {
            let correlation_id = &*session.correlation_id;
            tracing::warn!(
                correlation_id,
                %error,
                "connection could not be subscribed in time, closing it; check redis"
            );
            if let Some(sessions) = joined {
                leave(gateway, &sessions, client).await;
            }
            return Err(if gateway.drain.is_cancelled() {
                CloseReason::GoingAway
            } else {
                CloseReason::BackendLost
            });
        }
        sleep(pause).await;
    }
}

/// Prepares the delivery to a connection that has subscribed. For a classic connection, reads the
/// position at which the mailbox ends, because the connection receives only later frames; a
/// `chatmesh.v1` connection begins with a read of its own. For both, applies a revocation that was
/// made before the subscription.
async fn prepare_delivery(
    gateway: &Gateway,
    session: &Session,
    sessions: &UserSessions,
    client: &Client,
) -> Result<(), FanoutError> {
    let Client::Classic(classic) = client else {
        check_revocation(gateway, session, client).await;
        return Ok(());
    };
    let view = mailbox_sync::read_mailbox_end(gateway, sessions).await?;
    check_revocation(gateway, session, client).await;
    let mut state = sessions.state();
    state.set_mailbox_start(&view.end);
    if !gateway.settings.interop {
        state.add_pending_from_view(&view);
    }
    drop(state);
    // Can't fail: only this task sets the position, and only once.
    let _ = classic.mailbox_end_at_start.set(view.end);
    Ok(())
}

/// Applies a revocation that was published before the connection had subscribed. Returns early when
/// the connection is closing or the gateway aborts, because no frame is received then.
async fn check_revocation(gateway: &Gateway, session: &Session, client: &Client) {
    let (fanout, metrics) = (&*gateway.fanout, &gateway.metrics);
    tokio::select! {
        () = gateway.revocations.check(fanout, metrics, &session.user) => {}
        () = client.outbound().wait_until_closing() => {}
        () = gateway.abort.cancelled() => {}
    }
}

/// Removes a connection from its user's connections.
pub(super) async fn leave(gateway: &Gateway, sessions: &Arc<UserSessions>, client: &Client) {
    if let Err(error) = gateway.registry.leave(sessions, client).await {
        gateway.metrics.count_fanout_error("unsubscribe");
        tracing::warn!(
            %error,
            "subscription could not be ended, nothing is needed: its frames are ignored"
        );
    }
}
