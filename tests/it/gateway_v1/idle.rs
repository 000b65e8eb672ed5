//! What a connection costs that does nothing, or does nothing any more.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::{TEST_TIMEOUT, wait_until};

/// Resident memory of a process in bytes.
fn resident(process: &ChatmeshProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() << 10
}

/// A client of few bytes that answers no ping, and says which frames it writes.
struct Raw {
    stream: TcpStream,
    /// Not looked at yet.
    seen: Vec<u8>,
}

/// The ping of a gateway.
const PING: &[u8] = &[0x89, 0];

impl Raw {
    async fn open(port: u16, user: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!(
            "GET /ws?userid={user}&token=t HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
             Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: chatmesh.v1\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Self {
            stream,
            seen: Vec::new(),
        };
        raw.until(b"\"welcome\"").await;
        raw
    }

    /// Reads until these bytes have come.
    async fn until(&mut self, wanted: &[u8]) {
        let found = async {
            loop {
                let seen = self.seen.windows(wanted.len());
                if let Some(at) = seen.into_iter().position(|it| it == wanted) {
                    self.seen.drain(..at + wanted.len());
                    return;
                }
                let length = self.stream.read_buf(&mut self.seen).await.unwrap();
                assert!(length > 0, "closed");
            }
        };
        let found = timeout(TEST_TIMEOUT, found).await;
        found.unwrap_or_else(|_| panic!("no {}", String::from_utf8_lossy(wanted)));
    }

    /// Writes a frame that is masked with zeros: by its first byte and its content.
    async fn frame(&mut self, first: u8, content: &str) {
        let length = u16::try_from(content.len()).unwrap();
        let mut bytes = vec![first, 0x80 | 0x7e];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(content.as_bytes());
        self.stream.write_all(&bytes).await.unwrap();
    }
}

async fn connect(port: u16, name: &str, count: usize) -> Vec<Raw> {
    let mut clients = Vec::new();
    for n in 0..count {
        clients.push(Raw::open(port, &format!("{name}{n}")).await);
    }
    clients
}

/// Some are connected before, so that what the process needs once does not count.
#[tokio::test]
async fn idle_connections_cost_little_memory() {
    const BOUND: usize = 9 << 10;
    let process = ProcessSpec::ephemeral()
        .env("AUTH_MODE", "open")
        .start()
        .await;
    let _first = connect(process.port(), "first", 300).await;
    let before = resident(&process);
    let more = connect(process.port(), "more", 1000).await;
    let each = resident(&process).saturating_sub(before) / more.len();
    assert!(each < BOUND, "{each} bytes a connection");
}

/// Those who had long frames and are silent leave room for the long frames of others.
#[tokio::test]
async fn silent_connections_give_back_what_their_long_frames_needed() {
    const BOUND: usize = 24 << 10;
    let process = ProcessSpec::ephemeral()
        .env("AUTH_MODE", "open")
        .env("PING_INTERVAL_MS", "100")
        .env("PING_TIMEOUT_MS", "600000")
        .start()
        .await;
    let long = "x".repeat(60_000);
    let mut talked = Vec::new();
    let mut before = 0;
    for round in 0..2 {
        before = resident(&process);
        for mut client in connect(process.port(), &format!("round{round}-"), 150).await {
            // Nothing is kept of what is no message.
            client.frame(0x81, &long).await;
            client.until(b"invalid_message").await;
            talked.push(client);
        }
        // Each is pinged when it has been silent, and that is when it gives back.
        for client in &mut talked[round * 150..] {
            client.until(PING).await;
        }
    }
    // The allocator keeps what was given back for some seconds before it tells the kernel.
    wait_until("their memory is given back", TEST_TIMEOUT, || async {
        resident(&process).saturating_sub(before) / 150 < BOUND
    })
    .await;
}

#[tokio::test]
async fn nothing_is_lost_where_buffers_are_given_back_between_and_amid_frames() {
    let gateway = start(GatewaySettings {
        ping_interval: Duration::from_millis(5),
        ping_timeout: TEST_TIMEOUT,
        ..settings()
    })
    .await;
    // The feed is opened while the first clients come.
    gateway.device("first").await;
    let mut client = Raw::open(gateway.port, "alice").await;
    let pause = Duration::from_millis(12);
    for n in 0..20 {
        let content = "y".repeat(if n % 2 == 0 { 3000 } else { 10 });
        let text = json!({"type": "message", "id": format!("a{n}"), "content": content});
        let text = text.to_string();
        let (head, tail) = text.split_at(n * text.len() / 20);
        // In two frames, with a ping between them, and a pause wherever buffers could go.
        client.frame(0x01, head).await;
        tokio::time::sleep(pause).await;
        client.frame(0x89, "are you there").await;
        tokio::time::sleep(pause).await;
        client.frame(0x80, tail).await;
        client.until(format!("\"id\":\"a{n}\"").as_bytes()).await;
        tokio::time::sleep(pause).await;
    }
    let records = timeout(TEST_TIMEOUT, gateway.log.records(20))
        .await
        .unwrap();
    assert_eq!(records.len(), 20);
}
