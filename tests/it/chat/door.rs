//! A door in front of a server: shut, it is as if the server had been killed.

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::process::free_port;

pub(super) struct Door {
    port: u16,
    server: u16,
    open: Option<JoinHandle<()>>,
}

impl Door {
    pub(super) async fn open(server: u16) -> Self {
        let mut door = Self {
            port: free_port(),
            server,
            open: None,
        };
        door.reopen().await;
        door
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Every connection breaks, and new ones are refused.
    pub(super) async fn shut(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
            let _ = open.await;
        }
    }

    pub(super) async fn reopen(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let server = self.server;
        self.open = Some(tokio::spawn(async move {
            // Aborted with this task, its tasks are too.
            let mut connections = JoinSet::new();
            while let Ok((mut outside, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut inside) = TcpStream::connect(("127.0.0.1", server)).await {
                        let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                    }
                });
            }
        }));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
        }
    }
}
