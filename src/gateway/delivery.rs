//! Delivers one frame to one user's connections: parses it, passes a published frame to the
//! `chatmesh.v1` connections, and lets [`UserState`](super::user::UserState) decide whether the
//! classic connections receive a terminal frame now, by a mailbox read, or not at all. `feed` calls
//! it for published frames, `mailbox_sync` and `inbound` for stored frames.

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::encoder::Encoder as _;
use super::metrics::GatewayMetrics;
use super::sessions::UserSessions;
use super::user::{Delivery, FrameSource};
use super::v1::encoder::V1Encoder;
use super::v1::live_frame::LiveFrame;
use crate::fanout::Channel;
use crate::protocol::ids::MessageId;
use crate::protocol::position::Position;
use crate::protocol::published::{FrameKind, PublishedFrame};
use crate::protocol::sequence_number::SequenceNumber;

/// Delivers a frame that was published for the user on `channel`.
pub(super) fn deliver_published(
    metrics: &GatewayMetrics,
    sessions: &UserSessions,
    channel: Channel,
    payload: &[u8],
) -> Delivery {
    let Some(frame) = parse(metrics, sessions, payload) else {
        return Delivery::default();
    };
    let position: Option<Position> = frame.position.as_deref().and_then(|text| text.parse().ok());
    deliver_to_subscribers(sessions, &frame, position.as_ref());
    if !frame.is_terminal() {
        return Delivery::default();
    }
    let source = match channel {
        // A terminal frame on the live channel comes from a relay's rewind, which does not publish
        // on the terminal channel, because classic clients would receive old answers again.
        Channel::Live => FrameSource::PublishedByRewind,
        _ => FrameSource::Published,
    };
    deliver_terminal(sessions, &frame, position, source)
}

/// Delivers a stored terminal frame to the classic connections.
pub(super) fn deliver_stored(
    metrics: &GatewayMetrics,
    sessions: &UserSessions,
    payload: &[u8],
    position: Position,
    source: FrameSource,
) -> Delivery {
    match parse(metrics, sessions, payload) {
        Some(frame) => deliver_terminal(sessions, &frame, Some(position), source),
        None => Delivery::default(),
    }
}

/// Parses a frame. Returns `None`, and counts an error, where the frame is malformed or names
/// another user.
fn parse<'a>(
    metrics: &GatewayMetrics,
    sessions: &UserSessions,
    payload: &'a [u8],
) -> Option<PublishedFrame<'a>> {
    let frame = match PublishedFrame::parse(payload) {
        Ok(frame) => frame,
        Err(error) => {
            metrics.count_message_error("unreadable_frame");
            let (line, column) = (error.line(), error.column());
            tracing::warn!(
                line,
                column,
                "published frame is malformed, not delivered; check what else publishes to redis"
            );
            return None;
        }
    };
    let is_foreign = frame
        .userid
        .as_deref()
        .is_some_and(|named| named != sessions.user.as_str());
    if is_foreign {
        metrics.count_message_error("foreign_frame");
        tracing::error!(
            "published frame names another user than its channel, not delivered; check what else \
             publishes to redis"
        );
        return None;
    }
    Some(frame)
}

/// Passes a published frame to the user's `chatmesh.v1` connections.
fn deliver_to_subscribers(
    sessions: &UserSessions,
    frame: &PublishedFrame<'_>,
    position: Option<&Position>,
) {
    let mut state = sessions.state();
    if state.subscribers.is_empty() {
        return;
    }
    state.subscribers.publish(LiveFrame {
        number: match (&frame.n_id, frame.n) {
            (Some(counter), Some(n)) => Some(SequenceNumber::new(counter, n)),
            _ => None,
        },
        is_terminal: frame.is_terminal(),
        message_id: frame.message_id.clone(),
        position: position.cloned(),
        sender_connection: frame.origin.as_deref().map(Into::into),
        text: V1Encoder
            .encode_published(frame, &sessions.user)
            .map(Utf8Bytes::from),
        trace: frame.trace(),
    });
    sessions.frame_published.notify_waiters();
    if matches!(
        frame.kind(),
        FrameKind::Accepted | FrameKind::Delta | FrameKind::Restarted
    ) && let Some(id) = &frame.message_id
    {
        // Deltas are frequent, so the conversation is decoded only from a message's first frame.
        if !state.pending.contains(id) {
            state.add_pending(id, frame.conversation().as_ref());
        }
        state.pending.set_in_log(id);
    }
}

/// Lets the user's state decide about a terminal frame, and logs a delivery.
fn deliver_terminal(
    sessions: &UserSessions,
    frame: &PublishedFrame<'_>,
    position: Option<Position>,
    source: FrameSource,
) -> Delivery {
    let delivery = sessions
        .state()
        .deliver_terminal(&sessions.user, frame, position, source);
    if delivery.is_delivered() {
        tracing::debug!(
            correlation_id = frame.correlation_id.as_deref().unwrap_or_default(),
            message_id = frame.message_id.as_ref().map_or("", MessageId::as_str),
            trace_id = frame
                .trace()
                .map(|trace| tracing::field::display(trace.trace_id())),
            ?source,
            "answer delivered to the user's connections"
        );
    }
    delivery
}
