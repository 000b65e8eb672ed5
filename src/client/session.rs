//! The connection's task: sends, reads, comes back.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message as Wire;

use super::State;
use super::answer::{End, Event, Writer};
use super::asked::Asked;
use super::error::ClientError;
use super::link::Link;
use super::open::{Socket, open};
use super::options::Question;
use super::retry_hint::{RetryHint, retry_backoff, retry_hint};
use crate::backoff::Backoff;
use crate::protocol::error_code::ErrorCode;
use crate::protocol::ids::ClientMessageId;
use crate::protocol::wire::v1::{Failure, FromServer, ToServer, Welcome};

/// What the server's kernel does not take for so long is not going to arrive.
const SEND: Duration = Duration::from_secs(15);
/// Over the time in which the server must have been heard.
const GRACE: Duration = Duration::from_secs(10);
/// A connection that held so long was a good one.
const GOOD: Duration = Duration::from_secs(5);
const FAR: Duration = Duration::from_secs(86_400);

/// What the caller wants.
#[derive(Debug)]
pub(super) enum Command {
    Ask(Question, Writer),
    Cancel(ClientMessageId),
    Close,
}

/// Why a connection ended.
enum Left {
    Return {
        least: Option<Duration>,
        why: String,
    },
    Never(String),
}

pub(super) struct Session {
    link: Arc<Link>,
    inbox: mpsc::Receiver<Command>,
    state: watch::Sender<State>,
    socket: Socket,
    welcome: Option<Welcome>,
    asked: Vec<Asked>,
    position: Option<String>,
    /// The server said that it will close.
    closing: Option<Duration>,
    silence: Duration,
    /// The caller has had enough.
    leaving: bool,
    backoff: Backoff,
}

impl Session {
    pub(super) async fn open(
        link: Arc<Link>,
        inbox: mpsc::Receiver<Command>,
    ) -> Result<(Self, watch::Receiver<State>), ClientError> {
        let (socket, welcome) = open(&link, None).await?;
        let (state, watched) = watch::channel(State::Connected);
        let session = Self {
            link,
            inbox,
            state,
            socket,
            welcome: Some(welcome),
            asked: Vec::new(),
            position: None,
            closing: None,
            silence: FAR,
            leaving: false,
            backoff: retry_backoff(),
        };
        Ok((session, watched))
    }

    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let left = self.serve().await;
            if began.elapsed() >= GOOD {
                self.backoff.reset();
            }
            let over = match left {
                Left::Never(why) => Err(why),
                Left::Return { least, why } => self.come_back(least, why).await,
            };
            if let Err(why) = over {
                for asked in self.asked.drain(..) {
                    asked.ended(End::Lost { why: why.clone() });
                }
                self.state.send_replace(State::Over(why));
                return;
            }
        }
    }

    /// Until there is a connection again, or never will be.
    async fn come_back(
        &mut self,
        mut least: Option<Duration>,
        mut why: String,
    ) -> Result<(), String> {
        let now = Instant::now();
        for asked in &mut self.asked {
            asked.waits_since = asked.waits_since.max(now);
        }
        loop {
            self.state.send_replace(State::Lost(why));
            let pause = self.backoff.next_delay_after(least);
            let paused = self.meanwhile(tokio::time::sleep(pause)).await;
            paused.ok_or("it was closed")?;
            let (link, since) = (self.link.clone(), self.position.clone());
            let opened = self.meanwhile(async move { open(&link, since.as_deref()).await });
            match opened.await.ok_or("it was closed")? {
                Ok((socket, welcome)) => {
                    self.socket = socket;
                    self.welcome = Some(welcome);
                    self.state.send_replace(State::Connected);
                    return Ok(());
                }
                Err(error) if error.passes() => {
                    least = match &error {
                        ClientError::Busy { retry_after, .. } => *retry_after,
                        _ => None,
                    };
                    why = error.to_string();
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Takes commands while something else goes on, and ends what has waited too long.
    /// `None` when the caller closes the client.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let patience = self.link.options.patience;
            let first = self.asked.iter().map(|asked| asked.waits_since).min();
            let until = first.map_or_else(|| Instant::now() + FAR, |first| first + patience);
            if self.leaving {
                return None;
            }
            tokio::select! {
                done = &mut work => return Some(done),
                Some(command) = self.inbox.recv() => { self.note(command); }
                () = sleep_until(until) => {
                    let why = match &*self.state.borrow() {
                        State::Lost(why) => why.clone(),
                        State::Connected | State::Over(_) => "the connection was lost".into(),
                    };
                    for asked in self.asked.extract_if(.., |asked| asked.waits_since + patience <= Instant::now()) {
                        asked.ended(End::Lost { why: why.clone() });
                    }
                }
            }
        }
    }

    /// What is to be sent for it now, if there is a connection.
    fn note(&mut self, command: Command) -> Option<ToServer> {
        match command {
            Command::Ask(question, writer) => {
                let asked = Asked::new(question, writer);
                let frame = asked.frame();
                self.asked.push(asked);
                Some(frame)
            }
            Command::Cancel(id) => {
                let asked = self
                    .asked
                    .iter_mut()
                    .find(|asked| asked.question.id == id)?;
                asked.cancel = true;
                Some(asked.cancel_frame())
            }
            Command::Close => {
                self.leaving = true;
                None
            }
        }
    }

    /// One connection, from its `welcome` to its end.
    async fn serve(&mut self) -> Left {
        self.closing = None;
        let mut heard = Instant::now();
        if let Some(welcome) = self.welcome.take()
            && let Err(left) = self.begin(&welcome).await
        {
            return left;
        }
        loop {
            if self.leaving {
                let goodbye = timeout(SEND, self.socket.close(None)).await;
                tracing::debug!(told = matches!(goodbye, Ok(Ok(()))), "closed by its user");
                return Left::Never("it was closed".into());
            }
            let again = self.asked.iter().filter_map(|asked| asked.again_at).min();
            let again = again.unwrap_or_else(|| Instant::now() + FAR);
            let sent = tokio::select! {
                Some(command) = self.inbox.recv() => match self.note(command) {
                    Some(frame) => self.send(frame).await,
                    None => Ok(()),
                },
                frame = self.socket.next() => {
                    heard = Instant::now();
                    match frame {
                        Some(Ok(Wire::Text(text))) => self.take(&text).await,
                        Some(Ok(Wire::Close(frame))) => Err(self.closed(frame.map(|f| f.code.into()))),
                        Some(Ok(_)) => Ok(()),
                        Some(Err(_)) | None => Err(self.closed(None)),
                    }
                }
                () = sleep_until(again) => self.send_again().await,
                () = sleep_until(heard + self.silence) => Err(lost("the server fell silent")),
            };
            if let Err(left) = sent {
                return left;
            }
        }
    }

    fn closed(&mut self, code: Option<u16>) -> Left {
        match retry_hint(code) {
            RetryHint::Reconnect(least) => Left::Return {
                least: self.closing.take().max(least),
                why: match code {
                    Some(1001) => "the server is being stopped".into(),
                    Some(4409) => "answers came faster than they were read".into(),
                    Some(4429) => "too many messages".into(),
                    Some(code) => format!("the server closed the connection ({code})"),
                    None => "the connection broke".into(),
                },
            },
            RetryHint::NewToken if self.link.renew() => lost("the token is over"),
            RetryHint::NewToken => Left::Never("the token is over or was revoked".into()),
            RetryHint::Never(reason) => Left::Never(format!(
                "the server closed the connection for good ({})",
                reason.name()
            )),
        }
    }

    async fn send(&mut self, frame: ToServer) -> Result<(), Left> {
        let Ok(text) = serde_json::to_string(&frame) else {
            return Ok(());
        };
        match timeout(SEND, self.socket.send(Wire::text(text))).await {
            Ok(Ok(())) => Ok(()),
            // Its close code, if it has one, comes by reading.
            Ok(Err(_)) => match timeout(Duration::from_secs(1), self.socket.next()).await {
                Ok(Some(Ok(Wire::Close(frame)))) => Err(self.closed(frame.map(|f| f.code.into()))),
                _ => Err(self.closed(None)),
            },
            Err(_) => Err(lost("the server takes nothing any more")),
        }
    }

    /// After each `welcome`: sends again what the server may not have.
    async fn begin(&mut self, welcome: &Welcome) -> Result<(), Left> {
        self.silence = Duration::from_millis(welcome.heartbeat_ms.saturating_mul(2)) + GRACE;
        self.position = Some(welcome.position.clone());
        let mut frames = Vec::new();
        for asked in &mut self.asked {
            let id = &asked.question.id;
            let mut listed = welcome.pending.iter();
            let listed = listed.find(|pending| pending.id.as_ref() == Some(id));
            if let Some(pending) = listed {
                asked.accept(&pending.message_id);
            } else if !asked.accepted || !welcome.recovered {
                // Ended meanwhile, or never arrived: the same `id` brings either to an end.
                frames.push(asked.frame());
                asked.again_at = None;
            }
            if asked.cancel {
                frames.push(asked.cancel_frame());
            }
        }
        for frame in frames {
            self.send(frame).await?;
        }
        Ok(())
    }

    /// What the server could not take is tried again.
    async fn send_again(&mut self) -> Result<(), Left> {
        let now = Instant::now();
        let mut frames = Vec::new();
        for asked in &mut self.asked {
            if asked.again_at.is_some_and(|at| at <= now) {
                asked.again_at = None;
                frames.push(asked.frame());
            }
        }
        for frame in frames {
            self.send(frame).await?;
        }
        Ok(())
    }

    async fn take(&mut self, text: &str) -> Result<(), Left> {
        let frame: FromServer = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(%error, "a frame is not as expected and was passed over");
                return Ok(());
            }
        };
        match frame {
            FromServer::Welcome(welcome) => return self.begin(&welcome).await,
            FromServer::Accepted(frame) => {
                if let Some(asked) = self.asked_as(frame.id.as_ref()) {
                    asked.accept(&frame.message_id);
                }
            }
            FromServer::Delta(frame) => {
                let now = (frame.attempt, frame.index);
                if let Some(asked) = self.asked_as(frame.id.as_ref()) {
                    if frame.index == 0 && asked.next.is_some() {
                        asked.writer.push(Event::Snapshot(frame.content));
                    } else if frame.index == 0 || asked.next == Some(now) {
                        asked.writer.push(Event::Delta(frame.content));
                    } else {
                        // Never by contract. A snapshot or the end puts it right.
                        return Ok(());
                    }
                    asked.next = Some((frame.attempt, frame.index + 1));
                }
            }
            FromServer::Snapshot(frame) => {
                if let Some(asked) = self.asked_as(frame.id.as_ref()) {
                    asked.next = Some((frame.attempt, frame.index));
                    asked.writer.push(Event::Snapshot(frame.content));
                }
            }
            FromServer::Restarted(frame) => {
                if let Some(asked) = self.asked_as(frame.id.as_ref()) {
                    asked.next = None;
                    asked.writer.push(Event::Restarted);
                }
            }
            FromServer::Response(frame) => self.end(
                frame.position,
                frame.id.as_ref(),
                End::Answered {
                    content: frame.content,
                    finish_reason: frame.finish_reason,
                    model: frame.model,
                    usage: frame.usage,
                },
            ),
            FromServer::Cancelled(frame) => self.end(
                frame.position,
                frame.id.as_ref(),
                End::Cancelled {
                    content: frame.content,
                },
            ),
            FromServer::Error(frame) => self.fail(frame),
            FromServer::CancelResult(frame) => {
                if let Some(asked) = self.asked_as(frame.id.as_ref()) {
                    asked.writer.push(Event::Cancel(frame.result));
                }
            }
            FromServer::Closing(frame) => {
                self.closing = Some(Duration::from_millis(frame.retry_after_ms));
            }
            FromServer::Pong | FromServer::Other => {}
        }
        Ok(())
    }

    fn asked_as(&mut self, id: Option<&ClientMessageId>) -> Option<&mut Asked> {
        let id = id?;
        self.asked.iter_mut().find(|asked| asked.question.id == *id)
    }

    fn end(&mut self, position: Option<String>, id: Option<&ClientMessageId>, end: End) {
        if position.is_some() {
            self.position = position;
        }
        let at = self.asked.iter().position(|a| Some(&a.question.id) == id);
        if let Some(at) = at {
            self.asked.remove(at).ended(end);
        }
    }

    fn fail(&mut self, frame: Failure) {
        let retry_after = frame.retry_after_ms.map(Duration::from_millis);
        let patience = self.link.options.patience;
        // Unknown, not refused: the same `id` again is safe.
        if frame.message_id.is_none()
            && frame.code == Some(ErrorCode::Unavailable)
            && let Some(asked) = self.asked_as(frame.id.as_ref())
            && asked.waits_since.elapsed() < patience
        {
            asked.again_at = Some(Instant::now() + asked.backoff.next_delay_after(retry_after));
            return;
        }
        let end = End::Failed {
            code: frame.code,
            message: frame.message,
            retryable: frame.retryable.unwrap_or(false),
            retry_after,
        };
        self.end(frame.position, frame.id.as_ref(), end);
    }
}

fn lost(why: &str) -> Left {
    Left::Return {
        least: None,
        why: why.to_owned(),
    }
}
