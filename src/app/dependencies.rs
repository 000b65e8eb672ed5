//! Watches what a role depends on: asks every second, keeps [`Health`] true, and says once when
//! something goes away or comes back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::process_metrics::DEPENDENCY_UP;
use crate::fanout::FanoutHealth;
use crate::health::Health;
use crate::log::Log;

const EVERY: Duration = Duration::from_secs(1);
/// A check that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(2);

type Check = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Something that has to answer.
pub(super) struct Dependency {
    name: &'static str,
    place: String,
    check: Check,
}

impl Dependency {
    /// `name` as `/health/ready` says it; `place` is for logs and holds no secret.
    pub(super) fn new<F>(
        name: &'static str,
        place: impl Into<String>,
        check: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self {
            name,
            place: place.into(),
            check: Box::new(move || Box::pin(check())),
        }
    }

    /// The log.
    pub(super) fn log(name: &'static str, place: impl Into<String>, log: Arc<dyn Log>) -> Self {
        Self::new(name, place, move || {
            let log = Arc::clone(&log);
            async move { log.check().await.map_err(|error| error.to_string()) }
        })
    }

    /// The fan-out.
    pub(super) fn fanout(
        name: &'static str,
        place: impl Into<String>,
        fanout: Arc<dyn FanoutHealth>,
    ) -> Self {
        Self::new(name, place, move || {
            let fanout = Arc::clone(&fanout);
            async move { fanout.check().await.map_err(|error| error.to_string()) }
        })
    }

    /// Until `stop`: checks one after the other, never two at once.
    async fn watch(self, health: &Health, stop: &CancellationToken) {
        let up = DEPENDENCY_UP.gauge(&[self.name]);
        up.set(0.0);
        let mut away_since = None;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let checked = tokio::time::timeout(LONGEST, (self.check)());
            let Some(checked) = stop.run_until_cancelled(checked).await else {
                return;
            };
            let result = checked
                .unwrap_or_else(|_| Err(format!("no answer within {} s", LONGEST.as_secs())));
            let (name, place) = (self.name, &self.place);
            match (&result, away_since) {
                (Err(reason), None) => {
                    away_since = Some(Instant::now());
                    tracing::warn!("waiting for {name} at {place}: {reason}");
                }
                (Ok(()), Some(since)) => {
                    let seconds = Instant::now().duration_since(since).as_secs();
                    away_since = None;
                    tracing::info!("{name} is back after {seconds} s");
                }
                _ => {}
            }
            up.set(if result.is_ok() { 1.0 } else { 0.0 });
            health.set(name, result);
        }
    }
}

/// Watches all of them until `stop`.
pub(super) async fn watch(
    dependencies: Vec<Dependency>,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    let watched = dependencies
        .into_iter()
        .map(|dependency| dependency.watch(&health, &stop));
    join_all(watched).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;
    use crate::health::NotReady;

    #[tokio::test(start_paused = true)]
    async fn a_hanging_dependency_does_not_hide_another_one_and_its_return_is_seen() {
        let health = Arc::new(Health::new(&["kafka", "redis"]));
        let stop = CancellationToken::new();
        let hangs = Arc::new(AtomicBool::new(true));
        let at_once = Arc::new(AtomicUsize::new(0));
        let flag = Arc::clone(&hangs);
        let kafka = Dependency::new("kafka", "k:9092", move || {
            let (flag, at_once) = (Arc::clone(&flag), Arc::clone(&at_once));
            async move {
                assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "checks overlap");
                let _count = scopeguard(at_once);
                if flag.load(Ordering::SeqCst) {
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
        hangs.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(health.ready(), Ok(()));
        stop.cancel();
        task.await.unwrap();
    }

    struct Count(Arc<AtomicUsize>);

    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn scopeguard(count: Arc<AtomicUsize>) -> Count {
        Count(count)
    }
}
