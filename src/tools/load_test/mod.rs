//! `chatmesh load-test`: many clients, and what they see: throughput, loss, doubles, order, times.
//!
//! It is made to run beside the servers that it measures. Threads share nothing, a client is one
//! task, and frames are read no further than they matter.

use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::client::{Neighbours, Pace, Plan, Stage};
use self::report::Report;
use self::require::Condition;
use self::stats::Stats;
use self::target::{Target, Tokens};
use super::descriptors;

mod client;
mod frames;
mod html;
mod ledger;
mod plot;
mod report;
mod require;
mod stats;
mod target;

const EXAMPLES: &str = "\
Examples:
  chatmesh load-test                                        100 clients, 10 messages each, 200 a second
  chatmesh load-test --clients 500 --rate 2000 --duration 60s --html report.html
  chatmesh load-test --require 'p99<200ms' --require loss=0 --require 'throughput>=150'
  chatmesh load-test --closed-loop --clients 10 --duration 20s     each waits for its answer
  chatmesh load-test --idle --clients 50000 --duration 10m         connections only

A server lets each user send 10 messages a minute if it isn't told otherwise; for more of them start it
with USER_RATE_LIMIT_MAX_REQUESTS=0 and USER_MAX_PENDING=0.

Conditions are NAME OPERATOR VALUE, with =, <, <=, > and >=. Names: p50, p90, p99, p99.9, max and mean of
the whole answer (or of another time: accepted.p99, first_token.p99, token.p99, connect.p99), delivered
(%), throughput (answers a second), loss, doubles, order, mixed_up, errors, connections, tokens (deltas a
second). `original` stands for the three criteria of the original system.

Times count from when a message was to be sent, so a server that stalls doesn't look faster than it is.
Exit code 1 when a condition is missed.";

/// The test.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoadArgs {
    /// Where the gateway is; repeated, clients are spread over all of them.
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8000/ws")]
    url: Vec<String>,
    /// Connections, each of a user of its own.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Messages of each client; 10 unless there is a --duration.
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// How long messages are sent (30s, 5m; a number is seconds).
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// Messages a second, of all clients together.
    #[arg(long, value_name = "N", default_value_t = 200.0, value_parser = rate)]
    rate: f64,
    /// Each client sends its next message when it has the answer.
    #[arg(long, conflicts_with_all = ["rate", "idle"])]
    closed_loop: bool,
    /// With --closed-loop: messages of one client under way at once.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "closed_loop", value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// Only hold the connections, for --duration or until it is interrupted.
    #[arg(long, conflicts_with_all = ["rate", "messages"])]
    idle: bool,
    /// Time over which the clients connect; messages are sent when all have.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = time)]
    ramp_up: Duration,
    /// Speak the original's protocol in place of chatmesh.v1.
    #[arg(long)]
    classic: bool,
    /// Token of all clients; otherwise each gets its own by POST /token where the server gives any.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "CHATMESH_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Key for POST /token.
    #[arg(long, value_name = "KEY", env = "ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// Beginning of the users' names; a new one for each test unless given.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Characters of a message, besides its number.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    size: u32,
    /// Address of this machine to connect from; repeated, in turn. On loopback more are taken where
    /// the ports of one are too few.
    #[arg(long, value_name = "IP")]
    source: Vec<IpAddr>,
    /// How long answers are waited for while none comes.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    patience: Duration,
    /// Threads; one serves about 20,000 answers a second.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Fail with exit code 1 unless this holds, like 'p99<200ms' or loss=0; may be repeated.
    #[arg(long, value_name = "CONDITION")]
    require: Vec<Condition>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Write a report with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// No progress bar.
    #[arg(long)]
    quiet: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(rate),
        _ => Err("needs a number above 0".to_owned()),
    }
}

/// `1500ms`, `30s`, `5m`, `2h`, or seconds without a unit.
fn time(text: &str) -> Result<Duration, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let found = units
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, *seconds)));
    let (number, seconds) = found.unwrap_or((text, 1.0));
    match number.trim().parse::<f64>() {
        Ok(number) if (0.0..=1e9).contains(&number) => {
            Ok(Duration::from_secs_f64(number * seconds))
        }
        _ => Err("needs a time like 500ms, 30s or 5m".to_owned()),
    }
}

/// How often the conductor looks, and the bar moves.
const TICK: Duration = Duration::from_millis(100);
/// After the last answer: what must not come would come now.
const QUIET: Duration = Duration::from_millis(300);
/// Connecting at once, all threads together.
const CONNECTING: usize = 128;
/// Descriptors beside the connections.
const SPARE_FILES: u64 = 64;

/// Runs the test and reports. `say` prints the result for the user.
pub(crate) fn run(
    args: LoadArgs,
    say: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let needed = u64::from(args.clients) + SPARE_FILES;
    if let Some(files) = descriptors::raise(needed)
        && files < needed
    {
        bail!(
            "this process may open {files} files, too few for {} connections: raise the hard limit \
             (ulimit -Hn)",
            args.clients
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    let (plan, stats, length) = runtime.block_on(async {
        let plan = Arc::new(plan(&args).await?);
        let (stats, length) = conduct(&args, &plan).await?;
        anyhow::Ok((plan, stats, length))
    })?;
    let report = Report::new(&plan, &args.require, &stats, length);
    if let Some(file) = &args.html {
        std::fs::write(file, html::page(&report, &stats.series))
            .with_context(|| format!("{} can't be written", file.display()))?;
    }
    let text = if args.json {
        format!("{:#}\n", report.json())
    } else {
        report.text()
    };
    say(&text)?;
    Ok(if report.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn plan(args: &LoadArgs) -> anyhow::Result<Plan> {
    let mut targets = Vec::new();
    for url in &args.url {
        targets.push(Target::resolve(url).await?);
    }
    let clients = args.clients as usize;
    let user = match &args.user {
        Some(user) => format!("{user}-"),
        None => format!("load-{:08x}-", rand::random::<u32>()),
    };
    let tokens = Tokens::find(
        &targets[0],
        args.token.clone(),
        args.admin_key.clone(),
        &format!("{user}0"),
    )
    .await?;
    Ok(Plan {
        sources: target::sources(&args.source, &targets, clients)?,
        targets,
        tokens,
        clients,
        v1: !args.classic,
        pace: match (args.idle, args.closed_loop) {
            (true, _) => Pace::Idle,
            (_, true) => Pace::Closed(args.in_flight.into()),
            _ => Pace::Open(args.rate),
        },
        messages: match (args.messages, args.duration) {
            (Some(messages), _) => messages,
            (None, Some(_)) => u64::MAX,
            (None, None) => 10,
        },
        duration: args.duration,
        ramp_up: args.ramp_up,
        user,
        padding: padding(args.size as usize),
    })
}

/// Words of a length.
fn padding(size: usize) -> String {
    " what would you say to that"
        .chars()
        .cycle()
        .take(size)
        .collect()
}

/// Runs the clients, and adds up what they saw; and how long messages were sent and answered.
async fn conduct(args: &LoadArgs, plan: &Arc<Plan>) -> anyhow::Result<(Stats, Duration)> {
    let (begin, begun) = watch::channel(None);
    let stage = Arc::new(Stage {
        started: Instant::now(),
        begin: begun,
        end: CancellationToken::new(),
        arrived: AtomicU64::new(0),
        connected: AtomicU64::new(0),
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
    let began = conductor.until_all_are_there().await;
    if let Some(began) = began {
        let _ = begin.send(Some(began));
        conductor.until_all_are_done(began).await;
    }
    let held = began.map_or(Duration::ZERO, |began| began.elapsed());
    conductor.bar.finish_and_clear();
    stage.end.cancel();
    let mut all = Stats::new();
    for thread in threads {
        let stats = thread.join();
        all.add(stats.map_err(|_| anyhow::anyhow!("a thread of clients panicked"))??);
    }
    let length = match plan.pace {
        Pace::Idle => held,
        _ => all.last_answer,
    };
    Ok((all, length))
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

    /// When messages begin; `None` when there is nobody to send any, or the user stopped it.
    async fn until_all_are_there(&self) -> Option<Instant> {
        let mut ticks = ticks();
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = &mut interrupted => return None,
            }
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
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let (mut seen, mut moved) = (0, Instant::now());
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = &mut interrupted => return,
            }
            let elapsed = began.elapsed();
            let sent = stage.sent.load(Ordering::Relaxed);
            let ended = stage.ended.load(Ordering::Relaxed);
            let finished = stage.finished.load(Ordering::Relaxed);
            if plan.pace == Pace::Idle {
                let open = stage.connected.load(Ordering::Relaxed);
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
            self.bar
                .set_message(format!("{ended} answered, {open} open, {a_second:.0}/s"));
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

    /// Whether the schedule has still something to send, be it in an hour.
    fn sends(&self, began: Instant) -> bool {
        let Pace::Open(rate) = self.plan.pace else {
            return false;
        };
        let all = self.plan.messages as f64 * self.plan.clients as f64 / rate;
        let length = self.plan.duration.map_or(all, |d| d.as_secs_f64().min(all));
        began.elapsed().as_secs_f64() < length
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_and_without_units() {
        for (text, ms) in [
            ("500ms", 500),
            ("2s", 2_000),
            ("1.5m", 90_000),
            ("3", 3_000),
        ] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for wrong in ["", "-1s", "x", "1d", "nan"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
