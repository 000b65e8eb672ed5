//! Which request goes where.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use super::reply::{Refusal, Reply, json_reply};
use super::{Gateway, handshake, history, letters, origin, token};

pub(super) async fn route(
    gateway: Arc<Gateway>,
    request: Request<Incoming>,
) -> Result<Reply, Infallible> {
    let path = request.uri().path();
    let result = match path {
        "/ws" => {
            let result = handshake::upgrade(&gateway, request).await;
            if let Err(refusal) = &result {
                gateway.counters.refused(refusal.status.as_u16());
            }
            result
        }
        "/token" => {
            let (parts, _body) = request.into_parts();
            match parts.method {
                Method::OPTIONS => token::preflight(&gateway, &parts),
                Method::POST => {
                    if let Err(refusal) = origin::check(&gateway, &parts.headers) {
                        Err(refusal)
                    } else {
                        // A page that may ask may also read why it was refused.
                        let mut reply = token::issue(&gateway, &parts)
                            .await
                            .unwrap_or_else(|refusal| refusal.reply());
                        origin::add_cors(&gateway, &parts.headers, &mut reply);
                        Ok(reply)
                    }
                }
                // The operator's: no page may call it, so it has no CORS.
                Method::DELETE => match origin::check(&gateway, &parts.headers) {
                    Ok(()) => token::revoke(&gateway, &parts).await,
                    Err(refusal) => Err(refusal),
                },
                _ => Err(Refusal::method("POST, DELETE, OPTIONS")),
            }
        }
        "/conversations" => history(&gateway, request).await,
        path if path.starts_with("/conversations/") => history(&gateway, request).await,
        // The operator's too.
        path if path == "/dead-letters" || path.starts_with("/dead-letters/") => {
            let (parts, _body) = request.into_parts();
            match origin::check(&gateway, &parts.headers) {
                Ok(()) => letters::serve(&gateway, &parts).await,
                Err(refusal) => Err(refusal),
            }
        }
        _ => match origin::check_host(&gateway, request.headers()) {
            Err(refusal) => Err(refusal),
            Ok(()) if path == "/health" && request.method() == Method::GET => Ok(health(&gateway)),
            Ok(()) => match gateway.page.as_ref().and_then(|page| page.find(path)) {
                Some(file) => Ok(file.serve(request.method(), request.headers())),
                None => (gateway.admin)(request.method(), path).ok_or_else(Refusal::not_found),
            },
        },
    };
    Ok(result.unwrap_or_else(|refusal| refusal.reply()))
}

async fn history(gateway: &Gateway, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let (parts, _body) = request.into_parts();
    if parts.method == Method::OPTIONS {
        return history::preflight(gateway, &parts);
    }
    origin::check(gateway, &parts.headers)?;
    let mut reply = history::serve(gateway, &parts).await;
    origin::add_cors(gateway, &parts.headers, &mut reply);
    Ok(reply)
}

/// As the original's.
fn health(gateway: &Gateway) -> Reply {
    json_reply(
        StatusCode::OK,
        &json!({
            "status": "healthy",
            "service": "websocket-server",
            "server_id": gateway.settings.server_id,
            "active_users": gateway.registry.users(),
            "total_connections": gateway.registry.connections(),
        }),
    )
}
