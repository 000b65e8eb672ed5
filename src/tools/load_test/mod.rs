//! `chatmesh load-test`: many clients, and what they see: throughput, loss, doubles, order, times.
//!
//! It is made to run beside the servers that it measures. Threads share nothing, a client is one
//! task, and frames are read no further than they matter.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use url::Url;

use self::html::Place;
use self::plan::{Pace, Plan};
use self::report::Report;
use self::require::Condition;
use self::target::{Target, Tokens};
use super::{Misused, descriptors};
use crate::signals::Signals;

mod client;
mod conductor;
mod connect;
mod frames;
mod html;
mod incoming;
mod ledger;
mod plan;
mod plot;
mod report;
mod require;
mod stats;
mod target;
mod values;

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
the whole answer (or of another time: accepted.p99, first_token.p99, token.p99, connect.p99), with a unit:
ms, s, m; delivered (%), throughput (answers a second), loss (lost, or not sent though planned), doubles,
order, mixed_up, errors, connections, tokens (deltas a second). `original` stands for the three criteria of
the original system. What was not measured is missed.

Times count from when a message was to be sent, so a server that stalls doesn't look faster than it is.
Clients whose connections end come back, and what could not be sent counts as not delivered.

Exit codes: 0 all is so; 1 a condition is missed, not one message was delivered, or the report can't be
written; 2 used wrongly; 3 there was no test, as no server answers or none let anybody in; 130 and 143
interrupted by Ctrl-C and by SIGTERM, after the report (--idle without --duration is ended so: 0).";

/// The test.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoadArgs {
    /// Where the gateway is; repeated, clients are spread over all of them.
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8000/ws", value_parser = target::url)]
    url: Vec<Url>,
    /// Connections, each of a user of its own.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Messages of each client; 10 unless there is a --duration.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// How long messages are sent (30s, 5m; a number is seconds).
    #[arg(long, value_name = "TIME", value_parser = length)]
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
    /// Threads; more where the test keeps one busy.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Fail with exit code 1 unless this holds, like 'p99<200ms' or loss=0; may be repeated.
    #[arg(long, value_name = "CONDITION")]
    require: Vec<Condition>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Write a report with plots to this file.
    #[arg(long, value_name = "FILE", value_parser = file)]
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

/// A time in which something can be.
fn length(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("needs a time above 0".to_owned()),
        time => Ok(time),
    }
}

fn file(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => Err("standard output is for the result: name a file".to_owned()),
        "" => Err("needs a file's name".to_owned()),
        _ => Ok(text.into()),
    }
}

/// There was no test, since the server or this machine did not let it begin: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoTest(String);

impl NoTest {
    /// The exit code.
    pub(crate) const CODE: u8 = 3;
}

/// Descriptors beside the connections.
const SPARE_FILES: u64 = 64;

/// Runs the test and reports. `say` prints the result for the user.
pub(crate) fn run(
    args: LoadArgs,
    say: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    for source in &args.source {
        target::is_ours(*source).map_err(|error| {
            let why = match error.kind() {
                ErrorKind::AddrNotAvailable => "is no address of this machine".to_owned(),
                _ => format!("can't be connected from: {error}"),
            };
            Misused(format!("--source {source} {why}"))
        })?;
    }
    let place = args.html.clone().map(|file| {
        let shown = file.display().to_string();
        Place::open(file)
            .map_err(|error| Misused(format!("--html {shown} can't be written: {error}")))
    });
    let place = place.transpose()?;
    let needed = u64::from(args.clients) + SPARE_FILES;
    if let Some(files) = descriptors::raise(needed)
        && files < needed
    {
        let text = format!(
            "this process may open {files} files, too few for {} connections: raise the hard limit \
             (ulimit -Hn)",
            args.clients
        );
        return Err(NoTest(text).into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    let tested = runtime.block_on(async {
        let mut signals = Signals::new().context("signals can't be caught")?;
        let plan = tokio::select! {
            plan = plan(&args) => Arc::new(plan?),
            (_, code) = signals.next() => return Ok(Err(code)),
        };
        let outcome = conductor::conduct(&args, &plan, &mut signals).await?;
        anyhow::Ok(Ok((plan, outcome)))
    })?;
    let (plan, outcome) = match tested {
        Ok(tested) => tested,
        // Before anything was begun.
        Err(code) => return Ok(code.into()),
    };
    let report = Report::new(&plan, &args.require, &outcome);
    // The result must not be lost with the page.
    let written = place.map(|place| place.write(&html::page(&report, &outcome.stats.series)));
    say(&if args.json {
        format!("{:#}\n", report.json())
    } else {
        report.text()
    })?;
    if let (Some(Err(error)), Some(file)) = (written, &args.html) {
        return Err(error).with_context(|| format!("{} can't be written", file.display()));
    }
    Ok(match outcome.interrupted {
        Some(code) => code.into(),
        None if !report.somebody_got_in => NoTest::CODE.into(),
        None if report.holds() => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    })
}

async fn plan(args: &LoadArgs) -> anyhow::Result<Plan> {
    let no_test = |error: anyhow::Error| NoTest(format!("{error:#}"));
    let mut targets = Vec::new();
    for url in &args.url {
        targets.push(Target::resolve(url).await.map_err(no_test)?);
    }
    let clients = args.clients as usize;
    let sources = target::sources(&args.source, &targets, clients);
    let sources = sources.map_err(|error| Misused(error.to_string()))?;
    let user = match &args.user {
        Some(user) => format!("{user}-"),
        None => format!("load-{:08x}-", rand::random::<u32>()),
    };
    let first = format!("{user}0");
    let tokens = Tokens::find(
        &targets[0],
        args.token.clone(),
        args.admin_key.clone(),
        &first,
    );
    Ok(Plan {
        sources,
        tokens: tokens.await.map_err(no_test)?,
        targets,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_test_nothing_is_refused() {
        assert!(length("0").is_err() && length("0ms").is_err() && length("1ms").is_ok());
        assert!(file("-").is_err() && file("").is_err() && file("report.html").is_ok());
    }

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
