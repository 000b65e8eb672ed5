//! A TCP server that answers each request with the steps of one script.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A step of the response to a request.
#[derive(Clone)]
pub(super) enum Step {
    /// Writes this text.
    Write(String),
    /// Waits until the client closes the connection.
    Hang,
    /// Closes the connection.
    Close,
}

/// An event that the server has observed.
#[derive(Debug)]
pub(super) enum ServerEvent {
    /// A request was read.
    Request {
        /// Number of the request's connection, from 0.
        connection: usize,
        head: String,
        body: serde_json::Value,
    },
    /// A connection was closed, by the client or by a script.
    Closed,
}

pub(super) struct Server {
    /// The base URL of the API.
    pub(super) base: String,
    pub(super) events: mpsc::UnboundedReceiver<ServerEvent>,
}

impl Server {
    /// Plays one script per request, in order. Connections stay open unless the script closes them.
    pub(super) async fn start(scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        let (sender, events) = mpsc::unbounded_channel();
        let scripts = Arc::new(Mutex::new(scripts.into_iter()));
        tokio::spawn(async move {
            let mut connections = 0..;
            while let Ok((socket, _)) = listener.accept().await {
                let connection = connections.next().unwrap();
                let (sender, scripts) = (sender.clone(), Arc::clone(&scripts));
                tokio::spawn(async move {
                    let next_script = || scripts.lock().unwrap().next();
                    serve(connection, socket, &sender, next_script).await;
                    let _ = sender.send(ServerEvent::Closed);
                });
            }
        });
        Self { base, events }
    }

    pub(super) async fn next_request(&mut self) -> (String, serde_json::Value) {
        loop {
            if let ServerEvent::Request { head, body, .. } = self.events.recv().await.unwrap() {
                return (head, body);
            }
        }
    }

    pub(super) async fn wait_until_closed(&mut self) {
        while !matches!(self.events.recv().await.unwrap(), ServerEvent::Closed) {}
    }
}

async fn serve(
    connection: usize,
    mut socket: TcpStream,
    events: &mpsc::UnboundedSender<ServerEvent>,
    next_script: impl Fn() -> Option<Vec<Step>>,
) {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if socket.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(buffer.drain(..head_end).collect()).unwrap();
        let lower = head.to_lowercase();
        let length = lower.split("content-length: ").nth(1).unwrap();
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        while buffer.len() < length {
            assert_ne!(socket.read_buf(&mut buffer).await.unwrap(), 0);
        }
        let body: Vec<u8> = buffer.drain(..length).collect();
        let body = serde_json::from_slice(&body).unwrap();
        let request = ServerEvent::Request {
            connection,
            head,
            body,
        };
        events.send(request).unwrap();
        for step in next_script().expect("more requests than scripts") {
            match step {
                Step::Write(text) => {
                    if socket.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Step::Hang => while socket.read(&mut [0; 64]).await.unwrap_or(0) > 0 {},
                Step::Close => return,
            }
        }
    }
}

pub(super) fn write(text: impl Into<String>) -> Step {
    Step::Write(text.into())
}

/// A script that sends a complete response and leaves the connection open.
pub(super) fn reply(status: &str, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n");
    vec![write(head + body)]
}
