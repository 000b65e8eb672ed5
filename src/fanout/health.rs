//! The checks of readiness and of server settings that the application makes.

use async_trait::async_trait;

use super::error::Result;

/// Reports whether the fan-out is reachable and safely configured.
#[async_trait]
pub trait FanoutHealth: Send + Sync + 'static {
    /// Returns an error unless every Redis server that holds users answers within 2 seconds, or the
    /// local store of the embedded fan-out can be used.
    async fn check(&self) -> Result<()>;

    /// Returns one sentence for each setting of a Redis server that endangers the delivery
    /// guarantees (`maxmemory-policy`, missing persistence).
    async fn warnings(&self) -> Result<Vec<String>>;
}
