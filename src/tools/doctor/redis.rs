//! Redis: one server, behind sentinel, or a cluster.

use std::time::Duration;

use super::report::{Findings, Status};
use crate::config::Config;
use crate::fanout::FanoutHealth as _;
use crate::fanout::redis::RedisFanout;
use crate::fanout::redis::inspect::{Master, Topology};

/// A first connection takes longer than a call; sentinel and cluster ask several servers.
const CONNECT: Duration = Duration::from_secs(6);
/// Between two tries of it.
const AGAIN: Duration = Duration::from_millis(100);
/// Clocks further apart than this deserve a look.
const SKEW_MS: i64 = 2000;
/// An answer that takes longer slows every message.
const SLOW_MS: i64 = 50;
/// The oldest version with sharded publish and subscribe.
const CLUSTER_VERSION: u32 = 7;
const MIB: u64 = 1 << 20;

pub(super) async fn look(config: &Config, findings: &mut Findings) {
    let place = config.redis_place();
    let fanout = match RedisFanout::connect(&config.redis()) {
        Ok(fanout) => fanout,
        Err(error) => {
            findings.problem(error.to_string(), "correct REDIS_URL");
            return;
        }
    };
    let deadline = tokio::time::Instant::now() + CONNECT;
    while let Err(error) = fanout.check().await {
        if tokio::time::Instant::now() >= deadline {
            let (text, advice) = unanswered(&place, &error.to_string());
            findings.problem(text, advice);
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
    let servers = match fanout.inspect().await {
        Ok(servers) => servers,
        Err(error) => {
            let advice = "allow this user INFO and TIME, and look at Redis's log";
            findings.problem(format!("{place} answers, but not all: {error}"), advice);
            return;
        }
    };
    match servers.topology {
        Topology::Single => findings.ok(format!("{place} answers")),
        Topology::Sentinel => {
            let master = servers
                .masters
                .first()
                .map_or("", |master| master.address.as_str());
            findings.ok(format!(
                "sentinel at {place} names {master} as the master, which answers"
            ));
            if servers
                .masters
                .iter()
                .any(|master| master.replicas == Some(0))
            {
                findings.warning(
                    "the master has no replica: sentinel has nobody to promote",
                    "start a replica",
                );
            }
        }
        Topology::Cluster { unassigned: 0 } => {
            findings.ok(format!(
                "a cluster of {} masters answers",
                servers.masters.len()
            ));
        }
        Topology::Cluster { unassigned } => findings.problem(
            format!(
                "{unassigned} of the cluster's 16384 slots have no master: their users get nothing"
            ),
            "bring back the masters that are missing, or `redis-cli --cluster fix`",
        ),
    }
    let clustered = matches!(servers.topology, Topology::Cluster { .. });
    for master in &servers.masters {
        judge(master, clustered, findings);
    }
}

/// What an error of the connection means, and what to do about it.
fn unanswered(place: &str, error: &str) -> (String, &'static str) {
    // Who refuses a password is there, however the call that waited for it ended.
    let refusals = ["Authentication Error", "WRONGPASS", "NOAUTH"];
    match refusals.into_iter().find_map(|refusal| error.find(refusal)) {
        Some(at) => (
            format!("{place} refuses the login: {}", &error[at..]),
            "correct the password in REDIS_URL (or REDIS_PASSWORD), and the user's name if one is there",
        ),
        None => (
            format!("{place} does not answer: {error}"),
            "start it, or correct REDIS_URL (or REDIS_HOST, REDIS_PORT, REDIS_PASSWORD)",
        ),
    }
}

fn judge(master: &Master, clustered: bool, findings: &mut Findings) {
    let at = if master.address.is_empty() {
        String::new()
    } else {
        format!(" at {}", master.address)
    };
    let Some(version) = &master.version else {
        findings.warning(
            format!("INFO is not allowed{at}: version, memory and persistence are not known"),
            "allow it, or see yourself to maxmemory-policy noeviction and appendonly yes",
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
        _ => "memory not known".to_owned(),
    };
    let persistent = match master.has_append_only_file {
        Some(true) => "append-only file",
        Some(false) => "no append-only file",
        None => "persistence not known",
    };
    let policy = master
        .eviction_policy
        .as_deref()
        .unwrap_or("policy not known");
    let facts = format!("version {version}{at}, {memory}, {policy}, {persistent}");
    if clustered && major < CLUSTER_VERSION {
        findings.problem(
            facts,
            "a cluster needs Redis 7 or newer (sharded publish): update it",
        );
    } else {
        findings.ok(facts);
    }
    let limited = master.memory_limit.is_some_and(|limit| limit > 0);
    for warning in &master.warnings {
        // Only an eviction that can happen takes away what was promised.
        let evicts = limited && warning.starts_with("maxmemory-policy");
        let status = if evicts {
            Status::Problem
        } else {
            Status::Warning
        };
        findings.sentence(status, warning);
    }
    if let (Some(used), Some(limit @ 1..)) = (master.memory_used, master.memory_limit)
        && used > limit / 10 * 9
    {
        findings.warning(
            format!("memory is used up to nine tenths{at}: at the limit Redis refuses writes"),
            "raise maxmemory, or lower MAILBOX_BYTES, HISTORY_TURNS or HISTORY_RETENTION",
        );
    }
    if !master.is_persisting {
        findings.problem(
            format!("the last write to disk failed{at}"),
            "look at Redis's log and at its disk",
        );
    }
    let ahead = master.clock_ahead_ms;
    if ahead.abs() > SKEW_MS + master.round_trip_ms {
        let side = if ahead > 0 { "ahead of" } else { "behind" };
        findings.warning(
            format!("the clock{at} is {} ms {side} this machine's", ahead.abs()),
            "synchronise the clocks of all machines (NTP): ages of messages are counted by them",
        );
    } else {
        findings.ok(format!("the clock{at} agrees within {SKEW_MS} ms"));
    }
    if master.round_trip_ms > SLOW_MS {
        findings.warning(
            format!("an answer takes {} ms{at}", master.round_trip_ms),
            "put Redis nearer to the roles, and look at its load",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_password_is_told_first_and_not_as_silence() {
        let (text, advice) = unanswered(
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
        let (text, advice) = unanswered("redis:6379", "fan-out unavailable: IO Error (refused)");
        assert!(text.starts_with("redis:6379 does not answer"), "{text}");
        assert!(advice.starts_with("start it"), "{advice}");
    }
}
