//! The memory of idle connections, and of connections whose buffers were released.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::{TEST_TIMEOUT, wait_until};

/// Resident memory of a process in bytes.
fn resident_bytes(process: &ChatmeshProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() << 10
}

/// A client with little memory that writes frames byte by byte and answers no ping.
struct RawClient {
    stream: TcpStream,
    /// Bytes that were read from the stream and not consumed yet.
    unread: Vec<u8>,
}

/// A ping frame without payload, as the gateway sends it.
const PING: &[u8] = &[0x89, 0];

impl RawClient {
    async fn open(port: u16, user: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!(
            "GET /ws?userid={user}&token=t HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
             Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: chatmesh.v1\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut client = Self {
            stream,
            unread: Vec::new(),
        };
        client.read_until(b"\"welcome\"").await;
        client
    }

    /// Reads until these bytes were received.
    async fn read_until(&mut self, wanted: &[u8]) {
        let found = async {
            loop {
                let mut windows = self.unread.windows(wanted.len());
                if let Some(start) = windows.position(|window| window == wanted) {
                    self.unread.drain(..start + wanted.len());
                    return;
                }
                let length = self.stream.read_buf(&mut self.unread).await.unwrap();
                assert!(length > 0, "the connection was closed");
            }
        };
        let found = timeout(TEST_TIMEOUT, found).await;
        found.unwrap_or_else(|_| panic!("not received: {}", String::from_utf8_lossy(wanted)));
    }

    /// Writes a frame that is masked with zeros. `first_byte` holds its opcode and the FIN bit.
    async fn write_frame(&mut self, first_byte: u8, content: &str) {
        let length = u16::try_from(content.len()).unwrap();
        let mut bytes = vec![first_byte, 0x80 | 0x7e];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(content.as_bytes());
        self.stream.write_all(&bytes).await.unwrap();
    }
}

async fn connect(port: u16, name: &str, count: usize) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for n in 0..count {
        clients.push(RawClient::open(port, &format!("{name}{n}")).await);
    }
    clients
}

#[tokio::test]
async fn idle_connections_cost_little_memory() {
    const BOUND: usize = 9 << 10;
    let process = ProcessSpec::ephemeral()
        .env("AUTH_MODE", "open")
        .start()
        .await;
    // The first connections allocate memory that the process needs only once.
    let _first = connect(process.port(), "first", 300).await;
    let bytes_before = resident_bytes(&process);
    let connections = connect(process.port(), "more", 1000).await;
    let bytes_each = resident_bytes(&process).saturating_sub(bytes_before) / connections.len();
    assert!(bytes_each < BOUND, "{bytes_each} bytes a connection");
}

#[tokio::test]
async fn silent_connections_release_the_buffers_of_long_frames() {
    const BOUND: usize = 24 << 10;
    let process = ProcessSpec::ephemeral()
        .env("AUTH_MODE", "open")
        .env("PING_INTERVAL_MS", "100")
        .env("PING_TIMEOUT_MS", "600000")
        .start()
        .await;
    let long = "x".repeat(60_000);
    let mut clients = Vec::new();
    let mut bytes_before = 0;
    for round in 0..2 {
        bytes_before = resident_bytes(&process);
        for mut client in connect(process.port(), &format!("round{round}-"), 150).await {
            // An invalid message fills the buffers, and the gateway stores nothing else.
            client.write_frame(0x81, &long).await;
            client.read_until(b"invalid_message").await;
            clients.push(client);
        }
        // The gateway releases the buffers of a silent client when it sends a ping.
        for client in &mut clients[round * 150..] {
            client.read_until(PING).await;
        }
    }
    // The allocator returns freed memory to the kernel only after some seconds.
    wait_until("the memory is released", TEST_TIMEOUT, || async {
        resident_bytes(&process).saturating_sub(bytes_before) / 150 < BOUND
    })
    .await;
}

#[tokio::test]
async fn no_message_is_lost_when_buffers_are_released_between_and_within_frames() {
    let gateway = start(GatewaySettings {
        ping_interval: Duration::from_millis(5),
        ping_timeout: TEST_TIMEOUT,
        ..settings()
    })
    .await;
    // The gateway refuses connections until its feed is open.
    gateway.device("first").await;
    let mut client = RawClient::open(gateway.port, "alice").await;
    let pause = Duration::from_millis(12);
    for n in 0..20 {
        let content = "y".repeat(if n % 2 == 0 { 3000 } else { 10 });
        let text = json!({"type": "message", "id": format!("a{n}"), "content": content});
        let text = text.to_string();
        let (head, tail) = text.split_at(n * text.len() / 20);
        // Sends two fragments with a ping between them, and pauses wherever the gateway could
        // release buffers.
        client.write_frame(0x01, head).await;
        tokio::time::sleep(pause).await;
        client.write_frame(0x89, "are you there").await;
        tokio::time::sleep(pause).await;
        client.write_frame(0x80, tail).await;
        client
            .read_until(format!("\"id\":\"a{n}\"").as_bytes())
            .await;
        tokio::time::sleep(pause).await;
    }
    let records = timeout(TEST_TIMEOUT, gateway.log.records(20))
        .await
        .unwrap();
    assert_eq!(records.len(), 20);
}
