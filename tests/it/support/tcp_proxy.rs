//! A TCP proxy that a test can make delay, stall or disconnect its connections.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::process::free_port;

/// What the proxy does with traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyMode {
    /// Forwards everything at once.
    Forward,
    /// Forwards each chunk after this delay.
    Delay(Duration),
    /// Forwards nothing; connections stay open.
    Stall,
    /// Closes all connections, and new ones at once.
    Disconnect,
}

/// A proxy on a port of its own. Drop stops it.
pub(crate) struct TcpProxy {
    port: u16,
    traffic: watch::Sender<ProxyMode>,
    server: JoinHandle<()>,
}

impl TcpProxy {
    /// Starts a proxy in front of a port, which may get its listener later.
    pub(crate) async fn start(port: u16) -> Self {
        Self::start_on(free_port(), port).await
    }

    /// Starts a proxy that listens on a given port.
    pub(crate) async fn start_on(own: u16, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", own)).await.expect("bind");
        let (traffic, now) = watch::channel(ProxyMode::Forward);
        let upstream = SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            port: own,
            traffic,
            server: tokio::spawn(serve(listener, upstream, now)),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set_mode(&self, traffic: ProxyMode) {
        self.traffic.send_replace(traffic);
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, upstream: SocketAddr, traffic: watch::Receiver<ProxyMode>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else {
                    // Without descriptors, accepting again at once would spin.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                connections.spawn(connection(client, upstream, traffic.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, traffic: watch::Receiver<ProxyMode>) {
    let open = async {
        let Ok(server) = TcpStream::connect(upstream).await else {
            return;
        };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let (mut client_in, mut client_out) = client.into_split();
        let (mut server_in, mut server_out) = server.into_split();
        tokio::select! {
            () = forward(&mut client_in, &mut server_out, traffic.clone()) => {}
            () = forward(&mut server_in, &mut client_out, traffic.clone()) => {}
        }
    };
    let mut until = traffic.clone();
    tokio::select! {
        () = open => {}
        _ = until.wait_for(|now| *now == ProxyMode::Disconnect) => {}
    }
}

async fn forward(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut traffic: watch::Receiver<ProxyMode>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let flows = traffic.wait_for(|now| *now != ProxyMode::Stall).await;
        let Ok(flows) = flows.map(|now| *now) else {
            return;
        };
        if let ProxyMode::Delay(delay) = flows {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
