//! A WebSocket that the reader and the writer of a connection share through a lock. Both run in one
//! task, so that neither waits for the lock.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{FutureExt as _, Sink, SinkExt as _, Stream, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::buffered_stream::BufferedStream;

/// The server side of a WebSocket. A reference to it implements the stream of received messages and
/// the sink for messages to send.
pub(super) struct WebSocket {
    /// `None` only while [`Self::release_buffers`] replaces it.
    stream: Mutex<Option<WebSocketStream<BufferedStream>>>,
}

impl WebSocket {
    pub(super) async fn new(stream: BufferedStream, config: WebSocketConfig) -> Self {
        let stream = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        Self {
            stream: Mutex::new(Some(stream)),
        }
    }

    fn stream(&self) -> MutexGuard<'_, Option<WebSocketStream<BufferedStream>>> {
        self.stream.lock()
    }

    /// Frees the buffers that the library has enlarged for long frames, by replacing its
    /// `WebSocketStream`. Does nothing where the buffers are not empty or not enlarged. The reader
    /// calls this before its next read.
    pub(super) fn release_buffers(&self) {
        let mut stream = self.stream();
        let Some(old) = stream.take_if(|stream| stream.get_ref().can_release_buffers()) else {
            return;
        };
        let config = *old.get_config();
        let mut inner = old.into_inner();
        inner.reset_frame_tracking();
        // `from_raw_socket` returns at once: it is asynchronous only to register the task's waker,
        // which the next read does as well.
        *stream =
            WebSocketStream::from_raw_socket(inner, Role::Server, Some(config)).now_or_never();
    }

    /// Returns the TCP stream under the WebSocket.
    pub(super) fn into_inner(self) -> Option<BufferedStream> {
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
