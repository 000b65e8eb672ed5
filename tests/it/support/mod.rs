//! What the integration tests share: addresses, unique names, processes, clients, a scripted model.
#![allow(dead_code, reason = "each test uses some of it")]

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) mod browser;
pub(crate) mod client;
pub(crate) mod collector;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod kafka_broker;
pub(crate) mod link;
pub(crate) mod model;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod redis_cluster;
mod selftest;
pub(crate) mod stack;
pub(crate) mod v1;
pub(crate) mod world;

/// Enough for anything that should take a moment, also on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

fn address(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set: run tests/run NAME, or eval \"$(tests/run --services)\""),
    }
}

/// `host:port` of a real Kafka that all tests share.
pub(crate) fn kafka() -> String {
    address("TEST_KAFKA")
}

/// URL of a real Redis that all tests share.
pub(crate) fn redis_url() -> String {
    address("TEST_REDIS_URL")
}

/// URL of a real Redis cluster of three that all tests share.
pub(crate) fn redis_cluster_url() -> String {
    address("TEST_REDIS_CLUSTER_URL")
}

/// URL of a real Redis behind three sentinels that all tests share.
pub(crate) fn redis_sentinel_url() -> String {
    address("TEST_REDIS_SENTINEL_URL")
}

/// A name that nothing else has: a user, a topic, a group.
pub(crate) fn unique(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}-{}", &id[..12])
}

/// Asks until `condition` holds, and fails by the name of `what` when it does not in time.
pub(crate) async fn eventually<F, Fut>(what: &str, limit: Duration, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
