//! A TCP connection that a test can cut, silence or slow down.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::process::free_port;

/// What passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Everything, at once.
    Open,
    /// Everything, each piece this much later.
    Slow(Duration),
    /// Nothing, and nobody is told: connections stay.
    Silent,
    /// Nothing: connections are torn down, and new ones at once.
    Cut,
}

/// A proxy on a port of its own; gone when dropped.
pub(crate) struct Link {
    port: u16,
    traffic: watch::Sender<Traffic>,
    server: JoinHandle<()>,
}

impl Link {
    /// In front of a port on which somebody listens, or will.
    pub(crate) async fn to(port: u16) -> Self {
        Self::between(free_port(), port).await
    }

    /// Listens on a port that was chosen before.
    pub(crate) async fn between(own: u16, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", own)).await.expect("bind");
        let (traffic, now) = watch::channel(Traffic::Open);
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

    pub(crate) fn set(&self, traffic: Traffic) {
        self.traffic.send_replace(traffic);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, upstream: SocketAddr, traffic: watch::Receiver<Traffic>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else {
                    // Out of descriptors: accepting again at once would spin.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                connections.spawn(connection(near, upstream, traffic.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(near: TcpStream, upstream: SocketAddr, traffic: watch::Receiver<Traffic>) {
    let open = async {
        let Ok(far) = TcpStream::connect(upstream).await else {
            return;
        };
        let _ = near.set_nodelay(true);
        let _ = far.set_nodelay(true);
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        tokio::select! {
            () = pass(&mut near_in, &mut far_out, traffic.clone()) => {}
            () = pass(&mut far_in, &mut near_out, traffic.clone()) => {}
        }
    };
    let mut until = traffic.clone();
    tokio::select! {
        () = open => {}
        _ = until.wait_for(|now| *now == Traffic::Cut) => {}
    }
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut traffic: watch::Receiver<Traffic>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let flows = traffic.wait_for(|now| *now != Traffic::Silent).await;
        let Ok(flows) = flows.map(|now| *now) else {
            return;
        };
        if let Traffic::Slow(delay) = flows {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
