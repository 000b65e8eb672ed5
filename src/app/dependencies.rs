//! Checks the dependencies of a process every second, updates its [`Health`], and logs when one
//! becomes unavailable or recovers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::process_metrics::DEPENDENCY_UP;
use crate::fanout::FanoutHealth;
use crate::health::Health;
use crate::log::Log;

/// Minimum time between two checks of one dependency.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a check counts as failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

type Check = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// A dependency of the process, with the function that checks whether it responds.
pub(super) struct Dependency {
    name: &'static str,
    address: String,
    check: Check,
}

impl Dependency {
    /// Creates a dependency. `name` identifies it in `/health/ready`; `address` is for logs and
    /// must not contain a secret.
    pub(super) fn new<F>(
        name: &'static str,
        address: impl Into<String>,
        check: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self {
            name,
            address: address.into(),
            check: Box::new(move || Box::pin(check())),
        }
    }

    /// Creates the dependency on the log, which [`Log::check`] checks.
    pub(super) fn log(name: &'static str, address: impl Into<String>, log: Arc<dyn Log>) -> Self {
        Self::new(name, address, move || {
            let log = Arc::clone(&log);
            async move { log.check().await.map_err(|error| error.to_string()) }
        })
    }

    /// Creates the dependency on the fan-out, which [`FanoutHealth::check`] checks.
    pub(super) fn fanout(
        name: &'static str,
        address: impl Into<String>,
        fanout: Arc<dyn FanoutHealth>,
    ) -> Self {
        Self::new(name, address, move || {
            let fanout = Arc::clone(&fanout);
            async move { fanout.check().await.map_err(|error| error.to_string()) }
        })
    }

    /// Checks this dependency until `stop` is cancelled, never twice at the same time.
    async fn watch(self, health: &Health, stop: &CancellationToken) {
        let up_gauge = DEPENDENCY_UP.gauge(&[self.name]);
        up_gauge.set(0.0);
        let mut unavailable_since = None;
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let check = tokio::time::timeout(CHECK_TIMEOUT, (self.check)());
            let Some(checked) = stop.run_until_cancelled(check).await else {
                return;
            };
            let result = checked
                .unwrap_or_else(|_| Err(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())));
            let (name, address) = (self.name, &self.address);
            match (&result, unavailable_since) {
                (Err(reason), None) => {
                    unavailable_since = Some(Instant::now());
                    tracing::warn!("waiting for {name} at {address}: {reason}");
                }
                (Ok(()), Some(since)) => {
                    let seconds = Instant::now().duration_since(since).as_secs();
                    unavailable_since = None;
                    tracing::info!("{name} recovered after {seconds} s");
                }
                _ => {}
            }
            up_gauge.set(if result.is_ok() { 1.0 } else { 0.0 });
            health.set(name, result);
        }
    }
}

/// Checks all dependencies until `stop` is cancelled.
pub(super) async fn watch(
    dependencies: Vec<Dependency>,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    let watches = dependencies
        .into_iter()
        .map(|dependency| dependency.watch(&health, &stop));
    join_all(watches).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::health::NotReady;

    #[tokio::test(start_paused = true)]
    async fn hanging_dependency_is_reported_alone_and_its_recovery_is_noticed() {
        let health = Arc::new(Health::new(&["kafka", "redis"]));
        let stop = CancellationToken::new();
        let is_hanging = Arc::new(AtomicBool::new(true));
        let running_checks = Arc::new(AtomicUsize::new(0));
        let kafka_hangs = Arc::clone(&is_hanging);
        let kafka = Dependency::new("kafka", "k:9092", move || {
            let is_hanging = Arc::clone(&kafka_hangs);
            let running_checks = Arc::clone(&running_checks);
            async move {
                assert_eq!(
                    running_checks.fetch_add(1, Ordering::SeqCst),
                    0,
                    "checks overlap"
                );
                let _running = RunningCheck(running_checks);
                if is_hanging.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        });
        let redis = Dependency::new("redis", "r:6379", || async { Ok(()) });
        let task = tokio::spawn(watch(vec![kafka, redis], Arc::clone(&health), stop.clone()));
        tokio::time::sleep(Duration::from_secs(4)).await;
        let expected = NotReady::Dependency("kafka", "no answer within 2 s".into());
        assert_eq!(health.ready(), Err(expected));
        is_hanging.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(health.ready(), Ok(()));
        stop.cancel();
        task.await.unwrap();
    }

    /// A check in progress. Dropping it decrements the number of running checks.
    struct RunningCheck(Arc<AtomicUsize>);

    impl Drop for RunningCheck {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
