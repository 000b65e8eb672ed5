//! Readiness and configuration checks, called by the application.

use async_trait::async_trait;

use super::error::Result;

/// Reports whether the fan-out is reachable and safely configured.
#[async_trait]
pub trait FanoutHealth: Send + Sync + 'static {
    /// Whether the server answers within 2 seconds.
    async fn check(&self) -> Result<()>;

    /// Describes server settings that endanger the delivery guarantees (`maxmemory-policy`, missing
    /// persistence), one sentence each.
    async fn warnings(&self) -> Result<Vec<String>>;
}
