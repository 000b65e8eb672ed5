//! `chatmesh load-test`: many clients, and what they see: throughput, loss, doubles, order, times.
//!
//! It is made to run beside the servers that it measures. Threads share nothing, a client is one
//! task, and frames are read no further than they matter.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use self::client::{Pace, Plan};
use self::report::Report;
use self::require::Condition;
use self::target::{Target, Tokens};
use super::descriptors;

mod client;
mod conductor;
mod connect;
mod frames;
mod html;
mod ledger;
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
        let (stats, length) = conductor::conduct(&args, &plan).await?;
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
