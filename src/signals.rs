//! SIGTERM and SIGINT: the first asks for a drain, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The process's signals, caught from [`Signals::new`] on.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches the signals; call it early, so that none kills a process that is starting.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal: its name and the exit code that shells give it.
    pub(crate) async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 143),
            _ = self.interrupt.recv() => ("SIGINT", 130),
        }
    }

    /// Cancels `drain` at the first signal and ends the process at the second. Never returns;
    /// aborting it loses nothing.
    pub async fn watch(mut self, drain: CancellationToken) {
        let (name, _) = self.next().await;
        tracing::info!("{name}: draining; a second signal ends the process at once");
        drain.cancel();
        let (name, code) = self.next().await;
        tracing::warn!("{name} while draining: ending at once");
        std::process::exit(code.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_signal_asks_for_a_drain_and_does_not_end_the_process() {
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
