//! Names a stream of an answer in the gateway's own state.

use std::sync::Arc;

/// The message that is being answered, and the stream of one attempt at its answer. Clones share
/// the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::gateway) struct StreamKey {
    pub(super) message_id: Arc<str>,
    pub(super) stream: Arc<str>,
}

impl StreamKey {
    pub(in crate::gateway) fn new(message_id: &str, stream: &str) -> Self {
        Self {
            message_id: message_id.into(),
            stream: stream.into(),
        }
    }

    /// Whether this is the key of `stream` of the answer to message `message_id`.
    pub(super) fn is(&self, message_id: &str, stream: &str) -> bool {
        *self.stream == *stream && *self.message_id == *message_id
    }
}
