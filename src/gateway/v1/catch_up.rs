//! Reads for sockets that can't follow what is published, and tells them what they are to know.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::followers::Mark;
use crate::backoff::Backoff;
use crate::fanout::{FanoutError, ReadRequest, UserView};
use crate::gateway::Gateway;
use crate::gateway::inbound::IN_FLIGHT;
use crate::gateway::registry::Entry;
use crate::gateway::user::Socket;
use crate::protocol::close::CloseReason;
use crate::protocol::frame::Published;
use crate::protocol::position::Position;
use crate::protocol::trace_context::TraceContext;
use crate::protocol::v1::{self, Limits, Welcome};

/// Bytes of frames in one read: a socket holds one page while it waits for room.
const PAGE: usize = 64 << 10;

/// A socket that has not taken what is queued by then does not read.
const BEHIND: Duration = Duration::from_secs(30);

/// The fan-out may be away for so many times `PRODUCE_TIMEOUT_MS` before sockets are closed.
const AWAY: u32 = 3;

/// One `read` at a time for a user, shared by those of its sockets that want the same.
#[derive(Default)]
pub(in crate::gateway) struct SharedRead(tokio::sync::Mutex<Option<Shared>>);

struct Shared {
    after: Option<Position>,
    from: u64,
    look: Arc<UserView>,
}

/// Why a socket has to be told everything.
enum Occasion {
    /// It is new, and the client brought no position.
    Start,
    /// It is new, and goes on from here.
    Resume(Position),
    /// It fell behind, or something was lost.
    Repair,
}

/// Keeps a socket going until it ends; returns why, where that is decided here.
pub(in crate::gateway) async fn follow(
    gateway: &Gateway,
    entry: &Entry,
    socket: &Arc<Socket>,
    since: Option<Position>,
) -> CloseReason {
    let mut occasion = since.map_or(Occasion::Start, Occasion::Resume);
    loop {
        if !entry.state().followers.is_stale(socket) {
            if let Some(line) = &socket.line {
                line.wake.notified().await;
            }
            continue;
        }
        // Boxed: a socket spends its life in the wait above.
        if let Err(reason) = Box::pin(catch_up(gateway, entry, socket, &mut occasion)).await {
            return reason;
        }
    }
}

/// Tells a socket everything up to one look at the user, and lets it follow from there.
async fn catch_up(
    gateway: &Gateway,
    entry: &Entry,
    socket: &Arc<Socket>,
    occasion: &mut Occasion,
) -> Result<(), CloseReason> {
    let user = &entry.user;
    let in_time = matches!(occasion, Occasion::Repair);
    // What is lost is told at once; to a slow client when it has read what there is.
    if in_time && timeout(BEHIND, socket.outbound.drained()).await.is_err() {
        return Err(CloseReason::SlowConsumer);
    }
    gateway.counters.catch_ups.increment(1);
    let mut page = 0;
    loop {
        let look = patiently(gateway, entry, socket).await?;
        {
            let mut state = entry.state();
            state.started(&look.end);
            if !gateway.settings.interop {
                state.looked(&look);
            }
        }
        let recovered = look.recovered && !gateway.settings.interop;
        if page == 0 || !recovered {
            let welcome = |position: &Position, recovered| {
                welcome(gateway, entry, position, recovered, &look)
            };
            let frame = if !recovered {
                let position = entry.state().followers.not_recovered(socket, &look.end);
                Some(welcome(&position, false))
            } else if let Occasion::Resume(since) = &*occasion {
                Some(welcome(since, true))
            } else {
                None
            };
            *occasion = Occasion::Repair;
            if let Some(frame) = frame {
                push(socket, frame).await?;
                if let Some(line) = &socket.line {
                    line.welcomed.store(true, Ordering::Relaxed);
                }
            }
        }
        page += 1;
        if recovered {
            for (position, frame) in &look.frames {
                tell(entry, socket, position, frame, in_time).await?;
            }
            if look.has_more {
                continue;
            }
        }
        for answer in &look.in_flight {
            push(socket, v1::snapshot(user, answer)).await?;
        }
        let mark = Mark::new(&look.n_id, look.n);
        let awaited = entry.state().followers.follow(socket, mark);
        for frame in awaited {
            push(socket, frame).await?;
        }
        return Ok(());
    }
}

async fn push(socket: &Socket, frame: impl Into<Utf8Bytes>) -> Result<(), CloseReason> {
    push_traced(socket, frame, None).await
}

async fn push_traced(
    socket: &Socket,
    frame: impl Into<Utf8Bytes>,
    trace: Option<&TraceContext>,
) -> Result<(), CloseReason> {
    let pushed = socket.outbound.push_when_room(frame.into(), trace);
    timeout(BEHIND, pushed)
        .await
        .map_err(|_| CloseReason::SlowConsumer)
}

/// Tells a kept terminal frame, where the socket has not had it.
async fn tell(
    entry: &Entry,
    socket: &Arc<Socket>,
    position: &Position,
    frame: &str,
    in_time: bool,
) -> Result<(), CloseReason> {
    let published = Published::parse(frame.as_bytes()).ok();
    if entry.state().followers.wants(socket, position) {
        let text = published
            .as_ref()
            .and_then(|frame| v1::of_published(frame, &entry.user));
        if let Some(text) = text {
            // A client that comes back may get hundreds of old ones: those tell nothing of how
            // an answer was delivered.
            let trace = published.as_ref().filter(|_| in_time);
            let trace = trace.and_then(Published::trace);
            push_traced(socket, text, trace.as_ref()).await?;
        }
    }
    let message_id = published.and_then(|frame| frame.message_id);
    entry
        .state()
        .followers
        .advance(socket, position.clone(), message_id.as_ref());
    Ok(())
}

fn welcome(
    gateway: &Gateway,
    entry: &Entry,
    position: &Position,
    recovered: bool,
    look: &UserView,
) -> String {
    let settings = &gateway.settings;
    Welcome {
        user: &entry.user,
        server_id: &settings.server_id,
        position: &position.to_string(),
        recovered,
        pending: &look.pending,
        heartbeat_ms: u64::try_from(settings.ping_interval.as_millis()).unwrap_or(u64::MAX),
        limits: Limits {
            max_content_chars: settings.max_content_chars,
            max_frame_bytes: settings.max_frame_bytes,
            max_pending: match settings.max_pending {
                0 => IN_FLIGHT,
                most => most.min(IN_FLIGHT),
            },
        },
    }
    .to_json()
}

/// Reads, again where the fan-out is away.
async fn patiently(
    gateway: &Gateway,
    entry: &Entry,
    socket: &Arc<Socket>,
) -> Result<Arc<UserView>, CloseReason> {
    let deadline = Instant::now() + gateway.settings.produce_timeout * AWAY;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let pause = backoff.next_delay();
        match look(gateway, entry, socket).await {
            Ok(look) => return Ok(look),
            Err(error) => {
                gateway.counters.redis_error("read");
                entry.state().followers.give_up(socket);
                if gateway.drain.is_cancelled() {
                    return Err(CloseReason::GoingAway);
                }
                if Instant::now() + pause >= deadline {
                    tracing::warn!(%error, "a connection can't be served any more");
                    return Err(CloseReason::BackendLost);
                }
            }
        }
        sleep(pause).await;
    }
}

/// One look at the user that was begun after this socket had lost something.
async fn look(
    gateway: &Gateway,
    entry: &Entry,
    socket: &Arc<Socket>,
) -> Result<Arc<UserView>, FanoutError> {
    let mut last = entry.reads.0.lock().await;
    let (begun, others) = {
        let mut state = entry.state();
        let begun = state.followers.begin(socket);
        let others = state.followers.others_wait(socket);
        if let Some(shared) = &*last
            && shared.after == begun.after
            && shared.from >= begun.stale
            && state.followers.holds_since(shared.from)
        {
            state.followers.share(socket, shared.from);
            let look = shared.look.clone();
            if !others {
                *last = None;
            }
            return Ok(look);
        }
        (begun, others)
    };
    let after = begun.after.clone();
    let look = gateway.fanout.read(ReadRequest {
        user: entry.user.clone(),
        after: after.clone(),
        from_start: false,
        max_bytes: PAGE,
    });
    let look = Arc::new(look.await?);
    *last = others.then(|| Shared {
        after,
        from: begun.from,
        look: look.clone(),
    });
    Ok(look)
}
