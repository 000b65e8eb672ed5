//! The options of `chatmesh load-test`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use url::Url;

use super::condition::Condition;
use super::target;

const EXAMPLES: &str = "\
Examples:
  chatmesh load-test                                        100 clients, 10 messages each, 200 a second
  chatmesh load-test --clients 500 --rate 2000 --duration 60s --html report.html
  chatmesh load-test --require 'p99<200ms' --require loss=0 --require 'throughput>=150'
  chatmesh load-test --closed-loop --clients 10 --duration 20s     each client waits for its answer
  chatmesh load-test --idle --clients 50000 --duration 10m         connections only

By default a server accepts 10 messages a minute of each user; for more, start it with
USER_RATE_LIMIT_MAX_REQUESTS=0 and USER_MAX_PENDING=0.

Conditions are NAME OPERATOR VALUE, with =, <, <=, > and >=. Names: p50, p90, p99, p99.9, max and mean of
the time to the whole answer (or another latency: accepted.p99, first_token.p99, token.p99, connect.p99),
with a unit: ms, s, m; delivered (%), throughput (answers a second), loss (lost, or scheduled and not
sent), doubles (duplicate answers), order (answers out of order), mixed_up (answers of other messages),
errors, connections, tokens (deltas a second). `original` stands for the three criteria of the original
system. A condition on a value that was not measured does not hold.

Latency counts from the time at which a message was scheduled, so a server that stalls doesn't look
faster than it is. Clients reconnect when a connection ends; messages that could not be sent count as not
delivered.

Exit codes: 0 all conditions hold; 1 a condition does not hold, no message was delivered, or the report
can't be written; 2 invalid options; 3 the test did not start, because no server answered or accepted a
connection; 130 and 143 interrupted by Ctrl-C or SIGTERM, after the report (--idle without --duration
ends that way: 0).";

/// The options of `chatmesh load-test`: the servers, the load, and what is reported.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoadArgs {
    /// Address of a gateway. If it is repeated, clients are spread over all gateways.
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8000/ws", value_parser = target::parse_url)]
    pub(super) url: Vec<Url>,
    /// Number of connections, each with its own user.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) clients: u32,
    /// Messages of each client; 10 unless --duration is given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) messages: Option<u64>,
    /// How long messages are sent, for example 30s or 5m; a number without a unit means seconds.
    #[arg(long, value_name = "TIME", value_parser = parse_positive_duration)]
    pub(super) duration: Option<Duration>,
    /// Messages that all clients together send in a second.
    #[arg(long, value_name = "N", default_value_t = 200.0, value_parser = parse_rate)]
    pub(super) rate: f64,
    /// Each client sends its next message when it has received the answer.
    #[arg(long, conflicts_with_all = ["rate", "idle"])]
    pub(super) closed_loop: bool,
    /// With --closed-loop: number of messages that one client has in flight at the same time.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "closed_loop", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) in_flight: u16,
    /// Only hold connections open, for --duration or until interrupted.
    #[arg(long, conflicts_with_all = ["rate", "messages"])]
    pub(super) idle: bool,
    /// Time over which the clients connect; messages are sent when all are connected.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_duration)]
    pub(super) ramp_up: Duration,
    /// Use the classic protocol instead of chatmesh.v1.
    #[arg(long)]
    pub(super) classic: bool,
    /// Token of all clients; without it each client requests its own token by POST /token, if the
    /// server issues tokens.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "CHATMESH_TOKEN",
        hide_env_values = true
    )]
    pub(super) token: Option<String>,
    /// Admin key for POST /token.
    #[arg(long, value_name = "KEY", env = "ADMIN_KEY", hide_env_values = true)]
    pub(super) admin_key: Option<String>,
    /// Prefix of the user names; by default a random prefix for each test.
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Characters of a message, in addition to its number.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(super) size: u32,
    /// Local address to connect from. If it is repeated, the addresses are used in turn. On
    /// loopback, more addresses are used automatically when one address has too few ports.
    #[arg(long, value_name = "IP")]
    pub(super) source: Vec<IpAddr>,
    /// How long the test waits for outstanding answers while none arrives.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(super) patience: Duration,
    /// Number of threads; increase it when the test uses one CPU fully.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: u16,
    /// Exit with code 1 unless this condition holds, like 'p99<200ms' or loss=0; may be repeated.
    #[arg(long, value_name = "CONDITION")]
    pub(super) require: Vec<Condition>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// Write a report with plots to this file.
    #[arg(long, value_name = "FILE", value_parser = parse_report_path)]
    pub(super) html: Option<PathBuf>,
    /// No progress bar.
    #[arg(long)]
    pub(super) quiet: bool,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(rate),
        _ => Err("needs a number above 0".to_owned()),
    }
}

/// Parses `1500ms`, `30s`, `5m`, `2h`, or a number of seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
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

fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("needs a time above 0".to_owned()),
        duration => Ok(duration),
    }
}

fn parse_report_path(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => Err("standard output has the result; name a file".to_owned()),
        "" => Err("needs a file name".to_owned()),
        _ => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_would_test_nothing_are_rejected() {
        for invalid in ["0", "0ms"] {
            assert!(parse_positive_duration(invalid).is_err(), "{invalid}");
        }
        assert!(parse_positive_duration("1ms").is_ok());
        for invalid in ["-", ""] {
            assert!(parse_report_path(invalid).is_err(), "{invalid}");
        }
        assert!(parse_report_path("report.html").is_ok());
    }

    #[test]
    fn durations_are_parsed_with_and_without_units() {
        for (text, ms) in [
            ("500ms", 500),
            ("2s", 2_000),
            ("1.5m", 90_000),
            ("3", 3_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for invalid in ["", "-1s", "x", "1d", "nan"] {
            assert!(parse_duration(invalid).is_err(), "{invalid}");
        }
    }
}
