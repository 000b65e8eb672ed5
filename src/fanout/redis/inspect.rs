//! Inspects the Redis servers for `chatmesh doctor`: version, memory, persistence, replicas and
//! clock of each server.

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::Server;
use fred::types::{ClusterHash, CustomCommand, InfoKind, Value};

use super::RedisFanout;
use super::connection::fanout_error;
use super::servers::{info, info_field, masters, routing, settings_warnings};
use crate::fanout::Result;
use crate::protocol::timestamp::now_ms;

/// Number of hash slots in a Redis cluster.
const CLUSTER_SLOTS: usize = 16_384;

/// The Redis servers that `REDIS_URL` leads to.
#[derive(Debug, Clone)]
pub struct Servers {
    /// Whether there is a single server, a sentinel or a cluster.
    pub topology: Topology,
    /// The only server, or each master of a cluster.
    pub masters: Vec<Master>,
}

/// Whether there is a single Redis server, a sentinel or a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// `REDIS_URL` names a single server.
    Single,
    /// `REDIS_URL` names a sentinel, which names the master.
    Sentinel,
    /// `REDIS_URL` names nodes of a cluster.
    Cluster {
        /// Number of hash slots, out of 16384, that no master serves.
        unassigned_slots: usize,
    },
}

/// The result of inspecting one server that holds users. A field is `None` if the server forbids
/// INFO, as managed servers may, or does not report the value.
#[derive(Debug, Clone)]
pub struct Master {
    /// `host:port` of the server in a cluster or behind sentinel. Empty for a single server,
    /// because `REDIS_URL` names it.
    pub address: String,
    /// Version of Redis (`redis_version`).
    pub version: Option<String>,
    /// Memory limit in bytes (`maxmemory`); 0 means unlimited.
    pub memory_limit: Option<u64>,
    /// Size of the memory in use, in bytes (`used_memory`).
    pub memory_used: Option<u64>,
    /// What the server evicts at its memory limit (`maxmemory-policy`).
    pub eviction_policy: Option<String>,
    /// Whether the server writes an append-only file.
    pub has_append_only_file: Option<bool>,
    /// Whether the last write of the append-only file and the last RDB save succeeded. True if the
    /// server does not report them.
    pub is_persisting: bool,
    /// Number of connected replicas.
    pub replicas: Option<u32>,
    /// Time by which the server's clock is ahead of this machine's clock, in milliseconds; negative
    /// if it is behind.
    pub clock_ahead_ms: i64,
    /// Duration of one command's round trip to the server, in milliseconds.
    pub round_trip_ms: i64,
    /// One sentence for each setting of the server that may lose data.
    pub warnings: Vec<String>,
}

impl RedisFanout {
    /// Inspects every server that holds users, without changing anything.
    pub async fn inspect(&self) -> Result<Servers> {
        let client = &self.client;
        if client.is_clustered() {
            let assigned: usize = routing(client)
                .await?
                .slots()
                .iter()
                .map(|range| usize::from(range.end - range.start) + 1)
                .sum();
            let mut inspected = Vec::new();
            for node in masters(client).await? {
                inspected.push(inspect_server(client, Some(&node), node.to_string()).await?);
            }
            return Ok(Servers {
                topology: Topology::Cluster {
                    unassigned_slots: CLUSTER_SLOTS.saturating_sub(assigned),
                },
                masters: inspected,
            });
        }
        let (topology, address) = if client.client_config().server.is_sentinel() {
            let active = client.active_connections().into_iter().next();
            let address = active.map(|server| server.to_string());
            (Topology::Sentinel, address.unwrap_or_default())
        } else {
            (Topology::Single, String::new())
        };
        Ok(Servers {
            topology,
            masters: vec![inspect_server(client, None, address).await?],
        })
    }
}

/// The time by a server's clock, in milliseconds since the Unix epoch. `node` selects a master of a
/// cluster.
async fn server_time_ms(client: &Client, node: Option<&Server>) -> Result<i64> {
    let command = CustomCommand::new_static("TIME", ClusterHash::FirstKey, false);
    let args: Vec<Value> = Vec::new();
    let answer: std::result::Result<Vec<i64>, _> = match node {
        Some(node) => {
            client
                .with_cluster_node(node.clone())
                .custom(command, args)
                .await
        }
        None => client.custom(command, args).await,
    };
    let parts = answer.map_err(|error| fanout_error(client, &error))?;
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    Ok(part(0) * 1000 + part(1) / 1000)
}

async fn inspect_server(client: &Client, node: Option<&Server>, address: String) -> Result<Master> {
    // The first call may have to connect and its result is not used. The second call then measures
    // only the round trip.
    server_time_ms(client, node).await?;
    let sent_ms = now_ms();
    let server_ms = server_time_ms(client, node).await?;
    let round_trip_ms = now_ms() - sent_ms;
    let server = info(client, node, InfoKind::Server).await;
    let memory = info(client, node, InfoKind::Memory).await;
    let persistence = info(client, node, InfoKind::Persistence).await;
    let replication = info(client, node, InfoKind::Replication).await;
    let text = |section: &Option<String>, name: &str| {
        section
            .as_deref()
            .and_then(|info| info_field(info, name))
            .map(str::to_owned)
    };
    let number = |section: &Option<String>, name: &str| text(section, name)?.parse().ok();
    let is_ok = |name: &str| text(&persistence, name).is_none_or(|status| status == "ok");
    let at_address = if address.is_empty() {
        String::new()
    } else {
        format!(" at {address}")
    };
    Ok(Master {
        version: text(&server, "redis_version"),
        memory_limit: number(&memory, "maxmemory"),
        memory_used: number(&memory, "used_memory"),
        eviction_policy: text(&memory, "maxmemory_policy"),
        has_append_only_file: text(&persistence, "aof_enabled").map(|enabled| enabled == "1"),
        is_persisting: is_ok("aof_last_write_status") && is_ok("rdb_last_bgsave_status"),
        replicas: text(&replication, "connected_slaves").and_then(|count| count.parse().ok()),
        clock_ahead_ms: server_ms - (sent_ms + round_trip_ms / 2),
        round_trip_ms,
        warnings: settings_warnings(memory.as_deref(), persistence.as_deref(), &at_address),
        address,
    })
}
