//! A TCP proxy that a test can make delay, stall or disconnect its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::process::free_port;

/// How the proxy treats its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyMode {
    /// Forwards everything at once.
    Forward,
    /// Forwards each chunk after this delay.
    Delay(Duration),
    /// Forwards nothing; connections stay open.
    Stall,
    /// Closes all connections, and each new one as soon as it is accepted.
    Disconnect,
}

/// A proxy on a port of its own. Drop stops it.
pub(crate) struct TcpProxy {
    port: u16,
    control: Control,
    server: JoinHandle<()>,
}

/// What the proxy shares with its connections.
#[derive(Clone)]
struct Control {
    mode: watch::Sender<ProxyMode>,
    /// When a client sends this text, the proxy stalls before it forwards it.
    stall_at: Arc<Mutex<Option<&'static str>>>,
}

impl Control {
    /// Stalls the proxy if a client has sent the text at which it should.
    fn inspect(&self, sent: &[u8]) {
        let mut stall_at = self.stall_at.lock();
        let is_match = |text: &str| sent.windows(text.len()).any(|part| part == text.as_bytes());
        if stall_at.is_some_and(is_match) {
            *stall_at = None;
            self.mode.send_replace(ProxyMode::Stall);
        }
    }
}

impl TcpProxy {
    /// Starts a proxy in front of a port. The server may start to listen later.
    pub(crate) async fn start(upstream_port: u16) -> Self {
        Self::start_on(free_port(), upstream_port).await
    }

    /// Starts a proxy that listens on `port`.
    pub(crate) async fn start_on(port: u16, upstream_port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("bind");
        let control = Control {
            mode: watch::Sender::new(ProxyMode::Forward),
            stall_at: Arc::default(),
        };
        let upstream = SocketAddr::from(([127, 0, 0, 1], upstream_port));
        Self {
            port,
            control: control.clone(),
            server: tokio::spawn(serve(listener, upstream, control)),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set_mode(&self, mode: ProxyMode) {
        self.control.mode.send_replace(mode);
    }

    /// Waits until a client sends this text, and stalls the proxy before the text is forwarded.
    pub(crate) async fn stall_at(&self, text: &'static str) {
        *self.control.stall_at.lock() = Some(text);
        let mut mode = self.control.mode.subscribe();
        let stalled = mode.wait_for(|mode| *mode == ProxyMode::Stall).await;
        stalled.expect("the proxy runs");
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, upstream: SocketAddr, control: Control) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else {
                    // While no file descriptor is free, accepting at once would be a busy loop.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                connections.spawn(connection(client, upstream, control.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, upstream: SocketAddr, control: Control) {
    let forwarding = async {
        let Ok(server) = TcpStream::connect(upstream).await else {
            return;
        };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let (mut client_in, mut client_out) = client.into_split();
        let (mut server_in, mut server_out) = server.into_split();
        tokio::select! {
            () = forward(&mut client_in, &mut server_out, &control, Direction::ToServer) => {}
            () = forward(&mut server_in, &mut client_out, &control, Direction::ToClient) => {}
        }
    };
    let mut mode_changes = control.mode.subscribe();
    tokio::select! {
        () = forwarding => {}
        _ = mode_changes.wait_for(|mode| *mode == ProxyMode::Disconnect) => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

async fn forward(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    control: &Control,
    direction: Direction,
) {
    let mut mode = control.mode.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        if direction == Direction::ToServer {
            control.inspect(&buffer[..count]);
        }
        let current = mode.wait_for(|mode| *mode != ProxyMode::Stall).await;
        let Ok(current) = current.map(|mode| *mode) else {
            return;
        };
        if let ProxyMode::Delay(delay) = current {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
