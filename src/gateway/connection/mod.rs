//! One WebSocket connection from its upgrade to its end: the task that reads, the one that writes,
//! and the closing handshake.

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

/// The longest time from the 101 response to the upgraded stream.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take for its part of the closing handshake.
const CLOSING_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest frame to a client that is not counted by its queue.
const UNQUEUED_WRITE_BYTES: usize = 8 << 20;

/// Maximum number of reads, of up to 256 bytes each, that are discarded at the end of a connection.
const MAX_DISCARDED_READS: usize = 32_768;

/// How the client's stream of frames ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamEnd {
    /// The stream can be read until the client's close frame.
    Orderly,
    /// No further frame can be read, so the client can't complete the closing handshake.
    Broken,
}

/// The frames from a client. A [`WebSocket`] is read and written through shared references.
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
        // Released when this future ends.
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
            read(&gateway, &session, &client, &mut frames),
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

/// Waits for the upgraded stream; `None` where the client disconnected before.
async fn open_websocket(gateway: &Gateway, upgraded: OnUpgrade) -> Option<WebSocket> {
    let upgraded = timeout(UPGRADE_TIMEOUT, upgraded).await.ok()?.ok()?;
    let stream = BufferedStream::from_upgraded(upgraded)?;
    let settings = &gateway.settings;
    let config = WebSocketConfig::default()
        .read_buffer_size(buffered_stream::READ_BUFFER)
        .write_buffer_size(0)
        // The writer hands over one frame at a time, as large as an answer can be, and the library
        // adds control frames.
        .max_write_buffer_size(2 * settings.outbound_queue_bytes + UNQUEUED_WRITE_BYTES)
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
        // The gateway has done its part, whether the client completes the handshake or not.
        _ = timeout(CLOSING_HANDSHAKE_TIMEOUT, closing_handshake) => {}
        () = gateway.abort.cancelled() => {}
    }
}

/// Reads and ignores what the client still sends before the connection is closed. Closing a socket
/// with unread bytes resets it, and the client would lose the close frame with its reason.
async fn discard_unread(mut stream: BufferedStream) {
    let discard = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        // Small, because thousands of connections may close at the same time.
        let mut buffer = [0; 256];
        for _ in 0..MAX_DISCARDED_READS {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    // After the timeout the client loses the close reason, and nothing else.
    let _ = timeout(CLOSING_HANDSHAKE_TIMEOUT, discard).await;
}

/// Reads until the connection ends and everything that was read is finished.
async fn read(
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

/// Finishes what was read, removes the connection from its user's, and completes the closing
/// handshake.
async fn shutdown(
    gateway: &Gateway,
    client: &Client,
    frames: &mut Frames<'_>,
    mut inbound: Inbound,
    end: StreamEnd,
) -> StreamEnd {
    let sessions = inbound.sessions();
    // Until every message that was read is in the log, its answer is pending here.
    let finish = async {
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
        ((), end) = async { tokio::join!(finish, close) } => end,
        () = gateway.abort.cancelled() => {
            client.outbound().disconnect(CloseReason::GoingAway);
            StreamEnd::Broken
        }
    }
}

/// Reads and ignores frames until the client has completed the closing handshake.
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
