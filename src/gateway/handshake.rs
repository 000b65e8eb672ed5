//! From an upgrade request to a connection: parameters, origin, token, correlation id.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use hyper::{HeaderMap, Method, Request, StatusCode, Uri};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use super::limits::Peer;
use super::reply::{Refusal, Reply};
use super::{Gateway, auth, connection, origin};
use crate::protocol::close::CloseReason;
use crate::protocol::ids::UserId;
use crate::protocol::position::Position;
use crate::protocol::record::header;
use crate::protocol::trace_context::TraceContext;
use crate::protocol::v1;

/// The parameters of a request.
pub(super) struct Query<'a> {
    userid: Option<Cow<'a, str>>,
    token: Option<Cow<'a, str>>,
    since: Option<Cow<'a, str>>,
    pub(super) before: Option<Cow<'a, str>>,
    pub(super) after: Option<Cow<'a, str>>,
    pub(super) limit: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    pub(super) fn of(uri: &'a Uri) -> Self {
        let mut query = Self {
            userid: None,
            token: None,
            since: None,
            before: None,
            after: None,
            limit: None,
        };
        let raw = uri.query().unwrap_or_default();
        for (name, value) in url::form_urlencoded::parse(raw.as_bytes()) {
            match &*name {
                "userid" => query.userid = Some(value),
                "token" => query.token = Some(value),
                "since" => query.since = Some(value).filter(|value| !value.is_empty()),
                "before" => query.before = Some(value),
                "after" => query.after = Some(value),
                "limit" => query.limit = Some(value),
                _ => {}
            }
        }
        query
    }

    /// Whether there is a `userid`, good or not.
    pub(super) fn names_user(&self) -> bool {
        self.userid.is_some()
    }

    pub(super) fn user(&self) -> Result<UserId, Refusal> {
        let given = self
            .userid
            .as_deref()
            .ok_or(Refusal::bad_request("`userid` is missing"))?;
        UserId::parse(given).map_err(|_| {
            Refusal::bad_request(
                "`userid` must be 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + -",
            )
        })
    }
}

/// The position that a `chatmesh.v1` client comes with. A position of another log is one that
/// nothing can be recovered from; what no server can have given out is refused.
fn since(query: &Query<'_>) -> Result<Option<Position>, Refusal> {
    query
        .since
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|_| Refusal::bad_request("`since` must be a position that the server gave out"))
}

/// Whether the client offers `chatmesh.v1`.
fn offers_v1(headers: &HeaderMap) -> bool {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim() == v1::SUBPROTOCOL)
}

/// The protocol that the client and we speak.
#[derive(Debug, Clone)]
pub(super) enum Protocol {
    Classic,
    V1 {
        since: Option<Position>,
        /// When the token ends, and the connection with it.
        ends: Option<Instant>,
    },
}

/// Who connects, and how its messages are followed.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) user: UserId,
    /// Of the connection; a message's has a number behind it.
    pub(super) correlation_id: Arc<str>,
    /// The trace that the client brought, of messages that bring none of their own.
    pub(super) trace: Option<Box<TraceContext>>,
    /// By which token.
    pub(super) granted: auth::Granted,
    pub(super) protocol: Protocol,
}

/// Checks an upgrade request. What it lets in runs on in a task of its own.
pub(super) async fn upgrade(
    gateway: &Arc<Gateway>,
    mut request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::method("GET"));
    }
    if gateway.drain.is_cancelled() {
        return Err(Refusal::unavailable("this gateway is stopping"));
    }
    // Before anything that costs.
    gateway.limits.pace()?;
    let query = Query::of(request.uri());
    let user = query.user()?;
    let mut reply = create_response_with_body(&request, || Full::new(Bytes::new()))
        .map_err(|_| Refusal::bad_request("a WebSocket upgrade (version 13) is expected here"));
    let v1 = reply.is_ok() && offers_v1(request.headers());
    if v1 && let Ok(reply) = &mut reply {
        let name = HeaderValue::from_static(v1::SUBPROTOCOL);
        reply.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
    }
    let since = if v1 { since(&query)? } else { None };
    let allowed = match origin::check(gateway, request.headers()) {
        Ok(()) if reply.is_err() => Ok(auth::Granted::default()),
        Ok(()) => {
            let token = auth::presented(query.token.as_deref(), request.headers());
            auth::check_token(gateway, &user, token).await
        }
        Err(refusal) => Err(refusal),
    };
    let granted = match allowed {
        Ok(granted) => granted,
        Err(refusal) => {
            let reason = match refusal.status {
                StatusCode::UNAUTHORIZED => CloseReason::Unauthorized,
                StatusCode::FORBIDDEN => CloseReason::Forbidden,
                _ => return Err(refusal),
            };
            // A browser hides the status of a failed upgrade from the page.
            return match reply {
                Ok(reply) if v1 => {
                    gateway.counters.refused(refusal.status.as_u16());
                    let upgraded = hyper::upgrade::on(&mut request);
                    let turned_away = connection::turn_away(gateway.clone(), upgraded, reason);
                    gateway.tasks.spawn(turned_away);
                    Ok(reply)
                }
                _ => Err(refusal),
            };
        }
    };
    let mut reply = reply?;
    if !gateway.registry.has_feed() {
        return Err(Refusal::unavailable("answers can't be received yet"));
    }
    let peer = request.extensions().get::<Peer>();
    let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip());
    let address = gateway.limits.address(peer, request.headers());
    let place = gateway.limits.place(&user, address)?;
    let correlation_id = correlation_id(request.headers());
    if let Ok(value) = HeaderValue::from_str(&correlation_id) {
        reply.headers_mut().insert("x-correlation-id", value);
    }
    let session = Session {
        user,
        correlation_id,
        trace: trace(request.headers()).map(Box::new),
        granted,
        protocol: if v1 {
            let ends = granted.ends(false);
            Protocol::V1 { since, ends }
        } else {
            Protocol::Classic
        },
    };
    let upgraded = hyper::upgrade::on(&mut request);
    gateway.tasks.spawn(connection::run(
        gateway.clone(),
        Arc::new(session),
        place,
        upgraded,
    ));
    Ok(reply)
}

/// What the client brought, where it can't do harm in headers and logs; otherwise a new one.
fn correlation_id(headers: &HeaderMap) -> Arc<str> {
    ["x-correlation-id", "x-request-id"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .find(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| uuid::Uuid::new_v4().to_string().into(), Into::into)
}

/// Two of the one header are none; several of the other are one list.
fn trace(headers: &HeaderMap) -> Option<TraceContext> {
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_decoded_before_they_are_judged() {
        let uri: Uri = "/ws?token=a%2Bb&userid=al%69ce%40x".parse().unwrap();
        let query = Query::of(&uri);
        assert_eq!(query.user().unwrap().as_str(), "alice@x");
        assert_eq!(query.token.as_deref(), Some("a+b"));
        for bad in [
            "/ws",
            "/ws?userid=",
            "/ws?userid=a%0d%0ab",
            "/ws?userid=%ff",
            "/ws?userid=*",
        ] {
            let uri: Uri = bad.parse().unwrap();
            assert!(Query::of(&uri).user().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_trace_is_one_header_and_its_state_may_be_several() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = HeaderMap::new();
        assert_eq!(trace(&headers), None);
        headers.append("traceparent", HeaderValue::from_static(parent));
        headers.append("tracestate", HeaderValue::from_static("a=1"));
        headers.append("tracestate", HeaderValue::from_static("b=2, c=3"));
        let read = trace(&headers).unwrap();
        assert_eq!(read.traceparent(), parent);
        assert_eq!(read.tracestate(), Some("a=1,b=2,c=3"));
        headers.append("traceparent", HeaderValue::from_static(parent));
        assert_eq!(trace(&headers), None);
    }

    #[test]
    fn a_correlation_id_that_could_break_a_log_line_is_replaced() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", HeaderValue::from_str(value).unwrap());
            correlation_id(&headers).to_string()
        };
        assert_eq!(with("abc-1"), "abc-1");
        for bad in ["a b", "a\tb", "", &"x".repeat(129)] {
            assert_ne!(with(bad), bad);
        }
    }

    proptest! {
        #[test]
        fn any_request_line_is_read_and_only_safe_userids_of_it(text in "[!-~]{0,120}") {
            if let Ok(uri) = format!("/ws?{text}").parse::<Uri>() {
                let query = Query::of(&uri);
                if let Ok(user) = query.user() {
                    prop_assert!(query.names_user());
                    prop_assert!(UserId::parse(user.as_str()).is_ok());
                }
                let _ = since(&query);
            }
        }

        #[test]
        fn a_parameter_is_read_as_it_was_written(value in ".{1,60}") {
            let pairs = [("before", &value), ("since", &value), ("token", &value)];
            let text = url::form_urlencoded::Serializer::new(String::new())
                .extend_pairs(pairs)
                .finish();
            let uri: Uri = format!("/ws?{text}").parse().unwrap();
            let query = Query::of(&uri);
            for read in [&query.before, &query.since, &query.token] {
                prop_assert_eq!(read.as_deref(), Some(&*value));
            }
        }

        #[test]
        fn no_header_breaks_what_is_read_of_it(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                for name in ["traceparent", "tracestate", "x-correlation-id", "sec-websocket-protocol"] {
                    headers.insert(name, value.clone());
                }
                headers.insert("authorization", value);
                let id = correlation_id(&headers);
                prop_assert!(id.bytes().all(|byte| byte.is_ascii_graphic()));
                let _ = (trace(&headers), offers_v1(&headers));
                let token = auth::presented(None, &headers);
                prop_assert!(token.is_none_or(|token| !token.is_empty()));
            }
        }
    }
}
