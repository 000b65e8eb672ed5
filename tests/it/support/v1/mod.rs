//! A correct client of `chatmesh.v1`: it keeps its position, reconnects with it, sends messages
//! that were not accepted again under the same `id`, and checks every frame that it receives.

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

mod transcript;

pub(crate) use transcript::{Message, ReplacedText, Transcript};

/// A client of one device, connected or not. It keeps its transcript over its connections.
pub(crate) struct V1Client {
    pub(crate) user: String,
    pub(crate) token: String,
    pub(crate) transcript: Transcript,
    socket: Option<WebSocketStream<TcpStream>>,
    /// Every frame of the current connection.
    pub(crate) frames: Vec<Value>,
    /// Size of the kernel's receive buffer, if it is limited.
    receive_buffer_bytes: Option<u32>,
    /// The close code of the last connection, if it ended with one.
    pub(crate) close_code: Option<u16>,
}

impl V1Client {
    /// A client that is not connected and has no position.
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

    /// A new client that has received its first `welcome`.
    pub(crate) async fn open(port: u16, user: &str) -> Self {
        let mut device = Self::new(user);
        device.connect(port).await;
        device
    }

    /// Limits how much the kernel buffers of what the client does not read.
    pub(crate) fn with_small_receive_buffer(mut self) -> Self {
        self.receive_buffer_bytes = Some(4096);
        self
    }

    /// Connects with its position and returns the `welcome`.
    pub(crate) async fn connect(&mut self, port: u16) -> Value {
        match self.try_connect(port).await {
            Ok(welcome) => welcome,
            Err(refused) => panic!("{} was refused: {refused:?}", self.user),
        }
    }

    /// Connects to one of the ports, and retries until a gateway accepts.
    pub(crate) async fn connect_with_retries(&mut self, ports: &[u16]) -> Value {
        let deadline = Instant::now() + TEST_TIMEOUT;
        for port in ports.iter().cycle() {
            match self.try_connect(*port).await {
                Ok(welcome) => return welcome,
                Err(refused) => assert!(Instant::now() < deadline, "{}: {refused:?}", self.user),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unreachable!("there are ports");
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
                assert_eq!(frame["type"], "welcome", "the first frame: {frame}");
                Ok(frame)
            }
            other => Err(UpgradeRefused {
                status: 0,
                headers: Vec::new(),
                body: format!("no welcome but {other:?}"),
            }),
        }
    }

    /// Opens a socket with this path and reads nothing from it.
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
        let all = [("sec-websocket-protocol", "chatmesh.v1")];
        for (name, value) in all.iter().chain(headers) {
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

    /// Sends a `message` frame in any form.
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

    /// Sends a frame. If the socket has closed, the next read shows it.
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
                        assert_eq!(frame["type"], "welcome", "the first frame: {frame}");
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

    /// Reads until the condition holds. Panics if the connection ends or the time is over.
    pub(crate) async fn wait_for<F>(&mut self, what: &str, condition: F)
    where
        F: Fn(&Transcript) -> bool,
    {
        let seen = self.wait_for_or_close(what, condition).await;
        assert!(
            seen,
            "{}: closed ({:?}) before {what}",
            self.user, self.close_code
        );
    }

    /// Reads until the condition holds. Returns false if the connection ends first.
    pub(crate) async fn wait_for_or_close<F>(&mut self, what: &str, condition: F) -> bool
    where
        F: Fn(&Transcript) -> bool,
    {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            if condition(&self.transcript) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next_event(left).await {
                ClientEvent::Frame(_) => {}
                ClientEvent::Closed(_) => return false,
                ClientEvent::TimedOut => panic!(
                    "{}: not within {TEST_TIMEOUT:?}: {what}\nthe last frames: {:#?}",
                    self.user,
                    &self.frames[self.frames.len().saturating_sub(8)..]
                ),
            }
        }
    }

    /// Reads until a frame of this type arrives, and returns it.
    pub(crate) async fn wait_for_type(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next_frame().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// Reads until the text of a message contains `part`.
    pub(crate) async fn wait_for_text(&mut self, id: &str, part: &str) {
        let what = format!("{id} shows {part:?}");
        self.wait_for(&what, |t| t.get(id).is_some_and(|m| m.text.contains(part)))
            .await;
    }

    pub(crate) async fn wait_for_accepted(&mut self, id: &str) {
        let accepted = |t: &Transcript| t.get(id).is_some_and(Message::is_accepted);
        self.wait_for(&format!("{id} is accepted"), accepted).await;
    }

    /// Reads until all messages have ended.
    pub(crate) async fn wait_for_terminal_frames(&mut self, ids: &[&str]) {
        let what = format!("{ids:?} end");
        self.wait_for(&what, |t| ended(t, ids)).await;
    }

    /// Reads until the message has ended, and returns its terminal frame.
    pub(crate) async fn wait_for_terminal_frame(&mut self, id: &str) -> Value {
        self.wait_for_terminal_frames(&[id]).await;
        let message = self.transcript.get(id).expect("it ended");
        message.terminal.clone().expect("it ended")
    }

    /// Sends a message and returns its terminal frame.
    pub(crate) async fn send_and_wait(&mut self, id: &str, content: &str) -> Value {
        self.send_message(id, content).await;
        self.wait_for_terminal_frame(id).await
    }

    /// The message as the client shows it.
    pub(crate) fn message(&self, id: &str) -> &Message {
        self.transcript
            .get(id)
            .unwrap_or_else(|| panic!("{} knows nothing of {id}", self.user))
    }

    /// Panics if a frame arrives or the connection ends within `period`.
    pub(crate) async fn expect_no_frame(&mut self, period: Duration) {
        match self.next_event(period).await {
            ClientEvent::TimedOut => {}
            other => panic!("{} expected silence, got {other:?}", self.user),
        }
    }

    /// Reads to the end of the connection and returns the close code.
    pub(crate) async fn expect_close(&mut self) -> Option<u16> {
        let closed = !self.wait_for_or_close("the close", |_| false).await;
        assert!(closed);
        self.close_code
    }

    /// Reads until all messages (`id` and content) have ended. Whenever the connection ends, it
    /// reconnects with its position and sends again what is not known to be accepted, as a correct
    /// client does.
    pub(crate) async fn reconnect_until_ended(&mut self, ports: &[u16], messages: &[(&str, &str)]) {
        let ids: Vec<&str> = messages.iter().map(|(id, _)| *id).collect();
        let mut turn = 0;
        while !ended(&self.transcript, &ids) {
            if !self.is_connected() {
                let ports: Vec<u16> = ports.iter().copied().cycle().skip(turn).take(8).collect();
                self.connect_with_retries(&ports).await;
                turn += 1;
                for (id, content) in messages {
                    let known = self.transcript.get(id).is_some_and(|m| {
                        m.is_accepted() || m.terminal.is_some() || m.is_streaming()
                    });
                    if !known {
                        self.send_message(id, content).await;
                    }
                }
            }
            self.wait_for_or_close("all ends", |t| ended(t, &ids)).await;
        }
    }
}

fn ended(transcript: &Transcript, ids: &[&str]) -> bool {
    ids.iter()
        .all(|id| transcript.get(id).is_some_and(|m| m.terminal.is_some()))
}
