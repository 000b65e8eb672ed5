//! Reads the mailboxes of users who may have missed a frame (docs/consistency.md, "Finding a lost
//! last frame" and "Order for classic clients"): one that was published and not received, or one
//! that a relay's rewind stored again, which it does not publish to classic clients.
//!
//! One read serves all connections of a user. Classic connections receive what they missed from it;
//! `chatmesh.v1` connections that have missed a frame are made to catch up by a read of their own.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::context::Gateway;
use super::delivery;
use super::sessions::UserSessions;
use super::user::FrameSource;
use crate::fanout::{FanoutError, ReadRequest, UserView};
use crate::protocol::position::{Epoch, Position};
use crate::protocol::published;
use crate::protocol::sequence_number::SequenceNumber;

/// Mailboxes that are read at the same time.
const MAX_CONCURRENT_READS: usize = 16;

/// The largest pause between the reads of two users.
const MAX_READ_SPACING: Duration = Duration::from_millis(20);

/// A frame that was published before a read is received within this time, or is lost.
const MAX_DELIVERY_DELAY: Duration = Duration::from_millis(200);

/// Every user with `chatmesh.v1` connections is read once in this many ticks of `OPEN_CHECK_MS`.
const SHARDS: u64 = 12;

/// Bytes of frames in one read.
const PAGE_BYTES: usize = 256 << 10;

/// Pages of one pass; the next pass continues where it ended.
const MAX_PAGES: usize = 64;

/// Reads mailboxes until the gateway is aborted: those of users with pending answers every
/// `OPEN_CHECK_MS`, all mailboxes after a gap, and a single one at once when a frame is deferred to
/// it.
pub(super) async fn run(gateway: Arc<Gateway>) {
    tokio::select! {
        () = gateway.abort.cancelled() => {}
        () = sync_periodically(&gateway) => {}
        () = sync_on_request(&gateway) => {}
    }
}

async fn sync_periodically(gateway: &Gateway) {
    let mut tick = interval(gateway.settings.open_check.max(MAX_READ_SPACING));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0_u64;
    loop {
        let mut users = tokio::select! {
            _ = tick.tick() => {
                ticks += 1;
                gateway.registry.subscribers_in_shard(ticks % SHARDS, SHARDS)
            }
            () = gateway.registry.gap_detected.notified() => Vec::new(),
        };
        users.retain(|sessions| !sessions.state().needs_mailbox_read());
        users.extend(gateway.registry.users_needing_mailbox_read());
        let count = u32::try_from(users.len()).unwrap_or(u32::MAX).max(1);
        let spacing = (gateway.settings.open_check / 2 / count).min(MAX_READ_SPACING);
        stream::iter(users)
            .then(|sessions| async {
                sleep(spacing).await;
                sessions
            })
            .for_each_concurrent(MAX_CONCURRENT_READS, |sessions| async move {
                sync_user(gateway, &sessions).await;
            })
            .await;
    }
}

async fn sync_on_request(gateway: &Gateway) {
    loop {
        gateway.registry.immediate_read_requested.notified().await;
        stream::iter(gateway.registry.drain_immediate_reads())
            .for_each_concurrent(MAX_CONCURRENT_READS, |sessions| async move {
                sync_user(gateway, &sessions).await;
            })
            .await;
    }
}

/// Makes passes over a user's mailbox until no frame is deferred to it any more.
async fn sync_user(gateway: &Gateway, sessions: &UserSessions) {
    if !sessions.state().begin_mailbox_read() {
        return;
    }
    loop {
        let result = run_pass(gateway, sessions).await;
        if let Err(error) = &result {
            gateway.metrics.count_fanout_error("read");
            tracing::debug!(%error, "mailbox could not be read, trying again");
        }
        let mut state = sessions.state();
        if result.is_err() {
            // Each `chatmesh.v1` connection then reads for itself, and is closed where the fan-out
            // stays unavailable.
            state.subscribers.mark_all_stale();
        }
        if state.end_pass(result.is_err()) {
            return;
        }
    }
}

/// Reads where a user's mailbox ends, for a connection that begins.
pub(super) async fn read_mailbox_end(
    gateway: &Gateway,
    sessions: &UserSessions,
) -> Result<UserView, FanoutError> {
    read(gateway, sessions, None, false).await
}

async fn read(
    gateway: &Gateway,
    sessions: &UserSessions,
    after: Option<Position>,
    from_start: bool,
) -> Result<UserView, FanoutError> {
    gateway
        .fanout
        .read(ReadRequest {
            user: sessions.user.clone(),
            after,
            from_start,
            max_bytes: PAGE_BYTES,
        })
        .await
}

/// The user's state at the beginning of a pass, before the mailbox is read.
struct PassStart {
    /// A read was requested, so a frame may be missing.
    is_requested: bool,
    /// Where the mailbox was read up to.
    read_up_to: Option<Position>,
    /// The highest number that a live `chatmesh.v1` connection had received.
    highest_received: Option<SequenceNumber>,
    /// The last number that had been published to this gateway.
    last_published: Option<SequenceNumber>,
}

/// Reads one user's mailbox once, and delivers what its connections have missed.
async fn run_pass(gateway: &Gateway, sessions: &UserSessions) -> Result<(), FanoutError> {
    // A gap that is detected after this requests another pass.
    let start = {
        let mut state = sessions.state();
        PassStart {
            is_requested: state.begin_pass(),
            read_up_to: state.mailbox_read_up_to(),
            highest_received: state.subscribers.highest_received(),
            last_published: state.subscribers.last_published(),
        }
    };
    let after = start.read_up_to.clone();
    let from_start = after.is_none();
    let mut view = read(gateway, sessions, after, from_start).await?;
    mark_stale_subscribers(sessions, &view, &start).await;
    // Where Redis was rolled back, frames that were read before are returned once more.
    let already_read = start.read_up_to.clone().filter(|_| !view.recovered);
    if !view.recovered {
        // The mailbox need not have every pending answer: it may have been trimmed, or its user may
        // have moved to another partition, which starts a new one.
        deliver_answered(gateway, sessions).await?;
        if start.read_up_to.is_some() {
            // The position was trimmed, or lost with Redis; pending answers may be anywhere in the
            // mailbox.
            view = read(gateway, sessions, None, true).await?;
        }
    }
    for _ in 0..MAX_PAGES {
        let last = view.frames.last().map(|(position, _)| position.clone());
        let next = last.filter(|_| view.has_more);
        let mut frames = std::mem::take(&mut view.frames);
        if start.is_requested {
            add_forgotten(gateway, sessions, &mut frames, &view, next.as_ref()).await?;
        }
        for (position, frame) in frames {
            let source = stored_source(&position, &view, already_read.as_ref());
            deliver(gateway, sessions, &frame, position, source);
        }
        {
            let mut state = sessions.state();
            if !gateway.settings.interop {
                state.add_pending_from_view(&view);
            }
            state.set_mailbox_read_up_to(next.clone().unwrap_or_else(|| view.end.clone()));
            if next.is_none() {
                state.set_read_to_end();
            }
        }
        let Some(next) = next else {
            return Ok(());
        };
        view = read(gateway, sessions, Some(next), false).await?;
        if !view.recovered {
            // Trimmed or lost between two pages: the next pass starts over.
            break;
        }
    }
    sessions.state().schedule_mailbox_read();
    Ok(())
}

/// Makes the `chatmesh.v1` connections catch up that have missed a frame before this read.
async fn mark_stale_subscribers(sessions: &UserSessions, view: &UserView, start: &PassStart) {
    let current = &view.number;
    let is_ahead = |known: &SequenceNumber| known.counter == current.counter && known.n > current.n;
    let known = start.highest_received.iter().chain(&start.last_published);
    if known.into_iter().any(is_ahead) {
        // The counter went back: the fan-out has lost the frames after this number.
        sessions.state().subscribers.mark_all_stale();
        return;
    }
    let received = async {
        loop {
            let published = sessions.published.notified();
            tokio::pin!(published);
            published.as_mut().enable();
            if sessions.state().subscribers.have_all_received(&current) {
                return;
            }
            published.await;
        }
    };
    // A frame may still be on its way, except after a gap.
    let max_wait = if start.is_requested {
        Duration::ZERO
    } else {
        MAX_DELIVERY_DELAY
    };
    if timeout(max_wait, received).await.is_err() {
        sessions.state().subscribers.mark_stale_before(&current);
    }
}

/// The source of a stored frame: `Mailbox` if it is in this mailbox's epoch and newer than the last
/// rewind and the last read, otherwise `Rebuilt`.
fn stored_source(
    position: &Position,
    view: &UserView,
    already_read: Option<&Position>,
) -> FrameSource {
    let known = view.rebuilt_up_to.as_ref().into_iter().chain(already_read);
    let is_known = known
        .into_iter()
        .any(|known| position.is_at_or_before(known));
    if position.epoch == view.end.epoch && !is_known {
        FrameSource::Mailbox
    } else {
        FrameSource::Rebuilt
    }
}

/// Adds the terminal frames of forgotten messages to a page that ends at `page_end`; `None` is the
/// mailbox's end. The mailbox has nothing of a forgotten message, although its terminal frame may
/// be the one that was missed. Looked up after the page was read, so that every message that was
/// delivered before the page's frames is known.
async fn add_forgotten(
    gateway: &Gateway,
    sessions: &UserSessions,
    frames: &mut Vec<(Position, String)>,
    view: &UserView,
    page_end: Option<&Position>,
) -> Result<(), FanoutError> {
    let mut forgotten = read_answered(gateway, sessions, true).await?;
    let is_later = |at: &Position, end: &Position| at.epoch == end.epoch && at.offset > end.offset;
    forgotten.retain(|(position, _)| !page_end.is_some_and(|end| is_later(position, end)));
    frames.append(&mut forgotten);
    // Frames of another partition are older than the user's move to this one.
    frames.sort_by_key(|(position, _)| (position.epoch == view.end.epoch, position.offset));
    Ok(())
}

/// The terminal frames of pending messages that were delivered, in the order in which the messages
/// became pending. A forgotten message gets the frame of a cancelled one.
async fn read_answered(
    gateway: &Gateway,
    sessions: &UserSessions,
    only_forgotten: bool,
) -> Result<Vec<(Position, String)>, FanoutError> {
    let pending = sessions.state().pending.ids_by_age();
    if pending.is_empty() {
        return Ok(Vec::new());
    }
    let mut answered = gateway
        .fanout
        .delivered_outcomes(&sessions.user, &pending)
        .await?;
    answered.retain(|answer| !only_forgotten || answer.frame.is_none());
    let state = sessions.state();
    let frames = answered.into_iter().map(|answer| {
        let frame = answer.frame.unwrap_or_else(|| {
            let correlation_id = state.pending.correlation_id(&answer.message_id);
            published::forgotten_message_frame(&answer.message_id, &correlation_id)
        });
        (answer.position, frame)
    });
    Ok(frames.collect())
}

/// Delivers the terminal frames of pending messages that were delivered elsewhere: partition by
/// partition in their order, beginning with the partition of the oldest pending message.
async fn deliver_answered(gateway: &Gateway, sessions: &UserSessions) -> Result<(), FanoutError> {
    let mut frames = read_answered(gateway, sessions, false).await?;
    let mut epochs: Vec<Epoch> = Vec::new();
    for (position, _) in &frames {
        if !epochs.contains(&position.epoch) {
            epochs.push(position.epoch.clone());
        }
    }
    frames.sort_by_key(|(position, _)| {
        let rank = epochs.iter().position(|epoch| *epoch == position.epoch);
        (rank, position.offset)
    });
    for (position, frame) in frames {
        deliver(gateway, sessions, &frame, position, FrameSource::Rebuilt);
    }
    Ok(())
}

fn deliver(
    gateway: &Gateway,
    sessions: &UserSessions,
    frame: &str,
    position: Position,
    source: FrameSource,
) {
    let payload = frame.as_bytes();
    let metrics = &gateway.metrics;
    let delivery = delivery::deliver_stored(metrics, sessions, payload, position, source);
    if delivery.is_delivered() {
        metrics.repaired_frames.increment(1);
    }
}
