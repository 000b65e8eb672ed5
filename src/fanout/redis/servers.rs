//! Operations on all Redis servers rather than on one user's keys: markers for the relay, readiness
//! and warnings for the application.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, ClusterInterface, KeysInterface};
use fred::types::cluster::ClusterRouting;
use fred::types::config::Server;
use fred::types::{Expiration, InfoKind};
use futures_util::future::try_join_all;

use super::connection::{fanout_error, no_answer};
use super::scripts::Script;
use crate::fanout::{FanoutError, Result};
use crate::protocol::position::Epoch;

/// Time to live of a marker in seconds. A relay renews it every few seconds when it checks the
/// marker, so that a marker disappears only with its server's data or after its partition is no
/// longer used.
const MARKER_TTL_SECONDS: i64 = 30 * 24 * 3600;

/// Returns the masters of a cluster that serve slots, without duplicates.
pub(super) async fn masters(client: &Client) -> Result<Vec<Server>> {
    let masters: BTreeSet<Server> = routing(client)
        .await?
        .slots()
        .iter()
        .map(|range| range.primary.clone())
        .collect();
    Ok(masters.into_iter().collect())
}

/// Returns which master of the cluster serves which slots. Waits for the first connection.
pub(super) async fn routing(client: &Client) -> Result<ClusterRouting> {
    if client.num_primary_cluster_nodes() == 0 {
        // The ping waits for the first connection to the cluster, or for the command's timeout.
        client
            .ping::<()>(None)
            .await
            .map_err(|error| fanout_error(client, &error))?;
    }
    client
        .cached_cluster_state()
        .filter(|routing| !routing.slots().is_empty())
        .ok_or_else(|| FanoutError::Unavailable("the redis cluster is out of reach".into()))
}

/// Returns a hash tag for each master, whose slot the master serves. The tag is the smallest such
/// number, so that every process computes the same tag. Each range is the first slot, the last slot
/// and the master that serves them.
fn hash_tags<M: Ord>(ranges: &[(u16, u16, M)]) -> BTreeMap<&M, String> {
    let masters: BTreeSet<&M> = ranges.iter().map(|(_, _, master)| master).collect();
    let mut tags = BTreeMap::new();
    // The loop finds a tag for every master: the numbers below the bound hash to all slots.
    for number in 0..1_000_000_u32 {
        if tags.len() == masters.len() {
            break;
        }
        let tag = number.to_string();
        let slot = ClusterRouting::hash_key(tag.as_bytes());
        let range = ranges
            .iter()
            .find(|(first, last, _)| (*first..=*last).contains(&slot));
        if let Some((_, _, master)) = range {
            tags.entry(master).or_insert(tag);
        }
    }
    tags
}

/// Returns the key of the partition's marker on each server that holds users.
async fn marker_keys(client: &Client, epoch: &Epoch) -> Result<Vec<String>> {
    let key = |tag: &str| format!("{{{tag}}}:chatmesh:1:marker:{}", epoch.as_str());
    if !client.is_clustered() {
        return Ok(vec![key("0")]);
    }
    let ranges: Vec<(u16, u16, Server)> = routing(client)
        .await?
        .slots()
        .iter()
        .map(|range| (range.start, range.end, range.primary.clone()))
        .collect();
    Ok(hash_tags(&ranges).values().map(|tag| key(tag)).collect())
}

/// Runs a marker script on every server that holds users. Returns whether the script returned 1 on
/// all of them.
pub(super) async fn run_marker(
    client: &Client,
    script: &Script,
    epoch: &Epoch,
    token: &str,
) -> Result<bool> {
    let keys = marker_keys(client, epoch).await?;
    let args = || vec![token.into(), MARKER_TTL_SECONDS.to_string().into()];
    let runs = keys
        .iter()
        .map(async |key| script.run(client, &[key.as_str()], args()).await);
    let answers = try_join_all(runs).await?;
    Ok(answers.iter().all(|answer| answer.as_i64() == Some(1)))
}

/// Writes the partition's marker to every server that holds users.
pub(super) async fn set_marker(client: &Client, epoch: &Epoch) -> Result<()> {
    let keys = marker_keys(client, epoch).await?;
    let expiry = Expiration::EX(MARKER_TTL_SECONDS);
    let writes = keys
        .iter()
        .map(|key| client.set::<(), _, _>(key.as_str(), "1", Some(expiry.clone()), None, false));
    try_join_all(writes)
        .await
        .map(|_| ())
        .map_err(|error| fanout_error(client, &error))
}

/// Returns an error unless every server that holds users answers within 2 seconds.
pub(super) async fn check(client: &Client) -> Result<()> {
    const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
    let ping = async {
        if client.is_clustered() {
            let nodes = masters(client).await?;
            let pings = nodes.into_iter().map(|node| {
                let node = client.with_cluster_node(node);
                async move { node.ping::<()>(None).await }
            });
            try_join_all(pings).await.map(|_| ())
        } else {
            client.ping::<()>(None).await
        }
        .map_err(|error| fanout_error(client, &error))
    };
    tokio::time::timeout(CHECK_TIMEOUT, ping)
        .await
        .unwrap_or_else(|_| Err(no_answer()))
}

/// Returns a section of the server's INFO; `None` if the server forbids INFO, as managed servers
/// may.
pub(super) async fn info(client: &Client, node: Option<&Server>, kind: InfoKind) -> Option<String> {
    let answer: std::result::Result<String, _> = match node {
        Some(node) => {
            client
                .with_cluster_node(node.clone())
                .info(Some(kind))
                .await
        }
        None => client.info(Some(kind)).await,
    };
    answer
        .inspect_err(|error| tracing::debug!(%error, "redis INFO is not available"))
        .ok()
}

/// Returns the value of the `name:value` line in a section of INFO; `None` if there is no such
/// line.
pub(super) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim())
}

/// Returns one sentence for each setting of one server that may lose data. `memory` and
/// `persistence` are sections of INFO. `at_address` (` at host:port` or empty) is inserted into the
/// sentences.
pub(super) fn settings_warnings(
    memory: Option<&str>,
    persistence: Option<&str>,
    at_address: &str,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let policy = memory.and_then(|info| info_field(info, "maxmemory_policy"));
    if let Some(policy) = policy.filter(|policy| *policy != "noeviction") {
        let is_limited = memory
            .and_then(|info| info_field(info, "maxmemory"))
            .is_some_and(|limit| limit != "0");
        let consequence = if is_limited {
            "redis evicts keys at its memory limit, outcomes and mailboxes included, so messages may \
             be answered twice or go missing"
        } else {
            "harmless only while maxmemory is 0; with a limit redis would evict outcomes and \
             mailboxes"
        };
        warnings.push(format!(
            "maxmemory-policy is {policy}{at_address}: {consequence}; set maxmemory-policy to \
             noeviction"
        ));
    }
    let append_only = persistence.and_then(|info| info_field(info, "aof_enabled"));
    if append_only == Some("0") {
        warnings.push(format!(
            "appendonly is no{at_address}: a restart of redis loses outcomes and history written \
             since its last snapshot; set appendonly to yes"
        ));
    }
    warnings
}

/// Returns one sentence for each setting of any server that may lose data.
pub(super) async fn warnings(client: &Client) -> Result<Vec<String>> {
    let nodes: Vec<Option<Server>> = if client.is_clustered() {
        masters(client).await?.into_iter().map(Some).collect()
    } else {
        vec![None]
    };
    let mut warnings = Vec::new();
    for node in &nodes {
        let memory = info(client, node.as_ref(), InfoKind::Memory).await;
        let persistence = info(client, node.as_ref(), InfoKind::Persistence).await;
        let at_address = node.as_ref().map(|node| format!(" at {node}"));
        warnings.extend(settings_warnings(
            memory.as_deref(),
            persistence.as_deref(),
            &at_address.unwrap_or_default(),
        ));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_master_gets_a_tag_in_its_own_slots() {
        let ranges = [
            (0, 5460, "a"),
            (5461, 10922, "b"),
            (10923, 16382, "c"),
            (16383, 16383, "d"),
        ];
        let tags = hash_tags(&ranges);
        assert_eq!(tags.len(), 4);
        for (first, last, master) in &ranges {
            let slot = ClusterRouting::hash_key(tags[master].as_bytes());
            assert!((*first..=*last).contains(&slot), "{master}");
        }
    }

    #[test]
    fn settings_that_lose_data_are_reported_with_the_remedy() {
        let memory = "maxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\n";
        let warnings = settings_warnings(Some(memory), Some("aof_enabled:0\r\n"), " at x:1");
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("allkeys-lru") && warnings[0].contains("noeviction"));
        assert!(warnings[1].contains("appendonly") && warnings[1].contains(" at x:1"));
        let memory = "maxmemory:0\r\nmaxmemory_policy:noeviction\r\n";
        assert!(settings_warnings(Some(memory), Some("aof_enabled:1\r\n"), "").is_empty());
        assert!(settings_warnings(None, None, "").is_empty());
    }
}
