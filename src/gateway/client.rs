//! The handle by which the gateway's tasks send to one connection, in either protocol.

use std::sync::Arc;

use super::classic::encoder::ClassicEncoder;
use super::classic::state::ClassicState;
use super::encoder::Encoder;
use super::outbound::OutboundQueue;
use super::session::Protocol;
use super::v1::encoder::V1Encoder;
use super::v1::state::V1State;

/// A handle to the state of one connection. All tasks that send to the connection share the state.
#[derive(Clone)]
pub(super) enum Client {
    Classic(Arc<ClassicState>),
    V1(Arc<V1State>),
}

impl Client {
    /// Creates the state of a connection whose outbound queue is limited to `queue_bytes`.
    pub(super) fn new(protocol: &Protocol, queue_bytes: usize) -> Self {
        match protocol {
            Protocol::Classic => Self::Classic(Arc::new(ClassicState::new(queue_bytes))),
            Protocol::V1 { .. } => Self::V1(Arc::new(V1State::new(queue_bytes))),
        }
    }

    pub(super) fn outbound(&self) -> &OutboundQueue {
        match self {
            Self::Classic(classic) => &classic.outbound,
            Self::V1(v1) => &v1.outbound,
        }
    }

    pub(super) fn encoder(&self) -> &'static dyn Encoder {
        match self {
            Self::Classic(_) => &ClassicEncoder,
            Self::V1(_) => &V1Encoder,
        }
    }

    /// Whether `self` and `other` are handles to the same connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Classic(one), Self::Classic(other)) => Arc::ptr_eq(one, other),
            (Self::V1(one), Self::V1(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Whether frames from the client may be read: on `chatmesh.v1` only after `welcome` is queued,
    /// because no reply may precede it.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Classic(_) => true,
            Self::V1(v1) => v1.is_welcomed(),
        }
    }

    /// Queues the gateway's own reply to a frame of this client. On `chatmesh.v1` a reply may use
    /// the queue's reserve; on the classic protocol it counts against the limit like any frame.
    pub(super) fn push_reply(&self, frame: String) {
        match self {
            Self::Classic(classic) => classic.outbound.push(frame.into()),
            Self::V1(v1) => v1.outbound.push_control(frame.into()),
        }
    }
}
