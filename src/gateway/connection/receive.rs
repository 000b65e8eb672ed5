//! The receive loop of one connection: reads the client's frames, and returns when the connection
//! must be closed for any reason.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use futures_util::StreamExt as _;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::{Error as WsError, error::ProtocolError};

use super::keepalive::{Keepalive, KeepaliveAction};
use super::{Frames, StreamEnd};
use crate::gateway::client::Client;
use crate::gateway::context::Gateway;
use crate::gateway::drain::DrainState;
use crate::gateway::inbound::Inbound;
use crate::gateway::session::{Protocol, Session};
use crate::gateway::v1;
use crate::protocol::close::CloseReason;

/// Receives frames until the connection must be closed. Before it returns, the reason is set in the
/// outbound queue.
pub(super) async fn receive_frames(
    gateway: &Gateway,
    session: &Session,
    client: &Client,
    frames: &mut Frames<'_>,
    inbound: &mut Inbound,
) -> StreamEnd {
    let outbound = client.outbound();
    let sessions = inbound.sessions();
    let (resume_after, expires_at) = match &session.protocol {
        Protocol::Classic => (None, None),
        Protocol::V1 {
            resume_after,
            expires_at,
        } => (resume_after.clone(), *expires_at),
    };
    let mut catch_ups = std::pin::pin!(async {
        match client {
            Client::Classic(_) => pending().await,
            Client::V1(client) => v1::catch_up::run(gateway, &sessions, client, resume_after).await,
        }
    });
    let mut is_ready = client.is_ready();
    let mut expiry = expires_at.map(|at| Box::pin(sleep_until(at)));
    let settings = &gateway.settings;
    let mut keepalive = Keepalive::new(settings.ping_interval, settings.ping_timeout);
    let mut keepalive_timer = std::pin::pin!(sleep_until(keepalive.first_check()));
    let mut drain: Option<Box<DrainState>> = None;
    loop {
        let is_reading = drain.is_none() && is_ready && inbound.has_room();
        // The order matters: events that end the connection are polled before the client's frames,
        // and `welcome` is noticed as soon as it is queued.
        tokio::select! {
            biased;
            () = gateway.abort.cancelled() => {
                outbound.disconnect(CloseReason::GoingAway);
                return StreamEnd::Broken;
            }
            () = outbound.wait_until_closing() => return StreamEnd::Orderly,
            reason = &mut catch_ups => {
                outbound.close(reason);
                return StreamEnd::Orderly;
            }
            () = poll_fn(|_| poll_ready(client)), if !is_ready => is_ready = true,
            () = wait_for(&mut expiry), if expiry.is_some() => {
                outbound.close(CloseReason::Unauthorized);
                return StreamEnd::Orderly;
            }
            () = gateway.drain.cancelled(), if drain.is_none() => {
                // A classic client has no position to resume from, so its connection stays open
                // until its pending answers are delivered.
                let wait_for_answers_of = match client {
                    Client::Classic(_) => Some(sessions.clone()),
                    Client::V1(_) => None,
                };
                drain = Some(Box::new(DrainState::new(gateway, wait_for_answers_of)));
            }
            () = DrainState::wait_until_ready_to_close(&mut drain, inbound.is_empty()),
                if drain.is_some() =>
            {
                close_for_drain(gateway, session, client, is_ready);
                return StreamEnd::Orderly;
            }
            () = &mut keepalive_timer, if drain.is_none() => {
                inbound.release_buffers();
                frames.release_buffers();
                let Some(next) = check_keepalive(client, &mut keepalive, is_reading) else {
                    return StreamEnd::Broken;
                };
                keepalive_timer.as_mut().reset(next);
            }
            () = inbound.step(), if !inbound.is_empty() => {}
            frame = frames.next(), if is_reading => {
                if let Some(next) = keepalive.record_frame() {
                    keepalive_timer.as_mut().reset(next);
                }
                if let Some(end) = handle_frame(client, inbound, frame) {
                    return end;
                }
            }
        }
    }
}

/// Pings the client if it is silent, and closes the connection if it has not responded to a ping.
/// Returns the time at which the keepalive timer fires next, or `None` if the connection is closed.
fn check_keepalive(
    client: &Client,
    keepalive: &mut Keepalive,
    is_reading: bool,
) -> Option<Instant> {
    match keepalive.check(is_reading) {
        KeepaliveAction::Wait(next) => Some(next),
        KeepaliveAction::Ping(next) => {
            client.outbound().ping();
            Some(next)
        }
        KeepaliveAction::Disconnect => {
            client.outbound().close(CloseReason::PingTimeout);
            None
        }
    }
}

/// Announces to the client that the gateway closes the connection because it drains, and closes it.
fn close_for_drain(gateway: &Gateway, session: &Session, client: &Client, is_ready: bool) {
    let delay = DrainState::reconnect_delay(gateway);
    let announcement = client
        .encoder()
        .encode_closing(&session.user, "going_away", delay);
    // No frame may precede `welcome`.
    if let Some(frame) = announcement.filter(|_| is_ready) {
        client.push_reply(frame);
    }
    client.outbound().close(CloseReason::GoingAway);
}

/// Processes a frame, or the end of the stream. Returns how the stream has ended, or `None` if more
/// frames can be read.
fn handle_frame(
    client: &Client,
    inbound: &mut Inbound,
    frame: Option<Result<Message, WsError>>,
) -> Option<StreamEnd> {
    let outbound = client.outbound();
    match frame {
        Some(Ok(Message::Text(text))) => {
            inbound.handle_frame(text.as_str());
            None
        }
        Some(Ok(Message::Binary(_))) => {
            outbound.close(CloseReason::UnsupportedData);
            Some(StreamEnd::Orderly)
        }
        // The library has queued its own close frame in reply, and further reads send it.
        Some(Ok(Message::Close(_))) => {
            outbound.disconnect(CloseReason::Normal);
            Some(StreamEnd::Orderly)
        }
        Some(Ok(_)) => None,
        Some(Err(error)) => {
            match close_reason(&error) {
                CloseReason::ConnectionLost => outbound.disconnect(CloseReason::ConnectionLost),
                reason => outbound.close(reason),
            }
            Some(StreamEnd::Broken)
        }
        None => {
            outbound.disconnect(CloseReason::ConnectionLost);
            Some(StreamEnd::Broken)
        }
    }
}

/// Completes when frames from the client may be read. Registers no waker: the catch-up that queues
/// `welcome` is polled by the same task just before, so the change is noticed at once.
fn poll_ready(client: &Client) -> Poll<()> {
    if client.is_ready() {
        Poll::Ready(())
    } else {
        Poll::Pending
    }
}

/// Waits until the timer fires. Never returns where there is no timer.
async fn wait_for(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.await,
        None => pending().await,
    }
}

fn close_reason(error: &WsError) -> CloseReason {
    match error {
        WsError::Capacity(_) => CloseReason::TooBig,
        WsError::Utf8(_) => CloseReason::BadUtf8,
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            CloseReason::ConnectionLost
        }
        WsError::Protocol(_) | WsError::AttackAttempt => CloseReason::ProtocolError,
        _ => CloseReason::ConnectionLost,
    }
}
