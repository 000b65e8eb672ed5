//! A TCP proxy in front of a Redis that drops the published messages of selected channels, and breaks
//! connections before they receive the reply to selected commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The running proxy. Drop stops it.
pub(crate) struct LossyRedis {
    port: u16,
    dropped: Arc<Mutex<DroppedMessages>>,
    breaks: Arc<Mutex<Breaks>>,
    server: JoinHandle<()>,
}

/// Which connections break.
#[derive(Default)]
struct Breaks {
    /// A connection breaks when a request contains this text.
    at: Option<String>,
    /// Whether only the next connection breaks.
    is_single: bool,
    /// The number of connections broken so far.
    count: usize,
}

impl Breaks {
    /// Whether the connection breaks that sends this request.
    fn breaks_at(&mut self, request: &[u8]) -> bool {
        let text = self.at.as_deref().unwrap_or_default();
        if text.is_empty() || find(request, text.as_bytes()).is_none() {
            return false;
        }
        self.count += 1;
        if self.is_single {
            self.at = None;
        }
        true
    }
}

#[derive(Default)]
struct DroppedMessages {
    /// The channels whose messages are dropped.
    channels: Vec<String>,
    /// The number of messages dropped so far.
    count: usize,
}

impl LossyRedis {
    pub(crate) async fn start(redis_port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let dropped = Arc::new(Mutex::new(DroppedMessages::default()));
        let breaks = Arc::new(Mutex::new(Breaks::default()));
        let shared = (dropped.clone(), breaks.clone());
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (dropped, breaks) = shared.clone();
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", redis_port)).await else {
                        return;
                    };
                    let _ = client.set_nodelay(true);
                    let _ = server.set_nodelay(true);
                    forward(client, server, dropped, breaks).await;
                });
            }
        });
        Self {
            port,
            dropped,
            breaks,
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

    /// Breaks each connection that sends a request with this text, after the server has carried it
    /// out and before the client receives the reply.
    pub(crate) fn break_connections_at(&self, text: &str) {
        let mut breaks = self.breaks.lock();
        breaks.at = Some(text.to_owned());
        breaks.is_single = false;
    }

    /// Like [`LossyRedis::break_connections_at`], but for the first such request only.
    pub(crate) fn break_next_connection_at(&self, text: &str) {
        let mut breaks = self.breaks.lock();
        breaks.at = Some(text.to_owned());
        breaks.is_single = true;
    }

    pub(crate) fn stop_breaking(&self) {
        self.breaks.lock().at = None;
    }

    /// The number of connections broken so far.
    pub(crate) fn broken_count(&self) -> usize {
        self.breaks.lock().count
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

async fn forward(
    client: TcpStream,
    server: TcpStream,
    dropped: Arc<Mutex<DroppedMessages>>,
    breaks: Arc<Mutex<Breaks>>,
) {
    let is_breaking = AtomicBool::new(false);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from_client.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    let bytes = &buffer[..count];
                    if breaks.lock().breaks_at(bytes) {
                        is_breaking.store(true, Ordering::Relaxed);
                    }
                    if to_server.write_all(bytes).await.is_err() {
                        break;
                    }
                }
            }
        }
    };
    let replies = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from_server.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                // The reply shows that the server has carried out the request.
                Ok(_) if is_breaking.load(Ordering::Relaxed) => break,
                Ok(count) => {
                    let bytes = &mut buffer[..count];
                    divert_selected_messages(bytes, &dropped);
                    if to_client.write_all(bytes).await.is_err() {
                        break;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = replies => {}
    }
}

/// Makes the subscriber ignore the messages of the selected channels: in each of them, the last
/// character of the channel's name is replaced. The length stays the same, so the stream stays
/// valid.
fn divert_selected_messages(bytes: &mut [u8], dropped: &Mutex<DroppedMessages>) {
    let mut dropped = dropped.lock();
    let channels = dropped.channels.clone();
    for channel in channels {
        let header = format!("message\r\n${}\r\n{channel}\r\n", channel.len());
        let mut search_start = 0;
        while let Some(index) = find(&bytes[search_start..], header.as_bytes()) {
            let header_end = search_start + index + header.len();
            // The last character of the name precedes CR and LF.
            bytes[header_end - 3] = b'!';
            dropped.count += 1;
            search_start = header_end;
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
