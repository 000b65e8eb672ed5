//! Takes what is published for the users here, and hands it to their sockets.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::counters::Counters;
use super::registry::Entry;
use super::user::{Source, Taken};
use super::v1::followers::{Live, Mark};
use super::{Gateway, GatewayError, revocation};
use crate::backoff::Backoff;
use crate::fanout::{Channel, FeedEvent};
use crate::protocol::frame::{Kind, Published};
use crate::protocol::ids::MessageId;
use crate::protocol::position::Position;
use crate::protocol::v1;

/// Events between the fan-out and the one task that hands them out; over it, a gap.
const EVENTS: usize = 65_536;

/// Messages to be taken out of `pending` beside an original relay; over it they stay there, as a
/// hint that is wrong until it expires.
const CLEARS: usize = 1024;

/// Opens the subscriptions, waiting for a fan-out that is away, and hands out what comes. Never
/// waits for a socket.
pub(super) async fn run(gateway: Arc<Gateway>) -> Result<(), GatewayError> {
    let (clears, to_clear) = mpsc::channel(CLEARS);
    let clearing = clear_pending(gateway.clone(), to_clear);
    let handing_out = hand_out(&gateway, clears);
    tokio::select! {
        result = handing_out => result,
        () = clearing => Ok(()),
        () = revocation::after_gaps(&gateway) => Ok(()),
        () = gateway.force.cancelled() => Ok(()),
    }
}

/// The name under which readiness speaks of a gateway that can't receive answers yet.
pub(super) const SUBSCRIPTIONS: &str = "subscriptions";

type Clears = mpsc::Sender<(Arc<Entry>, MessageId)>;

async fn hand_out(gateway: &Gateway, clears: Clears) -> Result<(), GatewayError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let (feed, mut events) = loop {
        match gateway.fanout.open_feed(EVENTS).await {
            Ok(opened) => break opened,
            Err(error) => {
                gateway.counters.redis_error("feed");
                tracing::warn!(%error, "waiting for the fan-out");
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
            } => {
                gateway.counters.redis_messages.increment(1);
                revocation::published(gateway, &user, &payload);
                let Some(entry) = gateway.registry.get(&user) else {
                    continue;
                };
                let taken = published(&gateway.counters, &entry, channel, &payload);
                if taken.left {
                    gateway.registry.left(entry.clone());
                }
                if let Some(ended) = taken.ended
                    && gateway.settings.interop
                    && clears.try_send((entry, ended)).is_err()
                {
                    gateway.counters.redis_error("clear_pending");
                }
            }
            FeedEvent::Gap => {
                tracing::info!("published frames may have been lost, reading the mailboxes");
                gateway.counters.gaps.increment(1);
                gateway.registry.lost_frames();
                gateway.revocations.gap.notify_one();
            }
        }
    }
    Err(GatewayError::FeedEnded)
}

/// Hands what was published to the sockets of `entry`.
pub(super) fn published(
    counters: &Counters,
    entry: &Entry,
    channel: Channel,
    payload: &[u8],
) -> Taken {
    let Some(frame) = parse(counters, entry, payload) else {
        return Taken::default();
    };
    let position: Option<Position> = frame.position.as_deref().and_then(|at| at.parse().ok());
    let mut state = entry.state();
    if !state.followers.is_empty() {
        let text = v1::of_published(&frame, &entry.user);
        state.followers.publish(Live {
            mark: match (&frame.n_id, frame.n) {
                (Some(n_id), Some(n)) => Some(Mark::new(n_id, n)),
                _ => None,
            },
            terminal: frame.is_terminal(),
            message_id: frame.message_id.clone(),
            position: position.clone(),
            origin: frame.origin.as_deref().map(Into::into),
            text: text.map(Utf8Bytes::from),
            trace: frame.trace(),
        });
        entry.published.notify_waiters();
        if matches!(frame.kind(), Kind::Accepted | Kind::Delta | Kind::Restarted)
            && let Some(id) = &frame.message_id
        {
            // Pieces come often, and only the first frame is news.
            if !state.awaited.has(id) {
                state.under_way(id, frame.conversation().as_ref());
            }
            state.awaited.is_in_log(id);
        }
    }
    drop(state);
    if !frame.is_terminal() {
        return Taken::default();
    }
    let source = match channel {
        // Of a rewind: classic sockets have no positions, and get only what they wait for.
        Channel::Live => Source::Rewind,
        _ => Source::Live,
    };
    hand_out_terminal(entry, &frame, position, source)
}

/// Reads a frame; `None` where it is none, or another user's.
fn parse<'a>(counters: &Counters, entry: &Entry, payload: &'a [u8]) -> Option<Published<'a>> {
    let frame = match Published::parse(payload) {
        Ok(frame) => frame,
        Err(error) => {
            counters.message_error("unreadable_frame");
            let (line, column) = (error.line(), error.column());
            tracing::warn!(line, column, "a published frame can't be read");
            return None;
        }
    };
    if frame
        .userid
        .as_deref()
        .is_some_and(|named| named != entry.user.as_str())
    {
        counters.message_error("foreign_frame");
        tracing::error!("a published frame names another user than its channel, not delivered");
        return None;
    }
    Some(frame)
}

/// Tells a kept frame to the classic sockets of `entry` that have not had it.
pub(super) fn take(
    gateway: &Gateway,
    entry: &Entry,
    payload: &[u8],
    position: Position,
    source: Source,
) -> Taken {
    match parse(&gateway.counters, entry, payload) {
        Some(frame) => hand_out_terminal(entry, &frame, Some(position), source),
        None => Taken::default(),
    }
}

fn hand_out_terminal(
    entry: &Entry,
    frame: &Published<'_>,
    position: Option<Position>,
    source: Source,
) -> Taken {
    let taken = entry.state().take(&entry.user, frame, position, source);
    if taken.told {
        tracing::debug!(
            correlation_id = frame.correlation_id.as_deref().unwrap_or_default(),
            message_id = frame.message_id.as_ref().map_or("", MessageId::as_str),
            trace_id = frame
                .trace()
                .map(|trace| tracing::field::display(trace.trace_id())),
            ?source,
            "answer handed to the user's sockets"
        );
    }
    taken
}

async fn clear_pending(gateway: Arc<Gateway>, mut ended: mpsc::Receiver<(Arc<Entry>, MessageId)>) {
    while let Some((entry, message_id)) = ended.recv().await {
        let cleared = gateway.fanout.clear_pending(&entry.user, &message_id);
        if let Err(error) = cleared.await {
            gateway.counters.redis_error("clear_pending");
            tracing::debug!(%error, %message_id, "a message stays pending");
        }
    }
}
