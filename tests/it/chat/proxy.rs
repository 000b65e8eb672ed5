//! A TCP proxy in front of a server. While it is down, the server appears to be killed.

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::process::free_port;

pub(super) struct Proxy {
    port: u16,
    server_port: u16,
    /// Accepts connections while the proxy is up.
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(super) async fn start(server_port: u16) -> Self {
        let mut proxy = Self {
            port: free_port(),
            server_port,
            listener: None,
        };
        proxy.resume().await;
        proxy
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Breaks all connections and refuses new ones.
    pub(super) async fn interrupt(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            let _ = listener.await;
        }
    }

    /// Accepts connections again, on the same port.
    pub(super) async fn resume(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let server_port = self.server_port;
        self.listener = Some(tokio::spawn(async move {
            // Dropping the set with this task aborts the connections.
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", server_port)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        }));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
    }
}
