//! A client of the classic protocol. It behaves like clients that were written for the original
//! system.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::TEST_TIMEOUT;

/// The response that refused an upgrade. The status is 0 if no server listened or answered.
#[derive(Debug)]
pub(crate) struct UpgradeRefused {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// The result of one read from a socket.
#[derive(Debug)]
pub(crate) enum ClientEvent {
    Frame(Value),
    /// The connection ended, with the close code if a close frame arrived.
    Closed(Option<u16>),
    /// Nothing arrived in time.
    TimedOut,
}

/// A connected classic client.
#[derive(Debug)]
pub(crate) struct ClassicClient {
    socket: WebSocketStream<TcpStream>,
    pub(crate) user: String,
    /// The header `X-Correlation-ID` of the response to the upgrade.
    pub(crate) correlation_id: Option<String>,
}

impl ClassicClient {
    /// Connects with an arbitrary token, to a gateway with `AUTH_MODE=open`.
    pub(crate) async fn open(port: u16, user: &str) -> Self {
        Self::connect(port, "any-token", user)
            .await
            .unwrap_or_else(|refused| panic!("{user} was refused: {refused:?}"))
    }

    pub(crate) async fn connect(
        port: u16,
        token: &str,
        user: &str,
    ) -> Result<Self, UpgradeRefused> {
        Self::connect_with(port, &format!("/ws?token={token}&userid={user}"), &[], user).await
    }

    /// Connects with this path and these headers.
    pub(crate) async fn connect_with(
        port: u16,
        path: &str,
        headers: &[(&'static str, &str)],
        user: &str,
    ) -> Result<Self, UpgradeRefused> {
        let refused = |error: &dyn std::fmt::Display| UpgradeRefused {
            status: 0,
            headers: Vec::new(),
            body: error.to_string(),
        };
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .map_err(|e| refused(&e))?;
        stream.set_nodelay(true).expect("a socket option");
        let mut request = format!("ws://127.0.0.1:{port}{path}")
            .into_client_request()
            .expect("a request");
        for (name, value) in headers {
            request
                .headers_mut()
                .insert(*name, value.parse().expect("a header's value"));
        }
        match timeout(TEST_TIMEOUT, client_async(request, stream)).await {
            Ok(Ok((socket, response))) => Ok(Self {
                socket,
                user: user.to_owned(),
                correlation_id: response
                    .headers()
                    .get("x-correlation-id")
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned),
            }),
            Ok(Err(tungstenite::Error::Http(response))) => Err(UpgradeRefused {
                status: response.status().as_u16(),
                headers: response
                    .headers()
                    .iter()
                    .map(|(name, value)| {
                        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                        (name.to_string(), value)
                    })
                    .collect(),
                body: String::from_utf8_lossy(response.body().as_deref().unwrap_or_default())
                    .into_owned(),
            }),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(refused(&"the upgrade was not answered")),
        }
    }

    /// Sends a message with exactly the fields that clients of the original system send.
    pub(crate) async fn send_message(&mut self, content: &str) {
        let frame = json!({"type": "message", "content": content, "userid": self.user});
        self.send_text(&frame.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    pub(crate) async fn send_binary(&mut self, bytes: &[u8]) {
        self.send(Message::binary(bytes.to_vec())).await;
    }

    /// Sends a text frame that is not valid UTF-8.
    pub(crate) async fn send_invalid_utf8(&mut self) {
        let bytes = vec![b'{', 0xff, 0xfe];
        let frame = Frame::message(bytes, OpCode::Data(Data::Text), true);
        self.send(Message::Frame(frame)).await;
    }

    /// Sends a frame. Ignores errors, because the next read reports a closed socket.
    async fn send(&mut self, message: Message) {
        let _ = timeout(TEST_TIMEOUT, self.socket.send(message)).await;
    }

    /// Reads the next frame, or the end of the connection.
    pub(crate) async fn next_event(&mut self, limit: Duration) -> ClientEvent {
        let deadline = Instant::now() + limit;
        loop {
            match timeout_at(deadline, self.socket.next()).await {
                Err(_) => return ClientEvent::TimedOut,
                Ok(None | Some(Err(_))) => return ClientEvent::Closed(None),
                Ok(Some(Ok(Message::Text(text)))) => {
                    let frame = serde_json::from_str(&text)
                        .unwrap_or_else(|e| panic!("a frame is not JSON ({e}): {text}"));
                    return ClientEvent::Frame(frame);
                }
                Ok(Some(Ok(Message::Close(frame)))) => {
                    return ClientEvent::Closed(frame.map(|frame| frame.code.into()));
                }
                Ok(Some(Ok(_))) => {}
            }
        }
    }

    /// Reads the next frame. Panics if none arrives.
    pub(crate) async fn next_frame(&mut self) -> Value {
        self.next_frame_within(TEST_TIMEOUT).await
    }

    pub(crate) async fn next_frame_within(&mut self, limit: Duration) -> Value {
        match self.next_event(limit).await {
            ClientEvent::Frame(frame) => frame,
            other => panic!("{} expected a frame, got {other:?}", self.user),
        }
    }

    /// Sends a message and returns the next frame.
    pub(crate) async fn send_and_wait(&mut self, content: &str) -> Value {
        self.send_message(content).await;
        self.next_frame().await
    }

    /// Panics if a frame arrives or the connection ends within `period`.
    pub(crate) async fn expect_no_frame(&mut self, period: Duration) {
        match self.next_event(period).await {
            ClientEvent::TimedOut => {}
            other => panic!("{} expected no frame, got {other:?}", self.user),
        }
    }

    /// Reads to the end of the connection and returns the close code.
    pub(crate) async fn expect_close(&mut self) -> Option<u16> {
        loop {
            match self.next_event(TEST_TIMEOUT).await {
                ClientEvent::Closed(code) => return code,
                ClientEvent::Frame(_) => {}
                ClientEvent::TimedOut => panic!("{} was not closed", self.user),
            }
        }
    }

    pub(crate) async fn close(mut self) {
        let _ = timeout(TEST_TIMEOUT, self.socket.close(None)).await;
    }
}
