//! Delivers one frame to one user's connections: parses it, passes a published frame to the
//! `chatmesh.v1` connections, and lets [`UserState`](super::user::UserState) decide whether the
//! classic connections receive a terminal frame now, by a mailbox read, or not at all. `feed` calls
//! it for published frames, `mailbox_sync` and `inbound` for stored frames.

use bytes::Bytes;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::encoder::Encoder as _;
use super::metrics::GatewayMetrics;
use super::sessions::UserSessions;
use super::user::{Delivery, FrameSource};
use super::v1::encoder::V1Encoder;
use super::v1::live_frame::{LiveFrame, LiveFrameKind};
use super::v1::stream_key::StreamKey;
use crate::fanout::Channel;
use crate::protocol::ids::MessageId;
use crate::protocol::position::Position;
use crate::protocol::published::{FrameKind, PublishedFrame};
use crate::protocol::sequence_number::SequenceNumber;
use crate::protocol::v1::DeltaHead;

/// The beginning of every `delta`.
const DELTA_START: &[u8] = br#"{"type":"delta","#;

/// Delivers a frame that was published for the user on `channel`.
pub(super) fn deliver_published(
    metrics: &GatewayMetrics,
    sessions: &UserSessions,
    channel: Channel,
    payload: &Bytes,
) -> Delivery {
    if channel == Channel::Live && forward_delta(sessions, payload) {
        return Delivery::default();
    }
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

/// Passes a `delta` that is no opening to the user's `chatmesh.v1` connections, as it was
/// published: it is neither decoded nor copied. Unlike other frames about an open message it does
/// not make its message pending, because it may arrive after the terminal frame. Returns false
/// where the payload is another frame.
fn forward_delta(sessions: &UserSessions, payload: &Bytes) -> bool {
    if !payload.starts_with(DELTA_START) {
        return false;
    }
    let Ok(text) = Utf8Bytes::try_from(payload.clone()) else {
        return false;
    };
    let Some(head) = DeltaHead::parse(text.as_str()) else {
        return false;
    };
    sessions.state().subscribers.publish_delta(&head, &text);
    sessions.frame_published.notify_waiters();
    true
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
    let kind = live_frame_kind(frame);
    let is_of_stream = matches!(
        kind,
        LiveFrameKind::Opening { .. } | LiveFrameKind::Restarted { .. }
    );
    let text = match frame.kind() {
        // The stream or another field is invalid, so clients could not apply the frame.
        FrameKind::Delta | FrameKind::Restarted if !is_of_stream => None,
        _ => V1Encoder.encode_published(frame, &sessions.user),
    };
    state.subscribers.publish(LiveFrame {
        number: match (&frame.n_id, frame.n) {
            (Some(counter), Some(n)) => Some(SequenceNumber::new(counter, n)),
            _ => None,
        },
        kind,
        message_id: frame.message_id.clone(),
        position: position.cloned(),
        sender_connection: frame.origin.as_deref().map(Into::into),
        text: text.map(Utf8Bytes::from),
        trace: frame.trace(),
    });
    sessions.frame_published.notify_waiters();
    if (is_of_stream || frame.kind() == FrameKind::Accepted)
        && let Some(id) = &frame.message_id
    {
        // The conversation is decoded only from a message's first frame.
        if !state.pending.contains(id) {
            state.add_pending(id, frame.conversation().as_ref());
        }
        state.pending.set_in_log(id);
    }
}

/// What a published frame changes about the answers in flight. A `delta` or `restarted` without a
/// valid stream changes nothing.
fn live_frame_kind(frame: &PublishedFrame<'_>) -> LiveFrameKind {
    let stream_key = |stream: &str| {
        let message_id = frame.message_id.as_ref()?;
        Some(StreamKey::new(message_id.as_str(), stream))
    };
    let kind = match frame.kind() {
        FrameKind::Response | FrameKind::Error | FrameKind::Cancelled => {
            Some(LiveFrameKind::Terminal)
        }
        FrameKind::Delta => frame.opening().and_then(|opening| {
            Some(LiveFrameKind::Opening {
                stream: stream_key(opening.stream.as_str())?,
                range: opening.range,
                previous_end: opening.previous_end,
            })
        }),
        FrameKind::Restarted => frame.stream().and_then(|stream| {
            Some(LiveFrameKind::Restarted {
                stream: stream_key(stream.as_str())?,
            })
        }),
        FrameKind::Accepted | FrameKind::Other => None,
    };
    kind.unwrap_or(LiveFrameKind::Other)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::bench::ConfirmingFeed;
    use super::super::client::Client;
    use super::super::sessions::SessionRegistry;
    use super::super::v1::state::V1State;
    use super::*;
    use crate::protocol::ids::UserId;

    /// Publishes frames on the live channel for a `chatmesh.v1` connection. Returns the messages of
    /// which the user then is known to wait for an answer.
    async fn pending_after(frames: &[&str]) -> Vec<String> {
        let registry = SessionRegistry::default();
        registry.set_feed(Arc::new(ConfirmingFeed));
        let client = Client::V1(Arc::new(V1State::new(1 << 20)));
        let user = UserId::parse("alice").unwrap();
        let sessions = registry.join(&user, &client, None).await.unwrap();
        let metrics = GatewayMetrics::new("s", "t");
        for frame in frames {
            let payload = Bytes::copy_from_slice(frame.as_bytes());
            deliver_published(&metrics, &sessions, Channel::Live, &payload);
        }
        let ids = sessions.state().pending.ids_by_age();
        ids.iter().map(ToString::to_string).collect()
    }

    const DELTA: &str = r#"{"type":"delta","message_id":"m","stream":"s.1","part":0,"offset":2,"end":3,"attempt":1,"conversation_id":"c","content":"x"}"#;
    const OPENING: &str = r#"{"type":"delta","message_id":"m","stream":"s.1","part":0,"offset":0,"end":2,"kind":"text","attempt":1,"conversation_id":"c","content":"Hi","n":1,"n_id":"z"}"#;
    const RESTARTED: &str = r#"{"type":"restarted","userid":"alice","message_id":"m","conversation_id":"c","stream":"s.2","attempt":2,"n":1,"n_id":"z"}"#;
    const TERMINAL: &str = r#"{"type":"response","userid":"alice","message_id":"m","conversation_id":"c","content":"Hi","position":"a~0~1.4","n":2,"n_id":"z"}"#;

    #[tokio::test]
    async fn only_openings_and_restarted_make_a_message_pending() {
        assert_eq!(pending_after(&[OPENING]).await, ["m"]);
        assert_eq!(pending_after(&[RESTARTED]).await, ["m"]);
        assert_eq!(pending_after(&[DELTA]).await, [""; 0]);
        // The fields stand in another order, so the frame is decoded as a whole.
        let reordered = r#"{"type":"delta","part":0,"message_id":"m","stream":"s.1","offset":2,"end":3,"attempt":1,"content":"x"}"#;
        assert_eq!(pending_after(&[reordered]).await, [""; 0]);
        assert_eq!(pending_after(&[OPENING, TERMINAL, DELTA]).await, [""; 0]);
    }
}
