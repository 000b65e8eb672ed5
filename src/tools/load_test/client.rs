//! A client: connects, sends its messages on schedule, and reconnects after a lost connection.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use futures_util::{Sink as _, SinkExt as _, StreamExt as _};
use rand::Rng as _;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::connection::{Connection, DisconnectReason, Socket, connect, reconnect};
use super::context::ThreadContext;
use super::frames::marker;
use super::plan::SendMode;
use super::stats::increment;
use super::tracker::MessageTracker;
use crate::backoff::Backoff;
use crate::client::retry_hint::{RetryHint, retry_hint};

/// Resolution of tokio's timers. Clients wake up this much early; a message that is sent before its
/// scheduled time is measured from when it was sent.
const TIMER_RESOLUTION: Duration = Duration::from_millis(1);
/// Upper limits of the delay before the first attempt to reconnect and before later ones.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(4);
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(365 * 86_400);
/// When the user ends the test, messages that became due within this time do not count as missed.
const INTERRUPT_GRACE: Duration = Duration::from_millis(50);
/// How long a closing handshake may take at the end of the test.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs one client until the test ends, and adds its results to the thread's statistics.
pub(super) async fn run_client(number: usize, context: Rc<ThreadContext>) {
    let state = &context.state;
    let connected = state
        .stop
        .run_until_cancelled(connect(number, &context))
        .await;
    let mut client = Client::new(number, &context);
    match connected {
        Some(Ok(connection)) => {
            context.stats.borrow_mut().connected += 1;
            state.connected.fetch_add(1, Ordering::Relaxed);
            state.attempted.fetch_add(1, Ordering::Relaxed);
            client.run(connection).await;
        }
        Some(Err(DisconnectReason(reason))) => {
            increment(&mut context.stats.borrow_mut().not_connected, &reason);
            state.attempted.fetch_add(1, Ordering::Relaxed);
            client.set_finished();
            // Only at the end of the test is it known how many messages this client missed.
            state.stop.cancelled().await;
        }
        None => {}
    }
    client.set_finished();
    client.record_missed_messages();
}

/// What a client can do next with its socket.
pub(super) enum SocketEvent {
    /// The socket can take another frame.
    Writable,
    Received(Option<Result<Message, Error>>),
}

/// The state of one client.
pub(super) struct Client<'a> {
    number: usize,
    pub(super) context: &'a ThreadContext,
    pub(super) tracker: MessageTracker,
    sent: u64,
    /// Position of the last terminal frame, from which the client resumes; empty if there is none.
    pub(super) position: String,
    /// Messages to send once more, by number.
    pub(super) to_resend: VecDeque<u64>,
    pub(super) schedule_start: Instant,
    is_finished: bool,
}

impl<'a> Client<'a> {
    fn new(number: usize, context: &'a ThreadContext) -> Self {
        Self {
            number,
            context,
            tracker: MessageTracker::new(context.plan.is_v1),
            sent: 0,
            position: String::new(),
            to_resend: VecDeque::new(),
            schedule_start: Instant::now(),
            is_finished: false,
        }
    }

    /// Uses the connection until the test ends, and reconnects whenever it is lost before.
    async fn run(&mut self, connection: Connection) {
        let context = self.context;
        let mut socket = connection.socket;
        self.position = connection.position.unwrap_or_default();
        loop {
            let Err(DisconnectReason(reason)) = self.exchange_messages(&mut socket).await else {
                let _ = timeout(CLOSE_TIMEOUT, socket.close(None)).await;
                return;
            };
            drop(socket);
            let start = *context.state.schedule_start.borrow();
            let since_start = start.map_or(Duration::ZERO, |start| start.elapsed());
            let stats = &context.stats;
            stats.borrow_mut().record_early_close(&reason, since_start);
            if !context.plan.is_v1 {
                self.tracker.abandon_pending();
            }
            if self.is_finished {
                return;
            }
            context.state.reconnecting.fetch_add(1, Ordering::Relaxed);
            let Some(connection) = self.reconnect(reason).await else {
                return;
            };
            context.state.reconnecting.fetch_sub(1, Ordering::Relaxed);
            socket = connection.socket;
            if let Some(position) = connection.position {
                self.position = position;
            }
            if context.plan.is_v1 {
                self.to_resend = self.tracker.messages_to_resend(!connection.is_recovered);
            }
        }
    }

    /// Retries until the client is connected again; `None` when the test ends before.
    async fn reconnect(&mut self, mut reason: String) -> Option<Connection> {
        let (number, context) = (self.number, self.context);
        let mut backoff = Backoff::new(FIRST_DELAY, MAX_DELAY).with_jitter();
        let mut delay = match retry_hint(close_code(&reason)) {
            RetryHint::Never(_) => {
                // This client sends nothing more, and the test need not wait for it.
                self.set_finished();
                NEVER
            }
            // The random factor spreads clients that were closed at the same time.
            RetryHint::Reconnect(Some(minimum)) => {
                minimum.mul_f64(rand::rng().random_range(1.0..=2.0))
            }
            RetryHint::Reconnect(None) | RetryHint::NewToken => backoff.next_delay(),
        };
        loop {
            let attempt = async {
                sleep(delay).await;
                reconnect(number, context, &self.position).await
            };
            match context.state.stop.run_until_cancelled(attempt).await {
                Some(Ok(connection)) => {
                    context.stats.borrow_mut().reconnections += 1;
                    return Some(connection);
                }
                Some(Err(DisconnectReason(latest))) => reason = latest,
                None => {
                    increment(&mut context.stats.borrow_mut().not_reconnected, &reason);
                    return None;
                }
            }
            delay = backoff.next_delay();
        }
    }

    /// Counts the messages that have no answer, and those of the schedule that were not sent.
    fn record_missed_messages(&self) {
        let state = &self.context.state;
        let mut stats = self.context.stats.borrow_mut();
        stats.lost += self.tracker.pending() as u64;
        let Some(start) = *state.schedule_start.borrow() else {
            return;
        };
        let is_interrupted = state.is_interrupted.load(Ordering::Relaxed);
        let until = is_interrupted.then(|| start.elapsed().saturating_sub(INTERRUPT_GRACE));
        let scheduled = self.context.plan.scheduled(self.number, until);
        stats.not_sent += scheduled.saturating_sub(self.sent);
    }

    /// Sends and receives until the test ends (`Ok`) or the connection is lost (`Err`).
    async fn exchange_messages(&mut self, socket: &mut Socket) -> Result<(), DisconnectReason> {
        let state = Arc::clone(&self.context.state);
        let mut stop = pin!(state.stop.cancelled());
        let mut schedule_start = state.schedule_start.clone();
        // While waiting for the start, the socket is read so that tungstenite answers pings.
        loop {
            let is_idle = self.context.plan.mode == SendMode::Idle;
            tokio::select! {
                event = next_event(socket, false) => self.handle_event(event)?,
                start = schedule_start.wait_for(Option::is_some), if !is_idle => {
                    match start.map(|start| *start) {
                        Ok(Some(start)) => self.schedule_start = start,
                        _ => return Ok(()),
                    }
                    break;
                }
                () = &mut stop => return Ok(()),
            }
        }
        let mut timer = pin!(sleep_until(self.schedule_start));
        loop {
            let now = Instant::now();
            let due = match self.to_resend.front() {
                Some(_) => Some(now),
                None => self.next_due(now),
            };
            if due.is_none() && self.tracker.pending() == 0 && self.is_done_sending(now) {
                // The client keeps reading, because duplicates may still arrive.
                self.set_finished();
            }
            let is_due = due.is_some_and(|due| due <= now + TIMER_RESOLUTION);
            let wake_at = due.filter(|_| !is_due).map(|due| due - TIMER_RESOLUTION);
            if let Some(wake_at) = wake_at
                && timer.deadline() != wake_at
            {
                timer.as_mut().reset(wake_at);
            }
            tokio::select! {
                event = next_event(socket, is_due) => match (event, due) {
                    (SocketEvent::Writable, Some(due)) => self.send_next(socket, due)?,
                    (event, _) => self.handle_event(event)?,
                },
                () = timer.as_mut(), if wake_at.is_some() => {}
                () = &mut stop => return Ok(()),
            }
        }
    }

    /// When the next message is due; `None` when there is none, or none before the next answer.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let plan = &self.context.plan;
        if self.sent >= plan.messages {
            return None;
        }
        let due = match plan.mode {
            SendMode::OpenLoop(rate) => {
                self.schedule_start + plan.send_offset(rate, self.number, self.sent)
            }
            SendMode::ClosedLoop(max) if self.tracker.in_flight() < max => {
                now.max(self.schedule_start)
            }
            SendMode::ClosedLoop(_) | SendMode::Idle => return None,
        };
        let is_after_end = plan
            .duration
            .is_some_and(|duration| due >= self.schedule_start + duration);
        (!is_after_end).then_some(due)
    }

    /// Whether the client will send nothing more, regardless of what it receives. In an open loop
    /// with a duration this is meaningful only when [`Self::next_due`] is `None`.
    fn is_done_sending(&self, now: Instant) -> bool {
        let plan = &self.context.plan;
        self.sent >= plan.messages
            || plan.duration.is_some_and(|duration| match plan.mode {
                SendMode::OpenLoop(_) => true,
                _ => now >= self.schedule_start + duration,
            })
    }

    fn set_finished(&mut self) {
        if !self.is_finished {
            self.is_finished = true;
            self.context.state.finished.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends the first message that must be resent, otherwise the next new one.
    fn send_next(&mut self, socket: &mut Socket, due: Instant) -> Result<(), DisconnectReason> {
        if let Some(number) = self.to_resend.pop_front() {
            if !self.tracker.record_resent(number) {
                return Ok(());
            }
            self.context.stats.borrow_mut().resent += 1;
            return self.write_message(socket, number);
        }
        let now = Instant::now();
        let number = self.tracker.record_sent(due.min(now));
        self.sent += 1;
        let mut stats = self.context.stats.borrow_mut();
        stats.sent += 1;
        stats.send_delay.record(now.saturating_duration_since(due));
        let since_start = now.saturating_duration_since(self.schedule_start);
        stats.series.record_sent(since_start);
        drop(stats);
        self.context.state.sent.fetch_add(1, Ordering::Relaxed);
        self.write_message(socket, number)
    }

    fn write_message(&self, socket: &mut Socket, number: u64) -> Result<(), DisconnectReason> {
        let plan = &self.context.plan;
        let (marker, padding) = (marker(number), &plan.padding);
        let text = if plan.is_v1 {
            format!(r#"{{"type":"message","id":"{number}","content":"{marker}{padding}"}}"#)
        } else {
            format!(r#"{{"type":"message","content":"{marker}{padding}"}}"#)
        };
        let sent = socket.start_send_unpin(Message::text(text));
        sent.map_err(|error| DisconnectReason::from_end(Some(Err(error))))
    }
}

/// The close code in a reason that [`DisconnectReason::from_end`] made of a close frame.
fn close_code(reason: &str) -> Option<u16> {
    reason.strip_prefix("close ")?.parse().ok()
}

/// Waits until a frame is received, or, if `wants_to_write`, until one can be sent.
async fn next_event(socket: &mut Socket, wants_to_write: bool) -> SocketEvent {
    let mut socket = Pin::new(socket);
    poll_fn(|cx| {
        // `poll_ready` also flushes what remains of the last frame.
        match socket.as_mut().poll_ready(cx) {
            Poll::Ready(Ok(())) if wants_to_write => return Poll::Ready(SocketEvent::Writable),
            Poll::Ready(Err(error)) => return Poll::Ready(SocketEvent::Received(Some(Err(error)))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        socket.poll_next_unpin(cx).map(SocketEvent::Received)
    })
    .await
}
