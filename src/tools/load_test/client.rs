//! Runs one client, which connects, sends its messages on schedule, and reconnects after a lost
//! connection.

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

/// Resolution of tokio's timers. Clients wake up earlier than scheduled by this time. The latency
/// of a message that is sent before its scheduled time counts from the time when it was sent.
const TIMER_RESOLUTION: Duration = Duration::from_millis(1);
/// Maximum delay before the first attempt to reconnect; the maximum doubles with each attempt.
const FIRST_RECONNECT_DELAY: Duration = Duration::from_millis(200);
/// Maximum delay before an attempt to reconnect, unless the close code asks for a longer delay.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(4);
/// Delay of a client that does not reconnect. It is longer than any test.
const NO_RECONNECT_DELAY: Duration = Duration::from_secs(365 * 86_400);
/// When the user ends the test, messages that became due within this time before the end do not
/// count as not sent.
const INTERRUPT_GRACE: Duration = Duration::from_millis(50);
/// Time limit of the closing handshake of a connection at the end of the test.
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
            state.connected_clients.fetch_add(1, Ordering::Relaxed);
            state.attempted_clients.fetch_add(1, Ordering::Relaxed);
            client.run(connection).await;
        }
        Some(Err(DisconnectReason(reason))) => {
            increment(&mut context.stats.borrow_mut().not_connected, &reason);
            state.attempted_clients.fetch_add(1, Ordering::Relaxed);
            client.set_finished();
            // The client waits for the end of the test, because only then is it known how many
            // scheduled messages the client did not send.
            state.stop.cancelled().await;
        }
        None => {}
    }
    client.set_finished();
    client.record_missed_messages();
}

/// An event of a client's socket.
pub(super) enum SocketEvent {
    /// The socket can take another frame.
    Writable,
    /// A frame was received or the connection failed; `None` after the end of the stream.
    Received(Option<Result<Message, Error>>),
}

/// The state of one client.
pub(super) struct Client<'a> {
    /// Number of the client, from 0.
    number: usize,
    pub(super) context: &'a ThreadContext,
    pub(super) tracker: MessageTracker,
    /// Number of messages that the client has sent, each counted once.
    sent_messages: u64,
    /// Position of the last terminal frame, from which the client resumes; empty if the client has
    /// no position.
    pub(super) position: String,
    /// Numbers of the messages to send once more.
    pub(super) to_resend: VecDeque<u64>,
    /// When the schedule of messages started.
    pub(super) schedule_start: Instant,
    /// Whether the client has nothing more to send and no answer to wait for.
    is_finished: bool,
}

impl<'a> Client<'a> {
    fn new(number: usize, context: &'a ThreadContext) -> Self {
        Self {
            number,
            context,
            tracker: MessageTracker::new(context.plan.is_v1),
            sent_messages: 0,
            position: String::new(),
            to_resend: VecDeque::new(),
            schedule_start: Instant::now(),
            is_finished: false,
        }
    }

    /// Exchanges messages until the test ends, and reconnects whenever the connection is lost
    /// before the end.
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
            context
                .state
                .reconnecting_clients
                .fetch_add(1, Ordering::Relaxed);
            let Some(connection) = self.reconnect(reason).await else {
                return;
            };
            context
                .state
                .reconnecting_clients
                .fetch_sub(1, Ordering::Relaxed);
            socket = connection.socket;
            if let Some(position) = connection.position {
                self.position = position;
            }
            if context.plan.is_v1 {
                self.to_resend = self.tracker.messages_to_resend(!connection.is_recovered);
            }
        }
    }

    /// Tries to connect until the client is connected again; `None` when the test ends before that.
    async fn reconnect(&mut self, mut reason: String) -> Option<Connection> {
        let (number, context) = (self.number, self.context);
        let mut backoff = Backoff::new(FIRST_RECONNECT_DELAY, MAX_RECONNECT_DELAY).with_jitter();
        let mut delay = match retry_hint(close_code(&reason)) {
            RetryHint::Never(_) => {
                // This client sends nothing more, so the test does not wait for it.
                self.set_finished();
                NO_RECONNECT_DELAY
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

    /// Counts the messages without an outcome as lost, and counts the scheduled messages that were
    /// not sent.
    fn record_missed_messages(&self) {
        let state = &self.context.state;
        let mut stats = self.context.stats.borrow_mut();
        stats.lost += self.tracker.pending_count() as u64;
        let Some(start) = *state.schedule_start.borrow() else {
            return;
        };
        let is_interrupted = state.is_interrupted.load(Ordering::Relaxed);
        let until = is_interrupted.then(|| start.elapsed().saturating_sub(INTERRUPT_GRACE));
        let scheduled = self.context.plan.scheduled_messages(self.number, until);
        stats.not_sent += scheduled.saturating_sub(self.sent_messages);
    }

    /// Sends and receives until the test ends (`Ok`) or the connection is lost (`Err`).
    async fn exchange_messages(&mut self, socket: &mut Socket) -> Result<(), DisconnectReason> {
        let state = Arc::clone(&self.context.state);
        let mut stop = pin!(state.stop.cancelled());
        let mut schedule_start = state.schedule_start.clone();
        // The socket is read before the schedule starts too, so that tungstenite answers pings.
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
            if due.is_none() && self.tracker.pending_count() == 0 && self.is_done_sending(now) {
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

    /// When the next message of the schedule is due; `None` when the schedule has no further
    /// message, or none before the next answer arrives.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let plan = &self.context.plan;
        if self.sent_messages >= plan.messages_per_client {
            return None;
        }
        let due = match plan.mode {
            SendMode::OpenLoop(rate) => {
                self.schedule_start + plan.send_offset(rate, self.number, self.sent_messages)
            }
            SendMode::ClosedLoop(max) if self.tracker.in_flight_count() < max => {
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
        self.sent_messages >= plan.messages_per_client
            || plan.duration.is_some_and(|duration| match plan.mode {
                SendMode::OpenLoop(_) => true,
                _ => now >= self.schedule_start + duration,
            })
    }

    fn set_finished(&mut self) {
        if !self.is_finished {
            self.is_finished = true;
            self.context
                .state
                .finished_clients
                .fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends the first message of `to_resend`, or the next new message if there is none to resend.
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
        self.sent_messages += 1;
        let mut stats = self.context.stats.borrow_mut();
        stats.sent += 1;
        stats.send_delay.record(now.saturating_duration_since(due));
        let since_start = now.saturating_duration_since(self.schedule_start);
        stats.series.record_sent(since_start);
        drop(stats);
        self.context
            .state
            .sent_messages
            .fetch_add(1, Ordering::Relaxed);
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

/// Returns the close code in a reason that [`DisconnectReason::from_end`] made of a close frame;
/// `None` for any other reason.
fn close_code(reason: &str) -> Option<u16> {
    reason.strip_prefix("close ")?.parse().ok()
}

/// Waits until a frame is received, or, if `wants_to_write`, until a frame can be sent.
async fn next_event(socket: &mut Socket, wants_to_write: bool) -> SocketEvent {
    let mut socket = Pin::new(socket);
    poll_fn(|cx| {
        // `poll_ready` also flushes the unsent bytes of the last frame.
        match socket.as_mut().poll_ready(cx) {
            Poll::Ready(Ok(())) if wants_to_write => return Poll::Ready(SocketEvent::Writable),
            Poll::Ready(Err(error)) => return Poll::Ready(SocketEvent::Received(Some(Err(error)))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        socket.poll_next_unpin(cx).map(SocketEvent::Received)
    })
    .await
}
