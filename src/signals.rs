//! Handles SIGTERM and SIGINT: the first signal starts a drain, the second ends the process at
//! once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Receives the signals of the process from [`Signals::new`] on.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers. Call it early, so that no signal kills a process that is starting.
    ///
    /// # Errors
    /// The operating system refuses the handlers.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and returns its name and the exit code by the shells' convention.
    pub(crate) async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 143),
            _ = self.interrupt.recv() => ("SIGINT", 130),
        }
    }

    /// Cancels `drain` at the first signal and ends the process at the second. Never returns.
    pub async fn watch(mut self, drain: CancellationToken) {
        let (name, _) = self.next().await;
        tracing::info!(
            signal = name,
            "draining; a second signal ends the process at once"
        );
        drain.cancel();
        let (name, code) = self.next().await;
        tracing::warn!(
            signal = name,
            "second signal: ending at once without draining"
        );
        std::process::exit(code.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_signal_starts_a_drain_and_does_not_end_the_process() {
        let drain = CancellationToken::new();
        let signals = tokio::spawn(Signals::new().unwrap().watch(drain.clone()));
        let sent = tokio::process::Command::new("sh")
            .args(["-c", "kill -TERM $PPID"])
            .status()
            .await
            .unwrap();
        assert!(sent.success());
        drain.cancelled().await;
        signals.abort();
    }
}
