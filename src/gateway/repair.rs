//! Finds frames that were published and did not arrive, and answers that a relay's rewind brought
//! back without publishing them to classic clients (protocol.md section 3). One read a user: what
//! its classic sockets have missed is told from it, and those of `chatmesh.v1` are made to catch
//! up where it shows that they have missed something.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::registry::Entry;
use super::user::{Source, up_to};
use super::v1::followers::Mark;
use super::{Gateway, feed};
use crate::fanout::{FanoutError, ReadRequest, UserView};
use crate::protocol::frame;
use crate::protocol::position::{Epoch, Position};

/// Mailboxes that are read at once.
const AT_ONCE: usize = 16;

/// At most so far apart are the reads of two users.
const SPREAD: Duration = Duration::from_millis(20);

/// What was published before a look at the user is here by then, or lost.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// Every user with a `chatmesh.v1` socket is read once in so many ticks of `OPEN_CHECK_MS`.
const ALL_EVERY: u64 = 12;

/// Bytes of frames in one read.
const PAGE: usize = 256 << 10;

/// Pages of one check; the next check goes on where it ended.
const PAGES: usize = 64;

/// Reads the users for whom something is open every `OPEN_CHECK_MS`, all users after a gap, and at
/// once those of whom a frame was left to it.
pub(super) async fn run(gateway: Arc<Gateway>) {
    tokio::select! {
        () = gateway.force.cancelled() => {}
        () = in_turn(&gateway) => {}
        () = at_once(&gateway) => {}
    }
}

async fn in_turn(gateway: &Gateway) {
    let mut tick = interval(gateway.settings.open_check.max(SPREAD));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0_u64;
    loop {
        let mut entries = tokio::select! {
            _ = tick.tick() => {
                ticks += 1;
                gateway.registry.following(ticks % ALL_EVERY, ALL_EVERY)
            }
            () = gateway.registry.gap.notified() => Vec::new(),
        };
        entries.retain(|entry| !entry.state().wants_check());
        entries.extend(gateway.registry.wanting_check());
        let users = u32::try_from(entries.len()).unwrap_or(u32::MAX).max(1);
        let spread = (gateway.settings.open_check / 2 / users).min(SPREAD);
        stream::iter(entries)
            .then(|entry| async {
                sleep(spread).await;
                entry
            })
            .for_each_concurrent(AT_ONCE, |entry| async move {
                read_all(gateway, &entry).await;
            })
            .await;
    }
}

async fn at_once(gateway: &Gateway) {
    loop {
        gateway.registry.is_urgent.notified().await;
        stream::iter(gateway.registry.take_urgent())
            .for_each_concurrent(AT_ONCE, |entry| async move {
                read_all(gateway, &entry).await;
            })
            .await;
    }
}

/// Until no frame waits for it any more.
async fn read_all(gateway: &Gateway, entry: &Entry) {
    if !entry.state().begin_reading() {
        return;
    }
    loop {
        let checked = check(gateway, entry).await;
        if let Err(error) = &checked {
            gateway.counters.redis_error("read");
            tracing::debug!(%error, "a mailbox could not be read, trying again");
        }
        let mut state = entry.state();
        if checked.is_err() {
            // Who can't be told anything for long is closed.
            state.followers.all_stale();
        }
        if state.end_look(checked.is_err()) {
            return;
        }
    }
}

/// Reads where the mailbox ends, for a socket that connects.
pub(super) async fn look_at_end(gateway: &Gateway, entry: &Entry) -> Result<UserView, FanoutError> {
    read(gateway, entry, None, false).await
}

async fn read(
    gateway: &Gateway,
    entry: &Entry,
    after: Option<Position>,
    from_start: bool,
) -> Result<UserView, FanoutError> {
    gateway
        .fanout
        .read(ReadRequest {
            user: entry.user.clone(),
            after,
            from_start,
            max_bytes: PAGE,
        })
        .await
}

/// Makes the `chatmesh.v1` sockets read that have missed something. `newest` is the highest number
/// that one of them followed before the look, `fed` the last that had been published to us.
async fn follow_up(
    entry: &Entry,
    look: &UserView,
    (newest, fed): (Option<Mark>, Option<Mark>),
    lost: bool,
) {
    let mark = Mark::new(&look.n_id, look.n);
    let back = |seen: &Mark| seen.n_id == mark.n_id && seen.n > mark.n;
    if newest.iter().chain(&fed).any(back) {
        entry.state().followers.all_stale();
        return;
    }
    let arrived = async {
        loop {
            let more = entry.published.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if entry.state().followers.reached(&mark) {
                return;
            }
            more.await;
        }
    };
    // It may be on its way still; not after a gap.
    let patience = if lost { Duration::ZERO } else { ON_ITS_WAY };
    if timeout(patience, arrived).await.is_err() {
        entry.state().followers.behind(&mark);
    }
}

/// The ends that are waited for and were delivered, in the order of the waiting; of a message that was
/// forgotten it is that it is cancelled.
async fn delivered(
    gateway: &Gateway,
    entry: &Entry,
    only_forgotten: bool,
) -> Result<Vec<(Position, String)>, FanoutError> {
    let awaited = entry.state().awaited.in_turn();
    if awaited.is_empty() {
        return Ok(Vec::new());
    }
    let mut ends = gateway
        .fanout
        .delivered_outcomes(&entry.user, &awaited)
        .await?;
    ends.retain(|end| !only_forgotten || end.frame.is_none());
    let state = entry.state();
    let frames = ends.into_iter().map(|end| {
        let frame = end.frame.unwrap_or_else(|| {
            frame::forgotten(
                &end.message_id,
                &state.awaited.correlation_id(&end.message_id),
            )
        });
        (end.position, frame)
    });
    Ok(frames.collect())
}

/// Tells the ends that are waited for and were delivered, in the order of each partition, the partition
/// of the longest wait first.
async fn tell_delivered(gateway: &Gateway, entry: &Entry) -> Result<(), FanoutError> {
    let mut frames = delivered(gateway, entry, false).await?;
    let mut epochs: Vec<Epoch> = Vec::new();
    for (position, _) in &frames {
        if !epochs.contains(&position.epoch) {
            epochs.push(position.epoch.clone());
        }
    }
    frames.sort_by_key(|(position, _)| {
        let turn = epochs.iter().position(|epoch| *epoch == position.epoch);
        (turn, position.offset)
    });
    for (position, frame) in frames {
        tell(gateway, entry, &frame, position, Source::Rebuilt);
    }
    Ok(())
}

fn tell(gateway: &Gateway, entry: &Entry, frame: &str, position: Position, source: Source) {
    let taken = feed::take(gateway, entry, frame.as_bytes(), position, source);
    if taken.told {
        gateway.counters.repaired.increment(1);
    }
}

/// One user: tells what its sockets have missed.
async fn check(gateway: &Gateway, entry: &Entry) -> Result<(), FanoutError> {
    // A gap from now on asks for another check.
    let (lost, after, marks) = {
        let mut state = entry.state();
        (state.looking(), state.verified(), state.followers.newest())
    };
    let mut look = read(gateway, entry, after.clone(), after.is_none()).await?;
    follow_up(entry, &look, marks, lost).await;
    // Where Redis was rolled back, what was read before comes once more.
    let before = after.clone().filter(|_| !look.recovered);
    if !look.recovered {
        // Not all of what is waited for need be in the mailbox: it may have been trimmed, or its user
        // may have moved to another partition, which begins it anew.
        tell_delivered(gateway, entry).await?;
        if after.is_some() {
            // The position is worth nothing any more: trimmed, or lost with Redis. What is waited
            // for may be in what the mailbox has.
            look = read(gateway, entry, None, true).await?;
        }
    }
    for _ in 0..PAGES {
        let mut frames = std::mem::take(&mut look.frames);
        let last = frames.last().map(|(position, _)| position.clone());
        let next = last.filter(|_| look.has_more);
        if lost {
            // The mailbox has nothing of what was forgotten, though its end may be what was missed.
            // Asked after the look: what was delivered before its frames is known by then.
            let mut forgotten = delivered(gateway, entry, true).await?;
            let later =
                |at: &Position, end: &Position| at.epoch == end.epoch && at.offset > end.offset;
            forgotten.retain(|(at, _)| !next.as_ref().is_some_and(|end| later(at, end)));
            frames.append(&mut forgotten);
            // What is of another partition is from before its user moved.
            frames.sort_by_key(|(at, _)| (at.epoch == look.end.epoch, at.offset));
        }
        for (position, frame) in frames {
            let old = [&look.rebuilt_up_to, &before].into_iter().flatten();
            let mailbox = position.epoch == look.end.epoch;
            let source = if mailbox && !old.into_iter().any(|old| up_to(&position, Some(old))) {
                Source::Mailbox
            } else {
                Source::Rebuilt
            };
            tell(gateway, entry, &frame, position, source);
        }
        let page_end = next.clone().unwrap_or_else(|| look.end.clone());
        {
            let mut state = entry.state();
            if !gateway.settings.interop {
                state.looked(&look);
            }
            state.set_verified(page_end);
            if next.is_none() {
                state.saw_all();
            }
        }
        let Some(next) = next else {
            return Ok(());
        };
        look = read(gateway, entry, Some(next), false).await?;
        if !look.recovered {
            // Trimmed or lost between two pages: the next check sees it and begins anew.
            break;
        }
    }
    entry.state().set_due();
    Ok(())
}
