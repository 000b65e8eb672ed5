//! Opens a connection: the upgrade to WebSocket, and the server's `welcome`.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::{
    AUTHORIZATION, CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Method, StatusCode, Upgraded};
use secrecy::ExposeSecret as _;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::error::ClientError;
use super::retry_hint::{RetryHint, retry_hint};
use super::server_api::ServerApi;
use crate::protocol::v1::SUBPROTOCOL;
use crate::protocol::wire::v1::{ServerToClient, Welcome};

pub(super) type Socket = WebSocketStream<Upgraded>;

/// Maximum time to wait for the `welcome` after the upgrade.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);

/// Opens a connection that resumes after the position `since`, or begins at the present if `since`
/// is `None`. If the server rejects the token and the client can obtain another token, tries once
/// more with that token.
pub(super) async fn open_connection(
    server: &ServerApi,
    since: Option<&str>,
) -> Result<(Socket, Welcome), ClientError> {
    let result = match try_open(server, since).await {
        Err(ClientError::Unauthorized(_)) if server.discard_token() => {
            try_open(server, since).await
        }
        result => result,
    };
    match result {
        // The server's own reason would be about the placeholder token, which the user did not
        // give.
        Err(ClientError::Unauthorized(_)) if server.has_placeholder_token() => {
            Err(ClientError::Unauthorized("none was given".into()))
        }
        result => result,
    }
}

async fn try_open(
    server: &ServerApi,
    since: Option<&str>,
) -> Result<(Socket, Welcome), ClientError> {
    let mut socket = upgrade(server, since).await?;
    let first_frame = tokio::time::timeout(WELCOME_TIMEOUT, async {
        loop {
            match socket.next().await {
                Some(Ok(WsMessage::Ping(_) | WsMessage::Pong(_))) => {}
                other => return other,
            }
        }
    });
    let unreachable = |reason: &str| ClientError::Unreachable {
        server: server.address(),
        reason: reason.to_owned(),
    };
    match first_frame.await {
        Err(_) => Err(unreachable("it sends no welcome")),
        Ok(Some(Ok(WsMessage::Text(text)))) => match serde_json::from_str(&text) {
            Ok(ServerToClient::Welcome(welcome)) => Ok((socket, welcome)),
            _ => Err(server.unexpected("sends no welcome as chatmesh.v1 does")),
        },
        Ok(Some(Ok(WsMessage::Close(frame)))) => {
            let code = frame.map(|frame| u16::from(frame.code));
            Err(match (retry_hint(code), code) {
                (RetryHint::NewToken, _) => ClientError::Unauthorized("it was rejected".into()),
                (RetryHint::Never(reason), Some(4403)) => {
                    ClientError::Forbidden(reason.name().into())
                }
                (RetryHint::Never(reason), _) => {
                    server.unexpected(&format!("closed: {}", reason.name()))
                }
                (RetryHint::Reconnect(retry_after), _) => ClientError::Busy {
                    reason: "it closed the connection at once".into(),
                    retry_after,
                },
            })
        }
        Ok(_) => Err(unreachable("the connection broke")),
    }
}

async fn upgrade(server: &ServerApi, since: Option<&str>) -> Result<Socket, ClientError> {
    let token = server.token().await?;
    let websocket_key = generate_key();
    let mut url = server.url(&["ws"]);
    if let Some(since) = since {
        url.query_pairs_mut().append_pair("since", since);
    }
    let mut request = server
        .request(Method::GET, url)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &websocket_key);
    // Proxies log URLs, so the token is never in the URL. If its characters allow that, it is sent
    // as browsers send it: as an entry of the subprotocol header.
    let token = token.expose_secret();
    let is_token_char = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let secret_header = |text: String| {
        let mut value = HeaderValue::try_from(text).map_err(|_| {
            ClientError::Unauthorized("the token has characters that no header can carry".into())
        })?;
        value.set_sensitive(true);
        Ok::<_, ClientError>(value)
    };
    request = if token.bytes().all(is_token_char) {
        let offered = secret_header(format!("{SUBPROTOCOL}, bearer.{token}"))?;
        request.header(SEC_WEBSOCKET_PROTOCOL, offered)
    } else {
        request
            .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
            .header(AUTHORIZATION, secret_header(format!("Bearer {token}"))?)
    };
    let response = server.send(request).await?;
    if response.status() == StatusCode::NOT_FOUND {
        let address = server.address();
        return Err(ClientError::UnexpectedResponse(format!(
            "no chatmesh at {address}: it answered 404"
        )));
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(server.error_from(response).await);
    }
    let headers = response.headers();
    let accept_key = headers.get(SEC_WEBSOCKET_ACCEPT);
    if accept_key.is_none_or(|value| {
        value.as_bytes() != derive_accept_key(websocket_key.as_bytes()).as_bytes()
    }) {
        return Err(server.unexpected("does not speak WebSocket"));
    }
    let subprotocol = headers.get(SEC_WEBSOCKET_PROTOCOL);
    if subprotocol.is_none_or(|value| value.as_bytes() != SUBPROTOCOL.as_bytes()) {
        return Err(server.unexpected("does not speak chatmesh.v1"));
    }
    let upgraded = response
        .upgrade()
        .await
        .map_err(|_| server.unexpected("broke off the connection"))?;
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
}
