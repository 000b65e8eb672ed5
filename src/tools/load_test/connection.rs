//! Opens the connections of clients, and describes why a connection was lost.

use std::time::Duration;

use futures_util::StreamExt as _;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::context::ThreadContext;
use super::frames::Frame;
use super::plan::Plan;
use crate::protocol::v1::SUBPROTOCOL;

pub(super) type Socket = WebSocketStream<TcpStream>;

/// Time limit for requesting the token, the TCP connection, the upgrade and the `welcome` frame
/// together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// An open connection with the fields of its `welcome` frame. Classic connections have no
/// `welcome`.
pub(super) struct Connection {
    pub(super) socket: Socket,
    /// The position in `welcome`, from which the client resumes.
    pub(super) position: Option<String>,
    /// Whether the server now sends everything that the client has missed since its position.
    pub(super) is_recovered: bool,
}

/// Why a connection could not be opened or was lost, as the report shows it.
pub(super) struct DisconnectReason(pub(super) String);

impl DisconnectReason {
    /// Returns the reason why a connection ended, from the last item that its socket returned.
    pub(super) fn from_end(last_item: Option<Result<Message, Error>>) -> Self {
        Self(match last_item {
            Some(Ok(Message::Close(Some(frame)))) => format!("close {}", u16::from(frame.code)),
            Some(Ok(Message::Close(None)) | Err(Error::ConnectionClosed)) | None => {
                "closed without a code".to_owned()
            }
            Some(Ok(_)) => "a frame that is not text".to_owned(),
            Some(Err(error)) => error.to_string(),
        })
    }
}

/// Opens the first connection of a client, at the client's time within the ramp-up.
pub(super) async fn connect(
    number: usize,
    context: &ThreadContext,
) -> Result<Connection, DisconnectReason> {
    let plan = &context.plan;
    let offset = plan
        .ramp_up
        .mul_f64(number as f64 / plan.client_count as f64);
    sleep_until(context.state.started + offset).await;
    let _permit = context.connect_permits.acquire().await;
    let started = Instant::now();
    let connection = open_with_timeout(number, plan, "").await?;
    let elapsed = started.elapsed();
    context.stats.borrow_mut().connect_time.record(elapsed);
    Ok(connection)
}

/// Opens another connection of a client, which resumes after the position `since`. An empty `since`
/// means that the client has no position.
pub(super) async fn reconnect(
    number: usize,
    context: &ThreadContext,
    since: &str,
) -> Result<Connection, DisconnectReason> {
    let _permit = context.connect_permits.acquire().await;
    open_with_timeout(number, &context.plan, since).await
}

async fn open_with_timeout(
    number: usize,
    plan: &Plan,
    since: &str,
) -> Result<Connection, DisconnectReason> {
    let connection = timeout(CONNECT_TIMEOUT, open(number, plan, since)).await;
    connection.unwrap_or_else(|_| Err(DisconnectReason("no answer in 30 s".to_owned())))
}

async fn open(number: usize, plan: &Plan, since: &str) -> Result<Connection, DisconnectReason> {
    let target = &plan.targets[number % plan.targets.len()];
    let user = format!("{}{number}", plan.user_prefix);
    let token = plan.tokens.token_for(target, &user).await;
    let token = token.map_err(|error| DisconnectReason(format!("{error:#}")))?;
    let source = match plan.sources.len() {
        0 => None,
        // Consecutive client numbers alternate between targets, so the quotient selects the source:
        // otherwise a target would be reached from only some of the sources.
        sources => Some(plan.sources[number / plan.targets.len() % sources]),
    };
    let stream = target.connect(source).await.map_err(|error| {
        let hint = match error.raw_os_error() {
            // EMFILE: the process has no file descriptors left.
            Some(24) => " (raise ulimit -n)",
            // EADDRNOTAVAIL: the addresses were checked at the start, so their ports are used up.
            Some(99) => " (no ports left: more --source addresses)",
            _ => "",
        };
        DisconnectReason(format!("{error}{hint}"))
    })?;
    let request = target
        .upgrade_url(&token, &user, since)
        .into_client_request();
    let mut request = request.map_err(|error| DisconnectReason(error.to_string()))?;
    if plan.is_v1 {
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
        Error::Http(response) => DisconnectReason(format!("HTTP {}", response.status().as_u16())),
        other => DisconnectReason(other.to_string()),
    })?;
    if plan.is_v1 {
        return read_welcome(socket).await;
    }
    Ok(Connection {
        socket,
        position: None,
        is_recovered: false,
    })
}

/// Reads frames until `welcome`, and returns the connection with the fields of `welcome`.
async fn read_welcome(mut socket: Socket) -> Result<Connection, DisconnectReason> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let frame = Frame::parse(&text).filter(|frame| frame.kind == "welcome");
                if let Some(frame) = frame {
                    let position = frame.position.map(str::to_owned);
                    let is_recovered = frame.recovered == Some(true);
                    return Ok(Connection {
                        socket,
                        position,
                        is_recovered,
                    });
                }
            }
            Some(Ok(Message::Ping(_))) => {}
            other => return Err(DisconnectReason::from_end(other)),
        }
    }
}
