//! Repeats a fan-out call until it succeeds or its deadline has passed.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::context::Gateway;
use crate::backoff::Backoff;
use crate::fanout::FanoutError;

/// Repeats `call` with exponential backoff until it succeeds. Returns `None` where it has not
/// succeeded before the deadline. `operation` is the name of the call in logs and metrics.
pub(super) async fn retry_until<T, F>(
    gateway: &Gateway,
    operation: &'static str,
    deadline: Instant,
    mut call: impl FnMut() -> F,
) -> Option<T>
where
    F: Future<Output = Result<T, FanoutError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::MAX);
    loop {
        let error = match timeout_at(deadline, call()).await {
            Ok(Ok(response)) => return Some(response),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        gateway.metrics.count_fanout_error(operation);
        let pause = backoff.next_delay();
        if Instant::now() + pause >= deadline {
            tracing::warn!(
                operation,
                error,
                "fan-out did not answer in time; check redis"
            );
            return None;
        }
        sleep(pause).await;
    }
}
