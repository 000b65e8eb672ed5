//! One client: connects, sends when it is time, and notes what comes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_util::{Sink as _, SinkExt as _, StreamExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::connect::{Gone, Socket, connect, gone};
use super::frames::{Frame, mark, marked, stamps};
use super::ledger::{End, Ledger};
use super::stats::{Stats, count};
use super::target::{Target, Tokens};
use crate::protocol::error_code::ErrorCode;

/// What tokio's timers may be late, so that clients wake up so much earlier. A message that is sent
/// before its time is measured from its sending.
const TIMER: Duration = Duration::from_millis(1);

/// When messages are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// Never.
    Idle,
    /// So many a second by all clients together, whatever becomes of them.
    Open(f64),
    /// As soon as there are fewer than so many of this client under way.
    Closed(usize),
}

/// What all clients do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) targets: Vec<Target>,
    pub(super) sources: Vec<IpAddr>,
    pub(super) tokens: Tokens,
    pub(super) clients: usize,
    pub(super) v1: bool,
    pub(super) pace: Pace,
    /// Of each client.
    pub(super) messages: u64,
    pub(super) duration: Option<Duration>,
    pub(super) ramp_up: Duration,
    /// Beginning of the users' names.
    pub(super) user: String,
    /// Text after the mark.
    pub(super) padding: String,
}

/// What the test's conductor and its clients tell each other.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) started: Instant,
    /// When the first message may be sent.
    pub(super) begin: watch::Receiver<Option<Instant>>,
    /// Everybody stops.
    pub(super) end: CancellationToken,
    /// Connected, or failed to.
    pub(super) arrived: AtomicU64,
    pub(super) connected: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) ended: AtomicU64,
    /// Clients that have nothing more to do.
    pub(super) finished: AtomicU64,
}

/// What the clients of one thread share.
pub(super) struct Neighbours {
    pub(super) plan: Arc<Plan>,
    pub(super) stage: Arc<Stage>,
    pub(super) stats: RefCell<Stats>,
    /// Connecting at once.
    pub(super) doors: Semaphore,
}

/// The `number`th client's life.
pub(super) async fn run(number: usize, around: Rc<Neighbours>) {
    let stage = &around.stage;
    let connected = stage
        .end
        .run_until_cancelled(connect(number, &around))
        .await;
    let mut client = match connected {
        Some(Ok(socket)) => {
            around.stats.borrow_mut().connected += 1;
            stage.connected.fetch_add(1, Ordering::Relaxed);
            Client::new(number, socket, &around)
        }
        Some(Err(Gone(why))) => {
            count(&mut around.stats.borrow_mut().not_connected, &why);
            stage.arrived.fetch_add(1, Ordering::Relaxed);
            stage.finished.fetch_add(1, Ordering::Relaxed);
            return;
        }
        None => return,
    };
    stage.arrived.fetch_add(1, Ordering::Relaxed);
    let gone = client.live().await;
    client.finish();
    around.stats.borrow_mut().lost += client.ledger.open() as u64;
    if let Err(Gone(why)) = gone {
        count(&mut around.stats.borrow_mut().closed, &why);
    } else {
        // Politely, but a server that doesn't listen any more is not waited for.
        let _ = timeout(Duration::from_secs(1), client.socket.close(None)).await;
    }
}

enum Step {
    /// Another frame can be written.
    Room,
    Read(Option<Result<Message, Error>>),
}

struct Client<'a> {
    number: usize,
    socket: Socket,
    around: &'a Neighbours,
    ledger: Ledger,
    sent: u64,
    begin: Instant,
    finished: bool,
}

impl<'a> Client<'a> {
    fn new(number: usize, socket: Socket, around: &'a Neighbours) -> Self {
        Self {
            number,
            socket,
            around,
            ledger: Ledger::default(),
            sent: 0,
            begin: Instant::now(),
            finished: false,
        }
    }

    /// Until the test ends, or the connection does.
    async fn live(&mut self) -> Result<(), Gone> {
        let stage = Arc::clone(&self.around.stage);
        let mut end = pin!(stage.end.cancelled());
        let mut begin = stage.begin.clone();
        // Pings are answered by reading.
        loop {
            let idle = self.around.plan.pace == Pace::Idle;
            tokio::select! {
                step = self.step(false) => self.take(step)?,
                begun = begin.wait_for(Option::is_some), if !idle => {
                    match begun.map(|at| *at) {
                        Ok(Some(at)) => self.begin = at,
                        _ => return Ok(()),
                    }
                    break;
                }
                () = &mut end => return Ok(()),
            }
        }
        let mut timer = pin!(sleep_until(self.begin));
        loop {
            let now = Instant::now();
            let due = self.due(now);
            if due.is_none() && self.ledger.open() == 0 && self.is_done(now) {
                // Doubles may still come.
                self.finish();
            }
            let is_due = due.is_some_and(|due| due <= now + TIMER);
            let waits = due.filter(|_| !is_due).map(|due| due - TIMER);
            if let Some(wake) = waits
                && timer.deadline() != wake
            {
                timer.as_mut().reset(wake);
            }
            tokio::select! {
                step = self.step(is_due) => match (step, due) {
                    (Step::Room, Some(due)) => self.send(due)?,
                    (step, _) => self.take(step)?,
                },
                () = timer.as_mut(), if waits.is_some() => {}
                () = &mut end => return Ok(()),
            }
        }
    }

    /// Reads a frame, or says that one can be written where that is wanted.
    async fn step(&mut self, wants_room: bool) -> Step {
        let mut socket = Pin::new(&mut self.socket);
        poll_fn(|cx| {
            // Also writes what is left of the last one.
            match socket.as_mut().poll_ready(cx) {
                Poll::Ready(Ok(())) if wants_room => return Poll::Ready(Step::Room),
                Poll::Ready(Err(error)) => return Poll::Ready(Step::Read(Some(Err(error)))),
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
            socket.poll_next_unpin(cx).map(Step::Read)
        })
        .await
    }

    /// When the next message is to be sent; `None` when none is, or not before an answer.
    fn due(&self, now: Instant) -> Option<Instant> {
        let plan = &self.around.plan;
        if self.sent >= plan.messages {
            return None;
        }
        let due = match plan.pace {
            Pace::Open(rate) => {
                let before = self.number as f64 + self.sent as f64 * plan.clients as f64;
                self.begin + Duration::from_secs_f64(before / rate)
            }
            Pace::Closed(most) if self.ledger.open() < most => now.max(self.begin),
            Pace::Closed(_) | Pace::Idle => return None,
        };
        let over = plan
            .duration
            .is_some_and(|length| due >= self.begin + length);
        (!over).then_some(due)
    }

    /// Whether nothing will be sent any more, whatever comes.
    fn is_done(&self, now: Instant) -> bool {
        let plan = &self.around.plan;
        self.sent >= plan.messages
            || plan.duration.is_some_and(|length| match plan.pace {
                // Then `due` alone tells it.
                Pace::Open(_) => true,
                _ => now >= self.begin + length,
            })
    }

    fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            self.around.stage.finished.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(&mut self, due: Instant) -> Result<(), Gone> {
        let plan = &self.around.plan;
        let now = Instant::now();
        let number = self.ledger.sent(due.min(now));
        self.sent += 1;
        let (mark, padding) = (mark(number), &plan.padding);
        let text = if plan.v1 {
            format!(r#"{{"type":"message","id":"{number}","content":"{mark}{padding}"}}"#)
        } else {
            format!(r#"{{"type":"message","content":"{mark}{padding}"}}"#)
        };
        let mut stats = self.around.stats.borrow_mut();
        stats.sent += 1;
        stats.late.record(now.saturating_duration_since(due));
        stats.series.sent(now.saturating_duration_since(self.begin));
        drop(stats);
        self.around.stage.sent.fetch_add(1, Ordering::Relaxed);
        let sent = self.socket.start_send_unpin(Message::text(text));
        sent.map_err(|error| gone(Some(Err(error))))
    }

    fn take(&mut self, step: Step) -> Result<(), Gone> {
        match step {
            Step::Room | Step::Read(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => Ok(()),
            Step::Read(Some(Ok(Message::Text(text)))) => {
                self.frame(&text);
                Ok(())
            }
            Step::Read(other) => Err(gone(other)),
        }
    }

    fn frame(&mut self, text: &str) {
        let now = Instant::now();
        let around = self.around;
        let stats = &mut *around.stats.borrow_mut();
        let Some(frame) = Frame::parse(text) else {
            stats.strange += 1;
            return;
        };
        let number = match frame.id {
            Some(id) => id.parse().ok(),
            None => self.classic(&frame),
        };
        match frame.kind {
            "accepted" => {
                if let Some(number) = number {
                    self.ledger.accepted(number, now, stats);
                }
            }
            "delta" | "snapshot" => {
                stats.deltas += 1;
                if let Some(number) = number {
                    self.ledger.begun(number, now, stats);
                }
                if let Some(content) = frame.content {
                    for stamp in stamps(content) {
                        let clock = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                        let took = clock.saturating_sub(Duration::from_micros(stamp));
                        stats.token.record(took);
                    }
                }
            }
            "response" => {
                let said = frame.content.and_then(marked);
                stats.recognised += u64::from(said.is_some());
                if said.is_some() && said != number {
                    stats.mixed_up += 1;
                }
                self.end(number, End::Delivered, now, stats);
            }
            "cancelled" => self.end(number, End::Failed, now, stats),
            "error" => {
                let code = frame.code.unwrap_or("no code");
                count(&mut stats.errors, code);
                if code == ErrorCode::RateLimited.as_str() {
                    count(&mut stats.limits, &frame.text());
                }
                let end = match frame.message_id {
                    Some(_) => End::Failed,
                    None => End::Refused,
                };
                self.end(number, end, now, stats);
            }
            "restarted" => stats.restarted += 1,
            "closing" | "welcome" | "pong" | "cancel_result" => {}
            _ => stats.strange += 1,
        }
    }

    fn end(&mut self, number: Option<u64>, end: End, now: Instant, stats: &mut Stats) {
        let Some(number) = number else {
            stats.strange += 1;
            return;
        };
        let took = self.ledger.ended(number, end, now, stats);
        self.around.stage.ended.fetch_add(1, Ordering::Relaxed);
        if let Some(took) = took {
            let at = now.saturating_duration_since(self.begin);
            stats.last_answer = stats.last_answer.max(at);
            if end == End::Delivered {
                stats.series.answered(at, took);
            }
        }
    }

    /// The message that a classic frame is about, which doesn't say it: by the mark in the answer,
    /// otherwise the oldest. A refusal comes at once, so it is the newest.
    fn classic(&self, frame: &Frame<'_>) -> Option<u64> {
        match frame.kind {
            "response" => {
                let marked = frame.content.and_then(marked);
                marked.or_else(|| self.ledger.oldest())
            }
            "error" if frame.message_id.is_none() => self.ledger.newest(),
            "error" => self.ledger.oldest(),
            _ => None,
        }
    }
}
