//! A TCP proxy in front of a Redis that drops the published messages of selected channels.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The running proxy. Drop stops it.
pub(crate) struct LossyRedis {
    port: u16,
    dropped: Arc<Mutex<DroppedChannels>>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct DroppedChannels {
    channels: Vec<String>,
    count: usize,
}

impl LossyRedis {
    pub(crate) async fn start(redis: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let dropped = Arc::new(Mutex::new(DroppedChannels::default()));
        let shared = dropped.clone();
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let shared = shared.clone();
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", redis)).await else {
                        return;
                    };
                    let _ = client.set_nodelay(true);
                    let _ = server.set_nodelay(true);
                    forward(client, server, shared).await;
                });
            }
        });
        Self {
            port,
            dropped,
            server,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Drops the messages of this channel from now on.
    pub(crate) fn drop_channel(&self, channel: &str) {
        let mut dropped = self.dropped.lock();
        dropped.channels.push(channel.to_owned());
    }

    /// The number of messages dropped so far.
    pub(crate) fn dropped_count(&self) -> usize {
        self.dropped.lock().count
    }
}

impl Drop for LossyRedis {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn forward(client: TcpStream, server: TcpStream, dropped: Arc<Mutex<DroppedChannels>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = tokio::io::copy(&mut from_client, &mut to_server);
    let replies = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from_server.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let bytes = &mut buffer[..count];
                    drop_selected_messages(bytes, &dropped);
                    if to_client.write_all(bytes).await.is_err() {
                        break;
                    }
                }
            }
        }
    };
    tokio::select! {
        _ = requests => {}
        () = replies => {}
    }
}

/// Replaces the channel of messages to drop by an unknown name of the same length, so that the
/// stream stays valid.
fn drop_selected_messages(bytes: &mut [u8], dropped: &Mutex<DroppedChannels>) {
    let mut dropped = dropped.lock();
    let channels = dropped.channels.clone();
    for channel in channels {
        let head = format!("message\r\n${}\r\n{channel}\r\n", channel.len());
        let mut from = 0;
        while let Some(at) = find(&bytes[from..], head.as_bytes()) {
            let end = from + at + head.len();
            bytes[end - 3] = b'!';
            dropped.count += 1;
            from = end;
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
