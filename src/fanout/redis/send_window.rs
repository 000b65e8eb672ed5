//! Lets the appends of all answers be sent together under load, so that the client library and
//! Redis handle many of them with one system call.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Duration of a window. An append waits for at most this time.
const WINDOW: Duration = Duration::from_millis(4);

/// Number of appends in one window that are sent at once. Below this rate (1,000 a second) an append
/// never waits.
const IMMEDIATE_APPENDS: usize = 4;

/// Divides the time into windows. The first appends of a window are sent at once, and the others
/// together at its end. A window begins with the first append after the previous one.
#[derive(Debug, Default)]
pub(super) struct SendWindow {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Number of appends since the window began; `None` while no window is open.
    appends: Mutex<Option<usize>>,
    closed: Notify,
}

impl SendWindow {
    /// Waits until the caller may send an append.
    pub(super) async fn wait(&self) {
        let closed = self.shared.closed.notified();
        {
            let mut appends = self.shared.appends.lock();
            match &mut *appends {
                Some(count) if *count >= IMMEDIATE_APPENDS => *count += 1,
                Some(count) => {
                    *count += 1;
                    return;
                }
                None => {
                    *appends = Some(1);
                    tokio::spawn(Shared::close_after_window(Arc::clone(&self.shared)));
                    return;
                }
            }
        }
        // `notified` was called before the count was read, so a window that closes in between wakes
        // it.
        closed.await;
    }
}

impl Shared {
    /// Closes the window at its end. As long as appends wait, the next window follows without a
    /// gap.
    async fn close_after_window(self: Arc<Self>) {
        loop {
            tokio::time::sleep(WINDOW).await;
            let has_waiting = {
                let mut appends = self.appends.lock();
                let has_waiting = appends.is_some_and(|count| count > IMMEDIATE_APPENDS);
                // Under load all appends of the next window wait for its end.
                *appends = has_waiting.then_some(IMMEDIATE_APPENDS);
                has_waiting
            };
            self.closed.notify_waiters();
            if !has_waiting {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn few_appends_do_not_wait() {
        let window = SendWindow::default();
        let start = Instant::now();
        for _ in 0..100 {
            window.wait().await;
            tokio::time::sleep(WINDOW).await;
        }
        assert_eq!(start.elapsed(), WINDOW * 100);
    }

    #[tokio::test(start_paused = true)]
    async fn many_appends_wait_for_the_end_of_the_window() {
        let window = SendWindow::default();
        let start = Instant::now();
        let waits = (0..100).map(|_| async {
            window.wait().await;
            start.elapsed()
        });
        let waited = join_all(waits).await;
        let (immediate, late) = waited.split_at(IMMEDIATE_APPENDS);
        assert!(immediate.iter().all(Duration::is_zero), "{immediate:?}");
        // A timer has a resolution of one millisecond.
        let most = WINDOW + Duration::from_millis(1);
        assert!(late.iter().all(|time| (WINDOW..=most).contains(time)));
    }
}
