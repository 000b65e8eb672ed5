//! The WebSocket handshake: checks an upgrade request, and returns the session of the new
//! connection. Called by the HTTP server.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, StatusCode};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use super::auth;
use super::context::Gateway;
use super::http::origin;
use super::http::query::{Head, Query};
use super::http::response::{HttpError, HttpResponse};
use super::limits::{ConnectionPermit, PeerAddress};
use super::session::{Grant, Protocol, Session};

use crate::protocol::close::CloseReason;
use crate::protocol::position::Position;
use crate::protocol::record::header;
use crate::protocol::trace_context::TraceContext;
use crate::protocol::v1;

/// The result of a handshake. In both variants the caller sends `response`, which has the status
/// 101, and `stream` then resolves to the connection.
pub(super) enum Upgrade {
    /// The client may connect.
    Accepted {
        response: HttpResponse,
        session: Arc<Session>,
        permit: ConnectionPermit,
        stream: OnUpgrade,
    },
    /// The client may not connect. The WebSocket is opened only to be closed with `reason`, because
    /// a browser hides the HTTP status of a failed upgrade from the page.
    Rejected {
        response: HttpResponse,
        error: HttpError,
        reason: CloseReason,
        stream: OnUpgrade,
    },
}

/// Parses the position from which a `chatmesh.v1` client resumes; `None` where the client sent
/// none. A well-formed position of another log is accepted, but no frame can be recovered from it.
/// Malformed text is refused.
fn parse_resume_position(query: &Query<'_>) -> Result<Option<Position>, HttpError> {
    query
        .since
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|_| {
            HttpError::bad_request(
                "`since` must be a position that a server issued; connect without it to start at \
                 the present",
            )
        })
}

/// Whether the client offers the subprotocol `chatmesh.v1`.
fn offers_v1(headers: &HeaderMap) -> bool {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim() == v1::SUBPROTOCOL)
}

/// The response that accepts the upgrade, with the subprotocol if the client offers `chatmesh.v1`.
fn switching_protocols(request: &Head) -> Result<HttpResponse, HttpError> {
    let mut response = create_response_with_body(request, || Full::new(Bytes::new()))
        .map_err(|_| HttpError::bad_request("a WebSocket upgrade (version 13) is expected here"))?;
    if offers_v1(request.headers()) {
        let name = HeaderValue::from_static(v1::SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
    }
    Ok(response)
}

/// Checks an upgrade request: method, drain, rate, parameters, origin, token and connection limits.
pub(super) async fn upgrade(gateway: &Gateway, request: &mut Head) -> Result<Upgrade, HttpError> {
    if request.method() != Method::GET {
        return Err(HttpError::method_not_allowed("GET"));
    }
    if gateway.drain.is_cancelled() {
        return Err(HttpError::unavailable("this gateway is stopping"));
    }
    // The rate is checked first, because the other checks cost more.
    gateway.limits.check_rate()?;
    let query = Query::parse(request.uri());
    let user = query.user()?;
    let response = switching_protocols(request);
    let is_v1 = response.is_ok() && offers_v1(request.headers());
    let resume_after = if is_v1 {
        parse_resume_position(&query)?
    } else {
        None
    };
    // With `INTEROP` the mailbox lacks what an original (Python) relay delivered, so `since` is
    // ignored.
    let resume_after = resume_after.filter(|_| !gateway.settings.interop);
    let access = match origin::check(gateway, request.headers()) {
        // No token is looked up for a request that fails anyway.
        Ok(()) if response.is_err() => Ok(Grant::default()),
        Ok(()) => {
            let token = auth::token_from_request(query.token.as_deref(), request.headers());
            auth::check_token(gateway, &user, token).await
        }
        Err(error) => Err(error),
    };
    let (mut response, grant) = match (response, access) {
        (Ok(response), Ok(grant)) => (response, grant),
        (Ok(response), Err(error)) if is_v1 => return reject(response, error, request),
        (_, Err(error)) | (Err(error), Ok(_)) => return Err(error),
    };
    if !gateway.registry.has_feed() {
        return Err(HttpError::unavailable("answers can't be received yet"));
    }
    let peer = request.extensions().get::<PeerAddress>();
    let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip());
    let address = gateway.limits.client_address(peer, request.headers());
    let permit = gateway.limits.acquire(&user, address)?;
    let correlation_id = correlation_id(request.headers());
    if let Ok(value) = HeaderValue::from_str(&correlation_id) {
        response.headers_mut().insert("x-correlation-id", value);
    }
    let session = Session {
        user,
        correlation_id,
        trace: trace_context(request.headers()).map(Box::new),
        grant,
        protocol: if is_v1 {
            let expires_at = grant.expires_at;
            Protocol::V1 {
                resume_after,
                expires_at,
            }
        } else {
            Protocol::Classic
        },
    };
    Ok(Upgrade::Accepted {
        response,
        session: Arc::new(session),
        permit,
        stream: hyper::upgrade::on(request),
    })
}

/// Rejects a `chatmesh.v1` client by a close code if there is one for `error`. Otherwise returns
/// `error`, so that the upgrade is refused with an HTTP status.
fn reject(
    response: HttpResponse,
    error: HttpError,
    request: &mut Head,
) -> Result<Upgrade, HttpError> {
    let reason = match error.status {
        StatusCode::UNAUTHORIZED => CloseReason::Unauthorized,
        StatusCode::FORBIDDEN => CloseReason::Forbidden,
        _ => return Err(error),
    };
    Ok(Upgrade::Rejected {
        response,
        error,
        reason,
        stream: hyper::upgrade::on(request),
    })
}

/// The correlation id of a connection: the id that the client sent, if it is safe in headers and
/// logs; otherwise a random id.
fn correlation_id(headers: &HeaderMap) -> Arc<str> {
    ["x-correlation-id", "x-request-id"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .find(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| uuid::Uuid::new_v4().to_string().into(), Into::into)
}

/// The W3C trace context of a request; `None` where the request has no valid `traceparent`. As the
/// specification requires, a repeated `traceparent` is ignored, and several `tracestate` headers
/// are joined.
fn trace_context(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(header::TRACEPARENT).iter();
    let (parent, None) = (parents.next()?, parents.next()) else {
        return None;
    };
    let states = headers.get_all(header::TRACESTATE).iter();
    let states: Vec<&str> = states.filter_map(|value| value.to_str().ok()).collect();
    TraceContext::parse(parent.to_str().ok()?, Some(&states.join(",")))
}

#[cfg(test)]
mod tests {
    use hyper::Uri;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::ids::UserId;

    #[test]
    fn traceparent_is_one_header_and_tracestate_may_be_several() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = HeaderMap::new();
        assert_eq!(trace_context(&headers), None);
        headers.append("traceparent", HeaderValue::from_static(parent));
        headers.append("tracestate", HeaderValue::from_static("a=1"));
        headers.append("tracestate", HeaderValue::from_static("b=2, c=3"));
        let context = trace_context(&headers).unwrap();
        assert_eq!(context.traceparent(), parent);
        assert_eq!(context.tracestate(), Some("a=1,b=2,c=3"));
        headers.append("traceparent", HeaderValue::from_static(parent));
        assert_eq!(trace_context(&headers), None);
    }

    #[test]
    fn correlation_id_that_could_break_a_log_line_is_replaced() {
        let correlation_id_for = |request_id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", HeaderValue::from_str(request_id).unwrap());
            correlation_id(&headers).to_string()
        };
        assert_eq!(correlation_id_for("abc-1"), "abc-1");
        for unsafe_id in ["a b", "a\tb", "", &"x".repeat(129)] {
            assert_ne!(correlation_id_for(unsafe_id), unsafe_id);
        }
    }

    proptest! {
        #[test]
        fn any_request_line_is_parsed_and_only_safe_userids_pass(text in "[!-~]{0,120}") {
            if let Ok(uri) = format!("/ws?{text}").parse::<Uri>() {
                let query = Query::parse(&uri);
                if let Ok(user) = query.user() {
                    prop_assert!(query.has_userid());
                    prop_assert!(UserId::parse(user.as_str()).is_ok());
                }
                let _ = parse_resume_position(&query);
            }
        }

        #[test]
        fn no_header_value_panics(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                for name in ["traceparent", "tracestate", "x-correlation-id", "sec-websocket-protocol"] {
                    headers.insert(name, value.clone());
                }
                headers.insert("authorization", value);
                let id = correlation_id(&headers);
                prop_assert!(id.bytes().all(|byte| byte.is_ascii_graphic()));
                let _ = (trace_context(&headers), offers_v1(&headers));
                let token = auth::token_from_request(None, &headers);
                prop_assert!(token.is_none_or(|token| !token.is_empty()));
            }
        }
    }
}
