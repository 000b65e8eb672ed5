//! Checks Redis: a single server, servers behind sentinel, or a cluster.

use std::time::Duration;

use super::report::{Findings, Status};
use crate::config::Config;
use crate::fanout::FanoutHealth as _;
use crate::fanout::redis::RedisFanout;
use crate::fanout::redis::inspect::{Master, Topology};

/// Time after which the check stops trying to connect. It is long enough for a sentinel or a
/// cluster, which need several connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
/// Pause between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Largest difference, in milliseconds, between the clocks of a Redis server and of this machine
/// that causes no warning. The round trip is added to this limit.
const MAX_CLOCK_SKEW_MS: i64 = 2000;
/// Longest round trip, in milliseconds, that causes no warning. Every message needs several round
/// trips.
const MAX_ROUND_TRIP_MS: i64 = 50;
/// First major version of Redis with sharded publish/subscribe, which chatmesh uses in a cluster.
const MIN_CLUSTER_VERSION: u32 = 7;
const MIB: u64 = 1 << 20;

pub(super) async fn check(config: &Config, findings: &mut Findings) {
    let address = config.redis_address();
    let fanout = match RedisFanout::connect(&config.redis()) {
        Ok(fanout) => fanout,
        Err(error) => {
            findings.add_problem(error.to_string(), "correct REDIS_URL");
            return;
        }
    };
    let deadline = tokio::time::Instant::now() + CONNECT_TIMEOUT;
    while let Err(error) = fanout.check().await {
        if tokio::time::Instant::now() >= deadline {
            let (text, advice) = connection_failure(&address, &error.to_string());
            findings.add_problem(text, advice);
            return;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    let servers = match fanout.inspect().await {
        Ok(servers) => servers,
        Err(error) => {
            let advice = "allow this user INFO and TIME, and check Redis's log";
            let text = format!("{address} answers, but a command failed: {error}");
            findings.add_problem(text, advice);
            return;
        }
    };
    match servers.topology {
        Topology::Single => findings.add_ok(format!("{address} answers")),
        Topology::Sentinel => {
            let master = servers
                .masters
                .first()
                .map_or("", |master| master.address.as_str());
            findings.add_ok(format!(
                "sentinel at {address} names {master} as the master, which answers"
            ));
            if servers
                .masters
                .iter()
                .any(|master| master.replicas == Some(0))
            {
                findings.add_warning(
                    "the master has no replica, so sentinel can't promote one",
                    "start a replica",
                );
            }
        }
        Topology::Cluster {
            unassigned_slots: 0,
        } => {
            findings.add_ok(format!(
                "a cluster of {} masters answers",
                servers.masters.len()
            ));
        }
        Topology::Cluster { unassigned_slots } => findings.add_problem(
            format!(
                "{unassigned_slots} of the cluster's 16384 slots have no master: their users are \
                 not served"
            ),
            "restart the missing masters, or run `redis-cli --cluster fix`",
        ),
    }
    let is_cluster = matches!(servers.topology, Topology::Cluster { .. });
    for master in &servers.masters {
        check_master(master, is_cluster, findings);
    }
}

/// Returns why the connection failed, and what the operator can do about it.
fn connection_failure(address: &str, error: &str) -> (String, &'static str) {
    // A server that rejects the password is reachable, even if the client reports a timeout.
    let login_errors = ["Authentication Error", "WRONGPASS", "NOAUTH"];
    match login_errors.into_iter().find_map(|text| error.find(text)) {
        Some(start) => (
            format!("{address} refuses the login: {}", &error[start..]),
            "correct the password in REDIS_URL (or REDIS_PASSWORD), and the user name if there is one",
        ),
        None => (
            format!("{address} does not answer: {error}"),
            "start it, or correct REDIS_URL (or REDIS_HOST, REDIS_PORT, REDIS_PASSWORD)",
        ),
    }
}

fn check_master(master: &Master, is_cluster: bool, findings: &mut Findings) {
    let location = if master.address.is_empty() {
        String::new()
    } else {
        format!(" at {}", master.address)
    };
    let Some(version) = &master.version else {
        findings.add_warning(
            format!("INFO is not allowed{location}: version, memory and persistence are unknown"),
            "allow it, or make sure that maxmemory-policy is noeviction and appendonly is yes",
        );
        return;
    };
    let major: u32 = version
        .split('.')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let memory = match (master.memory_used, master.memory_limit) {
        (Some(used), Some(0)) => format!("{} MiB used, no limit", used / MIB),
        (Some(used), Some(limit)) => format!("{} of {} MiB used", used / MIB, limit / MIB),
        _ => "memory unknown".to_owned(),
    };
    let persistent = match master.has_append_only_file {
        Some(true) => "append-only file",
        Some(false) => "no append-only file",
        None => "persistence unknown",
    };
    let policy = master
        .eviction_policy
        .as_deref()
        .unwrap_or("policy unknown");
    let facts = format!("version {version}{location}, {memory}, {policy}, {persistent}");
    if is_cluster && major < MIN_CLUSTER_VERSION {
        findings.add_problem(
            facts,
            "a cluster needs Redis 7 or newer (sharded publish/subscribe): update it",
        );
    } else {
        findings.add_ok(facts);
    }
    check_memory(master, &location, findings);
    check_clock_and_round_trip(master, &location, findings);
}

fn check_memory(master: &Master, location: &str, findings: &mut Findings) {
    let is_limited = master.memory_limit.is_some_and(|limit| limit > 0);
    for warning in &master.warnings {
        // Without maxmemory Redis evicts no keys, so a wrong eviction policy is only a warning
        // then.
        let can_evict = is_limited && warning.starts_with("maxmemory-policy");
        let status = if can_evict {
            Status::Problem
        } else {
            Status::Warning
        };
        findings.add_sentence(status, warning);
    }
    if let (Some(used), Some(limit @ 1..)) = (master.memory_used, master.memory_limit)
        && used > limit / 10 * 9
    {
        findings.add_warning(
            format!(
                "more than 90 % of the memory is used{location}: at the limit Redis rejects writes"
            ),
            "raise maxmemory, or lower MAILBOX_BYTES, HISTORY_TURNS or HISTORY_RETENTION",
        );
    }
    if !master.is_persisting {
        findings.add_problem(
            format!("the last write to disk failed{location}"),
            "check Redis's log and its disk",
        );
    }
}

fn check_clock_and_round_trip(master: &Master, location: &str, findings: &mut Findings) {
    let ahead_ms = master.clock_ahead_ms;
    if ahead_ms.abs() > MAX_CLOCK_SKEW_MS + master.round_trip_ms {
        let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
        findings.add_warning(
            format!("the clock{location} is {} ms {side} this machine's", ahead_ms.abs()),
            "synchronise the clocks of all machines (NTP): the age of messages is computed from them",
        );
    } else {
        findings.add_ok(format!(
            "the clock{location} agrees within {MAX_CLOCK_SKEW_MS} ms"
        ));
    }
    if master.round_trip_ms > MAX_ROUND_TRIP_MS {
        findings.add_warning(
            format!("a round trip takes {} ms{location}", master.round_trip_ms),
            "move Redis closer to the roles, and check its load",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_password_is_reported_even_after_a_timeout() {
        let (text, advice) = connection_failure(
            "redis:6379",
            "fan-out unavailable: redis did not answer in time: Authentication Error (WRONGPASS \
             invalid username-password pair)",
        );
        assert_eq!(
            text,
            "redis:6379 refuses the login: Authentication Error (WRONGPASS invalid \
             username-password pair)"
        );
        assert!(advice.starts_with("correct the password in REDIS_URL"));
        let (text, advice) =
            connection_failure("redis:6379", "fan-out unavailable: IO Error (refused)");
        assert!(text.starts_with("redis:6379 does not answer"), "{text}");
        assert!(advice.starts_with("start it"), "{advice}");
    }
}
