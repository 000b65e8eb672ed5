//! The task of a [`Client`](super::Client): it owns the connection, executes commands, reports
//! events, and reconnects.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message as WsMessage;

use super::command::Command;
use super::error::ClientError;
use super::events::{Event, Outcome, State};
use super::handshake::{Socket, open_connection};
use super::pending_question::PendingQuestion;
use super::received_parts::ReceivedParts;
use super::retry_hint::{RetryHint, retry_backoff, retry_hint};
use super::server_api::ServerApi;
use crate::backoff::Backoff;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::ClientMessageId;
use crate::protocol::wire::v1::{ClientToServer, ErrorFrame, ServerToClient, Welcome};

/// Maximum time to write one frame. If the kernel has not accepted the frame by then, the
/// connection counts as broken.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum time to read the server's close frame after a failed write, and to close the socket.
const CLOSE_FRAME_TIMEOUT: Duration = Duration::from_secs(1);
/// Time that the server may be silent in addition to two heartbeat intervals.
const SILENCE_GRACE: Duration = Duration::from_secs(10);
/// Minimum duration of a connection that resets the backoff.
const STABLE_DURATION: Duration = Duration::from_secs(5);
/// Delay of a timer that is not set: so long that its end does not matter.
const NEVER: Duration = Duration::from_secs(86_400);

/// Why a connection has ended, and whether the session reconnects or stops.
enum Disconnect {
    Reconnect {
        min_delay: Option<Duration>,
        reason: String,
    },
    /// The session stops, for this reason.
    Stop(String),
}

impl Disconnect {
    fn reconnect(reason: &str) -> Self {
        Self::Reconnect {
            min_delay: None,
            reason: reason.to_owned(),
        }
    }
}

/// The state of a client's task: the connection, the pending questions, and the position from which
/// the next connection resumes.
pub(super) struct Session {
    server: Arc<ServerApi>,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<State>,
    socket: Socket,
    /// The `welcome` of a new connection, until `serve_connection` handles it.
    welcome: Option<Welcome>,
    questions: Vec<PendingQuestion>,
    /// The position from which a new connection resumes: that of the last `welcome` or terminal
    /// frame.
    position: Option<String>,
    /// The minimum delay before the next connection, if the server named such a delay in `closing`.
    reconnect_delay: Option<Duration>,
    /// Time without a frame from the server after which the connection counts as broken.
    silence_timeout: Duration,
    is_close_requested: bool,
    backoff: Backoff,
}

impl Session {
    /// Opens the first connection.
    pub(super) async fn open(
        server: Arc<ServerApi>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<(Self, watch::Receiver<State>), ClientError> {
        let (socket, welcome) = open_connection(&server, None).await?;
        let (state, state_receiver) = watch::channel(State::Connected);
        let session = Self {
            server,
            commands,
            state,
            socket,
            welcome: Some(welcome),
            questions: Vec::new(),
            position: None,
            reconnect_delay: None,
            silence_timeout: NEVER,
            is_close_requested: false,
            backoff: retry_backoff(),
        };
        Ok((session, state_receiver))
    }

    /// Runs until the client is closed or the server rejects it for good.
    pub(super) async fn run(mut self) {
        loop {
            let connected_at = Instant::now();
            let disconnect = self.serve_connection().await;
            if connected_at.elapsed() >= STABLE_DURATION {
                self.backoff.reset();
            }
            self.close_socket().await;
            let reconnected = match disconnect {
                Disconnect::Stop(reason) => Err(reason),
                Disconnect::Reconnect { min_delay, reason } => {
                    self.reconnect(min_delay, reason).await
                }
            };
            if let Err(reason) = reconnected {
                for question in self.questions.drain(..) {
                    question.end(Outcome::Unknown {
                        reason: reason.clone(),
                    });
                }
                self.state.send_replace(State::Closed(reason));
                return;
            }
        }
    }

    /// Tries to connect until that succeeds. Returns the reason as an error if the caller closes
    /// the client or the server rejects it for good.
    async fn reconnect(
        &mut self,
        mut min_delay: Option<Duration>,
        mut reason: String,
    ) -> Result<(), String> {
        let now = Instant::now();
        for question in &mut self.questions {
            question.waiting_since = question.waiting_since.max(now);
        }
        loop {
            self.state.send_replace(State::Reconnecting(reason));
            let delay = self.backoff.next_delay_after(min_delay);
            let waited = self.handle_commands_during(tokio::time::sleep(delay)).await;
            waited.ok_or("it was closed")?;
            let (server, since) = (self.server.clone(), self.position.clone());
            let opened = self.handle_commands_during(async move {
                open_connection(&server, since.as_deref()).await
            });
            match opened.await.ok_or("it was closed")? {
                Ok((socket, welcome)) => {
                    self.socket = socket;
                    self.welcome = Some(welcome);
                    self.state.send_replace(State::Connected);
                    return Ok(());
                }
                Err(error) if error.is_transient() => {
                    min_delay = match &error {
                        ClientError::Busy { retry_after, .. } => *retry_after,
                        _ => None,
                    };
                    reason = error.to_string();
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Waits for `work` while there is no connection: accepts commands, and ends questions that
    /// have waited too long. `None` if the caller closes the client.
    async fn handle_commands_during<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let retry_timeout = self.server.options.retry_timeout;
            let oldest = self.questions.iter().map(|q| q.waiting_since).min();
            let expiry = oldest.map_or_else(
                || Instant::now() + NEVER,
                |waiting_since| waiting_since + retry_timeout,
            );
            if self.is_close_requested {
                return None;
            }
            tokio::select! {
                result = &mut work => return Some(result),
                Some(command) = self.commands.recv() => {
                    // The returned frame is dropped, because `handle_welcome` of the next
                    // connection sends it.
                    self.handle_command(command);
                }
                () = sleep_until(expiry) => self.end_expired_questions(retry_timeout),
            }
        }
    }

    fn end_expired_questions(&mut self, retry_timeout: Duration) {
        let reason = match &*self.state.borrow() {
            State::Reconnecting(reason) => reason.clone(),
            State::Connected | State::Closed(_) => "the connection was lost".into(),
        };
        let now = Instant::now();
        let is_expired =
            |question: &mut PendingQuestion| question.waiting_since + retry_timeout <= now;
        for question in self.questions.extract_if(.., is_expired) {
            question.end(Outcome::Unknown {
                reason: reason.clone(),
            });
        }
    }

    /// Records a command. Returns the frame to send for it if there is a connection.
    fn handle_command(&mut self, command: Command) -> Option<ClientToServer> {
        match command {
            Command::Ask(question, events) => {
                let question = PendingQuestion::new(question, events);
                let frame = question.message_frame();
                self.questions.push(question);
                Some(frame)
            }
            Command::Cancel(id) => {
                let question = self.question_mut(Some(&id))?;
                question.is_cancel_requested = true;
                Some(question.cancel_frame())
            }
            Command::Close => {
                self.is_close_requested = true;
                None
            }
        }
    }

    /// Serves one connection, from its `welcome` to its end.
    async fn serve_connection(&mut self) -> Disconnect {
        self.reconnect_delay = None;
        let mut last_received = Instant::now();
        if let Some(welcome) = self.welcome.take()
            && let Err(disconnect) = self.handle_welcome(&welcome).await
        {
            return disconnect;
        }
        loop {
            if self.is_close_requested {
                tracing::debug!("connection closed by the caller");
                return Disconnect::Stop("it was closed".into());
            }
            let retry_at = self.questions.iter().filter_map(|q| q.retry_at).min();
            let retry_at = retry_at.unwrap_or_else(|| Instant::now() + NEVER);
            let result = tokio::select! {
                Some(command) = self.commands.recv() => match self.handle_command(command) {
                    Some(frame) => self.send(frame).await,
                    None => Ok(()),
                },
                received = self.socket.next() => {
                    last_received = Instant::now();
                    match received {
                        Some(Ok(WsMessage::Text(text))) => self.handle_frame(&text).await,
                        Some(Ok(WsMessage::Close(frame))) => {
                            Err(self.disconnect(frame.map(|frame| frame.code.into())))
                        }
                        Some(Ok(_)) => Ok(()),
                        Some(Err(_)) | None => Err(self.disconnect(None)),
                    }
                }
                () = sleep_until(retry_at) => self.send_retries().await,
                () = sleep_until(last_received + self.silence_timeout) => {
                    Err(Disconnect::reconnect("the server sent no frame in time"))
                }
            };
            if let Err(disconnect) = result {
                return disconnect;
            }
        }
    }

    /// Sends or answers the close frame, and shuts the TCP connection down. A server that is
    /// stopping waits for both, so the session does this before it waits for the next connection.
    async fn close_socket(&mut self) {
        let close = async {
            // If the server has sent a close frame, `close` fails, because the reply is queued
            // already.
            let _ = self.socket.close(None).await;
            let flushed = self.socket.flush().await;
            let shutdown = self.socket.get_mut().shutdown().await;
            tracing::trace!(?flushed, ?shutdown, "socket closed");
        };
        let limit = if self.is_close_requested {
            SEND_TIMEOUT
        } else {
            CLOSE_FRAME_TIMEOUT
        };
        // An error or a timeout means that the connection is broken, so there is nothing to close.
        let _ = timeout(limit, close).await;
    }

    /// Decides whether to reconnect after a connection that ended with this close code (`None`:
    /// without a close frame).
    fn disconnect(&mut self, code: Option<u16>) -> Disconnect {
        match retry_hint(code) {
            RetryHint::Reconnect(min_delay) => Disconnect::Reconnect {
                min_delay: self.reconnect_delay.take().max(min_delay),
                reason: match code {
                    Some(1001) => "the server is being stopped".into(),
                    Some(4409) => "answers came faster than they were read".into(),
                    Some(4429) => "too many messages".into(),
                    Some(code) => format!("the server closed the connection ({code})"),
                    None => "the connection broke".into(),
                },
            },
            RetryHint::NewToken if self.server.discard_token() => {
                Disconnect::reconnect("the token has expired")
            }
            RetryHint::NewToken => Disconnect::Stop("the token has expired or was revoked".into()),
            RetryHint::Never(reason) => Disconnect::Stop(format!(
                "the server closed the connection for good ({})",
                reason.name()
            )),
        }
    }

    async fn send(&mut self, frame: ClientToServer) -> Result<(), Disconnect> {
        let Ok(text) = serde_json::to_string(&frame) else {
            return Ok(());
        };
        match timeout(SEND_TIMEOUT, self.socket.send(WsMessage::text(text))).await {
            Ok(Ok(())) => Ok(()),
            // The server may have sent a close frame with the reason, which can still be read.
            Ok(Err(_)) => match timeout(CLOSE_FRAME_TIMEOUT, self.socket.next()).await {
                Ok(Some(Ok(WsMessage::Close(frame)))) => {
                    Err(self.disconnect(frame.map(|frame| frame.code.into())))
                }
                _ => Err(self.disconnect(None)),
            },
            Err(_) => Err(Disconnect::reconnect("the server accepts no more data")),
        }
    }

    async fn send_all(&mut self, frames: Vec<ClientToServer>) -> Result<(), Disconnect> {
        for frame in frames {
            self.send(frame).await?;
        }
        Ok(())
    }

    /// Sets the position and the silence timeout from a `welcome`. Then resends the questions that
    /// the server may not have, and the cancels.
    async fn handle_welcome(&mut self, welcome: &Welcome) -> Result<(), Disconnect> {
        let two_heartbeats = Duration::from_millis(welcome.heartbeat_ms.saturating_mul(2));
        self.silence_timeout = two_heartbeats + SILENCE_GRACE;
        self.position = Some(welcome.position.clone());
        let mut frames = Vec::new();
        for question in &mut self.questions {
            let id = Some(&question.question.id);
            let mut pending = welcome.pending.iter();
            if let Some(pending) = pending.find(|pending| pending.id.as_ref() == id) {
                question.set_accepted(&pending.message_id);
            } else if !question.is_accepted || !welcome.recovered {
                // The message has ended or has never arrived. Resending is right in both cases: the
                // server answers the same `id` with the stored outcome, or accepts the message.
                frames.push(question.message_frame());
                question.retry_at = None;
            }
            if question.is_cancel_requested {
                frames.push(question.cancel_frame());
            }
        }
        self.send_all(frames).await
    }

    /// Resends the questions whose retry is due.
    async fn send_retries(&mut self) -> Result<(), Disconnect> {
        let now = Instant::now();
        let mut frames = Vec::new();
        for question in &mut self.questions {
            if question.retry_at.is_some_and(|retry_at| retry_at <= now) {
                question.retry_at = None;
                frames.push(question.message_frame());
            }
        }
        self.send_all(frames).await
    }

    async fn handle_frame(&mut self, text: &str) -> Result<(), Disconnect> {
        let frame: ServerToClient = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(%error, "invalid frame from the server ignored");
                return Ok(());
            }
        };
        match frame {
            ServerToClient::Welcome(welcome) => return self.handle_welcome(&welcome).await,
            ServerToClient::Accepted(frame) => {
                if let Some(question) = self.question_mut(frame.id.as_ref()) {
                    question.set_accepted(&frame.message_id);
                }
            }
            ServerToClient::Delta(frame) => {
                if let Some(question) = self.question_mut(frame.id.as_ref()) {
                    question.receive_delta(frame);
                }
            }
            ServerToClient::Snapshot(frame) => {
                if let Some(question) = self.question_mut(frame.id.as_ref()) {
                    question.receive_snapshot(frame);
                }
            }
            ServerToClient::Restarted(frame) => {
                if let Some(question) = self.question_mut(frame.id.as_ref()) {
                    question.receive_restarted(frame);
                }
            }
            ServerToClient::Response(frame) => {
                self.end_question(frame.position, frame.id.as_ref(), |received| {
                    Outcome::Answered {
                        parts: received.finish(&frame.content, frame.parts.as_deref()),
                        content: frame.content,
                        finish_reason: frame.finish_reason,
                        model: frame.model,
                        usage: frame.usage,
                    }
                });
            }
            ServerToClient::Cancelled(frame) => {
                self.end_question(frame.position, frame.id.as_ref(), |received| {
                    let content = frame.content.as_deref().unwrap_or_default();
                    Outcome::Cancelled {
                        parts: received.finish(content, frame.parts.as_deref()),
                        content: frame.content,
                    }
                });
            }
            ServerToClient::Error(frame) => self.handle_error(frame),
            ServerToClient::CancelResult(frame) => {
                if let Some(question) = self.question_mut(frame.id.as_ref()) {
                    question.events.push(Event::Cancel(frame.result));
                }
            }
            ServerToClient::Closing(frame) => {
                self.reconnect_delay = Some(Duration::from_millis(frame.retry_after_ms));
            }
            ServerToClient::Pong | ServerToClient::Other => {}
        }
        Ok(())
    }

    fn handle_error(&mut self, frame: ErrorFrame) {
        let retry_after = frame.retry_after_ms.map(Duration::from_millis);
        let retry_timeout = self.server.options.retry_timeout;
        // The server could not accept the message in time, so it is unknown whether the log has the
        // message. Sending the same `id` again is safe.
        if frame.message_id.is_none()
            && frame.code == Some(ErrorCode::Unavailable)
            && let Some(question) = self.question_mut(frame.id.as_ref())
            && question.waiting_since.elapsed() < retry_timeout
        {
            let delay = question.backoff.next_delay_after(retry_after);
            question.retry_at = Some(Instant::now() + delay);
            return;
        }
        let outcome = Outcome::Failed {
            code: frame.code,
            message: frame.message,
            retryable: frame.retryable.unwrap_or(false),
            retry_after,
        };
        self.end_question(frame.position, frame.id.as_ref(), |_| outcome);
    }

    fn question_mut(&mut self, id: Option<&ClientMessageId>) -> Option<&mut PendingQuestion> {
        let id = id?;
        self.questions.iter_mut().find(|q| q.question.id == *id)
    }

    /// Records the position of a terminal frame, and ends the question with this `id` if the client
    /// has asked it. `to_outcome` returns the outcome; it gets the parts that were received so far.
    fn end_question(
        &mut self,
        position: Option<String>,
        id: Option<&ClientMessageId>,
        to_outcome: impl FnOnce(ReceivedParts) -> Outcome,
    ) {
        if position.is_some() {
            self.position = position;
        }
        let index = self
            .questions
            .iter()
            .position(|question| Some(&question.question.id) == id);
        if let Some(index) = index {
            let mut question = self.questions.remove(index);
            let outcome = to_outcome(std::mem::take(&mut question.received));
            question.end(outcome);
        }
    }
}
