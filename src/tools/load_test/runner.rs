//! Runs a test in its phases: all clients connect, then send their messages, then wait for the
//! outstanding answers.

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

use super::args::LoadArgs;
use super::client;
use super::context::{RunState, ThreadContext};
use super::plan::{Plan, SendMode};
use super::stats::Stats;
use crate::signals::Signals;

/// Interval at which the progress is checked and shown.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Time for which the test waits for duplicates after the last answer.
const DUPLICATE_WAIT: Duration = Duration::from_millis(300);
/// Time between the announcement of the start and the first scheduled message, so that all clients
/// have received the announcement by then.
const START_DELAY: Duration = Duration::from_millis(20);
/// Maximum number of clients that connect at the same time, divided equally among the threads.
const MAX_CONNECTING_CLIENTS: usize = 128;

/// The measurements of a test.
pub(super) struct TestMeasurements {
    pub(super) stats: Stats,
    /// The planned length of the test, or the time from its start until the last answer if that is
    /// longer. The actual length counts instead of the planned length if the test was idle or the
    /// user ended it.
    pub(super) length: Duration,
    /// The exit code for the signal with which the user ended the test early, by shell convention;
    /// `None` if the user did not end it early.
    pub(super) interrupt_exit_code: Option<u8>,
}

/// Runs the clients and merges their statistics.
pub(super) async fn run_test(
    args: &LoadArgs,
    plan: &Arc<Plan>,
    signals: &mut Signals,
) -> anyhow::Result<TestMeasurements> {
    let (start_sender, schedule_start) = watch::channel(None);
    let state = Arc::new(RunState {
        started: Instant::now(),
        schedule_start,
        stop: CancellationToken::new(),
        is_interrupted: AtomicBool::new(false),
        attempted_clients: AtomicU64::new(0),
        connected_clients: AtomicU64::new(0),
        reconnecting_clients: AtomicU64::new(0),
        sent_messages: AtomicU64::new(0),
        received_outcomes: AtomicU64::new(0),
        finished_clients: AtomicU64::new(0),
    });
    // Stops the clients whenever this function returns.
    let _stop_on_return = state.stop.clone().drop_guard();
    let threads = usize::from(args.threads).min(plan.client_count);
    let threads: Vec<_> = (0..threads)
        .map(|number| {
            let (plan, state) = (Arc::clone(plan), Arc::clone(&state));
            std::thread::Builder::new()
                .name(format!("clients-{number}"))
                .spawn(move || run_thread(number, threads, plan, state))
        })
        .collect::<Result<_, _>>()
        .context("can't start a client thread")?;

    let runner = LoadRunner::new(args, plan, &state);
    let mut start = None;
    let signal = tokio::select! {
        () = runner.run_phases(&start_sender, &mut start) => None,
        (_, code) = signals.next() => Some(code),
    };
    let elapsed = start.map_or(Duration::ZERO, |start| start.elapsed());
    runner.bar.finish_and_clear();
    let is_interrupted = signal.is_some();
    state
        .is_interrupted
        .store(is_interrupted, Ordering::Relaxed);
    state.stop.cancel();
    let mut stats = Stats::new();
    for thread in threads {
        let thread_stats = thread.join();
        stats.merge(thread_stats.map_err(|_| anyhow::anyhow!("a client thread panicked"))??);
    }
    if is_interrupted {
        // Unanswered messages of an interrupted test do not count as lost, because their answers
        // could still have arrived.
        stats.pending = std::mem::take(&mut stats.lost);
    }
    let length = match plan.scheduled_length() {
        _ if is_interrupted || plan.mode == SendMode::Idle => elapsed.max(stats.last_answer),
        scheduled => scheduled.unwrap_or_default().max(stats.last_answer),
    };
    // A signal is the regular end of an idle test without a duration, so it is no interruption.
    let is_endless = plan.mode == SendMode::Idle && plan.duration.is_none();
    Ok(TestMeasurements {
        stats,
        length,
        interrupt_exit_code: signal.filter(|_| !is_endless),
    })
}

/// Runs the clients of one thread, which are every `threads`-th client beginning with the client
/// `thread_number`. Returns their statistics.
fn run_thread(
    thread_number: usize,
    threads: usize,
    plan: Arc<Plan>,
    state: Arc<RunState>,
) -> std::io::Result<Stats> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let context = Rc::new(ThreadContext {
        stats: std::cell::RefCell::new(Stats::new()),
        connect_permits: Semaphore::new((MAX_CONNECTING_CLIENTS / threads).max(1)),
        plan,
        state,
    });
    let local = LocalSet::new();
    for client in (thread_number..context.plan.client_count).step_by(threads) {
        local.spawn_local(client::run_client(client, Rc::clone(&context)));
    }
    runtime.block_on(local);
    Ok(context.stats.replace(Stats::new()))
}

/// Runs the phases of a test and shows the progress.
struct LoadRunner<'a> {
    args: &'a LoadArgs,
    plan: &'a Plan,
    state: &'a RunState,
    bar: ProgressBar,
}

impl<'a> LoadRunner<'a> {
    fn new(args: &'a LoadArgs, plan: &'a Plan, state: &'a RunState) -> Self {
        let show_bar = std::io::stderr().is_terminal() && !args.quiet;
        let target = if show_bar {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(plan.client_count as u64), target);
        let style = ProgressStyle::with_template("{prefix:10} {bar:30} {pos}/{len}  {msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix("connecting");
        Self {
            args,
            plan,
            state,
            bar,
        }
    }

    /// Runs all phases. Stores the start of the schedule in `start`, where it remains if the caller
    /// drops the future.
    async fn run_phases(
        &self,
        start_sender: &watch::Sender<Option<Instant>>,
        start: &mut Option<Instant>,
    ) {
        if let Some(at) = self.wait_for_connections().await {
            *start = Some(at);
            let _ = start_sender.send(Some(at));
            self.wait_for_completion(at).await;
        }
    }

    /// Waits until all clients have tried to connect. Returns the time at which the schedule of
    /// messages starts; `None` when no client is connected.
    async fn wait_for_connections(&self) -> Option<Instant> {
        let mut ticks = progress_ticks();
        loop {
            ticks.tick().await;
            let attempted = self.state.attempted_clients.load(Ordering::Relaxed);
            let connected = self.state.connected_clients.load(Ordering::Relaxed);
            self.bar.set_position(connected);
            if attempted - connected > 0 {
                self.bar
                    .set_message(format!("{} failed", attempted - connected));
            }
            if attempted == self.plan.client_count as u64 {
                return (connected > 0).then(|| Instant::now() + START_DELAY);
            }
        }
    }

    /// Waits until all clients are finished, or until no answer has arrived for `--patience` and
    /// nothing remains to be sent.
    async fn wait_for_completion(&self, start: Instant) {
        let (plan, state) = (self.plan, self.state);
        self.bar.set_prefix(match plan.mode {
            SendMode::Idle => "holding",
            _ => "messages",
        });
        self.bar.set_length(self.bar_length().unwrap_or(0));
        let mut ticks = progress_ticks();
        let (mut last_count, mut last_progress_at) = (0, Instant::now());
        loop {
            ticks.tick().await;
            let elapsed = start.elapsed();
            let all_finished =
                state.finished_clients.load(Ordering::Relaxed) == plan.client_count as u64;
            if plan.mode == SendMode::Idle {
                self.show_idle_progress(elapsed);
                if all_finished || plan.duration.is_some_and(|duration| elapsed >= duration) {
                    return;
                }
                continue;
            }
            let sent = state.sent_messages.load(Ordering::Relaxed);
            let completed = state.received_outcomes.load(Ordering::Relaxed);
            self.show_message_progress(elapsed, sent, completed);
            if all_finished {
                tokio::time::sleep(DUPLICATE_WAIT).await;
                return;
            }
            if sent + completed != last_count {
                (last_count, last_progress_at) = (sent + completed, Instant::now());
            } else if last_progress_at.elapsed() >= self.args.patience
                && !self.has_more_to_send(start)
            {
                return;
            }
        }
    }

    fn show_idle_progress(&self, elapsed: Duration) {
        let connected =
            self.state.connected_clients.load(Ordering::Relaxed) - self.reconnecting_clients();
        self.bar.set_position(elapsed.as_secs());
        self.bar.set_message(format!("s, {connected} connected"));
    }

    fn show_message_progress(&self, elapsed: Duration, sent: u64, completed: u64) {
        self.bar.set_position(match self.bar_length() {
            Some(_) if self.plan.messages_per_client == u64::MAX => elapsed.as_secs(),
            _ => completed,
        });
        let per_second = completed as f64 / elapsed.as_secs_f64().max(0.1);
        let pending = sent.saturating_sub(completed);
        let reconnecting = match self.reconnecting_clients() {
            0 => String::new(),
            count => format!(", {count} clients reconnecting"),
        };
        self.bar.set_message(format!(
            "{completed} answered, {pending} open, {per_second:.0}/s{reconnecting}"
        ));
    }

    fn reconnecting_clients(&self) -> u64 {
        self.state.reconnecting_clients.load(Ordering::Relaxed)
    }

    /// Whether the schedule still has messages to send, however far in the future.
    fn has_more_to_send(&self, start: Instant) -> bool {
        match self.plan.mode {
            // In a closed loop, connected clients that wait for answers send nothing. Only clients
            // that are reconnecting can still send.
            SendMode::ClosedLoop(_) if self.reconnecting_clients() == 0 => false,
            _ => self
                .plan
                .scheduled_length()
                .is_some_and(|length| start.elapsed() < length),
        }
    }

    /// The length of the progress bar: the number of messages, or of seconds when only the duration
    /// limits the test; `None` when nothing limits it.
    fn bar_length(&self) -> Option<u64> {
        match self.plan.messages_per_client {
            u64::MAX => self.plan.duration.map(|duration| duration.as_secs()),
            _ if self.plan.mode == SendMode::Idle => self.plan.duration.map(|d| d.as_secs()),
            messages => Some(messages.saturating_mul(self.plan.client_count as u64)),
        }
    }
}

fn progress_ticks() -> tokio::time::Interval {
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
