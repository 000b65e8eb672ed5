//! A network between a client and a server, that a test can cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Passes connections on; gone when dropped.
pub(crate) struct Wire {
    port: u16,
    cuts: watch::Sender<u64>,
    away: Arc<AtomicBool>,
    server: JoinHandle<()>,
}

impl Wire {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let own = listener.local_addr().expect("an address").port();
        let (cuts, seen) = watch::channel(0);
        let away = Arc::new(AtomicBool::new(false));
        let refuses = away.clone();
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                if refuses.load(Ordering::Relaxed) {
                    continue;
                }
                let mut cut = seen.clone();
                cut.mark_unchanged();
                connections.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self {
            port: own,
            cuts,
            away,
            server,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Ends every connection, and lets no new one through until [`Wire::mend`].
    pub(crate) fn cut(&self) {
        self.away.store(true, Ordering::Relaxed);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub(crate) fn mend(&self) {
        self.away.store(false, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.server.abort();
    }
}
