//! The catch-up of one `chatmesh.v1` connection: reads the user's mailbox and sends the connection
//! the frames that it is missing, until the connection can receive live frames. The receive loop of
//! the connection runs it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::encoder::V1Encoder;
use super::missing_text::missing_deltas;
use super::shared_read::ReadResult;
use super::state::V1State;
use super::subscribers::NextCatchUp;
use crate::backoff::Backoff;
use crate::fanout::{FanoutError, ReadRequest, UserView};
use crate::gateway::context::Gateway;
use crate::gateway::encoder::Encoder as _;
use crate::gateway::session::MAX_FRAMES_IN_PROGRESS;
use crate::gateway::sessions::UserSessions;
use crate::protocol::close::CloseReason;
use crate::protocol::open_message::InFlightAnswer;
use crate::protocol::position::Position;
use crate::protocol::published::PublishedFrame;
use crate::protocol::trace_context::TraceContext;
use crate::protocol::v1::{self, WelcomeFrame};
use crate::protocol::wire::v1::Limits;

/// Maximum size in bytes of the frames that one read returns. A connection holds these frames in
/// memory while it waits for room in its queue.
const PAGE_BYTES: usize = 64 << 10;

/// Time after which a client counts as a slow consumer because its queue has not become empty, or
/// has had no room for a frame.
const SLOW_CONSUMER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection is closed when its mailbox could not be read for this many times
/// `PRODUCE_TIMEOUT_MS`.
const READ_TIMEOUT_FACTOR: u32 = 3;

/// Why a connection catches up.
enum CatchUpReason {
    /// The connection is new, and the client sent no position.
    Start,
    /// The connection is new, and the client resumes after this position.
    Resume(Position),
    /// The connection was sent `welcome` earlier, and has become stale since.
    Repair,
}

/// Runs a catch-up whenever the connection is stale, as a new connection is, or needs a stream read
/// that may begin. `resume_after` is the position from which the client resumes. Returns the reason
/// when the connection must be closed.
pub(in crate::gateway) async fn run(
    gateway: &Gateway,
    sessions: &UserSessions,
    client: &Arc<V1State>,
    resume_after: Option<Position>,
) -> CloseReason {
    let mut reason = resume_after.map_or(CatchUpReason::Start, CatchUpReason::Resume);
    loop {
        let next = sessions.state().subscribers.next_catch_up(client);
        match next {
            NextCatchUp::Now => {}
            NextCatchUp::NotNeeded => {
                client.catch_up_needed.notified().await;
                continue;
            }
            NextCatchUp::At(time) => {
                // The next iteration decides, whether the time was reached or the connection became
                // stale before. Boxed like the catch-up below.
                let _ = Box::pin(timeout_at(time, client.catch_up_needed.notified())).await;
                continue;
            }
        }
        // Boxed, so that the wait for a notification, where a connection spends most of its time,
        // takes less memory.
        if let Err(close) = Box::pin(catch_up(gateway, sessions, client, &mut reason)).await {
            return close;
        }
    }
}

/// Sends a connection everything that it is missing up to one [`UserView`], and makes it live from
/// there.
async fn catch_up(
    gateway: &Gateway,
    sessions: &UserSessions,
    client: &Arc<V1State>,
    reason: &mut CatchUpReason,
) -> Result<(), CloseReason> {
    let is_repair = matches!(reason, CatchUpReason::Repair);
    // A slow client first receives the queued frames. After a gap the queue is mostly empty.
    if is_repair {
        let emptied = timeout(SLOW_CONSUMER_TIMEOUT, client.outbound.wait_until_empty());
        emptied.await.map_err(|_| CloseReason::SlowConsumer)?;
    }
    gateway.metrics.catch_ups.increment(1);
    let mut is_first_page = true;
    // A client without text of the answers in flight, or that discards its text at `welcome`,
    // receives snapshots.
    let mut needs_snapshots = !is_repair;
    loop {
        let view = read_with_retries(gateway, sessions, client).await?;
        {
            let mut state = sessions.state();
            state.set_mailbox_start(&view.end);
            if !gateway.settings.interop {
                state.add_pending_from_view(&view);
            }
        }
        let is_recovered = view.recovered && !gateway.settings.interop;
        if is_first_page || !is_recovered {
            needs_snapshots |=
                send_welcome(gateway, sessions, client, reason, &view, is_recovered).await?;
        }
        is_first_page = false;
        if is_recovered {
            for (position, frame) in &view.frames {
                send_stored(sessions, client, position, frame, is_repair).await?;
            }
            if view.has_more {
                continue;
            }
        }
        for answer in &view.in_flight {
            send_in_flight(sessions, client, answer, needs_snapshots).await?;
        }
        let resend_replies = sessions.state().subscribers.finish_read(client, &view);
        for frame in resend_replies {
            push(client, frame, None).await?;
        }
        return Ok(());
    }
}

/// Sends `welcome` if the connection is new, or if the mailbox does not have every frame after the
/// connection's position, so that the client must reload its history. From then on `reason` is
/// [`CatchUpReason::Repair`]. Returns whether the frame was sent.
async fn send_welcome(
    gateway: &Gateway,
    sessions: &UserSessions,
    client: &Arc<V1State>,
    reason: &mut CatchUpReason,
    view: &UserView,
    is_recovered: bool,
) -> Result<bool, CloseReason> {
    let reason = std::mem::replace(reason, CatchUpReason::Repair);
    let position = if !is_recovered {
        let mut state = sessions.state();
        state.subscribers.skip_to_mailbox_end(client, &view.end)
    } else if let CatchUpReason::Resume(since) = reason {
        since
    } else {
        return Ok(false);
    };
    let frame = encode_welcome(gateway, sessions, &position, is_recovered, view);
    push(client, frame, None).await?;
    client.set_welcomed();
    Ok(true)
}

/// Sends an answer in flight: only the text that the connection is missing, where it was sent the
/// beginning of the same stream and has no more than the view; otherwise a snapshot.
async fn send_in_flight(
    sessions: &UserSessions,
    client: &Arc<V1State>,
    answer: &InFlightAnswer,
    needs_snapshot: bool,
) -> Result<(), CloseReason> {
    let sent_lengths = if needs_snapshot {
        None
    } else {
        sessions.state().subscribers.sent_lengths(client, answer)
    };
    let deltas = sent_lengths.and_then(|lengths| missing_deltas(answer, &lengths));
    let frames = deltas.unwrap_or_else(|| vec![v1::snapshot_frame(&sessions.user, answer)]);
    for frame in frames {
        push(client, frame, None).await?;
    }
    Ok(())
}

/// Queues a frame as soon as there is room for it. Returns an error where the queue has no room for
/// [`SLOW_CONSUMER_TIMEOUT`].
async fn push(
    client: &V1State,
    frame: impl Into<Utf8Bytes>,
    trace: Option<&TraceContext>,
) -> Result<(), CloseReason> {
    let pushed = client.outbound.push_when_room(frame.into(), trace);
    timeout(SLOW_CONSUMER_TIMEOUT, pushed)
        .await
        .map_err(|_| CloseReason::SlowConsumer)
}

/// Sends a terminal frame from the mailbox, unless the connection has received it.
async fn send_stored(
    sessions: &UserSessions,
    client: &Arc<V1State>,
    position: &Position,
    frame: &str,
    is_repair: bool,
) -> Result<(), CloseReason> {
    let frame = PublishedFrame::parse(frame.as_bytes()).ok();
    let is_needed = sessions.state().subscribers.needs(client, position);
    let text = frame
        .as_ref()
        .filter(|_| is_needed)
        .and_then(|frame| V1Encoder.encode_published(frame, &sessions.user));
    if let Some(text) = text {
        // Only a repair records a span of the delivery: a client that resumes may receive hundreds
        // of old frames, and their spans would say nothing about how long a delivery takes.
        let trace = frame.as_ref().filter(|_| is_repair);
        let trace = trace.and_then(PublishedFrame::trace);
        push(client, text, trace.as_ref()).await?;
    }
    let message_id = frame.and_then(|frame| frame.message_id);
    sessions
        .state()
        .subscribers
        .record_received(client, position.clone(), message_id.as_ref());
    Ok(())
}

fn encode_welcome(
    gateway: &Gateway,
    sessions: &UserSessions,
    position: &Position,
    recovered: bool,
    view: &UserView,
) -> String {
    let settings = &gateway.settings;
    WelcomeFrame {
        user: &sessions.user,
        server_id: &settings.server_id,
        position: &position.to_string(),
        recovered,
        pending: &view.pending,
        heartbeat_ms: u64::try_from(settings.ping_interval.as_millis()).unwrap_or(u64::MAX),
        limits: Limits {
            max_content_chars: settings.max_content_chars as u64,
            max_frame_bytes: settings.max_frame_bytes as u64,
            max_pending: match settings.max_pending {
                0 => MAX_FRAMES_IN_PROGRESS as u64,
                most => most.min(MAX_FRAMES_IN_PROGRESS) as u64,
            },
        },
    }
    .to_json()
}

/// Reads the mailbox, with retries while the fan-out is unavailable. Returns the reason for which
/// the connection is closed where the mailbox could not be read in time, or the gateway drains.
async fn read_with_retries(
    gateway: &Gateway,
    sessions: &UserSessions,
    client: &Arc<V1State>,
) -> Result<Arc<UserView>, CloseReason> {
    let deadline = Instant::now() + gateway.settings.produce_timeout * READ_TIMEOUT_FACTOR;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let pause = backoff.next_delay();
        match read(gateway, sessions, client).await {
            Ok(view) => return Ok(view),
            Err(error) => {
                gateway.metrics.count_fanout_error("read");
                sessions.state().subscribers.abandon_read(client);
                if gateway.drain.is_cancelled() {
                    return Err(CloseReason::GoingAway);
                }
                if Instant::now() + pause >= deadline {
                    tracing::warn!(
                        %error,
                        "mailbox could not be read in time, closing the connection; check redis"
                    );
                    return Err(CloseReason::BackendLost);
                }
            }
        }
        sleep(pause).await;
    }
}

/// Reads the mailbox once, or uses the result of a read that another connection of the user began
/// after this connection had become stale.
async fn read(
    gateway: &Gateway,
    sessions: &UserSessions,
    client: &Arc<V1State>,
) -> Result<Arc<UserView>, FanoutError> {
    let mut last_read = sessions.shared_read.lock().await;
    let (start, has_other_stale) = {
        let mut state = sessions.state();
        let start = state.subscribers.begin_read(client);
        let has_other_stale = state.subscribers.has_other_stale(client);
        if let Some(other) = &*last_read
            && other.after == start.after
            && other.buffered_since >= start.stale_since
            && state.subscribers.is_buffered_since(other.buffered_since)
        {
            state.subscribers.join_read(client, other.buffered_since);
            let view = other.view.clone();
            if !has_other_stale {
                *last_read = None;
            }
            return Ok(view);
        }
        (start, has_other_stale)
    };
    let view = gateway.fanout.read(ReadRequest {
        user: sessions.user.clone(),
        after: start.after.clone(),
        from_start: false,
        max_bytes: PAGE_BYTES,
    });
    let view = Arc::new(view.await?);
    *last_read = has_other_stale.then(|| ReadResult {
        after: start.after,
        buffered_since: start.buffered_since,
        view: view.clone(),
    });
    Ok(view)
}

#[cfg(test)]
mod tests;
