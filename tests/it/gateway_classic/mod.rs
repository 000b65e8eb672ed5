//! The gateway on the classic protocol, over real sockets, with a fake log and a fake fan-out whose
//! faults the tests control.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chatmesh::config::settings::{AuthMode, ConnectionLimits, GatewaySettings, TokenEndpoint};
use chatmesh::gateway::{Dependencies, GatewayError, serve};
use chatmesh::health::Health;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;

use self::fakes::{FakeFanout, FakeLog};

pub(crate) use crate::settings::gateway_settings as settings;

mod access;
mod answers;
pub(crate) mod fakes;
mod idle_connections;
mod limits;
mod messages;
mod request_heads;
mod signed_tokens;

/// Upper bound of every wait; only a failure reaches it.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

struct Gateway {
    addr: SocketAddr,
    log: Arc<FakeLog>,
    fanout: Arc<FakeFanout>,
    health: Arc<Health>,
    drain: CancellationToken,
    served: JoinHandle<Result<(), GatewayError>>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn start(settings: GatewaySettings) -> Gateway {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (log, fanout) = (FakeLog::new(), FakeFanout::new());
    let drain = CancellationToken::new();
    let health = Arc::new(Health::new(&[]));
    let dependencies = Dependencies {
        log: log.clone(),
        fanout: fanout.clone(),
        settings,
        health: health.clone(),
        dead_letters: None,
        admin: Arc::new(|_, _| None),
    };
    let served = tokio::spawn(serve(listener, dependencies, drain.clone()));
    Gateway {
        addr,
        log,
        fanout,
        health,
        drain,
        served,
    }
}

struct Client {
    stream: WebSocketStream<TcpStream>,
    correlation_id: String,
}

impl Gateway {
    /// Sends a request and returns the status, the head in lower case, and the body of the
    /// response.
    async fn http(&self, head: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let host = if head.contains("Host:") {
            String::new()
        } else {
            format!("Host: {}\r\n", self.addr)
        };
        let request = format!("{head}\r\n{host}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(TEST_TIMEOUT, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    /// The status and body of a refused upgrade, or 101 and an empty body.
    async fn try_upgrade(&self, query: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
        match self.upgrade(query, headers).await {
            Ok(_) => (101, String::new()),
            Err(refusal) => refusal,
        }
    }

    async fn upgrade(
        &self,
        query: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Client, (u16, String)> {
        let url = format!("ws://{}/ws{query}", self.addr);
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.addr).await.unwrap();
        match timeout(TEST_TIMEOUT, client_async(request, stream))
            .await
            .unwrap()
        {
            Ok((stream, response)) => Ok(Client {
                stream,
                correlation_id: response.headers()["x-correlation-id"]
                    .to_str()
                    .unwrap()
                    .to_owned(),
            }),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((response.status().as_u16(), String::from_utf8(body).unwrap()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Connects and waits until the mailbox was read: from then on, published frames arrive.
    async fn connect(&self, name: &str) -> Client {
        let mut reads = self.fanout.reads.subscribe();
        let reads_before = *reads.borrow_and_update();
        let query = format!("?token=t&userid={name}");
        loop {
            match self.upgrade(&query, &[]).await {
                Ok(mut client) => {
                    timeout(TEST_TIMEOUT, reads.wait_for(|n| *n > reads_before))
                        .await
                        .unwrap()
                        .unwrap();
                    // The gateway applies the result of the read after the fake has counted it. The
                    // reply to an invalid frame shows that the result was applied.
                    client.send_text("?").await;
                    assert_eq!(client.next_json().await["code"], "invalid_message");
                    return client;
                }
                // The gateway refuses clients until its subscription is open.
                Err((503, _)) => tokio::task::yield_now().await,
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
    }

    async fn health(&self) -> Value {
        let (status, _, body) = self.http("GET /health HTTP/1.1").await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    }
}

impl Client {
    async fn send_text(&mut self, text: &str) {
        self.stream.send(Message::text(text)).await.unwrap();
    }

    async fn send_message(&mut self, content: &str) {
        let frame = serde_json::json!({"type": "message", "content": content});
        self.send_text(&frame.to_string()).await;
    }

    async fn next(&mut self) -> Message {
        loop {
            let message = timeout(TEST_TIMEOUT, self.stream.next()).await;
            match message.expect("no frame arrived").unwrap().unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    async fn next_json(&mut self) -> Value {
        serde_json::from_str(self.next().await.to_text().unwrap()).unwrap()
    }

    /// The code of the close frame; other frames before it are skipped.
    async fn close_code(&mut self) -> u16 {
        loop {
            if let Message::Close(frame) = self.next().await {
                return frame.unwrap().code.into();
            }
        }
    }

    /// Asserts that no other frame was sent: the next one is the reply to an invalid frame.
    async fn expect_no_frame(&mut self) {
        self.send_text("?").await;
        let frame = self.next_json().await;
        assert_eq!(frame["code"], "invalid_message", "{frame}");
    }
}
