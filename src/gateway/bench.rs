//! Lets `benches/` measure the time from the receipt of a published frame until it is queued for
//! the user's connections. The connections have no sockets, because with real sockets a benchmark
//! would mostly measure the kernel.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::client::Client;
use super::delivery;
use super::metrics::GatewayMetrics;
use super::outbound::OutboundQueue;
use super::session::Protocol;
use super::sessions::SessionRegistry;
use crate::fanout::{Channel, FanoutError, Feed};
use crate::protocol::ids::UserId;

/// A feed that confirms every subscription and publishes nothing.
pub(super) struct ConfirmingFeed;

#[async_trait]
impl Feed for ConfirmingFeed {
    async fn subscribe(&self, _: &UserId, _: Channel) -> Result<(), FanoutError> {
        Ok(())
    }

    async fn unsubscribe(&self, _: &UserId, _: Channel) -> Result<(), FanoutError> {
        Ok(())
    }
}

/// A registry of users whose connections have queues but no sockets.
pub struct RegistryBench {
    registry: SessionRegistry,
    metrics: GatewayMetrics,
    clients: Vec<Client>,
}

impl RegistryBench {
    /// Adds `connections_per_user` classic connections for each user.
    ///
    /// # Errors
    /// None in practice, because every subscription is confirmed.
    pub async fn new(users: &[UserId], connections_per_user: usize) -> Result<Self, FanoutError> {
        let mut bench = Self {
            registry: SessionRegistry::default(),
            metrics: GatewayMetrics::new("bench", "bench"),
            clients: Vec::new(),
        };
        bench.registry.set_feed(Arc::new(ConfirmingFeed));
        for user in users {
            for _ in 0..connections_per_user {
                let client = Client::new(&Protocol::Classic, 1 << 20);
                bench.registry.join(user, &client, None).await?;
                bench.clients.push(client);
            }
        }
        Ok(bench)
    }

    /// Delivers a frame as if it had been published for the user. Returns whether the frame was
    /// queued for the user's connections.
    pub fn publish(&self, user: &UserId, payload: &[u8]) -> bool {
        let sessions = self.registry.get(user);
        sessions.is_some_and(|sessions| {
            let payload = Bytes::copy_from_slice(payload);
            delivery::deliver_published(&self.metrics, &sessions, Channel::Terminal, &payload)
                .is_delivered()
        })
    }

    /// Removes the queued frames of all connections and returns their number.
    pub fn discard(&self) -> usize {
        let outbound = self.clients.iter().map(Client::outbound);
        outbound.map(OutboundQueue::discard).sum()
    }
}
