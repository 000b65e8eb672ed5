//! One WebSocket from its upgrade to its end.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, error::ProtocolError};

use super::drain::Leaving;
use super::inbound::Inbound;
use super::limits::ConnectionPermit;
use super::registry::Entry;
use super::repair;
use super::session::{Protocol, Session};
use super::user::Socket;
use super::v1::{self, Line};
use super::websocket::WebSocket;
use super::wire::{self, Wire};
use super::{Gateway, auth, revocation};
use crate::backoff::Backoff;
use crate::protocol::close::CloseReason;
use crate::protocol::v1::closing;

/// From the 101 to the socket.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to say goodbye too.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest frame to a client, beyond what its queue holds.
const WRITE_BUFFER: usize = 8 << 20;

type Frames<'a> = &'a WebSocket;

/// Counts a connection; its end is counted on every way out.
struct Counted<'a> {
    gateway: &'a Gateway,
    socket: &'a Socket,
    session: &'a Session,
    since: Instant,
}

impl<'a> Counted<'a> {
    fn new(gateway: &'a Gateway, socket: &'a Socket, session: &'a Session) -> Self {
        gateway.registry.count(1);
        gateway.counters.active.increment(1.0);
        gateway.counters.connections.increment(1);
        let (correlation_id, user) = (&*session.correlation_id, session.user.as_str());
        tracing::info!(correlation_id, user, "connection opened");
        Self {
            gateway,
            socket,
            session,
            since: Instant::now(),
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let reason = self.socket.outbound.ended_by().unwrap_or(CloseReason::Lost);
        self.gateway.registry.count(-1);
        self.gateway.counters.active.decrement(1.0);
        self.gateway.counters.disconnected(reason.name());
        let (correlation_id, user) = (&*self.session.correlation_id, self.session.user.as_str());
        let seconds = self.since.elapsed().as_secs();
        let reason = reason.name();
        tracing::info!(correlation_id, user, reason, seconds, "connection closed");
    }
}

/// Carries a connection. Never aborted: it ends by itself soon after the force token.
///
/// Most connections are idle at most times, and there are many: what this future and those in it
/// hold, each of them costs. So what happens seldom or briefly is boxed, and what comes along is
/// used where it was captured: an `async fn` would hold it twice.
#[expect(clippy::manual_async_fn, reason = "it would be larger, see above")]
pub(super) fn run(
    gateway: Arc<Gateway>,
    session: Arc<Session>,
    permit: ConnectionPermit,
    upgraded: OnUpgrade,
) -> impl Future<Output = ()> + Send {
    async move {
        // Free again when this ends.
        let _permit = &permit;
        let Some(websocket) = Box::pin(websocket(&gateway, upgraded)).await else {
            let correlation_id = &*session.correlation_id;
            tracing::debug!(correlation_id, "the client went before its upgrade");
            return;
        };
        let line = matches!(session.protocol, Protocol::V1 { .. }).then(Line::new);
        let queue_bytes = gateway.settings.outbound_queue_bytes;
        let socket = Arc::new(Socket::new(queue_bytes, line));
        let since_ms = session.grant.granted_at_ms;
        let _listed = gateway.revocations.list(&session.user, since_ms, &socket);
        let _counted = Counted::new(&gateway, &socket, &session);
        let (mut frames, mut sink) = (&websocket, &websocket);
        let ends = session.grant.expires_at_for_classic();
        let (broken, (), ()) = tokio::join!(
            read(&gateway, &session, &socket, &mut frames),
            socket.outbound.write_to(&mut sink, &gateway.counters.sent),
            async {
                if ends.is_some() {
                    Box::pin(auth::close_on_expiry(ends, &socket.outbound)).await;
                }
            },
        );
        if broken
            && !gateway.force.is_cancelled()
            && let Some(wire) = websocket.into_wire()
        {
            Box::pin(linger(wire)).await;
        }
    }
}

/// `None` where the client went before.
async fn websocket(gateway: &Gateway, upgraded: OnUpgrade) -> Option<WebSocket> {
    let upgraded = timeout(UPGRADE_TIMEOUT, upgraded).await.ok()?.ok()?;
    let wire = Wire::of(upgraded)?;
    let settings = &gateway.settings;
    let config = WebSocketConfig::default()
        .read_buffer_size(wire::READ_BUFFER)
        .write_buffer_size(0)
        // One frame at a time is handed over, of any size that an answer can have, and control
        // frames beside it.
        .max_write_buffer_size(2 * settings.outbound_queue_bytes + WRITE_BUFFER)
        .max_message_size(Some(settings.max_frame_bytes))
        .max_frame_size(Some(settings.max_frame_bytes));
    Some(WebSocket::new(wire, config).await)
}

/// Says by a close frame what a browser could not see in the status of a refused upgrade.
pub(super) async fn turn_away(gateway: Arc<Gateway>, upgraded: OnUpgrade, reason: CloseReason) {
    let Some(websocket) = websocket(&gateway, upgraded).await else {
        return;
    };
    let frame = CloseFrame {
        code: reason.code().into(),
        reason: reason.name().into(),
    };
    let goodbye = async {
        // Whether it arrives is the client's affair.
        let mut stream = &websocket;
        if stream.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    };
    tokio::select! {
        _ = timeout(GOODBYE_TIMEOUT, goodbye) => {}
        () = gateway.force.cancelled() => {}
    }
}

/// Reads what the client still sends before the connection is closed: closing over unread bytes
/// resets it, and the client would lose the close frame with its reason.
async fn linger(mut io: Wire) {
    let rest = async {
        if io.shutdown().await.is_err() {
            return;
        }
        // Thousands may be closed at once: each holds it.
        let mut buffer = [0; 256];
        for _ in 0..32_768 {
            match io.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    // Over it the client loses the reason, and nothing else.
    let _ = timeout(GOODBYE_TIMEOUT, rest).await;
}

/// Looks whether the user was put out meanwhile, for as long as anybody wants the connection: one
/// that is closed, or cut off by a stop, lets nobody in.
async fn look_for_revocation(gateway: &Gateway, session: &Session, socket: &Socket) {
    tokio::select! {
        () = revocation::look(gateway, &session.user) => {}
        () = socket.outbound.closing() => {}
        () = gateway.force.cancelled() => {}
    }
}

/// Subscribes, and looks where the mailbox ends; again where the fan-out is away.
async fn enter(
    gateway: &Gateway,
    session: &Session,
    socket: &Arc<Socket>,
) -> Result<Arc<Entry>, CloseReason> {
    let deadline = Instant::now() + gateway.settings.produce_timeout;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    let mut joined = None;
    let since = match &session.protocol {
        Protocol::V1 { since, .. } if !gateway.settings.interop => since.as_ref(),
        _ => None,
    };
    loop {
        let entry = match joined.take() {
            Some(entry) => Ok(entry),
            None => gateway.registry.join(&session.user, socket, since).await,
        };
        let (error, operation) = match entry {
            // What it is to be told begins with a read of its own.
            Ok(entry) if socket.line.is_some() => {
                look_for_revocation(gateway, session, socket).await;
                return Ok(entry);
            }
            Ok(entry) => match repair::look_at_end(gateway, &entry).await {
                Ok(look) => {
                    look_for_revocation(gateway, session, socket).await;
                    let mut state = entry.state();
                    state.started(&look.end);
                    if !gateway.settings.interop {
                        state.looked(&look);
                    }
                    drop(state);
                    // Set once: nobody else knows the socket's start.
                    let _ = socket.start.set(look.end);
                    return Ok(entry);
                }
                Err(error) => {
                    joined = Some(entry);
                    (error, "read")
                }
            },
            Err(error) => (error, "subscribe"),
        };
        gateway.counters.redis_error(operation);
        let pause = backoff.next_delay();
        let stopping = gateway.drain.is_cancelled() || socket.outbound.ended_by().is_some();
        if stopping || Instant::now() + pause >= deadline {
            let correlation_id = &*session.correlation_id;
            tracing::warn!(correlation_id, %error, "the connection can't be served");
            if let Some(entry) = joined {
                leave(gateway, &entry, socket).await;
            }
            return Err(if gateway.drain.is_cancelled() {
                CloseReason::GoingAway
            } else {
                CloseReason::BackendLost
            });
        }
        sleep(pause).await;
    }
}

async fn leave(gateway: &Gateway, entry: &Arc<Entry>, socket: &Arc<Socket>) {
    if let Err(error) = gateway.registry.leave(entry, socket).await {
        gateway.counters.redis_error("unsubscribe");
        tracing::warn!(%error, "a subscription could not be ended");
    }
}

/// Reads until the connection ends and everything read has found its end. True where the client's
/// bytes can't be followed any more, so that it can't say goodbye.
async fn read(
    gateway: &Arc<Gateway>,
    session: &Arc<Session>,
    socket: &Arc<Socket>,
    frames: &mut Frames<'_>,
) -> bool {
    let entry = match Box::pin(enter(gateway, session, socket)).await {
        Ok(entry) => entry,
        Err(reason) => {
            socket.outbound.close(reason);
            return Box::pin(goodbye(gateway, socket, frames)).await;
        }
    };
    let mut inbound = Inbound::new(gateway.clone(), session.clone(), entry, socket.clone());
    let broken = take_frames(gateway, session, socket, frames, &mut inbound).await;
    Box::pin(part(gateway, socket, frames, inbound, broken)).await
}

/// Ends a connection. As [`read`].
async fn part(
    gateway: &Gateway,
    socket: &Arc<Socket>,
    frames: &mut Frames<'_>,
    mut inbound: Inbound,
    broken: bool,
) -> bool {
    let entry = inbound.entry();
    // Not before everything that was read has been produced: its answers are waited for here.
    let finish = async {
        while !inbound.is_empty() {
            inbound.step().await;
        }
    };
    let part = async {
        leave(gateway, &entry, socket).await;
        if broken {
            true
        } else {
            Box::pin(goodbye(gateway, socket, frames)).await
        }
    };
    tokio::select! {
        ((), broken) = async { tokio::join!(finish, part) } => broken,
        () = gateway.force.cancelled() => {
            socket.outbound.stop(CloseReason::GoingAway);
            true
        }
    }
}

/// Waits until the client has said goodbye too. True where it did not.
async fn goodbye(gateway: &Gateway, socket: &Socket, frames: &mut Frames<'_>) -> bool {
    let ended = async { while let Some(Ok(_)) = frames.next().await {} };
    tokio::select! {
        ended = timeout(GOODBYE_TIMEOUT, ended) => ended.is_err(),
        () = gateway.force.cancelled() => {
            socket.outbound.stop(CloseReason::GoingAway);
            true
        }
    }
}

/// Takes frames until the socket is to end, for whatever reason; it is noted in the queue. True
/// where the client's bytes can't be followed any more.
async fn take_frames(
    gateway: &Gateway,
    session: &Session,
    socket: &Arc<Socket>,
    frames: &mut Frames<'_>,
    inbound: &mut Inbound,
) -> bool {
    let outbound = &socket.outbound;
    let entry = inbound.entry();
    let (since, ends) = match &session.protocol {
        Protocol::Classic => (None, None),
        Protocol::V1 { since, expires_at } => (since.clone(), *expires_at),
    };
    let since = since.filter(|_| !gateway.settings.interop);
    let mut following = std::pin::pin!(v1::catch_up::follow(gateway, &entry, socket, since));
    let mut welcomed = socket.line.is_none();
    let mut expiry = ends.map(|ends| Box::pin(sleep_until(ends)));
    let mut heard = Instant::now();
    let mut pinged: Option<Instant> = None;
    let mut idle = std::pin::pin!(sleep_until(heard + gateway.settings.ping_interval));
    let mut leaving: Option<Box<Leaving>> = None;
    loop {
        // Nothing is answered before `welcome`.
        let reading = leaving.is_none() && welcomed && inbound.has_room();
        // In this order: what ends the connection never waits for what its client sends, and
        // `welcome` is seen as soon as it is queued.
        tokio::select! {
            biased;
            () = gateway.force.cancelled() => {
                outbound.stop(CloseReason::GoingAway);
                return true;
            }
            () = outbound.closing() => return false,
            reason = &mut following, if socket.line.is_some() => {
                outbound.close(reason);
                return false;
            }
            () = poll_fn(|_| is_welcomed(socket)), if !welcomed => welcomed = true,
            () = elapsed(&mut expiry), if expiry.is_some() => {
                outbound.close(CloseReason::Unauthorized);
                return false;
            }
            () = gateway.drain.cancelled(), if leaving.is_none() => {
                // A classic client can't ask for what it missed: it is kept until it was answered.
                let to_answer = socket.line.is_none().then(|| entry.clone());
                leaving = Some(Box::new(Leaving::begin(gateway, to_answer)));
            }
            () = Leaving::turn(&mut leaving, inbound.is_empty()), if leaving.is_some() => {
                // Nothing comes before `welcome`: who waits for it still is closed without a word.
                if socket.line.is_some() && welcomed {
                    let retry = Leaving::retry_after(gateway);
                    let retry = u64::try_from(retry.as_millis()).unwrap_or(0);
                    let closing = closing(&session.user, "going_away", retry);
                    outbound.push_control(closing.into());
                }
                outbound.close(CloseReason::GoingAway);
                return false;
            }
            () = &mut idle, if leaving.is_none() => {
                let now = Instant::now();
                let interval = gateway.settings.ping_interval;
                let patience = gateway.settings.ping_timeout;
                inbound.rest();
                frames.rest();
                if !reading {
                    // Not the client is silent: nobody listens.
                    heard = now;
                    pinged = None;
                }
                let next = match pinged {
                    Some(at) if now >= at + patience => {
                        outbound.close(CloseReason::PingTimeout);
                        return true;
                    }
                    Some(at) => at + patience,
                    None if now >= heard + interval => {
                        outbound.ping();
                        pinged = Some(now);
                        now + patience
                    }
                    None => heard + interval,
                };
                idle.as_mut().reset(next);
            }
            () = inbound.step(), if !inbound.is_empty() => {}
            frame = frames.next(), if reading => {
                heard = Instant::now();
                if pinged.take().is_some() {
                    idle.as_mut().reset(heard + gateway.settings.ping_interval);
                }
                match frame {
                    Some(Ok(Message::Text(text))) => inbound.frame(text.as_str()),
                    Some(Ok(Message::Binary(_))) => {
                        outbound.close(CloseReason::Unsupported);
                        return false;
                    }
                    // The library has queued its answer; reading on sends it.
                    Some(Ok(Message::Close(_))) => {
                        outbound.stop(CloseReason::Normal);
                        return false;
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        match reason_of(&error) {
                            CloseReason::Lost => outbound.stop(CloseReason::Lost),
                            reason => outbound.close(reason),
                        }
                        return true;
                    }
                    None => {
                        outbound.stop(CloseReason::Lost);
                        return true;
                    }
                }
            }
        }
    }
}

/// For who asks again whenever something may have been queued.
fn is_welcomed(socket: &Socket) -> Poll<()> {
    match &socket.line {
        Some(line) if !line.welcomed.load(Ordering::Relaxed) => Poll::Pending,
        _ => Poll::Ready(()),
    }
}

/// Of no timer: never.
async fn elapsed(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.await,
        None => pending().await,
    }
}

fn reason_of(error: &WsError) -> CloseReason {
    match error {
        WsError::Capacity(_) => CloseReason::TooBig,
        WsError::Utf8(_) => CloseReason::BadUtf8,
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => CloseReason::Lost,
        WsError::Protocol(_) | WsError::AttackAttempt => CloseReason::ProtocolError,
        _ => CloseReason::Lost,
    }
}
