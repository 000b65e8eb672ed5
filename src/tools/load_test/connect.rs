//! How a client gets in, and why it is out.

use std::time::Duration;

use futures_util::StreamExt as _;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::client::Neighbours;
use super::frames::Frame;
use super::plan::Plan;
use crate::protocol::v1::SUBPROTOCOL;

pub(super) type Socket = WebSocketStream<TcpStream>;

/// Connecting, upgrade and welcome.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection, and what the server said when it was there.
pub(super) struct Link {
    pub(super) socket: Socket,
    pub(super) position: Option<String>,
    /// Whatever this client has missed since its position comes now.
    pub(super) recovered: bool,
}

/// Why a client is no longer connected.
pub(super) struct Gone(pub(super) String);

/// Opens the `number`th connection when it is its turn.
pub(super) async fn connect(number: usize, around: &Neighbours) -> Result<Link, Gone> {
    let plan = &around.plan;
    let turn = plan.ramp_up.mul_f64(number as f64 / plan.clients as f64);
    sleep_until(around.stage.started + turn).await;
    let _door = around.doors.acquire().await;
    let began = Instant::now();
    let link = in_time(number, plan, "").await?;
    let took = began.elapsed();
    around.stats.borrow_mut().connecting.record(took);
    Ok(link)
}

/// Opens it again, with what comes after the position `since` (empty: after none).
pub(super) async fn again(number: usize, around: &Neighbours, since: &str) -> Result<Link, Gone> {
    let _door = around.doors.acquire().await;
    in_time(number, &around.plan, since).await
}

async fn in_time(number: usize, plan: &Plan, since: &str) -> Result<Link, Gone> {
    let link = timeout(CONNECT_TIMEOUT, open(number, plan, since)).await;
    link.unwrap_or_else(|_| Err(Gone("no answer in 30 s".to_owned())))
}

async fn open(number: usize, plan: &Plan, since: &str) -> Result<Link, Gone> {
    let target = &plan.targets[number % plan.targets.len()];
    let user = format!("{}{number}", plan.user);
    let token = plan.tokens.of(target, &user).await;
    let token = token.map_err(|error| Gone(format!("{error:#}")))?;
    let source = match plan.sources.len() {
        0 => None,
        // Neighbours in number are spread over the targets, so not that number again.
        sources => Some(plan.sources[number / plan.targets.len() % sources]),
    };
    let stream = target.connect(source).await.map_err(|error| {
        let advice = match error.raw_os_error() {
            // EMFILE, EADDRNOTAVAIL
            Some(24) => " (raise ulimit -n)",
            // The addresses are this machine's: that was looked at first.
            Some(99) => " (no ports left: more --source addresses)",
            _ => "",
        };
        Gone(format!("{error}{advice}"))
    })?;
    let request = target
        .upgrade_url(&token, &user, since)
        .into_client_request();
    let mut request = request.map_err(|error| Gone(error.to_string()))?;
    if plan.v1 {
        let protocol = HeaderValue::from_static(SUBPROTOCOL);
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let config = WebSocketConfig::default()
        .read_buffer_size(2048)
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20);
    let upgraded = client_async_with_config(request, stream, Some(config)).await;
    let (socket, _) = upgraded.map_err(|error| match error {
        Error::Http(response) => Gone(format!("HTTP {}", response.status().as_u16())),
        other => Gone(other.to_string()),
    })?;
    if plan.v1 {
        return welcomed(socket).await;
    }
    Ok(Link {
        socket,
        position: None,
        recovered: false,
    })
}

/// Waits for the server's first word.
async fn welcomed(mut socket: Socket) -> Result<Link, Gone> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let frame = Frame::parse(&text).filter(|frame| frame.kind == "welcome");
                if let Some(frame) = frame {
                    let position = frame.position.map(str::to_owned);
                    let recovered = frame.recovered == Some(true);
                    return Ok(Link {
                        socket,
                        position,
                        recovered,
                    });
                }
            }
            Some(Ok(Message::Ping(_))) => {}
            other => return Err(gone(other)),
        }
    }
}

/// What the end of a socket says.
pub(super) fn gone(end: Option<Result<Message, Error>>) -> Gone {
    Gone(match end {
        Some(Ok(Message::Close(Some(frame)))) => format!("close {}", u16::from(frame.code)),
        Some(Ok(Message::Close(None)) | Err(Error::ConnectionClosed)) | None => {
            "closed without a code".to_owned()
        }
        Some(Ok(_)) => "a frame that is not text".to_owned(),
        Some(Err(error)) => error.to_string(),
    })
}
