//! The mailbox sync: reads the mailboxes of users who may have missed a frame (docs/consistency.md,
//! "Finding a lost last frame" and "Order for classic clients"). The frame was published and not
//! received, or a relay's rewind stored it again and did not publish it to classic clients.
//!
//! One read serves all connections of a user. Classic connections receive the missed frames from
//! it. `chatmesh.v1` connections that have missed a frame become stale and read for themselves.

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

/// Maximum number of mailboxes that [`sync_periodically`] reads at the same time.
/// [`sync_on_request`] has the same limit of its own.
const MAX_CONCURRENT_READS: usize = 16;

/// Maximum pause of the periodic loop before it starts the next user's read, and minimum of the
/// loop's period.
const MAX_READ_SPACING: Duration = Duration::from_millis(20);

/// Time after a read within which every frame that was published before the read is received. A
/// frame that arrives later counts as lost.
const MAX_DELIVERY_DELAY: Duration = Duration::from_millis(200);

/// Number of shards into which users are divided. The mailboxes of one shard are read in each
/// period of `OPEN_CHECK_MS`, so a user with `chatmesh.v1` connections is read once in this many
/// periods.
const SHARDS: u64 = 12;

/// Maximum size in bytes of the frames that one read returns.
const PAGE_BYTES: usize = 256 << 10;

/// Maximum number of pages that one pass reads. The next pass continues after the last page.
const MAX_PAGES: usize = 64;

/// Reads mailboxes until the gateway is aborted. Every `OPEN_CHECK_MS` it reads the mailboxes of
/// users with pending answers and of the next shard; after a gap, the mailboxes of all users; and
/// when a frame is deferred, the mailbox of its user at once.
pub(super) async fn run(gateway: Arc<Gateway>) {
    tokio::select! {
        () = gateway.abort.cancelled() => {}
        () = sync_periodically(&gateway) => {}
        () = sync_on_request(&gateway) => {}
    }
}

/// Reads, in every period and after a gap, the mailboxes of all users who need a mailbox read. In a
/// period it also reads the mailboxes of the next shard.
async fn sync_periodically(gateway: &Gateway) {
    let mut tick = interval(gateway.settings.open_check_interval.max(MAX_READ_SPACING));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0_u64;
    loop {
        let mut users = tokio::select! {
            _ = tick.tick() => {
                ticks += 1;
                gateway.registry.v1_users_in_shard(ticks % SHARDS, SHARDS)
            }
            () = gateway.registry.gap_detected.notified() => Vec::new(),
        };
        users.retain(|sessions| !sessions.state().needs_mailbox_read());
        users.extend(gateway.registry.users_needing_mailbox_read());
        let count = u32::try_from(users.len()).unwrap_or(u32::MAX).max(1);
        let spacing = (gateway.settings.open_check_interval / 2 / count).min(MAX_READ_SPACING);
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

/// Reads the mailboxes of users as soon as a frame of theirs was deferred.
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

/// Makes passes over a user's mailbox until no deferred frame waits for another pass, or a pass
/// fails. Does nothing where another task is reading the mailbox.
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
            // Each stale `chatmesh.v1` connection reads for itself, and is closed if the fan-out
            // remains unavailable.
            state.subscribers.mark_all_stale();
        }
        if state.end_pass(result.is_err()) {
            return;
        }
    }
}

/// Reads the user view without frames, for the position at which the mailbox ends when a classic
/// connection begins.
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
    /// Whether the pass was requested, because a frame may be missing. False for a periodic check
    /// of a user with pending answers or of a shard.
    is_requested: bool,
    /// The position up to which earlier passes have read the mailbox.
    read_up_to: Option<Position>,
    /// The highest number of a frame that a live `chatmesh.v1` connection had received.
    highest_received: Option<SequenceNumber>,
    /// The number of the last published frame that this gateway had received for the user.
    last_published: Option<SequenceNumber>,
}

/// Makes one pass over a user's mailbox: reads it page by page, and delivers the frames that the
/// user's connections have missed.
async fn run_pass(gateway: &Gateway, sessions: &UserSessions) -> Result<(), FanoutError> {
    // A gap that is detected after this block requests another pass.
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
    // If `view.recovered` is false, the mailbox does not have every frame after `read_up_to`, or
    // there is no `read_up_to` yet. The mailbox is then read from its start. This read returns the
    // frames up to `read_up_to` that the mailbox still has once more.
    let already_read_up_to = start.read_up_to.clone().filter(|_| !view.recovered);
    if !view.recovered {
        // The mailbox may lack pending answers: it may have been trimmed, or the user may
        // have moved to another partition, for which the mailbox has started again.
        deliver_outcomes(gateway, sessions).await?;
        if start.read_up_to.is_some() {
            // The mailbox no longer has the position, because it was trimmed or Redis lost its
            // data. Frames of pending messages may be anywhere in the mailbox.
            view = read(gateway, sessions, None, true).await?;
        }
    }
    for _ in 0..MAX_PAGES {
        let last_position = view.frames.last().map(|(position, _)| position.clone());
        // `None` where the page ends at the mailbox's end.
        let page_end = last_position.filter(|_| view.has_more);
        let mut frames = std::mem::take(&mut view.frames);
        if start.is_requested {
            add_forgotten_messages(gateway, sessions, &mut frames, &view, page_end.as_ref())
                .await?;
        }
        for (position, frame) in frames {
            let source = stored_source(&position, &view, already_read_up_to.as_ref());
            deliver(gateway, sessions, &frame, position, source);
        }
        {
            let mut state = sessions.state();
            if !gateway.settings.interop {
                state.add_pending_from_view(&view);
            }
            state.set_mailbox_read_up_to(page_end.clone().unwrap_or_else(|| view.end.clone()));
            if page_end.is_none() {
                state.set_read_to_end();
            }
        }
        let Some(page_end) = page_end else {
            return Ok(());
        };
        view = read(gateway, sessions, Some(page_end), false).await?;
        if !view.recovered {
            // The mailbox was trimmed or lost between two pages, so the next pass starts over.
            break;
        }
    }
    sessions.state().schedule_mailbox_read();
    Ok(())
}

/// Marks the `chatmesh.v1` connections stale that have missed a frame, or text of an answer, which
/// was published before the read.
async fn mark_stale_subscribers(sessions: &UserSessions, view: &UserView, start: &PassStart) {
    let current = &view.number;
    let is_ahead =
        |number: &SequenceNumber| number.counter == current.counter && number.n > current.n;
    let mut numbers = start.highest_received.iter().chain(&start.last_published);
    if numbers.any(is_ahead) {
        // The counter went back: the fan-out has lost the frames after this number.
        sessions.state().subscribers.mark_all_stale();
        return;
    }
    let all_received = async {
        loop {
            let published = sessions.frame_published.notified();
            tokio::pin!(published);
            published.as_mut().enable();
            if sessions.state().subscribers.have_received(view) {
                return;
            }
            published.await;
        }
    };
    // A frame that was published shortly before the read may still arrive. After a gap this is not
    // awaited, because a frame is probably lost.
    let max_wait = if start.is_requested {
        Duration::ZERO
    } else {
        MAX_DELIVERY_DELAY
    };
    if timeout(max_wait, all_received).await.is_err() {
        sessions.state().subscribers.mark_stale_behind(view);
    }
}

/// The source of a frame that was read from the mailbox. `Mailbox` for a frame of the mailbox's
/// epoch after the last frame that a rewind stored again, and after the frames that an earlier pass
/// has read; otherwise `Rebuilt`.
fn stored_source(
    position: &Position,
    view: &UserView,
    already_read_up_to: Option<&Position>,
) -> FrameSource {
    let mut repeated_up_to = view
        .rebuilt_up_to
        .as_ref()
        .into_iter()
        .chain(already_read_up_to);
    let is_repeated = repeated_up_to.any(|bound| position.is_at_or_before(bound));
    if position.epoch == view.end.epoch && !is_repeated {
        FrameSource::Mailbox
    } else {
        FrameSource::Rebuilt
    }
}

/// Adds the terminal frames of forgotten messages, in their places, to a page that ends at
/// `page_end`, or at the mailbox's end if that is `None`. The mailbox has no frame of a forgotten
/// message, although this gateway may have missed that frame. The messages are requested after the
/// page was read, so they include every message that was delivered before the page's last frame.
async fn add_forgotten_messages(
    gateway: &Gateway,
    sessions: &UserSessions,
    frames: &mut Vec<(Position, String)>,
    view: &UserView,
    page_end: Option<&Position>,
) -> Result<(), FanoutError> {
    let mut forgotten = read_outcomes(gateway, sessions, true).await?;
    let is_later = |at: &Position, end: &Position| at.epoch == end.epoch && at.offset > end.offset;
    forgotten.retain(|(position, _)| !page_end.is_some_and(|end| is_later(position, end)));
    frames.append(&mut forgotten);
    // Frames of other epochs come first, because they are older than the user's move to the current
    // partition.
    frames.sort_by_key(|(position, _)| (position.epoch == view.end.epoch, position.offset));
    Ok(())
}

/// Requests the delivered outcomes of the pending messages by their ids. Returns their terminal
/// frames in the order in which the messages became pending; for a forgotten message, a frame that
/// says that it was cancelled. With `only_forgotten`, returns the frames of forgotten messages
/// only.
async fn read_outcomes(
    gateway: &Gateway,
    sessions: &UserSessions,
    only_forgotten: bool,
) -> Result<Vec<(Position, String)>, FanoutError> {
    let pending = sessions.state().pending.ids_by_age();
    if pending.is_empty() {
        return Ok(Vec::new());
    }
    let mut outcomes = gateway
        .fanout
        .delivered_outcomes(&sessions.user, &pending)
        .await?;
    outcomes.retain(|outcome| !only_forgotten || outcome.frame.is_none());
    let state = sessions.state();
    let frames = outcomes.into_iter().map(|outcome| {
        let frame = outcome.frame.unwrap_or_else(|| {
            let correlation_id = state.pending.correlation_id(&outcome.message_id);
            published::forgotten_message_frame(&outcome.message_id, &correlation_id)
        });
        (outcome.position, frame)
    });
    Ok(frames.collect())
}

/// Delivers the terminal frames of pending messages whose outcomes a relay has delivered. The order
/// is that of their positions within a partition, beginning with the partition that has the oldest
/// pending message.
async fn deliver_outcomes(gateway: &Gateway, sessions: &UserSessions) -> Result<(), FanoutError> {
    let mut frames = read_outcomes(gateway, sessions, false).await?;
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
