//! A correct client of `chatmesh.v1`. It keeps its position and reconnects with it, sends a message
//! that was not accepted again under the same `id`, and checks every frame that it receives.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{self, Message as Wire};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::TEST_TIMEOUT;
use super::classic::{ClientEvent, UpgradeRefused};

mod received_answer;
mod transcript;

pub(crate) use transcript::{Message, ReplacedAnswer, Transcript};

/// The client of one device. It keeps its transcript when it reconnects.
pub(crate) struct V1Client {
    pub(crate) user: String,
    pub(crate) token: String,
    pub(crate) transcript: Transcript,
    socket: Option<WebSocketStream<TcpStream>>,
    /// All frames received on the current or last connection.
    pub(crate) frames: Vec<Value>,
    /// Size of the kernel's receive buffer, if the test limits it.
    receive_buffer_bytes: Option<u32>,
    /// The close code of the last connection, if it ended with one.
    pub(crate) close_code: Option<u16>,
}

impl V1Client {
    /// Creates a client that is not connected and has no position.
    pub(crate) fn new(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            token: "any-token".to_owned(),
            transcript: Transcript::new(user),
            socket: None,
            frames: Vec::new(),
            receive_buffer_bytes: None,
            close_code: None,
        }
    }

    /// Creates a client, connects it, and waits for its `welcome`.
    pub(crate) async fn open(port: u16, user: &str) -> Self {
        let mut device = Self::new(user);
        device.connect(port).await;
        device
    }

    /// Limits the kernel's receive buffer, so that unread frames soon fill the gateway's queue.
    pub(crate) fn with_small_receive_buffer(mut self) -> Self {
        self.receive_buffer_bytes = Some(4096);
        self
    }

    /// Connects with the client's position, if it has one, and returns the `welcome`.
    pub(crate) async fn connect(&mut self, port: u16) -> Value {
        match self.try_connect(port).await {
            Ok(welcome) => welcome,
            Err(refused) => panic!("{} was refused: {refused:?}", self.user),
        }
    }

    /// Connects to the ports in turn until a gateway accepts, and returns the `welcome`.
    pub(crate) async fn connect_with_retries(&mut self, ports: &[u16]) -> Value {
        let deadline = Instant::now() + TEST_TIMEOUT;
        for port in ports.iter().cycle() {
            match self.try_connect(*port).await {
                Ok(welcome) => return welcome,
                Err(refused) => assert!(Instant::now() < deadline, "{}: {refused:?}", self.user),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unreachable!("the list of ports is not empty");
    }

    pub(crate) async fn try_connect(&mut self, port: u16) -> Result<Value, UpgradeRefused> {
        let user: String = url::form_urlencoded::byte_serialize(self.user.as_bytes()).collect();
        let mut path = format!("/ws?token={}&userid={user}", self.token);
        if let Some(position) = &self.transcript.position {
            path.push_str("&since=");
            path.push_str(position);
        }
        self.upgrade(port, &path, &[]).await?;
        match self.next_event(TEST_TIMEOUT).await {
            ClientEvent::Frame(frame) => {
                assert_eq!(
                    frame["type"], "welcome",
                    "expected welcome as the first frame: {frame}"
                );
                Ok(frame)
            }
            other => Err(UpgradeRefused {
                status: 0,
                headers: Vec::new(),
                body: format!("expected welcome, got {other:?}"),
            }),
        }
    }

    /// Opens a socket with this path and these headers, and reads nothing from it.
    pub(crate) async fn upgrade(
        &mut self,
        port: u16,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(), UpgradeRefused> {
        self.drop_connection();
        let refused = |error: &dyn std::fmt::Display| UpgradeRefused {
            status: 0,
            headers: Vec::new(),
            body: error.to_string(),
        };
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(size) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(size).expect("a socket option");
        }
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let stream = socket.connect(address).await.map_err(|e| refused(&e))?;
        stream.set_nodelay(true).expect("a socket option");
        let mut request = format!("ws://127.0.0.1:{port}{path}")
            .into_client_request()
            .expect("a request");
        let subprotocol = [("sec-websocket-protocol", "chatmesh.v1")];
        for (name, value) in subprotocol.iter().chain(headers) {
            let value = value.parse().expect("a header's value");
            request.headers_mut().insert(*name, value);
        }
        match timeout(TEST_TIMEOUT, client_async(request, stream)).await {
            Ok(Ok((socket, _))) => {
                self.socket = Some(socket);
                self.frames.clear();
                self.close_code = None;
                self.transcript.start_connection();
                Ok(())
            }
            Ok(Err(tungstenite::Error::Http(response))) => Err(UpgradeRefused {
                status: response.status().as_u16(),
                headers: Vec::new(),
                body: String::from_utf8_lossy(response.body().as_deref().unwrap_or_default())
                    .into_owned(),
            }),
            Ok(Err(error)) => Err(refused(&error)),
            Err(_) => Err(refused(&"the upgrade was not answered")),
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Drops the connection without a close frame.
    pub(crate) fn drop_connection(&mut self) {
        self.socket = None;
    }

    /// Sends a message in the conversation `default`.
    pub(crate) async fn send_message(&mut self, id: &str, content: &str) {
        self.send_message_in("default", id, content).await;
    }

    pub(crate) async fn send_message_in(&mut self, conversation: &str, id: &str, content: &str) {
        let mut frame = json!({"type": "message", "id": id, "content": content});
        if conversation != "default" {
            frame["conversation_id"] = conversation.into();
        }
        self.send_message_frame(&frame).await;
    }

    /// Sends a message with `interrupt: true`.
    pub(crate) async fn send_interrupting_message(&mut self, id: &str, content: &str) {
        let frame = json!({"type": "message", "id": id, "content": content, "interrupt": true});
        self.send_message_frame(&frame).await;
    }

    /// Sends a `message` frame as the test built it.
    pub(crate) async fn send_message_frame(&mut self, frame: &Value) {
        if let Some(id) = frame["id"].as_str() {
            self.transcript.record_sent(id);
        }
        self.send_text(&frame.to_string()).await;
    }

    /// Cancels a message by the client's `id`.
    pub(crate) async fn cancel(&mut self, id: &str) {
        self.send_text(&json!({"type": "cancel", "id": id}).to_string())
            .await;
    }

    /// Cancels a message by its `message_id`.
    pub(crate) async fn cancel_message(&mut self, message_id: &str) {
        let frame = json!({"type": "cancel", "message_id": message_id});
        self.send_text(&frame.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.send(Wire::text(text)).await;
    }

    pub(crate) async fn send_binary(&mut self, bytes: &[u8]) {
        self.send(Wire::binary(bytes.to_vec())).await;
    }

    /// Sends a text frame that is not valid UTF-8.
    pub(crate) async fn send_invalid_utf8(&mut self) {
        let frame = Frame::message(vec![b'{', 0xff, 0xfe], OpCode::Data(Data::Text), true);
        self.send(Wire::Frame(frame)).await;
    }

    /// Sends a continuation frame without a first frame.
    pub(crate) async fn send_stray_continuation(&mut self) {
        let frame = Frame::message(b"x".to_vec(), OpCode::Data(Data::Continue), true);
        self.send(Wire::Frame(frame)).await;
    }

    /// Sends a frame. Ignores errors, because the next read reports a closed socket.
    async fn send(&mut self, message: Wire) {
        let Some(socket) = &mut self.socket else {
            panic!("{} is not connected", self.user);
        };
        let _ = timeout(TEST_TIMEOUT, socket.send(message)).await;
    }

    /// Reads the next frame and checks it against the transcript.
    pub(crate) async fn next_event(&mut self, limit: Duration) -> ClientEvent {
        let deadline = Instant::now() + limit;
        loop {
            let Some(socket) = &mut self.socket else {
                return ClientEvent::Closed(self.close_code);
            };
            match timeout_at(deadline, socket.next()).await {
                Err(_) => return ClientEvent::TimedOut,
                Ok(Some(Ok(Wire::Text(text)))) => {
                    let frame: Value = serde_json::from_str(&text)
                        .unwrap_or_else(|e| panic!("a frame is not JSON ({e}): {text}"));
                    if self.frames.is_empty() {
                        assert_eq!(
                            frame["type"], "welcome",
                            "expected welcome as the first frame: {frame}"
                        );
                    }
                    self.transcript.apply(&frame);
                    self.frames.push(frame.clone());
                    return ClientEvent::Frame(frame);
                }
                Ok(Some(Ok(Wire::Close(frame)))) => {
                    self.close_code = frame.map(|frame| frame.code.into());
                    self.socket = None;
                }
                Ok(Some(Ok(_))) => {}
                Ok(None | Some(Err(_))) => self.socket = None,
            }
        }
    }

    /// Reads the next frame. Panics if none arrives.
    pub(crate) async fn next_frame(&mut self) -> Value {
        match self.next_event(TEST_TIMEOUT).await {
            ClientEvent::Frame(frame) => frame,
            other => panic!(
                "{} expected a frame, got {other:?} after {:?}",
                self.user,
                self.frames.last()
            ),
        }
    }

    /// Reads until the condition holds. Panics if the connection ends first, or on a timeout.
    pub(crate) async fn wait_for<F>(&mut self, description: &str, condition: F)
    where
        F: Fn(&Transcript) -> bool,
    {
        let holds = self.wait_for_or_close(description, condition).await;
        assert!(
            holds,
            "{}: closed ({:?}) before: {description}",
            self.user, self.close_code
        );
    }

    /// Reads until the condition holds. Returns false if the connection ends first, and panics on a
    /// timeout.
    pub(crate) async fn wait_for_or_close<F>(&mut self, description: &str, condition: F) -> bool
    where
        F: Fn(&Transcript) -> bool,
    {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            if condition(&self.transcript) {
                return true;
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            match self.next_event(remaining).await {
                ClientEvent::Frame(_) => {}
                ClientEvent::Closed(_) => return false,
                ClientEvent::TimedOut => panic!(
                    "{}: not within {TEST_TIMEOUT:?}: {description}\nthe last frames: {:#?}",
                    self.user,
                    &self.frames[self.frames.len().saturating_sub(8)..]
                ),
            }
        }
    }

    /// Reads until a frame of this type arrives, and returns it.
    pub(crate) async fn wait_for_type(&mut self, frame_type: &str) -> Value {
        loop {
            let frame = self.next_frame().await;
            if frame["type"] == frame_type {
                return frame;
            }
        }
    }

    /// Reads until the shown text of a message contains `part`.
    pub(crate) async fn wait_for_text(&mut self, id: &str, part: &str) {
        let description = format!("{id} shows {part:?}");
        let shows_part = |t: &Transcript| t.get(id).is_some_and(|m| m.text.contains(part));
        self.wait_for(&description, shows_part).await;
    }

    /// Reads until the last part of a message is of this kind and contains `text`.
    pub(crate) async fn wait_for_part(&mut self, id: &str, kind: &str, text: &str) {
        let description = format!("{id} ends with a part {kind} that contains {text:?}");
        let ends_with_part =
            |t: &Transcript| t.get(id).is_some_and(|m| m.ends_with_part(kind, text));
        self.wait_for(&description, ends_with_part).await;
    }

    pub(crate) async fn wait_for_accepted(&mut self, id: &str) {
        let is_accepted = |t: &Transcript| t.get(id).is_some_and(Message::is_accepted);
        self.wait_for(&format!("{id} is accepted"), is_accepted)
            .await;
    }

    /// Reads until all messages have ended.
    pub(crate) async fn wait_for_terminal_frames(&mut self, ids: &[&str]) {
        let description = format!("{ids:?} have ended");
        self.wait_for(&description, |t| have_all_ended(t, ids))
            .await;
    }

    /// Reads until the message has ended, and returns its terminal frame.
    pub(crate) async fn wait_for_terminal_frame(&mut self, id: &str) -> Value {
        self.wait_for_terminal_frames(&[id]).await;
        let message = self.transcript.get(id).expect("an ended message");
        message.terminal.clone().expect("a terminal frame")
    }

    /// Sends a message and returns its terminal frame.
    pub(crate) async fn send_and_wait(&mut self, id: &str, content: &str) -> Value {
        self.send_message(id, content).await;
        self.wait_for_terminal_frame(id).await
    }

    /// The message as the client shows it. Panics if the client has received no frame of it.
    pub(crate) fn message(&self, id: &str) -> &Message {
        self.transcript
            .get(id)
            .unwrap_or_else(|| panic!("{} has no message {id}", self.user))
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
        let is_closed = !self
            .wait_for_or_close("the connection is closed", |_| false)
            .await;
        assert!(is_closed);
        self.close_code
    }

    /// Reads until all messages (`id` and content) have ended. Whenever the connection ends, the
    /// client reconnects with its position and sends the messages again that are not known to be
    /// accepted, as a correct client does.
    pub(crate) async fn reconnect_until_ended(&mut self, ports: &[u16], messages: &[(&str, &str)]) {
        let ids: Vec<&str> = messages.iter().map(|(id, _)| *id).collect();
        let mut reconnects = 0;
        while !have_all_ended(&self.transcript, &ids) {
            if !self.is_connected() {
                let ports: Vec<u16> = ports
                    .iter()
                    .copied()
                    .cycle()
                    .skip(reconnects)
                    .take(8)
                    .collect();
                self.connect_with_retries(&ports).await;
                reconnects += 1;
                for (id, content) in messages {
                    let is_known = self.transcript.get(id).is_some_and(|m| {
                        m.is_accepted() || m.terminal.is_some() || m.is_streaming()
                    });
                    if !is_known {
                        self.send_message(id, content).await;
                    }
                }
            }
            self.wait_for_or_close("all messages have ended", |t| have_all_ended(t, &ids))
                .await;
        }
    }
}

fn have_all_ended(transcript: &Transcript, ids: &[&str]) -> bool {
    ids.iter()
        .all(|id| transcript.get(id).is_some_and(|m| m.terminal.is_some()))
}
