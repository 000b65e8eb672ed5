//! Shared parts of the integration tests: addresses of the shared services, private servers, roles
//! as child processes, clients of both protocols, a scripted model API and waiting for conditions.
#![allow(dead_code, reason = "no test uses all of the helpers")]

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) mod browser;
pub(crate) mod classic;
pub(crate) mod collector;
pub(crate) mod history;
pub(crate) mod http;
pub(crate) mod kafka_broker;
pub(crate) mod kafka_client;
pub(crate) mod lossy_redis;
pub(crate) mod machine;
pub(crate) mod model;
pub(crate) mod parts;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod redis_cluster;
pub(crate) mod redis_server;
pub(crate) mod scenario;
mod self_test;
pub(crate) mod stack;
pub(crate) mod system;
pub(crate) mod tcp_proxy;
pub(crate) mod v1;

/// Limit for any step that normally takes a moment. Generous, because the machine may be busy.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for which a test listens for a frame that must not arrive. Used where no later frame can
/// prove that the frame was never sent.
pub(crate) const QUIET_PERIOD: Duration = Duration::from_millis(1500);

/// Quiet period that is longer than the interval (5 s) at which gateways check for lost frames. A
/// duplicate that such a check would deliver is not ordered with other frames, so no later frame
/// can prove its absence.
pub(crate) const MAILBOX_CHECK_QUIET_PERIOD: Duration = Duration::from_secs(7);

fn required_variable(variable: &str) -> String {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => value,
        _ => {
            panic!("{variable} is not set: run tests/run NAME, or eval \"$(tests/run --services)\"")
        }
    }
}

/// `host:port` of the real Kafka that all tests share.
pub(crate) fn kafka_address() -> String {
    required_variable("TEST_KAFKA")
}

/// URL of the real Redis that all tests share.
pub(crate) fn redis_url() -> String {
    required_variable("TEST_REDIS_URL")
}

/// URL of the real Redis cluster of three nodes that all tests share.
pub(crate) fn redis_cluster_url() -> String {
    required_variable("TEST_REDIS_CLUSTER_URL")
}

/// URL of the real Redis behind three sentinels that all tests share.
pub(crate) fn redis_sentinel_url() -> String {
    required_variable("TEST_REDIS_SENTINEL_URL")
}

/// Returns a name for a user, topic or group that no other test uses.
pub(crate) fn unique_name(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}-{}", &id[..12])
}

/// Checks `condition` every 50 ms until it holds. Panics with `description` after `limit`.
pub(crate) async fn wait_until<F, Fut>(description: &str, limit: Duration, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(
            Instant::now() < deadline,
            "not within {limit:?}: {description}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
