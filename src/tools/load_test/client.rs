//! One client: connects, sends when it is time, and notes what comes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::{Sink as _, SinkExt as _, StreamExt as _};
use rand::Rng as _;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::connect::{Gone, Link, Socket, again, connect, gone};
use super::frames::mark;
use super::ledger::Ledger;
use super::plan::{Pace, Plan};
use super::stats::{Stats, count};
use crate::client::retry_hint::{RetryHint, retry_hint};

/// What tokio's timers may be late, so that clients wake up so much earlier. A message that is sent
/// before its time is measured from its sending.
const TIMER: Duration = Duration::from_millis(1);
/// Before the first attempt to come back, and the most before another; half of it at least.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// Longer than a test.
const NEVER: Duration = Duration::from_secs(365 * 86_400);
/// What was due for less than this when the user ended the test was about to be sent.
const ABOUT_TO: Duration = Duration::from_millis(50);

/// What the test's conductor and its clients tell each other.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) started: Instant,
    /// When the first message may be sent.
    pub(super) begin: watch::Receiver<Option<Instant>>,
    /// Everybody stops.
    pub(super) end: CancellationToken,
    /// It is the user who ends it.
    pub(super) interrupted: AtomicBool,
    /// Connected, or failed to.
    pub(super) arrived: AtomicU64,
    /// Got in.
    pub(super) connected: AtomicU64,
    /// Lost their connections, and are not back.
    pub(super) away: AtomicU64,
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
    let mut client = Client::new(number, &around);
    match connected {
        Some(Ok(link)) => {
            around.stats.borrow_mut().connected += 1;
            stage.connected.fetch_add(1, Ordering::Relaxed);
            stage.arrived.fetch_add(1, Ordering::Relaxed);
            client.stay(link).await;
        }
        Some(Err(Gone(why))) => {
            count(&mut around.stats.borrow_mut().not_connected, &why);
            stage.arrived.fetch_add(1, Ordering::Relaxed);
            client.finish();
            // Only then it is known what it would have had to send.
            stage.end.cancelled().await;
        }
        None => {}
    }
    client.finish();
    client.add_up();
}

pub(super) enum Step {
    /// Another frame can be written.
    Room,
    Read(Option<Result<Message, Error>>),
}

pub(super) struct Client<'a> {
    number: usize,
    pub(super) around: &'a Neighbours,
    pub(super) ledger: Ledger,
    sent: u64,
    /// What it has had, where it comes back.
    pub(super) position: String,
    /// Messages to send once more.
    pub(super) again: VecDeque<u64>,
    pub(super) begin: Instant,
    finished: bool,
}

impl<'a> Client<'a> {
    fn new(number: usize, around: &'a Neighbours) -> Self {
        Self {
            number,
            around,
            ledger: Ledger::new(around.plan.v1),
            sent: 0,
            position: String::new(),
            again: VecDeque::new(),
            begin: Instant::now(),
            finished: false,
        }
    }

    /// Until the test ends; whenever the connection does before, the client comes back.
    async fn stay(&mut self, link: Link) {
        let around = self.around;
        let mut socket = link.socket;
        self.position = link.position.unwrap_or_default();
        loop {
            let Err(Gone(why)) = self.live(&mut socket).await else {
                // Politely, but a server that doesn't listen any more is not waited for.
                let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
                return;
            };
            drop(socket);
            let begun = *around.stage.begin.borrow();
            let at = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
            around.stats.borrow_mut().closed(&why, at);
            if !around.plan.v1 {
                self.ledger.abandon();
            }
            if self.finished {
                return;
            }
            around.stage.away.fetch_add(1, Ordering::Relaxed);
            let Some(link) = self.come_back(why).await else {
                return;
            };
            around.stage.away.fetch_sub(1, Ordering::Relaxed);
            socket = link.socket;
            if let Some(position) = link.position {
                self.position = position;
            }
            if around.plan.v1 {
                self.again = self.ledger.to_send_again(!link.recovered);
            }
        }
    }

    /// Tries until it is in again; `None` when the test ended before.
    async fn come_back(&mut self, mut why: String) -> Option<Link> {
        let (number, around) = (self.number, self.around);
        let (mut pause, most) = PAUSE;
        match retry_hint(close_code(&why)) {
            RetryHint::Never(_) => {
                // Nothing more is sent, and it needn't be waited for.
                self.finish();
                pause = NEVER;
            }
            RetryHint::Reconnect(Some(least)) => pause = least * 2,
            RetryHint::Reconnect(None) | RetryHint::NewToken => {}
        }
        loop {
            let tried = async {
                sleep(pause.mul_f64(rand::rng().random_range(0.5..=1.0))).await;
                again(number, around, &self.position).await
            };
            match around.stage.end.run_until_cancelled(tried).await {
                Some(Ok(link)) => {
                    around.stats.borrow_mut().returned += 1;
                    return Some(link);
                }
                Some(Err(Gone(reason))) => why = reason,
                None => {
                    count(&mut around.stats.borrow_mut().away, &why);
                    return None;
                }
            }
            pause = pause.saturating_mul(2).min(most);
        }
    }

    /// What there is to say of it at the end.
    fn add_up(&self) {
        let stage = &self.around.stage;
        let mut stats = self.around.stats.borrow_mut();
        stats.lost += self.ledger.open() as u64;
        let Some(begun) = *stage.begin.borrow() else {
            return;
        };
        let interrupted = stage.interrupted.load(Ordering::Relaxed);
        let until = interrupted.then(|| begun.elapsed().saturating_sub(ABOUT_TO));
        let scheduled = self.around.plan.scheduled(self.number, until);
        stats.not_sent += scheduled.saturating_sub(self.sent);
    }

    /// Until the test ends, or the connection does.
    async fn live(&mut self, socket: &mut Socket) -> Result<(), Gone> {
        let stage = Arc::clone(&self.around.stage);
        let mut end = pin!(stage.end.cancelled());
        let mut begin = stage.begin.clone();
        // Pings are answered by reading.
        loop {
            let idle = self.around.plan.pace == Pace::Idle;
            tokio::select! {
                step = step(socket, false) => self.take(step)?,
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
            let due = match self.again.front() {
                Some(_) => Some(now),
                None => self.due(now),
            };
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
                step = step(socket, is_due) => match (step, due) {
                    (Step::Room, Some(due)) => self.send(socket, due)?,
                    (step, _) => self.take(step)?,
                },
                () = timer.as_mut(), if waits.is_some() => {}
                () = &mut end => return Ok(()),
            }
        }
    }

    /// When the next message is to be sent; `None` when none is, or not before an answer.
    fn due(&self, now: Instant) -> Option<Instant> {
        let plan = &self.around.plan;
        if self.sent >= plan.messages {
            return None;
        }
        let due = match plan.pace {
            Pace::Open(rate) => self.begin + plan.offset(rate, self.number, self.sent),
            Pace::Closed(most) if self.ledger.in_flight() < most => now.max(self.begin),
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

    fn send(&mut self, socket: &mut Socket, due: Instant) -> Result<(), Gone> {
        if let Some(number) = self.again.pop_front() {
            if !self.ledger.sent_again(number) {
                return Ok(());
            }
            self.around.stats.borrow_mut().sent_again += 1;
            return self.write(socket, number);
        }
        let now = Instant::now();
        let number = self.ledger.sent(due.min(now));
        self.sent += 1;
        let mut stats = self.around.stats.borrow_mut();
        stats.sent += 1;
        stats.late.record(now.saturating_duration_since(due));
        stats.series.sent(now.saturating_duration_since(self.begin));
        drop(stats);
        self.around.stage.sent.fetch_add(1, Ordering::Relaxed);
        self.write(socket, number)
    }

    fn write(&self, socket: &mut Socket, number: u64) -> Result<(), Gone> {
        let plan = &self.around.plan;
        let (mark, padding) = (mark(number), &plan.padding);
        let text = if plan.v1 {
            format!(r#"{{"type":"message","id":"{number}","content":"{mark}{padding}"}}"#)
        } else {
            format!(r#"{{"type":"message","content":"{mark}{padding}"}}"#)
        };
        let sent = socket.start_send_unpin(Message::text(text));
        sent.map_err(|error| gone(Some(Err(error))))
    }
}

/// The code by which a connection was closed, where it was.
fn close_code(why: &str) -> Option<u16> {
    why.strip_prefix("close ")?.parse().ok()
}

/// Reads a frame, or says that one can be written where that is wanted.
async fn step(socket: &mut Socket, wants_room: bool) -> Step {
    let mut socket = Pin::new(socket);
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
