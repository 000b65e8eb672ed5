//! One connection: the upgrade, and the `welcome`.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::{
    AUTHORIZATION, CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use reqwest::{Method, StatusCode, Upgraded};
use secrecy::ExposeSecret as _;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Wire;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::error::ClientError;
use super::link::Link;
use super::retry_hint::{RetryHint, retry_hint};
use crate::protocol::v1::SUBPROTOCOL;
use crate::protocol::wire::v1::{FromServer, Welcome};

pub(super) type Socket = WebSocketStream<Upgraded>;

/// From the upgrade to the `welcome`.
const WELCOME: Duration = Duration::from_secs(15);

/// Connects, with another token where the server does not take the one at hand.
pub(super) async fn open(
    link: &Link,
    since: Option<&str>,
) -> Result<(Socket, Welcome), ClientError> {
    let result = match try_open(link, since).await {
        Err(ClientError::Unauthorized(_)) if link.renew() => try_open(link, since).await,
        result => result,
    };
    match result {
        // What the server says of it would be about a token that nobody gave.
        Err(ClientError::Unauthorized(_)) if link.anonymous() => {
            Err(ClientError::Unauthorized("none was given".into()))
        }
        result => result,
    }
}

async fn try_open(link: &Link, since: Option<&str>) -> Result<(Socket, Welcome), ClientError> {
    let mut socket = upgrade(link, since).await?;
    let first = tokio::time::timeout(WELCOME, async {
        loop {
            match socket.next().await {
                Some(Ok(Wire::Ping(_) | Wire::Pong(_))) => {}
                other => return other,
            }
        }
    });
    let gone = |why: &str| ClientError::Unreachable {
        server: link.place(),
        why: why.to_owned(),
    };
    match first.await {
        Err(_) => Err(gone("it does not greet")),
        Ok(Some(Ok(Wire::Text(text)))) => match serde_json::from_str(&text) {
            Ok(FromServer::Welcome(welcome)) => Ok((socket, welcome)),
            _ => Err(link.strange("does not greet as chatmesh.v1 does")),
        },
        Ok(Some(Ok(Wire::Close(frame)))) => {
            let code = frame.map(|frame| u16::from(frame.code));
            Err(match (retry_hint(code), code) {
                (RetryHint::NewToken, _) => ClientError::Unauthorized("it was not taken".into()),
                (RetryHint::Never(reason), Some(4403)) => {
                    ClientError::Forbidden(reason.name().into())
                }
                (RetryHint::Never(reason), _) => {
                    link.strange(&format!("closed: {}", reason.name()))
                }
                (RetryHint::Reconnect(retry_after), _) => ClientError::Busy {
                    why: "it closed the connection at once".into(),
                    retry_after,
                },
            })
        }
        Ok(_) => Err(gone("the connection broke")),
    }
}

async fn upgrade(link: &Link, since: Option<&str>) -> Result<Socket, ClientError> {
    let token = link.token().await?;
    let key = generate_key();
    let mut url = link.url(&["ws"]);
    if let Some(since) = since {
        url.query_pairs_mut().append_pair("since", since);
    }
    let mut request = link
        .request(Method::GET, url)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key);
    // Never in the address, which proxies write into their logs. As browsers do it, where the
    // token's form allows.
    let token = token.expose_secret();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let secret = |text: String| {
        let mut value = HeaderValue::try_from(text).map_err(|_| {
            ClientError::Unauthorized("the token has characters that no header can carry".into())
        })?;
        value.set_sensitive(true);
        Ok::<_, ClientError>(value)
    };
    request = if token.bytes().all(plain) {
        let offered = secret(format!("{SUBPROTOCOL}, bearer.{token}"))?;
        request.header(SEC_WEBSOCKET_PROTOCOL, offered)
    } else {
        request
            .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
            .header(AUTHORIZATION, secret(format!("Bearer {token}"))?)
    };
    let response = link.send(request).await?;
    if response.status() == StatusCode::NOT_FOUND {
        let place = link.place();
        return Err(ClientError::Unexpected(format!(
            "no chatmesh at {place}: it answered 404"
        )));
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(link.refusal(response).await);
    }
    let headers = response.headers();
    let accepted = headers.get(SEC_WEBSOCKET_ACCEPT);
    if accepted.is_none_or(|value| value.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes())
    {
        return Err(link.strange("does not speak WebSocket"));
    }
    let spoken = headers.get(SEC_WEBSOCKET_PROTOCOL);
    if spoken.is_none_or(|value| value.as_bytes() != SUBPROTOCOL.as_bytes()) {
        return Err(link.strange("does not speak chatmesh.v1"));
    }
    let upgraded = response
        .upgrade()
        .await
        .map_err(|_| link.strange("broke the connection off"))?;
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
}
