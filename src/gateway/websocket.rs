//! A WebSocket as its reader and its writer share it.
//!
//! Both are of one task, so that neither ever waits for the other.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{FutureExt as _, Sink, SinkExt as _, Stream, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::wire::Wire;

/// See the module. A reference to it is a stream of what comes and a sink of what goes.
pub(super) struct WebSocket {
    /// Always there, but for the moment in which it is made anew.
    stream: Mutex<Option<WebSocketStream<Wire>>>,
}

impl WebSocket {
    pub(super) async fn new(wire: Wire, config: WebSocketConfig) -> Self {
        let stream = WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).await;
        Self {
            stream: Mutex::new(Some(stream)),
        }
    }

    fn stream(&self) -> MutexGuard<'_, Option<WebSocketStream<Wire>>> {
        self.stream.lock()
    }

    /// Gives back the memory that long frames have left behind, where nothing is under way. For
    /// the reader, which then reads on.
    pub(super) fn rest(&self) {
        let mut stream = self.stream();
        let Some(old) = stream.take_if(|stream| stream.get_ref().is_worth_anew()) else {
            return;
        };
        let config = *old.get_config();
        let mut wire = old.into_inner();
        wire.begin_anew();
        // Only asynchronous to know the task, which it also learns when it is next read.
        *stream = WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).now_or_never();
    }

    /// What it was made of.
    pub(super) fn into_wire(self) -> Option<Wire> {
        Some(self.stream.into_inner()?.into_inner())
    }
}

impl Stream for &WebSocket {
    type Item = Result<Message, WsError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut *self.stream() {
            Some(stream) => stream.poll_next_unpin(cx),
            None => Poll::Ready(None),
        }
    }
}

impl Sink<Message> for &WebSocket {
    type Error = WsError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        match &mut *self.stream() {
            Some(stream) => stream.poll_ready_unpin(cx),
            None => Poll::Ready(Err(WsError::AlreadyClosed)),
        }
    }

    fn start_send(self: Pin<&mut Self>, message: Message) -> Result<(), WsError> {
        match &mut *self.stream() {
            Some(stream) => stream.start_send_unpin(message),
            None => Err(WsError::AlreadyClosed),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        match &mut *self.stream() {
            Some(stream) => stream.poll_flush_unpin(cx),
            None => Poll::Ready(Err(WsError::AlreadyClosed)),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        match &mut *self.stream() {
            Some(stream) => stream.poll_close_unpin(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
