//! Owns the subscription to the fan-out: receives the frames that are published for the users of
//! this gateway, and passes them to the users' connections.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::context::{Gateway, GatewayError};
use super::delivery;
use super::sessions::UserSessions;
use crate::backoff::Backoff;
use crate::fanout::{Channel, FeedEvent};
use crate::protocol::ids::{MessageId, UserId};

/// Maximum number of events in the queue from the fan-out to [`distribute`]. If the queue is full,
/// frames are dropped and a gap is reported.
const EVENT_QUEUE_CAPACITY: usize = 65_536;

/// Maximum number of messages in the queue to [`clear_pending`]. If the queue is full, a message
/// stays pending in the fan-out until it expires.
const CLEAR_QUEUE_CAPACITY: usize = 1024;

/// Name under which readiness reports whether the gateway can receive answers.
pub(super) const SUBSCRIPTIONS: &str = "subscriptions";

/// Sends a user's answered messages to [`clear_pending`].
type ClearSender = mpsc::Sender<(Arc<UserSessions>, MessageId)>;

/// Opens the feed, with retries while the fan-out is unavailable, and distributes its events. Never
/// waits for a connection. Returns when the feed ends, or the gateway is aborted.
pub(super) async fn run(gateway: Arc<Gateway>) -> Result<(), GatewayError> {
    let (clear_sender, answered_messages) = mpsc::channel(CLEAR_QUEUE_CAPACITY);
    let clearing = clear_pending(&gateway, answered_messages);
    let distributing = distribute(&gateway, clear_sender);
    let revoking = gateway
        .revocations
        .check_after_gaps(&*gateway.fanout, &gateway.metrics);
    tokio::select! {
        result = distributing => result,
        () = clearing => Ok(()),
        () = revoking => Ok(()),
        () = gateway.abort.cancelled() => Ok(()),
    }
}

/// Opens the feed. Passes each published frame to the connections of its user, and records each gap
/// for all users.
async fn distribute(gateway: &Gateway, clear_sender: ClearSender) -> Result<(), GatewayError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let (feed, mut events) = loop {
        match gateway.fanout.open_feed(EVENT_QUEUE_CAPACITY).await {
            Ok(opened) => break opened,
            Err(error) => {
                gateway.metrics.count_fanout_error("feed");
                tracing::warn!(
                    %error,
                    "fan-out unavailable, retrying the subscription; check redis"
                );
                sleep(backoff.next_delay()).await;
            }
        }
    };
    gateway.registry.set_feed(feed);
    gateway.health.set(SUBSCRIPTIONS, Ok(()));
    while let Some(event) = events.recv().await {
        match event {
            FeedEvent::Frame {
                user,
                channel,
                payload,
            } => distribute_frame(gateway, &clear_sender, &user, channel, &payload),
            FeedEvent::Gap => {
                tracing::info!("published frames may have been lost, reading all mailboxes");
                gateway.metrics.feed_gaps.increment(1);
                gateway.registry.record_gap();
                gateway.revocations.record_gap();
            }
        }
    }
    Err(GatewayError::FeedEnded)
}

fn distribute_frame(
    gateway: &Gateway,
    clear_sender: &ClearSender,
    user: &UserId,
    channel: Channel,
    payload: &Bytes,
) {
    gateway.metrics.published_frames.increment(1);
    gateway
        .revocations
        .handle_published(&gateway.metrics, user, payload);
    let Some(sessions) = gateway.registry.get(user) else {
        return;
    };
    let delivery = delivery::deliver_published(&gateway.metrics, &sessions, channel, payload);
    if delivery.needs_read() {
        gateway.registry.request_immediate_read(sessions.clone());
    }
    if let Some(message_id) = delivery.answered_message
        && gateway.settings.interop
        && clear_sender.try_send((sessions, message_id)).is_err()
    {
        gateway.metrics.count_fanout_error("clear_pending");
    }
}

/// Removes answered messages from the pending messages in the fan-out. Receives messages only
/// beside an original relay (`INTEROP`), which does not remove them itself.
async fn clear_pending(
    gateway: &Gateway,
    mut answered_messages: mpsc::Receiver<(Arc<UserSessions>, MessageId)>,
) {
    while let Some((sessions, message_id)) = answered_messages.recv().await {
        let cleared = gateway.fanout.clear_pending(&sessions.user, &message_id);
        if let Err(error) = cleared.await {
            gateway.metrics.count_fanout_error("clear_pending");
            tracing::debug!(
                %error,
                %message_id,
                "answered message remains pending until it expires"
            );
        }
    }
}
