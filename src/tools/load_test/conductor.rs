//! The test's phases: everybody connects, everybody sends, what is open is waited for.

use std::io::IsTerminal as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::LoadArgs;
use super::client::{self, Neighbours, Stage};
use super::plan::{Pace, Plan};
use super::stats::Stats;
use crate::signals::Signals;

/// How often the conductor looks, and the bar moves.
const TICK: Duration = Duration::from_millis(100);
/// After the last answer: what must not come would come now.
const QUIET: Duration = Duration::from_millis(300);
/// Connecting at once, all threads together.
const CONNECTING: usize = 128;

/// What became of the test.
pub(super) struct Outcome {
    pub(super) stats: Stats,
    /// For which messages were to be sent, and answers came.
    pub(super) length: Duration,
    /// The user ended it before its time: the exit code that shells give to the signal.
    pub(super) interrupted: Option<u8>,
}

/// Runs the clients, and adds up what they saw.
pub(super) async fn conduct(
    args: &LoadArgs,
    plan: &Arc<Plan>,
    signals: &mut Signals,
) -> anyhow::Result<Outcome> {
    let (begin, begun) = watch::channel(None);
    let stage = Arc::new(Stage {
        started: Instant::now(),
        begin: begun,
        end: CancellationToken::new(),
        interrupted: AtomicBool::new(false),
        arrived: AtomicU64::new(0),
        connected: AtomicU64::new(0),
        away: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        finished: AtomicU64::new(0),
    });
    // Whatever ends this also ends the clients.
    let _end = stage.end.clone().drop_guard();
    let threads = usize::from(args.threads).min(plan.clients);
    let threads: Vec<_> = (0..threads)
        .map(|number| {
            let (plan, stage) = (Arc::clone(plan), Arc::clone(&stage));
            std::thread::Builder::new()
                .name(format!("clients-{number}"))
                .spawn(move || thread(number, threads, plan, stage))
        })
        .collect::<Result<_, _>>()
        .context("a thread can't be started")?;

    let conductor = Conductor::new(args, plan, &stage);
    let mut began = None;
    let interrupted = tokio::select! {
        () = conductor.until_the_end(&begin, &mut began) => None,
        (_, code) = signals.next() => Some(code),
    };
    let held = began.map_or(Duration::ZERO, |began| began.elapsed());
    conductor.bar.finish_and_clear();
    let stopped = interrupted.is_some();
    stage.interrupted.store(stopped, Ordering::Relaxed);
    stage.end.cancel();
    let mut stats = Stats::new();
    for thread in threads {
        let seen = thread.join();
        stats.add(seen.map_err(|_| anyhow::anyhow!("a thread of clients panicked"))??);
    }
    if stopped {
        // It may have come yet.
        stats.open = std::mem::take(&mut stats.lost);
    }
    let length = match plan.length() {
        _ if stopped || plan.pace == Pace::Idle => held.max(stats.last_answer),
        planned => planned.unwrap_or_default().max(stats.last_answer),
    };
    // Holding connections until somebody ends it ends so.
    let endless = plan.pace == Pace::Idle && plan.duration.is_none();
    Ok(Outcome {
        stats,
        length,
        interrupted: interrupted.filter(|_| !endless),
    })
}

/// A thread with its share of the clients.
fn thread(
    number: usize,
    threads: usize,
    plan: Arc<Plan>,
    stage: Arc<Stage>,
) -> std::io::Result<Stats> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let around = Rc::new(Neighbours {
        stats: std::cell::RefCell::new(Stats::new()),
        doors: Semaphore::new((CONNECTING / threads).max(1)),
        plan,
        stage,
    });
    let local = LocalSet::new();
    for client in (number..around.plan.clients).step_by(threads) {
        local.spawn_local(client::run(client, Rc::clone(&around)));
    }
    runtime.block_on(local);
    Ok(around.stats.replace(Stats::new()))
}

/// Sees to the test's phases, and shows them.
struct Conductor<'a> {
    args: &'a LoadArgs,
    plan: &'a Plan,
    stage: &'a Stage,
    bar: ProgressBar,
}

impl<'a> Conductor<'a> {
    fn new(args: &'a LoadArgs, plan: &'a Plan, stage: &'a Stage) -> Self {
        let shown = std::io::stderr().is_terminal() && !args.quiet;
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(plan.clients as u64), target);
        let style = ProgressStyle::with_template("{prefix:10} {bar:30} {pos}/{len}  {msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix("connecting");
        Self {
            args,
            plan,
            stage,
            bar,
        }
    }

    /// All phases. Says in `began` when messages did.
    async fn until_the_end(
        &self,
        begin: &watch::Sender<Option<Instant>>,
        began: &mut Option<Instant>,
    ) {
        if let Some(at) = self.until_all_are_there().await {
            *began = Some(at);
            let _ = begin.send(Some(at));
            self.until_all_are_done(at).await;
        }
    }

    /// When messages begin; `None` when there is nobody to send any.
    async fn until_all_are_there(&self) -> Option<Instant> {
        let mut ticks = ticks();
        loop {
            ticks.tick().await;
            let arrived = self.stage.arrived.load(Ordering::Relaxed);
            let connected = self.stage.connected.load(Ordering::Relaxed);
            self.bar.set_position(connected);
            if arrived - connected > 0 {
                self.bar
                    .set_message(format!("{} failed", arrived - connected));
            }
            if arrived == self.plan.clients as u64 {
                // Not before all clients know it.
                return (connected > 0).then(|| Instant::now() + Duration::from_millis(20));
            }
        }
    }

    async fn until_all_are_done(&self, began: Instant) {
        let (plan, stage) = (self.plan, self.stage);
        let total = self.total();
        self.bar.set_prefix(match plan.pace {
            Pace::Idle => "holding",
            _ => "messages",
        });
        self.bar.set_length(total.unwrap_or(0));
        let mut ticks = ticks();
        let (mut seen, mut moved) = (0, Instant::now());
        loop {
            ticks.tick().await;
            let elapsed = began.elapsed();
            let sent = stage.sent.load(Ordering::Relaxed);
            let ended = stage.ended.load(Ordering::Relaxed);
            let finished = stage.finished.load(Ordering::Relaxed);
            if plan.pace == Pace::Idle {
                let open = stage.connected.load(Ordering::Relaxed) - self.away();
                self.bar.set_position(elapsed.as_secs());
                self.bar.set_message(format!("s, {open} connected"));
                if finished == plan.clients as u64 || plan.duration.is_some_and(|d| elapsed >= d) {
                    return;
                }
                continue;
            }
            self.bar.set_position(match total {
                Some(_) if plan.messages == u64::MAX => elapsed.as_secs(),
                _ => ended,
            });
            let a_second = ended as f64 / elapsed.as_secs_f64().max(0.1);
            let open = sent.saturating_sub(ended);
            let away = match self.away() {
                0 => String::new(),
                away => format!(", {away} clients away"),
            };
            self.bar.set_message(format!(
                "{ended} answered, {open} open, {a_second:.0}/s{away}"
            ));
            if finished == plan.clients as u64 {
                tokio::time::sleep(QUIET).await;
                return;
            }
            if sent + ended != seen {
                (seen, moved) = (sent + ended, Instant::now());
            } else if moved.elapsed() >= self.args.patience && !self.sends(began) {
                return;
            }
        }
    }

    /// Clients that lost their connections and are not back.
    fn away(&self) -> u64 {
        self.stage.away.load(Ordering::Relaxed)
    }

    /// Whether there is still something to send by plan, be it in an hour.
    fn sends(&self, began: Instant) -> bool {
        match self.plan.pace {
            // Clients that only miss their answers have nothing to send either.
            Pace::Closed(_) if self.away() == 0 => false,
            _ => self
                .plan
                .length()
                .is_some_and(|length| began.elapsed() < length),
        }
    }

    /// The bar's length: messages, or seconds.
    fn total(&self) -> Option<u64> {
        match self.plan.messages {
            u64::MAX => self.plan.duration.map(|duration| duration.as_secs()),
            _ if self.plan.pace == Pace::Idle => self.plan.duration.map(|d| d.as_secs()),
            messages => Some(messages.saturating_mul(self.plan.clients as u64)),
        }
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
