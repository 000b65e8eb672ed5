//! Runs one WebSocket connection from its upgrade to its end: reads the client's frames, writes the
//! outbound queue, and completes the closing handshake. Called by the HTTP server.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};

use super::auth;
use super::buffered_stream::{self, BufferedStream};
use super::client::Client;
use super::context::Gateway;
use super::inbound::Inbound;
use super::limits::ConnectionPermit;
use super::session::Session;
use super::websocket::WebSocket;
use crate::protocol::close::CloseReason;

mod join;
mod keepalive;
mod receive;

use join::{join, leave};
use receive::receive_frames;

/// Time after which a connection is dropped because its upgraded stream is still not available.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time within which a client must complete its part of the closing handshake.
const CLOSING_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Room in bytes of the library's write buffer, beyond twice the outbound queue's limit, for a
/// frame that exceeds the limit: an empty queue accepts a frame of any size.
const OVERSIZED_FRAME_BYTES: usize = 8 << 20;

/// Maximum number of reads, of up to 256 bytes each, that are discarded at the end of a connection.
const MAX_DISCARDED_READS: usize = 32_768;

/// How the receive loop has left the client's stream of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamEnd {
    /// More frames can be read, up to the client's close frame.
    Orderly,
    /// No further frame can be read, so the client can't complete the closing handshake.
    Broken,
}

/// The stream of frames from a client. A [`WebSocket`] is read through a shared reference.
type Frames<'a> = &'a WebSocket;

/// Counts an open connection and logs its start. Dropping the guard counts and logs its end.
struct ConnectionGuard<'a> {
    gateway: &'a Gateway,
    client: &'a Client,
    session: &'a Session,
    opened_at: Instant,
}

impl<'a> ConnectionGuard<'a> {
    fn new(gateway: &'a Gateway, client: &'a Client, session: &'a Session) -> Self {
        gateway.registry.increment_connections();
        gateway.metrics.connections_active.increment(1.0);
        gateway.metrics.connections_opened.increment(1);
        let (correlation_id, user) = (&*session.correlation_id, session.user.as_str());
        tracing::info!(correlation_id, user, "connection opened");
        Self {
            gateway,
            client,
            session,
            opened_at: Instant::now(),
        }
    }
}

impl Drop for ConnectionGuard<'_> {
    fn drop(&mut self) {
        let reason = self.client.outbound().close_reason();
        let reason = reason.unwrap_or(CloseReason::ConnectionLost).name();
        self.gateway.registry.decrement_connections();
        self.gateway.metrics.connections_active.decrement(1.0);
        self.gateway.metrics.count_disconnection(reason);
        let (correlation_id, user) = (&*self.session.correlation_id, self.session.user.as_str());
        let seconds = self.opened_at.elapsed().as_secs();
        tracing::info!(correlation_id, user, reason, seconds, "connection closed");
    }
}

/// Serves a connection until it ends. Its task is never aborted from outside: it returns soon after
/// the gateway's abort token is cancelled.
///
/// Most connections are idle at most times, and there are many, so the size of this future counts.
/// Futures of rare or short steps are boxed. A plain block returning `impl Future` avoids the
/// second copy of the arguments that `async fn` keeps.
#[expect(clippy::manual_async_fn, reason = "it would be larger, see above")]
pub(super) fn run(
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    permit: ConnectionPermit,
    upgraded: OnUpgrade,
) -> impl Future<Output = ()> + Send {
    async move {
        // The permit is dropped when this future ends.
        let _permit = &permit;
        let Some(websocket) = Box::pin(open_websocket(&gateway, upgraded)).await else {
            let correlation_id = &*session.correlation_id;
            tracing::debug!(correlation_id, "client disconnected before its upgrade");
            return;
        };
        let queue_bytes = gateway.settings.outbound_queue_bytes;
        let client = Client::new(&session.protocol, queue_bytes);
        let granted_at_ms = session.grant.granted_at_ms;
        let _revocable = gateway
            .revocations
            .register(&session.user, granted_at_ms, &client);
        let _counted = ConnectionGuard::new(&gateway, &client, &session);
        let (mut frames, mut sink) = (&websocket, &websocket);
        let expires_at = session.grant.expires_at_for_classic();
        let (end, (), ()) = tokio::join!(
            receive_until_closed(&gateway, &session, &client, &mut frames),
            client
                .outbound()
                .write_to(&mut sink, &gateway.metrics.frames_sent),
            async {
                if expires_at.is_some() {
                    Box::pin(auth::close_on_expiry(expires_at, client.outbound())).await;
                }
            },
        );
        if end == StreamEnd::Broken
            && !gateway.abort.is_cancelled()
            && let Some(stream) = websocket.into_inner()
        {
            Box::pin(discard_unread(stream)).await;
        }
    }
}

/// Waits for the upgraded stream and opens the WebSocket on it. Returns `None` where the client has
/// disconnected or [`UPGRADE_TIMEOUT`] has passed.
async fn open_websocket(gateway: &Gateway, upgraded: OnUpgrade) -> Option<WebSocket> {
    let upgraded = timeout(UPGRADE_TIMEOUT, upgraded).await.ok()?.ok()?;
    let stream = BufferedStream::from_upgraded(upgraded)?;
    let settings = &gateway.settings;
    let config = WebSocketConfig::default()
        .read_buffer_size(buffered_stream::READ_BUFFER_BYTES)
        .write_buffer_size(0)
        // The writer passes one frame at a time, which can be as large as an answer, and the
        // library adds control frames.
        .max_write_buffer_size(2 * settings.outbound_queue_bytes + OVERSIZED_FRAME_BYTES)
        .max_message_size(Some(settings.max_frame_bytes))
        .max_frame_size(Some(settings.max_frame_bytes));
    Some(WebSocket::new(stream, config).await)
}

/// Completes an upgrade only to send a close frame: a browser hides the HTTP status of a refused
/// upgrade from the page.
pub(super) async fn reject(gateway: Arc<Gateway>, upgraded: OnUpgrade, reason: CloseReason) {
    let Some(websocket) = open_websocket(&gateway, upgraded).await else {
        return;
    };
    let frame = CloseFrame {
        code: reason.code().into(),
        reason: reason.name().into(),
    };
    let closing_handshake = async {
        let mut stream = &websocket;
        if stream.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    };
    tokio::select! {
        // The result is ignored: the gateway has sent its close frame, and it does not matter
        // whether the client completes the handshake.
        _ = timeout(CLOSING_HANDSHAKE_TIMEOUT, closing_handshake) => {}
        () = gateway.abort.cancelled() => {}
    }
}

/// Shuts down the sending side, then reads and discards the bytes that the client still sends.
/// Closing a socket with unread bytes would reset it, and the client could lose the close frame
/// with its reason.
async fn discard_unread(mut stream: BufferedStream) {
    let discard = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        // The buffer is small, because thousands of connections may close at the same time.
        let mut buffer = [0; 256];
        for _ in 0..MAX_DISCARDED_READS {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    // The result is ignored: after a timeout the client may lose the close reason, and nothing
    // else.
    let _ = timeout(CLOSING_HANDSHAKE_TIMEOUT, discard).await;
}

/// Adds the connection to its user's connections, receives frames until the connection must be
/// closed, and completes the frames in progress and the closing handshake.
async fn receive_until_closed(
    gateway: &Arc<Gateway>,
    session: &Arc<Session>,
    client: &Client,
    frames: &mut Frames<'_>,
) -> StreamEnd {
    let sessions = match Box::pin(join(gateway, session, client)).await {
        Ok(sessions) => sessions,
        Err(reason) => {
            client.outbound().close(reason);
            return Box::pin(await_close_frame(gateway, client, frames)).await;
        }
    };
    let mut inbound = Inbound::new(gateway.clone(), session.clone(), sessions, client.clone());
    let end = receive_frames(gateway, session, client, frames, &mut inbound).await;
    Box::pin(shutdown(gateway, client, frames, inbound, end)).await
}

/// Completes the frames in progress. At the same time removes the connection from its user's
/// connections and completes the closing handshake.
async fn shutdown(
    gateway: &Gateway,
    client: &Client,
    frames: &mut Frames<'_>,
    mut inbound: Inbound,
    end: StreamEnd,
) -> StreamEnd {
    let sessions = inbound.sessions();
    // Every message that was read is appended and its result processed, also where the client is
    // disconnected.
    let finish_inbound = async {
        while !inbound.is_empty() {
            inbound.step().await;
        }
    };
    let close = async {
        leave(gateway, &sessions, client).await;
        match end {
            StreamEnd::Broken => StreamEnd::Broken,
            StreamEnd::Orderly => Box::pin(await_close_frame(gateway, client, frames)).await,
        }
    };
    tokio::select! {
        ((), end) = async { tokio::join!(finish_inbound, close) } => end,
        () = gateway.abort.cancelled() => {
            client.outbound().disconnect(CloseReason::GoingAway);
            StreamEnd::Broken
        }
    }
}

/// Reads and ignores frames until the client has completed the closing handshake. Returns `Broken`
/// where that takes too long or the gateway aborts.
async fn await_close_frame(
    gateway: &Gateway,
    client: &Client,
    frames: &mut Frames<'_>,
) -> StreamEnd {
    let ended = async { while let Some(Ok(_)) = frames.next().await {} };
    tokio::select! {
        ended = timeout(CLOSING_HANDSHAKE_TIMEOUT, ended) => match ended {
            Ok(()) => StreamEnd::Orderly,
            Err(_) => StreamEnd::Broken,
        },
        () = gateway.abort.cancelled() => {
            client.outbound().disconnect(CloseReason::GoingAway);
            StreamEnd::Broken
        }
    }
}
