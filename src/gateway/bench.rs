//! What a published frame costs until it is queued for the user's sockets, for `benches/`. A
//! benchmark can't reach the registry otherwise, and over real sockets it would mostly measure the
//! kernel.

use std::sync::Arc;

use async_trait::async_trait;

use super::counters::Counters;
use super::registry::Registry;
use super::user::Socket;
use super::{feed, v1};
use crate::fanout::{Channel, FanoutError, Feed};
use crate::protocol::ids::UserId;

struct Confirms;

#[async_trait]
impl Feed for Confirms {
    async fn subscribe(&self, _: &UserId, _: Channel) -> Result<(), FanoutError> {
        Ok(())
    }

    async fn unsubscribe(&self, _: &UserId, _: Channel) -> Result<(), FanoutError> {
        Ok(())
    }
}

/// A gateway's users with their sockets, which nobody writes out.
pub struct Hall {
    registry: Registry,
    counters: Counters,
    sockets: Vec<Arc<Socket>>,
}

impl Hall {
    /// Each user has so many classic sockets.
    ///
    /// # Errors
    /// None: the subscriptions are confirmed at once.
    pub async fn new(users: &[UserId], sockets: usize) -> Result<Self, FanoutError> {
        let mut hall = Self {
            registry: Registry::default(),
            counters: Counters::new("bench", "bench"),
            sockets: Vec::new(),
        };
        hall.registry.set_feed(Arc::new(Confirms));
        for user in users {
            for _ in 0..sockets {
                let socket = Arc::new(Socket::new(1 << 20, None::<v1::Line>));
                hall.registry.join(user, &socket, None).await?;
                hall.sockets.push(socket);
            }
        }
        Ok(hall)
    }

    /// A frame was published for a user; whether it was told to the user's sockets.
    pub fn publish(&self, user: &UserId, payload: &[u8]) -> bool {
        let entry = self.registry.get(user);
        entry.is_some_and(|entry| {
            feed::published(&self.counters, &entry, Channel::Terminal, payload).told
        })
    }

    /// Takes out what is queued; how many frames that were.
    pub fn discard(&self) -> usize {
        self.sockets
            .iter()
            .map(|socket| socket.outbound.discard())
            .sum()
    }
}
