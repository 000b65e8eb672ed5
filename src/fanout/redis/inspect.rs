//! What a person has to know of the servers: each one's version, limits, persistence and clock.

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::Server;
use fred::types::{ClusterHash, CustomCommand, InfoKind, Value};

use super::RedisFanout;
use super::connection::failure;
use super::servers::{field, info, masters, routing, warn_of};
use crate::fanout::Result;
use crate::protocol::timestamp::now_ms;

/// Slots of a cluster.
const SLOTS: usize = 16_384;

/// What is behind the URL.
#[derive(Debug, Clone)]
pub struct Servers {
    /// How the servers are arranged.
    pub arrangement: Arrangement,
    /// The server, or each master of a cluster.
    pub masters: Vec<Master>,
}

/// How the servers are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// One server.
    Single,
    /// The master that sentinels name.
    Sentinel,
    /// A cluster, and how many slots nobody has.
    Cluster {
        /// Of 16384.
        unassigned: usize,
    },
}

/// A server that holds users.
#[derive(Debug, Clone)]
pub struct Master {
    /// `host:port` where it is one of several or was found by sentinel; else empty.
    pub place: String,
    /// `redis_version`; `None` where INFO is forbidden.
    pub version: Option<String>,
    /// Bytes that it may use; 0 is without a limit.
    pub memory_limit: Option<u64>,
    /// Bytes that it uses.
    pub memory_used: Option<u64>,
    /// `maxmemory-policy`.
    pub policy: Option<String>,
    /// Whether it writes an append-only file.
    pub appends: Option<bool>,
    /// Whether its last writes to disk (file and snapshot) went well.
    pub writes_well: bool,
    /// Replicas that are connected to it.
    pub replicas: Option<u32>,
    /// How far its clock is ahead of ours, milliseconds.
    pub clock_ahead_ms: i64,
    /// How long an answer takes, milliseconds.
    pub round_trip_ms: i64,
    /// Sentences on settings that lose data.
    pub warnings: Vec<String>,
}

impl RedisFanout {
    /// Looks at every server that holds users; changes nothing.
    pub async fn inspect(&self) -> Result<Servers> {
        let client = &self.client;
        if client.is_clustered() {
            let covered: usize = routing(client)
                .await?
                .slots()
                .iter()
                .map(|range| usize::from(range.end - range.start) + 1)
                .sum();
            let mut found = Vec::new();
            for node in masters(client).await? {
                found.push(look(client, Some(&node), node.to_string()).await?);
            }
            return Ok(Servers {
                arrangement: Arrangement::Cluster {
                    unassigned: SLOTS.saturating_sub(covered),
                },
                masters: found,
            });
        }
        let sentinel = client.client_config().server.is_sentinel();
        let place = if sentinel {
            let active = client.active_connections().into_iter().next();
            active.map(|server| server.to_string()).unwrap_or_default()
        } else {
            String::new()
        };
        Ok(Servers {
            arrangement: if sentinel {
                Arrangement::Sentinel
            } else {
                Arrangement::Single
            },
            masters: vec![look(client, None, place).await?],
        })
    }
}

/// The server's clock in milliseconds.
async fn time(client: &Client, node: Option<&Server>) -> Result<i64> {
    let command = CustomCommand::new_static("TIME", ClusterHash::FirstKey, false);
    let none: Vec<Value> = Vec::new();
    let answer: std::result::Result<Vec<i64>, _> = match node {
        Some(node) => {
            client
                .with_cluster_node(node.clone())
                .custom(command, none)
                .await
        }
        None => client.custom(command, none).await,
    };
    let parts = answer.map_err(|error| failure(client, &error))?;
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    Ok(part(0) * 1000 + part(1) / 1000)
}

async fn look(client: &Client, node: Option<&Server>, place: String) -> Result<Master> {
    // The first one may have connected; the second is only the way.
    time(client, node).await?;
    let asked = now_ms();
    let theirs = time(client, node).await?;
    let round_trip_ms = now_ms() - asked;
    let server = info(client, node, InfoKind::Server).await;
    let memory = info(client, node, InfoKind::Memory).await;
    let persistence = info(client, node, InfoKind::Persistence).await;
    let replication = info(client, node, InfoKind::Replication).await;
    let text = |section: &Option<String>, name: &str| {
        section
            .as_deref()
            .and_then(|info| field(info, name))
            .map(str::to_owned)
    };
    let number = |section: &Option<String>, name: &str| text(section, name)?.parse().ok();
    let well = |name: &str| text(&persistence, name).is_none_or(|status| status == "ok");
    let at = if place.is_empty() {
        String::new()
    } else {
        format!(" at {place}")
    };
    Ok(Master {
        version: text(&server, "redis_version"),
        memory_limit: number(&memory, "maxmemory"),
        memory_used: number(&memory, "used_memory"),
        policy: text(&memory, "maxmemory_policy"),
        appends: text(&persistence, "aof_enabled").map(|enabled| enabled == "1"),
        writes_well: well("aof_last_write_status") && well("rdb_last_bgsave_status"),
        replicas: text(&replication, "connected_slaves").and_then(|count| count.parse().ok()),
        clock_ahead_ms: theirs - (asked + round_trip_ms / 2),
        round_trip_ms,
        warnings: warn_of(memory.as_deref(), persistence.as_deref(), &at),
        place,
    })
}
